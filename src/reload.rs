//! File change, SIGHUP or pods that come and go: a new plan, or the old one and a report.
//!
//! A plan has two halves: what the file says, and what discovery found. Both are kept here and nowhere
//! else, so that neither can overtake the other on the way to the workers.
//!
//! Folders are watched, not files: a mounted ConfigMap changes by a symlink swapped in its folder,
//! and editors replace a file by renaming another over it. What counts in the end is what the file
//! says, so an event only means that it is worth a look.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecursiveMode, Watcher};
use rustls::ServerConfig;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::admin::{Reload, ReloadResult};
use crate::cli::Sources;
use crate::config::Problem;
use crate::discovery::{Discovery, NoTable};
use crate::kubernetes::Access;
use crate::metrics::Metrics;
use crate::plan::{self, Plan, Unused};
use crate::tls::{self, TlsFiles};
use crate::upstream::Discovered;

/// How long a folder must be quiet before it is looked at: whoever writes a file in place does so
/// in several steps.
const QUIET: Duration = Duration::from_millis(20);

/// How often files are looked at without an event: not every file system sends them.
const LOOK: Duration = Duration::from_secs(10);

/// Keeps the plan true to the file and to the cluster, and certificates to theirs.
pub struct Reloader {
    pub sources: Sources,
    pub metrics: Arc<Metrics>,
    pub halves: Halves,
    pub plans_tx: watch::Sender<Arc<Plan>>,
    pub reports_tx: watch::Sender<Reload>,
    /// One for each https listener.
    pub certificates: Vec<Certificates>,
    pub files: Files,
}

/// What the file says, and what discovery found.
pub struct Halves {
    written: Arc<Plan>,
    found: Arc<Discovered>,
    /// Where the second half comes from, when the first wants one.
    discovery: Option<Discovery>,
    /// What was found and is not used, as told last.
    unused: BTreeSet<Unused>,
}

/// The certificate of one listener, and who must know when it changes.
pub struct Certificates {
    pub listener: Arc<str>,
    pub files: TlsFiles,
    pub config_tx: watch::Sender<Arc<ServerConfig>>,
}

impl Halves {
    /// What that file says; waits for the other half if it wants one.
    ///
    /// # Errors
    /// When discovery is wanted and finds out nothing.
    pub async fn of(written: Plan, metrics: &Metrics) -> Result<Self, NoTable> {
        let mut discovery = written
            .discovery
            .as_ref()
            .map(|wanted| follow(wanted, metrics));
        let mut found = Arc::default();
        if let Some(discovery) = &mut discovery {
            discovery.first().await?;
            found = discovery.table();
        }
        Ok(Self {
            written: Arc::new(written),
            found,
            discovery,
            unused: BTreeSet::new(),
        })
    }

    /// Both in one. A warning for each session found that is not used, when that is new.
    pub async fn joined(&mut self, metrics: &Arc<Metrics>) -> Arc<Plan> {
        if self.found.is_empty() {
            self.unused.clear();
            return self.written.clone();
        }
        let (written, found) = (self.written.clone(), self.found.clone());
        let metrics = metrics.clone();
        // As for a file: health checks run on this thread.
        let joining =
            tokio::task::spawn_blocking(move || written.with_discovered(&found, &metrics));
        let (plan, unused) = joining.await.expect("two plans can always be joined");
        let unused = BTreeSet::from_iter(unused);
        for Unused { session, why } in unused.difference(&self.unused) {
            warn!(%session, %why, "a session that was found is not used");
        }
        self.unused = unused;
        Arc::new(plan)
    }

    /// Another first half. What was found with other labels says nothing any more.
    fn rewrite(&mut self, written: Plan, metrics: &Metrics) {
        if written.discovery != self.written.discovery {
            self.found = Arc::default();
            self.discovery = written
                .discovery
                .as_ref()
                .map(|wanted| follow(wanted, metrics));
        }
        self.written = Arc::new(written);
    }

    /// Waits until something else was found.
    async fn finds(&mut self) {
        match &mut self.discovery {
            Some(discovery) => {
                discovery.changed().await;
                self.found = discovery.table();
            }
            None => std::future::pending().await,
        }
    }
}

fn follow(wanted: &plan::Discovery, metrics: &Metrics) -> Discovery {
    let plan::Discovery { namespace, app } = wanted;
    Discovery::start(Access::default(), namespace, app, metrics.begin_discovery())
}

impl Reloader {
    /// Follows the files and the cluster for as long as the process lives. Every SIGHUP reads the files
    /// again, changed or not.
    pub async fn run(mut self, mut hangups: Signal) {
        let mut look = tokio::time::interval(LOOK);
        loop {
            let is_forced = tokio::select! {
                () = self.halves.finds() => {
                    self.replace().await;
                    continue;
                }
                Some(()) = hangups.recv() => true,
                () = self.files.news() => false,
                _ = look.tick() => false,
            };
            if self.files.have_changed() || is_forced {
                self.reload().await;
            }
        }
    }

    async fn reload(&mut self) {
        let old = self.halves.written.clone();
        let (sources, metrics) = (self.sources.clone(), self.metrics.clone());
        // A large table takes a while, and health checks run on this thread.
        let compiling = tokio::task::spawn_blocking(move || {
            let file = sources.file()?;
            let plan = Plan::compile(&file, &metrics)?;
            let needs_restart = old.needs_restart_for(&plan);
            Ok::<_, Vec<Problem>>((plan.succeed(&old), needs_restart))
        });
        let problems = match compiling.await {
            Ok(Ok((plan, needs_restart))) => match self.renew_certificates() {
                Ok(()) => return self.apply(plan, needs_restart).await,
                Err(problems) => problems,
            },
            Ok(Err(problems)) => problems.iter().map(ToString::to_string).collect(),
            Err(panic) => vec![panic.to_string()],
        };
        for problem in &problems {
            warn!(%problem, "the new configuration is invalid; the old one stays");
        }
        self.metrics.reloads_failed.inc();
        self.report(ReloadResult::Failed, problems);
    }

