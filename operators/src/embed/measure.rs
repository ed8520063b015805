//! How fast a model is on this machine, beside what the machine gives.
//!
//! One thread; texts one after another, as the queue gives them to the encoder. The yardstick is the
//! micro-kernel of the same precision alone, over operands that stay in the first cache, measured on the
//! same core just before: the quotient is the share of what is possible.
//!
//! Limits: operations are those of the model's matrix products.

use std::time::{Duration, Instant};

use engine::contract::Embedder;
use engine::error::WorldError;
use kernels::lines::Line;
use kernels::tile::{PANEL_COLUMNS, Sums, TILE_ROWS, TileKernel};
use kernels::{BertConfig, Kernel};
use serde::Serialize;

use super::model::{ModelFiles, PretrainedEmbedder};
use super::weights::ModelFolder;

/// Depth of the yardstick's operands, in blocks: with it both lie in the first cache.
const BLOCKS: usize = 6;
/// Products between two looks at the clock.
const ROUNDS: usize = 1_000;
/// How long the yardstick is measured.
const YARDSTICK: Duration = Duration::from_millis(500);
/// Questions that are timed.
const QUESTIONS: usize = 50;
/// What is asked, again and again.
const QUESTION: &str = "how do I reset the second factor of my account?";

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Measured {
    /// Texts embedded.
    pub texts: u64,
    /// Tokens that the model saw, special ones included.
    pub tokens: u64,
    /// Tokens of texts beyond the model's window.
    pub tokens_wasted: u64,
    /// Seconds in the tokenizer and the encoder.
    pub seconds: f64,
    /// Tokens a second on one core.
    pub tokens_per_second: f64,
    /// Texts a second on one core.
    pub texts_per_second: f64,
    /// Operations a second of the encoder, in 10⁹.
    pub encoder_gflops: f64,
    /// Operations a second of the precision's micro-kernel alone, in 10⁹.
    pub peak_gflops: f64,
    /// The share of the one in the other.
    pub peak_share: f64,
    /// Tokens of the question.
    pub question_tokens: u64,
    /// Milliseconds from a short question's text to its vector: the middle one.
    pub question_p50_ms: f64,
    /// And the slowest of a hundred.
    pub question_p99_ms: f64,
}

/// Measures a model over `texts`, again from the first when they are over, for about `time`.
///
/// Errors: the model's files cannot be read.
pub fn measure(
    folder: &ModelFolder,
    kernel: Kernel,
    texts: &[String],
    time: Duration,
) -> Result<Measured, WorldError> {
    let files = ModelFiles::read(folder)?;
    let corrupt = |detail: String| WorldError::Corrupt {
        path: folder.path.join("config.json").display().to_string(),
        offset: 0,
        detail,
    };
    let config = BertConfig::parse(&files.config).map_err(|e| corrupt(e.to_string()))?;
    let model = PretrainedEmbedder::with_kernel(files, kernel)?;
    let embed = |text: &str| {
        let vectors = model.embed(&[text]);
        vectors.map_err(|error| corrupt(error.to_string()))
    };
    let peak_gflops = yardstick(kernel);
    let (mut seen, mut tokens, mut wasted, mut operations) = (0, 0, 0, 0.0);
    let mut busy = Duration::ZERO;
    let around = model.special_tokens();
    for text in texts.iter().filter(|text| !text.is_empty()).cycle() {
        let whole = model.token_spans(text).starts.len() + around;
        let length = whole.min(model.max_tokens());
        let started = Instant::now();
        std::hint::black_box(embed(text)?);
        busy += started.elapsed();
        seen += 1;
        tokens += length as u64;
        wasted += (whole - length) as u64;
        operations += of_text(&config, length);
        if busy >= time {
            break;
        }
    }
    let mut times_ms = Vec::with_capacity(QUESTIONS);
    for _ in 0..QUESTIONS {
        let started = Instant::now();
        std::hint::black_box(embed(QUESTION)?);
        times_ms.push(started.elapsed().as_secs_f64() * 1e3);
    }
    times_ms.sort_by(f64::total_cmp);
    let seconds = busy.as_secs_f64().max(1e-9);
    let encoder_gflops = operations / seconds / 1e9;
    Ok(Measured {
        texts: seen,
        tokens,
        tokens_wasted: wasted,
        seconds,
        tokens_per_second: tokens as f64 / seconds,
        texts_per_second: seen as f64 / seconds,
        encoder_gflops,
        peak_gflops,
        peak_share: encoder_gflops / peak_gflops,
        question_tokens: (model.token_spans(QUESTION).starts.len() + around) as u64,
        question_p50_ms: times_ms[QUESTIONS / 2],
        question_p99_ms: times_ms[QUESTIONS * 99 / 100],
    })
}

/// Operations of a text's matrix products: four square ones and the two of the feed-forward part a
/// token and layer, and attention's two a pair of tokens.
fn of_text(config: &BertConfig, tokens: usize) -> f64 {
    let (hidden, inner) = (config.hidden_size as f64, config.intermediate_size as f64);
    let (layers, tokens) = (config.num_hidden_layers as f64, tokens as f64);
    let weights = 2.0 * (4.0 * hidden * hidden + 2.0 * hidden * inner);
    layers * tokens * (weights + 4.0 * tokens * hidden)
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
    fn operations_of_minilm_are_those_of_the_literature() {
        let json = br#"{"model_type":"bert","hidden_size":384,"num_hidden_layers":6,
            "num_attention_heads":12,"intermediate_size":1536,"vocab_size":30522,
            "max_position_embeddings":512,"type_vocab_size":2,"layer_norm_eps":1e-12,
            "hidden_act":"gelu"}"#;
        let config = BertConfig::parse(json).unwrap();
        let a_token = of_text(&config, 128) / 128.0 / 1e6;
        assert!((a_token - 22.41).abs() < 0.01, "{a_token} million");
    }

    #[test]
    fn the_yardstick_is_a_number() {
        let gflops = yardstick(Kernel::F32);
        assert!(gflops > 0.1 && gflops < 1e5, "{gflops}");
    }
}
