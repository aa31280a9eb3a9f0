//! Why a session did not start, or ended: what mirrord's words and exits mean, and what follows.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::LazyLock;
use std::time::Duration;

use regex::Regex;

/// Why there is no session any more, or not yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cause {
    /// Another session's rules are on the pod.
    Occupied,
    /// A right is missing: which.
    Forbidden(String),
    /// The agent did not come up: why.
    NoAgent(String),
    /// The process ended before it was ready: how, and its last words.
    NotStarted(String),
    /// The start came to no end.
    Stuck(String),
    /// It started, and requests to the pod do not come back from our proxy: what does.
    Unproven(String),
    /// Requests to the pod no longer come back from our proxy: what does.
    Silent(String),
    /// The agent's pod is gone.
    AgentGone,
    /// The container was started anew.
    ContainerReplaced,
    /// The process ended: how, and its last words.
    Ended(String),
    /// We could not do our own part: what.
    Ours(String),
}

impl Cause {
    /// Every [`reason`](Self::reason).
    pub(super) const REASONS: [&'static str; 11] = [
        "occupied",
        "forbidden",
        "no-agent",
        "not-started",
        "stuck",
        "unproven",
        "silent",
        "agent-gone",
        "container-replaced",
        "ended",
        "internal",
    ];

    /// What a process that ended before it was ready meant by it.
    pub(super) fn of_start(status: ExitStatus, output: &[String]) -> Self {
        let said = said(output);
        if contains(&said, "dirty iptables") {
            return Self::Occupied;
        }
        if let Some(right) = missing_right(&said) {
            return Self::Forbidden(right);
        }
        match status.code() {
            // The agent's own exit code for it; its words may have been lost.
            Some(99) => Self::Occupied,
            _ => Self::NotStarted(last_words(status, output)),
        }
    }

    /// What a process that ended after it was ready meant by it.
    pub(super) fn of_end(status: ExitStatus, output: &[String]) -> Self {
        Self::Ended(last_words(status, output))
    }

    /// For a label.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Occupied => "occupied",
            Self::Forbidden(_) => "forbidden",
            Self::NoAgent(_) => "no-agent",
            Self::NotStarted(_) => "not-started",
            Self::Stuck(_) => "stuck",
            Self::Unproven(_) => "unproven",
            Self::Silent(_) => "silent",
            Self::AgentGone => "agent-gone",
            Self::ContainerReplaced => "container-replaced",
            Self::Ended(_) => "ended",
            Self::Ours(_) => "internal",
        }
    }

    /// For a person.
    pub(super) fn message(&self) -> String {
        match self {
            Self::Occupied => {
                "another mirrord session holds this pod (dirty iptables); it must end, \
                               or, if none is left, the pod must be deleted"
                    .to_owned()
            }
            Self::Forbidden(right) => {
                format!(
                    "mirrord is not allowed to {right}; grant it to the proxy's service account"
                )
            }
            Self::NoAgent(why) => format!("the agent does not come up: {why}"),
            Self::Unproven(what) => format!("started, but requests are not taken: {what}"),
            Self::Silent(what) => format!("requests are no longer taken: {what}"),
            Self::AgentGone => "mirrord's agent is gone".to_owned(),
            Self::ContainerReplaced => "the target's container was started anew".to_owned(),
            Self::NotStarted(what) | Self::Stuck(what) | Self::Ended(what) | Self::Ours(what) => {
                what.clone()
            }
        }
    }

    /// Whether a session was live before.
    pub(super) fn is_loss(&self) -> bool {
        match self {
            Self::Silent(_) | Self::AgentGone | Self::ContainerReplaced | Self::Ended(_) => true,
            Self::Occupied
            | Self::Forbidden(_)
            | Self::NoAgent(_)
            | Self::NotStarted(_)
            | Self::Stuck(_)
            | Self::Unproven(_)
            | Self::Ours(_) => false,
        }
    }

    /// How long to wait before the next start, after so many failures in a row (from 1), without
    /// jitter. The first loss of a session that was live is mended at once.
    pub(super) fn pause(&self, failures: u32) -> Duration {
        let (first, longest) = match self {
            // Only a person can grant a right or admit an agent.
            Self::Forbidden(_) | Self::NoAgent(_) => (15, 60),
            Self::Occupied => (2, 30),
            Self::NotStarted(_) | Self::Stuck(_) | Self::Unproven(_) | Self::Ours(_) => (2, 60),
            Self::Silent(_) | Self::AgentGone | Self::ContainerReplaced | Self::Ended(_) => {
                if failures <= 1 {
                    return Duration::ZERO;
                }
                (1, 30)
            }
        };
        let doubled = 1_u64
            .checked_shl(failures.saturating_sub(1))
            .unwrap_or(longest);
        Duration::from_secs(doubled.saturating_mul(first).min(longest))
    }
}

/// All that was said as one line of words. mirrord breaks its messages into lines and puts bars
/// before them.
fn said(output: &[String]) -> String {
    let words = output.iter().flat_map(|line| line.split_whitespace());
    let words: Vec<_> = words
        .filter(|word| !matches!(*word, "│" | "|" | "╰─▶" | "├─▶"))
        .collect();
    words.join(" ")
}

