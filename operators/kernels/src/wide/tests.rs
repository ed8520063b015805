//! Every instruction set of this machine gives the bits of plain Rust.

use super::*;

/// One of everything, as bits.
struct Everything<'a>(&'a [[f32; LANES]; 3]);

impl Body for Everything<'_> {
    type Output = Vec<u32>;

    fn run<W: Wide>(self, w: W) -> Vec<u32> {
        let [a, b, c] = [0, 1, 2].map(|i| w.load(&self.0[i]));
        let bits = self.0[0].map(f32::to_bits);
        let vectors = [
            w.splat(self.0[0][3]),
            w.add(a, b),
            w.sub(a, b),
            w.mul(a, b),
            w.div(a, b),
            w.fma(a, b, c),
            w.max(a, b),
            w.min(a, b),
            w.magnitude(a, 100.0),
            w.lookup(&self.0[1], w.add(a, w.splat(12_582_912.0))),
            w.hadamard(a),
            w.load_bits(&bits),
            w.load_integers(&bits),
            w.scale_exponent(a, w.add(w.splat(12_582_912.0), w.splat(-7.0))),
            w.bf16_pairs(a, b),
            w.low_bytes([a, b, c, w.add(a, w.splat(12_582_912.0))]),
            w.fraction(a),
            w.scale_floor(a, b),
            w.scale_floor(a, w.splat(-0.1)),
            w.scale_floor(a, w.splat(127.5)),
            w.scale_floor(a, w.splat(-130.5)),
            w.scale_floor(a, w.splat(f32::NEG_INFINITY)),
        ];
        let mut out = Vec::new();
        for v in vectors {
            let mut lanes = [0.0; LANES];
            w.store(v, &mut lanes);
            out.extend(lanes.map(f32::to_bits));
            out.push(w.sum(v).to_bits());
        }
        let mut rows: [W::V; LANES] =
            std::array::from_fn(|i| w.add(w.mul(a, b), w.splat(i as f32)));
        w.transpose(&mut rows);
        for v in rows {
            let mut lanes = [0.0; LANES];
            w.store(v, &mut lanes);
            out.extend(lanes.map(f32::to_bits));
        }
        out
    }
}

#[test]
fn all_instruction_sets_agree_with_plain_rust() {
    let rows: [[f32; LANES]; 3] = std::array::from_fn(|row| {
        std::array::from_fn(|i| ((i * 7919 + row * 104_729) % 2003) as f32 * 0.37 - 341.5)
    });
    let plain = Everything(&rows).run(Plain);
    assert_eq!(wide(Everything(&rows)), plain);
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(token) = x86::Avx512::get() {
            assert_eq!(Everything(&rows).run(token), plain);
        }
        if let Some(token) = x86::Avx2::get() {
            assert_eq!(Everything(&rows).run(token), plain);
        }
    }
}
