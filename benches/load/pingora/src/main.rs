//! A proxy on pingora that does what session-proxy is measured on: requests with
//! `x-dev-session: pr-42` go to one origin, all others to another, over pooled connections.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::{Parser, ValueEnum};
use pingora::apps::HttpServerOptions;
use pingora::prelude::{Error, HttpPeer, Result};
use pingora::proxy::{ProxyHttp, ProxyServiceBuilder, Session};
use pingora::server::Server;
use pingora::server::configuration::ServerConf;

#[derive(Parser)]
struct Options {
    /// The address clients connect to: HTTP/1 and HTTP/2 with prior knowledge.
    #[arg(long)]
    listen: SocketAddr,
    /// Where requests of session pr-42 go.
    #[arg(long)]
    pr: SocketAddr,
    /// Where all other requests go.
    #[arg(long)]
    baseline: SocketAddr,
    /// The HTTP version that the origins are spoken to in.
    #[arg(long, value_enum, default_value = "h1")]
    upstream: Version,
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Version {
    H1,
    H2,
}

struct BySession {
    pr: SocketAddr,
    baseline: SocketAddr,
    upstream: Version,
}

#[async_trait::async_trait]
impl ProxyHttp for BySession {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(
        &self,
        session: &mut Session,
        (): &mut (),
    ) -> Result<Box<HttpPeer>, Box<Error>> {
        let tagged = session
            .req_header()
            .headers
            .get("x-dev-session")
            .is_some_and(|value| value == "pr-42");
        let address = if tagged { self.pr } else { self.baseline };
        let mut peer = HttpPeer::new(address, false, String::new());
        if self.upstream == Version::H2 {
            peer.options.set_http_version(2, 2);
            // One stream at a time is the default; what the origin allows is the limit here.
            peer.options.max_h2_streams = 100;
        }
        Ok(Box::new(peer))
    }
}

fn main() {
    let options = Options::parse();
    let conf = ServerConf {
        threads: options.threads,
        // As many as the clients of any case, so that no connection is made twice.
        upstream_keepalive_pool_size: 1024,
        // Ends at once when asked to.
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(0),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();

    let mut both_versions = HttpServerOptions::default();
    both_versions.h2c = true;
    let by_session = BySession {
        pr: options.pr,
        baseline: options.baseline,
        upstream: options.upstream,
    };
    let conf = Arc::clone(&server.configuration);
    let mut service = ProxyServiceBuilder::new(&conf, by_session)
        .server_options(both_versions)
        .build();
    service.add_tcp(&options.listen.to_string());
    server.add_service(service);
    server.run_forever();
}
