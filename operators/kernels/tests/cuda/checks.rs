//! Laws of single kernels: each equals its oracle at every size, touches nothing else, and a row's
//! result does not depend on its neighbours. Used by the emulated GPU's tests and the real one's.

use kernels::Pooling;
use kernels::cuda::cluster::{Cluster, Spread};
use kernels::cuda::device::{Device, Kind, Stage, Tensor};
use kernels::cuda::feed::Feed;
use kernels::cuda::join::{HIDDEN, Join};
use kernels::cuda::linear::{Epilogue, Linear};
use kernels::cuda::norm::{self, Norm, Tables};
use kernels::cuda::{attention, oracle, pool};

use super::bed::{Bed, bar, kind_of};

fn close(name: &str, stage: Stage, found: &[f64], expected: &[f64]) {
    let error = oracle::relative_error(found, expected);
    assert!(
        error <= bar(stage),
        "{name}, {stage:?}: relative error {error:.2e}"
    );
}

/// One product of `rows` of a capacity of more, on Hopper in clusters of every size; the bits are the same.
pub fn linear(
    device: &mut dyn Device,
    stage: Stage,
    epilogue: Epilogue,
    (rows, inputs, outputs): (usize, usize, usize),
) {
    let kind = kind_of(stage);
    let (capacity, multiprocessors) = (rows + 3, device.multiprocessors());
    let mut bed = Bed::new(device, (rows * 31 + inputs * 7 + outputs) as u64);
    let x = bed.numbers(rows * inputs, 1.0, kind);
    let w = bed.numbers(outputs * inputs, 1.0 / (inputs as f64).sqrt(), kind);
    let b = bed.numbers(outputs, 0.5, Kind::F32);
    let r = bed.numbers(rows * outputs, 1.0, kind);
    let residual =
        (epilogue == Epilogue::Residual).then(|| bed.tensor(&r, capacity, outputs, kind));
    let call = Linear {
        count: bed.ints(&[rows as u32]),
        x: bed.tensor(&x, capacity, inputs, kind),
        weight: bed.tensor(&w, outputs, inputs, kind),
        bias: bed.tensor(&b, 1, outputs, Kind::F32),
        residual,
        y: bed.poisoned(capacity, outputs, kind),
    };
    let made = clusters(stage).iter().map(|&cluster| {
        let y = bed.poisoned(capacity, outputs, kind);
        let call = Linear { y, ..call };
        bed.run(&[call
            .launch(stage, epilogue, spread(cluster, multiprocessors))
            .unwrap()]);
        bed.result(y, rows)
    });
    let found = all_equal(made);
    let expected = oracle::linear(&x, &w, &b, residual.map(|_| &r[..]), epilogue);
    close(
        &format!("linear {epilogue:?} {rows}×{inputs}×{outputs}"),
        stage,
        &found,
        &expected,
    );
}

/// A product's rows are bitwise the same wherever they lie in the batch.
pub fn linear_is_invariant(
    device: &mut dyn Device,
    stage: Stage,
    rows: usize,
    inputs: usize,
    outputs: usize,
) {
    let (kind, multiprocessors) = (kind_of(stage), device.multiprocessors());
    let mut bed = Bed::new(device, 5);
    let row = bed.numbers(inputs, 1.0, kind);
    let w = bed.numbers(outputs * inputs, 0.1, kind);
    let b = bed.numbers(outputs, 0.5, Kind::F32);
    let mut x = bed.numbers(rows * inputs, 1.0, kind);
    let places = [0, 1, rows / 2, rows - 1];
    for place in places {
        x[place * inputs..][..inputs].copy_from_slice(&row);
    }
    let mut product = |x: &[f64], rows: usize| {
        let call = Linear {
            count: bed.ints(&[rows as u32]),
            x: bed.tensor(x, rows, inputs, kind),
            weight: bed.tensor(&w, outputs, inputs, kind),
            bias: bed.tensor(&b, 1, outputs, Kind::F32),
            residual: None,
            y: bed.poisoned(rows, outputs, kind),
        };
        bed.run(&[call.launch(stage, Epilogue::Gelu, multiprocessors).unwrap()]);
        bed.result(call.y, rows)
    };
    let alone = product(&row, 1);
    let among = product(&x, rows);
    for place in places {
        assert_eq!(
            alone,
            among[place * outputs..][..outputs],
            "row {place} of {rows}"
        );
    }
}

