//! Sessions that come from the cluster: pods that come, go and change under a running proxy.
//!
//! The API server is a stand-in; `tests/cluster` asks a real one.

mod away;
mod refused;
mod together;

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::api_server::{ApiServer, NAMESPACE};
use crate::support::pods::{APP, PodNetwork, ending, ip, ready, unready};
use crate::support::proxy::{Proxy, Setup};
use crate::support::raw;
use crate::support::request::Request;
use crate::support::upstream::Upstream;
use crate::support::way::Way;
use crate::support::{PATIENCE, eventually, within};

/// What a route header says of a session that is not in the table.
const UNKNOWN: &str = "baseline; reason=unknown-session";

/// What it says of a session none of whose pods is ready.
const NO_POD: &str = "none; reason=no-endpoint";

/// An API server, a baseline and addresses for pods.
struct World {
    api: ApiServer,
    baseline: Upstream,
    network: PodNetwork,
}

impl World {
    async fn new() -> Self {
        Self {
            api: ApiServer::new().await,
            baseline: Upstream::site("baseline").await,
            network: PodNetwork::new(),
        }
    }

    /// A proxy that looks for pods there.
    fn setup(&self) -> Setup {
        let discovery =
            format!("discovery: {{ kubernetes: {{ namespace: {NAMESPACE}, app: {APP} }} }}");
        Setup::new()
            .baseline(self.baseline.address)
            .listener(&format!("appPort: {}", self.network.port()))
            .top(&discovery)
            .env("KUBECONFIG", &self.api.kubeconfig())
    }

    /// A running proxy whose watch is open.
    async fn proxy(&self) -> Proxy {
        let proxy = self.setup().start().await;
        self.api.watched(1).await;
        proxy
    }

    /// The app of a pod with that number.
    async fn app(&self, number: u8, name: &str) -> Upstream {
        self.network.app(ip(number), name).await
    }
}

async fn route_of(proxy: &Proxy, session: &str) -> String {
    let request = Request::get("/").session(session);
    let answer = Way::Direct.send(proxy.http(), request).await;
    answer.route().expect("every answer has a route")
}

