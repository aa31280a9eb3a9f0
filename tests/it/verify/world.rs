//! A stack in a cluster, on loopback: apps in baseline and PR pods, real proxies before the replicas, and
//! the objects that tell of them. What is wrong with it is up to the test.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::shown::{NAMESPACE, Shown};
use crate::support::app::{App, Habits, fresh_ip};
use crate::support::proxy::{Proxy, Setup, binary};

/// An app of the stack, and how it fares.
#[derive(Debug, Clone)]
pub struct Plan {
    pub name: &'static str,
    pub downstream: Vec<&'static str>,
    /// `grpc` or `http`.
    pub protocol: &'static str,
    pub replicas: usize,
    /// The first so many replicas have a proxy before them.
    pub stolen: usize,
    /// There are a PR pod and a proxy pod.
    pub is_intercepted: bool,
    pub baseline: Habits,
    pub pr: Habits,
    pub way: Way,
}

/// What the app's proxy makes of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// As it should.
    Right,
    /// It does not know the session.
    Unknown,
    /// The session's requests go to another pod.
    Astray,
    /// All others go to the PR pod, too.
    Everything,
}

/// All of it, running.
pub struct World {
    pub api: Shown,
    plans: Vec<Plan>,
    port: u16,
    apps: Vec<App>,
    proxies: Vec<Proxy>,
    folder: TempDir,
}

/// The addresses of an app's pods.
struct Place {
    replicas: Vec<IpAddr>,
    /// Where the app is behind each replica's proxy.
    behind: Vec<IpAddr>,
    pr: IpAddr,
    other: IpAddr,
}

/// What `verify` did.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub report: Value,
    pub stderr: String,
}

impl Plan {
    pub fn of(name: &'static str) -> Self {
        Self {
            name,
            downstream: vec![],
            protocol: "http",
            replicas: 1,
            stolen: usize::MAX,
            is_intercepted: true,
            baseline: Habits::default(),
            pr: Habits::default(),
            way: Way::Right,
        }
    }

    pub fn calling(self, name: &'static str) -> Self {
        let downstream = vec![name];
        Self { downstream, ..self }
    }

    /// No pull request changes it.
    pub fn untouched(self) -> Self {
        Self {
            is_intercepted: false,
            stolen: 0,
            ..self
        }
    }

    fn pr_pod(&self) -> String {
        format!("pr-{}-pr-42", self.name)
    }

    fn replica(&self, index: usize) -> String {
        format!("{}-7c9d-{index}", self.name)
    }
}

impl World {
    pub async fn of(plans: Vec<Plan>) -> Self {
        let port = free_port().await;
        let mut world = Self {
            api: Shown::new().await,
            port,
            apps: vec![],
            proxies: vec![],
            folder: tempfile::tempdir().expect("a writable temp folder"),
            plans,
        };
        let places: Vec<_> = world.plans.iter().map(Place::of).collect();
        for (plan, place) in world.plans.clone().iter().zip(&places) {
            let calls = world.fronts(plan, &places);
            world.start_apps(plan, place, &calls).await;
            world.show_baseline(plan, place);
            if plan.is_intercepted {
                world.start_proxy(plan, place).await;
                world.show_pr_pod(plan, place);
            }
        }
        world
    }

