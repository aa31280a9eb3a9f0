//! Builds the parts, runs them, ends them: the only file that knows all.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::admin::{self, Readiness, Reload, ReloadResult, Status};
use crate::cli::{COMMIT, Sources, VERSION};
use crate::config::Problem;
use crate::discovery::NoTable;
use crate::drain::Drain;
use crate::exchange::Identity;
use crate::listener::{self, Listening};
use crate::metrics::Metrics;
use crate::plan::{Listener, ListenerKind, Plan};
use crate::record::{AccessFormat, Journal};
use crate::reload::{self, Certificates, Files, Halves, Reloader};
use crate::signals::Signals;
use crate::tls;
use crate::worker::{Setup, Worker};

/// What the command line says beside the configuration.
#[derive(Debug)]
pub struct Options {
    pub sources: Sources,
    /// `None`: as many as this process may use CPUs.
    pub workers: Option<usize>,
    pub access: AccessFormat,
    pub target: Option<String>,
}

/// Why the proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the configuration is invalid")]
    Configuration(Vec<Problem>),
    #[error("cannot listen on {address}: {error}{}", advice(error))]
    Bind {
        address: SocketAddr,
        error: io::Error,
    },
    #[error(transparent)]
    Discovery(#[from] NoTable),
    #[error("listener {listener}: {error}")]
    Tls { listener: Arc<str>, error: String },
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another program is using it: choose another port",
        io::ErrorKind::AddrNotAvailable => "; this host has no such address: try 0.0.0.0",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege: choose another",
        _ => "",
    }
}

/// How the proxy ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing was in flight any more, or the drain's time was over.
    Drained,
    /// A second signal came.
    Cut,
}

/// A proxy that accepts connections.
pub struct Server {
    /// What was really bound: port 0 has become a port.
    pub addresses: Vec<Bound>,
    pub admin: Option<SocketAddr>,
    drain: Drain,
    plans: watch::Receiver<Arc<Plan>>,
    readiness_tx: watch::Sender<Readiness>,
    journal: Arc<Journal>,
}

/// A listener and its real address.
#[derive(Debug, Clone)]
pub struct Bound {
    pub name: Arc<str>,
    pub address: SocketAddr,
    pub protocol: &'static str,
}

impl Server {
    /// Binds everything, then serves. Must be called on the runtime that will run the admin port.
    ///
    /// With discovery the table comes first, and takes its time: under mirrord a bound port takes
    /// requests from the app at once, and without their sessions they would go to the wrong one.
    ///
    /// # Errors
    /// Nothing is served when one part cannot start.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let metrics = Metrics::new(VERSION, COMMIT);
        let mut files = Files::new();
        if let Some(path) = options.sources.path() {
            files.follow(&path);
        }
        let file = options.sources.file().map_err(StartError::Configuration)?;
        let plan = Plan::compile(&file, &metrics).map_err(StartError::Configuration)?;
        drop(file);
        raise_file_limit();
        let mut halves = Halves::of(plan, &metrics).await?;
        let plan = halves.joined(&metrics).await;

        let (ports, addresses) = bind(&plan.listeners, &metrics)?;
        let admin_socket = plan.admin.map(bind_one).transpose()?;
        let admin = admin_socket
            .as_ref()
            .map(std::net::TcpListener::local_addr)
            .transpose()?;

        let (certificates_tx, certificates) = certificates(&plan.listeners, &mut files)?;
        reload::succeeded(&metrics);
        reload::count(&metrics, &plan);
        let journal = Journal::new(metrics.clone(), options.access);
        let drain = Drain::new();
        let (plans_tx, plans) = watch::channel(plan);
        let setup = Setup {
            plans: plans.clone(),
            certificates,
            listeners: ports.iter().map(|port| port.metrics.clone()).collect(),
            journal: journal.clone(),
            draining: drain.draining(),
            identity: Arc::new(Identity::new(options.target)),
        };
        let workers = (0..options.workers.unwrap_or_else(cpus))
            .map(|index| Worker::start(index, setup.clone()))
            .collect::<io::Result<_>>()?;
        listener::start(ports, workers, &plans)?;

