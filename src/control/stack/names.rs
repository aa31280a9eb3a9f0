//! What Kubernetes takes for a name.

use crate::yaml::shortened;

/// The longest DNS label.
pub(in crate::control) const LABEL_BYTES: usize = 63;

/// The longest DNS name.
const SUBDOMAIN_BYTES: usize = 253;

/// A label as in RFC 1123: what namespaces, apps and sessions are called.
pub(in crate::control) fn label(text: &str) -> Result<String, String> {
    if !is_label(text) {
        return Err(format!(
            "{:?} is not a name that Kubernetes takes; write lower-case letters, digits and dashes, and begin and end with a letter or a digit",
            shortened(text)
        ));
    }
    if text.len() > LABEL_BYTES {
        return Err(format!(
            "{:?} has {} characters; a name has at most {LABEL_BYTES}",
            shortened(text),
            text.len()
        ));
    }
    Ok(text.to_owned())
}

/// Labels joined by dots: what workloads are called.
pub(in crate::control) fn subdomain(text: &str) -> Result<String, String> {
    if text.len() > SUBDOMAIN_BYTES || !text.split('.').all(is_label) {
        return Err(format!(
            "{:?} is not a name that Kubernetes takes; write lower-case letters, digits, dashes and dots",
            shortened(text)
        ));
    }
    Ok(text.to_owned())
}

fn is_label(text: &str) -> bool {
    let is_letter_or_digit = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.bytes()
        .all(|byte| is_letter_or_digit(byte) || byte == b'-')
        && text.bytes().next().is_some_and(is_letter_or_digit)
        && text.bytes().last().is_some_and(is_letter_or_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_those_of_rfc_1123() {
        for text in ["a", "0", "shop-api", "a--b", "9-9", &"x".repeat(63)] {
            assert_eq!(label(text).as_deref(), Ok(text));
        }
        for text in [
            "",
            "-",
            "a-",
            "-a",
            "A",
            "shop_api",
            "a.b",
            "a b",
            "é",
            "a\n",
            "$(id)",
            "a/b",
            &"x".repeat(64),
        ] {
            assert!(label(text).is_err(), "{text}");
        }
    }

    #[test]
    fn subdomains_are_labels_joined_by_dots() {
        for text in ["a", "a.b", "shop-api.v2"] {
            assert_eq!(subdomain(text).as_deref(), Ok(text));
        }
        for text in ["", ".", "a.", ".a", "a..b", "A.b", &"x.".repeat(127)] {
            assert!(subdomain(text).is_err(), "{text}");
        }
    }
}
