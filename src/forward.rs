//! What may cross: hop-by-hop headers, framing, trailers.
//!
//! The app behind must see what it would have seen without the proxy, so nothing is added here but
//! what the change of HTTP version asks for. Only this room knows which headers hop.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Uri, Version, request, response};

mod survey;

pub use survey::Survey;

/// What is wrong with a request head that the HTTP engine let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// Not HTTP at all: what the HTTP engine did refuse.
    Syntax,
    /// The body is not framed as it says, or breaks off.
    Body,
    /// RFC 9112, section 3.2: exactly one `Host`, unless the target names the authority.
    NoHost,
    TwoHosts,
    BadHost,
    /// RFC 9112, section 6.1: a coding other than `chunked` cannot be passed on.
    TransferCoding,
    /// RFC 9112, section 6.3: `Transfer-Encoding` beside `Content-Length`.
    TwoFramings,
    BadTarget,
}

impl Flaw {
    /// What to tell the client.
    pub fn detail(self) -> &'static str {
        match self {
            Self::Syntax => "the bytes are not a request",
            Self::Body => "the body is not framed as the head says, or breaks off",
            Self::NoHost => "the request has no host header",
            Self::TwoHosts => "the request has more than one host header",
            Self::BadHost => "the host header is not a host with an optional port",
            Self::TransferCoding => "only the transfer coding chunked is understood",
            Self::TwoFramings => "the request has both content-length and transfer-encoding",
            Self::BadTarget => "the request target is neither a path nor an absolute uri",
        }
    }
}

/// Finds what the engine does not look for.
pub fn flaw(head: &request::Parts, survey: &Survey) -> Option<Flaw> {
    let authority = head.uri.authority();
    // Authority-form is for CONNECT alone (RFC 9112, section 3.2.3).
    if head.uri.scheme().is_none() && authority.is_some() {
        return Some(Flaw::BadTarget);
    }
    match survey.hosts {
        0 if head.version == Version::HTTP_11 && authority.is_none() => return Some(Flaw::NoHost),
        0 => {}
        1 if survey.has_bad_host => return Some(Flaw::BadHost),
        // RFC 9113, section 8.3.1: in HTTP/2 the two must say the same.
        1 if head.version == Version::HTTP_2 => {
            let host = head.headers.get(header::HOST).map(HeaderValue::as_bytes);
            let authority = authority.map(|authority| authority.as_str().as_bytes());
            if authority.is_some() && authority != host {
                return Some(Flaw::BadHost);
            }
        }
        1 => {}
        _ => return Some(Flaw::TwoHosts),
    }
    match survey.codings {
        0 => None,
        1 if survey.has_other_coding => Some(Flaw::TransferCoding),
        1 => survey.has_length.then_some(Flaw::TwoFramings),
        _ => Some(Flaw::TransferCoding),
    }
}

/// Headers that `Connection` can never remove, besides the session header: they decide where a
/// request goes, how it is framed, and who sent it.
fn is_protected(name: &str, session_header: &HeaderName) -> bool {
    [
        "baggage",
        "traceparent",
        "host",
        "content-length",
        "authorization",
        session_header.as_str(),
    ]
    .iter()
    .any(|protected| protected.eq_ignore_ascii_case(name))
}

/// How many names [`is_hop_by_hop`] knows.
const HOP_BY_HOP: usize = 9;

/// RFC 9110, section 7.6.1, and what came before it.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    match *name {
        header::TE
        | header::UPGRADE
        | header::CONNECTION
        | header::TRANSFER_ENCODING
        | header::PROXY_AUTHENTICATE
        | header::PROXY_AUTHORIZATION => true,
        // By length first: most names share theirs with none of these.
        _ => match name.as_str().len() {
            10 => *name == "keep-alive",
            14 => *name == "http2-settings",
            16 => *name == "proxy-connection",
            _ => false,
        },
    }
}

/// The tokens of `Connection`, over all its fields.
fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|option| !option.is_empty())
}

/// Whether `Connection` says what it mostly says.
fn names_no_field(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::CONNECTION).iter();
    values.all(|value| {
        let value = value.as_bytes();
        value.eq_ignore_ascii_case(b"keep-alive") || value.eq_ignore_ascii_case(b"close")
    })
}

