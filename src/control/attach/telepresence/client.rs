//! Telepresence's own client: its daemon, and the commands that are said to it.
//!
//! All that it keeps is in a folder of its own. It is the real executable; what it is told beside its
//! command line is in [`daemon`](super::daemon).
//!
//! The traffic manager keeps a session, and the intercepts in it, long after its client was killed: a day
//! unless it was told otherwise, and all that time nobody answers the app's requests. So the session is
//! taken up again by the next client: from the daemon's own notes, which outlive our container, or, where
//! these are lost, by the name that the traffic manager gives when it refuses us.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use regex::Regex;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::daemon::Connect;
use crate::control::attach::cause::Cause;
use crate::control::attach::child::{Child, hide, printable};
use crate::control::attach::ports::Taken;
use crate::control::attach::session::Post;
use crate::control::intercept::{Intercept, Telepresence};

/// Name of the connection.
const CONNECTION: &str = "session-proxy";

/// How long the daemon may take to listen.
const DAEMON_PATIENCE: Duration = Duration::from_secs(15);

/// How long it may take to connect: to the API server, through it to the traffic manager.
const CONNECT_PATIENCE: Duration = Duration::from_secs(60);

/// How long one intercept may take. The pods are made anew meanwhile, where they have no agent.
const INTERCEPT_PATIENCE: Duration = Duration::from_secs(180);

/// How long an intercept may take to end.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);

/// How long the daemon may take to say goodbye to the traffic manager.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(5);

/// How long what was killed may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// Between two looks for the daemon's socket.
const PULSE: Duration = Duration::from_millis(50);

/// How the traffic manager says that it waited in vain.
const NO_AGENT: &str = "while waiting for agent";

/// The folder of all clients of this pod, below the one for temporary files.
const HOME: &str = "session-proxy-telepresence";

/// Lines of the daemon's log that are told when it ended, and how far back they are looked for.
const LAST_LINES: usize = 5;
const LAST_BYTES: u64 = 16 * 1024;

/// The daemon's own settings. As the daemon of a pod it waits for a network that never comes for as long
/// as the traffic manager may take to answer.
const SETTINGS: &str =
    "timeouts:\n  trafficManagerAPI: 2s\n  trafficManagerConnect: 30s\n  intercept: 60s\n";

/// The client, from its start on.
pub(super) struct Client {
    post: Arc<Post>,
    wanted: Telepresence,
    home: PathBuf,
    kubeconfig: PathBuf,
    daemon: Child,
    /// Whether it goes on with the session of a client that was killed.
    is_resumed: bool,
    /// Names of the intercepts that were asked for.
    intercepts: Vec<String>,
}

