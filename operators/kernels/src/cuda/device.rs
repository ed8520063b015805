//! The seam between what is computed and what computes it: memory, streams, launches, graphs.
//!
//! Two implementations: [`driver`](super::driver), and the tests' emulated GPU. Everything above is
//! plain Rust that never sees which.
//!
//! Invariants: a [`Launch`] is made only by this module's siblings, which check shapes first, so a
//! device may trust its addresses; all calls come from the one thread that owns the device.

use std::fmt;

/// Which rung of the ladder computes (docs/kernels.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// One thread an output, f32: the device's own reference.
    Naive,
    /// `mma.sync` and `cp.async`, halves: compute capability 8.0 and newer.
    TensorCore,
    /// `wgmma` and TMA for the matrix products: compute capability 9.0 only.
    Hopper,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Naive => "stage 0 (a thread an output)",
            Stage::TensorCore => "stage 1 (mma.sync)",
            Stage::Hopper => "stage 2 (wgmma)",
        })
    }
}

/// Why a device did not do what it was told. All but [`Fault::Shape`] are the world's doing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The context is gone: an illegal address, an uncorrectable memory error, a device that fell off.
    #[error("the device's context was lost: {0}")]
    Lost(String),
    /// Device memory or pinned memory is exhausted.
    #[error("device memory is exhausted: {0}")]
    OutOfMemory(String),
    /// A batch was not done in time.
    #[error("the device did not answer within {0} ms")]
    TimedOut(u128),
    /// There is no device, driver or compiler that fits.
    #[error("{0}")]
    Unavailable(String),
    /// Tensors whose shapes disagree: a mistake of ours.
    #[error("shapes: {0}")]
    Shape(String),
}

/// What a tensor's elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 4 bytes.
    F32,
    /// 2 bytes.
    F16,
    /// 1 byte, with a sign.
    Byte,
    /// 4 bytes, ids, counts and places.
    Int,
}

impl Kind {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Kind::F32 | Kind::Int => 4,
            Kind::F16 => 2,
            Kind::Byte => 1,
        }
    }
}

/// A dense row-major matrix in device memory. Plain data: it owns nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tensor {
    /// Where it begins; a multiple of 16, or of 4 for ints.
    pub address: u64,
    /// Rows that there is room for.
    pub rows: usize,
    /// Elements a row.
    pub columns: usize,
    /// What they are.
    pub kind: Kind,
}

impl Tensor {
    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        self.rows * self.columns * self.kind.bytes()
    }

    /// The tensor from a row on.
    pub fn from_row(self, row: usize) -> Tensor {
        assert!(row <= self.rows, "a row of the tensor");
        Tensor {
            address: self.address + (row * self.columns * self.kind.bytes()) as u64,
            rows: self.rows - row,
            ..self
        }
    }

    /// Fails unless the tensor has `rows` rows at least, just these columns and this kind.
    pub(super) fn expect(
        &self,
        name: &str,
        rows: usize,
        columns: usize,
        kind: Kind,
    ) -> Result<(), Fault> {
        let alignment = if kind == Kind::Int { 4 } else { 16 };
        let is_right = self.rows >= rows
            && self.columns == columns
            && self.kind == kind
            && self.address != 0
            && self.address.is_multiple_of(alignment);
        if is_right {
            return Ok(());
        }
        Err(Fault::Shape(format!(
            "{name} is {self}, expected at least {rows} × {columns} {kind:?} at a multiple of {alignment}"
        )))
    }
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} × {} {:?} at {:#x}",
            self.rows, self.columns, self.kind, self.address
        )
    }
}

/// The copy engine's description of a matrix of halves or bytes, read in boxes of `box_rows` × `box_columns`
/// with the 128-byte swizzle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Map {
    pub(super) tensor: Tensor,
    pub(super) box_rows: usize,
    pub(super) box_columns: usize,
}

impl Map {
    /// What is described: (tensor, rows of a box, columns of a box).
    pub fn parts(&self) -> (Tensor, usize, usize) {
        (self.tensor, self.box_rows, self.box_columns)
    }
}

/// One argument of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arg {
    /// A device address; 0 is a null pointer.
    Address(u64),
    /// `int`.
    Int(i32),
    /// `float`.
    Float(f32),
    /// `__grid_constant__ CUtensorMap`.
    Map(Map),
}

impl Arg {
    /// A matrix for the copy engine, in boxes of so many rows and columns.
    pub(super) fn boxes(tensor: Tensor, box_rows: usize, box_columns: usize) -> Arg {
        Arg::Map(Map {
            tensor,
            box_rows,
            box_columns,
        })
    }

    /// Its bits in a word of their own, low bytes first; a map is passed by itself.
    pub fn word(&self) -> u64 {
        match *self {
            Arg::Address(address) => address,
            Arg::Int(int) => u64::from(int as u32),
            Arg::Float(float) => u64::from(float.to_bits()),
            Arg::Map(_) => 0,
        }
    }
}

/// Which blocks of a launch are on the device at once, because they meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Placement {
    /// None need be.
    #[default]
    Alone,
    /// So many neighbours, which reach each other's shared memory: Hopper only. They divide the grid.
    Clusters(u32),
    /// All of the grid (a cooperative launch): it must not be larger than the device holds at once.
    Whole,
}

