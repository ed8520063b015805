//! The bed that kernels are tested in: random tensors, poison, canaries; any [`Device`].

use half::f16;
use kernels::cuda::batch::{Batch, Bucket, OnDevice, Text};
use kernels::cuda::device::{Device, Kind, Launch, Stage, Stream, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What every row behind a tensor's last holds, and what is checked afterwards.
const CANARY: u8 = 0xa5;
/// What an output holds before: neither NaN, which arithmetic on NaN could give again, nor a sane number.
const UNWRITTEN: u8 = 0xee;
const CANARY_ROWS: usize = 2;

pub struct Bed<'a> {
    pub device: &'a mut dyn Device,
    pub rng: ChaCha8Rng,
    stream: Stream,
    canaries: Vec<(u64, usize)>,
    /// Tensors whose unused rows hold NaN; all others' hold [`UNWRITTEN`].
    inputs: Vec<u64>,
}

impl<'a> Bed<'a> {
    pub fn new(device: &'a mut dyn Device, seed: u64) -> Self {
        let stream = device.stream(false).unwrap();
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Bed {
            device,
            rng,
            stream,
            canaries: Vec::new(),
            inputs: Vec::new(),
        }
    }

    /// Numbers around 0 with this spread, rounded to what the kind can hold (bytes stand for fiftieths).
    pub fn numbers(&mut self, count: usize, spread: f64, kind: Kind) -> Vec<f64> {
        let mut draw = || {
            let sum: f64 = (0..4).map(|_| self.rng.random_range(-1.0..1.0)).sum();
            sum * spread * 0.866
        };
        (0..count).map(|_| rounded(draw(), kind)).collect()
    }

    /// A tensor of `capacity` rows: `values` first, NaN behind them, canaries past its end.
    pub fn tensor(
        &mut self,
        values: &[f64],
        capacity: usize,
        columns: usize,
        kind: Kind,
    ) -> Tensor {
        let tensor = self.poisoned(capacity, columns, kind);
        let mut bytes = vec![0xff; tensor.bytes()];
        let used = bytes_of(values, kind);
        bytes[..used.len()].copy_from_slice(&used);
        self.device.write(tensor.address, &bytes).unwrap();
        self.inputs.push(tensor.address);
        tensor
    }

    /// A tensor for results, canaries past its end.
    pub fn poisoned(&mut self, capacity: usize, columns: usize, kind: Kind) -> Tensor {
        let (bytes, past) = (
            capacity * columns * kind.bytes(),
            CANARY_ROWS * columns * kind.bytes(),
        );
        let address = self.device.allocate(bytes + past).unwrap();
        self.device.write(address, &vec![UNWRITTEN; bytes]).unwrap();
        self.device
            .write(address + bytes as u64, &vec![CANARY; past])
            .unwrap();
        self.canaries.push((address + bytes as u64, past));
        Tensor {
            address,
            rows: capacity,
            columns,
            kind,
        }
    }

    pub fn ints(&mut self, values: &[u32]) -> Tensor {
        let address = self.device.allocate(values.len().max(1) * 4).unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.device.write(address, &bytes).unwrap();
        Tensor {
            address,
            rows: values.len(),
            columns: 1,
            kind: Kind::Int,
        }
    }

    /// A packed batch of texts with random ids below `vocabulary`; starts of texts on the host.
    pub fn batch(
        &mut self,
        lengths: &[usize],
        vocabulary: u32,
    ) -> (OnDevice, Vec<Text>, Vec<usize>) {
        let mut batch = Batch::new();
        let (mut texts, mut starts) = (Vec::new(), vec![0]);
        for &length in lengths {
            let ids = (0..length)
                .map(|_| self.rng.random_range(0..vocabulary))
                .collect();
            let second = self
                .rng
                .random_bool(0.5)
                .then(|| self.rng.random_range(0..length));
            let text = Text { ids, second };
            batch.push(&text);
            texts.push(text);
            starts.push(batch.tokens());
        }
        let bucket = Bucket::holding(batch.tokens(), batch.texts()).expect("a bucket");
        // 0xff: what a kernel reads past the counts is an absurd id and an absurd tile.
        let mut block = vec![0xff; bucket.bytes()];
        batch.write(bucket, &mut block);
        let address = self.device.allocate(block.len()).unwrap();
        self.device.write(address, &block).unwrap();
        (OnDevice::new(bucket, address), texts, starts)
    }

    pub fn run(&mut self, launches: &[Launch]) {
        for launch in launches {
            let done = self.device.launch(self.stream, launch);
            done.unwrap_or_else(|fault| panic!("{}: {fault}", launch.kernel()));
        }
        self.device.synchronize(self.stream).unwrap();
    }

    /// All of a tensor of planes, of whose rows the first `rows` are checked to be followed by untouched ones.
    pub fn planes(&mut self, tensor: Tensor, capacity: usize, rows: usize) -> Vec<f64> {
        let all = self.result(tensor, tensor.rows);
        let untouched = values_of(&[UNWRITTEN; 2], Kind::F16)[0];
        for plane in all.chunks(capacity * tensor.columns) {
            let behind = &plane[rows * tensor.columns..];
            assert!(
                behind.iter().all(|&x| x == untouched),
                "rows past the count of a plane were written"
            );
        }
        all
    }

    /// The first `rows` rows, checked to be followed by untouched ones and canaries.
    pub fn result(&mut self, tensor: Tensor, rows: usize) -> Vec<f64> {
        let mut bytes = vec![0; tensor.bytes()];
        self.device.read(tensor.address, &mut bytes).unwrap();
        let untouched = if self.inputs.contains(&tensor.address) {
            0xff
        } else {
            UNWRITTEN
        };
        let used = rows * tensor.columns * tensor.kind.bytes();
        assert!(
            bytes[used..].iter().all(|&b| b == untouched),
            "rows past the count were written"
        );
        for &(address, past) in &self.canaries {
            let mut found = vec![0; past];
            self.device.read(address, &mut found).unwrap();
            assert!(
                found.iter().all(|&b| b == CANARY),
                "a canary was overwritten"
            );
        }
        values_of(&bytes[..used], tensor.kind)
    }
}

pub fn rounded(x: f64, kind: Kind) -> f64 {
    match kind {
        Kind::F16 => f16::from_f64(x).to_f64(),
        Kind::Byte => (x * 50.0).round().clamp(-127.0, 127.0),
        _ => f64::from(x as f32),
    }
}

pub fn bytes_of(values: &[f64], kind: Kind) -> Vec<u8> {
    match kind {
        Kind::F16 => values
            .iter()
            .flat_map(|&x| f16::from_f64(x).to_le_bytes())
            .collect(),
        Kind::Byte => values.iter().map(|&x| x as i8 as u8).collect(),
        _ => values
            .iter()
            .flat_map(|&x| (x as f32).to_le_bytes())
            .collect(),
    }
}

fn values_of(bytes: &[u8], kind: Kind) -> Vec<f64> {
    match kind {
        Kind::F16 => {
            let pairs = bytes.chunks_exact(2);
            pairs
                .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f64())
                .collect()
        }
        Kind::Byte => bytes.iter().map(|&b| f64::from(b as i8)).collect(),
        _ => {
            let fours = bytes.chunks_exact(4);
            fours
                .map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])))
                .collect()
        }
    }
}

pub fn kind_of(stage: Stage) -> Kind {
    match stage {
        Stage::Naive => Kind::F32,
        _ => Kind::F16,
    }
}

/// The bar for an operation's relative error.
pub fn bar(stage: Stage) -> f64 {
    match stage {
        Stage::Naive => 1e-5,
        _ => 2e-3,
    }
}
