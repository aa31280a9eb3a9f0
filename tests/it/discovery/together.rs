//! Sessions of the file and of the cluster in one table, and both changing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::awaited::reloaded;
use crate::pool::gauge_reaches;
use crate::support::pods::{ip, ready};
use crate::support::request::Request;
use crate::support::upstream::Upstream;
use crate::support::way::Way;

use super::{UNKNOWN, World, goes_to, route_of, served_by, told_of};

#[tokio::test]
async fn a_session_of_the_file_wins_over_one_that_is_found() {
    let world = World::new().await;
    let file = Upstream::site("file").await;
    let (_one, _two) = (world.app(1, "pod one").await, world.app(2, "pod two").await);
    let setup = world.setup().session("pr-1", file.address);
    let proxy = setup
        .session_yaml("pr-*", "{ endpoints: [] }")
        .start()
        .await;

    world.api.apply(ready("one", "pr-1", ip(1)));
    world.api.apply(ready("two", "pr-2", ip(2)));
    goes_to(&proxy, "pr-2", "pr-2").await;

    assert_eq!(served_by(&proxy, "pr-1").await, "file");
    assert_eq!(
        served_by(&proxy, "pr-2").await,
        "pod two",
        "exact before prefix"
    );
    proxy
        .logged("the configuration names this session itself")
        .await;
    world.api.apply(ready("three", "pr-3", ip(3)));
    gauge_reaches(&proxy, "session_proxy_sessions", &[], 4.0).await;
    assert_eq!(
        proxy.times_logged("the configuration names this session itself"),
        1
    );
}

#[tokio::test]
async fn the_admin_port_tells_where_a_session_comes_from() {
    let world = World::new().await;
    let file = Upstream::site("file").await;
    world.api.apply(ready("pr-orders-pr-1", "pr-1", ip(1)));
    let proxy = world.setup().session("pr-9", file.address).start().await;

    let (found, written) = (told_of(&proxy, "pr-1").await, told_of(&proxy, "pr-9").await);

    assert_eq!(found["source"], "discovery", "{found}");
    assert_eq!(found["endpoints"][0]["pod"], "pr-orders-pr-1", "{found}");
    assert_eq!(
        found["endpoints"][0]["address"],
        ip(1).to_string(),
        "{found}"
    );
    assert_eq!(written["source"], "file", "{written}");
    assert!(written["endpoints"][0]["pod"].is_null(), "{written}");
    let config = proxy.ask_admin("/config").await.json();
    let kubernetes = &config["discovery"]["kubernetes"];
    assert_eq!(
        (&kubernetes["namespace"], &kubernetes["app"]),
        (&"staging".into(), &"orders".into())
    );
    assert!(
        config["sessions"]["pr-1"].is_null(),
        "found, not configured: {config}"
    );
    assert!(config["sessions"]["pr-9"].is_object(), "{config}");
    let overview = proxy.ask_admin("/sessions").await.json();
    assert_eq!(overview["discovery"]["app"], "orders", "{overview}");
}

#[tokio::test]
async fn names_that_mean_something_else_are_left_out() {
    let world = World::new().await;
    let app = world.app(1, "pod").await;
    let proxy = world.proxy().await;

    for (number, name) in ["session-proxy-probe", "", "pr-*", "~.*"]
        .iter()
        .enumerate()
    {
        world
            .api
            .apply(ready(&format!("pod-{number}"), name, ip(1)));
    }
    world.api.apply(ready("two", "pr-2", ip(2)));
    gauge_reaches(&proxy, "session_proxy_sessions", &[], 1.0).await;

    assert_eq!(route_of(&proxy, "session-proxy-probe").await, "probe");
    assert_eq!(route_of(&proxy, "pr-7").await, UNKNOWN);
    assert_eq!(app.requests(), 0);
    proxy.logged("no session can have this name").await;
}