/// Removes what is meant for this hop alone. One pass over the names that are there: removing each
/// possible name by itself costs twenty times as much.
fn remove_hop_by_hop(headers: &mut HeaderMap, session_header: &HeaderName) {
    let mut hops: [Option<HeaderName>; HOP_BY_HOP] = Default::default();
    let mut count = 0;
    let mut named = Vec::new();
    for name in headers.keys() {
        if !is_hop_by_hop(name) {
            continue;
        }
        if *name == header::CONNECTION && !names_no_field(headers) {
            named = connection_options(headers)
                .filter(|option| !is_protected(option, session_header))
                .filter_map(|option| HeaderName::from_bytes(option.as_bytes()).ok())
                .filter(|option| !is_hop_by_hop(option) && headers.contains_key(option))
                .collect();
        }
        // Every name stands once among the keys: no place is missing.
        hops[count] = Some(name.clone());
        count += 1;
    }
    for name in hops.iter().flatten().chain(&named) {
        headers.remove(name);
    }
}

/// Whether `headers` offer to take trailers.
fn takes_trailers(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| {
            coding
                .split(';')
                .next()
                .is_some_and(|name| name.trim().eq_ignore_ascii_case("trailers"))
        })
}

/// The protocol a request asks to change to. `h2c` is not one of them: switched to HTTP/2, the
/// client could send requests past the table.
fn upgrade(head: &request::Parts) -> Option<HeaderValue> {
    if head.version != Version::HTTP_11 {
        return None;
    }
    let value = head.headers.get(header::UPGRADE)?;
    let asked = connection_options(&head.headers).any(|o| o.eq_ignore_ascii_case("upgrade"));
    let is_h2c = value.to_str().is_ok_and(|value| {
        value
            .split(',')
            .any(|protocol| protocol.trim().eq_ignore_ascii_case("h2c"))
    });
    (asked && !is_h2c).then(|| value.clone())
}

/// What a request asked of its hop that goes on with it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Crossing {
    has_host: bool,
    /// The client asked for another protocol, and may get it.
    pub upgrade: bool,
    /// The client takes trailers.
    pub trailers: bool,
}

/// Makes a request head fit for the next hop, whichever HTTP version that speaks.
pub fn request(
    head: &mut request::Parts,
    survey: &Survey,
    session_header: &HeaderName,
) -> Crossing {
    let has_host = survey.hosts > 0;
    if !survey.has_hops {
        return Crossing {
            has_host,
            ..Crossing::default()
        };
    }
    let upgrade = survey.has_upgrade.then(|| upgrade(head)).flatten();
    let trailers = survey.has_te && takes_trailers(&head.headers);
    remove_hop_by_hop(&mut head.headers, session_header);
    if trailers {
        head.headers
            .insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = &upgrade {
        head.headers
            .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(header::UPGRADE, protocol.clone());
    }
    Crossing {
        has_host,
        upgrade: upgrade.is_some(),
        trailers,
    }
}

/// Fits a crossing head to HTTP/1.1: origin-form, and `Host` from the authority when the request
/// has none (HTTP/2, and mirrord's HTTP/2 requests on HTTP/1 connections). `fallback` names the
/// endpoint, for the HTTP/1.0 request that names no host at all.
///
/// A body of unknown length is `chunked` with every method; without the word the engine would
/// leave out the body of a GET.
pub fn to_h1(
    head: &mut request::Parts,
    crossing: Crossing,
    has_body: bool,
    fallback: impl FnOnce() -> String,
) -> Result<(), Flaw> {
    // A head that was fitted to HTTP/2 before has lost it.
    let has_host = crossing.has_host && head.version != Version::HTTP_2;
    if !has_host && !head.headers.contains_key(header::HOST) {
        let host = head.uri.authority().map_or_else(fallback, |authority| {
            // Never the user information: RFC 9110, section 4.2.4.
            authority
                .as_str()
                .rsplit('@')
                .next()
                .unwrap_or_default()
                .to_owned()
        });
        let host = HeaderValue::try_from(host).map_err(|_| Flaw::BadHost)?;
        head.headers.insert(header::HOST, host);
    }
    if head.version == Version::HTTP_2 {
        // HTTP/2 clients may split cookies; HTTP/1 knows one field (RFC 9113, section 8.2.3).
        join_cookies(&mut head.headers);
        // Only a chunked body has a place for the trailers it announces.
        if has_body && head.headers.contains_key(header::TRAILER) {
            head.headers.remove(header::CONTENT_LENGTH);
        }
    }
    if has_body && !head.headers.contains_key(header::CONTENT_LENGTH) {
        head.headers.insert(
            header::TRANSFER_ENCODING,
            HeaderValue::from_static("chunked"),
        );
    }
    if head.uri.authority().is_some() {
        head.uri = match head.uri.path_and_query() {
            // `OPTIONS http://host` means the host itself, not its root (RFC 9112, section 3.2.4).
            _ if head.method == Method::OPTIONS && has_no_path(&head.uri) => Uri::from_static("*"),
            Some(path) => Uri::from(path.clone()),
            None => Uri::from_static("/"),
        };
    }
    head.version = Version::HTTP_11;
    Ok(())
}

fn has_no_path(uri: &Uri) -> bool {
    matches!(uri.path(), "" | "*") && uri.query().is_none()
}

fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else {
        return;
    };
    let mut joined = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(cookie) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, cookie);
    }
}

