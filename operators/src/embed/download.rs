//! Bytes over HTTP: small answers whole, files resumably and checked.
//!
//! Connecting takes 3 s at most, so that an unreachable host costs little before the next place is
//! tried. Certificates are the operating system's, or a given bundle; proxies come from
//! `HTTPS_PROXY` and friends. A file grows under `<target>.part` and is renamed when whole; a
//! repeated call goes on where the last one stopped.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine::error::WorldError;
use sha2::{Digest, Sha256};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};

/// How far something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What: a file's name, `looking at …`.
    pub what: String,
    /// Bytes so far.
    pub done_bytes: u64,
    /// Bytes in all, when known.
    pub total_bytes: Option<u64>,
}

/// Called as work goes on, from the calling thread, at most some ten times a second.
pub type ProgressFn<'a> = &'a dyn Fn(&Progress);

/// Bytes between two calls of a progress function.
const PROGRESS_BYTES: u64 = 1 << 20;
/// A page of a package index, or a small file, in bytes.
const PAGE_BYTES_MAX: u64 = 32 << 20;

/// An HTTP client.
pub struct Client {
    agent: ureq::Agent,
}

/// Why a download failed, as a sentence without secrets.
pub type Failure = String;

impl Client {
    /// A client that trusts the operating system's certificates, or those of a PEM bundle.
    pub fn new(bundle: Option<&Path>) -> Result<Self, Failure> {
        let roots = match bundle {
            None => RootCerts::PlatformVerifier,
            Some(path) => RootCerts::Specific(Arc::new(read_bundle(path)?)),
        };
        let config = ureq::Agent::config_builder()
            .timeout_resolve(Some(Duration::from_secs(3)))
            .timeout_connect(Some(Duration::from_secs(3)))
            .timeout_recv_response(Some(Duration::from_secs(30)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .http_status_as_error(false)
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .user_agent(concat!("headwater/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Client {
            agent: config.into(),
        })
    }

    /// A small answer: its content type and bytes, or `None` for 404.
    pub fn page(&self, url: &str, accept: &str) -> Result<Option<(String, Vec<u8>)>, Failure> {
        let answer = self.agent.get(url).header("Accept", accept).call();
        let mut answer = answer.map_err(|e| format!("{}: {e}", redact(url)))?;
        match answer.status().as_u16() {
            200 => {}
            404 => return Ok(None),
            status => return Err(format!("{}: HTTP {status}", redact(url))),
        }
        let kind = answer
            .headers()
            .get("content-type")
            .and_then(|v| v.to_str().ok());
        let kind = kind.unwrap_or_default().to_owned();
        let body = answer
            .body_mut()
            .with_config()
            .limit(PAGE_BYTES_MAX)
            .read_to_vec();
        Ok(Some((
            kind,
            body.map_err(|e| format!("{}: {e}", redact(url)))?,
        )))
    }

    /// Fetches a file to `target`, resuming `<target>.part`. Checks the SHA-256 when it is given;
    /// a file that fails is removed, so that the next call starts afresh.
    pub fn file(
        &self,
        url: &str,
        target: &Path,
        sha256: Option<&str>,
        progress: ProgressFn<'_>,
    ) -> Result<(), Failure> {
        let mut name = target.as_os_str().to_owned();
        name.push(".part");
        let part = PathBuf::from(name);
        let io = |what: &str, e: std::io::Error| format!("{what} {}: {e}", part.display());
        let mut out = File::options().create(true).append(true).open(&part);
        let out = out
            .as_mut()
            .map_err(|e| format!("cannot write {}: {e}", part.display()))?;
        let have = out
            .seek(SeekFrom::End(0))
            .map_err(|e| io("cannot read", e))?;
        let mut request = self.agent.get(url);
        if have > 0 {
            request = request.header("Range", format!("bytes={have}-"));
        }
        let mut answer = request
            .call()
            .map_err(|e| format!("{}: {e}", redact(url)))?;
        let status = answer.status().as_u16();
        let start = match status {
            206 => have,
            200 => 0,
            // What lies there is whole already, or longer than the file: the checksum decides.
            416 if sha256.is_some() => {
                return finish(&part, target, sha256);
            }
            _ => return Err(format!("{}: HTTP {status}", redact(url))),
        };
        if start == 0 {
            out.set_len(0).map_err(|e| io("cannot write", e))?;
        }
        let length = answer
            .headers()
            .get("content-length")
            .and_then(|v| v.to_str().ok());
        let total = length
            .and_then(|v| v.parse::<u64>().ok())
            .map(|length| start + length);
        let what = target
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let mut state = Progress {
            what,
            done_bytes: start,
            total_bytes: total,
        };
        let mut reader = answer.body_mut().with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; 128 << 10];
        let mut told = 0;
        progress(&state);
        loop {
            let n = reader
                .read(&mut buffer)
                .map_err(|e| format!("{}: {e}", redact(url)))?;
            if n == 0 {
                break;
            }
            out.write_all(&buffer[..n])
                .map_err(|e| io("cannot write", e))?;
            state.done_bytes += n as u64;
            if state.done_bytes - told >= PROGRESS_BYTES {
                told = state.done_bytes;
                progress(&state);
            }
        }
        progress(&state);
        if total.is_some_and(|total| total != state.done_bytes) {
            let (got, url) = (state.done_bytes, redact(url));
            return Err(format!(
                "{url}: the answer ended after {got} bytes; a new try resumes"
            ));
        }
        out.sync_all().map_err(|e| io("cannot write", e))?;
        finish(&part, target, sha256)
    }
}

/// Checks and renames a whole file.
fn finish(part: &Path, target: &Path, sha256: Option<&str>) -> Result<(), Failure> {
    let found = sha256_of(part).map_err(|e| e.to_string())?;
    if let Some(expected) = sha256
        && found != expected
    {
        // A damaged part would fail for ever; failing to remove it is told by the next call.
        let _ = std::fs::remove_file(part);
        return Err(format!(
            "{}: SHA-256 is {found}, expected {expected}",
            target.file_name().unwrap_or_default().to_string_lossy()
        ));
    }
    std::fs::rename(part, target).map_err(|e| format!("cannot write {}: {e}", target.display()))
}

/// SHA-256 of a file, in hex. Cost: one pass, 0.5–2 GB/s.
pub fn sha256_of(path: &Path) -> Result<String, WorldError> {
    let read = |e| WorldError::io("cannot read", path, e);
    let mut file = File::open(path).map_err(read)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(read)?;
        if n == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..n]);
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The certificates of a PEM bundle.
fn read_bundle(path: &Path) -> Result<Vec<Certificate<'static>>, Failure> {
    let pem = std::fs::read(path)
        .map_err(|e| format!("cannot read certificates {}: {e}", path.display()))?;
    let certificates: Vec<_> = ureq::tls::parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(format!("{} holds no certificate", path.display()));
    }
    Ok(certificates)
}