    async fn apply(&mut self, written: Plan, needs_restart: bool) {
        const RESTART: &str = "listeners or admin have changed: restart to apply that";
        let mut notes = Vec::new();
        if needs_restart {
            warn!("{RESTART}");
            notes.push(RESTART.to_owned());
        }
        self.halves.rewrite(written, &self.metrics);
        let sessions = self.replace().await;
        info!(sessions, "configuration applied");
        succeeded(&self.metrics);
        self.metrics.reloads_succeeded.inc();
        self.report(ReloadResult::Ok, notes);
    }

    /// Puts the plan in force that both halves make now. Answers with how many sessions it has.
    async fn replace(&mut self) -> usize {
        let plan = self.halves.joined(&self.metrics).await;
        let sessions = plan.sessions.len();
        count(&self.metrics, &plan);
        self.plans_tx.send_replace(plan);
        sessions
    }

    fn renew_certificates(&self) -> Result<(), Vec<String>> {
        let renewed: Vec<_> = self
            .certificates
            .iter()
            .map(|certificates| {
                tls::server(&certificates.files)
                    .map_err(|error| format!("listener {}: {error}", certificates.listener))
            })
            .collect();
        let (good, bad): (Vec<_>, Vec<_>) = renewed.into_iter().partition(Result::is_ok);
        if !bad.is_empty() {
            return Err(bad.into_iter().filter_map(Result::err).collect());
        }
        for (certificates, config) in self.certificates.iter().zip(good.into_iter().flatten()) {
            certificates.config_tx.send_replace(config);
        }
        Ok(())
    }

    fn report(&self, result: ReloadResult, problems: Vec<String>) {
        self.reports_tx.send_replace(Reload {
            result,
            at: SystemTime::now(),
            problems,
        });
    }
}

/// A configuration is in force from now on.
pub fn succeeded(metrics: &Metrics) {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    metrics
        .last_reload_success
        .set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
}

/// Counts the sessions of a plan that is in force from now on.
pub fn count(metrics: &Metrics, plan: &Plan) {
    let sessions = i64::try_from(plan.sessions.len()).unwrap_or(i64::MAX);
    metrics.sessions.set(sessions);
}

/// Files that are followed, and what they said when last looked at.
pub struct Files {
    /// Without a watcher the regular look still finds changes.
    watcher: Option<notify::RecommendedWatcher>,
    events_rx: mpsc::Receiver<()>,
    /// Something has happened; until then it must be quiet.
    quiet_at: Option<Instant>,
    contents: BTreeMap<PathBuf, Option<Vec<u8>>>,
}

impl Files {
    /// Follows nothing yet.
    pub fn new() -> Self {
        let (events_tx, events_rx) = mpsc::channel(1);
        let told = move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| is_news(event.kind)) {
                // A full channel holds the news already.
                let _ = events_tx.try_send(());
            }
        };
        let watcher = notify::recommended_watcher(told)
            .map_err(|error| warn!(%error, "files cannot be watched; looking every 10 s instead"))
            .ok();
        Self {
            watcher,
            events_rx,
            quiet_at: None,
            contents: BTreeMap::new(),
        }
    }

    /// Follows a file from now on. To be told before the file is read, or a change between the two
    /// would be missed.
    pub fn follow(&mut self, file: &Path) {
        let target = file.canonicalize().ok();
        for file in [Some(file), target.as_deref()].into_iter().flatten() {
            let folder = match file.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder,
                _ => Path::new("."),
            };
            let watched = self
                .watcher
                .as_mut()
                .map(|watcher| watcher.watch(folder, RecursiveMode::NonRecursive));
            if let Some(Err(error)) = watched {
                warn!(folder = %folder.display(), %error, "cannot be watched; looking every 10 s instead");
            }
        }
        self.contents
            .insert(file.to_owned(), std::fs::read(file).ok());
    }

    /// Waits until something has happened to the files, and then until it is quiet. Who stops waiting
    /// in between and comes back misses nothing.
    async fn news(&mut self) {
        let quiet_at = match self.quiet_at {
            Some(at) => at,
            None => {
                // The watcher, if there is one, holds the sending end for as long as we live.
                if self.events_rx.recv().await.is_none() {
                    return std::future::pending().await;
                }
                *self.quiet_at.insert(Instant::now() + QUIET)
            }
        };
        tokio::time::sleep_until(quiet_at).await;
        while self.events_rx.try_recv().is_ok() {}
        self.quiet_at = None;
    }

    /// Whether a file says something else than when last asked.
    fn have_changed(&mut self) -> bool {
        let mut is_changed = false;
        for (file, known) in &mut self.contents {
            let now = std::fs::read(file).ok();
            is_changed |= now != *known;
            *known = now;
        }
        is_changed
    }
}

impl Default for Files {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether a file may be complete now. A write in place is several events, and what it leaves in
/// between may be half a table: only its end counts.
fn is_news(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        EventKind::Modify(change) => !matches!(change, ModifyKind::Data(_)),
        _ => true,
    }
}