/// Waits until requests of that session go there: `pr-1`, [`NO_POD`] or [`UNKNOWN`].
async fn goes_to(proxy: &Proxy, session: &str, route: &str) {
    let start = Instant::now();
    loop {
        let now = route_of(proxy, session).await;
        if now == route {
            return;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "{session} goes to {now}, not to {route}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn served_by(proxy: &Proxy, session: &str) -> String {
    let request = Request::get("/").session(session);
    Way::Direct.send(proxy.http(), request).await.served_by()
}

/// What `/sessions` says of a session.
async fn told_of(proxy: &Proxy, session: &str) -> Value {
    let overview = proxy.ask_admin("/sessions").await.json();
    let sessions = overview["sessions"].as_array().expect("a list");
    let found = sessions.iter().find(|told| told["name"] == session);
    found.cloned().unwrap_or_default()
}

#[tokio::test]
async fn a_session_is_known_while_it_has_a_pod_and_served_while_that_is_ready() {
    let world = World::new().await;
    let app = world.app(1, "pr-1").await;
    let pod = || ready("pr-orders-pr-1", "pr-1", ip(1));
    let proxy = world.proxy().await;
    assert_eq!(route_of(&proxy, "pr-1").await, UNKNOWN);

    world.api.apply(unready(pod()));
    goes_to(&proxy, "pr-1", NO_POD).await;
    let strayed = world.baseline.requests();
    let told = told_of(&proxy, "pr-1").await;
    assert_eq!(
        (&told["state"], &told["source"]),
        (&"empty".into(), &"discovery".into())
    );
    for way in Way::all() {
        let request = Request::get("/").session("pr-1");
        let answer = way.send(proxy.http(), request).await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (503, "no-endpoint"),
            "{way:?}"
        );
    }
    world.api.apply(pod());
    goes_to(&proxy, "pr-1", "pr-1").await;
    for way in Way::all() {
        let request = Request::get("/").session("pr-1");
        assert_eq!(way.send(proxy.http(), request).await.served_by(), "pr-1");
    }

    world.api.apply(unready(pod()));
    goes_to(&proxy, "pr-1", NO_POD).await;
    world.api.apply(pod());
    goes_to(&proxy, "pr-1", "pr-1").await;
    assert_eq!(world.baseline.requests(), strayed, "none since it is known");
    world.api.apply(ending(pod()));
    goes_to(&proxy, "pr-1", UNKNOWN).await;
    let so_far = app.requests();

    world.api.delete("pr-orders-pr-1");
    assert_eq!(route_of(&proxy, "pr-1").await, UNKNOWN);
    assert_eq!(app.requests(), so_far, "a pod that goes is asked no more");
    for said in [
        "a session has come",
        "a session has a ready pod now",
        "a session has no ready pod any more",
        "a session has gone",
    ] {
        proxy.logged(said).await;
    }
}

#[tokio::test]
async fn a_session_without_a_ready_pod_may_fall_back_to_the_baseline_and_says_so() {
    let world = World::new().await;
    world.api.apply(unready(ready("one", "pr-1", ip(1))));
    let mut crashed = ready("two", "pr-2", ip(2));
    crashed["status"]["phase"] = "Failed".into();
    world.api.apply(crashed);
    let mut unscheduled = ready("three", "pr-3", ip(3));
    unscheduled["status"] = serde_json::json!({ "phase": "Pending" });
    world.api.apply(unscheduled);
    let setup = world.setup().listener("onUnavailable: baseline");

    let proxy = setup.start().await;

    for session in ["pr-1", "pr-2", "pr-3"] {
        let route = route_of(&proxy, session).await;
        assert_eq!(route, "baseline; reason=no-endpoint", "{session}");
    }
}

#[tokio::test]
async fn pods_that_are_there_at_the_start_are_served_by_the_first_request() {
    let world = World::new().await;
    let _app = world.app(1, "pr-1").await;
    world.api.apply(ready("one", "pr-1", ip(1)));
    world.api.apply(unready(ready("two", "pr-2", ip(2))));
    let mut another = ready("three", "pr-3", ip(3));
    another["metadata"]["labels"]["session-proxy/app"] = "payments".into();
    world.api.apply(another);

    let proxy = world.setup().start().await;

    for (session, route) in [("pr-1", "pr-1"), ("pr-2", NO_POD), ("pr-3", UNKNOWN)] {
        assert_eq!(route_of(&proxy, session).await, route);
    }
}

#[tokio::test]
async fn pods_of_one_session_share_its_requests() {
    let world = World::new().await;
    let (one, two) = (world.app(1, "one").await, world.app(2, "two").await);
    world.api.apply(ready("one", "pr-1", ip(1)));
    let proxy = world.proxy().await;
    world.api.apply(ready("two", "pr-1", ip(2)));

    let start = Instant::now();
    while two.requests() == 0 || one.requests() == 0 {
        assert!(start.elapsed() < PATIENCE, "only one of them is asked");
        route_of(&proxy, "pr-1").await;
    }
    world.api.delete("one");
    eventually_only(&proxy, "two").await;

    assert_eq!(told_of(&proxy, "pr-1").await["endpoints"][0]["pod"], "two");
}

/// Waits until twenty requests in a row are answered by that pod.
async fn eventually_only(proxy: &Proxy, name: &str) {
    let start = Instant::now();
    let mut in_a_row = 0;
    while in_a_row < 20 {
        assert!(start.elapsed() < PATIENCE, "others than {name} answer too");
        in_a_row = match served_by(proxy, "pr-1").await == name {
            true => in_a_row + 1,
            false => 0,
        };
    }
}

#[tokio::test]
async fn a_pod_may_have_an_ipv6_address() {
    let world = World::new().await;
    let address = format!("[::1]:{}", world.network.port());
    let _app = Upstream::site_at(address.parse().expect("an address"), "six").await;
    world.api.apply(ready("six", "pr-6", "::1"));

    let proxy = world.proxy().await;

    assert_eq!(served_by(&proxy, "pr-6").await, "six");
    assert_eq!(
        told_of(&proxy, "pr-6").await["endpoints"][0]["address"],
        "::1"
    );
}

/// The older pod is still told of, as when its node was lost: its address is another's already.
#[tokio::test]
async fn an_address_that_went_to_another_pod_serves_that_one_only() {
    let world = World::new().await;
    let app = world.app(1, "at the address").await;
    world.api.apply(ready("old", "pr-1", ip(1)));
    let proxy = world.proxy().await;
    goes_to(&proxy, "pr-1", "pr-1").await;

    world.api.apply(unready(ready("new", "pr-2", ip(1))));
    goes_to(&proxy, "pr-1", NO_POD).await;
    let before = app.requests();
    world.api.apply(ready("new", "pr-2", ip(1)));
    goes_to(&proxy, "pr-2", "pr-2").await;

    assert_eq!(route_of(&proxy, "pr-1").await, NO_POD);
    assert_eq!(app.requests(), before + 1);
    world.api.delete("old");
    goes_to(&proxy, "pr-1", UNKNOWN).await;
    assert_eq!(route_of(&proxy, "pr-2").await, "pr-2");
}

#[tokio::test]
async fn a_connection_is_never_used_for_another_pod_at_its_address() {
    let world = World::new().await;
    let app = world.app(1, "at the address").await;
    world.api.apply(ready("old", "pr-1", ip(1)));
    let proxy = world
        .setup()
        .top("timeouts: { poolIdle: 60s }")
        .flag("--workers=1");
    let proxy = proxy.start().await;
    for _ in 0..3 {
        assert_eq!(route_of(&proxy, "pr-1").await, "pr-1");
    }
    assert_eq!((app.connections(), app.open()), (1, 1));

    world.api.delete("old");
    world.api.apply(ready("new", "pr-1", ip(1)));

    eventually("the connection to the old pod is closed", || {
        app.open() == 0
    })
    .await;
    goes_to(&proxy, "pr-1", "pr-1").await;
    assert_eq!(app.connections(), 2);
    assert_eq!(told_of(&proxy, "pr-1").await["endpoints"][0]["pod"], "new");
}

/// It waits for its turn when its pod goes, and must not be sent to whoever has the address then.
#[tokio::test]
async fn a_request_that_waits_is_not_sent_to_a_pod_that_has_gone() {
    let world = World::new().await;
    let (app, _other) = (world.app(1, "pr-1").await, world.app(2, "pr-2").await);
    world.api.apply(ready("one", "pr-1", ip(1)));
    let setup = world.setup().flag("--workers=1");
    let limits = "limits: { requestsPerEndpoint: 1 }";
    let proxy = setup.top(limits).start().await;
    let mut first = raw::connect(proxy.http()).await;
    first
        .send("POST / HTTP/1.1\r\nhost: a\r\nx-dev-session: pr-1\r\ncontent-length: 2\r\n\r\n.")
        .await
        .expect("it reads");
    eventually("the first request is there", || app.requests() == 1).await;
    let address = proxy.http();
    let request = Request::get("/").session("pr-1");
    let second = tokio::spawn(async move { Way::Direct.send(address, request).await });
    let in_flight = "session_proxy_requests_in_flight";
    crate::awaited::metric_reaches(&proxy, in_flight, &[], 2.0).await;

    world.api.delete("one");
    world.api.apply(ready("two", "pr-2", ip(2)));
    goes_to(&proxy, "pr-2", "pr-2").await;
    first.send(".").await.expect("it reads");

    let answer = within("the first answer", first.answer("POST")).await;
    assert_eq!(answer.expect("an answer").served_by(), "pr-1");
    let answer = within("the second answer", second).await.expect("no panic");
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (503, "no-endpoint")
    );
    assert_eq!(app.requests(), 1);
}

#[tokio::test]
async fn among_two_thousand_pods_a_session_comes_and_goes_in_under_a_second() {
    let world = World::new().await;
    let _app = world.app(1, "new").await;
    for number in 0..2_000_u16 {
        let [high, low] = number.to_be_bytes();
        let address = std::net::Ipv4Addr::new(10, 9, high, low);
        world.api.apply(ready(
            &format!("pod-{number}"),
            &format!("pr-{number}"),
            address,
        ));
    }
    let proxy = world.proxy().await;
    assert_eq!(proxy.metric("session_proxy_sessions", &[]).await, 2_000.0);
    assert!(world.api.pages() > 1, "they did not fit on one page");

    for _ in 0..3 {
        let start = Instant::now();
        world.api.apply(ready("new", "new", ip(1)));
        goes_to(&proxy, "new", "new").await;
        let came = start.elapsed();
        let start = Instant::now();
        world.api.delete("new");
        goes_to(&proxy, "new", UNKNOWN).await;
        let went = start.elapsed();
        assert!(came < Duration::from_secs(1), "it took {came:?} to come");
        assert!(went < Duration::from_secs(1), "it took {went:?} to go");
    }
}
