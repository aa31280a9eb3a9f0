//! `benches/load/kind`: what it asks of kubectl, what it makes of the answers, and what it leaves alone.
//! The figures themselves take a whole cluster.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

const SOCAT: &str = "example.com/socat@sha256:00";

/// A cluster whose pods answer at a known pace.
struct Cluster {
    folder: TempDir,
}

impl Cluster {
    /// By round: as many requests per second, in all ways alike.
    fn that_answers(rates: &[u32]) -> Self {
        let report = r#"
rate=$(sed -n "$(grep -c '' "$WORLD/rounds")p" "$WORLD/rates")
case "$*" in
    *--once*) ;;
    *'--seconds 1 '*) echo '{"requests":1,"errors":0,"seconds":1,"latency_us":{"p50":1,"p99":1}}' ;;
    *) echo "{\"requests\":$((2 * rate)),\"errors\":0,\"first_error\":null,\"seconds\":2.0,\"latency_us\":{\"p50\":100.0,\"p99\":900.0}}" ;;
esac"#;
        let cluster = Self::that_says(report);
        let lines: String = rates.iter().map(|rate| format!("{rate}\n")).collect();
        fs::write(cluster.path("rates"), lines).expect("it is writable");
        cluster
    }

    /// With this script in the place of the load generator.
    fn that_says(report: &str) -> Self {
        let folder = tempfile::tempdir().expect("a writable temp folder");
        let cluster = Self { folder };
        // The proxy has used 10 ms more each time it is asked. A round begins at the PR pod with one connection.
        cluster.program(
            "kubectl",
            &format!(
                r#"printf '%s\n' "$*" >>"$WORLD/calls"
case "$*" in
    *' apply '*) cat >>"$WORLD/applied"; echo >>"$WORLD/applied" ;;
    *'get service'*) echo 10.96.0.7 ;;
    *'get pod pr'*) echo 10.244.1.9 ;;
    *'get nodes'*) echo 'v1.31.0, 6.1.0, containerd://1.7.0, 4 CPUs' ;;
    *cpu.stat*) echo more >>"$WORLD/cpu"; echo "usage_usec $(($(grep -c '' "$WORLD/cpu") * 10000))" ;;
    *' exec -i '*) cat >"$WORLD/put" ;;
    *'/tmp/load client'*)
        case "$*" in *'--target 10.244.1.9:8080 '*'--connections 1 --seconds 1 '*) echo >>"$WORLD/rounds" ;; esac
        {report} ;;
esac"#
            ),
        );
        cluster.program("load", "exit 9");
        cluster
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("it is writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn measure(&self, arguments: &[&str]) -> Output {
        let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/load/kind"))
            .args(arguments)
            .args(["--load".as_ref(), self.path("load").as_os_str()])
            .args(["--out".as_ref(), self.path("report.md").as_os_str()])
            .env_clear()
            .env(
                "PATH",
                format!(
                    "{}:/usr/local/bin:/usr/bin:/bin",
                    self.folder.path().display()
                ),
            )
            .env("WORLD", self.folder.path())
            .env("CONTEXT", "somewhere")
            .env("MIRRORD_IMAGE", "example.com/ours:1")
            .stdin(Stdio::null())
            .output();
        output.expect("it is a script")
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.path("calls")).unwrap_or_default()
    }

    fn report(&self) -> String {
        fs::read_to_string(self.path("report.md")).unwrap_or_default()
    }

    /// Every object that was applied.
    fn applied(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("applied")).expect("something was applied");
        let lists = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
        lists
            .flat_map(|list| {
                let list = list.expect("it is JSON");
                list["items"].as_array().expect("it is a list").clone()
            })
            .collect()
    }
}

/// The row of the table with that way and one connection.
fn row<'r>(report: &'r str, way: &str) -> &'r str {
    let start = format!("| {way} | 1 |");
    report
        .lines()
        .find(|line| line.starts_with(&start))
        .unwrap_or_else(|| panic!("no row {start} in\n{report}"))
}

#[test]
#[ignore = "needs python3: cargo test --test it load_kind:: -- --ignored"]
fn the_report_has_every_way_with_the_median_of_its_rounds() {
    let cluster = Cluster::that_answers(&[1000, 4000, 1200]);

    let output = cluster.measure(&[
        "--socat-image",
        SOCAT,
        "--seconds",
        "2",
        "--connections",
        "1",
    ]);

    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let report = cluster.report();
    for way in [
        "to the PR pod",
        "to the app",
        "to the app, session-proxy alive",
        "to the app, socat alive",
    ] {
        assert!(
            row(&report, way).ends_with("| 1,200 | 100 us | 900 us |  |"),
            "{report}"
        );
    }
    // 10 ms over 2,000, 8,000 and 2,400 requests.
    for way in ["to the PR pod by session-proxy", "to the PR pod by socat"] {
        assert!(
            row(&report, way).ends_with("| 1,200 | 100 us | 900 us | 4 us |"),
            "{report}"
        );
    }
    assert!(
        report.contains("- 1 connections, session-proxy over socat, requests/s: 1.00\n"),
        "{report}"
    );
    assert!(
        report.contains("4 CPUs") && report.contains(SOCAT),
        "{report}"
    );
    assert!(!report.contains("{{"), "{report}");
}

