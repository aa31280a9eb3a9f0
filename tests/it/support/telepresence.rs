//! A stand-in for Telepresence: the executable, its daemon, the traffic manager and the agents.
//!
//! The executable is this very test executable, started by a script of that name. What it does as the real
//! one, 2.20: the daemon listens at its socket and connects by one gRPC call; it ends its session when
//! nothing tells of it in its cache; it takes up a session that is noted there; told to end it says goodbye,
//! and one that is killed does not. The traffic manager keeps sessions and their intercepts. Agents take all
//! connections to a port, hold those of a client that is gone, serve one client at a time and refuse the
//! next by the session and the name of the first; when an intercept comes or goes they cut what is open.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Where the traffic manager is; in the environment of the stand-in alone.
const MANAGER: &str = "STAND_IN_MANAGER";

/// The stand-in's arguments, one on each line.
const ARGUMENTS: &str = "STAND_IN_TELEPRESENCE";

/// The traffic manager, with all its agents.
pub struct Manager {
    pub address: SocketAddr,
    state: Arc<Shared>,
    serving: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    sessions: usize,
    /// By session: whether its client lives.
    clients: HashMap<String, bool>,
    intercept: Option<Intercept>,
    calls: Vec<Vec<String>>,
    refusal: Option<String>,
    /// Whether clients that say goodbye get no answer.
    ignores_goodbyes: bool,
    /// Goodbyes that got none.
    ignored: usize,
}

#[derive(Clone)]
struct Intercept {
    session: String,
    name: String,
    local: u16,
}

impl Manager {
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let state = Arc::new(Shared::default());
        let mut serving = JoinSet::new();
        let shared = state.clone();
        serving.spawn(async move {
            let mut talks = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                talks.spawn(talk(stream, shared.clone()));
            }
        });
        Self {
            address,
            state,
            serving,
        }
    }

    /// Puts an agent before an app, and returns where it takes its requests.
    pub async fn agent(&mut self, app: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind((app.ip(), 0)).await.expect("a free port");
        let door = listener.local_addr().expect("it is bound");
        let shared = self.state.clone();
        self.serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                connections.spawn(shared.clone().forward(near, app));
            }
        });
        door
    }

    /// The command lines so far, but for the daemon's.
    pub fn calls(&self) -> Vec<Vec<String>> {
        self.state.lock().calls.clone()
    }

    /// The next connections are refused with these words.
    pub fn refuse(&self, why: &str) {
        self.state.lock().refusal = Some(why.to_owned());
    }

    /// From now on a client that says goodbye gets no answer, and its session stays.
    pub fn ignore_goodbyes(&self) {
        self.state.lock().ignores_goodbyes = true;
    }

    /// Goodbyes that were ignored.
    pub fn ignored(&self) -> usize {
        self.state.lock().ignored
    }

    /// Somebody has the app's port, and may be gone.
    pub fn occupy(&self, session: &str, name: &str, lives: bool) {
        let mut state = self.state.lock();
        state.clients.insert(session.to_owned(), lives);
        state.intercept = Some(Intercept {
            session: session.to_owned(),
            name: name.to_owned(),
            local: 1,
        });
    }

    /// The session and the name of the intercept there is.
    pub fn intercept(&self) -> Option<(String, String)> {
        let state = self.state.lock();
        let intercept = state.intercept.as_ref()?;
        Some((intercept.session.clone(), intercept.name.clone()))
    }

    /// Sessions that the manager knows.
    pub fn sessions(&self) -> usize {
        self.state.lock().clients.len()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with it")
    }

    fn change(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    fn ignores_goodbye(&self) -> bool {
        let mut state = self.lock();
        state.ignored += usize::from(state.ignores_goodbyes);
        state.ignores_goodbyes
    }

    /// One connection through an agent.
    async fn forward(self: Arc<Self>, mut near: TcpStream, app: SocketAddr) {
        let mut changed = self.changed.subscribe();
        let intercept = self.lock().intercept.clone();
        let target = match &intercept {
            None => Some(app),
            Some(it) => (self.lock().clients.get(&it.session) == Some(&true))
                .then_some(SocketAddr::from(([127, 0, 0, 1], it.local))),
        };
        let carried = async {
            match target {
                // Held, until it is cut.
                None => std::future::pending().await,
                Some(target) => {
                    let Ok(mut far) = TcpStream::connect(target).await else {
                        return std::future::pending().await;
                    };
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                }
            }
        };
        let name = intercept.map(|it| (it.session, it.name));
        let cut = async {
            while changed.changed().await.is_ok() {
                let now = self
                    .lock()
                    .intercept
                    .clone()
                    .map(|it| (it.session, it.name));
                if now != name {
                    return;
                }
            }
        };
        tokio::select! {
            () = carried => {}
            () = cut => {}
        }
    }

    fn answer(&self, said: &Value) -> Value {
        let text = |key: &str| said[key].as_str().unwrap_or_default().to_owned();
        let mut state = self.lock();
        let answer = match said["role"].as_str() {
            Some("arrive") => {
                if let Some(why) = state.refusal.clone() {
                    return json!({ "error": why });
                }
                let known = text("session");
                let session = if state.clients.contains_key(&known) {
                    known
                } else {
                    state.sessions += 1;
                    format!("00000000-0000-0000-0000-{:012x}", state.sessions)
                };
                state.clients.insert(session.clone(), true);
                json!({ "session": session })
            }
            Some("depart") => {
                let session = text("session");
                state.clients.remove(&session);
                let is_its = |it: &mut Intercept| it.session == session;
                state.intercept.take_if(is_its);
                json!({})
            }
            Some("intercept") => match state.intercept.clone() {
                Some(it) if it.session == text("session") && it.name == text("name") => {
                    json!({ "error": format!("Intercept named {:?} already exists", it.name) })
                }
                Some(it) => json!({ "error": format!(
                    "Failed to establish intercept: intercept in error state AGENT_ERROR: Conflicts with the \
                     currently-served intercept \"{}:{}\"", it.session, it.name
                ) }),
                None => {
                    let local = said["local"].as_u64().expect("a port");
                    state.intercept = Some(Intercept {
                        session: text("session"),
                        name: text("name"),
                        local: u16::try_from(local).expect("a port"),
                    });
                    json!({})
                }
            },
            Some("leave") => {
                let (session, name) = (text("session"), text("name"));
                let is_it = |it: &mut Intercept| it.session == session && it.name == name;
                match state.intercept.take_if(is_it) {
                    Some(_) => json!({}),
                    None => json!({ "error": format!("Intercept named {name:?} not found") }),
                }
            }
            Some("call") => {
                let words = said["arguments"].as_array().expect("a list").iter();
                let words = words.map(|word| word.as_str().expect("a text").to_owned());
                state.calls.push(words.collect());
                json!({})
            }
            other => panic!("the stand-in says {other:?}"),
        };
        drop(state);
        self.change();
        answer
    }
}