        let (readiness_tx, readiness) = watch::channel(Readiness::Ready);
        let first = Reload {
            result: ReloadResult::Ok,
            at: SystemTime::now(),
            problems: Vec::new(),
        };
        let (reports_tx, last_reload) = watch::channel(first);
        if let Some(socket) = admin_socket {
            let status = Status {
                plan: plans.clone(),
                journal: journal.clone(),
                readiness,
                last_reload,
            };
            serve_admin(socket, status)?;
        }
        let reloader = Reloader {
            sources: options.sources,
            metrics,
            halves,
            plans_tx,
            reports_tx,
            certificates: certificates_tx,
            files,
        };
        tokio::spawn(reloader.run(signal(SignalKind::hangup())?));
        Ok(Self {
            addresses,
            admin,
            drain,
            plans,
            readiness_tx,
            journal,
        })
    }

    /// Serves until a signal says to end, then until nothing is in flight.
    pub async fn run(self, mut signals: Signals) -> Ending {
        let name = signals.next().await;
        let limit = self.plans.borrow().timeouts.drain;
        info!(
            signal = name,
            in_flight = self.drain.in_flight(),
            ?limit,
            "draining"
        );
        self.readiness_tx.send_replace(Readiness::Draining);
        self.drain.start();
        let ending = tokio::select! {
            () = self.settled() => Ending::Drained,
            () = tokio::time::sleep(limit) => {
                warn!(in_flight = self.drain.in_flight(), "the time to drain is over");
                Ending::Drained
            }
            name = signals.next() => {
                warn!(signal = name, in_flight = self.drain.in_flight(), "ending at once");
                Ending::Cut
            }
        };
        self.journal.flush();
        ending
    }

    /// Waits until nothing is in flight, and nothing that was on its way when we looked.
    async fn settled(&self) {
        /// Long enough for a connection in the backlog to become a request.
        const ARRIVALS: Duration = Duration::from_millis(50);
        loop {
            tokio::time::sleep(ARRIVALS).await;
            if self.drain.in_flight() == 0 {
                return;
            }
            self.drain.landed().await;
        }
    }
}

fn serve_admin(socket: std::net::TcpListener, status: Status) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let socket = tokio::net::TcpListener::from_std(socket)?;
    tokio::spawn(admin::serve(socket, Arc::new(status)));
    Ok(())
}

fn bind_one(address: SocketAddr) -> Result<std::net::TcpListener, StartError> {
    listener::bind(address).map_err(|error| StartError::Bind { address, error })
}

/// Binds every listener's port.
fn bind(
    listeners: &[Listener],
    metrics: &Arc<Metrics>,
) -> Result<(Vec<Listening>, Vec<Bound>), StartError> {
    let mut ports = Vec::new();
    let mut addresses = Vec::new();
    for (index, listener) in listeners.iter().enumerate() {
        let socket = bind_one(listener.address)?;
        addresses.push(Bound {
            name: listener.name.clone(),
            address: socket.local_addr()?,
            protocol: listener.kind.protocol(),
        });
        ports.push(Listening {
            index,
            socket,
            metrics: metrics.listener(&listener.name),
        });
    }
    Ok((ports, addresses))
}

type Configs = Vec<Option<watch::Receiver<Arc<ServerConfig>>>>;

/// The TLS settings of each https listener, and the ends to renew them by.
fn certificates(
    listeners: &[Listener],
    followed: &mut Files,
) -> Result<(Vec<Certificates>, Configs), StartError> {
    let mut senders = Vec::new();
    let mut receivers = Vec::new();
    for Listener { name, kind, .. } in listeners {
        let ListenerKind::Https(_, files) = kind else {
            receivers.push(None);
            continue;
        };
        followed.follow(&files.certificate);
        followed.follow(&files.private_key);
        let config = tls::server(files).map_err(|error| StartError::Tls {
            listener: name.clone(),
            error,
        })?;
        let (config_tx, config_rx) = watch::channel(config);
        senders.push(Certificates {
            listener: name.clone(),
            files: files.clone(),
            config_tx,
        });
        receivers.push(Some(config_rx));
    }
    Ok((senders, receivers))
}

/// Cgroup quota and affinity count.
fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Ten thousand connections need ten thousand files, and many shells allow a tenth of that.
fn raise_file_limit() {
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        warn!(%error, "the limit of open files stays as it is");
    }
}
