//! Who may come in: Host and Origin first, so that no web page reaches through a browser, then a
//! token of a manage key.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info};
use underpass_proto::sas::{SasRule, SasToken};
use underpass_proto::{Host, HycoName, KeyPair};

use super::problem::{Kind, Problem};
use super::{Rest, Shared, blocking};
use crate::files::keys;
use crate::files::namespace::Namespace;

/// The answer to a request that is refused leaves at a multiple of this after it came, so that its
/// time tells nothing about names and keys. Beyond what looking up a name and checking a signature
/// take, which is some 0.2 ms.
const REFUSED_AFTER: Duration = Duration::from_millis(5);

/// Headers of which a request has one at most: of two, another program might take the other one
/// (RFC 9110, section 5.3).
const SINGLE: [HeaderName; 5] = [
    header::AUTHORIZATION,
    header::ORIGIN,
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::HOST,
];

/// A connection that has a place for health checks alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct OnlyProbes;

/// How a connection came in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remote {
    /// Over the network.
    Network {
        /// From where.
        peer: SocketAddr,
        /// To which address of this machine.
        local: SocketAddr,
    },
    /// By `run/api.sock`, from a process of this user or of root.
    Local {
        /// Whose.
        uid: u32,
    },
}

/// What a request brings to the door.
struct Caller {
    host: String,
    path: String,
    token: Option<String>,
    remote: Remote,
}

/// Refuses requests that were meant for another host, or come from a page of another site (DNS
/// rebinding, cross-site requests).
pub(super) async fn check_host(
    State(rest): State<Shared>,
    mut request: Request,
    next: Next,
) -> Response {
    let checked = check_single(request.headers()).and_then(|()| {
        let (text, host) = host_of(request.headers(), request.uri())?;
        Ok((text.to_owned(), host))
    });
    let (text, host) = match checked {
        Ok(checked) => checked,
        Err(problem) => return problem.into_response(),
    };
    let remote = request
        .extensions()
        .get::<Remote>()
        .copied()
        .unwrap_or(Remote::Local { uid: 0 });
    let namespace = rest.live.namespace();
    if !is_ours(&host, remote, &namespace) {
        let shown = crate::files::wording::echo(&text);
        let hint = "name this machine by the address that it listens on, by localhost, or by the host of public_address in namespace.toml";
        return Problem::new(
            Kind::Host,
            format!("this API is not at the host {shown}"),
            hint,
        )
        .into_response();
    }
    if let Some(origin) = request.headers().get(header::ORIGIN)
        && !is_same(origin.to_str().unwrap_or_default(), &text)
    {
        let hint = "call it from a program, not from a page of another site";
        return Problem::new(
            Kind::Origin,
            "the request comes from a page of another site".into(),
            hint,
        )
        .into_response();
    }
    request.extensions_mut().insert(AskedHost(text));
    request.extensions_mut().insert(remote);
    next.run(request).await
}

/// Admits requests with a token that a manage key has signed.
pub(super) async fn authorise(
    State(rest): State<Shared>,
    request: Request,
    next: Next,
) -> Response {
    if request.extensions().get::<OnlyProbes>().is_some() {
        return Problem::new(
            Kind::TooManyConnections,
            "every connection that the API has room for is in use".into(),
            "close those that are not needed, and try again",
        )
        .retry_after(1)
        .into_response();
    }
    let came = Instant::now();
    let caller = Caller::of(&request);
    let judged = blocking(&rest, move |rest| caller.judge(rest)).await;
    match judged {
        Ok(()) => next.run(request).await,
        Err(problem) => {
            sleep_until(came + refused_after(came.elapsed())).await;
            problem.into_response()
        }
    }
}

fn refused_after(took: Duration) -> Duration {
    let steps = took.as_micros() / REFUSED_AFTER.as_micros() + 1;
    REFUSED_AFTER * u32::try_from(steps).unwrap_or(u32::MAX)
}

/// The Host header, once it was found to be ours.
#[derive(Clone)]
struct AskedHost(String);

impl Caller {
    fn of(request: &Request) -> Self {
        let extensions = request.extensions();
        let token = request.headers().get(header::AUTHORIZATION);
        Self {
            host: extensions
                .get::<AskedHost>()
                .map(|host| host.0.clone())
                .unwrap_or_default(),
            path: request.uri().path().to_owned(),
            // What is not ASCII is no token, and said to be none.
            token: token.map(|token| token.to_str().unwrap_or_default().to_owned()),
            remote: extensions
                .get::<Remote>()
                .copied()
                .unwrap_or(Remote::Local { uid: 0 }),
        }
    }