impl Client {
    /// Starts the daemon.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn start(post: &Arc<Post>, wanted: &Telepresence) -> Result<Self, Cause> {
        let ours =
            |error: io::Error| Cause::Ours(format!("cannot make a home for telepresence: {error}"));
        let home = std::env::temp_dir().join(HOME);
        make_home(&home).map_err(ours)?;
        let is_resumed = session_file(&home).exists();
        let kubeconfig = post
            .folder
            .kubeconfig_in(&post.access, &post.intercept.namespace)
            .map_err(|error| Cause::Ours(format!("{error:#}")))?;
        // One that was killed leaves it behind, and the next one would not listen.
        match fs::remove_file(&post.programs.telepresence_socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(ours(error)),
            _ => {}
        }
        let mut command = program(post, wanted, &home, &kubeconfig);
        command.args(["connector-foreground", "--embed-network"]);
        let mark = format!("telepresence-{:08x}", fastrand::u32(..));
        let daemon = Child::run(&post.household, &mark, "telepresence", &mut command);
        let daemon = daemon.map_err(|error| {
            Cause::Ours(format!(
                "cannot start {}: {error}; is telepresence in the image?",
                post.programs.telepresence.display()
            ))
        })?;
        Ok(Self {
            post: post.clone(),
            wanted: wanted.clone(),
            home,
            kubeconfig,
            daemon,
            is_resumed,
            intercepts: Vec::new(),
        })
    }

    /// Connects to the traffic manager.
    ///
    /// # Errors
    /// Why that is not to be had.
    pub(super) async fn connect(&mut self) -> Result<(), Cause> {
        let socket = self.post.programs.telepresence_socket.clone();
        let listens = async {
            while UnixStream::connect(&socket).await.is_err() {
                sleep(PULSE).await;
            }
        };
        tokio::select! {
            listens = timeout(DAEMON_PATIENCE, listens) => listens.map_err(|_| {
                Cause::Stuck(format!("telepresence does not listen after {DAEMON_PATIENCE:?}"))
            })?,
            cause = ended(&mut self.daemon, &self.home) => return Err(not_started(cause)),
        }
        self.introduce()
            .map_err(|error| Cause::Ours(format!("cannot write for telepresence: {error}")))?;
        let connect = Connect {
            name: CONNECTION,
            namespace: &self.post.intercept.namespace,
            client: &format!("{CONNECTION}@{}", self.post.proxy_uid),
        };
        let connected = timeout(CONNECT_PATIENCE, connect.ask(&socket)).await;
        let connected = connected.map_err(|_| {
            Cause::Stuck(format!(
                "telepresence does not connect within {CONNECT_PATIENCE:?}"
            ))
        })?;
        connected.map_err(|why| Cause::NotStarted(self.with_remedy(&why)))?;
        info!("telepresence is connected");
        Ok(())
    }

    /// Takes all ports of the app.
    ///
    /// # Errors
    /// Why they are not to be had.
    pub(super) async fn take_ports(&mut self, handler: &Taken) -> Result<(), Cause> {
        for (place, local) in handler.locals.iter().enumerate() {
            let Some(service) = self.wanted.services.get(place) else {
                return Err(Cause::Ours(format!(
                    "the intercept names no Service for port {}",
                    local.app_port
                )));
            };
            let name = intercept_name(&self.post.intercept.app, local.app_port);
            let port = format!("{}:{}", local.port, service.port);
            let target = &self.post.intercept.target.name;
            let arguments = [
                "intercept",
                &name,
                "--workload",
                target,
                "--service",
                &service.service,
                "--port",
                &port,
                "--address",
                "127.0.0.1",
                "--mount=false",
            ];
            self.intercepts.push(name.clone());
            self.say(&arguments, INTERCEPT_PATIENCE).await?;
        }
        Ok(())
    }

    /// The session in which one of our own intercepts is in the way; `None`: that is not what is wrong.
    pub(super) fn forgotten(&self, cause: &Cause) -> Option<Forgotten> {
        let (session, name) = conflict(cause)?;
        let Intercept {
            app,
            ports,
            namespace,
            ..
        } = &self.post.intercept;
        let mut ports = ports.iter();
        ports
            .any(|port| intercept_name(app, port.container_port) == name)
            .then(|| Forgotten {
                home: self.home.clone(),
                namespace: namespace.clone(),
                session,
            })
    }

    /// Waits until the daemon has ended, and says how.
    pub(super) async fn ended(&mut self) -> Cause {
        ended(&mut self.daemon, &self.home).await
    }

    /// Whether it goes on with the session of a client that was killed. The agents do not bear that for
    /// long: streams of the one are ended for those of the other.
    pub(super) fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    /// Ends what an earlier client has left, with its session.
    pub(super) async fn bury(&mut self) {
        for port in &self.post.intercept.ports {
            let name = intercept_name(&self.post.intercept.app, port.container_port);
            self.intercepts.push(name);
        }
        self.leave().await;
        self.end().await;
        // Whatever became of it: the next client is to have a session of its own.
        let _ = fs::remove_file(session_file(&self.home));
    }

    /// Ends the intercepts, so that the app has its requests again.
    pub(super) async fn leave(&mut self) {
        for name in std::mem::take(&mut self.intercepts) {
            if let Err(cause) = self.say(&["leave", &name], LEAVE_PATIENCE).await {
                // It ends with the daemon's session, too.
                warn!(name, why = cause.message(), "the intercept is not left");
            }
        }
    }

    /// Ends the daemon, which says goodbye to the traffic manager. Where that was broken off, it can be
    /// done again; a client that is dropped without it leaves its session, and the app's requests wait.
    pub(super) async fn end(&mut self) {
        let resident = &mut self.daemon.resident;
        resident.terminate();
        let _ = timeout(GOODBYE_PATIENCE, resident.ended()).await;
        resident.kill();
        let _ = timeout(KILL_PATIENCE, resident.ended()).await;
        let _ = timeout(KILL_PATIENCE, resident.gone()).await;
    }

    /// One command, to its end.
    async fn say(&self, arguments: &[&str], patience: Duration) -> Result<(), Cause> {
        let post = &self.post;
        let mut command = program(post, &self.wanted, &self.home, &self.kubeconfig);
        command.args(arguments);
        let mark = format!("telepresence-cli-{:08x}", fastrand::u32(..));
        let child = Child::run(&post.household, &mark, "telepresence", &mut command);
        let mut child =
            child.map_err(|error| Cause::Ours(format!("cannot start telepresence: {error}")))?;
        let status = timeout(patience, child.resident.ended()).await;
        let status: ExitStatus = status.map_err(|_| {
            Cause::Stuck(format!(
                "telepresence {} came to no end within {patience:?}",
                arguments[0]
            ))
        })?;
        if status.success() {
            return Ok(());
        }
        // What follows is about logs, or a table of the cluster's events.
        let mut words = child.speech.last_words().await;
        let error = words.iter().position(|line| line.contains("error:"));
        let words = words.drain(error.unwrap_or(0)..).next().unwrap_or_default();
        let why = self.with_remedy(&words);
        Err(if words.contains(NO_AGENT) {
            // Each attempt may have made the pods anew: the next one has time.
            Cause::NoAgent(why)
        } else {
            Cause::NotStarted(why)
        })
    }

    /// What the client's words do not say: what to do about it.
    fn with_remedy(&self, why: &str) -> String {
        let namespace = &self.wanted.manager_namespace;
        let remedy = if why.contains("traffic manager not found") {
            format!("is it in namespace {namespace}? --manager-namespace of deploy names another")
        } else if why.contains("is forbidden") || why.contains("forbidden:") {
            format!(
                "grant it to the proxy's service account, in namespace {namespace} too (see config/rbac/telepresence.yaml)"
            )
        } else if why.contains("Conflicts with the currently") {
            "another client of Telepresence has this port; it must leave it first".to_owned()
        } else if why.contains(NO_AGENT) {
            "either the pods with the agent did not become ready in time (timeouts.agentArrival of the traffic \
             manager's chart gives them more), or they came without it: the API server does not reach the webhook \
             of the agent injector"
                .to_owned()
        } else {
            return why.to_owned();
        };
        format!("{why}; {remedy}")
    }

    /// Tells of the daemon where the commands look for one; it ends its session when this is not there.
    fn introduce(&self) -> io::Result<()> {
        let told = json!({ "name": CONNECTION, "namespace": self.post.intercept.namespace });
        let place = self.home.join(".cache/telepresence/daemons");
        fs::write(place.join(format!("{CONNECTION}.json")), told.to_string())
    }
}

