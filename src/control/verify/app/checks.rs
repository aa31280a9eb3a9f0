//! What was asked of an app and what was seen meanwhile, made into verdicts.

use std::collections::BTreeSet;

use tokio::sync::watch;

use super::{Asked, Case, Logged, Watched};
use crate::cli::cluster::Witness;
use crate::control::targets::Target;
use crate::control::verify::judgement::{self, Evidence, Expected, Tapped, Verdict};
use crate::control::verify::question::Reply;
use crate::control::verify::report::{Check, ReplicaReport};
use crate::control::verify::tap::{Heard, Tap};
use crate::control::workload::Replica;

/// Who can say something about a request beside its answer.
pub(super) struct Witnesses<'w> {
    heard: Result<watch::Ref<'w, Heard>, &'w str>,
    /// `None`: it was not read.
    logged: Option<&'w BTreeSet<String>>,
}

impl Watched<'_> {
    pub(super) fn judge_replicas(
        &self,
        case: &Case<'_>,
        asked: &[Asked<'_>],
        logged: &Logged,
        told: &[Target],
    ) -> Vec<ReplicaReport> {
        let witnesses = self.witnesses(logged);
        let replicas = self.scene.replicas.iter().flatten();
        let report = |replica: &Replica| {
            let here = asked
                .iter()
                .filter(|asked| asked.replica.uid == replica.uid);
            let checks: Vec<Check> = here
                .flat_map(|asked| self.judge(case, asked, &witnesses, told))
                .collect();
            ReplicaReport {
                pod: replica.name.clone(),
                ip: replica.ip.to_string(),
                ok: checks.iter().all(|check| check.ok),
                checks,
            }
        };
        replicas.map(report).collect()
    }

    fn judge(
        &self,
        case: &Case<'_>,
        asked: &Asked<'_>,
        witnesses: &Witnesses<'_>,
        told: &[Target],
    ) -> Vec<Check> {
        let expected = self.expected(case);
        let proxy = self.proxy_of(asked.replica);
        let port = Some(asked.port.container_port);
        let check = |name, reply: &Reply, verdict| Check::new(name, port, verdict, reply.took);
        let tagged = |name, reply: &Reply| {
            let evidence = witnesses.on(reply);
            let verdict = judgement::tagged(reply, &proxy, &expected, evidence);
            check(name, reply, verdict)
        };
        let Asked {
            probe,
            untagged,
            unknown,
            ..
        } = asked;
        let target = told.iter().find(|target| target.pod == asked.replica.name);
        let intercepted = judgement::intercepted(probe, &proxy).map_err(|why| match target {
            Some(target) => format!("{why}; its proxy pod says that it is {target}"),
            None => why,
        });
        let to_baseline = judgement::untagged(untagged, &expected, witnesses.on(untagged));
        let to_nobody = judgement::unknown(unknown, case.unknown, &expected, witnesses.on(unknown));
        let mut checks = vec![
            check("intercepted", probe, intercepted),
            tagged("tagged-header", &asked.header),
        ];
        checks.extend(
            asked
                .baggage
                .iter()
                .map(|reply| tagged("tagged-baggage", reply)),
        );
        checks.push(check("untagged", untagged, to_baseline));
        checks.push(check("unknown-session", unknown, to_nobody));
        checks
    }

    /// What holds for the app as a whole.
    pub(super) fn judge_app(&self, witness: Witness, logged: &Logged) -> Vec<Check> {
        let replicas = self.scene.replicas.as_ref().map_err(Clone::clone);
        let replicas = replicas.map(|replicas| format!("{} ready", replicas.len()));
        let pr_pod = self.pr_pod.as_ref().map_err(Clone::clone);
        let pr_pod = pr_pod.map(|pod| format!("{} is ready at {}", pod.name, pod.ip));
        let proxy = self.proxy.as_ref().map_err(Clone::clone);
        let proxy = proxy.map(|proxy| format!("{} is ready", proxy.name));
        let mut checks = vec![
            Check::new("replicas", None, replicas, self.took),
            Check::new("pr-pod", None, pr_pod, self.took),
            Check::new("proxy-pod", None, proxy, self.took),
            Check::new("proxy-tap", None, self.judge_tap(), self.took),
            Check::new("service", None, self.judge_service(), self.took),
        ];
        if let (Ok(_), Witness::App) = (&self.pr_pod, witness) {
            let ids = logged.ids.as_ref().map_err(Clone::clone);
            let verdict = ids.map(|ids| match ids.len() {
                0 => "was read, and shows no probe".to_owned(),
                1 => "shows 1 probe".to_owned(),
                count => format!("shows {count} probes"),
            });
            checks.push(Check::new("pr-pod-log", None, verdict, logged.took));
        }
        checks
    }

    pub(super) fn judge_tap(&self) -> Verdict {
        let tap = self.tap.as_ref().map_err(Clone::clone)?;
        match &tap.heard().ended {
            Some(why) => Err(format!("it ended while it was listened to: {why}")),
            None => Ok("tells of the session's requests".to_owned()),
        }
    }

    /// A Service that takes the PR pod for one of its own would send it untagged requests.
    fn judge_service(&self) -> Verdict {
        let name = &self.scene.app.name;
        match (
            self.scene.service.as_ref().map_err(Clone::clone)?,
            &self.pr_pod,
        ) {
            (None, _) => Ok(format!("there is no Service {name}")),
            (Some(front), Ok(pod)) if front.takes(&pod.labels) => Err(format!(
                "Service {name} selects {}, so that untagged requests reach it",
                pod.name
            )),
            (Some(_), _) => Ok(format!("{name} does not select the PR pod")),
        }
    }

    /// What every judgement on this app leans on.
    pub(super) fn expected<'e>(&'e self, case: &Case<'e>) -> Expected<'e> {
        Expected {
            app: &self.scene.app.name,
            session: case.session,
            pr_pod: &self.pr_pod_name,
            pr_pod_ip: self.pr_pod.as_ref().ok().map(|pod| pod.ip.to_canonical()),
            proxy_pod: &self.proxy_name,
            witness: case.witness,
        }
    }

    pub(super) fn witnesses<'w>(&'w self, logged: &'w Logged) -> Witnesses<'w> {
        Witnesses {
            heard: self.tap.as_ref().map(Tap::heard).map_err(String::as_str),
            logged: logged.ids.as_ref().ok(),
        }
    }
}

impl Witnesses<'_> {
    pub(super) fn on(&self, reply: &Reply) -> Evidence<'_> {
        let tapped = match &self.heard {
            Err(why) => Tapped::Deaf(why),
            Ok(heard) => match (heard.of(&reply.id), &heard.ended) {
                (Some(line), _) => Tapped::Seen(line),
                (None, Some(why)) => Tapped::Deaf(why),
                (None, None) => Tapped::NotSeen,
            },
        };
        Evidence {
            tapped,
            is_logged: self.logged.is_some_and(|ids| ids.contains(&reply.id)),
        }
    }
}
