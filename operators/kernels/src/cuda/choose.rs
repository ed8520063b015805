//! Which device, and kernels from where: cubin, cache, run-time compiler, or the CPU; and why.
//!
//! ```text
//!   device of capability 9.0 ─▶ cubins in the program itself                     ─ loads? ─▶ use them
//!                            ─▶ cubins that build.sh made of these very sources  ─ loads? ─▶ use them
//!   any of 8.0 or newer      ─▶ PTX that NVRTC 13.0 made earlier, of these       ─ loads? ─▶ use it
//!                            ─▶ NVRTC 13.0                                       ─ loads? ─▶ use it, keep it
//!                            ─▶ none: the CPU encodes
//! ```
//!
//! Each way is tried when those before it have failed, be it that there is nothing or that the driver refuses
//! it; each failure is kept as a reason. Everything lies in one folder, `$HEADWATER_CUDA` or
//! `~/.cache/headwater/cuda`; PTX in one of its own by capability and compiler. The compiler is the one that
//! the kernels were checked with: another might spill, or order sums otherwise. A driver of an older CUDA
//! cannot read its PTX, so that is not even tried.
//!
//! Invariants: nothing here fails for lack of a device; every way not taken has a reason in the report;
//! a fault that is not the images' (a context that cannot be made, memory) ends the search at once.

use std::path::{Path, PathBuf};

use super::device::Fault;
use super::image::{check_cubin, check_ptx};
use super::sources::{self, CUBINS, MODULES, Module};

/// The run-time compiler that the kernels are checked with, and the oldest driver that reads its PTX.
pub const NVRTC: (u32, u32) = (13, 0);

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

/// Where kernels come from.
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

impl Origin {
    /// Short, for lists of reasons.
    fn name(&self) -> &'static str {
        match self {
            Origin::Embedded => "in the program",
            Origin::Cubin(_) => "compiled ahead",
            Origin::Cached(_) => "compiled earlier",
            Origin::Compiled => "compiled now",
        }
    }

    /// A phrase for people.
    pub fn describe(&self) -> String {
        match self {
            Origin::Embedded => "kernels compiled into the program".to_owned(),
            Origin::Cubin(folder) => format!("kernels compiled ahead, in {}", folder.display()),
            Origin::Cached(folder) => format!("kernels compiled earlier, in {}", folder.display()),
            Origin::Compiled => "kernels compiled just now".to_owned(),
        }
    }
}

/// Kernels to load: an image a module, a whole cubin or PTX with a 0 behind it.
pub type Images = Vec<(Module, Vec<u8>)>;

/// What a search ended with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen<T> {
    /// What loading gave.
    pub loaded: T,
    /// From where.
    pub origin: Origin,
    /// Ways that were not taken, and why.
    pub not_taken: Vec<String>,
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

/// Where to look and whom to ask; tests have their own.
pub struct Search<'a> {
    /// (module, machine code) in the program.
    pub embedded: &'a [(&'a str, &'a [u8])],
    /// The folder of compiled kernels.
    pub home: Option<&'a Path>,
    /// The run-time compiler.
    pub compiler: &'a dyn Compiler,
}

impl<'a> Search<'a> {
    /// What this program has.
    pub fn new(home: Option<&'a Path>, compiler: &'a dyn Compiler) -> Self {
        Search {
            embedded: CUBINS,
            home,
            compiler,
        }
    }

    /// All ways for a device, best first.
    fn ways(&self, facts: &Facts) -> Vec<Origin> {
        let mut ways = vec![Origin::Embedded];
        if let Some(home) = self.home {
            let ((major, minor), (nvrtc, sub)) = (facts.capability, NVRTC);
            let target = format!("ptx-{major}.{minor}-nvrtc-{nvrtc}.{sub}");
            ways.push(Origin::Cubin(home.join("cubin")));
            ways.push(Origin::Cached(home.join(target)));
        }
        ways.push(Origin::Compiled);
        ways
    }

    /// Tries one way after the other until `load` takes the images. Fails with all reasons when none
    /// loads, and at once with a fault that other images would not mend.
    ///
    /// Cost: reads a megabyte a way; compiling takes seconds and is kept for the next start.
    pub fn load_first<T>(
        &self,
        facts: &Facts,
        mut load: impl FnMut(&Origin, &Images) -> Result<T, Fault>,
    ) -> Result<Chosen<T>, Fault> {
        check_capability(facts)?;
        let mut not_taken = Vec::new();
        for origin in self.ways(facts) {
            let refused = match self.images(&origin, facts) {
                Ok(images) => match load(&origin, &images) {
                    Ok(loaded) => {
                        if origin == Origin::Compiled {
                            not_taken.extend(self.keep(facts, &images));
                        }
                        return Ok(Chosen {
                            loaded,
                            origin,
                            not_taken,
                        });
                    }
                    Err(Fault::Unavailable(why)) => format!("the driver refuses it: {why}"),
                    Err(fault) => return Err(fault),
                },
                Err(why) => why,
            };
            not_taken.push(format!("{}: {refused}", origin.name()));
        }
        Err(Fault::Unavailable(format!(
            "no kernels for {}: {}",
            facts.name,
            not_taken.join("; ")
        )))
    }

