//! A stand-in for the API server that keeps objects of any kind: get, list, watch, create, replace and
//! delete with conflicts and preconditions, owners whose end is their dependents', refusals.
//!
//! Nothing acts on the objects: whoever tests plays the kubelet and the controllers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// A running stand-in; gone when it is dropped.
pub struct Cluster {
    kubeconfig: NamedTempFile,
    store: Arc<Store>,
    serving: JoinHandle<()>,
}

#[derive(Default)]
struct Store {
    state: Mutex<State>,
    news: watch::Sender<()>,
}

/// Resource, namespace, name.
type Key = (String, String, String);

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<Key, Value>,
    /// Every change: its version, whose, before and after.
    history: Vec<(u64, Key, Option<Value>, Option<Value>)>,
    /// Verb and resource.
    refused: HashSet<(String, String)>,
    /// Verb, resource and name of everything that was asked for.
    asked: Vec<(String, String, String)>,
}

type Body = Either<Full<Bytes>, Channel<Bytes>>;

impl Cluster {
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        let store = Arc::new(Store::default());
        Self {
            kubeconfig: kubeconfig(address),
            serving: tokio::spawn(serve(listener, store.clone())),
            store,
        }
    }

    /// For `--kubeconfig`.
    pub fn kubeconfig(&self) -> String {
        let path = self.kubeconfig.path().to_str();
        path.expect("a plain path").to_owned()
    }

    /// Creates the object, or changes the one of that name.
    pub fn apply(&self, resource: &str, object: Value) -> Value {
        self.store.change(|state| state.put(resource, object))
    }

    pub fn find(&self, resource: &str, name: &str) -> Option<Value> {
        let state = self.store.state();
        let mut found = state.objects.iter();
        found
            .find(|((kind, _, known), _)| kind == resource && known == name)
            .map(|(_, object)| object.clone())
    }

    pub fn all(&self, resource: &str) -> Vec<Value> {
        let state = self.store.state();
        let all = state
            .objects
            .iter()
            .filter(|((kind, ..), _)| kind == resource);
        all.map(|(_, object)| object.clone()).collect()
    }

    /// Takes the object away, and what it owned alone.
    pub fn delete(&self, resource: &str, name: &str) {
        self.store.change(|state| {
            let key = state.objects.keys();
            let key = key
                .clone()
                .find(|(kind, _, known)| kind == resource && known == name);
            if let Some(key) = key.cloned() {
                state.remove(&key);
            }
        });
    }

    /// From now on this is forbidden.
    pub fn refuse(&self, verb: &str, resource: &str) {
        let refused = (verb.to_owned(), resource.to_owned());
        self.store.change(|state| state.refused.insert(refused));
    }

    /// From now on this is allowed again.
    pub fn allow(&self, verb: &str, resource: &str) {
        let refused = (verb.to_owned(), resource.to_owned());
        self.store.change(|state| state.refused.remove(&refused));
    }

    /// How often this was asked for.
    pub fn asked(&self, verb: &str, resource: &str) -> usize {
        let state = self.store.state();
        let asked = state.asked.iter();
        asked
            .filter(|(of, what, _)| of == verb && what == resource)
            .count()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Store {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with it")
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.state());
        self.news.send_replace(());
        changed
    }
}

