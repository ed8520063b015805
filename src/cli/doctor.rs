//! `headwater doctor`: what this machine has, and what the engine will use and why.
//!
//! Looks, never changes: files, CPU flags, one try to bind a port. The driver of a GPU is loaded only where
//! there is a device, after its files are printed: loading it could itself be what hangs.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use super::Models;
use super::output::Output;
use crate::app::{self, ModelReport, Threads};
use crate::client::{Client, DEFAULT_URL};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    models: Models,
}

/// One line of the report.
struct Finding {
    topic: &'static str,
    found: String,
    /// What the engine makes of it.
    effect: String,
    is_good: bool,
}

pub(crate) fn doctor(args: Args, output: &Output) -> anyhow::Result<ExitCode> {
    let models = app::model_list(args.models.models.as_deref());
    let findings = findings(models);
    for finding in &findings {
        if output.is_json {
            output.json(&json!({
                "topic": finding.topic, "found": finding.found,
                "effect": finding.effect, "good": finding.is_good,
            }))?;
            continue;
        }
        let mark = if finding.is_good {
            output.green("✓")
        } else {
            output.red("!")
        };
        let topic = output.bold(&format!("{:<8}", finding.topic));
        output.line(&format!("{mark} {topic} {}", finding.found))?;
        output.line(&output.dim(&format!("           {}", finding.effect)))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn findings(models: anyhow::Result<Vec<ModelReport>>) -> Vec<Finding> {
    let program = Finding {
        topic: "program",
        found: format!("headwater {}", super::version()),
        effect: format!("on {} {}", std::env::consts::OS, std::env::consts::ARCH),
        is_good: true,
    };
    [program, cores()]
        .into_iter()
        .chain(memory())
        .chain([features(), gpu(), kafka(), model(models), port()])
        .collect()
}

fn cores() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let Threads { workers, embed } = Threads::default();
    let effect = match cores {
        1 => "1 worker shares the core with HTTP and embedding".to_owned(),
        _ => format!(
            "dataflow workers: {workers} (--workers); threads that embed documents where no GPU does: \
             {embed} (--embed-threads), one more embeds questions"
        ),
    };
    let found = format!("{cores} usable (limits of a container are respected)");
    Finding {
        topic: "cores",
        found,
        effect,
        is_good: cores > 1,
    }
}

fn memory() -> Option<Finding> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |name: &str| -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    let (total, free) = (kib("MemTotal:")?, kib("MemAvailable:")?);
    let gib = |kib: u64| kib as f64 / f64::from(1 << 20);
    Some(Finding {
        topic: "memory",
        found: format!("{:.1} GiB, {:.1} GiB available", gib(total), gib(free)),
        effect: "a chunk takes about 1.5 KiB in an index (384 dimensions, bf16)".to_owned(),
        is_good: free > 1 << 20,
    })
}

#[cfg(target_arch = "x86_64")]
fn feature_names() -> Vec<&'static str> {
    use std::is_x86_feature_detected as has;
    let all = [
        ("avx2", has!("avx2")),
        ("fma", has!("fma")),
        ("f16c", has!("f16c")),
        ("avx512f", has!("avx512f")),
        ("avx512bw", has!("avx512bw")),
        ("avx512vnni", has!("avx512vnni")),
        ("avx512bf16", has!("avx512bf16")),
        ("avx512fp16", has!("avx512fp16")),
    ];
    all.into_iter()
        .filter(|(_, has)| *has)
        .map(|(name, _)| name)
        .collect()
}

#[cfg(target_arch = "aarch64")]
fn feature_names() -> Vec<&'static str> {
    use std::arch::is_aarch64_feature_detected as has;
    let all = [
        ("neon", has!("neon")),
        ("dotprod", has!("dotprod")),
        ("fp16", has!("fp16")),
        ("bf16", has!("bf16")),
        ("i8mm", has!("i8mm")),
        ("sve", has!("sve")),
    ];
    all.into_iter()
        .filter(|(_, has)| *has)
        .map(|(name, _)| name)
        .collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn feature_names() -> Vec<&'static str> {
    Vec::new()
}

fn features() -> Finding {
    let names = feature_names();
    let effect = if names.contains(&"avx512vnni") && names.contains(&"avx512bf16") {
        "matrix products use 512-bit vectors, PRECISION 'bf16' and 'int8' their own instructions"
    } else if names.contains(&"avx512f") {
        "matrix products use 512-bit vectors"
    } else if names.contains(&"avx2") {
        "matrix products use 256-bit vectors"
    } else if names.contains(&"neon") {
        "matrix products use NEON"
    } else {
        "matrix products are scalar: embedding will be slow"
    };
    let found = if names.is_empty() {
        "none of interest".to_owned()
    } else {
        names.join(" ")
    };
    Finding {
        topic: "cpu",
        found,
        effect: effect.to_owned(),
        is_good: !names.is_empty(),
    }
}

