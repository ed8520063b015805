//! Laws of the feed-forward half of bytes: it equals, in f64, what its own bytes stand for, and the exact oracle as far as
//! bytes can; what it leaves as bytes stands for what it leaves in halves; its bits depend on no neighbour and on no
//! cluster's size. On the emulated GPU and on a real one.

use kernels::cuda::cluster::Cluster;
use kernels::cuda::device::{Device, Kind};
use kernels::cuda::feed_int8::FeedInt8;
use kernels::cuda::int8::{GROUP, Quantized, Rotation, quantize};
use kernels::cuda::join::HIDDEN;
use kernels::cuda::linear::Epilogue;
use kernels::cuda::norm::Norm;
use kernels::cuda::oracle;

use super::bed::Bed;
use super::checks::spread;
use super::int8::stands_for;

/// A weight in f32, what its bytes stand for (rotated), its bias.
struct Weight {
    values: Vec<f64>,
    bytes: Vec<f64>,
    scales: Vec<f64>,
    bias: Vec<f64>,
}

impl Weight {
    fn new(bed: &mut Bed<'_>, outputs: usize, inputs: usize, rotation: Rotation) -> Weight {
        let values = bed.numbers(outputs * inputs, 1.0 / (inputs as f64).sqrt(), Kind::F32);
        let floats: Vec<f32> = values.iter().map(|&x| x as f32).collect();
        let (bytes, scales) = quantize(&floats, inputs, rotation);
        Weight {
            values,
            bytes: bytes.into_iter().map(f64::from).collect(),
            scales: scales.into_iter().map(f64::from).collect(),
            bias: bed.numbers(outputs, 0.5, Kind::F32),
        }
    }

    fn rotated(&self) -> Vec<f64> {
        let inputs = self.bytes.len() / self.scales.len();
        let rows = self.bytes.chunks(inputs).zip(&self.scales);
        rows.flat_map(|(row, scale)| row.iter().map(move |b| b * scale))
            .collect()
    }

    fn on_device(&self, bed: &mut Bed<'_>) -> (Quantized, kernels::cuda::device::Tensor) {
        let rows = self.scales.len();
        let inputs = self.bytes.len() / rows;
        let quantized = Quantized {
            bytes: bed.tensor(&self.bytes, rows, inputs, Kind::Byte),
            scales: bed.tensor(&self.scales, 1, rows, Kind::F32),
        };
        (quantized, bed.tensor(&self.bias, 1, rows, Kind::F32))
    }
}

/// What a feed works on.
struct Operands {
    widen: Weight,
    narrow: Weight,
    gain: Vec<f64>,
    shift: Vec<f64>,
    x: Vec<f64>,
}

/// What it leaves: x in halves, its bytes, their scales.
type Left = (Vec<f64>, Vec<f64>, Vec<f64>);

impl Operands {
    fn new(bed: &mut Bed<'_>, rows: usize, wide: usize) -> Operands {
        Operands {
            widen: Weight::new(bed, wide, HIDDEN, Rotation::Columns),
            narrow: Weight::new(bed, HIDDEN, wide, Rotation::Lanes),
            gain: bed.numbers(HIDDEN, 1.0, Kind::F32),
            shift: bed.numbers(HIDDEN, 1.0, Kind::F32),
            x: bed.numbers(rows * HIDDEN, 1.0, Kind::F16),
        }
    }

    fn run(&self, bed: &mut Bed<'_>, cluster: Cluster, x: &[f64], capacity: usize) -> Left {
        let rows = x.len() / HIDDEN;
        let call = FeedInt8 {
            count: bed.ints(&[rows as u32]),
            widen: self.widen.on_device(bed),
            narrow: self.narrow.on_device(bed),
            norm: Norm {
                gain: bed.tensor(&self.gain, 1, HIDDEN, Kind::F32),
                shift: bed.tensor(&self.shift, 1, HIDDEN, Kind::F32),
                epsilon: 1e-12,
            },
            x: bed.tensor(x, capacity, HIDDEN, Kind::F16),
            bytes: Quantized {
                bytes: bed.poisoned(capacity, HIDDEN, Kind::Byte),
                scales: bed.poisoned(capacity, 1, Kind::F32),
            },
        };
        let multiprocessors = bed.device.multiprocessors();
        bed.run(&[call.launch(spread(cluster, multiprocessors)).unwrap()]);
        (
            bed.result(call.x, rows),
            bed.result(call.bytes.bytes, rows),
            bed.result(call.bytes.scales, rows),
        )
    }

    /// In f64, of exact numbers or of those that bytes stand for.
    fn expected(&self, has_bytes: bool) -> Vec<f64> {
        let wider = if has_bytes {
            let x = rounded(&oracle::rotated(&self.x, Rotation::Columns), HIDDEN);
            let sums = oracle::linear(
                &x,
                &self.widen.rotated(),
                &self.widen.bias,
                None,
                Epilogue::Gelu,
            );
            rounded(&oracle::rotated(&sums, Rotation::Lanes), GROUP)
        } else {
            oracle::linear(
                &self.x,
                &self.widen.values,
                &self.widen.bias,
                None,
                Epilogue::Gelu,
            )
        };
        let weight = if has_bytes {
            self.narrow.rotated()
        } else {
            self.narrow.values.clone()
        };
        let residual = Some(&self.x[..]);
        let sums = oracle::linear(
            &wider,
            &weight,
            &self.narrow.bias,
            residual,
            Epilogue::Residual,
        );
        oracle::norm(&sums, &self.gain, &self.shift, 1e-12)
    }
}

