//! What mirrord does beyond its own process: agents in the cluster, and rules on target pods.
//!
//! Each start of the [stand-in](super::stand_in) asks here what becomes of it, and each sender holds a
//! connection to here for as long as it lives. As with the real one: a second session on a pod fails;
//! two starts at the same time leave a session that takes nothing; an agent goes when its sender does,
//! and a sender stays when its agent goes.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fancy_regex::Regex;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::cluster::Cluster;
use super::mirrord::Sender;
use super::target_pod::{Rules, TargetPod};

/// What becomes of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Live,
    /// Another session's rules are said to be on the pod.
    Dirty,
    /// The right to create jobs is missing.
    Forbidden,
    /// Nothing is said any more after the agent's pod has become ready.
    Hangs,
    /// All looks well, and no request is taken: what two starts at once leave.
    TakesNothing,
    /// Pod security does not admit the agent; the Job stays behind.
    NotAdmitted,
}

/// Where agents live, by the session that each is for.
pub trait Home: Send + Sync + 'static {
    /// Makes the Job, and returns when its pod runs.
    fn admit(&self, session: &str, config: &Value) -> impl Future<Output = ()> + Send;
    /// Makes the Job, whose pod is not admitted.
    fn refuse(&self, session: &str, config: &Value) -> impl Future<Output = ()> + Send;
    /// Removes all of it, if it is there.
    fn remove(&self, session: &str) -> impl Future<Output = ()> + Send;
    fn lives(&self, session: &str) -> impl Future<Output = bool> + Send;
}

/// All of mirrord's doings in one test.
pub struct Hub<H> {
    pub address: SocketAddr,
    world: Arc<World<H>>,
    serving: JoinHandle<()>,
}

struct World<H> {
    home: Arc<H>,
    pods: Mutex<HashMap<String, Arc<TargetPod>>>,
    sessions: AtomicUsize,
    senders: Mutex<HashMap<String, u32>>,
    environments: Mutex<Vec<Value>>,
}

impl<H: Home> Hub<H> {
    pub async fn new(home: Arc<H>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        let world = Arc::new(World {
            home,
            pods: Mutex::default(),
            sessions: AtomicUsize::new(0),
            senders: Mutex::default(),
            environments: Mutex::default(),
        });
        let serving = tokio::spawn(serve(listener, world.clone()));
        Self {
            address,
            world,
            serving,
        }
    }

    pub fn enter(&self, pod: Arc<TargetPod>) {
        let mut pods = self.world.pods.lock().expect("no test panics with it");
        pods.insert(pod.name.clone(), pod);
    }

    /// Senders that live.
    pub fn senders(&self) -> Vec<u32> {
        let senders = self.world.senders.lock().expect("no test panics with it");
        senders.values().copied().collect()
    }

    /// What of the environment configures mirrord or the proxy, for each start.
    pub fn environments(&self) -> Vec<Value> {
        self.world
            .environments
            .lock()
            .expect("no test panics with it")
            .clone()
    }
}

impl<H> Drop for Hub<H> {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, world: Arc<World<impl Home>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let world = world.clone();
        tokio::spawn(async move {
            // Whoever is killed hangs up in the middle.
            let _ = talk(stream, &world).await;
        });
    }
}