impl State {
    fn put(&mut self, resource: &str, mut object: Value) -> Value {
        self.version += 1;
        let metadata = &mut object["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or("staging").to_owned();
        let name = metadata["name"].as_str().expect("a name").to_owned();
        let key = (resource.to_owned(), text(&metadata["namespace"]), name);
        let before = self.objects.get(&key).cloned();
        metadata["namespace"] = json!(key.1);
        metadata["resourceVersion"] = json!(self.version.to_string());
        if metadata["uid"].is_null() {
            let known = before
                .as_ref()
                .map(|before| before["metadata"]["uid"].clone());
            metadata["uid"] = known.unwrap_or_else(|| json!(format!("uid-{}", self.version)));
        }
        self.objects.insert(key.clone(), object.clone());
        self.history
            .push((self.version, key, before, Some(object.clone())));
        object
    }

    fn remove(&mut self, key: &Key) {
        let Some(mut gone) = self.objects.remove(key) else {
            return;
        };
        self.version += 1;
        gone["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let uid = gone["metadata"]["uid"].clone();
        self.history
            .push((self.version, key.clone(), Some(gone), None));
        let is_owned = |object: &Value| {
            let owners = object["metadata"]["ownerReferences"].as_array();
            owners.is_some_and(|owners| owners.iter().all(|owner| owner["uid"] == uid))
        };
        let orphans = self.objects.iter().filter(|(_, object)| is_owned(object));
        let orphans: Vec<_> = orphans.map(|(key, _)| key.clone()).collect();
        for orphan in orphans {
            self.remove(&orphan);
        }
    }
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

async fn serve(listener: TcpListener, store: Arc<Store>) {
    // Its connections end with it, and their watches with them.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let store = store.clone();
        connections.spawn(async move {
            let watches = Arc::new(Mutex::new(JoinSet::new()));
            let service = service_fn(|request| {
                let (store, watches) = (store.clone(), watches.clone());
                async move { Ok::<_, Infallible>(answer(store, request, &watches).await) }
            });
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// What is asked, taken apart.
struct Question {
    resource: String,
    namespace: String,
    name: Option<String>,
    query: HashMap<String, String>,
}

impl Question {
    fn of<B>(request: &Request<B>) -> Option<Self> {
        let path = request.uri().path();
        let (_, rest) = path.split_once("/namespaces/")?;
        let mut words = rest.split('/');
        let namespace = words.next()?.to_owned();
        let resource = words.next()?.to_owned();
        let name = words.next().map(str::to_owned);
        let decoded = |text: &str| {
            let text = text.replace('+', " ");
            percent_decode_str(&text).decode_utf8_lossy().into_owned()
        };
        let pairs = request.uri().query().unwrap_or("").split('&');
        let query = pairs
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), decoded(value)))
            .collect();
        Some(Self {
            resource,
            namespace,
            name,
            query,
        })
    }

    fn key(&self) -> Key {
        let name = self.name.clone().unwrap_or_default();
        (self.resource.clone(), self.namespace.clone(), name)
    }

    fn verb(&self, method: &Method) -> &'static str {
        match (method, &self.name) {
            (&Method::GET, Some(_)) => "get",
            (&Method::GET, None) if self.query.contains_key("watch") => "watch",
            (&Method::GET, None) => "list",
            (&Method::POST, _) => "create",
            (&Method::PUT, _) => "update",
            (&Method::DELETE, _) => "delete",
            other => panic!("nobody asks for this: {other:?}"),
        }
    }

    fn wants(&self, key: &Key, object: &Value) -> bool {
        let of = |name: &str| self.query.get(name).map_or("", String::as_str);
        let parts = |text: &'static str| {
            of(text)
                .split(',')
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
        };
        let labels = &object["metadata"]["labels"];
        let has_labels =
            parts("labelSelector")
                .into_iter()
                .all(|part| match part.split_once('=') {
                    Some((label, value)) => labels[label] == value,
                    None => !labels[part].is_null(),
                });
        let has_fields = parts("fieldSelector").into_iter().all(|part| {
            let (path, value) = part.split_once('=').expect("path=value");
            let found = object.pointer(&format!("/{}", path.replace('.', "/")));
            found.is_some_and(|found| found == value)
        });
        key.0 == self.resource && key.1 == self.namespace && has_labels && has_fields
    }
}

async fn answer(
    store: Arc<Store>,
    request: Request<Incoming>,
    watches: &Mutex<JoinSet<()>>,
) -> Response<Body> {
    let Some(question) = Question::of(&request) else {
        return status(404, "there is no such thing here");
    };
    let verb = question.verb(request.method());
    let body = request.into_body().collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    {
        let mut state = store.state();
        let name = question.name.clone().unwrap_or_default();
        state
            .asked
            .push((verb.to_owned(), question.resource.clone(), name));
        if state
            .refused
            .contains(&(verb.to_owned(), question.resource.clone()))
        {
            let message = format!(
                "{0} is forbidden: User \"u\" cannot {verb} resource \"{0}\" in API group \"\"",
                question.resource
            );
            return status(403, &message);
        }
    }
    match verb {
        "get" => match store.state().objects.get(&question.key()) {
            Some(object) => json_answer(object),
            None => status(404, "not found"),
        },
        "list" => list(&store, &question),
        "watch" => {
            let (sender, body) = Channel::new(1);
            let mut watches = watches.lock().expect("no test panics with it");
            watches.spawn(watch(store, question, sender));
            Response::new(Either::Right(body))
        }
        "create" => {
            let name = body["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            let key = (question.resource.clone(), question.namespace.clone(), name);
            if store.state().objects.contains_key(&key) {
                return status(409, "already exists");
            }
            json_answer(&store.change(|state| state.put(&question.resource, body)))
        }
        "update" => {
            let known = store.state().objects.get(&question.key()).cloned();
            match known {
                None => status(404, "not found"),
                Some(known) if is_outdated(&known, &body["metadata"]) => status(409, "conflict"),
                Some(known) => {
                    let mut body = body;
                    body["metadata"]["uid"] = known["metadata"]["uid"].clone();
                    json_answer(&store.change(|state| state.put(&question.resource, body)))
                }
            }
        }
        _ => {
            let known = store.state().objects.get(&question.key()).cloned();
            match known {
                None => status(404, "not found"),
                Some(known) if is_outdated(&known, &body["preconditions"]) => {
                    status(409, "conflict")
                }
                Some(known) => {
                    store.change(|state| state.remove(&question.key()));
                    json_answer(&known)
                }
            }
        }
    }
}

/// Whether somebody writes to another version, or another object, than there is.
fn is_outdated(known: &Value, wanted: &Value) -> bool {
    ["uid", "resourceVersion"]
        .iter()
        .any(|key| !wanted[key].is_null() && wanted[key] != known["metadata"][key])
}

fn list(store: &Store, question: &Question) -> Response<Body> {
    let state = store.state();
    let items = state
        .objects
        .iter()
        .filter(|(key, object)| question.wants(key, object));
    let items: Vec<_> = items.map(|(_, object)| object.clone()).collect();
    let metadata = json!({ "resourceVersion": state.version.to_string() });
    json_answer(
        &json!({ "kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items }),
    )
}

async fn watch(store: Arc<Store>, question: Question, mut sender: Sender<Bytes>) {
    let number = |key: &str| question.query.get(key).and_then(|value| value.parse().ok());
    let patience = Duration::from_secs(number("timeoutSeconds").unwrap_or(3600));
    let mut seen = number("resourceVersion").unwrap_or(0);
    let mut news = store.news.subscribe();
    let following = async {
        loop {
            for event in events_since(&store, &mut seen, &question) {
                if sender
                    .send_data(Bytes::from(format!("{event}\n")))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            if news.changed().await.is_err() {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(patience, following).await;
}

fn events_since(store: &Store, seen: &mut u64, question: &Question) -> Vec<Value> {
    let state = store.state();
    let new = state.history.iter().filter(|(version, ..)| version > seen);
    let events = new.filter_map(|(_, key, before, after)| {
        let wanted =
            |object: &Option<Value>| object.clone().filter(|object| question.wants(key, object));
        Some(match (wanted(before), wanted(after)) {
            (None, Some(object)) => json!({ "type": "ADDED", "object": object }),
            (Some(_), Some(object)) => json!({ "type": "MODIFIED", "object": object }),
            (Some(object), None) => json!({ "type": "DELETED", "object": object }),
            (None, None) => return None,
        })
    });
    let events = events.collect();
    *seen = state.version;
    events
}

fn json_answer(value: &Value) -> Response<Body> {
    Response::new(Either::Left(Full::from(value.to_string())))
}

fn status(code: u16, message: &str) -> Response<Body> {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        _ => "Conflict",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    let mut response = json_answer(&status);
    *response.status_mut() = code.try_into().expect("a status");
    response
}
