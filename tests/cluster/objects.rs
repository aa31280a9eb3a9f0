//! The objects of an intercept and the manifests of `config/rbac`, as a real API server judges them.

use std::fs;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, from_value, json};
use session_proxy::control::intercept::{
    Agent, AppProtocol, Backend, Intercept, Mode, Port, Target, TargetKind,
};
use session_proxy::control::objects::owner;
use session_proxy::control::objects::proxy::Proxy;

use crate::support::cluster::Cluster;
use crate::support::namespace::Namespace;
use crate::support::rights::{one_less, role_in, rule};

/// Where nothing but what is restricted may run.
const RESTRICTED: (&str, &str) = ("pod-security.kubernetes.io/enforce", "restricted");

fn file(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn documents(path: &str) -> Vec<DynamicObject> {
    let text = fs::read_to_string(file(path)).expect("the file is there");
    serde_saphyr::from_multiple(&text).expect("it is a list of objects")
}

fn typed<K: DeserializeOwned>(object: impl Serialize) -> K {
    let object = serde_json::to_value(object).expect("its keys are text");
    from_value(object).expect("it is of this type")
}

/// What the API server would say to an object in that namespace; nothing is made.
async fn judged(namespace: &Namespace, object: &DynamicObject) -> kube::Result<Value> {
    let types = object.types.clone().expect("a manifest names its kind");
    let kind = GroupVersionKind::try_from(types).expect("its version is well-formed");
    let plural = format!("{}s", kind.kind.to_lowercase());
    let resource = ApiResource::from_gvk_with_plural(&kind, &plural);
    let path = DynamicObject::url_path(&resource, Some(namespace.name()));
    let mut object = object.clone();
    object.metadata.namespace = Some(namespace.name().to_owned());
    let request = http::Request::post(format!("{path}?dryRun=All&fieldValidation=Strict"))
        .header("content-type", "application/json")
        .body(serde_json::to_vec(&object).expect("its keys are text"));
    let request = request.expect("the path is made of names");
    namespace.client().request(request).await
}

/// What belongs to the whole cluster and is asked for by name; another run may have made it.
async fn classes(client: Client) {
    let priority = typed::<PriorityClass>(json!({"metadata": {"name": "staging"}, "value": 1000}));
    let runtime =
        typed::<RuntimeClass>(json!({"metadata": {"name": "gvisor"}, "handler": "runsc"}));
    let params = PatchParams::apply("test");
    let priorities: Api<PriorityClass> = Api::all(client.clone());
    let runtimes: Api<RuntimeClass> = Api::all(client);
    let applied = priorities
        .patch("staging", &params, &Patch::Apply(&priority))
        .await;
    applied.expect("the administrator may make priority classes");
    let applied = runtimes
        .patch("gvisor", &params, &Patch::Apply(&runtime))
        .await;
    applied.expect("the administrator may make runtime classes");
}

async fn account(namespace: &Namespace, name: &str) {
    let account = json!({"metadata": {"name": name}});
    namespace.create(&typed::<ServiceAccount>(account)).await;
}

fn intercept(namespace: &Namespace, kind: TargetKind) -> Intercept {
    Intercept {
        app: "orders".to_owned(),
        namespace: namespace.name().to_owned(),
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
            namespace: namespace.name().to_owned(),
            is_ephemeral: false,
            image: None,
        },
        backend: Backend::Mirrord,
    }
}