/// x = LayerNorm(x + Y·Wᵀ + b) of `rows` of a capacity of more.
/// What a stage's products may gather in.
pub fn clusters(stage: Stage) -> &'static [Cluster] {
    match stage {
        Stage::Hopper => &Cluster::ALL,
        _ => &[Cluster::One],
    }
}

/// The results, which may not differ in a bit.
pub fn all_equal(results: impl Iterator<Item = Vec<f64>>) -> Vec<f64> {
    let equal = |first: Vec<f64>, other| {
        assert!(first == other, "clusters differ");
        first
    };
    results.reduce(equal).expect("a result")
}

/// More multiprocessors than an emulated device has, so that there are clusters of four.
pub fn spread(cluster: Cluster, multiprocessors: u32) -> Spread {
    Spread::from(multiprocessors.max(cluster.blocks())).by(cluster)
}

/// In clusters of every size; the bits are the same.
pub fn join(device: &mut dyn Device, rows: usize, inputs: usize) {
    let (capacity, multiprocessors) = (rows + 3, device.multiprocessors());
    let mut bed = Bed::new(device, (rows * 31 + inputs * 7) as u64);
    let operands = Operands::new(&mut bed, rows, inputs);
    let made = Cluster::ALL.map(|cluster| {
        let call = operands.call(&mut bed, &operands.from, &operands.x, rows, capacity);
        bed.run(&[call.launch(spread(cluster, multiprocessors)).unwrap()]);
        bed.result(call.x, rows)
    });
    let found = all_equal(made.into_iter());
    let Operands {
        from,
        weight,
        bias,
        gain,
        shift,
        x,
    } = &operands;
    let sums = oracle::linear(from, weight, bias, Some(x), Epilogue::Residual);
    let expected = oracle::norm(&sums, gain, shift, 1e-12);
    close(
        &format!("join {rows}×{inputs}"),
        Stage::Hopper,
        &found,
        &expected,
    );
}

/// A joined row is bitwise the same wherever it lies in the batch.
pub fn join_is_invariant(device: &mut dyn Device, rows: usize, inputs: usize) {
    let multiprocessors = device.multiprocessors();
    let mut bed = Bed::new(device, 6);
    let mut operands = Operands::new(&mut bed, rows, inputs);
    let own = |all: &[f64]| all[..all.len() / rows].to_vec();
    let (from, x) = (own(&operands.from), own(&operands.x));
    let places = [0, 1, rows / 2, rows - 1];
    for place in places {
        operands.from[place * inputs..][..inputs].copy_from_slice(&from);
        operands.x[place * HIDDEN..][..HIDDEN].copy_from_slice(&x);
    }
    let mut joined = |from: &[f64], x: &[f64], rows: usize| {
        let call = operands.call(&mut bed, from, x, rows, rows);
        bed.run(&[call.launch(spread(Cluster::Two, multiprocessors)).unwrap()]);
        bed.result(call.x, rows)
    };
    let alone = joined(&from, &x, 1);
    let among = joined(&operands.from, &operands.x, rows);
    for place in places {
        let found = &among[place * HIDDEN..][..HIDDEN];
        assert_eq!(alone, found, "row {place} of {rows}");
    }
}

