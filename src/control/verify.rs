//! `verify`: where requests with and without a session go, proven for every app and replica.
//!
//! Requests are sent as the app's callers send them, and whoever could see them is asked what they saw:
//! the answer, the proxy's tap, the PR pod's log. It changes nothing in the cluster. It fails closed: what
//! could not be asked did not hold.

mod app;
mod chain;
mod echo;
mod inquiry;
mod judgement;
mod log;
mod question;
mod report;
mod scene;
mod table;
mod tap;
mod traffic;
mod walk;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, bail};
use futures_util::future::join_all;
use tokio::time::Instant;

use self::app::{Case, Watched};
use self::inquiry::{Inquiry, Proof, Task};
use self::question::Asker;
use self::report::{AppReport, AppTraffic, Report, Traffic, milliseconds};
use self::scene::Scene;
use self::table::Table;
use self::traffic::{Burst, Measurement};
use super::Failure;
use super::cluster::Cluster;
use crate::cli::cluster::{Only, Verify};

/// Asks everybody, and reports; only what holds altogether is a success.
///
/// # Errors
/// Something does not hold, or could not be asked; the report has been written then, too.
pub async fn verify(arguments: Verify) -> Result<(), Failure> {
    let inquiry = Inquiry::parse(&arguments).map_err(Failure::Usage)?;
    let baggage_key = &inquiry.pull_request.stack.propagation.baggage_key;
    let asker = Asker::new(inquiry.header.clone(), baggage_key, inquiry.timeout);
    let cluster = Cluster::reach(&arguments.cluster, asker.deadline()).await?;
    let bench = Bench {
        inquiry: &inquiry,
        asker,
        cluster,
    };
    match &inquiry.task {
        Task::Measure(file) => Ok(bench.measure(file).await?),
        Task::Prove(proof) => Ok(bench.prove(proof).await?),
    }
}

/// What every step needs.
struct Bench<'a> {
    inquiry: &'a Inquiry,
    asker: Asker,
    cluster: Cluster,
}

impl Bench<'_> {
    async fn prove(&self, proof: &Proof) -> anyhow::Result<()> {
        let report = self.report(proof).await;
        let stderr = std::io::stderr();
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let table = Table {
            report: &report,
            is_colourful: stderr.is_terminal() && !no_colour,
        };
        eprint!("\n{table}");
        publish(&report.to_json(), proof.out.as_deref())?;
        let (all, failed) = report.count();
        if !report.ok {
            bail!(
                "{failed} of {all} checks failed: {} is not proven to reach the pull request's pods and them alone",
                report.session
            );
        }
        Ok(())
    }

    async fn report(&self, proof: &Proof) -> Report {
        let started = Instant::now();
        let pull_request = &self.inquiry.pull_request;
        let unknown = format!("unknown-{:016x}", fastrand::u64(..));
        let case = Case {
            asker: &self.asker,
            cluster: &self.cluster,
            session: &pull_request.session,
            unknown: &unknown,
            path: &self.inquiry.path,
            witness: proof.witness,
            since: started,
        };
        let names = pull_request.apps.join(", ");
        let watched = self.watch(&case, proof).await;
        let (mut apps, mut hops) = (Vec::<AppReport>::new(), Vec::new());
        if proof.only != Only::Traffic {
            eprintln!("asking every replica of {names}");
            apps = join_all(watched.iter().map(|watched| watched.prove(&case))).await;
            eprintln!("following a request of {} through the chain", case.session);
            hops = walk::walk(&case, pull_request, &watched, proof.chain_path.as_deref()).await;
        }
        let mut untagged = watched.as_slice();
        if proof.only == Only::Propagation {
            untagged = &[];
        } else {
            eprintln!(
                "sending {} untagged requests to each of {names}",
                traffic::REQUESTS
            );
        }
        let traffic = self.traffic(&case, proof, untagged).await;
        Report {
            ok: apps.iter().all(|app| app.ok) && hops.iter().all(|hop| hop.ok) && traffic.ok,
            session: pull_request.session.clone(),
            header: pull_request.header.clone(),
            apps,
            hops,
            traffic,
            took_ms: milliseconds(started.elapsed()),
        }
    }

    async fn watch<'w>(&'w self, case: &Case<'w>, proof: &Proof) -> Vec<Watched<'w>> {
        let open = async |scene: Scene<'w>| {
            let pr_pod = proof.deployed_pods.get(&scene.app.name);
            Watched::open(case, scene, pr_pod.map(String::as_str)).await
        };
        join_all(self.scenes().await.into_iter().map(open)).await
    }

    /// The changed apps as the cluster has them.
    async fn scenes(&self) -> Vec<Scene<'_>> {
        let pull_request = &self.inquiry.pull_request;
        let apps = pull_request.apps.iter();
        let apps = apps.filter_map(|name| pull_request.stack.app(name));
        let read = |app| {
            let namespace = pull_request.namespace_of(app);
            Scene::read(&self.cluster, app, namespace, self.asker.deadline())
        };
        join_all(apps.map(read)).await
    }

    async fn traffic(&self, case: &Case<'_>, proof: &Proof, watched: &[Watched<'_>]) -> Traffic {
        let mut bursts = Vec::new();
        // One after the other, so that none is measured beside another.
        for watched in watched {
            bursts.push(Burst::send(&self.asker, &watched.scene, case.path).await);
        }
        let judge = async |(watched, burst): (&Watched<'_>, Result<Burst, String>)| {
            let app = &watched.scene.app.name;
            let stayed = match &burst {
                Ok(burst) => watched.stayed_away(case, &burst.replies).await,
                Err(why) => Err(why.clone()),
            };
            let before = proof.before.as_ref();
            traffic::judge(app, case.path, before, &burst, stayed, proof.max_slowdown)
        };
        let apps: Vec<AppTraffic> = join_all(watched.iter().zip(bursts).map(judge)).await;
        Traffic {
            ok: apps.iter().all(|app| app.ok),
            max_slowdown: proof.max_slowdown,
            apps,
        }
    }

    /// Measures untagged traffic, and nothing else.
    async fn measure(&self, file: &Path) -> anyhow::Result<()> {
        let mut measurement = Measurement {
            path: self.inquiry.path.clone(),
            apps: BTreeMap::new(),
        };
        for scene in self.scenes().await {
            let app = &scene.app.name;
            eprintln!("sending {} untagged requests to {app}", traffic::REQUESTS);
            let burst = Burst::send(&self.asker, &scene, &self.inquiry.path).await;
            let burst = burst.map_err(|why| anyhow::anyhow!("cannot measure {app}: {why}"))?;
            let figures = burst.figures();
            if let (Some(why), true) = (burst.silence(), figures.errors == figures.requests) {
                bail!("cannot measure {app}: {why}");
            }
            eprintln!("{app}: {figures}");
            measurement.apps.insert(app.clone(), figures);
        }
        let json = serde_json::to_string_pretty(&measurement)?;
        publish(&(json + "\n"), Some(file))
    }
}

/// Writes a result to a file, or to standard output, whose reader may have gone away.
fn publish(text: &str, file: Option<&Path>) -> anyhow::Result<()> {
    if let Some(file) = file {
        return std::fs::write(file, text)
            .with_context(|| format!("cannot write {}", file.display()));
    }
    let mut stdout = std::io::stdout();
    let written = stdout.write_all(text.as_bytes());
    match written.and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}