/// A session that its client has left behind, with an intercept of ours in it.
pub(super) struct Forgotten {
    home: PathBuf,
    namespace: String,
    session: String,
}

impl Forgotten {
    /// Has the next client take it up; false when that cannot be.
    pub(super) fn hand_over(&self) -> bool {
        let session = &self.session;
        warn!(
            session,
            "an earlier client has left an intercept behind; its session is taken over"
        );
        let told = json!({
            "kubeContext": "",
            "namespace": self.namespace,
            "session": { "session_id": session },
        });
        fs::write(session_file(&self.home), told.to_string()).is_ok()
    }
}

/// Whether somebody else has the app's port.
pub(super) fn is_conflict(cause: &Cause) -> bool {
    conflict(cause).is_some()
}

/// The session and the name of the intercept that is in the way, if one is.
fn conflict(cause: &Cause) -> Option<(String, String)> {
    static HOLDER: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r#"Conflicts with the currently-[a-z-]+ intercept "([0-9a-f-]+):([^"]+)""#)
            .expect("the pattern is one")
    });
    let Cause::NotStarted(why) = cause else {
        return None;
    };
    let found = HOLDER.captures(why)?;
    Some((found[1].to_owned(), found[2].to_owned()))
}

/// Of nobody else's: a person's intercept is called after the workload.
fn intercept_name(app: &str, port: u16) -> String {
    format!("{CONNECTION}-{app}-{port}")
}