    /// What would be tried for such a device and what is known of each way without the driver: one
    /// line a way, in order. Compiles nothing.
    pub fn survey(&self, facts: &Facts) -> Vec<String> {
        if let Err(why) = check_capability(facts) {
            return vec![why.to_string()];
        }
        let line = |origin: Origin| {
            let found = match &origin {
                Origin::Compiled => self.may_compile(facts).map(|()| "can be tried".to_owned()),
                _ => self.images(&origin, facts).map(|images| {
                    let place = match &origin {
                        Origin::Cubin(folder) | Origin::Cached(folder) => {
                            format!(" in {}", folder.display())
                        }
                        _ => String::new(),
                    };
                    format!("{} modules{place}, whole", images.len())
                }),
            };
            format!("{}: {}", origin.name(), found.unwrap_or_else(|why| why))
        };
        self.ways(facts).into_iter().map(line).collect()
    }

    /// The images of a way, checked as far as can be without the driver.
    fn images(&self, origin: &Origin, facts: &Facts) -> Result<Images, String> {
        match origin {
            Origin::Embedded => within(self.embedded, facts),
            Origin::Cubin(folder) => stored(facts, folder, "cubin"),
            Origin::Cached(folder) => {
                check_driver(facts)?;
                stored(facts, folder, "ptx")
            }
            Origin::Compiled => self.compile(facts),
        }
    }

    fn may_compile(&self, facts: &Facts) -> Result<(), String> {
        let (major, minor) = self.compiler.version()?;
        if (major, minor) != NVRTC {
            return Err(format!(
                "NVRTC is {major}.{minor}, the kernels are checked with {}.{} and use no other",
                NVRTC.0, NVRTC.1
            ));
        }
        check_driver(facts)
    }

    fn compile(&self, facts: &Facts) -> Result<Images, String> {
        self.may_compile(facts)?;
        let architecture = match facts.capability {
            (9, 0) => "compute_90a".to_owned(),
            (major, minor) => format!("compute_{major}{minor}"),
        };
        modules_for(facts.capability)
            .map(|module| {
                let compiled = self.compiler.compile(&module, &architecture);
                let image = compiled.map_err(|log| format!("{}.cu: {log}", module.name))?;
                check_ptx(&module, &image).map_err(|why| format!("{}.cu: {why}", module.name))?;
                Ok((module, ended(image)))
            })
            .collect()
    }

    /// Keeps PTX for the next start; says why when it could not.
    fn keep(&self, facts: &Facts, images: &Images) -> Option<String> {
        let ways = self.ways(facts).into_iter();
        let folder = ways
            .filter_map(|way| match way {
                Origin::Cached(folder) => Some(folder),
                _ => None,
            })
            .next()?;
        let kept = keep(&folder, images).err();
        kept.map(|error| format!("keeping them in {}: {error}", folder.display()))
    }
}

fn check_capability(facts: &Facts) -> Result<(), Fault> {
    let (major, minor) = facts.capability;
    if major >= 8 {
        return Ok(());
    }
    Err(Fault::Unavailable(format!(
        "{} has compute capability {major}.{minor}, the kernels need 8.0",
        facts.name
    )))
}

/// Fails where the driver is older than the compiler: it cannot read what that makes.
fn check_driver(facts: &Facts) -> Result<(), String> {
    if facts.driver >= NVRTC {
        return Ok(());
    }
    Err(format!(
        "the driver reads CUDA {}.{} at most, PTX of NVRTC {}.{} would not load",
        facts.driver.0, facts.driver.1, NVRTC.0, NVRTC.1
    ))
}

/// Images that are part of the program.
fn within(embedded: &[(&str, &[u8])], facts: &Facts) -> Result<Images, String> {
    if embedded.is_empty() {
        return Err("none".to_owned());
    }
    if facts.capability != (9, 0) {
        return Err("they are for compute capability 9.0".to_owned());
    }
    MODULES
        .into_iter()
        .map(|module| {
            let found = embedded.iter().find(|(name, _)| *name == module.name);
            let (_, image) = found.ok_or_else(|| format!("{} is missing", module.name))?;
            check_cubin(&module, image).map_err(|why| format!("{}: {why}", module.name))?;
            Ok((module, image.to_vec()))
        })
        .collect()
}

/// Images that lie in a folder, made of the embedded sources.
fn stored(facts: &Facts, folder: &Path, extension: &str) -> Result<Images, String> {
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
            let of_path = |why: String| format!("{}: {why}", path.display());
            let image = std::fs::read(&path).map_err(|e| of_path(e.to_string()))?;
            if extension == "cubin" {
                check_cubin(&module, &image).map_err(of_path)?;
                return Ok((module, image));
            }
            check_ptx(&module, &image).map_err(of_path)?;
            Ok((module, ended(image)))
        })
        .collect()
}

/// PTX with the 0 behind it that the driver reads up to.
fn ended(mut text: Vec<u8>) -> Vec<u8> {
    if text.last() != Some(&0) {
        text.push(0);
    }
    text
}

/// Keeps PTX for the next start: written aside and moved into place, the sources last.
fn keep(folder: &Path, images: &Images) -> std::io::Result<()> {
    let aside = folder.with_file_name(format!(".ptx-{}", std::process::id()));
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
mod tests;
