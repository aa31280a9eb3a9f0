//! What a request's fields mean to this hop, told in one pass.

use http::header::{self, HeaderMap, HeaderValue};

use super::{is_grpc_type, is_hop_by_hop};

/// What the fields of a request mean to this hop. Found in one pass: to ask the map for a name costs
/// a hash of that name, whether it is there or not, and these are a dozen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Survey {
    pub(super) hosts: usize,
    pub(super) has_bad_host: bool,
    pub(super) codings: usize,
    pub(super) has_other_coding: bool,
    pub(super) has_length: bool,
    pub(super) has_te: bool,
    pub(super) has_upgrade: bool,
    pub(super) has_hops: bool,
    pub has_via: bool,
    /// It is a gRPC message, and wants its failures in trailers.
    pub is_grpc: bool,
}

impl Survey {
    pub fn of(headers: &HeaderMap) -> Self {
        let mut survey = Self::default();
        for (name, value) in headers {
            survey.has_hops |= is_hop_by_hop(name);
            match *name {
                header::HOST => {
                    survey.hosts += 1;
                    survey.has_bad_host |= !is_host(value);
                }
                header::TRANSFER_ENCODING => {
                    survey.codings += 1;
                    let coding = value.as_bytes().trim_ascii();
                    survey.has_other_coding |= !coding.eq_ignore_ascii_case(b"chunked");
                }
                header::CONTENT_LENGTH => survey.has_length = true,
                header::CONTENT_TYPE => survey.is_grpc |= is_grpc_type(value),
                header::TE => survey.has_te = true,
                header::UPGRADE => survey.has_upgrade = true,
                header::VIA => survey.has_via = true,
                _ => {}
            }
        }
        survey
    }

    /// Whether a transfer coding is named.
    pub fn has_coding(&self) -> bool {
        self.codings > 0
    }
}

/// RFC 9110, section 7.2, generously: no blanks, no list, no user, no path. May be empty.
fn is_host(host: &HeaderValue) -> bool {
    const STANDS_IN_HOST: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = b'!';
        while byte <= b'~' {
            table[byte as usize] = !matches!(byte, b',' | b'/' | b'@' | b'?' | b'#' | b'\\');
            byte += 1;
        }
        table
    };
    let mut bytes = host.as_bytes().iter();
    bytes.all(|byte| STANDS_IN_HOST[usize::from(*byte)])
}
