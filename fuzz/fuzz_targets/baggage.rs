//! One `baggage` field says what the same members say in fields of their own (RFC 9110, section 5.3).

#![no_main]

use http::header::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use session_proxy::matcher::SessionRule;

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

fuzz_target!(|field: &[u8]| {
    let rule = SessionRule {
        header: HeaderName::from_static("x-dev-session"),
        baggage_key: Some("k".into()),
    };
    let Ok(whole) = HeaderValue::from_bytes(field) else {
        return;
    };
    let one_field = HeaderMap::from_iter([(BAGGAGE, whole)]);
    let many_fields: HeaderMap = field
        .split(|byte| *byte == b',')
        .map(|member| {
            (
                BAGGAGE,
                HeaderValue::from_bytes(member).expect("part of a good value"),
            )
        })
        .collect();

    assert_eq!(rule.claim(&one_field), rule.claim(&many_fields));
});
