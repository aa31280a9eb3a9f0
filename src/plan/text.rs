//! What a single text means: durations, sizes, counts, yes and no, names.
//!
//! Each function takes the text as written and answers with a value or with a message that quotes the
//! text and says what to write instead.

use std::ops::RangeInclusive;
use std::time::Duration;

use http::HeaderName;

use super::PROBE;

/// The longest session name, as long as a DNS name may be.
const NAME_BYTES: usize = 253;

/// The longest timeout. Who means "never" can live with a day.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest time that anything may last.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Headers that end at each hop (RFC 9110 section 7.6.1), and those the proxy itself reads or writes.
const TAKEN: [&str; 18] = [
    "baggage",
    "connection",
    "content-length",
    "content-type",
    "date",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "proxy-status",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-dev-session-route",
];

/// `500ms`, `2s`, `5m`, `1h` and sums of them: `1m30s`. At most a day; zero only where `may_be_zero`.
pub fn duration(text: &str, may_be_zero: bool) -> Result<Duration, String> {
    let total = sum_of_durations(text).ok_or_else(|| {
        format!("{text:?} is not a duration; write for example 500ms, 2s, 5m or 1m30s")
    })?;
    let least = if may_be_zero {
        Duration::ZERO
    } else {
        Duration::from_millis(1)
    };
    if (least..=DAY).contains(&total) {
        return Ok(total);
    }
    let least = if may_be_zero { "0s" } else { "1ms" };
    Err(format!(
        "{text:?} is out of range; allowed are {least} to 24h"
    ))
}

/// The same without a limit that a person would meet: ten years. Never zero.
pub fn long_duration(text: &str) -> Result<Duration, String> {
    let total =
        sum_of_durations(text).filter(|total| (Duration::from_millis(1)..=LONGEST).contains(total));
    total.ok_or_else(|| format!("{text:?} is not a duration; write for example 30m, 8h or 72h"))
}

fn sum_of_durations(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let (number, after) = leading_number(rest)?;
        let end = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        total = total.checked_add(Duration::from_millis(number.checked_mul(milliseconds)?))?;
        rest = next;
    }
    (!text.is_empty()).then_some(total)
}

