//! The encoder's kernels alone: tokens a second on one core, generated weights of MiniLM's shape.
//!
//! With HEADWATER_BENCH_IDS, a file of token ids that `benches/compare/embed_ort.py` wrote, also real
//! text with its real mix of lengths, to hold beside the peers of that script; and a question of 12
//! tokens. With HEADWATER_MODELS the weights are the default model's own. HEADWATER_BENCH_ROUNDS=n takes
//! each text's least time of n: to hold two builds beside each other where other work interrupts.
//!
//! ```text
//! taskset -c 1 cargo bench -p headwater-kernels --bench encoder -- int8   # or f32, bf16, products
//! ```

use std::time::Instant;

use kernels::linear::Epilogue;
use kernels::rows::Tiles;
use kernels::{
    BertConfig, Bf16Linear, Encoder, F32Linear, Int8Linear, Kernel, PackedLinear, Pooling, Scratch,
    Weights,
};

/// FLOP of the linear layers a token, and of attention a token and token, at MiniLM's shape.
const LINEAR: f64 = 21.23e6;
const ATTENTION: f64 = 9.2e3;

fn main() {
    let only: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    let is_wanted = |what: &str| only.is_empty() || only.iter().any(|arg| arg == what);
    if is_wanted("products") {
        products();
    }
    let weights = weights();
    for (kernel, peak) in Kernel::ALL.into_iter().zip([225e9, 455e9, 992e9]) {
        if !is_wanted(kernel.name()) {
            continue;
        }
        let encoder = Encoder::with_kernel(weights.clone(), Pooling::Mean, kernel);
        real_text(&encoder, peak);
        let mut scratch = Scratch::default();
        for tokens in [12, 64, 128, 256, 512] {
            let ids: Vec<u32> = (0..tokens as u32).map(|i| i * 7919 % 30_522).collect();
            let seconds = fastest(0.4, || drop(encoder.encode(&ids, &mut scratch)));
            let n = tokens as f64;
            let share = n * (LINEAR + ATTENTION * n) / peak / seconds;
            println!(
                "{:5} {tokens:4} tokens  {:8.3} ms  {:7.0} tokens/s  {:4.1} % of the roofline",
                kernel.name(),
                seconds * 1e3,
                n / seconds,
                share * 100.0
            );
        }
    }
}

/// The default model's weights where they are, else generated ones of its shape.
fn weights() -> Weights {
    let models = std::env::var_os("HEADWATER_MODELS").map(std::path::PathBuf::from);
    let folder = models.map(|models| models.join("sentence-transformers--all-MiniLM-L6-v2"));
    let read = |file: &str| std::fs::read(folder.as_ref()?.join(file)).ok();
    if let (Some(config), Some(bytes)) = (read("config.json"), read("model.safetensors")) {
        return Weights::parse(&config, &bytes).expect("the model is whole");
    }
    let config = br#"{"model_type":"bert","hidden_size":384,"num_hidden_layers":6,
        "num_attention_heads":12,"intermediate_size":1536,"max_position_embeddings":512,
        "vocab_size":30522,"type_vocab_size":2,"layer_norm_eps":1e-12}"#;
    Weights::generate(BertConfig::parse(config).expect("a config"), 1)
}

/// How often each text is encoded; once unless `HEADWATER_BENCH_ROUNDS` says otherwise.
fn rounds() -> usize {
    let rounds = std::env::var("HEADWATER_BENCH_ROUNDS").ok();
    rounds.and_then(|n| n.parse().ok()).unwrap_or(1).max(1)
}

/// Real text: tokens a second, and the times of a question.
fn real_text(encoder: &Encoder, peak: f64) {
    let Some(path) = std::env::var_os("HEADWATER_BENCH_IDS") else {
        return;
    };
    let json = std::fs::read(path).expect("the file of ids");
    let texts: Vec<Vec<u32>> = serde_json::from_slice(&json).expect("lists of ids");
    let mut scratch = Scratch::default();
    for ids in &texts[..texts.len() / 10 + 1] {
        encoder.encode(ids, &mut scratch);
    }
    let (mut tokens, mut flop) = (0.0, 0.0);
    for ids in &texts {
        let n = ids.len() as f64;
        tokens += n;
        flop += n * (LINEAR + ATTENTION * n);
    }
    let mut least = vec![f64::MAX; texts.len()];
    for _ in 0..rounds() {
        for (ids, least) in texts.iter().zip(&mut least) {
            let at = Instant::now();
            std::hint::black_box(encoder.encode(ids, &mut scratch));
            *least = least.min(at.elapsed().as_secs_f64());
        }
    }
    let seconds: f64 = least.iter().sum();
    let question = texts.iter().find(|ids| ids.len() >= 12).expect("a text");
    let mut times: Vec<f64> = (0..600)
        .map(|_| {
            let at = Instant::now();
            std::hint::black_box(encoder.encode(&question[..12], &mut scratch));
            at.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!(
        "{:5} real text: {:.0} tokens/s, {:.1} % of the roofline; question p50 {:.3} ms, p99 {:.3} ms",
        encoder.kernel().name(),
        tokens / seconds,
        flop / peak / seconds * 100.0,
        times[300],
        times[594]
    );
}

/// Each linear layer's shape by itself.
fn products() {
    for (rows, inputs, outputs) in [
        (12, 384, 1536),
        (60, 384, 1536),
        (60, 1536, 384),
        (128, 384, 1152),
    ] {
        let weight: Vec<f32> = (0..inputs * outputs)
            .map(|i| (i * 7919 % 1013) as f32 * 1e-3 - 0.5)
            .collect();
        let input: Vec<f32> = (0..rows * inputs)
            .map(|i| (i * 7907 % 1013) as f32 * 1e-3 - 0.5)
            .collect();
        let bias = vec![0.0; outputs];
        let layers: [(Box<dyn PackedLinear>, f64); 3] = [
            (Box::new(F32Linear::pack(&weight, bias.clone())), 225e9),
            (Box::new(Bf16Linear::pack(&weight, bias.clone())), 455e9),
            (Box::new(Int8Linear::pack(&weight, bias)), 992e9),
        ];
        for (layer, peak) in layers {
            let mut tiles = Tiles::default();
            layer.pack_rows(rows, &input, &mut tiles);
            let mut output = vec![0.0; rows * outputs];
            let seconds = fastest(0.1, || {
                layer.apply(&tiles, 0..outputs, Epilogue::Store, &mut output, outputs)
            });
            let flop = 2.0 * (rows * inputs * outputs) as f64;
            println!(
                "{rows:3} × {inputs:4} × {outputs:4} {:?}: {:4.0} G/s, {:4.1} % of peak",
                layer.format(),
                flop / seconds * 1e-9,
                flop / seconds / peak * 100.0
            );
        }
    }
}

/// The median time of one call, calls filling `budget` seconds.
fn fastest(budget: f64, mut run: impl FnMut()) -> f64 {
    let mut times = Vec::new();
    let started = Instant::now();
    while started.elapsed().as_secs_f64() < budget || times.len() < 5 {
        let at = Instant::now();
        run();
        times.push(at.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
