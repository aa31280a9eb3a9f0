//! An app behind the proxy: its own port, its own name, and an account of all that reached it.
//!
//! What it does with a connection is a script: `scripts` speaks HTTP/1 by hand, `h2_frames` HTTP/2
//! by hand, `site` is a well-behaved app on hyper.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use http::Version;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::digest::Digest;
use super::fields::Fields;
use super::wire::{Framing, Head, Wire};

/// A running upstream; its port and connections are closed when it is dropped.
pub struct Upstream {
    pub address: SocketAddr,
    pub account: Arc<Account>,
    task: JoinHandle<()>,
}

/// One request as it reached the app.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The number of the connection, from 0.
    pub connection: usize,
    pub method: String,
    /// The target of an HTTP/1 request, path and query of an HTTP/2 one.
    pub target: String,
    pub version: Version,
    /// `:authority` of an HTTP/2 request.
    pub authority: Option<String>,
    pub fields: Fields,
    pub body: Digest,
    pub trailers: Fields,
}

/// What an upstream has seen and done.
#[derive(Debug)]
pub struct Account {
    pub name: String,
    connections: AtomicUsize,
    open: AtomicUsize,
    requests: AtomicUsize,
    /// Requests whose client went away before their end.
    pub cancelled: AtomicUsize,
    /// Body bytes handed to the socket.
    pub sent: AtomicU64,
    /// Body bytes taken from the socket.
    pub taken: AtomicU64,
    seen: Mutex<Vec<Seen>>,
    ids: Mutex<HashMap<String, usize>>,
}

/// One accepted connection, served by hand.
pub struct Peer {
    pub wire: Wire<TcpStream>,
    /// From 0.
    pub number: usize,
    pub account: Arc<Account>,
}

type Served = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Upstream {
    /// Serves every connection with a script over its raw bytes. A script that returns closes it.
    pub async fn raw<F, Fut>(name: &str, script: F) -> Self
    where
        F: Fn(Peer) -> Fut + Send + 'static,
        Fut: Future<Output = io::Result<()>> + Send + 'static,
    {
        Self::accepting(name, move |stream, number, account| {
            let served = script(Peer {
                wire: Wire::new(stream),
                number,
                account,
            });
            Box::pin(async move {
                // A client that leaves early is what many tests want.
                let _ = served.await;
            })
        })
        .await
    }

    /// Hands every accepted connection to `serve`.
    pub async fn accepting<F>(name: &str, serve: F) -> Self
    where
        F: Fn(TcpStream, usize, Arc<Account>) -> Served + Send + 'static,
    {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::accepting_at(free, name, serve).await
    }

    /// The same at an address that the test chooses.
    pub async fn accepting_at<F>(address: SocketAddr, name: &str, serve: F) -> Self
    where
        F: Fn(TcpStream, usize, Arc<Account>) -> Served + Send + 'static,
    {
        let listener = TcpListener::bind(address)
            .await
            .unwrap_or_else(|error| panic!("{address} is free: {error}"));
        let address = listener
            .local_addr()
            .expect("a bound listener has an address");
        let account = Arc::new(Account::new(name));
        let task = tokio::spawn(accept(listener, account.clone(), serve));
        Self {
            address,
            account,
            task,
        }
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.account.connections.load(Ordering::SeqCst)
    }

    /// Connections still served.
    pub fn open(&self) -> usize {
        self.account.open.load(Ordering::SeqCst)
    }

    /// Request heads read so far.
    pub fn requests(&self) -> usize {
        self.account.requests.load(Ordering::SeqCst)
    }

    pub fn cancelled(&self) -> usize {
        self.account.cancelled.load(Ordering::SeqCst)
    }

    /// Requests read to their end, in that order.
    pub fn seen(&self) -> Vec<Seen> {
        self.account
            .seen
            .lock()
            .expect("no test panics with it")
            .clone()
    }

    /// The last request read to its end.
    pub fn last(&self) -> Seen {
        self.seen()
            .pop()
            .unwrap_or_else(|| panic!("nothing reached {}", self.account.name))
    }

    /// How often each `x-request-id` arrived: anything over 1 is a duplicate.
    pub fn ids(&self) -> HashMap<String, usize> {
        self.account
            .ids
            .lock()
            .expect("no test panics with it")
            .clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Account {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            connections: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            cancelled: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            seen: Mutex::new(Vec::new()),
            ids: Mutex::new(HashMap::new()),
        }
    }

    /// A request head was read.
    pub fn count(&self, fields: &Fields) {
        self.requests.fetch_add(1, Ordering::SeqCst);
        if let Some(id) = fields.first("x-request-id") {
            *self
                .ids
                .lock()
                .expect("no test panics with it")
                .entry(id)
                .or_default() += 1;
        }
    }

    /// A request was read to its end.
    pub fn record(&self, seen: Seen) {
        self.seen.lock().expect("no test panics with it").push(seen);
    }

    pub fn cancel(&self) {
        self.cancelled.fetch_add(1, Ordering::SeqCst);
    }
}

