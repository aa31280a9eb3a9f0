//! Texts that several commands are given, and what they mean.

/// A variable that is set to nothing says nothing.
pub fn given(text: Option<&str>) -> Option<&str> {
    text.map(str::trim).filter(|text| !text.is_empty())
}

/// The words of a text, each once.
pub fn words(text: Option<&str>) -> Vec<String> {
    let mut words = Vec::new();
    for word in text.unwrap_or_default().split_whitespace() {
        if !words.iter().any(|known| known == word) {
            words.push(word.to_owned());
        }
    }
    words
}

/// A text that can be the value of a label.
///
/// # Errors
/// It cannot.
pub fn label_value(text: &str) -> Result<String, String> {
    let is_middle = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    let fits = bytes.len() <= 63 && bytes.iter().copied().all(is_middle);
    if fits && is_edge(bytes.first()) && is_edge(bytes.last()) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{text:?} cannot be a label's value; write at most 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_blank_is_not_given_and_each_word_counts_once() {
        assert_eq!(given(Some(" \n")), None);
        assert_eq!(given(Some(" a b ")), Some("a b"));
        assert_eq!(words(Some(" b a  b\n")), ["b", "a"]);
        assert!(words(None).is_empty());
    }

    #[test]
    fn labels_are_short_and_begin_and_end_well() {
        let long = "x".repeat(63);
        for good in ["pr-42", "a", "A.b_c-9", &long] {
            assert_eq!(label_value(good), Ok(good.to_owned()));
        }
        for bad in ["", "-a", "a-", "a b", "a,b", "ä", &format!("{long}x")] {
            label_value(bad).unwrap_err();
        }
    }
}
