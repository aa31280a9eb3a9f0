//! The kubelet's own port, as far as `pods/log` needs it.
//!
//! The API server has no logs: it asks the kubelet of the pod's node, and without one the request
//! fails. The same holds for exec, attach and port-forward, which nobody answers here.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::Desk;
use crate::it::support::certs::Certs;

/// Serves until it is dropped.
pub(super) struct Logs {
    pub(super) port: u16,
    task: JoinHandle<()>,
}

impl Logs {
    pub(super) async fn serve(desk: Arc<Mutex<Desk>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("loopback has a free port");
        let address = listener
            .local_addr()
            .expect("a bound listener has an address");
        // The API server of the plane was told of no authority for kubelets: it takes any.
        let tls = TlsAcceptor::from(Certs::new().server(&["http/1.1"]));
        Self {
            port: address.port(),
            task: tokio::spawn(accept(listener, tls, desk)),
        }
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, desk: Arc<Mutex<Desk>>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(answer(stream, tls.clone(), desk.clone()));
    }
}

async fn answer(stream: TcpStream, tls: TlsAcceptor, desk: Arc<Mutex<Desk>>) {
    let Ok(stream) = tls.accept(stream).await else {
        return;
    };
    let service = service_fn(async |request: Request<Incoming>| {
        let text = desk
            .lock()
            .expect("nobody panics at the desk")
            .log(&request);
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
    });
    // How a reader of logs goes away is its own affair.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

impl Desk {
    /// For `/containerLogs/NAMESPACE/POD/CONTAINER?tailLines=N`: what was last said of that pod.
    fn log<B>(&self, request: &Request<B>) -> String {
        let pod = request.uri().path().split('/').nth(3).unwrap_or_default();
        let said = self.written.iter().rev();
        let text = said
            .filter(|(prefix, _)| pod.starts_with(prefix.as_str()))
            .map(|(_, text)| text.as_str())
            .next()
            .unwrap_or_default();
        let query = request.uri().query().unwrap_or_default();
        let tail = query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            value.parse().ok().filter(|_| key == "tailLines")
        });
        last_lines(text, tail.unwrap_or(usize::MAX))
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    let from = lines.len().saturating_sub(count);
    lines[from..]
        .iter()
        .map(|line| format!("{line}\n"))
        .collect()
}
