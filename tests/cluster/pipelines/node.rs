//! The node of the runs itself: a pod's commands run as its spec says, and it is told how they ended.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::support::cluster::Cluster;
use crate::support::found;
use crate::support::kubelet::{Image, Kubelet, Machine};
use crate::support::namespace::Namespace;

/// What the container looks at, one line each.
const LOOKS: &str = r#"
    id -u; id -G; pwd
    echo "$LATER|$UNKNOWN|$DOLLAR"
    cat /handed/on
    ! touch /written 2>/dev/null && echo read-only
    until [ "$(cat /told/mark)" = second ]; do sleep 0.1; done; echo told
    test -s /var/run/secrets/kubernetes.io/serviceaccount/token && echo token
    echo last words >/words
    exit 7
"#;

async fn node() -> (Namespace, Arc<Machine>, Kubelet) {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    let images = vec![("registry.example/any:".to_owned(), Image::default())];
    let machine = Arc::new(Machine::new(&cluster, images));
    let kubelet = Kubelet::executing(&namespace, machine.clone()).await;
    (namespace, machine, kubelet)
}

fn pod(containers: Value, init: Value) -> Pod {
    let object = json!({
        "metadata": {"name": "looks", "annotations": {"mark": "first"}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"fsGroup": 4321},
            "initContainers": init,
            "containers": containers,
            "volumes": [
                {"name": "handed", "emptyDir": {}},
                {"name": "told", "downwardAPI": {"items": [{
                    "path": "mark", "fieldRef": {"fieldPath": "metadata.annotations['mark']"},
                }]}},
            ],
        },
    });
    serde_json::from_value(object).expect("this is a pod")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn pipelines_a_pod_runs_as_its_spec_says() {
    let (namespace, machine, _kubelet) = node().await;
    let first = json!([{
        "name": "first",
        "image": "registry.example/any:1",
        "command": ["sh", "-c", "echo handed on >/handed/on"],
        "volumeMounts": [{"name": "handed", "mountPath": "/handed"}],
    }]);
    let second = json!([{
        "name": "second",
        "image": "registry.example/any:1",
        "command": ["sh", "-c"],
        "args": [LOOKS],
        "workingDir": "/told",
        "terminationMessagePath": "/words",
        "securityContext": {"runAsUser": 1234, "readOnlyRootFilesystem": true},
        "env": [
            {"name": "EARLIER", "value": "a"},
            {"name": "LATER", "value": "$(EARLIER)b"},
            {"name": "UNKNOWN", "value": "$(NOBODY)"},
            {"name": "DOLLAR", "value": "$$(EARLIER)"},
        ],
        "volumeMounts": [
            {"name": "handed", "mountPath": "/handed", "readOnly": true},
            {"name": "told", "mountPath": "/told"},
        ],
    }]);
    namespace.create(&pod(second, first)).await;
    let pods = namespace.api::<Pod>();
    found("it runs", async || {
        let status = pods.get("looks").await.ok()?.status?;
        (status.phase.as_deref() == Some("Running")).then_some(())
    })
    .await;
    let mark = Patch::Merge(json!({"metadata": {"annotations": {"mark": "second"}}}));
    let patched = pods.patch("looks", &PatchParams::default(), &mark).await;
    patched.expect("the administrator may patch");

    let status = found("it has ended", async || {
        let status = pods.get("looks").await.ok()?.status?;
        (status.phase.as_deref() == Some("Failed")).then_some(status)
    })
    .await;

    let state = status.container_statuses.expect("it has one")[0]
        .state
        .clone();
    let ended = state
        .and_then(|state| state.terminated)
        .expect("it has ended");
    assert_eq!(ended.exit_code, 7);
    assert_eq!(ended.message.as_deref(), Some("last words\n"));
    let said = machine.said("looks");
    let lines = "1234\n0 4321\n/told\nab|$(NOBODY)|$(EARLIER)\nhanded on\nread-only\ntold\ntoken\n";
    assert!(said.contains(lines), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn pipelines_a_pod_that_is_deleted_is_told_and_then_killed() {
    let (namespace, machine, _kubelet) = node().await;
    let stubborn = "trap 'echo told' TERM; echo up; while true; do sleep 0.1; done";
    let container = json!([{
        "name": "stubborn",
        "image": "registry.example/any:1",
        "command": ["sh", "-c", stubborn],
    }]);
    namespace.create(&pod(container, json!([]))).await;
    found("it is up", async || {
        machine.said("looks").contains("up").then_some(())
    })
    .await;

    let pods = namespace.api::<Pod>();
    let deleted = pods.delete("looks", &DeleteParams::default()).await;
    deleted.expect("the administrator may delete");

    found("it is gone", async || {
        pods.get_opt("looks").await.ok()?.is_none().then_some(())
    })
    .await;
    assert!(machine.said("looks").contains("told"));
}
