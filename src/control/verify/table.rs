//! The report as people read it: aligned, one line for each verdict, printable whoever sent what.

use std::fmt::{self, Display};

use super::report::{AppReport, Check, Report};

/// A report to be displayed.
pub(super) struct Table<'a> {
    pub report: &'a Report,
    pub is_colourful: bool,
}

/// One line: a verdict, what was judged, and why so.
struct Row {
    depth: usize,
    ok: bool,
    name: String,
    took_ms: Option<f64>,
    detail: String,
}

impl Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report {
            session,
            header,
            apps,
            hops,
            traffic,
            ..
        } = self.report;
        writeln!(f, "session {session} ({header})")?;
        for app in apps {
            self.app(f, app)?;
        }
        if !hops.is_empty() {
            writeln!(f, "\npropagation")?;
        }
        let hops = hops.iter().map(|hop| Row {
            depth: 1,
            ok: hop.ok,
            name: format!("{} ({})", hop.app, hop.role),
            took_ms: None,
            detail: hop.detail.clone(),
        });
        self.rows(f, &hops.collect::<Vec<_>>())?;
        if !traffic.apps.is_empty() {
            writeln!(f, "\nuntagged traffic")?;
        }
        let traffic = traffic.apps.iter().map(|app| Row {
            depth: 1,
            ok: app.ok,
            name: app.app.clone(),
            took_ms: None,
            detail: app.detail.clone(),
        });
        self.rows(f, &traffic.collect::<Vec<_>>())
    }
}

impl Table<'_> {
    fn app(&self, f: &mut fmt::Formatter<'_>, app: &AppReport) -> fmt::Result {
        writeln!(f, "\n{} in {}", app.app, app.namespace)?;
        self.rows(f, &checks(1, &app.checks))?;
        for replica in &app.replicas {
            writeln!(f, "  replica {} at {}", replica.pod, replica.ip)?;
            self.rows(f, &checks(2, &replica.checks))?;
        }
        Ok(())
    }

    fn rows(&self, f: &mut fmt::Formatter<'_>, rows: &[Row]) -> fmt::Result {
        let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
        for row in rows {
            let indent = "  ".repeat(row.depth);
            let verdict = self.verdict(row.ok);
            write!(f, "{indent}{verdict}  {:width$}", row.name)?;
            if let Some(took) = row.took_ms {
                write!(f, "  {took:>7.1} ms")?;
            }
            writeln!(f, "  {}", printable(&row.detail))?;
        }
        Ok(())
    }

    fn verdict(&self, ok: bool) -> &'static str {
        match (ok, self.is_colourful) {
            (true, false) => "ok  ",
            (false, false) => "FAIL",
            (true, true) => "\u{1b}[32mok\u{1b}[0m  ",
            (false, true) => "\u{1b}[1;31mFAIL\u{1b}[0m",
        }
    }
}

fn checks(depth: usize, checks: &[Check]) -> Vec<Row> {
    let row = |check: &Check| Row {
        depth,
        ok: check.ok,
        name: match check.port {
            Some(port) => format!("{} :{port}", check.name),
            None => check.name.to_owned(),
        },
        took_ms: Some(check.took_ms),
        detail: check.detail.clone(),
    };
    checks.iter().map(row).collect()
}

/// Answers quote what apps and clients sent, which must not steer a terminal.
fn printable(text: &str) -> String {
    let escape = |c: char| match c {
        ' ' => vec![' '],
        c if c.is_control() => c.escape_default().collect(),
        c => vec![c],
    };
    text.chars().flat_map(escape).collect()
}
