//! Every kernel of this machine against the sum written down, for every number of rows.

use rand::prelude::*;
use rand_chacha::ChaCha8Rng;

use super::*;

const FORMATS: [Format; 3] = [Format::F32, Format::Bf16, Format::Int8];

/// Lines with sensible values of a format in every lane.
fn draw(rng: &mut ChaCha8Rng, format: Format, lines: usize) -> Vec<Line> {
    let mut word = || match format {
        Format::F32 => rng.random_range(-1.0_f32..1.0).to_bits(),
        Format::Bf16 => {
            let mut half = || rng.random_range(-1.0_f32..1.0).to_bits() >> 16;
            half() << 16 | half()
        }
        Format::Int8 => rng.random::<u32>(),
    };
    (0..lines)
        .map(|_| Line(std::array::from_fn(|_| word())))
        .collect()
}

/// The sum of one output in f64.
fn exact(format: Format, tile: &[Line], panel: &[Line], row: usize, column: usize) -> f64 {
    let blocks = panel.len() / PANEL_LINES;
    let mut sum = 0.0;
    for block in 0..blocks {
        for step in 0..BLOCK_STEPS {
            let x = tile[block * TILE_ROWS + row].0[step];
            let at = step * PANEL_COLUMNS + column;
            let w = panel[block * PANEL_LINES + at / 16].0[at % 16];
            sum += match format {
                Format::F32 => f64::from(f32::from_bits(x)) * f64::from(f32::from_bits(w)),
                Format::Bf16 => [16, 0]
                    .map(|shift| {
                        f32::from_bits(x << shift & 0xffff_0000) as f64
                            * f32::from_bits(w << shift & 0xffff_0000) as f64
                    })
                    .iter()
                    .sum(),
                Format::Int8 => std::iter::zip(x.to_le_bytes(), w.to_le_bytes())
                    .map(|(x, w)| f64::from(x) * f64::from(w as i8))
                    .sum(),
            };
        }
    }
    sum
}

#[test]
fn every_kernel_sums_right_and_the_same_for_any_number_of_rows() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for format in FORMATS {
        for blocks in [1, 2, 7] {
            let tile = draw(&mut rng, format, blocks * TILE_ROWS);
            let panel = draw(&mut rng, format, blocks * PANEL_LINES);
            for cpu in Cpu::available(format) {
                let kernel = TileKernel::on(cpu, format).unwrap();
                let mut full = Sums::new();
                kernel.run(TILE_ROWS, &tile, &panel, &mut full);
                for (row, sums) in full.0.iter().enumerate() {
                    for (column, &found) in sums.iter().enumerate() {
                        let exact = exact(format, &tile, &panel, row, column);
                        if format == Format::Int8 {
                            assert_eq!(f64::from(found as i32), exact, "{cpu:?}");
                        } else {
                            let found = f64::from(f32::from_bits(found));
                            assert!((found - exact).abs() < 1e-4, "{cpu:?} {found} {exact}");
                        }
                    }
                }
                for rows in 1..TILE_ROWS {
                    let mut sums = Sums([[0xdead_beef; PANEL_COLUMNS]; TILE_ROWS]);
                    kernel.run(rows, &tile, &panel, &mut sums);
                    assert_eq!(sums.0[..rows], full.0[..rows], "{cpu:?} {rows} rows");
                    assert!(
                        sums.0[rows..].iter().flatten().all(|&x| x == 0xdead_beef),
                        "{cpu:?}: rows past the end are left alone"
                    );
                }
            }
        }
    }
}

#[test]
fn extreme_bytes_do_not_saturate() {
    let tile = [Line([u32::MAX; 16]); TILE_ROWS];
    let panel = [Line([0x8181_8181; 16]); PANEL_LINES];
    for cpu in Cpu::available(Format::Int8) {
        let mut sums = Sums::new();
        TileKernel::on(cpu, Format::Int8)
            .unwrap()
            .run(TILE_ROWS, &tile, &panel, &mut sums);
        let all = sums.0.iter().flatten();
        assert!(all.copied().all(|x| x as i32 == 64 * 255 * -127), "{cpu:?}");
    }
}

#[test]
#[should_panic(expected = "the tile holds its rows")]
fn a_short_tile_is_refused() {
    let (tile, panel) = ([Line::ZERO; 3], [Line::ZERO; PANEL_LINES]);
    TileKernel::best(Format::F32).run(4, &tile, &panel, &mut Sums::new());
}