impl Peer {
    /// The next request head, counted.
    pub async fn head(&mut self) -> io::Result<Option<Head>> {
        let head = self.wire.head().await?;
        if let Some(head) = &head {
            self.account.count(&head.fields);
        }
        Ok(head)
    }

    /// The next request, read to its end and recorded.
    pub async fn request(&mut self) -> io::Result<Option<Seen>> {
        let Some(head) = self.head().await? else {
            return Ok(None);
        };
        self.finish(&head).await.map(Some)
    }

    /// Reads what follows a head, and records the request.
    pub async fn finish(&mut self, head: &Head) -> io::Result<Seen> {
        let mut body = Digest::new();
        let account = self.account.clone();
        let trailers = self
            .wire
            .each(head.request_framing(), |piece| {
                body.update(piece);
                account
                    .taken
                    .fetch_add(piece.len() as u64, Ordering::SeqCst);
            })
            .await?;
        let version = if head.word(2) == "HTTP/1.0" {
            Version::HTTP_10
        } else {
            Version::HTTP_11
        };
        let seen = Seen {
            connection: self.number,
            method: head.word(0).to_owned(),
            target: head.word(1).to_owned(),
            version,
            authority: None,
            fields: head.fields.clone(),
            body,
            trailers,
        };
        self.account.record(seen.clone());
        Ok(seen)
    }

    /// Answers 200 with this text and this upstream's name.
    pub async fn ok(&mut self, text: &str) -> io::Result<()> {
        let head = self.head_of_200(Framing::Length(text.len() as u64));
        self.wire.send(head + text).await
    }

    /// The head of a 200 with this upstream's name and that framing.
    pub fn head_of_200(&self, framing: Framing) -> String {
        let framing = match framing {
            Framing::Length(length) => format!("content-length: {length}\r\n"),
            Framing::Chunked => "transfer-encoding: chunked\r\n".to_owned(),
            Framing::UntilClose => "connection: close\r\n".to_owned(),
            Framing::Empty => "content-length: 0\r\n".to_owned(),
        };
        format!(
            "HTTP/1.1 200 OK\r\nx-upstream: {}\r\n{framing}\r\n",
            self.account.name
        )
    }

    /// Ends the connection with a reset instead of in order.
    pub fn reset(self) -> io::Result<()> {
        self.wire.stream.set_zero_linger()
    }
}

async fn accept<F>(listener: TcpListener, account: Arc<Account>, serve: F)
where
    F: Fn(TcpStream, usize, Arc<Account>) -> Served + Send + 'static,
{
    let mut served = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        stream
            .set_nodelay(true)
            .expect("a fresh socket takes options");
        let number = account.connections.fetch_add(1, Ordering::SeqCst);
        let open = Open::new(account.clone());
        let connection = serve(stream, number, account.clone());
        served.spawn(async move {
            let _open = open;
            connection.await;
        });
        while served.try_join_next().is_some() {}
    }
}

/// One connection counted as open for as long as this lives.
struct Open(Arc<Account>);

impl Open {
    fn new(account: Arc<Account>) -> Self {
        account.open.fetch_add(1, Ordering::SeqCst);
        Self(account)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}