/// x = LayerNorm(x + GELU(x·W1ᵀ + b1)·W2ᵀ + b2) of `rows` of a capacity of more, `wide` columns between.
/// In clusters of every size; the bits are the same.
pub fn feed(device: &mut dyn Device, rows: usize, wide: usize) {
    let mut bed = Bed::new(device, (rows * 31 + wide * 7) as u64);
    let operands = FeedOperands::new(&mut bed, rows, wide);
    let made =
        Cluster::ALL.map(|cluster| operands.run(&mut bed, cluster, &operands.x, rows, rows + 3));
    let found = all_equal(made.into_iter());
    let FeedOperands {
        widen,
        narrow,
        norm,
        x,
    } = &operands;
    let wider = oracle::linear(x, &widen.0, &widen.1, None, Epilogue::Gelu);
    let sums = oracle::linear(&wider, &narrow.0, &narrow.1, Some(x), Epilogue::Residual);
    let expected = oracle::norm(&sums, &norm.0, &norm.1, 1e-12);
    let name = format!("feed {rows}×{wide}");
    close(&name, Stage::Hopper, &found, &expected);
}

/// A fed row is bitwise the same wherever it lies in the batch.
pub fn feed_is_invariant(device: &mut dyn Device, rows: usize, wide: usize) {
    let mut bed = Bed::new(device, 7);
    let mut operands = FeedOperands::new(&mut bed, rows, wide);
    let own = operands.x[..HIDDEN].to_vec();
    let places = [0, 1, rows / 2, rows - 1];
    for place in places {
        operands.x[place * HIDDEN..][..HIDDEN].copy_from_slice(&own);
    }
    let alone = operands.run(&mut bed, Cluster::Two, &own, 1, 1);
    let among = operands.run(&mut bed, Cluster::Two, &operands.x, rows, rows);
    for place in places {
        let found = &among[place * HIDDEN..][..HIDDEN];
        assert_eq!(alone, found, "row {place} of {rows}");
    }
}

/// What a feed works on: weights with their biases, gain with shift.
struct FeedOperands {
    widen: (Vec<f64>, Vec<f64>),
    narrow: (Vec<f64>, Vec<f64>),
    norm: (Vec<f64>, Vec<f64>),
    x: Vec<f64>,
}

impl FeedOperands {
    fn new(bed: &mut Bed<'_>, rows: usize, wide: usize) -> FeedOperands {
        let mut dense = |outputs: usize, inputs: usize| {
            let spread = 1.0 / (inputs as f64).sqrt();
            let weight = bed.numbers(outputs * inputs, spread, Kind::F16);
            (weight, bed.numbers(outputs, 0.5, Kind::F32))
        };
        let (widen, narrow) = (dense(wide, HIDDEN), dense(HIDDEN, wide));
        let norm = [(); 2].map(|()| bed.numbers(HIDDEN, 1.0, Kind::F32));
        let [gain, shift] = norm;
        FeedOperands {
            widen,
            narrow,
            norm: (gain, shift),
            x: bed.numbers(rows * HIDDEN, 1.0, Kind::F16),
        }
    }

    fn run(
        &self,
        bed: &mut Bed<'_>,
        cluster: Cluster,
        x: &[f64],
        rows: usize,
        capacity: usize,
    ) -> Vec<f64> {
        let wide = self.widen.1.len();
        let row =
            |bed: &mut Bed<'_>, values: &[f64]| bed.tensor(values, 1, values.len(), Kind::F32);
        let call = Feed {
            count: bed.ints(&[rows as u32]),
            widen: (
                bed.tensor(&self.widen.0, wide, HIDDEN, Kind::F16),
                row(bed, &self.widen.1),
            ),
            narrow: (
                bed.tensor(&self.narrow.0, HIDDEN, wide, Kind::F16),
                row(bed, &self.narrow.1),
            ),
            norm: Norm {
                gain: row(bed, &self.norm.0),
                shift: row(bed, &self.norm.1),
                epsilon: 1e-12,
            },
            x: bed.tensor(x, capacity, HIDDEN, Kind::F16),
        };
        let multiprocessors = bed.device.multiprocessors();
        bed.run(&[call.launch(spread(cluster, multiprocessors)).unwrap()]);
        bed.result(call.x, rows)
    }
}

