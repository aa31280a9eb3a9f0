//! The metrics of several proxies as one text that Prometheus takes.
//!
//! Every series of a proxy gets the label `target`, and families of the same name are put together,
//! described once. What cannot be read or would make the whole invalid is left out: one proxy that
//! says nonsense must not cost the numbers of the others.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;

/// The label that says whose number it is.
const TARGET: &str = "target";

/// What a label of that name becomes when a proxy has one already; Prometheus does the same.
const EXPORTED: &str = "exported_target";

/// One text of `own`, which stays as it is, and of each proxy's, by the name of its target.
pub(super) fn exposition(own: &str, proxies: &[(String, String)]) -> String {
    let mut merged = Merged::default();
    merged.add(None, own);
    for (target, text) in proxies {
        merged.add(Some(target), text);
    }
    merged.text()
}

/// Families in the order in which they were first seen.
#[derive(Default)]
struct Merged {
    families: Vec<Family>,
    places: HashMap<String, usize>,
    /// Every name under which a family has samples, and whose it is.
    sample_names: HashMap<String, usize>,
    series: HashSet<String>,
}

struct Family {
    name: String,
    help: Option<String>,
    /// `None`: the text said nothing, which Prometheus calls untyped.
    kind: Option<Kind>,
    samples: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
    Summary,
    Untyped,
}

impl Merged {
    fn add(&mut self, target: Option<&str>, text: &str) {
        let descriptions = Descriptions::of(text);
        // The last line without its end may have lost more than that.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(sample) = Sample::parse(line) {
                self.take(target, sample, &descriptions);
            }
        }
    }

    fn take(&mut self, target: Option<&str>, mut sample: Sample<'_>, told: &Descriptions<'_>) {
        if let Some(target) = target
            && !sample.belongs_to(target)
        {
            return;
        }
        let (family, kind) = told.family_of(sample.name);
        let Some(place) = self.place(family, kind, told) else {
            return;
        };
        if self.sample_names.get(sample.name) == Some(&place) && self.series.insert(sample.series())
        {
            self.families[place].samples.push(sample.text());
        }
    }

    /// Where samples of that family go; nowhere when another one of that name is of another kind,
    /// or uses one of its names.
    fn place(&mut self, name: &str, kind: Option<Kind>, told: &Descriptions<'_>) -> Option<usize> {
        if let Some(&place) = self.places.get(name) {
            return (self.families[place].kind == kind).then_some(place);
        }
        let names = sample_names(name, kind);
        if names
            .iter()
            .any(|name| self.sample_names.contains_key(name))
        {
            return None;
        }
        let place = self.families.len();
        self.families.push(Family {
            name: name.to_owned(),
            help: told.helps.get(name).map(|&help| help.to_owned()),
            kind,
            samples: Vec::new(),
        });
        self.places.insert(name.to_owned(), place);
        self.sample_names
            .extend(names.into_iter().map(|name| (name, place)));
        Some(place)
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for family in self.families.iter().filter(|f| !f.samples.is_empty()) {
            if let Some(help) = &family.help {
                writeln!(text, "# HELP {} {help}", family.name).expect("a String takes all");
            }
            if let Some(kind) = family.kind {
                writeln!(text, "# TYPE {} {}", family.name, kind.word())
                    .expect("a String takes all");
            }
            for sample in &family.samples {
                text.push_str(sample);
                text.push('\n');
            }
        }
        text
    }
}

impl Kind {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "counter" => Self::Counter,
            "gauge" => Self::Gauge,
            "histogram" => Self::Histogram,
            "summary" => Self::Summary,
            "untyped" => Self::Untyped,
            _ => return None,
        })
    }

    fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Summary => "summary",
            Self::Untyped => "untyped",
        }
    }

    /// What is put behind the family's name to name its samples.
    fn suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Counter | Self::Gauge | Self::Untyped => &[""],
            Self::Histogram => &["_bucket", "_sum", "_count"],
            Self::Summary => &["", "_sum", "_count"],
        }
    }
}

