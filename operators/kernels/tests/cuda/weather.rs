//! The service in bad weather: engines that lose their context, run out of memory, hang, give NaN,
//! panic or do not open at all, at random. Law: every text gets exactly its own answer, whoever
//! computed it; nothing hangs; what went wrong is said.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kernels::cuda::batch::{BUCKETS, Batch, Bucket, Text};
use kernels::cuda::device::Fault;
use kernels::cuda::engine::{Class, Engine, SlotPlan};
use kernels::cuda::service::{Opener, Service, Settings};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What a text becomes, on the stand-in and on the CPU: told apart by the second number.
fn answer(ids: &[u32]) -> f32 {
    ids.iter()
        .fold(1.0f32, |sum, &id| (sum * 31.0 + id as f32) % 65_537.0)
}

/// Calls of an engine that had failed, or of a slot that was taken. (A panic would be taken for weather.)
static MISUSES: AtomicUsize = AtomicUsize::new(0);

/// Chances in a thousand, a batch.
#[derive(Clone, Copy, Default)]
struct Weather {
    lost: u32,
    exhausted: u32,
    hangs: u32,
    not_finite: u32,
    panics: u32,
    not_opened: u32,
}

struct Stand {
    weather: Weather,
    rng: ChaCha8Rng,
    plans: Vec<SlotPlan>,
    /// Results, and looks until they are there; `None` hangs.
    flights: Vec<Option<(Vec<f32>, Option<u32>)>>,
    order: Arc<AtomicUsize>,
    is_dead: bool,
}

impl Stand {
    fn happens(&mut self, chance: u32) -> bool {
        self.rng.random_range(0..1000) < chance
    }
}

impl Engine for Stand {
    fn slots(&self) -> &[SlotPlan] {
        &self.plans
    }

    fn width(&self) -> usize {
        2
    }

    fn begin(&mut self, slot: usize, batch: &mut Batch) -> Result<(), Fault> {
        MISUSES.fetch_add(
            usize::from(self.is_dead || self.flights[slot].is_some()),
            Ordering::Relaxed,
        );
        // Through the block that a device would get, so that packing is part of the law.
        let most = self.plans[slot].most;
        let mut block = vec![0; most.bytes()];
        batch.write(most, &mut block);
        let int = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().unwrap()) as usize;
        let ids_at = 16 + (4 * (most.texts + 1)).next_multiple_of(16);
        let mut results = Vec::new();
        for text in 0..int(4) {
            let (from, to) = (int(16 + 4 * text), int(20 + 4 * text));
            let ids: Vec<u32> = (from..to).map(|at| int(ids_at + 4 * at) as u32).collect();
            let is_bad = self.happens(self.weather.not_finite);
            results.extend([if is_bad { f32::NAN } else { answer(&ids) }, 1.0]);
        }
        if self.happens(self.weather.exhausted) {
            self.is_dead = true;
            return Err(Fault::OutOfMemory("simulated".to_owned()));
        }
        if self.happens(self.weather.panics) {
            self.is_dead = true;
            // Without the hook, which would print each.
            std::panic::resume_unwind(Box::new("simulated panic"));
        }
        let looks = (!self.happens(self.weather.hangs)).then(|| self.rng.random_range(0..4));
        self.order.fetch_add(1, Ordering::Relaxed);
        self.flights[slot] = Some((results, looks));
        Ok(())
    }

    fn finish(&mut self, slot: usize, out: &mut Vec<f32>) -> Result<bool, Fault> {
        MISUSES.fetch_add(usize::from(self.is_dead), Ordering::Relaxed);
        if self.happens(self.weather.lost / 4) {
            self.is_dead = true;
            return Err(Fault::Lost("simulated".to_owned()));
        }
        let Some((_, looks)) = &mut self.flights[slot] else {
            return Ok(false);
        };
        match looks {
            Some(0) => {}
            Some(left) => {
                *left -= 1;
                return Ok(false);
            }
            None => return Ok(false),
        }
        let (results, _) = self.flights[slot].take().unwrap();
        *out = results;
        Ok(true)
    }

    fn abandon(&mut self) {
        self.is_dead = true;
    }

    fn describe(&self) -> String {
        "simulated".to_owned()
    }
}