async fn talk(stream: TcpStream, world: &Arc<World<impl Home>>) -> io::Result<()> {
    let (read, write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let hello = lines.next_line().await?.unwrap_or_default();
    let hello: Value = serde_json::from_str(&hello).expect("ours speak JSON");
    if hello["role"] == "sender" {
        let session = hello["session"].as_str().expect("a session").to_owned();
        let pid = u32::try_from(hello["pid"].as_u64().expect("a number")).expect("a pid");
        world.serve_sender(session, pid, lines).await;
        return Ok(());
    }
    let start = Start {
        world,
        hello,
        lines,
        write,
    };
    start.play().await
}

impl<H: Home> World<H> {
    /// Until the sender hangs up, which is its end.
    async fn serve_sender(
        &self,
        session: String,
        pid: u32,
        mut lines: Lines<BufReader<OwnedReadHalf>>,
    ) {
        let senders = || self.senders.lock().expect("no test panics with it");
        senders().insert(session.clone(), pid);
        let _ = lines.next_line().await;
        senders().remove(&session);
        // The agent cleans up and goes; its Job is gone a little later.
        self.home.remove(&session).await;
    }

    fn pod(&self, name: &str) -> Option<Arc<TargetPod>> {
        let pods = self.pods.lock().expect("no test panics with it");
        pods.get(name).cloned()
    }
}

impl Home for Cluster {
    async fn admit(&self, session: &str, config: &Value) {
        let job = self.apply("jobs", job(session, config));
        let metadata = json!({
            "name": agent_pod(session), "namespace": config["agent"]["namespace"],
            "labels": agent_labels(config), "ownerReferences": [owner(&job)],
        });
        self.apply(
            "pods",
            json!({ "metadata": metadata, "status": { "phase": "Running" } }),
        );
    }

    async fn refuse(&self, session: &str, config: &Value) {
        let job = self.apply("jobs", job(session, config));
        self.apply("events", event(&job));
    }

    async fn remove(&self, session: &str) {
        self.delete("pods", &agent_pod(session));
        self.delete("jobs", &job_name(session));
    }

    async fn lives(&self, session: &str) -> bool {
        self.find("pods", &agent_pod(session)).is_some()
    }
}

fn job(session: &str, config: &Value) -> Value {
    let metadata = json!({
        "name": job_name(session), "namespace": config["agent"]["namespace"],
        "labels": agent_labels(config),
    });
    json!({ "metadata": metadata })
}

fn owner(job: &Value) -> Value {
    let metadata = &job["metadata"];
    json!({ "apiVersion": "batch/v1", "kind": "Job", "uid": metadata["uid"], "name": metadata["name"] })
}

/// What an agent's Job and pod are labelled with: mirrord's own, and what it was told.
pub fn agent_labels(config: &Value) -> Value {
    let mut labels = config["agent"]["labels"].clone();
    labels["app"] = json!("mirrord");
    labels
}

/// Name of the Job of a session's agent.
pub fn job_name(session: &str) -> String {
    format!("mirrord-agent-{session}")
}

/// Name of the pod of a session's agent.
pub fn agent_pod(session: &str) -> String {
    format!("mirrord-agent-{session}-pod")
}

/// One `mirrord exec`, before it becomes the wrapped program.
struct Start<'w, H> {
    world: &'w Arc<World<H>>,
    hello: Value,
    lines: Lines<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
}

impl<H: Home> Start<'_, H> {
    async fn play(mut self) -> io::Result<()> {
        let environment = self.hello["environment"].clone();
        self.world
            .environments
            .lock()
            .expect("no test panics with it")
            .push(environment);
        let config = self.hello["config"].as_str().expect("a text");
        let config: Value = match serde_json::from_str(config) {
            Ok(config) => config,
            Err(error) => return self.fail(&format!("Failed to parse config: {error}")).await,
        };
        if let Some(unknown) = unknown_key(&config, &known_shape(), String::new()) {
            let error = format!("Error occurred in the config file: unknown field `{unknown}`");
            return self.fail(&error).await;
        }
        let path = config["target"]["path"].as_str().expect("a target");
        let name = path.split('/').nth(1).expect("pod/NAME/container/NAME");
        let Some(pod) = self.world.pod(name) else {
            return self.fail(&format!("pods \"{name}\" not found")).await;
        };
        let attempt = pod.begins();
        let outcome = self.go_on(&pod, &config).await;
        attempt.ends();
        outcome
    }

    async fn go_on(&mut self, pod: &Arc<TargetPod>, config: &Value) -> io::Result<()> {
        let session = self
            .world
            .sessions
            .fetch_add(1, Ordering::SeqCst)
            .to_string();
        self.progress("mirrord exec", None).await?;
        let fate = match pod.next_fate() {
            Fate::Live if pod.has_rules() => Fate::Dirty,
            fate => fate,
        };
        match fate {
            Fate::Forbidden => {
                return self.fail(
                    "Failed to create mirrord-agent: KubeError: ApiError: jobs.batch is forbidden: User\n  \
                     │ \"system:serviceaccount:staging:mirrord-proxy-orders\" cannot create resource\n  \
                     │ \"jobs\" in API group \"batch\" in the namespace \"staging\": Forbidden",
                )
                .await;
            }
            Fate::NotAdmitted => {
                self.world.home.refuse(&session, config).await;
                return self.fail("mirrord-agent was not ready in time").await;
            }
            Fate::Live | Fate::TakesNothing | Fate::Dirty | Fate::Hangs => {
                self.world.home.admit(&session, config).await
            }
        }
        self.progress("waiting for pod to be ready...", Some("pod is ready"))
            .await?;
        match fate {
            Fate::Hangs => {
                // Until it is killed.
                let _ = self.lines.next_line().await;
                return Ok(());
            }
            Fate::Dirty => {
                self.world.home.remove(&session).await;
                return self.fail(
                    "agent closed connection with message: Detected dirty\n  │ iptables. Either some other \
                     mirrord agent is running or the previous\n  │ agent failed to clean up before exit.",
                )
                .await;
            }
            _ => {}
        }
        self.say(json!({ "sender": session })).await?;
        while !self
            .world
            .senders
            .lock()
            .expect("no test panics with it")
            .contains_key(&session)
        {
            sleep(Duration::from_millis(2)).await;
        }
        let pid = u32::try_from(self.hello["pid"].as_u64().expect("a number")).expect("a pid");
        self.progress("mirrord exec", Some("Ready!")).await?;
        self.say(json!({ "exec": true })).await?;
        if fate != Fate::TakesNothing {
            self.subscribe(pod, &session, pid, config).await;
        }
        Ok(())
    }

    /// What the layer does once the program listens.
    async fn subscribe(&self, pod: &Arc<TargetPod>, session: &str, pid: u32, config: &Value) {
        let incoming = &config["feature"]["network"]["incoming"];
        let local = incoming["port_mapping"][0][0].as_u64().expect("a port");
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, u16::try_from(local).expect("a port")));
        while TcpStream::connect(local).await.is_err() {
            if !self.world.home.lives(session).await {
                return;
            }
            sleep(Duration::from_millis(5)).await;
        }
        pod.subscribe(Rules {
            session: session.to_owned(),
            child: pid,
            filters: filters(incoming),
            sender: Arc::new(Sender::new(local).impatient()),
            are_copies: incoming["mode"] == "mirror",
        });
        let (pod, session, world) = (pod.clone(), session.to_owned(), self.world.clone());
        tokio::spawn(async move {
            while world.home.lives(&session).await {
                sleep(Duration::from_millis(10)).await;
            }
            pod.unsubscribe(&session);
        });
    }

    async fn progress(&mut self, name: &str, message: Option<&str>) -> io::Result<()> {
        let line = match message {
            None => json!({ "type": "NewTask", "name": name, "parent": null }),
            Some(message) => {
                json!({ "type": "FinishedTask", "name": name, "success": true, "message": message })
            }
        };
        self.say(json!({ "out": line.to_string() })).await
    }

    async fn fail(&mut self, error: &str) -> io::Result<()> {
        self.say(json!({ "err": format!("Error:   × {error}\n  help: Please open an issue") }))
            .await?;
        self.say(json!({ "exit": 1 })).await
    }

    async fn say(&mut self, step: Value) -> io::Result<()> {
        self.write.write_all(format!("{step}\n").as_bytes()).await
    }
}