    /// A token of a manage key passes. Everything else is refused, and counted before its reason is
    /// looked for: a flood looks up no names.
    fn judge(&self, rest: &Rest) -> Result<(), Problem> {
        let token = self.token();
        let managed = match &token {
            Ok(token) if token.rule() == SasRule::Manage => {
                Some(manage_keys(rest).and_then(|keys| self.check(token, &keys, rest)))
            }
            _ => None,
        };
        if let Some(Ok(())) = managed {
            return Ok(());
        }
        rest.failures.note(self.remote.ip()).map_err(too_many)?;
        let problem = match (managed, token) {
            (Some(Err(problem)), _) | (_, Err(problem)) => problem,
            (_, Ok(token)) => self.why_not(&token, rest),
        };
        if let Some(left_out) = rest.failures.permit_line(self.remote.ip()) {
            info!(remote = %self.remote, code = problem.code, why = problem.errors.join("; "), left_out, "request refused");
        }
        Err(problem)
    }

    fn token(&self) -> Result<SasToken, Problem> {
        let Some(token) = &self.token else {
            return Err(unauthorized(
                "there is no token".into(),
                "send `Authorization: SharedAccessSignature …`, signed with a manage key (keys/_manage.toml, skn=manage)",
            ));
        };
        token
            .parse()
            .map_err(|error: underpass_proto::sas::SasError| {
                unauthorized(
                    error.to_string(),
                    "make it with the rule name `manage` and a key of keys/_manage.toml",
                )
            })
    }

    /// A token of a hybrid connection: one that is signed with its key is told that it has no right
    /// here, any other gets the same answer as a wrong one.
    fn why_not(&self, token: &SasToken, rest: &Rest) -> Problem {
        let SasRule::Hyco(rule) = token.rule() else {
            return wrong_key();
        };
        let Some(keys) = self.keys_of_hyco(token, rest, rule) else {
            // As much work as for a name that is there.
            let decoy = manage_keys(rest).map(|keys| token.is_signed_by(&keys));
            debug!(?decoy, "no keys of that name");
            return wrong_key();
        };
        match self.check(token, &keys, rest) {
            Err(problem) => problem,
            Ok(()) => Problem::new(
                Kind::Forbidden,
                format!("a key of {rule} can {} and not manage", rule.right()),
                "use a manage key (keys/_manage.toml, skn=manage)",
            ),
        }
    }

    /// First the signature: nothing else is told about a token that nobody signed.
    fn check(&self, token: &SasToken, keys: &KeyPair, rest: &Rest) -> Result<(), Problem> {
        if !token.is_signed_by(keys) {
            return Err(wrong_key());
        }
        token.check_time((rest.clock)()).map_err(|expired| {
            unauthorized(
                expired.to_string(),
                "make a new one; if it should still be good, compare the clocks of both machines",
            )
        })?;
        let is_manage = token.rule() == SasRule::Manage;
        if is_manage && !token.covers(&self.host, &self.path) {
            let hint = "sr must be a prefix of the request's URL by whole path segments, with the host and port of the Host header";
            return Err(unauthorized(
                "the token is for another resource".into(),
                hint,
            ));
        }
        Ok(())
    }

    /// The keys of the hybrid connection that the token is for, or that is asked about.
    fn keys_of_hyco(
        &self,
        token: &SasToken,
        rest: &Rest,
        rule: underpass_proto::Rule,
    ) -> Option<KeyPair> {
        let asked = self
            .path
            .strip_prefix("/v1/hybridconnections/")
            .and_then(|rest| rest.split('/').next());
        let names = [token.last_segment(), asked];
        let name = names
            .iter()
            .flatten()
            .find_map(|name| name.parse::<HycoName>().ok())?;
        rest.store
            .keys(&name)
            .inspect_err(|refusal| debug!(%refusal, "no keys to check a token with"))
            .ok()?
            .rule(rule)
            .cloned()
    }
}

/// Only read: control makes them when it loads its files, never for a request.
fn manage_keys(rest: &Rest) -> Result<KeyPair, Problem> {
    keys::load_manage(rest.directory()).map_err(|faults| {
        let errors = faults.iter().map(ToString::to_string).collect();
        let hint = "correct that file, or delete it: control makes new keys within seconds, in a directory that it can write";
        Problem::of(Kind::Internal, errors, Some(hint.into()))
    })
}

fn too_many(secs: u64) -> Problem {
    Problem::new(
        Kind::TooManyFailures,
        "too many requests from this address had no valid token".into(),
        "wait for the seconds in Retry-After, and use a token of a manage key",
    )
    .retry_after(secs)
}

fn unauthorized(error: String, hint: &str) -> Problem {
    Problem::new(Kind::Unauthorized, error, hint)
}

fn wrong_key() -> Problem {
    unauthorized(
        "the token is not signed with a key that is known here".into(),
        "sign it with a manage key of this namespace (keys/_manage.toml, skn=manage)",
    )
}

