//! Which arithmetic an encoder runs in: the choice behind `PRECISION`.
//!
//! ```text
//! kernel   linear layers    attention                        LayerNorm, softmax, sums   weights
//! f32      f32              f32                              f32                        4 bytes
//! bf16     bf16             bf16 where the CPU has it        f32                        2 bytes
//! int8     int8             bf16 where the CPU has it        f32                        1 byte
//! ```
//!
//! Invariants: the choice follows from the name alone, never from the machine; what a machine lacks
//! it does by slower instructions in the same format.

use crate::attention::Attention;
use crate::linear::{Bf16Linear, F32Linear, Int8Linear, PackedLinear};
use crate::tile::{Cpu, Format, PANEL_COLUMNS, TileKernel};

/// The arithmetic of an encoder's matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Full precision.
    F32,
    /// Weights and activations in bf16: cosine ≥ 0.9999 with full precision.
    Bf16,
    /// Weights and activations in eight bits: cosine ≥ 0.998, about 0.9995 on average.
    Int8,
}

/// A precision that has no kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("precision '{0}' is not known, expected full, f32, bf16 or int8")]
pub struct UnknownPrecision(pub String);

impl Kernel {
    /// All, from exact to fast.
    pub const ALL: [Kernel; 3] = [Kernel::F32, Kernel::Bf16, Kernel::Int8];

    /// The kernel for a precision's name: `full` (which is f32), `f32`, `bf16` or `int8`.
    pub fn for_precision(name: &str) -> Result<Kernel, UnknownPrecision> {
        match name {
            "full" | "f32" => Ok(Kernel::F32),
            "bf16" => Ok(Kernel::Bf16),
            "int8" => Ok(Kernel::Int8),
            other => Err(UnknownPrecision(other.to_owned())),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::F32 => "f32",
            Kernel::Bf16 => "bf16",
            Kernel::Int8 => "int8",
        }
    }

    /// The format of linear layers.
    pub fn format(self) -> Format {
        match self {
            Kernel::F32 => Format::F32,
            Kernel::Bf16 => Format::Bf16,
            Kernel::Int8 => Format::Int8,
        }
    }

    /// The instruction set that linear layers run on here.
    pub fn cpu(self) -> Cpu {
        Cpu::available(self.format())[0]
    }

    /// Packs a layer: `weight[outputs, inputs]`.
    pub(crate) fn pack(self, cpu: Cpu, weight: &[f32], bias: Vec<f32>) -> Box<dyn PackedLinear> {
        let kernel = on(cpu, self.format());
        match self {
            Kernel::F32 => Box::new(F32Linear::pack_for(kernel, weight, bias)),
            Kernel::Bf16 => Box::new(Bf16Linear::pack_for(kernel, weight, bias)),
            Kernel::Int8 => Box::new(Int8Linear::pack_for(kernel, weight, bias)),
        }
    }

    /// Attention for heads of `width` columns, padded to whole panels.
    ///
    /// Without instructions for bf16 its products cost more than f32's, and nothing is saved by it.
    pub(crate) fn attention(self, cpu: Cpu, width: usize) -> Attention {
        let has_bf16 = cpu == Cpu::Avx512 && TileKernel::on(cpu, Format::Bf16).is_some();
        let format = if self != Kernel::F32 && has_bf16 {
            Format::Bf16
        } else {
            Format::F32
        };
        Attention::new(
            format,
            on(cpu, format),
            width.next_multiple_of(PANEL_COLUMNS),
        )
    }
}

/// The kernel of one instruction set, or this machine's best where it has none for the format.
fn on(cpu: Cpu, format: Format) -> TileKernel {
    TileKernel::on(cpu, format).unwrap_or_else(|| TileKernel::best(format))
}
