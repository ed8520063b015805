//! A whole model in one launch on the emulated GPU: `whole` at sizes that it can afford, and its memory.

use kernels::Pooling;
use kernels::cuda::batch::Text;
use kernels::cuda::device::{Device, Stage};
use kernels::cuda::encoder::Output;
use kernels::cuda::engine::{DeviceEngine, Engine, Options};
use kernels::weights::Weights;

use super::WEATHERS;
use super::emulator::{Emulator, Weather};
use super::{model, whole};

fn machine(weather: Weather, multiprocessors: u32) -> impl Fn() -> Box<dyn Device> {
    move || {
        let mut device = Emulator::new(weather);
        device.multiprocessors = multiprocessors;
        Box::new(device)
    }
}

#[test]
fn a_model_in_one_launch_gives_the_bits_of_many() {
    // (hidden, layers, heads, inner width, blocks): more steps than the ring; tiles of 32 and of 16 columns in several
    // rounds; 16 and 8 in one; both head dimensions.
    let shapes = [
        (64, 2, 1, 640, 2),
        (128, 2, 2, 192, 3),
        (128, 2, 4, 1280, 3),
        (128, 1, 4, 128, 16),
        (64, 1, 1, 128, 12),
    ];
    for (i, (hidden, layers, heads, inner, blocks)) in shapes.into_iter().enumerate() {
        for (j, weather) in WEATHERS.into_iter().enumerate() {
            let config = model::shape(hidden, layers, heads, inner);
            let pooling = [Pooling::Mean, Pooling::Cls][(i + j) % 2];
            let mixes = &whole::MIXES[i + j..][..2];
            whole::equals_the_launches(&machine(weather, blocks), config, pooling, mixes);
        }
    }
    let config = model::shape(128, 1, 4, 128);
    whole::equals_the_launches(
        &machine(WEATHERS[2], 3),
        config,
        Pooling::Mean,
        &whole::MIXES,
    );
}

#[test]
fn the_default_models_width_in_one_launch_gives_the_bits_of_many() {
    for (config, weather, blocks) in [
        (model::shape(384, 1, 12, 1536), WEATHERS[2], 3),
        (model::shape(768, 1, 12, 768), WEATHERS[0], 2),
    ] {
        let mixes: [&[usize]; 2] = [&[12], &[33, 17]];
        whole::equals_the_launches(&machine(weather, blocks), config, Pooling::Mean, &mixes);
    }
}

#[test]
fn questions_do_not_depend_on_neighbours() {
    let config = model::shape(128, 2, 2, 128);
    whole::is_invariant(&machine(WEATHERS[3], 2), config, &[5, 1, 46, 16, 30]);
}

#[test]
fn one_launch_leaves_rows_past_the_count_alone() {
    for (i, lengths) in [&[12][..], &[1, 16], &[33], &[]].into_iter().enumerate() {
        let mut device = Emulator::new(WEATHERS[i % 4]);
        device.multiprocessors = 3;
        whole::leaves_the_rest_alone(&mut device, model::shape(128, 2, 4, 256), lengths);
    }
}

#[test]
fn what_the_kernel_does_not_take_runs_as_launches() {
    let open = |stage, (hidden, heads, inner)| {
        let options = Options {
            stage: Some(stage),
            ..whole::options()
        };
        let weights = Weights::generate(model::shape(hidden, 1, heads, inner), 7);
        let output = Output::Vector(Pooling::Mean);
        let device = machine(WEATHERS[0], 2)();
        let mut engine = DeviceEngine::open(device, &weights, &output, &options).unwrap();
        let text = Text::new(vec![1, 2, 3]);
        assert!(
            model::run(&mut engine, &[text])[0]
                .iter()
                .all(|x| x.is_finite())
        );
        engine.describe().contains("questions in one launch")
    };
    assert!(open(Stage::Hopper, (128, 4, 128)));
    assert!(!open(Stage::TensorCore, (128, 4, 128)));
    assert!(!open(Stage::Hopper, (96, 3, 96)));
    assert!(!open(Stage::Hopper, (128, 4, 192)));
}
