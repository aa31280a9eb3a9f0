//! Answers to requests whose body nobody wants: the client gets to read them whole.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, Join, Sink, join, sink};
use tokio::net::tcp::OwnedReadHalf;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::support::proxy::{Proxy, Setup};
use crate::support::raw;
use crate::support::upstream::Upstream;
use crate::support::wire::{Ending, Wire};
use crate::support::within;

/// A POST of the session `pr-42` that is sent while its answer is read.
pub struct Upload {
    pub wire: Wire<Join<OwnedReadHalf, Sink>>,
    pub sending: JoinHandle<io::Result<()>>,
}

impl Upload {
    pub async fn of(address: SocketAddr, length: usize, piece: usize, pause: Duration) -> Self {
        let mut wire = raw::connect(address).await;
        wire.send(head(length)).await.expect("the proxy reads");
        let (reading, mut writing) = wire.stream.into_split();
        let sending = tokio::spawn(async move {
            let bytes = vec![b'x'; piece];
            for _ in 0..length / piece {
                writing.write_all(&bytes).await?;
                sleep(pause).await;
            }
            writing.flush().await
        });
        Self {
            wire: Wire::new(join(reading, sink())),
            sending,
        }
    }
}

fn head(length: usize) -> String {
    format!(
        "POST / HTTP/1.1\r\nhost: a\r\nx-dev-session: pr-42\r\ncontent-length: {length}\r\n\r\n"
    )
}

/// A proxy that knows another session, and has no baseline.
async fn knowing_another(timeouts: &str) -> (Upstream, Proxy) {
    let app = Upstream::site("pr-1").await;
    let setup = Setup::new().session("pr-1", app.address).top(timeouts);
    (app, setup.start().await)
}

#[tokio::test]
async fn a_refused_upload_reads_its_answer_before_any_reset() {
    let (_app, proxy) = knowing_another("").await;

    for _ in 0..3 {
        let pause = Duration::from_millis(10);
        let mut upload = Upload::of(proxy.http(), 1 << 20, 64 << 10, pause).await;
        let answer = within("an answer", upload.wire.answer("POST"))
            .await
            .expect("an answer");

        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (404, "unknown-session")
        );
        assert_eq!(answer.header("connection").as_deref(), Some("close"));
        let sent = within("the upload", upload.sending)
            .await
            .expect("no panic");
        sent.expect("it could be sent to its end");
        let (rest, ending) = within("the end", upload.wire.rest()).await;
        assert_eq!((&rest[..], ending), (&b""[..], Ending::Fin));
    }
}

#[tokio::test]
async fn a_refused_upload_that_reads_only_when_all_is_sent_reads_its_answer() {
    let (_app, proxy) = knowing_another("").await;

    for _ in 0..3 {
        let mut wire = raw::connect(proxy.http()).await;
        wire.send(head(1 << 20)).await.expect("open");
        for _ in 0..16 {
            let sent = wire.send(vec![b'x'; 64 << 10]).await;
            sent.expect("no reset before the answer was read");
            sleep(Duration::from_millis(10)).await;
        }
        let answer = within("an answer", wire.answer("POST"))
            .await
            .expect("an answer");

        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (404, "unknown-session")
        );
        assert_eq!(answer.header("connection").as_deref(), Some("close"));
    }
}

#[tokio::test]
async fn a_small_body_behind_its_answer_is_not_taken_for_another_request() {
    let timeouts = "timeouts: { requestHeaders: 200ms, keepAlive: 500ms }";
    let (_app, proxy) = knowing_another(timeouts).await;

    for pieces in [["", "hello"], ["he", "llo"], ["hell", "o"]] {
        let mut wire = raw::connect(proxy.http()).await;
        wire.send(head(5) + pieces[0]).await.expect("open");
        sleep(Duration::from_millis(50)).await;
        wire.send(pieces[1]).await.expect("open");
        let answer = within("an answer", wire.answer("POST")).await;
        let (rest, _) = within("the end", wire.rest()).await;

        assert_eq!(answer.expect("an answer").status, 404, "{pieces:?}");
        assert_eq!(String::from_utf8_lossy(&rest), "", "{pieces:?}");
    }
}
