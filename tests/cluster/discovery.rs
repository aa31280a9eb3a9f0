//! `run` with discovery: pods of a real API server, told by a kubelet that does as it is told.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::rbac::v1::PolicyRule;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::it::support::proxy::{Proxy, Setup};
use crate::it::support::request::Request;
use crate::it::support::upstream::Upstream;
use crate::it::support::way::Way;
use crate::support::PATIENCE;
use crate::support::account::Account;
use crate::support::baseline::PORT;
use crate::support::cluster::Cluster;
use crate::support::eventually;
use crate::support::kubelet::{Kubelet, Script};
use crate::support::namespace::Namespace;
use crate::support::rights::{one_less, rule};

/// What a route header says of a session that is not in the table.
const UNKNOWN: &str = "baseline; reason=unknown-session";

/// What it says of a session none of whose pods is ready.
const NO_POD: &str = "none; reason=no-endpoint";

/// How soon a change in the cluster is one in the proxy.
const SOON: Duration = Duration::from_secs(1);

/// The apps in the pods, by address. They go with their pods.
#[derive(Clone, Default)]
struct Apps(Arc<Mutex<HashMap<Ipv4Addr, Upstream>>>);

impl Apps {
    /// Binds an app in every pod of that kubelet, which says the pod's name.
    fn in_pods_of(kubelet: &Kubelet) -> Self {
        let apps = Self::default();
        let (starting, stopping) = (apps.clone(), apps.clone());
        kubelet.when_up(move |pod| {
            let apps = starting.clone();
            async move {
                let address = SocketAddr::from((pod.ip, PORT));
                let app = Upstream::site_at(address, &pod.name).await;
                apps.0
                    .lock()
                    .expect("no test panics with it")
                    .insert(pod.ip, app);
            }
        });
        kubelet.when_gone(move |pod| {
            let apps = stopping.clone();
            async move {
                apps.0
                    .lock()
                    .expect("no test panics with it")
                    .remove(&pod.ip);
            }
        });
        apps
    }
}

/// All that discovery needs.
fn rights() -> Vec<PolicyRule> {
    vec![rule("", &["pods"], &["list", "watch"])]
}

/// A proxy for the app `orders` of that namespace, with the rights of that account.
fn setup(namespace: &Namespace, account: &Account, baseline: &Upstream) -> Setup {
    let discovery = format!(
        "discovery: {{ kubernetes: {{ namespace: {}, app: orders }} }}",
        namespace.name()
    );
    let kubeconfig = account.kubeconfig();
    Setup::new()
        .baseline(baseline.address)
        .listener(&format!("appPort: {PORT}"))
        .top(&discovery)
        .env("KUBECONFIG", kubeconfig.to_str().expect("a plain path"))
}

/// A pod as `deploy` makes it, as far as discovery looks.
fn pr_pod(name: &str, session: &str) -> Pod {
    let object = json!({
        "metadata": {
            "name": name,
            "labels": { "session-proxy/app": "orders", "session-proxy/session": session },
        },
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "containers": [{ "name": "app", "image": "registry.example/orders:pr" }],
        },
    });
    serde_json::from_value(object).expect("this is a pod")
}

async fn route_of(proxy: &Proxy, session: &str) -> String {
    let request = Request::get("/").session(session);
    let answer = Way::Direct.send(proxy.http(), request).await;
    answer.route().expect("every answer has a route")
}

