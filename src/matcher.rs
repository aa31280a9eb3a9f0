//! Conditions on a request head: session header, baggage, exact, prefix, regex.
//!
//! Two questions, asked in this order for every request: what does the head say about its session
//! ([`SessionRule::claim`]), and which session of the table is meant by that ([`Table::lookup`]).
//! What follows from the answers is not decided here.
//!
//! Everything a client can send has a [`Claim`]; nothing is refused, nothing panics.

mod baggage;
mod table;

use std::borrow::Cow;

use http::{HeaderMap, HeaderName};

pub use self::table::{Found, Rule, Table, TableBuilder};

/// The longest name of a session, in bytes: that of a DNS name.
pub const MAX_NAME: usize = 253;

// Not among the constants of `http`.
static BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// How a request names its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRule {
    /// The header whose value is the session.
    pub header: HeaderName,
    /// The baggage member that says the same, compared byte for byte. `None`: baggage is not read.
    pub baggage_key: Option<Box<str>>,
}

impl SessionRule {
    /// What `headers` say about the session.
    ///
    /// Every field of the session header and every baggage member with our key is one value,
    /// trimmed of blanks; an empty one says nothing. A header value is taken as it is, `%` and `,`
    /// included; a baggage value is read as [W3C Baggage] has it.
    ///
    /// Two different values are a conflict even if one of them could not be a name: that the
    /// request contradicts itself is the more useful thing to be told.
    ///
    /// [W3C Baggage]: https://www.w3.org/TR/baggage/#header-content
    pub fn claim<'h>(&self, headers: &'h HeaderMap) -> Claim<'h> {
        let mut claimed = None;
        let mut is_conflict = false;
        let mut take = |value: Cow<'h, [u8]>| match &claimed {
            _ if value.is_empty() => {}
            None => claimed = Some(value),
            Some(first) => is_conflict |= *first != value,
        };
        // One walk over all that are there: to ask for the two names costs two hashes.
        for (name, field) in headers {
            if *name == self.header {
                take(Cow::Borrowed(baggage::trim(field.as_bytes())));
            }
            if let Some(key) = &self.baggage_key
                && *name == BAGGAGE
            {
                baggage::values(field.as_bytes(), key.as_bytes()).for_each(&mut take);
            }
        }
        match claimed {
            None => Claim::None,
            Some(_) if is_conflict => Claim::Conflict,
            Some(value) => name(value).map_or(Claim::Malformed, Claim::Session),
        }
    }
}

/// What a request head says about its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim<'h> {
    /// No session at all.
    None,
    /// Visible ASCII, 1 to [`MAX_NAME`] bytes, trimmed. Borrowed from the head unless a baggage
    /// value had to be decoded.
    Session(Cow<'h, str>),
    /// Two different values.
    Conflict,
    /// One value, but too long, or with bytes outside visible ASCII.
    Malformed,
}

