//! How a source FROM KAFKA speaks to its brokers: TLS, a login.
//!
//! ```text
//! [, SECURITY PROTOCOL 'plaintext' | 'ssl' | 'sasl_plaintext' | 'sasl_ssl']
//! [, SASL MECHANISM 'PLAIN' | 'SCRAM-SHA-256' | 'SCRAM-SHA-512', SASL USERNAME '…', SASL PASSWORD SECRET s]
//! [, SSL CA LOCATION '…'] [, SSL CERTIFICATE '…', SSL KEY '…']
//! ```
//!
//! Idea: the protocol says which options belong to it; one that would be without effect is refused,
//! because who writes it believes that it has one. Invariant: a password is a secret's name.
//!
//! Limits: whether the program was built with TLS for Kafka is not known here; the connector says so.

use super::ast::ident_sql;
use super::catalog::CatalogView;
use super::normal::text;
use super::options::Options;
use super::statement::{known, with_article};
use crate::definition::{Definition, KafkaSecurity, PasswordDef, SaslDef, SaslMechanism};
use crate::problem::{Position, Problem};

/// The options of this module, for the list that they stand in.
pub(super) const NAMES: [&str; 7] = [
    PROTOCOL,
    MECHANISM,
    USERNAME,
    PASSWORD,
    AUTHORITIES,
    CERTIFICATE,
    KEY,
];
const PROTOCOL: &str = "SECURITY PROTOCOL";
const MECHANISM: &str = "SASL MECHANISM";
const USERNAME: &str = "SASL USERNAME";
const PASSWORD: &str = "SASL PASSWORD";
const AUTHORITIES: &str = "SSL CA LOCATION";
const CERTIFICATE: &str = "SSL CERTIFICATE";
const KEY: &str = "SSL KEY";

/// Each with whether it has TLS and a login; the first is the default.
const PROTOCOLS: [(&str, bool, bool); 4] = [
    ("plaintext", false, false),
    ("ssl", true, false),
    ("sasl_plaintext", false, true),
    ("sasl_ssl", true, true),
];
const MECHANISMS: [(&str, SaslMechanism); 3] = [
    ("PLAIN", SaslMechanism::Plain),
    ("SCRAM-SHA-256", SaslMechanism::ScramSha256),
    ("SCRAM-SHA-512", SaslMechanism::ScramSha512),
];

/// Takes the options of this module.
pub(super) fn read(options: &Options, catalog: &dyn CatalogView) -> Result<KafkaSecurity, Problem> {
    let words = PROTOCOLS.map(|(word, ..)| word);
    let word = options.choice(PROTOCOL, &words)?.unwrap_or(words[0]);
    let protocol = PROTOCOLS.iter().find(|(known, ..)| *known == word);
    let (_, has_tls, has_login) = *protocol.unwrap_or(&PROTOCOLS[0]);
    let (login, tls) = (
        [MECHANISM, USERNAME, PASSWORD],
        [AUTHORITIES, CERTIFICATE, KEY],
    );
    for (names, is_used, with) in [
        (login, has_login, "'sasl_ssl' or 'sasl_plaintext'"),
        (tls, has_tls, "'ssl' or 'sasl_ssl'"),
    ] {
        let given = names
            .iter()
            .find_map(|name| Some((name, options.position(name)?)));
        if let (Some((name, at)), false) = (given, is_used) {
            let detail = format!("option {name} has no effect with SECURITY PROTOCOL '{word}'");
            let problem = Problem::invalid(detail).at(at.line, at.column);
            return Err(problem.expected(format!("SECURITY PROTOCOL {with}")));
        }
    }
    for name in [USERNAME, AUTHORITIES, CERTIFICATE, KEY] {
        options.refuse_empty(name)?;
    }
    let certificate = match (options.text(CERTIFICATE)?, options.text(KEY)?) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => return Err(needs(options, CERTIFICATE, KEY)),
        (None, Some(_)) => return Err(needs(options, KEY, CERTIFICATE)),
    };
    Ok(KafkaSecurity {
        has_tls,
        login: has_login
            .then(|| self::login(options, catalog))
            .transpose()?,
        authorities: options.text(AUTHORITIES)?,
        certificate,
    })
}

fn login(options: &Options, catalog: &dyn CatalogView) -> Result<SaslDef, Problem> {
    let words = MECHANISMS.map(|(word, _)| word);
    let Some(word) = options.choice(MECHANISM, &words)? else {
        return Err(needs(options, PROTOCOL, MECHANISM));
    };
    let mechanism = MECHANISMS.iter().find(|(known, _)| *known == word);
    let Some(username) = options.text(USERNAME)? else {
        return Err(needs(options, PROTOCOL, USERNAME));
    };
    let Some(password) = secret(options, PASSWORD, catalog)? else {
        return Err(needs(options, PROTOCOL, "SASL PASSWORD SECRET"));
    };
    Ok(SaslDef {
        mechanism: mechanism.map_or(SaslMechanism::Plain, |(_, mechanism)| *mechanism),
        username,
        password,
    })
}

