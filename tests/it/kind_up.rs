//! `scripts/kind-up`: what it asks of docker, kind and kubectl, and what it leaves alone.

use crate::support::kind_up::KindUp;

const PUBLISHED: &str = "\
localhost:5001/tekton-dag-build-mirrord:0.1.0@sha256:1111111111111111111111111111111111111111111111111111111111111111
localhost:5001/tekton-dag-build-telepresence:0.1.0@sha256:2222222222222222222222222222222222222222222222222222222222222222
localhost:5001/tekton-dag-build-image:0.1.0@sha256:3333333333333333333333333333333333333333333333333333333333333333
localhost:5001/tekton-dag-build-tests:0.1.0@sha256:4444444444444444444444444444444444444444444444444444444444444444
localhost:5001/session-proxy-demo-app:0.1.0@sha256:5555555555555555555555555555555555555555555555555555555555555555
";

/// Of the release that the stand-in downloads.
const SUM: &str = "ad4ab5d4a6c1f3a1d0d9d9bd0c1b9b35ed1ab5fd1bbf14c5a9c3a1e6d1d9a9f0";

#[test]
fn from_nothing_to_a_cluster_with_everything_in_it() {
    let machine = KindUp::new();
    machine.publishes(PUBLISHED);

    machine.well(&[], &[]);

    let calls = machine.calls();
    in_order(
        &calls,
        &[
            "docker run -d --restart=always --name session-proxy-registry --network bridge -p 127.0.0.1:5001:5000 ",
            "kind create cluster --name session-proxy ",
            "docker network connect kind session-proxy-registry",
            "curl -fsSL --retry 3 -o target/kind-up/tekton-v",
            "kubectl --context kind-session-proxy apply --server-side --force-conflicts -f target/kind-up/tekton-v",
            "kubectl --context kind-session-proxy -n tekton-pipelines patch configmap feature-flags ",
            "kubectl --context kind-session-proxy -n tekton-pipelines rollout status ",
            "publish --registry localhost:5001",
            "kubectl --context kind-session-proxy apply -k target/kind-up/install",
            "kubectl --context kind-session-proxy apply -k target/kind-up/demo",
            "kubectl --context kind-session-proxy -n staging rollout status ",
        ],
    );
    for call in calls.lines().filter(|call| call.starts_with("kubectl")) {
        // The current context may be somebody's real cluster.
        assert!(
            call.starts_with("kubectl --context kind-session-proxy "),
            "{call}"
        );
    }
    assert!(
        machine
            .read("world/kind.yaml")
            .contains(r#"config_path = "/etc/containerd/certs.d""#)
    );
    let hosts = machine.read("world/node/etc/containerd/certs.d/localhost:5001/hosts.toml");
    assert_eq!(hosts, "[host.\"http://session-proxy-registry:5000\"]\n");
    assert!(
        machine
            .read("world/applied")
            .contains("host: \"localhost:5001\"")
    );
}

#[test]
fn published_images_are_installed_by_digest() {
    let machine = KindUp::new();
    machine.publishes(PUBLISHED);

    machine.well(&[], &[]);

    let images = machine.read("target/kind-up/install/images.env");
    let (demo, ours): (Vec<_>, Vec<_>) = PUBLISHED
        .lines()
        .partition(|line| line.contains("demo-app"));
    for line in ours {
        assert!(images.contains(line), "{line} is not in {images}");
    }
    let digest = demo[0].split_once('@').expect("it has one").1;
    let overlay = machine.read("target/kind-up/demo/kustomization.yaml");
    assert!(overlay.contains(&format!("digest: {digest}")), "{overlay}");
}

#[test]
fn images_that_are_there_are_installed_by_tag() {
    let machine = KindUp::new();

    machine.well(
        &["--no-images"],
        &[("REGISTRY_PORT", "5002"), ("CLUSTER", "mine")],
    );

    assert!(!machine.calls().contains("publish"));
    let version = env!("CARGO_PKG_VERSION");
    let images = machine.read("target/kind-up/install/images.env");
    let wanted = format!("mirrord=localhost:5002/tekton-dag-build-mirrord:{version}\n");
    assert!(images.contains(&wanted), "{images}");
    let settings = machine.read("target/kind-up/install/settings.env");
    assert!(
        settings.contains("push-registry=mine-registry:5000\n"),
        "{settings}"
    );
    let overlay = machine.read("target/kind-up/demo/kustomization.yaml");
    assert!(
        overlay.contains(&format!("newTag: {version}\n")),
        "{overlay}"
    );
}

#[test]
fn the_second_time_nothing_is_made_again() {
    let machine = KindUp::new();
    machine.well(&["--no-images"], &[]);
    machine.calls();

    machine.well(&["--no-images"], &[]);

    let calls = machine.calls();
    for made in [
        "docker run",
        "docker start",
        "docker network",
        "kind create",
        "curl",
    ] {
        assert!(!calls.contains(made), "{made} in\n{calls}");
    }
    assert!(calls.contains("apply -k target/kind-up/install"), "{calls}");
}

#[test]
fn a_registry_that_was_stopped_is_started() {
    let machine = KindUp::new();
    std::fs::write(machine.path("world/registry"), "false\n").expect("it is writable");

    machine.well(&["--no-images"], &[]);

    let calls = machine.calls();
    assert!(
        calls.contains("docker start session-proxy-registry"),
        "{calls}"
    );
    assert!(!calls.contains("docker run"), "{calls}");
}

#[test]
fn a_cluster_of_another_name_is_not_taken_for_ours() {
    let machine = KindUp::new();
    std::fs::write(machine.path("world/clusters"), "session-proxy-2\n").expect("it is writable");

    machine.well(&["--no-images"], &[]);

    assert!(
        machine
            .calls()
            .contains("kind create cluster --name session-proxy ")
    );
}

#[test]
fn a_release_of_tekton_with_another_sum_is_not_applied() {
    let machine = KindUp::new();

    let output = machine.run(&["--no-images"], &[("TEKTON_SHA256", SUM)]);

    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(SUM), "{said}");
    assert!(!machine.calls().contains("apply --server-side"));
    let left = std::fs::read_dir(machine.path("target/kind-up")).expect("it was made");
    assert_eq!(left.count(), 0);
}

