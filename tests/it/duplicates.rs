//! One client request makes at most one request that is not idempotent, and always gets an
//! answer, whatever the app does; and a client that leaves takes nothing with it.

mod cancelled;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::client::with_host;
use crate::support::mirrord::Sender;
use crate::support::proxy::{Proxy, Setup};
use crate::support::raw;
use crate::support::request::{Answer, Request};
use crate::support::upstream::Upstream;
use crate::support::wire::Wire;
use crate::support::within;

const POSTS: usize = 10_000;
const AT_ONCE: usize = 32;
const SEED: u64 = 0x0ddb_a115;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_posts_make_no_duplicate() {
    let (app, proxy) = world().await;
    let (address, next) = (proxy.http(), Arc::new(AtomicUsize::new(0)));

    let mut clients = JoinSet::new();
    for _ in 0..AT_ONCE {
        let next = next.clone();
        clients.spawn(async move {
            let (mut idle, mut outcomes) = (None, HashMap::new());
            while let Some(request) = order(&next) {
                let mut wire = match idle.take() {
                    Some(wire) => wire,
                    None => raw::connect(address).await,
                };
                let answer = within("an answer", wire.ask(&with_host(&request))).await;
                let answer = answer.unwrap_or_else(|error| panic!("{request:?}: {error}"));
                idle = keep(wire, &answer);
                *outcomes.entry(outcome(&answer)).or_default() += 1;
            }
            outcomes
        });
    }

    no_duplicates(&app, clients).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_posts_through_mirrord_make_no_duplicate() {
    let (app, proxy) = world().await;
    let (sender, next) = (
        Arc::new(Sender::new(proxy.http())),
        Arc::new(AtomicUsize::new(0)),
    );

    let mut clients = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (sender, next) = (sender.clone(), next.clone());
        clients.spawn(async move {
            let mut outcomes = HashMap::new();
            while let Some(request) = order(&next) {
                let answer = within("an answer", sender.send(&request)).await;
                assert_eq!(answer.tries, 1, "seed {SEED:#x}: {request:?}");
                *outcomes.entry(outcome(&answer)).or_default() += 1;
            }
            outcomes
        });
    }

    no_duplicates(&app, clients).await;
}

async fn world() -> (Upstream, Proxy) {
    let app = Upstream::that_fails_at_random("app", SEED).await;
    let proxy = Setup::new()
        .baseline(app.address)
        .top("timeouts: { responseHeaders: 200ms, bodyIdle: 200ms }")
        .start()
        .await;
    (app, proxy)
}

/// The next of the orders, or `None` after the last.
fn order(next: &AtomicUsize) -> Option<Request> {
    let number = next.fetch_add(1, Ordering::Relaxed);
    let request = Request::post("/orders", "one").header("x-request-id", number.to_string());
    (number < POSTS).then_some(request)
}

/// What became of a request; panics at a body that is short and looks whole.
fn outcome(answer: &Answer) -> &'static str {
    match (answer.status, &answer.body) {
        (200, Ok(body)) => {
            assert_eq!(&body[..], b"app", "seed {SEED:#x}: {answer:#?}");
            "answered"
        }
        (200, Err(_)) => "broken",
        (502, Ok(_)) => "reset",
        (504, Ok(_)) => "timeout",
        _ => panic!("seed {SEED:#x}: {answer:#?}"),
    }
}

/// The connection for the next request, if it may carry one.
fn keep(wire: Wire<TcpStream>, answer: &Answer) -> Option<Wire<TcpStream>> {
    let says_close = answer
        .header("connection")
        .is_some_and(|value| value.contains("close"));
    (answer.body.is_ok() && !says_close).then_some(wire)
}

async fn no_duplicates(app: &Upstream, clients: JoinSet<HashMap<&'static str, usize>>) {
    let mut outcomes = HashMap::<_, usize>::new();
    for (outcome, times) in clients.join_all().await.into_iter().flatten() {
        *outcomes.entry(outcome).or_default() += times;
    }
    let twice: Vec<_> = app
        .ids()
        .into_iter()
        .filter(|(_, times)| *times > 1)
        .collect();

    assert_eq!(twice, [], "seed {SEED:#x}: {outcomes:?}");
    assert_eq!(outcomes.values().sum::<usize>(), POSTS);
    for expected in ["answered", "broken", "reset", "timeout"] {
        assert!(
            outcomes.contains_key(expected),
            "seed {SEED:#x}: {outcomes:?}"
        );
    }
}
