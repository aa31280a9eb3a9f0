//! What an operator installs: `config/install`, `config/rbac` and `config/demo`, applied as he does it, to a
//! cluster with Tekton in it.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use k8s_openapi::api::authorization::v1::{SelfSubjectRulesReview, SelfSubjectRulesReviewSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::it::support::kind_up::KindUp;
use crate::support::account::Account;
use crate::support::cluster::Cluster;
use crate::support::kubectl::{kubectl, program};
use crate::support::tekton::built;

/// The namespaces of an installation, and another.
const NAMESPACES: [&str; 5] = [
    "staging",
    "mirrord-agents",
    "ambassador",
    "pr-runs",
    "default",
];

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn install_is_accepted_without_a_warning_and_changes_nothing_the_second_time() {
    let cluster = installed().await;

    for folder in [
        "config/install",
        "config/rbac",
        "config/demo",
        "pipelines/samples",
    ] {
        let flag = if folder.ends_with("samples") {
            "-f"
        } else {
            "-k"
        };
        // Runs have no name until they are made.
        let deed = if flag == "-f" { "create" } else { "apply" };
        let ended = kubectl(&cluster, &[deed, "--dry-run=server", flag, folder]).await;
        let ended = ended.well();
        assert!(!ended.stderr.contains("Warning"), "{folder}: {ended}");
    }
    let difference = kubectl(&cluster, &["diff", "-k", "config/install"]).await;
    assert_eq!(difference.code, Some(0), "{difference}");
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn install_without_namespaces_can_be_taken_away_again() {
    let cluster = installed().await;

    let system = kubectl(&cluster, &["kustomize", "config/install/system"])
        .await
        .well();
    let kinds: BTreeSet<_> = objects(&system.stdout)
        .iter()
        .map(|object| text(&object["kind"]))
        .collect();

    assert!(
        kinds.contains("Task") && kinds.contains("Pipeline"),
        "{kinds:?}"
    );
    // Whoever deletes it would take the apps away.
    assert!(!kinds.contains("Namespace"), "{kinds:?}");
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn install_takes_every_image_and_setting_from_one_place() {
    let cluster = Cluster::shared().await;
    let images = ["mirrord", "telepresence", "build", "tests"];
    let settings = [
        "agent-namespace",
        "proxy-service-account",
        "manager-namespace",
        "image-registry",
        "push-registry",
        "registry-insecure",
    ];
    let literals = |names: &[&str]| -> String {
        let line = |name: &&str| format!("      - {name}=other.example/{name}:2\n");
        names.iter().map(line).collect()
    };
    let folder = tempfile::tempdir().expect("a writable temp folder");
    let root = upwards(folder.path());
    let overlay = format!(
        "resources: [{root}/config/install]
configMapGenerator:
  - name: session-proxy-images
    namespace: pr-runs
    behavior: merge
    literals:
{}  - name: session-proxy-settings
    namespace: pr-runs
    behavior: merge
    literals:
{}generatorOptions: {{ disableNameSuffixHash: true }}
components: [{root}/config/install/system/values]
",
        literals(&images),
        literals(&settings),
    );
    std::fs::write(folder.path().join("kustomization.yaml"), overlay).expect("it is writable");

    let folder = folder.path().to_str().expect("a plain path");
    let rendered = kubectl(&cluster, &["kustomize", folder])
        .await
        .well()
        .stdout;

    for object in objects(&rendered) {
        let said = object.to_string();
        let place = format!("{} {}", object["kind"], object["metadata"]["name"]);
        assert!(!said.contains("localhost:5001"), "{place}: {said}");
        for param in object["spec"]["params"].as_array().into_iter().flatten() {
            let name = text(&param["name"]);
            if settings.contains(&&*name) {
                let value = format!("other.example/{name}:2");
                assert_eq!(param["default"], json!(value), "{place}");
            }
        }
    }
    for name in images.iter().chain(&settings) {
        // In its config map and where it is used.
        let uses = rendered.matches(&format!("other.example/{name}:2")).count();
        assert!(uses > 1, "{name} is used {uses} times");
    }
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn install_is_accepted_as_kind_up_applies_it() {
    let cluster = installed().await;
    let machine = KindUp::new();
    let kubeconfig = cluster.kubeconfig();
    let kubectl = program();
    let variables = [
        ("KUBECTL", kubectl.to_str().expect("a plain path")),
        ("KUBECONFIG", kubeconfig.to_str().expect("a plain path")),
    ];

    let said = machine.well(&["--no-images"], &variables);

    // Dry, and by the API server: the tasks and the apps.
    for wanted in [
        "task.tekton.dev/deploy-intercept-mirrord configured (server dry run)",
        "deployment.apps/shop-api created (server dry run)",
    ] {
        assert!(said.contains(wanted), "no {wanted:?} in\n{said}");
    }
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn install_admits_privileged_pods_in_the_agents_namespace_only() {
    let cluster = installed().await;

    for (namespace, admitted) in [
        ("staging", false),
        ("pr-runs", false),
        ("mirrord-agents", true),
    ] {
        let pod = json!({
            "metadata": {"generateName": "privileged-"},
            "spec": {"hostPID": true, "containers": [{
                "name": "agent", "image": "registry.example/agent:1",
                "securityContext": {"capabilities": {"add": ["SYS_ADMIN", "SYS_PTRACE", "NET_ADMIN"]}},
            }]},
        });
        let pod: Pod = serde_json::from_value(pod).expect("this is a pod");
        let dry = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let made = Api::<Pod>::namespaced(cluster.client(), namespace)
            .create(&dry, &pod)
            .await;
        assert_eq!(made.is_ok(), admitted, "{namespace}: {made:?}");
        if let Err(error) = made {
            assert!(
                error.to_string().contains("PodSecurity"),
                "{namespace}: {error}"
            );
        }
    }
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn install_gives_each_account_the_rights_of_its_roles_and_no_others() {
    let cluster = installed().await;
    let nobody = nobody(&cluster).await;
    let deployer = role(
        "deployer-agents-apart.yaml",
        "session-proxy-deployer",
        "staging",
    );
    let cleaner = role("mirrord.yaml", "session-proxy-cleanup", "mirrord-agents");
    let proxy = role("proxy.yaml", "session-proxy", "staging");
    let client = role("telepresence.yaml", "session-proxy-telepresence", "staging");
    let proxy = proxy.union(&client).cloned().collect();
    let mirrord = role("mirrord.yaml", "session-proxy-mirrord", "mirrord-agents");
    let manager = role(
        "telepresence.yaml",
        "session-proxy-telepresence",
        "ambassador",
    );
    let none = BTreeSet::new();

    for (namespace, account, expected) in [
        (
            "pr-runs",
            "session-proxy-deployer",
            [&deployer, &cleaner, &none, &none, &none],
        ),
        ("pr-runs", "session-proxy-build", [&none; 5]),
        ("pr-runs", "default", [&none; 5]),
        (
            "staging",
            "session-proxy",
            [&proxy, &mirrord, &manager, &none, &none],
        ),
        ("staging", "default", [&none; 5]),
        ("mirrord-agents", "default", [&none; 5]),
    ] {
        let who = Account::existing(&cluster, namespace, account).await;
        for (place, expected) in NAMESPACES.iter().zip(expected) {
            let has = rights_of(&who, place).await;
            let more: BTreeSet<_> = has.difference(&nobody).cloned().collect();
            assert_eq!(&more, expected, "{namespace}/{account} in {place}");
        }
    }
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn install_mounts_no_token_where_a_pull_requests_code_runs() {
    let cluster = installed().await;

    for name in ["session-proxy-build", "default"] {
        let accounts = Api::<ServiceAccount>::namespaced(cluster.client(), "pr-runs");
        let account = accounts.get(name).await.expect("it is installed");
        assert_eq!(
            account.automount_service_account_token,
            Some(false),
            "{name}"
        );
    }
}

/// The cluster, with Tekton and config/install in it. Both stay: the next test finds them there.
async fn installed() -> Cluster {
    static DONE: OnceCell<()> = OnceCell::const_new();
    let cluster = Cluster::shared().await;
    DONE.get_or_init(async || {
        cluster.with_tekton(&built()).await;
        kubectl(&cluster, &["apply", "-k", "config/install"])
            .await
            .well();
    })
    .await;
    cluster
}

/// What everybody may: what an account without a role has.
async fn nobody(cluster: &Cluster) -> BTreeSet<String> {
    let namespace = cluster.namespace().await;
    let metadata = ObjectMeta {
        name: Some("nobody".to_owned()),
        ..ObjectMeta::default()
    };
    let account = ServiceAccount {
        metadata,
        ..ServiceAccount::default()
    };
    namespace.create(&account).await;
    let nobody = Account::existing(cluster, namespace.name(), "nobody").await;
    rights_of(&nobody, namespace.name()).await
}

/// The rights of a role of `config/rbac`.
fn role(file: &str, name: &str, namespace: &str) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("config/rbac")
        .join(file);
    let manifest = std::fs::read_to_string(path).expect("it is there");
    let role = objects(&manifest).into_iter().find(|object| {
        let metadata = &object["metadata"];
        object["kind"] == "Role" && metadata["name"] == name && metadata["namespace"] == namespace
    });
    let role = role.unwrap_or_else(|| panic!("{file} has no role {name} in {namespace}"));
    let rules = role["rules"].as_array().expect("a role has rules");
    rules.iter().flat_map(rights).collect()
}

/// What the account may do in a namespace, as the API server says: a line for each verb on each resource.
async fn rights_of(account: &Account, namespace: &str) -> BTreeSet<String> {
    let review = SelfSubjectRulesReview {
        spec: SelfSubjectRulesReviewSpec {
            namespace: Some(namespace.to_owned()),
        },
        ..SelfSubjectRulesReview::default()
    };
    let reviews = Api::all(account.client().await);
    let answer = reviews.create(&PostParams::default(), &review).await;
    let status = answer
        .expect("everybody may ask")
        .status
        .expect("an answer");
    assert!(!status.incomplete, "{status:?}");
    let rules = status.resource_rules.iter();
    rules.flat_map(|rule| rights(&json!(rule))).collect()
}

fn rights(rule: &Value) -> Vec<String> {
    let words = |key: &str| -> Vec<String> {
        let values = rule[key].as_array();
        values.into_iter().flatten().map(text).collect()
    };
    let mut rights = Vec::new();
    for group in words("apiGroups") {
        for resource in words("resources") {
            for verb in words("verbs") {
                let names = words("resourceNames").join(" ");
                rights.push(
                    format!("{verb} {group}/{resource} {names}")
                        .trim_end()
                        .to_owned(),
                );
            }
        }
    }
    rights
}

/// The documents of a rendering.
fn objects(rendered: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(rendered).expect("kubectl renders YAML")
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// This repository as kustomize has to name it in that folder: not absolute.
fn upwards(folder: &Path) -> String {
    let real = folder.canonicalize().expect("it is there");
    let names = real
        .components()
        .filter(|part| matches!(part, Component::Normal(_)));
    format!(
        "{}{}",
        names.map(|_| "..").collect::<Vec<_>>().join("/"),
        env!("CARGO_MANIFEST_DIR")
    )
}
