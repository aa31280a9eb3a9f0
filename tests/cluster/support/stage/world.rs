//! Who answers at the addresses of the pods, and what.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use kube::ResourceExt;
use serde_json::json;
use session_proxy::control::proof::Probe;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::it::support::proxy::{Proxy, Setup};
use crate::support::PATIENCE;
use crate::support::baseline::PORT;
use crate::support::kubelet::RunningPod;

/// Where a proxy pod says how its targets are.
const ADMIN: u16 = 9901;

/// Where the app of a baseline pod can be reached without being taken, as through mirrord's agent.
const BEHIND: u16 = 18081;

/// Who runs, and what is otherwise than usual.
#[derive(Default)]
pub(super) struct World {
    servers: HashMap<String, JoinSet<()>>,
    /// Apps whose proxy runs, and for what a proxy of Telepresence says that it is there.
    proxies: HashMap<String, Option<String>>,
    /// How real proxies are started, if they are.
    pub(super) real: Option<Setup>,
    /// By the name of the baseline pod whose requests they take.
    real_proxies: HashMap<String, Proxy>,
    /// App and address of the baseline pods that run, by name.
    baselines: HashMap<String, (String, Ipv4Addr)>,
    /// App and session of the PR pods that run.
    sessions: HashSet<(String, String)>,
    /// Beginnings of the names of baseline pods whose requests nobody takes.
    pub(super) deaf: Vec<String>,
    pub(super) targets: String,
}

/// Who a pod is, by its labels.
#[derive(Clone)]
enum Part {
    Baseline { app: String, pod: String },
    Behind { app: String },
    PrPod { app: String, session: String },
    Proxy { app: String, shared: Option<String> },
}

impl Part {
    fn of(pod: &RunningPod) -> Self {
        let label = |key: &str| pod.object.labels().get(key).cloned();
        match (label("session-proxy/app"), label("session-proxy/session")) {
            (Some(app), Some(session)) => Self::PrPod { app, session },
            (Some(app), None) => {
                // One for all pods of the app, where mirrord's are one for each.
                let is_shared = label("app").as_deref() == Some("telepresence-proxy");
                let shared = is_shared.then(|| format!("deployment/{app}"));
                Self::Proxy { app, shared }
            }
            (None, _) => Self::Baseline {
                app: label("app").unwrap_or_default(),
                pod: pod.name.clone(),
            },
        }
    }
}

impl World {
    pub(super) fn forget(&mut self, pod: &RunningPod) {
        match Part::of(pod) {
            Part::Proxy { app, .. } => {
                self.proxies.remove(&app);
                let baselines = &self.baselines;
                self.real_proxies
                    .retain(|pod, _| baselines.get(pod).is_some_and(|(other, _)| *other != app));
            }
            Part::PrPod { app, session } => drop(self.sessions.remove(&(app, session))),
            Part::Baseline { .. } | Part::Behind { .. } => {
                self.baselines.remove(&pod.name);
            }
        }
        self.servers.remove(&pod.name);
    }

    fn way_of(&self, part: &Part, request: &Request<Incoming>) -> Way {
        let header = |name: &str| request.headers().get(name)?.to_str().ok();
        let (app, pod) = match part {
            Part::Baseline { app, pod } => (app, pod),
            Part::Behind { app } => return Way::answer(None, app),
            Part::PrPod { app, session } => {
                return Way::answer(None, format!("{app} of {session}"));
            }
            Part::Proxy { .. } => return Way::answer(None, &self.targets),
        };
        let is_deaf = self.deaf.iter().any(|prefix| pod.starts_with(prefix));
        let proxy = self.proxies.get(app).filter(|_| !is_deaf);
        let (Some(session), Some(shared)) = (header("x-dev-session"), proxy) else {
            return Way::answer(None, app);
        };
        if let Some(proxy) = self.real_proxies.get(pod) {
            return Way::Through(proxy.http());
        }
        if session == "session-proxy-probe" {
            let sign = json!({
                "instance": "stand-in",
                "target": shared.as_ref().unwrap_or(pod),
                "sessions": self.sessions.len(),
                "nonce": header("x-session-proxy-nonce"),
            });
            return Way::answer(Some("probe"), sign.to_string());
        }
        if self.sessions.contains(&(app.clone(), session.to_owned())) {
            return Way::answer(Some(session), format!("{app} of {session}"));
        }
        Way::answer(Some("baseline; reason=unknown-session"), app)
    }
}

