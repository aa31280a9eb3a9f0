//! The objects as they were when somebody last looked at them closely.
//!
//! `tests/data/objects` holds templates and what becomes of them. With `GOLDEN=write` in the environment
//! the tests write what becomes of them now, for `git diff`.

use std::fs;
use std::path::PathBuf;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ConfigMap, LocalObjectReference, Pod, PodTemplateSpec, ServiceAccount,
};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::pr_pod::{Made, PrPod};
use super::proxy::Proxy;
use super::{owner, template};
use crate::control::intercept::{
    Agent, AppProtocol, Backend, Intercept, Mode, Port, ServicePort, Target, TargetKind,
    Telepresence,
};
use crate::control::objects::restricted::offences;
use crate::control::stack::Stack;

pub(super) const KINDS: [TargetKind; 5] = [
    TargetKind::Deployment,
    TargetKind::StatefulSet,
    TargetKind::ReplicaSet,
    TargetKind::Rollout,
    TargetKind::Pod,
];

const STACK: &str = "
name: shop
apps:
  - { name: orders, container-port: 8080, service-port: 80 }
";

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/objects")
        .join(name)
}

fn read<T: DeserializeOwned>(name: &str) -> T {
    serde_saphyr::from_str(&fs::read_to_string(file(name)).unwrap()).unwrap()
}

/// Compares with a file of documents, or writes it.
fn compare(name: &str, documents: &[String]) {
    let now = documents.join("---\n");
    if std::env::var("GOLDEN").is_ok_and(|deed| deed == "write") {
        fs::write(file(name), &now).unwrap();
    }
    let then = fs::read_to_string(file(name)).unwrap_or_default();
    assert!(
        now == then,
        "{name} is not what it was; GOLDEN=write cargo test --lib objects, then git diff\n{now}"
    );
}

/// An object as a document, which reads back as the same.
fn document<K: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(object: &K) -> String {
    let text = super::document(object);
    assert_eq!(
        &serde_saphyr::from_str::<K>(&text).unwrap(),
        object,
        "{text}"
    );
    text
}

fn pr_pod(template: &PodTemplateSpec) -> Made {
    let stack = Stack::parse("stack.yaml", STACK.as_bytes()).unwrap();
    let pod = PrPod {
        stack: &stack.name,
        app: stack.entry(),
        namespace: "staging",
        session: "pr-42",
        image: "registry.local:5000/orders:pr-42-1a2b3c@sha256:6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b",
        template,
        pipeline_run: Some("d2b0a3a6-6f0e-4c55-8f41-2f2f5d0c8a11"),
        expires_at: Some("2026-11-21T12:00:00Z".parse::<Timestamp>().unwrap()),
    };
    pod.pod()
}

fn compare_pr_pod(name: &str, template: &PodTemplateSpec) {
    let made = pr_pod(template);
    let notes: String = made
        .notes
        .iter()
        .map(|note| format!("# {note}\n"))
        .collect();
    compare(name, &[notes + &document(&made.pod)]);
}

#[test]
fn a_pr_pod_is_the_baseline_with_another_image() {
    compare_pr_pod("plain.yaml", &read("plain.template.yaml"));
}

#[test]
fn a_pr_pod_has_the_baselines_company_but_not_its_place() {
    compare_pr_pod("crowded.yaml", &read("crowded.template.yaml"));
}

#[test]
fn a_pr_pod_has_folders_of_its_own_for_what_each_replica_claims() {
    compare_pr_pod("stateful.yaml", &read("stateful.template.yaml"));
}

#[test]
fn a_pr_pod_can_be_made_from_a_living_pod() {
    compare_pr_pod("living.yaml", &template::of_pod(&read("living.pod.yaml")));
}

pub(super) fn intercept(kind: TargetKind) -> Intercept {
    Intercept {
        app: "orders".to_owned(),
        namespace: "staging".to_owned(),
        target: Target {
            kind,
            name: "orders".to_owned(),
        },
        ports: vec![Port {
            container_port: 8080,
            protocol: AppProtocol::Http,
        }],
        header: "x-dev-session".to_owned(),
        baggage_key: "dev-session".to_owned(),
        mode: Mode::Steal,
        agent: Agent {
            namespace: "staging".to_owned(),
            is_ephemeral: false,
            image: None,
        },
        backend: Backend::Mirrord,
    }
}

