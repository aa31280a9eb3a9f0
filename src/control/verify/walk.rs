//! One request with a session, sent to the entry of the chain, and what was seen of it on its way.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::app::{Case, Watched};
use super::chain::{Chain, Link, Sight};
use super::echo::{self, Told};
use super::judgement::heard;
use super::question::{PARAMETER, Tag, trace_id};
use super::report::{Hop, HopSeen};
use super::scene::{Scene, Through};
use super::tap::{Heard, Sighting};
use crate::control::pull_request::PullRequest;
use crate::control::stack::App;
use crate::record::line::Line;

/// How long a request may take from the entry to the last app.
const PATIENCE: Duration = Duration::from_secs(10);

/// Clocks of proxies are not ours, and durations are rounded.
const SLACK: Duration = Duration::from_millis(50);

/// Sends the request and says for every app on its way whether it received the session. `path` is the
/// request's, where it is not that of all probes.
pub(super) async fn walk(
    case: &Case<'_>,
    pull_request: &PullRequest,
    watched: &[Watched<'_>],
    path: Option<&str>,
) -> Vec<Hop> {
    let stack = &pull_request.stack;
    let named = pull_request.chain.iter().filter_map(|name| stack.app(name));
    let apps: Vec<&App> = named.collect();
    let in_chain = |app: &str| apps.iter().any(|link| link.name == app);
    let (on_way, aside): (Vec<_>, Vec<_>) = watched
        .iter()
        .partition(|watched| in_chain(&watched.scene.app.name));
    let mut hops = match apps.first() {
        Some(entry) if !on_way.is_empty() => {
            let sent = send(case, pull_request, entry, &on_way, path).await;
            chain(case, &apps, &on_way, sent).await.hops()
        }
        _ => vec![],
    };
    hops.extend(aside.into_iter().map(not_in_chain));
    hops
}

/// The request that was sent to the entry.
struct Sent {
    /// `None`: there was nobody to send it to.
    id: Option<String>,
    at: Instant,
    /// How the entry was asked, or why there is no answer.
    asked: Result<String, String>,
    told: Vec<Told>,
}

async fn send(
    case: &Case<'_>,
    pull_request: &PullRequest,
    entry: &App,
    on_way: &[&Watched<'_>],
    path: Option<&str>,
) -> Sent {
    let known = on_way.iter().find(|watched| watched.scene.app == entry);
    let doors = match known {
        Some(watched) => watched.scene.doors(case.path).await,
        None => {
            let namespace = pull_request.namespace_of(entry);
            let late = case.asker.deadline();
            let scene = Scene::read(case.cluster, entry, namespace, late).await;
            scene.doors(case.path).await
        }
    };
    let at = Instant::now();
    let (through, door) = match doors {
        Ok((through, doors)) => (through, doors.into_iter().next()),
        Err(why) => return Sent::not(at, &why),
    };
    let Some(mut door) = door else {
        return Sent::not(at, "nobody is there");
    };
    if let Some(path) = path {
        path.clone_into(&mut door.path);
    }
    let reply = case.asker.ask(&door, Tag::Traced(case.session)).await;
    let whom = match through {
        Through::Service => "its Service",
        Through::Pods => "a replica, not by way of a Service",
    };
    let asked = heard(&reply)
        .map(|answer| format!("asked at {} ({whom}): {}", door.address, answer.status))
        .map_err(|why| format!("the entry did not answer: {why}"));
    let told = reply
        .answer
        .as_ref()
        .map(|answer| echo::sessions(&answer.body));
    Sent {
        asked,
        told: told.unwrap_or_default(),
        id: Some(reply.id),
        at,
    }
}

impl Sent {
    fn not(at: Instant, why: &str) -> Self {
        Self {
            id: None,
            at,
            asked: Err(format!("the entry could not be asked: {why}")),
            told: vec![],
        }
    }
}

/// What is known of the chain, once every proxy on the way saw the request or it is too late.
async fn chain<'a>(
    case: &Case<'a>,
    apps: &[&'a App],
    on_way: &[&'a Watched<'a>],
    sent: Sent,
) -> Chain<'a> {
    let late = case.asker.within(PATIENCE);
    let look = async |watched: &&'a Watched<'a>| {
        let sight = match (&watched.tap, &sent.id) {
            (Err(why), _) => Sight::Blind(format!("its proxy cannot be listened to: {why}")),
            (Ok(_), None) => Sight::Nothing,
            (Ok(tap), Some(id)) => {
                let is_there = |line: &Line| watched.is_to_pr_pod(line);
                let sight = |heard: &Heard| sight(heard, id, sent.at, is_there);
                tap.until(late, |heard| sight(heard) != Sight::Nothing)
                    .await;
                sight(&tap.heard())
            }
        };
        (&*watched.scene.app.name, sight)
    };
    let sights: BTreeMap<_, _> = join_all(on_way.iter().map(look))
        .await
        .into_iter()
        .collect();
    let link = |app: &&'a App| Link {
        app: &app.name,
        role: app.propagation_role,
        downstream: &app.downstream,
        is_intercepted: sights.contains_key(&*app.name),
    };
    Chain {
        session: case.session,
        links: apps.iter().map(link).collect(),
        sights,
        told: sent.told,
        asked: sent.asked,
        waited: format!("{PATIENCE:?}"),
    }
}

