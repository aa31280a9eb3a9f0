//! Whatever a head holds, a session that comes out of it is a name, and the same again in a header.
//!
//! Input: one field per line, a `b` first for baggage, anything else first for the session header.

#![no_main]

use http::header::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use session_proxy::matcher::{Claim, MAX_NAME, SessionRule};

const SESSION: HeaderName = HeaderName::from_static("x-dev-session");
const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

fuzz_target!(|lines: &[u8]| {
    let rule = SessionRule {
        header: SESSION,
        baggage_key: Some("k".into()),
    };
    let head: HeaderMap = lines
        .split(|byte| *byte == b'\n')
        .filter_map(field)
        .collect();

    if let Claim::Session(name) = rule.claim(&head) {
        assert!((1..=MAX_NAME).contains(&name.len()));
        assert!(name.bytes().all(|byte| byte.is_ascii_graphic()));

        let value = HeaderValue::from_str(&name).expect("visible ASCII");
        let again = HeaderMap::from_iter([(SESSION, value)]);
        assert_eq!(rule.claim(&again), Claim::Session(name));
    }
});

fn field(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let (first, value) = line.split_first()?;
    let name = if *first == b'b' { BAGGAGE } else { SESSION };
    Some((name, HeaderValue::from_bytes(value).ok()?))
}
