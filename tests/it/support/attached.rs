//! A running `session-proxy attach`, as the first process of a proxy pod would be.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::metrics::Metrics;
use super::proxy::{Lines, binary};
use super::raw;
use super::request::Answer;
use super::staging::Staging;
use super::{PATIENCE, eventually};

/// What the process is told of its world.
pub struct Setting {
    pub intercept: PathBuf,
    pub mirrord: PathBuf,
    pub kubeconfig: PathBuf,
    /// For temporary files: who is killed takes none away.
    pub temp: PathBuf,
}

/// The process; killed with all its children when it is dropped.
pub struct Attached {
    process: Child,
    stdout: Lines,
    stderr: Lines,
    admin: SocketAddr,
}

impl Attached {
    /// Started with the uid `proxy-1`.
    pub async fn to(staging: &Staging) -> Self {
        Self::with(staging, "proxy-1", &[]).await
    }

    /// Started with that uid and these flags.
    pub async fn with(staging: &Staging, uid: &str, flags: &[&str]) -> Self {
        Self::run(command(&staging.setting(), uid, flags)).await
    }

    pub async fn run(mut command: Command) -> Self {
        let mut process = command.spawn().expect("the binary can be started");
        let stdout = Lines::of(process.stdout.take().expect("stdout is piped"));
        let stderr = Lines::of(process.stderr.take().expect("stderr is piped"));
        let mut attached = Self {
            process,
            stdout,
            stderr,
            admin: SocketAddr::from(([0, 0, 0, 0], 0)),
        };
        eventually("the admin port is told", || {
            let lines = attached.stdout.all();
            let told = lines.iter().find_map(|line| line.strip_prefix("admin on "));
            told.is_some_and(|told| {
                attached.admin = told.parse().expect("an address");
                true
            })
        })
        .await;
        attached
    }

    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// GET on the admin port.
    pub async fn get(&self, path: &str) -> Answer {
        let head = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", self.admin);
        raw::exchange(self.admin, head).await
    }

    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let text = self.get("/metrics").await.text();
        Metrics { text }.sum(name, labels)
    }

    /// What `/targets` says of that pod; null when it is none.
    pub async fn target(&self, pod: &str) -> Value {
        let targets = self.get("/targets").await.json();
        let mut all = targets["targets"].as_array().expect("a list").iter();
        all.find(|target| target["pod"] == pod)
            .cloned()
            .unwrap_or(Value::Null)
    }

    /// Waits until the pod's session is in that state, and returns what is said of it.
    pub async fn reaches(&self, pod: &str, state: &str) -> Value {
        self.reaches_within(pod, state, PATIENCE).await
    }

    pub async fn reaches_within(&self, pod: &str, state: &str, patience: Duration) -> Value {
        let start = Instant::now();
        loop {
            let target = self.target(pod).await;
            if target["state"] == state {
                return target;
            }
            assert!(start.elapsed() < patience, "{pod} is not {state}: {target}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until there was a restart for that reason, and the session is live again.
    pub async fn recovers(&self, pod: &str, reason: &str) {
        let name = "session_proxy_target_restarts_total";
        let start = Instant::now();
        while self
            .metric(name, &[("target", pod), ("reason", reason)])
            .await
            < 1.0
        {
            assert!(
                start.elapsed() < PATIENCE,
                "no restart of {pod} because of {reason}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.reaches(pod, "live").await;
    }

    /// Waits until `/readyz` says that.
    pub async fn readiness(&self, status: u16, text: &str) {
        let start = Instant::now();
        loop {
            let answer = self.get("/readyz").await;
            let said = answer.text();
            if answer.status == status && said.contains(text) {
                return;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "/readyz says {}: {said}",
                answer.status
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Sends a signal by name, if the process is still there.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {} 2>&-", self.pid());
        let sent = Command::new("sh").args(["-c", &kill]).status();
        sent.expect("there is a shell");
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub async fn wait_exit(&mut self, patience: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(
                start.elapsed() < patience,
                "still running after {patience:?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn stderr(&self) -> String {
        self.stderr.all().join("\n")
    }

    /// Its children, and those that it inherited: pid and state.
    pub fn children(&self) -> Vec<(u32, char)> {
        children(self.pid())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // Its children are not told by the kernel that it is gone.
        let mut left: Vec<u32> = self.children().iter().map(|(pid, _)| *pid).collect();
        let grandchildren: Vec<_> = left.iter().flat_map(|pid| children(*pid)).collect();
        left.extend(grandchildren.iter().map(|(pid, _)| pid));
        let _ = self.process.kill();
        let _ = self.process.wait();
        for pid in left {
            let _ = Command::new("sh")
                .args(["-c", &format!("kill -KILL {pid} 2>&-")])
                .status();
        }
        if std::thread::panicking() {
            eprintln!("--- stderr of attach\n{}", self.stderr());
        }
    }
}

/// The command line, without having been run.
pub fn command(setting: &Setting, uid: &str, flags: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command
        .args([
            "attach",
            "--admin",
            "127.0.0.1:0",
            "--log",
            "info,session_proxy=debug",
        ])
        .arg("--intercept")
        .arg(&setting.intercept)
        .arg("--mirrord")
        .arg(&setting.mirrord)
        .arg("--kubeconfig")
        .arg(&setting.kubeconfig)
        .args(["--local-ports", &local_ports().to_string()])
        .args(flags)
        .env("POD_UID", uid)
        .env("TMPDIR", &setting.temp)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Below the ports that the kernel gives to others, and apart from those of other tests.
pub fn local_ports() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let of_process = u16::try_from(std::process::id() % 40).expect("small") * 256;
    let of_test = NEXT.fetch_add(1, Ordering::SeqCst) % 16 * 16;
    20_000 + of_process + of_test
}

fn children(parent: u32) -> Vec<(u32, char)> {
    let processes = std::fs::read_dir("/proc").expect("Linux").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(") ")?;
        let mut words = rest.split(' ');
        let state = words.next()?.chars().next()?;
        let of = words.next()?.parse::<u32>().ok()?;
        (of == parent).then_some((pid, state))
    })
    .collect()
}
