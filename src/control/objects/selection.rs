//! Whether a pod of ours would be taken for one of the baseline's.

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use super::Pairs;

/// What keeps pods by their labels: a workload, as messages call it (`deployment/orders`).
#[derive(Debug, Clone, Copy)]
pub struct Workload<'a> {
    pub name: &'a str,
    pub selector: &'a LabelSelector,
}

/// Whether a label selector takes something with these labels. An empty one takes everything.
pub fn matches(selector: &LabelSelector, labels: &Pairs) -> bool {
    let pairs = selector.match_labels.iter().flatten();
    let requirements = selector.match_expressions.iter().flatten();
    pairs
        .into_iter()
        .all(|(key, value)| labels.get(key) == Some(value))
        && requirements
            .into_iter()
            .all(|requirement| holds(requirement, labels))
}

fn holds(requirement: &LabelSelectorRequirement, labels: &Pairs) -> bool {
    let value = labels.get(&requirement.key);
    let is_listed =
        value.is_some_and(|value| requirement.values.iter().flatten().any(|v| v == value));
    match requirement.operator.as_str() {
        "In" => is_listed,
        // True of what has no such label, too.
        "NotIn" => !is_listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        // One that nobody has heard of yet: rather too careful than sorry.
        _ => true,
    }
}

/// Everything among the namespace's Services and workloads that would take this pod for its own, each with
/// what would come of it and the remedy; empty when it is safe to create.
///
/// A Service would send untagged requests to it, a workload would adopt it, count it as a replica and
/// delete it, or one of its own in its place.
pub fn claimants(pod: &Pod, services: &[Service], workloads: &[Workload<'_>]) -> Vec<String> {
    let none = Pairs::new();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&none);
    let services = services.iter().filter_map(|service| {
        let selector = service.spec.as_ref()?.selector.as_ref()?;
        // Endpoints of a Service without a selector are somebody else's business.
        let is_taken = !selector.is_empty() && selector.iter().all(|(k, v)| labels.get(k) == Some(v));
        is_taken.then(|| {
            format!(
                "service/{} selects {}, and so would send untagged requests to pod {name}; let it select a label as well that only the baseline's pods have",
                service.metadata.name.as_deref().unwrap_or_default(),
                in_words(selector),
            )
        })
    });
    let workloads = workloads.iter().filter(|workload| matches(workload.selector, labels)).map(|workload| {
        format!(
            "{} would take pod {name} for one of its own, because its selector matches the pod's labels; let it select a label as well that only the baseline's pods have",
            workload.name
        )
    });
    services.chain(workloads).collect()
}

fn in_words(selector: &Pairs) -> String {
    let pairs: Vec<_> = selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
    pairs.join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn selector(value: Value) -> LabelSelector {
        from_value(value).unwrap()
    }

    fn labels() -> Pairs {
        [("app", "pr-test"), ("component", "orders")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into()
    }

    #[test]
    fn a_selector_is_read_as_the_cluster_reads_it() {
        let table = [
            (json!({}), true),
            (json!({"matchLabels": {"component": "orders"}}), true),
            (json!({"matchLabels": {"component": "order"}}), false),
            (
                json!({"matchLabels": {"component": "orders", "tier": "web"}}),
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "pr-test"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "tier", "operator": "In", "values": ["web"]}]}),
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["pr-test"]}]}),
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["web"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "app", "operator": "Exists"}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}),
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}),
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}),
                true,
            ),
            (
                json!({"matchLabels": {"app": "pr-test"}, "matchExpressions": [{"key": "tier", "operator": "Exists"}]}),
                false,
            ),
        ];

        for (value, expected) in table {
            assert_eq!(
                matches(&selector(value.clone()), &labels()),
                expected,
                "{value}"
            );
        }
    }

    #[test]
    fn names_whatever_would_take_the_pod_for_its_own() {
        let pod: Pod =
            from_value(json!({"metadata": {"name": "pr-orders-pr-42", "labels": labels()}}))
                .unwrap();
        let service = |name: &str, spec: Value| -> Service {
            from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
        };
        let services = [
            service(
                "orders",
                json!({"selector": {"app": "orders", "component": "orders"}}),
            ),
            service("broad", json!({"selector": {"component": "orders"}})),
            service("headless", json!({"selector": {}})),
            service("external", json!({})),
        ];
        let own = selector(json!({"matchLabels": {"app": "orders"}}));
        let greedy =
            selector(json!({"matchExpressions": [{"key": "component", "operator": "Exists"}]}));
        let workloads = [
            Workload {
                name: "deployment/orders",
                selector: &own,
            },
            Workload {
                name: "statefulset/greedy",
                selector: &greedy,
            },
        ];

        let claimants = claimants(&pod, &services, &workloads);

        assert_eq!(claimants.len(), 2, "{claimants:?}");
        assert!(
            claimants[0].starts_with("service/broad selects component=orders,"),
            "{claimants:?}"
        );
        assert!(
            claimants[1].starts_with("statefulset/greedy would take pod pr-orders-pr-42"),
            "{claimants:?}"
        );
    }
}
