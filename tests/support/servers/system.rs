//! What comes from the system's packages: Java, Maven, PostgreSQL; and running commands.
//!
//! **Idea.** What is there is used, wherever systems put it. What is missing is installed as root on
//! Debian or Ubuntu; elsewhere the error names the command.
//!
//! **Limits.** Debian's `postgresql` may start a server of its own at its standard port; tests do not
//! use it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::install::lock;
use super::process::tail;

const OLDEST_JAVA: u32 = 17;

/// `java`, new enough.
///
/// # Panics
/// When it cannot be had.
pub fn java() -> PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    let find = || find_java().ok_or_else(|| format!("no Java {OLDEST_JAVA} or newer"));
    let packages = ["openjdk-17-jre-headless", "default-jre-headless"];
    FOUND
        .get_or_init(|| system("Java", find, &packages))
        .clone()
}

fn find_java() -> Option<PathBuf> {
    let home = std::env::var_os("JAVA_HOME").map(|home| Path::new(&home).join("bin/java"));
    let mut found = home.into_iter().chain(on_path("java"));
    found.find(|java| java_version(java) >= Some(OLDEST_JAVA))
}

/// The number before the first dot: `openjdk version "17.0.15"`.
fn java_version(java: &Path) -> Option<u32> {
    let output = Command::new(java).arg("-version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let version = text.split('"').nth(1)?;
    version.split(['.', '-', '+']).next()?.parse().ok()
}

/// The folder of PostgreSQL's programs, the newest one that is there.
///
/// # Panics
/// When it cannot be had.
pub fn postgres() -> PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND
        .get_or_init(|| system("PostgreSQL", find_postgres, &["postgresql"]))
        .clone()
}

fn find_postgres() -> Result<PathBuf, String> {
    let mut tried = Vec::new();
    // Debian keeps the versions apart, Red Hat and Homebrew as well; others have one on the path.
    for (folder, prefix, bin) in [
        ("/usr/lib/postgresql", "", "bin"),
        ("/usr", "pgsql-", "bin"),
        ("/opt/homebrew/opt", "postgresql@", "bin"),
        ("/usr/local/opt", "postgresql@", "bin"),
    ] {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let versions = entries.filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let version: u32 = name.strip_prefix(prefix)?.parse().ok()?;
            Some((version, entry.path().join(bin)))
        });
        tried.extend(
            versions
                .collect::<std::collections::BTreeMap<_, _>>()
                .into_values()
                .rev(),
        );
    }
    tried.extend(on_path("initdb").filter_map(|found| Some(found.parent()?.to_owned())));
    let is_whole = |bin: &&PathBuf| {
        let programs = ["initdb", "postgres", "psql"];
        programs.iter().all(|program| bin.join(program).exists())
    };
    let found = tried.iter().find(is_whole).cloned();
    found.ok_or_else(|| format!("no folder with initdb, postgres and psql; looked at {tried:?}"))
}

/// The programs of a name on the path, first one first.
pub fn on_path(program: &str) -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let programs = folders.into_iter().map({
        let program = program.to_owned();
        move |folder| folder.join(&program)
    });
    programs.filter(|found| found.exists())
}

/// Finds something of the system's, and installs it when it is missing and we may.
fn system(title: &str, find: impl Fn() -> Result<PathBuf, String>, packages: &[&str]) -> PathBuf {
    if let Ok(found) = find() {
        return found;
    }
    let _lock = lock();
    let mut problems = Vec::new();
    for package in packages {
        // Another process, or the package before, may have brought it.
        match find() {
            Ok(found) => return found,
            Err(_) => problems.extend(apt_get(title, package).err()),
        }
    }
    find().unwrap_or_else(|error| {
        panic!(
            "the system tests need {title}: {error}\ntried: {}\nwhat would help: apt-get install -y {}",
            problems.join("; "),
            packages[0]
        )
    })
}

/// Installs a package, when we are root on a system that has `apt-get`. Under [`lock`].
///
/// # Errors
/// When we may not, or it fails.
pub fn apt_get(title: &str, package: &str) -> Result<(), String> {
    let is_root = user_id("") == Ok(0);
    if !is_root || on_path("apt-get").next().is_none() {
        return Err("not installed for you: that takes root and apt-get".to_owned());
    }
    eprintln!("installing {title} (apt-get install {package}) …");
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-o", "DPkg::Lock::Timeout=300", "-q"])
            .args(arguments);
        run(&format!("apt-get {}", arguments.join(" ")), &mut command)
    };
    // The list of packages may be missing or old: tried as it is, and again after an update.
    apt(&["install", "-y", package])
        .or_else(|_| apt(&["update"]).and_then(|()| apt(&["install", "-y", package])))
}

/// The number of a user, or ours.
///
/// # Errors
/// When there is no such user.
pub fn user_id(name: &str) -> Result<u32, String> {
    id("-u", name)
}

/// The number of a user's group.
///
/// # Errors
/// When there is no such user.
pub fn group_id(name: &str) -> Result<u32, String> {
    id("-g", name)
}

fn id(what: &str, name: &str) -> Result<u32, String> {
    let name = (!name.is_empty()).then_some(name);
    let output = Command::new("id").arg(what).args(name).output();
    let output = output.map_err(|error| format!("id: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    text.parse().map_err(|_| format!("no user {name:?}"))
}

/// Runs a command to its end.
///
/// # Errors
/// With the command and the end of what it printed.
pub fn run(what: &str, command: &mut Command) -> Result<(), String> {
    let said = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
    let output = |file: &File| file.try_clone().map_err(|error| error.to_string());
    let status = command
        .stdin(std::process::Stdio::null())
        .stdout(output(said.as_file())?)
        .stderr(output(said.as_file())?)
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!(
            "{what} failed ({status}): {command:?}\n{}",
            tail(said.path())
        )),
        Err(error) => Err(format!("{what}: {error}: {command:?}")),
    }
}