/// What a proxy saw of a request that was sent at that moment; the best that can be said.
fn sight(heard: &Heard, id: &str, sent: Instant, is_to_pr_pod: impl Fn(&Line) -> bool) -> Sight {
    let mut best = match &heard.ended {
        Some(why) => Sight::Blind(format!("its proxy cannot be listened to any more: {why}")),
        None => Sight::Nothing,
    };
    for Sighting { line, told } in heard.sightings() {
        let is_ours = line.target.contains(id) || line.target.contains(&trace_id(id));
        let took = Duration::from_secs_f64((line.duration_ms / 1000.0).max(0.0));
        let is_older = told
            .checked_sub(took)
            .is_none_or(|began| began + SLACK < sent);
        // Others of our own requests went to pods, and prove nothing of those who call them.
        if !is_ours && (is_older || line.target.contains(PARAMETER)) {
            continue;
        }
        match (is_to_pr_pod(line), is_ours) {
            (true, true) => return Sight::Ours,
            (true, false) => best = Sight::Session,
            (false, _) if best == Sight::Session => {}
            (false, _) => {
                let upstream = line.upstream.as_deref().unwrap_or("nobody");
                best = Sight::Strayed(format!("it went to {upstream} ({})", line.reason));
            }
        }
    }
    best
}

fn not_in_chain(watched: &Watched<'_>) -> Hop {
    let app = watched.scene.app;
    Hop {
        app: app.name.clone(),
        role: app.propagation_role.word(),
        intercepted: true,
        ok: true,
        seen: HopSeen::NotInChain,
        detail: "no request to the entry passes it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::line::tests::line;

    const ID: &str = "00c0ffee00c0ffee00000009";

    /// What is made of requests for these targets, each of which took that long; `pr` in the target sends
    /// them to the PR pod.
    fn seen(ended: Option<&str>, requests: &[(&str, f64)]) -> Sight {
        let mut heard = Heard::default();
        heard.ended = ended.map(str::to_owned);
        let sent = Instant::now();
        for (target, duration_ms) in requests {
            heard.add(Line {
                duration_ms: *duration_ms,
                ..line("pr-42", target)
            });
        }
        sight(&heard, ID, sent, |line| line.target.contains("pr"))
    }

    #[test]
    fn our_own_request_is_known_by_its_id_and_others_count_for_less() {
        let ours = format!("/pr?{PARAMETER}={ID}");
        let traced = format!("/pr?trace={}", trace_id(ID));
        let other_probe = format!("/pr?{PARAMETER}=00c0ffee00c0ffee00000008");
        let strayed = || Sight::Strayed("it went to nobody (unknown-session)".to_owned());
        for (case, requests, expected) in [
            ("nothing", &[][..], Sight::Nothing),
            ("ours", &[(&*ours, 1.0)], Sight::Ours),
            ("ours by its trace", &[(&*traced, 1.0)], Sight::Ours),
            ("somebody's", &[("/pr", 1.0)], Sight::Session),
            ("both", &[("/pr", 1.0), (&*ours, 1.0)], Sight::Ours),
            ("another probe", &[(&*other_probe, 1.0)], Sight::Nothing),
            ("begun before ours", &[("/pr", 3000.0)], Sight::Nothing),
            ("elsewhere", &[("/x", 1.0)], strayed()),
            (
                "here and elsewhere",
                &[("/pr", 1.0), ("/x", 1.0)],
                Sight::Session,
            ),
            (
                "elsewhere and here",
                &[("/x", 1.0), ("/pr", 1.0)],
                Sight::Session,
            ),
        ] {
            assert_eq!(seen(None, requests), expected, "{case}");
        }
    }

    #[test]
    fn a_tap_that_ended_says_no_more_than_it_had_said() {
        assert!(matches!(seen(Some("gone"), &[]), Sight::Blind(why) if why.contains("gone")));
        assert_eq!(seen(Some("gone"), &[("/pr", 1.0)]), Sight::Session);
    }
}
