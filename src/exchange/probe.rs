//! The answer to the reserved session: the proxy's own, whatever the apps do.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};

use super::answer::{Account, Body};
use super::route::Route;
use super::{Asker, Exchange};
use crate::plan::PROBE_NONCE;

/// Of a nonce, in bytes.
const LONGEST_NONCE: usize = 128;

impl Exchange<'_> {
    pub(super) fn answer_probe(
        &self,
        route: &Route<'_>,
        asked: &HeaderMap,
        asker: Asker,
        mut account: Box<Account>,
    ) -> Response<Body> {
        let identity = &self.ground.identity;
        let mut answer = serde_json::json!({
            "instance": identity.instance,
            "sessions": self.plan.sessions.len(),
        });
        if let Some(target) = &identity.target {
            answer["target"] = target.as_str().into();
        }
        if let Some(nonce) = nonce(asked) {
            answer["nonce"] = nonce.into();
        }
        let mut response = Response::new(Bytes::from(answer.to_string()));
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        let no_store = HeaderValue::from_static("no-store");
        response
            .headers_mut()
            .insert(header::CACHE_CONTROL, no_store);
        // The probe proves the way by this header, so it is not up to the configuration.
        let asker = Asker {
            wants_route: true,
            ..asker
        };
        account
            .record
            .refused(StatusCode::OK.as_u16(), route.reason());
        asker.answer(response, route.header(None), account)
    }
}

/// What a probe wants to hear again, by which it knows that this very request was answered.
fn nonce(asked: &HeaderMap) -> Option<&str> {
    let mut fields = asked.get_all(PROBE_NONCE).iter();
    let (Some(nonce), None) = (fields.next(), fields.next()) else {
        return None;
    };
    let is_fit = (1..=LONGEST_NONCE).contains(&nonce.len())
        && nonce.as_bytes().iter().all(u8::is_ascii_graphic);
    nonce.to_str().ok().filter(|_| is_fit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_one_short_word_of_visible_ascii() {
        let heard = |values: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                let value = HeaderValue::from_bytes(value).expect("a header can carry it");
                headers.append(PROBE_NONCE, value);
            }
            nonce(&headers).map(str::to_owned)
        };
        let (longest, longer) = ([b'x'; 128], [b'x'; 129]);

        assert_eq!(heard(&[b"7f-!~\"\\"]).as_deref(), Some("7f-!~\"\\"));
        assert_eq!(heard(&[&longest]).map(|nonce| nonce.len()), Some(128));
        for value in [&b""[..], b"a b", b"a\tb", "é".as_bytes(), &longer] {
            assert_eq!(heard(&[value]), None, "{value:?}");
        }
        assert_eq!(heard(&[]), None, "none at all");
        assert_eq!(heard(&[b"a", b"a"]), None, "two of them");
    }
}
