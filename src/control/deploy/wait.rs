//! Waiting until a pod is ready, and saying why it is not.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::anyhow;
use k8s_openapi::api::core::v1::{Event, Pod};
use tokio::time::{Instant, sleep, timeout};

use super::diagnosis::{self, Crashed, State};
use super::progress::Voice;
use crate::control::cluster::{Cluster, Name};
use crate::control::targets;

/// Between two looks.
pub(super) const PULSE: Duration = Duration::from_millis(300);

/// How long something that fails may go on failing: some of it mends itself, as when a registry hiccups
/// or an app comes up at its third try.
const HOPE: Duration = Duration::from_secs(30);

/// The admin port of a proxy pod.
const ADMIN: u16 = 9901;

/// For what is read after the deadline, to say why it was missed.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A pod that is to become ready.
pub(super) struct Wait<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) voice: &'a Voice,
    pub(super) pod: &'a Name,
    pub(super) uid: &'a str,
    /// `PR pod`, `proxy pod`.
    pub(super) role: &'a str,
    /// Whether it can say on its admin port how its targets are.
    pub(super) has_targets: bool,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// It serves, at this address.
    Ready(IpAddr),
    /// It is gone, or going.
    Lost,
}

impl Wait<'_> {
    /// Waits for it.
    ///
    /// # Errors
    /// It will not be ready, or was not by the deadline.
    pub(super) async fn until_ready(&self) -> anyhow::Result<Standing> {
        let Self { cluster, pod, .. } = self;
        let mut course = Course::default();
        loop {
            let there: Option<Pod> = cluster.read(&pod.namespace, &pod.name).await?;
            let Some(there) = there.filter(|there| self.is_it(there)) else {
                return Ok(Standing::Lost);
            };
            let mut state = course.observe(diagnosis::of(&there), Instant::now());
            if let State::Starting(awaited) = &mut state
                && let Some(targets) = self.targets(&there).await
            {
                *awaited += &format!("; {targets}");
            }
            match &state {
                State::Ready(ip) => return Ok(Standing::Ready(*ip)),
                State::Over(_) => return Err(self.give_up(&state).await),
                State::Starting(awaited) => self.waits_for(awaited),
                State::Failing(trouble) => self.waits_for(&trouble.said),
            }
            if course.is_hopeless(Instant::now()) || Instant::now() >= cluster.deadline() {
                return Err(self.give_up(&state).await);
            }
            sleep(PULSE).await;
        }
    }

    fn waits_for(&self, what: &str) {
        let (role, name) = (self.role, &self.pod.name);
        self.voice.waits_for(format_args!("{role} {name}: {what}"));
    }

    /// The very pod, and not on its way out.
    fn is_it(&self, pod: &Pod) -> bool {
        pod.metadata.uid.as_deref() == Some(self.uid) && pod.metadata.deletion_timestamp.is_none()
    }

    /// What a proxy pod says of its targets.
    async fn targets(&self, pod: &Pod) -> Option<String> {
        let ip: IpAddr = pod.status.as_ref()?.pod_ip.as_deref()?.parse().ok()?;
        if !self.has_targets {
            return None;
        }
        targets::summary(&targets::ask((ip, ADMIN).into()).await)
    }

    async fn give_up(&self, state: &State) -> anyhow::Error {
        let subject = format!("{} {}", self.role, self.pod.name);
        let (mut reason, crashed) = match state {
            State::Starting(awaited) => (
                format!("{subject} was not ready in time; it waited for {awaited}"),
                None,
            ),
            State::Failing(trouble) | State::Over(trouble) => (
                format!("{subject} is not ready: {}", trouble.said),
                trouble.crashed.as_ref(),
            ),
            State::Ready(_) => (format!("{subject} is ready too late"), None),
        };
        // Nobody should wait long for the reason of having waited in vain.
        let cluster = self.cluster.until(Instant::now() + LAST_WORDS);
        let words = async {
            let mut words = self.events(&cluster).await;
            if let Some(crashed) = crashed {
                words += &self.log(&cluster, crashed).await;
            }
            words
        };
        reason += &timeout(LAST_WORDS, words).await.unwrap_or_default();
        anyhow!(reason)
    }

    /// The cluster's warnings about it, a line each.
    async fn events(&self, cluster: &Cluster) -> String {
        let uid = format!("involvedObject.uid={},type=Warning", self.uid);
        let events = match cluster.events(&self.pod.namespace, &uid).await {
            Ok(events) => events,
            Err(refusal) => return format!("\nits events cannot be read: {refusal}"),
        };
        let mut lines: Vec<_> = events.iter().filter_map(event_line).collect();
        lines.dedup();
        lines.concat()
    }

    /// The last lines of a container; or why they are not to be had.
    async fn log(&self, cluster: &Cluster, crashed: &Crashed) -> String {
        let Crashed {
            container,
            is_previous,
        } = crashed;
        let place = (&*self.pod.namespace, &*self.pod.name, &**container);
        let log = cluster.last_lines(place, *is_previous);
        match log.await {
            Err(refusal) => format!("\nits log cannot be read: {refusal}"),
            Ok(log) if log.trim().is_empty() => "\nits log is empty".to_owned(),
            Ok(log) => {
                let lines = log.lines().map(|line| format!("\n    {}", printable(line)));
                format!("\nthe last lines of its log:{}", lines.collect::<String>())
            }
        }
    }
}