    /// Runs `verify` to its end; what is said twice holds as said here.
    pub async fn verify(&self, more: &[&str]) -> Outcome {
        let names = |plans: &[&Plan]| {
            let names: Vec<_> = plans.iter().map(|plan| plan.name).collect();
            names.join(" ")
        };
        let built: Vec<_> = self
            .plans
            .iter()
            .filter(|plan| plan.is_intercepted)
            .collect();
        let deployed = built
            .iter()
            .map(|plan| (plan.name.to_owned(), plan.pr_pod().into()));
        let deployed = Value::Object(deployed.collect()).to_string();
        let mut command = Command::new(binary());
        command
            .arg("verify")
            .arg("--kubeconfig")
            .arg(self.api.kubeconfig.path())
            .args(["--stack-json", &self.stack()])
            .args(["--build-apps", &names(&built)])
            .args(["--intercept-header", "x-dev-session:pr-42"])
            .args(more);
        if !more.contains(&"--deployed-pods") {
            command.args(["--deployed-pods", &deployed]);
        }
        let output = tokio::task::spawn_blocking(move || command.output());
        let output = output
            .await
            .expect("no panic")
            .expect("the binary can be started");
        Outcome {
            code: output.status.code(),
            report: serde_json::from_slice(&output.stdout).unwrap_or_default(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// A path in a folder that goes with the world.
    pub fn file(&self, name: &str) -> String {
        let path = self.folder.path().join(name);
        path.to_str().expect("a plain path").to_owned()
    }

    /// Ends everything that answers; the objects stay.
    pub fn fall_silent(&mut self) {
        self.apps.clear();
        self.proxies.clear();
    }

    fn stack(&self) -> String {
        let app = |plan: &Plan| {
            json!({
                "name": plan.name,
                "ports": [{
                    "container-port": self.port, "service-port": self.port, "protocol": plan.protocol,
                }],
                "downstream": plan.downstream,
            })
        };
        let apps: Vec<_> = self.plans.iter().map(app).collect();
        json!({ "name": "shop", "defaults": { "namespace": NAMESPACE }, "apps": apps }).to_string()
    }

    fn at(&self, ip: IpAddr) -> SocketAddr {
        (ip, self.port).into()
    }

    /// Where the apps are called that this one calls.
    fn fronts(&self, plan: &Plan, places: &[Place]) -> Vec<SocketAddr> {
        let all = self.plans.iter().zip(places);
        let called = all.filter(|(other, _)| plan.downstream.contains(&other.name));
        called
            .map(|(_, place)| self.at(place.replicas[0]))
            .collect()
    }

    async fn start_apps(&mut self, plan: &Plan, place: &Place, calls: &[SocketAddr]) {
        for index in 0..plan.replicas {
            let ip = match index < plan.stolen {
                true => place.behind[index],
                false => place.replicas[index],
            };
            let who = (plan.name, &*plan.replica(index));
            let app = App::start(who, self.at(ip), calls.to_vec(), plan.baseline.clone());
            self.apps.push(app.await);
        }
        if plan.is_intercepted {
            for ip in [place.pr, place.other] {
                let who = (plan.name, &*plan.pr_pod());
                let app = App::start(who, self.at(ip), calls.to_vec(), plan.pr.clone()).await;
                if ip == place.pr {
                    self.api.put_log(&plan.pr_pod(), app.log());
                }
                self.apps.push(app);
            }
        }
    }

    async fn start_proxy(&mut self, plan: &Plan, place: &Place) {
        let mut yaml = "listeners:\n".to_owned();
        let stolen = plan.stolen.min(plan.replicas);
        for index in 0..stolen {
            let baseline = match plan.way {
                Way::Everything => place.pr,
                _ => place.behind[index],
            };
            writeln!(
                yaml,
                "  - {{ name: r{index}, address: \"{}\", appPort: {}, baseline: \"{}\" }}",
                self.at(place.replicas[index]),
                self.port,
                self.at(baseline)
            )
            .expect("a string grows");
        }
        if stolen == 0 {
            yaml += "  - { name: idle, address: \"127.0.0.1:0\", appPort: 80 }\n";
        }
        let (session, ip) = match plan.way {
            Way::Right | Way::Everything => ("pr-42", place.pr),
            Way::Unknown => ("pr-4", place.pr),
            Way::Astray => ("pr-42", place.other),
        };
        writeln!(yaml, "sessions: {{ {session}: \"{ip}\" }}").expect("a string grows");
        let mut setup = Setup::new().yaml(&yaml);
        if plan.replicas == 1 {
            setup = setup.flag("--target-name").flag(&plan.replica(0));
        }
        let proxy = setup.start().await;
        let name = format!("mirrord-proxy-{}", plan.name);
        let admin = proxy.admin();
        let mut pod = pod(&name, admin.ip(), &json!({ "app": "mirrord-proxy" }));
        pod["spec"]["containers"][0]["ports"] =
            json!([{ "name": "admin", "containerPort": admin.port() }]);
        self.api.put("pods", pod);
        self.proxies.push(proxy);
    }

    fn show_baseline(&self, plan: &Plan, place: &Place) {
        let labels = json!({ "app": plan.name });
        for (index, ip) in place.replicas.iter().enumerate() {
            self.api
                .put("pods", pod(&plan.replica(index), *ip, &labels));
        }
        let template = json!({
            "metadata": { "labels": labels },
            "spec": { "containers": [{ "name": "app", "image": "registry.example/app:live" }] },
        });
        self.api.put(
            "deployments",
            json!({
                "apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": { "name": plan.name, "namespace": NAMESPACE },
                "spec": { "selector": { "matchLabels": labels }, "template": template },
            }),
        );
        self.api.put(
            "services",
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": { "name": plan.name, "namespace": NAMESPACE },
                "spec": { "clusterIP": place.replicas[0], "selector": labels },
            }),
        );
    }

    fn show_pr_pod(&self, plan: &Plan, place: &Place) {
        let labels = json!({
            "app": "pr-test", "session-proxy/app": plan.name, "session-proxy/session": "pr-42",
        });
        self.api.put("pods", pod(&plan.pr_pod(), place.pr, &labels));
    }
}

impl Place {
    fn of(plan: &Plan) -> Self {
        let some = || (0..plan.replicas).map(|_| fresh_ip().into()).collect();
        Self {
            replicas: some(),
            behind: some(),
            pr: fresh_ip().into(),
            other: fresh_ip().into(),
        }
    }
}

impl Outcome {
    /// All checks of all apps and replicas that failed, as `WHERE NAME: DETAIL`.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let failed = |value: &Value| value["ok"] == false;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let say = |place: &str, check: &Value| {
            format!(
                "{place} {}: {}",
                text(&check["name"]),
                text(&check["detail"])
            )
        };
        for app in list(&self.report["apps"]) {
            let checks = list(&app["checks"]).into_iter().filter(failed);
            failures.extend(checks.map(|check| say(&text(&app["app"]), &check)));
            for replica in list(&app["replicas"]) {
                let checks = list(&replica["checks"]).into_iter().filter(failed);
                failures.extend(checks.map(|check| say(&text(&replica["pod"]), &check)));
            }
        }
        for hop in list(&self.report["hops"]).into_iter().filter(failed) {
            failures.push(format!(
                "hop {}: {}",
                text(&hop["app"]),
                text(&hop["detail"])
            ));
        }
        let traffic = list(&self.report["traffic"]["apps"]);
        for app in traffic.into_iter().filter(failed) {
            failures.push(format!(
                "traffic {}: {}",
                text(&app["app"]),
                text(&app["detail"])
            ));
        }
        failures
    }

    /// Panics unless it ended with 0, and everything in the report holds.
    pub fn assert_holds(&self) {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        assert_eq!(self.failures(), [""; 0]);
        assert_eq!(self.report["ok"], true);
    }

    /// Panics unless it ended with 1 and a failure has all of these parts.
    pub fn assert_fails(&self, parts: &[&str]) {
        assert_eq!(self.code, Some(1), "{}", self.stderr);
        assert_eq!(self.report["ok"], false);
        let failures = self.failures();
        let is_it = |failure: &String| parts.iter().all(|part| failure.contains(part));
        assert!(
            failures.iter().any(is_it),
            "{parts:?} in none of {failures:#?}\n{}",
            self.stderr
        );
    }
}

fn pod(name: &str, ip: IpAddr, labels: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": NAMESPACE, "uid": format!("uid-{name}"), "labels": labels },
        "spec": { "containers": [{ "name": "app", "image": "registry.example/app:live" }] },
        "status": {
            "phase": "Running", "podIP": ip,
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

/// A port for all pods, each of which has its own address.
async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("loopback has a free port");
    listener.local_addr().expect("it is bound").port()
}