/// What becomes of a request.
enum Way {
    Answer(Response<Full<Bytes>>),
    /// Through the real proxy there.
    Through(SocketAddr),
}

impl Way {
    fn answer(route: Option<&str>, body: impl Into<String>) -> Self {
        let mut response = Response::new(Full::new(Bytes::from(body.into())));
        if let Some(route) = route {
            let route = route.parse().expect("routes are visible ASCII");
            response.headers_mut().insert("x-dev-session-route", route);
        }
        Self::Answer(response)
    }
}

/// Answers at the pod's address from now on.
pub(super) async fn serve(world: Arc<Mutex<World>>, pod: RunningPod, namespace: &str) {
    let part = Part::of(&pod);
    let mut servers = JoinSet::new();
    let port = if matches!(part, Part::Proxy { .. }) {
        ADMIN
    } else {
        PORT
    };
    servers.spawn(accept(
        bind(pod.ip, port).await,
        world.clone(),
        part.clone(),
    ));
    match part {
        Part::Proxy { app, shared } => {
            start_real_proxies(&world, &app, namespace).await;
            let mut world = world.lock().expect("nobody panics");
            world.proxies.insert(app, shared);
        }
        Part::PrPod { app, session } => {
            let mut world = world.lock().expect("nobody panics");
            world.sessions.insert((app, session));
        }
        Part::Baseline { app, .. } => {
            let behind = Part::Behind { app: app.clone() };
            servers.spawn(accept(bind(pod.ip, BEHIND).await, world.clone(), behind));
            let mut world = world.lock().expect("nobody panics");
            world.baselines.insert(pod.name.clone(), (app, pod.ip));
        }
        Part::Behind { .. } => {}
    }
    let mut world = world.lock().expect("nobody panics");
    world.servers.insert(pod.name, servers);
}

/// One for each baseline pod of that app, as `attach` does.
async fn start_real_proxies(world: &Mutex<World>, app: &str, namespace: &str) {
    let (setup, targets) = {
        let world = world.lock().expect("nobody panics");
        let Some(setup) = world.real.clone() else {
            return;
        };
        let targets = world.baselines.iter().filter(|(_, (name, _))| name == app);
        let targets = targets.map(|(pod, (_, ip))| (pod.clone(), *ip));
        (setup, targets.collect::<Vec<_>>())
    };
    let discovery =
        format!("discovery: {{ kubernetes: {{ namespace: {namespace}, app: {app} }} }}");
    for (pod, ip) in targets {
        let setup = setup.clone().baseline(SocketAddr::from((ip, BEHIND)));
        let setup = setup.top(&discovery).flag("--target-name").flag(&pod);
        let proxy = setup.start().await;
        let mut world = world.lock().expect("nobody panics");
        world.real_proxies.insert(pod, proxy);
    }
}

async fn bind(ip: Ipv4Addr, port: u16) -> TcpListener {
    let address = SocketAddr::from((ip, port));
    let listener = TcpListener::bind(address).await;
    listener.unwrap_or_else(|error| panic!("{address}: {error}"))
}

async fn accept(listener: TcpListener, world: Arc<Mutex<World>>, part: Part) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (world, part) = (world.clone(), part.clone());
        connections.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let way = world.lock().expect("nobody panics").way_of(&part, &request);
                async move {
                    Ok::<_, Infallible>(match way {
                        Way::Answer(answer) => answer,
                        Way::Through(proxy) => pass_on(proxy, &request).await,
                    })
                }
            });
            // How a client goes away is its own affair.
            let engine = auto::Builder::new(TokioExecutor::new());
            let connection = engine.serve_connection(TokioIo::new(stream), service);
            let _ = connection.await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Sends a request that was taken through a real proxy.
async fn pass_on(proxy: SocketAddr, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let headers = request.headers().iter();
    let probe = Probe {
        address: proxy,
        is_http2: false,
        host: proxy.to_string(),
        target: request.uri().path().to_owned(),
        headers: headers
            .filter(|(name, _)| name.as_str().starts_with("x-"))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        patience: PATIENCE,
    };
    let answer = probe.ask().await;
    let answer = answer.unwrap_or_else(|silence| panic!("the proxy says nothing: {silence}"));
    let mut response = Response::new(Full::new(answer.body));
    *response.status_mut() = answer.status;
    for name in ["x-dev-session-route", "proxy-status"] {
        if let Some(value) = answer.headers.get(name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}
