//! What several topics wait for, and commands that run to their end.

use std::io;
use std::net::SocketAddr;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::support::PATIENCE;
use crate::support::client;
use crate::support::proxy::{Proxy, binary};
use crate::support::request::{Answer, Request};
use crate::support::wire::Wire;

/// Waits until that metric is at least `value`.
pub async fn metric_reaches(proxy: &Proxy, name: &str, labels: &[(&str, &str)], value: f64) {
    let start = Instant::now();
    loop {
        let now = proxy.metric(name, labels).await;
        if now >= value {
            return;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "{name}{labels:?} is {now}, not {value}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits for that many configurations taken up after the one at start.
pub async fn reloaded(proxy: &Proxy, times: f64) {
    let name = "session_proxy_config_reloads_total";
    metric_reaches(proxy, name, &[("result", "success")], times).await;
}

/// One request on a connection of its own; a failure is returned.
pub async fn ask(address: SocketAddr, request: &Request) -> io::Result<Answer> {
    let stream = TcpStream::connect(address).await?;
    Wire::new(stream).ask(&client::with_host(request)).await
}

/// Runs the binary to its end.
pub fn command(arguments: &[&str]) -> Output {
    Command::new(binary())
        .args(arguments)
        .env_remove("SESSION_PROXY_CONFIG")
        .output()
        .expect("the binary can be started")
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
