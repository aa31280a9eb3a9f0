//! What the proxies of all targets say, put together: their sessions, their requests as they happen.
//!
//! A proxy that does not answer is left out. It is told about elsewhere, as the state of its target.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use http_body_util::{BodyExt, Limited};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::board::Board;
use super::session::Post;
use crate::admin::client::{self, Events};
use crate::plan::PROBE;
use crate::record::line::Line;

/// How long a proxy may take to say what it is asked.
const PATIENCE: Duration = Duration::from_secs(3);

/// No answer is read further.
const LONGEST: usize = 64 * 1024 * 1024;

/// Events that may wait for a tap; one that reads more slowly loses some.
const QUEUE: usize = 1024;

/// What an admin port says.
pub(super) async fn ask(admin: SocketAddr, path: &str) -> Option<String> {
    let asked = timeout(PATIENCE, async {
        let response = client::get(admin, path).await.ok()?;
        if response.status() != StatusCode::OK {
            return None;
        }
        let body = Limited::new(response.into_body(), LONGEST)
            .collect()
            .await
            .ok()?;
        String::from_utf8(body.to_bytes().into()).ok()
    });
    asked.await.ok().flatten()
}

/// What the proxies of all targets say, by target.
pub(super) async fn ask_all(board: &Board, path: &str) -> Vec<(String, String)> {
    let asked = board.proxies().into_iter().map(|(pod, admin)| async move {
        let said = ask(admin, path).await?;
        Some((pod, said))
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// `/sessions` of all proxies as one: numbers added, an endpoint avoided where one proxy avoids it.
pub(super) fn sessions(readiness: &str, targets: Value, said: &[(String, String)]) -> Value {
    let said = said
        .iter()
        .filter_map(|(pod, text)| Some((pod, serde_json::from_str::<Value>(text).ok()?)));
    let mut sessions = BTreeMap::new();
    let mut baselines = BTreeMap::new();
    let (mut reloads, mut discoveries) = (Vec::new(), Vec::new());
    for (pod, said) in said {
        merge_all(&mut sessions, &said["sessions"], "name");
        merge_all(&mut baselines, &said["baselines"], "listener");
        reloads.push((pod, said["lastReload"].clone()));
        discoveries.push(said["discovery"].clone());
    }
    json!({
        "readiness": readiness,
        "targets": targets,
        "sessions": sessions.into_values().collect::<Vec<_>>(),
        "baselines": baselines.into_values().collect::<Vec<_>>(),
        "discovery": discovery(&discoveries),
        "lastReload": last_reload(&reloads),
    })
}

fn merge_all(merged: &mut BTreeMap<String, Value>, said: &Value, key: &str) {
    for one in said.as_array().into_iter().flatten() {
        let Some(name) = one[key].as_str() else {
            continue;
        };
        match merged.get_mut(name) {
            Some(known) => merge(known, one),
            None => _ = merged.insert(name.to_owned(), one.clone()),
        }
    }
}

/// Adds what one proxy says of a session to what others said of it.
fn merge(known: &mut Value, said: &Value) {
    for number in ["requests", "errors"] {
        known[number] = match (known[number].as_u64(), said[number].as_u64()) {
            (Some(known), Some(said)) => json!(known.saturating_add(said)),
            // One of them does not count it by itself.
            _ => Value::Null,
        };
    }
    let said_endpoints = said["endpoints"].as_array().into_iter().flatten();
    if let Some(endpoints) = known["endpoints"].as_array_mut() {
        for endpoint in said_endpoints {
            let same = |other: &&mut Value| other["address"] == endpoint["address"];
            match endpoints.iter_mut().find(same) {
                None => endpoints.push(endpoint.clone()),
                Some(other) if endpoint["state"] != "good" => {
                    other["state"] = endpoint["state"].clone();
                }
                Some(_) => {}
            }
        }
    }
    // Proxies learn of a change one after the other. The worst is what somebody gets at the moment.
    let rank = |value: &Value| match value["state"].as_str() {
        Some("live") => 0,
        Some("avoided") => 1,
        _ => 2,
    };
    if rank(said) > rank(known) {
        known["state"] = said["state"].clone();
    }
}

/// The cluster is within reach when it is so for all, and was heard of when the last of them did.
fn discovery(said: &[Value]) -> Value {
    let mut said = said.iter().filter(|said| said.is_object());
    let Some(mut merged) = said.next().cloned() else {
        return Value::Null;
    };
    for said in said {
        if said["up"] != true {
            merged["up"] = json!(false);
        }
        let is_earlier = match (said["lastSync"].as_str(), merged["lastSync"].as_str()) {
            (Some(said), Some(merged)) => said < merged,
            (None, _) => true,
            (Some(_), None) => false,
        };
        if is_earlier {
            merged["lastSync"] = said["lastSync"].clone();
        }
    }
    merged
}

/// The worst of the newest configurations' fates, with everybody's problems.
fn last_reload(reloads: &[(&String, Value)]) -> Value {
    let has_failed = |reload: &Value| reload["result"] != "ok";
    let result = match reloads.iter().find(|(_, reload)| has_failed(reload)) {
        Some((_, reload)) => reload["result"].clone(),
        None => json!("ok"),
    };
    let at = reloads
        .iter()
        .filter_map(|(_, reload)| reload["at"].as_str())
        .max();
    let problems = reloads.iter().flat_map(|(pod, reload)| {
        let problems = reload["problems"].as_array().into_iter().flatten();
        problems.filter_map(move |problem| Some(format!("{pod}: {}", problem.as_str()?)))
    });
    json!({
        "result": result,
        "at": at.unwrap_or("never"),
        "problems": problems.collect::<Vec<_>>(),
    })
}

/// The requests of all proxies as they happen, those that start later too. Ends when nobody reads.
///
/// Our own probes come all the time and are told only to those who ask for them by name.
pub(super) fn tap(post: Arc<Post>, query: &str) -> mpsc::Receiver<Arc<str>> {
    let (events_tx, events) = mpsc::channel(QUEUE);
    tokio::spawn(follow_all(post, query.to_owned(), events_tx));
    events
}

async fn follow_all(post: Arc<Post>, query: String, events_tx: mpsc::Sender<Arc<str>>) {
    let mut targets = post.board.watch();
    let mut followed = HashSet::new();
    let mut taps = JoinSet::new();
    loop {
        targets.mark_unchanged();
        let proxies = post.board.proxies();
        for (pod, admin) in proxies {
            if followed.insert(admin) {
                let events_tx = events_tx.clone();
                let path = format!("/tap?{query}");
                taps.spawn(async move {
                    follow(pod, admin, &path, &events_tx).await;
                    admin
                });
            }
        }
        tokio::select! {
            () = events_tx.closed() => return,
            changed = targets.changed() => if changed.is_err() { return },
            // The port may be another child's later on.
            Some(ended) = taps.join_next() => if let Ok(admin) = ended {
                followed.remove(&admin);
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

/// Passes on what one proxy tells, with the name of its target.
async fn follow(pod: String, admin: SocketAddr, path: &str, events_tx: &mpsc::Sender<Arc<str>>) {
    let Ok(response) = client::get(admin, path).await else {
        return;
    };
    if response.status() != StatusCode::OK {
        return;
    }
    let wants_probes = path.contains(PROBE);
    let mut events = Events::of(response.into_body());
    while let Ok(Some(event)) = events.next().await {
        let Ok(line) = serde_json::from_slice::<Line>(&event) else {
            return;
        };
        if line.session.as_deref() == Some(PROBE) && !wants_probes {
            continue;
        }
        let line = Line {
            pod: Some(pod.clone()),
            ..line
        };
        if let Err(mpsc::error::TrySendError::Closed(_)) = events_tx.try_send(line.to_json().into())
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(pod: &str, said: &Value) -> (String, String) {
        (pod.to_owned(), said.to_string())
    }

    #[test]
    fn sessions_of_several_proxies_are_one_list() {
        let one = json!({
            "readiness": "ready",
            "sessions": [
                { "name": "pr-42", "state": "live", "requests": 3, "errors": 1,
                  "endpoints": [{ "address": "10.0.0.1", "state": "good" }] },
                { "name": "pr-43", "state": "live", "requests": 1, "errors": 0, "endpoints": [] },
            ],
            "baselines": [{ "listener": "port-8080", "onUnavailable": "error", "state": "live",
                            "endpoints": [], "requests": 5, "errors": 0 }],
            "discovery": { "namespace": "n", "app": "a", "up": true, "lastSync": "2026-01-01T00:00:02.000Z" },
            "lastReload": { "result": "ok", "at": "2026-01-01T00:00:00.000Z", "problems": [] },
        });
        let other = json!({
            "readiness": "ready",
            "sessions": [
                { "name": "pr-42", "state": "avoided", "requests": 4, "errors": 0,
                  "endpoints": [{ "address": "10.0.0.1", "state": "avoided" },
                                { "address": "10.0.0.2", "state": "good" }] },
                { "name": "pr-43", "state": "live", "requests": null, "errors": null, "endpoints": [] },
                { "name": "pr-44", "state": "live", "requests": 1, "errors": 0, "endpoints": [] },
            ],
            "baselines": [{ "listener": "port-8080", "onUnavailable": "error", "state": "live",
                            "endpoints": [], "requests": 6, "errors": 1 }],
            "discovery": { "namespace": "n", "app": "a", "up": false, "lastSync": "2026-01-01T00:00:01.000Z" },
            "lastReload": { "result": "failed", "at": "2026-01-02T00:00:00.000Z", "problems": ["bad"] },
        });

        let merged = sessions(
            "ready",
            json!([]),
            &[
                said("orders-1", &one),
                ("orders-2".into(), "nonsense".into()),
                said("orders-3", &other),
                said("orders-4", &json!({ "sessions": 7 })),
            ],
        );

        assert_eq!(
            merged,
            json!({
                "readiness": "ready",
                "targets": [],
                "sessions": [
                    { "name": "pr-42", "state": "avoided", "requests": 7, "errors": 1,
                      "endpoints": [{ "address": "10.0.0.1", "state": "avoided" },
                                    { "address": "10.0.0.2", "state": "good" }] },
                    { "name": "pr-43", "state": "live", "requests": null, "errors": null, "endpoints": [] },
                    { "name": "pr-44", "state": "live", "requests": 1, "errors": 0, "endpoints": [] },
                ],
                "baselines": [{ "listener": "port-8080", "onUnavailable": "error", "state": "live",
                                "endpoints": [], "requests": 11, "errors": 1 }],
                "discovery": { "namespace": "n", "app": "a", "up": false,
                               "lastSync": "2026-01-01T00:00:01.000Z" },
                "lastReload": { "result": "failed", "at": "2026-01-02T00:00:00.000Z",
                                "problems": ["orders-3: bad"] },
            })
        );
    }
}