/// A URL without user name and password.
pub fn redact(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => format!("{scheme}://***@{}", &rest[at + 1..]),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    /// Serves `body` with Range support; the first answer breaks off in the middle.
    fn flaky_server(body: Vec<u8>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/file.bin", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for (n, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                let mut start = 0;
                for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                    let line = line.unwrap().to_lowercase();
                    if let Some(range) = line.strip_prefix("range: bytes=") {
                        start = range.trim_end_matches('-').parse().unwrap();
                    }
                    if line.is_empty() {
                        break;
                    }
                }
                let rest = &body[start..];
                let status = if start > 0 {
                    "206 Partial Content"
                } else {
                    "200 OK"
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    rest.len()
                );
                stream.write_all(head.as_bytes()).unwrap();
                let sent = if n == 0 { rest.len() / 2 } else { rest.len() };
                stream.write_all(&rest[..sent]).unwrap();
            }
        });
        url
    }

    #[test]
    fn a_broken_download_is_resumed_and_checked() {
        let body: Vec<u8> = (0..3_000_000_u32).map(|i| (i * 7 % 251) as u8).collect();
        let url = flaky_server(body.clone());
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("file.bin");
        let client = Client::new(None).unwrap();
        let sum = hex(&Sha256::digest(&body));
        assert!(
            client.file(&url, &target, Some(&sum), &|_| {}).is_err(),
            "it breaks off"
        );
        assert!(!target.exists());
        let first = std::cell::Cell::new(None);
        let progress = |p: &Progress| {
            first.set(first.get().or(Some(p.done_bytes)));
        };
        client.file(&url, &target, Some(&sum), &progress).unwrap();
        assert!(first.get().unwrap() > 0, "it goes on where it stopped");
        assert_eq!(std::fs::read(&target).unwrap(), body);
        let error = client.file(&url, &target, Some("00"), &|_| {}).unwrap_err();
        assert!(error.contains("expected 00"), "{error}");
    }

    #[test]
    fn secrets_do_not_reach_messages() {
        assert_eq!(
            redact("https://me:pw@host/simple/"),
            "https://***@host/simple/"
        );
        assert_eq!(redact("https://host/a@b"), "https://host/a@b");
    }
}
