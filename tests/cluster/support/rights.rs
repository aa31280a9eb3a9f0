//! RBAC rules: as a test writes them, as a manifest has them, and with one verb taken out.

use std::fmt;
use std::path::Path;

use k8s_openapi::api::rbac::v1::{PolicyRule, Role};
use serde_json::Value;

/// One verb on one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Right {
    pub group: String,
    /// With its subresource, as RBAC writes it: `pods/log`.
    pub resource: String,
    pub verb: String,
}

/// A rule: these verbs on these resources of a group, `""` for the core.
pub fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> PolicyRule {
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    PolicyRule {
        api_groups: Some(vec![group.to_owned()]),
        resources: Some(owned(resources)),
        verbs: owned(verbs),
        ..PolicyRule::default()
    }
}

/// The rules of the Role of that name in a manifest.
pub fn role_in(manifest: &Path, name: &str) -> Vec<PolicyRule> {
    let text = std::fs::read_to_string(manifest)
        .unwrap_or_else(|error| panic!("{}: {error}", manifest.display()));
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(&text).expect("a manifest is a list of YAML documents");
    documents
        .into_iter()
        .filter(|document| document["kind"] == "Role" && document["metadata"]["name"] == name)
        .find_map(|document| serde_json::from_value::<Role>(document).ok()?.rules)
        .unwrap_or_else(|| panic!("{} has no Role {name}", manifest.display()))
}

/// For each right in these rules: the right, and the rules without it.
pub fn one_less(rules: &[PolicyRule]) -> Vec<(Right, Vec<PolicyRule>)> {
    let single: Vec<PolicyRule> = rules.iter().flat_map(apart).collect();
    (0..single.len())
        .map(|index| {
            let mut rest = single.clone();
            let taken = rest.remove(index);
            (right(&taken), rest)
        })
        .collect()
}

/// The same rule, as rules of one verb on one resource.
fn apart(rule: &PolicyRule) -> Vec<PolicyRule> {
    let mut single = Vec::new();
    for group in rule.api_groups.iter().flatten() {
        for resource in rule.resources.iter().flatten() {
            for verb in &rule.verbs {
                single.push(PolicyRule {
                    api_groups: Some(vec![group.clone()]),
                    resources: Some(vec![resource.clone()]),
                    verbs: vec![verb.clone()],
                    ..rule.clone()
                });
            }
        }
    }
    single
}

fn right(single: &PolicyRule) -> Right {
    let only = |values: &Option<Vec<String>>| values.as_ref().map_or("", |v| &v[0]).to_owned();
    Right {
        group: only(&single.api_groups),
        resource: only(&single.resources),
        verb: single.verbs[0].clone(),
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)
    }
}
