//! Which CUDA devices there are, and what the driver's errors mean.

#![allow(unsafe_code)]

use std::panic::catch_unwind;
use std::sync::mpsc::channel;
use std::time::Duration;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use super::choose::{self, Facts, Search};
use super::device::{Device, Fault};
use super::driver::Driver;
use super::nvrtc::Nvrtc;

/// An error of the driver as a fault: what is not known to be harmless has cost the context.
pub(super) fn fault(error: DriverError) -> Fault {
    let name = error.error_name().map_or_else(
        |_| format!("error {}", error.0 as u32),
        |name| name.to_string_lossy().into_owned(),
    );
    match error.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Fault::OutOfMemory(name),
        CUresult::CUDA_ERROR_NO_DEVICE
        | CUresult::CUDA_ERROR_INVALID_DEVICE
        | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
        | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | CUresult::CUDA_ERROR_INVALID_PTX
        | CUresult::CUDA_ERROR_INVALID_IMAGE
        | CUresult::CUDA_ERROR_NOT_FOUND => Fault::Unavailable(name),
        _ => Fault::Lost(name),
    }
}

/// An error of loading a module: what only says that the image is no good is [`Fault::Unavailable`], and
/// another image may do.
pub(super) fn refused(module: &str, error: DriverError) -> Fault {
    match (error.0, fault(error)) {
        (
            CUresult::CUDA_ERROR_INVALID_VALUE
            | CUresult::CUDA_ERROR_INVALID_SOURCE
            | CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
            | CUresult::CUDA_ERROR_JIT_COMPILATION_DISABLED
            | CUresult::CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND
            | CUresult::CUDA_ERROR_SHARED_OBJECT_INIT_FAILED
            | CUresult::CUDA_ERROR_NOT_SUPPORTED
            | CUresult::CUDA_ERROR_UNKNOWN,
            Fault::Lost(name),
        )
        | (_, Fault::Unavailable(name)) => Fault::Unavailable(format!("{module}: {name}")),
        (_, fault) => fault,
    }
}

/// The devices of this machine, or why there are none. Opens the driver's library.
pub fn devices() -> Result<Vec<Facts>, Fault> {
    // cudarc panics where a library or a function of it is missing: the library is looked for first,
    // and an old one without some function must not end the program.
    let found = catch_unwind(|| {
        // SAFETY: opens and closes a library by name.
        if !unsafe { sys::is_culib_present() } {
            let why = "there is no CUDA driver (libcuda is not on the loader's path)";
            return Err(Fault::Unavailable(why.to_owned()));
        }
        result::init().map_err(fault)?;
        let mut version = 0;
        // SAFETY: writes one int.
        unsafe { sys::cuDriverGetVersion(&mut version) }
            .result()
            .map_err(fault)?;
        let driver = (version as u32 / 1000, version as u32 % 1000 / 10);
        let count = result::device::get_count().map_err(fault)?;
        (0..count)
            .map(|ordinal| {
                let device = result::device::get(ordinal).map_err(fault)?;
                // SAFETY: the device was given by the driver.
                let attribute = |name| unsafe { result::device::get_attribute(device, name) };
                let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
                let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
                Ok(Facts {
                    ordinal: ordinal as usize,
                    name: result::device::get_name(device).map_err(fault)?,
                    capability: (major.map_err(fault)? as u32, minor.map_err(fault)? as u32),
                    driver,
                })
            })
            .collect()
    });
    found.unwrap_or_else(|_| {
        Err(Fault::Unavailable(
            "the CUDA driver lacks functions that are needed: it is too old".to_owned(),
        ))
    })
}

/// [`devices`], asked by a thread of its own: a driver that hangs is a time-out, not ours. The thread is left
/// to it.
pub fn devices_within(limit: Duration) -> Result<Vec<Facts>, Fault> {
    within(limit, devices)
}

fn within<T: Send + 'static>(
    limit: Duration,
    ask: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let (tell, told) = channel();
    std::thread::Builder::new()
        .name("encoder-devices".to_owned())
        .spawn(move || {
            // Nobody listens any more when it took too long.
            let _ = tell.send(ask());
        })
        .map_err(|e| Fault::Unavailable(format!("no thread to ask the driver: {e}")))?;
    match told.recv_timeout(limit) {
        Ok(answer) => answer,
        Err(_) => Err(Fault::TimedOut(limit.as_millis())),
    }
}

/// What `headwater doctor` says of CUDA: for each device the kernels that the driver takes, which are
/// loaded for it, and why not others; without a device the reason, and what would be tried on one.
pub fn report() -> Vec<String> {
    let why = match devices() {
        Ok(found) if found.is_empty() => "no CUDA device".to_owned(),
        Ok(found) => return found.iter().map(line).collect(),
        Err(why) => why.to_string(),
    };
    vec![format!("{why}; the CPU encodes"), would_be_tried()]
}

/// The ways to kernels as they are here, for the device that they were written for.
pub fn would_be_tried() -> String {
    let hopper = Facts {
        ordinal: 0,
        name: "a GPU".to_owned(),
        capability: (9, 0),
        driver: choose::NVRTC,
    };
    let home = choose::home();
    let ways = Search::new(home.as_deref(), &Nvrtc).survey(&hopper);
    format!("kernels for capability 9.0: {}", ways.join("; "))
}

fn line(facts: &Facts) -> String {
    let (major, minor) = facts.capability;
    let head = format!(
        "cuda:{} {}, capability {major}.{minor}",
        facts.ordinal, facts.name
    );
    match Driver::open(facts.ordinal) {
        Ok(driver) if driver.not_taken().is_empty() => format!("{head}: {}", driver.describe()),
        Ok(driver) => {
            let others = driver.not_taken().join("; ");
            format!("{head}: {} ({others})", driver.describe())
        }
        Err(why) => format!("{head}: {why}; the CPU encodes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_hangs_is_a_time_out() {
        let (gate, is_open) = channel::<()>();
        let asked = within(Duration::from_millis(20), move || {
            let _ = is_open.recv();
            Ok(1)
        });
        assert_eq!(asked, Err(Fault::TimedOut(20)));
        drop(gate);
        assert_eq!(within(Duration::from_secs(20), || Ok(1)), Ok(1));
    }
}
