//! Bar 2: a vector has the same bits alone, anywhere in any batch, after anything, on any thread; on every
//! instruction set that this machine has, and at the default model's width.

mod support;

use kernels::tile::Cpu;
use kernels::weights::BertConfig;
use kernels::{Encoder, Kernel, Pooling, Scratch, Weights};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use support::{ids, shape};

#[test]
fn vectors_do_not_depend_on_their_company() {
    let lengths = [
        1, 2, 3, 5, 11, 12, 13, 16, 24, 25, 31, 32, 33, 64, 95, 96, 97, 128, 200, 257,
    ];
    for kernel in Kernel::ALL {
        let cpus = Cpu::available(kernel.format());
        println!("{}: {cpus:?}", kernel.name());
        for (at, cpu) in cpus.into_iter().enumerate() {
            // Most on what this machine runs.
            let rounds = if at == 0 { 12 } else { 3 };
            check(shape(96, 2, 3, 200), kernel, cpu, &lengths, rounds);
        }
    }
}

#[test]
fn nor_do_they_at_the_default_models_width() {
    let lengths = [1, 2, 11, 12, 13, 31, 33, 64, 97];
    for kernel in Kernel::ALL {
        let cpus = Cpu::available(kernel.format());
        // The scalar twin takes too long for this width.
        for cpu in cpus.into_iter().filter(|cpu| *cpu != Cpu::Scalar) {
            check(shape(384, 1, 12, 1536), kernel, cpu, &lengths, 2);
        }
    }
}

fn check(config: BertConfig, kernel: Kernel, cpu: Cpu, lengths: &[usize], rounds: usize) {
    let seed = 4711;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let texts: Vec<Vec<u32>> = lengths.iter().map(|&n| ids(&mut rng, n)).collect();
    let weights = Weights::generate(config, seed);
    let encoder = Encoder::on(weights, Pooling::Mean, kernel, cpu);
    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let alone: Vec<Vec<u32>> = texts
        .iter()
        .map(|ids| bits(&encoder.encode(ids, &mut Scratch::default())))
        .collect();
    let run = |seed: u64| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut scratch = Scratch::default();
        for round in 0..rounds {
            let size = rng.random_range(1..12);
            let picks: Vec<usize> = (0..size)
                .map(|_| rng.random_range(0..texts.len()))
                .collect();
            let batch: Vec<&[u32]> = picks.iter().map(|&pick| &texts[pick][..]).collect();
            if rng.random_bool(0.3) {
                scratch.poison();
            }
            for (vector, pick) in encoder.encode_all(&batch, &mut scratch).iter().zip(picks) {
                let name = kernel.name();
                let place = || format!("seed {seed}, {name} on {cpu:?}, round {round}");
                assert_eq!(bits(vector), alone[pick], "{}", place());
            }
        }
    };
    for threads in [1, 3] {
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let run = &run;
                scope.spawn(move || run(seed + thread));
            }
        });
    }
}

#[test]
fn no_texts_are_no_vectors() {
    let weights = Weights::generate(shape(32, 1, 1, 32), 1);
    let encoder = Encoder::with_kernel(weights, Pooling::Cls, Kernel::Int8);
    assert!(encoder.encode_all(&[], &mut Scratch::default()).is_empty());
}

#[test]
#[should_panic(expected = "0 ids, the model takes 1 to its maximum")]
fn a_text_without_ids_is_refused() {
    let weights = Weights::generate(shape(32, 1, 1, 32), 1);
    Encoder::new(weights, Pooling::Mean).encode(&[], &mut Scratch::default());
}
