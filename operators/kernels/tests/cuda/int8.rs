//! Laws of the kernels of bytes: products equal the oracle's exactly summed ones; what becomes bytes is the
//! rotated number within half a step; nothing depends on neighbours. On the emulated GPU and on a real one.

use kernels::cuda::cluster::{Cluster, Spread};
use kernels::cuda::device::{Device, Kind, Launch, Tensor};
use kernels::cuda::int8::{GROUP, Product, Quantized, Rotation, quantize};
use kernels::cuda::linear::Epilogue;
use kernels::cuda::norm::{self, Norm, Tables};
use kernels::cuda::oracle;

use super::bed::Bed;
use super::checks::{all_equal, spread};

/// Numbers as bytes and scales; `groups` scales a row.
struct Numbers {
    bytes: Vec<f64>,
    scales: Vec<f64>,
    groups: usize,
}

impl Numbers {
    fn new(bed: &mut Bed<'_>, rows: usize, columns: usize, groups: usize) -> Numbers {
        let bytes = bed.numbers(rows * columns, 1.0, Kind::Byte);
        let scales = bed.numbers(rows * groups, 0.005, Kind::F32);
        Numbers {
            bytes,
            scales: scales.iter().map(|x| x.abs() + 0.01).collect(),
            groups,
        }
    }

    /// What they stand for.
    fn values(&self) -> Vec<f64> {
        let each = self.bytes.len() / self.scales.len().max(1);
        let parts = self.bytes.chunks(each.max(1)).zip(&self.scales);
        parts
            .flat_map(|(bytes, scale)| bytes.iter().map(move |b| b * f64::from(*scale as f32)))
            .collect()
    }

    fn states(&self, bed: &mut Bed<'_>, capacity: usize, columns: usize) -> Quantized {
        Quantized {
            bytes: bed.tensor(&self.bytes, capacity, columns, Kind::Byte),
            scales: bed.tensor(&self.scales, capacity, self.groups, Kind::F32),
        }
    }

    fn weight(&self, bed: &mut Bed<'_>, columns: usize) -> Quantized {
        let rows = self.scales.len();
        Quantized {
            bytes: bed.tensor(&self.bytes, rows, columns, Kind::Byte),
            scales: bed.tensor(&self.scales, 1, rows, Kind::F32),
        }
    }

    /// The same with row `row` in these places.
    fn with_row_at(mut self, row: usize, places: &[usize]) -> Numbers {
        let rows = self.scales.len() / self.groups;
        let columns = self.bytes.len() / rows;
        for &place in places {
            self.bytes
                .copy_within(row * columns..(row + 1) * columns, place * columns);
            self.scales.copy_within(
                row * self.groups..(row + 1) * self.groups,
                place * self.groups,
            );
        }
        self
    }

    fn row(&self, row: usize) -> Numbers {
        let columns = self.bytes.len() * self.groups / self.scales.len();
        Numbers {
            bytes: self.bytes[row * columns..][..columns].to_vec(),
            scales: self.scales[row * self.groups..][..self.groups].to_vec(),
            groups: self.groups,
        }
    }
}

/// A product's operands, (rows, inputs, outputs).
struct Operands {
    x: Numbers,
    weight: Numbers,
    bias: Vec<f64>,
    size: (usize, usize, usize),
}

impl Operands {
    fn new(bed: &mut Bed<'_>, size: (usize, usize, usize), groups: usize) -> Operands {
        let (rows, inputs, outputs) = size;
        let mut weight = Numbers::new(bed, outputs, inputs, 1);
        // So that sums are around 1.
        let spread = 3.0 / (inputs as f64).sqrt();
        weight.scales.iter_mut().for_each(|scale| *scale *= spread);
        Operands {
            x: Numbers::new(bed, rows, inputs, groups),
            weight,
            bias: bed.numbers(outputs, 0.5, Kind::F32),
            size,
        }
    }

    fn call(&self, bed: &mut Bed<'_>, x: &Numbers, rows: usize, capacity: usize) -> Product {
        let (_, inputs, outputs) = self.size;
        Product {
            count: bed.ints(&[rows as u32]),
            x: x.states(bed, capacity, inputs),
            weight: self.weight.weight(bed, inputs),
            bias: bed.tensor(&self.bias, 1, outputs, Kind::F32),
        }
    }

