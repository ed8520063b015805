//! The kernels' text, embedded, and which file each kernel is in.
//!
//! A compiled kernel is used only if it was made from this very text: whoever compiles leaves a copy of
//! all sources beside the result, and [`same`] compares. So an old cubin can never run with a new
//! launcher, and no version number has to be kept.

use std::collections::BTreeSet;
use std::path::Path;

/// (file name, text) of everything in `operators/kernels/cuda` that is compiled for a device.
pub const FILES: [(&str, &str); 28] = [
    ("ptx.cuh", include_str!("../../cuda/ptx.cuh")),
    ("hopper.cuh", include_str!("../../cuda/hopper.cuh")),
    ("tiles.cuh", include_str!("../../cuda/tiles.cuh")),
    ("numbers.cuh", include_str!("../../cuda/numbers.cuh")),
    ("bytes.cuh", include_str!("../../cuda/bytes.cuh")),
    ("cluster.cuh", include_str!("../../cuda/cluster.cuh")),
    ("groups.cuh", include_str!("../../cuda/groups.cuh")),
    ("rows.cuh", include_str!("../../cuda/rows.cuh")),
    ("softmax.cuh", include_str!("../../cuda/softmax.cuh")),
    ("pool.cuh", include_str!("../../cuda/pool.cuh")),
    ("whole.cuh", include_str!("../../cuda/whole.cuh")),
    ("ring.cuh", include_str!("../../cuda/ring.cuh")),
    ("pingpong.cuh", include_str!("../../cuda/pingpong.cuh")),
    ("quantize.cuh", include_str!("../../cuda/quantize.cuh")),
    ("feed_int8.cuh", include_str!("../../cuda/feed_int8.cuh")),
    ("heads.cuh", include_str!("../../cuda/heads.cuh")),
    ("linear.cu", include_str!("../../cuda/linear.cu")),
    ("attention.cu", include_str!("../../cuda/attention.cu")),
    (
        "attention_heads.cu",
        include_str!("../../cuda/attention_heads.cu"),
    ),
    ("norm.cu", include_str!("../../cuda/norm.cu")),
    ("pool.cu", include_str!("../../cuda/pool.cu")),
    (
        "linear_hopper.cu",
        include_str!("../../cuda/linear_hopper.cu"),
    ),
    ("join_hopper.cu", include_str!("../../cuda/join_hopper.cu")),
    ("feed_hopper.cu", include_str!("../../cuda/feed_hopper.cu")),
    (
        "feed_int8_hopper.cu",
        include_str!("../../cuda/feed_int8_hopper.cu"),
    ),
    (
        "whole_hopper.cu",
        include_str!("../../cuda/whole_hopper.cu"),
    ),
    (
        "linear_int8_hopper.cu",
        include_str!("../../cuda/linear_int8_hopper.cu"),
    ),
    (
        "narrow_int8_hopper.cu",
        include_str!("../../cuda/narrow_int8_hopper.cu"),
    ),
];

/// A file that is compiled by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Module {
    /// Without `.cu`.
    pub name: &'static str,
    /// Its kernels.
    pub kernels: &'static [&'static str],
    /// Whether it needs compute capability 9.0 and runs on nothing else.
    pub is_hopper: bool,
}

