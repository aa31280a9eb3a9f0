//! A configuration that changes under a running proxy, and certificates that do.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::awaited::{metric_reaches, reloaded};
use crate::support::certs::Certs;
use crate::support::client::{self, ask_tls, with_host};
use crate::support::mirrord::Sender;
use crate::support::proxy::{Proxy, Setup};
use crate::support::request::Request;
use crate::support::upstream::Upstream;
use crate::support::way::Way;
use crate::support::wire::Wire;
use crate::support::{PATIENCE, within};

/// The other version of the file has a session more.
fn versions(baseline: &Upstream, session: &Upstream) -> (Setup, String) {
    let setup = Setup::new().baseline(baseline.address);
    let text = setup.clone().session("pr-42", session.address).text();
    (setup, text)
}

async fn routes_the_new_session(proxy: &Proxy) {
    reloaded(proxy, 1.0).await;
    for way in Way::all() {
        let answer = way
            .send(proxy.http(), Request::get("/x").session("pr-42"))
            .await;
        assert_eq!(
            (answer.served_by().as_str(), answer.route().as_deref()),
            ("pr-42", Some("pr-42")),
            "{way:?}"
        );
    }
}

#[tokio::test]
async fn a_file_written_in_place_takes_effect() {
    let (baseline, session) = (Upstream::site("b").await, Upstream::site("pr-42").await);
    let (setup, new) = versions(&baseline, &session);
    let proxy = setup.start().await;

    proxy.config.write_in_place(&new);

    routes_the_new_session(&proxy).await;
}

#[tokio::test]
async fn a_file_renamed_over_takes_effect() {
    let (baseline, session) = (Upstream::site("b").await, Upstream::site("pr-42").await);
    let (setup, new) = versions(&baseline, &session);
    let proxy = setup.start().await;

    proxy.config.rename_over(&new);

    routes_the_new_session(&proxy).await;
}

#[tokio::test]
async fn a_swapped_symlink_takes_effect_more_than_once() {
    let (baseline, session) = (Upstream::site("b").await, Upstream::site("pr-42").await);
    let (setup, new) = versions(&baseline, &session);
    let old = setup.text();
    let mut proxy = setup.mounted().start().await;

    proxy.config.swap_symlink(&new);
    routes_the_new_session(&proxy).await;
    proxy.config.swap_symlink(&old);
    reloaded(&proxy, 2.0).await;

    let answer = Way::Direct
        .send(proxy.http(), Request::get("/").session("pr-42"))
        .await;
    assert_eq!(
        answer.route().as_deref(),
        Some("baseline; reason=unknown-session")
    );
}