/// One connection of the stand-in; its end is the end of the client that arrived by it.
async fn talk(stream: TcpStream, shared: Arc<Shared>) {
    let mut stream = tokio::io::BufReader::new(stream);
    let mut arrived = None;
    let mut line = String::new();
    while matches!(stream.read_line(&mut line).await, Ok(1..)) {
        let said: Value = serde_json::from_str(&line).expect("JSON");
        line.clear();
        if said["role"] == "depart" && shared.ignores_goodbye() {
            continue;
        }
        let answer = shared.answer(&said);
        match said["role"].as_str() {
            Some("arrive") => arrived = answer["session"].as_str().map(str::to_owned),
            Some("depart") => arrived = None,
            _ => {}
        }
        if stream
            .write_all(format!("{answer}\n").as_bytes())
            .await
            .is_err()
        {
            break;
        }
    }
    if let Some(session) = arrived {
        if let Some(lives) = shared.lock().clients.get_mut(&session) {
            *lives = false;
        }
        shared.change();
    }
}

/// Writes the script `telepresence` into the folder.
pub fn install(folder: &Path, manager: SocketAddr) -> PathBuf {
    let path = folder.join("telepresence");
    let executable = std::env::current_exe().expect("a test has an executable");
    let (_, module) = module_path!().split_once("::").expect("a module of a test");
    let script = format!(
        "#!/bin/sh\n{MANAGER}={manager} {ARGUMENTS}=\"$(printf '%s\\n' \"$@\")\" exec '{}' \
         --exact {module}::telepresence --ignored --nocapture --test-threads=1 -q\n",
        executable.display(),
    );
    std::fs::write(&path, script).expect("a writable folder");
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&path, mode).expect("our own file");
    path
}

#[test]
#[ignore = "no test: what the stand-in for telepresence runs"]
fn telepresence() {
    let Ok(manager) = std::env::var(MANAGER) else {
        return;
    };
    let manager: SocketAddr = manager.parse().expect("an address");
    let arguments = std::env::var(ARGUMENTS).expect("the script sets it");
    let arguments: Vec<_> = arguments.lines().collect();
    match arguments[..] {
        ["connector-foreground", "--embed-network"] => {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(serve_daemon(manager));
            std::process::exit(0);
        }
        _ => run_command(manager, &arguments),
    }
}

fn home(place: &str) -> PathBuf {
    let home = std::env::var("HOME").expect("a home");
    Path::new(&home).join(".cache/telepresence").join(place)
}

fn socket() -> String {
    std::env::var("TELEPRESENCE_USER_DAEMON_ADDRESS").expect("the daemon's address")
}

