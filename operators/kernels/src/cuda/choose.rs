//! Which device, and kernels from where: cubin, cache, run-time compiler, or the CPU; and why.
//!
//! ```text
//!   device of capability 9.0 ─▶ cubins in the program itself?                     ─ yes ─▶ use them
//!                            ─▶ cubins that build.sh made of these very sources?  ─ yes ─▶ use them
//!   any of 8.0 or newer      ─▶ PTX compiled here earlier, of these sources?       ─ yes ─▶ use it
//!                            ─▶ NVRTC, no newer than the driver?                   ─ yes ─▶ compile, keep
//!                            ─▶ none: the CPU encodes
//! ```
//!
//! Everything else lies in one folder, `$HEADWATER_CUDA` or `~/.cache/headwater/cuda`. A run-time compiler
//! newer than the driver makes PTX that the driver cannot read, so it is not even tried.
//!
//! Invariants: nothing here fails for lack of a device; every way not taken has a reason in the report.

use std::path::{Path, PathBuf};

use super::device::Fault;
use super::sources::{self, CUBINS, MODULES, Module};

/// What `DEVICE = '…'` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// All devices there are, or the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// One device by number; its absence is an error.
    Cuda(usize),
}

impl Wanted {
    /// Parses `auto`, `cpu`, `cuda` or `cuda:N`.
    pub fn parse(text: &str) -> Result<Wanted, String> {
        let lower = text.to_ascii_lowercase();
        let number = lower.strip_prefix("cuda:").map(str::parse);
        match (lower.as_str(), number) {
            ("auto", _) => Ok(Wanted::Auto),
            ("cpu", _) => Ok(Wanted::Cpu),
            ("cuda", _) => Ok(Wanted::Cuda(0)),
            (_, Some(Ok(number))) => Ok(Wanted::Cuda(number)),
            _ => Err(format!(
                "DEVICE is '{text}', expected 'auto', 'cpu' or 'cuda:0'"
            )),
        }
    }
}

/// What is known of a device before kernels are loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its number.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Compute capability.
    pub capability: (u32, u32),
    /// The newest CUDA version that the driver understands.
    pub driver: (u32, u32),
}

/// Where kernels came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Machine code in the program itself.
    Embedded,
    /// Machine code by `build.sh`.
    Cubin(PathBuf),
    /// PTX that an earlier start compiled.
    Cached(PathBuf),
    /// PTX of just now.
    Compiled,
}

/// Kernels to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernels {
    /// From where.
    pub origin: Origin,
    /// Ways that were not taken, and why.
    pub not_taken: Vec<String>,
    /// An image a module: a cubin, or PTX with a 0 behind it.
    pub images: Vec<(Module, Vec<u8>)>,
}

impl Kernels {
    /// One line for people.
    pub fn describe(&self) -> String {
        match &self.origin {
            Origin::Embedded => "kernels compiled into the program".to_owned(),
            Origin::Cubin(folder) => format!("kernels compiled ahead, in {}", folder.display()),
            Origin::Cached(folder) => format!("kernels compiled earlier, in {}", folder.display()),
            Origin::Compiled => "kernels compiled just now".to_owned(),
        }
    }
}

/// A run-time compiler: its version, and a module's PTX for an architecture such as `compute_80`.
pub trait Compiler {
    /// CUDA version, or why there is none.
    fn version(&self) -> Result<(u32, u32), String>;
    /// PTX, or the compiler's log.
    fn compile(&self, module: &Module, architecture: &str) -> Result<Vec<u8>, String>;
}

/// The folder of compiled kernels; absent when there is no home either.
pub fn home() -> Option<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("HEADWATER_CUDA")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("headwater/cuda")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/headwater/cuda")))
}

/// The modules that a device can run.
fn modules_for(capability: (u32, u32)) -> impl Iterator<Item = Module> {
    MODULES
        .into_iter()
        .filter(move |module| !module.is_hopper || capability == (9, 0))
}

/// Chooses kernels for a device. Fails with all reasons when there are none.
pub fn choose(
    facts: &Facts,
    home: Option<&Path>,
    compiler: &dyn Compiler,
) -> Result<Kernels, Fault> {
    choose_from(CUBINS, facts, home, compiler)
}

