//! How fast a model is on this machine, beside what the machine gives.
//!
//! On the CPU one thread; texts one after another, as the queue gives them to the encoder. On a device several
//! threads with batches. The yardstick is the
//! micro-kernel of the same precision alone, over operands that stay in the first cache, measured on the
//! same core just before: the quotient is the share of what is possible.
//!
//! On a device it is the fp16 rate of a large product on one H200, a device each; of int8 twice that.
//!
//! Limits: operations are those of the model's matrix products.

use std::time::{Duration, Instant};

use engine::contract::EmbedError;
use engine::error::WorldError;
use kernels::Kernel;
use kernels::lines::Line;
use kernels::tile::{PANEL_COLUMNS, Sums, TILE_ROWS, TileKernel};
use serde::Serialize;

use super::model::{Local, LocalModel, placed};
use super::weights::ModelFolder;

/// Depth of the yardstick's operands, in blocks: with it both lie in the first cache.
const BLOCKS: usize = 6;
/// Products between two looks at the clock.
const ROUNDS: usize = 1_000;
/// How long the yardstick is measured.
const YARDSTICK: Duration = Duration::from_millis(500);
/// Operations a second of an 8192³ product in fp16, as measured on one H200, in 10⁹.
const DEVICE_GFLOPS: f64 = 790_000.0;
/// Texts of a device's call.
const BATCH_TEXTS: usize = 64;
/// Questions that are timed.
const QUESTIONS: usize = 50;
/// What is asked, again and again.
const QUESTION: &str = "how do I reset the second factor of my account?";

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// Where it really ran: devices with the stage of their kernels, or one core and why no device.
    pub place: String,
    /// Devices that it ran on; 0: one core.
    pub devices: u64,
    /// Texts embedded.
    pub texts: u64,
    /// Tokens that the model saw, special ones included.
    pub tokens: u64,
    /// Tokens of texts beyond the model's window.
    pub tokens_wasted: u64,
    /// Seconds in the tokenizer and the encoder.
    pub seconds: f64,
    /// Tokens a second on one core, or on all devices.
    pub tokens_per_second: f64,
    /// Texts a second, likewise.
    pub texts_per_second: f64,
    /// Operations a second of the encoder, in 10⁹; `None` for a model without matrix products.
    pub encoder_gflops: Option<f64>,
    /// Operations a second of the precision's micro-kernel alone on one core, or of a large fp16 product on
    /// an H200 (int8: twice that) for each device, in 10⁹; `None` for a model without matrix products.
    pub peak_gflops: Option<f64>,
    /// The share of the one in the other.
    pub peak_share: Option<f64>,
    /// Tokens of the question.
    pub question_tokens: u64,
    /// Milliseconds from a short question's text to its vector: the middle one.
    pub question_p50_ms: f64,
    /// And the slowest of a hundred.
    pub question_p99_ms: f64,
}

/// Measures a model over `texts`, again from the first when they are over, for about `time`.
///
/// Errors: the model's files cannot be read, or the device cannot be had.
pub fn measure(
    folder: &ModelFolder,
    precision: &str,
    device: &str,
    texts: &[String],
    time: Duration,
) -> Result<Measured, WorldError> {
    let Local { model, why_cpu, .. } = placed(folder, device, precision)?;
    let failed = |error: &EmbedError| WorldError::Corrupt {
        path: folder.path.display().to_string(),
        offset: 0,
        detail: error.to_string(),
    };
    let devices = model.devices();
    let kernel = Kernel::for_precision(precision).unwrap_or(Kernel::F32);
    let peak_gflops = model.operations(1).map(|_| match devices.len() {
        0 => yardstick(kernel),
        // The tensor cores multiply twice as many bytes as halves; nobody has measured it here.
        count if kernel == Kernel::Int8 => 2.0 * DEVICE_GFLOPS * count as f64,
        count => DEVICE_GFLOPS * count as f64,
    });
    let calls = model.call_limits().calls.filter(|_| !devices.is_empty());
    let texts = texts.iter().map(String::as_str);
    let texts: Vec<&str> = texts.filter(|text| !text.is_empty()).collect();
    let bulk = match calls {
        None => one_by_one(&*model, &texts, time),
        Some(calls) => in_batches(&*model, &texts, time, calls - 1),
    };
    let bulk = bulk.map_err(|error| failed(&error))?;
    let mut times_ms = Vec::with_capacity(QUESTIONS);
    for _ in 0..QUESTIONS {
        let started = Instant::now();
        let vectors = model.embed_questions(&[QUESTION]);
        std::hint::black_box(vectors.map_err(|error| failed(&error))?);
        times_ms.push(started.elapsed().as_secs_f64() * 1e3);
    }
    times_ms.sort_by(f64::total_cmp);
    let seconds = bulk.busy.as_secs_f64().max(1e-9);
    let encoder_gflops = bulk.operations.map(|operations| operations / seconds / 1e9);
    let question = model.token_spans(QUESTION).starts.len() + model.special_tokens();
    Ok(Measured {
        place: place(&devices, why_cpu, model.degraded()),
        devices: devices.len() as u64,
        texts: bulk.texts,
        tokens: bulk.tokens,
        tokens_wasted: bulk.wasted,
        seconds,
        tokens_per_second: bulk.tokens as f64 / seconds,
        texts_per_second: bulk.texts as f64 / seconds,
        encoder_gflops,
        peak_gflops,
        peak_share: encoder_gflops
            .zip(peak_gflops)
            .map(|(gflops, peak)| gflops / peak),
        question_tokens: question as u64,
        question_p50_ms: times_ms[QUESTIONS / 2],
        question_p99_ms: times_ms[QUESTIONS * 99 / 100],
    })
}

