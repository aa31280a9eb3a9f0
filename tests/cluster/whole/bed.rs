//! A staging namespace in which every part of the cluster side is the real one.
//!
//! What the kubelet would start is started: a proxy pod is `session-proxy attach` with what its spec
//! says, as the service account of its spec, and is as ready as its admin port says. Stand-ins are the
//! apps, and mirrord.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Pod, PodSpec};
use kube::{Api, ResourceExt};
use serde_json::json;
use session_proxy::control::proof::{Answer, Probe};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::it::support::app::{App, Habits};
use crate::it::support::attached::{Attached, local_ports};
use crate::it::support::hub::Hub;
use crate::it::support::proxy::binary;
use crate::it::support::stand_in;
use crate::it::support::target_pod::TargetPod;
use crate::support::account::Account;
use crate::support::agents::Agents;
use crate::support::baseline::{Baseline, is_ready};
use crate::support::cluster::Cluster;
use crate::support::kubelet::{Kubelet, RunningPod, Script};
use crate::support::namespace::Namespace;
use crate::support::run::Run;
use crate::support::stage::deployer;
use crate::support::{PATIENCE, eventually};
use crate::verify::behead;

/// Where a proxy pod's admin port is.
const ADMIN: u16 = 9901;

/// How often requests were answered, by status and route.
pub(super) type Counts = Arc<Mutex<BTreeMap<(u16, String), usize>>>;

/// The app `orders`, live, and an account that may deploy.
pub struct Bed {
    pub namespace: Namespace,
    pub kubelet: Arc<Kubelet>,
    pub orders: Baseline,
    account: Account,
    port: u16,
    node: Arc<Node>,
}

/// What runs on the node, and what it takes to start it.
struct Node {
    cluster: Cluster,
    hub: Hub<Agents>,
    mirrord: PathBuf,
    folder: TempDir,
    /// The app behind a session: without a layer there is one for all target pods, at the same port.
    baseline: App,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    targets: HashMap<String, Arc<TargetPod>>,
    pr_pods: HashMap<String, App>,
    /// What each PR pod has written, also those that are gone.
    logs: Vec<Arc<Mutex<String>>>,
    proxy: Option<ProxyPod>,
    /// How each ended, and all that it had said.
    proxies_ended: Vec<(ExitStatus, String)>,
}

struct ProxyPod {
    attached: Attached,
    readiness: JoinHandle<()>,
    _account: Account,
}

impl Bed {
    pub async fn new(replicas: usize) -> Self {
        let cluster = Cluster::shared().await;
        let namespace = cluster.namespace().await;
        let kubelet = Arc::new(Kubelet::of(&namespace).await);
        let node = Arc::new(Node::new(&cluster, &namespace).await);
        let (up, gone, weak) = (node.clone(), node.clone(), Arc::downgrade(&kubelet));
        kubelet.when_up(move |pod| {
            let (node, kubelet) = (up.clone(), weak.clone());
            async move { node.start(pod, kubelet).await }
        });
        kubelet.when_gone(move |pod| {
            let node = gone.clone();
            async move { node.stop(&pod).await }
        });
        kubelet.script("mirrord-proxy-", Script::Unready);
        let port = node.baseline.address.port();
        let orders = Baseline::deploy_on(port, &namespace, "orders", replicas).await;
        behead(&namespace, "orders").await;
        let account = namespace.account("deployer", &deployer()).await;
        Self {
            namespace,
            kubelet,
            orders,
            account,
            port,
            node,
        }
    }

    pub fn deploy(&self, session: &str) -> Run {
        self.deploy_image(session, session)
    }

    pub(super) fn deploy_image(&self, session: &str, tag: &str) -> Run {
        let image = json!({ "orders": format!("registry.example/orders:{tag}") }).to_string();
        let mut arguments = self.arguments("deploy", session);
        for (flag, value) in [
            ("--built-images", image.as_str()),
            ("--proxy-image", "registry.example/session-proxy:1"),
            ("--timeout", "60s"),
        ] {
            arguments.extend([flag.to_owned(), value.to_owned()]);
        }
        Run::start(&self.account.kubeconfig(), arguments)
    }

    pub fn verify(&self, session: &str) -> Run {
        let pods = json!({ "orders": format!("pr-orders-{session}") }).to_string();
        let mut arguments = self.arguments("verify", session);
        arguments.extend(["--deployed-pods".to_owned(), pods]);
        Run::start(&self.account.kubeconfig(), arguments)
    }