/// `FailedMount: ...`, on a line of its own.
fn event_line(event: &Event) -> Option<String> {
    let message = event.message.as_deref()?;
    let reason = event.reason.as_deref().unwrap_or("warning");
    Some(format!("\n{reason}: {}", printable(message.trim())))
}

/// What containers write is for terminals that trust them.
fn printable(text: &str) -> String {
    let safe = |c: char| if c.is_control() && c != '\t' { ' ' } else { c };
    text.chars().map(safe).collect()
}

/// A pod's states over time.
#[derive(Debug, Default)]
struct Course {
    failing_since: Option<Instant>,
    /// The kubelet says why an image cannot be pulled, then only that it waits before it tries again.
    pull_error: Option<String>,
}

impl Course {
    /// The state, with what is known from before.
    fn observe(&mut self, state: State, now: Instant) -> State {
        let State::Failing(mut trouble) = state else {
            self.failing_since = None;
            return state;
        };
        self.failing_since.get_or_insert(now);
        if trouble.said.contains("ErrImagePull") {
            self.pull_error = Some(trouble.said.clone());
        } else if trouble.said.contains("ImagePullBackOff")
            && let Some(error) = &self.pull_error
        {
            trouble.said.clone_from(error);
        }
        State::Failing(trouble)
    }

    fn is_hopeless(&self, now: Instant) -> bool {
        self.failing_since
            .is_some_and(|since| now.duration_since(since) >= HOPE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::deploy::diagnosis::Trouble;

    fn failing(said: &str) -> State {
        State::Failing(Trouble {
            said: said.to_owned(),
            crashed: None,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn hope_ends_for_what_goes_on_failing_and_begins_anew_for_what_recovers() {
        let mut course = Course::default();
        let start = Instant::now();
        course.observe(failing("crash"), start);
        course.observe(failing("crash"), start + HOPE / 2);
        assert!(!course.is_hopeless(start + HOPE / 2));
        assert!(course.is_hopeless(start + HOPE));

        course.observe(State::Starting("its probe".to_owned()), start + HOPE);
        course.observe(failing("crash"), start + HOPE);
        assert!(!course.is_hopeless(start + HOPE + HOPE / 2));
    }

    #[test]
    fn why_an_image_cannot_be_pulled_is_remembered_while_the_kubelet_only_waits() {
        let mut course = Course::default();
        let now = Instant::now();
        let why = failing("ErrImagePull: manifest unknown");
        course.observe(why.clone(), now);

        let later = course.observe(failing("ImagePullBackOff: Back-off pulling image"), now);

        assert_eq!(later, why);
    }

    #[test]
    fn nothing_that_a_container_writes_reaches_a_terminal_as_a_command() {
        assert_eq!(printable("a\tb\u{1b}[2J\r\u{9b}x ä"), "a\tb [2J  x ä");
    }
}
