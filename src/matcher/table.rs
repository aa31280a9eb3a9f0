//! Names and patterns of names, each with what it stands for.
//!
//! Built once, then only read. A lookup costs the same with one exact name and with 100,000, and
//! does not grow with the number of prefixes, only with that of their lengths.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use regex::bytes::{RegexSet, RegexSetBuilder};

/// Bytes that the compiled regular expressions of a table may take, all together. Room for a few
/// hundred patterns as people write them, too little for one of nested repetitions to hurt.
const PROGRAM_LIMIT: usize = 1024 * 1024;

/// Session names to `T`: exact before prefix (longest first) before regex (in order).
pub struct Table<T> {
    /// In the order they were added.
    entries: Vec<Entry<T>>,
    // The standard library's hasher has a secret key, so nobody can choose names that collide:
    // clients say what is looked up, and with discovery others than the operator say what is in it.
    exact: HashMap<Arc<str>, usize>,
    /// Without the `*`.
    prefixes: HashMap<Arc<str>, usize>,
    /// Of the prefixes, in bytes, longest first, each once.
    prefix_lengths: Vec<usize>,
    regexes: RegexSet,
    /// Which entry each of the `regexes` is.
    regex_entries: Vec<usize>,
}

#[derive(Clone)]
struct Entry<T> {
    /// `pr-42`, `pr-9*`, `~REGEX`
    written: Arc<str>,
    value: T,
}

impl<T> Table<T> {
    /// What `name` stands for.
    pub fn find<'t>(&'t self, name: &str) -> Option<&'t T> {
        self.lookup(name).map(|found| found.value)
    }

    /// What `name` stands for, and the rule that says so.
    pub fn lookup(&self, name: &str) -> Option<Found<'_, T>> {
        if let Some(&entry) = self.exact.get(name) {
            return Some(self.found(entry, |_| Rule::Exact));
        }
        if let Some(entry) = self.longest_prefix(name) {
            return Some(self.found(entry, Rule::Prefix));
        }
        self.first_regex(name)
            .map(|entry| self.found(entry, Rule::Regex))
    }

    fn longest_prefix(&self, name: &str) -> Option<usize> {
        // `get` is also what keeps a prefix of bytes from ending inside a character.
        let prefixes = self
            .prefix_lengths
            .iter()
            .filter_map(|&length| name.get(..length));
        prefixes
            .filter_map(|prefix| self.prefixes.get(prefix))
            .next()
            .copied()
    }

    fn first_regex(&self, name: &str) -> Option<usize> {
        // To ask the set allocates its answer, even if it holds nothing.
        if self.regexes.is_empty() {
            return None;
        }
        let first = self.regexes.matches(name.as_bytes()).iter().next()?;
        Some(self.regex_entries[first])
    }

    fn found<'t>(&'t self, entry: usize, rule: impl Fn(&'t str) -> Rule<'t>) -> Found<'t, T> {
        let Entry { written, value } = &self.entries[entry];
        Found {
            rule: rule(written),
            value,
        }
    }

    /// How many rules there are, of all three kinds.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True of a table that knows no session.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether `name` itself is a rule, not only part of a pattern.
    pub fn has_exact(&self, name: &str) -> bool {
        self.exact.contains_key(name)
    }

    /// This table and more exact names, after its own. A name it has already stays what it is.
    pub fn with_exact(&self, more: impl IntoIterator<Item = (Arc<str>, T)>) -> Self
    where
        T: Clone,
    {
        let mut table = Self {
            entries: self.entries.clone(),
            exact: self.exact.clone(),
            prefixes: self.prefixes.clone(),
            prefix_lengths: self.prefix_lengths.clone(),
            regexes: self.regexes.clone(),
            regex_entries: self.regex_entries.clone(),
        };
        for (written, value) in more {
            if !table.exact.contains_key(&written) {
                table
                    .exact
                    .insert(Arc::clone(&written), table.entries.len());
                table.entries.push(Entry { written, value });
            }
        }
        table
    }

    /// Every value, in the order the rules were added.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut().map(|entry| &mut entry.value)
    }

    /// Every rule as it was written (`pr-42`, `pr-9*`, `~REGEX`) with its value, in the order they
    /// were added.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &T)> {
        self.entries
            .iter()
            .map(|entry| (&*entry.written, &entry.value))
    }
}

