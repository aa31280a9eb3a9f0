//! A way into the cluster: kubeconfig or in-cluster credentials, and refusals in words that help.
//!
//! Which objects are read and written is up to those who ask; this room knows how to reach the API
//! server, as kubectl would, and what its refusals mean. No request waits for ever: a server that has
//! taken one and says nothing is given up on.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Status;
use kube::{Client, Config};

/// How long the API server may say nothing while it is asked something.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a watch should ask to be served. Shorter than our patience with silence, 30 s: so a quiet
/// watch is ended by the API server, in order, and one that nobody serves any more is noticed soon after.
pub const WATCH_SECONDS: u32 = 25;

/// The label that says which app something belongs to.
pub const APP_LABEL: &str = "session-proxy/app";

/// The label that says which session a pod of a pull request serves.
pub const SESSION_LABEL: &str = "session-proxy/session";

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
        "no cluster to talk to: {0}; name a kubeconfig in KUBECONFIG, or run in a pod with a service account"
    )]
    Nowhere(kube::config::InferConfigError),
    #[error("the kubeconfig makes no sense: {0}")]
    Context(kube::config::KubeconfigError),
    #[error("cannot make a client of the cluster's credentials: {}", cause(.0))]
    Client(kube::Error),
}

impl Access {
    /// A client, without having asked the cluster anything yet.
    ///
    /// # Errors
    /// No credentials, or ones that cannot be used.
    pub async fn client(&self) -> Result<Client, AccessError> {
        let config = self.patient_config().await?;
        Client::try_from(config).map_err(AccessError::Client)
    }

    /// A client for those who try again by themselves: it tells at once that the API server is
    /// overloaded or starting, where the other tries again up to fifteen times.
    ///
    /// # Errors
    /// As [`client`](Self::client).
    pub async fn candid_client(&self) -> Result<Client, AccessError> {
        let mut config = self.patient_config().await?;
        config.default_retry = false;
        Client::try_from(config).map_err(AccessError::Client)
    }