/// Numbers that share a scale `each` at a time, as bytes would have them.
fn rounded(values: &[f64], each: usize) -> Vec<f64> {
    let mut out = Vec::with_capacity(values.len());
    for part in values.chunks(each) {
        let step = part.iter().fold(0.0_f64, |most, x| most.max(x.abs())) / 127.0;
        out.extend(part.iter().map(|x| (x / step).round_ties_even() * step));
    }
    out
}

/// Of `rows` of a capacity of more, `wide` columns between, in clusters of every size: the bits are the same.
pub fn feed(device: &mut dyn Device, rows: usize, wide: usize) {
    let mut bed = Bed::new(device, (rows * 31 + wide * 7) as u64);
    let operands = Operands::new(&mut bed, rows, wide);
    let [found, others @ ..] =
        Cluster::ALL.map(|cluster| operands.run(&mut bed, cluster, &operands.x, rows + 3));
    assert!(
        others.iter().all(|other| *other == found),
        "clusters differ"
    );
    // Numbers at a rounding's edge go the other way now and then: GELU is off by 5e-4, halves by 2⁻¹².
    for (name, has_bytes, most) in [("its bytes", true, BAR_OF_BYTES), ("numbers", false, BAR)] {
        let error = oracle::relative_error(&found.0, &operands.expected(has_bytes));
        assert!(
            error <= most,
            "feed of bytes {rows}×{wide}, {name}: relative error {error:.2e}"
        );
    }
    // Halves rotate with 2⁻¹² of error a step, of numbers of up to 4 or so.
    let (x, bytes, scales) = &found;
    let name = format!("feed {rows}×{wide}");
    stands_for(&name, Rotation::Columns, (bytes, scales), x, 4e-3);
}

/// Relative errors against the oracle of bytes, and against the exact one.
const BAR_OF_BYTES: f64 = 4e-3;
const BAR: f64 = 2e-2;

/// A row's bits are the same wherever it lies in the batch.
pub fn is_invariant(device: &mut dyn Device, rows: usize, wide: usize) {
    let mut bed = Bed::new(device, 7);
    let mut operands = Operands::new(&mut bed, rows, wide);
    let own = operands.x[..HIDDEN].to_vec();
    let places = [0, 1, rows / 2, rows - 1];
    for place in places {
        operands.x[place * HIDDEN..][..HIDDEN].copy_from_slice(&own);
    }
    let alone = operands.run(&mut bed, Cluster::Two, &own, 1);
    let among = operands.run(&mut bed, Cluster::Two, &operands.x, rows);
    for place in places {
        let columns = place * HIDDEN..(place + 1) * HIDDEN;
        assert_eq!(alone.0, among.0[columns.clone()], "row {place} of {rows}");
        assert_eq!(alone.1, among.1[columns], "row {place} of {rows}");
        assert_eq!(alone.2[0], among.2[place], "row {place} of {rows}");
    }
}

/// A row that is not finite stays so, in halves and by its scale, and its neighbours do not see it.
pub fn what_is_not_finite_stays_so(device: &mut dyn Device) {
    let (rows, bad) = (70, 65);
    let mut bed = Bed::new(device, 9);
    let operands = Operands::new(&mut bed, rows, GROUP);
    let good = operands.run(&mut bed, Cluster::One, &operands.x, rows);
    for (poison, spread) in [(f64::NAN, 1), (f64::INFINITY, 1), (65_504.0, HIDDEN)] {
        let mut x = operands.x.clone();
        x[bad * HIDDEN + 17..][..spread.min(HIDDEN - 17)].fill(poison);
        let found = operands.run(&mut bed, Cluster::One, &x, rows);
        for row in 0..rows {
            let columns = row * HIDDEN..(row + 1) * HIDDEN;
            let (x, scale) = (&found.0[columns.clone()], found.2[row]);
            if row == bad {
                let is_bad = x.iter().all(|x| !x.is_finite()) && !scale.is_finite();
                assert!(is_bad, "{poison}: {scale}, {x:?}");
                continue;
            }
            assert_eq!(x, &good.0[columns.clone()], "{poison}, row {row}");
            assert_eq!(found.1[columns.clone()], good.1[columns], "row {row}");
            assert_eq!(scale, good.2[row], "row {row}");
        }
    }
}

/// Rows of zeros, with biases of zeros, are zeros as bytes, and finite.
pub fn zeros_stay_zeros(device: &mut dyn Device) {
    let mut bed = Bed::new(device, 10);
    let mut operands = Operands::new(&mut bed, 3, GROUP);
    for values in [
        &mut operands.x,
        &mut operands.widen.bias,
        &mut operands.narrow.bias,
        &mut operands.shift,
    ] {
        values.fill(0.0);
    }
    let (x, bytes, scales) = operands.run(&mut bed, Cluster::One, &operands.x, 3);
    assert!(x.iter().chain(&bytes).all(|x| *x == 0.0));
    assert!(scales.iter().all(|scale| scale.is_finite()));
}
