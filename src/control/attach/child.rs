//! A program that we start: one `mirrord exec` and the proxy that it becomes, the same process, under
//! mirrord's layer; or a proxy alone, or Telepresence's client.
//!
//! What it says is passed on with a name before it, and the last of it kept: it is all that tells why it
//! ended.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::timeout;

use super::household::{Household, Resident};

/// Lines kept of what a child said.
const KEPT: usize = 200;

/// How long the last words of an ended child may take to reach us.
const ON_ITS_WAY: Duration = Duration::from_millis(500);

/// What a line of mirrord's progress begins with.
const PROGRESS: &str = "mirrord: ";

/// No line is read further; the rest of it becomes the next one.
const LONGEST_LINE: u64 = 64 * 1024;

/// The programs that a child is made of.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    pub mirrord: PathBuf,
    pub telepresence: PathBuf,
    /// Where telepresence's daemon listens.
    pub telepresence_socket: PathBuf,
    /// Ourselves.
    pub proxy: PathBuf,
    /// The proxy's `--log`.
    pub log: String,
    /// For both; `None`: what the environment says.
    pub kubeconfig: Option<PathBuf>,
}

/// What one child is to do.
#[derive(Debug)]
pub(super) struct Task<'t> {
    pub pod: &'t str,
    /// Names this child and no other.
    pub mark: &'t str,
    pub mirrord_file: &'t Path,
    pub proxy_file: &'t Path,
}

/// A running child. Dropped, it is killed with all that belongs to it.
#[derive(Debug)]
pub(super) struct Child {
    pub resident: Resident,
    pub speech: Speech,
}

/// What a child says.
#[derive(Debug)]
pub(super) struct Speech {
    stage: watch::Receiver<Stage>,
    said: Said,
}

/// How far a child has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// mirrord makes its agent.
    Beginning,
    /// The agent's pod runs; from here on it is a matter of a moment.
    AgentRuns,
    /// mirrord has done its part and becomes the proxy.
    ProxyRuns,
    /// The proxy listens, which under the layer means that the agent has agreed.
    Listening,
}

impl Child {
    /// Starts one.
    ///
    /// # Errors
    /// mirrord cannot be started.
    pub(super) fn start(
        household: &Household,
        programs: &Programs,
        task: &Task<'_>,
    ) -> io::Result<Self> {
        Self::run(household, task.mark, task.pod, &mut command(programs, task))
    }

    /// Starts any program whose outputs are pipes; what it says is passed on behind that name.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn run(
        household: &Household,
        mark: &str,
        name: &str,
        command: &mut Command,
    ) -> io::Result<Self> {
        let mut resident = household.start(mark, command)?;
        let (stage_tx, stage) = watch::channel(Stage::Beginning);
        let said = Said::default();
        let child = resident.child();
        let pipes = [
            child.stdout.take().map(OwnedFd::from),
            child.stderr.take().map(OwnedFd::from),
        ];
        for pipe in pipes.into_iter().flatten() {
            let lines = pipe::Receiver::from_owned_fd(pipe)?;
            let relay = Relay {
                pod: name.to_owned(),
                stage_tx: stage_tx.clone(),
                said: said.clone(),
            };
            // Ends with the pipe, which ends with the last process that holds it.
            tokio::spawn(relay.run(lines));
        }
        Ok(Self {
            resident,
            speech: Speech { stage, said },
        })
    }
}

impl Speech {
    /// Waits until the child has come so far; for ever when it says nothing any more.
    pub(super) async fn reaches(&self, stage: Stage) {
        let mut reached = self.stage.clone();
        if reached.wait_for(|reached| *reached >= stage).await.is_err() {
            std::future::pending().await
        }
    }

    pub(super) fn has_reached(&self, stage: Stage) -> bool {
        *self.stage.borrow() >= stage
    }

    /// What an ended child said last. Its words may still be on their way when it has ended.
    pub(super) async fn last_words(&self) -> Vec<String> {
        let mut stage = self.stage.clone();
        let all = async { while stage.changed().await.is_ok() {} };
        // Another process may have inherited its outputs, and keep them open.
        let _ = timeout(ON_ITS_WAY, all).await;
        self.said.lock().iter().cloned().collect()
    }
}

/// Takes our variables of these prefixes out of what a program will find.
pub(super) fn hide(command: &mut Command, prefixes: &[&str]) {
    for (name, _) in std::env::vars_os() {
        let bytes = name.as_encoded_bytes();
        if prefixes.iter().any(|it| bytes.starts_with(it.as_bytes())) {
            command.env_remove(&name);
        }
    }
}

