//! Launches of `cuda/linear.cu` and `cuda/linear_hopper.cu`: Y = epilogue(X·Wᵀ + b).

use super::attention::WIDTH;
use super::cluster::{Cluster, Spread};
use super::device::{Arg, Fault, Kind, Launch, Placement, Stage, Tensor, blocks, int};
use super::load::kind_of;

/// What happens to the sums before they are stored. The order is `numbers::Epilogue`'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// Nothing but the bias.
    Bias,
    /// GELU: with the exact error function on stage 0, else within rounding to halves of it.
    Gelu,
    /// A residual is added.
    Residual,
    /// Hyperbolic tangent: BERT's pooler.
    Tanh,
}

/// The operands of a product.
#[derive(Debug, Clone, Copy)]
pub struct Linear {
    /// One `int` on the device: how many rows the batch really has.
    pub count: Tensor,
    /// `[capacity, inputs]`.
    pub x: Tensor,
    /// `[outputs, inputs]`, as checkpoints have it.
    pub weight: Tensor,
    /// `[1, outputs]` in f32.
    pub bias: Tensor,
    /// `[capacity, outputs]`; with [`Epilogue::Residual`] only. May not be `y`.
    pub residual: Option<Tensor>,
    /// `[capacity, outputs]`.
    pub y: Tensor,
}

/// Rows and columns of Y that a block of stage 1 makes.
pub const TILE: usize = 128;
/// Its ring of three stages of two 128×32 operands.
const SHARED_BYTES: u32 = 3 * 2 * 128 * 32 * 2;

/// Planes of 32 columns that `outputs` columns are.
pub(super) fn planes(outputs: usize) -> Result<usize, Fault> {
    if outputs.is_multiple_of(WIDTH) {
        return Ok(outputs / WIDTH);
    }
    Err(Fault::Shape(format!(
        "{outputs} columns in planes of {WIDTH}"
    )))
}

/// Columns of a box that stage 2's copy engine brings: 128 bytes, its widest swizzle.
const HOPPER_DEPTH: usize = 64;
/// Columns of a tile of stage 2, whose rows are as many: [`TILE`].
pub(super) const HOPPER_COLUMNS: usize = 192;
/// Room to begin at a multiple of 1,024, a ring of three stages of 128 and 192 rows of 128 bytes, two finished tiles of
/// halves, six barriers.
pub(super) const HOPPER_SHARED_BYTES: u32 = 1024 + 3 * (128 + 192) * 128 + 2 * 128 * 192 * 2 + 48;

impl Linear {
    /// The launch on a stage; stage 2's grid has a block a multiprocessor at most. Cost: 2 · rows · inputs · outputs operations.
    pub fn launch(
        &self,
        stage: Stage,
        epilogue: Epilogue,
        spread: impl Into<Spread>,
    ) -> Result<Launch, Fault> {
        self.check(stage, epilogue)?;
        match stage {
            Stage::Naive => self.naive(epilogue),
            Stage::TensorCore => self.tensor_core(epilogue),
            Stage::Hopper => {
                let (names, spread) = hopper_names(epilogue, spread.into());
                self.hopper(names, spread)
            }
        }
    }

    /// The launch that writes planes of 32 columns, for [`super::attention::launch_heads`]: `y` is `[outputs / 32 ·
    /// capacity, 32]`, where x has `capacity` rows. Hopper; with the bias.
    pub fn launch_heads(&self, spread: impl Into<Spread>) -> Result<Launch, Fault> {
        let (outputs, capacity) = (self.weight.rows, self.x.rows);
        self.check_operands(Stage::Hopper)?;
        let planes = planes(outputs)?;
        self.y
            .expect("the planes", planes * capacity, WIDTH, Kind::F16)?;
        let names = [
            "linear_hopper_heads",
            "linear_hopper_heads_by2",
            "linear_hopper_heads_by4",
        ];
        let mut launch = self.hopper(names, spread.into())?;
        launch.args.remove(4); // the residual
        launch.args.push(int(capacity)?);
        Ok(launch)
    }

    fn check(&self, stage: Stage, epilogue: Epilogue) -> Result<(), Fault> {
        let kind = kind_of(stage);
        self.check_operands(stage)?;
        self.y.expect("y", self.x.rows, self.weight.rows, kind)?;
        if let Some(residual) = self.residual {
            residual.expect("the residual", self.x.rows, self.weight.rows, kind)?;
            if residual.address == self.y.address {
                return Err(Fault::Shape("the residual is also the output".to_owned()));
            }
        }
        if self.residual.is_some() != (epilogue == Epilogue::Residual) {
            return Err(Fault::Shape(
                "a residual comes with its epilogue, and only then".to_owned(),
            ));
        }
        Ok(())
    }

