//! Clients on hyper: HTTP/2 by prior knowledge, and either version over TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::fields::Fields;
use super::request::{Answer, Request};
use super::site::{self, Body};
use super::wire::Wire;

/// Who the bed's clients say they want to talk to.
pub const AUTHORITY: &str = "app.test:8080";

/// An HTTP/2 connection; ends when the last clone is dropped.
pub type H2 = SendRequest<Body>;

/// An HTTP/2 connection over an established stream.
pub async fn h2_over<S>(stream: S) -> io::Result<H2>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = handshake.await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    Ok(sender)
}

/// An HTTP/2 connection by prior knowledge.
pub async fn h2(address: SocketAddr) -> H2 {
    let stream = TcpStream::connect(address)
        .await
        .expect("the address listens");
    h2_over(stream).await.expect("HTTP/2 by prior knowledge")
}

/// A TLS connection to that address as `app.test`.
pub async fn tls(
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("app.test").expect("a valid name");
    TlsConnector::from(config).connect(name, stream).await
}

/// One request over TLS, in the version ALPN picks.
pub async fn ask_tls(
    address: SocketAddr,
    config: Arc<ClientConfig>,
    request: &Request,
) -> io::Result<Answer> {
    let stream = tls(address, config).await?;
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        return ask_h2(&mut h2_over(stream).await?, request).await;
    }
    Wire::new(stream).ask(&with_host(request)).await
}

/// One request over an HTTP/2 connection.
///
/// # Errors
/// When no response head comes. A broken body is in the answer.
pub async fn ask_h2(connection: &mut H2, request: &Request) -> io::Result<Answer> {
    connection.ready().await.map_err(io::Error::other)?;
    let response = connection
        .send_request(to_h2(request, body_of(request)))
        .await
        .map_err(io::Error::other)?;
    Ok(read(response).await)
}

/// The request for hyper's HTTP/2 client, which makes the pseudo-header fields from the URI.
pub fn to_h2(request: &Request, body: Body) -> http::Request<Body> {
    let authority = request
        .fields
        .first("host")
        .unwrap_or_else(|| AUTHORITY.to_owned());
    let mut h2 = http::Request::builder()
        .method(request.method.as_str())
        .uri(format!("http://{authority}{}", request.target))
        .version(Version::HTTP_2)
        .body(body)
        .expect("a request that HTTP/2 can carry");
    *h2.headers_mut() = map(&request.fields);
    h2.headers_mut().remove("host");
    h2
}

/// A response read to its end, broken or not.
pub async fn read(response: http::Response<Incoming>) -> Answer {
    let (head, mut incoming) = response.into_parts();
    let (mut bytes, mut trailers, mut broken) = (BytesMut::new(), Fields::default(), None);
    while let Some(frame) = incoming.frame().await {
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => bytes.extend_from_slice(&data),
            Ok(Err(frame)) => trailers = frame.trailers_ref().map(Fields::from).unwrap_or_default(),
            Err(error) => {
                broken = Some(io::Error::other(error));
                break;
            }
        }
    }
    Answer {
        status: head.status.as_u16(),
        version: head.version,
        fields: Fields::from(&head.headers),
        body: broken.map_or_else(|| Ok(bytes.freeze()), Err),
        trailers,
        tries: 1,
    }
}

/// The request with a `Host` in front, if it has none.
pub fn with_host(request: &Request) -> Request {
    let mut request = request.clone();
    if !request.fields.has("host") {
        request
            .fields
            .0
            .insert(0, ("host".to_owned(), AUTHORITY.as_bytes().to_vec()));
    }
    request
}

fn body_of(request: &Request) -> Body {
    if request.body.is_empty() && request.trailers.0.is_empty() {
        return site::empty();
    }
    if request.trailers.0.is_empty() {
        return site::full(request.body.clone());
    }
    let trailers = map(&request.trailers);
    site::full(request.body.clone())
        .with_trailers(async move { Some(Ok(trailers)) })
        .boxed()
}

fn map(fields: &Fields) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in &fields.0 {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a name that HTTP/2 can carry");
        map.append(
            name,
            HeaderValue::from_bytes(value).expect("a value that HTTP/2 can carry"),
        );
    }
    map
}
