//! Launches of `cuda/pool.cu`: token states to vectors, and a cross-encoder's head.

use super::batch::OnDevice;
use super::device::{Arg, Fault, Kind, Launch, Placement, Stage, Tensor, blocks, int};
use super::norm::HIDDEN_MAX;
use crate::Pooling;

/// Where the block of `pool_f16` keeps its sums: 1,024 columns and one a warp.
const SHARED_BYTES: u32 = (1024 + 8) * 4;

fn per_output(kernel: &'static str, outputs: usize, args: Vec<Arg>) -> Result<Launch, Fault> {
    Ok(Launch {
        kernel,
        placement: Placement::Alone,
        grid: [blocks(outputs, 256)?, 1, 1],
        threads: 256,
        shared_bytes: 0,
        args,
    })
}

fn per_text(
    kernel: &'static str,
    texts: usize,
    shared_bytes: u32,
    args: Vec<Arg>,
) -> Result<Launch, Fault> {
    Ok(Launch {
        kernel,
        placement: Placement::Alone,
        grid: [blocks(texts, 1)?, 1, 1],
        threads: 256,
        shared_bytes,
        args,
    })
}

/// Unit vectors `out [texts, hidden]`, f32, of `x [capacity, hidden]`. Stage 0 makes two launches
/// through `scratch [texts, hidden]`.
pub fn pool(
    stage: Stage,
    batch: &OnDevice,
    x: Tensor,
    scratch: Tensor,
    out: Tensor,
    pooling: Pooling,
) -> Result<Vec<Launch>, Fault> {
    let (texts, hidden) = (batch.bucket.texts, x.columns);
    let is_mean = Arg::Int(i32::from(pooling == Pooling::Mean));
    out.expect("the vectors", texts, hidden, Kind::F32)?;
    let args = |to: Tensor| -> Result<Vec<Arg>, Fault> {
        Ok(vec![
            Arg::Address(batch.text_count.address),
            Arg::Address(batch.starts.address),
            Arg::Address(x.address),
            Arg::Address(to.address),
            int(hidden)?,
            is_mean,
        ])
    };
    if stage == Stage::Naive {
        x.expect("x", batch.bucket.tokens, hidden, Kind::F32)?;
        scratch.expect("scratch", texts, hidden, Kind::F32)?;
        let scale = vec![
            Arg::Address(batch.text_count.address),
            Arg::Address(scratch.address),
            Arg::Address(out.address),
            int(hidden)?,
        ];
        return Ok(vec![
            per_output("pool_naive", texts * hidden, args(scratch)?)?,
            per_output("scale_naive", texts * hidden, scale)?,
        ]);
    }
    x.expect("x", batch.bucket.tokens, hidden, Kind::F16)?;
    if hidden > HIDDEN_MAX || !hidden.is_multiple_of(4) {
        return Err(Fault::Shape(format!(
            "{hidden} columns, expected a multiple of 4 of at most {HIDDEN_MAX}"
        )));
    }
    Ok(vec![per_text("pool_f16", texts, SHARED_BYTES, args(out)?)?])
}

/// The first row of every text: `out [texts, hidden]`, of x's kind.
pub fn gather(stage: Stage, batch: &OnDevice, x: Tensor, out: Tensor) -> Result<Launch, Fault> {
    let (texts, hidden) = (batch.bucket.texts, x.columns);
    let kind = match stage {
        Stage::Naive => Kind::F32,
        _ => Kind::F16,
    };
    x.expect("x", batch.bucket.tokens, hidden, kind)?;
    out.expect("out", texts, hidden, kind)?;
    let args = vec![
        Arg::Address(batch.text_count.address),
        Arg::Address(batch.starts.address),
        Arg::Address(x.address),
        Arg::Address(out.address),
        int(hidden)?,
    ];
    match stage {
        Stage::Naive => per_output("gather_naive", texts * hidden, args),
        _ => per_text("gather_f16", texts, 0, args),
    }
}

/// `out [texts, labels]` in f32 `= pooled · Wᵀ + b`: stage 1's last step of classification, for few
/// labels. (Stage 0 uses its matrix product.)
pub fn logits(
    batch: &OnDevice,
    pooled: Tensor,
    weight: Tensor,
    bias: Tensor,
    out: Tensor,
) -> Result<Launch, Fault> {
    let (texts, hidden, labels) = (batch.bucket.texts, pooled.columns, weight.rows);
    pooled.expect("pooled", texts, hidden, Kind::F16)?;
    weight.expect("the weight", labels, hidden, Kind::F16)?;
    bias.expect("the bias", 1, labels, Kind::F32)?;
    out.expect("the logits", texts, labels, Kind::F32)?;
    let args = vec![
        Arg::Address(batch.text_count.address),
        Arg::Address(pooled.address),
        Arg::Address(weight.address),
        Arg::Address(bias.address),
        Arg::Address(out.address),
        int(hidden)?,
        int(labels)?,
    ];
    per_text("logits_f16", texts, 0, args)
}
