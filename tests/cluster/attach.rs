//! `attach` against a real API server, with the rights that its Role grants and no others. mirrord is
//! the stand-in; its agents are real Jobs.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::rbac::v1::PolicyRule;
use kube::api::{DeleteParams, ListParams};
use serde_json::Value;
use session_proxy::control::intercept::{
    Agent, AppProtocol, Backend, Intercept, Mode, Port, Target, TargetKind,
};
use session_proxy::control::objects::proxy::Proxy;
use tempfile::TempDir;

use crate::it::support::attached::{self, Attached, Setting};
use crate::it::support::hub::{Fate, Hub};
use crate::it::support::stand_in;
use crate::it::support::target_pod::TargetPod;
use crate::support::account::Account;
use crate::support::agents::Agents;
use crate::support::baseline::{Baseline, PORT};
use crate::support::cluster::Cluster;
use crate::support::kubelet::Kubelet;
use crate::support::namespace::Namespace;
use crate::support::rights::one_less;
use crate::support::{PATIENCE, eventually};

/// A namespace with an app, a kubelet and mirrord.
struct Bed {
    namespace: Namespace,
    kubelet: Kubelet,
    orders: Baseline,
    pods: Arc<Mutex<Vec<Arc<TargetPod>>>>,
    _hub: Arc<Hub<Agents>>,
    mirrord: PathBuf,
    folder: TempDir,
}

impl Bed {
    async fn new(cluster: &Cluster, replicas: usize) -> Self {
        let namespace = cluster.namespace().await;
        Self::with_agents_in(namespace, None, replicas).await
    }

    /// Agents run in the app's namespace when there is no other.
    async fn with_agents_in(
        namespace: Namespace,
        agents: Option<&Namespace>,
        replicas: usize,
    ) -> Self {
        let home = agents.unwrap_or(&namespace);
        let hub = Hub::new(Arc::new(Agents::of(home)));
        let hub = Arc::new(hub.await);
        let kubelet = Kubelet::of(&namespace).await;
        let pods = Arc::new(Mutex::new(Vec::new()));
        let (shared, known) = (hub.clone(), pods.clone());
        kubelet.when_up(move |pod| {
            let (hub, pods) = (shared.clone(), known.clone());
            async move {
                let is_known = |known: &Arc<TargetPod>| known.name == pod.name;
                let is_new = !pods
                    .lock()
                    .expect("no test panics with it")
                    .iter()
                    .any(is_known);
                if pod.name.starts_with("orders-") && is_new {
                    let app = TargetPod::start(&pod.name, (pod.ip, PORT).into()).await;
                    hub.enter(app.clone());
                    pods.lock().expect("no test panics with it").push(app);
                }
            }
        });
        let orders = Baseline::deploy(&namespace, "orders", replicas).await;
        let folder = tempfile::tempdir().expect("a writable temp folder");
        let mirrord = stand_in::install(folder.path(), hub.address, Duration::from_millis(200));
        Self {
            namespace,
            kubelet,
            orders,
            pods,
            _hub: hub,
            mirrord,
            folder,
        }
    }

    fn pod(&self, name: &str) -> Arc<TargetPod> {
        let pods = self.pods.lock().expect("no test panics with it");
        let found = pods.iter().rfind(|pod| pod.name == name);
        found.unwrap_or_else(|| panic!("no pod {name}")).clone()
    }

    fn intercept(&self, agents: &str) -> Intercept {
        Intercept {
            app: "orders".into(),
            namespace: self.namespace.name().into(),
            target: Target {
                kind: TargetKind::Deployment,
                name: "orders".into(),
            },
            ports: vec![Port {
                container_port: PORT,
                protocol: AppProtocol::Http,
            }],
            header: "x-dev-session".into(),
            baggage_key: "dev-session".into(),
            mode: Mode::Steal,
            agent: Agent {
                namespace: agents.into(),
                is_ephemeral: false,
                image: None,
            },
            backend: Backend::Mirrord,
        }
    }

    fn rights(&self) -> Vec<PolicyRule> {
        let proxy = Proxy {
            stack: "shop",
            intercept: &self.intercept(self.namespace.name()),
            image: "registry.example/session-proxy:1",
            pull_secrets: &[],
            service_account: None,
            may_delete_targets: false,
            owners: &[],
        };
        proxy.role().rules.expect("a role has rules")
    }