/// Where the daemon notes the session that it has.
fn session_file(home: &Path) -> PathBuf {
    home.join(format!(".cache/telepresence/sessions/{CONNECTION}.json"))
}

fn make_home(home: &Path) -> io::Result<()> {
    for folder in [
        ".cache/telepresence/daemons",
        ".cache/telepresence/kube",
        ".cache/telepresence/sessions",
        ".cache/telepresence/logs",
        ".config/telepresence",
    ] {
        fs::create_dir_all(home.join(folder))?;
    }
    fs::write(home.join(".config/telepresence/config.yml"), SETTINGS)
}

fn program(post: &Post, wanted: &Telepresence, home: &Path, kubeconfig: &Path) -> Command {
    let mut command = Command::new(&post.programs.telepresence);
    // What configures us, or another client, must not configure this one.
    hide(&mut command, &["SESSION_PROXY_", "TELEPRESENCE_", "XDG_"]);
    command
        .env("HOME", home)
        .env("KUBECONFIG", kubeconfig)
        .env("TELEPRESENCE_MANAGER_NAMESPACE", &wanted.manager_namespace)
        // Commands start no second daemon, which would want to be root, when they are told of this one.
        .env(
            "TELEPRESENCE_USER_DAEMON_ADDRESS",
            &post.programs.telepresence_socket,
        )
        // Nothing is reported to anybody.
        .env("SCOUT_DISABLE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Waits until a daemon has ended. What it had to say is in its log.
async fn ended(daemon: &mut Child, home: &Path) -> Cause {
    let status = daemon.resident.ended().await;
    let mut words = daemon.speech.last_words().await;
    let log = home.join(".cache/telepresence/logs/connector.log");
    words.extend(last_lines(&log).unwrap_or_default());
    Cause::of_end(status, &words)
}

/// The end of a log that may be long.
fn last_lines(log: &Path) -> io::Result<Vec<String>> {
    let mut log = File::open(log)?;
    let begin = log.metadata()?.len().saturating_sub(LAST_BYTES);
    log.seek(SeekFrom::Start(begin))?;
    let mut end = Vec::new();
    log.take(LAST_BYTES).read_to_end(&mut end)?;
    let lines: Vec<_> = end.trim_ascii_end().split(|&byte| byte == b'\n').collect();
    let skipped = lines.len().saturating_sub(LAST_LINES);
    Ok(lines[skipped..]
        .iter()
        .map(|line| printable(line))
        .collect())
}

/// The same before anything was live.
fn not_started(cause: Cause) -> Cause {
    match cause {
        Cause::Ended(how) => Cause::NotStarted(how),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_log_only_the_end_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("connector.log");
        let long = format!("{}\nfirst\nlast \x1b[31m\n\n", "x".repeat(1 << 20));
        fs::write(&log, long).unwrap();

        let lines = last_lines(&log).unwrap();

        assert_eq!(lines[1..], ["first", "last \u{fffd}[31m"]);
        assert!(lines[0].len() <= 1 << 14);
        assert!(last_lines(&folder.path().join("none")).is_err());
    }
}
