//! The kubelet of one namespace, as far as the API server can tell: pods get a node, an address and
//! a status, their logs can be read, and their deletions come to an end.
//!
//! No container runs. What a pod's containers would do, the test does: [`Kubelet::when_up`] is the
//! moment to bind an app or to start a program at the pod's address, before the pod is said to be
//! ready. How a pod fares is a [`Script`], chosen before the pod is made or changed with
//! [`Kubelet::play`]. Or its commands run on this machine: [`Kubelet::executing`].

mod executing;
mod life;
mod logs;
mod node;
mod status;
mod watching;

use std::collections::HashMap;
use std::future::Future;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use self::executing::machine::{Image, Machine, Steps};
use self::logs::Logs;
use self::node::Node;
use self::status::Containers;
use super::PATIENCE;
use super::namespace::Namespace;
use crate::it::support::app::fresh_ip;

/// How a pod fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Script {
    /// Runs, and its probes succeed. What happens to pods that nothing else is said of.
    Ready,
    /// Runs, but its readiness probe fails.
    Unready,
    /// Its image cannot be pulled.
    ImagePullBackOff,
    /// Its container ended with that code, again and again.
    CrashLoopBackOff { exit_code: i32 },
    /// Its containers have ended for good, with that code.
    Ended { exit_code: i32 },
    /// No node has room for it, now or later.
    Unschedulable,
}

/// A pod whose containers run.
#[derive(Debug, Clone)]
pub struct RunningPod {
    pub name: String,
    pub ip: Ipv4Addr,
    /// As it was when it came up: labels, containers, environment.
    pub object: Pod,
}

/// Plays the kubelet until it is dropped.
pub struct Kubelet {
    shared: Arc<Shared>,
    watching: JoinHandle<()>,
    _node: Node,
    _logs: Logs,
}

/// Deletions end again when this is dropped.
pub struct HeldDeletions(watch::Sender<bool>);

struct Shared {
    pods: Api<Pod>,
    node: String,
    desk: Arc<Mutex<Desk>>,
    held: watch::Sender<bool>,
    /// What runs the pods' commands, if anything does.
    machine: Option<Arc<Machine>>,
}

/// What the test has said, and what became of the pods.
#[derive(Default)]
struct Desk {
    scripts: Vec<(Which, Script)>,
    addresses: Vec<(String, Ipv4Addr)>,
    when_up: Option<Deed>,
    when_gone: Option<Deed>,
    /// By pod name.
    places: HashMap<String, Place>,
    /// What containers have written, by the beginning of the pod's name.
    written: Vec<(String, String)>,
}

enum Which {
    /// The beginning of a pod's name.
    Prefix(String),
    Label(String, String),
}

/// A pod that this kubelet has taken in.
#[derive(Debug, Clone)]
struct Place {
    pod: Pod,
    ip: Ipv4Addr,
    script: Script,
    containers: Containers,
}

type Deed = Arc<dyn Fn(RunningPod) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

impl Kubelet {
    /// Takes in the pods that are there and those to come.
    pub async fn of(namespace: &Namespace) -> Self {
        Self::with(namespace, None).await
    }

    /// The same, with what runs the commands of all pods as their specs say. Nothing can be scripted
    /// then.
    pub async fn executing(namespace: &Namespace, machine: Arc<Machine>) -> Self {
        Self::with(namespace, Some(machine)).await
    }

    async fn with(namespace: &Namespace, machine: Option<Arc<Machine>>) -> Self {
        let desk = Arc::new(Mutex::new(Desk::default()));
        let logs = Logs::serve(desk.clone()).await;
        let node = Node::register(namespace, logs.port).await;
        let shared = Arc::new(Shared {
            pods: namespace.api(),
            node: node.name.clone(),
            desk,
            held: watch::Sender::new(false),
            machine,
        });
        let watching = tokio::spawn(watching::watch(shared.clone()));
        Self {
            shared,
            watching,
            _node: node,
            _logs: logs,
        }
    }

    /// How pods fare whose names begin so. What was said last holds.
    pub fn script(&self, prefix: &str, script: Script) {
        let which = Which::Prefix(prefix.to_owned());
        self.shared.desk().scripts.push((which, script));
    }

    /// How pods with that label fare. What was said last holds.
    pub fn script_for_label(&self, key: &str, value: &str, script: Script) {
        let which = Which::Label(key.to_owned(), value.to_owned());
        self.shared.desk().scripts.push((which, script));
    }

    /// The next pod whose name begins so gets that address, once: to give one pod's to another.
    pub fn next_ip(&self, prefix: &str, ip: Ipv4Addr) {
        self.shared.desk().addresses.push((prefix.to_owned(), ip));
    }

