//! The fuzz targets under libFuzzer: `HEADWATER_FUZZ=json fuzz [options] [folders]`.
//!
//! One program for all targets, so that it is linked once; which one runs is chosen by the
//! environment. `tests/fuzz/run.sh` builds and runs it.

#![no_main]

use std::sync::LazyLock;

static TARGET: LazyLock<String> = LazyLock::new(|| {
    std::env::var("HEADWATER_FUZZ").expect("HEADWATER_FUZZ names a target: json, avro, …")
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz_targets::targets::run(&TARGET, input));