/// What a join works on. x has a large common part, which careless variances cancel in.
struct Operands {
    from: Vec<f64>,
    weight: Vec<f64>,
    bias: Vec<f64>,
    gain: Vec<f64>,
    shift: Vec<f64>,
    x: Vec<f64>,
}

impl Operands {
    fn new(bed: &mut Bed<'_>, rows: usize, inputs: usize) -> Operands {
        let spread = 1.0 / (inputs as f64).sqrt();
        let x = bed.numbers(rows * HIDDEN, 1.0, Kind::F16);
        Operands {
            from: bed.numbers(rows * inputs, 1.0, Kind::F16),
            weight: bed.numbers(HIDDEN * inputs, spread, Kind::F16),
            bias: bed.numbers(HIDDEN, 0.5, Kind::F32),
            gain: bed.numbers(HIDDEN, 1.0, Kind::F32),
            shift: bed.numbers(HIDDEN, 1.0, Kind::F32),
            x: x.iter()
                .map(|x| super::bed::rounded(x + 10.0, Kind::F16))
                .collect(),
        }
    }

    fn call(
        &self,
        bed: &mut Bed<'_>,
        from: &[f64],
        x: &[f64],
        rows: usize,
        capacity: usize,
    ) -> Join {
        let inputs = self.weight.len() / HIDDEN;
        Join {
            count: bed.ints(&[rows as u32]),
            from: bed.tensor(from, capacity, inputs, Kind::F16),
            weight: bed.tensor(&self.weight, HIDDEN, inputs, Kind::F16),
            bias: bed.tensor(&self.bias, 1, HIDDEN, Kind::F32),
            norm: Norm {
                gain: bed.tensor(&self.gain, 1, HIDDEN, Kind::F32),
                shift: bed.tensor(&self.shift, 1, HIDDEN, Kind::F32),
                epsilon: 1e-12,
            },
            x: bed.tensor(x, capacity, HIDDEN, Kind::F16),
        }
    }
}

pub fn attention(
    device: &mut dyn Device,
    stage: Stage,
    heads: usize,
    width: usize,
    lengths: &[usize],
) {
    let (kind, hidden) = (kind_of(stage), heads * width);
    let multiprocessors = device.multiprocessors();
    let mut bed = Bed::new(device, lengths.iter().sum::<usize>() as u64);
    let (batch, _, starts) = bed.batch(lengths, 100);
    let (rows, capacity) = (*starts.last().unwrap(), batch.bucket.tokens);
    // Spread 2: softmax is far from flat, and some maxima come late, so that sums are rescaled.
    let qkv = bed.numbers(rows * 3 * hidden, 2.0, kind);
    let on_device = bed.tensor(&qkv, capacity, 3 * hidden, kind);
    let context = bed.poisoned(capacity, hidden, kind);
    bed.run(&[
        attention::launch(stage, &batch, on_device, context, heads, multiprocessors).unwrap(),
    ]);
    let found = bed.result(context, rows);
    let expected = oracle::attention(&starts, &qkv, hidden, heads);
    for (text, span) in starts.windows(2).enumerate() {
        let part = span[0] * hidden..span[1] * hidden;
        let name = format!(
            "attention d{width}, text {text} of {} rows",
            span[1] - span[0]
        );
        close(&name, stage, &found[part.clone()], &expected[part]);
    }
}

/// States as planes of `capacity` rows, for a kernel that takes queries scaled; NaN behind the rows of each. The oracle
/// gets those queries divided by the scale, exactly as they are.
struct Planes {
    /// As the oracle reads them.
    qkv: Vec<f64>,
    heads: usize,
}

impl Planes {
    fn new(bed: &mut Bed<'_>, rows: usize, heads: usize) -> Planes {
        let hidden = heads * attention::WIDTH;
        let mut qkv = bed.numbers(rows * 3 * hidden, 2.0, Kind::F16);
        for row in qkv.chunks_mut(3 * hidden) {
            for q in &mut row[..hidden] {
                let scaled = super::bed::rounded(*q * attention::QUERY_SCALE, Kind::F16);
                *q = scaled / attention::QUERY_SCALE;
            }
        }
        Planes { qkv, heads }
    }

