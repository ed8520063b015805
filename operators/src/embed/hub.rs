//! The Hugging Face hub: its cache on this machine, then its servers.
//!
//! The cache is read in its standard layout,
//! `<hub>/models--<org>--<name>/{refs/main, snapshots/<commit>/…}`, under `HF_HUB_CACHE`,
//! `HF_HOME/hub` or `~/.cache/huggingface/hub`. Downloads go to the model folder, from
//! `HF_ENDPOINT` (default the public hub); `HF_HUB_OFFLINE=1` forbids them.

use std::path::{Path, PathBuf};

use super::download::{Client, Failure, ProgressFn};
use super::layout::{FILES_OPTIONAL, missing, required};

/// Looks a variable up; tests bring their own.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The folder of the hub's cache, if a home is known.
pub fn cache_folder(env: Env<'_>) -> Option<PathBuf> {
    let set = |name: &str| {
        env(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("HF_HUB_CACHE")
        .or_else(|| set("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/huggingface/hub")))
}

/// A model's newest snapshot in the cache, if it has all files.
pub fn find_cached(env: Env<'_>, name: &str) -> Option<PathBuf> {
    let repository = cache_folder(env)?.join(format!("models--{}", name.replace('/', "--")));
    let commit = std::fs::read_to_string(repository.join("refs/main")).ok()?;
    let snapshot = repository.join("snapshots").join(commit.trim());
    missing(&snapshot).is_empty().then_some(snapshot)
}

/// Where downloads would come from.
pub fn endpoint(env: Env<'_>) -> String {
    let endpoint = env("HF_ENDPOINT").filter(|value| !value.is_empty());
    endpoint
        .unwrap_or_else(|| "https://huggingface.co".to_owned())
        .trim_end_matches('/')
        .to_owned()
}

/// Fetches a model's files into `folder`, resumably. The configuration comes first: it is small,
/// so an unreachable hub is noticed within seconds.
pub fn fetch(
    env: Env<'_>,
    name: &str,
    folder: &Path,
    progress: ProgressFn<'_>,
) -> Result<(), Failure> {
    if env("HF_HUB_OFFLINE").is_some_and(|value| !matches!(&value[..], "" | "0")) {
        return Err("HF_HUB_OFFLINE is set".to_owned());
    }
    let client = Client::new(None)?;
    let base = format!("{}/{name}/resolve/main", endpoint(env));
    let get = |file: &str, is_required: bool| {
        let target = folder.join(file);
        if target.is_file() {
            return Ok(());
        }
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)
                .map_err(|e| format!("cannot write {}: {e}", parent.display()))?;
        }
        let url = format!("{base}/{file}");
        if file.ends_with(".safetensors") {
            client.file(&url, &target, None, progress)?;
        } else if let Some((_, bytes)) = client.page(&url, "*/*")? {
            std::fs::write(&target, bytes)
                .map_err(|e| format!("cannot write {}: {e}", target.display()))?;
        } else if is_required {
            return Err(format!("{url}: HTTP 404"));
        }
        Ok(())
    };
    FILES_OPTIONAL
        .iter()
        .try_for_each(|file| get(file, false))?;
    // These say where the others are.
    required(folder)
        .iter()
        .try_for_each(|file| get(&file.display().to_string(), true))
}

#[cfg(test)]
mod tests {
    use super::super::layout::FILES;
    use super::*;

    #[test]
    fn the_cache_is_read_in_its_standard_layout() {
        let home = tempfile::tempdir().unwrap();
        let env =
            |name: &str| (name == "HF_HOME").then(|| home.path().to_str().unwrap().to_owned());
        assert_eq!(find_cached(&env, "org/model"), None);
        let repository = home.path().join("hub/models--org--model");
        let snapshot = repository.join("snapshots/abc");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(repository.join("refs")).unwrap();
        std::fs::write(repository.join("refs/main"), "abc\n").unwrap();
        std::fs::write(snapshot.join("config.json"), "{}").unwrap();
        assert_eq!(find_cached(&env, "org/model"), None, "weights are missing");
        for file in FILES {
            std::fs::write(snapshot.join(file), "x").unwrap();
        }
        assert_eq!(find_cached(&env, "org/model"), Some(snapshot));
    }

    #[test]
    fn the_endpoint_and_offline_mode_are_honoured() {
        let env = |name: &str| match name {
            "HF_ENDPOINT" => Some("http://127.0.0.1:1/".to_owned()),
            "HF_HUB_OFFLINE" => Some("1".to_owned()),
            _ => None,
        };
        assert_eq!(endpoint(&env), "http://127.0.0.1:1");
        let folder = tempfile::tempdir().unwrap();
        let error = fetch(&env, "org/model", folder.path(), &|_| {}).unwrap_err();
        assert_eq!(error, "HF_HUB_OFFLINE is set");
    }
}