fn choose_from(
    embedded: &[(&str, &[u8])],
    facts: &Facts,
    home: Option<&Path>,
    compiler: &dyn Compiler,
) -> Result<Kernels, Fault> {
    let (major, minor) = facts.capability;
    if major < 8 {
        return Err(Fault::Unavailable(format!(
            "{} has compute capability {major}.{minor}, the kernels need 8.0",
            facts.name
        )));
    }
    let mut not_taken = Vec::new();
    match within(embedded, facts) {
        Ok(images) => {
            return Ok(Kernels {
                origin: Origin::Embedded,
                not_taken,
                images,
            });
        }
        Err(why) => not_taken.push(format!("in the program: {why}")),
    }
    let folders = home.map(|home| {
        let target = format!("ptx-{major}.{minor}");
        (home.join("cubin"), home.join(target))
    });
    if let Some((cubins, ptx)) = &folders {
        match stored(facts, cubins, "cubin") {
            Ok(images) => {
                return Ok(Kernels {
                    origin: Origin::Cubin(cubins.clone()),
                    not_taken,
                    images,
                });
            }
            Err(why) => not_taken.push(format!("compiled ahead: {why}")),
        }
        match stored(facts, ptx, "ptx") {
            Ok(images) => {
                return Ok(Kernels {
                    origin: Origin::Cached(ptx.clone()),
                    not_taken,
                    images,
                });
            }
            Err(why) => not_taken.push(format!("compiled earlier: {why}")),
        }
    }
    match compile(facts, compiler) {
        Ok(images) => {
            if let Some((_, ptx)) = &folders
                && let Err(error) = keep(ptx, &images)
            {
                not_taken.push(format!("keeping them in {}: {error}", ptx.display()));
            }
            Ok(Kernels {
                origin: Origin::Compiled,
                not_taken,
                images,
            })
        }
        Err(why) => {
            not_taken.push(format!("compiled now: {why}"));
            Err(Fault::Unavailable(format!(
                "no kernels for {}: {}",
                facts.name,
                not_taken.join("; ")
            )))
        }
    }
}

/// Images that are part of the program.
fn within(
    embedded: &[(&str, &[u8])],
    facts: &Facts,
) -> Result<Vec<(Module, Vec<u8>)>, &'static str> {
    if embedded.is_empty() {
        return Err("none");
    }
    if facts.capability != (9, 0) {
        return Err("they are for compute capability 9.0");
    }
    let image = |module: Module| {
        let found = embedded.iter().find(|(name, _)| *name == module.name);
        found.map(|(_, image)| (module, image.to_vec()))
    };
    let images: Option<Vec<_>> = MODULES.into_iter().map(image).collect();
    images.ok_or("one is missing")
}

/// Images that lie in a folder, made of the embedded sources.
fn stored(facts: &Facts, folder: &Path, extension: &str) -> Result<Vec<(Module, Vec<u8>)>, String> {
    if extension == "cubin" && facts.capability != (9, 0) {
        return Err("they are for compute capability 9.0".to_owned());
    }
    if !folder.is_dir() {
        return Err(format!("{} does not exist", folder.display()));
    }
    if !sources::same(folder) {
        return Err(format!("{} was made of other sources", folder.display()));
    }
    modules_for(facts.capability)
        .map(|module| {
            let path = folder.join(format!("{}.{extension}", module.name));
            let mut image = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            if extension == "ptx" {
                image.push(0);
            }
            Ok((module, image))
        })
        .collect()
}

fn compile(facts: &Facts, compiler: &dyn Compiler) -> Result<Vec<(Module, Vec<u8>)>, String> {
    let version = compiler.version()?;
    if version > facts.driver {
        return Err(format!(
            "NVRTC is {}.{}, newer than the driver's {}.{}: its PTX would not load",
            version.0, version.1, facts.driver.0, facts.driver.1
        ));
    }
    let architecture = match facts.capability {
        (9, 0) => "compute_90a".to_owned(),
        (major, minor) => format!("compute_{major}{minor}"),
    };
    modules_for(facts.capability)
        .map(|module| {
            let mut image = compiler
                .compile(&module, &architecture)
                .map_err(|log| format!("{}.cu: {log}", module.name))?;
            if image.last() != Some(&0) {
                image.push(0);
            }
            Ok((module, image))
        })
        .collect()
}