const PROXY_IMAGE: &str = "registry.local/session-proxy:0.1.0";

#[test]
fn a_proxy_brings_all_that_it_needs() {
    let mut owner_pod = pr_pod(&read("plain.template.yaml")).pod;
    owner_pod.metadata.uid = Some("5f0c2f0e-3b7a-4d53-9a51-6f3f1f0a9b77".to_owned());
    let intercept = intercept(TargetKind::Deployment);
    let proxy = Proxy {
        stack: "shop",
        intercept: &intercept,
        image: PROXY_IMAGE,
        pull_secrets: &[LocalObjectReference {
            name: "registry".to_owned(),
        }],
        service_account: None,
        may_delete_targets: false,
        owners: &[owner(&owner_pod).unwrap()],
    };

    compare(
        "proxy.yaml",
        &[
            document::<ServiceAccount>(&proxy.service_account()),
            document::<Role>(&proxy.role()),
            document::<RoleBinding>(&proxy.role_binding()),
            document::<ConfigMap>(&proxy.config_map()),
            document::<Pod>(&proxy.pod()),
        ],
    );
}

#[test]
fn a_proxy_of_telepresence_needs_no_more_than_one_of_mirrord() {
    let mut intercept = intercept(TargetKind::Deployment);
    intercept.backend = Backend::Telepresence(Telepresence {
        manager_namespace: "staging".to_owned(),
        services: vec![ServicePort {
            service: "orders".to_owned(),
            port: "http".to_owned(),
        }],
    });
    let proxy = Proxy {
        stack: "shop",
        intercept: &intercept,
        image: PROXY_IMAGE,
        pull_secrets: &[],
        service_account: None,
        may_delete_targets: false,
        owners: &[],
    };
    let pod = proxy.pod();

    assert_eq!(offences(&pod), Vec::<String>::new());
    compare(
        "telepresence.yaml",
        &[
            document::<Role>(&proxy.role()),
            document::<ConfigMap>(&proxy.config_map()),
            document::<Pod>(&pod),
        ],
    );
}

/// What was written before there was a choice is mirrord's, and what is written for mirrord is read by
/// those who know no other.
#[test]
fn a_configuration_without_a_backend_is_mirrords() {
    let intercept = intercept(TargetKind::Deployment);
    let written = serde_json::to_value(&intercept).unwrap();
    assert!(written.get("backend").is_none(), "{written}");
    let read: Intercept = serde_json::from_value(written).unwrap();
    assert_eq!(read, intercept);
}

/// Each in its own way: who it is, what it targets, how its agents run.
#[test]
fn a_proxy_may_do_what_its_target_takes_and_no_more() {
    let roles = KINDS.map(|kind| {
        let mut intercept = intercept(kind);
        intercept.agent.is_ephemeral = kind == TargetKind::StatefulSet;
        let proxy = Proxy {
            stack: "shop",
            intercept: &intercept,
            image: PROXY_IMAGE,
            pull_secrets: &[],
            service_account: None,
            may_delete_targets: kind == TargetKind::ReplicaSet,
            owners: &[],
        };
        format!("# {kind:?}\n{}", document(&proxy.role()))
    });

    compare("roles.yaml", &roles);
}

/// Readers of YAML 1.1, kubectl among them, see numbers, times and truths where later ones see text.
#[test]
fn text_stays_text_for_every_reader() {
    let texts = "y n yes no on off Y NO On ~ null true 012 0o14 0x1f 1e3 1_000 12:30:45 2026-11-21 .inf .nan = << - ? * & ! % @ ` 1.";
    let texts = texts.split(' ').chain([
        "", " ", "a: b", "a #b", "{a}", "[a]", "a\tb", "'", "\"", "\\",
    ]);
    let pairs: Vec<_> = texts
        .enumerate()
        .map(|(n, text)| (format!("k{n}"), text.to_owned()))
        .collect();
    let map = ConfigMap {
        data: Some(pairs.into_iter().collect()),
        ..ConfigMap::default()
    };

    compare("texts.yaml", &[document(&map)]);
}
