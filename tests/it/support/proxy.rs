//! The real binary, started on free ports and ended with the test.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::config::ConfigFile;
use super::metrics::Metrics;
use super::raw;
use super::request::Answer;
use super::upstream::Upstream;
use super::{PATIENCE, eventually};

/// A running proxy.
pub struct Proxy {
    child: Child,
    pub config: ConfigFile,
    stdout: Lines,
    stderr: Lines,
    listeners: HashMap<String, SocketAddr>,
    admin: Option<SocketAddr>,
}

/// How to start a proxy: a configuration file in parts, or as a whole, and what else it is given.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// The whole file; without one it is written from the parts below.
    yaml: Option<String>,
    mounted: bool,
    baseline: Option<String>,
    listener: Vec<String>,
    sessions: Vec<(String, String)>,
    top: Vec<String>,
    flags: Vec<String>,
    env: Vec<(String, String)>,
    no_file: bool,
}

/// What a process has printed, line by line.
#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<Vec<String>>>);

impl Proxy {
    /// One listener, `http`, with that baseline and a session for each of the others.
    pub async fn routing(baseline: &Upstream, sessions: &[(&str, &Upstream)]) -> Self {
        let mut setup = Setup::new().baseline(baseline.address);
        for (name, upstream) in sessions {
            setup = setup.session(name, upstream.address);
        }
        setup.start().await
    }

    /// One listener, `http`, and no sessions.
    pub async fn sending_everything_to(upstream: &Upstream) -> Self {
        Self::routing(upstream, &[]).await
    }

    /// A proxy with that configuration file; its listeners should bind port 0.
    pub async fn from_yaml(text: &str) -> Self {
        Setup::new().yaml(text).start().await
    }

    /// The real address of a listener.
    pub fn addr(&self, listener: &str) -> SocketAddr {
        *self
            .listeners
            .get(listener)
            .unwrap_or_else(|| panic!("no listener {listener}: {:?}", self.listeners))
    }

    /// The real address of the listener `http`, or of the only one.
    pub fn http(&self) -> SocketAddr {
        match self.listeners.values().next() {
            Some(only) if self.listeners.len() == 1 => *only,
            _ => self.addr("http"),
        }
    }

    /// The real address of the admin port.
    pub fn admin(&self) -> SocketAddr {
        self.admin.expect("this proxy has an admin port")
    }

    /// GET on the admin port.
    pub async fn ask_admin(&self, path: &str) -> Answer {
        let head = format!(
            "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
            self.admin()
        );
        raw::exchange(self.admin(), head).await
    }

    pub async fn metrics(&self) -> Metrics {
        Metrics {
            text: self.ask_admin("/metrics").await.text(),
        }
    }

    /// The sum of all series of that name which carry these labels.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.metrics().await.sum(name, labels)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name: `TERM`, `HUP`, `KILL`, ...
    pub fn signal(&self, name: &str) {
        // The shell's own `kill`: an image without procps has it too.
        let sent = Command::new("sh")
            .args(["-c", &format!("kill -{name} {}", self.pid())])
            .status();
        assert!(
            sent.expect("there is a shell").success(),
            "{name} could not be sent"
        );
    }

    /// The exit status; panics when the process does not end in time.
    pub async fn wait_exit(&mut self, timeout: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(start.elapsed() < timeout, "still running after {timeout:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("a child can be waited for")
            .is_none()
    }

    /// Resident memory, in KiB.
    pub fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .expect("the process lives");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("Linux says VmRSS");
        line.trim()
            .trim_end_matches(" kB")
            .parse()
            .expect("a number of KiB")
    }

    /// What was printed to stdout so far.
    pub fn stdout(&self) -> Vec<String> {
        self.stdout.all()
    }

    /// What was printed to stderr so far.
    pub fn stderr(&self) -> Vec<String> {
        self.stderr.all()
    }

    /// How many lines on stderr hold `text` so far.
    pub fn times_logged(&self, text: &str) -> usize {
        let lines = self.stderr.all();
        lines.iter().filter(|line| line.contains(text)).count()
    }

    /// Waits for a line on stderr which holds `text`.
    pub async fn logged(&self, text: &str) {
        eventually(&format!("stderr says {text:?}"), || {
            self.stderr.all().iter().any(|line| line.contains(text))
        })
        .await;
    }

    fn spawn(setup: &Setup) -> Self {
        let text = setup.text();
        let config = if setup.mounted {
            ConfigFile::mounted(&text)
        } else {
            ConfigFile::plain(&text)
        };
        let mut command = Command::new(binary());
        command.arg("run").args(["--admin", "127.0.0.1:0"]);
        if !setup.no_file {
            command.arg("--config").arg(config.path());
        }
        command.args(&setup.flags).envs(setup.env.iter().cloned());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary can be started");
        let stdout = Lines::of(child.stdout.take().expect("stdout is piped"));
        let stderr = Lines::of(child.stderr.take().expect("stderr is piped"));
        Self {
            child,
            config,
            stdout,
            stderr,
            listeners: HashMap::new(),
            admin: None,
        }
    }

