//! The default model's real weights, rounded to halves: the device against the f64 oracle of the very same
//! weights, on real text.
//!
//! A machine with a GPU often has no network: `run.sh pack` writes what is needed (45 MB) beside the
//! binaries, by the ignored test here, and the suite reads it from the program's own folder.

use std::path::PathBuf;

use half::f16;
use kernels::cuda::batch::Text;
use kernels::cuda::encoder::{Output, Recipe};
use kernels::cuda::engine::DeviceEngine;
use kernels::weights::Weights;
use kernels::{Encoder, Pooling, Scratch, reference};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::model::support::{real_model, real_model_and_texts, skip};
use super::{Driver, device, model, stages};

/// Rounded weights, the configuration, and texts as ids.
const FILES: [&str; 3] = [
    "real-f16.safetensors",
    "real-config.json",
    "real-texts.json",
];
/// Texts that are packed: some of the project's pages, cut at 256 tokens.
const TEXTS: usize = 12;

/// The files' folder: the program's own.
fn folder() -> PathBuf {
    let program = std::env::current_exe().expect("a test is a program");
    program.parent().expect("a program's folder").to_owned()
}

#[test]
fn real_weights_equal_the_oracle() {
    let test = "real weights";
    let Some(first) = device(test) else { return };
    let folder = folder();
    if let Some(missing) = FILES.iter().find(|file| !folder.join(file).is_file()) {
        let why = format!(
            "{} is not here: run.sh pack writes it",
            folder.join(missing).display()
        );
        skip(test, &why);
        return;
    }
    let [weights, config, ids] = FILES.map(|file| std::fs::read(folder.join(file)).unwrap());
    let weights = Weights::parse(&config, &weights).unwrap();
    let ids: Vec<Vec<u32>> = serde_json::from_slice(&ids).unwrap();
    let texts: Vec<Text> = ids.into_iter().map(Text::new).collect();
    let expected = model::expected(&weights, Pooling::Mean, &texts, "real");
    for stage in stages(&first) {
        for recipe in Recipe::all(stage, &weights.config) {
            let options = model::options(stage, 4).with(recipe);
            let device = Box::new(Driver::open(0).unwrap());
            let output = Output::Vector(Pooling::Mean);
            let mut engine = DeviceEngine::open(device, &weights, &output, &options).unwrap();
            let vectors = model::run(&mut engine, &texts);
            let cosines = vectors.iter().zip(&expected);
            let cosines: Vec<f64> = cosines.map(|(v, e)| reference::cosine(v, e)).collect();
            let least = cosines.iter().copied().fold(1.0, f64::min);
            let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
            println!("real weights, {recipe}: least cosine {least:.7}, mean {mean:.7}");
            let bar = model::cosine_bar(stage, recipe.precision);
            assert!(least >= bar, "{recipe}: {cosines:?}");
        }
    }
}

#[test]
#[ignore = "writes the files of the test above: run.sh pack calls it"]
fn pack_real_weights() {
    let to = std::env::var_os("HEADWATER_PACK").expect("HEADWATER_PACK names the folder");
    let to = PathBuf::from(to);
    let Some((weights, texts)) = real_model_and_texts() else {
        skip(
            "packing real weights",
            "the default model is not in HEADWATER_MODELS",
        );
        return;
    };
    let rounded = |values: &[f32]| -> Vec<u8> {
        let halves = values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes());
        halves.collect()
    };
    let tensors = weights.tensors();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, (shape, values))| (name, shape, rounded(values)))
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F16, shape.clone(), bytes);
        (name, view.expect("a shape and its values"))
    });
    let step = (texts.len() / TEXTS).max(1);
    let chosen: Vec<&Vec<u32>> = texts.iter().step_by(step).take(TEXTS).collect();
    let config = real_model().expect("it was just read").join("config.json");
    let contents = [
        safetensors::serialize(views, None).expect("views of halves serialise"),
        std::fs::read(config).unwrap(),
        serde_json::to_vec(&chosen).unwrap(),
    ];
    // What was written reads back, and rounding costs next to nothing.
    let read = Weights::parse(&contents[1], &contents[0]).unwrap();
    let encode = |weights| {
        let encoder = Encoder::new(weights, Pooling::Mean);
        encoder.encode(chosen[0], &mut Scratch::default())
    };
    let exact: Vec<f64> = encode(weights.clone()).into_iter().map(f64::from).collect();
    let cosine = reference::cosine(&encode(read), &exact);
    println!("weights as halves, beside f32: cosine {cosine:.7}");
    assert!(cosine > 0.9999, "{cosine}");
    for (file, bytes) in FILES.into_iter().zip(contents) {
        std::fs::write(to.join(file), bytes).unwrap();
    }
}
