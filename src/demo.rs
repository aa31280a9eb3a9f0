//! The proxy with its own little world, for a first look: a baseline, two pull requests, all on
//! loopback and in one process.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;

use crate::cli::{self, Sources};
use crate::listener;
use crate::record::AccessFormat;
use crate::server::{Options, Server, StartError};

/// The world, running.
pub struct Demo {
    pub server: Server,
}

impl Demo {
    /// Starts the apps and the proxy on the runtime that calls.
    ///
    /// # Errors
    /// When the asked-for addresses cannot be had.
    pub async fn start(arguments: cli::Demo) -> Result<Self, StartError> {
        let baseline = start_app("the baseline")?;
        let (one, two) = (
            start_app("the app of pr-42")?,
            start_app("the app of pr-43")?,
        );
        let sources = Sources {
            listen: vec![arguments.listen],
            session: vec![format!("pr-42={one}"), format!("pr-43={two}")],
            baseline: Some(baseline.to_string()),
            admin: Some(arguments.admin),
            ..Sources::default()
        };
        let options = Options {
            sources,
            workers: Some(1),
            access: AccessFormat::Off,
            target: None,
        };
        Ok(Self {
            server: Server::start(options).await?,
        })
    }

    /// What to try, and what to expect.
    pub fn greeting(&self) -> String {
        let proxy = self.server.addresses[0].address;
        let page = match self.server.admin {
            Some(admin) => format!("Watch it at http://{admin}/\n"),
            None => String::new(),
        };
        format!(
            "\
session-proxy is listening on {proxy}, with a baseline and two pull requests behind it.
Try, in another terminal:

  curl http://{proxy}/hello
    -> hello from the baseline

  curl -H 'x-dev-session: pr-42' http://{proxy}/hello
    -> hello from the app of pr-42

  curl -H 'baggage: dev-session=pr-43' http://{proxy}/hello
    -> hello from the app of pr-43

Add -i to see x-dev-session-route, which tells the way each request went.
{page}Ctrl-C ends it.
"
        )
    }
}

/// An app that says who it is. It runs until the process ends.
fn start_app(name: &'static str) -> io::Result<SocketAddr> {
    let socket: TcpListener = listener::bind((Ipv4Addr::LOCALHOST, 0).into())?;
    let address = socket.local_addr()?;
    socket.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(socket)?;
    tokio::spawn(async move {
        // A failed accept costs one connection of a demo.
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(move |request| async move { greet(name, &request) });
            tokio::spawn(async move {
                let engine = auto::Builder::new(TokioExecutor::new());
                // What goes wrong with a client of the demo is the client's to see.
                let _ = engine.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    Ok(address)
}

fn greet(name: &str, request: &Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().trim_start_matches('/');
    let word = if path.is_empty() { "hello" } else { path };
    Ok(Response::new(Full::new(Bytes::from(format!(
        "{word} from {name}\n"
    )))))
}