    /// What the containers of pods whose names begin so have written, for `pods/log`.
    pub fn writes(&self, prefix: &str, text: &str) {
        let text = (prefix.to_owned(), text.to_owned());
        self.shared.desk().written.push(text);
    }

    /// Runs when a pod's containers start, and ends before the pod is said to be running.
    pub fn when_up<F, Fut>(&self, deed: F)
    where
        F: Fn(RunningPod) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.shared.desk().when_up = Some(Arc::new(move |pod| Box::pin(deed(pod))));
    }

    /// Runs when a pod's containers have to stop, and ends before its deletion does.
    pub fn when_gone<F, Fut>(&self, deed: F)
    where
        F: Fn(RunningPod) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.shared.desk().when_gone = Some(Arc::new(move |pod| Box::pin(deed(pod))));
    }

    /// The address of a pod, once it has one and its status says so.
    pub async fn ip(&self, pod: &str) -> Ipv4Addr {
        self.place(pod).await.ip
    }

    /// From now on the pod fares so.
    pub async fn play(&self, pod: &str, script: Script) {
        let before = self.place(pod).await;
        let place = Place {
            script,
            ..before.clone()
        };
        match (before.script.runs(), script.runs()) {
            (false, true) => self.shared.containers_start(&place).await,
            (true, false) => self.shared.containers_stop(&place).await,
            _ => {}
        }
        self.shared.put(place.clone());
        self.shared.show(&place).await;
    }

    /// Its readiness probe fails from now on.
    pub async fn make_unready(&self, pod: &str) {
        self.play(pod, Script::Unready).await;
    }

    /// Its readiness probe succeeds from now on.
    pub async fn make_ready(&self, pod: &str) {
        self.play(pod, Script::Ready).await;
    }

    /// Its containers end with exit code 137 and start again: the pod's address stays, its
    /// containers' ids do not. Returns the new id of the first.
    pub async fn restart_container(&self, pod: &str) -> String {
        let mut place = self.place(pod).await;
        self.shared.containers_stop(&place).await;
        place.containers.restart();
        self.shared.containers_start(&place).await;
        self.shared.put(place.clone());
        self.shared.show(&place).await;
        place.containers.id(0)
    }

    /// Pods that are deleted keep their deletionTimestamp and stay, as when their containers take
    /// their time.
    #[must_use = "deletions are held for as long as this is"]
    pub fn hold_deletions(&self) -> HeldDeletions {
        self.shared.held.send_replace(true);
        HeldDeletions(self.shared.held.clone())
    }

    async fn place(&self, pod: &str) -> Place {
        let start = Instant::now();
        // By hand: a future with a closure in it cannot be spawned.
        loop {
            if let Some(place) = self.shared.desk().places.get(pod).cloned() {
                return place;
            }
            assert!(start.elapsed() < PATIENCE, "no place for pod {pod}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl Drop for HeldDeletions {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().expect("nobody panics at the desk")
    }

    fn put(&self, place: Place) {
        self.desk().places.insert(place.running().name, place);
    }

    async fn containers_start(&self, place: &Place) {
        let deed = self.desk().when_up.clone();
        if let Some(deed) = deed {
            deed(place.running()).await;
        }
    }

    async fn containers_stop(&self, place: &Place) {
        let deed = self.desk().when_gone.clone();
        if let Some(deed) = deed {
            deed(place.running()).await;
        }
    }
}

impl Desk {
    fn script_for(&self, pod: &Pod) -> Script {
        let said = self.scripts.iter().rev().find(|(which, _)| which.is(pod));
        said.map_or(Script::Ready, |(_, script)| *script)
    }

    fn ip_for(&mut self, name: &str) -> Ipv4Addr {
        let said = self.addresses.iter();
        match said
            .clone()
            .position(|(prefix, _)| name.starts_with(prefix.as_str()))
        {
            Some(index) => self.addresses.remove(index).1,
            None => fresh_ip(),
        }
    }
}

impl Which {
    fn is(&self, pod: &Pod) -> bool {
        match self {
            Self::Prefix(prefix) => {
                let name = pod.metadata.name.as_deref();
                name.is_some_and(|name| name.starts_with(prefix.as_str()))
            }
            Self::Label(key, value) => {
                let labels = pod.metadata.labels.as_ref();
                labels.and_then(|labels| labels.get(key)) == Some(value)
            }
        }
    }
}

impl Place {
    fn running(&self) -> RunningPod {
        RunningPod {
            name: super::baseline::name_of(&self.pod),
            ip: self.ip,
            object: self.pod.clone(),
        }
    }
}
