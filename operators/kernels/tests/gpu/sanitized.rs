//! Every kernel once at small sizes, with tails: what compute-sanitizer is run on.

use kernels::cuda::device::{Device, Stage};
use kernels::cuda::encoder::Residual;
use kernels::cuda::engine::Options;
use kernels::cuda::linear::Epilogue;

use super::{Driver, Sums, checks, device, feed_int8, int8, model, stages, whole};

#[test]
fn small_products() {
    let Some(mut device) = device("small products") else {
        return;
    };
    for stage in stages(&device) {
        for epilogue in [Epilogue::Gelu, Epilogue::Residual] {
            checks::linear(&mut device, stage, epilogue, (129, 72, 136));
        }
    }
}

#[test]
fn small_attention_and_norms() {
    let Some(mut device) = device("small attention") else {
        return;
    };
    for stage in [Stage::Naive, Stage::TensorCore] {
        for width in [32, 64] {
            checks::attention(&mut device, stage, 2, width, &[65, 3, 1]);
        }
        checks::embed_and_norm(&mut device, stage, 132, &[3, 20, 1]);
        checks::pooling(&mut device, stage, 132, &[3, 20, 1]);
    }
}

#[test]
fn small_attention_by_heads() {
    let Some(mut device) = device("small attention by heads") else {
        return;
    };
    if device.best_stage() < Stage::Hopper {
        return;
    }
    for lengths in [&[65, 3, 1, 40, 17][..], &[257, 20], &[530]] {
        checks::attention_heads(&mut device, 2, lengths);
    }
    checks::linear_heads(&mut device, (129, 72, 160));
    int8::product_heads(&mut device, (129, 256, 160));
}

#[test]
fn small_products_with_norms() {
    let Some(mut device) = device("small products with norms") else {
        return;
    };
    if device.best_stage() < Stage::Hopper {
        return;
    }
    for (rows, inputs) in [(1, 8), (65, 72), (129, 264)] {
        checks::join(&mut device, rows, inputs);
    }
    for (rows, wide) in [(1, 8), (65, 136), (129, 264)] {
        checks::feed(&mut device, rows, wide);
    }
}

#[test]
fn small_products_of_bytes() {
    let Some(mut device) = device("small products of bytes") else {
        return;
    };
    if device.best_stage() < Stage::Hopper {
        return;
    }
    for sums in [Sums::Whole, Sums::Grouped] {
        int8::product(&mut device, sums, (129, 640, 136));
    }
    int8::gelu(&mut device, (129, 256, 128));
    int8::norms(&mut device, 128, &[3, 20, 1]);
    for (rows, wide) in [(1, 128), (129, 256)] {
        feed_int8::feed(&mut device, rows, wide);
    }
}

#[test]
fn small_model() {
    let Some(first) = device("small model") else {
        return;
    };
    for stage in stages(&first) {
        let options = Options {
            residual: Residual::InNorm,
            ..model::options(stage, 1)
        };
        let device = Box::new(Driver::open(0).unwrap());
        model::equals_the_oracle(device, model::shape(64, 1, 2, 128), &options, &[2, 65, 17]);
    }
}

#[test]
fn small_model_in_one_launch() {
    let Some(mut device) = device("small model in one launch") else {
        return;
    };
    if device.best_stage() < Stage::Hopper {
        return;
    }
    for (heads, width) in [(4, 32), (2, 64)] {
        let config = model::shape(heads * width, 1, heads, 128);
        whole::leaves_the_rest_alone(&mut device, config, &[12, 17]);
    }
}
