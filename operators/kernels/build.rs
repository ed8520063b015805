//! Puts compiled CUDA kernels into the program, where `HEADWATER_CUBINS` names the folder that
//! `cuda/build.sh` left them in; without it there are none, and the program looks for them when it starts.
//!
//! Only what was asked for: a build must not depend on what happens to lie in a cache. Cubins that were made
//! of other sources end the build.

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=HEADWATER_CUBINS");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    let folder = std::env::var_os("HEADWATER_CUBINS").filter(|folder| !folder.is_empty());
    let entries = folder.map_or_else(String::new, |folder| entries(Path::new(&folder), &out));
    std::fs::write(out.join("cubins.rs"), format!("&[{entries}]")).expect("OUT_DIR can be written");
}

/// Copies the cubins of a folder, and gives an entry for each: `("linear", include_bytes!(…)),`.
fn entries(folder: &Path, out: &Path) -> String {
    let mut entries = String::new();
    for source in std::fs::read_dir("cuda").expect("the kernels' sources are here") {
        let source = source.expect("a folder's entry").path();
        let ending = source.extension().and_then(|ending| ending.to_str());
        let (Some("cu" | "cuh"), Some(name)) = (ending, source.file_name()) else {
            continue;
        };
        println!("cargo::rerun-if-changed={}", source.display());
        let copy = folder.join(name);
        let is_same = std::fs::read(&copy).ok() == std::fs::read(&source).ok();
        assert!(
            is_same,
            "HEADWATER_CUBINS: {} is not the {} of this build; run cuda/build.sh again",
            copy.display(),
            source.display()
        );
        if ending == Some("cu") {
            let name = source.with_extension("cubin");
            let name = name.file_name().unwrap_or_default();
            let cubin = folder.join(name);
            println!("cargo::rerun-if-changed={}", cubin.display());
            let copied = std::fs::copy(&cubin, out.join(name));
            assert!(
                copied.is_ok(),
                "HEADWATER_CUBINS: {} cannot be read; run cuda/build.sh again",
                cubin.display()
            );
            let name = name.to_string_lossy();
            let module = name.trim_end_matches(".cubin");
            let path = out.join(&*name);
            entries += &format!("({module:?}, include_bytes!({path:?}).as_slice()),");
        }
    }
    entries
}