    async fn patient_config(&self) -> Result<Config, AccessError> {
        let mut config = self.config().await?;
        config.connect_timeout = Some(CONNECT_PATIENCE);
        config.write_timeout = Some(PATIENCE);
        config.read_timeout = Some(PATIENCE);
        // A connection that has lain idle must not be short of time when it is used again.
        config.reset_reader_on_write = true;
        if self.impersonate.is_some() {
            config.auth_info.impersonate.clone_from(&self.impersonate);
        }
        if !self.impersonate_groups.is_empty() {
            config.auth_info.impersonate_groups = Some(self.impersonate_groups.clone());
        }
        Ok(config)
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
    /// Told by this refusal's own words, so it is no source of it.
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

    /// Whether a right is missing, as the authorizer puts it: `pods is forbidden: User "x" cannot list ...`.
    /// Admission refuses with the same status: pod security, quotas, webhooks.
    pub fn lacks_right(&self) -> bool {
        self.response().is_some_and(|response| {
            response.code == 403 && response.message.contains("is forbidden: User ")
        })
    }

    /// Whether asking again is in vain until somebody changes credentials or rights.
    pub fn is_for_want_of_rights(&self) -> bool {
        matches!(self.code(), Some(401 | 403))
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
            (Some(403), Some(response)) if self.lacks_right() => write!(
                f,
                "not allowed to {verb} {resource} in namespace {namespace}: {}; grant the verb {verb} on {resource}",
                response.message
            ),
            (Some(401), Some(_)) => write!(
                f,
                "cannot {verb} {resource} in namespace {namespace}: the API server does not accept the credentials; are they expired?"
            ),
            (_, Some(response)) => write!(
                f,
                "cannot {verb} {resource} in namespace {namespace}: {}",
                if response.message.is_empty() {
                    &response.reason
                } else {
                    &response.message
                }
            ),
            (_, None) => write!(
                f,
                "cannot {verb} {resource} in namespace {namespace}: {}; is the API server reachable?",
                cause(&self.error)
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

/// What lies at the bottom of an error; the layers above it only say who passed it on.
fn cause(error: &kube::Error) -> String {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(error: kube::Error) -> Refusal {
        Err::<(), _>(error)
            .doing("list", "pods", "staging")
            .expect_err("an error stays one")
    }

    fn answered(code: u16, message: &str) -> Refusal {
        let status = Status::failure(message, "Reason").with_code(code);
        refused(kube::Error::Api(status.boxed()))
    }

    #[test]
    fn a_refusal_says_what_was_refused_and_what_to_do() {
        let io = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        for (refusal, expected) in [
            (
                answered(403, "pods is forbidden: User \"x\" cannot list"),
                "not allowed to list pods in namespace staging: pods is forbidden: User \"x\" cannot list; grant the verb list on pods",
            ),
            (
                answered(403, "violates PodSecurity"),
                "cannot list pods in namespace staging: violates PodSecurity",
            ),
            (
                answered(401, "Unauthorized"),
                "cannot list pods in namespace staging: the API server does not accept the credentials; are they expired?",
            ),
            (
                answered(503, "etcd is away"),
                "cannot list pods in namespace staging: etcd is away",
            ),
            (
                answered(500, ""),
                "cannot list pods in namespace staging: Reason",
            ),
            (
                refused(kube::Error::ReadEvents(io)),
                "cannot list pods in namespace staging: connection refused; is the API server reachable?",
            ),
        ] {
            assert_eq!(refusal.to_string(), expected);
            // Printed with its sources, it does not say everything twice.
            assert_eq!(format!("{:#}", anyhow::Error::from(refusal)), expected);
        }
    }

    #[test]
    fn only_credentials_and_rights_are_not_worth_another_try() {
        for (code, is_in_vain) in [
            (401, true),
            (403, true),
            (404, false),
            (410, false),
            (503, false),
        ] {
            assert_eq!(
                answered(code, "").is_for_want_of_rights(),
                is_in_vain,
                "{code}"
            );
        }
        let unreachable = refused(kube::Error::TlsRequired);
        assert!(!unreachable.is_for_want_of_rights());
        assert_eq!(unreachable.code(), None);
    }

    const KUBECONFIG: &str = "
        apiVersion: v1
        kind: Config
        current-context: here
        contexts:
          - { name: here, context: { cluster: one, user: me, namespace: staging } }
          - { name: there, context: { cluster: two, user: me } }
        clusters:
          - { name: one, cluster: { server: 'http://127.0.0.1:1' } }
          - { name: two, cluster: { server: 'http://127.0.0.1:2' } }
        users:
          - { name: me, user: {} }
    ";

    fn access(text: &str) -> (tempfile::NamedTempFile, Access) {
        let file = tempfile::NamedTempFile::new().expect("a writable temp folder");
        std::fs::write(file.path(), text).expect("writable");
        let access = Access {
            kubeconfig: Some(file.path().to_owned()),
            ..Access::default()
        };
        (file, access)
    }

    #[tokio::test]
    async fn a_kubeconfig_is_read_as_kubectl_reads_it() {
        let (_file, here) = access(KUBECONFIG);
        let there = Access {
            context: Some("there".to_owned()),
            impersonate: Some("alice".to_owned()),
            impersonate_groups: vec!["qa".to_owned()],
            ..here.clone()
        };

        let (one, two) = (
            here.patient_config().await.expect("a cluster"),
            there.patient_config().await.expect("a cluster"),
        );

        assert_eq!(one.cluster_url.port_u16(), Some(1));
        assert_eq!(one.default_namespace, "staging");
        assert_eq!(two.cluster_url.port_u16(), Some(2));
        assert_eq!(two.auth_info.impersonate.as_deref(), Some("alice"));
        assert_eq!(
            two.auth_info.impersonate_groups,
            Some(vec!["qa".to_owned()])
        );
        assert!(
            one.read_timeout.expect("no request waits for ever")
                > Duration::from_secs(WATCH_SECONDS.into())
        );
        here.candid_client().await.expect("a client");
    }

    #[tokio::test]
    async fn a_kubeconfig_that_helps_nobody_is_named() {
        let (file, broken) = access("clusters: 7");
        let (_other, unknown) = access(KUBECONFIG);
        let unknown = Access {
            context: Some("nowhere".to_owned()),
            ..unknown
        };
        let missing = Access {
            kubeconfig: Some("/nowhere/kubeconfig".into()),
            ..Access::default()
        };

        let told = async |access: Access| match access.client().await {
            Ok(_) => panic!("a client of nothing"),
            Err(error) => error.to_string(),
        };

        assert!(
            told(broken)
                .await
                .contains(&file.path().display().to_string())
        );
        assert!(told(unknown).await.contains("nowhere"));
        assert!(told(missing).await.contains("/nowhere/kubeconfig"));
    }
}