/// The first of the named files that a folder has.
fn first_file(folders: &[PathBuf], names: &[&str]) -> Option<PathBuf> {
    let paths = folders
        .iter()
        .flat_map(|folder| names.iter().map(|name| folder.join(name)));
    paths.into_iter().find(|path| path.exists())
}

fn gpu() -> Finding {
    let libraries = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/usr/lib/wsl/lib",
        "/usr/local/cuda/compat",
    ];
    let mut folders: Vec<PathBuf> = libraries.iter().map(PathBuf::from).collect();
    folders.extend(std::env::split_paths(
        &std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default(),
    ));
    let library = first_file(&folders, &["libcuda.so.1", "libcuda.so"]);
    let device = first_file(&[PathBuf::from("/dev")], &["nvidia0", "dxg"]);
    let programs: Vec<_> =
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    let tool = first_file(&programs, &["nvidia-smi", "nvidia-smi.exe"]);
    let driver = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
    let driver = driver.and_then(|text| text.lines().next().map(str::to_owned));
    let shown = |path: &Option<PathBuf>| path.as_deref().map_or("none".to_owned(), display);
    let found = format!(
        "driver {}, library {}, device {}, nvidia-smi {}",
        driver.as_deref().unwrap_or("none"),
        shown(&library),
        shown(&device),
        shown(&tool),
    );
    let effect = match (&library, &device) {
        // Loading the driver is what may hang: whoever waits sees why.
        (_, Some(_)) => {
            eprintln!("asking the GPU's driver …");
            app::gpus().join("; ")
        }
        (Some(_), None) => {
            "a library without a device (a container without --gpus?): the CPU embeds".to_owned()
        }
        (None, None) => format!("no GPU: the CPU embeds ({})", app::gpu_kernels()),
    };
    Finding {
        topic: "gpu",
        found,
        effect,
        is_good: true,
    }
}

fn kafka() -> Finding {
    let (found, effect) = match connectors::kafka::HAS_TLS {
        true => (
            "TLS, SASL PLAIN and SCRAM",
            "built with the feature kafka-tls",
        ),
        false => (
            "neither TLS nor SASL",
            "for brokers that ask for them: cargo build --release --features kafka-tls",
        ),
    };
    Finding {
        topic: "kafka",
        found: found.to_owned(),
        effect: effect.to_owned(),
        is_good: true,
    }
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

fn model(models: anyhow::Result<Vec<ModelReport>>) -> Finding {
    let (found, effect, is_good) = match models {
        Err(error) => (
            format!("{error:#}"),
            "models could not be listed".to_owned(),
            false,
        ),
        Ok(models) if models.is_empty() => (
            "none".to_owned(),
            format!(
                "the first use fetches one; `headwater model pull {}` does it now",
                app::DEFAULT_MODEL
            ),
            false,
        ),
        Ok(models) => {
            let names: Vec<_> = models.iter().map(|model| &*model.name).collect();
            let folder = display(&models[0].folder);
            (
                names.join(", "),
                format!("loaded from {folder}, without the network"),
                true,
            )
        }
    };
    Finding {
        topic: "models",
        found,
        effect,
        is_good,
    }
}

fn port() -> Finding {
    let address = DEFAULT_URL.trim_start_matches("http://");
    let (found, effect, is_good) = match TcpListener::bind(address) {
        Ok(_) => (
            format!("{address} is free"),
            "`headwater run` will listen there".to_owned(),
            true,
        ),
        Err(error) => {
            let is_ours = Client::new(DEFAULT_URL).get("/health").is_ok();
            let found = format!("{address}: {error}");
            match is_ours {
                true => (
                    found,
                    "a Headwater server is running there".to_owned(),
                    true,
                ),
                false => (
                    found,
                    "another program has it: use `headwater run --listen`".to_owned(),
                    false,
                ),
            }
        }
    };
    Finding {
        topic: "port",
        found,
        effect,
        is_good,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_says_what_it_means() {
        let findings = findings(Ok(Vec::new()));
        assert!(findings.len() >= 6);
        for finding in findings {
            assert!(
                !finding.found.is_empty() && !finding.effect.is_empty(),
                "{}",
                finding.topic
            );
        }
    }
}
