//! The whole way of two pull requests through the cluster, every part the real one: `deploy`, the
//! `attach` that it brings up, `verify` and `cleanup`, with the rights that each is given and no others.

pub mod bed;

use std::process::Command;

use self::bed::Bed;
use crate::it::support::hub::Fate;
use crate::it::support::target_pod::TargetPod;
use crate::support::eventually;
use crate::support::kubelet::Script;
use crate::support::run::Ended;

/// The target of requests that have no session.
const UNTAGGED: &str = "/untagged";

/// Everything that one app with one session has.
const OF_ONE: [&str; 6] = [
    "Pod mirrord-proxy-orders",
    "Pod pr-orders-pr-41",
    "ConfigMap mirrord-proxy-orders",
    "Role mirrord-proxy-orders",
    "RoleBinding mirrord-proxy-orders",
    "ServiceAccount mirrord-proxy-orders",
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn whole_two_pull_requests_come_share_an_app_and_go() {
    let bed = Bed::new(3).await;
    let untagged = bed.untagged(UNTAGGED);

    show("deploy pr-41", bed.deploy("pr-41").end().await.well());
    let ours = bed.ours().await;
    for wanted in OF_ONE {
        assert!(ours.iter().any(|one| one == wanted), "{wanted}: {ours:?}");
    }
    show("verify pr-41", bed.verify("pr-41").end().await.well());
    answers(&bed, Some("pr-41"), ("pr-41", "pr-orders-pr-41")).await;

    show("deploy pr-42", bed.deploy("pr-42").end().await.well());
    verify_both(&bed).await;
    answers(&bed, Some("pr-41"), ("pr-41", "pr-orders-pr-41")).await;
    answers(&bed, Some("pr-42"), ("pr-42", "pr-orders-pr-42")).await;

    bed.orders.roll().await;
    bed.settles().await;
    verify_both(&bed).await;

    kill_a_child(&bed).await;
    bed.settles().await;
    verify_both(&bed).await;

    show("cleanup pr-41", bed.cleanup("pr-41").end().await.well());
    show("verify pr-42", bed.verify("pr-42").end().await.well());
    let unknown = ("baseline; reason=unknown-session", "baseline");
    answers(&bed, Some("pr-41"), unknown).await;
    assert!(bed.proxies_ended().is_empty());

    answers(&bed, None, ("none", "app")).await;
    assert!(!untagged.is_finished());
    show("cleanup pr-42", bed.cleanup("pr-42").end().await.well());

    let nothing: [String; 0] = [];
    eventually("no job and no lease is left", async || {
        bed.ours().await == nothing
    })
    .await;
    let ended = bed.proxies_ended();
    let [(Some(0), said)] = &ended[..] else {
        panic!("{ended:?}");
    };
    assert!(!said.contains("not allowed to"), "{said}");
    untagged.abort();
    assert!(!bed.pr_pods_saw(UNTAGGED));
    answers(&bed, Some("pr-42"), ("none", "app")).await;
}

/// Who tests a pull request while it gets a new image may fail, but must never have tested the baseline.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn whole_no_request_of_a_session_is_for_the_baseline_while_its_only_pod_is_made_anew() {
    let bed = Bed::new(2).await;
    bed.deploy("pr-45").end().await.well();
    let proxy = bed.uid("mirrord-proxy-orders").await;
    let (asking, counts) = bed.tagged("pr-45", "/during");

    for round in 1..=3 {
        let held = bed.kubelet.hold_deletions();
        let run = bed.deploy_image("pr-45", &format!("again-{round}"));
        run.says("the old PR pod pr-orders-pr-45 to end").await;
        eventually("requests are refused", async || {
            let answers = bed.ask_all(Some("pr-45"), "/during").await;
            answers
                .iter()
                .all(|(route, _)| route.contains("no-endpoint"))
        })
        .await;
        drop(held);
        run.end().await.well();
        answers(&bed, Some("pr-45"), ("pr-45", "pr-orders-pr-45")).await;
    }

    assert!(!asking.is_finished());
    asking.abort();
    let counts = counts.lock().expect("nobody panicked with it").clone();
    let served = counts.get(&(200, "pr-45".to_owned()));
    assert!(served.is_some_and(|count| *count > 0), "{counts:?}");
    let misled = counts
        .keys()
        .filter(|(_, route)| route == "none" || route.starts_with("baseline"));
    assert_eq!(misled.count(), 0, "{counts:?}");
    assert_eq!(bed.uid("mirrord-proxy-orders").await, proxy);
    assert!(bed.proxies_ended().is_empty());

    bed.cleanup("pr-45").end().await.well();
    let nothing: [String; 0] = [];
    eventually("nothing is left", async || bed.ours().await == nothing).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn whole_a_pull_request_that_crashes_leaves_nothing_behind() {
    let bed = Bed::new(1).await;
    let crash = Script::CrashLoopBackOff { exit_code: 3 };
    bed.kubelet.script("pr-orders-pr-43", crash);
    bed.kubelet
        .writes("pr-orders-pr-43", "cannot open the ledger\n");

    let ended = bed.deploy("pr-43").end().await;

    show(
        "deploy that crashes",
        ended.failed(1, &["cannot open the ledger", "code 3"]),
    );
    let nothing: [String; 0] = [];
    assert_eq!(bed.ours().await, nothing);
    answers(&bed, None, ("none", "app")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn whole_verify_tells_how_attach_is_getting_on_with_a_replica() {
    let bed = Bed::new(1).await;
    bed.deploy("pr-44").end().await.well();
    let name = bed.orders.ready(1).await.remove(0);
    let target = bed.target(&name);
    target.fates(&[Fate::Hangs; 9]);
    kill_child(&target);
    eventually("it starts again", async || target.starts() == 2).await;

    let ended = bed.verify("pr-44").end().await;

    let reasons = ["not intercepted", "its proxy pod says that it is starting"];
    show("verify in the middle", ended.failed(1, &reasons));
}

async fn verify_both(bed: &Bed) {
    for session in ["pr-41", "pr-42"] {
        show("verify", bed.verify(session).end().await.well());
    }
}

/// Every replica answers so: route and pod.
async fn answers(bed: &Bed, session: Option<&str>, wanted: (&str, &str)) {
    let wanted = (wanted.0.to_owned(), wanted.1.to_owned());
    let answers = bed.ask_all(session, "/asked").await;
    assert!(!answers.is_empty());
    for answer in answers {
        assert_eq!(answer, wanted, "{session:?}");
    }
}

/// Kills the proxy of one replica, and returns when another one is in its place.
async fn kill_a_child(bed: &Bed) {
    let name = bed.orders.ready(3).await.remove(0);
    let target = bed.target(&name);
    let child = kill_child(&target);
    eventually("another child takes its place", async || {
        target.child().is_some_and(|now| now != child)
    })
    .await;
}

fn kill_child(target: &TargetPod) -> u32 {
    let child = target.child().expect("it is intercepted");
    let kill = format!("kill -KILL {child}");
    let killed = Command::new("sh").args(["-c", &kill]).status();
    assert!(killed.expect("there is a shell").success());
    child
}

/// What a person would have seen; for those who run the tests with `--nocapture`.
fn show(what: &str, ended: Ended) {
    eprintln!("--- {what}\n{ended}");
}