// Sizes only: a table can have 100,000 names.
impl<T> fmt::Debug for Table<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("exact", &self.exact.len())
            .field("prefixes", &self.prefixes.len())
            .field("regexes", &self.regexes.len())
            .finish()
    }
}

/// The answer to a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found<'t, T> {
    /// The rule that decided.
    pub rule: Rule<'t>,
    /// What the name stands for.
    pub value: &'t T,
}

/// A rule of a table, as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule<'t> {
    /// The name itself.
    Exact,
    /// `pr-9*`
    Prefix(&'t str),
    /// `~REGEX`
    Regex(&'t str),
}

/// A table in the making.
///
/// A rule that is added again, of the same kind and with the same text, keeps its place and gets
/// the new value: so what is read later overrides what was read before.
pub struct TableBuilder<T> {
    entries: Vec<Entry<T>>,
    exact: HashMap<Arc<str>, usize>,
    prefixes: HashMap<Arc<str>, usize>,
    /// Each anchored, with its entry, in order.
    regexes: Vec<(String, usize)>,
}

impl<T> TableBuilder<T> {
    /// A table without rules.
    pub fn new() -> Self {
        Self {
            entries: Vec::new(),
            exact: HashMap::new(),
            prefixes: HashMap::new(),
            regexes: Vec::new(),
        }
    }

    /// The session called `name`.
    pub fn exact(&mut self, name: &str, value: T) {
        if let Some(&entry) = self.exact.get(name) {
            self.entries[entry].value = value;
            return;
        }
        let name: Arc<str> = name.into();
        self.exact.insert(Arc::clone(&name), self.entries.len());
        self.entries.push(Entry {
            written: name,
            value,
        });
    }

    /// Every session whose name starts with `prefix`, which is given without the `*`. The empty
    /// prefix means all.
    pub fn prefix(&mut self, prefix: &str, value: T) {
        if let Some(&entry) = self.prefixes.get(prefix) {
            self.entries[entry].value = value;
            return;
        }
        self.prefixes.insert(prefix.into(), self.entries.len());
        self.entries.push(Entry {
            written: format!("{prefix}*").into(),
            value,
        });
    }

    /// Every session whose whole name matches `pattern`, which is given without the `~`.
    ///
    /// Names are visible ASCII, and so are the classes of a pattern: `\w` is `[0-9A-Za-z_]`,
    /// `\p{…}` is an error. A pattern that is not one, or that compiles to more than a megabyte,
    /// is an error and is not added.
    pub fn regex(&mut self, pattern: &str, value: T) -> Result<(), regex::Error> {
        // First alone: so that an error shows what was written, and so that no stray parenthesis
        // can close the group and slip out between the anchors.
        compile([pattern])?;
        let anchored = format!("^(?:{pattern})$");
        compile([&anchored])?;

        if let Some((_, entry)) = self.regexes.iter().find(|(known, _)| *known == anchored) {
            self.entries[*entry].value = value;
            return Ok(());
        }
        self.regexes.push((anchored, self.entries.len()));
        self.entries.push(Entry {
            written: format!("~{pattern}").into(),
            value,
        });
        Ok(())
    }

    /// The table. Fails if its regular expressions are too large together.
    pub fn build(self) -> Result<Table<T>, regex::Error> {
        let mut prefix_lengths: Vec<usize> = self.prefixes.keys().map(|key| key.len()).collect();
        prefix_lengths.sort_unstable_by(|a, b| b.cmp(a));
        prefix_lengths.dedup();

        Ok(Table {
            regexes: compile(self.regexes.iter().map(|(anchored, _)| anchored))?,
            regex_entries: self.regexes.iter().map(|(_, entry)| *entry).collect(),
            entries: self.entries,
            exact: self.exact,
            prefixes: self.prefixes,
            prefix_lengths,
        })
    }
}

impl<T> Default for TableBuilder<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// One program for all `patterns`: one pass over a name, and one bound on the memory.
fn compile<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Result<RegexSet, regex::Error> {
    // Without Unicode `\w` takes a hundredth of the memory and means the same for ASCII names.
    RegexSetBuilder::new(patterns)
        .unicode(false)
        .size_limit(PROGRAM_LIMIT)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of these rules, as they are written in a file, each standing for itself.
    fn table(rules: &[&'static str]) -> Table<&'static str> {
        let mut table = TableBuilder::new();
        for rule in rules {
            if let Some(pattern) = rule.strip_prefix('~') {
                table.regex(pattern, *rule).unwrap();
            } else if let Some(prefix) = rule.strip_suffix('*') {
                table.prefix(prefix, *rule);
            } else {
                table.exact(rule, *rule);
            }
        }
        table.build().unwrap()
    }

    /// Which of the `rules` the `name` finds; `-` for none.
    fn find(rules: &[&'static str], name: &str) -> &'static str {
        table(rules).find(name).copied().unwrap_or("-")
    }

    #[test]
    fn exact_names_win_over_prefixes_over_regular_expressions() {
        let rules = ["~pr-.*", "pr-*", "pr-42", "~.*", "pr-4*"];
        for (case, name, expected) in [
            ("exact first", "pr-42", "pr-42"),
            ("then the longest prefix", "pr-43", "pr-4*"),
            ("then a shorter one", "pr-5", "pr-*"),
            ("then regular expressions", "qa", "~.*"),
            ("a prefix is one of itself", "pr-4", "pr-4*"),
            ("not of what is shorter", "pr", "~.*"),
        ] {
            assert_eq!(find(&rules, name), expected, "{case}");
        }
    }

    #[test]
    fn the_first_of_the_regular_expressions_wins() {
        assert_eq!(find(&["~pr-[0-9]+", "~pr-.*"], "pr-42"), "~pr-[0-9]+");
        assert_eq!(find(&["~pr-.*", "~pr-[0-9]+"], "pr-42"), "~pr-.*");
        assert_eq!(find(&["~pr-[0-9]+", "~pr-.*"], "pr-x"), "~pr-.*");
    }

    #[test]
    fn regular_expressions_match_the_whole_name() {
        for (case, pattern, name, matches) in [
            ("all of it", "~pr-[0-9]+", "pr-42", true),
            ("not the beginning", "~pr-[0-9]+", "pr-42x", false),
            ("not the end", "~pr-[0-9]+", "xpr-42", false),
            ("alternatives are held together", "~a|b", "ax", false),
            ("a longer alternative counts", "~a|ab", "ab", true),
            ("case matters", "~pr", "PR", false),
            ("unless told otherwise", "~(?i)pr", "PR", true),
            ("classes are ASCII", r"~\w+", "pr_42", true),
            ("its own anchors do no harm", "~^pr$", "pr", true),
        ] {
            assert_eq!(find(&[pattern], name) == pattern, matches, "{case}");
        }
    }

    #[test]
    fn names_are_compared_byte_for_byte() {
        let rules = ["pr-42", "qa-*"];

        assert_eq!(find(&rules, "PR-42"), "-");
        assert_eq!(find(&rules, "pr-42 "), "-");
        assert_eq!(find(&rules, "QA-1"), "-");
        assert_eq!(find(&rules, "\u{e9}\u{e9}"), "-");
        assert_eq!(find(&rules, ""), "-");
    }

    #[test]
    fn the_empty_prefix_is_a_prefix_of_everything() {
        assert_eq!(find(&["*", "a*"], ""), "*");
        assert_eq!(find(&["*", "a*"], "b"), "*");
        assert_eq!(find(&["*", "a*"], "ab"), "a*");
    }

    #[test]
    fn a_lookup_tells_the_rule_as_it_was_written() {
        let table = table(&["pr-42", "pr-9*", "~qa-[0-9]+"]);
        let rule = |name| table.lookup(name).map(|found| found.rule);

        assert_eq!(rule("pr-42"), Some(Rule::Exact));
        assert_eq!(rule("pr-99"), Some(Rule::Prefix("pr-9*")));
        assert_eq!(rule("qa-1"), Some(Rule::Regex("~qa-[0-9]+")));
        assert_eq!(rule("other"), None);
    }

    #[test]
    fn rules_are_listed_as_written_in_the_order_they_were_added() {
        let rules = ["~b.*", "z", "a*", "a"];
        let table = table(&rules);

        assert_eq!(table.len(), 4);
        assert!(!table.is_empty());
        assert!(table.iter().eq(rules.iter().map(|rule| (*rule, rule))));
    }

    #[test]
    fn a_rule_that_is_added_again_keeps_its_place_and_gets_the_new_value() {
        let mut builder = TableBuilder::new();
        for value in [1, 2] {
            builder.exact("a", value);
            builder.prefix("a", value);
            builder.regex("a", value).unwrap();
            builder.exact("a*", value);
        }
        let table = builder.build().unwrap();

        let rules: Vec<_> = table.iter().collect();
        assert_eq!(rules, [("a", &2), ("a*", &2), ("~a", &2), ("a*", &2)]);
        assert_eq!(table.lookup("a*").unwrap().rule, Rule::Exact);
        assert_eq!(table.lookup("ab").unwrap().rule, Rule::Prefix("a*"));
    }

    #[test]
    fn names_added_to_a_table_are_exact_and_take_nothing_away() {
        let first = table(&["pr-42", "pr-*", "~qa.*"]);

        let more = ["pr-42", "pr-43", "pr-*", "~b"];
        let second = first.with_exact(more.map(|name| (name.into(), "added")));

        for (name, expected) in [
            ("pr-42", Some(&"pr-42")),
            ("pr-43", Some(&"added")),
            ("pr-44", Some(&"pr-*")),
            ("pr-*", Some(&"added")),
            ("~b", Some(&"added")),
            ("b", None),
            ("qa-1", Some(&"~qa.*")),
        ] {
            assert_eq!(second.find(name), expected, "{name}");
        }
        assert_eq!((first.len(), second.len()), (3, 6));
        assert!(second.has_exact("~b") && !second.has_exact("pr-44"));
    }

    #[test]
    fn an_empty_table_knows_nothing() {
        let table = TableBuilder::<()>::default().build().unwrap();

        assert!(table.is_empty());
        assert_eq!(table.find("pr-42"), None);
        assert_eq!(table.find(""), None);
    }

    #[test]
    fn a_pattern_that_is_none_is_an_error_and_not_added() {
        let mut builder = TableBuilder::new();
        for pattern in ["(", "a)|(?:b", "[", "*", r"\p{Greek}", "(?=a)"] {
            let error = builder.regex(pattern, ()).expect_err(pattern);
            assert!(error.to_string().contains(pattern), "{error}");
        }
        assert!(builder.build().unwrap().is_empty());
    }

    #[test]
    fn a_hostile_pattern_is_refused_before_it_eats_memory() {
        let mut builder = TableBuilder::new();
        for pattern in ["(a{1000}){1000}", "((a{100}){100}){100}", "[a-z]{100000}"] {
            let error = builder.regex(pattern, ()).expect_err(pattern);
            assert!(
                matches!(error, regex::Error::CompiledTooBig(PROGRAM_LIMIT)),
                "{error}"
            );
        }
    }

    #[test]
    fn reasonable_patterns_fit_by_the_hundred_and_too_many_are_an_error() {
        let table_of = |count: usize| {
            let mut builder = TableBuilder::new();
            for number in 0..count {
                builder
                    .regex(
                        &format!(r"team-{number}-\w+-(feature|fix)-[0-9]{{1,6}}"),
                        number,
                    )
                    .unwrap();
            }
            builder.build()
        };

        assert_eq!(
            table_of(300).unwrap().find("team-299-x_y-fix-17"),
            Some(&299)
        );
        assert!(matches!(
            table_of(1000),
            Err(regex::Error::CompiledTooBig(PROGRAM_LIMIT))
        ));
    }

    #[test]
    fn debug_prints_sizes_only() {
        let table = table(&["pr-42", "pr-43", "pr-9*", "~.*"]);

        assert_eq!(
            format!("{table:?}"),
            "Table { exact: 2, prefixes: 1, regexes: 1 }"
        );
    }

    #[test]
    fn a_hundred_thousand_names_are_found_each() {
        let mut builder = TableBuilder::new();
        for number in 0..100_000 {
            builder.exact(&format!("pr-{number}"), number);
        }
        let table = builder.build().unwrap();

        assert_eq!(table.len(), 100_000);
        for number in [0, 1, 42, 99_999] {
            assert_eq!(table.find(&format!("pr-{number}")), Some(&number));
        }
        assert_eq!(table.find("pr-100000"), None);
    }
}
