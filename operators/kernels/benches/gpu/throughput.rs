//! Tokens a second: which recipe is fastest, and the fastest by length and by mix.

use std::time::Instant;

use kernels::Pooling;
use kernels::cuda::batch::{BUCKETS, Batch, Bucket};
use kernels::cuda::encoder::{Output, Precision, Recipe};
use kernels::cuda::engine::{Class, DeviceEngine, Engine, Options, SlotPlan};
use kernels::weights::{BertConfig, Weights};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::lengths;
use crate::passes::{driver, fill, one_pass, replays};
use crate::{ROUNDS, SEED, median, operations, peak};

/// What one slot makes at a time.
const MOST: Bucket = BUCKETS[6];

/// As many of the real lengths, in their order, as fit.
pub fn real_mix(tokens: usize, texts: usize) -> Vec<usize> {
    let (mut mix, mut sum) = (Vec::new(), 0);
    for &length in lengths::REAL.iter().cycle() {
        let length = usize::from(length);
        if sum + length > tokens || mix.len() == texts {
            break;
        }
        sum += length;
        mix.push(length);
    }
    mix
}

/// Median seconds of a batch from pinned memory to pinned memory, with so many slots always busy.
pub fn throughput(
    engine: &mut DeviceEngine,
    rng: &mut ChaCha8Rng,
    lengths: &[usize],
    slots: usize,
) -> f64 {
    let mut batches: Vec<Batch> = (0..3).map(|_| Batch::new()).collect();
    batches
        .iter_mut()
        .for_each(|batch| fill(batch, rng, lengths));
    let mut out = Vec::new();
    let mut times = Vec::new();
    for round in 0..ROUNDS + 3 {
        let since = Instant::now();
        let (mut begun, mut done, mut busy) = (0, 0, [false; 2]);
        while done < 8 {
            for (slot, busy) in busy.iter_mut().enumerate().take(slots) {
                if !*busy && begun < 8 {
                    engine
                        .begin(slot, &mut batches[begun % 3])
                        .expect("a batch starts");
                    (begun, *busy) = (begun + 1, true);
                } else if *busy && engine.finish(slot, &mut out).expect("a batch ends") {
                    (done, *busy) = (done + 1, false);
                }
            }
        }
        if round >= 3 {
            times.push(since.elapsed().as_secs_f64() / 8.0);
        }
    }
    assert!(out.iter().all(|x| x.is_finite()), "vectors are finite");
    median(times)
}

/// Two bulk slots of 16,384 tokens.
pub fn bulk_engine(weights: &Weights, recipe: Recipe) -> DeviceEngine {
    let plan = SlotPlan {
        class: Class::Bulk,
        most: MOST,
    };
    let options = Options {
        slots: vec![plan; 2],
        ..Options::default()
    };
    let options = options.with(recipe);
    let output = Output::Vector(Pooling::Mean);
    DeviceEngine::open(Box::new(driver()), weights, &output, &options).expect("the model fits")
}

fn equal(length: usize) -> Vec<usize> {
    vec![length; (MOST.tokens / length).min(MOST.texts)]
}

/// Every recipe at 256 tokens a text, and the fastest of halves and of bytes.
pub fn race(name: &str, config: &BertConfig, weights: &Weights, recipes: &[Recipe]) -> Vec<Recipe> {
    println!("\n{name}: batches of 64 texts of 256 tokens, two slots");
    println!("{:>12} {:>8}  recipe", "M tokens/s", "of peak");
    let lengths = equal(256);
    let tokens: usize = lengths.iter().sum();
    let mut fastest: Vec<(f64, Recipe)> = Vec::new();
    for &recipe in recipes {
        let mut engine = bulk_engine(weights, recipe);
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        let rate = tokens as f64 / throughput(&mut engine, &mut rng, &lengths, 2);
        let share = operations(config, &lengths) / tokens as f64 * rate / peak();
        println!("{:>12.2} {:>7.1}%  {recipe}", rate / 1e6, share * 100.0);
        match fastest
            .iter_mut()
            .find(|(_, other)| other.precision == recipe.precision)
        {
            Some(best) if best.0 >= rate => {}
            Some(best) => *best = (rate, recipe),
            None => fastest.push((rate, recipe)),
        }
    }
    fastest.into_iter().map(|(_, recipe)| recipe).collect()
}

/// One recipe by length and by mix.
pub fn throughput_table(name: &str, config: &BertConfig, weights: &Weights, recipe: Recipe) {
    let mut engine = bulk_engine(weights, recipe);
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    println!("\n{name}, {recipe}: batches of up to 16,384 tokens, two slots");
    println!(
        "{:>14} {:>10} {:>12} {:>8}",
        "length", "ms", "M tokens/s", "of peak"
    );
    let few: &[usize] = match recipe.precision {
        Precision::Half => &[16, 32, 64, 128, 256, 512],
        Precision::Int8 => &[32, 128, 256, 512],
    };
    let mut rows: Vec<(String, Vec<usize>)> = few
        .iter()
        .map(|&length| (length.to_string(), equal(length)))
        .collect();
    rows.push(("real mix".to_owned(), real_mix(MOST.tokens, MOST.texts)));
    let mut rates = Vec::new();
    for (label, lengths) in &rows {
        let seconds = throughput(&mut engine, &mut rng, lengths, 2);
        let tokens: usize = lengths.iter().sum();
        let share = operations(config, lengths) / seconds / peak();
        rates.push(tokens as f64 / seconds);
        println!(
            "{label:>14} {:>10.3} {:>12.2} {:>7.1}%",
            seconds * 1e3,
            tokens as f64 / seconds / 1e6,
            share * 100.0
        );
    }
    let mix = &rows[rows.len() - 1].1;
    let mean = mix.iter().sum::<usize>() / mix.len();
    // Beside the equal length that is nearest to the mix's mean.
    let nearest = few.iter().enumerate().min_by_key(|(_, l)| l.abs_diff(mean));
    if let Some((at, length)) = nearest {
        let share = rates[rates.len() - 1] / rates[at] * 100.0;
        println!("real mix: {mean} tokens a text, {share:.0}% of the rate at equal {length}");
    }
}

/// What a batch costs without copies, with one slot, and with two: how much of copies and packing is
/// hidden behind kernels.
pub fn overlap(name: &str, weights: &Weights, recipe: Recipe) {
    let lengths = vec![256; MOST.tokens / 256];
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let (mut device, launches) = one_pass(weights, recipe, MOST, &lengths);
    let [kernels, overlapping] =
        [false, true].map(|overlap| replays(&mut device, &launches, 8, overlap));
    drop(device);
    let mut engine = bulk_engine(weights, recipe);
    let one = throughput(&mut engine, &mut rng, &lengths, 1);
    let two = throughput(&mut engine, &mut rng, &lengths, 2);
    let hidden = (one - two) / (one - kernels).max(1e-9) * 100.0;
    println!(
        "{name}, {recipe}: a batch of 64 × 256: kernels alone {:.3} ms, overlapping {:.3} ms, one slot {:.3} ms, two slots {:.3} ms: \
         {hidden:.0}% of copies and packing hidden",
        kernels * 1e3,
        overlapping * 1e3,
        one * 1e3,
        two * 1e3
    );
}
