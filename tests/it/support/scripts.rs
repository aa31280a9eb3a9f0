//! HTTP/1 upstreams that misbehave in one named way each.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::upstream::{Peer, Upstream};
use super::wire::Framing;

/// How a connection is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// In order, with FIN.
    Close,
    Reset,
}

impl Break {
    pub fn both() -> [Self; 2] {
        [Self::Close, Self::Reset]
    }

    fn apply(self, peer: Peer) -> io::Result<()> {
        match self {
            Self::Close => Ok(()),
            Self::Reset => peer.reset(),
        }
    }
}

/// The part of a body that a broken upstream still sends.
pub const PART: &str = "first half";

/// The length a broken upstream promised.
pub const PROMISED: u64 = 20;

impl Upstream {
    /// Answers every request with 200 and its own name; keeps connections for ever.
    pub async fn plain(name: &str) -> Self {
        Self::that_closes_after(name, usize::MAX).await
    }

    /// Answers that many requests on each connection, then closes it without a warning.
    pub async fn that_closes_after(name: &str, requests: usize) -> Self {
        Self::raw(name, move |mut peer| async move {
            for _ in 0..requests {
                if peer.request().await?.is_none() {
                    break;
                }
                let name = peer.account.name.clone();
                peer.ok(&name).await?;
            }
            Ok(())
        })
        .await
    }

    /// Closes a connection on which nothing has come for that long.
    pub async fn that_closes_idle_after(name: &str, idle: Duration) -> Self {
        Self::raw(name, move |mut peer| async move {
            while let Ok(Some(_)) = timeout(idle, peer.request()).await.unwrap_or(Ok(None)) {
                let name = peer.account.name.clone();
                peer.ok(&name).await?;
            }
            Ok(())
        })
        .await
    }

    /// Breaks every connection as soon as it is accepted.
    pub async fn that_breaks_on_accept(name: &str, how: Break) -> Self {
        Self::raw(name, move |peer| async move { how.apply(peer) }).await
    }

    /// Reads a whole request and breaks the connection instead of answering.
    pub async fn that_breaks_before_answering(name: &str, how: Break) -> Self {
        Self::raw(name, move |mut peer| async move {
            peer.request().await?;
            how.apply(peer)
        })
        .await
    }

    /// Breaks the connection in the middle of its response head.
    pub async fn that_breaks_in_the_head(name: &str, how: Break) -> Self {
        Self::raw(name, move |mut peer| async move {
            peer.request().await?;
            peer.wire.send("HTTP/1.1 200 OK\r\nx-half: ").await?;
            sleep(Duration::from_millis(20)).await;
            how.apply(peer)
        })
        .await
    }

    /// Sends a head and [`PART`] of the body, then breaks the connection.
    ///
    /// A body that lasts until the close can only be broken with a reset: a FIN is its good end.
    pub async fn that_breaks_in_the_middle(name: &str, framing: Framing, how: Break) -> Self {
        Self::raw(name, move |mut peer| async move {
            peer.request().await?;
            send_part(&mut peer, framing).await?;
            // The part must have been read before a reset, which throws away what was not.
            sleep(Duration::from_millis(50)).await;
            how.apply(peer)
        })
        .await
    }

    /// Answers most requests; about every fifth time, at a random point, it closes, resets or hangs.
    pub async fn that_fails_at_random(name: &str, seed: u64) -> Self {
        let random = Arc::new(Mutex::new(fastrand::Rng::with_seed(seed)));
        Self::raw(name, move |mut peer| {
            let random = random.clone();
            async move {
                loop {
                    let choice = random.lock().expect("no test panics with it").u8(0..30);
                    if choice == 0 {
                        return peer.reset();
                    }
                    if peer.request().await?.is_none() {
                        return Ok(());
                    }
                    match choice {
                        1 => return Ok(()),
                        2 => return peer.reset(),
                        3 => return hang(peer).await,
                        4 => return send_part(&mut peer, Framing::Length(PROMISED)).await,
                        5 => return send_part(&mut peer, Framing::Chunked).await,
                        _ => {}
                    }
                    let name = peer.account.name.clone();
                    peer.ok(&name).await?;
                    if choice == 6 {
                        return Ok(());
                    }
                }
            }
        })
        .await
    }

    /// Reads a request and never answers.
    pub async fn that_hangs_before_the_head(name: &str) -> Self {
        Self::raw(name, |mut peer| async move {
            peer.request().await?;
            hang(peer).await
        })
        .await
    }

    /// Sends a head and [`PART`] of the body, then nothing more.
    pub async fn that_hangs_in_the_middle(name: &str, framing: Framing) -> Self {
        Self::raw(name, move |mut peer| async move {
            peer.request().await?;
            send_part(&mut peer, framing).await?;
            hang(peer).await
        })
        .await
    }

    /// Accepts and never reads a byte.
    pub async fn that_never_reads(name: &str) -> Self {
        Self::raw(name, |peer| async move {
            sleep(Duration::from_secs(3600)).await;
            drop(peer);
            Ok(())
        })
        .await
    }

    /// Answers every request with exactly these bytes.
    pub async fn that_answers(name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::raw(name, move |mut peer| {
            let bytes = bytes.clone();
            async move {
                while peer.request().await?.is_some() {
                    peer.wire.send(&bytes).await?;
                }
                Ok(())
            }
        })
        .await
    }

    /// Answers one request on each connection with exactly these bytes, then closes it.
    pub async fn that_answers_and_closes(name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::raw(name, move |mut peer| {
            let bytes = bytes.clone();
            async move {
                peer.request().await?;
                peer.wire.send(&bytes).await
            }
        })
        .await
    }

    /// Answers with exactly these bytes, one at a time with a pause before each.
    pub async fn that_drips(name: &str, bytes: impl Into<Vec<u8>>, pause: Duration) -> Self {
        let bytes = bytes.into();
        Self::raw(name, move |mut peer| {
            let bytes = bytes.clone();
            async move {
                while peer.request().await?.is_some() {
                    for byte in &bytes {
                        sleep(pause).await;
                        peer.wire.send([*byte]).await?;
                    }
                }
                Ok(())
            }
        })
        .await
    }

    /// Agrees to every upgrade and sends back every byte, until the client's half is closed.
    pub async fn that_upgrades(name: &str) -> Self {
        Self::raw(name, |mut peer| async move {
            peer.request().await?;
            let head = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                        sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
            peer.wire.send(head).await?;
            loop {
                let bytes = peer.wire.some().await?;
                if bytes.is_empty() {
                    return peer.wire.send("closed by the client").await;
                }
                peer.wire.send(bytes).await?;
            }
        })
        .await
    }
}

/// Keeps the connection open until the client ends it.
async fn hang(mut peer: Peer) -> io::Result<()> {
    while !peer.wire.some().await?.is_empty() {}
    peer.account.cancel();
    Ok(())
}

async fn send_part(peer: &mut Peer, framing: Framing) -> io::Result<()> {
    let framing = match framing {
        Framing::Length(_) => Framing::Length(PROMISED),
        other => other,
    };
    let head = peer.head_of_200(framing);
    let part = match framing {
        Framing::Chunked => format!("{:x}\r\n{PART}\r\n", PART.len()),
        _ => PART.to_owned(),
    };
    peer.wire.send(head + &part).await
}