fn opener(weather: Weather, seed: u64, order: &Arc<AtomicUsize>) -> Opener {
    let opened = AtomicU32::new(0);
    let order = Arc::clone(order);
    Box::new(move || {
        let nth = opened.fetch_add(1, Ordering::Relaxed);
        let mut rng = ChaCha8Rng::seed_from_u64(seed * 1000 + u64::from(nth));
        if rng.random_range(0..1000) < weather.not_opened {
            return Err(Fault::Unavailable("simulated: no device".to_owned()));
        }
        let most = Bucket {
            tokens: 64,
            texts: 16,
        };
        let plans = vec![
            SlotPlan {
                class: Class::Question,
                most,
            },
            SlotPlan {
                class: Class::Bulk,
                most: BUCKETS[1],
            },
            SlotPlan {
                class: Class::Bulk,
                most: BUCKETS[1],
            },
        ];
        let order = Arc::clone(&order);
        let flights = vec![None, None, None];
        Ok(Box::new(Stand {
            weather,
            rng,
            plans,
            flights,
            order,
            is_dead: false,
        }))
    })
}

/// Impatient, so that what hangs costs the test no time: on a busy machine what is well may seem to hang.
fn service(weathers: &[Weather], seed: u64) -> (Service, Arc<AtomicUsize>) {
    let settings = Settings {
        batch_timeout: Duration::from_millis(15),
        open_timeout: Duration::from_millis(15),
        rest: Duration::from_millis(2),
        rest_max: Duration::from_millis(20),
        fallback_texts: 4,
    };
    service_with(settings, weathers, seed)
}

fn service_with(
    settings: Settings,
    weathers: &[Weather],
    seed: u64,
) -> (Service, Arc<AtomicUsize>) {
    let order = Arc::new(AtomicUsize::new(0));
    let openers = weathers.iter().enumerate();
    let openers = openers
        .map(|(i, &weather)| opener(weather, seed * 10 + i as u64, &order))
        .collect();
    let fallback = |texts: &[&Text]| {
        texts
            .iter()
            .map(|text| vec![answer(&text.ids), 0.0])
            .collect()
    };
    (
        Service::start(openers, Arc::new(|_| Ok(())), Arc::new(fallback), settings).unwrap(),
        order,
    )
}

/// Four callers, each with questions and bulk; every answer is checked.
fn trade(service: &Service, seed: u64, rounds: usize) -> usize {
    std::thread::scope(|scope| {
        let callers = (0..4).map(|caller| {
            scope.spawn(move || {
                let mut rng = ChaCha8Rng::seed_from_u64(seed * 100 + caller);
                let mut asked = 0;
                for _ in 0..rounds {
                    let class = if rng.random_bool(0.3) {
                        Class::Question
                    } else {
                        Class::Bulk
                    };
                    let texts: Vec<Text> = (0..rng.random_range(0..20))
                        .map(|_| {
                            // Some are longer than a question's slot, and a few longer than any.
                            let length = if rng.random_bool(0.02) {
                                300
                            } else {
                                rng.random_range(1..90)
                            };
                            Text::new((0..length).map(|_| rng.random_range(0..1000)).collect())
                        })
                        .collect();
                    let expected: Vec<f32> = texts.iter().map(|text| answer(&text.ids)).collect();
                    let ticket = service.submit(class, texts).unwrap();
                    if rng.random_bool(0.05) {
                        continue; // The caller leaves.
                    }
                    let found = ticket.wait().unwrap();
                    asked += found.len();
                    let found: Vec<f32> = found.iter().map(|result| result[0]).collect();
                    assert_eq!(found, expected);
                }
                asked
            })
        });
        callers
            .collect::<Vec<_>>()
            .into_iter()
            .map(|caller| caller.join().unwrap())
            .sum()
    })
}

