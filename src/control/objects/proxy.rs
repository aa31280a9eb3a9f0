//! The pod that takes an app's requests, with its configuration and its rights.
//!
//! One for each app, whoever came first made it: so nothing in it belongs to one pull request but its
//! owners. It runs as nobody in particular with nothing but a folder for temporary files; what needs
//! privileges are mirrord's agents, elsewhere. With Telepresence nothing needs any.

use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMap, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource,
    EnvVar, EnvVarSource, HTTPGetAction, LocalObjectReference, ObjectFieldSelector, Pod,
    PodSecurityContext, PodSpec, Probe, ResourceRequirements, SeccompProfile, SecurityContext,
    ServiceAccount, Volume, VolumeMount,
};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Pairs, Recommended, annotations, fingerprint, labels, pairs, rights};
use crate::control::intercept::{Backend, BackendName, Intercept};

/// The folder of the intercept's file in the pod.
const CONFIG_DIR: &str = "/etc/session-proxy";

/// The intercept's file, there and in the ConfigMap.
const INTERCEPT_FILE: &str = "intercept.json";

/// Where `attach` serves its admin port.
const ADMIN_PORT: i32 = 9901;

/// Who runs it: nobody, by number, because the cluster must see that it is not root.
const NOBODY: i64 = 65532;

/// What a proxy pod and its belongings are made from.
#[derive(Debug, Clone)]
pub struct Proxy<'a> {
    /// The stack's name.
    pub stack: &'a str,
    pub intercept: &'a Intercept,
    /// An image with session-proxy and the backend's own program in it.
    pub image: &'a str,
    /// Secrets to pull it with; the target's own are a good guess.
    pub pull_secrets: &'a [LocalObjectReference],
    /// One that exists; `None`: the proxy's own, with its role.
    pub service_account: Option<&'a str>,
    /// Whether it may delete a target pod that nothing else can heal.
    pub may_delete_targets: bool,
    /// The PR pods for which it is there, see [`owner`](super::owner).
    pub owners: &'a [OwnerReference],
}

