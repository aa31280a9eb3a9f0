//! What a client sees when the proxy answers for itself.

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Serialize;

use crate::forward::Flaw;

/// The header that tells which way a request went.
pub const ROUTE_HEADER: HeaderName = HeaderName::from_static("x-dev-session-route");

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// Why a request gets an answer of ours. Nothing of an upstream's answer has gone out yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The request names no session, and there is no baseline.
    NoSession,
    /// It names one that is not in the table, and there is no baseline.
    UnknownSession,
    /// It names two, and there is no baseline.
    Conflict,
    /// It names one that cannot be a name, and there is no baseline.
    Malformed,
    /// The session is known, but has no address.
    NoEndpoint,
    /// No connection could be made.
    ConnectFailed(String),
    /// The connection ended before an answer.
    UpstreamReset(String),
    /// No connection within `timeouts.connect`.
    ConnectTimeout,
    /// No answer within `timeouts.responseHeaders`.
    ResponseTimeout,
    /// A limit is reached; its name.
    Overloaded(&'static str),
    /// Our own `Via` is back.
    Loop,
    /// Sound to the HTTP engine, but not to us.
    BadRequest(Flaw),
    /// `CONNECT`: destinations come from the table only.
    Connect,
    /// The head is larger than `limits.headerBytes` or has more fields than `limits.headers`.
    HeadTooLarge,
    /// The request line alone is larger than `limits.headerBytes`.
    TargetTooLong,
    /// The head was not complete within `timeouts.requestHeaders`.
    HeadTimeout,
    /// The body stood still for `timeouts.bodyIdle`.
    BodyTimeout,
}

