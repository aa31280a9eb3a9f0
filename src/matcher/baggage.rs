//! The members of a `baggage` header, as [W3C Baggage] has them.
//!
//! ```text
//! baggage-string = list-member *( OWS "," OWS list-member )
//! list-member    = key OWS "=" OWS value *( OWS ";" OWS property )
//! ```
//!
//! Of this grammar only what separates is held to. Which bytes a key or a value may have is not
//! checked: a member that breaks the rules has another key than ours, or a value that is judged
//! like any other. So what one sender got wrong never hides the member of another.
//!
//! [W3C Baggage]: https://www.w3.org/TR/baggage/#header-content

use std::borrow::Cow;

use percent_encoding::percent_decode;

/// The values of all members of `field` with this key, in order: trimmed, properties dropped,
/// then decoded.
pub(super) fn values<'h>(field: &'h [u8], key: &[u8]) -> impl Iterator<Item = Cow<'h, [u8]>> {
    members(field)
        .filter(move |(name, _)| *name == key)
        .map(|(_, value)| decode(value))
}

/// Key and value of each member, trimmed, properties dropped, not decoded. What has no `=` is not
/// a member.
fn members(field: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    field.split(|byte| *byte == b',').filter_map(|member| {
        // Properties first: the `=` of a property is not that of the member.
        let (member, _properties) = cut(member, b';').unwrap_or((member, b""));
        // The first `=`: values may have more of them.
        let (key, value) = cut(member, b'=')?;
        Some((trim(key), trim(value)))
    })
}

/// What `%` and two hexadecimal digits stand for. Anything else after a `%` leaves both as they
/// are, which is how the URL standard decodes.
fn decode(value: &[u8]) -> Cow<'_, [u8]> {
    percent_decode(value).into()
}

/// What stands before and after the first `separator`.
fn cut(bytes: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == separator)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

/// `bytes` without the optional white space around them (RFC 9110, section 5.6.3): spaces and tabs,
/// which is less than [`slice::trim_ascii`] takes.
pub(super) fn trim(bytes: &[u8]) -> &[u8] {
    let is_ink = |byte: &u8| !matches!(byte, b' ' | b'\t');
    let Some(start) = bytes.iter().position(is_ink) else {
        return &[];
    };
    let end = bytes
        .iter()
        .rposition(is_ink)
        .map_or(start, |last| last + 1);
    &bytes[start..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of `k` in `field`, joined by ` | `.
    fn values_of_k(field: &str) -> String {
        let values: Vec<_> = values(field.as_bytes(), b"k")
            .map(|value| String::from_utf8_lossy(&value).into_owned())
            .collect();
        values.join(" | ")
    }

    fn assert_values(table: &[(&str, &str, &str)]) {
        for (case, field, expected) in table {
            assert_eq!(values_of_k(field), *expected, "{case}: {field:?}");
        }
    }

    #[test]
    fn members_are_read_as_the_specification_says() {
        assert_values(&[
            ("one", "k=v", "v"),
            ("first of three", "k=v,a=1,b=2", "v"),
            ("last of three", "a=1,b=2,k=v", "v"),
            ("every one counts", "k=1,a=2,k=3", "1 | 3"),
            (
                "blanks around everything",
                " \ta = 1 , \tk \t=\t v\t;\tp = q ,b=2",
                "v",
            ),
            ("properties are dropped", "k=v;p;q=1;k=2", "v"),
            ("a property is not a member", "a=1;k=v", ""),
            ("equals signs inside the value", "k=a=b==", "a=b=="),
            ("a value that starts with one", "k==v", "=v"),
            ("an empty value", "k=", ""),
            ("keys are case-sensitive", "K=v", ""),
            ("keys are not decoded", "%6b=v", ""),
            ("a longer key", "kk=v,ak=v,k-=v", ""),
        ]);
    }

    #[test]
    fn values_are_percent_decoded() {
        assert_values(&[
            ("one byte", "k=a%2Db", "a-b"),
            ("either case", "k=%2d%2D%4a%4A", "--JJ"),
            ("separators", "k=a%2Cb%3Bc%3Dd", "a,b;c=d"),
            ("once, not twice", "k=%252D", "%2D"),
            ("a plus stays a plus", "k=a+b", "a+b"),
            ("no digits", "k=%zz", "%zz"),
            ("one digit", "k=%4", "%4"),
            ("one digit, then more", "k=%4g%41", "%4gA"),
            ("a lone sign", "k=%", "%"),
            ("a sign before an escape", "k=%%41", "%A"),
            ("digits beyond the value", "k=%4;1", "%4"),
        ]);
    }

    #[test]
    fn a_broken_member_hides_no_other() {
        assert_values(&[
            ("no equals sign", "garbage,k=v", "v"),
            ("our key without one", "k,k=v", "v"),
            ("our key with properties only", "k;p=1,k=v", "v"),
            ("no key", "=1,k=v", "v"),
            ("nothing between commas", ",, ,k=v,", "v"),
            ("a quote that never ends", "a=\"1,k=v", "v"),
            ("a backslash before the comma", "a=1\\,k=v", "v"),
            ("other scripts", "\u{e9}=\u{4e16},k=v", "v"),
            ("a broken escape", "a=%,k=v", "v"),
            ("a blank inside a key", "a b=1,k k=1,k=v", "v"),
        ]);
    }

    #[test]
    fn only_spaces_and_tabs_are_trimmed() {
        assert_eq!(trim(b" \t a b \t "), b"a b");
        assert_eq!(trim(b"\x0ba\xa0"), b"\x0ba\xa0");
        assert_eq!(trim(b"a"), b"a");
        assert_eq!(trim(b" \t"), b"");
        assert_eq!(trim(b""), b"");
    }
}