/// `intercept` and `leave`, said to the daemon that runs.
fn run_command(manager: SocketAddr, arguments: &[&str]) {
    let mut stream = std::net::TcpStream::connect(manager).expect("the manager listens");
    let mut ask = |said: Value| -> Value {
        writeln!(stream, "{said}").expect("the manager reads");
        let mut line = String::new();
        let mut reader = BufReader::new(&stream);
        reader.read_line(&mut line).expect("the manager answers");
        serde_json::from_str(&line).expect("JSON")
    };
    ask(json!({ "role": "call", "arguments": arguments }));
    let failed = |why: &str| -> ! {
        eprintln!("telepresence {}: error: {why}", arguments[0]);
        std::process::exit(1)
    };
    if std::os::unix::net::UnixStream::connect(socket()).is_err() {
        failed("telepresence user daemon is not running");
    }
    let session = std::fs::read_to_string(home("sessions/session-proxy.json")).expect("a session");
    let session: Value = serde_json::from_str(&session).expect("JSON");
    let session = &session["session"]["session_id"];
    let said = match arguments {
        ["intercept", name, rest @ ..] => {
            let port = rest
                .iter()
                .position(|word| *word == "--port")
                .expect("a port");
            let (local, _) = rest[port + 1].split_once(':').expect("two ports");
            let local: u16 = local.parse().expect("a port");
            json!({ "role": "intercept", "session": session, "name": name, "local": local })
        }
        ["leave", name] => json!({ "role": "leave", "session": session, "name": name }),
        other => failed(&format!("unknown command {other:?}")),
    };
    match ask(said)["error"].as_str() {
        Some(why) if arguments[0] == "intercept" => {
            failed(&format!("connector.CreateIntercept: {why}"))
        }
        Some(why) => failed(why),
        None => {
            writeln!(std::io::stdout(), "Using Deployment orders").expect("attach reads");
            std::process::exit(0);
        }
    }
}

/// The daemon, until it is told to end.
async fn serve_daemon(manager: SocketAddr) {
    let listener = UnixListener::bind(socket()).expect("nobody else is there");
    let connection = TcpStream::connect(manager).await.expect("it listens");
    let connection = Arc::new(tokio::sync::Mutex::new(tokio::io::BufReader::new(
        connection,
    )));
    let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .expect("signals can be had");
    let own = connection.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let own = own.clone();
            let service = service_fn(move |request| connect(own.clone(), request));
            tokio::spawn(
                http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    end.recv().await;
    if let Some(session) = noted_session() {
        said(&connection, json!({ "role": "depart", "session": session })).await;
        let _ = std::fs::remove_file(home("sessions/session-proxy.json"));
    }
}

type Talk = Arc<tokio::sync::Mutex<tokio::io::BufReader<TcpStream>>>;

async fn said(talk: &Talk, what: Value) -> Value {
    let mut talk = talk.lock().await;
    let line = format!("{what}\n");
    talk.write_all(line.as_bytes()).await.expect("it reads");
    let mut answer = String::new();
    talk.read_line(&mut answer).await.expect("it answers");
    serde_json::from_str(&answer).expect("JSON")
}

fn noted_session() -> Option<String> {
    let noted = std::fs::read_to_string(home("sessions/session-proxy.json")).ok()?;
    let noted: Value = serde_json::from_str(&noted).ok()?;
    noted["session"]["session_id"].as_str().map(str::to_owned)
}

async fn connect(
    talk: Talk,
    request: Request<Incoming>,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    assert_eq!(
        request.uri().path(),
        "/telepresence.connector.Connector/Connect"
    );
    let body = request.into_body().collect().await.expect("a message");
    let body = body.to_bytes();
    // is_pod_daemon, without which it would want a network device and be root.
    assert!(body.windows(2).any(|two| two == b"\x20\x01"), "{body:?}");
    let mut message = Vec::new();
    if home("daemons/session-proxy.json").exists() {
        let arrive = json!({ "role": "arrive", "session": noted_session() });
        let answer = said(&talk, arrive).await;
        match answer["error"].as_str() {
            Some(why) => {
                message.extend([0x08, 0x06, 0x12, u8::try_from(why.len()).expect("short")]);
                message.extend(why.as_bytes());
            }
            None => {
                let note = json!({ "session": { "session_id": answer["session"] } });
                let place = home("sessions/session-proxy.json");
                std::fs::write(place, note.to_string()).expect("writable");
            }
        }
    } else {
        message.extend(b"\x08\x04\x12\x09no daemon");
    }
    let mut frame = vec![0, 0, 0, 0, u8::try_from(message.len()).expect("short")];
    frame.extend(message);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let body = Full::new(Bytes::from(frame)).with_trailers(async { Some(Ok(trailers)) });
    let response = Response::builder().header("content-type", "application/grpc");
    Ok(response.body(body).expect("a response"))
}

/// Long enough for a daemon to come up on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(40);
