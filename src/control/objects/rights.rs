//! What a proxy pod may do.
//!
//! Each rule stands for something that `attach`, or mirrord on its behalf, asks of the API server, and
//! nothing is granted for more names than that takes.

use k8s_openapi::api::rbac::v1::PolicyRule;

use crate::control::intercept::{Backend, Intercept, TargetKind};

/// What takes one app's requests needs, where the agents, or the traffic manager, run in the app's own
/// namespace.
pub(super) fn of_proxy(intercept: &Intercept, may_delete_targets: bool) -> Vec<PolicyRule> {
    match intercept.backend {
        Backend::Mirrord => with_mirrord(intercept, may_delete_targets),
        Backend::Telepresence(_) => with_telepresence(intercept),
    }
}

/// The rest of the client's rights is in the traffic manager's namespace; where that is the app's own,
/// it is in here.
fn with_telepresence(intercept: &Intercept) -> Vec<PolicyRule> {
    let mut rules = vec![
        // The target's pods, which come and go, the PR pods, and the traffic manager's.
        rule("", "pods", &["get", "list", "watch"]),
        // Telepresence's client speaks to the traffic manager and to the agents through the API server.
        rule("", "pods/portforward", &["create"]),
        // It follows all that can be intercepted.
        rule("", "services", &["get", "list", "watch"]),
        rule("apps", "deployments", &["get", "list", "watch"]),
        rule("apps", "replicasets", &["get", "list", "watch"]),
        rule("apps", "statefulsets", &["get", "list", "watch"]),
    ];
    if intercept.target.kind == TargetKind::Rollout {
        rules.push(rule("argoproj.io", "rollouts", &["get", "list", "watch"]));
    }
    rules
}

fn with_mirrord(intercept: &Intercept, may_delete_targets: bool) -> Vec<PolicyRule> {
    let mut rules = vec![
        // The target's pods, which come and go; the PR pods; mirrord's agent until it runs.
        rule("", "pods", &["get", "list", "watch"]),
    ];
    if may_delete_targets {
        rules.push(rule("", "pods", &["delete"]));
    }
    rules.extend(workload(intercept));
    rules.extend([
        // One owner for each target pod: two sessions on one pod break each other.
        rule(
            "coordination.k8s.io",
            "leases",
            &["get", "create", "update", "delete"],
        ),
        // Why an agent does not start.
        rule("", "events", &["list"]),
        // mirrord waits for its agent's first line, and speaks to it through the API server.
        rule("", "pods/log", &["get"]),
        // With both verbs: which one a WebSocket needs depends on the cluster's version.
        rule("", "pods/portforward", &["get", "create"]),
    ]);
    rules.push(if intercept.agent.is_ephemeral {
        rule("", "pods/ephemeralcontainers", &["get", "update", "patch"])
    } else {
        // A job whose agent never started stays behind: it is found by its labels and deleted.
        rule("batch", "jobs", &["create", "list", "delete"])
    });
    rules
}

/// The target, from which its pods' selector is read.
fn workload(intercept: &Intercept) -> Vec<PolicyRule> {
    let (group, resource) = match intercept.target.kind {
        TargetKind::Deployment => ("apps", "deployments"),
        TargetKind::StatefulSet => ("apps", "statefulsets"),
        TargetKind::ReplicaSet => ("apps", "replicasets"),
        TargetKind::Rollout => ("argoproj.io", "rollouts"),
        TargetKind::Pod => return Vec::new(),
    };
    let mut rules = vec![PolicyRule {
        resource_names: Some(vec![intercept.target.name.clone()]),
        ..rule(group, resource, &["get"])
    }];
    if intercept.target.kind == TargetKind::Rollout {
        // A rollout may leave its template, and its selector, to a deployment of another name.
        rules.push(rule("apps", "deployments", &["get"]));
    }
    rules
}

fn rule(group: &str, resource: &str, verbs: &[&str]) -> PolicyRule {
    PolicyRule {
        api_groups: Some(vec![group.to_owned()]),
        resources: Some(vec![resource.to_owned()]),
        verbs: verbs.iter().map(|&verb| verb.to_owned()).collect(),
        ..PolicyRule::default()
    }
}
