//! HTTP/2 with prior knowledge: some streams at once on each connection.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::expected::{Expected, Failure, Got};
use super::{Ask, World};
use crate::grpc;

/// As browsers and gRPC's own clients have it, or near: the default of 64 KiB would be measured otherwise.
const WINDOW: u32 = 1024 * 1024;

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Plain,
    Grpc,
}

/// One connection with this many requests in flight; dialled again when one fails.
pub(super) async fn shared(world: Rc<World>, kind: Kind, streams: usize) {
    let asks = Rc::new(Prepared::new(&world.ask, kind));
    loop {
        let began = world.pace.turn().await;
        let sender = match dial(world.ask.target).await {
            Ok(sender) => sender,
            Err(failure) => {
                world.tally.count(began, Err(failure)).await;
                continue;
            }
        };
        // The turn that was taken to dial is the first request's.
        let mut first = Some(began);
        let mut lanes = JoinSet::new();
        for _ in 0..streams {
            lanes.spawn_local(lane(
                Rc::clone(&world),
                Rc::clone(&asks),
                sender.clone(),
                first.take(),
            ));
        }
        lanes.join_next().await;
    }
}

/// One request after the other, until one fails.
async fn lane(
    world: Rc<World>,
    asks: Rc<Prepared>,
    mut sender: SendRequest<Bytes>,
    mut first: Option<Instant>,
) {
    let expected = world.ask.expected();
    loop {
        let began = match first.take() {
            Some(began) => began,
            None => world.pace.turn().await,
        };
        let result = exchange(&mut sender, &asks, &expected).await;
        let failed = result.is_err();
        world.tally.count(began, result).await;
        if failed {
            return;
        }
    }
}

/// A connection of HTTP/2, whose frames are read by a task of its own.
pub(super) async fn dial(target: SocketAddr) -> Result<SendRequest<Bytes>, Failure> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(stream)
        .await?;
    // What ends the connection also ends its requests, where it is counted.
    tokio::task::spawn_local(async move { drop(connection.await) });
    Ok(sender)
}

/// A request that is sent again and again.
pub(super) struct Prepared {
    head: Request<()>,
    body: Option<Bytes>,
    kind: Kind,
}

impl Prepared {
    pub(super) fn new(ask: &Ask, kind: Kind) -> Self {
        let mut head = Request::builder()
            .uri(format!("http://app.test:8080{}", ask.path))
            .header("user-agent", "load");
        let mut body = ask.upload.map(|length| Bytes::from(vec![b'u'; length]));
        if kind == Kind::Grpc {
            head = head
                .header("content-type", "application/grpc")
                .header("te", "trailers");
            body = Some(grpc::message(&body.unwrap_or_default()));
        } else {
            head = head.header("accept", "*/*");
        }
        if let Some(body) = &body {
            head = head.method("POST");
            if kind == Kind::Plain {
                head = head.header("content-length", body.len());
            }
        }
        if let Some(session) = &ask.session {
            head = head.header("x-dev-session", session);
        }
        let head = head.body(()).expect("its parts are valid");
        Self { head, body, kind }
    }
}

/// Sends a request, reads its answer to the end and checks it.
pub(super) async fn exchange(
    sender: &mut SendRequest<Bytes>,
    asks: &Prepared,
    expected: &Expected<'_>,
) -> Result<(), Failure> {
    std::future::poll_fn(|context| sender.poll_ready(context)).await?;
    let (answer, mut upload) = sender.send_request(asks.head.clone(), asks.body.is_none())?;
    if let Some(body) = &asks.body {
        upload.send_data(body.clone(), true)?;
    }
    let (head, mut body) = answer.await?.into_parts();
    let mut got = Got {
        status: head.status.as_u16(),
        length: 0,
        right_origin: head
            .headers
            .get("x-origin")
            .is_some_and(|origin| origin.as_bytes() == expected.origin),
    };
    while let Some(chunk) = body.data().await {
        let length = chunk?.len();
        body.flow_control().release_capacity(length)?;
        got.length += length as u64;
    }
    if asks.kind == Kind::Grpc {
        let trailers = body.trailers().await?;
        let status = trailers
            .as_ref()
            .and_then(|trailers| trailers.get("grpc-status"));
        if got.status == 200 && status.is_none_or(|status| status != "0") {
            return Err(Failure::GrpcStatus);
        }
        got.length = got.length.saturating_sub(grpc::PREFIX);
    }
    expected.check(&got)
}
