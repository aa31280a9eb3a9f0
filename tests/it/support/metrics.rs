//! The Prometheus text of the admin port, as numbers.

/// One scrape.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub text: String,
}

impl Metrics {
    /// The sum of all series of that name which carry these labels; 0 without any.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.series(name)
            .filter(|(found, _)| labels.iter().all(|(label, value)| has(found, label, value)))
            .map(|(_, value)| value)
            .sum()
    }

    /// Labels and value of every series of that name.
    pub fn series(&self, name: &str) -> impl Iterator<Item = (&str, f64)> {
        self.text.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once('}')?,
                None => ("", rest.strip_prefix(' ')?),
            };
            Some((labels, value.trim().parse().ok()?))
        })
    }
}

/// Whether `a="1",b="2"` holds that label with that value.
fn has(labels: &str, label: &str, value: &str) -> bool {
    let wanted = format!("{label}=\"{value}\"");
    labels == wanted
        || labels.starts_with(&format!("{wanted},"))
        || labels.ends_with(&format!(",{wanted}"))
        || labels.contains(&format!(",{wanted},"))
}