impl Proxy<'_> {
    /// The proxy pod.
    pub fn pod(&self) -> Pod {
        let spec = PodSpec {
            containers: vec![self.container()],
            service_account_name: Some(self.service_account_name()),
            // It watches pods and starts agents.
            automount_service_account_token: Some(true),
            // A variable for every Service of a shared namespace is of no use, and there may be hundreds.
            enable_service_links: Some(false),
            image_pull_secrets: (!self.pull_secrets.is_empty()).then(|| self.pull_secrets.to_vec()),
            restart_policy: Some("Always".to_owned()),
            termination_grace_period_seconds: Some(grace(&self.intercept.backend)),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(NOBODY),
                run_as_group: Some(NOBODY),
                fs_group: Some(NOBODY),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            volumes: Some(self.volumes()),
            ..PodSpec::default()
        };
        let mut metadata = self.metadata();
        // With the intercept, which is read at start only.
        let hash = fingerprint::of(&(&spec, self.intercept));
        metadata.annotations = Some(pairs([(annotations::SPEC_HASH, &hash)]));
        Pod {
            metadata,
            spec: Some(spec),
            ..Pod::default()
        }
    }

    /// Its configuration.
    pub fn config_map(&self) -> ConfigMap {
        let json = serde_json::to_string_pretty(self.intercept).expect("its keys are text");
        ConfigMap {
            metadata: self.metadata(),
            data: Some(pairs([(INTERCEPT_FILE, &(json + "\n"))])),
            ..ConfigMap::default()
        }
    }

    /// Who it is; not wanted when `service_account` names one that exists.
    pub fn service_account(&self) -> ServiceAccount {
        ServiceAccount {
            metadata: self.metadata(),
            ..ServiceAccount::default()
        }
    }

    /// What it may do; not wanted when `service_account` names one that exists, and not enough when the
    /// agents run in another namespace.
    pub fn role(&self) -> Role {
        Role {
            metadata: self.metadata(),
            rules: Some(rights::of_proxy(self.intercept, self.may_delete_targets)),
        }
    }

    /// That it may; not wanted when `service_account` names one that exists.
    pub fn role_binding(&self) -> RoleBinding {
        let name = self.name();
        RoleBinding {
            metadata: self.metadata(),
            role_ref: RoleRef {
                api_group: "rbac.authorization.k8s.io".to_owned(),
                kind: "Role".to_owned(),
                name: name.clone(),
            },
            subjects: Some(vec![Subject {
                kind: "ServiceAccount".to_owned(),
                name,
                namespace: Some(self.intercept.namespace.clone()),
                ..Subject::default()
            }]),
        }
    }

    fn service_account_name(&self) -> String {
        let own = || self.name();
        self.service_account.map_or_else(own, str::to_owned)
    }

    fn backend(&self) -> BackendName {
        self.intercept.backend.name()
    }

    fn name(&self) -> String {
        self.backend().proxy_name(&self.intercept.app)
    }

    fn metadata(&self) -> ObjectMeta {
        ObjectMeta {
            name: Some(self.name()),
            namespace: Some(self.intercept.namespace.clone()),
            labels: Some(self.labels()),
            owner_references: (!self.owners.is_empty()).then(|| self.owners.to_vec()),
            ..ObjectMeta::default()
        }
    }

    fn labels(&self) -> Pairs {
        let app = &self.intercept.app;
        let recommended = Recommended {
            name: "session-proxy",
            instance: &self.name(),
            component: "proxy",
            image: self.image,
            part_of: self.stack,
        };
        let mut proxy_labels = recommended.pairs();
        proxy_labels.extend(pairs([
            ("app", self.backend().proxy_label()),
            ("component", app),
            (labels::APP, app),
        ]));
        proxy_labels
    }

    fn container(&self) -> Container {
        let intercept = format!("{CONFIG_DIR}/{INTERCEPT_FILE}");
        let command = ["session-proxy", "attach", "--intercept", &intercept];
        Container {
            name: "session-proxy".to_owned(),
            image: Some(self.image.to_owned()),
            command: Some(command.map(str::to_owned).into()),
            env: Some(self.environment()),
            ports: Some(vec![ContainerPort {
                name: Some("admin".to_owned()),
                container_port: ADMIN_PORT,
                ..ContainerPort::default()
            }]),
            // Half a minute to start, then three chances each. What is not ready keeps its sessions: only
            // somebody who waits for it is told.
            startup_probe: Some(probe("/healthz", 1, 30)),
            liveness_probe: Some(probe("/healthz", 10, 3)),
            readiness_probe: Some(probe("/readyz", 2, 3)),
            resources: Some(resources()),
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                capabilities: Some(Capabilities {
                    drop: Some(vec!["ALL".to_owned()]),
                    ..Capabilities::default()
                }),
                read_only_root_filesystem: Some(true),
                ..SecurityContext::default()
            }),
            volume_mounts: Some(vec![
                VolumeMount {
                    name: "intercept".to_owned(),
                    mount_path: CONFIG_DIR.to_owned(),
                    read_only: Some(true),
                    ..VolumeMount::default()
                },
                VolumeMount {
                    name: "tmp".to_owned(),
                    mount_path: "/tmp".to_owned(),
                    ..VolumeMount::default()
                },
            ]),
            ..Container::default()
        }
    }

    fn environment(&self) -> Vec<EnvVar> {
        let fields = [
            ("POD_NAME", "metadata.name"),
            ("POD_NAMESPACE", "metadata.namespace"),
            ("POD_UID", "metadata.uid"),
            ("POD_IP", "status.podIP"),
        ];
        let fields = fields.map(|(name, path)| EnvVar {
            name: name.to_owned(),
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector {
                    field_path: path.to_owned(),
                    ..ObjectFieldSelector::default()
                }),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        });
        // The only folder that can be written to.
        let mut texts = vec![("HOME", "/tmp")];
        // For a client that a person runs in the pod: the cluster may have no way out, and lines that
        // move are of no use without a terminal. `attach` tells its own clients.
        texts.extend(match self.backend() {
            BackendName::Mirrord => [
                ("MIRRORD_CHECK_VERSION", "false"),
                ("MIRRORD_PROGRESS_MODE", "off"),
            ]
            .as_slice(),
            BackendName::Telepresence => [("SCOUT_DISABLE", "1")].as_slice(),
        });
        if self.may_delete_targets {
            texts.push(("DELETE_BROKEN_TARGETS", "true"));
        }
        let texts = texts.into_iter().map(|(name, value)| EnvVar {
            name: name.to_owned(),
            value: Some(value.to_owned()),
            ..EnvVar::default()
        });
        fields.into_iter().chain(texts).collect()
    }

    fn volumes(&self) -> Vec<Volume> {
        vec![
            Volume {
                name: "intercept".to_owned(),
                config_map: Some(ConfigMapVolumeSource {
                    name: self.name(),
                    ..ConfigMapVolumeSource::default()
                }),
                ..Volume::default()
            },
            // mirrord unpacks its layer here, some 20 MB, and the rest is for logs of its senders.
            Volume {
                name: "tmp".to_owned(),
                empty_dir: Some(EmptyDirVolumeSource {
                    size_limit: Some(Quantity("1Gi".to_owned())),
                    ..EmptyDirVolumeSource::default()
                }),
                ..Volume::default()
            },
        ]
    }
}