/// `value` as the name of a session, if it can be one: 1 to [`MAX_NAME`] bytes of visible ASCII.
fn name(value: Cow<'_, [u8]>) -> Option<Cow<'_, str>> {
    let can_be_a_name = value.len() <= MAX_NAME && value.iter().all(u8::is_ascii_graphic);
    if !can_be_a_name {
        return None;
    }
    // Checked again as UTF-8, which ASCII always is: cheaper than the `unsafe` to skip it.
    match value {
        Cow::Borrowed(bytes) => str::from_utf8(bytes).ok().map(Cow::Borrowed),
        Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// Name and value, as they were sent.
    type Field<'a> = (&'a str, &'a [u8]);

    /// The claim of a head with these fields, under the default rule.
    fn claim(fields: &[Field]) -> String {
        claim_by("x-dev-session", Some("dev-session"), fields)
    }

    /// `pr-42` for a session, `(conflict)` and the like for what is none.
    fn claim_by(header: &str, baggage_key: Option<&str>, fields: &[Field]) -> String {
        let rule = SessionRule {
            header: header.parse().unwrap(),
            baggage_key: baggage_key.map(Into::into),
        };
        match rule.claim(&head(fields)) {
            Claim::None => "(none)".into(),
            Claim::Session(name) => name.into_owned(),
            Claim::Conflict => "(conflict)".into(),
            Claim::Malformed => "(malformed)".into(),
        }
    }

    fn head(fields: &[Field]) -> HeaderMap {
        let field = |(name, value): &Field| {
            (
                name.parse::<HeaderName>().unwrap(),
                HeaderValue::from_bytes(value).unwrap(),
            )
        };
        fields.iter().map(field).collect()
    }

    fn assert_claims(table: &[(&str, &[Field], &str)]) {
        for (case, fields, expected) in table {
            assert_eq!(claim(fields), *expected, "{case}");
        }
    }

    const SESSION: &str = "x-dev-session";
    const BAGGAGE: &str = "baggage";

    #[test]
    fn the_session_is_the_value_of_the_session_header() {
        assert_claims(&[
            ("plain", &[(SESSION, b"pr-42")], "pr-42"),
            (
                "any visible ASCII",
                &[(SESSION, b"!pr/4~2;a=b")],
                "!pr/4~2;a=b",
            ),
            ("names are case-sensitive", &[(SESSION, b"PR-42")], "PR-42"),
            (
                "a percent sign is only that",
                &[(SESSION, b"pr%2D42")],
                "pr%2D42",
            ),
            (
                "a comma does not make a list",
                &[(SESSION, b"pr-1,pr-2")],
                "pr-1,pr-2",
            ),
            ("no such header", &[("x-other", b"pr-42")], "(none)"),
            ("nothing at all", &[], "(none)"),
        ]);
    }

    #[test]
    fn without_the_header_it_is_the_value_of_the_baggage_member() {
        assert_claims(&[
            ("alone", &[(BAGGAGE, b"dev-session=pr-42")], "pr-42"),
            (
                "among others",
                &[(BAGGAGE, b"a=1,dev-session=pr-42,b=2")],
                "pr-42",
            ),
            ("another key", &[(BAGGAGE, b"session=pr-42")], "(none)"),
            ("empty baggage", &[(BAGGAGE, b"")], "(none)"),
            (
                "an empty header says nothing",
                &[(SESSION, b""), (BAGGAGE, b"dev-session=pr-42")],
                "pr-42",
            ),
            (
                "nor does a blank one",
                &[(SESSION, b" \t "), (BAGGAGE, b"dev-session=pr-42")],
                "pr-42",
            ),
            (
                "nor an empty member",
                &[(BAGGAGE, b"dev-session= ;p=1")],
                "(none)",
            ),
            (
                "the header stays without it",
                &[(SESSION, b"pr-42"), (BAGGAGE, b"dev-session=")],
                "pr-42",
            ),
        ]);
    }

    #[test]
    fn values_are_trimmed() {
        assert_claims(&[
            ("spaces", &[(SESSION, b"  pr-42 ")], "pr-42"),
            ("tabs", &[(SESSION, b"\tpr-42\t ")], "pr-42"),
            (
                "in baggage",
                &[(BAGGAGE, b"dev-session \t= \tpr-42 ")],
                "pr-42",
            ),
            (
                "a blank that was encoded is part of the value",
                &[(BAGGAGE, b"dev-session=%20pr-42")],
                "(malformed)",
            ),
        ]);
    }

    #[test]
    fn two_different_values_are_a_conflict() {
        assert_claims(&[
            (
                "two header fields",
                &[(SESSION, b"pr-1"), (SESSION, b"pr-2")],
                "(conflict)",
            ),
            (
                "header against baggage",
                &[(SESSION, b"pr-1"), (BAGGAGE, b"dev-session=pr-2")],
                "(conflict)",
            ),
            (
                "two members",
                &[(BAGGAGE, b"dev-session=pr-1,dev-session=pr-2")],
                "(conflict)",
            ),
            (
                "two baggage fields",
                &[
                    (BAGGAGE, b"dev-session=pr-1"),
                    (BAGGAGE, b"dev-session=pr-2"),
                ],
                "(conflict)",
            ),
            (
                "two cases",
                &[(SESSION, b"pr-1"), (SESSION, b"PR-1")],
                "(conflict)",
            ),
            (
                "the third of three",
                &[(SESSION, b"pr-1"), (SESSION, b"pr-1"), (SESSION, b"pr-2")],
                "(conflict)",
            ),
        ]);
    }

    #[test]
    fn the_same_value_again_is_not_a_conflict() {
        assert_claims(&[
            (
                "two header fields",
                &[(SESSION, b"pr-1"), (SESSION, b" pr-1")],
                "pr-1",
            ),
            (
                "header and baggage",
                &[(SESSION, b"pr-1"), (BAGGAGE, b"dev-session=pr-1")],
                "pr-1",
            ),
            (
                "plain and encoded",
                &[(SESSION, b"pr-1"), (BAGGAGE, b"dev-session=pr%2d1")],
                "pr-1",
            ),
            (
                "two members",
                &[(BAGGAGE, b"dev-session=pr-1, dev-session = pr-1;p")],
                "pr-1",
            ),
        ]);
    }

    #[test]
    fn too_long_or_outside_visible_ascii_is_malformed() {
        let longest = [b'a'; MAX_NAME];
        let too_long = [b'a'; MAX_NAME + 1];

        assert_eq!(claim(&[(SESSION, &longest)]), "a".repeat(MAX_NAME));
        assert_claims(&[
            ("254 bytes", &[(SESSION, &too_long)], "(malformed)"),
            ("a blank inside", &[(SESSION, b"pr 42")], "(malformed)"),
            ("a list", &[(SESSION, b"pr-1, pr-2")], "(malformed)"),
            ("UTF-8", &[(SESSION, "pr-\u{e9}".as_bytes())], "(malformed)"),
            ("not even UTF-8", &[(SESSION, b"pr-\xff")], "(malformed)"),
            (
                "UTF-8 in baggage",
                &[(BAGGAGE, b"dev-session=pr-%C3%A9")],
                "(malformed)",
            ),
            (
                "not even UTF-8 in baggage",
                &[(BAGGAGE, b"dev-session=pr-%ff")],
                "(malformed)",
            ),
            (
                "a control byte in baggage",
                &[(BAGGAGE, b"dev-session=pr-%00")],
                "(malformed)",
            ),
            (
                "a line break in baggage",
                &[(BAGGAGE, b"dev-session=pr-42%0d%0a")],
                "(malformed)",
            ),
            (
                "said twice",
                &[(SESSION, b"pr 42"), (SESSION, b"pr 42")],
                "(malformed)",
            ),
        ]);
    }

    #[test]
    fn the_length_that_counts_is_the_decoded_one() {
        let longest = format!("dev-session={}", "%61".repeat(MAX_NAME));
        let too_long = format!("dev-session={}", "%61".repeat(MAX_NAME + 1));

        assert_eq!(
            claim(&[(BAGGAGE, longest.as_bytes())]),
            "a".repeat(MAX_NAME)
        );
        assert_eq!(claim(&[(BAGGAGE, too_long.as_bytes())]), "(malformed)");
    }

    #[test]
    fn a_conflict_with_a_malformed_value_is_a_conflict() {
        assert_claims(&[
            (
                "malformed first",
                &[(SESSION, b"pr 1"), (SESSION, b"pr-1")],
                "(conflict)",
            ),
            (
                "malformed last",
                &[(SESSION, b"pr-1"), (BAGGAGE, b"dev-session=%ff")],
                "(conflict)",
            ),
            (
                "both malformed",
                &[(SESSION, b"pr 1"), (SESSION, b"pr 2")],
                "(conflict)",
            ),
        ]);
    }

    #[test]
    fn baggage_that_is_turned_off_is_not_read() {
        let fields: &[Field] = &[(SESSION, b"pr-1"), (BAGGAGE, b"dev-session=pr-2")];

        assert_eq!(claim_by(SESSION, None, fields), "pr-1");
        assert_eq!(claim_by(SESSION, None, &fields[1..]), "(none)");
    }

    #[test]
    fn header_and_key_are_those_of_the_rule() {
        let fields: &[Field] = &[
            (SESSION, b"pr-1"),
            ("X-Tenant", b"a"),
            (BAGGAGE, b"tenant=a"),
        ];

        assert_eq!(claim_by("x-tenant", Some("tenant"), fields), "a");
        assert_eq!(claim_by("x-none", Some("Tenant"), fields), "(none)");
    }

    #[test]
    fn nothing_is_copied_that_need_not_be_decoded() {
        let rule = SessionRule {
            header: HeaderName::from_static(SESSION),
            baggage_key: Some("dev-session".into()),
        };
        let is_borrowed = |field, value: &[u8]| {
            matches!(
                rule.claim(&head(&[(field, value)])),
                Claim::Session(Cow::Borrowed("pr-42"))
            )
        };

        assert!(is_borrowed(SESSION, b" pr-42 "));
        assert!(is_borrowed(BAGGAGE, b"a=%41, dev-session = pr-42 ;p"));
        assert!(!is_borrowed(BAGGAGE, b"dev-session=pr%2D42"));
    }
}