/// The name of a declared secret, `OPTION SECRET name`.
pub(super) fn secret(
    options: &Options,
    option: &str,
    catalog: &dyn CatalogView,
) -> Result<Option<String>, Problem> {
    let Some((secret, at)) = options.secret(option)? else {
        return Ok(None);
    };
    let object = known(catalog, &secret, at, "the name of a secret")?;
    if matches!(object.definition, Definition::Secret(_)) {
        return Ok(Some(secret));
    }
    let found = with_article(object.definition.kind());
    Err(
        Problem::invalid(format!("\"{secret}\" is {found}, not a secret"))
            .at(at.line, at.column)
            .expected(format!("{option} SECRET name")),
    )
}

/// Where a password is: a secret, or by two options of the same beginning an environment variable or
/// a file. With the option that says so.
///
/// Errors: several of them.
pub(super) fn password(
    options: &Options,
    [secret, env, file]: [&'static str; 3],
    catalog: &dyn CatalogView,
) -> Result<Option<(&'static str, PasswordDef)>, Problem> {
    let given = [
        (
            secret,
            self::secret(options, secret, catalog)?.map(PasswordDef::Secret),
        ),
        (env, options.text(env)?.map(PasswordDef::Env)),
        (file, options.text(file)?.map(PasswordDef::File)),
    ];
    let mut given = given
        .into_iter()
        .filter_map(|(name, password)| Some((name, password?)));
    let password = given.next();
    if let (Some((first, _)), Some((second, _))) = (&password, given.next()) {
        let at = options.position(second).unwrap_or_default();
        let problem = Problem::syntax(format!("{first} and {second} exclude each other"));
        return Err(problem.at(at.line, at.column).expected("one of them"));
    }
    Ok(password)
}

/// The option that says where a password is, and its value.
pub(super) fn written(
    password: &PasswordDef,
    [secret, env, file]: [&'static str; 3],
) -> (&'static str, String) {
    match password {
        PasswordDef::Secret(name) => (secret, format!("SECRET {}", ident_sql(name))),
        PasswordDef::Env(name) => (env, text(name)),
        PasswordDef::File(path) => (file, text(path)),
    }
}

/// Refuses an address that is none, or has a login in it: statements are stored and shown. Without a
/// position.
pub(super) fn check_url(
    option: &str,
    url: &str,
    expected: &str,
    login_hint: &str,
) -> Result<(), Problem> {
    let rest = ["http://", "https://"]
        .iter()
        .find_map(|scheme| url.strip_prefix(scheme));
    let host = rest.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
    match host {
        Some(host) if host.contains('@') => Err(Problem::invalid(format!(
            "{option} has a user or a password in its address"
        ))
        .expected("the address alone")
        .hint(login_hint)),
        Some(host) if !host.is_empty() && !url.contains(['?', '#', ' ']) => Ok(()),
        _ => Err(Problem::invalid(format!("{option} cannot be '{url}'")).expected(expected)),
    }
}

/// A given option whose partner is missing.
fn needs(options: &Options, given: &str, missing: &str) -> Problem {
    let at: Position = options.position(given).unwrap_or_default();
    Problem::invalid(format!("option {given} needs the option {missing}"))
        .at(at.line, at.column)
        .expected(missing)
}

/// The options written out, each with a comma before it; nothing for plaintext.
pub(super) fn statement(security: &KafkaSecurity) -> String {
    let found = (security.has_tls, security.login.is_some());
    let protocol = PROTOCOLS
        .iter()
        .find(|(_, tls, login)| (*tls, *login) == found);
    let protocol = protocol.map_or(PROTOCOLS[0].0, |(word, ..)| *word);
    let mut out = Vec::new();
    if protocol != PROTOCOLS[0].0 {
        out.push((PROTOCOL, text(protocol)));
    }
    if let Some(login) = &security.login {
        let mechanism = MECHANISMS
            .iter()
            .find(|(_, known)| *known == login.mechanism);
        let mechanism = mechanism.map_or(MECHANISMS[0].0, |(word, _)| *word);
        out.push((MECHANISM, text(mechanism)));
        out.push((USERNAME, text(&login.username)));
        out.push((PASSWORD, format!("SECRET {}", ident_sql(&login.password))));
    }
    out.extend(
        security
            .authorities
            .iter()
            .map(|path| (AUTHORITIES, text(path))),
    );
    if let Some((certificate, key)) = &security.certificate {
        out.push((CERTIFICATE, text(certificate)));
        out.push((KEY, text(key)));
    }
    out.iter()
        .map(|(name, value)| format!(", {name} = {value}"))
        .collect()
}
