//! A namespace with an app in it, on loopback: target pods and PR pods with addresses of their own, the
//! API server that knows them, and mirrord.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::attached::Setting;
use super::cluster::Cluster;
use super::hub::{Hub, agent_pod};
use super::raw;
use super::request::{Answer, Request};
use super::stand_in;
use super::target_pod::TargetPod;
use super::upstream::Upstream;

/// The app.
pub const APP: &str = "orders";

/// How long a sender lives on without its client.
const SENDER_IDLE: Duration = Duration::from_millis(200);

/// One app's namespace; all of it ends when it is dropped.
pub struct Staging {
    pub cluster: Arc<Cluster>,
    pub hub: Hub<Cluster>,
    pub mirrord: PathBuf,
    /// Seen from a proxy under mirrord's layer: the app of its own target pod. There is no layer here,
    /// so it is one for all.
    pub baseline: Upstream,
    /// `steal` or `mirror`.
    pub mode: &'static str,
    folder: TempDir,
    port: u16,
    next: Mutex<u8>,
}

impl Staging {
    /// A deployment without pods.
    pub async fn new() -> Self {
        let cluster = Arc::new(Cluster::new().await);
        let hub = Hub::new(cluster.clone()).await;
        let folder = tempfile::tempdir().expect("a writable temp folder");
        let baseline = Upstream::site("baseline").await;
        cluster.apply(
            "deployments",
            json!({ "metadata": { "name": APP }, "spec": { "selector": { "matchLabels": { "app": APP } } } }),
        );
        Self {
            mirrord: stand_in::install(folder.path(), hub.address, SENDER_IDLE),
            port: baseline.address.port(),
            cluster,
            hub,
            baseline,
            mode: "steal",
            folder,
            next: Mutex::new(1),
        }
    }

    /// From now on mirrord's senders live on for so long without their client.
    pub fn senders_stay(&mut self, idle: Duration) {
        self.mirrord = stand_in::install(self.folder.path(), self.hub.address, idle);
    }

    /// What `attach` is told.
    pub fn setting(&self) -> Setting {
        Setting {
            intercept: self.intercept(),
            mirrord: self.mirrord.clone(),
            kubeconfig: self.cluster.kubeconfig().into(),
            temp: self.folder.path().to_owned(),
        }
    }

    /// The folder for temporary files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The app's port.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn intercept(&self) -> PathBuf {
        let path = self.folder.path().join("intercept.json");
        std::fs::write(&path, self.intercepted().to_string()).expect("a writable folder");
        path
    }

    /// What is intercepted, with mirrord.
    pub fn intercepted(&self) -> Value {
        json!({
            "app": APP, "namespace": "staging",
            "target": { "kind": "deployment", "name": APP },
            "ports": [{ "containerPort": self.port, "protocol": "http" }],
            "header": "x-dev-session", "baggageKey": "dev-session", "mode": self.mode,
            "agent": { "namespace": "staging", "isEphemeral": false, "image": null },
        })
    }

    /// A ready target pod of that name.
    pub async fn replica(&self, name: &str) -> Arc<TargetPod> {
        let address = self.address();
        let pod = TargetPod::start(name, address).await;
        self.hub.enter(pod.clone());
        self.cluster
            .apply("pods", self.target(name, address, "True", "c://1"));
        pod
    }

    /// The pod fails or passes its readiness probe.
    pub fn set_ready(&self, pod: &TargetPod, is_ready: bool) {
        let status = if is_ready { "True" } else { "False" };
        let target = self.target(&pod.name, pod.address, status, "c://1");
        self.cluster.apply("pods", target);
    }

    /// The pod's container was started anew.
    pub fn replace_container(&self, pod: &TargetPod) {
        let target = self.target(&pod.name, pod.address, "True", "c://2");
        self.cluster.apply("pods", target);
    }

    /// The pod was told to end, and is there a little longer.
    pub fn tell_to_end(&self, pod: &TargetPod) {
        let mut target = self.cluster.find("pods", &pod.name).expect("it is there");
        target["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        self.cluster.apply("pods", target);
    }

    /// The pod is gone, and its agent with it.
    pub fn remove(&self, pod: &TargetPod) {
        self.cluster.delete("pods", &pod.name);
        self.kill_agent(pod);
    }

    /// The pod of the agent of the pod's session is gone.
    pub fn kill_agent(&self, pod: &TargetPod) {
        if let Some(session) = pod.session() {
            self.cluster.delete("pods", &agent_pod(&session));
        }
    }

    /// A PR pod that serves that session.
    pub async fn pr_pod(&self, session: &str) -> Upstream {
        let address = self.address();
        let name = format!("pr-{APP}-{session}");
        let app = Upstream::site_at(address, &name).await;
        self.announce(session, &app);
        app
    }

    /// Says that an app serves that session.
    pub fn announce(&self, session: &str, app: &Upstream) {
        let name = format!("pr-{APP}-{session}");
        self.cluster
            .apply("pods", super::pods::ready(&name, session, app.address.ip()));
    }

    /// An address that a pod may have, with the app's port.
    pub fn address(&self) -> SocketAddr {
        let mut next = self.next.lock().expect("no test panics with it");
        *next += 1;
        (Ipv4Addr::new(127, 8, 0, *next), self.port).into()
    }

    /// One request to a target pod, as any client of the app sends it.
    pub async fn ask(&self, pod: &TargetPod, request: Request) -> Answer {
        let request = request.header("host", APP).header("connection", "close");
        raw::exchange(pod.address, request.to_h1(&request.target)).await
    }

    /// Who answers a request with that session.
    pub async fn reaches(&self, pod: &TargetPod, session: &str) -> String {
        self.ask(pod, Request::get("/").session(session))
            .await
            .served_by()
    }

    fn target(&self, name: &str, address: SocketAddr, is_ready: &str, container: &str) -> Value {
        json!({
            "metadata": { "name": name, "labels": { "app": APP } },
            "spec": { "containers": [{ "name": APP, "ports": [{ "containerPort": self.port }] }] },
            "status": {
                "phase": "Running", "podIP": address.ip(),
                "conditions": [{ "type": "Ready", "status": is_ready }],
                "containerStatuses": [
                    { "name": APP, "containerID": container, "ready": true, "restartCount": 0,
                      "image": "i", "imageID": "i", "state": { "running": {} } },
                ],
            },
        })
    }
}