/// The proxy alone, with nothing around it.
pub(super) fn proxy(programs: &Programs, target: &str, file: &Path) -> Command {
    let mut command = Command::new(&programs.proxy);
    hide(&mut command, &["SESSION_PROXY_"]);
    command
        .args(["run", "--target-name", target, "--workers", "2", "--log"])
        .arg(&programs.log)
        .arg("--config")
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(kubeconfig) = &programs.kubeconfig {
        command.env("KUBECONFIG", kubeconfig);
    }
    command
}

fn command(programs: &Programs, task: &Task<'_>) -> Command {
    let mut command = Command::new(&programs.mirrord);
    // What configures us must not configure the child behind the back of its file, and what
    // configures another mirrord must not configure this one.
    hide(&mut command, &["SESSION_PROXY_", "MIRRORD_"]);
    command
        .args(["exec", "-f"])
        .arg(task.mirrord_file)
        .arg("--")
        .arg(&programs.proxy)
        .args(["run", "--target-name", task.pod, "--workers", "1", "--log"])
        .arg(&programs.log)
        .arg("--config")
        .arg(task.proxy_file)
        .env("MIRRORD_PROGRESS_MODE", "json")
        .env("MIRRORD_CHECK_VERSION", "false")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(kubeconfig) = &programs.kubeconfig {
        command.env("KUBECONFIG", kubeconfig);
    }
    command
}

/// The last lines of both outputs.
#[derive(Debug, Clone, Default)]
struct Said(Arc<Mutex<VecDeque<String>>>);

impl Said {
    fn lock(&self) -> MutexGuard<'_, VecDeque<String>> {
        // Lines are sound after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, line: &str) {
        let mut lines = self.lock();
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }
}

/// Takes the lines of one output.
struct Relay {
    pod: String,
    stage_tx: watch::Sender<Stage>,
    said: Said,
}

impl Relay {
    async fn run(self, pipe: impl AsyncRead + Unpin) {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while let Ok(1..) = (&mut pipe)
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut line)
            .await
        {
            let text = printable(&line);
            line.clear();
            if let Some(text) = told(&text) {
                self.pass_on(&text);
            }
        }
    }

    fn pass_on(&self, line: &str) {
        self.said.keep(line);
        let stage = match line {
            "ready" => Stage::Listening,
            _ if line.starts_with(PROGRESS) && line.ends_with("Ready!") => Stage::ProxyRuns,
            _ if line.to_ascii_lowercase().contains("pod is ready") => Stage::AgentRuns,
            _ => Stage::Beginning,
        };
        self.stage_tx.send_if_modified(|reached| {
            let is_further = stage > *reached;
            *reached = stage.max(*reached);
            is_further
        });
        // Nobody may read our log, which ends nothing.
        let _ = writeln!(io::stderr().lock(), "{} | {line}", self.pod);
    }
}

/// A line without what could steer a terminal: mirrord's agent passes on what it was sent.
pub(super) fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.trim_end()
        .chars()
        .map(|c| {
            if c.is_control() && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// What a line tells a person. mirrord's progress is one JSON object per line; of that, what
/// happened, not what is about to.
fn told(line: &str) -> Option<String> {
    let Ok(Value::Object(progress)) = serde_json::from_str(line) else {
        return (!line.is_empty()).then(|| line.to_owned());
    };
    let text = |key: &str| progress.get(key).and_then(Value::as_str);
    match text("type") {
        Some("NewTask" | "IdeMessage") => None,
        Some("FinishedTask") => {
            let name = text("name").unwrap_or_default();
            let outcome = match progress.get("success") {
                Some(Value::Bool(false)) => "failed",
                _ => "done",
            };
            let message = text("message").unwrap_or(outcome);
            Some(format!("{PROGRESS}{name}: {message}"))
        }
        Some("Warning" | "Info") => text("message").map(|message| format!("{PROGRESS}{message}")),
        _ => Some(line.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_in_words() {
        for (line, expected) in [
            (
                r#"{"type":"NewTask","name":"mirrord exec","parent":null}"#,
                None,
            ),
            (
                r#"{"type":"FinishedTask","name":"waiting for pod to be ready...","success":true,"message":"pod is ready"}"#,
                Some("mirrord: waiting for pod to be ready...: pod is ready"),
            ),
            (
                r#"{"type":"FinishedTask","name":"create agent","success":false,"message":null}"#,
                Some("mirrord: create agent: failed"),
            ),
            (
                r#"{"type":"Warning","message":"careful"}"#,
                Some("mirrord: careful"),
            ),
            (r#"{"level":"info"}"#, Some(r#"{"level":"info"}"#)),
            ("ready", Some("ready")),
            ("", None),
        ] {
            assert_eq!(told(line).as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn nothing_that_a_child_says_steers_a_terminal() {
        assert_eq!(
            printable(b"a\x1b[31m\tb\x07\r\n"),
            "a\u{fffd}[31m\tb\u{fffd}"
        );
    }
}
