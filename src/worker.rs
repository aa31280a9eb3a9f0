//! One thread, one runtime: receives sockets, owns what its requests stand on.
//!
//! Workers share nothing that a request writes to but counters. What the others must know reaches
//! a worker through channels: sockets, plans, certificates, the drain.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prometheus::IntGauge;
use rustls::ServerConfig;
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;
use tracing::warn;

use crate::connection::{self, Arrival};
use crate::deadline::Deadlines;
use crate::drain::Draining;
use crate::exchange::{Ground, Identity};
use crate::metrics::ListenerMetrics;
use crate::outbox::Outbox;
use crate::plan::{ListenerKind, Plan};
use crate::pool::Pools;
use crate::record::{Journal, Ledger};

/// How often idle upstream connections are looked through, at the least and at the most.
const SWEEP: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// What every worker is made from.
#[derive(Clone)]
pub struct Setup {
    pub plans: watch::Receiver<Arc<Plan>>,
    /// By listener; `None` for those without TLS.
    pub certificates: Vec<Option<watch::Receiver<Arc<ServerConfig>>>>,
    /// By listener.
    pub listeners: Vec<Arc<ListenerMetrics>>,
    pub journal: Arc<Journal>,
    pub draining: Draining,
    pub identity: Arc<Identity>,
}

/// A socket on its way to a worker.
pub struct Accepted {
    pub stream: TcpStream,
    pub address: SocketAddr,
    /// Index of the listener in the plan.
    pub listener: usize,
    pub is_one_too_many: bool,
    pub place: Place,
}

/// One connection among all of the process and of its worker, until it is dropped.
pub struct Place {
    connections: Arc<AtomicUsize>,
    of_worker: Arc<AtomicUsize>,
    gauge: IntGauge,
}

/// The acceptor's end of a worker.
pub struct Worker {
    sockets_tx: mpsc::UnboundedSender<Accepted>,
    /// Connections it serves.
    pub connections: Arc<AtomicUsize>,
}

impl Worker {
    /// Starts a worker's thread. It ends with the process.
    pub fn start(index: usize, setup: Setup) -> io::Result<Self> {
        let (sockets_tx, sockets_rx) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                LocalSet::new().block_on(&runtime, serve(setup, sockets_rx));
            })?;
        Ok(Self {
            sockets_tx,
            connections: Arc::default(),
        })
    }

    /// Hands a socket over.
    pub fn send(&self, accepted: Accepted) {
        // A worker ends with the process only; then nobody waits for the socket either.
        let _ = self.sockets_tx.send(accepted);
    }
}

impl Place {
    /// Takes one more place, of `connections` in the process and on the worker.
    pub fn take(
        connections: &Arc<AtomicUsize>,
        worker: &Worker,
        listener: &ListenerMetrics,
    ) -> Self {
        connections.fetch_add(1, Ordering::AcqRel);
        worker.connections.fetch_add(1, Ordering::AcqRel);
        listener.connections.inc();
        listener.connections_total.inc();
        Self {
            connections: connections.clone(),
            of_worker: worker.connections.clone(),
            gauge: listener.connections.clone(),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::AcqRel);
        self.of_worker.fetch_sub(1, Ordering::AcqRel);
        self.gauge.dec();
    }
}

async fn serve(setup: Setup, mut sockets_rx: mpsc::UnboundedReceiver<Accepted>) {
    let plan = setup.plans.borrow().clone();
    let listeners = plan.listeners.clone();
    let outbox = Outbox::new(setup.draining.clone());
    let ground = Rc::new(Ground {
        plan: RefCell::new(Rc::new(plan)),
        pools: Pools::new(&outbox),
        outbox: outbox.clone(),
        deadlines: Rc::new(Deadlines::default()),
        draining: setup.draining.clone(),
        is_draining: Cell::new(false),
        identity: setup.identity.clone(),
    });
    let ledgers: Vec<_> = setup
        .listeners
        .iter()
        .map(|listener| Ledger::new(&setup.journal, listener))
        .collect();
    tokio::task::spawn_local(ground.deadlines.clone().run());
    tokio::task::spawn_local(outbox.run());
    tokio::task::spawn_local(sweep(ground.clone()));
    tokio::task::spawn_local(follow_plans(ground.clone(), setup.plans));
    tokio::task::spawn_local(follow_drain(ground.clone(), setup.draining));

    while let Some(accepted) = sockets_rx.recv().await {
        let Accepted {
            stream,
            address,
            listener,
            is_one_too_many,
            place,
        } = accepted;
        let stream = match tokio::net::TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => {
                warn!(%error, "a socket could not be registered and is dropped");
                continue;
            }
        };
        let arrival = Arrival {
            stream,
            address,
            is_one_too_many,
        };
        let ground = ground.clone();
        let ledger = ledgers[listener].clone();
        let listeners = listeners.clone();
        let certificates = setup.certificates[listener].clone();
        tokio::task::spawn_local(async move {
            match (&listeners[listener].kind, certificates) {
                (ListenerKind::Http(http), _) => {
                    connection::http(ground, http.clone(), ledger, arrival).await;
                }
                (ListenerKind::Https(http, _), Some(certificates)) => {
                    let config = certificates.borrow().clone();
                    let serving = connection::https(ground, http.clone(), ledger, arrival, config);
                    // Boxed: every task has room for the largest of its kinds.
                    Box::pin(serving).await;
                }
                (ListenerKind::Https(..), None) => {
                    unreachable!("the server makes certificates for every https listener")
                }
                (ListenerKind::Tcp(targets), _) => {
                    Box::pin(connection::tcp(ground, arrival, targets)).await;
                }
            }
            drop(place);
        });
    }
}

async fn sweep(ground: Rc<Ground>) {
    loop {
        let idle = ground.plan.borrow().timeouts.pool_idle;
        tokio::time::sleep((idle / 4).clamp(SWEEP.0, SWEEP.1)).await;
        ground.pools.sweep(idle);
    }
}

/// Puts every new plan in place between two requests.
async fn follow_plans(ground: Rc<Ground>, mut plans: watch::Receiver<Arc<Plan>>) {
    while plans.changed().await.is_ok() {
        let plan = plans.borrow_and_update().clone();
        ground.pools.retain(|endpoint| plan.has_endpoint(endpoint));
        ground.plan.replace(Rc::new(plan));
    }
}

async fn follow_drain(ground: Rc<Ground>, mut draining: Draining) {
    draining.started().await;
    ground.is_draining.set(true);
    // Connections that sit still look at the flag when woken; the others come by anyway.
    ground.deadlines.wake_all();
}