#[test]
#[ignore = "needs python3: cargo test --test it load_kind:: -- --ignored"]
fn only_the_named_cluster_is_spoken_to_and_its_own_namespaces_are_deleted() {
    let cluster = Cluster::that_answers(&[1000]);

    cluster.measure(&["--rounds", "1", "--seconds", "2"]);

    let calls = cluster.calls();
    assert!(
        calls
            .lines()
            .all(|call| call.starts_with("--context somewhere ")),
        "{calls}"
    );
    let last = calls.lines().last().expect("something was asked");
    let names: Vec<_> = last
        .strip_prefix("--context somewhere delete namespace ")
        .unwrap_or_else(|| panic!("{last}"))
        .split(' ')
        .filter(|word| !word.starts_with("--"))
        .collect();
    assert_eq!(names.len(), 2, "{last}");
    for object in cluster.applied() {
        let place = match object["kind"].as_str() {
            Some("Namespace") => &object["metadata"]["name"],
            _ => &object["metadata"]["namespace"],
        };
        assert!(
            names.contains(&place.as_str().expect("it has one")),
            "{object}"
        );
    }
}

#[test]
#[ignore = "needs python3: cargo test --test it load_kind:: -- --ignored"]
fn both_proxies_are_wrapped_by_the_same_mirrord_and_every_load_has_an_end() {
    let cluster = Cluster::that_answers(&[1000]);

    cluster.measure(&["--socat-image", SOCAT, "--rounds", "1", "--seconds", "2"]);

    let pods: Vec<_> = cluster
        .applied()
        .into_iter()
        .filter(|object| object["kind"] == "Pod" && object["metadata"]["name"] == "proxy")
        .collect();
    let [ours, theirs] = &pods[..] else {
        panic!("{pods:?}");
    };
    let words = |pod: &Value| pod["spec"]["containers"][0]["command"].clone();
    assert_eq!(
        words(ours).as_array().expect("words")[..5],
        words(theirs).as_array().expect("words")[..5]
    );
    assert!(words(ours).to_string().contains("pr-42=10.244.1.9:8080"));
    assert!(words(theirs).to_string().contains("TCP:10.244.1.9:8080"));
    assert_eq!(theirs["spec"]["containers"][0]["image"], SOCAT);
    for pod in &pods {
        // What mirrord's layer is comes from one image.
        assert_eq!(
            pod["spec"]["initContainers"][0]["image"],
            "example.com/ours:1"
        );
    }
    let calls = cluster.calls();
    let loads: Vec<_> = calls
        .lines()
        .filter(|call| call.contains("/tmp/load client"))
        .collect();
    assert!(!loads.is_empty(), "{calls}");
    assert!(
        loads.iter().all(|call| call.contains(" timeout ")),
        "{calls}"
    );
}

#[test]
#[ignore = "needs python3: cargo test --test it load_kind:: -- --ignored"]
fn pods_meet_the_standard_that_their_namespace_enforces() {
    let cluster = Cluster::that_answers(&[1000]);

    cluster.measure(&["--socat-image", SOCAT, "--rounds", "1", "--seconds", "2"]);

    for pod in cluster
        .applied()
        .iter()
        .filter(|object| object["kind"] == "Pod")
    {
        let spec = &pod["spec"];
        assert_eq!(spec["securityContext"]["runAsNonRoot"], true, "{pod}");
        assert_eq!(
            spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault",
            "{pod}"
        );
        let containers = [&spec["containers"], &spec["initContainers"]];
        for container in containers
            .iter()
            .filter_map(|list| list.as_array())
            .flatten()
        {
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"], false, "{pod}");
            assert_eq!(context["capabilities"]["drop"][0], "ALL", "{pod}");
        }
    }
}

#[test]
#[ignore = "needs python3: cargo test --test it load_kind:: -- --ignored"]
fn without_an_image_of_socat_the_report_says_that_it_is_left_out() {
    let cluster = Cluster::that_answers(&[1000]);

    let output = cluster.measure(&["--rounds", "1", "--seconds", "2"]);

    assert_eq!(output.status.code(), Some(0));
    let report = cluster.report();
    assert!(report.contains("Left out: socat"), "{report}");
    assert!(!report.contains("by socat"), "{report}");
}

#[test]
#[ignore = "needs python3: cargo test --test it load_kind:: -- --ignored"]
fn a_load_with_an_error_in_it_ends_the_measurement_and_nothing_is_left() {
    let wrong = r#"echo '{"requests":9,"errors":1,"first_error":"status 502","seconds":2,"latency_us":{"p50":1,"p99":1}}'"#;
    for (report, named) in [
        (wrong, "status 502"),
        ("echo killed", "killed"),
        ("echo gone >&2; exit 1", "gone"),
    ] {
        let cluster = Cluster::that_says(report);

        let output = cluster.measure(&["--seconds", "2"]);

        assert_eq!(output.status.code(), Some(1), "{named}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.contains(named) && !said.contains("Traceback"),
            "{said}"
        );
        assert_eq!(cluster.report(), "");
        let calls = cluster.calls();
        assert!(
            calls
                .lines()
                .last()
                .is_some_and(|call| call.contains(" delete namespace bench-")),
            "{calls}"
        );
    }
}

#[test]
#[ignore = "needs python3: cargo test --test it load_kind:: -- --ignored"]
fn what_was_mistyped_is_named_and_nothing_is_asked() {
    let cluster = Cluster::that_answers(&[1000]);
    for (arguments, named) in [
        (&["--rounds", "0"][..], "--rounds"),
        (&["--connections", "many"], "--connections"),
        (&["--load", "/nowhere/load", "--"], "load"),
        (&["orders"], "orders"),
    ] {
        let output = cluster.measure(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(named), "{arguments:?}: {said}");
    }
    assert_eq!(cluster.calls(), "");
}
