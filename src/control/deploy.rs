//! The intercepts of a pull request, brought up and proven live; or taken away again.
//!
//! What was typed is judged first, then the targets are read, and only then is anything made. Per app:
//! the PR pod, ready; then its proxy, made or shared with other sessions; then the proof that requests to
//! every ready replica of the target go where they should. The same call a second time finds all of it
//! in place and changes nothing.
//!
//! One backend takes an app's requests at a time ([`backend`]), and a PR pod that has to be made anew is stood
//! in for meanwhile ([`placeholder`]): its requests never reach the baseline.
//!
//! A call that cannot keep its promise, or is told to stop, takes away what it made itself and nothing
//! else.

mod app;
mod backend;
mod deployed;
mod diagnosis;
mod join;
mod order;
mod placeholder;
mod pr_pod;
mod preview;
mod progress;
mod routing;
mod undo;
mod wait;

use std::io::Write;

use anyhow::{Context, anyhow, bail};
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Duration, Instant, sleep_until};

use super::Failure;
use super::cluster::Cluster;
use crate::cli::cluster::Deploy;
use crate::signals::Signals;
use app::Planned;
use deployed::DeployedPods;
use order::Order;
use progress::Voice;
use undo::Made;

/// How long after the deadline everybody may take to say why it was missed.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// `session-proxy deploy`
///
/// # Errors
/// What was typed makes no sense, or the intercepts are not live.
pub async fn deploy(arguments: Deploy) -> Result<(), Failure> {
    let order = Order::parse(&arguments).map_err(Failure::Usage)?;
    let deadline = Instant::now() + order.patience;
    let mut signals = Signals::catch().context("cannot catch signals")?;
    if arguments.dry_run {
        return Ok(preview::print(&order, &arguments.cluster, deadline).await?);
    }
    let mut deployed = DeployedPods::start(order.out.clone())?;
    let cluster = Cluster::reach(&arguments.cluster, deadline).await?;
    let made = Made::default();

    let outcome = tokio::select! {
        outcome = bring_up(&order, &cluster, &made, &mut deployed) => outcome,
        signal = signals.next() => Err(anyhow!("stopped by {signal}")),
    };
    let Err(reason) = outcome else {
        return Ok(print(&deployed.json())?);
    };
    if !made.is_empty() {
        let first_line = format!("{reason:#}").lines().next().map(str::to_owned);
        let first_line = first_line.unwrap_or_default();
        Voice::of("deploy").say(format_args!(
            "{first_line}; taking away what this call made"
        ));
    }
    let undone = tokio::select! {
        undone = undo(&cluster, &made, &mut deployed) => undone,
        signal = signals.next() => Err(anyhow!(
            "ended by {signal} before everything was taken away; `session-proxy cleanup --session {}` does the rest",
            order.pull_request.session
        )),
    };
    Err(Failure::Failed(match undone {
        Ok(()) => reason,
        Err(left) => anyhow!("{reason:#}\n{left:#}"),
    }))
}

/// All apps at once. The first failure ends the others.
async fn bring_up(
    order: &Order,
    cluster: &Cluster,
    made: &Made,
    deployed: &mut DeployedPods,
) -> anyhow::Result<()> {
    let planned = plan(order, cluster).await?;
    let mut apps: FuturesUnordered<_> = planned
        .iter()
        .map(async |app| (app, app.bring_up(cluster, made).await))
        .collect();
    let mut failures = Vec::new();
    loop {
        // An API server that hangs must not make the deadline late.
        let end = sleep_until(cluster.deadline() + LAST_WORDS);
        let next = tokio::select! {
            next = apps.next() => next,
            () = end => bail!("{}", overdue(&planned)),
        };
        match next {
            None if failures.is_empty() => return Ok(()),
            None => bail!(failures.join("\n")),
            Some((app, Ok(()))) => deployed.add(app.app(), app.pr_pod())?,
            Some((app, Err(failure))) => {
                failures.push(format!("{}: {failure:#}", app.app()));
                // When time is up the others are about to say why, too.
                if Instant::now() < cluster.deadline() {
                    bail!(failures.join("\n"));
                }
            }
        }
    }
}

/// Reads all targets, before anything is made for any of them.
async fn plan<'o>(order: &'o Order, cluster: &Cluster) -> anyhow::Result<Vec<Planned<'o>>> {
    let read = order.changes().map(async |change| {
        let read = Planned::read(cluster, change).await;
        read.map_err(|error| format!("{}: {error:#}", change.app.name))
    });
    let mut planned = Vec::new();
    let mut failures = Vec::new();
    for read in join_all(read).await {
        match read {
            Ok(app) => planned.push(app),
            Err(failure) => failures.push(failure),
        }
    }
    if !failures.is_empty() {
        bail!(failures.join("\n"));
    }
    Ok(planned)
}

fn overdue(planned: &[Planned<'_>]) -> String {
    let apps = planned.iter().map(|app| {
        let voice = app.voice();
        format!("{}: waited for {}", voice.subject(), voice.awaited())
    });
    apps.collect::<Vec<_>>().join("\n")
}

async fn undo(cluster: &Cluster, made: &Made, deployed: &mut DeployedPods) -> anyhow::Result<()> {
    let undone = made.undo(cluster).await;
    deployed.clear()?;
    undone
}

/// The result, on standard output.
fn print(line: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{line}").context("cannot write to standard output")
}
