//! An API server that ends watches, forgets, goes away and comes back.

use std::time::{Duration, Instant};

use crate::awaited::metric_reaches;
use crate::pool::gauge_reaches;
use crate::support::eventually;
use crate::support::pods::{ip, ready};

use super::{UNKNOWN, World, goes_to, route_of};

const UP: &str = "session_proxy_discovery_up";
const ERRORS: &str = "session_proxy_discovery_errors_total";

#[tokio::test]
async fn an_api_server_that_is_away_takes_no_session_with_it() {
    let mut world = World::new().await;
    let (_one, _two) = (world.app(1, "pr-1").await, world.app(2, "pr-2").await);
    world.api.apply(ready("one", "pr-1", ip(1)));
    let proxy = world.proxy().await;
    gauge_reaches(&proxy, UP, &[], 1.0).await;

    world.api.go_away().await;
    gauge_reaches(&proxy, UP, &[], 0.0).await;
    metric_reaches(&proxy, ERRORS, &[], 2.0).await;
    assert_eq!(route_of(&proxy, "pr-1").await, "pr-1");
    assert_eq!(proxy.ask_admin("/readyz").await.status, 200);
    let overview = proxy.ask_admin("/sessions").await.json();
    assert_eq!(overview["discovery"]["up"], false, "{overview}");
    assert_eq!(
        proxy.times_logged("cannot follow the pods"),
        1,
        "once is enough"
    );

    world.api.delete("one");
    world.api.apply(ready("two", "pr-2", ip(2)));
    world.api.come_back();
    goes_to(&proxy, "pr-2", "pr-2").await;
    assert_eq!(
        route_of(&proxy, "pr-1").await,
        UNKNOWN,
        "one list tells both"
    );
    gauge_reaches(&proxy, UP, &[], 1.0).await;
    proxy.logged("the pods are followed again").await;
}

/// It is known to be back before any pod has changed.
#[tokio::test]
async fn an_api_server_that_is_back_is_noticed_without_news() {
    let mut world = World::new().await;
    world.api.apply(ready("one", "pr-1", ip(1)));
    let proxy = world.proxy().await;

    world.api.go_away().await;
    gauge_reaches(&proxy, UP, &[], 0.0).await;
    world.api.come_back();

    gauge_reaches(&proxy, UP, &[], 1.0).await;
    let overview = proxy.ask_admin("/sessions").await.json();
    assert_eq!(overview["discovery"]["up"], true, "{overview}");
    assert!(overview["discovery"]["lastSync"].is_string(), "{overview}");
}

#[tokio::test]
async fn a_watch_that_ends_is_resumed_where_it_ended() {
    let world = World::new().await;
    let _app = world.app(1, "pr-1").await;
    let proxy = world.proxy().await;

    for times in 2..=4 {
        world.api.cut_watches();
        world.api.watched(times).await;
    }
    world.api.apply(ready("one", "pr-1", ip(1)));

    goes_to(&proxy, "pr-1", "pr-1").await;
    assert_eq!(world.api.lists(), 1);
    assert_eq!(proxy.metric(ERRORS, &[]).await, 0.0);
}

#[tokio::test]
async fn what_is_forgotten_is_listed_again() {
    let world = World::new().await;
    let (_one, _two) = (world.app(1, "pr-1").await, world.app(2, "pr-2").await);
    world.api.apply(ready("one", "pr-1", ip(1)));
    let proxy = world.proxy().await;

    world.api.forget();
    world.api.apply(ready("two", "pr-2", ip(2)));

    goes_to(&proxy, "pr-2", "pr-2").await;
    assert_eq!(route_of(&proxy, "pr-1").await, "pr-1");
    assert_eq!(world.api.lists(), 2);
}

#[tokio::test]
async fn a_watch_that_is_refused_as_gone_is_begun_with_a_list() {
    let world = World::new().await;
    let _app = world.app(1, "pr-1").await;
    let proxy = world.proxy().await;

    world.api.refuse("watch", 410, "too old resource version");
    world.api.cut_watches();
    eventually("a list is asked for", || world.api.lists() > 1).await;
    world.api.apply(ready("one", "pr-1", ip(1)));

    goes_to(&proxy, "pr-1", "pr-1").await;
    assert_eq!(proxy.metric(ERRORS, &[]).await, 0.0, "as things go");
    world.api.allow("watch");
    world.api.watched(2).await;
}

/// A list comes in pages; what is on the later ones must not be missing in between.
#[tokio::test]
async fn the_table_stays_until_a_list_is_complete() {
    let world = World::new().await;
    let _last = world.app(1, "last").await;
    for number in 0..400_u16 {
        let [high, low] = number.to_be_bytes();
        let address = std::net::Ipv4Addr::new(10, 9, high, low);
        world.api.apply(ready(
            &format!("pod-{number:03}"),
            &format!("pr-{number}"),
            address,
        ));
    }
    world.api.apply(ready("zzz", "last", ip(1)));
    let proxy = world.proxy().await;
    let pages = world.api.pages();

    world.api.hold_lists(true);
    world.api.forget();
    eventually("the first page is out", || world.api.pages() == pages + 1).await;
    assert_eq!(route_of(&proxy, "last").await, "last");
    world.api.delete("pod-000");
    assert_eq!(proxy.metric("session_proxy_sessions", &[]).await, 401.0);
    world.api.release_lists();

    gauge_reaches(&proxy, "session_proxy_sessions", &[], 400.0).await;
    assert_eq!(route_of(&proxy, "last").await, "last");
}

/// A proxy that has started lives on without its rights, and says what is missing.
#[tokio::test]
async fn rights_that_are_taken_away_later_end_nothing() {
    let world = World::new().await;
    let _app = world.app(1, "pr-1").await;
    world.api.apply(ready("one", "pr-1", ip(1)));
    let mut proxy = world.proxy().await;

    for verb in ["list", "watch"] {
        world
            .api
            .refuse(verb, 403, "pods is forbidden: User \"u\" may not");
    }
    world.api.cut_watches();

    proxy.logged("grant the verb watch on pods").await;
    metric_reaches(&proxy, ERRORS, &[], 2.0).await;
    assert!(proxy.is_running());
    assert_eq!(route_of(&proxy, "pr-1").await, "pr-1");
    world.api.allow("list");
    world.api.allow("watch");
    gauge_reaches(&proxy, UP, &[], 1.0).await;
}

/// An API server, or what stands before it, that takes every watch and ends it at once.
#[tokio::test]
async fn watches_that_end_at_once_are_not_opened_in_a_storm() {
    let world = World::new().await;
    let proxy = world.proxy().await;

    let before = world.api.watches();
    let start = Instant::now();
    world.api.end_watches_at_once();
    eventually("it tries again and again", || {
        world.api.watches() == before + 5
    })
    .await;

    // Waits of 0.1 s at the least, doubled after each.
    let took = start.elapsed();
    assert!(took > Duration::from_millis(1_000), "five in {took:?}");
    assert_eq!(route_of(&proxy, "pr-1").await, UNKNOWN);
}
