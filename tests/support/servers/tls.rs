//! A certificate for servers on loopback, from an authority that only this run knows.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Run;
use super::system;

/// Files in PEM.
pub struct Certificate {
    /// What a client has to trust.
    pub authority: PathBuf,
    /// For `localhost` and `127.0.0.1`.
    pub certificate: PathBuf,
    /// Its private key (PKCS #8).
    pub key: PathBuf,
}

const EXTENSIONS: &str = "\
[authority]
basicConstraints=critical,CA:TRUE
keyUsage=critical,keyCertSign
[server]
basicConstraints=critical,CA:FALSE
subjectAltName=DNS:localhost,IP:127.0.0.1
extendedKeyUsage=serverAuth
";

impl Certificate {
    /// Makes an authority and a certificate of it, with `openssl`.
    ///
    /// # Panics
    /// When that fails.
    pub fn make(run: &Run) -> Certificate {
        let folder = run.place("tls").data;
        make(&folder).unwrap_or_else(|error| {
            panic!("the tests of TLS need openssl (apt-get install -y openssl): {error}")
        });
        Certificate {
            authority: folder.join("authority.pem"),
            certificate: folder.join("server.pem"),
            key: folder.join("server.key"),
        }
    }
}

fn make(folder: &Path) -> Result<(), String> {
    let extensions = folder.join("extensions");
    std::fs::write(extensions, EXTENSIONS).map_err(|error| error.to_string())?;
    let new = "req -new -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1";
    let sign = "x509 -req -days 3650 -set_serial";
    for line in [
        format!("{new} -subj /CN=test-authority -keyout authority.key -out authority.csr"),
        format!(
            "{sign} 1 -signkey authority.key -in authority.csr -extfile extensions \
             -extensions authority -out authority.pem"
        ),
        format!("{new} -subj /CN=localhost -keyout server.key -out server.csr"),
        format!(
            "{sign} 2 -CA authority.pem -CAkey authority.key -in server.csr -extfile extensions \
             -extensions server -out server.pem"
        ),
    ] {
        let mut command = Command::new("openssl");
        command.args(line.split_whitespace()).current_dir(folder);
        system::run("openssl", &mut command)?;
    }
    Ok(())
}
