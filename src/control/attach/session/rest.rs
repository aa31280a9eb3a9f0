//! The time between two sessions of a pod, in which it may turn out that the pod is broken.
//!
//! An agent that was killed together with its guard leaves its rules: the pod then refuses every
//! connection, until it is deleted.

use std::io;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::scene::Scene;
use crate::control::attach::board::State;
use crate::kubernetes::{Doing, Refusal};

/// How long a pod must refuse connections before only its deletion can help.
const BROKEN_AFTER: Duration = Duration::from_secs(10);

impl Scene {
    /// Waits before the next start. A pod that refuses connections all that time, in the container
    /// that a session was for, has rules on it that nobody will take away.
    pub(super) async fn rest(&self, pause: Duration, container_id: Option<&str>) {
        let end = Instant::now() + pause;
        let mut refused_since = None;
        loop {
            if self.refuses(container_id).await {
                let since = *refused_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= BROKEN_AFTER {
                    self.broken(container_id).await;
                    return;
                }
            } else {
                refused_since = None;
                if Instant::now() >= end {
                    return;
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            sleep(left.clamp(Duration::from_millis(100), Duration::from_secs(1))).await;
        }
    }

    /// Whether the pod, in this very container, lets nobody in.
    async fn refuses(&self, container_id: Option<&str>) -> bool {
        let Some(pod) = self.pod.borrow().clone() else {
            return false;
        };
        let Some(address) = pod.address else {
            return false;
        };
        if pod.is_leaving || container_id.is_none() || pod.container_id.as_deref() != container_id {
            return false;
        }
        for port in &self.post.intercept.ports {
            let connected = TcpStream::connect((address, port.container_port));
            if let Ok(Err(error)) = timeout(Duration::from_secs(1), connected).await
                && error.kind() == io::ErrorKind::ConnectionRefused
            {
                return true;
            }
        }
        false
    }

    /// Says that only deleting the pod can help, does it when allowed to, and waits until somebody
    /// has.
    async fn broken(&self, container_id: Option<&str>) {
        let rules = "every connection to the pod is refused since a session ended without \
                     cleaning up; only deleting the pod helps";
        let message = if self.post.deletes_broken {
            match self.delete_pod().await {
                Ok(()) => format!("{rules}, which was done"),
                Err(refusal) => format!("{rules}, and that failed: {refusal}"),
            }
        } else {
            format!(
                "{rules}: kubectl delete pod -n {} {}",
                self.post.intercept.namespace, self.name
            )
        };
        tracing::error!(pod = self.name, message, "a target pod is broken");
        self.set(State::Broken, &message);
        while self.refuses(container_id).await {
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn delete_pod(&self) -> Result<(), Refusal> {
        let namespace = &self.post.intercept.namespace;
        let pods = Api::<Pod>::namespaced(self.post.client.clone(), namespace);
        let only_this = DeleteParams::default().preconditions(Preconditions {
            uid: Some(self.uid.clone()),
            resource_version: None,
        });
        let deleted = pods.delete(&self.name, &only_this).await;
        deleted.doing("delete", "pods", namespace).map(|_| ())
    }
}
