//! Original traffic: requests without a session, before and behind an intercept.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use serde::{Deserialize, Serialize};

use super::judgement::{Verdict, heard};
use super::question::{Asker, Reply, Tag};
use super::report::AppTraffic;
use super::scene::{Scene, Through};
use crate::control::proof::Ending;

/// Requests to one app.
pub(super) const REQUESTS: usize = 50;

/// Of those, under way at a time: what is measured is the way, not the app under load.
const AT_ONCE: usize = 5;

/// Whatever is quicker than that is quick enough, however many times slower it has become.
const QUICK_MS: f64 = 100.0;

/// Untagged traffic as it was at one time. A file: its keys are an interface.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Measurement {
    pub path: String,
    pub apps: BTreeMap<String, Figures>,
}

/// One burst of requests to one app. Also part of the report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Figures {
    pub through: Through,
    pub requests: usize,
    /// No answer, half an answer, or a status of 500 and more.
    pub errors: usize,
    pub error_rate: f64,
    /// Of the requests that were answered; `None`: none was.
    pub median_ms: Option<f64>,
    pub p95_ms: Option<f64>,
}

/// What a burst was made of.
#[derive(Debug)]
pub(super) struct Burst {
    pub through: Through,
    pub replies: Vec<Reply>,
}

impl Measurement {
    /// # Errors
    /// The file cannot be read, or is none that `--measure-baseline` wrote.
    pub(super) fn read(file: &Path) -> Result<Self, String> {
        let text = std::fs::read(file)
            .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        serde_json::from_slice(&text).map_err(|error| {
            format!(
                "{} is not a measurement: {error}; --measure-baseline writes one",
                file.display()
            )
        })
    }
}

impl Burst {
    /// Sends a burst to an app: to its Service, or else to its pods in turn.
    ///
    /// # Errors
    /// There is nobody to ask.
    pub(super) async fn send(asker: &Asker, scene: &Scene<'_>, path: &str) -> Result<Self, String> {
        let (through, doors) = scene.doors(path).await?;
        let doors = doors.iter().cycle().take(REQUESTS);
        let replies = stream::iter(doors)
            .map(|door| asker.ask(door, Tag::None))
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        Ok(Self { through, replies })
    }

    pub(super) fn figures(&self) -> Figures {
        let is_error = |reply: &&Reply| match heard(reply) {
            Ok(answer) => {
                answer.status.is_server_error() || matches!(answer.ending, Ending::Broken(_))
            }
            Err(_) => true,
        };
        let errors = self.replies.iter().filter(is_error).count();
        let answers = self
            .replies
            .iter()
            .filter_map(|reply| reply.answer.as_ref().ok());
        let mut took: Vec<Duration> = answers.map(|answer| answer.took).collect();
        took.sort_unstable();
        Figures {
            through: self.through,
            requests: self.replies.len(),
            errors,
            error_rate: rate(errors, self.replies.len()),
            median_ms: percentile(&took, 50),
            p95_ms: percentile(&took, 95),
        }
    }

    /// Why requests were not answered: the first of them speaks for all.
    pub(super) fn silence(&self) -> Option<&str> {
        let mut silences = self
            .replies
            .iter()
            .filter_map(|reply| reply.answer.as_ref().err());
        silences.next().map(String::as_str)
    }
}

/// What a burst means for an app. `stayed` is whether all of it stayed with the baseline.
pub(super) fn judge(
    app: &str,
    path: &str,
    before: Option<&Measurement>,
    burst: &Result<Burst, String>,
    stayed: Result<(), String>,
    max_slowdown: f64,
) -> AppTraffic {
    let now = burst.as_ref().ok().map(Burst::figures);
    let held = hold(app, path, before, burst, max_slowdown);
    let held = held.and_then(|said| stayed.map(|()| said));
    AppTraffic {
        app: app.to_owned(),
        ok: held.is_ok(),
        before: before.and_then(|before| before.apps.get(app)).cloned(),
        now,
        detail: held.unwrap_or_else(|failure| failure),
    }
}

fn hold(
    app: &str,
    path: &str,
    before: Option<&Measurement>,
    burst: &Result<Burst, String>,
    max_slowdown: f64,
) -> Verdict {
    let burst = burst.as_ref().map_err(Clone::clone)?;
    let now = burst.figures();
    let Some(before) = before else {
        return match burst.silence() {
            Some(why) => Err(format!("not every request was answered: {why}")),
            None => Ok(format!("{now}; no measurement to compare with")),
        };
    };
    if before.path != path {
        return Err(format!(
            "the measurement was taken at path {:?}, not at {path:?}",
            before.path
        ));
    }
    let before = before.apps.get(app).ok_or_else(|| {
        format!("the measurement has no figures of {app}; take it with the same --build-apps")
    })?;
    compare(before, &now, max_slowdown)
}