impl Failure {
    /// The status of the answer, unless the request was gRPC.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoSession | Self::UnknownSession => StatusCode::NOT_FOUND,
            Self::Conflict | Self::Malformed => StatusCode::BAD_REQUEST,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::NoEndpoint | Self::Overloaded(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::ConnectFailed(_) | Self::UpstreamReset(_) => StatusCode::BAD_GATEWAY,
            Self::ConnectTimeout | Self::ResponseTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Loop => StatusCode::LOOP_DETECTED,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTimeout | Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
        }
    }

    /// The word for it in bodies, labels and logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoSession => "no-session",
            Self::UnknownSession => "unknown-session",
            Self::Conflict => "conflict",
            Self::Malformed => "malformed",
            Self::NoEndpoint => "no-endpoint",
            Self::ConnectFailed(_) => "connect-failed",
            Self::UpstreamReset(_) => "upstream-reset",
            Self::ConnectTimeout => "connect-timeout",
            Self::ResponseTimeout => "response-timeout",
            Self::Overloaded(_) => "overloaded",
            Self::Loop => "loop",
            Self::BadRequest(_) => "bad-request",
            Self::Connect => "method-not-allowed",
            Self::HeadTooLarge => "head-too-large",
            Self::TargetTooLong => "target-too-long",
            Self::HeadTimeout => "head-timeout",
            Self::BodyTimeout => "body-timeout",
        }
    }

    /// What happened, for the developer who reads the answer.
    fn detail(&self) -> String {
        match self {
            Self::NoSession => "the request names no session, and there is no baseline".into(),
            Self::UnknownSession => {
                "the session is not in the table, and there is no baseline".into()
            }
            Self::Conflict => {
                "the request names two different sessions, and there is no baseline".into()
            }
            Self::Malformed => {
                "the session is not 1 to 253 visible ascii characters, and there is no baseline"
                    .into()
            }
            Self::NoEndpoint => "the session is known but has no live endpoint; try again".into(),
            Self::ConnectFailed(why) => format!("no connection to the app: {why}"),
            Self::UpstreamReset(why) => {
                format!("no usable answer came from the app: {why}")
            }
            Self::ConnectTimeout => "no connection to the app in time".into(),
            Self::ResponseTimeout => "no answer from the app in time".into(),
            Self::Overloaded(limit) => format!("{limit} is reached; try again"),
            Self::Loop => "the request has been through this proxy already".into(),
            Self::BadRequest(flaw) => flaw.detail().into(),
            Self::Connect => "this proxy opens no tunnels".into(),
            Self::HeadTooLarge => "the head of the request is too large".into(),
            Self::TargetTooLong => "the target of the request is too long".into(),
            Self::HeadTimeout => "the head of the request took too long".into(),
            Self::BodyTimeout => "the body of the request stood still too long".into(),
        }
    }

    /// The error types of RFC 9209, section 2.3.
    fn proxy_error(&self) -> &'static str {
        match self {
            Self::NoSession | Self::UnknownSession | Self::NoEndpoint => "destination_not_found",
            Self::Conflict
            | Self::Malformed
            | Self::BadRequest(_)
            | Self::HeadTooLarge
            | Self::TargetTooLong
            | Self::HeadTimeout
            | Self::BodyTimeout => "http_request_error",
            Self::ConnectFailed(_) => "connection_refused",
            Self::UpstreamReset(_) => "connection_terminated",
            Self::ConnectTimeout => "connection_timeout",
            Self::ResponseTimeout => "http_response_timeout",
            Self::Overloaded(_) => "connection_limit_reached",
            Self::Loop => "proxy_loop_detected",
            Self::Connect => "http_request_denied",
        }
    }

    fn is_worth_another_try(&self) -> bool {
        matches!(self, Self::NoEndpoint | Self::Overloaded(_))
    }

    /// The answer: problem details (RFC 9457), `proxy-status` (RFC 9209).
    pub fn response(&self, session: Option<&str>) -> Response<Bytes> {
        let detail = self.detail();
        let status = self.status();
        let problem = Problem {
            r#type: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: &detail,
            session,
            reason: self.reason(),
        };
        let body = serde_json::to_vec(&problem).expect("strings and a number are JSON");
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.insert(PROXY_STATUS, self.proxy_status(&detail));
        if self.is_worth_another_try() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if *self == Self::Connect {
            const ALLOWED: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
            headers.insert(header::ALLOW, HeaderValue::from_static(ALLOWED));
        }
        response
    }

    /// The same for gRPC: a trailers-only answer with `UNAVAILABLE`, which clients may retry.
    pub fn grpc_response(&self) -> Response<Bytes> {
        let detail = self.detail();
        let message = format!("{}: {detail}", self.reason());
        let message = utf8_percent_encode(&message, GRPC_MESSAGE).to_string();
        let mut response = Response::new(Bytes::new());
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        headers.insert("grpc-status", HeaderValue::from_static("14"));
        if let Ok(message) = HeaderValue::try_from(message) {
            headers.insert("grpc-message", message);
        }
        headers.insert(PROXY_STATUS, self.proxy_status(&detail));
        response
    }

    fn proxy_status(&self, detail: &str) -> HeaderValue {
        // A string of RFC 9651 is printable ASCII with quotes and backslashes escaped.
        let detail: String = detail
            .chars()
            .map(|c| {
                if matches!(c, ' '..='~') && !matches!(c, '"' | '\\') {
                    c
                } else {
                    ' '
                }
            })
            .collect();
        let value = format!(
            "session-proxy; error={}; details=\"{detail}\"",
            self.proxy_error()
        );
        HeaderValue::try_from(value).expect("printable ASCII is a header value")
    }
}

#[derive(Serialize)]
struct Problem<'a> {
    r#type: &'a str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    session: Option<&'a str>,
    reason: &'a str,
}

/// What `grpc-message` must escape: all but printable ASCII, and the escape itself.
const GRPC_MESSAGE: &AsciiSet = &CONTROLS.add(b'%');

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_a_problem_with_a_reason() {
        let response = Failure::NoEndpoint.response(Some("pr-42"));
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "1");
        let problem: serde_json::Value =
            serde_json::from_slice(response.body()).expect("the body is JSON");
        assert_eq!(problem["reason"], "no-endpoint");
        assert_eq!(problem["session"], "pr-42");
        assert_eq!(problem["status"], 503);
        assert_eq!(problem["title"], "Service Unavailable");
        assert_eq!(problem["type"], "about:blank");
    }

    #[test]
    fn hostile_text_stays_inside_its_header() {
        let failure = Failure::ConnectFailed("a\"; error=x\r\nevil: 1 \u{fc}%".into());
        let header = failure.proxy_status(&failure.detail());
        assert_eq!(header.to_str().expect("ascii").matches('"').count(), 2);
        let grpc = failure.grpc_response();
        assert!(
            grpc.headers()["grpc-message"]
                .to_str()
                .expect("ascii")
                .contains("%0D%0A")
        );
    }

    #[test]
    fn grpc_failures_are_trailers_only() {
        let response = Failure::UpstreamReset("gone".into()).grpc_response();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert!(response.body().is_empty());
    }
}
