//! One socket per port: accept, back off, hand over.
//!
//! Under mirrord an address cannot be bound twice, so there is one acceptor for each port, whatever
//! the number of workers. It never stops accepting: not at the limit of connections, where it hands
//! over connections that only get an answer, and not in a drain.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::watch;
use tracing::warn;

use crate::metrics::ListenerMetrics;
use crate::plan::Plan;
use crate::worker::{Accepted, Place, Worker};

/// Connections the kernel holds for us while we are busy; it lowers this to its own limit.
const BACKLOG: i32 = 4096;

/// How long to wait when the system has no more of something, file descriptors mostly.
const BACK_OFF: Duration = Duration::from_millis(50);

/// A bound port.
pub struct Listening {
    /// Index of the listener in the plan.
    pub index: usize,
    pub socket: TcpListener,
    pub metrics: Arc<ListenerMetrics>,
}

/// Binds and listens. One `bind` per address: under mirrord a second one would be refused.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restart must not wait for the connections of the last run to be forgotten.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Starts to accept on all ports, each on a thread of its own that ends with the process.
pub fn start(
    ports: Vec<Listening>,
    workers: Vec<Worker>,
    plans: &watch::Receiver<Arc<Plan>>,
) -> io::Result<()> {
    let workers: Arc<[Worker]> = workers.into();
    let connections = Arc::default();
    for port in ports {
        let acceptor = Acceptor {
            workers: Arc::clone(&workers),
            plans: plans.clone(),
            connections: Arc::clone(&connections),
            turn: AtomicUsize::new(0),
        };
        let name = format!("accept-{}", port.index);
        std::thread::Builder::new()
            .name(name)
            .spawn(move || acceptor.accept(&port))?;
    }
    Ok(())
}

struct Acceptor {
    workers: Arc<[Worker]>,
    plans: watch::Receiver<Arc<Plan>>,
    /// Client connections of the process.
    connections: Arc<AtomicUsize>,
    turn: AtomicUsize,
}

impl Acceptor {
    /// Accepts for ever. The socket blocks: a thread that does nothing else needs no event loop,
    /// and a connection is registered once, by the worker that serves it.
    fn accept(&self, port: &Listening) {
        let Listening {
            index,
            socket,
            metrics,
        } = port;
        loop {
            match socket.accept() {
                Ok((stream, address)) => self.hand_over(stream, address, *index, metrics),
                // The client gave up between its SYN and our accept.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    warn!(listener = %metrics.name, %error, "cannot accept for now");
                    std::thread::sleep(BACK_OFF);
                }
            }
        }
    }

    fn hand_over(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        listener: usize,
        metrics: &ListenerMetrics,
    ) {
        // Both fail only on a connection that is over already.
        let _ = stream.set_nonblocking(true);
        let _ = stream.set_nodelay(true);
        let limit = self.plans.borrow().limits.connections;
        let is_one_too_many = self.connections.load(Ordering::Acquire) >= limit;
        let worker = self.least_busy();
        let place = Place::take(&self.connections, worker, metrics);
        worker.send(Accepted {
            stream,
            address,
            listener,
            is_one_too_many,
            place,
        });
    }

    /// The worker with the fewest connections; in turn among equals.
    fn least_busy(&self) -> &Worker {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        (0..self.workers.len())
            .map(|place| &self.workers[(turn + place) % self.workers.len()])
            .min_by_key(|worker| worker.connections.load(Ordering::Acquire))
            .expect("there is at least one worker")
    }
}
