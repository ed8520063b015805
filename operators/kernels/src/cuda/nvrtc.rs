//! NVIDIA's run-time compiler, when its library is on the loader's path.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::panic::catch_unwind;

use cudarc::nvrtc::{result, sys};

use super::choose::Compiler;
use super::sources::{self, Module};

/// The compiler.
pub struct Nvrtc;

impl Compiler for Nvrtc {
    fn version(&self) -> Result<(u32, u32), String> {
        // cudarc panics where a library or one of its functions is missing.
        let found = catch_unwind(|| {
            // SAFETY: opens and closes a library by name.
            if !unsafe { sys::is_culib_present() } {
                return Err("libnvrtc is not on the loader's path".to_owned());
            }
            let (mut major, mut minor) = (0, 0);
            // SAFETY: writes two ints.
            unsafe { sys::nvrtcVersion(&mut major, &mut minor) }
                .result()
                .map_err(|e| e.to_string())?;
            Ok((major as u32, minor as u32))
        });
        found.unwrap_or_else(|_| Err("libnvrtc cannot be used".to_owned()))
    }

    fn compile(&self, module: &Module, architecture: &str) -> Result<Vec<u8>, String> {
        let source = CString::new(sources::flat(module)).map_err(|e| e.to_string())?;
        let name = CString::new(format!("{}.cu", module.name)).map_err(|e| e.to_string())?;
        let options = [
            format!("--gpu-architecture={architecture}"),
            "--std=c++17".to_owned(),
        ];
        let found = catch_unwind(|| {
            let program =
                result::create_program(&source, Some(&name)).map_err(|e| e.to_string())?;
            // SAFETY: the program is ours until it is destroyed, once, below.
            unsafe {
                let compiled = result::compile_program(program, &options);
                let ptx = match compiled {
                    Ok(()) => result::get_ptx(program).map_err(|e| e.to_string()),
                    Err(error) => Err(log_of(program).unwrap_or_else(|| error.to_string())),
                };
                let _ = result::destroy_program(program);
                Ok(ptx?.into_iter().map(|c| c as u8).collect())
            }
        });
        found.unwrap_or_else(|_| Err("libnvrtc cannot be used".to_owned()))
    }
}

/// The compiler's own words.
///
/// # Safety
/// The program must not have been destroyed.
unsafe fn log_of(program: sys::nvrtcProgram) -> Option<String> {
    // SAFETY: the caller's promise.
    let log = unsafe { result::get_program_log(program) }.ok()?;
    let bytes: Vec<u8> = log.into_iter().map(|c| c as u8).collect();
    let text = CStr::from_bytes_until_nul(&bytes).ok()?;
    Some(text.to_string_lossy().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::image::check_ptx;
    use super::*;

    #[test]
    fn every_module_compiles_where_there_is_a_compiler() {
        let version = match Nvrtc.version() {
            Ok(version) => version,
            Err(why) => {
                // Past the harness, which keeps what passing tests print to itself.
                let line = format!("SKIPPED: NVRTC compiles every module: {why}\n");
                let _ = std::io::stderr().write_all(line.as_bytes());
                return;
            }
        };
        println!("NVRTC {version:?}");
        for module in sources::MODULES {
            let architecture = if module.is_hopper {
                "compute_90a"
            } else {
                "compute_80"
            };
            let ptx = Nvrtc.compile(&module, architecture).unwrap();
            assert_eq!(check_ptx(&module, &ptx), Ok(()), "{}", module.name);
        }
        let error = Nvrtc
            .compile(&sources::MODULES[0], "compute_1")
            .unwrap_err();
        assert!(!error.is_empty());
    }
}