    /// On the device, the rows in this order.
    fn tensor(&self, bed: &mut Bed<'_>, rows: &[usize], capacity: usize) -> Tensor {
        let (width, hidden) = (attention::WIDTH, self.heads * attention::WIDTH);
        let mut values = Vec::new();
        for plane in 0..3 * self.heads {
            let scale = if plane < self.heads {
                attention::QUERY_SCALE
            } else {
                1.0
            };
            for row in rows {
                let from = row * 3 * hidden + plane * width;
                values.extend(self.qkv[from..][..width].iter().map(|x| x * scale));
            }
            values.resize((plane + 1) * capacity * width, f64::NAN);
        }
        bed.tensor(&values, 3 * self.heads * capacity, width, Kind::F16)
    }

    /// The context of texts of these lengths, whose rows are `rows` of all.
    fn run(&self, bed: &mut Bed<'_>, rows: &[usize], lengths: &[usize]) -> Vec<f64> {
        let multiprocessors = bed.device.multiprocessors();
        let (batch, _, _) = bed.batch(lengths, 100);
        let planes = self.tensor(bed, rows, batch.bucket.tokens);
        let context = bed.poisoned(
            batch.bucket.tokens,
            self.heads * attention::WIDTH,
            Kind::F16,
        );
        let launch = attention::launch_heads(&batch, planes, context, multiprocessors);
        bed.run(&[launch.unwrap()]);
        bed.result(context, rows.len())
    }
}

/// Attention by heads equals the oracle.
pub fn attention_heads(device: &mut dyn Device, heads: usize, lengths: &[usize]) {
    let hidden = heads * attention::WIDTH;
    let rows: usize = lengths.iter().sum();
    let mut bed = Bed::new(device, rows as u64);
    let planes = Planes::new(&mut bed, rows, heads);
    let found = planes.run(&mut bed, &(0..rows).collect::<Vec<_>>(), lengths);
    let mut starts = vec![0];
    starts.extend(lengths.iter().scan(0, |end, length| {
        *end += length;
        Some(*end)
    }));
    let expected = oracle::attention(&starts, &planes.qkv, hidden, heads);
    for (text, span) in starts.windows(2).enumerate() {
        let part = span[0] * hidden..span[1] * hidden;
        let rows = span[1] - span[0];
        let name = format!("attention by heads, text {text} of {rows} rows in {lengths:?}");
        close(&name, Stage::Hopper, &found[part.clone()], &expected[part]);
    }
}

/// A text's context is bitwise the same alone and among others, in whatever slots and buckets they make it lie, and
/// though the others' states are not finite.
pub fn attention_heads_is_invariant(
    device: &mut dyn Device,
    length: usize,
    neighbours: &[(&[usize], &[usize])],
) {
    let heads = 2;
    let most = neighbours.iter().map(|(before, after)| {
        let others = before.iter().chain(*after);
        others.sum::<usize>()
    });
    let mut bed = Bed::new(device, length as u64);
    let rows = length + most.max().unwrap_or(0);
    let planes = Planes::new(&mut bed, rows, heads);
    let own: Vec<usize> = (0..length).collect();
    let alone = planes.run(&mut bed, &own, &[length]);
    for (before, after) in neighbours {
        let first: usize = before.iter().sum();
        let others: Vec<usize> = (length..length + first + after.iter().sum::<usize>()).collect();
        let rows = [&others[..first], &own, &others[first..]].concat();
        let lengths = [before, &[length][..], after].concat();
        let hidden = heads * attention::WIDTH;
        let mut poisoned = Planes {
            qkv: planes.qkv.clone(),
            heads,
        };
        poisoned.qkv[length * 3 * hidden..].fill(f64::NAN);
        for (planes, what) in [(&planes, "others"), (&poisoned, "NaN")] {
            let among = planes.run(&mut bed, &rows, &lengths);
            let found = &among[first * hidden..][..length * hidden];
            assert_eq!(alone, found, "a text of {length} among {lengths:?}, {what}");
        }
    }
}