fn event(job: &Value) -> Value {
    let name = &job["metadata"]["name"];
    json!({
        "metadata": { "name": format!("{}.1", name.as_str().expect("a name")),
                      "namespace": job["metadata"]["namespace"] },
        "involvedObject": { "kind": "Job", "name": name },
        "type": "Warning", "reason": "FailedCreate", "lastTimestamp": "2026-01-01T00:00:00Z",
        "message": "Error creating: pods is forbidden: violates PodSecurity \"restricted:latest\"",
    })
}

/// As the agent reads them: not anchored, in any case.
fn filters(incoming: &Value) -> Vec<Regex> {
    let filter = &incoming["http_filter"];
    let any_of = filter["any_of"].as_array().into_iter().flatten();
    let all = any_of
        .map(|one| &one["header"])
        .chain([&filter["header_filter"]]);
    let texts = all.filter_map(Value::as_str);
    texts
        .map(|text| Regex::new(&format!("(?i){text}")).expect("a regular expression"))
        .collect()
}

/// Every key that mirrord's configuration may have here. An empty object: anything.
fn known_shape() -> Value {
    json!({
        "operator": 0, "telemetry": 0, "api": 0,
        "target": { "path": 0, "namespace": 0 },
        "agent": { "namespace": 0, "labels": {}, "image": 0, "override_cache_control": 0,
                   "flush_connections": 0, "resources": {}, "ephemeral": 0 },
        "feature": { "env": 0, "fs": 0, "hostname": 0, "network": {
            "dns": 0,
            "incoming": { "mode": 0, "ports": 0, "port_mapping": 0,
                          "http_filter": { "header_filter": 0, "any_of": 0, "ports": 0 } },
            "outgoing": { "tcp": 0, "udp": 0, "filter": { "remote": 0 } },
        } },
        "internal_proxy": { "log_level": 0 },
        "experimental": { "idle_local_http_connection_timeout": 0 },
    })
}

fn unknown_key(config: &Value, known: &Value, path: String) -> Option<String> {
    let known = known.as_object().filter(|known| !known.is_empty())?;
    for (key, value) in config.as_object()? {
        let path = format!("{path}.{key}");
        let Some(shape) = known.get(key) else {
            return Some(path);
        };
        if let Some(unknown) = unknown_key(value, shape, path) {
            return Some(unknown);
        }
    }
    None
}
