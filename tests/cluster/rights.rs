//! The rights of the deployers of `config/rbac`: with them everything works, and each that is missing is
//! named by whoever misses it.

use std::path::{Path, PathBuf};

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding};
use kube::api::DeleteParams;
use serde_json::json;

use crate::support::account::Account;
use crate::support::cluster::Cluster;
use crate::support::kubelet::Script;
use crate::support::namespace::Namespace;
use crate::support::rights::{Right, one_less, role_in};
use crate::support::run::{Ended, Run};
use crate::support::stage::{Stage, deployer};

/// Who the proxies are where the agents are apart.
const PROXIES: &str = "session-proxy";

/// What only other commands ask for, and what depends on the kind of the target or of the agents.
const NOT_NEEDED_HERE: [&str; 7] = [
    "get services",
    "get statefulsets",
    "get replicasets",
    "get rollouts",
    "get pods/ephemeralcontainers",
    "update pods/ephemeralcontainers",
    "patch pods/ephemeralcontainers",
];

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn each_right_that_is_missing_is_named() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    let mut accounts = Vec::new();
    for (number, (right, rest)) in one_less(&deployer()).into_iter().enumerate() {
        let name = format!("less-{number}");
        accounts.push((right, stage.namespace.account(&name, &rest).await));
    }

    assert_eq!(unnamed(&stage, None, &accounts).await, [""; 0]);
}

#[tokio::test]
#[ignore = "needs a control plane: tests/cluster/run"]
async fn each_right_that_is_missing_is_named_where_the_agents_are_apart() {
    let cluster = Cluster::shared().await;
    let stage = Stage::with(&cluster, &[("orders", 1)]).await;
    let agents = cluster.namespace().await;
    stage.namespace.account(PROXIES, &[]).await;
    let here = manifest("deployer-agents-apart.yaml", "session-proxy-deployer");
    let there = manifest("mirrord.yaml", "session-proxy-cleanup");
    let less_here = one_less(&here).into_iter();
    let less_there = one_less(&there).into_iter();
    let both = less_here
        .map(|(right, rest)| (right, rest, there.clone()))
        .chain(less_there.map(|(right, rest)| (right, here.clone(), rest)));
    let mut accounts = Vec::new();
    for (number, (right, here, there)) in both.enumerate() {
        let name = format!("less-{number}");
        let account = stage.namespace.account(&name, &here).await;
        account.grant(&agents, &there).await;
        accounts.push((right, account));
    }

    assert_eq!(unnamed(&stage, Some(&agents), &accounts).await, [""; 0]);
}

/// The rights that nobody misses, of accounts which each lack one.
async fn unnamed(
    stage: &Stage,
    agents: Option<&Namespace>,
    accounts: &[(Right, Account)],
) -> Vec<String> {
    let crash = Script::CrashLoopBackOff { exit_code: 1 };
    stage.kubelet.script("pr-orders-crash", crash);
    let mut unnamed = Vec::new();
    for (right, account) in accounts {
        if NOT_NEEDED_HERE.contains(&&*right.to_string()) {
            continue;
        }
        let actor = Actor {
            stage,
            agents,
            kubeconfig: account.kubeconfig(),
            is_missing: &|said| names(said, right),
        };
        if !actor.meets_its_limit().await {
            unnamed.push(right.to_string());
        }
        stage.hear();
        for session in ["pr-1", "pr-2", "crash"] {
            let cleaned = stage.cleanup(&["--session", session]);
            cleaned.end().await.well();
        }
        stage.is_clean().await;
    }
    unnamed
}

/// The rules of a role of `config/rbac`.
fn manifest(file: &str, role: &str) -> Vec<PolicyRule> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/rbac");
    role_in(&folder.join(file), role)
}

/// Somebody who does everything there is to do, until a right is missing.
struct Actor<'a> {
    stage: &'a Stage,
    /// Where mirrord's agents are, if not beside the apps.
    agents: Option<&'a Namespace>,
    kubeconfig: PathBuf,
    is_missing: &'a dyn Fn(&Ended) -> bool,
}