/// Rows of a product that writes planes, [3 · heads · capacity, 32], as one that writes rows has them.
pub(crate) fn rows_of_planes(planes: &[f64], capacity: usize, rows: usize) -> Vec<f64> {
    let width = attention::WIDTH;
    let count = planes.len() / (capacity * width);
    let at = |row: usize, plane: usize| &planes[(plane * capacity + row) * width..][..width];
    let all = (0..rows).flat_map(|row| (0..count).flat_map(move |plane| at(row, plane)));
    all.copied().collect()
}

/// The product that writes planes equals the oracle, and writes nothing behind the rows of any plane, in clusters of
/// every size.
pub fn linear_heads(device: &mut dyn Device, (rows, inputs, outputs): (usize, usize, usize)) {
    let (capacity, multiprocessors) = (rows + 3, device.multiprocessors());
    let mut bed = Bed::new(device, (rows * 31 + inputs * 7 + outputs) as u64);
    let x = bed.numbers(rows * inputs, 1.0, Kind::F16);
    let w = bed.numbers(outputs * inputs, 1.0 / (inputs as f64).sqrt(), Kind::F16);
    let b = bed.numbers(outputs, 0.5, Kind::F32);
    let call = Linear {
        count: bed.ints(&[rows as u32]),
        x: bed.tensor(&x, capacity, inputs, Kind::F16),
        weight: bed.tensor(&w, outputs, inputs, Kind::F16),
        bias: bed.tensor(&b, 1, outputs, Kind::F32),
        residual: None,
        y: bed.poisoned(0, attention::WIDTH, Kind::F16),
    };
    let made = Cluster::ALL.map(|cluster| {
        let planes = outputs / attention::WIDTH * capacity;
        let y = bed.poisoned(planes, attention::WIDTH, Kind::F16);
        let call = Linear { y, ..call };
        let launch = call.launch_heads(spread(cluster, multiprocessors));
        bed.run(&[launch.unwrap()]);
        bed.planes(y, capacity, rows)
    });
    let found = all_equal(made.into_iter());
    let expected = oracle::linear(&x, &w, &b, None, Epilogue::Bias);
    let name = format!("linear by heads {rows}×{inputs}×{outputs}");
    close(
        &name,
        Stage::Hopper,
        &rows_of_planes(&found, capacity, rows),
        &expected,
    );
}

