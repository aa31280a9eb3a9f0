//! What `deploy` was told, judged before anything is touched.

mod judge;

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

use crate::cli::cluster;
use crate::config::Problem;
use crate::control::intercept::{Agent, Backend, BackendName, Intercept, Mode, Port};
use crate::control::pull_request::PullRequest;
use crate::control::stack::{App, names};
use crate::control::words::{given, label_value, words};
use judge::{Elsewhere, Judge};

/// What is to be brought up.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) pull_request: PullRequest,
    /// One per changed app, in the same order.
    pub(super) images: Vec<String>,
    pub(super) backend: BackendName,
    /// Where Telepresence's traffic manager is.
    pub(super) manager_namespace: String,
    pub(super) proxy_image: String,
    /// One that exists; `None`: the proxy's own.
    pub(super) service_account: Option<String>,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) pipeline_run: Option<String>,
    pub(super) patience: Duration,
    /// Where the map of app to PR pod goes.
    pub(super) out: Option<PathBuf>,
    agent: AgentOrder,
}

#[derive(Debug, Clone)]
struct AgentOrder {
    /// `None`: the app's own.
    namespace: Option<String>,
    image: Option<String>,
    is_ephemeral: bool,
}

/// One changed app, with its image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Change<'o> {
    pub(super) order: &'o Order,
    pub(super) app: &'o App,
    pub(super) image: &'o str,
}

impl Order {
    /// Judges what was typed.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(super) fn parse(arguments: &cluster::Deploy) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let pull_request = match PullRequest::parse(&arguments.pull_request) {
            Ok(pull_request) => Some(pull_request),
            Err(theirs) => {
                problems.extend(theirs);
                None
            }
        };
        let mut judge = Judge(&mut problems);
        let backend = judge.backend(given(arguments.backend.as_deref()));
        let manager_namespace =
            judge.manager_namespace(given(arguments.manager_namespace.as_deref()));
        // Also when something else about the pull request is wrong: all mistakes are told at once.
        let apps = match &pull_request {
            Some(pull_request) => pull_request.apps.clone(),
            None => words(arguments.pull_request.build_apps.as_deref()),
        };
        let images = judge.images(given(arguments.built_images.as_deref()), &apps);
        let proxy_image = judge.proxy_image(given(arguments.proxy_image.as_deref()), backend);
        let service_account = judge.named(
            "--proxy-service-account",
            given(arguments.proxy_service_account.as_deref()),
            names::subdomain,
        );
        let agent = judge.agent(arguments);
        let pipeline_run = judge.named(
            "--pipeline-run",
            given(arguments.pipeline_run.as_deref()),
            label_value,
        );
        let expires_at = judge.expires_at(given(arguments.ttl.as_deref()));
        let patience = judge.patience(given(arguments.timeout.as_deref()));
        if let Some(pull_request) = &pull_request {
            judge.proxy_names(&pull_request.apps, backend);
            let elsewhere = match backend {
                BackendName::Mirrord => agent.namespace.as_deref().map(|namespace| Elsewhere {
                    flag: "--agent-namespace",
                    namespace,
                }),
                BackendName::Telepresence => Some(Elsewhere {
                    flag: "--manager-namespace",
                    namespace: &manager_namespace,
                }),
            };
            judge.rights(
                pull_request,
                elsewhere.filter(|_| service_account.is_none()),
            );
        }
        match pull_request {
            Some(pull_request) if problems.is_empty() => Ok(Self {
                pull_request,
                images,
                backend,
                manager_namespace,
                proxy_image,
                service_account,
                expires_at,
                pipeline_run,
                patience,
                out: arguments
                    .out
                    .clone()
                    .filter(|file| !file.as_os_str().is_empty()),
                agent,
            }),
            _ => Err(problems),
        }
    }

    /// The changed apps.
    pub(super) fn changes(&self) -> impl Iterator<Item = Change<'_>> {
        let apps = self.pull_request.apps.iter();
        apps.zip(&self.images).filter_map(|(app, image)| {
            Some(Change {
                order: self,
                app: self.pull_request.stack.app(app)?,
                image,
            })
        })
    }
}