impl Actor<'_> {
    async fn meets_its_limit(&self) -> bool {
        self.deploys("pr-1", &[]).await
            || self.deploys("pr-2", &[]).await
            || self.cleans_up("pr-2").await
            || self.takes_away_what_others_left().await
            || self.deploys("crash", &["--timeout", "2s"]).await
            || self.cleans_up_agents().await
    }

    async fn deploys(&self, session: &str, more: &[&str]) -> bool {
        let mut more = more.to_vec();
        if let Some(agents) = self.agents {
            more.extend(["--agent-namespace", agents.name()]);
            more.extend(["--proxy-service-account", PROXIES]);
        }
        let arguments = self.stage.deploy_arguments(session, &["orders"], &more);
        self.misses(arguments).await
    }

    async fn cleans_up(&self, session: &str) -> bool {
        let mut more = vec!["--session", session];
        if let Some(agents) = self.agents {
            more.extend(["--agent-namespace", agents.name()]);
        }
        let arguments = self.stage.cleanup_arguments(&more);
        self.misses(arguments).await
    }

    /// A PR pod that was there before stays, so that nothing made beside it goes by itself.
    async fn takes_away_what_others_left(&self) -> bool {
        let namespace = &self.stage.namespace;
        let name = "mirrord-proxy-orders";
        macro_rules! delete {
            ($($kind:ty),*) => {$(
                let deleted = namespace.api::<$kind>().delete(name, &DeleteParams::default()).await;
                // It may not be there: then somebody has failed without saying why.
                drop(deleted);
            )*};
        }
        delete!(Pod, ConfigMap, RoleBinding, Role, ServiceAccount);
        self.stage.deafen("orders-");
        let misses = self.deploys("pr-1", &["--timeout", "3s"]).await;
        self.stage.hear();
        misses || self.deploys("pr-1", &[]).await
    }

    async fn cleans_up_agents(&self) -> bool {
        let proxy = self.stage.pod("mirrord-proxy-orders").await;
        let Some(proxy) = proxy.and_then(|proxy| proxy.metadata.uid) else {
            return false;
        };
        let labels =
            json!({"app": "mirrord", "session-proxy/app": "orders", "session-proxy/proxy": proxy});
        let agent: Job = serde_json::from_value(json!({
            "metadata": {"generateName": "agent-", "labels": labels},
            "spec": {"suspend": true, "template": {"spec": {
                "restartPolicy": "Never",
                "containers": [{"name": "agent", "image": "registry.example/agent:1"}],
            }}},
        }))
        .expect("this is a job");
        if let Some(agents) = self.agents {
            // Beside the apps whoever may not delete pods has met that limit before.
            let container = json!({"name": "agent", "image": "registry.example/agent:1"});
            let alone: Pod = serde_json::from_value(json!({
                "metadata": {"generateName": "agent-", "labels": agent.metadata.labels},
                "spec": {"containers": [container]},
            }))
            .expect("this is a pod");
            agents.create(&alone).await;
        }
        let agents = self.agents.unwrap_or(&self.stage.namespace);
        agents.create(&agent).await;
        self.cleans_up("pr-1").await
    }

    async fn misses(&self, arguments: Vec<String>) -> bool {
        let ended = Run::start(&self.kubeconfig, arguments).end().await;
        // Shown when the test fails.
        eprintln!("{ended}");
        (self.is_missing)(&ended)
    }
}

/// Whether it failed and said so, in its own words, or in the API server's when it comes to granting.
fn names(said: &Ended, right: &Right) -> bool {
    let Right { verb, resource, .. } = right;
    let missing = format!("not allowed to {verb} {resource} in namespace");
    let ungrantable = format!("Resources:[\"{resource}\"], Verbs:[\"{verb}\"]");
    let is_grant = said.stderr.contains("permissions not currently held")
        && said.stderr.contains("--proxy-service-account");
    said.code == Some(1)
        && (said.stderr.contains(&missing) || (is_grant && said.stderr.contains(&ungrantable)))
}