/// Keeps PTX for the next start: written aside and moved into place, the sources last.
fn keep(folder: &Path, images: &[(Module, Vec<u8>)]) -> std::io::Result<()> {
    let aside = folder.with_extension(format!("{}", std::process::id()));
    std::fs::create_dir_all(&aside)?;
    for (module, image) in images {
        let text = image.strip_suffix(&[0]).unwrap_or(image);
        std::fs::write(aside.join(format!("{}.ptx", module.name)), text)?;
    }
    sources::copy_to(&aside)?;
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    std::fs::rename(&aside, folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake(Result<(u32, u32), String>);

    impl Compiler for Fake {
        fn version(&self) -> Result<(u32, u32), String> {
            self.0.clone()
        }

        fn compile(&self, module: &Module, architecture: &str) -> Result<Vec<u8>, String> {
            Ok(format!("{} {architecture}", module.name).into_bytes())
        }
    }

    fn facts(capability: (u32, u32)) -> Facts {
        Facts {
            ordinal: 0,
            name: "A GPU".to_owned(),
            capability,
            driver: (13, 0),
        }
    }

    #[test]
    fn the_order_is_cubin_then_cache_then_compiler() {
        let home = std::env::temp_dir().join(format!("headwater-choose-{}", std::process::id()));
        let compiler = Fake(Ok((13, 0)));
        let chosen = choose(&facts((9, 0)), Some(&home), &compiler).unwrap();
        assert_eq!(chosen.origin, Origin::Compiled);
        assert_eq!(chosen.images.len(), MODULES.len());
        assert_eq!(chosen.images[0].1, b"linear compute_90a\0");
        // A second start finds them; another chip does not, and gets no Hopper kernels.
        let none = Fake(Err("libnvrtc is not here".to_owned()));
        let again = choose(&facts((9, 0)), Some(&home), &none).unwrap();
        assert_eq!(again.origin, Origin::Cached(home.join("ptx-9.0")));
        assert_eq!(again.images, chosen.images);
        let other = choose(&facts((8, 9)), Some(&home), &compiler).unwrap();
        assert_eq!(other.images.len(), MODULES.len() - 1);
        // Cubins of these sources come first, of others never.
        let cubins = home.join("cubin");
        sources::copy_to(&cubins).unwrap();
        for module in MODULES {
            std::fs::write(cubins.join(format!("{}.cubin", module.name)), "code").unwrap();
        }
        let first = choose(&facts((9, 0)), Some(&home), &none).unwrap();
        assert_eq!(first.origin, Origin::Cubin(cubins.clone()));
        assert_eq!(first.images[0].1, b"code");
        std::fs::write(cubins.join("pool.cu"), "// older").unwrap();
        let cached = choose(&facts((9, 0)), Some(&home), &none).unwrap();
        assert_eq!(cached.origin, Origin::Cached(home.join("ptx-9.0")));
        assert!(cached.not_taken[1].ends_with("was made of other sources"));
        // What is in the program comes before all.
        let within: Vec<(&str, &[u8])> = MODULES.map(|module| (module.name, &b"code"[..])).to_vec();
        let first = choose_from(&within, &facts((9, 0)), Some(&home), &none).unwrap();
        assert_eq!((first.origin, first.images.len()), (Origin::Embedded, 5));
        let other = choose_from(&within, &facts((8, 9)), None, &compiler).unwrap();
        assert_eq!(other.origin, Origin::Compiled);
        assert_eq!(
            other.not_taken,
            ["in the program: they are for compute capability 9.0"]
        );
        std::fs::remove_dir_all(&home).unwrap();
    }

    #[test]
    fn what_is_missing_is_named() {
        let message = |capability, compiler: Result<(u32, u32), String>| {
            let chosen = choose(&facts(capability), None, &Fake(compiler));
            chosen.unwrap_err().to_string()
        };
        assert_eq!(
            message((7, 5), Ok((13, 0))),
            "A GPU has compute capability 7.5, the kernels need 8.0"
        );
        assert_eq!(
            message((8, 0), Ok((13, 5))),
            "no kernels for A GPU: in the program: none; compiled now: NVRTC is 13.5, newer than the driver's 13.0: its PTX would not load"
        );
        assert_eq!(
            message((9, 0), Err("libnvrtc is not here".to_owned())),
            "no kernels for A GPU: in the program: none; compiled now: libnvrtc is not here"
        );
    }

    #[test]
    fn devices_are_named_as_in_statements() {
        assert_eq!(Wanted::parse("AUTO"), Ok(Wanted::Auto));
        assert_eq!(Wanted::parse("cuda:3"), Ok(Wanted::Cuda(3)));
        assert_eq!(
            Wanted::parse("gpu").unwrap_err(),
            "DEVICE is 'gpu', expected 'auto', 'cpu' or 'cuda:0'"
        );
    }
}
