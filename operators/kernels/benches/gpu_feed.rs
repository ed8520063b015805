//! What the host does around a device: packing, queues, answers; with a device that is simulated, on any machine.
//!
//! ```text
//! cargo bench -p headwater-kernels --bench gpu_feed
//! ```
//!
//! Isolated: `batch` (packing, the items of attention) and `service` (queues, slots, tickets) between callers and an
//! [`Engine`] whose device takes a known time: none, so that the host is what is measured, or 50 ns a token and
//! 20 µs a batch, which is 20 M tokens a second (`HEADWATER_BENCH_RATE=M`). That device makes one batch at a time; it takes a
//! question's before bulk's where one waits, and never stops one under way, as priority streams do between kernels.
//! Data: random ids, seed below; lengths of real documentation (`gpu/lengths.rs`). Units: real tokens a second, of 384
//! floats a text; microseconds from `submit` to the answer of one question of 12 tokens while bulk waits. Nothing of a
//! real device is in it: no copies, no driver.

#[path = "gpu/lengths.rs"]
mod lengths;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kernels::cuda::batch::{BUCKETS, Batch, Text};
use kernels::cuda::device::Fault;
use kernels::cuda::engine::{Class, Engine, Options, SlotPlan};
use kernels::cuda::service::{Opener, Service, Settings, Ticket};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SEED: u64 = 20_261_123;
const WIDTH: usize = 384;
/// Texts of one submission of bulk, and submissions that a caller has under way.
const GROUP: usize = 256;
const UNDER_WAY: usize = 8;

/// What a batch costs the device.
#[derive(Clone, Copy)]
struct Cost {
    batch: Duration,
    token: Duration,
}

impl Cost {
    const NOTHING: Cost = Cost {
        batch: Duration::ZERO,
        token: Duration::ZERO,
    };

    fn of(self, tokens: usize) -> Duration {
        self.batch + self.token * tokens as u32
    }
}

/// One batch at a time; what waits is taken first come, questions first.
struct Simulated {
    cost: Cost,
    plans: Vec<SlotPlan>,
    blocks: Vec<Vec<u8>>,
    /// (slot, tokens), in order of arrival.
    waiting: VecDeque<(usize, usize)>,
    under_way: Option<(usize, Instant)>,
    /// Texts of a slot's batch, and whether it is made.
    slots: Vec<Option<(usize, bool)>>,
    free_since: Instant,
}

impl Simulated {
    fn new(cost: Cost) -> Simulated {
        let plans = Options::default().slots;
        Simulated {
            cost,
            blocks: plans.iter().map(|p| vec![0; p.most.bytes()]).collect(),
            slots: vec![None; plans.len()],
            plans,
            waiting: VecDeque::new(),
            under_way: None,
            free_since: Instant::now(),
        }
    }

    /// Brings the device to now.
    fn advance(&mut self) {
        let now = Instant::now();
        loop {
            if let Some((slot, end)) = self.under_way {
                if end > now {
                    return;
                }
                self.slots[slot].as_mut().expect("its batch").1 = true;
                (self.under_way, self.free_since) = (None, end);
            }
            let is_question =
                |&(slot, _): &(usize, usize)| self.plans[slot].class == Class::Question;
            let next = self.waiting.iter().position(is_question).unwrap_or(0);
            let Some((slot, tokens)) = self.waiting.remove(next) else {
                self.free_since = now;
                return;
            };
            self.under_way = Some((slot, self.free_since + self.cost.of(tokens)));
        }
    }
}

impl Engine for Simulated {
    fn slots(&self) -> &[SlotPlan] {
        &self.plans
    }

    fn width(&self) -> usize {
        WIDTH
    }

    fn begin(&mut self, slot: usize, batch: &mut Batch) -> Result<(), Fault> {
        self.advance();
        let fits = BUCKETS
            .into_iter()
            .find(|b| batch.tokens() <= b.tokens && batch.texts() <= b.texts);
        batch.write(fits.expect("a bucket"), &mut self.blocks[slot]);
        self.slots[slot] = Some((batch.texts(), false));
        self.waiting.push_back((slot, batch.tokens()));
        self.advance();
        Ok(())
    }

    fn finish(&mut self, slot: usize, out: &mut Vec<f32>) -> Result<bool, Fault> {
        self.advance();
        let Some((texts, true)) = self.slots[slot] else {
            return Ok(false);
        };
        self.slots[slot] = None;
        out.clear();
        out.resize(texts * WIDTH, 1.0);
        Ok(true)
    }

    fn abandon(&mut self) {}

    fn describe(&self) -> String {
        "simulated".to_owned()
    }
}

fn service(cost: Cost) -> Service {
    let opener: Opener = Box::new(move || Ok(Box::new(Simulated::new(cost))));
    let fallback = |_: &[&Text]| unreachable!("the device does all");
    let check = Arc::new(|_: &Text| Ok(()));
    Service::start(vec![opener], check, Arc::new(fallback), Settings::default()).expect("threads")
}