/// A family's own name counts too, so that nothing else is described under it.
fn sample_names(family: &str, kind: Option<Kind>) -> Vec<String> {
    let suffixes = kind.map_or(&[""][..], Kind::suffixes);
    suffixes
        .iter()
        .map(|suffix| format!("{family}{suffix}"))
        .collect()
}

/// What one text says about its families.
struct Descriptions<'t> {
    helps: BTreeMap<&'t str, &'t str>,
    kinds: BTreeMap<&'t str, Kind>,
}

impl<'t> Descriptions<'t> {
    fn of(text: &'t str) -> Self {
        let (mut helps, mut kinds) = (BTreeMap::new(), BTreeMap::new());
        for line in text.lines() {
            let Some(comment) = line.trim().strip_prefix('#') else {
                continue;
            };
            let comment = comment.trim_start();
            let (word, rest) = comment.split_once(' ').unwrap_or((comment, ""));
            let (name, said) = rest.split_once(' ').unwrap_or((rest, ""));
            if !is_name(name) {
                continue;
            }
            match word {
                "HELP" => _ = helps.entry(name).or_insert(said),
                "TYPE" => {
                    if let Some(kind) = Kind::parse(said.trim()) {
                        kinds.entry(name).or_insert(kind);
                    }
                }
                _ => {}
            }
        }
        Self { helps, kinds }
    }

    /// The family that a sample of this name belongs to.
    fn family_of<'s>(&self, sample: &'s str) -> (&'s str, Option<Kind>) {
        for suffix in ["_bucket", "_sum", "_count"] {
            let Some(family) = sample.strip_suffix(suffix) else {
                continue;
            };
            if let Some(&kind) = self.kinds.get(family)
                && kind.suffixes().contains(&suffix)
            {
                return (family, Some(kind));
            }
        }
        (sample, self.kinds.get(sample).copied())
    }
}

/// One line of numbers.
struct Sample<'t> {
    name: &'t str,
    /// Values as they are written, between their quotes.
    labels: Vec<(&'t str, String)>,
    /// The value, and the time if there is one.
    value: &'t str,
}

impl<'t> Sample<'t> {
    fn parse(line: &'t str) -> Option<Self> {
        let end = line.find(['{', ' ', '\t']).unwrap_or(line.len());
        let (name, rest) = line.split_at(end);
        if !is_name(name) {
            return None;
        }
        let (labels, rest) = match rest.trim_start().strip_prefix('{') {
            Some(rest) => labels(rest)?,
            None => (Vec::new(), rest),
        };
        let mut words = rest.split_ascii_whitespace();
        words.next()?.parse::<f64>().ok()?;
        if let Some(time) = words.next() {
            time.parse::<i64>().ok()?;
        }
        let value = rest.trim();
        words.next().is_none().then_some(Self {
            name,
            labels,
            value,
        })
    }

    /// Adds the label; false when there is no room for it.
    fn belongs_to(&mut self, target: &str) -> bool {
        if self.labels.iter().any(|(name, _)| *name == TARGET) {
            if self.labels.iter().any(|(name, _)| *name == EXPORTED) {
                return false;
            }
            for (name, _) in self.labels.iter_mut().filter(|(name, _)| *name == TARGET) {
                *name = EXPORTED;
            }
        }
        self.labels.push((TARGET, escaped(target)));
        true
    }

    /// What makes the series the one it is, whatever the order of its labels.
    fn series(&self) -> String {
        let mut labels: Vec<_> = self.labels.iter().collect();
        labels.sort();
        format!("{}{labels:?}", self.name)
    }

    fn text(&self) -> String {
        if self.labels.is_empty() {
            return format!("{} {}", self.name, self.value);
        }
        let labels: Vec<_> = self
            .labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{value}\""))
            .collect();
        format!("{}{{{}}} {}", self.name, labels.join(","), self.value)
    }
}

/// The labels up to the closing brace, and what follows it.
fn labels(mut rest: &str) -> Option<(Vec<(&str, String)>, &str)> {
    let mut labels: Vec<(&str, String)> = Vec::new();
    loop {
        rest = rest.trim_start();
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, value) = rest.split_once('=')?;
        let name = name.trim();
        if !is_label_name(name) || labels.iter().any(|(known, _)| *known == name) {
            return None;
        }
        let value = value.trim_start().strip_prefix('"')?;
        let end = closing_quote(value)?;
        labels.push((name, value[..end].to_owned()));
        rest = value[end + 1..].trim_start();
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.starts_with('}') => {}
            None => return None,
        }
    }
}