    /// Waits until a proxy that was only spawned is ready.
    pub async fn wait_ready(&mut self) {
        let start = Instant::now();
        while !self.stdout.all().iter().any(|line| line == "ready") {
            assert!(self.is_running(), "the proxy ended before it was ready");
            assert!(start.elapsed() < PATIENCE, "the proxy is not ready");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        for line in self.stdout.all() {
            let words: Vec<_> = line.split(' ').collect();
            match words[..] {
                ["listening", "on", name, address, _protocol] => {
                    let address = address.parse().expect("the ready line holds an address");
                    self.listeners.insert(name.to_owned(), address);
                }
                ["admin", "on", address] => {
                    self.admin = Some(address.parse().expect("the ready line holds an address"));
                }
                _ => {}
            }
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended by itself, which is no fault here.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- stdout of the proxy\n{}", self.stdout.all().join("\n"));
            eprintln!("--- stderr of the proxy\n{}", self.stderr.all().join("\n"));
        }
    }
}

impl Setup {
    pub fn new() -> Self {
        Self::default()
    }

    /// The whole configuration file.
    pub fn yaml(self, text: &str) -> Self {
        Self {
            yaml: Some(text.to_owned()),
            ..self
        }
    }

    /// Flags alone, no file.
    pub fn without_file(self) -> Self {
        Self {
            no_file: true,
            ..self
        }
    }

    /// Lays the file out as a mounted ConfigMap.
    pub fn mounted(self) -> Self {
        Self {
            mounted: true,
            ..self
        }
    }

    pub fn baseline(self, address: SocketAddr) -> Self {
        Self {
            baseline: Some(format!("{:?}", address.to_string())),
            ..self
        }
    }

    /// One more key of the listener `http`: `onUnavailable: baseline`.
    pub fn listener(mut self, key: &str) -> Self {
        self.listener.push(key.to_owned());
        self
    }

    pub fn session(self, name: &str, address: SocketAddr) -> Self {
        self.session_yaml(name, &format!("{:?}", address.to_string()))
    }

    /// A session in the file's own words: `{ endpoints: [...], protocol: h1 }`.
    pub fn session_yaml(mut self, name: &str, yaml: &str) -> Self {
        self.sessions.push((name.to_owned(), yaml.to_owned()));
        self
    }

    /// One more top-level line: `timeouts: { responseHeaders: 200ms }`.
    pub fn top(mut self, line: &str) -> Self {
        self.top.push(line.to_owned());
        self
    }

    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The configuration file.
    pub fn text(&self) -> String {
        if let Some(yaml) = &self.yaml {
            return yaml.clone();
        }
        let mut text =
            "listeners:\n  - name: http\n    address: \"127.0.0.1:0\"\n    protocol: http\n"
                .to_owned();
        let baseline = self
            .baseline
            .iter()
            .map(|baseline| format!("baseline: {baseline}"));
        for key in baseline.chain(self.listener.iter().cloned()) {
            writeln!(text, "    {key}").expect("a string grows");
        }
        if !self.sessions.is_empty() {
            text.push_str("sessions:\n");
        }
        for (name, yaml) in &self.sessions {
            writeln!(text, "  {name:?}: {yaml}").expect("a string grows");
        }
        for line in &self.top {
            writeln!(text, "{line}").expect("a string grows");
        }
        text
    }

    /// Starts the proxy and waits until it is ready.
    pub async fn start(self) -> Proxy {
        let mut proxy = Proxy::spawn(&self);
        proxy.wait_ready().await;
        proxy
    }

    /// Starts a proxy that is not expected to become ready.
    pub fn spawn(self) -> Proxy {
        Proxy::spawn(&self)
    }
}

impl Lines {
    /// Collects the lines of a pipe, on a thread that ends with it.
    pub fn of(pipe: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let collected = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                collected
                    .0
                    .lock()
                    .expect("no test panics with it")
                    .push(line);
            }
        });
        lines
    }

    pub fn all(&self) -> Vec<String> {
        self.0.lock().expect("no test panics with it").clone()
    }
}

/// A session at that upstream, spoken to in one protocol: for [`Setup::session_yaml`].
pub fn speaking(protocol: &str, upstream: &Upstream) -> String {
    format!(
        "{{ endpoints: [\"{}\"], protocol: {protocol} }}",
        upstream.address
    )
}

/// The binary under test; `SESSION_PROXY_BIN` names another build.
pub fn binary() -> String {
    std::env::var("SESSION_PROXY_BIN")
        .unwrap_or_else(|_| env!("CARGO_BIN_EXE_session-proxy").to_owned())
}