    fn expected(&self, epilogue: Epilogue) -> Vec<f64> {
        let (x, weight) = (self.x.values(), self.weight.values());
        oracle::linear(&x, &weight, &self.bias, None, epilogue)
    }
}

fn close(name: &str, found: &[f64], expected: &[f64]) {
    let error = oracle::relative_error(found, expected);
    assert!(error <= 2e-3, "{name}: relative error {error:.2e}");
}

/// Which kernel makes halves of a product.
#[derive(Debug, Clone, Copy)]
pub enum Sums {
    /// One scale a row.
    Whole,
    /// One for 128 columns of a row.
    Grouped,
}

impl Sums {
    fn groups(self, inputs: usize) -> usize {
        match self {
            Sums::Whole => 1,
            Sums::Grouped => inputs / GROUP,
        }
    }

    fn launch(self, call: &Product, y: Tensor, most: Spread) -> Launch {
        let launch = match self {
            Sums::Whole => call.halves(y, most),
            Sums::Grouped => call.narrow(y, most),
        };
        launch.unwrap()
    }
}

/// Halves of `rows` of a capacity of more.
pub fn product(device: &mut dyn Device, sums: Sums, size: (usize, usize, usize)) {
    let (rows, inputs, outputs) = size;
    let (capacity, most) = (rows + 3, device.multiprocessors());
    let mut bed = Bed::new(device, (rows * 31 + inputs * 7 + outputs) as u64);
    let operands = Operands::new(&mut bed, size, sums.groups(inputs));
    let call = operands.call(&mut bed, &operands.x, rows, capacity);
    let made = Cluster::ALL.map(|cluster| {
        let y = bed.poisoned(capacity, outputs, Kind::F16);
        bed.run(&[sums.launch(&call, y, spread(cluster, most))]);
        bed.result(y, rows)
    });
    let found = all_equal(made.into_iter());
    let expected = operands.expected(Epilogue::Bias);
    close(
        &format!("{sums:?} {rows}×{inputs}×{outputs}"),
        &found,
        &expected,
    );
}

/// The product that writes planes gives the very same halves as the one that writes rows.
pub fn product_heads(device: &mut dyn Device, size: (usize, usize, usize)) {
    let (rows, inputs, outputs) = size;
    let (capacity, most) = (rows + 3, device.multiprocessors());
    let mut bed = Bed::new(device, (rows * 31 + inputs * 7 + outputs) as u64);
    let operands = Operands::new(&mut bed, size, 1);
    let call = operands.call(&mut bed, &operands.x, rows, capacity);
    let y = bed.poisoned(capacity, outputs, Kind::F16);
    bed.run(&[call.halves(y, most).unwrap()]);
    let expected = bed.result(y, rows);
    for cluster in Cluster::ALL {
        let planes = bed.poisoned(outputs / 32 * capacity, 32, Kind::F16);
        bed.run(&[call.heads(planes, spread(cluster, most)).unwrap()]);
        let found = bed.planes(planes, capacity, rows);
        let found = super::checks::rows_of_planes(&found, capacity, rows);
        assert_eq!(found, expected, "{rows}×{inputs}×{outputs}, {cluster:?}");
    }
}

/// A product's rows are bitwise the same wherever they lie in the batch.
pub fn product_is_invariant(device: &mut dyn Device, sums: Sums, size: (usize, usize, usize)) {
    let (rows, inputs, outputs) = size;
    let most = device.multiprocessors();
    let mut bed = Bed::new(device, 5);
    let places = [0, 1, rows / 2, rows - 1];
    let mut operands = Operands::new(&mut bed, size, sums.groups(inputs));
    operands.x = operands.x.with_row_at(0, &places);
    let mut made = |x: &Numbers, rows: usize| {
        let call = operands.call(&mut bed, x, rows, rows);
        let y = bed.poisoned(rows, outputs, Kind::F16);
        bed.run(&[sums.launch(&call, y, spread(Cluster::Two, most))]);
        bed.result(y, rows)
    };
    let alone = made(&operands.x.row(0), 1);
    let among = made(&operands.x, rows);
    for place in places {
        let found = &among[place * outputs..][..outputs];
        assert_eq!(alone, found, "row {place} of {rows}");
    }
}

