//! The origin behind every proxy: one thread, answers made before the first request.

mod h1;
mod h2;

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use clap::Args;
use tokio::net::{TcpSocket, TcpStream};

/// What a client of HTTP/2 sends first, and no request of HTTP/1.
const PREFACE: &[u8] = b"PRI";
/// As many as the largest case has clients.
const BACKLOG: u32 = 4096;

#[derive(Args)]
pub struct Options {
    /// The address to listen on; with port 0 the one chosen is printed
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// What every answer says in x-origin
    #[arg(long)]
    name: String,
}

/// Answers until the process is ended.
pub async fn run(options: Options) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(options.listen)?;
    let listener = socket.listen(BACKLOG)?;
    println!("{}", listener.local_addr()?);
    let answers = Rc::new(Answers::of(&options.name));
    loop {
        // A client that left before it was accepted is no reason to end.
        if let Ok((stream, _)) = listener.accept().await {
            tokio::task::spawn_local(serve(stream, Rc::clone(&answers)));
        }
    }
}

async fn serve(stream: TcpStream, answers: Rc<Answers>) {
    let mut first = [0; PREFACE.len()];
    // A connection that fails is the client's to notice and to count.
    let _ = match stream.peek(&mut first).await {
        Ok(_) if first == PREFACE => h2::serve(stream, answers).await,
        Ok(_) => h1::serve(stream, answers).await,
        Err(_) => Ok(()),
    };
}

/// Everything that is ever answered.
pub struct Answers {
    name: String,
    small: Answer,
    ten_kib: Answer,
    one_mib: Answer,
}

/// One body, and the same with its HTTP/1 head before it.
pub struct Answer {
    body: Bytes,
    h1: Bytes,
}

impl Answers {
    fn of(name: &str) -> Self {
        let answer = |size| Answer::new(name, size);
        Self {
            name: name.to_owned(),
            small: answer(100),
            ten_kib: answer(10 * 1024),
            one_mib: answer(1024 * 1024),
        }
    }

    /// The answer to this path. An upload to any of them is read and answered the same way.
    fn to(&self, path: &[u8]) -> &Answer {
        if path.ends_with(b"/10k") {
            &self.ten_kib
        } else if path.ends_with(b"/1m") {
            &self.one_mib
        } else {
            &self.small
        }
    }
}

impl Answer {
    fn new(name: &str, size: usize) -> Self {
        let body = vec![b'x'; size];
        let mut h1 = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {size}\r\nx-origin: {name}\r\n\r\n"
        )
        .into_bytes();
        h1.extend_from_slice(&body);
        Self {
            body: body.into(),
            h1: h1.into(),
        }
    }
}
