//! The admin port seen by those who ask it: `healthcheck`, `tap`, and whoever speaks for several
//! proxies.

use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::header::HOST;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::record::line::Line;

/// A probe that waits longer has failed for whoever asked.
const HEALTHCHECK_PATIENCE: Duration = Duration::from_secs(2);

/// How long the head of an answer may take.
const HEAD_PATIENCE: Duration = Duration::from_secs(5);

/// No event and no explanation is longer.
const LONGEST: usize = 1024 * 1024;

/// What an event's line begins with.
const EVENT: &[u8] = b"data: ";

/// Whether the proxy behind this admin port says it is ready; the error says why not.
pub async fn healthcheck(admin: SocketAddr) -> Result<(), String> {
    let asked = timeout(HEALTHCHECK_PATIENCE, async {
        let response = get(admin, "/readyz").await?;
        match response.status() {
            StatusCode::OK => Ok(()),
            _ => Err(format!("not ready: {}", explanation(response).await)),
        }
    });
    asked
        .await
        .unwrap_or_else(|_| Err(format!("no answer from the admin port at {admin}")))
}

/// Prints the requests of a running proxy to stdout, one line each, until Ctrl-C.
///
/// `session` and `status` (`503`, `5xx`) choose; `json` prints objects instead of fields. Ends
/// quietly when nobody reads stdout any more; it is an error when the proxy goes away.
pub async fn tap(
    admin: SocketAddr,
    session: Option<String>,
    status: Option<String>,
    json: bool,
) -> Result<(), String> {
    let query = [("session", session), ("status", status)]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .map(|(key, value)| format!("{key}={}", utf8_percent_encode(&value, NON_ALPHANUMERIC)))
        .collect::<Vec<_>>()
        .join("&");
    tokio::select! {
        ended = follow(admin, &query, io::stdout(), json) => ended,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

async fn follow(admin: SocketAddr, query: &str, out: impl Write, json: bool) -> Result<(), String> {
    let response = get(admin, &format!("/tap?{query}")).await?;
    if response.status() != StatusCode::OK {
        return Err(explanation(response).await);
    }
    match print_events(response.into_body(), out, json).await {
        Ok(()) => Err(format!("the proxy at {admin} went away")),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Prints events until the stream ends, however it ends. Errors are those of `out`.
async fn print_events(body: Incoming, mut out: impl Write, json: bool) -> io::Result<()> {
    let mut events = Events::of(body);
    while let Some(event) = events.next().await? {
        print_event(&event, &mut out, json)?;
        out.flush()?;
    }
    Ok(())
}

/// The events of a tap.
pub struct Events {
    body: Incoming,
    waiting: BytesMut,
}

impl Events {
    /// Of the answer to a request for `/tap`.
    pub fn of(body: Incoming) -> Self {
        Self {
            body,
            waiting: BytesMut::new(),
        }
    }

    /// The next one; `None` when the stream has ended, however it ended.
    ///
    /// # Errors
    /// What comes is no event.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            while let Some(end) = self.waiting.iter().position(|&byte| byte == b'\n') {
                let line = self.waiting.split_to(end).freeze();
                self.waiting.advance(1);
                if line.starts_with(EVENT) {
                    return Ok(Some(line.slice(EVENT.len()..)));
                }
            }
            if self.waiting.len() > LONGEST {
                return Err(io::Error::other(
                    "this is not the admin port of a session-proxy",
                ));
            }
            let Some(Ok(frame)) = self.body.frame().await else {
                return Ok(None);
            };
            if let Ok(data) = frame.into_data() {
                self.waiting.extend_from_slice(&data);
            }
        }
    }
}

fn print_event(event: &[u8], out: &mut impl Write, json: bool) -> io::Result<()> {
    // Read and written anew even for JSON: what reaches a terminal is printable whoever sent it.
    match serde_json::from_slice::<Line>(event) {
        Ok(line) if json => writeln!(out, "{}", line.to_json()),
        Ok(line) => writeln!(out, "{}", line.to_text()),
        Err(_) => Err(io::Error::other(
            "an event of another version of session-proxy",
        )),
    }
}

/// Asks an admin port for one thing.
///
/// # Errors
/// It cannot be reached, or says nothing in time.
pub async fn get(admin: SocketAddr, target: &str) -> Result<Response<Incoming>, String> {
    let unreachable = |error: io::Error| {
        format!("cannot reach the admin port at {admin}: {error}; is the proxy running?")
    };
    let answered = timeout(HEAD_PATIENCE, async {
        let socket = TcpStream::connect(admin).await.map_err(unreachable)?;
        let exchange = async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
            // Ends with the response: neither end keeps the connection.
            tokio::spawn(connection);
            let request = Request::get(target).header(HOST, admin.to_string());
            let request = request
                .body(Empty::<Bytes>::new())
                .expect("a target without blanks");
            sender.send_request(request).await
        };
        exchange
            .await
            .map_err(|error| format!("the admin port at {admin} broke off: {error}"))
    });
    answered
        .await
        .unwrap_or_else(|_| Err(format!("no answer from the admin port at {admin}")))
}

/// What the admin port says instead of what was asked for.
async fn explanation(response: Response<Incoming>) -> String {
    let status = response.status();
    match Limited::new(response.into_body(), LONGEST).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes())
            .trim()
            .escape_default()
            .to_string(),
        Err(_) => format!("status {status}"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::record::line::tests::line;

    /// An admin port that says this much of a tap, in pieces, and goes away.
    async fn port_that_says(pieces: Vec<String>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let _ = socket.read(&mut [0; 4096]).await.unwrap();
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
            for piece in [head.to_owned()].into_iter().chain(pieces) {
                socket.write_all(piece.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        address
    }

    #[tokio::test]
    async fn events_are_printed_one_line_each_and_the_end_is_told() {
        let event = line("pr-42\u{1b}[31m", "/a").to_json();
        let (early, late) = event.split_at(40);
        let pieces = vec![
            ": listening\n\ndata: ".into(),
            early.into(),
            format!("{late}\n\n"),
        ];

        for (json, expected) in [
            (true, event.clone()),
            (false, line("pr-42\u{1b}[31m", "/a").to_text()),
        ] {
            let address = port_that_says(pieces.clone()).await;
            let mut printed = Vec::new();
            let ended = follow(address, "", &mut printed, json).await;

            assert_eq!(String::from_utf8(printed).unwrap(), format!("{expected}\n"));
            assert_eq!(ended, Err(format!("the proxy at {address} went away")));
        }
    }

    #[tokio::test]
    async fn a_reader_that_left_ends_the_tap_quietly() {
        let address = port_that_says(vec![format!("data: {}\n\n", line("a", "/").to_json())]).await;
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);

        assert_eq!(follow(address, "", writer, false).await, Ok(()));
    }
}