/// mirrord's sender takes 29 MB and a proxy 6 to 20 MB, both once for each replica of the target: the
/// request is for about five replicas, the limit for about twenty.
fn resources() -> ResourceRequirements {
    let amounts = |cpu: &str, memory: &str| {
        let amounts = [("cpu", cpu), ("memory", memory)];
        amounts
            .map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())))
            .into()
    };
    ResourceRequirements {
        requests: Some(amounts("100m", "256Mi")),
        limits: Some(amounts("2", "1Gi")),
        ..ResourceRequirements::default()
    }
}

fn probe(path: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("admin".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(period_seconds.min(5)),
        failure_threshold: Some(failure_threshold),
        ..Probe::default()
    }
}

/// How long the proxy pod may take to end, in seconds.
fn grace(backend: &Backend) -> i64 {
    match backend {
        // A drain of 30 s, and 6 s more in which mirrord's senders let go.
        Backend::Mirrord => 45,
        // At the worst 5 s until the app is quiet and 5 s more for each port's goodbye, a drain of 30 s, and
        // 9 s for the client's end. Cut short, the app would hang until the manager forgets the client.
        Backend::Telepresence(_) => 75,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::intercept::TargetKind;
    use crate::control::objects::golden::intercept;
    use crate::control::objects::restricted;

    fn proxy(intercept: &Intercept) -> Proxy<'_> {
        Proxy {
            stack: "shop",
            intercept,
            image: "registry.local/session-proxy:0.1.0",
            pull_secrets: &[],
            service_account: None,
            may_delete_targets: false,
            owners: &[],
        }
    }

    fn hash(proxy: &Proxy<'_>) -> String {
        let annotations = proxy.pod().metadata.annotations.unwrap();
        annotations[annotations::SPEC_HASH].clone()
    }

    #[test]
    fn it_is_admitted_where_pod_security_is_restricted() {
        let intercept = intercept(TargetKind::Deployment);

        assert_eq!(restricted::offences(&proxy(&intercept).pod()), [""; 0]);
    }

    #[test]
    fn it_can_be_somebody_who_is_there_already() {
        let intercept = intercept(TargetKind::Deployment);
        let proxy = Proxy {
            service_account: Some("proxies"),
            ..proxy(&intercept)
        };

        let spec = proxy.pod().spec.unwrap();
        assert_eq!(spec.service_account_name.as_deref(), Some("proxies"));
    }

    #[test]
    fn it_heals_targets_only_when_it_may() {
        let intercept = intercept(TargetKind::Deployment);
        let is_told = |proxy: &Proxy<'_>| {
            let container = proxy.pod().spec.unwrap().containers.remove(0);
            let mut variables = container.env.into_iter().flatten();
            variables.any(|variable| variable.name == "DELETE_BROKEN_TARGETS")
        };
        let healer = Proxy {
            may_delete_targets: true,
            ..proxy(&intercept)
        };

        assert!(is_told(&healer));
        assert!(!is_told(&proxy(&intercept)));
    }

    #[test]
    fn another_intercept_asks_for_another_pod_and_another_owner_does_not() {
        let one = intercept(TargetKind::Deployment);
        let other = Intercept {
            header: "x-session".to_owned(),
            ..one.clone()
        };
        let owned = Proxy {
            owners: &[OwnerReference::default()],
            ..proxy(&one)
        };

        assert_ne!(hash(&proxy(&one)), hash(&proxy(&other)));
        assert_eq!(hash(&proxy(&one)), hash(&owned));
    }

    #[test]
    fn attach_reads_what_the_config_map_says() {
        let intercept = intercept(TargetKind::Rollout);
        let data = proxy(&intercept).config_map().data.unwrap();

        let read: Intercept = serde_json::from_str(&data[INTERCEPT_FILE]).unwrap();

        assert_eq!(read, intercept);
    }
}
