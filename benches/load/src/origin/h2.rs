//! The origin's HTTP/2 with prior knowledge, gRPC included.

use std::io;
use std::rc::Rc;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::TcpStream;

use super::Answers;
use crate::grpc;

const WINDOW: u32 = 1024 * 1024;

pub async fn serve(stream: TcpStream, answers: Rc<Answers>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut connection = h2::server::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_concurrent_streams(1000)
        .handshake::<_, Bytes>(stream)
        .await
        .map_err(io::Error::other)?;
    while let Some(request) = connection.accept().await {
        let (request, respond) = request.map_err(io::Error::other)?;
        let answers = Rc::clone(&answers);
        tokio::task::spawn_local(async move {
            // A stream that was reset is the client's to notice.
            let _ = answer(request, respond, &answers).await;
        });
    }
    Ok(())
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    answers: &Answers,
) -> Result<(), h2::Error> {
    let is_grpc = request
        .headers()
        .get("content-type")
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    let prepared = answers.to(request.uri().path().as_bytes());
    consume(request.into_body()).await?;
    let head = Response::builder().header("x-origin", &answers.name);
    if is_grpc {
        let head = head.header("content-type", "application/grpc").body(());
        let mut stream = respond.send_response(head.expect("its parts are valid"), false)?;
        stream.send_data(grpc::message(&prepared.body), false)?;
        let status = ("grpc-status".parse(), HeaderValue::from_static("0"));
        let name: http::HeaderName = status.0.expect("it is a valid name");
        stream.send_trailers(HeaderMap::from_iter([(name, status.1)]))
    } else {
        let head = head
            .header("content-type", "text/plain")
            .header("content-length", prepared.body.len())
            .body(());
        let mut stream = respond.send_response(head.expect("its parts are valid"), false)?;
        stream.send_data(prepared.body.clone(), true)
    }
}

async fn consume(mut body: RecvStream) -> Result<(), h2::Error> {
    while let Some(chunk) = body.data().await {
        let length = chunk?.len();
        body.flow_control().release_capacity(length)?;
    }
    body.trailers().await.map(drop)
}