/// Where the quoted value ends; nowhere when it holds an escape that is none.
fn closing_quote(value: &str) -> Option<usize> {
    let mut bytes = value.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return Some(at),
            b'\\' => {
                let (_, escape) = bytes.next()?;
                if !matches!(escape, b'\\' | b'"' | b'n') {
                    return None;
                }
            }
            _ => {}
        }
    }
    None
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', r"\\")
        .replace('"', "\\\"")
        .replace('\n', r"\n")
}

fn is_name(name: &str) -> bool {
    let is_first = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':';
    name.starts_with(is_first) && name.chars().all(|c| is_first(c) || c.is_ascii_digit())
}

fn is_label_name(name: &str) -> bool {
    is_name(name) && !name.contains(':')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn merged(own: &str, proxies: &[(&str, &str)]) -> String {
        let proxies: Vec<_> = proxies
            .iter()
            .map(|(target, text)| ((*target).to_owned(), (*text).to_owned()))
            .collect();
        exposition(own, &proxies)
    }

    /// As strict as the format: each family once and in one piece, described before its samples,
    /// no series twice, no line that is neither.
    fn assert_valid(text: &str) {
        let (mut current, mut done) = (String::new(), HashSet::new());
        let (mut described, mut series) = (HashSet::new(), HashSet::new());
        let told = Descriptions::of(text);
        assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
        for line in text.lines() {
            let family = if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ');
                let (kind, name) = (words.next().unwrap(), words.next().unwrap());
                assert!(["HELP", "TYPE"].contains(&kind), "{line}");
                assert!(
                    described.insert((kind.to_owned(), name.to_owned())),
                    "{line}"
                );
                name.to_owned()
            } else {
                let sample = Sample::parse(line).unwrap_or_else(|| panic!("{line:?} in {text}"));
                assert!(series.insert(sample.series()), "twice: {line}");
                told.family_of(sample.name).0.to_owned()
            };
            if family != current {
                assert!(
                    done.insert(family.clone()),
                    "{family} in two pieces:\n{text}"
                );
                current = family;
            }
        }
    }

    #[test]
    fn families_are_put_together_and_described_once() {
        let proxy = "# HELP a_total What.\n# TYPE a_total counter\na_total 1\na_total{route=\"x\"} 2\n\
                     # TYPE b_seconds histogram\nb_seconds_bucket{le=\"+Inf\"} 3\nb_seconds_sum 0.5\nb_seconds_count 3\n";

        let text = merged(
            "# HELP own Ours.\n# TYPE own gauge\nown{target=\"x\"} 1\n",
            &[("orders-1", proxy), ("orders-2", proxy)],
        );

        assert_eq!(
            text,
            "# HELP own Ours.\n# TYPE own gauge\nown{target=\"x\"} 1\n\
             # HELP a_total What.\n# TYPE a_total counter\n\
             a_total{target=\"orders-1\"} 1\na_total{route=\"x\",target=\"orders-1\"} 2\n\
             a_total{target=\"orders-2\"} 1\na_total{route=\"x\",target=\"orders-2\"} 2\n\
             # TYPE b_seconds histogram\n\
             b_seconds_bucket{le=\"+Inf\",target=\"orders-1\"} 3\n\
             b_seconds_sum{target=\"orders-1\"} 0.5\nb_seconds_count{target=\"orders-1\"} 3\n\
             b_seconds_bucket{le=\"+Inf\",target=\"orders-2\"} 3\n\
             b_seconds_sum{target=\"orders-2\"} 0.5\nb_seconds_count{target=\"orders-2\"} 3\n"
        );
        assert_valid(&text);
    }

    #[test]
    fn a_family_of_ours_and_of_a_proxy_is_one() {
        let own = "# TYPE process_threads gauge\nprocess_threads 3\n";

        let text = merged(own, &[("a", own)]);

        assert_eq!(
            text,
            "# TYPE process_threads gauge\nprocess_threads 3\nprocess_threads{target=\"a\"} 3\n"
        );
    }

    #[test]
    fn what_would_make_the_whole_invalid_is_left_out() {
        for (what, proxy, expected) in [
            ("not a sample", "a b c\n{} 1\n1a 1\na{ 1\na 1 2 3\n", ""),
            ("a value that is none", "a one\na 0x10\na\n", ""),
            ("a comment", "# hello\n#\n# TYPE\n# TYPE a what\n", ""),
            ("the end is missing", "a 1\nb 12", "a{target=\"t\"} 1\n"),
            ("a series twice", "a 1\na 2\n", "a{target=\"t\"} 1\n"),
            (
                "twice in another order",
                "a{x=\"1\",y=\"2\"} 1\na{y=\"2\",x=\"1\"} 1\n",
                "a{x=\"1\",y=\"2\",target=\"t\"} 1\n",
            ),
            ("a label twice", "a{x=\"1\",x=\"2\"} 1\n", ""),
            ("an open quote", "a{x=\"1} 1\n", ""),
            ("an escape that is none", "a{x=\"\\t\"} 1\n", ""),
            (
                "quotes and braces in a value",
                "a{x=\"\\\"} 1\\n\\\\\"} 1\n",
                "a{x=\"\\\"} 1\\n\\\\\",target=\"t\"} 1\n",
            ),
            (
                "blanks, a trailing comma, a time",
                "a { x = \"1\" , } 1 1700000000000\n",
                "a{x=\"1\",target=\"t\"} 1 1700000000000\n",
            ),
            (
                "the label is taken",
                "a{target=\"mine\"} 1\n",
                "a{exported_target=\"mine\",target=\"t\"} 1\n",
            ),
            (
                "both labels are taken",
                "a{target=\"mine\",exported_target=\"b\"} 1\n",
                "",
            ),
            (
                "windows line ends",
                "a 1\r\nb NaN\r\n",
                "a{target=\"t\"} 1\nb{target=\"t\"} NaN\n",
            ),
            (
                "a name that is a histogram's too",
                "# TYPE a histogram\na_sum 1\n# TYPE a_sum gauge\na_count 1\n",
                "# TYPE a histogram\na_sum{target=\"t\"} 1\na_count{target=\"t\"} 1\n",
            ),
            (
                "a histogram's bare name",
                "# TYPE a histogram\na 1\na_count 1\n",
                "# TYPE a histogram\na_count{target=\"t\"} 1\n",
            ),
        ] {
            let text = merged("", &[("t", proxy)]);

            assert_eq!(text, expected, "{what}");
            assert_valid(&text);
        }
    }

    #[test]
    fn a_family_of_another_kind_does_not_mix() {
        let text = merged(
            "",
            &[
                ("a", "# TYPE x counter\nx 1\n"),
                ("b", "# TYPE x gauge\nx 1\n"),
                ("c", "x 1\n"),
            ],
        );

        assert_eq!(text, "# TYPE x counter\nx{target=\"a\"} 1\n");
    }

    #[test]
    fn no_name_of_a_target_can_break_out() {
        let text = merged("", &[("a\"} 1\nb\\", "x 1\n")]);

        assert_eq!(text, "x{target=\"a\\\"} 1\\nb\\\\\"} 1\n");
        assert_valid(&text);
    }

    proptest! {
        #[test]
        fn whatever_proxies_say_the_whole_is_valid(
            texts in proptest::collection::vec(
                proptest::collection::vec(
                    prop_oneof![
                        "[ab](_sum|_count|_bucket|_total)?(\\{[xt](arget)?=\"[\"\\\\n}]{0,3}\"\\})? [0-9]",
                        "# (HELP|TYPE) [ab](_sum|_total)? (counter|gauge|histogram|summary|x)",
                        "[ -~]{0,20}",
                    ],
                    0..12,
                ),
                0..3,
            )
        ) {
            let proxies: Vec<_> = texts
                .into_iter()
                .enumerate()
                .map(|(index, lines)| (format!("t{index}"), lines.join("\n") + "\n"))
                .collect();

            assert_valid(&exposition("", &proxies));
        }
    }
}