#[test]
fn the_sum_that_is_printed_is_accepted() {
    let machine = KindUp::new();
    let said = machine.well(&["--no-images"], &[]);
    let sum = said
        .lines()
        .find_map(|line| line.strip_prefix("not checked: TEKTON_SHA256="));
    let sum = sum.unwrap_or_else(|| panic!("no sum in {said}"));

    let said = machine.well(&["--no-images"], &[("TEKTON_SHA256", sum)]);

    assert!(!said.contains("not checked"), "{said}");
}

#[test]
fn what_is_missing_or_mistyped_is_named_before_anything_is_done() {
    let machine = KindUp::new();
    machine.lacks("kind");

    let missing = machine.run(&[], &[]);
    let mistyped = machine.run(&["--demo"], &[]);

    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("not installed: kind"));
    assert_eq!(mistyped.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&mistyped.stderr).contains("--demo"));
    assert_eq!(machine.calls(), "");
}

#[test]
fn down_takes_away_its_own_cluster_and_registry() {
    let machine = KindUp::new();

    machine.well(&["--down"], &[("CLUSTER", "mine")]);

    assert_eq!(
        machine.calls(),
        "kind delete cluster --name mine\ndocker rm -f -v mine-registry\n"
    );
}

/// Each of these begins a line, one after the other.
fn in_order(calls: &str, wanted: &[&str]) {
    let mut lines = calls.lines();
    for wanted in wanted {
        assert!(
            lines.any(|line| line.starts_with(wanted)),
            "no {wanted:?}, in order, in\n{calls}"
        );
    }
}