/// Fits a crossing head to HTTP/2: `:scheme` and `:authority` for the target's host, no `Host`.
pub fn to_h2(
    head: &mut request::Parts,
    scheme: Scheme,
    fallback: impl FnOnce() -> String,
) -> Result<(), Flaw> {
    let host = head.headers.remove(header::HOST);
    let authority = match (&host, head.uri.authority()) {
        (Some(host), _) if !host.is_empty() => {
            Authority::try_from(host.as_bytes()).map_err(|_| Flaw::BadHost)?
        }
        (_, Some(authority)) => authority.clone(),
        _ => Authority::try_from(fallback()).map_err(|_| Flaw::BadHost)?,
    };
    let path = match head.uri.path_and_query() {
        Some(path) if !path.as_str().is_empty() => path.clone(),
        _ => PathAndQuery::from_static("/"),
    };
    head.uri = Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query(path)
        .build()
        .map_err(|_| Flaw::BadTarget)?;
    head.headers.remove(header::TRANSFER_ENCODING);
    // Upgrades do not exist in HTTP/2 (RFC 9113, section 8.2.2); the app is free to ignore one.
    head.headers.remove(header::CONNECTION);
    head.headers.remove(header::UPGRADE);
    head.version = Version::HTTP_2;
    Ok(())
}

/// Makes a response head fit to cross to a client that spoke `client` and takes `trailers`.
/// `upgraded`: the answer is the 101 to an upgrade that crossed.
pub fn response(
    head: &mut response::Parts,
    client: Version,
    trailers: bool,
    upgraded: bool,
    session_header: &HeaderName,
) {
    if head.headers.keys().any(is_hop_by_hop) {
        let protocol = head.headers.get(header::UPGRADE).cloned();
        remove_hop_by_hop(&mut head.headers, session_header);
        if let Some(protocol) = protocol {
            // 426 names the protocol the server wants (RFC 9110, section 15.5.22).
            if upgraded || head.status == http::StatusCode::UPGRADE_REQUIRED {
                head.headers.insert(header::UPGRADE, protocol);
            }
            if upgraded {
                head.headers
                    .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            }
        }
    }
    let is_down = client == Version::HTTP_11 && head.version == Version::HTTP_2;
    if is_down && trailers && is_grpc(&head.headers) {
        // An HTTP/1 server sends only the trailers it has announced.
        const GRPC: &str = "grpc-status, grpc-message, grpc-status-details-bin";
        head.headers
            .entry(header::TRAILER)
            .or_insert(HeaderValue::from_static(GRPC));
    }
    // The engine writes what the client spoke; told 1.0, it would also close the connection.
    head.version = Version::HTTP_11;
}

/// Whether these are the headers of a gRPC message.
fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(is_grpc_type)
}