#[tokio::test]
async fn a_reload_keeps_what_was_found_and_its_connections() {
    let world = World::new().await;
    let app = world.app(1, "pod").await;
    let file = Upstream::site("file").await;
    world.api.apply(ready("one", "pr-1", ip(1)));
    let setup = world
        .setup()
        .top("timeouts: { poolIdle: 60s }")
        .flag("--workers=1");
    let text = setup.clone().session("pr-9", file.address).text();
    let proxy = setup.start().await;
    assert_eq!(route_of(&proxy, "pr-1").await, "pr-1");

    proxy.config.rename_over(&text);
    reloaded(&proxy, 1.0).await;
    assert_eq!(route_of(&proxy, "pr-9").await, "pr-9");
    assert_eq!(route_of(&proxy, "pr-1").await, "pr-1");
    world.api.apply(ready("two", "pr-2", ip(2)));
    gauge_reaches(&proxy, "session_proxy_sessions", &[], 3.0).await;
    assert_eq!(route_of(&proxy, "pr-9").await, "pr-9");

    assert_eq!(route_of(&proxy, "pr-1").await, "pr-1");
    assert_eq!(app.connections(), 1, "it was never closed");
    assert_eq!(world.api.lists(), 1);
    let reloads = proxy
        .metric("session_proxy_config_reloads_total", &[])
        .await;
    assert_eq!(reloads, 1.0, "a pod is no configuration");
}

#[tokio::test]
async fn discovery_can_be_turned_off_and_on_by_a_reload() {
    let world = World::new().await;
    let _app = world.app(1, "pod").await;
    world.api.apply(ready("one", "pr-1", ip(1)));
    let setup = world.setup();
    let with = setup.text();
    let without: String = with
        .lines()
        .filter(|line| !line.starts_with("discovery"))
        .map(|line| format!("{line}\n"))
        .collect();
    let proxy = setup.start().await;

    proxy.config.rename_over(&without);
    reloaded(&proxy, 1.0).await;
    assert_eq!(route_of(&proxy, "pr-1").await, UNKNOWN);
    let metrics = proxy.metrics().await.text;
    assert!(!metrics.contains("session_proxy_discovery"), "{metrics}");

    proxy.config.rename_over(&with);
    goes_to(&proxy, "pr-1", "pr-1").await;
    let another = with.replace("app: orders", "app: payments");
    proxy.config.rename_over(&another);
    reloaded(&proxy, 3.0).await;
    assert_eq!(
        route_of(&proxy, "pr-1").await,
        UNKNOWN,
        "pods of another app"
    );
}

/// Pods, file and requests all at once: what is in the table all the time is served all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_and_files_that_change_at_once_fail_no_request() {
    let world = World::new().await;
    let (_steady, _coming) = (world.app(1, "steady").await, world.app(2, "coming").await);
    let file = Upstream::site("file").await;
    world.api.apply(ready("steady", "steady", ip(1)));
    let setup = world.setup().session("written", file.address);
    let texts = [
        setup.text(),
        setup.clone().session("more", file.address).text(),
    ];
    let proxy = setup.start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let asking: Vec<_> = Way::all()
        .map(|way| tokio::spawn(keep_asking(proxy.http(), way, stop.clone())))
        .into();

    for round in 1..=10 {
        world.api.apply(ready("coming", "coming", ip(2)));
        proxy.config.rename_over(&texts[round % 2]);
        goes_to(&proxy, "coming", "coming").await;
        world.api.delete("coming");
        goes_to(&proxy, "coming", UNKNOWN).await;
    }
    stop.store(true, Ordering::Relaxed);

    for asking in asking {
        assert!(asking.await.expect("no request failed") > 0);
    }
}

/// Sends until told to stop; returns how many requests got through.
async fn keep_asking(address: std::net::SocketAddr, way: Way, stop: Arc<AtomicBool>) -> usize {
    let mut client = way.client(address).await;
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let (session, expected) = [("steady", "steady"), ("written", "file")][count % 2];
        let answer = client.send(Request::get("/").session(session)).await;
        assert_eq!(answer.status, 200, "{way:?} {answer:#?}");
        assert_eq!(answer.served_by(), expected, "{way:?}");
        count += 1;
    }
    count
}