/// All modules.
pub const MODULES: [Module; 12] = [
    Module {
        name: "linear",
        kernels: &[
            "linear_naive",
            "linear_f16_bias",
            "linear_f16_gelu",
            "linear_f16_residual",
            "linear_f16_tanh",
        ],
        is_hopper: false,
    },
    Module {
        name: "attention",
        kernels: &["attention_naive", "attention_f16_d32", "attention_f16_d64"],
        is_hopper: false,
    },
    Module {
        name: "norm",
        kernels: &[
            "embed_naive",
            "norm_naive",
            "embed_f16",
            "add_norm_f16",
            "embed_int8",
            "add_norm_int8",
        ],
        is_hopper: false,
    },
    Module {
        name: "pool",
        kernels: &[
            "pool_naive",
            "scale_naive",
            "gather_naive",
            "pool_f16",
            "gather_f16",
            "logits_f16",
        ],
        is_hopper: false,
    },
    Module {
        name: "linear_hopper",
        kernels: &[
            "linear_hopper_bias",
            "linear_hopper_bias_by2",
            "linear_hopper_bias_by4",
            "linear_hopper_gelu",
            "linear_hopper_gelu_by2",
            "linear_hopper_gelu_by4",
            "linear_hopper_residual",
            "linear_hopper_tanh",
            "linear_hopper_heads",
            "linear_hopper_heads_by2",
            "linear_hopper_heads_by4",
        ],
        is_hopper: true,
    },
    Module {
        name: "attention_heads",
        kernels: &["attention_heads_d32"],
        is_hopper: true,
    },
    Module {
        name: "join_hopper",
        kernels: &[
            "join_hopper_384",
            "join_hopper_384_by2",
            "join_hopper_384_by4",
        ],
        is_hopper: true,
    },
    Module {
        name: "feed_hopper",
        kernels: &[
            "feed_hopper_384",
            "feed_hopper_384_by2",
            "feed_hopper_384_by4",
        ],
        is_hopper: true,
    },
    Module {
        name: "feed_int8_hopper",
        kernels: &[
            "feed_int8_hopper_384",
            "feed_int8_hopper_384_by2",
            "feed_int8_hopper_384_by4",
        ],
        is_hopper: true,
    },
    Module {
        name: "whole_hopper",
        kernels: &["whole_hopper_d32", "whole_hopper_d64"],
        is_hopper: true,
    },
    Module {
        name: "linear_int8_hopper",
        kernels: &[
            "linear_int8_hopper_bias",
            "linear_int8_hopper_bias_by2",
            "linear_int8_hopper_bias_by4",
            "linear_int8_hopper_heads",
            "linear_int8_hopper_heads_by2",
            "linear_int8_hopper_heads_by4",
            "linear_int8_hopper_gelu",
            "linear_int8_hopper_gelu_by2",
            "linear_int8_hopper_gelu_by4",
        ],
        is_hopper: true,
    },
    Module {
        name: "narrow_int8_hopper",
        kernels: &[
            "narrow_int8_hopper",
            "narrow_int8_hopper_by2",
            "narrow_int8_hopper_by4",
        ],
        is_hopper: true,
    },
];

/// (module, machine code) of what was compiled before the program was: `build.rs` says when.
pub static CUBINS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/cubins.rs"));

/// The text of a file. Panics on a name that is not in [`FILES`].
pub fn text(name: &str) -> &'static str {
    let found = FILES.iter().find(|(file, _)| *file == name);
    found.expect("a file of the kernels").1
}

/// A module as one text: every `#include "…"` replaced by its file, once each. What NVRTC gets, which
/// reads no files.
pub fn flat(module: &Module) -> String {
    let (mut out, mut seen) = (String::new(), BTreeSet::new());
    append(&format!("{}.cu", module.name), &mut seen, &mut out);
    out
}

fn append(name: &str, seen: &mut BTreeSet<String>, out: &mut String) {
    if !seen.insert(name.to_owned()) {
        return;
    }
    for line in text(name).lines() {
        let included = line
            .strip_prefix("#include \"")
            .and_then(|rest| rest.strip_suffix('"'));
        match included {
            // The emulated machine is for a host's compiler.
            Some(file) if file.starts_with("emulate/") => {}
            Some(file) => append(file, seen, out),
            None if line.trim() == "#pragma once" => {}
            None => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
}

/// Whether a folder has a copy of every source, equal to the embedded ones.
pub fn same(folder: &Path) -> bool {
    FILES.iter().all(|(name, text)| {
        std::fs::read(folder.join(name)).is_ok_and(|found| found == text.as_bytes())
    })
}

/// Leaves copies of the sources in a folder.
pub fn copy_to(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    FILES
        .iter()
        .try_for_each(|(name, text)| std::fs::write(folder.join(name), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_is_in_the_text_of_its_module_and_none_is_forgotten() {
        for module in MODULES {
            let text = text(&format!("{}.cu", module.name));
            for kernel in module.kernels {
                let (stem, last) = kernel.rsplit_once('_').unwrap();
                let by_macro = text.contains(&format!("({last}, "))
                    && text.contains(&format!("{stem}_##name("));
                let is_named =
                    text.contains(&format!(" {kernel}(")) || text.contains(&format!("({kernel}, "));
                assert!(
                    is_named || by_macro,
                    "{kernel} is not in {}.cu",
                    module.name
                );
            }
        }
    }

    #[test]
    fn a_flat_module_includes_nothing() {
        for module in MODULES {
            let flat = flat(&module);
            assert!(
                !flat.lines().any(|line| line.starts_with("#include")),
                "{}",
                module.name
            );
            assert_eq!(flat.matches("DEVICE float from_half(").count(), 1);
        }
    }

    #[test]
    fn copies_are_compared_byte_by_byte() {
        let folder = std::env::temp_dir().join(format!("headwater-sources-{}", std::process::id()));
        copy_to(&folder).unwrap();
        assert!(same(&folder));
        std::fs::write(folder.join("norm.cu"), "// older").unwrap();
        assert!(!same(&folder));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