fn is_grpc_type(value: &HeaderValue) -> bool {
    let rest = value.as_bytes().strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+") || rest.starts_with(b";"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn head(request: request::Builder) -> request::Parts {
        request
            .body(())
            .expect("the test builds a valid head")
            .into_parts()
            .0
    }

    fn crossed(request: request::Builder) -> request::Parts {
        let mut head = head(request);
        let survey = Survey::of(&head.headers);
        super::request(
            &mut head,
            &survey,
            &HeaderName::from_static("x-dev-session"),
        );
        head
    }

    #[test]
    fn hop_by_hop_headers_stay_behind_also_those_that_connection_names() {
        let head = crossed(
            Request::get("/")
                .header("connection", "keep-alive, X-Foo, close")
                .header("keep-alive", "timeout=5")
                .header("proxy-connection", "keep-alive")
                .header("transfer-encoding", "chunked")
                .header("te", "gzip")
                .header("upgrade", "websocket")
                .header("proxy-authorization", "Basic eA==")
                .header("x-foo", "gone")
                .header("x-bar", "stays"),
        );
        let names: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["x-bar"]);
    }

    #[test]
    fn all_hop_by_hop_headers_at_once_stay_behind() {
        let names = [
            "te",
            "upgrade",
            "connection",
            "keep-alive",
            "http2-settings",
            "proxy-connection",
            "transfer-encoding",
            "proxy-authenticate",
            "proxy-authorization",
        ];
        assert_eq!(names.len(), HOP_BY_HOP);
        let request = names
            .iter()
            .fold(Request::get("/"), |r, name| r.header(*name, "x"));
        assert!(crossed(request).headers.is_empty());
    }

    #[test]
    fn connection_cannot_remove_what_routes_frames_or_identifies() {
        let protected = [
            "x-dev-session",
            "baggage",
            "traceparent",
            "host",
            "content-length",
            "authorization",
        ];
        let mut request = Request::get("/").header("connection", protected.join(", "));
        for name in protected {
            request = request.header(name, "1");
        }
        let head = crossed(request);
        assert_eq!(head.headers.len(), protected.len());
    }

    #[test]
    fn te_trailers_crosses_and_nothing_else_of_te() {
        let head = crossed(Request::get("/").header("te", "gzip;q=0.5, trailers"));
        assert_eq!(head.headers["te"], "trailers");
    }

    #[test]
    fn an_upgrade_crosses_but_not_to_h2c() {
        let websocket = Request::get("/").header("connection", "keep-alive, Upgrade");
        let head = crossed(websocket.header("upgrade", "websocket"));
        assert_eq!(
            (&head.headers["connection"], &head.headers["upgrade"]),
            (
                &HeaderValue::from_static("upgrade"),
                &HeaderValue::from_static("websocket")
            )
        );

        let h2c = Request::get("/").header("connection", "upgrade, http2-settings");
        let head = crossed(h2c.header("upgrade", "h2c").header("http2-settings", "AAM"));
        assert!(head.headers.is_empty());
    }

    #[test]
    fn flaws_are_found() {
        let host = || Request::get("/").header("host", "a");
        let table = [
            (host(), None),
            (Request::get("/"), Some(Flaw::NoHost)),
            (Request::get("http://a/"), None),
            (Request::get("/").version(Version::HTTP_10), None),
            (host().header("host", "a"), Some(Flaw::TwoHosts)),
            (Request::get("/").header("host", "a b"), Some(Flaw::BadHost)),
            (
                Request::get("/").header("host", "a, b"),
                Some(Flaw::BadHost),
            ),
            (Request::get("/").header("host", "[::1]:80"), None),
            (
                host().header("transfer-encoding", "gzip, chunked"),
                Some(Flaw::TransferCoding),
            ),
            (host().header("transfer-encoding", "Chunked"), None),
            (
                host()
                    .header("transfer-encoding", "chunked")
                    .header("content-length", "3"),
                Some(Flaw::TwoFramings),
            ),
        ];
        for (request, expected) in table {
            let head = head(request);
            assert_eq!(
                flaw(&head, &Survey::of(&head.headers)),
                expected,
                "{head:?}"
            );
        }
    }

    #[test]
    fn absolute_form_becomes_origin_form_with_its_authority_as_host() {
        let mut head = head(Request::get("http://10.77.0.2:8080/a/../b//c%2e/?q=%20"));
        to_h1(&mut head, Crossing::default(), false, || {
            unreachable!("the target names the host")
        })
        .expect("it is sound");
        assert_eq!(head.uri, "/a/../b//c%2e/?q=%20");
        assert_eq!(head.headers["host"], "10.77.0.2:8080");
    }

    #[test]
    fn host_is_untouched_where_it_stands() {
        let mut head = head(Request::get("http://evil/x").header("host", "orders"));
        to_h1(&mut head, Crossing::default(), false, String::new).expect("it is sound");
        assert_eq!(head.headers["host"], "orders");
    }

    #[test]
    fn host_becomes_authority_in_h2() {
        let mut head = head(Request::get("/x?y").header("host", "orders:80"));
        to_h2(&mut head, Scheme::HTTP, String::new).expect("it is sound");
        assert_eq!(head.uri, "http://orders:80/x?y");
        assert!(head.headers.is_empty());
    }

    #[test]
    fn cookie_crumbs_become_one_field() {
        let mut head = head(
            Request::get("/")
                .version(Version::HTTP_2)
                .header("cookie", "a=1")
                .header("cookie", "b=2"),
        );
        to_h1(&mut head, Crossing::default(), false, String::new).expect("it is sound");
        assert_eq!(head.headers["cookie"], "a=1; b=2");
    }

    #[test]
    fn grpc_is_known_by_its_content_type() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;x=y", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let headers =
                HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(value))]);
            assert_eq!(is_grpc(&headers), expected, "{value}");
        }
    }
}
