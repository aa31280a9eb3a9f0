//! The manifests of `config/rbac`, held against the roles that are made.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding};
use serde_json::{Value, from_value};

use super::golden::{KINDS, intercept};
use super::rights::of_proxy;
use crate::control::intercept::{Backend, TargetKind, Telepresence};

/// Verb, group, resource, name; any name when it is empty.
type Right = [String; 4];

const NONE: [Right; 0] = [];

fn manifests(file: &str) -> Vec<Value> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config/rbac");
    serde_saphyr::from_multiple(&fs::read_to_string(folder.join(file)).unwrap()).unwrap()
}

/// What some files together grant to a service account.
fn granted(files: &[&str], account: &str) -> BTreeSet<Right> {
    let mut roles: Vec<Role> = Vec::new();
    let mut bindings: Vec<RoleBinding> = Vec::new();
    for manifest in files.iter().flat_map(|file| manifests(file)) {
        match manifest["kind"].as_str() {
            Some("Role") => roles.push(from_value(manifest).unwrap()),
            Some("RoleBinding") => bindings.push(from_value(manifest).unwrap()),
            _ => {}
        }
    }
    bindings.retain(|binding| {
        let subjects = binding.subjects.iter().flatten();
        subjects.into_iter().any(|subject| subject.name == account)
    });
    let bound = bindings.iter().map(|binding| {
        let is_bound = |role: &&Role| {
            role.metadata.name.as_ref() == Some(&binding.role_ref.name)
                && role.metadata.namespace == binding.metadata.namespace
        };
        roles.iter().find(is_bound).expect("what is bound is there")
    });
    let rules: Vec<_> = bound.flat_map(|role| role.rules.clone().unwrap()).collect();
    rights(&rules)
}

fn rights(rules: &[PolicyRule]) -> BTreeSet<Right> {
    let any = vec![String::new()];
    let mut rights = BTreeSet::new();
    for rule in rules {
        for verb in &rule.verbs {
            for group in rule.api_groups.iter().flatten() {
                for resource in rule.resources.iter().flatten() {
                    let names = rule.resource_names.as_ref().unwrap_or(&any);
                    rights.extend(
                        names
                            .iter()
                            .map(|name| [verb, group, resource, name].map(String::clone)),
                    );
                }
            }
        }
    }
    rights
}

fn any_name([verb, group, resource, _]: Right) -> Right {
    [verb, group, resource, String::new()]
}

/// The rights that are not among the granted ones, which are for any name.
fn missing(rights: BTreeSet<Right>, granted: &BTreeSet<Right>) -> Vec<Right> {
    let rights = rights.into_iter().map(any_name);
    rights.filter(|right| !granted.contains(right)).collect()
}

/// Nobody can grant what he has not.
#[test]
fn a_deployer_has_all_that_it_grants_to_a_proxy() {
    let deployer = granted(&["deployer.yaml"], "session-proxy-deployer");

    for kind in KINDS {
        for (is_ephemeral, may_delete) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            let mut intercept = intercept(kind);
            intercept.agent.is_ephemeral = is_ephemeral;
            let proxy = rights(&of_proxy(&intercept, may_delete));
            assert_eq!(
                missing(proxy, &deployer),
                NONE,
                "{kind:?} {is_ephemeral} {may_delete}"
            );
        }
    }
}

#[test]
fn the_manifests_grant_a_proxy_what_its_own_role_would_for_any_target_and_no_more() {
    for (agents, is_ephemeral) in [("mirrord.yaml", false), ("mirrord-ephemeral.yaml", true)] {
        let granted = granted(&["proxy.yaml", agents], "session-proxy");
        let mut needed = BTreeSet::new();
        for kind in KINDS {
            let mut intercept = intercept(kind);
            intercept.agent.is_ephemeral = is_ephemeral;
            needed.extend(
                rights(&of_proxy(&intercept, false))
                    .into_iter()
                    .map(any_name),
            );
        }

        assert_eq!(granted, needed, "{agents}");
    }
}

/// Where the traffic manager is in another namespace, its own role is for that.
#[test]
fn the_manifests_grant_a_proxy_of_telepresence_what_its_own_role_would() {
    let granted = granted(&["proxy.yaml", "telepresence.yaml"], "session-proxy");

    for kind in KINDS {
        let mut intercept = intercept(kind);
        intercept.backend = Backend::Telepresence(Telepresence {
            manager_namespace: "ambassador".to_owned(),
            services: Vec::new(),
        });
        let proxy = rights(&of_proxy(&intercept, false));
        assert_eq!(missing(proxy, &granted), NONE, "{kind:?}");
    }
}

#[test]
fn only_who_may_heal_a_target_may_delete_pods() {
    let delete = ["delete", "", "pods", ""].map(str::to_owned);
    let intercept = intercept(TargetKind::Deployment);

    assert!(rights(&of_proxy(&intercept, true)).contains(&delete));
    assert!(!rights(&of_proxy(&intercept, false)).contains(&delete));
}

#[test]
fn no_manifest_reaches_beyond_its_namespace_or_grants_everything() {
    let kustomization = manifests("kustomization.yaml").remove(0);
    let mut files: Vec<String> = from_value(kustomization["resources"].clone()).unwrap();
    files.extend(["mirrord-ephemeral.yaml", "telepresence.yaml"].map(str::to_owned));

    for file in files {
        for manifest in manifests(&file) {
            let kind = manifest["kind"].as_str().unwrap();
            assert!(
                ["Role", "RoleBinding", "ServiceAccount"].contains(&kind),
                "{file}: {kind}"
            );
            assert!(
                manifest["metadata"]["namespace"].is_string(),
                "{file}: {manifest}"
            );
            assert!(!manifest.to_string().contains('*'), "{file}: {manifest}");
        }
    }
}
