//! One proxy for all sessions of an app, with nobody counting.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::DeleteParams;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::support::cluster::Cluster;
use crate::support::stage::Stage;

/// So many intercepts.
const SESSIONS: usize = 20;

/// So often does one session follow another.
const HANDOVERS: usize = 15;

/// So many commands at once: more would only wait for the processor.
const AT_ONCE: usize = 8;

/// Twenty intercepts come and go in random order, some of them twice, against the real collector: the
/// proxy is there exactly while a PR pod is, no live intercept ever loses it, and nothing is left over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn twenty_intercepts_of_one_app_come_and_go_in_any_order() {
    let (seed, mut random) = randomness();
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    let live = Live::default();
    let watched = watch_proxies(&stage, live.clone());
    let turns = Semaphore::new(AT_ONCE);

    let lives = (0..SESSIONS).map(|number| {
        let mut random = random.fork();
        let (stage, live, turns) = (&stage, &live, &turns);
        async move {
            let session = format!("pr-{number}");
            pause(&mut random, 6000).await;
            for _ in 0..random.usize(1..=2) {
                live_once(stage, live, turns, &session, &mut random).await;
                pause(&mut random, 500).await;
            }
        }
    });
    join_all(lives).await;

    stage.is_clean().await;
    watched.abort();
    let losses = live.losses();
    assert!(losses.is_empty(), "seed {seed}: {losses:#?}");
    let proxies = live.proxies();
    eprintln!("{proxies} proxy pods, one after the other");
    assert!(proxies >= 1);
}

/// The one moment that matters: the last session goes while the next one comes. Whatever the collector has
/// seen or done by then, the next one ends up with a proxy that stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn who_comes_while_the_last_one_goes_has_a_proxy_that_stays() {
    let (seed, mut random) = randomness();
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    let live = Live::default();
    let watched = watch_proxies(&stage, live.clone());
    stage.deploy("pr-0", &["orders"], &[]).end().await.well();

    for round in 1..=HANDOVERS {
        let (last, next) = (format!("pr-{}", round - 1), format!("pr-{round}"));
        let run = stage.deploy(&next, &["orders"], &[]);
        run.says("created").await;
        // Its pod becomes ready, and then it joins.
        pause(&mut random, 400).await;
        let pods = stage.namespace.api::<Pod>();
        let name = format!("pr-orders-{last}");
        live.end(&last);
        pods.delete(&name, &DeleteParams::default()).await.unwrap();
        run.end().await.well();
        let proxy = stage.pod("mirrord-proxy-orders").await;
        let proxy = proxy.unwrap_or_else(|| panic!("seed {seed}: {next} has no proxy"));
        live.begin(&next, &proxy.uid().expect("it is stored"));
    }

    let last = format!("pr-{HANDOVERS}");
    live.end(&last);
    stage.cleanup(&["--session", &last]).end().await.well();
    stage.is_clean().await;
    watched.abort();
    let losses = live.losses();
    assert!(losses.is_empty(), "seed {seed}: {losses:#?}");
    eprintln!("{} proxy pods in {HANDOVERS} handovers", live.proxies());
}

/// Deploys, checks that the proxy is there for as long as it lives, and cleans up.
async fn live_once(
    stage: &Stage,
    live: &Live,
    turns: &Semaphore,
    session: &str,
    random: &mut fastrand::Rng,
) {
    let turn = turns.acquire().await.expect("it is never closed");
    stage.deploy(session, &["orders"], &[]).end().await.well();
    drop(turn);
    let proxy = stage.uid("mirrord-proxy-orders").await;
    live.begin(session, &proxy);

    pause(random, 1500).await;
    let there = stage.pod("mirrord-proxy-orders").await;
    let there = there.unwrap_or_else(|| panic!("{session} has lost its proxy"));
    assert_eq!(
        there.uid(),
        Some(proxy),
        "{session} has lost its proxy to another"
    );
    let pr_pod = stage.uid(&format!("pr-orders-{session}")).await;
    let owners = there.owner_references();
    assert!(
        owners.iter().any(|owner| owner.uid == pr_pod),
        "{session}: {owners:?}"
    );

    live.end(session);
    let turn = turns.acquire().await.expect("it is never closed");
    stage.cleanup(&["--session", session]).end().await.well();
    drop(turn);
}

/// What chooses the order, from a seed that is printed and can be given again.
fn randomness() -> (u64, fastrand::Rng) {
    let seed = std::env::var("SESSION_PROXY_TEST_SEED").ok();
    let seed = seed.map_or_else(|| fastrand::u64(..), |seed| seed.parse().expect("a number"));
    eprintln!("SESSION_PROXY_TEST_SEED={seed}");
    (seed, fastrand::Rng::with_seed(seed))
}

async fn pause(random: &mut fastrand::Rng, most: u64) {
    tokio::time::sleep(Duration::from_millis(random.u64(..most))).await;
}

/// The intercepts that are live, by session, with the uid of their proxy.
#[derive(Clone, Default)]
struct Live(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    live: HashMap<String, String>,
    ending: Vec<String>,
    losses: Vec<String>,
}

impl Live {
    fn begin(&self, session: &str, proxy: &str) {
        let mut seen = self.lock();
        if seen.ending.iter().any(|uid| uid == proxy) {
            let loss = format!("{session} was called live with proxy {proxy}, which was ending");
            seen.losses.push(loss);
        }
        seen.live.insert(session.to_owned(), proxy.to_owned());
    }

    fn end(&self, session: &str) {
        self.lock().live.remove(session);
    }

    /// A proxy pod is being deleted, or gone.
    fn ends(&self, proxy: &str) {
        let mut seen = self.lock();
        if seen.ending.iter().any(|uid| uid == proxy) {
            return;
        }
        seen.ending.push(proxy.to_owned());
        let live = seen.live.iter().filter(|(_, uid)| *uid == proxy);
        let losses: Vec<_> = live
            .map(|(session, _)| format!("{session} was live when its proxy {proxy} ended"))
            .collect();
        seen.losses.extend(losses);
    }

    fn losses(&self) -> Vec<String> {
        self.lock().losses.clone()
    }

    fn proxies(&self) -> usize {
        self.lock().ending.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.0.lock().expect("nobody panics here")
    }
}

/// Tells of every proxy pod that ends.
fn watch_proxies(stage: &Stage, live: Live) -> JoinHandle<()> {
    let pods = stage.namespace.api::<Pod>();
    let config = watcher::Config::default().labels("app=mirrord-proxy");
    tokio::spawn(async move {
        let mut events = std::pin::pin!(watcher(pods, config));
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Delete(pod)) => live.ends(&pod.uid().expect("it was stored")),
                Ok(Event::Apply(pod) | Event::InitApply(pod))
                    if pod.metadata.deletion_timestamp.is_some() =>
                {
                    live.ends(&pod.uid().expect("it is stored"));
                }
                _ => {}
            }
        }
    })
}