fn contains(said: &str, words: &str) -> bool {
    said.to_ascii_lowercase().contains(words)
}

/// The verb and the resource that the API server refused, if it did.
fn missing_right(said: &str) -> Option<String> {
    // As the API server says it, for a named object and for all; inside of JSON the quotes are escaped.
    static REFUSAL: LazyLock<Regex> = LazyLock::new(|| {
        let quoted = r#"\\?"([^"\\]*)\\?""#;
        let refusal = format!(
            "cannot ([a-z]+) resource {quoted} in API group {quoted}(?: in the namespace {quoted})?"
        );
        Regex::new(&refusal).expect("the pattern above is one")
    });
    if let Some(found) = REFUSAL.captures(said) {
        let namespace = found.get(4).map_or_else(String::new, |name| {
            format!(" in namespace {}", name.as_str())
        });
        return Some(format!("{} {}{namespace}", &found[1], &found[2]));
    }
    // Pods that the cluster does not admit are forbidden too, but that is no right of ours.
    let is_refused = contains(said, "forbidden") && !contains(said, "violates podsecurity");
    is_refused.then(|| format!("do what it must: {}", tail(said)))
}

/// How a process ended, and what it said last.
fn last_words(status: ExitStatus, output: &[String]) -> String {
    let how = match (status.signal(), status.code()) {
        // A shell between us and it makes codes of signals.
        (Some(9), _) | (_, Some(137)) => "the session was killed".to_owned(),
        (Some(11), _) | (_, Some(139)) => "the session crashed".to_owned(),
        (Some(signal), _) => format!("the session was ended by signal {signal}"),
        (None, Some(code)) => format!("the session ended with exit code {code}"),
        (None, None) => "the session ended".to_owned(),
    };
    match output.iter().rev().find(|line| !line.trim().is_empty()) {
        Some(last) => format!("{how}; it said last: {}", tail(last.trim())),
        None => how,
    }
}

/// The last part of a text that is too long to be told.
fn tail(text: &str) -> String {
    const LONGEST: usize = 300;
    let skipped = text.chars().count().saturating_sub(LONGEST);
    let shown: String = text.chars().skip(skipped).collect();
    if skipped > 0 {
        format!("…{shown}")
    } else {
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(code: i32) -> ExitStatus {
        ExitStatus::from_raw(code << 8)
    }

    fn killed(signal: i32) -> ExitStatus {
        ExitStatus::from_raw(signal)
    }

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn every_way_to_fail_is_told_apart() {
        let right = "Error: × Failed to create mirrord-agent: KubeError: Api(jobs.batch is forbidden: \
                     User \"system:serviceaccount:staging:mirrord-proxy-orders\" cannot create resource\n  \
                     │ \"jobs\" in API group \"batch\" in the namespace \"agents\": Forbidden)";
        for (status, output, expected) in [
            (
                exited(1),
                "x mirrord exec\nError: × agent closed connection with message: Detected dirty\n  \
                 │ iptables. Either some other mirrord agent is running",
                Cause::Occupied,
            ),
            (exited(99), "", Cause::Occupied),
            (
                exited(1),
                right,
                Cause::Forbidden("create jobs in namespace agents".into()),
            ),
            (
                exited(1),
                r#"{"type":"FinishedTask","message":"nodes is forbidden: User \"u\" cannot list resource \"nodes\" in API group \"\" at the cluster scope"}"#,
                Cause::Forbidden("list nodes".into()),
            ),
            (
                exited(1),
                "HTTP 403 Forbidden",
                Cause::Forbidden("do what it must: HTTP 403 Forbidden".into()),
            ),
            (
                exited(1),
                "pods \"mirrord-agent-x\" is forbidden: violates PodSecurity \"restricted:latest\"",
                Cause::NotStarted(
                    "the session ended with exit code 1; it said last: pods \"mirrord-agent-x\" is \
                     forbidden: violates PodSecurity \"restricted:latest\""
                        .into(),
                ),
            ),
            (killed(9), "", Cause::NotStarted("the session was killed".into())),
            (exited(137), "", Cause::NotStarted("the session was killed".into())),
            (exited(139), "", Cause::NotStarted("the session crashed".into())),
            (
                killed(15),
                "bye\n\n",
                Cause::NotStarted("the session was ended by signal 15; it said last: bye".into()),
            ),
        ] {
            assert_eq!(Cause::of_start(status, &lines(output)), expected, "{output}");
        }
    }

    #[test]
    fn what_was_said_last_is_cut() {
        let Cause::Ended(told) = Cause::of_end(exited(1), &["é".repeat(1000)]) else {
            panic!("an end is an end");
        };

        assert!(told.ends_with("é") && told.chars().count() < 400, "{told}");
    }

    #[test]
    fn a_loss_is_mended_at_once_and_what_fails_again_waits_longer() {
        let pauses = |cause: Cause| [1, 2, 3, 40].map(|failures| cause.pause(failures).as_secs());

        assert_eq!(pauses(Cause::AgentGone), [0, 2, 4, 30]);
        assert_eq!(pauses(Cause::Occupied), [2, 4, 8, 30]);
        assert_eq!(pauses(Cause::Forbidden(String::new())), [15, 30, 60, 60]);
    }
}
