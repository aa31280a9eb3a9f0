//! mirrord's agents, as real Jobs of a namespace.

use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};

use super::namespace::Namespace;
use crate::it::support::hub::{Home, agent_labels, job_name};

/// Makes them and takes them away, as the administrator.
pub struct Agents {
    jobs: Api<Job>,
    pods: Api<Pod>,
}

impl Home for Agents {
    async fn admit(&self, session: &str, config: &Value) {
        self.create(session, config).await;
        while !self.lives(session).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn refuse(&self, session: &str, config: &Value) {
        self.create(session, config).await;
        // mirrord waits for a minute, the Job's controller complains much earlier.
        tokio::time::sleep(Duration::from_secs(3)).await;
    }

    async fn remove(&self, session: &str) {
        // It may be gone already.
        let params = DeleteParams::background();
        let _ = self.jobs.delete(&job_name(session), &params).await;
    }

    async fn lives(&self, session: &str) -> bool {
        let params = ListParams::default().labels(&format!("job-name={}", job_name(session)));
        let pods = self
            .pods
            .list(&params)
            .await
            .expect("the administrator may list");
        pods.items.iter().any(|pod| {
            let phase = pod
                .status
                .as_ref()
                .and_then(|status| status.phase.as_deref());
            pod.metadata.deletion_timestamp.is_none() && phase == Some("Running")
        })
    }
}

impl Agents {
    pub fn of(namespace: &Namespace) -> Self {
        Self {
            jobs: namespace.api(),
            pods: namespace.api(),
        }
    }

    async fn create(&self, session: &str, config: &Value) {
        let labels = agent_labels(config);
        let job = json!({
            "metadata": { "name": job_name(session), "labels": labels },
            "spec": { "backoffLimit": 0, "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "restartPolicy": "Never",
                    "hostPID": true,
                    "containers": [{ "name": "mirrord-agent", "image": "registry.example/agent:1" }],
                },
            } },
        });
        let job = serde_json::from_value(job).expect("this is a job");
        self.jobs
            .create(&PostParams::default(), &job)
            .await
            .expect("the administrator may make jobs");
    }
}
