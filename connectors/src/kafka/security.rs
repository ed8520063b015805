//! TLS and logins: what librdkafka is told of them, and what its words mean here.
//!
//! Idea: librdkafka has TLS, and SCRAM, only with an OpenSSL, whose build takes minutes; so both are
//! behind the Cargo feature `kafka-tls`, and a program without it refuses a source that needs them
//! before anything is connected.
//!
//! Invariants: the consumer and the producer of dead letters get the same settings; a password is in no
//! message, not in `Debug` either; a file that is named and cannot be read is an error before reading
//! begins; the broker's certificate and its host name are always checked.
//!
//! Limits: no Kerberos, no OAUTHBEARER, no password for the client's key; files are read once, when
//! the source starts.

use std::fmt;
use std::path::{Path, PathBuf};

use engine::error::WorldError;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// Whether this program was built with TLS and logins for Kafka (the feature `kafka-tls`).
pub const HAS_TLS: bool = cfg!(feature = "kafka-tls");

/// How the brokers are spoken to. The default is neither encrypted nor logged in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Security {
    /// Whether the connection is encrypted and the broker checked.
    pub has_tls: bool,
    /// As whom.
    pub login: Option<Login>,
    /// Authorities to trust, a PEM file; without it the operating system's.
    pub authorities: Option<PathBuf>,
    /// The client's own certificate and its key, PEM files.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

/// A login by SASL.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// How the password is shown.
    pub mechanism: Mechanism,
    /// Who.
    pub username: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = out.debug_struct("Login");
        shown.field("mechanism", &self.mechanism);
        shown.field("username", &self.username);
        shown.finish_non_exhaustive()
    }
}

/// How a password is shown to a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// As it is.
    Plain,
    /// By a challenge, with SHA-256.
    ScramSha256,
    /// By a challenge, with SHA-512.
    ScramSha512,
}

impl Security {
    /// The word of `SECURITY PROTOCOL`, which is librdkafka's, too.
    fn protocol(&self) -> &'static str {
        match (self.has_tls, self.login.is_some()) {
            (false, false) => "plaintext",
            (true, false) => "ssl",
            (false, true) => "sasl_plaintext",
            (true, true) => "sasl_ssl",
        }
    }

    /// Looks whether this program can do it, and whether its files can be read.
    ///
    /// Errors: both, with what to do.
    pub(crate) fn check(&self) -> Result<(), WorldError> {
        let protocol = self.protocol();
        if protocol != "plaintext" && !HAS_TLS {
            return Err(WorldError::Service {
                service: format!("SECURITY PROTOCOL '{protocol}'"),
                detail: "this program was built without TLS for Kafka; build it with the feature \
                         kafka-tls: cargo build --release --features kafka-tls"
                    .to_owned(),
                is_transient: false,
            });
        }
        let own = self.certificate.iter();
        let own = own.flat_map(|(certificate, key)| [certificate, key]);
        for path in self.authorities.iter().chain(own) {
            let read = std::fs::read(path);
            read.map_err(|error| WorldError::io("cannot read", path, error))?;
        }
        Ok(())
    }

    /// Puts it into a client's settings.
    pub(crate) fn configure(&self, config: &mut ClientConfig) {
        let protocol = self.protocol();
        if protocol == "plaintext" {
            // Nothing that librdkafka without OpenSSL does not know.
            return;
        }
        config.set("security.protocol", protocol);
        let text = |path: &Path| path.to_string_lossy().into_owned();
        if self.has_tls {
            // OpenSSL's own default is the folder that it was built for, which is on no machine.
            let authorities = self.authorities.as_deref().map(text);
            config.set(
                "ssl.ca.location",
                authorities.unwrap_or_else(|| "probe".to_owned()),
            );
            config.set("ssl.endpoint.identification.algorithm", "https");
        }
        if let Some((certificate, key)) = &self.certificate {
            config.set("ssl.certificate.location", text(certificate));
            config.set("ssl.key.location", text(key));
        }
        if let Some(login) = &self.login {
            let mechanism = match login.mechanism {
                Mechanism::Plain => "PLAIN",
                Mechanism::ScramSha256 => "SCRAM-SHA-256",
                Mechanism::ScramSha512 => "SCRAM-SHA-512",
            };
            config.set("sasl.mechanism", mechanism);
            config.set("sasl.username", &login.username);
            config.set("sasl.password", &login.password);
        }
    }
}

/// What helps against an error of a connection, where that is known.
pub(crate) fn hint(error: &KafkaError) -> Option<&'static str> {
    match error.rdkafka_error_code()? {
        RDKafkaErrorCode::Authentication => {
            Some("the brokers refuse SASL USERNAME, SASL PASSWORD or SASL MECHANISM; trying again")
        }
        RDKafkaErrorCode::SSL => Some(
            "TLS fails: SSL CA LOCATION names the authority of the brokers' certificates, and BROKERS \
             the host that these are for; trying again",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn security(has_tls: bool, has_login: bool) -> Security {
        Security {
            has_tls,
            login: has_login.then(|| Login {
                mechanism: Mechanism::ScramSha512,
                username: "ada".to_owned(),
                password: "hunter2".to_owned(),
            }),
            ..Security::default()
        }
    }

    #[test]
    fn a_program_without_tls_refuses_what_needs_it_and_names_the_feature() {
        assert!(security(false, false).check().is_ok());
        for (security, word) in [
            (security(true, false), "ssl"),
            (security(false, true), "sasl_plaintext"),
            (security(true, true), "sasl_ssl"),
        ] {
            let told = security.check().map_err(|error| error.to_string());
            let refused = format!(
                "SECURITY PROTOCOL '{word}': this program was built without TLS for Kafka; build it \
                 with the feature kafka-tls: cargo build --release --features kafka-tls"
            );
            assert_eq!(told, if HAS_TLS { Ok(()) } else { Err(refused) });
        }
    }

    #[test]
    fn the_settings_are_librdkafkas_and_plaintext_sets_none() {
        let set = |security: &Security| {
            let mut config = ClientConfig::new();
            security.configure(&mut config);
            let mut set: Vec<String> = config
                .config_map()
                .keys()
                // The map itself hides passwords.
                .map(|name| format!("{name}={}", config.get(name).unwrap_or_default()))
                .collect();
            set.sort_unstable();
            set
        };
        assert!(set(&Security::default()).is_empty());
        let mut all = security(true, true);
        assert!(set(&all).contains(&"ssl.ca.location=probe".to_owned()));
        all.authorities = Some("/ca.pem".into());
        all.certificate = Some(("/own.pem".into(), "/own.key".into()));
        assert_eq!(
            set(&all),
            [
                "sasl.mechanism=SCRAM-SHA-512",
                "sasl.password=hunter2",
                "sasl.username=ada",
                "security.protocol=sasl_ssl",
                "ssl.ca.location=/ca.pem",
                "ssl.certificate.location=/own.pem",
                "ssl.endpoint.identification.algorithm=https",
                "ssl.key.location=/own.key",
            ]
        );
        assert_eq!(set(&security(false, true)).len(), 4);
    }

    #[test]
    fn a_password_is_never_shown() {
        let shown = format!("{:?}", security(true, true));
        assert!(
            shown.contains("ada") && !shown.contains("hunter2"),
            "{shown}"
        );
    }

    #[cfg(feature = "kafka-tls")]
    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let mut one = security(true, false);
        one.authorities = Some("/no/such/authority.pem".into());
        let told = one.check().map_err(|error| error.to_string());
        let told = told.expect_err("there is no such file");
        assert!(told.contains("/no/such/authority.pem"), "{told}");
    }
}
