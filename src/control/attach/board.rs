//! How every target is doing: the one place that sessions write to and the admin port reads from.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};
use tokio::sync::watch;

use super::cause::Cause;
use super::figures::Figures;
use super::targets::TargetPod;
use crate::record::line::rfc3339;

/// Targets by uid.
pub(super) type Targets = BTreeMap<String, Target>;

/// Where one target's session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// For the pod to become ready, or for the next start.
    Waiting,
    /// Somebody else has the pod.
    Occupied,
    /// mirrord is at it, or the proof is still out.
    Starting,
    /// Proven: requests are taken and reach our child.
    Live,
    /// It was live.
    Lost,
    /// It did not start, and is tried again later.
    Failed,
    /// The pod refuses every connection and heals only by being deleted.
    Broken,
    /// The pod goes, or we do.
    Ending,
}

/// One target as it is told.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Target {
    pub pod: String,
    pub uid: String,
    pub state: State,
    #[serde(serialize_with = "time")]
    pub since: SystemTime,
    /// For a person; empty when there is nothing to say.
    pub message: String,
    pub restarts: u64,
    /// Whether the pod may have requests; one that may not needs no session.
    #[serde(skip)]
    pub is_ready: bool,
    /// Where the target's proxy tells about itself, while there is one.
    #[serde(skip)]
    pub proxy: Option<SocketAddr>,
}

/// All targets, and their numbers.
pub(super) struct Board {
    targets_tx: watch::Sender<Targets>,
    /// Where one proxy serves all targets: what it calls itself, and where it tells about itself.
    shared: Mutex<Option<(String, SocketAddr)>>,
    figures: Figures,
}

impl State {
    pub(super) const ALL: [Self; 8] = [
        Self::Waiting,
        Self::Occupied,
        Self::Starting,
        Self::Live,
        Self::Lost,
        Self::Failed,
        Self::Broken,
        Self::Ending,
    ];

    /// The word for it in answers and labels.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Occupied => "occupied",
            Self::Starting => "starting",
            Self::Live => "live",
            Self::Lost => "lost",
            Self::Failed => "failed",
            Self::Broken => "broken",
            Self::Ending => "ending",
        }
    }
}

impl Board {
    pub(super) fn new() -> Self {
        Self {
            targets_tx: watch::Sender::new(Targets::new()),
            shared: Mutex::default(),
            figures: Figures::new(),
        }
    }

    /// A target that was not there before.
    pub(super) fn enter(&self, pod: &TargetPod) {
        let target = Target {
            pod: pod.name.clone(),
            uid: pod.uid.clone(),
            state: State::Waiting,
            since: SystemTime::now(),
            message: String::new(),
            restarts: 0,
            is_ready: pod.is_ready,
            proxy: None,
        };
        self.figures.enter(&pod.name);
        self.targets_tx
            .send_modify(|targets| _ = targets.insert(pod.uid.clone(), target));
    }

    /// A target that is no more.
    pub(super) fn leave(&self, uid: &str) {
        self.targets_tx.send_modify(|targets| {
            let Some(gone) = targets.remove(uid) else {
                return;
            };
            // A StatefulSet's next pod has the same name, and may be there already.
            if targets.values().all(|target| target.pod != gone.pod) {
                self.figures.leave(&gone.pod);
            }
        });
    }

    /// Says where a target's session is. `since` stays while the state does.
    pub(super) fn set(&self, uid: &str, state: State, message: &str) {
        self.change(uid, |target| {
            if target.state == state && target.message == message {
                return false;
            }
            if target.state != state {
                tracing::info!(pod = target.pod, state = state.word(), message);
                target.state = state;
                target.since = SystemTime::now();
            }
            message.clone_into(&mut target.message);
            true
        });
    }

    /// Says whether the pod may have requests.
    pub(super) fn set_ready(&self, uid: &str, is_ready: bool) {
        self.change(uid, |target| {
            let is_new = target.is_ready != is_ready;
            target.is_ready = is_ready;
            is_new
        });
    }

