//! Linear layers against the product written down: any shape, every instruction set.

use rand::prelude::*;
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::tile::Cpu;
use crate::wide::Plain;

fn draw(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn layers(weight: &[f32], bias: &[f32]) -> Vec<(Cpu, Box<dyn PackedLinear>)> {
    let mut all: Vec<(Cpu, Box<dyn PackedLinear>)> = Vec::new();
    for format in [Format::F32, Format::Bf16, Format::Int8] {
        for cpu in Cpu::available(format) {
            let kernel = TileKernel::on(cpu, format).unwrap();
            let bias = bias.to_vec();
            all.push((
                cpu,
                match format {
                    Format::F32 => Box::new(F32Linear::pack_for(kernel, weight, bias)),
                    Format::Bf16 => Box::new(Bf16Linear::pack_for(kernel, weight, bias)),
                    Format::Int8 => Box::new(Int8Linear::pack_for(kernel, weight, bias)),
                },
            ));
        }
    }
    all
}

/// The product of rows with all columns into fresh memory with canaries behind each row.
fn product(layer: &dyn PackedLinear, rows: usize, input: &[f32], epilogue: Epilogue) -> Vec<f32> {
    let mut tiles = Tiles::default();
    tiles.reset(layer.format(), rows + 30, layer.inputs());
    tiles.poison();
    layer.pack_rows(rows, input, &mut tiles);
    let (outputs, stride) = (layer.outputs(), layer.outputs() + 3);
    let mut output = vec![1.0; rows * stride + 40];
    layer.apply(&tiles, 0..outputs, epilogue, &mut output, stride);
    let behind = |(i, &x): (usize, &f32)| i % stride < outputs && i < rows * stride || x == 1.0;
    assert!(output.iter().enumerate().all(behind), "canaries live");
    let rows = output.chunks(stride).take(rows);
    rows.flat_map(|row| row[..outputs].to_vec()).collect()
}

#[test]
fn any_shape_is_right_and_a_row_is_alone() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for (rows, inputs, outputs) in [(1, 1, 1), (5, 7, 3), (13, 200, 33), (25, 385, 70)] {
        let weight = draw(&mut rng, inputs * outputs);
        let (bias, input) = (draw(&mut rng, outputs), draw(&mut rng, rows * inputs));
        for (cpu, layer) in layers(&weight, &bias) {
            let found = product(&*layer, rows, &input, Epilogue::Store);
            let tolerance = match layer.format() {
                Format::F32 => 1e-5,
                Format::Bf16 => 5e-3,
                Format::Int8 => 1e-2,
            } * (inputs as f64).sqrt();
            for (row, out) in input.chunks(inputs).zip(found.chunks(outputs)) {
                for ((weights, &bias), &found) in weight.chunks(inputs).zip(&bias).zip(out) {
                    let products = row.iter().zip(weights);
                    let sum: f64 = products.map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                    let error = (f64::from(found) - sum - f64::from(bias)).abs();
                    assert!(error < tolerance, "{cpu:?} {:?}: {error}", layer.format());
                }
                let alone = product(&*layer, 1, row, Epilogue::Store);
                assert_eq!(alone, out, "{cpu:?} {rows} × {inputs} × {outputs}");
            }
        }
    }
}

#[test]
fn int8_is_bitwise_the_same_on_every_instruction_set() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let (rows, inputs, outputs) = (17, 130, 70);
    let weight = draw(&mut rng, inputs * outputs);
    let (bias, input) = (draw(&mut rng, outputs), draw(&mut rng, rows * inputs));
    let all = layers(&weight, &bias);
    let int8 = all
        .iter()
        .filter(|(_, layer)| layer.format() == Format::Int8);
    let mut products = int8.map(|(_, layer)| product(&**layer, rows, &input, Epilogue::Store));
    let first = products.next().unwrap();
    assert!(products.all(|other| other == first));
}

#[test]
fn epilogues_are_the_product_and_then_some() {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let (weight, bias) = (draw(&mut rng, 40 * 50), draw(&mut rng, 50));
    let input = draw(&mut rng, 3 * 40);
    for (_, layer) in layers(&weight, &bias) {
        let plain = product(&*layer, 3, &input, Epilogue::Store);
        let sums = product(&*layer, 3, &input, Epilogue::Add);
        let exact = product(&*layer, 3, &input, Epilogue::Gelu(Erf::Exact));
        let short = product(&*layer, 3, &input, Epilogue::Gelu(Erf::Short));
        for (i, &y) in plain.iter().enumerate() {
            assert_eq!(sums[i], 1.0 + y, "added onto the ones that were there");
            let y = [y; LANES];
            assert!((exact[i] - math::gelu(Plain, y)[0]).abs() < 1e-6);
            assert!((short[i] - math::gelu_short(Plain, y)[0]).abs() < 1e-6);
        }
    }
}

#[test]
fn a_range_of_columns_is_those_columns() {
    let mut rng = ChaCha8Rng::seed_from_u64(10);
    let (weight, bias) = (draw(&mut rng, 16 * 100), draw(&mut rng, 100));
    let input = draw(&mut rng, 2 * 16);
    for (_, layer) in layers(&weight, &bias) {
        let all = product(&*layer, 2, &input, Epilogue::Store);
        let mut tiles = Tiles::default();
        layer.pack_rows(2, &input, &mut tiles);
        let mut some = vec![0.0; 2 * 64];
        layer.apply(&tiles, 32..96, Epilogue::Store, &mut some, 64);
        assert_eq!(some[..64], all[32..96]);
        assert_eq!(some[64..], all[132..196]);
    }
}

#[test]
#[should_panic(expected = "one bias an output")]
fn a_weight_without_its_bias_is_refused() {
    F32Linear::pack(&[1.0, 2.0, 3.0], vec![0.0, 0.0]);
}
