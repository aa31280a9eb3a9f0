//! A named destination: its endpoints, and how to dial one.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::metrics::Route;

/// What a route leads to: one session's PR pods, or the baseline.
#[derive(Debug)]
pub struct Upstream {
    /// The session as the file names it (`pr-42`, `pr-9*`, `~REGEX`) or `baseline`.
    pub name: Arc<str>,
    /// May be empty: a session whose pod is not there yet.
    pub endpoints: Vec<Arc<Endpoint>>,
    pub protocol: Protocol,
    pub source: Source,
    /// Where this upstream's requests are counted.
    pub route: Arc<Route>,
}

/// Who says that an upstream exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The file, or a flag.
    Configuration,
    /// The cluster: its endpoints are pods.
    Discovery,
}

/// What the cluster says: sessions, each with the pods that serve it, which may be none at the moment. The
/// names are not judged yet.
pub type Discovered = BTreeMap<Arc<str>, Vec<Arc<Endpoint>>>;

/// One address as the table names it, and what is known of it. Shared by all workers, and by all
/// plans that name it the same way.
#[derive(Debug)]
pub struct Endpoint {
    /// Never given twice: what pools are found by.
    pub id: u64,
    pub host: Host,
    /// A session's endpoint may leave the port to the listener.
    pub port: Option<u16>,
    /// The name of the pod, when discovery found it. Such an endpoint is that pod: another pod with
    /// the same address is another endpoint.
    pub pod: Option<Arc<str>>,
    pub health: Health,
    pub gate: Gate,
}

/// An IP literal, or a name that is resolved at every dial.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    Ip(IpAddr),
    Name(Arc<str>),
}

impl From<IpAddr> for Host {
    fn from(ip: IpAddr) -> Self {
        Self::Ip(ip)
    }
}

/// What is spoken to the endpoints.
#[derive(Debug, Clone)]
pub enum Protocol {
    /// The HTTP version the request came with.
    Auto,
    H1,
    /// HTTP/2 without TLS, by prior knowledge.
    H2c,
    /// TLS; ALPN picks h1 or h2.
    Tls(Arc<TlsUpstream>),
}

/// How to prove a TLS upstream's identity.
#[derive(Debug)]
pub struct TlsUpstream {
    pub config: Arc<ClientConfig>,
    /// The authorities trusted; empty for those of the system.
    pub trust: Arc<[CertificateDer<'static>]>,
    /// The name to verify and send as SNI; without one, the endpoint's host.
    pub server_name: Option<ServerName<'static>>,
}

/// A connection just made, and what is spoken on it.
pub enum Dialled {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Why no connection could be made. Nothing was sent that an app could have acted on.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("{host} has no address: {error}")]
    Resolve { host: Arc<str>, error: io::Error },
    #[error("{0} is an address no request may be sent to")]
    Forbidden(IpAddr),
    #[error("{0}")]
    Connect(io::Error),
    #[error("tls: {0}")]
    Tls(io::Error),
}

impl DialError {
    /// Whether not the endpoint is to blame, but our own limit of open files.
    pub fn is_out_of_files(&self) -> bool {
        /// `EMFILE` of this process, `ENFILE` of the system.
        const OUT_OF_FILES: [i32; 2] = [24, 23];
        let Self::Connect(error) = self else {
            return false;
        };
        error
            .raw_os_error()
            .is_some_and(|code| OUT_OF_FILES.contains(&code))
    }
}

impl Endpoint {
    pub fn new(host: Host, port: Option<u16>) -> Arc<Self> {
        Arc::new(Self::unshared(host, port, None))
    }

    /// The address of a pod, on the port of the listener that asks.
    pub fn of_pod(name: &str, ip: IpAddr) -> Arc<Self> {
        Arc::new(Self::unshared(ip.into(), None, Some(Arc::from(name))))
    }

