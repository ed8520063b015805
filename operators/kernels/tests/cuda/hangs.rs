//! The service when a call into a device never returns: opening, starting a batch, asking for it, ending.
//! Law: every text is answered, the reason is said, the service ends, and what comes back late is nobody's.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kernels::cuda::batch::{BUCKETS, Batch, Text};
use kernels::cuda::device::Fault;
use kernels::cuda::engine::{Class, Engine, SlotPlan};
use kernels::cuda::service::{Opener, Service, Settings};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Open,
    Begin,
    Finish,
    End,
}

const CALLS: [Call; 4] = [Call::Open, Call::Begin, Call::Finish, Call::End];

/// Where calls hang, and for how long: until the gate opens.
struct Gate {
    at: Call,
    is_open: AtomicBool,
    /// Calls that hang now.
    inside: AtomicUsize,
    opened: AtomicUsize,
    abandoned: AtomicUsize,
}

impl Gate {
    fn new(at: Call) -> Arc<Gate> {
        Arc::new(Gate {
            at,
            is_open: AtomicBool::new(false),
            inside: AtomicUsize::new(0),
            opened: AtomicUsize::new(0),
            abandoned: AtomicUsize::new(0),
        })
    }

    fn pass(&self, call: Call) {
        if call != self.at {
            return;
        }
        self.inside.fetch_add(1, Ordering::SeqCst);
        while !self.is_open.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Answers 1 for every text; after its first batch it is lost, so that it ends too.
struct Device {
    gate: Arc<Gate>,
    plans: Vec<SlotPlan>,
    texts: Option<usize>,
    batches: usize,
}

impl Engine for Device {
    fn slots(&self) -> &[SlotPlan] {
        &self.plans
    }

    fn width(&self) -> usize {
        1
    }

    fn begin(&mut self, _: usize, batch: &mut Batch) -> Result<(), Fault> {
        if self.batches > 0 {
            return Err(Fault::Lost("simulated".to_owned()));
        }
        self.gate.pass(Call::Begin);
        self.texts = Some(batch.texts());
        self.batches += 1;
        Ok(())
    }

    fn finish(&mut self, _: usize, out: &mut Vec<f32>) -> Result<bool, Fault> {
        self.gate.pass(Call::Finish);
        let texts = self.texts.take();
        *out = vec![1.0; texts.unwrap_or(0)];
        Ok(texts.is_some())
    }

    fn abandon(&mut self) {
        self.gate.abandoned.fetch_add(1, Ordering::SeqCst);
    }

    fn describe(&self) -> String {
        "simulated".to_owned()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.gate.pass(Call::End);
    }
}

fn service(gate: &Arc<Gate>) -> Service {
    let inner = Arc::clone(gate);
    let open: Opener = Box::new(move || {
        inner.opened.fetch_add(1, Ordering::SeqCst);
        inner.pass(Call::Open);
        Ok(Box::new(Device {
            gate: Arc::clone(&inner),
            plans: vec![SlotPlan {
                class: Class::Bulk,
                most: BUCKETS[0],
            }],
            texts: None,
            batches: 0,
        }))
    });
    let settings = Settings {
        batch_timeout: Duration::from_millis(20),
        open_timeout: Duration::from_millis(30),
        rest: Duration::from_millis(2),
        rest_max: Duration::from_millis(8),
        fallback_texts: 4,
    };
    let fallback = |texts: &[&Text]| texts.iter().map(|_| vec![0.0]).collect();
    Service::start(
        vec![open],
        Arc::new(|_| Ok(())),
        Arc::new(fallback),
        settings,
    )
    .unwrap()
}

fn texts(count: u32) -> Vec<Text> {
    (0..count).map(|i| Text::new(vec![i; 9])).collect()
}

fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < Duration::from_secs(120), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_call_that_never_returns_costs_no_text() {
    for call in CALLS {
        let gate = Gate::new(call);
        let service = service(&gate);
        // Four batches' worth, from two callers: what hangs has texts, and so has what waits.
        let answers = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let ticket = service.submit(Class::Bulk, texts(14)).unwrap();
                    answers.lock().unwrap().extend(ticket.wait().unwrap());
                });
            }
        });
        assert_eq!(answers.into_inner().unwrap().len(), 28, "{call:?}");
        wait_for("a fault is noted", || service.status().faults > 0);
        if call != Call::End {
            wait_for("the device rests", || service.status().is_degraded);
            let reason = service.status().reason;
            // On a busy machine an opening that does not hang may be late, too.
            let late = [20, 30]
                .map(|limit| format!("device 0: the device did not answer within {limit} ms"));
            let stuck = "device 0: 4 calls into its driver have not come back";
            assert!(
                late.contains(&reason) || reason == stuck,
                "{call:?}: {reason}"
            );
        }
        let since = Instant::now();
        drop(service);
        assert!(since.elapsed() < Duration::from_secs(60), "{call:?}");
        gate.is_open.store(true, Ordering::SeqCst);
        wait_for("late calls come back", || {
            gate.inside.load(Ordering::SeqCst) == 0
        });
        if matches!(call, Call::Begin | Call::Finish) {
            wait_for("the context is left alone", || {
                gate.abandoned.load(Ordering::SeqCst) > 0
            });
        }
    }
}

#[test]
fn threads_that_hang_are_bounded_and_a_device_that_comes_back_is_used_again() {
    let gate = Gate::new(Call::Open);
    let service = service(&gate);
    let stuck = "device 0: 4 calls into its driver have not come back";
    wait_for("the last thread is spent", || {
        service.status().reason == stuck
    });
    assert_eq!(gate.opened.load(Ordering::SeqCst), 4);
    let on_cpu = service.submit(Class::Question, texts(1)).unwrap();
    assert_eq!(on_cpu.wait().unwrap(), [[0.0]]);
    gate.is_open.store(true, Ordering::SeqCst);
    wait_for("a device answers", || {
        let asked = service.submit(Class::Question, texts(1)).unwrap();
        asked.wait().unwrap() == [[1.0]]
    });
}
