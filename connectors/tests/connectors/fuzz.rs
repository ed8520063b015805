//! The corpus of the fuzz targets, once: what they found stays mended, without a fuzzer.

use std::path::Path;

#[path = "../../../tests/fuzz/targets/mod.rs"]
mod targets;

/// Every input that `tests/fuzz/run.sh` kept; a failure names its file.
#[test]
fn the_corpus_breaks_no_law() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
    let mut inputs = 0;
    for (name, _) in targets::TARGETS {
        let folder = corpus.join(name);
        let entries =
            std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
        for entry in entries {
            let path = entry.unwrap().path();
            let input = std::fs::read(&path).unwrap();
            assert!(input.len() <= targets::INPUT_BYTES_MAX, "{path:?}");
            let run = std::panic::catch_unwind(|| targets::run(name, &input));
            assert!(run.is_ok(), "{path:?}, see above");
            inputs += 1;
        }
    }
    assert!(inputs >= 100, "{inputs} inputs");
}