/// A kernel with all it needs to run. Made by the functions beside the kernels.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    pub(super) kernel: &'static str,
    pub(super) placement: Placement,
    pub(super) grid: [u32; 3],
    pub(super) threads: u32,
    pub(super) shared_bytes: u32,
    pub(super) args: Vec<Arg>,
}

impl Launch {
    /// The kernel's name.
    pub fn kernel(&self) -> &'static str {
        self.kernel
    }

    /// Whether the kernel waits by itself for the launch before it (`ptx::follow`), so that it may begin beside that one's
    /// end. `build.sh` looks for it in the machine code.
    pub fn can_follow(&self) -> bool {
        let alone = ["attention_heads", "whole_hopper"];
        !self.kernel.ends_with("_naive") && !alone.iter().any(|name| self.kernel.starts_with(name))
    }

    /// Which of its blocks are there at once.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// Blocks in x, y and z.
    pub fn grid(&self) -> [u32; 3] {
        self.grid
    }

    /// Threads a block.
    pub fn threads(&self) -> u32 {
        self.threads
    }

    /// Dynamic shared memory a block, in bytes.
    pub fn shared_bytes(&self) -> u32 {
        self.shared_bytes
    }

    /// The arguments in the kernel's order.
    pub fn args(&self) -> &[Arg] {
        &self.args
    }
}

/// Blocks of `threads` that cover `items`, as a grid's x. Fails beyond 2³¹ − 1.
pub(super) fn blocks(items: usize, per_block: usize) -> Result<u32, Fault> {
    u32::try_from(items.div_ceil(per_block).max(1))
        .ok()
        .filter(|&blocks| blocks <= i32::MAX as u32)
        .ok_or_else(|| Fault::Shape(format!("{items} items are too many for one grid")))
}

/// A size as a kernel's `int`.
pub(super) fn int(size: usize) -> Result<Arg, Fault> {
    i32::try_from(size)
        .map(Arg::Int)
        .map_err(|_| Fault::Shape(format!("{size} does not fit an int")))
}

/// A queue of work on the device, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream(pub usize);
/// A block of pinned host memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pinned(pub usize);
/// A captured sequence of launches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Graph(pub usize);

/// A device, its memory and its queues. What it gives out lives as long as itself.
pub trait Device {
    /// Name, driver, and where the kernels came from, for people.
    fn describe(&self) -> String;
    /// Multiprocessors: how many blocks a persistent kernel is worth is counted in them.
    fn multiprocessors(&self) -> u32;
    /// How many clusters of so many blocks there are room for at once, a block a multiprocessor.
    fn clusters_at_once(&self, blocks: u32) -> u32 {
        self.multiprocessors() / blocks
    }
    /// The best stage that this device runs.
    fn best_stage(&self) -> Stage;
    /// Device memory at a multiple of 256, not cleared.
    fn allocate(&mut self, bytes: usize) -> Result<u64, Fault>;
    /// Pinned memory, cleared.
    fn pinned(&mut self, bytes: usize) -> Result<Pinned, Fault>;
    /// The bytes of a pinned block. Panics while a copy from or into it may be under way, that is
    /// until [`Device::is_idle`] or [`Device::synchronize`] saw its stream idle.
    fn host(&mut self, block: Pinned) -> &mut [u8];
    /// A queue; an urgent one's blocks are placed before others'.
    fn stream(&mut self, is_urgent: bool) -> Result<Stream, Fault>;
    /// Copies and waits.
    fn write(&mut self, to: u64, bytes: &[u8]) -> Result<(), Fault>;
    /// Waits for everything and copies.
    fn read(&mut self, from: u64, bytes: &mut [u8]) -> Result<(), Fault>;
    /// Queues a copy of the block's first bytes.
    fn upload(&mut self, stream: Stream, to: u64, from: Pinned, bytes: usize) -> Result<(), Fault>;
    /// Queues a copy into the block's first bytes.
    fn download(
        &mut self,
        stream: Stream,
        to: Pinned,
        from: u64,
        bytes: usize,
    ) -> Result<(), Fault>;
    /// Queues a kernel.
    fn launch(&mut self, stream: Stream, launch: &Launch) -> Result<(), Fault>;
    /// Records launches as a graph, without running them. Those that overlap get ready beside the end of the one before
    /// ([`Launch::can_follow`]); the order of what they read and write is the same.
    fn capture(
        &mut self,
        stream: Stream,
        launches: &[Launch],
        overlap: bool,
    ) -> Result<Graph, Fault>;
    /// Queues a graph.
    fn replay(&mut self, stream: Stream, graph: Graph) -> Result<(), Fault>;
    /// Whether all that was queued is done; an error of any of it comes out here.
    fn is_idle(&mut self, stream: Stream) -> Result<bool, Fault>;
    /// Waits for a stream.
    fn synchronize(&mut self, stream: Stream) -> Result<(), Fault>;
    /// Device time in milliseconds that each of `launches`, in order, took; for benches.
    fn time(&mut self, stream: Stream, launches: &[Launch]) -> Result<Vec<f32>, Fault>;
    /// Gives the context up without touching it again: work on it may never end.
    fn abandon(&mut self);
}