    /// Says where the target's proxy tells about itself.
    pub(super) fn set_proxy(&self, uid: &str, proxy: Option<SocketAddr>) {
        self.change(uid, |target| {
            let is_new = target.proxy != proxy;
            target.proxy = proxy;
            is_new
        });
    }

    /// Says which proxy serves all targets.
    pub(super) fn set_shared_proxy(&self, shared: Option<(String, SocketAddr)>) {
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = shared;
        // Whoever follows the proxies follows the targets.
        self.targets_tx.send_modify(|_| {});
    }

    /// A session is to be started anew.
    pub(super) fn restarts(&self, uid: &str, cause: &Cause) {
        self.change(uid, |target| {
            target.restarts += 1;
            self.figures.restarted(&target.pod, cause.reason());
            true
        });
    }

    /// A probe took so long.
    pub(super) fn probed(&self, pod: &str, took: Duration) {
        self.figures.probed(pod, took);
    }

    /// Whether requests of every ready pod are taken: the one word, or why not.
    pub(super) fn readiness(&self) -> Result<(), String> {
        readiness(&self.targets_tx.borrow())
    }

    /// The numbers of attach itself.
    pub(super) fn figures(&self) -> String {
        let targets = self.targets_tx.borrow();
        // Of two pods of one name, the one that stays is told last.
        let (going, staying): (Vec<_>, Vec<_>) = targets
            .values()
            .partition(|target| target.state == State::Ending);
        self.figures.text(going.into_iter().chain(staying))
    }

    /// All targets, by name.
    pub(super) fn targets(&self) -> Vec<Target> {
        let mut targets: Vec<_> = self.targets_tx.borrow().values().cloned().collect();
        targets.sort_by(|one, other| one.pod.cmp(&other.pod));
        targets
    }

    pub(super) fn watch(&self) -> watch::Receiver<Targets> {
        self.targets_tx.subscribe()
    }

    /// Where the proxies tell about themselves, by the name of their pod.
    pub(super) fn proxies(&self) -> Vec<(String, SocketAddr)> {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        match &*shared {
            Some(shared) => vec![shared.clone()],
            None => proxies(&self.targets_tx.borrow()),
        }
    }

    fn change(&self, uid: &str, change: impl FnOnce(&mut Target) -> bool) {
        self.targets_tx
            .send_if_modified(|targets| targets.get_mut(uid).is_some_and(change));
    }
}

/// Where the proxies tell about themselves, by the name of their pod.
fn proxies(targets: &Targets) -> Vec<(String, SocketAddr)> {
    let mut proxies: Vec<_> = targets
        .values()
        .filter_map(|target| Some((target.pod.clone(), target.proxy?)))
        .collect();
    proxies.sort();
    proxies
}

/// No ready pod at all is no readiness: nothing has been proven.
fn readiness(targets: &Targets) -> Result<(), String> {
    let ready: Vec<_> = targets.values().filter(|target| target.is_ready).collect();
    if ready.is_empty() {
        return Err(match targets.len() {
            0 => "no target pod".to_owned(),
            count => format!("none of {count} target pods is ready"),
        });
    }
    let missing: Vec<_> = ready
        .iter()
        .filter(|target| target.state != State::Live)
        .collect();
    let Some(first) = missing.first() else {
        return Ok(());
    };
    let live = ready.len() - missing.len();
    let word = first.state.word();
    let why = match first.message.as_str() {
        "" => format!("{} is {word}", first.pod),
        message => format!("{} is {word}: {message}", first.pod),
    };
    Err(format!(
        "{live} of {} ready target pods are live; {why}",
        ready.len()
    ))
}

