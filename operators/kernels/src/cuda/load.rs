//! Weights on their way to a device: rounded once, at the addresses that they will have, in one copy.

use half::f16;

use super::arena::{Arena, piece};
use super::device::{Device, Fault, Kind, Stage, Tensor};
use super::encoder::Output;
use super::int8::{self, Quantized, Rotation};
use super::norm::Norm;
use super::whole::LAYER_WORDS;
use crate::weights::Weights;

/// (weight `[outputs, inputs]`, bias `[1, outputs]`).
pub(super) type Dense = (Tensor, Tensor);

/// What a stage's states and weights are.
pub(super) fn kind_of(stage: Stage) -> Kind {
    match stage {
        Stage::Naive => Kind::F32,
        _ => Kind::F16,
    }
}

/// Bytes of a model's weights on a device; as bytes they take less than the room of their halves.
pub(super) fn room(weights: &Weights, output: &Output, stage: Stage) -> usize {
    let kind = kind_of(stage);
    let sized = |is_matrix: bool, len: usize| {
        let bytes = if is_matrix { kind.bytes() } else { 4 };
        piece(len * bytes)
    };
    let tensors = weights.tensors();
    let tensors = tensors.values();
    let mut room: usize = tensors
        .map(|(shape, values)| sized(shape.len() == 2, values.len()))
        .sum();
    // Addresses of all layers' weights and the word that blocks meet at, for `whole`.
    room += piece(weights.layers.len() * LAYER_WORDS * 8) + piece(8);
    if let Output::Logits(head) = output {
        for (weight, bias) in [&head.pooler, &head.classifier] {
            room += sized(true, weight.len()) + sized(false, bias.len());
        }
    }
    room
}

/// Collects tensors on the host, at the addresses that they will have, and sends them in one copy.
pub(super) struct Loader {
    kind: Kind,
    base: u64,
    bytes: Vec<u8>,
    room: usize,
}

impl Loader {
    pub(super) fn new(
        arena: &mut Arena,
        weights: &Weights,
        output: &Output,
        stage: Stage,
    ) -> Loader {
        let room = room(weights, output, stage);
        Loader {
            kind: kind_of(stage),
            base: arena.take(room),
            bytes: Vec::with_capacity(room),
            room,
        }
    }

    fn put(
        &mut self,
        rows: usize,
        columns: usize,
        kind: Kind,
        bytes: impl Iterator<Item = u8>,
    ) -> Tensor {
        let address = self.base + self.bytes.len() as u64;
        self.bytes.extend(bytes);
        self.bytes.resize(piece(self.bytes.len()), 0);
        Tensor {
            address,
            rows,
            columns,
            kind,
        }
    }

    pub(super) fn matrix(&mut self, values: &[f32], columns: usize) -> Result<Tensor, Fault> {
        let rows = values.len() / columns;
        if self.kind == Kind::F32 {
            let bytes = values.iter().flat_map(|x| x.to_le_bytes());
            return Ok(self.put(rows, columns, Kind::F32, bytes));
        }
        let most = f16::MAX.to_f32();
        if let Some(x) = values.iter().find(|x| x.is_nan() || x.abs() > most) {
            return Err(Fault::Unavailable(format!(
                "a weight is {x}, halves hold at most {most}: this model runs on the CPU"
            )));
        }
        let bytes = values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes());
        Ok(self.put(rows, columns, Kind::F16, bytes))
    }

    /// Words of 8 bytes, as pairs of ints: a row for each [`LAYER_WORDS`] of them.
    pub(super) fn words(&mut self, words: &[u64]) -> Tensor {
        let columns = words.len().min(LAYER_WORDS);
        let bytes = words.iter().flat_map(|word| word.to_le_bytes());
        self.put(words.len() / columns, 2 * columns, Kind::Int, bytes)
    }

    fn vector(&mut self, values: &[f32]) -> Tensor {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes());
        self.put(1, values.len(), Kind::F32, bytes)
    }

    pub(super) fn dense(&mut self, (weight, bias): &(Vec<f32>, Vec<f32>)) -> Result<Dense, Fault> {
        Ok((
            self.matrix(weight, weight.len() / bias.len())?,
            self.vector(bias),
        ))
    }

    /// A weight as bytes with its scales, and the bias.
    pub(super) fn quantized(
        &mut self,
        (weight, bias): &(Vec<f32>, Vec<f32>),
        rotation: Rotation,
    ) -> Result<(Quantized, Tensor), Fault> {
        let inputs = weight.len() / bias.len();
        if let Some(x) = weight.iter().find(|x| !x.is_finite()) {
            return Err(Fault::Unavailable(format!(
                "a weight is {x}, a byte stands for finite ones: this model runs on the CPU"
            )));
        }
        let (bytes, scales) = int8::quantize(weight, inputs, rotation);
        let bytes = bytes.into_iter().map(|byte| byte as u8);
        let quantized = Quantized {
            bytes: self.put(bias.len(), inputs, Kind::Byte, bytes),
            scales: self.vector(&scales),
        };
        Ok((quantized, self.vector(bias)))
    }

    pub(super) fn norm(&mut self, (gain, shift): &(Vec<f32>, Vec<f32>), epsilon: f32) -> Norm {
        Norm {
            gain: self.vector(gain),
            shift: self.vector(shift),
            epsilon,
        }
    }

    pub(super) fn finish(self, device: &mut dyn Device) -> Result<(), Fault> {
        assert!(
            self.bytes.len() <= self.room,
            "the sizes were added up before"
        );
        device.write(self.base, &self.bytes)
    }
}
