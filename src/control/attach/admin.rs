//! One admin port for all targets: what their proxies say, put together, and how each target is.

use std::sync::Arc;
use std::task::Context;

use http::StatusCode;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::session::Post;
use super::targets::Sight;
use super::{gather, merge};
use crate::admin::port::{self, Reply, Taps, content, text};

/// Serves the port until dropped.
pub(super) async fn serve(
    socket: TcpListener,
    post: Arc<Post>,
    sight: watch::Receiver<Sight>,
    stop: watch::Receiver<bool>,
) {
    let desk = Desk {
        post,
        sight,
        stop,
        taps: Taps::default(),
    };
    port::serve(socket, Arc::new(desk)).await;
}

struct Desk {
    post: Arc<Post>,
    sight: watch::Receiver<Sight>,
    stop: watch::Receiver<bool>,
    taps: Taps,
}

impl port::Desk for Desk {
    async fn answer(&self, path: &str, query: &str) -> Option<Reply> {
        let board = &self.post.board;
        Some(match path {
            "/healthz" => text(StatusCode::OK, "alive"),
            "/readyz" => match self.readiness() {
                Ok(()) => text(StatusCode::OK, "ready"),
                Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, &why),
            },
            "/metrics" => {
                let said = gather::ask_all(board, "/metrics").await;
                content(port::METRICS, merge::exposition(&board.figures(), &said))
            }
            "/sessions" => {
                let said = gather::ask_all(board, "/sessions").await;
                let readiness = self.readiness().err();
                let readiness = readiness.as_deref().unwrap_or("ready");
                let targets = json!(board.targets());
                content(
                    port::JSON,
                    gather::sessions(readiness, targets, &said).to_string(),
                )
            }
            "/targets" => content(
                port::JSON,
                json!({ "targets": board.targets() }).to_string(),
            ),
            "/config" => content(port::JSON, json!(self.post.intercept).to_string()),
            "/tap" => self.taps.listen(query, |_| {
                let mut events = gather::tap(self.post.clone(), query);
                move |cx: &mut Context<'_>| events.poll_recv(cx)
            }),
            _ => return port::page(path),
        })
    }
}

impl Desk {
    fn readiness(&self) -> Result<(), String> {
        if *self.stop.borrow() {
            return Err("draining".to_owned());
        }
        if let Sight::Unknown(why) = &*self.sight.borrow() {
            return Err(format!("the target's pods are not known: {why}"));
        }
        self.post.board.readiness()
    }
}