fn time<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*time))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::telepresence::AgentPorts;

    fn pod(name: &str, is_ready: bool) -> TargetPod {
        TargetPod {
            name: name.into(),
            uid: format!("uid-{name}"),
            address: None,
            container: "app".into(),
            container_id: None,
            is_ready,
            is_leaving: false,
            agent: AgentPorts::default(),
            is_bent: false,
        }
    }

    #[test]
    fn ready_means_that_every_ready_pod_is_live_and_there_is_one() {
        let board = Board::new();
        assert_eq!(board.readiness(), Err("no target pod".into()));
        board.enter(&pod("a", false));
        assert_eq!(
            board.readiness(),
            Err("none of 1 target pods is ready".into())
        );

        board.enter(&pod("b", true));
        board.set("uid-b", State::Live, "");
        assert_eq!(board.readiness(), Ok(()));

        board.set_ready("uid-a", true);
        board.set("uid-a", State::Occupied, "by another");
        assert_eq!(
            board.readiness(),
            Err("1 of 2 ready target pods are live; a is occupied: by another".into())
        );

        board.leave("uid-a");
        assert_eq!(board.readiness(), Ok(()));
    }

    #[test]
    fn since_is_when_the_state_changed_and_not_its_message() {
        let board = Board::new();
        board.enter(&pod("a", true));
        board.set("uid-a", State::Occupied, "by one");
        let since = board.targets()[0].since;

        board.set("uid-a", State::Occupied, "by another");

        let target = &board.targets()[0];
        assert_eq!(
            (target.since, target.message.as_str()),
            (since, "by another")
        );
    }

    #[test]
    fn a_target_is_told_as_the_interface_says() {
        let board = Board::new();
        board.enter(&pod("a", true));
        board.restarts("uid-a", &Cause::AgentGone);
        board.set("uid-a", State::Lost, "gone");

        let told = serde_json::to_value(board.targets()).unwrap();

        let since = told[0]["since"].clone();
        assert!(since.as_str().unwrap().ends_with('Z'));
        assert_eq!(
            told,
            serde_json::json!([{
                "pod": "a", "uid": "uid-a", "state": "lost", "since": since, "message": "gone",
                "restarts": 1,
            }])
        );
    }
    #[test]
    fn a_targets_series_go_with_it() {
        let board = Board::new();
        board.enter(&pod("a", true));
        board.enter(&pod("b", true));
        board.set("uid-a", State::Live, "");
        board.restarts("uid-a", &Cause::AgentGone);
        board.probed("a", Duration::from_millis(3));
        let text = board.figures();
        for line in [
            r#"session_proxy_target_state{state="live",target="a"} 1"#,
            r#"session_proxy_target_state{state="waiting",target="a"} 0"#,
            r#"session_proxy_target_restarts_total{reason="agent-gone",target="a"} 1"#,
            r#"session_proxy_target_probe_seconds_count{target="a"} 1"#,
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }

        board.leave("uid-a");

        let text = board.figures();
        assert!(!text.contains("\"a\""), "{text}");
        assert!(text.contains("target=\"b\""), "{text}");
    }

    #[test]
    fn all_who_ask_at_the_same_moment_are_told_all_states() {
        let board = Board::new();
        board.enter(&pod("a", true));
        board.set("uid-a", State::Live, "");
        let live = r#"session_proxy_target_state{state="live",target="a"} 1"#;

        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        assert!(board.figures().contains(live));
                    }
                });
            }
        });
    }

    #[test]
    fn the_next_pod_of_the_same_name_keeps_its_series() {
        let board = Board::new();
        board.enter(&pod("a", true));
        board.set("uid-a", State::Ending, "");
        board.enter(&TargetPod {
            uid: "other".into(),
            ..pod("a", true)
        });
        board.set("other", State::Live, "");
        board.probed("a", Duration::from_millis(3));
        let live = r#"session_proxy_target_state{state="live",target="a"} 1"#;
        assert!(board.figures().contains(live));

        board.leave("uid-a");

        let text = board.figures();
        assert!(text.contains(live), "{text}");
        assert!(
            text.contains(r#"probe_seconds_count{target="a"} 1"#),
            "{text}"
        );
    }
}