    pub fn cleanup(&self, session: &str) -> Run {
        let namespace = self.namespace.name();
        let arguments = ["cleanup", "--session", session, "--namespaces", namespace];
        Run::start(&self.account.kubeconfig(), arguments)
    }

    fn arguments(&self, command: &str, session: &str) -> Vec<String> {
        let stack = self.stack();
        let header = format!("x-dev-session: {session}");
        let arguments = [
            command,
            "--stack-json",
            &stack,
            "--build-apps",
            "orders",
            "--intercept-header",
            &header,
            "--default-namespace",
            self.namespace.name(),
        ];
        arguments.map(str::to_owned).to_vec()
    }

    pub(super) async fn uid(&self, pod: &str) -> String {
        let pod = self.namespace.api::<Pod>().get(pod).await;
        pod.expect("it is there")
            .uid()
            .expect("a stored pod has a uid")
    }

    /// The stack of the app, for whoever deploys it.
    pub fn stack(&self) -> String {
        let app = json!({
            "name": "orders",
            "repo": "example/orders",
            "container-port": self.port,
            "service-port": 80,
        });
        json!({ "name": "shop", "apps": [app] }).to_string()
    }

    /// Where one of the replicas answers.
    pub fn address(&self) -> SocketAddr {
        let targets = self.node.targets();
        targets.first().expect("there is a replica").address
    }

    /// Asks each replica, with a session or without: by which route and by which pod it was answered.
    pub async fn ask_all(&self, session: Option<&str>, target: &str) -> Vec<(String, String)> {
        let mut answers = Vec::new();
        for pod in self.node.targets() {
            let answer = ask(pod.address, session, target).await;
            let route = answer.route().unwrap_or("none").to_owned();
            let body: serde_json::Value =
                serde_json::from_slice(&answer.body).unwrap_or_else(|_| json!({ "pod": "app" }));
            answers.push((route, body["pod"].as_str().unwrap_or_default().to_owned()));
        }
        answers
    }

    /// Waits until every replica's requests are taken, and the proxy pod says so.
    pub async fn settles(&self) {
        let pods = self.namespace.api::<Pod>();
        eventually("every replica is intercepted", async || {
            let answers = self.ask_all(Some("session-proxy-probe"), "/").await;
            let proxy = pods.get("mirrord-proxy-orders").await.expect("it is there");
            answers.iter().all(|(route, _)| route == "probe") && is_ready(&proxy)
        })
        .await;
    }

    pub fn target(&self, name: &str) -> Arc<TargetPod> {
        self.node.running().targets[name].clone()
    }

    /// The exit codes of the proxy pods that have ended, and what they had said.
    pub fn proxies_ended(&self) -> Vec<(Option<i32>, String)> {
        let running = self.node.running();
        let ended = running.proxies_ended.iter();
        ended
            .map(|(status, said)| (status.code(), said.clone()))
            .collect()
    }

    /// Whether any PR pod ever was asked for that target.
    pub fn pr_pods_saw(&self, target: &str) -> bool {
        let running = self.node.running();
        let saw = |log: &Arc<Mutex<String>>| log.lock().expect("no panic").contains(target);
        running.logs.iter().any(saw)
    }

