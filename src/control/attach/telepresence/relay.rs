//! The way back to the app: connections to a port of ours, carried to the app's own port of a pod that may
//! have requests.
//!
//! By name the app's Service would lead back to the agents. The pods come and go, and a proxy reads where
//! its baseline is only once.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::control::attach::targets::Sight;

/// How long a pod may take to accept a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(1);

/// How soon a socket that accepts nothing is asked again.
const RETRY: Duration = Duration::from_millis(100);

/// A way back to one port of the app; closed when dropped.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) address: SocketAddr,
    _serving: JoinSet<()>,
}

impl Relay {
    /// # Errors
    /// No port is free.
    pub(super) async fn open(app_port: u16, sight: watch::Receiver<Sight>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, app_port, sight));
        Ok(Self {
            address,
            _serving: serving,
        })
    }
}

async fn serve(listener: TcpListener, app_port: u16, sight: watch::Receiver<Sight>) {
    let mut connections = JoinSet::new();
    let turns = AtomicUsize::new(0);
    loop {
        match listener.accept().await {
            Ok((near, _)) => {
                let pods = ready(&sight.borrow());
                let turn = turns.fetch_add(1, Ordering::Relaxed);
                connections.spawn(carry(near, pods, turn, app_port));
            }
            Err(error) => {
                debug!(%error, "the way back accepts nothing");
                sleep(RETRY).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Pods that may have requests; those that end still answer what they began.
fn ready(sight: &Sight) -> Vec<IpAddr> {
    let Sight::Pods(pods) = sight else {
        return Vec::new();
    };
    let ready = pods.values().filter(|pod| pod.is_ready && !pod.is_leaving);
    ready.filter_map(|pod| pod.address).collect()
}

/// Whoever is not carried is hung up on, which the proxy answers for.
async fn carry(mut near: TcpStream, pods: Vec<IpAddr>, turn: usize, app_port: u16) {
    for place in 0..pods.len() {
        let pod = pods[(turn + place) % pods.len()];
        match timeout(CONNECT_PATIENCE, TcpStream::connect((pod, app_port))).await {
            Ok(Ok(mut far)) => {
                // What is small is not to wait for more of it.
                let _ = (near.set_nodelay(true), far.set_nodelay(true));
                if let Err(error) = copy_bidirectional(&mut near, &mut far).await {
                    debug!(%pod, %error, "a connection to the app broke");
                    // What broke must look broken: a body may end with its connection.
                    let _ = (near.set_zero_linger(), far.set_zero_linger());
                }
                return;
            }
            Ok(Err(error)) => debug!(%pod, %error, "the app does not accept"),
            Err(_) => debug!(%pod, "the app does not accept in time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::control::attach::targets::TargetPod;
    use crate::control::telepresence::AgentPorts;

    fn pod() -> TargetPod {
        TargetPod {
            name: "orders-1".to_owned(),
            uid: "1".to_owned(),
            address: Some(Ipv4Addr::LOCALHOST.into()),
            container: "orders".to_owned(),
            container_id: None,
            is_ready: true,
            is_leaving: false,
            agent: AgentPorts::default(),
            is_bent: false,
        }
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_does_not_look_whole() {
        let app = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let app_port = app.local_addr().unwrap().port();
        let pods = Sight::Pods([("1".to_owned(), pod())].into());
        let (_sight_tx, sight) = watch::channel(pods);
        let relay = Relay::open(app_port, sight).await.unwrap();
        let mut near = TcpStream::connect(relay.address).await.unwrap();
        let (mut far, _) = app.accept().await.unwrap();
        far.write_all(b"half").await.unwrap();
        let mut half = [0; 4];
        near.read_exact(&mut half).await.unwrap();

        far.set_zero_linger().unwrap();
        drop(far);

        let rest = near.read(&mut half).await;
        assert!(rest.is_err(), "{rest:?}");
    }
}