    fn unshared(host: Host, port: Option<u16>, pod: Option<Arc<str>>) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(0);
        Self {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            host,
            port,
            pod,
            health: Health::default(),
            gate: Gate::default(),
        }
    }

    /// Connects, with Nagle's algorithm off. `port` is for an endpoint that names none; `only_h1`
    /// keeps ALPN from picking h2. No deadline of its own.
    ///
    /// # Errors
    /// The last address's failure when a name has several.
    pub async fn dial(
        &self,
        port: u16,
        protocol: &Protocol,
        only_h1: bool,
    ) -> Result<Dialled, DialError> {
        let tcp = self.connect(self.port.unwrap_or(port)).await?;
        let Protocol::Tls(tls) = protocol else {
            return Ok(Dialled::Plain(tcp));
        };
        let name = match &tls.server_name {
            Some(name) => name.clone(),
            None => self.host.server_name()?,
        };
        let connector = TlsConnector::from(tls.config.clone());
        let connecting = if only_h1 {
            connector
                .with_alpn(vec![b"http/1.1".to_vec()])
                .connect(name, tcp)
        } else {
            connector.connect(name, tcp)
        };
        let stream = connecting.await.map_err(DialError::Tls)?;
        Ok(Dialled::Tls(Box::new(stream)))
    }

    async fn connect(&self, port: u16) -> Result<TcpStream, DialError> {
        let name = match &self.host {
            Host::Ip(ip) => return connect(SocketAddr::new(*ip, port)).await,
            Host::Name(name) => name,
        };
        let resolve = |error| DialError::Resolve {
            host: name.clone(),
            error,
        };
        let addresses = tokio::net::lookup_host((&**name, port))
            .await
            .map_err(resolve)?;
        let mut failure = resolve(io::ErrorKind::NotFound.into());
        for address in addresses {
            match connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream, DialError> {
    // A name may resolve to what a literal could not have said.
    if is_forbidden(address.ip()) {
        return Err(DialError::Forbidden(address.ip()));
    }
    let stream = TcpStream::connect(address)
        .await
        .map_err(DialError::Connect)?;
    stream.set_nodelay(true).map_err(DialError::Connect)?;
    Ok(stream)
}

/// Link-local (cloud metadata lives there), multicast and unspecified addresses are never
/// destinations.
pub fn is_forbidden(ip: IpAddr) -> bool {
    let v4 = |ip: Ipv4Addr| {
        ip.is_link_local() || ip.is_multicast() || ip.is_unspecified() || ip.is_broadcast()
    };
    let v6 = |ip: Ipv6Addr| ip.is_unicast_link_local() || ip.is_multicast() || ip.is_unspecified();
    match ip {
        IpAddr::V4(ip) => v4(ip),
        IpAddr::V6(ip) => v6(ip) || embedded(ip).is_some_and(v4),
    }
}

/// The IPv4 address inside an IPv4-mapped, IPv4-compatible (RFC 4291, section 2.5.5) or NAT64 (RFC
/// 6052, section 2.1) address.
fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    match ip.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)))
        }
        _ => None,
    }
}

impl Host {
    fn server_name(&self) -> Result<ServerName<'static>, DialError> {
        match self {
            Self::Ip(ip) => Ok(ServerName::from(*ip)),
            Self::Name(name) => ServerName::try_from(name.to_string()).map_err(|error| {
                DialError::Tls(io::Error::new(io::ErrorKind::InvalidInput, error))
            }),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.port) {
            (Host::Ip(IpAddr::V6(ip)), Some(port)) => write!(f, "[{ip}]:{port}"),
            (Host::Ip(ip), Some(port)) => write!(f, "{ip}:{port}"),
            (Host::Ip(ip), None) => write!(f, "{ip}"),
            (Host::Name(name), Some(port)) => write!(f, "{name}:{port}"),
            (Host::Name(name), None) => write!(f, "{name}"),
        }
    }
}

/// Connections that failed in a row, and until when to look elsewhere first.
#[derive(Debug, Default)]
pub struct Health {
    failures: AtomicU32,
    /// Milliseconds since [`epoch`].
    avoided_until: AtomicU64,
}