fn proxy(intercept: &Intercept) -> Proxy<'_> {
    Proxy {
        stack: "shop",
        intercept,
        image: "registry.local/session-proxy:0.1.0",
        pull_secrets: &[],
        service_account: None,
        may_delete_targets: false,
        owners: &[],
    }
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn the_pr_pods_of_all_templates_are_accepted() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    classes(cluster.client()).await;
    account(&namespace, "orders").await;

    for name in ["plain", "crowded", "stateful", "living"] {
        let pod = documents(&format!("tests/data/objects/{name}.yaml")).remove(0);

        let judged = judged(&namespace, &pod).await;

        assert!(judged.is_ok(), "{name}: {judged:?}");
    }
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_proxy_and_all_that_is_its_own_are_accepted_where_pod_security_is_restricted() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace_with(&[RESTRICTED]).await;
    account(&namespace, "mirrord-proxy-orders").await;
    let mut objects = documents("tests/data/objects/proxy.yaml");
    objects.remove(0);
    objects.extend(documents("tests/data/objects/roles.yaml"));

    for object in &objects {
        let judged = judged(&namespace, object).await;
        assert!(judged.is_ok(), "{judged:?}");
    }
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_proxy_with_privileges_would_be_refused_there() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace_with(&[RESTRICTED]).await;
    account(&namespace, "mirrord-proxy-orders").await;
    let mut pod = documents("tests/data/objects/proxy.yaml").pop().unwrap();
    pod.data["spec"]["containers"][0]["securityContext"] = json!({});

    let refusal = judged(&namespace, &pod).await.unwrap_err().to_string();

    assert!(refusal.contains("violates PodSecurity"), "{refusal}");
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn what_a_proxy_has_is_owned_by_the_pods_that_it_is_there_for() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    account(&namespace, "orders").await;
    let mut pod: Pod = typed(documents("tests/data/objects/plain.yaml").remove(0));
    pod.metadata.namespace = None;
    let pod = namespace.create(&pod).await;
    let intercept = intercept(&namespace, TargetKind::Deployment);
    let proxy = Proxy {
        owners: &[owner(&pod).unwrap()],
        ..proxy(&intercept)
    };

    let map = namespace.create::<ConfigMap>(&proxy.config_map()).await;

    assert_eq!(map.metadata.owner_references.unwrap(), proxy.owners);
}

/// Nobody can grant what he has not, and the API server sees to it.
#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_deployer_may_make_the_role_of_any_proxy() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    let rights = role_in(&file("config/rbac/deployer.yaml"), "session-proxy-deployer");
    let deployer = namespace.account("deployer", &rights).await;
    let client = deployer.client().await;
    let kinds = [
        TargetKind::Deployment,
        TargetKind::StatefulSet,
        TargetKind::ReplicaSet,
        TargetKind::Rollout,
        TargetKind::Pod,
    ];

    for (number, kind) in kinds.into_iter().enumerate() {
        let mut intercept = intercept(&namespace, kind);
        intercept.app = format!("orders-{number}");
        intercept.agent.is_ephemeral = kind == TargetKind::ReplicaSet;
        let proxy = Proxy {
            may_delete_targets: kind == TargetKind::StatefulSet,
            ..proxy(&intercept)
        };
        let params = PostParams::default();
        let roles: Api<Role> = Api::namespaced(client.clone(), namespace.name());
        let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), namespace.name());

        roles.create(&params, &proxy.role()).await.unwrap();
        bindings
            .create(&params, &proxy.role_binding())
            .await
            .unwrap();
    }
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_deployer_with_one_right_less_than_a_proxy_may_not_make_its_role() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    let intercept = intercept(&namespace, TargetKind::Deployment);
    let role = proxy(&intercept).role();
    let may_make_roles = rule("rbac.authorization.k8s.io", &["roles"], &["create"]);

    for (number, (right, mut rest)) in one_less(role.rules.as_ref().unwrap())
        .into_iter()
        .enumerate()
    {
        rest.insert(0, may_make_roles.clone());
        let deployer = namespace
            .account(&format!("deployer-{number}"), &rest)
            .await;
        let roles: Api<Role> = Api::namespaced(deployer.client().await, namespace.name());
        let made = roles.create(&PostParams::default(), &role).await;
        let refusal = made.expect_err(&right.to_string()).to_string();
        assert!(
            refusal.contains("attempting to grant RBAC permissions not currently held"),
            "{right}: {refusal}"
        );
        assert!(refusal.contains(&right.resource), "{right}: {refusal}");
    }
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn the_manifests_of_rights_are_accepted() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;

    for name in ["deployer", "proxy", "mirrord", "mirrord-ephemeral"] {
        for object in documents(&format!("config/rbac/{name}.yaml")) {
            let judged = judged(&namespace, &object).await;
            assert!(judged.is_ok(), "{name}: {judged:?}");
        }
    }
}
