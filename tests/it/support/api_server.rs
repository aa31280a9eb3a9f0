//! A stand-in for the API server, as far as pods go: lists in pages and watches of one namespace,
//! resource versions, bookmarks, history that is forgotten, refusals, absence.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::channel::{Channel, Sender};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::eventually;

/// The only namespace there is.
pub const NAMESPACE: &str = "staging";

/// A running stand-in; gone when it is dropped.
pub struct ApiServer {
    address: SocketAddr,
    kubeconfig: NamedTempFile,
    cluster: Arc<Cluster>,
    serving: Option<JoinHandle<()>>,
}

/// What outlives an absence.
struct Cluster {
    state: Mutex<State>,
    /// Told of every change that a request may wait for.
    news: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    version: u64,
    pods: BTreeMap<String, Value>,
    /// Every change: its version, the pod before and after.
    history: Vec<(u64, Option<Value>, Option<Value>)>,
    /// What happened up to here is forgotten.
    forgotten: u64,
    refusals: HashMap<&'static str, Refusal>,
    /// Pages of a list after the first are answered.
    are_pages_held: bool,
    are_lists_held: bool,
    are_watches_short: bool,
    lists: usize,
    pages: usize,
    watches: usize,
    open: usize,
    /// Watches opened before the last of these end.
    cuts: usize,
}

/// What is answered instead.
#[derive(Clone)]
struct Refusal {
    code: u16,
    message: String,
}

type Body = Either<Full<Bytes>, Channel<Bytes>>;

impl ApiServer {
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        let cluster = Arc::new(Cluster {
            state: Mutex::new(State::default()),
            news: watch::channel(()).0,
        });
        let serving = Some(tokio::spawn(serve(listener, cluster.clone())));
        Self {
            address,
            kubeconfig: kubeconfig(address),
            cluster,
            serving,
        }
    }

    /// For `KUBECONFIG`.
    pub fn kubeconfig(&self) -> String {
        let path = self.kubeconfig.path().to_str();
        path.expect("a plain path").to_owned()
    }

    /// Creates the pod, or changes the one of that name.
    pub fn apply(&self, pod: Value) {
        self.change(|state| state.apply(pod));
    }

    /// Takes the pod away.
    pub fn delete(&self, name: &str) {
        self.change(|state| {
            state.version += 1;
            let gone = state.pods.remove(name).expect("there is such a pod");
            state.history.push((state.version, Some(gone), None));
        });
    }

    /// From now on this verb gets that answer.
    pub fn refuse(&self, verb: &'static str, code: u16, message: &str) {
        let message = message.to_owned();
        self.change(|state| {
            state.refusals.insert(verb, Refusal { code, message });
        });
    }

    /// From now on it gets what it asks for.
    pub fn allow(&self, verb: &'static str) {
        self.change(|state| {
            state.refusals.remove(verb);
        });
    }

    /// Ends all watches in order.
    pub fn cut_watches(&self) {
        self.change(|state| state.cuts += 1);
    }

    /// From now on every watch ends as soon as it has begun.
    pub fn end_watches_at_once(&self) {
        self.change(|state| {
            state.cuts += 1;
            state.are_watches_short = true;
        });
    }

    /// Nothing that has happened so far can be watched again.
    pub fn forget(&self) {
        self.change(|state| {
            // A version without an event: who has seen the last event has not seen this.
            state.version += 1;
            state.forgotten = state.version;
        });
    }

    /// Lists are not answered until they are released; with `after_a_page` only their first page is.
    pub fn hold_lists(&self, after_a_page: bool) {
        self.change(|state| {
            state.are_pages_held = after_a_page;
            state.are_lists_held = !after_a_page;
        });
    }

    pub fn release_lists(&self) {
        self.change(|state| {
            state.are_pages_held = false;
            state.are_lists_held = false;
        });
    }

    /// Closes the port and every connection, without a word.
    pub async fn go_away(&mut self) {
        let serving = self.serving.take().expect("it is there");
        serving.abort();
        let _ = serving.await;
        self.state().open = 0;
    }

    /// Is there again, at the same address and with the same pods.
    pub fn come_back(&mut self) {
        let socket = TcpSocket::new_v4().expect("sockets can be made");
        socket.set_reuseaddr(true).expect("an option of TCP");
        socket.bind(self.address).expect("the port is still ours");
        let listener = socket.listen(64).expect("a bound socket listens");
        self.serving = Some(tokio::spawn(serve(listener, self.cluster.clone())));
    }

    /// Lists begun so far.
    pub fn lists(&self) -> usize {
        self.state().lists
    }

    /// Pages of lists answered so far.
    pub fn pages(&self) -> usize {
        self.state().pages
    }

    /// Watches opened so far.
    pub fn watches(&self) -> usize {
        self.state().watches
    }

    /// Waits until so many watches have been opened, and one is open.
    pub async fn watched(&self, times: usize) {
        eventually("a watch is open", || {
            let state = self.state();
            state.watches >= times && state.open > 0
        })
        .await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.cluster.state()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.cluster.state());
        self.cluster.news.send_replace(());
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

