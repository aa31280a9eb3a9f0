//! `verify` against a real API server: with the rights that it says it needs, and with each of them
//! taken away.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Output};

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::rbac::v1::PolicyRule;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::it::support::app::fresh_ip;
use crate::it::support::app::{App, Habits};
use crate::it::support::proxy::{Proxy, Setup, binary};
use crate::support::baseline::{Baseline, PORT};
use crate::support::cluster::Cluster;
use crate::support::found;
use crate::support::kubelet::Kubelet;
use crate::support::namespace::Namespace;
use crate::support::rights::{one_less, rule};

/// An app with two replicas, intercepted for `pr-42`.
struct Intercepted {
    namespace: Namespace,
    _kubelet: Kubelet,
    _apps: Vec<App>,
    _proxy: Proxy,
}

impl Intercepted {
    async fn new() -> Self {
        let cluster = Cluster::shared().await;
        let namespace = cluster.namespace().await;
        let kubelet = Kubelet::of(&namespace).await;
        let baseline = Baseline::deploy(&namespace, "orders", 2).await;
        behead(&namespace, "orders").await;
        let labels = json!({
            "app": "pr-test", "session-proxy/app": "orders", "session-proxy/session": "pr-42",
        });
        namespace
            .create(&pod("pr-orders-pr-42", &labels, PORT))
            .await;
        let pr = kubelet.ip("pr-orders-pr-42").await;

        let mut apps = vec![app("pr-orders-pr-42", pr).await];
        let mut yaml = "listeners:\n".to_owned();
        for replica in baseline.ready(2).await {
            let (ip, behind) = (kubelet.ip(&replica).await, fresh_ip());
            apps.push(app(&replica, behind).await);
            yaml += &format!(
                "  - {{ name: {replica}, address: \"{ip}:{PORT}\", baseline: \"{behind}:{PORT}\" }}\n"
            );
        }
        yaml += &format!("sessions: {{ pr-42: \"{pr}\" }}\n");
        let proxy = Setup::new().yaml(&yaml).start().await;

        kubelet.next_ip("mirrord-proxy-orders", Ipv4Addr::LOCALHOST);
        let labels = json!({ "app": "mirrord-proxy", "session-proxy/app": "orders" });
        let admin = proxy.admin().port();
        namespace
            .create(&pod("mirrord-proxy-orders", &labels, admin))
            .await;
        for name in ["pr-orders-pr-42", "mirrord-proxy-orders"] {
            ready(&namespace, name).await;
        }
        Self {
            namespace,
            _kubelet: kubelet,
            _apps: apps,
            _proxy: proxy,
        }
    }

    async fn verify(&self, kubeconfig: &Path) -> Output {
        let namespace = self.namespace.name();
        let app = json!({ "name": "orders", "container-port": PORT, "service-port": 80 });
        let stack = json!({ "name": "shop", "apps": [app] }).to_string();
        let mut command = Command::new(binary());
        command
            .arg("verify")
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["--stack-json", &stack, "--build-apps", "orders"])
            .args(["--intercept-header", "x-dev-session: pr-42"])
            .args(["--default-namespace", namespace, "--timeout", "20s"])
            .args(["--deployed-pods", r#"{"orders":"pr-orders-pr-42"}"#]);
        let output = tokio::task::spawn_blocking(move || command.output());
        output
            .await
            .expect("no panic")
            .expect("the binary can be started")
    }
}

/// What `verify` asks the API server for.
fn rights() -> Vec<PolicyRule> {
    vec![
        rule("", &["pods"], &["get", "list"]),
        rule("", &["pods/log", "services"], &["get"]),
        rule("apps", &["deployments"], &["get"]),
    ]
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn verify_proves_an_intercept_with_the_rights_it_needs() {
    let intercepted = Intercepted::new().await;
    let account = intercepted.namespace.account("verifier", &rights()).await;

    let output = intercepted.verify(&account.kubeconfig()).await;

    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["ok"], true);
    let replicas = report["apps"][0]["replicas"].as_array().map(Vec::len);
    assert_eq!(replicas, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn verify_fails_without_any_of_its_rights_and_names_it() {
    let intercepted = Intercepted::new().await;

    for (index, (right, rest)) in one_less(&rights()).into_iter().enumerate() {
        let name = format!("verifier-{index}");
        let account = intercepted.namespace.account(&name, &rest).await;

        let output = intercepted.verify(&account.kubeconfig()).await;

        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "without {right}: {stderr}");
        let advice = format!("grant the verb {} on {}", right.verb, right.resource);
        assert!(stderr.contains(&advice), "without {right}: {stderr}");
    }
}

/// Takes the Service's address away: here nobody makes it lead to pods, and it may be somebody else's.
pub(crate) async fn behead(namespace: &Namespace, name: &str) {
    let services = namespace.api::<Service>();
    let gone = services.delete(name, &DeleteParams::default()).await;
    gone.expect("the administrator may delete Services");
    let headless = json!({
        "metadata": { "name": name },
        "spec": { "clusterIP": "None", "selector": { "app": name }, "ports": [{ "port": 80 }] },
    });
    let headless: Service = serde_json::from_value(headless).expect("this is a Service");
    namespace.create(&headless).await;
}

async fn app(pod: &str, ip: Ipv4Addr) -> App {
    let address = (IpAddr::from(ip), PORT).into();
    App::start(("orders", pod), address, vec![], Habits::default()).await
}

fn pod(name: &str, labels: &Value, port: u16) -> Pod {
    let object = json!({
        "metadata": { "name": name, "labels": labels },
        "spec": {
            "containers": [{
                "name": "app",
                "image": "registry.example/app:live",
                "ports": [{ "name": "admin", "containerPort": port }],
            }],
        },
    });
    serde_json::from_value(object).expect("this is a pod")
}

async fn ready(namespace: &Namespace, name: &str) {
    let pods = namespace.api::<Pod>();
    found(&format!("{name} is ready"), async || {
        let pod = pods
            .get(name)
            .await
            .expect("the administrator may read pods");
        crate::support::baseline::is_ready(&pod).then_some(())
    })
    .await;
}