    fn check_operands(&self, stage: Stage) -> Result<(), Fault> {
        let (inputs, outputs) = (self.weight.columns, self.weight.rows);
        let kind = kind_of(stage);
        self.count.expect("the count", 1, 1, Kind::Int)?;
        self.x.expect("x", 0, inputs, kind)?;
        self.weight.expect("the weight", outputs, inputs, kind)?;
        self.bias.expect("the bias", 1, outputs, Kind::F32)?;
        if stage != Stage::Naive && !(inputs.is_multiple_of(8) && outputs.is_multiple_of(8)) {
            return Err(Fault::Shape(format!(
                "{inputs} inputs and {outputs} outputs, expected multiples of 8"
            )));
        }
        Ok(())
    }

    fn args(&self) -> Result<Vec<Arg>, Fault> {
        Ok(vec![
            Arg::Address(self.count.address),
            Arg::Address(self.x.address),
            Arg::Address(self.weight.address),
            Arg::Address(self.bias.address),
            Arg::Address(self.residual.map_or(0, |residual| residual.address)),
            Arg::Address(self.y.address),
            int(self.weight.columns)?,
            int(self.weight.rows)?,
        ])
    }

    fn naive(&self, epilogue: Epilogue) -> Result<Launch, Fault> {
        let mut args = self.args()?;
        args.push(Arg::Int(epilogue as i32));
        Ok(Launch {
            placement: Placement::Alone,
            kernel: "linear_naive",
            grid: [blocks(self.x.rows * self.weight.rows, 256)?, 1, 1],
            threads: 256,
            shared_bytes: 0,
            args,
        })
    }

    fn tensor_core(&self, epilogue: Epilogue) -> Result<Launch, Fault> {
        let down = blocks(self.x.rows, TILE)?;
        if down > 65_535 {
            return Err(Fault::Shape(format!("{} rows in one product", self.x.rows)));
        }
        Ok(Launch {
            placement: Placement::Alone,
            kernel: match epilogue {
                Epilogue::Bias => "linear_f16_bias",
                Epilogue::Gelu => "linear_f16_gelu",
                Epilogue::Residual => "linear_f16_residual",
                Epilogue::Tanh => "linear_f16_tanh",
            },
            grid: [blocks(self.weight.rows, TILE)?, down, 1],
            threads: 256,
            shared_bytes: SHARED_BYTES,
            args: self.args()?,
        })
    }

    /// Kernels by the cluster's size.
    fn hopper(&self, names: [&'static str; 3], spread: Spread) -> Result<Launch, Fault> {
        let down = blocks(self.x.rows, TILE)?;
        let grid = spread.grid(down, blocks(self.weight.rows, HOPPER_COLUMNS)?);
        let mut args = vec![
            Arg::boxes(self.x, TILE, HOPPER_DEPTH),
            Arg::boxes(self.weight, grid.share(HOPPER_COLUMNS), HOPPER_DEPTH),
        ];
        // As stage 1 without the addresses of x and the weight.
        let rest = self.args()?;
        args.extend(rest[..1].iter().chain(&rest[3..]));
        Ok(Launch {
            placement: grid.placement,
            kernel: grid.kernel(names),
            grid: grid.grid,
            threads: 384,
            shared_bytes: HOPPER_SHARED_BYTES,
            args,
        })
    }
}
/// Stage 2's kernels by the cluster's size. What has none for clusters is not worth them.
fn hopper_names(epilogue: Epilogue, spread: Spread) -> ([&'static str; 3], Spread) {
    let alone = spread.by(Cluster::One);
    match epilogue {
        Epilogue::Bias => (
            [
                "linear_hopper_bias",
                "linear_hopper_bias_by2",
                "linear_hopper_bias_by4",
            ],
            spread,
        ),
        Epilogue::Gelu => (
            [
                "linear_hopper_gelu",
                "linear_hopper_gelu_by2",
                "linear_hopper_gelu_by4",
            ],
            spread,
        ),
        Epilogue::Residual => (["linear_hopper_residual"; 3], alone),
        Epilogue::Tanh => (["linear_hopper_tanh"; 3], alone),
    }
}