fn texts(rng: &mut ChaCha8Rng, count: usize) -> Vec<Text> {
    let start = rng.random_range(0..lengths::REAL.len());
    let real = lengths::REAL.iter().cycle().skip(start).take(count);
    let of = |&length: &u16| (0..length).map(|_| rng.random_range(0..30_000)).collect();
    let all: Vec<Vec<u32>> = real.map(of).collect();
    all.into_iter().map(Text::new).collect()
}

/// Tokens a second that one core packs into blocks of 8,192 tokens.
fn packing(name: &str, lengths: &[usize]) {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let bucket = BUCKETS[5];
    let texts: Vec<Text> = lengths
        .iter()
        .map(|&length| Text::new((0..length).map(|_| rng.random_range(0..30_000)).collect()))
        .collect();
    let (mut batch, mut block) = (Batch::new(), vec![0; bucket.bytes()]);
    let mut times = Vec::new();
    for _ in 0..200 {
        let since = Instant::now();
        batch.clear();
        texts.iter().for_each(|text| batch.push(text));
        batch.write(bucket, &mut block);
        times.push(since.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let tokens: usize = lengths.iter().sum();
    println!(
        "packing, {name}: {} texts, {tokens} tokens: {:.1} µs, {:.0} M tokens/s on a core",
        texts.len(),
        times[100] * 1e6,
        tokens as f64 / times[100] / 1e6
    );
}

/// Bulk for some seconds from one caller; tokens a second, and what questions waited meanwhile.
fn saturate(cost: Cost, has_questions: bool) -> (f64, Vec<f64>) {
    let service = service(cost);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asker = scope.spawn(|| {
            let mut rng = ChaCha8Rng::seed_from_u64(SEED + 1);
            let mut waits = Vec::new();
            while has_questions && !is_over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_micros(rng.random_range(500..3000)));
                let ids = (0..12).map(|_| rng.random_range(0..30_000)).collect();
                let since = Instant::now();
                let ticket = service.submit(Class::Question, vec![Text::new(ids)]);
                ticket.expect("a text").wait().expect("an answer");
                waits.push(since.elapsed().as_secs_f64() * 1e6);
            }
            waits
        });
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        let ready: Vec<Vec<Text>> = (0..16).map(|_| texts(&mut rng, GROUP)).collect();
        let mut tickets: VecDeque<(usize, Ticket)> = VecDeque::new();
        let (mut tokens, mut since) = (0, Instant::now());
        for nth in 0.. {
            if nth == 4 * UNDER_WAY {
                (tokens, since) = (0, Instant::now()); // warm
            }
            if since.elapsed() > Duration::from_secs(4) {
                break;
            }
            let group = ready[nth % ready.len()].clone();
            let sum = group.iter().map(|text| text.ids.len()).sum();
            let ticket = service.submit(Class::Bulk, group).expect("texts");
            tickets.push_back((sum, ticket));
            if tickets.len() > UNDER_WAY {
                let (sum, ticket) = tickets.pop_front().expect("a ticket");
                ticket.wait().expect("answers");
                tokens += sum;
            }
        }
        let rate = tokens as f64 / since.elapsed().as_secs_f64();
        is_over.store(true, Ordering::Relaxed);
        let mut waits = asker.join().expect("questions");
        waits.sort_by(f64::total_cmp);
        (rate, waits)
    })
}

fn main() {
    packing("equal", &[256; 32]);
    let mut mix = Vec::new();
    for &length in lengths::REAL.iter().cycle() {
        if mix.iter().sum::<usize>() + usize::from(length) > 8192 {
            break;
        }
        mix.push(usize::from(length));
    }
    packing("real mix", &mix);
    packing("short", &[16; 512]);
    let (rate, _) = saturate(Cost::NOTHING, false);
    println!(
        "service, a device that takes no time: {:.1} M tokens/s through one worker and one caller",
        rate / 1e6
    );
    let set = std::env::var("HEADWATER_BENCH_RATE").ok();
    let millions: f64 = set.and_then(|text| text.parse().ok()).unwrap_or(20.0);
    let cost = Cost {
        batch: Duration::from_micros(20),
        token: Duration::from_secs_f64(1e-6 / millions),
    };
    let (rate, waits) = saturate(cost, true);
    let full = cost.of(8192).as_secs_f64();
    println!(
        "service, a device of {millions} M tokens/s, {:.1} M by full batches of {:.0} µs: {:.1} M tokens/s ({:.0}% of \
         that); a question of 12 tokens meanwhile: p50 {:.0} µs, p99 {:.0} µs ({} asked)",
        8192.0 / full / 1e6,
        full * 1e6,
        rate / 1e6,
        rate * full / 8192.0 * 100.0,
        waits[waits.len() / 2],
        waits[waits.len() * 99 / 100],
        waits.len()
    );
}
