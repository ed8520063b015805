//! The micro-kernel: a tile of rows times a panel of columns, sums in registers.
//!
//! ```text
//!            panel: 32 columns                      one step of the depth = four bytes:
//!            c0  c1 ............ c31                  one f32, a pair of bf16, or four bytes of int8
//!   step 0  │4 B│4 B│           │4 B│  128 bytes
//!   step 1  │   │   │           │   │                 rows × 2 vectors of sums
//!     ⋮                                               r0  ├── 16 columns ──┤├── 16 columns ──┤
//!   step 15 └ a block: 16 steps = 64 bytes of a row   ⋮   12 × 2 = 24 of AVX-512's 32 registers
//!                                                     r11
//!   tile:   block 0: r0 │64 B│ r1 │64 B│ … r11 │64 B│   block 1: r0 │64 B│ …
//! ```
//!
//! The idea: a step takes four bytes of every row against four bytes of every column, whatever the
//! format, so one kernel text and one layout serve f32 (`vfmadd`), bf16 (`vdpbf16ps`) and int8
//! (`vpdpbusd`): two loads of the panel, then per row one broadcast and two multiply-adds. The
//! rows of a block lie 64 bytes apart, so that all addresses are one pointer and constants; a row is
//! written by whole cache lines.
//!
//! Invariants: the sum of an output runs over the whole depth in one register, step by step from the
//! first, so its bits depend on its own row and column only: neither on how many rows share the tile
//! nor on the place in it. Int8 sums are exact, so they are equal on every CPU. Limits: the depth is
//! padded to blocks with zeros by whoever packs; 12 rows, 32 columns.
//!
//! [`Cpu`] says which instructions; [`TileKernel`] is what a packed layer keeps.

#[cfg(target_arch = "aarch64")]
mod arm;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::lines::Line;

/// Rows of a tile.
pub const TILE_ROWS: usize = 12;
/// Columns of a panel.
pub const PANEL_COLUMNS: usize = 32;
/// Steps of a block: 64 bytes of a row.
pub const BLOCK_STEPS: usize = 16;
/// Cache lines of a panel's block.
pub(crate) const PANEL_LINES: usize = BLOCK_STEPS * PANEL_COLUMNS / BLOCK_STEPS;
/// How far ahead a panel is fetched, in words. A tile of one question uses every panel once, so the
/// weights stream from the last cache or from memory.
const PREFETCH_WORDS: usize = 1024;

/// What four bytes hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// One f32.
    F32,
    /// Two bf16, sums in f32.
    Bf16,
    /// Four bytes: rows unsigned, columns signed, sums in i32.
    Int8,
}

impl Format {
    /// Elements of the depth in one step.
    pub fn per_step(self) -> usize {
        match self {
            Format::F32 => 1,
            Format::Bf16 => 2,
            Format::Int8 => 4,
        }
    }

    /// Elements of the depth in one block.
    pub fn per_block(self) -> usize {
        BLOCK_STEPS * self.per_step()
    }

    /// Where an element of the depth lies: its step, and its part of the four bytes.
    ///
    /// What shares a step is a block's steps apart: the same lane of vectors that follow each other, so
    /// that a row is packed without moving anything between lanes. A sum does not ask for the order.
    pub fn place(self, element: usize) -> (usize, usize) {
        let (block, inside) = (element / self.per_block(), element % self.per_block());
        let (part, step) = (inside / BLOCK_STEPS, inside % BLOCK_STEPS);
        (block * BLOCK_STEPS + step, part)
    }
}

/// Instruction sets with a kernel of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cpu {
    /// 16 lanes; bf16 needs AVX512-BF16, int8 AVX512-VNNI.
    Avx512,
    /// 8 lanes, with FMA; bf16 is widened, int8 multiplied in 16 bits.
    Avx2,
    /// 4 lanes, aarch64.
    Neon,
    /// Plain Rust, the twin of NEON's kernel for tests, and what any other machine runs.
    Scalar,
}

impl Cpu {
    /// The instruction sets that this machine has for a format, best first; never empty.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    pub fn available(format: Format) -> Vec<Cpu> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if x86::has_avx512(format) {
                found.push(Cpu::Avx512);
            }
            if x86::has_avx2() {
                found.push(Cpu::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        found.push(Cpu::Neon);
        found.push(Cpu::Scalar);
        found
    }
}

/// The sums of a tile: bits of f32, or i32 for int8. `[TILE_ROWS][PANEL_COLUMNS]`.
#[repr(C, align(64))]
pub struct Sums(pub [[u32; PANEL_COLUMNS]; TILE_ROWS]);

impl Sums {
    /// All zeros.
    pub fn new() -> Self {
        Sums([[0; PANEL_COLUMNS]; TILE_ROWS])
    }
}

impl Default for Sums {
    fn default() -> Self {
        Self::new()
    }
}

/// Rows, tile, blocks, panel, sums.
type RawKernel = unsafe fn(usize, *const Line, usize, *const Line, &mut Sums);

/// A kernel for one format on one instruction set.
#[derive(Clone, Copy)]
pub struct TileKernel(RawKernel);

impl TileKernel {
    /// The best of this machine.
    pub fn best(format: Format) -> Self {
        let cpu = Cpu::available(format)[0];
        Self::on(cpu, format).unwrap_or(TileKernel(scalar::kernel(format)))
    }

    /// The kernel of one instruction set, if this machine has it.
    pub fn on(cpu: Cpu, format: Format) -> Option<Self> {
        if !Cpu::available(format).contains(&cpu) {
            return None;
        }
        match cpu {
            #[cfg(target_arch = "x86_64")]
            Cpu::Avx512 => Some(TileKernel(x86::avx512(format))),
            #[cfg(target_arch = "x86_64")]
            Cpu::Avx2 => Some(TileKernel(x86::avx2(format))),
            #[cfg(target_arch = "aarch64")]
            Cpu::Neon => Some(TileKernel(arm::kernel(format))),
            Cpu::Scalar => Some(TileKernel(scalar::kernel(format))),
            #[allow(unreachable_patterns)]
            _ => None,
        }
    }

