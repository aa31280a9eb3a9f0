//! A command of the cluster side, run as a person or a pipeline runs it.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::found;

/// How long a command may take before it counts as hung. Some wait for a deadline of their own.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running command. Killed when dropped.
pub struct Run {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
    stderr: Option<JoinHandle<()>>,
    stdout: Option<JoinHandle<String>>,
}

/// How it ended, and what it has printed.
#[derive(Debug)]
pub struct Ended {
    /// `None`: by a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// Starts it with these arguments and nothing else of the environment than this kubeconfig.
    pub fn start<A: Into<OsString>>(
        kubeconfig: &Path,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_session-proxy"))
            .args(arguments.into_iter().map(Into::into))
            .env_clear()
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary was built");
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = said.clone();
        let stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut stdout = child.stdout.take().expect("it is piped");
        Self {
            child,
            said,
            stderr: Some(std::thread::spawn(move || {
                for line in stderr.lines().map_while(Result::ok) {
                    heard.lock().expect("nobody panics here").push(line);
                }
            })),
            stdout: Some(std::thread::spawn(move || {
                let mut text = String::new();
                // What is not text fails the test that looks at it.
                let _ = stdout.read_to_string(&mut text);
                text
            })),
        }
    }

    /// What it has said on standard error so far.
    pub fn said(&self) -> String {
        self.said.lock().expect("nobody panics here").join("\n")
    }

    /// Waits until it has said this.
    pub async fn says(&self, text: &str) {
        let what = format!("{text:?} is said");
        found(&what, async || self.said().contains(text).then_some(())).await;
    }

    /// Sends a signal by name: `INT`, `TERM`.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        let sent = Command::new("sh").args(["-c", &kill]).status();
        assert!(sent.expect("there is a shell").success(), "{kill}");
    }

    /// Waits until it ends.
    pub async fn end(mut self) -> Ended {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                break status;
            }
            assert!(start.elapsed() < PATIENCE, "it hangs:\n{}", self.said());
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let stdout = self.stdout.take().expect("it is read once").join();
        let heard = self.stderr.take().expect("it is read once").join();
        heard.expect("reading does not panic");
        Ended {
            code: status.code(),
            stdout: stdout.expect("reading does not panic"),
            stderr: self.said(),
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // It has mostly ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// Panics unless it went well.
    pub fn well(self) -> Self {
        assert_eq!(self.code, Some(0), "{self}");
        self
    }

    /// Panics unless it failed, and said each of these.
    pub fn failed(self, code: i32, reasons: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        for reason in reasons {
            assert!(self.stderr.contains(reason), "no {reason:?} in\n{self}");
        }
        self
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            code,
            stdout,
            stderr,
        } = self;
        write!(f, "exit code {code:?}\n{stderr}\n-- stdout:\n{stdout}")
    }
}