#[tokio::test]
async fn sighup_reads_an_unchanged_file_again() {
    let baseline = Upstream::site("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;

    for times in 1..=3 {
        proxy.signal("HUP");
        reloaded(&proxy, f64::from(times)).await;
    }

    assert_eq!(
        Way::Direct
            .send(proxy.http(), Request::get("/"))
            .await
            .status,
        200
    );
}

/// Sends until told to stop; returns how many requests got through.
///
/// Every answer must be from one table: the route header and the upstream agree, and so do the two
/// sessions that are exchanged for each other in one swap.
async fn keep_asking(address: std::net::SocketAddr, way: Way, stop: Arc<AtomicBool>) -> usize {
    let mut client = way.client(address).await;
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let name = ["one", "two", "steady", "gone"][count % 4];
        let answer = client
            .send(Request::get(&format!("/{count}")).session(name))
            .await;
        assert_eq!(answer.status, 200, "{way:?} {name}: {answer:#?}");
        let (route, served) = (answer.route().expect("a route"), answer.served_by());
        match name {
            "steady" => assert_eq!((route.as_str(), served.as_str()), ("steady", "steady")),
            "gone" if route == "gone" => assert_eq!(served, "a"),
            "gone" => assert_eq!(
                (route.as_str(), served.as_str()),
                ("baseline; reason=unknown-session", "baseline")
            ),
            _ => {
                assert_eq!(route, name);
                assert!(["a", "b"].contains(&served.as_str()), "{served}");
            }
        }
        count += 1;
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_swaps_a_second_fail_no_request() {
    let baseline = Upstream::site("baseline").await;
    let (a, b) = (Upstream::site("a").await, Upstream::site("b").await);
    let steady = Upstream::site("steady").await;
    let first = Setup::new()
        .baseline(baseline.address)
        .session("steady", steady.address)
        .session("one", a.address)
        .session("two", b.address)
        .session("gone", a.address);
    let second = Setup::new()
        .baseline(baseline.address)
        .session("steady", steady.address)
        .session("one", b.address)
        .session("two", a.address);
    let texts = [first.text(), second.text()];
    let mut proxy = first.mounted().start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let asking: Vec<_> = [Way::all(), Way::all()]
        .concat()
        .into_iter()
        .map(|way| tokio::spawn(keep_asking(proxy.http(), way, stop.clone())))
        .collect();

    let mut pace = tokio::time::interval(Duration::from_millis(50));
    for swap in 1..=100 {
        pace.tick().await;
        proxy.config.swap_symlink(&texts[swap % 2]);
    }
    stop.store(true, Ordering::Relaxed);
    let mut count = 0;
    for task in asking {
        count += task.await.expect("no request failed");
    }

    assert!(count > 500, "only {count} requests");
    let name = "session_proxy_config_reloads_total";
    metric_reaches(&proxy, name, &[("result", "success")], 20.0).await;
    assert_eq!(proxy.metric(name, &[("result", "failure")]).await, 0.0);
    // The endpoint that stayed kept its connections: one a worker for HTTP/2, a few for HTTP/1.
    assert!(steady.connections() < 100, "{}", steady.connections());
}

/// What two requests under way at once see is decided at their heads, not at their bodies.
#[tokio::test]
async fn a_request_under_way_keeps_the_table_it_began_with() {
    let (old, new) = (Upstream::site("old").await, Upstream::site("new").await);
    let setup = Setup::new().session("pr-42", old.address);
    let text = Setup::new().session("pr-42", new.address).text();
    let proxy = setup.start().await;
    let mut wire = crate::support::raw::connect(proxy.http()).await;
    wire.send("POST /x HTTP/1.1\r\nhost: a\r\nx-dev-session: pr-42\r\ncontent-length: 4\r\n\r\nbo")
        .await
        .expect("it reads");
    crate::support::eventually("the head arrives", || old.requests() == 1).await;

    proxy.config.rename_over(&text);
    reloaded(&proxy, 1.0).await;
    wire.send("dy").await.expect("it reads");

    let answer = within("an answer", wire.answer("POST"))
        .await
        .expect("an answer");
    assert_eq!((answer.status, answer.served_by().as_str()), (200, "old"));
    let next = within(
        "an answer",
        wire.ask(&Request::get("/").header("host", "a").session("pr-42")),
    )
    .await
    .expect("the connection lives on");
    assert_eq!(next.served_by(), "new");
}

#[tokio::test]
async fn an_invalid_file_changes_nothing_and_is_reported() {
    let baseline = Upstream::site("baseline").await;
    let setup = Setup::new()
        .baseline(baseline.address)
        .session("pr-42", baseline.address);
    let good = setup.text();
    let proxy = setup.start().await;

    let name = "session_proxy_config_reloads_total";
    proxy
        .config
        .rename_over(&good.replace("sessions:", "sesions:"));
    metric_reaches(&proxy, name, &[("result", "failure")], 1.0).await;

    proxy.logged("sesions").await;
    let overview = proxy.ask_admin("/sessions").await.json();
    assert_eq!(overview["lastReload"]["result"], "failed", "{overview}");
    assert!(
        overview["lastReload"]["problems"]
            .to_string()
            .contains("sesions"),
        "{overview}"
    );
    assert_eq!(proxy.metric(name, &[("result", "success")]).await, 0.0);
    assert_eq!(proxy.ask_admin("/readyz").await.status, 200);
    let answer = Way::Direct
        .send(proxy.http(), Request::get("/").session("pr-42"))
        .await;
    assert_eq!(answer.route().as_deref(), Some("pr-42"));

    proxy.config.rename_over(&good.replace("pr-42", "pr-43"));
    reloaded(&proxy, 1.0).await;
    assert_eq!(
        proxy.ask_admin("/sessions").await.json()["lastReload"]["result"],
        "ok"
    );
}

#[tokio::test]
async fn a_file_that_is_gone_changes_nothing() {
    let baseline = Upstream::site("baseline").await;
    let proxy = Proxy::sending_everything_to(&baseline).await;

    std::fs::remove_file(proxy.config.path()).expect("it is there");
    let labels = [("result", "failure")];
    metric_reaches(&proxy, "session_proxy_config_reloads_total", &labels, 1.0).await;

    assert_eq!(
        Way::Direct
            .send(proxy.http(), Request::get("/"))
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn a_change_of_listeners_or_admin_waits_for_a_restart() {
    let baseline = Upstream::site("baseline").await;
    let other = Upstream::site("other").await;
    let yaml = |more: &str| {
        format!(
            "listeners:\n  - {{ name: http, address: \"127.0.0.1:0\", baseline: \"{}\" }}\n{more}",
            baseline.address
        )
    };
    let proxy = Proxy::from_yaml(&yaml("")).await;

    let more = format!(
        "  - {{ name: more, address: \"127.0.0.1:0\" }}\nsessions: {{ pr-42: \"{}\" }}\n",
        other.address
    );
    proxy.config.rename_over(&yaml(&more));
    reloaded(&proxy, 1.0).await;

    proxy.logged("restart").await;
    let overview = proxy.ask_admin("/sessions").await.json();
    assert!(
        overview["lastReload"]["problems"]
            .to_string()
            .contains("restart"),
        "{overview}"
    );
    let answer = Way::Direct
        .send(proxy.http(), Request::get("/").session("pr-42"))
        .await;
    assert_eq!(answer.served_by(), "other", "the rest of the file applies");
}

async fn serving_tls(folder: &Path, baseline: &Upstream) -> Proxy {
    let folder = folder.display();
    Proxy::from_yaml(&format!(
        "listeners:\n  - name: http\n    address: \"127.0.0.1:0\"\n    protocol: https\n    baseline: \"{}\"\n    \
         tls: {{ certificate: {folder}/tls.crt, privateKey: {folder}/tls.key }}\n",
        baseline.address
    ))
    .await
}

/// Waits until a new connection sees that certificate.
async fn shows(proxy: &Proxy, certs: &Certs) {
    let start = std::time::Instant::now();
    while client::tls(proxy.http(), certs.client(&["h2"]))
        .await
        .is_err()
    {
        assert!(
            start.elapsed() < PATIENCE,
            "the new certificate is not shown"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn lives_on(wire: &mut Wire<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>) {
    let answer = within("an answer", wire.ask(&with_host(&Request::get("/"))))
        .await
        .expect("the old connection lives on");
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn certificates_renamed_over_are_shown_to_new_connections() {
    let baseline = Upstream::site("baseline").await;
    let (old, new) = (Certs::new(), Certs::new());
    let folder = tempfile::tempdir().expect("a writable temp folder");
    old.write_to(folder.path());
    let proxy = serving_tls(folder.path(), &baseline).await;
    let stream = client::tls(proxy.http(), old.client(&["http/1.1"]))
        .await
        .expect("the old certificate");
    let mut wire = Wire::new(stream);
    lives_on(&mut wire).await;

    let next = folder.path().join("next");
    std::fs::create_dir(&next).expect("the folder is writable");
    new.write_to(&next);
    for name in ["tls.crt", "tls.key"] {
        std::fs::rename(next.join(name), folder.path().join(name)).expect("a rename");
    }

    shows(&proxy, &new).await;
    lives_on(&mut wire).await;
    assert!(
        ask_tls(proxy.http(), old.client(&["h2"]), &Request::get("/"))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn certificates_of_a_swapped_symlink_are_shown_to_new_connections() {
    let baseline = Upstream::site("baseline").await;
    let folder = tempfile::tempdir().expect("a writable temp folder");
    let swap = |certs: &Certs, version: &str| {
        let dated = folder.path().join(version);
        std::fs::create_dir(&dated).expect("the folder is writable");
        certs.write_to(&dated);
        let link = folder.path().join("..data_tmp");
        symlink(version, &link).expect("the folder is writable");
        std::fs::rename(link, folder.path().join("..data")).expect("a rename");
    };
    let (old, new) = (Certs::new(), Certs::new());
    swap(&old, "..one");
    for name in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{name}"), folder.path().join(name)).expect("writable");
    }
    let proxy = serving_tls(folder.path(), &baseline).await;
    shows(&proxy, &old).await;

    for version in ["..two", "..three"] {
        let newer = Certs::new();
        swap(&newer, version);
        shows(&proxy, &newer).await;
    }
    swap(&new, "..four");
    shows(&proxy, &new).await;
}

#[tokio::test]
async fn a_key_of_another_certificate_changes_nothing() {
    let baseline = Upstream::site("baseline").await;
    let (old, other) = (Certs::new(), Certs::new());
    let folder = tempfile::tempdir().expect("a writable temp folder");
    old.write_to(folder.path());
    let proxy = serving_tls(folder.path(), &baseline).await;

    std::fs::copy(other.private_key(), folder.path().join("tls.key")).expect("writable");
    let labels = [("result", "failure")];
    metric_reaches(&proxy, "session_proxy_config_reloads_total", &labels, 1.0).await;

    shows(&proxy, &old).await;
}

/// Connections to an endpoint that stays are used again after a swap; those to one that goes close.
#[tokio::test]
async fn connections_to_endpoints_that_stay_are_kept() {
    let (stays, goes) = (Upstream::site("stays").await, Upstream::site("goes").await);
    let stay = Setup::new()
        .session("stays", stays.address)
        .top("timeouts: { poolIdle: 60s }");
    let both = stay.clone().session("goes", goes.address);
    let proxy = both.flag("--workers=1").start().await;
    let sender = Sender::new(proxy.http());
    for name in ["stays", "goes"] {
        assert_eq!(
            sender.send(&Request::get("/").session(name)).await.status,
            200
        );
    }

    proxy.config.rename_over(&stay.text());
    reloaded(&proxy, 1.0).await;

    assert_eq!(
        sender
            .send(&Request::get("/").session("stays"))
            .await
            .status,
        200
    );
    assert_eq!(stays.connections(), 1);
    crate::support::eventually("the other closes", || goes.open() == 0).await;
}
