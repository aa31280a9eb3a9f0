//! A way into the cluster: kubeconfig or in-cluster credentials, and refusals in words that help.
//!
//! Which objects are read and written is up to those who ask; this room knows how to reach the API
//! server, as kubectl would, and what its refusals mean.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Status;
use kube::{Client, Config};

/// How long one request may take. Watches are longer, and kube gives them their own limit.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the connection may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// What kubectl's flags of the same names say. All empty: `KUBECONFIG`, `~/.kube/config`, then the
/// pod's own service account, as kubectl looks.
#[derive(Debug, Clone, Default)]
pub struct Access {
    pub kubeconfig: Option<PathBuf>,
    pub context: Option<String>,
    /// `--as`: the user to act as.
    pub impersonate: Option<String>,
    pub impersonate_groups: Vec<String>,
}

/// Why the cluster cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("cannot read the kubeconfig {}: {error}", path.display())]
    Kubeconfig {
        path: PathBuf,
        error: kube::config::KubeconfigError,
    },
    #[error(
        "no cluster to talk to: {0}; name a kubeconfig with --kubeconfig, or run in a pod with a service account"
    )]
    Nowhere(kube::config::InferConfigError),
    #[error("the kubeconfig makes no sense: {0}")]
    Context(kube::config::KubeconfigError),
    #[error("cannot make a client of the cluster's credentials: {0}")]
    Client(kube::Error),
}

impl Access {
    /// A client, without having asked the cluster anything yet.
    ///
    /// # Errors
    /// No credentials, or ones that cannot be used.
    pub async fn client(&self) -> Result<Client, AccessError> {
        let mut config = self.config().await?;
        config.connect_timeout = Some(CONNECT_PATIENCE);
        config.write_timeout = Some(PATIENCE);
        if self.impersonate.is_some() {
            config.auth_info.impersonate.clone_from(&self.impersonate);
        }
        if !self.impersonate_groups.is_empty() {
            config.auth_info.impersonate_groups = Some(self.impersonate_groups.clone());
        }
        Client::try_from(config).map_err(AccessError::Client)
    }

    async fn config(&self) -> Result<Config, AccessError> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        match &self.kubeconfig {
            Some(path) => {
                let read = |error| AccessError::Kubeconfig {
                    path: path.clone(),
                    error,
                };
                let kubeconfig = Kubeconfig::read_from(path).map_err(read)?;
                Config::from_custom_kubeconfig(kubeconfig, &options)
                    .await
                    .map_err(AccessError::Context)
            }
            None if self.context.is_some() => Config::from_kubeconfig(&options)
                .await
                .map_err(AccessError::Context),
            None => Config::infer().await.map_err(AccessError::Nowhere),
        }
    }
}

/// What somebody was doing to an object when the API server refused.
#[derive(Debug)]
pub struct Deed {
    /// An RBAC verb: `get`, `list`, `watch`, `create`, `patch`, `delete`.
    pub verb: &'static str,
    /// As RBAC names it: `pods`, `pods/log`, `leases`.
    pub resource: &'static str,
    pub namespace: String,
}

/// A request to the API server that failed, in the words of whoever must mend it.
#[derive(Debug, thiserror::Error)]
pub struct Refusal {
    pub deed: Deed,
    #[source]
    pub error: kube::Error,
}

impl Refusal {
    /// The API server's own answer, when there was one.
    pub fn response(&self) -> Option<&Status> {
        match &self.error {
            kube::Error::Api(response) => Some(response),
            _ => None,
        }
    }

    /// HTTP status of the answer; `None` when the API server could not be reached.
    pub fn code(&self) -> Option<u16> {
        self.response().map(|response| response.code)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Deed {
            verb,
            resource,
            namespace,
        } = &self.deed;
        match (self.code(), self.response()) {
            (Some(403), Some(response)) => write!(
                f,
                "not allowed to {verb} {resource} in namespace {namespace}: {}; grant the verb {verb} on {resource}",
                response.message
            ),
            (_, Some(response)) => write!(
                f,
                "cannot {verb} {resource} in namespace {namespace}: {}",
                response.message
            ),
            (_, None) => write!(
                f,
                "cannot {verb} {resource} in namespace {namespace}: {}; is the API server reachable?",
                self.error
            ),
        }
    }
}

/// Names what was being done when a request to the API server failed.
pub trait Doing<T> {
    /// `pods().await.doing("list", "pods", "staging")?`
    ///
    /// # Errors
    /// The failure, with what was being done.
    fn doing(
        self,
        verb: &'static str,
        resource: &'static str,
        namespace: &str,
    ) -> Result<T, Refusal>;
}

impl<T> Doing<T> for kube::Result<T> {
    fn doing(
        self,
        verb: &'static str,
        resource: &'static str,
        namespace: &str,
    ) -> Result<T, Refusal> {
        self.map_err(|error| Refusal {
            deed: Deed {
                verb,
                resource,
                namespace: namespace.to_owned(),
            },
            error,
        })
    }
}