/// As people read them.
impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} requests failed", self.errors, self.requests)?;
        if let (Some(median), Some(p95)) = (self.median_ms, self.p95_ms) {
            write!(f, ", median {median:.1} ms, p95 {p95:.1} ms")?;
        }
        f.write_str(match self.through {
            Through::Service => " (through the Service)",
            Through::Pods => " (at the pods themselves)",
        })
    }
}

/// Whether untagged traffic is as it was before.
fn compare(before: &Figures, now: &Figures, max_slowdown: f64) -> Verdict {
    let Figures {
        errors, requests, ..
    } = now;
    if now.error_rate > before.error_rate {
        return Err(format!(
            "{errors} of {requests} requests failed; before the intercept {} of {} did",
            before.errors, before.requests
        ));
    }
    let (Some(p95), Some(p95_before)) = (now.p95_ms, before.p95_ms) else {
        return Err(format!(
            "{errors} of {requests} requests failed: there is no latency to compare"
        ));
    };
    let allowed = (p95_before * max_slowdown).max(QUICK_MS);
    let figures = format!(
        "p95 {p95:.1} ms, before the intercept {p95_before:.1} ms, at most {allowed:.1} ms allowed"
    );
    if p95 > allowed {
        return Err(format!(
            "slower than allowed: {figures}; --max-slowdown sets how many times slower it may be"
        ));
    }
    Ok(format!(
        "{errors} of {requests} requests failed, before the intercept {} of {}; {figures}",
        before.errors, before.requests
    ))
}

fn rate(errors: usize, requests: usize) -> f64 {
    if requests == 0 {
        return 1.0;
    }
    #[allow(clippy::cast_precision_loss, reason = "a burst is small")]
    let rate = errors as f64 / requests as f64;
    rate
}

/// By the nearest rank.
fn percentile(sorted: &[Duration], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    let took = sorted.get(rank.checked_sub(1)?)?;
    // Thousandths are all that a reader can use.
    Some((took.as_secs_f64() * 1_000_000.0).round() / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(errors: usize, p95_ms: Option<f64>) -> Figures {
        Figures {
            through: Through::Service,
            requests: 50,
            errors,
            error_rate: rate(errors, 50),
            median_ms: p95_ms,
            p95_ms,
        }
    }

    #[test]
    fn traffic_may_be_slower_within_bounds_and_fail_no_more_than_before() {
        for (case, before, now, holds) in [
            ("the same", (0, Some(20.0)), (0, Some(20.0)), true),
            (
                "slower, as expected",
                (0, Some(20.0)),
                (0, Some(199.0)),
                true,
            ),
            ("too slow", (0, Some(20.0)), (0, Some(201.0)), false),
            (
                "many times slower, but quick",
                (0, Some(0.5)),
                (0, Some(99.0)),
                true,
            ),
            (
                "quick before, slow now",
                (0, Some(0.5)),
                (0, Some(101.0)),
                false,
            ),
            ("one more error", (1, Some(20.0)), (2, Some(20.0)), false),
            ("fewer errors", (2, Some(20.0)), (1, Some(20.0)), true),
            ("never any answer", (50, None), (50, None), false),
            ("no answer any more", (0, Some(20.0)), (50, None), false),
        ] {
            let verdict = compare(&figures(before.0, before.1), &figures(now.0, now.1), 10.0);
            assert_eq!(verdict.is_ok(), holds, "{case}: {verdict:?}");
        }
    }

    #[test]
    fn both_numbers_and_the_bound_are_stated() {
        let verdict = compare(&figures(0, Some(20.0)), &figures(0, Some(350.5)), 10.0);
        let said = verdict.expect_err("it is too slow");
        for part in ["350.5 ms", "20.0 ms", "200.0 ms", "--max-slowdown"] {
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let took: Vec<_> = (1..=50).map(Duration::from_millis).collect();
        assert_eq!(percentile(&took, 50), Some(25.0));
        assert_eq!(percentile(&took, 95), Some(48.0));
        assert_eq!(percentile(&took[..1], 95), Some(1.0));
        assert_eq!(percentile(&[], 95), None);
    }
}
