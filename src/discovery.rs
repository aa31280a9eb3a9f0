//! Pods by label: which sessions the cluster has, and where they are served.
//!
//! The pods of one app are listed and then watched, for as long as somebody holds a [`Discovery`]. Each
//! change is a new table. A session is in it for as long as it has a pod, ready or not. Whatever fails is
//! tried again, and until that succeeds the last table stays: an API server that is away takes no session
//! with it. What the table is laid beside, and that requests follow it, is for others to see to.
//!
//! This file is for those who want the table; `follower` does the work, `pods` knows what the table is.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::info;

use self::follower::Follower;
use crate::kubernetes::{Access, AccessError, Refusal};
use crate::metrics::DiscoveryMetrics;
use crate::upstream::Discovered;

mod follower;
mod pods;

/// How long a start waits for the first table.
const PATIENCE: Duration = Duration::from_secs(30);

/// The pods of an app, followed until this is dropped.
pub struct Discovery {
    pods: String,
    tables_rx: watch::Receiver<Arc<Discovered>>,
    standing_rx: watch::Receiver<Standing>,
    /// Ends when dropped.
    _follower: JoinSet<()>,
}

/// How it stands with the API server.
#[derive(Debug, Clone)]
enum Standing {
    /// It has not answered yet.
    Unknown,
    /// What changes reaches us.
    Followed,
    Trouble(Arc<Trouble>),
}

/// Why the pods cannot be followed at this moment.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl Trouble {
    /// Whether to wait is in vain until somebody changes credentials or rights.
    fn is_ours(&self) -> bool {
        match self {
            Self::Access(_) => true,
            Self::Refused(refusal) => refusal.is_for_want_of_rights(),
        }
    }
}

/// Why there is no first table.
#[derive(Debug, thiserror::Error)]
pub enum NoTable {
    #[error("cannot follow {pods}: {trouble}")]
    Trouble { pods: String, trouble: Arc<Trouble> },
    #[error("no list of {pods} after {PATIENCE:?}: {trouble}")]
    TooLate { pods: String, trouble: Arc<Trouble> },
    #[error("no list of {pods} after {PATIENCE:?}: the API server does not answer")]
    Silence { pods: String },
}

impl Discovery {
    /// Starts to follow the pods. Must be called on a runtime.
    pub fn start(
        access: Access,
        namespace: &str,
        app: &str,
        metrics: Arc<DiscoveryMetrics>,
    ) -> Self {
        let (tables_tx, tables_rx) = watch::channel(Arc::default());
        let (standing_tx, standing_rx) = watch::channel(Standing::Unknown);
        let follower = Follower::new(access, namespace, app, metrics, tables_tx, standing_tx);
        let mut tasks = JoinSet::new();
        tasks.spawn(follower.follow());
        Self {
            pods: format!("the pods of app {app} in namespace {namespace}"),
            tables_rx,
            standing_rx,
            _follower: tasks,
        }
    }

    /// Waits until the table is there and is being kept true.
    ///
    /// # Errors
    /// At once when credentials or rights are missing, otherwise after half a minute.
    pub async fn first(&mut self) -> Result<(), NoTable> {
        let pods = || self.pods.clone();
        info!(pods = self.pods, "waiting for the first list");
        let is_decided = |standing: &Standing| match standing {
            Standing::Unknown => false,
            Standing::Followed => true,
            Standing::Trouble(trouble) => trouble.is_ours(),
        };
        let deciding = self.standing_rx.wait_for(is_decided);
        let decided = match timeout(PATIENCE, deciding).await {
            Ok(Ok(standing)) => Some(standing.clone()),
            _ => None,
        };
        let standing = self.standing_rx.borrow().clone();
        match (decided, standing) {
            (Some(Standing::Trouble(trouble)), _) => Err(NoTable::Trouble {
                pods: pods(),
                trouble,
            }),
            (Some(_), _) => Ok(()),
            (None, Standing::Trouble(trouble)) => Err(NoTable::TooLate {
                pods: pods(),
                trouble,
            }),
            (None, _) => Err(NoTable::Silence { pods: pods() }),
        }
    }

    /// Waits for another table than the one last taken.
    pub async fn changed(&mut self) {
        if self.tables_rx.changed().await.is_err() {
            // It ends with us only, unless it has panicked; then there is nothing more to come.
            std::future::pending().await
        }
    }

    /// The table as it is now.
    pub fn table(&mut self) -> Arc<Discovered> {
        self.tables_rx.borrow_and_update().clone()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::time::Instant;

    use super::*;
    use crate::metrics::Metrics;

    /// Nobody listens there: it was bound, and is free again.
    fn nobody() -> (tempfile::NamedTempFile, Access) {
        let held = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = held.local_addr().expect("it is bound");
        let file = tempfile::NamedTempFile::new().expect("a writable temp folder");
        let text = format!(
            "current-context: c\ncontexts: [{{ name: c, context: {{ cluster: c, user: u }} }}]\n\
             clusters: [{{ name: c, cluster: {{ server: \"http://{address}\" }} }}]\n\
             users: [{{ name: u, user: {{}} }}]\n"
        );
        std::fs::write(file.path(), text).expect("writable");
        let access = Access {
            kubeconfig: Some(file.path().to_owned()),
            ..Access::default()
        };
        (file, access)
    }

    /// Time passes here as fast as nothing happens.
    #[tokio::test(start_paused = true)]
    async fn a_start_waits_half_a_minute_and_then_says_for_what() {
        let (_file, access) = nobody();
        let metrics = Metrics::new("test", "none").begin_discovery();
        let start = Instant::now();

        let mut discovery = Discovery::start(access, "staging", "orders", metrics.clone());
        let none = discovery.first().await.expect_err("nobody is there");

        assert!(start.elapsed() >= PATIENCE);
        let expected =
            "no list of the pods of app orders in namespace staging after 30s: cannot list pods";
        assert!(none.to_string().starts_with(expected), "{none}");
        assert_eq!(metrics.up.get(), 0);
        // As often as the waits allow, and no more often.
        assert!((5..20).contains(&metrics.errors.get()), "{metrics:?}");
    }

    #[tokio::test]
    async fn credentials_that_are_none_are_not_waited_for() {
        let access = Access {
            kubeconfig: Some("/nowhere/kubeconfig".into()),
            ..Access::default()
        };
        let metrics = Metrics::new("test", "none").begin_discovery();

        let mut discovery = Discovery::start(access, "staging", "orders", metrics);
        let none = discovery.first().await.expect_err("no credentials");

        assert!(none.to_string().contains("/nowhere/kubeconfig"), "{none}");
    }
}