    /// Asks every replica without a session, again and again, until the task is aborted.
    pub fn untagged(&self, target: &'static str) -> JoinHandle<()> {
        let node = Arc::downgrade(&self.node);
        tokio::spawn(async move {
            loop {
                let Some(pods) = node.upgrade().map(|node| node.targets()) else {
                    return;
                };
                for pod in pods {
                    // One that is about to go may refuse.
                    let _ = probe(pod.address, None, target).ask().await;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    }

    /// Asks every replica with a session, again and again, until the task is aborted; counts the answers by
    /// their status and route.
    pub(super) fn tagged(
        &self,
        session: &'static str,
        target: &'static str,
    ) -> (JoinHandle<()>, Counts) {
        let node = Arc::downgrade(&self.node);
        let counts = Counts::default();
        let seen = counts.clone();
        let asking = tokio::spawn(async move {
            while let Some(pods) = node.upgrade().map(|node| node.targets()) {
                for pod in pods {
                    let answer = ask(pod.address, Some(session), target).await;
                    let route = answer.route().unwrap_or("none").to_owned();
                    let mut seen = seen.lock().expect("nobody panics with it");
                    *seen.entry((answer.status.as_u16(), route)).or_default() += 1;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        (asking, counts)
    }

    /// Everything of ours in the namespace: kinds and names.
    pub async fn ours(&self) -> Vec<String> {
        use k8s_openapi::api::batch::v1::Job;
        use k8s_openapi::api::coordination::v1::Lease;
        use k8s_openapi::api::core::v1::ServiceAccount;
        use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
        let mut ours = Vec::new();
        macro_rules! kinds {
            ($($kind:ty: $selector:literal),*) => {$(
                let all = kube::api::ListParams::default().labels($selector);
                let list = self.namespace.api::<$kind>().list(&all).await;
                for object in list.expect("the administrator may list").items {
                    ours.push(format!("{} {}", stringify!($kind), object.name_any()));
                }
            )*};
        }
        kinds!(
            Pod: "session-proxy/app", ConfigMap: "session-proxy/app", Role: "session-proxy/app",
            RoleBinding: "session-proxy/app", ServiceAccount: "session-proxy/app", Lease: "", Job: ""
        );
        ours
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let mut running = self.node.running();
        if let Some(proxy) = running.proxy.take() {
            proxy.readiness.abort();
        }
    }
}

impl Node {
    async fn new(cluster: &Cluster, namespace: &Namespace) -> Self {
        let hub = Hub::new(Arc::new(Agents::of(namespace))).await;
        let folder = tempfile::tempdir().expect("a writable temp folder");
        let mirrord = stand_in::install(folder.path(), hub.address, Duration::from_millis(200));
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().await));
        let baseline = App::start(("orders", "baseline"), free, vec![], Habits::default()).await;
        Self {
            cluster: cluster.clone(),
            hub,
            mirrord,
            folder,
            baseline,
            running: Mutex::default(),
        }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().expect("nobody panics with it")
    }

    fn targets(&self) -> Vec<Arc<TargetPod>> {
        self.running().targets.values().cloned().collect()
    }

    async fn start(&self, pod: RunningPod, kubelet: Weak<Kubelet>) {
        let label = |key: &str| pod.object.labels().get(key).map(String::as_str);
        let address = SocketAddr::from((pod.ip, self.baseline.address.port()));
        match label("app") {
            Some("orders") => {
                let target = TargetPod::start(&pod.name, address).await;
                self.hub.enter(target.clone());
                self.running().targets.insert(pod.name, target);
            }
            Some("pr-test") => {
                let name = ("orders", &*pod.name);
                let app = App::start(name, address, vec![], Habits::default()).await;
                let mut running = self.running();
                running.logs.push(app.log());
                running.pr_pods.insert(pod.name, app);
            }
            Some("mirrord-proxy") => self.start_proxy(pod, kubelet).await,
            // An agent, which the stand-in for mirrord plays.
            _ => {}
        }
    }

    async fn stop(&self, pod: &RunningPod) {
        let (target, _pr_pod, proxy) = {
            let mut running = self.running();
            let is_proxy = pod.name.starts_with("mirrord-proxy-");
            (
                running.targets.remove(&pod.name),
                running.pr_pods.remove(&pod.name),
                running.proxy.take_if(|_| is_proxy),
            )
        };
        if let Some(target) = target {
            target.refuse();
        }
        if let Some(mut proxy) = proxy {
            proxy.readiness.abort();
            proxy.attached.signal("TERM");
            let status = proxy.attached.wait_exit(grace(&pod.object)).await;
            let said = proxy.attached.stderr();
            self.running().proxies_ended.push((status, said));
        }
    }

    async fn start_proxy(&self, pod: RunningPod, kubelet: Weak<Kubelet>) {
        let spec = pod.object.spec.as_ref().expect("a pod has a spec");
        let namespace = pod.object.namespace().expect("it is in one");
        let name = spec.service_account_name.as_ref().expect("it has one");
        let account = Account::existing(&self.cluster, &namespace, name).await;
        let root = self.folder.path().join(pod.object.uid().expect("a uid"));
        self.mount(spec, &namespace, &root).await;

        let container = &spec.containers[0];
        let mut words = container.command.iter().flatten();
        assert_eq!(words.next().map(String::as_str), Some("session-proxy"));
        let mut command = Command::new(binary());
        // Others run here, too, with whom a container would not share its ports.
        command
            .args(words.map(|word| inside(container, word, &root)))
            .args(["--local-ports", &local_ports().to_string()])
            .env_clear()
            .envs(
                container
                    .env
                    .iter()
                    .flatten()
                    .map(|one| variable(one, &pod)),
            )
            .env("PATH", "/usr/bin:/bin")
            .env("TMPDIR", self.folder.path())
            .env("KUBECONFIG", account.kubeconfig())
            .env("MIRRORD", &self.mirrord)
            .env("SESSION_PROXY_ADMIN", format!("{}:{ADMIN}", pod.ip))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let attached = Attached::run(command).await;
        let readiness = tokio::spawn(probe_readiness(attached.admin(), pod.name, kubelet));
        let proxy = ProxyPod {
            attached,
            readiness,
            _account: account,
        };
        self.running().proxy = Some(proxy);
    }

    /// Puts the files of its ConfigMaps where the container would find them.
    async fn mount(&self, spec: &PodSpec, namespace: &str, root: &Path) {
        let config_maps = Api::<ConfigMap>::namespaced(self.cluster.client(), namespace);
        for volume in spec.volumes.iter().flatten() {
            let Some(source) = &volume.config_map else {
                continue;
            };
            let mounts = spec.containers[0].volume_mounts.iter().flatten();
            let mount = { mounts }.find(|mount| mount.name == volume.name);
            let path = &mount.expect("it is mounted").mount_path;
            let folder = root.join(path.trim_start_matches('/'));
            std::fs::create_dir_all(&folder).expect("a writable folder");
            let config_map = config_maps.get(&source.name).await.expect("it is there");
            for (file, text) in config_map.data.into_iter().flatten() {
                std::fs::write(folder.join(file), text).expect("a writable folder");
            }
        }
    }
}

/// A word of a command line, where it is a path in one of the container's mounts: the path outside.
fn inside(container: &Container, word: &str, root: &Path) -> String {
    let mut mounts = container.volume_mounts.iter().flatten();
    match mounts.any(|mount| word.starts_with(&mount.mount_path)) {
        true => root.join(&word[1..]).display().to_string(),
        false => word.to_owned(),
    }
}

fn variable(variable: &EnvVar, pod: &RunningPod) -> (String, String) {
    let field = variable
        .value_from
        .as_ref()
        .and_then(|from| from.field_ref.as_ref())
        .map(|field| match &*field.field_path {
            "metadata.name" => pod.name.clone(),
            "metadata.namespace" => pod.object.namespace().expect("it is in one"),
            "metadata.uid" => pod.object.uid().expect("a uid"),
            "status.podIP" => pod.ip.to_string(),
            other => panic!("the downward API here has no {other}"),
        });
    let value = field.or_else(|| variable.value.clone());
    (variable.name.clone(), value.unwrap_or_default())
}

/// The pod is as ready as its admin port says.
async fn probe_readiness(admin: SocketAddr, pod: String, kubelet: Weak<Kubelet>) {
    let mut was_ready = false;
    let mut failures = 0;
    loop {
        let answer = probe(admin, None, "/readyz").ask().await;
        let is_ready = answer.is_ok_and(|answer| answer.status == 200);
        failures = if is_ready { 0 } else { failures + 1 };
        let Some(kubelet) = kubelet.upgrade() else {
            return;
        };
        if is_ready && !was_ready {
            kubelet.make_ready(&pod).await;
            was_ready = true;
        } else if was_ready && failures == 3 {
            kubelet.make_unready(&pod).await;
            was_ready = false;
        }
        drop(kubelet);
        // The first success counts at once; a failure only when it lasts.
        let period = if was_ready { 2000 } else { 100 };
        tokio::time::sleep(Duration::from_millis(period)).await;
    }
}

async fn ask(address: SocketAddr, session: Option<&str>, target: &str) -> Answer {
    let answer = probe(address, session, target).ask().await;
    answer.unwrap_or_else(|silence| panic!("{address} {session:?}: {silence}"))
}

fn probe(address: SocketAddr, session: Option<&str>, target: &str) -> Probe {
    let value = |session| HeaderValue::from_str(session).expect("sessions are visible ASCII");
    let header = session.map(|session| (HeaderName::from_static("x-dev-session"), value(session)));
    Probe {
        address,
        is_http2: false,
        host: address.to_string(),
        target: target.to_owned(),
        headers: header.into_iter().collect(),
        patience: PATIENCE,
    }
}

fn grace(pod: &Pod) -> Duration {
    let spec = pod.spec.as_ref();
    let seconds = spec.and_then(|spec| spec.termination_grace_period_seconds);
    Duration::from_secs(seconds.and_then(|s| s.try_into().ok()).unwrap_or(30))
}

/// Free at all addresses of this machine, as far as can be told.
async fn free_port() -> u16 {
    let all = tokio::net::TcpListener::bind("0.0.0.0:0").await;
    let address = all.expect("there is a free port").local_addr();
    address.expect("it is bound").port()
}
