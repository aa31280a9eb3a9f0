//! Two byte streams joined: upgrades and TCP passthrough.
//!
//! Each direction ends on its own: the end of one is passed on as a half-close, the other goes on.
//! A tunnel ends when both directions have, when either side breaks, or when no byte has moved in
//! either direction for the idle limit.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use crate::deadline::Deadlines;

/// Bytes read at once, per direction. Held for as long as the tunnel lives, so not larger.
const CHUNK: usize = 16 * 1024;

/// Bytes that went through, by direction.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    pub up: u64,
    pub down: u64,
}

/// Why a tunnel ended before both sides had finished.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("no byte in either direction for too long")]
    Idle,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Joins `client` and `upstream` until both directions have ended. What was read from either side
/// before goes first. The counts hold also when the tunnel breaks.
pub async fn join<C, U>(
    client: Side<C>,
    upstream: Side<U>,
    idle: Duration,
    deadlines: &Rc<Deadlines>,
) -> (Carried, Result<(), Broken>)
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let (up, down) = (Cell::new(0), Cell::new(0));
    let (client_read, client_write) = tokio::io::split(client.stream);
    let (upstream_read, upstream_write) = tokio::io::split(upstream.stream);
    let result = {
        let mut up_pump = pin!(pump(client.first, client_read, upstream_write, &up));
        let mut down_pump = pin!(pump(upstream.first, upstream_read, client_write, &down));
        let (mut up_done, mut down_done) = (false, false);
        let alarm = deadlines.alarm();
        alarm.set(idle);
        let mut moved = (0, 0);
        poll_fn(|cx| {
            if !up_done && let Poll::Ready(result) = up_pump.as_mut().poll(cx) {
                result?;
                up_done = true;
            }
            if !down_done && let Poll::Ready(result) = down_pump.as_mut().poll(cx) {
                result?;
                down_done = true;
            }
            if up_done && down_done {
                return Poll::Ready(Ok(()));
            }
            if moved != (up.get(), down.get()) {
                moved = (up.get(), down.get());
                alarm.set(idle);
            }
            alarm.poll(cx).map(|()| Err(Broken::Idle))
        })
        .await
    };
    (
        Carried {
            up: up.get(),
            down: down.get(),
        },
        result,
    )
}

/// One end of a tunnel: the stream, and what was already read from it.
pub struct Side<S> {
    pub stream: S,
    pub first: bytes::Bytes,
}

impl<S> Side<S> {
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            first: bytes::Bytes::new(),
        }
    }
}

async fn pump<R, W>(
    first: bytes::Bytes,
    mut reader: ReadHalf<R>,
    mut writer: WriteHalf<W>,
    carried: &Cell<u64>,
) -> io::Result<()>
where
    R: AsyncRead + AsyncWrite + Unpin,
    W: AsyncRead + AsyncWrite + Unpin,
{
    if !first.is_empty() {
        writer.write_all(&first).await?;
        carried.set(carried.get() + first.len() as u64);
    }
    let mut chunk = Vec::with_capacity(CHUNK);
    loop {
        chunk.clear();
        if reader.read_buf(&mut chunk).await? == 0 {
            return half_close(&mut writer).await;
        }
        let mut rest = chunk.as_slice();
        while !rest.is_empty() {
            let written = writer.write(rest).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            carried.set(carried.get() + written as u64);
            rest = &rest[written..];
        }
        writer.flush().await?;
    }
}

/// The peer may have closed both ways already; then there is nothing left to tell it.
async fn half_close<W: AsyncWrite>(writer: &mut WriteHalf<W>) -> io::Result<()> {
    match writer.shutdown().await {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result,
    }
}