fn place(devices: &[String], why_cpu: Option<String>, degraded: Option<String>) -> String {
    let place = match (devices, why_cpu) {
        ([], None) => "one core of the CPU".to_owned(),
        ([], Some(why)) => format!("one core of the CPU: {why}"),
        _ => devices.join("; "),
    };
    // What began on a device may have ended elsewhere.
    match degraded {
        Some(why) => format!("{place}; {why}"),
        None => place,
    }
}

/// What was embedded, and in what time.
struct Bulk {
    texts: u64,
    tokens: u64,
    wasted: u64,
    operations: Option<f64>,
    busy: Duration,
}

impl Bulk {
    fn new() -> Self {
        Bulk {
            texts: 0,
            tokens: 0,
            wasted: 0,
            operations: Some(0.0),
            busy: Duration::ZERO,
        }
    }

    /// Notes a text that the model saw.
    fn note(&mut self, model: &dyn LocalModel, text: &str) {
        let whole = model.token_spans(text).starts.len() + model.special_tokens();
        let length = whole.min(model.max_tokens());
        self.texts += 1;
        self.tokens += length as u64;
        self.wasted += (whole - length) as u64;
        let operations = self.operations.zip(model.operations(length));
        self.operations = operations.map(|(sum, one)| sum + one);
    }
}

/// As the queue calls an encoder on the CPU. The count of tokens is not part of the time.
fn one_by_one(model: &dyn LocalModel, texts: &[&str], time: Duration) -> Result<Bulk, EmbedError> {
    let mut bulk = Bulk::new();
    for text in texts.iter().cycle() {
        let started = Instant::now();
        std::hint::black_box(model.embed(&[text])?);
        bulk.busy += started.elapsed();
        bulk.note(model, text);
        if bulk.busy >= time {
            break;
        }
    }
    Ok(bulk)
}

/// As the queue calls a device: batches, several at once.
fn in_batches(
    model: &dyn LocalModel,
    texts: &[&str],
    time: Duration,
    calls: usize,
) -> Result<Bulk, EmbedError> {
    let mut all = Bulk::new();
    texts.iter().for_each(|text| all.note(model, text));
    let started = Instant::now();
    let rounds = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..calls)
            .map(|_| {
                scope.spawn(|| {
                    let mut rounds = 0_u64;
                    while started.elapsed() < time {
                        for batch in texts.chunks(BATCH_TEXTS) {
                            std::hint::black_box(model.embed(batch)?);
                        }
                        rounds += 1;
                    }
                    Ok::<u64, EmbedError>(rounds)
                })
            })
            .collect();
        let rounds = callers.into_iter().map(|caller| {
            // A panic inside is a defect, and goes on.
            caller
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        rounds.sum::<Result<u64, EmbedError>>()
    })?;
    Ok(Bulk {
        texts: all.texts * rounds,
        tokens: all.tokens * rounds,
        wasted: all.wasted * rounds,
        operations: all.operations.map(|operations| operations * rounds as f64),
        busy: started.elapsed(),
    })
}

/// Operations a second of the micro-kernel over operands in the first cache, in 10⁹.
fn yardstick(kernel: Kernel) -> f64 {
    let format = kernel.format();
    let tile = vec![Line::ZERO; BLOCKS * TILE_ROWS];
    let panel = vec![Line::ZERO; BLOCKS * PANEL_COLUMNS];
    let mut sums = Sums::new();
    let micro_kernel = TileKernel::best(format);
    let (started, mut best) = (Instant::now(), f64::INFINITY);
    while started.elapsed() < YARDSTICK {
        let at = Instant::now();
        for _ in 0..ROUNDS {
            micro_kernel.run(TILE_ROWS, std::hint::black_box(&tile), &panel, &mut sums);
        }
        best = best.min(at.elapsed().as_secs_f64());
    }
    let products = ROUNDS * BLOCKS * format.per_block() * TILE_ROWS * PANEL_COLUMNS;
    2.0 * products as f64 / best.max(1e-9) / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_where_it_ran() {
        let two = ["cuda:0 A GPU".to_owned(), "cuda:1 A GPU".to_owned()];
        assert_eq!(place(&two, None, None), "cuda:0 A GPU; cuda:1 A GPU");
        assert_eq!(place(&[], None, None), "one core of the CPU");
        assert_eq!(
            place(&[], Some("there is no CUDA device".to_owned()), None),
            "one core of the CPU: there is no CUDA device"
        );
        let lost = "the CPU embeds in a device's place: device 0: lost".to_owned();
        assert_eq!(
            place(&two[..1], None, Some(lost)),
            "cuda:0 A GPU; the CPU embeds in a device's place: device 0: lost"
        );
    }

    #[test]
    fn the_yardstick_is_a_number() {
        let gflops = yardstick(Kernel::F32);
        assert!(gflops > 0.1 && gflops < 1e5, "{gflops}");
    }
}
