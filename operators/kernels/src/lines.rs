//! Memory by whole cache lines: what tiles and panels are made of.
//!
//! A [`Line`] is 64 aligned bytes, so that no vector straddles two cache lines and a vector of any
//! element type can be laid over it. Views are checked casts (`bytemuck`), without `unsafe`.

use bytemuck::{Pod, Zeroable};

/// 64 bytes, aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Line(pub [u32; 16]);

impl Line {
    /// All bits zero, which is zero in every format.
    pub const ZERO: Line = Line([0; 16]);
}

// SAFETY: sixteen words fill the 64 aligned bytes, so there is no padding, and every bit pattern,
// zeros included, is a value.
#[allow(unsafe_code)]
unsafe impl Zeroable for Line {}
// SAFETY: as above; `Copy` and `'static`.
#[allow(unsafe_code)]
unsafe impl Pod for Line {}

/// The bytes of some lines.
pub fn bytes(lines: &mut [Line]) -> &mut [u8] {
    bytemuck::cast_slice_mut(lines)
}

/// The half-words of some lines.
pub fn halves(lines: &mut [Line]) -> &mut [u16] {
    bytemuck::cast_slice_mut(lines)
}

/// A line as sixteen f32.
pub fn floats(line: &mut Line) -> &mut [f32; 16] {
    bytemuck::cast_mut(&mut line.0)
}

/// The words of some lines.
pub fn words(lines: &mut [Line]) -> &mut [u32] {
    bytemuck::cast_slice_mut(lines)
}

/// The first `count` lines of a buffer that grows when it must. What they hold is left over.
pub fn sized(buffer: &mut Vec<Line>, count: usize) -> &mut [Line] {
    if buffer.len() < count {
        buffer.resize(count, Line::ZERO);
    }
    &mut buffer[..count]
}
