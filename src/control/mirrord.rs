//! The configuration of one mirrord session: one target pod, and the ports that one proxy serves for it.
//!
//! It is one session for as long as the target pod lives: starting one is what hurts untagged traffic.
//! Whatever changes between two requests is the proxy's own affair and not in here.

mod filter;

use serde_json::{Map, Value, json};

use super::intercept::{AppProtocol, Intercept, Mode};
use super::objects::labels;

/// How long mirrord's sender keeps an idle connection to the proxy, in milliseconds: less than the
/// proxy's own keep-alive, so that no request is ever put on a connection that is being closed.
const SENDER_IDLE: u64 = 60_000;

/// The pod whose requests are taken, and its container that serves them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetPod {
    pub name: String,
    pub container: String,
}

/// What `mirrord exec -f` is to read. `local_ports` are pairs of the port that the proxy listens on and
/// the app's port that it stands for; `proxy_uid` is the uid of the proxy pod.
pub fn configuration(
    intercept: &Intercept,
    target: &TargetPod,
    proxy_uid: &str,
    local_ports: &[(u16, u16)],
) -> Value {
    let app_ports: Vec<u16> = local_ports.iter().map(|(_, app)| *app).collect();
    json!({
        "operator": false,
        "telemetry": false,
        "api": false,
        "target": {
            "path": format!("pod/{}/container/{}", target.name, target.container),
            "namespace": intercept.namespace,
        },
        "agent": agent(intercept, proxy_uid),
        // The proxy keeps its own environment, files and names, and looks up no names at the target.
        "feature": {
            "env": false,
            "fs": "local",
            "hostname": false,
            "network": {
                "dns": false,
                "incoming": {
                    "mode": match intercept.mode {
                        Mode::Steal => "steal",
                        Mode::Mirror => "mirror",
                    },
                    // No other listener of the proxy is offered to the target.
                    "ports": app_ports,
                    "port_mapping": local_ports,
                    "http_filter": filter::filter(&intercept.header, &intercept.baggage_key, &app_ports),
                },
                "outgoing": {
                    "tcp": true,
                    "udp": false,
                    // The way back to the app; everything else is reached directly.
                    "filter": { "remote": baselines(&app_ports) },
                },
            },
        },
        // The default writes the headers of every request to a file.
        "internal_proxy": { "log_level": "mirrord=warn,warn" },
        "experimental": { "idle_local_http_connection_timeout": sender_idle(intercept) },
    })
}

fn agent(intercept: &Intercept, proxy_uid: &str) -> Value {
    let mut agent = Map::new();
    if intercept.agent.is_ephemeral {
        // It lives in the target pod: no namespace, labels or resources of its own.
        agent.insert("ephemeral".to_owned(), json!(true));
    } else {
        agent.insert("namespace".to_owned(), json!(intercept.agent.namespace));
        agent.insert(
            "labels".to_owned(),
            json!({
                labels::APP: intercept.app,
                labels::PROXY: proxy_uid,
            }),
        );
        // All requests to the app cross the agent while a session is up; its usual 100 Mi are few.
        agent.insert(
            "resources".to_owned(),
            json!({
                "requests": { "cpu": "50m", "memory": "64Mi" },
                "limits": { "cpu": "1", "memory": "512Mi" },
            }),
        );
    }
    if let Some(image) = &intercept.agent.image {
        agent.insert("image".to_owned(), json!(image));
    }
    // What the app answers crosses as it is, and clients keep the connections they have.
    agent.insert("override_cache_control".to_owned(), json!(false));
    agent.insert("flush_connections".to_owned(), json!(false));
    Value::Object(agent)
}

fn baselines(app_ports: &[u16]) -> Vec<String> {
    let baseline = |port: &u16| format!("tcp://127.0.0.1:{port}");
    app_ports.iter().map(baseline).collect()
}

/// An HTTP/2 request that the sender puts on an idle HTTP/1 connection loses its trailers, and with them
/// how a gRPC call ended. Without idle connections nothing is mixed.
fn sender_idle(intercept: &Intercept) -> u64 {
    let is_grpc = |protocol| protocol == AppProtocol::Grpc;
    if intercept.ports.iter().any(|port| is_grpc(port.protocol)) {
        0
    } else {
        SENDER_IDLE
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::control::intercept::{Agent, Backend, Port, Target, TargetKind};

    fn intercept() -> Intercept {
        Intercept {
            app: "orders".to_owned(),
            namespace: "staging".to_owned(),
            target: Target {
                kind: TargetKind::Deployment,
                name: "orders".to_owned(),
            },
            ports: vec![port(8080, AppProtocol::Http)],
            header: "x-dev-session".to_owned(),
            baggage_key: "dev-session".to_owned(),
            mode: Mode::Steal,
            agent: Agent {
                namespace: "staging".to_owned(),
                is_ephemeral: false,
                image: None,
            },
            backend: Backend::Mirrord,
        }
    }

    fn port(container_port: u16, protocol: AppProtocol) -> Port {
        Port {
            container_port,
            protocol,
        }
    }

    fn written(intercept: &Intercept, local_ports: &[(u16, u16)]) -> Value {
        let target = TargetPod {
            name: "orders-7c9d".to_owned(),
            container: "orders".to_owned(),
        };
        configuration(intercept, &target, "6f1a-uid", local_ports)
    }

    /// `BLESS=1 cargo test mirrord::` writes what comes out now; read the difference before you commit it.
    #[test]
    fn configurations_are_those_on_file() {
        let with = |change: fn(&mut Intercept)| {
            let mut intercept = intercept();
            change(&mut intercept);
            intercept
        };
        let one: &[(u16, u16)] = &[(18080, 8080)];
        for (name, intercept, local_ports) in [
            ("header-and-baggage", intercept(), one),
            ("header-alone", with(|it| it.baggage_key.clear()), one),
            (
                "several-ports",
                with(|it| it.ports.push(port(8443, AppProtocol::Http))),
                &[(18080, 8080), (18081, 8443)],
            ),
            (
                "grpc",
                with(|it| it.ports.push(port(50051, AppProtocol::Grpc))),
                &[(18080, 8080), (18081, 50051)],
            ),
            ("mirror", with(|it| it.mode = Mode::Mirror), one),
            (
                "ephemeral",
                with(|it| {
                    it.agent.is_ephemeral = true;
                    it.agent.image = Some("registry.example/mirrord:3.250.0".to_owned());
                }),
                one,
            ),
            (
                "agent-elsewhere",
                with(|it| {
                    it.agent.namespace = "mirrord".to_owned();
                    it.agent.image = Some("registry.example/mirrord@sha256:0123".to_owned());
                }),
                one,
            ),
            (
                "names-with-meaning",
                with(|it| {
                    it.header = "x.dev+session|$*^".to_owned();
                    it.baggage_key = "dev.session*".to_owned();
                }),
                one,
            ),
        ] {
            let text = serde_json::to_string_pretty(&written(&intercept, local_ports));
            let text = text.expect("JSON") + "\n";
            let golden = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join(format!("tests/data/mirrord/{name}.json"));
            if std::env::var_os("BLESS").is_some() {
                std::fs::write(&golden, &text).expect("writable");
            }
            let expected = std::fs::read_to_string(&golden).expect("a golden file");
            assert_eq!(text, expected, "{name}");
        }
    }

    /// The file goes through a template engine first, for which these begin something.
    #[test]
    fn nothing_in_it_looks_like_a_template() {
        let text = written(&intercept(), &[(18080, 8080)]).to_string();
        for opening in ["{{", "{%", "{#"] {
            assert!(!text.contains(opening), "{text}");
        }
    }
}
