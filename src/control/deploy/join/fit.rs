//! How an object that is there compares with the one that this call would make.

use kube::ResourceExt;
use kube::api::DynamicObject;
use serde_json::Value;

use super::{ACCOUNT, FILE, Fit, INTERCEPT};
use crate::control::cluster::{Draft, Kind};
use crate::control::intercept::{Backend, Intercept};
use crate::control::objects::annotations;

/// Compares an object with the wanted one. `account` is the uid of the proxy's service account, where it
/// has one of its own.
pub(super) fn of(
    draft: &Draft,
    there: &DynamicObject,
    wanted: &Intercept,
    account: Option<&str>,
) -> Fit {
    match draft.name.kind {
        Kind::Pod => of_pod(draft, there, wanted, account),
        Kind::ConfigMap => of_config_map(there, wanted),
        _ if covers(&there.data, &draft.object.data) => Fit::Same,
        kind => Fit::Tolerable(format!(
            "its {} are not what this version needs",
            kind.resource()
        )),
    }
}

fn of_pod(draft: &Draft, there: &DynamicObject, wanted: &Intercept, account: Option<&str>) -> Fit {
    let phase = there.data["status"]["phase"].as_str().unwrap_or_default();
    if matches!(phase, "Failed" | "Succeeded") {
        let reason = there.data["status"]["reason"].as_str().unwrap_or(phase);
        return Fit::Useless(format!("it has ended: {reason}"));
    }
    let note = |object: &DynamicObject, key: &str| object.annotations().get(key).cloned();
    if let (Some(began_with), Some(account)) = (note(there, ACCOUNT), account)
        && began_with != account
    {
        return Fit::Useless(
            "its service account was made anew, so its token is refused".to_owned(),
        );
    }
    let configured = note(there, INTERCEPT).map(|text| of_intercept(&text, wanted));
    if let Some(fit @ (Fit::Other(_) | Fit::Tolerable(_))) = configured {
        return fit;
    }
    let image = |object: &DynamicObject| {
        let image = object.data["spec"]["containers"][0]["image"].as_str();
        image.unwrap_or_default().to_owned()
    };
    let (theirs, ours) = (image(there), image(&draft.object));
    if theirs != ours {
        return Fit::Tolerable(format!("it runs {theirs}, and not {ours}"));
    }
    if note(there, annotations::SPEC_HASH) != note(&draft.object, annotations::SPEC_HASH) {
        return Fit::Tolerable("it was made by another version of session-proxy".to_owned());
    }
    Fit::Same
}

fn of_config_map(there: &DynamicObject, wanted: &Intercept) -> Fit {
    let text = there.data["data"][FILE].as_str().unwrap_or_default();
    of_intercept(text, wanted)
}

/// Compares what is intercepted, and how.
fn of_intercept(there: &str, wanted: &Intercept) -> Fit {
    let Ok(there) = serde_json::from_str::<Intercept>(there) else {
        return Fit::Other("its configuration is of another version of session-proxy".to_owned());
    };
    let ports = |intercept: &Intercept| {
        let ports = intercept.ports.iter();
        let ports = ports.map(|port| format!("{} {}", port.container_port, port.protocol.word()));
        ports.collect::<Vec<_>>().join(", ")
    };
    let baggage = |intercept: &Intercept| match &*intercept.baggage_key {
        "" => "none".to_owned(),
        key => key.to_owned(),
    };
    let facts = [
        (
            "target",
            there.target.to_string(),
            wanted.target.to_string(),
        ),
        ("ports", ports(&there), ports(wanted)),
        (
            "session header",
            there.header.clone(),
            wanted.header.clone(),
        ),
        ("baggage key", baggage(&there), baggage(wanted)),
        (
            "mode",
            format!("{:?}", there.mode),
            format!("{:?}", wanted.mode),
        ),
    ];
    let differing: Vec<_> = facts
        .into_iter()
        .filter(|(_, theirs, ours)| theirs != ours)
        .map(|(what, theirs, ours)| format!("its {what}: {theirs}, and not {ours}"))
        .collect();
    if !differing.is_empty() {
        return Fit::Other(differing.join("; "));
    }
    if there == *wanted {
        return Fit::Same;
    }
    let means = match wanted.backend {
        Backend::Mirrord => "agents have another image, namespace or kind",
        Backend::Telepresence(_) => "agents, Services or traffic manager are others",
    };
    Fit::Tolerable(format!("its {means}"))
}

