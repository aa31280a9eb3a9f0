//! The ways a request can take to the proxy: one test body runs them all.

use std::net::SocketAddr;

use http::Version;

use super::client::{self, H2};
use super::mirrord::Sender;
use super::raw;
use super::request::{Answer, Request};
use super::within;

/// Who carries the request, in which version of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A client of its own connection.
    Direct,
    /// The same over HTTP/2.
    DirectH2,
    /// Stolen by mirrord.
    Mirrord,
    /// Stolen by mirrord, over HTTP/2 unless an idle HTTP/1 connection is there.
    MirrordH2,
}

impl Way {
    /// Over HTTP/1, with mirrord and without.
    pub fn both() -> [Self; 2] {
        [Self::Direct, Self::Mirrord]
    }

    /// Both versions, with mirrord and without.
    pub fn all() -> [Self; 4] {
        [Self::Direct, Self::DirectH2, Self::Mirrord, Self::MirrordH2]
    }

    /// A client that takes this way to that listener.
    pub async fn client(self, address: SocketAddr) -> Client {
        match self {
            Self::Direct => Client::H1(address),
            Self::DirectH2 => Client::H2(client::h2(address).await),
            Self::Mirrord => Client::Mirrord(Sender::new(address), Version::HTTP_11),
            Self::MirrordH2 => Client::Mirrord(Sender::new(address), Version::HTTP_2),
        }
    }

    /// One request this way, with a client of its own.
    pub async fn send(self, address: SocketAddr, request: Request) -> Answer {
        let mut client = self.client(address).await;
        client.send(request).await
    }
}

/// A client that takes one [`Way`].
pub enum Client {
    /// A fresh connection for each request.
    H1(SocketAddr),
    H2(H2),
    Mirrord(Sender, Version),
}

impl Client {
    pub async fn send(&mut self, request: Request) -> Answer {
        let what = format!("{} {}", request.method, request.target);
        within(&what, self.attempt(&request)).await
    }

    pub async fn get(&mut self, target: &str) -> Answer {
        self.send(Request::get(target)).await
    }

    async fn attempt(&mut self, request: &Request) -> Answer {
        match self {
            Self::H1(address) => {
                let mut wire = raw::connect(*address).await;
                wire.ask(&client::with_host(request))
                    .await
                    .expect("an answer")
            }
            Self::H2(connection) => client::ask_h2(connection, request)
                .await
                .expect("an answer"),
            Self::Mirrord(sender, version) => {
                let version = if request.version == Version::HTTP_11 {
                    *version
                } else {
                    request.version
                };
                let answer = sender.send(&request.clone().version(version)).await;
                assert_eq!(answer.tries, 1, "a connection closed without an answer");
                answer
            }
        }
    }
}
