//! `/config`: the plan in force, in the shape of the file, defaults filled in. Sessions found in the cluster
//! are no configuration: `/sessions` has them.

use std::sync::Arc;

use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::matcher::Table;
use crate::plan::{HttpListener, Limits, Listener, ListenerKind, OnUnavailable, Plan, Timeouts};
use crate::upstream::{Endpoint, Protocol, Source, Upstream};

/// The answer, as one JSON object.
pub(super) fn json(plan: &Plan) -> String {
    let file = File {
        session: json!({
            "header": plan.rule.header.as_str(),
            "baggageKey": plan.rule.baggage_key.as_deref().unwrap_or(""),
        }),
        listeners: plan.listeners.iter().map(listener).collect(),
        sessions: InOrder(&plan.sessions),
        discovery: plan
            .discovery
            .as_ref()
            .map(|pods| json!({ "kubernetes": { "namespace": pods.namespace, "app": pods.app } })),
        admin: json!({
            "address": plan.admin.map_or("off".to_owned(), |address| address.to_string()),
        }),
        timeouts: timeouts(&plan.timeouts),
        limits: limits(&plan.limits),
        responses: json!({
            "routeHeader": plan.responses.route_header,
            "serverTiming": plan.responses.server_timing,
        }),
    };
    serde_json::to_string(&file).expect("string keys only")
}

#[derive(Serialize)]
struct File<'p> {
    session: Value,
    listeners: Vec<Value>,
    sessions: InOrder<'p>,
    #[serde(skip_serializing_if = "Option::is_none")]
    discovery: Option<Value>,
    admin: Value,
    timeouts: Value,
    limits: Value,
    responses: Value,
}

/// Sessions as the file orders them, which decides between regular expressions.
struct InOrder<'p>(&'p Table<std::sync::Arc<Upstream>>);

impl Serialize for InOrder<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let written = self.0.iter();
        let written = written.filter(|(_, upstream)| upstream.source == Source::Configuration);
        serializer.collect_map(written.map(|(name, upstream)| (name, session(upstream))))
    }
}

fn session(upstream: &Upstream) -> Value {
    let endpoints = addresses(&upstream.endpoints);
    match &upstream.protocol {
        Protocol::Auto => json!({ "endpoints": endpoints, "protocol": "auto" }),
        Protocol::H1 => json!({ "endpoints": endpoints, "protocol": "h1" }),
        Protocol::H2c => json!({ "endpoints": endpoints, "protocol": "h2c" }),
        Protocol::Tls(tls) => {
            let name = tls.server_name.as_ref().map(|name| name.to_str());
            let tls = json!({ "serverName": name });
            json!({ "endpoints": endpoints, "protocol": "tls", "tls": tls })
        }
    }
}

fn listener(listener: &Listener) -> Value {
    let mut value = match &listener.kind {
        ListenerKind::Http(http) => http_listener("http", http),
        ListenerKind::Https(http, files) => {
            let mut value = http_listener("https", http);
            // Where the key lies, never what is in it.
            value["tls"] = json!({
                "certificate": files.certificate,
                "privateKey": files.private_key,
            });
            value
        }
        ListenerKind::Tcp(targets) => json!({ "protocol": "tcp", "target": addresses(targets) }),
    };
    value["name"] = json!(&*listener.name);
    value["address"] = json!(listener.address.to_string());
    value
}

fn http_listener(protocol: &str, http: &HttpListener) -> Value {
    let baseline = http.baseline.as_ref();
    json!({
        "protocol": protocol,
        "appPort": http.app_port,
        "baseline": baseline.map_or(Vec::new(), |baseline| addresses(&baseline.endpoints)),
        "onUnavailable": match http.on_unavailable {
            OnUnavailable::Error => "error",
            OnUnavailable::Baseline => "baseline",
        },
    })
}

fn timeouts(timeouts: &Timeouts) -> Value {
    json!({
        "firstByte": written(timeouts.first_byte),
        "requestHeaders": written(timeouts.request_headers),
        "connect": written(timeouts.connect),
        "responseHeaders": written(timeouts.response_headers),
        "bodyIdle": written(timeouts.body_idle),
        "keepAlive": written(timeouts.keep_alive),
        "poolIdle": written(timeouts.pool_idle),
        "drain": written(timeouts.drain),
    })
}

fn limits(limits: &Limits) -> Value {
    json!({
        "connections": limits.connections,
        "headerBytes": limits.header_bytes,
        "headers": limits.headers,
        "h2Streams": limits.h2_streams,
        "requestsPerEndpoint": limits.requests_per_endpoint,
        "queuedPerEndpoint": limits.queued_per_endpoint,
    })
}

fn addresses(endpoints: &[Arc<Endpoint>]) -> Vec<String> {
    endpoints.iter().map(ToString::to_string).collect()
}

/// A duration as the file writes it: whole seconds, or milliseconds.
fn written(duration: Duration) -> String {
    match duration.subsec_millis() {
        0 => format!("{}s", duration.as_secs()),
        _ => format!("{}ms", duration.as_millis()),
    }
}
