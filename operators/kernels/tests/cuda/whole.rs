//! A whole model in one launch: its vectors' bits are those of the launches of bulk, whatever shares the batch, at
//! every width of a tile, however many blocks there are.
//!
//! Used by the emulated GPU's tests and the real one's.

use kernels::Pooling;
use kernels::cuda::arena::Arena;
use kernels::cuda::batch::{Batch, OnDevice, Text};
use kernels::cuda::device::{Arg, Device, Placement, Stage};
use kernels::cuda::encoder::{Model, Output, Recipe};
use kernels::cuda::engine::{DeviceEngine, Engine, Options};
use kernels::cuda::whole::{MOST, Short};
use kernels::reference;
use kernels::weights::{BertConfig, Weights};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::model;

/// Options of questions in one launch.
pub fn options() -> Options {
    Options {
        short: Short::Whole,
        ..model::options(Stage::Hopper, 0)
    }
}

/// Mixes of lengths that fit the bucket: edges of the four warps' rows, one text of all rows, all texts, none.
pub const MIXES: [&[usize]; 9] = [
    &[12],
    &[1],
    &[64],
    &[63, 1],
    &[2, 15, 16, 17],
    &[33, 12],
    &[4; 16],
    &[1; 16],
    &[],
];

/// Vectors of each mix, a batch after the other on the same memory.
fn vectors(
    device: Box<dyn Device>,
    (weights, pooling): (&Weights, Pooling),
    options: &Options,
    mixes: &[Vec<Text>],
) -> Vec<Vec<Vec<f32>>> {
    let output = Output::Vector(pooling);
    let mut engine = DeviceEngine::open(device, weights, &output, options).unwrap();
    let is_one = engine.describe().contains("questions in one launch");
    assert_eq!(is_one, options.short == Short::Whole);
    let run = |texts: &Vec<Text>| model::run(&mut engine, texts);
    mixes.iter().map(run).collect()
}

/// Bitwise the launches' vectors, and the oracle's within halves.
pub fn equals_the_launches(
    make: &dyn Fn() -> Box<dyn Device>,
    config: BertConfig,
    pooling: Pooling,
    mixes: &[&[usize]],
) {
    let weights = Weights::generate(config, 17);
    let mut rng = ChaCha8Rng::seed_from_u64(17);
    let mut mixes: Vec<Vec<Text>> = mixes
        .iter()
        .map(|mix| model::texts(&mut rng, mix))
        .collect();
    for (at, text) in mixes.iter_mut().flatten().enumerate() {
        text.second = Some(text.ids.len() / 2).filter(|_| at % 3 == 1);
    }
    let of = |options: &Options| vectors(make(), (&weights, pooling), options, &mixes);
    let launches = Options {
        short: Short::Launches,
        ..options()
    };
    let (found, expected) = (of(&options()), of(&launches));
    let pairs = found.iter().zip(&expected).zip(&mixes);
    for ((found, expected), texts) in pairs {
        for ((found, expected), text) in found.iter().zip(expected).zip(texts) {
            let lengths: Vec<usize> = texts.iter().map(|text| text.ids.len()).collect();
            assert!(found.iter().all(|x| x.is_finite()), "{lengths:?}");
            assert_eq!(found, expected, "{} of {lengths:?}", text.ids.len());
            // The oracle knows texts of one segment.
            if text.second.is_none() {
                let oracle = reference::encode(&weights, pooling, &text.ids);
                let cosine = reference::cosine(found, &oracle);
                assert!(cosine >= 0.9999, "{cosine}, {} ids", text.ids.len());
            }
        }
    }
}

/// Bitwise the same alone and with any neighbours, in one launch and, where the batch is larger, in many.
pub fn is_invariant(make: &dyn Fn() -> Box<dyn Device>, config: BertConfig, lengths: &[usize]) {
    assert!(lengths.iter().sum::<usize>() > MOST.tokens);
    let options = Options {
        short: Short::Whole,
        ..model::options(Stage::Hopper, 1)
    };
    model::is_invariant(make, config, &options, lengths);
}

/// One launch over memory full of NaN: rows and texts past the counts stay as they were, and twice is as once.
pub fn leaves_the_rest_alone(device: &mut dyn Device, config: BertConfig, lengths: &[usize]) {
    let weights = Weights::generate(config.clone(), 19);
    let output = Output::Vector(Pooling::Mean);
    let recipe = Recipe {
        short: Short::Whole,
        ..Recipe::of(Stage::Hopper)
    };
    let mut arena = Arena::new(device, &weights, &output, recipe, &[MOST]).unwrap();
    let model = Model::load(device, &mut arena, &weights, &output, recipe).unwrap();
    let (buffers, address) = (model.buffers(&mut arena, MOST), arena.block(MOST));
    let launches = model
        .forward(&OnDevice::new(MOST, address), &buffers)
        .unwrap();
    assert_eq!(launches.len(), 1);
    assert_eq!(launches[0].placement(), Placement::Whole);
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    // (address, bytes a row, rows of it, rows that it holds): qkv, context, sum, wide, vectors.
    let (tokens, texts) = (lengths.iter().sum::<usize>(), lengths.len());
    let rows = [
        (6 * hidden, tokens, MOST.tokens),
        (2 * hidden, tokens, MOST.tokens),
        (2 * hidden, tokens, MOST.tokens),
        (2 * inner, tokens, MOST.tokens),
        (4 * hidden, texts, MOST.texts),
    ];
    let addresses = launches[0].args()[10..15].iter().map(Arg::word);
    let written: Vec<(u64, _)> = addresses.zip(rows).collect();
    for &(address, (bytes, _, most)) in &written {
        device.write(address, &vec![0xff; bytes * most]).unwrap();
    }
    // What lies past the counts is an absurd id and an absurd beginning.
    let mut block = vec![0xff; MOST.bytes()];
    let mut batch = Batch::new();
    let mut rng = ChaCha8Rng::seed_from_u64(19);
    for text in model::texts(&mut rng, lengths) {
        batch.push(&text);
    }
    batch.write(MOST, &mut block);
    device.write(address, &block).unwrap();
    let stream = device.stream(true).unwrap();
    let mut found = Vec::new();
    for _ in 0..3 {
        device.launch(stream, &launches[0]).unwrap();
        device.synchronize(stream).unwrap();
        for &(address, (bytes, used, most)) in &written {
            let mut all = vec![0; bytes * most];
            device.read(address, &mut all).unwrap();
            let is_untouched = all[bytes * used..].iter().all(|&byte| byte == 0xff);
            assert!(is_untouched, "rows past {used} of {bytes} bytes");
            found.push(all);
        }
    }
    let (first, later) = found.split_at(written.len());
    assert!(later.chunks(written.len()).all(|pass| pass == first));
}
