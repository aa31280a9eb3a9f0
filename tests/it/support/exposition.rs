//! A strict reader of the Prometheus text format, version 0.0.4: whatever a scrape would refuse or
//! promtool would complain of is a panic here.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use regex::Regex;

/// Panics at the first line that should not be there.
pub fn assert_valid(text: &str) {
    let sample = Regex::new(
        r#"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\]|\\[\\n"])*",?)*)\})? (\S+)( -?\d+)?$"#,
    )
    .expect("a pattern");
    let label =
        Regex::new(r#"([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\[\\n"])*)""#).expect("a pattern");
    let (mut current, mut seen) = (Family::default(), HashSet::new());
    let mut series = BTreeSet::new();
    assert!(text.ends_with('\n'), "the last line has no end");
    for line in text.lines() {
        if let Some(description) = line.strip_prefix("# ") {
            let mut words = description.splitn(3, ' ');
            let (what, name) = (words.next(), words.next().expect("a name"));
            let said = words.next().expect("a description");
            if name != current.name {
                current.check();
                assert!(
                    seen.insert(name.to_owned()),
                    "{name} is there in two pieces"
                );
                current = Family::of(name);
            }
            match what {
                Some("HELP") => assert!(current.help.replace(said.to_owned()).is_none(), "{line}"),
                Some("TYPE") => {
                    assert!(
                        current.samples.is_empty() && current.kind.is_none(),
                        "{line}"
                    );
                    current.kind = Some(said.to_owned());
                }
                _ => panic!("no such line: {line}"),
            }
            continue;
        }
        let parts = sample
            .captures(line)
            .unwrap_or_else(|| panic!("no sample: {line}"));
        let name = &parts[1];
        if !current.has(name) {
            current.check();
            assert!(
                seen.insert(name.to_owned()),
                "{name} is there in two pieces"
            );
            current = Family::of(name);
        }
        let labels = parts.get(2).map_or("", |labels| labels.as_str());
        let pairs: Vec<_> = label
            .captures_iter(labels)
            .map(|pair| (pair[1].to_owned(), pair[2].to_owned()))
            .collect();
        let labels: BTreeMap<_, _> = pairs.iter().cloned().collect();
        assert_eq!(labels.len(), pairs.len(), "a label twice: {line}");
        assert!(
            series.insert((name.to_owned(), labels.clone())),
            "a series twice: {line}"
        );
        let value = parts[3].replace("Inf", "inf");
        let value = value
            .parse()
            .unwrap_or_else(|_| panic!("no number: {line}"));
        current.samples.push((name.to_owned(), labels, value));
    }
    current.check();
}

#[derive(Default)]
struct Family {
    name: String,
    help: Option<String>,
    kind: Option<String>,
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

impl Family {
    fn of(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }

    fn has(&self, sample: &str) -> bool {
        let suffix = sample.strip_prefix(self.name.as_str());
        match self.kind.as_deref() {
            Some("histogram") => matches!(suffix, Some("_bucket" | "_sum" | "_count")),
            Some("summary") => matches!(suffix, Some("" | "_sum" | "_count")),
            _ => suffix == Some(""),
        }
    }

    /// A described family has samples, and each histogram all of its parts.
    fn check(&self) {
        if self.name.is_empty() {
            return;
        }
        assert!(!self.samples.is_empty(), "{} has no samples", self.name);
        let kind = self.kind.as_deref().unwrap_or("untyped");
        assert!(
            ["counter", "gauge", "histogram", "untyped"].contains(&kind),
            "{kind}"
        );
        if kind != "histogram" {
            return;
        }
        let mut buckets: BTreeMap<_, Vec<(f64, f64)>> = BTreeMap::new();
        let mut counts = BTreeMap::new();
        for (name, labels, value) in &self.samples {
            let mut labels = labels.clone();
            let bound = labels.remove("le");
            if name.ends_with("_bucket") {
                let bound = bound.expect("a bucket has a bound").replace("Inf", "inf");
                let bound = bound.parse().expect("a bound is a number");
                buckets.entry(labels).or_default().push((bound, *value));
            } else if name.ends_with("_count") {
                counts.insert(labels, *value);
            }
        }
        assert_eq!(buckets.len(), counts.len(), "{}", self.name);
        for (labels, buckets) in buckets {
            let rises = buckets
                .windows(2)
                .all(|two| two[0].0 < two[1].0 && two[0].1 <= two[1].1);
            assert!(rises, "{} {labels:?}: {buckets:?}", self.name);
            let last = buckets.last().expect("one at least");
            assert_eq!(last.0, f64::INFINITY, "{} {labels:?}", self.name);
            assert_eq!(
                Some(&last.1),
                counts.get(&labels),
                "{} {labels:?}",
                self.name
            );
        }
    }
}
