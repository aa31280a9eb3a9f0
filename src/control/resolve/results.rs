//! The results of a Tekton step: a file for each, and little room for all of them together.

use std::fs;
use std::path::Path;

use anyhow::Context;

use super::Resolved;

/// All results of a step travel in the message that its container leaves behind, which has this many
/// bytes: a JSON list, in which every quote of a value costs another byte.
const ROOM: usize = 4096;

/// What Tekton adds to that list itself.
const OF_TEKTON: &str = r#"{"key":"StartedAt","value":"2006-01-02T15:04:05.000Z","type":3}"#;

/// A value is told as a large one from here on.
const LARGE: usize = 256;

/// Names and values. Every name has a file, also where the value is empty: a task whose declared result
/// is missing has failed.
pub(super) struct Results {
    values: Vec<(&'static str, String)>,
    is_stack_elsewhere: bool,
}

impl Results {
    /// Without the stack when that is written elsewhere.
    pub(super) fn of(resolved: &Resolved<'_>, is_stack_elsewhere: bool) -> Self {
        let stack = if is_stack_elsewhere {
            String::new()
        } else {
            resolved.stack_json.to_json()
        };
        let values = vec![
            ("app-list", resolved.app_list.clone()),
            ("entry-app", resolved.entry_app.to_owned()),
            ("propagation-chain", resolved.propagation_chain.clone()),
            ("build-apps", resolved.build_apps.clone()),
            (
                "intercept-header-value",
                resolved.intercept_header_value.clone(),
            ),
            ("stack-json", stack),
        ];
        Self {
            values,
            is_stack_elsewhere,
        }
    }

    /// Whether Tekton can carry them.
    ///
    /// # Errors
    /// Which are too large, and what to do.
    pub(super) fn fit(&self) -> Result<(), String> {
        let entries: usize = self
            .values
            .iter()
            .map(|(name, value)| 1 + entry(name, value))
            .sum();
        let needed = "[]".len() + OF_TEKTON.len() + entries;
        if needed <= ROOM {
            return Ok(());
        }
        let remedy = if self.is_stack_elsewhere {
            "split the stack, or give its apps shorter names"
        } else {
            "add --stack-json-file FILE, in a workspace, to leave the stack out"
        };
        Err(format!(
            "the values need {needed} of the {ROOM} bytes that Tekton has for all results of a step ({}); {remedy}",
            self.largest()
        ))
    }

    fn largest(&self) -> String {
        let mut sizes: Vec<(usize, &str)> = self
            .values
            .iter()
            .map(|(name, value)| (entry(name, value), *name))
            .filter(|(size, _)| *size >= LARGE)
            .collect();
        sizes.sort_by(|one, other| other.cmp(one));
        let told: Vec<String> = sizes
            .into_iter()
            .map(|(size, name)| format!("{name} {size}"))
            .collect();
        told.join(", ")
    }

    /// One file for each, without a line break at its end.
    pub(super) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        for (name, value) in &self.values {
            let path = folder.join(name);
            fs::write(&path, value)
                .with_context(|| format!("cannot write the result {}", path.display()))?;
        }
        Ok(())
    }
}

/// How many bytes a result is in that message.
fn entry(name: &str, value: &str) -> usize {
    r#"{"key":"","value":"","type":1}"#.len()
        + name.len()
        + value.chars().map(escaped).sum::<usize>()
}

/// How many bytes Go's JSON makes of a character.
fn escaped(character: char) -> usize {
    match character {
        '"' | '\\' | '\n' | '\r' | '\t' => 2,
        '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => 6,
        _ => character.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(value: String) -> Results {
        Results {
            values: vec![("value", value)],
            is_stack_elsewhere: true,
        }
    }

    /// As seen on a real Tekton: one result of 3980 plain bytes passes, one of 4000 fails.
    #[test]
    fn as_much_fits_as_tekton_carries() {
        assert!(results("x".repeat(3980)).fit().is_ok());
        assert!(results("x".repeat(4000)).fit().is_err());
    }

    #[test]
    fn quotes_and_what_go_escapes_need_more_room() {
        for (character, fits) in [
            ('"', 1990),
            ('\\', 1990),
            ('&', 660),
            ('\u{1}', 660),
            ('é', 1990),
        ] {
            let text = |count| character.to_string().repeat(count);
            assert!(results(text(fits)).fit().is_ok(), "{character:?}");
            assert!(results(text(fits + 20)).fit().is_err(), "{character:?}");
        }
    }
}