/// Whether everything that is wanted is there; the API server may have added to it.
fn covers(there: &Value, wanted: &Value) -> bool {
    match (there, wanted) {
        (Value::Object(there), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, value)| there.get(key).is_some_and(|theirs| covers(theirs, value))),
        (Value::Array(there), Value::Array(wanted)) => {
            there.len() == wanted.len()
                && there
                    .iter()
                    .zip(wanted)
                    .all(|(theirs, ours)| covers(theirs, ours))
        }
        _ => there == wanted,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::control::cluster::Name;

    fn intercept(more: &Value) -> Intercept {
        let mut intercept = json!({
            "app": "orders", "namespace": "staging",
            "target": {"kind": "deployment", "name": "orders"},
            "ports": [{"containerPort": 8080, "protocol": "http"}],
            "header": "x-dev-session", "baggageKey": "dev-session", "mode": "steal",
            "agent": {"namespace": "staging", "isEphemeral": false, "image": null},
        });
        for (key, value) in more.as_object().unwrap() {
            intercept[key] = value.clone();
        }
        serde_json::from_value(intercept).unwrap()
    }

    fn object(value: Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    fn draft(kind: Kind, value: Value) -> Draft {
        Draft {
            name: Name::new(kind, "staging", "mirrord-proxy-orders"),
            object: object(value),
        }
    }

    fn proxy(image: &str, annotations: &Value) -> Value {
        json!({
            "metadata": {"name": "mirrord-proxy-orders", "annotations": annotations},
            "spec": {"containers": [{"name": "session-proxy", "image": image}]},
        })
    }

    #[test]
    fn another_intercept_is_told_fact_by_fact() {
        let wanted = intercept(&json!({}));
        let there = |more: Value| serde_json::to_string(&intercept(&more)).unwrap();
        assert_eq!(of_intercept(&there(json!({})), &wanted), Fit::Same);

        let ports = json!([{"containerPort": 8080, "protocol": "http"}, {"containerPort": 9090, "protocol": "grpc"}]);
        for (more, expected) in [
            (
                json!({"ports": ports}),
                "its ports: 8080 http, 9090 grpc, and not 8080 http",
            ),
            (
                json!({"baggageKey": ""}),
                "its baggage key: none, and not dev-session",
            ),
            (
                json!({"header": "x-pr", "target": {"kind": "statefulset", "name": "orders"}}),
                "its target: statefulset/orders, and not deployment/orders; its session header: x-pr, and not x-dev-session",
            ),
        ] {
            let fit = of_intercept(&there(more), &wanted);
            assert_eq!(fit, Fit::Other(expected.to_owned()));
        }
        let agent = json!({"namespace": "agents", "isEphemeral": false, "image": "a"});
        let fit = of_intercept(&there(json!({"agent": agent})), &wanted);
        assert!(matches!(fit, Fit::Tolerable(_)), "{fit:?}");
        assert!(matches!(of_intercept("{}", &wanted), Fit::Other(_)));
    }

    #[test]
    fn a_proxy_pod_is_judged_by_what_it_was_started_with() {
        let wanted = intercept(&json!({}));
        let began = json!({ACCOUNT: "uid-1", INTERCEPT: serde_json::to_string(&wanted).unwrap()});
        let draft = draft(Kind::Pod, proxy("r/proxy:1", &json!({})));
        let fit = |value: Value, account: &str| of(&draft, &object(value), &wanted, Some(account));

        assert_eq!(fit(proxy("r/proxy:1", &began), "uid-1"), Fit::Same);
        // One that somebody made by hand from a dry run has no notes.
        assert_eq!(fit(proxy("r/proxy:1", &json!({})), "uid-1"), Fit::Same);
        assert_eq!(
            fit(proxy("r/proxy:2", &began), "uid-1"),
            Fit::Tolerable("it runs r/proxy:2, and not r/proxy:1".to_owned())
        );
        assert!(matches!(
            fit(proxy("r/proxy:1", &began), "uid-2"),
            Fit::Useless(_)
        ));
        let mut evicted = proxy("r/proxy:1", &began);
        evicted["status"] = json!({"phase": "Failed", "reason": "Evicted"});
        assert_eq!(
            fit(evicted, "uid-1"),
            Fit::Useless("it has ended: Evicted".to_owned())
        );
        let other = serde_json::to_string(&intercept(&json!({"header": "x-pr"}))).unwrap();
        let other = proxy("r/proxy:1", &json!({ACCOUNT: "uid-1", INTERCEPT: other}));
        assert!(matches!(fit(other, "uid-1"), Fit::Other(_)));
    }

    #[test]
    fn what_the_api_server_adds_makes_no_difference_and_what_is_missing_does() {
        let rules = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]);
        let draft = draft(Kind::Role, json!({"metadata": {}, "rules": rules}));
        let fit = |value: Value| of(&draft, &object(value), &intercept(&json!({})), None);

        assert_eq!(
            fit(json!({"metadata": {"uid": "x"}, "rules": rules, "more": 1})),
            Fit::Same
        );
        let fewer = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]);
        assert!(matches!(
            fit(json!({"metadata": {}, "rules": fewer})),
            Fit::Tolerable(_)
        ));
    }
}