pub fn embed_and_norm(device: &mut dyn Device, stage: Stage, hidden: usize, lengths: &[usize]) {
    let kind = kind_of(stage);
    let mut bed = Bed::new(device, hidden as u64);
    let (batch, texts, starts) = bed.batch(lengths, 50);
    let (rows, capacity) = (*starts.last().unwrap(), batch.bucket.tokens);
    let longest = lengths.iter().copied().max().unwrap_or(1).max(1);
    let words = bed.numbers(50 * hidden, 1.0, kind);
    let positions = bed.numbers(longest * hidden, 1.0, kind);
    let segments = bed.numbers(2 * hidden, 1.0, kind);
    let gain = bed.numbers(hidden, 1.0, Kind::F32);
    let shift = bed.numbers(hidden, 1.0, Kind::F32);
    let norm = Norm {
        gain: bed.tensor(&gain, 1, hidden, Kind::F32),
        shift: bed.tensor(&shift, 1, hidden, Kind::F32),
        epsilon: 1e-12,
    };
    let tables = Tables {
        words: bed.tensor(&words, 50, hidden, kind),
        positions: bed.tensor(&positions, longest, hidden, kind),
        segments: bed.tensor(&segments, 2, hidden, kind),
    };
    let (scratch, out) = (
        bed.poisoned(capacity, hidden, kind),
        bed.poisoned(capacity, hidden, kind),
    );
    bed.run(&norm::embed(stage, &batch, &tables, &norm, scratch, out).unwrap());
    let found = bed.result(out, rows);
    let mut sums = Vec::new();
    for text in &texts {
        for (at, &id) in text.ids.iter().enumerate() {
            let segment = usize::from(text.second.is_some_and(|second| at >= second));
            sums.extend((0..hidden).map(|c| {
                words[id as usize * hidden + c]
                    + positions[at * hidden + c]
                    + segments[segment * hidden + c]
            }));
        }
    }
    close(
        "embed",
        stage,
        &found,
        &oracle::norm(&sums, &gain, &shift, 1e-12),
    );
    // x + y, in place where the stage can; a large common part, which careless variances cancel in.
    let x: Vec<f64> = bed
        .numbers(rows * hidden, 1.0, kind)
        .iter()
        .map(|x| super::bed::rounded(x + 10.0, kind))
        .collect();
    let y = bed.numbers(rows * hidden, 1.0, kind);
    let on_device = bed.tensor(&x, capacity, hidden, kind);
    let (other, to) = match stage {
        Stage::Naive => (None, bed.poisoned(capacity, hidden, kind)),
        _ => (Some(bed.tensor(&y, capacity, hidden, kind)), on_device),
    };
    bed.run(&[norm::add_norm(stage, batch.token_count, on_device, other, &norm, to).unwrap()]);
    let found = bed.result(to, rows);
    let sums: Vec<f64> = match stage {
        Stage::Naive => x,
        _ => x.iter().zip(&y).map(|(x, y)| x + y).collect(),
    };
    close(
        "norm",
        stage,
        &found,
        &oracle::norm(&sums, &gain, &shift, 1e-12),
    );
}

pub fn pooling(device: &mut dyn Device, stage: Stage, hidden: usize, lengths: &[usize]) {
    let kind = kind_of(stage);
    let mut bed = Bed::new(device, hidden as u64);
    let (batch, _, starts) = bed.batch(lengths, 50);
    let (rows, texts) = (*starts.last().unwrap(), lengths.len());
    let x = bed.numbers(rows * hidden, 1.0, kind);
    let on_device = bed.tensor(&x, batch.bucket.tokens, hidden, kind);
    for pooling in [Pooling::Mean, Pooling::Cls] {
        let (scratch, out) = (
            bed.poisoned(batch.bucket.texts, hidden, Kind::F32),
            bed.poisoned(batch.bucket.texts, hidden, Kind::F32),
        );
        bed.run(&pool::pool(stage, &batch, on_device, scratch, out, pooling).unwrap());
        let found = bed.result(out, texts);
        let expected = oracle::pool(&starts, &x, hidden, pooling == Pooling::Mean);
        // Sums are in f32 and the result is too: both stages are held to it.
        close(
            &format!("pool {pooling:?}"),
            Stage::Naive,
            &found,
            &expected,
        );
    }
    let first = bed.poisoned(batch.bucket.texts, hidden, kind);
    bed.run(&[pool::gather(stage, &batch, on_device, first).unwrap()]);
    let found = bed.result(first, texts);
    let expected: Vec<f64> = starts[..texts]
        .iter()
        .flat_map(|&s| x[s * hidden..][..hidden].to_vec())
        .collect();
    assert_eq!(found, expected);
    if stage == Stage::Naive {
        return;
    }
    for labels in [1, 3, 9] {
        let w = bed.numbers(labels * hidden, 0.1, kind);
        let b = bed.numbers(labels, 0.5, Kind::F32);
        let weight = bed.tensor(&w, labels, hidden, kind);
        let bias = bed.tensor(&b, 1, labels, Kind::F32);
        let out = bed.poisoned(batch.bucket.texts, labels, Kind::F32);
        bed.run(&[pool::logits(&batch, first, weight, bias, out).unwrap()]);
        let found = bed.result(out, texts);
        close(
            "logits",
            stage,
            &found,
            &oracle::linear(&expected, &w, &b, None, Epilogue::Bias),
        );
    }
}