/// The digits a text begins with, and what follows them.
fn leading_number(text: &str) -> Option<(u64, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

/// `10000`, `512B`, `64KiB`, `1MiB`, in bytes.
pub(super) fn size(
    text: &str,
    allowed: RangeInclusive<usize>,
    written: &str,
) -> Result<usize, String> {
    let bytes = leading_number(text).and_then(|(number, unit)| {
        let factor = match unit {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return None,
        };
        usize::try_from(number.checked_mul(factor)?).ok()
    });
    match bytes {
        Some(bytes) if allowed.contains(&bytes) => Ok(bytes),
        Some(_) => Err(format!("{text:?} is out of range; allowed are {written}")),
        None => Err(format!(
            "{text:?} is not a size; write for example 64KiB, 1MiB or 10000"
        )),
    }
}

/// A whole number in a range.
pub(super) fn count<N>(text: &str, allowed: RangeInclusive<N>) -> Result<N, String>
where
    N: TryFrom<u64> + PartialOrd + std::fmt::Display,
{
    let (least, most) = (allowed.start(), allowed.end());
    let number: u64 = text
        .parse()
        .map_err(|_| format!("{text:?} is not a whole number from {least} to {most}"))?;
    match N::try_from(number) {
        Ok(number) if allowed.contains(&number) => Ok(number),
        _ => Err(format!(
            "{text:?} is out of range; allowed are {least} to {most}"
        )),
    }
}

/// `true` or `false`.
pub(super) fn yes_or_no(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

/// A header that may carry a session.
pub fn session_header(text: &str) -> Result<HeaderName, String> {
    let name = HeaderName::from_bytes(text.as_bytes())
        .map_err(|_| format!("{text:?} is not a header name; write for example x-dev-session"))?;
    if TAKEN.contains(&name.as_str()) {
        return Err(format!(
            "{text:?} has a meaning of its own and cannot carry a session; write for example x-dev-session"
        ));
    }
    Ok(name)
}

/// A baggage key is a token (W3C Baggage section 3.2.1.1); the empty text turns baggage off.
pub fn baggage_key(text: &str) -> Result<Option<Box<str>>, String> {
    // RFC 9110 section 5.6.2.
    let is_token_byte =
        |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !text.bytes().all(is_token_byte) {
        return Err(format!(
            "{text:?} is not a baggage key; write for example dev-session, or \"\" to turn baggage off"
        ));
    }
    Ok((!text.is_empty()).then(|| text.into()))
}

/// A session as the file names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name<'t> {
    /// This session.
    Exact(&'t str),
    /// Every session that begins so.
    Prefix(&'t str),
    /// Every session that matches from end to end.
    Regex(&'t str),
}

/// `pr-42`, `pr-9*` or `~REGEX`.
pub(super) fn session_name(text: &str) -> Result<Name<'_>, String> {
    if let Some(pattern) = text.strip_prefix('~') {
        return if pattern.is_empty() {
            Err(
                "\"~\" is a regular expression without a text; write for example \"~pr-[0-9]+\""
                    .to_owned(),
            )
        } else {
            Ok(Name::Regex(pattern))
        };
    }
    if text == PROBE {
        return Err(format!(
            "{text:?} is reserved: the proxy answers this session itself; choose another name"
        ));
    }
    let (plain, is_prefix) = match text.strip_suffix('*') {
        Some(prefix) => (prefix, true),
        None => (text, false),
    };
    if plain.contains('*') {
        return Err(format!(
            "{text:?} has a * before its end; only the last character may be one, or write a regular expression: \"~...\""
        ));
    }
    if text.is_empty() || text.len() > NAME_BYTES {
        return Err(format!(
            "a session name has 1 to {NAME_BYTES} bytes, this one has {}",
            text.len()
        ));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!(
            "{text:?} has blanks or characters outside ASCII, which no header can carry; use letters, digits and dashes"
        ));
    }
    Ok(if is_prefix {
        Name::Prefix(plain)
    } else {
        Name::Exact(plain)
    })
}

/// A namespace of a cluster: a label of a DNS name (RFC 1123).
pub(super) fn namespace(text: &str) -> Result<&str, String> {
    let is_fit = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if is_word(text, is_fit, b"-") {
        return Ok(text);
    }
    Err(format!(
        "{text:?} is not a namespace; use 1 to 63 lower-case letters, digits and dashes, for example staging"
    ))
}

/// The value of a Kubernetes label, but not the empty one.
pub(super) fn label(text: &str) -> Result<&str, String> {
    if is_word(text, |byte| byte.is_ascii_alphanumeric(), b"-_.") {
        return Ok(text);
    }
    Err(format!(
        "{text:?} cannot be the value of a label; use 1 to 63 letters, digits, dashes, dots and underscores, for example orders"
    ))
}

/// Up to 63 bytes, some of which may not stand at the ends.
fn is_word(text: &str, may_end: impl Fn(u8) -> bool, inside: &[u8]) -> bool {
    let bytes = text.as_bytes();
    let ends = bytes.first().zip(bytes.last());
    ends.is_some_and(|(&first, &last)| may_end(first) && may_end(last))
        && bytes.len() <= 63
        && bytes
            .iter()
            .all(|byte| may_end(*byte) || inside.contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_sums_of_numbers_with_units() {
        for (text, milliseconds) in [
            ("500ms", 500),
            ("2s", 2_000),
            ("1m30s", 90_000),
            ("1h1ms", 3_600_001),
            ("24h", 86_400_000),
        ] {
            assert_eq!(
                duration(text, false),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for text in [
            "",
            "5",
            "s",
            "1.5s",
            "1 s",
            "-1s",
            "1S",
            "1s2",
            "25h",
            "0s",
            "99999999999999h",
            "1٣s",
        ] {
            assert!(duration(text, false).is_err(), "{text}");
        }
        assert_eq!(duration("0s", true), Ok(Duration::ZERO));
    }

    #[test]
    fn sizes_have_binary_units() {
        for (text, bytes) in [
            ("10000", 10_000),
            ("512B", 512),
            ("64KiB", 65_536),
            ("1MiB", 1 << 20),
        ] {
            assert_eq!(size(text, 0..=1 << 30, ""), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "64K",
            "64KB",
            "64kib",
            "-1",
            "1.5MiB",
            "99999999999999999999GiB",
            "99999999999GiB",
        ] {
            assert!(size(text, 0..=1 << 30, "").is_err(), "{text}");
        }
    }

    #[test]
    fn session_names_are_exact_prefixes_or_patterns() {
        assert_eq!(session_name("pr-42"), Ok(Name::Exact("pr-42")));
        assert_eq!(session_name("pr-9*"), Ok(Name::Prefix("pr-9")));
        assert_eq!(session_name("*"), Ok(Name::Prefix("")));
        assert_eq!(session_name("~pr-.*"), Ok(Name::Regex("pr-.*")));
        assert!(session_name(&"x".repeat(253)).is_ok());
        for text in [
            "",
            "~",
            "a*b",
            "**",
            "a b",
            "a\n",
            "ä",
            "session-proxy-probe",
            &"x".repeat(254),
        ] {
            assert!(session_name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn headers_with_a_meaning_of_their_own_carry_no_session() {
        assert_eq!(
            session_header("X-Dev-Session").expect("fit").as_str(),
            "x-dev-session"
        );
        for text in [
            "",
            "a b",
            ":path",
            "Host",
            "CONNECTION",
            "via",
            "x-dev-session-route",
            "baggage",
            "é",
        ] {
            assert!(session_header(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_empty_baggage_key_turns_baggage_off() {
        assert_eq!(baggage_key(""), Ok(None));
        assert_eq!(baggage_key("dev-session"), Ok(Some("dev-session".into())));
        for text in ["a b", "a=b", "a,b", "a;b", "é"] {
            assert!(baggage_key(text).is_err(), "{text}");
        }
    }

    #[test]
    fn namespaces_and_labels_are_those_of_kubernetes() {
        let longest = "x".repeat(63);
        for (text, is_namespace, is_label) in [
            ("staging", true, true),
            ("team-1", true, true),
            ("7", true, true),
            (longest.as_str(), true, true),
            ("Orders_v1.2", false, true),
            ("", false, false),
            ("-a", false, false),
            ("a-", false, false),
            ("a.", false, false),
            ("a b", false, false),
            ("a,b", false, false),
            ("é", false, false),
            ("../pods", false, false),
            (&"x".repeat(64), false, false),
        ] {
            assert_eq!(namespace(text).is_ok(), is_namespace, "{text}");
            assert_eq!(label(text).is_ok(), is_label, "{text}");
        }
    }
}