fn check_single(headers: &HeaderMap) -> Result<(), Problem> {
    let twice = SINGLE
        .iter()
        .find(|name| headers.get_all(*name).iter().nth(1).is_some());
    match twice {
        None => Ok(()),
        Some(name) => Err(Problem::new(
            Kind::Malformed,
            format!("the request has more than one {name} header"),
            "send it once",
        )),
    }
}

/// The one host that a request names, with its port as it was written. An absolute target must name
/// the same.
fn host_of<'a>(headers: &'a HeaderMap, uri: &Uri) -> Result<(&'a str, Host), Problem> {
    let malformed = |error: &str| {
        Problem::new(
            Kind::Malformed,
            error.into(),
            "send one Host header, with the host and port of the URL",
        )
    };
    let Some(text) = headers.get(header::HOST) else {
        return Err(malformed("the request has no Host header"));
    };
    let text = text
        .to_str()
        .map_err(|_| malformed("the Host header is not ASCII"))?;
    let host = read_host(text).ok_or_else(|| malformed("the Host header is no host and port"))?;
    match uri.authority() {
        Some(authority) if !authority.as_str().eq_ignore_ascii_case(text) => Err(malformed(
            "the request's URL and its Host header name two hosts",
        )),
        _ => Ok((text, host)),
    }
}

/// `uri-host [ ":" port ]` (RFC 9110, section 7.2): no user in front, nothing behind.
fn read_host(text: &str) -> Option<Host> {
    let (host, port) = match text.find(']') {
        Some(end) => text.split_at(end + 1),
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let port = match port.strip_prefix(':') {
        Some(port) => port,
        None if port.is_empty() => port,
        None => return None,
    };
    let is_port = port.is_empty()
        || port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    host.parse().ok().filter(|_| is_port)
}

/// The port is left out: a name that leads here by another way does so on any port.
fn is_ours(host: &Host, remote: Remote, namespace: &Namespace) -> bool {
    let is_localhost = matches!(host, Host::Name(name) if name.matches("localhost"));
    let is_own_address = match remote {
        Remote::Network { local, .. } => host.ip() == Some(local.ip().to_canonical()),
        Remote::Local { .. } => false,
    };
    is_localhost || is_own_address || host.matches(&namespace.public_address.host)
}

/// Whether an Origin is a page of this very host.
fn is_same(origin: &str, host: &str) -> bool {
    let same = |scheme: &str| {
        origin
            .strip_prefix(scheme)
            .is_some_and(|origin| origin.eq_ignore_ascii_case(host))
    };
    same("http://") || same("https://")
}

impl Remote {
    pub(super) fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Network { peer, .. } => Some(peer.ip()),
            Self::Local { .. } => None,
        }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network { peer, .. } => peer.fmt(out),
            Self::Local { uid } => write!(out, "run/api.sock, uid {uid}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_are_ours() {
        let namespace =
            Namespace::parse("f", "public_address = \"relay.example.com:4433\"", "x").unwrap();
        let remote = Remote::Network {
            peer: "192.0.2.9:1".parse().unwrap(),
            local: "192.0.2.7:8480".parse().unwrap(),
        };
        for host in [
            "localhost",
            "LOCALHOST:8480",
            "192.0.2.7:8480",
            "192.0.2.7",
            "relay.example.com",
            "Relay.Example.com:443",
            "[::ffff:192.0.2.7]:8480",
        ] {
            let read = read_host(host).unwrap();
            assert!(is_ours(&read, remote, &namespace), "{host}");
        }
        for host in [
            "evil.example.com",
            "192.0.2.8:8480",
            "127.0.0.1:8480",
            "localhost.evil.example.com",
            "[::1]",
        ] {
            let read = read_host(host).unwrap();
            assert!(!is_ours(&read, remote, &namespace), "{host}");
        }
        let loopback = read_host("127.0.0.1").unwrap();
        assert!(!is_ours(&loopback, Remote::Local { uid: 0 }, &namespace));
    }

    #[test]
    fn a_host_has_no_user_and_nothing_behind_its_port() {
        for host in [
            "",
            ":80",
            "a b",
            "localhost:80@evil",
            "evil@localhost",
            "localhost:80:90",
            "localhost:65536",
            "localhost:+80",
            "localhost/",
            "[::1]80",
            "[::1]:80]",
            "::1",
        ] {
            assert_eq!(read_host(host), None, "{host}");
        }
        assert!(read_host("localhost:").is_some(), "a port may be empty");
    }

    #[test]
    fn origins_that_are_the_same_host() {
        assert!(
            is_same("http://localhost:8480", "LOCALHOST:8480")
                && is_same("https://relay.example.com", "relay.example.com")
        );
        for origin in [
            "null",
            "",
            "http://localhost",
            "http://evil.example.com",
            "file://",
            "http://localhost:8480.evil.example.com",
        ] {
            assert!(!is_same(origin, "localhost:8480"), "{origin}");
        }
    }
}