/// Bytes with their scales stand for `expected`, rotated, within half a step and what the kernel's own
/// arithmetic may be off; no scale is larger than the largest number asks for.
pub fn stands_for(
    name: &str,
    rotation: Rotation,
    (bytes, scales): (&[f64], &[f64]),
    expected: &[f64],
    off: f64,
) {
    let expected = oracle::rotated(expected, rotation);
    let each = bytes.len() / scales.len().max(1);
    let parts = bytes.chunks(each.max(1)).zip(expected.chunks(each.max(1)));
    for (part, ((bytes, expected), &scale)) in parts.zip(scales).enumerate() {
        let largest = expected.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
        assert!(
            (scale * 127.0 - largest).abs() <= off + largest * 1e-3,
            "{name}, part {part}: scale {scale} for {largest}"
        );
        for (byte, expected) in bytes.iter().zip(expected) {
            let error = (byte * scale - expected).abs();
            assert!(
                error <= scale * 0.501 + off,
                "{name}, part {part}: {byte} · {scale} for {expected}"
            );
        }
    }
}

/// GELU's bytes of `rows` of a capacity of more.
pub fn gelu(device: &mut dyn Device, size: (usize, usize, usize)) {
    let (rows, inputs, outputs) = size;
    let (capacity, most) = (rows + 3, device.multiprocessors());
    let mut bed = Bed::new(device, (rows * 31 + inputs * 7 + outputs) as u64);
    let operands = Operands::new(&mut bed, size, 1);
    let call = operands.call(&mut bed, &operands.x, rows, capacity);
    let [(bytes, scales), others @ ..] = Cluster::ALL.map(|cluster| {
        let y = Quantized {
            bytes: bed.poisoned(capacity, outputs, Kind::Byte),
            scales: bed.poisoned(capacity, outputs / GROUP, Kind::F32),
        };
        bed.run(&[call.gelu(y, spread(cluster, most)).unwrap()]);
        (bed.result(y.bytes, rows), bed.result(y.scales, rows))
    });
    let is_same = |other: &(Vec<f64>, Vec<f64>)| other.0 == bytes && other.1 == scales;
    assert!(others.iter().all(is_same), "clusters differ");
    let expected = operands.expected(Epilogue::Gelu);
    // GELU itself is within 5e-4 of the exact one, 32 of them are mixed.
    let off = 32.0_f64.sqrt() * 5e-4;
    let name = format!("gelu {rows}×{inputs}×{outputs}");
    stands_for(&name, Rotation::Lanes, (&bytes, &scales), &expected, off);
}

/// Embedding and LayerNorm give the same halves as without bytes, and bytes that stand for them.
pub fn norms(device: &mut dyn Device, hidden: usize, lengths: &[usize]) {
    let mut bed = Bed::new(device, hidden as u64);
    let (batch, texts, starts) = bed.batch(lengths, 50);
    let (rows, capacity) = (*starts.last().unwrap(), batch.bucket.tokens);
    let longest = lengths.iter().copied().max().unwrap_or(1).max(1);
    let mut table = |rows: usize| {
        let values = bed.numbers(rows * hidden, 1.0, Kind::F16);
        (bed.tensor(&values, rows, hidden, Kind::F16), values)
    };
    let [words, positions, segments] = [50, longest, 2].map(&mut table);
    let [gain, shift] = [(); 2].map(|()| bed.numbers(hidden, 1.0, Kind::F32));
    let norm = Norm {
        gain: bed.tensor(&gain, 1, hidden, Kind::F32),
        shift: bed.tensor(&shift, 1, hidden, Kind::F32),
        epsilon: 1e-12,
    };
    let tables = Tables {
        words: words.0,
        positions: positions.0,
        segments: segments.0,
    };
    let out = bed.poisoned(capacity, hidden, Kind::F16);
    let mut quantized = || Quantized {
        bytes: bed.poisoned(capacity, hidden, Kind::Byte),
        scales: bed.poisoned(capacity, 1, Kind::F32),
    };
    let (first, second) = (quantized(), quantized());
    bed.run(&[norm::embed_int8(&batch, &tables, &norm, out, first).unwrap()]);
    let mut sums = Vec::new();
    for text in &texts {
        for (at, &id) in text.ids.iter().enumerate() {
            let segment = usize::from(text.second.is_some_and(|second| at >= second));
            let rows = [
                (&words, id as usize),
                (&positions, at),
                (&segments, segment),
            ];
            sums.extend((0..hidden).map(|c| {
                let each = rows.iter().map(|((_, table), row)| table[row * hidden + c]);
                each.sum::<f64>()
            }));
        }
    }
    let check = |bed: &mut Bed<'_>, name: &str, bytes: Quantized, sums: &[f64]| {
        let expected = oracle::norm(sums, &gain, &shift, 1e-12);
        let found = bed.result(out, rows);
        close(name, &found, &expected);
        let found = (
            bed.result(bytes.bytes, rows),
            bed.result(bytes.scales, rows),
        );
        let name = format!("{name} {hidden}");
        stands_for(
            &name,
            Rotation::Columns,
            (&found.0, &found.1),
            &expected,
            1e-3,
        );
    };
    check(&mut bed, "embed", first, &sums);
    let x = bed.result(out, rows);
    let y = bed.numbers(rows * hidden, 1.0, Kind::F16);
    let other = bed.tensor(&y, capacity, hidden, Kind::F16);
    let count = batch.token_count;
    bed.run(&[norm::add_norm_int8(count, out, Some(other), &norm, out, second).unwrap()]);
    let sums: Vec<f64> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
    check(&mut bed, "norm", second, &sums);
}

