//! Launches of `cuda/norm.cu`: embedding tables, residual sums and LayerNorm.

use super::batch::OnDevice;
use super::device::{Arg, Fault, Kind, Launch, Placement, Stage, Tensor, blocks, int};
use super::int8::{GROUP, Quantized};

/// Columns that a warp of stage 1 can hold.
pub const HIDDEN_MAX: usize = 1024;

/// LayerNorm's parameters on the device, f32, `[1, hidden]` each.
#[derive(Debug, Clone, Copy)]
pub struct Norm {
    /// Multiplied.
    pub gain: Tensor,
    /// Added.
    pub shift: Tensor,
    /// Added to the variance.
    pub epsilon: f32,
}

/// The three tables, `[…, hidden]`.
#[derive(Debug, Clone, Copy)]
pub struct Tables {
    /// By id.
    pub words: Tensor,
    /// By position.
    pub positions: Tensor,
    /// By segment.
    pub segments: Tensor,
}

fn kind_of(stage: Stage) -> Kind {
    match stage {
        Stage::Naive => Kind::F32,
        _ => Kind::F16,
    }
}

fn check(norm: &Norm, hidden: usize, stage: Stage) -> Result<(), Fault> {
    norm.gain.expect("the gain", 1, hidden, Kind::F32)?;
    norm.shift.expect("the shift", 1, hidden, Kind::F32)?;
    if stage != Stage::Naive && (hidden > HIDDEN_MAX || !hidden.is_multiple_of(4)) {
        return Err(Fault::Shape(format!(
            "{hidden} columns, expected a multiple of 4 of at most {HIDDEN_MAX}"
        )));
    }
    Ok(())
}

/// `out = word + position + segment`, normalised. Stage 0 makes two launches through `scratch`,
/// stage 1 one without it. `out` and `scratch` are `[capacity, hidden]`.
///
/// Cost: memory, 4 rows a token. Ids and places must lie inside the tables: [`super::Batch`] is
/// filled from texts that [`super::service::checker`] checked.
pub fn embed(
    stage: Stage,
    batch: &OnDevice,
    tables: &Tables,
    norm: &Norm,
    scratch: Tensor,
    out: Tensor,
) -> Result<Vec<Launch>, Fault> {
    let (tokens, hidden, kind) = (batch.bucket.tokens, out.columns, kind_of(stage));
    for (name, table) in [
        ("words", tables.words),
        ("positions", tables.positions),
        ("segments", tables.segments),
    ] {
        table.expect(name, 1, hidden, kind)?;
    }
    out.expect("out", tokens, hidden, kind)?;
    check(norm, hidden, stage)?;
    let mut args = vec![
        Arg::Address(batch.token_count.address),
        Arg::Address(batch.ids.address),
        Arg::Address(batch.places.address),
        Arg::Address(tables.words.address),
        Arg::Address(tables.positions.address),
        Arg::Address(tables.segments.address),
    ];
    if stage == Stage::Naive {
        scratch.expect("scratch", tokens, hidden, kind)?;
        args.extend([Arg::Address(scratch.address), int(hidden)?]);
        let sum = Launch {
            kernel: "embed_naive",
            placement: Placement::Alone,
            grid: [blocks(tokens * hidden, 256)?, 1, 1],
            threads: 256,
            shared_bytes: 0,
            args,
        };
        let done = add_norm(stage, batch.token_count, scratch, None, norm, out)?;
        return Ok(vec![sum, done]);
    }
    args.extend([
        Arg::Address(out.address),
        Arg::Address(norm.gain.address),
        Arg::Address(norm.shift.address),
        int(hidden)?,
        Arg::Float(norm.epsilon),
    ]);
    Ok(vec![Launch {
        kernel: "embed_f16",
        placement: Placement::Alone,
        grid: [blocks(tokens, 8)?, 1, 1],
        threads: 256,
        shared_bytes: 0,
        args,
    }])
}

/// `out = LayerNorm(x + y)`, rows of `[capacity, hidden]`. Stage 1 may have `out = x`; stage 0 adds
/// nothing (its products do) and may not work in place.
pub fn add_norm(
    stage: Stage,
    count: Tensor,
    x: Tensor,
    y: Option<Tensor>,
    norm: &Norm,
    out: Tensor,
) -> Result<Launch, Fault> {
    let (rows, hidden, kind) = (x.rows, x.columns, kind_of(stage));
    count.expect("the count", 1, 1, Kind::Int)?;
    x.expect("x", rows, hidden, kind)?;
    out.expect("out", rows, hidden, kind)?;
    if let Some(y) = y {
        y.expect("y", rows, hidden, kind)?;
    }
    check(norm, hidden, stage)?;
    let parameters = [
        Arg::Address(out.address),
        Arg::Address(norm.gain.address),
        Arg::Address(norm.shift.address),
        int(hidden)?,
        Arg::Float(norm.epsilon),
    ];
    let mut args = vec![Arg::Address(count.address), Arg::Address(x.address)];
    if stage == Stage::Naive {
        if y.is_some() || x.address == out.address {
            return Err(Fault::Shape(
                "stage 0 normalises one tensor into another".to_owned(),
            ));
        }
        args.extend(parameters);
        return Ok(Launch {
            kernel: "norm_naive",
            placement: Placement::Alone,
            grid: [blocks(rows * hidden, 256)?, 1, 1],
            threads: 256,
            shared_bytes: 0,
            args,
        });
    }
    args.push(Arg::Address(y.map_or(0, |y| y.address)));
    args.extend(parameters);
    Ok(Launch {
        kernel: "add_norm_f16",
        placement: Placement::Alone,
        grid: [blocks(rows, 8)?, 1, 1],
        threads: 256,
        shared_bytes: 0,
        args,
    })
}

/// [`embed`] of halves, with the rows as bytes too, rotated by [`super::int8::Rotation::Columns`].
pub fn embed_int8(
    batch: &OnDevice,
    tables: &Tables,
    norm: &Norm,
    out: Tensor,
    bytes: Quantized,
) -> Result<Launch, Fault> {
    // Only stage 0 needs scratch.
    let mut launches = embed(Stage::Hopper, batch, tables, norm, out, out)?;
    with_bytes("embed_int8", launches.remove(0), out, bytes)
}

/// [`add_norm`] of halves, with the rows as bytes too.
pub fn add_norm_int8(
    count: Tensor,
    x: Tensor,
    y: Option<Tensor>,
    norm: &Norm,
    out: Tensor,
    bytes: Quantized,
) -> Result<Launch, Fault> {
    let launch = add_norm(Stage::Hopper, count, x, y, norm, out)?;
    with_bytes("add_norm_int8", launch, out, bytes)
}

/// The same launch of the kernel that makes bytes of its rows too: it takes two more addresses.
fn with_bytes(
    kernel: &'static str,
    mut launch: Launch,
    out: Tensor,
    Quantized { bytes, scales }: Quantized,
) -> Result<Launch, Fault> {
    let (rows, hidden) = (out.rows, out.columns);
    bytes.expect("the rows' bytes", rows, hidden, Kind::Byte)?;
    scales.expect("the rows' scales", rows, 1, Kind::F32)?;
    if !hidden.is_multiple_of(GROUP) {
        return Err(Fault::Shape(format!(
            "{hidden} columns as bytes, expected a multiple of {GROUP}"
        )));
    }
    launch.kernel = kernel;
    launch
        .args
        .extend([bytes.address, scales.address].map(Arg::Address));
    Ok(launch)
}
