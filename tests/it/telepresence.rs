//! `attach` against a stand-in for Telepresence: one client and one proxy for all pods of the app.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::json;

use crate::support::attached::{self, Attached};
use crate::support::eventually;
use crate::support::raw;
use crate::support::request::Request;
use crate::support::staging::Staging;
use crate::support::target_pod::TargetPod;
use crate::support::telepresence::{self, Manager, PATIENCE};

/// The app's namespace, with Telepresence in it.
struct Bed {
    staging: Staging,
    manager: Manager,
}

/// A pod of the app with an agent before it.
struct Replica {
    _pod: Arc<TargetPod>,
    door: SocketAddr,
}

impl Bed {
    async fn new() -> Self {
        Self {
            staging: Staging::new().await,
            manager: Manager::new().await,
        }
    }

    async fn replica(&mut self, name: &str) -> Replica {
        let pod = self.staging.replica(name).await;
        let door = self.manager.agent(pod.address).await;
        let mut known = self.staging.cluster.find("pods", name).expect("a pod");
        known["spec"]["containers"] = json!([
            { "name": "orders", "ports": [{ "name": "tm-http", "containerPort": pod.address.port() }] },
            { "name": "traffic-agent", "ports": [{ "name": "http", "containerPort": door.port() }] },
        ]);
        self.staging.cluster.apply("pods", known);
        Replica { _pod: pod, door }
    }

    async fn attach(&self) -> Attached {
        let mut intercept = self.staging.intercepted();
        intercept["backend"] = json!({ "telepresence": {
            "managerNamespace": "ambassador",
            "services": [{ "service": "orders-svc", "port": "http" }],
        } });
        let setting = self.staging.setting();
        std::fs::write(&setting.intercept, intercept.to_string()).expect("writable");
        let mut command = attached::command(&setting, "proxy-1", &["--start-timeout", "2s"]);
        let folder = self.staging.folder();
        command
            .arg("--telepresence")
            .arg(telepresence::install(folder, self.manager.address))
            .arg("--telepresence-socket")
            .arg(folder.join("daemon.socket"))
            .env("TELEPRESENCE_REGISTRY", "somebody's");
        Attached::run(command).await
    }
}

impl Replica {
    /// Who answers a request with that session, or without one, that comes by the app's Service.
    async fn ask(&self, session: Option<&str>) -> (String, Option<String>) {
        let request = Request::get("/")
            .header("host", "orders")
            .header("connection", "close");
        let request = match session {
            Some(session) => request.session(session),
            None => request,
        };
        let answer = raw::exchange(self.door, request.to_h1("/")).await;
        (answer.served_by(), answer.route())
    }
}

/// The daemon is the child that is not the proxy: it knows its manager.
fn is_daemon(pid: u32) -> bool {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let wanted = b"STAND_IN_MANAGER=";
    environment.windows(wanted.len()).any(|it| it == wanted)
}

/// Kills the first child that is such a one.
fn kill(attached: &Attached, is_it: impl Fn(u32) -> bool) {
    let mut children = attached.children().into_iter();
    let (pid, _) = children.find(|(pid, _)| is_it(*pid)).expect("a child");
    let kill = format!("kill -KILL {pid}");
    let killed = std::process::Command::new("sh")
        .args(["-c", &kill])
        .status();
    assert!(killed.expect("there is a shell").success());
}

async fn live(attached: &Attached, pods: &[&str]) {
    for pod in pods {
        attached.reaches_within(pod, "live", PATIENCE).await;
    }
}

