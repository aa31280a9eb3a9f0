//! Addresses where nobody is at home.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// An address that refuses connections: it was bound, and is free again.
pub async fn dead_addr() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("loopback has a free port");
    listener
        .local_addr()
        .expect("a bound listener has an address")
}

/// An address where connecting hangs.
///
/// Its listener never accepts and its backlog is full: Linux then drops every further SYN, so that
/// a client neither connects nor is refused.
pub struct Blackhole {
    pub address: SocketAddr,
    _listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

impl Blackhole {
    pub async fn new() -> Self {
        let socket = TcpSocket::new_v4().expect("sockets can be made");
        socket
            .bind("127.0.0.1:0".parse().expect("an address"))
            .expect("loopback has a free port");
        let listener = socket.listen(1).expect("a bound socket listens");
        let address = listener
            .local_addr()
            .expect("a bound listener has an address");
        let mut waiting = Vec::new();
        while let Ok(stream) =
            tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await
        {
            waiting.push(stream.expect("a full backlog drops, it does not refuse"));
            assert!(waiting.len() < 100, "this backlog never fills");
        }
        Self {
            address,
            _listener: listener,
            _waiting: waiting,
        }
    }
}
