//! The processes below us: those we started, and orphans that came to us when their parents ended.
//!
//! As the first process of a pod we inherit every orphan, and nobody else will fetch what is left
//! of one that ended. mirrord's sender is always such an orphan: it outlives the program it serves
//! by some seconds, and must, so that the agent can end its work. Only what nobody else waits for is
//! fetched here: a status taken from its owner would be lost.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::signal::{self, Signal};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};
use tokio::time::{sleep, timeout};
use tracing::debug;

/// A zombie that nobody fetched for so long has nobody who will.
const UNCLAIMED: Duration = Duration::from_secs(1);

/// Names the session that a process belongs to. mirrord's sender inherits it.
const MARK: &str = "SESSION_PROXY_ATTACHED";

/// Who of the processes below us is waited for.
#[derive(Debug, Clone, Default)]
pub(super) struct Household {
    started: Arc<Mutex<HashSet<i32>>>,
}

/// A process that we started, and whoever it leaves behind. Killed when dropped.
#[derive(Debug)]
pub(super) struct Resident {
    child: Child,
    mark: String,
    household: Household,
}

impl Household {
    /// From now on orphans below us come to us, as they come to the first process of a pod.
    ///
    /// # Errors
    /// The kernel does not know how.
    pub(super) fn found() -> io::Result<Self> {
        prctl::set_child_subreaper(true)?;
        Ok(Self::default())
    }

    /// Starts a process in a group of its own, so that a Ctrl-C at the terminal reaches it through
    /// us alone. `mark` must name it and nothing else.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn start(&self, mark: &str, command: &mut Command) -> io::Result<Resident> {
        let mut started = self.started();
        let child = command.env(MARK, mark).process_group(0).spawn()?;
        started.insert(pid_of(&child).as_raw());
        Ok(Resident {
            child,
            mark: mark.to_owned(),
            household: self.clone(),
        })
    }

    /// Fetches what is left of orphans, for ever.
    pub(super) async fn reap(self) {
        let mut seen = HashSet::new();
        loop {
            sleep(UNCLAIMED).await;
            let zombies = self.zombies();
            for &zombie in zombies.intersection(&seen) {
                let fetched = waitpid(Pid::from_raw(zombie), Some(WaitPidFlag::WNOHANG));
                debug!(pid = zombie, ?fetched, "an orphan ended");
            }
            seen = zombies;
        }
    }

    /// What is left of our children which we did not start.
    fn zombies(&self) -> HashSet<i32> {
        let own = std::process::id().cast_signed();
        let started = self.started();
        processes()
            .filter_map(|pid| Some((pid, standing(pid)?)))
            .filter(|(pid, (state, parent))| {
                *parent == own && *state == 'Z' && !started.contains(pid)
            })
            .map(|(pid, _)| pid)
            .collect()
    }

    fn started(&self) -> MutexGuard<'_, HashSet<i32>> {
        // A set of numbers is sound after any panic.
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resident {
    pub(super) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits until the process has ended; those it leaves behind may live on.
    pub(super) async fn ended(&mut self) -> ExitStatus {
        let mut children = child_signals();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status,
                // It was fetched by somebody else, which nobody here does.
                Err(_) => return ExitStatus::default(),
                Ok(None) => {}
            }
            // A signal may come before we listen for the next one: look again now and then.
            let _ = timeout(Duration::from_secs(1), next(&mut children)).await;
        }
    }

    /// Asks the process to end.
    pub(super) fn terminate(&mut self) {
        if self.lives() {
            let _ = signal::kill(pid_of(&self.child), Signal::SIGTERM);
        }
    }

    /// Ends the process and all that carry its mark, whatever they are doing.
    pub(super) fn kill(&mut self) {
        if self.lives() {
            let _ = signal::killpg(pid_of(&self.child), Signal::SIGKILL);
        }
        for pid in marked(&self.mark) {
            let _ = signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    /// Whether its number is still its own.
    pub(super) fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until nothing that carries its mark lives any more.
    pub(super) async fn gone(&self) {
        while !marked(&self.mark).is_empty() {
            sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        if self.lives() {
            self.kill();
        }
        // From here on it is an orphan like the others.
        self.household
            .started()
            .remove(&pid_of(&self.child).as_raw());
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// `None`: this runtime has no signals, and looking now and then must do.
fn child_signals() -> Option<Signals> {
    signal(SignalKind::child()).ok()
}

async fn next(signals: &mut Option<Signals>) {
    match signals {
        Some(signals) => _ = signals.recv().await,
        None => sleep(Duration::from_millis(100)).await,
    }
}

/// Living processes with that mark in their environment.
fn marked(mark: &str) -> Vec<i32> {
    let wanted = format!("{MARK}={mark}");
    let carries = |pid: &i32| {
        // A zombie has none left, and that of another user is not ours to read.
        fs::read(format!("/proc/{pid}/environ")).is_ok_and(|all| {
            all.split(|&byte| byte == 0)
                .any(|one| one == wanted.as_bytes())
        })
    };
    processes().filter(carries).collect()
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// State and parent of a process (proc(5)): its name may hold anything, blanks and parentheses too.
fn standing(pid: i32) -> Option<(char, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut words = rest.split(' ');
    Some((words.next()?.chars().next()?, words.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null());
        command
    }

    async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
        for _ in 0..1000 {
            if condition() {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("never came true: {what}");
    }

    #[tokio::test]
    async fn an_orphan_is_fetched_and_no_status_is_stolen() {
        let household = Household::found().unwrap();
        tokio::spawn(household.clone().reap());
        let folder = tempfile::tempdir().unwrap();
        let note = folder.path().join("orphan");
        let script = format!(
            "sleep 0.2 & echo $! > {0}.new; mv {0}.new {0}; exit 7",
            note.display()
        );

        let mut resident = household.start("orphan", &mut shell(&script)).unwrap();
        // It is a zombie for much longer than an orphan may be one.
        eventually("the orphan is known", || note.exists()).await;
        let orphan: i32 = fs::read_to_string(&note).unwrap().trim().parse().unwrap();
        eventually("the orphan is fetched", || standing(orphan).is_none()).await;

        assert_eq!(resident.ended().await.code(), Some(7));
    }

    #[tokio::test]
    async fn killing_one_ends_what_it_left_in_a_session_of_its_own() {
        let household = Household::found().unwrap();
        let mark = format!("kill-{}", std::process::id());
        let other = format!("other-{}", std::process::id());
        let detached = "setsid sleep 60 & exec sleep 60";
        let mut resident = household.start(&mark, &mut shell(detached)).unwrap();
        let mut spared = household
            .start(&other, &mut shell("exec sleep 60"))
            .unwrap();
        eventually("both run", || marked(&mark).len() == 2).await;

        resident.kill();

        assert_eq!(resident.ended().await.code(), None);
        timeout(Duration::from_secs(5), resident.gone())
            .await
            .unwrap();
        assert_eq!(marked(&other).len(), 1);
        spared.terminate();
        assert_eq!(spared.ended().await.code(), None);
    }

    #[tokio::test]
    async fn one_that_is_dropped_is_killed() {
        let household = Household::found().unwrap();
        let mark = format!("drop-{}", std::process::id());
        let resident = household.start(&mark, &mut shell("exec sleep 60")).unwrap();
        eventually("it runs", || marked(&mark).len() == 1).await;

        drop(resident);

        eventually("it is gone", || marked(&mark).is_empty()).await;
    }
}
