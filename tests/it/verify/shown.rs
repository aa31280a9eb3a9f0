//! A stand-in for the API server that shows objects and changes none: what `verify` may ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The only namespace there is.
pub const NAMESPACE: &str = "staging";

/// A running stand-in; gone when it is dropped.
pub struct Shown {
    pub kubeconfig: NamedTempFile,
    shelf: Arc<Mutex<Shelf>>,
    task: JoinHandle<()>,
}

/// What there is to see.
#[derive(Default)]
pub struct Shelf {
    /// By resource and name: `("pods", "orders-1")`.
    objects: BTreeMap<(String, String), Value>,
    /// By pod.
    logs: BTreeMap<String, Arc<Mutex<String>>>,
    /// Verb and resource: `get pods/log`.
    forbidden: BTreeSet<String>,
}

impl Shown {
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        let shelf = Arc::<Mutex<Shelf>>::default();
        Self {
            kubeconfig: kubeconfig(address),
            task: tokio::spawn(serve(listener, shelf.clone())),
            shelf,
        }
    }

    pub fn put(&self, resource: &str, object: Value) {
        let name = object["metadata"]["name"].as_str().expect("a name");
        let key = (resource.to_owned(), name.to_owned());
        self.shelf().objects.insert(key, object);
    }

    /// Changes an object by a JSON merge of one level: `("pods", "orders-1", "/status/phase", ...)`.
    pub fn set(&self, resource: &str, name: &str, pointer: &str, value: Value) {
        let key = (resource.to_owned(), name.to_owned());
        let mut shelf = self.shelf();
        let object = shelf
            .objects
            .get_mut(&key)
            .expect("there is such an object");
        *object.pointer_mut(pointer).expect("it has such a field") = value;
    }

    pub fn remove(&self, resource: &str, name: &str) {
        let key = (resource.to_owned(), name.to_owned());
        let gone = self.shelf().objects.remove(&key);
        gone.expect("there was such an object");
    }

    pub fn put_log(&self, pod: &str, log: Arc<Mutex<String>>) {
        self.shelf().logs.insert(pod.to_owned(), log);
    }

    /// From now on nobody may do that: `get pods/log`.
    pub fn forbid(&self, right: &str) {
        self.shelf().forbidden.insert(right.to_owned());
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().expect("nobody panics with it")
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, shelf: Arc<Mutex<Shelf>>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve_one(stream, shelf.clone()));
    }
}

async fn serve_one(stream: TcpStream, shelf: Arc<Mutex<Shelf>>) {
    let service = service_fn(async |request: Request<Incoming>| {
        let uri = request.uri();
        let (status, body) = shelf
            .lock()
            .expect("nobody panics with it")
            .answer(uri.path(), uri.query().unwrap_or_default());
        let mut response = Response::new(Full::<Bytes>::from(body));
        *response.status_mut() = status.try_into().expect("a status");
        Ok::<_, Infallible>(response)
    });
    // A client that leaves has what it wanted.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

impl Shelf {
    fn answer(&self, path: &str, query: &str) -> (u16, String) {
        let parts: Vec<_> = path
            .split('/')
            .skip_while(|part| *part != "namespaces")
            .collect();
        let (right, found) = match parts[..] {
            [_, NAMESPACE, "pods", pod, "log"] => {
                let log = self.logs.get(pod);
                let text = log.map(|log| log.lock().expect("nobody panics with it").clone());
                ("get pods/log".to_owned(), text)
            }
            [_, NAMESPACE, resource, name] => {
                let key = (resource.to_owned(), name.to_owned());
                let object = self.objects.get(&key).map(Value::to_string);
                (format!("get {resource}"), object)
            }
            [_, NAMESPACE, resource] => (
                format!("list {resource}"),
                Some(self.list(resource, query).to_string()),
            ),
            _ => (path.to_owned(), None),
        };
        if self.forbidden.contains(&right) {
            let (verb, resource) = right.split_once(' ').expect("two words");
            let why = format!(
                "{resource} is forbidden: User \"tester\" cannot {verb} resource \"{resource}\""
            );
            return refusal(403, "Forbidden", &why);
        }
        match found {
            Some(text) => (200, text),
            None => refusal(404, "NotFound", "there is no such object"),
        }
    }

    fn list(&self, resource: &str, query: &str) -> Value {
        let selector = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("labelSelector="));
        let selector = percent_decode_str(selector.unwrap_or_default()).decode_utf8_lossy();
        let wanted: Vec<_> = selector
            .split(',')
            .filter_map(|pair| pair.split_once('='))
            .collect();
        let has_labels = |object: &&Value| {
            let labels = &object["metadata"]["labels"];
            wanted.iter().all(|(key, value)| labels[key] == **value)
        };
        let objects = self.objects.iter();
        let objects = objects
            .filter(|((kind, _), _)| kind == resource)
            .map(|(_, object)| object);
        let items: Vec<_> = objects.filter(has_labels).collect();
        json!({ "kind": "List", "apiVersion": "v1", "metadata": {}, "items": items })
    }
}

fn refusal(code: u16, reason: &str, message: &str) -> (u16, String) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    (code, status.to_string())
}

fn kubeconfig(address: SocketAddr) -> NamedTempFile {
    let text = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "here", "cluster": { "server": format!("http://{address}") } }],
        "users": [{ "name": "tester", "user": {} }],
        "contexts": [{ "name": "here", "context": { "cluster": "here", "user": "tester" } }],
        "current-context": "here",
    });
    let mut file = NamedTempFile::new().expect("a writable temp folder");
    file.write_all(text.to_string().as_bytes())
        .expect("there is room");
    file
}
