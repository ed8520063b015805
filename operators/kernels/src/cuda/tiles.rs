//! Index maps of the kernels, mirrored from `cuda/tiles.cuh` and checked here for what they promise.
//!
//! Nothing at run time uses them; the emulated device checks the kernels' own copies.

/// Bytes that one thread copies at a time.
pub const CHUNK_BYTES: usize = 16;
/// Queries and keys of a tile of attention.
pub const ATTENTION_TILE: usize = 64;

/// Byte offset of a chunk in a tile of rows of `chunks` chunks: `tiles::swizzled`.
pub fn swizzled(chunks: usize, row: usize, chunk: usize) -> usize {
    let turn = if chunks == 4 { (row >> 1) & 3 } else { row & 7 };
    (row * chunks + (chunk ^ turn)) * CHUNK_BYTES
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_chunk_has_a_place_of_its_own() {
        for (chunks, rows) in [(4, 128), (4, 64), (8, 64), (16, 128)] {
            let places: BTreeSet<usize> = (0..rows)
                .flat_map(|row| (0..chunks).map(move |chunk| swizzled(chunks, row, chunk)))
                .collect();
            assert_eq!(places.len(), rows * chunks);
            assert_eq!(places.last(), Some(&((rows * chunks - 1) * CHUNK_BYTES)));
        }
    }

    #[test]
    fn eight_rows_of_one_column_of_chunks_meet_no_bank_twice() {
        for chunks in [4, 8, 16] {
            for first in (0..64).step_by(8) {
                for chunk in 0..chunks {
                    let banks: BTreeSet<usize> = (first..first + 8)
                        .map(|row| swizzled(chunks, row, chunk) / CHUNK_BYTES % 8)
                        .collect();
                    assert_eq!(banks.len(), 8, "{chunks} chunks, rows {first}…, {chunk}");
                }
            }
        }
    }

    #[test]
    fn the_finished_tile_is_written_without_conflicts() {
        // A lane of `finish` in linear.cu writes 4 bytes: row g, column 8·n + 2t.
        for n in 0..16 {
            let banks: BTreeSet<usize> = (0..32)
                .map(|lane| (swizzled(16, lane / 4, n) + lane % 4 * 4) / 4 % 32)
                .collect();
            assert_eq!(banks.len(), 32);
        }
    }

    #[test]
    fn a_plane_of_a_finished_tile_is_read_without_conflicts() {
        // A lane of `store_tile` in heads.cuh reads 16 bytes, eight lanes at a time: of 8 rows of one plane.
        let place = |lane: usize| (lane / 4 % 2 * 4 + lane / 8, lane % 4);
        for (plane, first) in (0..4).flat_map(|plane| (0..128).step_by(8).map(move |r| (plane, r)))
        {
            let all: BTreeSet<(usize, usize)> = (0..32).map(place).collect();
            assert_eq!(all.len(), 32);
            for eight in 0..4 {
                let at = |(row, chunk)| swizzled(16, first + row, plane * 4 + chunk);
                let lanes = (eight * 8..eight * 8 + 8).map(place);
                let banks: BTreeSet<usize> = lanes.map(|p| at(p) / CHUNK_BYTES % 8).collect();
                assert_eq!(banks.len(), 8);
            }
        }
    }
}
