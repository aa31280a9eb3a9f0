//! Which requests the agent takes: those that name a session, whatever its name.
//!
//! The agent holds each regular expression against each field alone, written `name: value`; it ignores
//! case and anchors nothing itself. A filter for one session would need a new mirrord session for each
//! pull request, and would take `pr-42` for `pr-4` as soon as an anchor is forgotten. So it takes them
//! all, and the proxy sends what it does not know back to the app.

use serde_json::{Value, json};

/// The filter for a header and a key of baggage; an empty key: for the header alone.
pub(super) fn filter(header: &str, baggage_key: &str, app_ports: &[u16]) -> Value {
    let header = format!("^{}: .+$", escaped(header));
    if baggage_key.is_empty() {
        return json!({ "header_filter": header, "ports": app_ports });
    }
    let key = escaped(baggage_key);
    let baggage = format!(r"^baggage: (.*,)?\s*{key}\s*=");
    json!({ "any_of": [{ "header": header }, { "header": baggage }], "ports": app_ports })
}

/// A text for which a regular expression stands. Names of headers and keys of baggage are tokens, of
/// whose characters these have another meaning.
fn escaped(token: &str) -> String {
    let mut escaped = String::with_capacity(token.len());
    for character in token.chars() {
        if r"\.+*?()|[]{}^$".contains(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use fancy_regex::Regex;
    use http::{HeaderMap, HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;
    use crate::matcher::{Claim, SessionRule, TableBuilder};

    /// The agent's own rule: each field that is visible ASCII is held against each expression as
    /// `name: value`, in any case, and one match is enough.
    struct AgentRule(Vec<Regex>);

    impl AgentRule {
        fn of(header: &str, baggage_key: &str) -> Self {
            let filter = filter(header, baggage_key, &[8080]);
            let alone = filter.get("header_filter").into_iter();
            let any_of = filter["any_of"].as_array().into_iter().flatten();
            let expressions = alone.chain(any_of.map(|one| &one["header"]));
            let regex = |expression: &Value| {
                let expression = expression.as_str().expect("a text");
                Regex::new(&format!("(?i){expression}")).expect("a good expression")
            };
            Self(expressions.map(regex).collect())
        }

        fn takes(&self, head: &[(&str, &str)]) -> bool {
            assert!(!self.0.is_empty(), "no filter takes everything");
            head.iter().any(|(name, value)| {
                let field = format!("{name}: {value}");
                value.is_ascii()
                    && self
                        .0
                        .iter()
                        .any(|regex| regex.is_match(&field).expect("no backtracking without end"))
            })
        }
    }

    static USUAL: LazyLock<AgentRule> =
        LazyLock::new(|| AgentRule::of("x-dev-session", "dev-session"));

    /// What the proxy, which gets what was taken, reads as the session.
    fn session(head: &[(&str, &str)]) -> Option<String> {
        let rule = SessionRule {
            header: HeaderName::from_static("x-dev-session"),
            baggage_key: Some("dev-session".into()),
        };
        let mut headers = HeaderMap::new();
        for (name, value) in head {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).expect("a name"),
                HeaderValue::from_str(value).expect("a value"),
            );
        }
        match rule.claim(&headers) {
            Claim::Session(name) => Some(name.into_owned()),
            _ => None,
        }
    }

    #[test]
    fn every_session_is_taken_and_the_proxy_tells_them_apart() {
        for (head, expected) in [
            (&[("x-dev-session", "pr-4")][..], "pr-4"),
            (&[("x-dev-session", "pr-42")], "pr-42"),
            (&[("x-dev-session", "pr-423")], "pr-423"),
            (&[("X-Dev-Session", "pr-42")], "pr-42"),
            (&[("X-DEV-SESSION", "PR-42")], "PR-42"),
            (
                &[("accept", "*/*"), ("x-dev-session", "nobody-knows-it")],
                "nobody-knows-it",
            ),
            (
                &[("x-dev-session", "session-proxy-probe")],
                "session-proxy-probe",
            ),
            (&[("baggage", "dev-session=pr-42")], "pr-42"),
            (&[("Baggage", "dev-session=pr-42")], "pr-42"),
            (&[("baggage", "dev-session=pr-42;secure;p=1")], "pr-42"),
            (
                &[("baggage", "userId=alice,dev-session=pr-42,x=y")],
                "pr-42",
            ),
            (
                &[("baggage", "userId=alice ,\t dev-session = pr-42 , x=y")],
                "pr-42",
            ),
            (
                &[
                    ("baggage", "a=1"),
                    ("baggage", "b=2"),
                    ("baggage", "dev-session=pr-42"),
                ],
                "pr-42",
            ),
            (&[("baggage", "dev-session=pr%2D42")], "pr-42"),
        ] {
            assert!(USUAL.takes(head), "{head:?}");
            assert_eq!(session(head).as_deref(), Some(expected), "{head:?}");
        }
    }

    #[test]
    fn a_session_that_begins_like_another_is_taken_and_goes_back_to_the_app() {
        let mut known = TableBuilder::new();
        known.exact("pr-4", ());
        let known = known.build().expect("one name");
        for (name, is_known) in [("pr-4", true), ("pr-42", false)] {
            let head = [("x-dev-session", name)];
            assert!(USUAL.takes(&head), "{name}");
            let session = session(&head).expect("a session");
            assert_eq!(known.find(&session).is_some(), is_known, "{name}");
        }
    }

    #[test]
    fn what_only_looks_like_a_session_stays_with_the_app() {
        for head in [
            &[][..],
            &[("accept", "*/*")],
            &[("x-dev-session", "")],
            &[("x-dev-session-id", "pr-42")],
            &[("not-x-dev-session", "pr-42")],
            &[("x-dev-sessio", "pr-42")],
            &[("referer", "http://shop/?x-dev-session: pr-42")],
            &[("cookie", "x-dev-session: pr-42")],
            &[("cookie", "baggage: dev-session=pr-42")],
            &[("x-note", "dev-session=pr-42")],
            &[("baggage", "")],
            &[("baggage", "userId=alice")],
            &[("baggage", "dev-session")],
            &[("baggage", "xdev-session=pr-42")],
            &[("baggage", "dev-session2=pr-42")],
            &[("baggage", "userId=alice;dev-session=pr-42")],
            &[("baggage", "userId=dev-session=pr-42")],
            &[("x-baggage", "dev-session=pr-42")],
        ] {
            assert!(!USUAL.takes(head), "{head:?}");
            assert_eq!(session(head), None, "{head:?}");
        }
    }

    #[test]
    fn without_baggage_only_the_header_counts() {
        let rule = AgentRule::of("x-dev-session", "");
        assert!(rule.takes(&[("x-dev-session", "pr-42")]));
        assert!(!rule.takes(&[("baggage", "dev-session=pr-42")]));
    }

    #[test]
    fn a_name_with_a_meaning_in_expressions_means_itself() {
        let rule = AgentRule::of("x.dev+session|$*^", "dev.session*");
        assert!(rule.takes(&[("x.dev+session|$*^", "pr-42")]));
        assert!(rule.takes(&[("baggage", "a=b,dev.session*=pr-42")]));
        for head in [
            ("x-dev+session|$*^", "pr-42"),
            ("x.dev+session", "pr-42"),
            ("baggage", "dev-sessionn=1"),
        ] {
            assert!(!rule.takes(&[head]), "{head:?}");
        }
    }

    /// A filter that misses what the proxy reads would send a session's requests to the app.
    fn any_head() -> impl Strategy<Value = Vec<(&'static str, String)>> {
        let pieces = prop::sample::select(vec![
            "dev-session",
            "dev-session=",
            "pr-1",
            "pr-2",
            "=",
            ",",
            ";",
            " ",
            "\t",
            "%2D",
            "\"",
            "a=b",
            "x",
        ]);
        let value = prop::collection::vec(pieces, 0..8).prop_map(|pieces| {
            // As a parser of HTTP hands it on.
            pieces.concat().trim_matches([' ', '\t']).to_owned()
        });
        let names = vec!["x-dev-session", "baggage", "x-other"];
        prop::collection::vec((prop::sample::select(names), value), 0..4)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_the_proxy_reads_as_a_session_is_taken(head in any_head()) {
            let head: Vec<(&str, &str)> = head.iter().map(|(name, value)| (*name, value.as_str())).collect();
                prop_assert!(session(&head).is_none() || USUAL.takes(&head), "{:?}", head);
        }
    }
}