    async fn account(&self) -> Account {
        self.namespace.account("proxy", &self.rights()).await
    }

    async fn attach(&self, account: &Account, uid: &str) -> Attached {
        let intercept = self.intercept(self.namespace.name());
        self.attach_with(account, uid, &intercept).await
    }

    async fn attach_with(&self, account: &Account, uid: &str, intercept: &Intercept) -> Attached {
        let path = self.folder.path().join("intercept.json");
        let text = serde_json::to_string(intercept).expect("its keys are text");
        std::fs::write(&path, text).expect("a writable folder");
        let setting = Setting {
            intercept: path,
            mirrord: self.mirrord.clone(),
            kubeconfig: account.kubeconfig(),
            temp: self.folder.path().to_owned(),
        };
        Attached::run(attached::command(&setting, uid, &[])).await
    }

    async fn leases(&self) -> Vec<Lease> {
        let leases = self
            .namespace
            .api::<Lease>()
            .list(&ListParams::default())
            .await;
        leases.expect("the administrator may list").items
    }
}

async fn ready(attached: &Attached) {
    let start = Instant::now();
    loop {
        let answer = attached.get("/readyz").await;
        if answer.status == 200 {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{}", answer.text());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn attach_follows_a_deployment_through_scaling_and_a_rollout() {
    let cluster = Cluster::shared().await;
    let bed = Bed::new(&cluster, 2).await;
    let account = bed.account().await;
    let mut attached = bed.attach(&account, "proxy-1").await;
    ready(&attached).await;
    assert_eq!(bed.leases().await.len(), 2);

    bed.orders.scale(3).await;
    let scaled = bed.orders.ready(3).await;
    for pod in &scaled {
        attached.reaches_within(pod, "live", PATIENCE).await;
    }
    let rolled = bed.orders.roll().await;
    for pod in &rolled {
        attached.reaches_within(pod, "live", PATIENCE).await;
        assert_eq!((bed.pod(pod).starts(), bed.pod(pod).overlaps()), (1, 0));
    }

    ready(&attached).await;
    // The leases of pods that are gone went with them.
    eventually("three leases", async || bed.leases().await.len() == 3).await;
    attached.signal("TERM");
    let status = attached.wait_exit(Duration::from_secs(20)).await;
    assert_eq!(status.code(), Some(0));
    assert!(bed.leases().await.is_empty());
    eventually("no agent is left", async || {
        let jobs = bed
            .namespace
            .api::<Job>()
            .list(&ListParams::default())
            .await;
        jobs.expect("the administrator may list").items.is_empty()
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn attach_mends_what_the_cluster_does_to_a_session() {
    let cluster = Cluster::shared().await;
    let bed = Bed::new(&cluster, 1).await;
    let account = bed.account().await;
    let attached = bed.attach(&account, "proxy-1").await;
    let name = bed.orders.ready(1).await.remove(0);
    attached.reaches_within(&name, "live", PATIENCE).await;

    let agents = ListParams::default().labels("app=mirrord");
    let pods = bed.namespace.api::<Pod>();
    let deleted = pods
        .delete_collection(&DeleteParams::default(), &agents)
        .await;
    deleted.expect("the administrator may delete");
    attached.recovers(&name, "agent-gone").await;
    bed.kubelet.restart_container(&name).await;

    attached.recovers(&name, "container-replaced").await;
    assert_eq!(bed.pod(&name).overlaps(), 0);
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn attach_and_attach_never_start_on_one_pod() {
    let cluster = Cluster::shared().await;
    let bed = Bed::new(&cluster, 4).await;
    let account = bed.account().await;
    let mut first = bed.attach(&account, "proxy-1").await;
    let second = bed.attach(&account, "proxy-2").await;
    let pods = bed.orders.ready(4).await;
    let states = async || {
        let mut states = Vec::new();
        for pod in &pods {
            let one = first.target(pod).await["state"].clone();
            states.push((one, second.target(pod).await["state"].clone()));
        }
        states
    };
    let is_settled = |(one, other): &(Value, Value)| {
        (one == "live" && other == "occupied") || (one == "occupied" && other == "live")
    };
    eventually("each pod has one owner", async || {
        states().await.iter().all(is_settled)
    })
    .await;

    first.signal("TERM");
    let status = first.wait_exit(Duration::from_secs(20)).await;
    assert_eq!(status.code(), Some(0));

    for pod in &pods {
        second.reaches_within(pod, "live", PATIENCE).await;
        assert_eq!(bed.pod(pod).overlaps(), 0, "{pod}");
    }
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn attach_tells_why_pod_security_keeps_an_agent_away() {
    let cluster = Cluster::shared().await;
    let restricted = [("pod-security.kubernetes.io/enforce", "restricted")];
    let agents = cluster.namespace_with(&restricted).await;
    let bed = Bed::with_agents_in(cluster.namespace().await, Some(&agents), 1).await;
    let account = bed.account().await;
    account.grant(&agents, &bed.rights()).await;
    let name = bed.orders.ready(1).await.remove(0);
    bed.pod(&name).fates(&[Fate::NotAdmitted; 9]);

    let intercept = bed.intercept(agents.name());
    let attached = bed.attach_with(&account, "proxy-1", &intercept).await;

    let told = attached.reaches_within(&name, "failed", PATIENCE).await;
    let message = told["message"].as_str().expect("a text");
    assert!(message.contains("FailedCreate"), "{message}");
    assert!(message.contains("violates PodSecurity"), "{message}");
    eventually("its job is removed", async || {
        let jobs = agents.api::<Job>().list(&ListParams::default()).await;
        jobs.expect("the administrator may list").items.is_empty()
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn attach_keeps_what_is_live_while_the_api_server_is_away() {
    let cluster = Cluster::alone().await;
    let bed = Bed::new(&cluster, 1).await;
    let account = bed.account().await;
    let attached = bed.attach(&account, "proxy-1").await;
    let name = bed.orders.ready(1).await.remove(0);
    attached.reaches_within(&name, "live", PATIENCE).await;

    cluster.stop_api().await;
    let renewed = attached
        .stderr()
        .matches("the lease is not renewed")
        .count();
    let start = Instant::now();
    while attached
        .stderr()
        .matches("the lease is not renewed")
        .count()
        < renewed + 2
    {
        assert!(start.elapsed() < PATIENCE, "{}", attached.stderr());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(attached.get("/readyz").await.status, 200);
    cluster.start_api().await;
    bed.orders.scale(2).await;

    for pod in bed.orders.ready(2).await {
        attached.reaches_within(&pod, "live", PATIENCE).await;
        assert_eq!(bed.pod(&pod).starts(), 1);
    }
}

/// Rights that only mirrord itself uses, or that nothing here comes to use.
const OF_OTHERS: [&str; 7] = [
    "get pods",
    "get jobs",
    "create jobs",
    "get pods/log",
    "get pods/portforward",
    "create pods/portforward",
    "patch leases",
];

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn attach_names_each_right_that_is_missing() {
    let cluster = Cluster::shared().await;
    let bed = Bed::new(&cluster, 1).await;
    let name = bed.orders.ready(1).await.remove(0);
    for (index, (right, rules)) in one_less(&bed.rights()).into_iter().enumerate() {
        if OF_OTHERS.contains(&right.to_string().as_str()) {
            continue;
        }
        let account = bed
            .namespace
            .account(&format!("proxy-{index}"), &rules)
            .await;
        let uid = format!("proxy-{index}");
        if ["list events", "delete jobs"].contains(&right.to_string().as_str()) {
            bed.pod(&name).fates(&[Fate::NotAdmitted]);
        }
        let mut attached = bed.attach(&account, &uid).await;

        // Only what holds a lease renews it, and gives it back.
        if right.resource == "leases" && ["update", "delete"].contains(&right.verb.as_str()) {
            attached.reaches_within(&name, "live", PATIENCE).await;
        }
        if right.to_string() == "delete leases" {
            attached.signal("TERM");
        }
        let missing = format!(
            "not allowed to {right} in namespace {}",
            bed.namespace.name()
        );
        let start = Instant::now();
        while !attached.stderr().contains(&missing) {
            let said = attached.stderr();
            assert!(
                start.elapsed() < PATIENCE,
                "without the right to {right}:\n{said}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // The second ends it at once, if the first has not.
        attached.signal("TERM");
        attached.signal("TERM");
        attached.wait_exit(Duration::from_secs(20)).await;
        let leases = bed.namespace.api::<Lease>();
        let all = leases
            .delete_collection(&DeleteParams::default(), &ListParams::default())
            .await;
        all.expect("the administrator may delete");
        eventually("nothing of it is left", async || {
            !bed.pod(&name).has_rules()
        })
        .await;
    }
}
