//! A pod of the app that is intercepted: an address of its own, the app, and the rules that mirrord's
//! agent puts before it.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use fancy_regex::Regex;
use http::Version;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::hub::Fate;
use super::mirrord::Sender;
use super::request::{Answer, Request};
use super::wire::{Head, Wire};

/// A running pod; its port is closed when it is dropped.
pub struct TargetPod {
    pub name: String,
    pub address: SocketAddr,
    state: Mutex<State>,
    serving: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct State {
    rules: Option<Arc<Rules>>,
    fates: VecDeque<Fate>,
    starting: usize,
    starts: usize,
    overlaps: usize,
}

/// What takes a pod's requests.
pub struct Rules {
    pub session: String,
    /// The process that they are handed to.
    pub child: u32,
    pub filters: Vec<Regex>,
    pub sender: Arc<Sender>,
    /// The app answers, and the process gets a copy.
    pub are_copies: bool,
}

/// One start of a session, until it has ended one way or the other.
pub struct Attempt<'p>(&'p TargetPod);

impl TargetPod {
    pub async fn start(name: &str, address: SocketAddr) -> Arc<Self> {
        let pod = Arc::new(Self {
            name: name.to_owned(),
            address,
            state: Mutex::default(),
            serving: Mutex::default(),
        });
        pod.listen();
        pod
    }

    /// What becomes of the next starts; then all goes well.
    pub fn fates(&self, fates: &[Fate]) {
        self.state().fates.extend(fates);
    }

    /// Starts of sessions so far.
    pub fn starts(&self) -> usize {
        self.state().starts
    }

    /// Starts that met another one.
    pub fn overlaps(&self) -> usize {
        self.state().overlaps
    }

    /// The process that gets the pod's requests.
    pub fn child(&self) -> Option<u32> {
        self.state().rules.as_ref().map(|rules| rules.child)
    }

    /// The session whose rules are on the pod.
    pub fn session(&self) -> Option<String> {
        self.state()
            .rules
            .as_ref()
            .map(|rules| rules.session.clone())
    }

    /// Requests are no longer taken, and nobody is told.
    pub fn deafen(&self) {
        self.state().rules = None;
    }

    /// Nobody is let in any more.
    pub fn refuse(&self) {
        let serving = self.serving.lock().expect("no test panics with it").take();
        serving.expect("it listens").abort();
        self.state().rules = None;
    }

    /// Whoever comes is let in again.
    pub fn listen(self: &Arc<Self>) {
        let socket = TcpSocket::new_v4().expect("sockets can be made");
        socket.set_reuseaddr(true).expect("an option of TCP");
        socket.bind(self.address).expect("an address of our own");
        let listener = socket.listen(64).expect("a bound socket listens");
        let serving = tokio::spawn(accept(listener, self.clone_weak()));
        *self.serving.lock().expect("no test panics with it") = Some(serving);
    }

    pub fn begins(&self) -> Attempt<'_> {
        let mut state = self.state();
        state.starts += 1;
        state.starting += 1;
        if state.starting > 1 {
            state.overlaps += 1;
        }
        Attempt(self)
    }

    pub fn next_fate(&self) -> Fate {
        self.state().fates.pop_front().unwrap_or(Fate::Live)
    }

    pub fn has_rules(&self) -> bool {
        self.state().rules.is_some()
    }

    pub fn subscribe(&self, rules: Rules) {
        self.state().rules = Some(Arc::new(rules));
    }

    /// Takes the rules of that session away, if they are there.
    pub fn unsubscribe(&self, session: &str) {
        let mut state = self.state();
        if state
            .rules
            .as_ref()
            .is_some_and(|rules| rules.session == session)
        {
            state.rules = None;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with it")
    }

    fn clone_weak(self: &Arc<Self>) -> std::sync::Weak<Self> {
        Arc::downgrade(self)
    }

    async fn answer(&self, request: &Request) -> Answer {
        let rules = self.state().rules.clone();
        if let Some(rules) = rules
            && rules.take(request)
        {
            if !rules.are_copies {
                return rules.sender.send(request).await;
            }
            let (sender, copy) = (rules.sender.clone(), request.clone());
            tokio::spawn(async move { sender.send(&copy).await });
        }
        let mut fields = super::fields::Fields::default();
        fields.push("x-upstream", &self.name);
        Answer {
            status: 200,
            version: Version::HTTP_11,
            fields,
            body: Ok("the app".into()),
            trailers: super::fields::Fields::default(),
            tries: 1,
        }
    }
}

impl Drop for TargetPod {
    fn drop(&mut self) {
        let serving = self.serving.lock().expect("no test panics with it").take();
        if let Some(serving) = serving {
            serving.abort();
        }
    }
}

impl Attempt<'_> {
    pub fn ends(self) {}
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.0.state().starting -= 1;
    }
}

impl Rules {
    fn take(&self, request: &Request) -> bool {
        request.fields.0.iter().any(|(name, value)| {
            let field = format!("{name}: {}", String::from_utf8_lossy(value));
            let matches = |filter: &Regex| filter.is_match(&field).expect("no endless search");
            self.filters.iter().any(matches)
        })
    }
}

async fn accept(listener: TcpListener, pod: std::sync::Weak<TargetPod>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let Some(pod) = pod.upgrade() else {
            return;
        };
        connections.spawn(async move {
            // A client that leaves early is what many tests want.
            let _ = serve(stream, &pod).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, pod: &TargetPod) -> io::Result<()> {
    let mut wire = Wire::new(stream);
    while let Some(head) = wire.head().await? {
        let body = wire.body(head.request_framing()).await?;
        let request = request(&head, body.bytes);
        let answer = pod.answer(&request).await;
        wire.send(written(answer)?).await?;
    }
    Ok(())
}

fn request(head: &Head, body: bytes::Bytes) -> Request {
    let mut request = Request::new(head.word(0), head.word(1));
    request.fields = head.fields.clone();
    request
        .fields
        .0
        .retain(|(name, _)| !name.eq_ignore_ascii_case("transfer-encoding"));
    request.body = body;
    request
}

fn written(answer: Answer) -> io::Result<Vec<u8>> {
    let body = answer.body?;
    let mut bytes = format!("HTTP/1.1 {} Told\r\n", answer.status).into_bytes();
    for (name, value) in &answer.fields.0 {
        if ["transfer-encoding", "content-length", "connection"].contains(&name.as_str()) {
            continue;
        }
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}