impl Health {
    /// After the first failure; doubled by each further one.
    const FIRST: Duration = Duration::from_millis(250);
    const LONGEST: Duration = Duration::from_secs(10);

    /// False while the endpoint is being avoided.
    pub fn is_good(&self) -> bool {
        let until = self.avoided_until.load(Ordering::Relaxed);
        until == 0 || until <= since_epoch()
    }

    /// A connection could not be made.
    ///
    /// Those that were tried at the same time fail together, and count as one.
    pub fn failed(&self) {
        if !self.is_good() {
            return;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).min(16);
        let avoided = Self::FIRST.saturating_mul(1 << failures).min(Self::LONGEST);
        let until = since_epoch() + u64::try_from(avoided.as_millis()).unwrap_or(u64::MAX);
        self.avoided_until.store(until, Ordering::Relaxed);
    }

    /// A connection was made.
    pub fn recovered(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.avoided_until.store(0, Ordering::Relaxed);
        }
    }
}

fn since_epoch() -> u64 {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    let elapsed = EPOCH.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// Lets so many requests through at once, and so many wait, first come first served; across all
/// workers.
#[derive(Debug, Default)]
pub struct Gate {
    /// How many there are, and which are free. The first request tells how many.
    places: OnceLock<(AtomicUsize, Semaphore)>,
    /// Places that are gone, but still taken: whoever leaves one does not free it.
    condemned: AtomicUsize,
    waiting: AtomicUsize,
}

/// One request inside a [`Gate`].
#[derive(Debug)]
pub struct Pass {
    endpoint: Arc<Endpoint>,
}

/// Neither inside nor in the queue was a place.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

impl Endpoint {
    /// Requests being served by this endpoint.
    pub fn outstanding(&self) -> usize {
        let Some((limit, free)) = self.gate.places.get() else {
            return 0;
        };
        let condemned = self.gate.condemned.load(Ordering::Relaxed);
        (limit.load(Ordering::Relaxed) + condemned).saturating_sub(free.available_permits())
    }

    /// A place among `limit`, if one is free.
    pub fn try_enter(self: &Arc<Self>, limit: usize) -> Option<Pass> {
        self.gate.places(limit).try_acquire().ok()?.forget();
        Some(Pass {
            endpoint: self.clone(),
        })
    }

    /// Waits for a place among `limit`, unless `queue` others wait already.
    pub async fn enter(self: &Arc<Self>, limit: usize, queue: usize) -> Result<Pass, Full> {
        if let Some(pass) = self.try_enter(limit) {
            return Ok(pass);
        }
        let _place = QueuePlace::take(&self.gate, queue)?;
        let places = self.gate.places(limit);
        places
            .acquire()
            .await
            .expect("nobody closes the semaphore")
            .forget();
        Ok(Pass {
            endpoint: self.clone(),
        })
    }
}

impl Gate {
    /// The places, as many as the caller's plan wants. Just after a reload requests of two plans may
    /// take turns in that; the sum stays right.
    fn places(&self, limit: usize) -> &Semaphore {
        let (current, free) = self
            .places
            .get_or_init(|| (AtomicUsize::new(limit), Semaphore::new(limit)));
        let old = current.load(Ordering::Acquire);
        let is_ours = old != limit
            && current
                .compare_exchange(old, limit, Ordering::AcqRel, Ordering::Acquire)
                .is_ok();
        if is_ours && old < limit {
            for _ in old..limit {
                self.free_place(free);
            }
        } else if is_ours {
            let too_many = old - limit;
            let still_taken = too_many - free.forget_permits(too_many);
            self.condemned.fetch_add(still_taken, Ordering::AcqRel);
        }
        free
    }

    /// One place more, unless one too many is taken.
    fn free_place(&self, free: &Semaphore) {
        let one_less = |condemned: usize| condemned.checked_sub(1);
        let was_condemned =
            self.condemned
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less);
        if was_condemned.is_err() {
            free.add_permits(1);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let gate = &self.endpoint.gate;
        if let Some((_, free)) = gate.places.get() {
            gate.free_place(free);
        }
    }
}

/// A place in the queue, given back also when the client leaves while waiting.
struct QueuePlace<'g>(&'g Gate);

