//! What the other tests take for granted: that the plane is a real one, and that the kubelet does as
//! it is told.

use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ResourceQuota};
use kube::Api;
use kube::api::{DeleteParams, ListParams, LogParams, PostParams, WatchEvent, WatchParams};
use serde_json::{Value, json};

use crate::support::baseline::{Baseline, is_ready, name_of};
use crate::support::cluster::Cluster;
use crate::support::kubelet::{Kubelet, Script};
use crate::support::namespace::Namespace;
use crate::support::rights::{one_less, rule};
use crate::support::{eventually, found};

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn the_pods_of_a_deployment_become_ready() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    let kubelet = Kubelet::of(&namespace).await;

    let orders = Baseline::deploy(&namespace, "orders", 2).await;
    let pods = orders.ready(2).await;

    assert_ne!(kubelet.ip(&pods[0]).await, kubelet.ip(&pods[1]).await);
    let pod = namespace.api::<Pod>().get(&pods[0]).await.unwrap();
    let status = pod.status.unwrap();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(
        status.pod_ip.unwrap(),
        kubelet.ip(&pods[0]).await.to_string()
    );
    assert_eq!(
        pod.spec.unwrap().node_name.as_deref(),
        Some(namespace.name())
    );
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_deployment_scales_and_rolls() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    let _kubelet = Kubelet::of(&namespace).await;
    let orders = Baseline::deploy(&namespace, "orders", 1).await;

    orders.scale(3).await;
    let scaled = orders.ready(3).await;
    let rolled = orders.roll().await;

    assert_eq!(rolled.len(), 3);
    assert!(!rolled.iter().any(|pod| scaled.contains(pod)));
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn an_object_with_two_owners_goes_with_the_last() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    let _kubelet = Kubelet::of(&namespace).await;
    let pods = namespace.api::<Pod>();
    let maps = namespace.api::<ConfigMap>();
    let first = namespace.create(&pod("first")).await;
    let last = namespace.create(&pod("last")).await;
    let owners: Vec<_> = [&first, &last].map(owner).into();
    let owned: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "owned", "ownerReferences": owners}}))
            .unwrap();
    namespace.create(&owned).await;

    pods.delete("first", &DeleteParams::default())
        .await
        .unwrap();

    // The collector has looked at it: it has taken the owner that is gone out of the list.
    eventually("one owner left", async || {
        let map = maps.get("owned").await.expect("an owner is left");
        map.metadata.owner_references.map(|owners| owners.len()) == Some(1)
    })
    .await;

    pods.delete("last", &DeleteParams::default()).await.unwrap();
    eventually("it goes", async || {
        maps.get_opt("owned").await.unwrap().is_none()
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_right_that_was_not_given_is_refused_by_verb_and_resource() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    let reader = namespace
        .account("reader", &[rule("", &["pods"], &["get", "list"])])
        .await;

    let pods: Api<Pod> = Api::namespaced(reader.client().await, namespace.name());
    pods.list(&ListParams::default()).await.unwrap();
    let refusal = pods
        .create(&PostParams::default(), &pod("any"))
        .await
        .unwrap_err();

    let kube::Error::Api(status) = refusal else {
        panic!("not an answer of the API server: {refusal}");
    };
    assert_eq!(status.code, 403);
    let sentence = format!(
        "User \"{}\" cannot create resource \"pods\" in API group \"\" in the namespace \"{}\"",
        reader.user(),
        namespace.name()
    );
    assert!(status.message.contains(&sentence), "{}", status.message);
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn each_right_can_be_taken_out_of_a_role() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    let rules = [
        rule("", &["pods", "configmaps"], &["list"]),
        rule("apps", &["deployments"], &["get"]),
    ];

    let less = one_less(&rules);

    let taken: Vec<_> = less.iter().map(|(right, _)| right.to_string()).collect();
    assert_eq!(taken, ["list pods", "list configmaps", "get deployments"]);
    let (_, without_pods) = &less[0];
    let account = namespace.account("less", without_pods).await;
    let client = account.client().await;
    let all = ListParams::default();
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace.name());
    let maps: Api<ConfigMap> = Api::namespaced(client, namespace.name());
    maps.list(&all).await.unwrap();
    pods.list(&all).await.unwrap_err();
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_held_deletion_keeps_its_timestamp() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    let kubelet = Kubelet::of(&namespace).await;
    let pods = namespace.api::<Pod>();
    start(&namespace, "slow").await;

    let held = kubelet.hold_deletions();
    pods.delete("slow", &DeleteParams::default()).await.unwrap();

    // The kubelet has heard of the deletion before it heard of this pod.
    start(&namespace, "later").await;
    let slow = pods.get("slow").await.unwrap();
    assert!(slow.metadata.deletion_timestamp.is_some());

    drop(held);
    eventually("the slow one goes", async || {
        pods.get_opt("slow").await.unwrap().is_none()
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn pods_fare_as_their_script_says() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    let kubelet = Kubelet::of(&namespace).await;
    kubelet.script("no-image", Script::ImagePullBackOff);
    kubelet.script("crash", Script::CrashLoopBackOff { exit_code: 3 });
    kubelet.script_for_label("size", "huge", Script::Unschedulable);
    kubelet.script("job", Script::Ended { exit_code: 1 });
    kubelet.writes("crash", "one\ntwo\nthree\n");
    let mut huge = pod("huge");
    huge.metadata.labels = Some([("size".to_owned(), "huge".to_owned())].into());
    for made in [pod("no-image"), pod("crash"), huge, pod("job")] {
        namespace.create(&made).await;
    }
    let reads = async |name: &str, pointer: &str, value: &str| {
        let what = format!("{pointer} of {name} is {value}");
        eventually(&what, async || {
            let pod = namespace.api::<Pod>().get(name).await.unwrap();
            let pod = serde_json::to_value(pod).unwrap();
            pod.pointer(pointer).map(Value::to_string) == Some(value.to_owned())
        })
        .await;
    };

    let container = "/status/containerStatuses/0";
    let waiting = format!("{container}/state/waiting/reason");
    reads("no-image", &waiting, r#""ImagePullBackOff""#).await;
    reads("crash", &waiting, r#""CrashLoopBackOff""#).await;
    let last_code = format!("{container}/lastState/terminated/exitCode");
    reads("crash", &last_code, "3").await;
    reads("huge", "/status/conditions/0/reason", r#""Unschedulable""#).await;
    reads("job", "/status/phase", r#""Failed""#).await;

    let last = LogParams {
        tail_lines: Some(2),
        previous: true,
        ..LogParams::default()
    };
    let log = namespace.api::<Pod>().logs("crash", &last).await.unwrap();
    assert_eq!(log, "two\nthree\n");

    kubelet.play("no-image", Script::Ready).await;
    assert!(is_ready(
        &namespace.api::<Pod>().get("no-image").await.unwrap()
    ));
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_test_hears_of_pods_before_the_cluster_does() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    let kubelet = Kubelet::of(&namespace).await;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let (up, gone) = (heard.clone(), heard.clone());
    let pods = namespace.api::<Pod>();
    let seen = pods.clone();
    kubelet.when_up(move |pod| {
        let (up, pods) = (up.clone(), seen.clone());
        async move {
            let ready = is_ready(&pods.get(&pod.name).await.unwrap());
            up.lock().unwrap().push(format!("up {} {ready}", pod.ip));
        }
    });
    kubelet.when_gone(move |pod| {
        gone.lock().unwrap().push(format!("gone {}", pod.ip));
        std::future::ready(())
    });

    start(&namespace, "heard").await;
    let ip = kubelet.ip("heard").await;
    pods.delete("heard", &DeleteParams::default())
        .await
        .unwrap();
    eventually("it is gone", async || {
        pods.get_opt("heard").await.unwrap().is_none()
    })
    .await;

    let expected = [format!("up {ip} false"), format!("gone {ip}")];
    assert_eq!(*heard.lock().unwrap(), expected);
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn a_restarted_container_has_another_id_at_the_same_address() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    let kubelet = Kubelet::of(&namespace).await;
    let before = start(&namespace, "restarts").await.status.unwrap();

    let id = kubelet.restart_container("restarts").await;

    let after = namespace.api::<Pod>().get("restarts").await.unwrap();
    let after = after.status.unwrap();
    assert_eq!(before.pod_ip, after.pod_ip);
    let container = &after.container_statuses.unwrap()[0];
    assert_ne!(
        before.container_statuses.unwrap()[0].container_id,
        container.container_id
    );
    assert_eq!(container.container_id.as_deref(), Some(id.as_str()));
    assert_eq!(container.restart_count, 1);

    kubelet.make_unready("restarts").await;
    let unready = namespace.api::<Pod>().get("restarts").await.unwrap();
    assert!(!is_ready(&unready));
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn an_address_can_go_from_one_pod_to_another() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    let kubelet = Kubelet::of(&namespace).await;
    start(&namespace, "one").await;
    let ip = kubelet.ip("one").await;

    kubelet.next_ip("other", ip);
    start(&namespace, "other-1").await;
    start(&namespace, "other-2").await;

    assert_eq!(kubelet.ip("other-1").await, ip);
    assert_ne!(kubelet.ip("other-2").await, ip);
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn pod_security_and_quotas_are_enforced() {
    let cluster = Cluster::shared().await;
    let namespace = cluster
        .namespace_with(&[("pod-security.kubernetes.io/enforce", "restricted")])
        .await;
    let strict = namespace.api::<Pod>();
    let small = cluster.namespace().await;
    let quota: ResourceQuota = serde_json::from_value(
        json!({"metadata": {"name": "few"}, "spec": {"hard": {"pods": "0"}}}),
    )
    .unwrap();
    small.create(&quota).await;

    let post = PostParams::default();
    let refusal = strict.create(&post, &pod("loose")).await.unwrap_err();
    assert!(
        refusal.to_string().contains("violates PodSecurity"),
        "{refusal}"
    );

    // Until the controller has counted, the API server says that it does not know the quota's status.
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    eventually("the quota is enforced", async || {
        let refusal = small.api::<Pod>().create(&dry, &pod("many")).await;
        refusal.is_err_and(|error| error.to_string().contains("exceeded quota: few"))
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn the_api_server_goes_away_and_comes_back() {
    let cluster = Cluster::alone().await;
    let namespace = cluster.namespace().await;
    let _kubelet = Kubelet::of(&namespace).await;
    let pods = namespace.api::<Pod>();
    let first = start(&namespace, "first").await;
    let seen = first.metadata.resource_version.unwrap();
    start(&namespace, "missed").await;

    cluster.stop_api().await;
    let away = pods.get("first").await.unwrap_err();
    assert!(!matches!(away, kube::Error::Api(_)), "it answers: {away}");
    cluster.start_api().await;

    // Its data is still there, and the kubelet's watch goes on.
    assert_eq!(name_of(&pods.get("first").await.unwrap()), "first");
    start(&namespace, "second").await;

    // Whoever has missed something before the stop is told to list again.
    let mut events = pods
        .watch(&WatchParams::default(), &seen)
        .await
        .unwrap()
        .boxed();
    match events.next().await {
        Some(Ok(WatchEvent::Error(status))) => assert_eq!(status.code, 410),
        Some(Err(kube::Error::Api(status))) => assert_eq!(status.code, 410),
        other => panic!("the watch goes on: {other:?}"),
    }
}

/// Makes a pod and returns it once it is ready.
async fn start(namespace: &Namespace, name: &str) -> Pod {
    namespace.create(&pod(name)).await;
    let what = format!("pod {name} is ready");
    found(&what, async || {
        let pod = namespace.api::<Pod>().get(name).await.ok()?;
        is_ready(&pod).then_some(pod)
    })
    .await
}

fn pod(name: &str) -> Pod {
    let containers = json!([{"name": "app", "image": "registry.example/app:1"}]);
    serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"containers": containers}}))
        .expect("this is a pod")
}

fn owner(pod: &Pod) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "name": pod.metadata.name,
        "uid": pod.metadata.uid,
    })
}
