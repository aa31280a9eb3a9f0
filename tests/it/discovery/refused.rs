//! Starts: nothing is bound before the table is there, and what is missing is named.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::support::api_server::NAMESPACE;
use crate::support::eventually;
use crate::support::pods::{APP, ip, ready};
use crate::support::proxy::{Proxy, Setup};

use super::{World, route_of};

/// Well under the half minute for which an API server may be silent.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Waits for the end of a start that must fail, and returns what it said.
async fn fails(setup: Setup) -> String {
    let mut proxy = setup.spawn();
    let status = proxy.wait_exit(AT_ONCE).await;
    eventually("an error", || {
        proxy
            .stderr()
            .iter()
            .any(|line| line.starts_with("error: "))
    })
    .await;
    assert_eq!(status.code(), Some(1));
    assert_eq!(
        proxy.stdout(),
        Vec::<String>::new(),
        "nothing was announced"
    );
    proxy.stderr().join("\n")
}

/// An address that is free, and would be taken by a proxy that binds too early.
fn free() -> SocketAddr {
    let held = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    held.local_addr().expect("it is bound")
}

fn listening_at(world: &World, address: SocketAddr) -> Setup {
    let (baseline, port) = (world.baseline.address, world.network.port());
    Setup::new()
        .yaml(&format!(
            "listeners: [{{ name: http, address: \"{address}\", appPort: {port}, baseline: \"{baseline}\" }}]\n\
             discovery: {{ kubernetes: {{ namespace: {NAMESPACE}, app: {APP} }} }}\n"
        ))
        .env("KUBECONFIG", &world.api.kubeconfig())
}

#[tokio::test]
async fn nothing_is_bound_before_the_first_list_and_the_first_watch() {
    let world = World::new().await;
    let _app = world.app(1, "pr-1").await;
    world.api.apply(ready("one", "pr-1", ip(1)));
    world.api.hold_lists(false);
    world.api.refuse("watch", 503, "not yet");
    let address = free();
    let mut proxy = listening_at(&world, address).spawn();
    eventually("a list is asked for", || world.api.lists() == 1).await;
    assert!(TcpStream::connect(address).await.is_err());

    world.api.release_lists();
    proxy.logged("not yet").await;
    assert!(TcpStream::connect(address).await.is_err());
    assert_eq!(proxy.stdout(), Vec::<String>::new());

    world.api.allow("watch");
    proxy.wait_ready().await;
    assert_eq!(
        route_of(&proxy, "pr-1").await,
        "pr-1",
        "the very first request"
    );
}

#[tokio::test]
async fn each_missing_right_is_named_at_once() {
    for verb in ["list", "watch"] {
        let world = World::new().await;
        world
            .api
            .refuse(verb, 403, "pods is forbidden: User \"u\" may not");

        let said = fails(world.setup()).await;

        assert!(
            said.contains(&format!("not allowed to {verb} pods in namespace staging")),
            "{said}"
        );
        assert!(
            said.contains(&format!("grant the verb {verb} on pods")),
            "{said}"
        );
    }
}

#[tokio::test]
async fn credentials_that_are_not_accepted_are_told_at_once() {
    let world = World::new().await;
    world.api.refuse("list", 401, "Unauthorized");

    let said = fails(world.setup()).await;

    assert!(said.contains("does not accept the credentials"), "{said}");
}

#[tokio::test]
async fn a_cluster_that_is_nowhere_is_told_at_once() {
    let world = World::new().await;
    let setup = world
        .setup()
        .env("KUBECONFIG", "/nowhere/kubeconfig")
        .env("HOME", "/nowhere")
        .env("KUBERNETES_SERVICE_HOST", "");

    let said = fails(setup).await;

    assert!(said.contains("/nowhere/kubeconfig"), "{said}");
}

#[tokio::test]
async fn an_api_server_that_is_late_is_waited_for() {
    let mut world = World::new().await;
    let _app = world.app(1, "pr-1").await;
    world.api.apply(ready("one", "pr-1", ip(1)));
    world.api.go_away().await;
    let mut proxy = world.setup().spawn();
    proxy.logged("cannot follow the pods").await;

    world.api.come_back();
    proxy.wait_ready().await;

    assert_eq!(route_of(&proxy, "pr-1").await, "pr-1");
    let what = "the pods of app orders in namespace staging";
    assert_eq!(proxy.times_logged(what), 1, "it says what it waits for");
}

#[tokio::test]
async fn a_busy_port_fails_the_start_with_discovery_too() {
    let world = World::new().await;

    let said = fails(listening_at(&world, world.baseline.address)).await;

    assert!(said.contains(&world.baseline.address.to_string()), "{said}");
}

#[tokio::test]
async fn a_signal_ends_the_wait_for_the_first_list() {
    let world = World::new().await;
    world.api.hold_lists(false);
    let mut proxy: Proxy = world.setup().spawn();
    eventually("a list is asked for", || world.api.lists() == 1).await;

    proxy.signal("TERM");

    assert_eq!(proxy.wait_exit(AT_ONCE).await.code(), Some(0));
    assert_eq!(proxy.stdout(), Vec::<String>::new());
}