/// Waits until requests of that session go there, and returns how long that took.
async fn goes_to(proxy: &Proxy, session: &str, route: &str) -> Duration {
    let start = Instant::now();
    loop {
        let now = route_of(proxy, session).await;
        if now == route {
            return start.elapsed();
        }
        assert!(
            start.elapsed() < PATIENCE,
            "{session} goes to {now}, not to {route}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn soon_goes_to(proxy: &Proxy, session: &str, route: &str) {
    let took = goes_to(proxy, session, route).await;
    assert!(took < SOON, "{session} to {route} took {took:?}");
}

async fn served_by(proxy: &Proxy, session: &str) -> String {
    let request = Request::get("/").session(session);
    Way::Direct.send(proxy.http(), request).await.served_by()
}

async fn up(proxy: &Proxy) -> bool {
    proxy.metric("session_proxy_discovery_up", &[]).await == 1.0
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_session_comes_and_goes_with_its_pod_and_is_served_while_that_is_ready() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    let account = namespace.account("proxy", &rights()).await;
    let kubelet = Kubelet::of(&namespace).await;
    let _apps = Apps::in_pods_of(&kubelet);
    kubelet.script("pr-orders-pr-1", Script::Unready);
    let baseline = Upstream::site("baseline").await;
    let proxy = setup(&namespace, &account, &baseline).start().await;
    assert_eq!(route_of(&proxy, "pr-1").await, UNKNOWN);
    namespace.create(&pr_pod("pr-orders-pr-1", "pr-1")).await;
    soon_goes_to(&proxy, "pr-1", NO_POD).await;
    kubelet.ip("pr-orders-pr-1").await;
    assert_eq!(route_of(&proxy, "pr-1").await, NO_POD);

    kubelet.make_ready("pr-orders-pr-1").await;
    soon_goes_to(&proxy, "pr-1", "pr-1").await;
    assert_eq!(served_by(&proxy, "pr-1").await, "pr-orders-pr-1");
    kubelet.make_unready("pr-orders-pr-1").await;
    soon_goes_to(&proxy, "pr-1", NO_POD).await;
    kubelet.make_ready("pr-orders-pr-1").await;
    soon_goes_to(&proxy, "pr-1", "pr-1").await;
    let crash = Script::CrashLoopBackOff { exit_code: 1 };
    kubelet.play("pr-orders-pr-1", crash).await;
    soon_goes_to(&proxy, "pr-1", NO_POD).await;
    kubelet.make_ready("pr-orders-pr-1").await;
    soon_goes_to(&proxy, "pr-1", "pr-1").await;

    // Told to end, it is there for as long as its containers take; nobody is sent to it any more.
    let _held = kubelet.hold_deletions();
    let pods = namespace.api::<Pod>();
    pods.delete("pr-orders-pr-1", &DeleteParams::default())
        .await
        .expect("the administrator may");
    soon_goes_to(&proxy, "pr-1", UNKNOWN).await;
    assert!(
        pods.get_opt("pr-orders-pr-1")
            .await
            .expect("readable")
            .is_some()
    );
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_pod_that_gets_another_label_serves_another_session() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    let account = namespace.account("proxy", &rights()).await;
    let kubelet = Kubelet::of(&namespace).await;
    let _apps = Apps::in_pods_of(&kubelet);
    let baseline = Upstream::site("baseline").await;
    let proxy = setup(&namespace, &account, &baseline).start().await;
    namespace.create(&pr_pod("pod", "pr-1")).await;
    goes_to(&proxy, "pr-1", "pr-1").await;

    let label = async |value| {
        let patch = json!({ "metadata": { "labels": { "session-proxy/session": value } } });
        namespace
            .api::<Pod>()
            .patch("pod", &PatchParams::default(), &Patch::Merge(patch))
            .await
            .expect("the administrator may");
    };

    label(json!("pr-2")).await;
    soon_goes_to(&proxy, "pr-2", "pr-2").await;
    assert_eq!(route_of(&proxy, "pr-1").await, UNKNOWN);
    label(json!(null)).await;
    soon_goes_to(&proxy, "pr-2", UNKNOWN).await;
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn an_address_that_went_to_another_pod_serves_that_one_only() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    let account = namespace.account("proxy", &rights()).await;
    let kubelet = Kubelet::of(&namespace).await;
    let baseline = Upstream::site("baseline").await;
    let proxy = setup(&namespace, &account, &baseline).start().await;
    namespace.create(&pr_pod("old", "pr-1")).await;
    let ip = kubelet.ip("old").await;
    let _app = Upstream::site_at(SocketAddr::from((ip, PORT)), "at the address").await;
    goes_to(&proxy, "pr-1", "pr-1").await;

    // The old one's node is lost, and nobody takes its object away.
    kubelet.next_ip("new", ip);
    namespace.create(&pr_pod("new", "pr-2")).await;

    goes_to(&proxy, "pr-2", "pr-2").await;
    assert_eq!(route_of(&proxy, "pr-1").await, NO_POD);
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn without_one_of_its_rights_it_does_not_start_and_names_the_right() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    let baseline = Upstream::site("baseline").await;
    for (index, (missing, rest)) in one_less(&rights()).into_iter().enumerate() {
        let account = namespace.account(&format!("proxy-{index}"), &rest).await;

        let mut proxy = setup(&namespace, &account, &baseline).spawn();
        let status = proxy.wait_exit(PATIENCE).await;

        assert_eq!(status.code(), Some(1), "without {missing}");
        assert!(
            proxy.stdout().is_empty(),
            "without {missing} something was bound"
        );
        let expected = format!("not allowed to {missing} in namespace {}", namespace.name());
        proxy.logged(&expected).await;
    }
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn an_api_server_that_starts_again_takes_no_session_with_it() {
    let cluster = Cluster::alone().await;
    let namespace = cluster.namespace().await;
    let account = namespace.account("proxy", &rights()).await;
    let kubelet = Kubelet::of(&namespace).await;
    let _apps = Apps::in_pods_of(&kubelet);
    let baseline = Upstream::site("baseline").await;
    let proxy = setup(&namespace, &account, &baseline).start().await;
    namespace.create(&pr_pod("one", "pr-1")).await;
    goes_to(&proxy, "pr-1", "pr-1").await;

    cluster.stop_api().await;
    eventually("it is noticed", async || !up(&proxy).await).await;
    assert_eq!(served_by(&proxy, "pr-1").await, "one");
    assert_eq!(proxy.ask_admin("/readyz").await.status, 200);
    cluster.start_api().await;

    eventually("it is noticed again", async || up(&proxy).await).await;
    assert_eq!(served_by(&proxy, "pr-1").await, "one");
    kubelet.make_unready("one").await;
    soon_goes_to(&proxy, "pr-1", NO_POD).await;
    kubelet.make_ready("one").await;
    soon_goes_to(&proxy, "pr-1", "pr-1").await;
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn among_five_hundred_pods_a_session_follows_its_pod_in_under_a_second() {
    const PODS: usize = 500;
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    let account = namespace.account("proxy", &rights()).await;
    let kubelet = Kubelet::of(&namespace).await;
    let baseline = Upstream::site("baseline").await;
    let making = async |first: usize| {
        for number in (first..PODS).step_by(8) {
            let pod = pr_pod(&format!("pod-{number}"), &format!("pr-{number}"));
            namespace.create(&pod).await;
        }
    };
    tokio::join!(
        making(0),
        making(1),
        making(2),
        making(3),
        making(4),
        making(5),
        making(6),
        making(7)
    );
    let proxy = setup(&namespace, &account, &baseline).start().await;
    eventually("all are ready", async || {
        let overview = proxy.ask_admin("/sessions").await.json();
        let sessions = overview["sessions"].as_array().expect("a list");
        let live = sessions.iter().filter(|session| session["state"] == "live");
        live.count() == PODS
    })
    .await;

    kubelet.script("new", Script::Unready);
    namespace.create(&pr_pod("new", "new")).await;
    let ip = kubelet.ip("new").await;
    let _app = Upstream::site_at(SocketAddr::from((ip, PORT)), "new").await;
    for _ in 0..3 {
        kubelet.make_ready("new").await;
        soon_goes_to(&proxy, "new", "new").await;
        kubelet.make_unready("new").await;
        soon_goes_to(&proxy, "new", NO_POD).await;
    }
    let pods = namespace.api::<Pod>();
    pods.delete("new", &DeleteParams::default())
        .await
        .expect("the administrator may");
    soon_goes_to(&proxy, "new", UNKNOWN).await;
}