#[test]
fn every_text_gets_its_answer_in_any_weather() {
    let seed = 20_261_121;
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for round in 0..30 {
        let mut draw = |most: u32| {
            if rng.random_bool(0.5) {
                rng.random_range(0..most)
            } else {
                0
            }
        };
        let weathers: Vec<Weather> = (0..1 + round % 3)
            .map(|_| Weather {
                lost: draw(200),
                exhausted: draw(200),
                hangs: draw(60),
                not_finite: draw(100),
                panics: draw(100),
                not_opened: draw(900),
            })
            .collect();
        let (service, _) = service(&weathers, round as u64);
        let asked = trade(&service, round as u64, 25);
        let status = service.status();
        assert!(status.device_texts + status.cpu_texts >= asked as u64);
        assert_eq!(status.is_degraded, !status.reason.is_empty());
        drop(service);
        assert_eq!(MISUSES.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn in_good_weather_the_cpu_does_nothing() {
    let weathers = [Weather::default(), Weather::default()];
    let (service, _) = service_with(Settings::default(), &weathers, 1);
    let texts = (1..50).map(|i| Text::new(vec![i; 20])).collect();
    let found = service.submit(Class::Bulk, texts).unwrap().wait().unwrap();
    assert!(found.iter().all(|result| result[1] == 1.0));
    let status = service.status();
    assert_eq!(
        (status.cpu_texts, status.device_texts, status.faults),
        (0, 49, 0)
    );
    assert_eq!((status.devices, status.is_degraded), (2, false));
}

#[test]
fn without_a_device_the_cpu_does_all_and_the_reason_is_said() {
    let weather = Weather {
        not_opened: 1000,
        ..Weather::default()
    };
    let (service, _) = service_with(Settings::default(), &[weather], 1);
    let texts = (1..50).map(|i| Text::new(vec![i; 20])).collect();
    let found = service.submit(Class::Bulk, texts).unwrap().wait().unwrap();
    assert!(found.iter().all(|result| result[1] == 0.0));
    let status = service.status();
    assert!(status.is_degraded);
    assert_eq!(status.reason, "device 0: simulated: no device");
    assert_eq!(status.devices, 0);
}

#[test]
fn a_batch_is_tried_once_more_and_a_device_that_comes_back_is_used_again() {
    // The first engine loses its context at once; all later ones work.
    let opened = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&opened);
    let order = Arc::new(AtomicUsize::new(0));
    let open: Opener = Box::new(move || {
        let is_first = seen.fetch_add(1, Ordering::Relaxed) == 0;
        let weather = Weather {
            exhausted: if is_first { 1000 } else { 0 },
            ..Weather::default()
        };
        opener(weather, 3, &order)()
    });
    let fallback = |texts: &[&Text]| {
        texts
            .iter()
            .map(|text| vec![answer(&text.ids), 0.0])
            .collect()
    };
    let service = Service::start(
        vec![open],
        Arc::new(|_| Ok(())),
        Arc::new(fallback),
        Settings::default(),
    )
    .unwrap();
    let found = service
        .submit(Class::Question, vec![Text::new(vec![1, 2])])
        .unwrap()
        .wait()
        .unwrap();
    assert_eq!(found, [[answer(&[1, 2]), 1.0]]);
    let status = service.status();
    assert_eq!(
        (status.faults, status.is_degraded, status.cpu_texts),
        (1, false, 0)
    );
    assert_eq!(opened.load(Ordering::Relaxed), 2);
}

#[test]
fn what_was_accepted_is_done_before_the_service_ends() {
    let (service, _) = service(
        &[Weather {
            hangs: 1000,
            ..Weather::default()
        }],
        5,
    );
    let ticket = service
        .submit(
            Class::Bulk,
            (1..40).map(|i| Text::new(vec![i; 9])).collect(),
        )
        .unwrap();
    let since = Instant::now();
    drop(service);
    assert!(since.elapsed() < Duration::from_secs(60));
    assert_eq!(ticket.wait().unwrap().len(), 39);
}

#[test]
fn a_text_that_no_model_takes_is_refused_at_the_door() {
    let (service, _) = service(&[Weather::default()], 1);
    let refused = service.submit(Class::Bulk, vec![Text::new(vec![1]), Text::default()]);
    let message = refused.err().unwrap().to_string();
    assert!(
        message.starts_with("shapes: 0 ids, the model takes"),
        "{message}"
    );
    assert_eq!(service.status().waiting, 0);
    let check = kernels::cuda::service::checker(&crate::model::shape(64, 1, 2, 64));
    assert!(check(&Text::new(vec![299; 512])).is_ok());
    let message = check(&Text::new(vec![300])).unwrap_err().to_string();
    assert_eq!(message, "shapes: id 300, the vocabulary has 300");
}