#[tokio::test]
async fn one_proxy_takes_the_requests_of_all_pods_and_sends_back_those_of_no_session() {
    let mut bed = Bed::new().await;
    let one = bed.replica("orders-1").await;
    let other = bed.replica("orders-2").await;
    let _pr = bed.staging.pr_pod("pr-42").await;
    let attached = bed.attach().await;

    live(&attached, &["orders-1", "orders-2"]).await;

    attached.readiness(200, "ready").await;
    let mut apps = Vec::new();
    for replica in [&one, &other, &one, &other] {
        assert_eq!(
            replica.ask(Some("pr-42")).await,
            ("pr-orders-pr-42".to_owned(), Some("pr-42".to_owned()))
        );
        let (app, route) = replica.ask(None).await;
        assert_eq!(route.as_deref(), Some("baseline; reason=no-session"));
        apps.push(app);
        let (app, route) = replica.ask(Some("pr-7")).await;
        assert_eq!(route.as_deref(), Some("baseline; reason=unknown-session"));
        assert!(app.starts_with("orders-"), "{app}");
    }
    // Whichever of them may have requests.
    apps.sort();
    apps.dedup();
    assert_eq!(apps, ["orders-1", "orders-2"]);
    let labels = [("target", "deployment/orders"), ("route", "pr-42")];
    let requests = attached
        .metric("session_proxy_requests_total", &labels)
        .await;
    assert!((requests - 4.0).abs() < 0.1, "{requests}");
}

#[tokio::test]
async fn the_client_is_told_what_to_take_and_nothing_by_others() {
    let mut bed = Bed::new().await;
    let _replica = bed.replica("orders-1").await;
    let attached = bed.attach().await;

    live(&attached, &["orders-1"]).await;

    let calls = bed.manager.calls();
    let [call] = &calls[..] else {
        panic!("{calls:?}");
    };
    let name = format!("session-proxy-orders-{}", bed.staging.port());
    let (before, after) = call.split_at(7);
    assert_eq!(
        before,
        [
            "intercept",
            &name,
            "--workload",
            "orders",
            "--service",
            "orders-svc",
            "--port"
        ]
    );
    let [port, rest @ ..] = after else {
        panic!("{after:?}");
    };
    assert!(port.ends_with(":http"), "{port}");
    assert_eq!(rest, ["--address", "127.0.0.1", "--mount=false"]);
}

