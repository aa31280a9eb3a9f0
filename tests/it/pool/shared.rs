//! HTTP/2 connections to the apps: shared by many requests, and replaced in good time.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::one_worker;
use crate::support::client::{self, ask_h2};
use crate::support::fields::Fields;
use crate::support::proxy::{Proxy, Setup, speaking};
use crate::support::request::Request;
use crate::support::site;
use crate::support::upstream::Upstream;
use crate::support::way::Way;
use crate::support::{eventually, within};

async fn one_worker_to(app: &Upstream) -> Proxy {
    one_worker()
        .session_yaml("pr-42", &speaking("h2c", app))
        .start()
        .await
}

/// Requests that get no answer, each with a client of its own; dropped, they all leave.
async fn hanging(proxy: &Proxy, times: usize) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for _ in 0..times {
        let mut h2 = client::h2(proxy.http()).await;
        clients.spawn(async move {
            let _ = ask_h2(&mut h2, &Request::get("/hang").session("pr-42")).await;
        });
    }
    clients
}

#[tokio::test]
async fn fifty_requests_at_once_share_one_connection() {
    let app = Upstream::site("app").await;
    let proxy = one_worker_to(&app).await;

    let clients = hanging(&proxy, 50).await;
    eventually("all fifty have arrived", || app.requests() == 50).await;

    assert_eq!(app.connections(), 1);
    drop(clients);
    eventually("all fifty have left", || app.cancelled() == 50).await;
    assert_eq!(app.open(), 1);
}

#[tokio::test]
async fn a_second_connection_takes_what_the_first_may_not_carry() {
    let app = Upstream::site_with_stream_limit("app", 10).await;
    let proxy = one_worker_to(&app).await;
    // The first answer has told the proxy how many streams it may open.
    let first = Request::get("/").session("pr-42");
    assert_eq!(Way::Direct.send(proxy.http(), first).await.status, 200);

    let _clients = hanging(&proxy, 25).await;
    eventually("all have arrived", || app.requests() == 26).await;

    assert_eq!(app.connections(), 3);
}

#[tokio::test]
async fn a_burst_on_a_new_connection_is_not_stuck_behind_its_stream_limit() {
    let site = Upstream::site_with_stream_limit("app", 10).await;
    let address = site.address;
    // The whole burst is there before the app has said how many streams it takes.
    let slow = Upstream::raw("slow", move |mut peer| async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut onward = TcpStream::connect(address).await?;
        copy_bidirectional(&mut peer.wire.stream, &mut onward)
            .await
            .map(drop)
    })
    .await;
    let proxy = one_worker_to(&slow).await;

    let _clients = hanging(&proxy, 25).await;

    eventually("all have arrived", || site.requests() == 25).await;
}

#[tokio::test]
async fn a_connection_that_goes_away_is_replaced_without_a_failed_request() {
    for way in Way::all() {
        let app = upstream_that_goes_away_after(7).await;
        let proxy = one_worker_to(&app).await;
        let mut clients = JoinSet::new();
        for name in ["a", "b", "c", "d"] {
            let mut client = way.client(proxy.http()).await;
            clients.spawn(async move {
                for number in 0..50 {
                    let request = Request::post("/orders", "order")
                        .session("pr-42")
                        .header("x-request-id", format!("{name}{number}"));
                    let answer = client.send(request).await;
                    assert_eq!(answer.status, 200, "{way:?} {name}{number}: {answer:#?}");
                }
            });
        }
        clients.join_all().await;

        assert_eq!(app.requests(), 200, "{way:?}");
        assert!(app.ids().values().all(|times| *times == 1), "{way:?}");
        // Those under way while an app says goodbye may still be taken by it.
        assert!(app.connections() >= 10, "{way:?}: {}", app.connections());
    }
}

/// Says goodbye in order after so many requests on a connection.
async fn upstream_that_goes_away_after(requests: usize) -> Upstream {
    Upstream::accepting("app", move |stream, _, account| {
        Box::pin(async move {
            let (served, enough) = (AtomicUsize::new(0), Notify::new());
            let service = service_fn(|request: http::Request<Incoming>| {
                account.count(&Fields::from(request.headers()));
                if served.fetch_add(1, Ordering::SeqCst) + 1 == requests {
                    enough.notify_one();
                }
                async {
                    let _ = request.into_body().collect().await;
                    Ok::<_, Infallible>(http::Response::new(site::full("ok")))
                }
            });
            let stream = TokioIo::new(stream);
            let server = http2::Builder::new(TokioExecutor::new());
            let mut connection = pin!(server.serve_connection(stream, service));
            tokio::select! {
                _ = &mut connection => return,
                () = enough.notified() => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        })
    })
    .await
}

#[tokio::test]
async fn upstreams_of_both_versions_have_connections_of_their_own() {
    let app = Upstream::site("app").await;
    let proxy = Setup::new()
        .flag("--workers=1")
        .baseline(app.address)
        .start()
        .await;

    for _ in 0..5 {
        for way in [Way::Direct, Way::DirectH2] {
            let answer = within("an answer", way.send(proxy.http(), Request::get("/"))).await;
            assert_eq!(answer.status, 200, "{way:?}");
        }
    }

    assert_eq!(app.connections(), 2);
}