    /// `sums[..rows] = tile · panel` over all blocks of the panel; other rows are left as they are.
    ///
    /// `panel` is `blocks · 32` lines, `tile` at least `(blocks − 1) · 12 + rows` lines. Cost:
    /// `blocks · 16 · rows · 2` multiply-adds of vectors. Panics when a slice is too short.
    #[inline]
    pub fn run(self, rows: usize, tile: &[Line], panel: &[Line], sums: &mut Sums) {
        let blocks = panel.len() / PANEL_LINES;
        assert!(
            (1..=TILE_ROWS).contains(&rows) && blocks > 0,
            "a tile has 1 to 12 rows and some depth"
        );
        assert!(
            tile.len() >= (blocks - 1) * TILE_ROWS + rows,
            "the tile holds its rows"
        );
        // SAFETY: kernels read `rows` lines of each block of the tile and all lines of the panel's
        // blocks, both checked above; they write `rows` rows of `sums`, which has TILE_ROWS. `on`
        // and `best` hand out a kernel only where the CPU has its instructions.
        #[allow(unsafe_code)]
        unsafe {
            (self.0)(rows, tile.as_ptr(), blocks, panel.as_ptr(), sums);
        }
    }
}

/// An instruction set as the kernel needs it: registers of four-byte lanes.
///
/// # Safety
/// Every method may only run on a CPU with the set's instructions; pointers must be readable (or
/// writable) for `LANES` words, those of `splat` for one.
#[allow(unsafe_code)]
trait Lanes {
    /// A register.
    type Vector: Copy;
    /// Words in it.
    const LANES: usize;

    unsafe fn zero() -> Self::Vector;
    unsafe fn load(from: *const u32) -> Self::Vector;
    unsafe fn splat(from: *const u32) -> Self::Vector;
    unsafe fn store(vector: Self::Vector, to: *mut u32);
    /// Hints that a line will be read; any address is allowed.
    unsafe fn prefetch(_at: *const u32) {}
    /// Adds the product of one f32 a lane.
    unsafe fn dot_f32(sum: Self::Vector, x: Self::Vector, w: Self::Vector) -> Self::Vector;
    /// Adds the products of two bf16 a lane.
    unsafe fn dot_bf16(sum: Self::Vector, x: Self::Vector, w: Self::Vector) -> Self::Vector;
    /// Adds the products of four u8 with four i8 a lane.
    unsafe fn dot_int8(sum: Self::Vector, x: Self::Vector, w: Self::Vector) -> Self::Vector;
}

/// The kernel's text for every instruction set and format: `R` rows from row `first` of the tile.
///
/// # Safety
/// As [`TileKernel::run`] checks: `first + R` rows, `blocks` blocks; and the CPU has `L`.
#[allow(unsafe_code)]
#[inline(always)]
unsafe fn multiply<L: Lanes, const FORMAT: u8, const R: usize>(
    first: usize,
    tile: *const Line,
    blocks: usize,
    panel: *const Line,
    sums: &mut Sums,
) {
    // Registers narrower than half a panel take it in several passes over the depth.
    for pass in (0..PANEL_COLUMNS).step_by(2 * L::LANES) {
        // SAFETY (whole function): the offsets stay inside what the caller promised.
        let mut acc = [[unsafe { L::zero() }; 2]; R];
        for block in 0..blocks {
            let x = unsafe { tile.add(block * TILE_ROWS + first) }.cast::<u32>();
            let w = unsafe { panel.add(block * PANEL_LINES) }.cast::<u32>();
            for step in 0..BLOCK_STEPS {
                let at = unsafe { w.add(step * PANEL_COLUMNS + pass) };
                unsafe {
                    L::prefetch(at.wrapping_add(PREFETCH_WORDS));
                    L::prefetch(at.wrapping_add(PREFETCH_WORDS + 16));
                }
                let (left, right) = unsafe { (L::load(at), L::load(at.add(L::LANES))) };
                // Written out by a macro: with a loop the compiler keeps the sums in memory.
                macro_rules! rows {
                    ($($r:literal)*) => {$(
                        if $r < R {
                            unsafe {
                                let x = L::splat(x.add($r * BLOCK_STEPS + step));
                                acc[$r][0] = dot::<L, FORMAT>(acc[$r][0], x, left);
                                acc[$r][1] = dot::<L, FORMAT>(acc[$r][1], x, right);
                            }
                        }
                    )*};
                }
                rows!(0 1 2 3 4 5 6 7 8 9 10 11);
            }
        }
        for (row, [left, right]) in acc.into_iter().enumerate() {
            let to = sums.0[first + row][pass..].as_mut_ptr();
            unsafe {
                L::store(left, to);
                L::store(right, to.add(L::LANES));
            }
        }
    }
}

const F32: u8 = 0;
const BF16: u8 = 1;
const INT8: u8 = 2;

/// One step in the format given as a constant.
#[allow(unsafe_code)]
#[inline(always)]
unsafe fn dot<L: Lanes, const FORMAT: u8>(sum: L::Vector, x: L::Vector, w: L::Vector) -> L::Vector {
    // SAFETY: the caller runs on a CPU with `L`.
    unsafe {
        match FORMAT {
            F32 => L::dot_f32(sum, x, w),
            BF16 => L::dot_bf16(sum, x, w),
            _ => L::dot_int8(sum, x, w),
        }
    }
}

#[cfg(test)]
mod tests;