impl<'g> QueuePlace<'g> {
    fn take(gate: &'g Gate, queue: usize) -> Result<Self, Full> {
        let place = Self(gate);
        if gate.waiting.fetch_add(1, Ordering::AcqRel) < queue {
            Ok(place)
        } else {
            Err(Full)
        }
    }
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Arc<Endpoint> {
        let address: SocketAddr = text.parse().expect("the test names an address");
        Endpoint::new(Host::Ip(address.ip()), Some(address.port()))
    }

    #[test]
    fn metadata_and_group_addresses_are_forbidden() {
        for ip in [
            "169.254.169.254",
            "fe80::1",
            "224.0.0.1",
            "ff02::1",
            "0.0.0.0",
            "::",
            "::ffff:169.254.169.254",
            "255.255.255.255",
        ] {
            assert!(is_forbidden(ip.parse().expect("an address")), "{ip}");
        }
        for ip in [
            "10.0.0.1",
            "127.0.0.1",
            "::1",
            "192.168.0.1",
            "fd00::1",
            "8.8.8.8",
        ] {
            assert!(!is_forbidden(ip.parse().expect("an address")), "{ip}");
        }
    }

    #[test]
    fn a_failing_endpoint_is_avoided_until_it_recovers() {
        let health = Health::default();
        assert!(health.is_good());
        health.failed();
        assert!(!health.is_good());
        health.recovered();
        assert!(health.is_good());
    }

    #[tokio::test]
    async fn the_gate_lets_in_queues_and_refuses() {
        let endpoint = endpoint("10.0.0.1:80");
        let first = endpoint.enter(1, 1).await.expect("the first goes in");
        let waiting = tokio::spawn({
            let endpoint = endpoint.clone();
            async move { endpoint.enter(1, 1).await }
        });
        while endpoint.gate.waiting.load(Ordering::Acquire) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(endpoint.enter(1, 1).await.err(), Some(Full));
        drop(first);
        let second = waiting
            .await
            .expect("no panic")
            .expect("the queued one goes in");
        assert_eq!(endpoint.outstanding(), 1);
        drop(second);
        assert_eq!(endpoint.outstanding(), 0);
    }

    #[tokio::test]
    async fn another_limit_holds_from_the_next_request_on() {
        let endpoint = endpoint("10.0.0.1:80");
        let inside: Vec<_> = (0..3).map(|_| endpoint.try_enter(3)).collect();
        assert!(inside.iter().all(Option::is_some));
        assert!(endpoint.try_enter(1).is_none());
        assert_eq!(endpoint.outstanding(), 3);

        drop(inside);
        let first = endpoint.try_enter(1).expect("all three have left");
        assert!(endpoint.try_enter(1).is_none());

        let second = endpoint.try_enter(2).expect("there is one place more");
        assert!(endpoint.try_enter(2).is_none());
        drop((first, second));
        assert_eq!(endpoint.outstanding(), 0);
    }

    #[tokio::test]
    async fn leaving_the_queue_does_not_lose_a_wake_up() {
        let endpoint = endpoint("10.0.0.1:80");
        let inside = endpoint.enter(1, 2).await.expect("goes in");
        let spawn = || {
            let endpoint = endpoint.clone();
            tokio::spawn(async move { endpoint.enter(1, 2).await.map(drop) })
        };
        let (quitter, patient) = (spawn(), spawn());
        while endpoint.gate.waiting.load(Ordering::Acquire) < 2 {
            tokio::task::yield_now().await;
        }
        drop(inside);
        quitter.abort();
        let entered = patient.await.expect("no panic");
        assert_eq!(entered, Ok(()));
    }
}
