//! Who may talk to a server that asks for no credentials: programs on this machine, and no page
//! from the web in somebody's browser.
//!
//! Two doors are closed unless the operator opens them by `--insecure`:
//! - *DNS rebinding*: a foreign name that suddenly points to 127.0.0.1. The request then names the
//!   foreign host, so only loopback names and bare addresses are answered.
//! - *Cross-site posts*: browsers send `Origin` with them; it must be this machine's or the host
//!   that the request names itself.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use queries::api::Backend;
use queries::problem::Problem;

use crate::reply::Failure;
use crate::routes::Front;

pub(crate) async fn guard<B: Backend>(
    State(front): State<Arc<Front<B>>>,
    request: Request,
    next: Next,
) -> Response {
    // HTTP/2 names the host in the target, HTTP/1 in a header.
    let authority = request
        .uri()
        .authority()
        .map(|authority| authority.as_str());
    match check(request.headers(), authority, front.options.insecure) {
        Ok(()) => next.run(request).await,
        Err(problem) => Failure::from(problem).into_response(),
    }
}

fn check(headers: &HeaderMap, authority: Option<&str>, insecure: bool) -> Result<(), Problem> {
    let host = text(headers, header::HOST)
        .or(authority)
        .unwrap_or("localhost");
    if !insecure && !is_local(host_name(host)) {
        let detail = format!("the request is for host {host}, which is not this machine");
        return Err(Problem::new(403, "host-not-allowed", detail)
            .expected("localhost or an address")
            .hint("start the server with --insecure if others may reach it by a name"));
    }
    let Some(origin) = text(headers, header::ORIGIN) else {
        return Ok(());
    };
    let from = origin.split_once("://").map_or("", |(_, rest)| rest);
    let is_same_host = from.eq_ignore_ascii_case(host);
    if is_loopback(host_name(from)) || is_same_host {
        return Ok(());
    }
    let detail = format!("the request comes from a page of {origin}");
    Err(Problem::new(403, "origin-not-allowed", detail).expected("a page of this server"))
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).map(|value| value.to_str().unwrap_or("?"))
}

/// The host without its port and brackets.
fn host_name(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    authority.split(':').next().unwrap_or_default()
}

fn is_loopback(host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    host == "localhost"
        || host.ends_with(".localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// A bare address cannot be rebound: no name service was asked for it.
fn is_local(host: &str) -> bool {
    is_loopback(host) || host.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(host: &str, origin: Option<&str>, insecure: bool) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        check(&headers, None, insecure)
            .err()
            .map(|problem| problem.code)
    }

    #[test]
    fn programs_on_this_machine_may_ask() {
        for host in [
            "localhost:7654",
            "127.0.0.1:7654",
            "[::1]:7654",
            "app.localhost",
            "10.0.0.1",
        ] {
            assert_eq!(code(host, None, false), None, "{host}");
            assert_eq!(
                code(host, Some(&format!("http://{host}")), false),
                None,
                "{host}"
            );
        }
    }

    #[test]
    fn pages_of_the_web_may_not() {
        assert_eq!(
            code("evil.example:7654", None, false).unwrap(),
            "host-not-allowed"
        );
        assert_eq!(
            code("127.0.0.1", Some("http://evil.example"), false).unwrap(),
            "origin-not-allowed"
        );
        assert_eq!(
            code("127.0.0.1", Some("null"), false).unwrap(),
            "origin-not-allowed"
        );
    }

    #[test]
    fn an_operator_may_open_the_door_for_names_not_for_foreign_pages() {
        assert_eq!(code("search.corp", None, true), None);
        assert_eq!(code("search.corp", Some("http://search.corp"), true), None);
        assert_eq!(
            code("search.corp", Some("http://evil.example"), true).unwrap(),
            "origin-not-allowed"
        );
    }
}