impl Change<'_> {
    pub(super) fn namespace(&self) -> &str {
        self.order.pull_request.namespace_of(self.app)
    }

    pub(super) fn session(&self) -> &str {
        &self.order.pull_request.session
    }

    /// What the app's proxy is to do, whoever's session it is.
    pub(super) fn intercept(&self, backend: Backend) -> Intercept {
        let namespace = self.namespace().to_owned();
        let agent = &self.order.agent;
        Intercept {
            app: self.app.name.clone(),
            target: self.app.target.clone(),
            ports: self.ports(),
            header: self.order.pull_request.header.clone(),
            baggage_key: self
                .order
                .pull_request
                .stack
                .propagation
                .baggage_key
                .clone(),
            mode: Mode::Steal,
            agent: Agent {
                namespace: agent.namespace.clone().unwrap_or_else(|| namespace.clone()),
                is_ephemeral: agent.is_ephemeral,
                image: agent.image.clone(),
            },
            backend,
            namespace,
        }
    }

    /// The app's ports.
    pub(super) fn ports(&self) -> Vec<Port> {
        let ports = self.app.ports.iter().map(|port| Port {
            container_port: port.container_port,
            protocol: port.protocol,
        });
        ports.collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use jiff::SignedDuration;

    use super::*;
    use crate::cli::{Cli, Command, VERSION};

    const STACK: &str = r#"{"name":"shop","apps":[
        {"name":"web","repo":"shop/web","role":"frontend","downstream":["orders"]},
        {"name":"orders","repo":"shop/orders","ports":[
            {"container-port":8080,"service-port":80},
            {"container-port":9090,"service-port":90,"protocol":"grpc"}]}]}"#;

    /// What `deploy` with these flags means, or what is wrong with it, a line each.
    fn parse(flags: &[&str]) -> Result<Order, String> {
        let mut line = vec!["session-proxy", "deploy", "--stack-json", STACK];
        let usual = [
            ("--build-apps", "orders web"),
            (
                "--built-images",
                r#"{"orders":"r/orders:1","web":"r/web:2","other":7}"#,
            ),
            ("--intercept-header", "x-dev-session:pr-42"),
        ];
        for (flag, value) in usual {
            if !flags.contains(&flag) {
                line.extend([flag, value]);
            }
        }
        line.extend(flags);
        let Command::Deploy(arguments) = Cli::parse_from(line).command else {
            panic!("that is deploy")
        };
        Order::parse(&arguments).map_err(|problems| {
            let lines = problems.iter().map(ToString::to_string);
            lines.collect::<Vec<_>>().join("\n")
        })
    }

    #[test]
    fn an_order_names_each_changed_app_with_its_image() {
        let order = parse(&[]).unwrap();

        let changes: Vec<_> = order
            .changes()
            .map(|change| {
                let namespace = change.namespace().to_owned();
                (change.app.name.as_str(), change.image, namespace)
            })
            .collect();
        assert_eq!(
            changes,
            [
                ("web", "r/web:2", "staging".to_owned()),
                ("orders", "r/orders:1", "staging".to_owned())
            ]
        );
        assert_eq!(order.patience, Duration::from_secs(300));
        assert_eq!(
            order.proxy_image,
            format!("localhost:5001/tekton-dag-build-mirrord:{VERSION}")
        );
        assert!(order.expires_at.is_none() && order.out.is_none());
    }

    #[test]
    fn an_intercept_says_nothing_of_one_pull_request() {
        let order = parse(&["--agent-image", "r/agent:3", "--agent-kind", "ephemeral"]).unwrap();
        let other = parse(&[
            "--intercept-header",
            "x-dev-session: pr-43",
            "--agent-image",
            "r/agent:3",
            "--agent-kind",
            "ephemeral",
        ])
        .unwrap();

        let intercept = |order: &Order| {
            let change = order.changes().nth(1).unwrap();
            change.intercept(Backend::Mirrord)
        };
        assert_eq!(intercept(&order), intercept(&other));
        let intercept = intercept(&order);
        let ports: Vec<_> = intercept
            .ports
            .iter()
            .map(|port| port.container_port)
            .collect();
        assert_eq!(ports, [8080, 9090]);
        assert_eq!(intercept.agent.namespace, "staging");
        assert!(intercept.agent.is_ephemeral);
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let told = parse(&[
            "--backend",
            "socat",
            "--build-apps",
            "orders carts",
            "--built-images",
            r#"{"orders":""}"#,
            "--proxy-image",
            "r/proxy:$(params.tag)",
            "--proxy-service-account",
            "Not A Name",
            "--agent-kind",
            "spy",
            "--agent-namespace",
            "-",
            "--pipeline-run",
            "a b",
            "--ttl",
            "soon",
            "--timeout",
            "0s",
        ])
        .unwrap_err();

        for flag in [
            "--backend",
            "--build-apps",
            "--built-images: orders",
            "--built-images: no image for carts",
            "--proxy-image",
            "--proxy-service-account",
            "--agent-kind",
            "--agent-namespace",
            "--pipeline-run",
            "--ttl",
            "--timeout",
        ] {
            let count = told.lines().filter(|line| line.starts_with(flag)).count();
            assert_eq!(count, 1, "{flag} in\n{told}");
        }
    }

    #[test]
    fn images_come_as_a_map_of_texts() {
        for (images, expected) in [
            ("[]", "is not a JSON map"),
            ("{", "is not a JSON map"),
            ("", "missing"),
            (r#"{"web":"a"}"#, "no image for orders"),
            (
                r#"{"web":"a","orders":null}"#,
                "orders: null is not the name",
            ),
            (
                r#"{"web":"a","orders":"a b"}"#,
                "is not the name of an image",
            ),
        ] {
            let told = parse(&["--built-images", images]).unwrap_err();
            assert!(told.contains(expected), "{told}");
        }
    }

    #[test]
    fn what_is_set_to_nothing_counts_as_not_given() {
        let empty = [
            "--backend",
            "",
            "--proxy-image",
            "",
            "--proxy-service-account",
            "",
            "--agent-namespace",
            "",
            "--agent-image",
            "",
            "--agent-kind",
            "",
            "--ttl",
            "",
            "--pipeline-run",
            "",
            "--out",
            "",
            "--timeout",
            "",
        ];
        let order = parse(&empty).unwrap();
        assert_eq!(order.patience, Duration::from_secs(300));
        assert!(order.service_account.is_none() && order.pipeline_run.is_none());
        assert!(order.expires_at.is_none() && order.out.is_none());
    }

    #[test]
    fn agents_elsewhere_need_an_account_that_may_start_them() {
        let elsewhere = ["--agent-namespace", "agents"];
        let told = parse(&elsewhere).unwrap_err();
        assert!(told.contains("--proxy-service-account"), "{told}");

        parse(
            &[
                &elsewhere[..],
                &["--proxy-service-account", "session-proxy"],
            ]
            .concat(),
        )
        .unwrap();
        parse(&["--agent-namespace", "staging"]).unwrap();
    }

    #[test]
    fn a_time_to_live_may_be_longer_than_a_day() {
        let order = parse(&["--ttl", "72h"]).unwrap();
        let left = order.expires_at.unwrap().duration_since(Timestamp::now());
        assert!(left > SignedDuration::from_hours(71), "{left}");
    }

    #[test]
    fn each_backend_has_an_image_of_its_own() {
        let account = ["--proxy-service-account", "session-proxy"];
        for (flags, image) in [
            (&[][..], "localhost:5001/tekton-dag-build-mirrord"),
            (
                &["--backend", "mirrord"],
                "localhost:5001/tekton-dag-build-mirrord",
            ),
            (
                &["--backend", "telepresence"],
                "localhost:5001/tekton-dag-build-telepresence",
            ),
        ] {
            let order = parse(&[&account[..], flags].concat()).unwrap();
            assert_eq!(order.proxy_image, format!("{image}:{VERSION}"));
        }
    }

    #[test]
    fn a_traffic_manager_elsewhere_needs_an_account_that_may_reach_it() {
        let telepresence = ["--backend", "telepresence"];
        let told = parse(&telepresence).unwrap_err();
        assert!(
            told.starts_with("--manager-namespace: is \"ambassador\"")
                && told.contains("--proxy-service-account"),
            "{told}"
        );

        let named = [&telepresence[..], &["--manager-namespace", "staging"]].concat();
        assert_eq!(parse(&named).unwrap().manager_namespace, "staging");
        // It is no concern of mirrord's.
        parse(&["--manager-namespace", "traffic"]).unwrap();
        let told = parse(&["--manager-namespace", "No Name"]).unwrap_err();
        assert!(told.starts_with("--manager-namespace: "), "{told}");
    }
}