impl State {
    fn holds(&self, is_first_page: bool) -> bool {
        self.are_lists_held || self.are_pages_held && !is_first_page
    }

    fn apply(&mut self, mut pod: Value) {
        self.version += 1;
        let name = pod["metadata"]["name"].as_str().expect("a name").to_owned();
        let before = self.pods.get(&name).cloned();
        let metadata = &mut pod["metadata"];
        metadata["namespace"] = json!(NAMESPACE);
        metadata["resourceVersion"] = json!(self.version.to_string());
        for (key, new) in [
            ("uid", json!(format!("uid-{}", self.version))),
            ("creationTimestamp", json!(created(self.version))),
        ] {
            let known = before
                .as_ref()
                .map(|before| before["metadata"][key].clone());
            if metadata[key].is_null() {
                metadata[key] = known.unwrap_or(new);
            }
        }
        self.pods.insert(name, pod.clone());
        self.history.push((self.version, before, Some(pod)));
    }
}

/// A second for each version.
fn created(version: u64) -> String {
    let (hours, minutes, seconds) = (version / 3600, version / 60 % 60, version % 60);
    format!("2026-01-02T{hours:02}:{minutes:02}:{seconds:02}Z")
}

fn kubeconfig(address: SocketAddr) -> NamedTempFile {
    let file = NamedTempFile::new().expect("a writable temp folder");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         contexts: [{{ name: c, context: {{ cluster: c, user: u }} }}]\n\
         clusters: [{{ name: c, cluster: {{ server: \"http://{address}\" }} }}]\n\
         users: [{{ name: u, user: {{ token: secret }} }}]\n"
    );
    std::fs::write(file.path(), text).expect("writable");
    file
}

async fn serve(listener: TcpListener, cluster: Arc<Cluster>) {
    // Its connections end with it.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let cluster = cluster.clone();
        connections.spawn(async move {
            let watches = Arc::new(Mutex::new(JoinSet::new()));
            let service = service_fn(|request| {
                let (cluster, watches) = (cluster.clone(), watches.clone());
                async move { Ok::<_, Infallible>(cluster.answer(&request, &watches).await) }
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _ = connection.await;
        });
    }
}

/// What is asked, taken apart.
struct Question {
    selector: String,
    limit: usize,
    /// The version of the list and the last name of the page before.
    after: Option<(u64, String)>,
    version: u64,
    patience: Duration,
}

impl Question {
    fn of(query: &str) -> (bool, Self) {
        let pairs: HashMap<String, String> = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), decoded(value)))
            .collect();
        let number = |key: &str| pairs.get(key).and_then(|value| value.parse::<u64>().ok());
        let question = Self {
            selector: pairs.get("labelSelector").cloned().unwrap_or_default(),
            limit: number("limit")
                .map_or(usize::MAX, |limit| usize::try_from(limit).expect("small")),
            after: pairs.get("continue").and_then(|token| {
                let (version, name) = token.split_once(':')?;
                Some((version.parse().ok()?, name.to_owned()))
            }),
            version: number("resourceVersion").unwrap_or(0),
            patience: Duration::from_secs(number("timeoutSeconds").unwrap_or(3600)),
        };
        (pairs.contains_key("watch"), question)
    }
}

fn wants(selector: &str, pod: &Value) -> bool {
    let labels = &pod["metadata"]["labels"];
    selector.split(',').all(|part| match part.split_once('=') {
        Some((key, value)) => labels[key] == value,
        None => !labels[part].is_null(),
    })
}

fn decoded(text: &str) -> String {
    let text = text.replace('+', " ");
    percent_decode_str(&text).decode_utf8_lossy().into_owned()
}

impl Cluster {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with it")
    }

    async fn answer(
        self: Arc<Self>,
        request: &Request<Incoming>,
        watches: &Mutex<JoinSet<()>>,
    ) -> Response<Body> {
        let uri = request.uri();
        if uri.path() != format!("/api/v1/namespaces/{NAMESPACE}/pods") {
            return refusal(404, "no such namespace here");
        }
        if request
            .headers()
            .get("authorization")
            .is_none_or(|value| value != "Bearer secret")
        {
            return refusal(401, "Unauthorized");
        }
        let (is_watch, question) = Question::of(uri.query().unwrap_or(""));
        let verb = if is_watch { "watch" } else { "list" };
        let refused = self.state().refusals.get(verb).cloned();
        if let Some(Refusal { code, message }) = refused {
            return refusal(code, &message);
        }
        if !is_watch {
            return self.list(question).await;
        }
        let (sender, body) = Channel::new(1);
        let mut watches = watches.lock().expect("no test panics with it");
        watches.spawn(self.watch(question, sender));
        Response::new(Either::Right(body))
    }

    async fn list(&self, question: Question) -> Response<Body> {
        let is_first = question.after.is_none();
        if is_first {
            self.state().lists += 1;
        }
        let mut news = self.news.subscribe();
        while self.state().holds(is_first) {
            news.changed().await.expect("it is kept");
        }
        let mut state = self.state();
        state.pages += 1;
        // As it was when its first page was asked for: what has changed since is for the watch to tell.
        let (version, after) = question
            .after
            .unwrap_or_else(|| (state.version, String::new()));
        let mut rest = state
            .pods
            .iter()
            .filter(|(name, pod)| **name > after && wants(&question.selector, pod));
        let page: Vec<_> = rest.by_ref().take(question.limit).collect();
        let mut metadata = json!({ "resourceVersion": version.to_string() });
        if rest.next().is_some() {
            let last = page.last().expect("a page before the rest").0;
            metadata["continue"] = json!(format!("{version}:{last}"));
        }
        let items: Vec<_> = page.into_iter().map(|(_, pod)| pod).collect();
        let list =
            json!({ "kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items });
        Response::new(Either::Left(Full::from(list.to_string())))
    }

    async fn watch(self: Arc<Self>, question: Question, mut sender: Sender<Bytes>) {
        let mut news = self.news.subscribe();
        let cuts = {
            let mut state = self.state();
            state.watches += 1;
            state.open += 1;
            state.cuts
        };
        let following = async {
            let mut seen = question.version;
            loop {
                let (lines, is_over) = self.events_since(&mut seen, &question);
                for line in lines {
                    if sender
                        .send_data(Bytes::from(format!("{line}\n")))
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
                let is_cut = {
                    let state = self.state();
                    state.are_watches_short || state.cuts > cuts
                };
                if is_over || is_cut {
                    return;
                }
                news.changed().await.expect("it is kept");
            }
        };
        let _ = tokio::time::timeout(question.patience, following).await;
        let mut state = self.state();
        state.open = state.open.saturating_sub(1);
    }

    /// What has happened since that version, and whether that is the end of the watch.
    fn events_since(&self, seen: &mut u64, question: &Question) -> (Vec<Value>, bool) {
        let state = self.state();
        if *seen < state.forgotten {
            let status = status(410, "too old resource version");
            return (vec![json!({ "type": "ERROR", "object": status })], true);
        }
        let wanted = |pod: &Option<Value>| pod.clone().filter(|pod| wants(&question.selector, pod));
        let new = state.history.iter().filter(|(version, ..)| version > seen);
        let mut events: Vec<_> = new
            .filter_map(
                |(version, before, after)| match (wanted(before), wanted(after)) {
                    (None, Some(pod)) => Some(json!({ "type": "ADDED", "object": pod })),
                    (Some(_), Some(pod)) => Some(json!({ "type": "MODIFIED", "object": pod })),
                    (Some(mut pod), None) => {
                        pod["metadata"]["resourceVersion"] = json!(version.to_string());
                        Some(json!({ "type": "DELETED", "object": pod }))
                    }
                    (None, None) => None,
                },
            )
            .collect();
        if *seen < state.version {
            let version = json!({ "resourceVersion": state.version.to_string() });
            let bookmark = json!({ "kind": "Pod", "apiVersion": "v1", "metadata": version });
            events.push(json!({ "type": "BOOKMARK", "object": bookmark }));
        }
        *seen = state.version;
        (events, false)
    }
}

fn status(code: u16, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": "Refused", "code": code,
    })
}

fn refusal(code: u16, message: &str) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::from(status(code, message).to_string())));
    *response.status_mut() = code.try_into().expect("a status");
    response
}
