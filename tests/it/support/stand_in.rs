//! A stand-in for the `mirrord` executable, and for its sender.
//!
//! It is this very test executable, started by a script of that name. It reads the configuration as
//! mirrord does, asks the [`hub`](super::hub) of the test what becomes of it, says what mirrord would
//! say, leaves a sender behind and becomes the wrapped program: the same process, as with the real one.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

/// Where the hub is; in the environment of the stand-in alone.
const HUB: &str = "STAND_IN_HUB";

/// The stand-in's arguments, one on each line.
const ARGUMENTS: &str = "STAND_IN_ARGUMENTS";

/// The session that a sender serves.
const SESSION: &str = "STAND_IN_SESSION";

/// How long a sender lives on when its client is gone.
const IDLE: &str = "STAND_IN_IDLE_MS";

/// Writes the script `mirrord` into the folder.
pub fn install(folder: &Path, hub: SocketAddr, sender_idle: Duration) -> PathBuf {
    let path = folder.join("mirrord");
    let executable = std::env::current_exe().expect("a test has an executable");
    let script = format!(
        "#!/bin/sh\n{HUB}={hub} {IDLE}={} {ARGUMENTS}=\"$(printf '%s\\n' \"$@\")\" exec '{}' \
         --exact {} --ignored --nocapture --test-threads=1 -q\n",
        sender_idle.as_millis(),
        executable.display(),
        own_name(),
    );
    std::fs::write(&path, script).expect("a writable folder");
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&path, mode).expect("our own file");
    path
}

#[test]
#[ignore = "no test: what the stand-in for mirrord runs"]
fn mirrord() {
    let Ok(hub) = std::env::var(HUB) else {
        return;
    };
    let hub: SocketAddr = hub.parse().expect("an address");
    match std::env::var(SESSION) {
        Ok(session) => send(hub, &session),
        Err(_) => exec(hub),
    }
}

/// `mirrord exec -f FILE -- PROGRAM ...`
fn exec(hub: SocketAddr) {
    // What the test's own harness has printed ends here.
    print("");
    let arguments = std::env::var(ARGUMENTS).expect("the script sets it");
    let arguments: Vec<_> = arguments.lines().collect();
    let ["exec", "-f", file, "--", program, ref rest @ ..] = arguments[..] else {
        eprintln!("error: unrecognized arguments {arguments:?}");
        std::process::exit(2);
    };
    let config = std::fs::read_to_string(file).expect("the file that was named");
    let environment: serde_json::Map<String, Value> = std::env::vars()
        .filter(|(name, _)| name.starts_with("MIRRORD_") || name.starts_with("SESSION_PROXY_"))
        .map(|(name, value)| (name, value.into()))
        .collect();
    let hello = json!({
        "role": "exec", "pid": std::process::id(), "config": config, "environment": environment,
    });
    for step in Talk::begin(hub, &hello) {
        if let Some(line) = step["out"].as_str() {
            print(line);
        } else if let Some(line) = step["err"].as_str() {
            eprintln!("{line}");
        } else if let Some(code) = step["exit"].as_i64() {
            std::process::exit(i32::try_from(code).expect("an exit code"));
        } else if let Some(session) = step["sender"].as_str() {
            leave_a_sender(session);
        } else if step["exec"] == true {
            let mut command = Command::new(program);
            let command = command.args(rest).env_remove(HUB).env_remove(ARGUMENTS);
            panic!("cannot execute {program}: {}", command.exec());
        }
    }
    // The hub has hung up in the middle: as good as a hang.
    std::thread::sleep(Duration::from_secs(600));
}

fn print(line: &str) {
    writeln!(std::io::stdout(), "{line}").expect("whoever started us reads");
}

/// The name that the harness knows [`mirrord`] by: without that of the test executable.
fn own_name() -> String {
    let (_, module) = module_path!().split_once("::").expect("a module of a test");
    format!("{module}::mirrord")
}

/// A process in a group of its own, that outlives us.
#[expect(clippy::zombie_processes, reason = "whoever adopts it waits for it")]
fn leave_a_sender(session: &str) {
    let executable = std::env::current_exe().expect("a test has an executable");
    Command::new(executable)
        .args(["--exact", &own_name(), "--ignored", "--nocapture", "-q"])
        .env(SESSION, session)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("another one can be started");
}

/// mirrord's sender: lives until its client, which is its parent, is gone, and a little longer.
fn send(hub: SocketAddr, session: &str) {
    let client = parent_id();
    let hello = json!({ "role": "sender", "session": session, "pid": std::process::id() });
    let _talk = Talk::begin(hub, &hello);
    while parent_id() == client {
        std::thread::sleep(Duration::from_millis(20));
    }
    let idle = std::env::var(IDLE).expect("the script sets it");
    std::thread::sleep(Duration::from_millis(idle.parse().expect("a number")));
}

/// What the hub says, line by line.
struct Talk(BufReader<TcpStream>);

impl Talk {
    fn begin(hub: SocketAddr, hello: &Value) -> Self {
        let mut stream = TcpStream::connect(hub).expect("the hub listens");
        writeln!(stream, "{hello}").expect("the hub reads");
        Self(BufReader::new(stream))
    }
}

impl Iterator for Talk {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.0.read_line(&mut line).ok().filter(|read| *read > 0)?;
        serde_json::from_str(&line).ok()
    }
}