/// A row that is not finite stays so through every kernel, and its neighbours do not see it: bytes have no NaN, and
/// other rows of its text attend to what is made of it.
pub fn what_is_not_finite_stays_so(device: &mut dyn Device) {
    const ROWS: usize = 5;
    const BAD: usize = 3;
    let most = device.multiprocessors();
    let mut bed = Bed::new(device, 9);
    let count = bed.ints(&[ROWS as u32]);
    for poison in [f64::NAN, f64::INFINITY] {
        let mut x = bed.numbers(ROWS * GROUP, 1.0, Kind::F16);
        x[BAD * GROUP + 17] = poison;
        let one = bed.tensor(&[1.0; GROUP], 1, GROUP, Kind::F32);
        let norm = Norm {
            gain: one,
            shift: one,
            epsilon: 1e-12,
        };
        let from = bed.tensor(&x, ROWS, GROUP, Kind::F16);
        let out = bed.poisoned(ROWS, GROUP, Kind::F16);
        let mut quantized = |groups: usize| Quantized {
            bytes: bed.poisoned(ROWS, GROUP, Kind::Byte),
            scales: bed.poisoned(ROWS, groups, Kind::F32),
        };
        let (state, wide) = (quantized(1), quantized(1));
        let mut operands = Operands::new(&mut bed, (ROWS, GROUP, GROUP), 1);
        operands.bias.fill(1.0);
        let mut call = operands.call(&mut bed, &operands.x, ROWS, ROWS);
        call.x = state;
        let narrow = Product { x: wide, ..call };
        let [halves, sums] = [(); 2].map(|()| bed.poisoned(ROWS, GROUP, Kind::F16));
        bed.run(&[
            norm::add_norm_int8(count, from, None, &norm, out, state).unwrap(),
            call.halves(halves, most).unwrap(),
            call.gelu(wide, most).unwrap(),
            narrow.narrow(sums, most).unwrap(),
        ]);
        for (name, y) in [("halves", halves), ("narrow", sums)] {
            let found = bed.result(y, ROWS);
            for (row, values) in found.chunks(GROUP).enumerate() {
                let all = |is_so: fn(&f64) -> bool| values.iter().all(is_so);
                let is_right = match row {
                    BAD => all(|x| !x.is_finite()),
                    _ => all(|x| x.is_finite()),
                };
                assert!(is_right, "{name}, {poison}, row {row}: {values:?}");
            }
        }
    }
}

/// What the host makes of weights stands for them.
pub fn weights_stand_for_themselves(device: &mut dyn Device) {
    let weight = Bed::new(device, 3).numbers(6 * 256, 1.0, Kind::F32);
    let floats: Vec<f32> = weight.iter().map(|&x| x as f32).collect();
    for rotation in [Rotation::Columns, Rotation::Lanes] {
        let (bytes, scales) = quantize(&floats, 256, rotation);
        let bytes: Vec<f64> = bytes.iter().map(|&b| f64::from(b)).collect();
        let scales: Vec<f64> = scales.iter().map(|&s| f64::from(s)).collect();
        stands_for("weights", rotation, (&bytes, &scales), &weight, 1e-4);
    }
}