#[tokio::test]
async fn a_client_that_is_killed_is_buried_and_another_takes_its_place() {
    let mut bed = Bed::new().await;
    let replica = bed.replica("orders-1").await;
    let _pr = bed.staging.pr_pod("pr-42").await;
    let attached = bed.attach().await;
    live(&attached, &["orders-1"]).await;
    let (before, name) = bed.manager.intercept().expect("it is taken");

    kill(&attached, is_daemon);

    let manager = &bed.manager;
    let taken_anew = || {
        manager
            .intercept()
            .is_some_and(|(session, _)| session != before)
    };
    let start = std::time::Instant::now();
    while !taken_anew() {
        assert!(start.elapsed() < PATIENCE, "nobody takes it anew");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    live(&attached, &["orders-1"]).await;
    assert_eq!(replica.ask(Some("pr-42")).await.0, "pr-orders-pr-42");
    assert_eq!(bed.manager.intercept().expect("it is taken").1, name);
    // What would hold the app's requests for a day is gone.
    assert_eq!(bed.manager.sessions(), 1);
    let reasons = [("target", "orders-1"), ("reason", "ended")];
    let restarts = attached
        .metric("session_proxy_target_restarts_total", &reasons)
        .await;
    assert!((restarts - 1.0).abs() < 0.1, "{restarts}");
}

#[tokio::test]
async fn what_a_lost_pod_has_left_behind_is_taken_over() {
    let mut bed = Bed::new().await;
    let replica = bed.replica("orders-1").await;
    let name = format!("session-proxy-orders-{}", bed.staging.port());
    bed.manager.occupy("a34fedb3-94c6-4734", &name, false);
    let attached = bed.attach().await;

    live(&attached, &["orders-1"]).await;

    assert_eq!(replica.ask(None).await.0, "orders-1");
    let (session, _) = bed.manager.intercept().expect("it is taken");
    assert_ne!(session, "a34fedb3-94c6-4734");
    assert_eq!(bed.manager.sessions(), 1);
}

#[tokio::test]
async fn somebody_elses_intercept_is_left_alone_and_told() {
    let mut bed = Bed::new().await;
    let _replica = bed.replica("orders-1").await;
    bed.manager.occupy("a34fedb3-94c6-4734", "orders", true);
    let attached = bed.attach().await;

    let told = attached
        .reaches_within("orders-1", "occupied", PATIENCE)
        .await;

    let message = told["message"].as_str().expect("a text");
    assert!(
        message.contains("a34fedb3-94c6-4734:orders") && message.contains("must leave it first"),
        "{message}"
    );
    attached.readiness(503, "occupied").await;
    let (session, name) = bed.manager.intercept().expect("it is there");
    assert_eq!((&*session, &*name), ("a34fedb3-94c6-4734", "orders"));
}

#[tokio::test]
async fn a_traffic_manager_that_is_missing_is_told_with_what_to_do() {
    let mut bed = Bed::new().await;
    let _replica = bed.replica("orders-1").await;
    bed.manager
        .refuse("traffic manager not found, if it is not installed");
    let attached = bed.attach().await;

    let told = attached
        .reaches_within("orders-1", "failed", PATIENCE)
        .await;

    let message = told["message"].as_str().expect("a text");
    assert!(
        message.contains("is it in namespace ambassador?"),
        "{message}"
    );
}

#[tokio::test]
async fn an_agent_that_takes_what_is_sent_back_too_is_told_with_what_to_do() {
    let mut bed = Bed::new().await;
    let _replica = bed.replica("orders-1").await;
    let mut pod = bed.staging.cluster.find("pods", "orders-1").expect("a pod");
    pod["spec"]["initContainers"] = json!([{ "name": "tel-agent-init" }]);
    bed.staging.cluster.apply("pods", pod);
    let attached = bed.attach().await;

    let told = attached
        .reaches_within("orders-1", "failed", PATIENCE)
        .await;

    let message = told["message"].as_str().expect("a text");
    assert!(message.contains("lead to a port by its name"), "{message}");
}

#[tokio::test]
async fn a_pod_without_an_agent_is_waited_for() {
    let mut bed = Bed::new().await;
    let _replica = bed.replica("orders-1").await;
    let _bare = bed.staging.replica("orders-2").await;
    let attached = bed.attach().await;
    live(&attached, &["orders-1"]).await;

    let told = attached.reaches("orders-2", "starting").await;

    assert_eq!(
        told["message"],
        "Telepresence's agent is not in the pod yet"
    );
    attached.readiness(503, "orders-2 is starting").await;
}

#[tokio::test]
async fn told_to_end_it_gives_the_app_its_requests_back_and_says_goodbye() {
    let mut bed = Bed::new().await;
    let replica = bed.replica("orders-1").await;
    let mut attached = bed.attach().await;
    live(&attached, &["orders-1"]).await;

    attached.signal("TERM");
    let status = attached.wait_exit(PATIENCE).await;

    assert!(status.success(), "{status}");
    assert_eq!(bed.manager.intercept(), None);
    let manager = &bed.manager;
    eventually("the session is over", || manager.sessions() == 0).await;
    assert_eq!(replica.ask(None).await, ("orders-1".to_owned(), None));
    let calls = bed.manager.calls();
    assert_eq!(calls.last().map(|call| &*call[0]), Some("leave"));
}

#[tokio::test]
async fn told_to_end_while_a_client_ends_it_gives_the_app_its_requests_back() {
    let mut bed = Bed::new().await;
    let replica = bed.replica("orders-1").await;
    let mut attached = bed.attach().await;
    live(&attached, &["orders-1"]).await;
    let manager = &bed.manager;
    manager.ignore_goodbyes();
    kill(&attached, |pid| !is_daemon(pid));
    eventually("the client says goodbye", || manager.ignored() > 0).await;

    attached.signal("TERM");
    attached.wait_exit(PATIENCE).await;

    assert_eq!(manager.intercept(), None);
    assert_eq!(replica.ask(None).await, ("orders-1".to_owned(), None));
}
