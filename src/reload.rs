//! File change or SIGHUP: a new plan, or the old one and a report.
//!
//! Folders are watched, not files: a mounted ConfigMap changes by a symlink swapped in its folder,
//! and editors replace a file by renaming another over it. What counts in the end is what the file
//! says, so an event only means that it is worth a look.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecursiveMode, Watcher};
use rustls::ServerConfig;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::admin::{Reload, ReloadResult};
use crate::cli::Sources;
use crate::config::Problem;
use crate::metrics::Metrics;
use crate::plan::Plan;
use crate::tls::{self, TlsFiles};

/// How long a folder must be quiet before it is looked at: whoever writes a file in place does so
/// in several steps.
const QUIET: Duration = Duration::from_millis(20);

/// How often files are looked at without an event: not every file system sends them.
const LOOK: Duration = Duration::from_secs(10);

/// Keeps the plan true to the file, and certificates to theirs.
pub struct Reloader {
    pub sources: Sources,
    pub metrics: Arc<Metrics>,
    pub plans_tx: watch::Sender<Arc<Plan>>,
    pub reports_tx: watch::Sender<Reload>,
    /// One for each https listener.
    pub certificates: Vec<Certificates>,
    pub files: Files,
}

/// The certificate of one listener, and who must know when it changes.
pub struct Certificates {
    pub listener: Arc<str>,
    pub files: TlsFiles,
    pub config_tx: watch::Sender<Arc<ServerConfig>>,
}

impl Reloader {
    /// Follows the files for as long as the process lives. Every SIGHUP reads them again, changed
    /// or not.
    pub async fn run(mut self, mut hangups: Signal) {
        let mut look = tokio::time::interval(LOOK);
        loop {
            let is_forced = tokio::select! {
                Some(()) = hangups.recv() => true,
                () = self.files.news() => false,
                _ = look.tick() => false,
            };
            if self.files.have_changed() || is_forced {
                self.reload().await;
            }
        }
    }

    async fn reload(&self) {
        let old = self.plans_tx.borrow().clone();
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
                Ok(()) => return self.replace(plan, needs_restart),
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

    fn replace(&self, plan: Plan, needs_restart: bool) {
        const RESTART: &str = "listeners or admin have changed: restart to apply that";
        let mut notes = Vec::new();
        if needs_restart {
            warn!("{RESTART}");
            notes.push(RESTART.to_owned());
        }
        info!(sessions = plan.sessions.len(), "configuration applied");
        succeeded(&self.metrics, plan.sessions.len());
        self.metrics.reloads_succeeded.inc();
        self.plans_tx.send_replace(Arc::new(plan));
        self.report(ReloadResult::Ok, notes);
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

/// Counts a plan that is in force from now on.
pub fn succeeded(metrics: &Metrics, sessions: usize) {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    metrics
        .last_reload_success
        .set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    metrics
        .sessions
        .set(i64::try_from(sessions).unwrap_or(i64::MAX));
}

/// Files that are followed, and what they said when last looked at.
pub struct Files {
    /// Without a watcher the regular look still finds changes.
    watcher: Option<notify::RecommendedWatcher>,
    events_rx: mpsc::Receiver<()>,
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

    /// Waits until something has happened to the files, and then until it is quiet.
    async fn news(&mut self) {
        // The watcher, if there is one, holds the sending end for as long as we live.
        if self.events_rx.recv().await.is_none() {
            return std::future::pending().await;
        }
        tokio::time::sleep(QUIET).await;
        while self.events_rx.try_recv().is_ok() {}
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
