//! The files that children read: a folder of our own, and the proxy's configuration in it.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

use anyhow::Context;
use kube::config::Kubeconfig;
use serde_json::{Value, json};

use super::ports::Local;
use crate::control::intercept::{Intercept, Mode};
use crate::kubernetes::Access;

/// A folder that nobody else may read; removed when dropped.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// # Errors
    /// There is no place for temporary files.
    pub(super) fn create() -> io::Result<Self> {
        let name = format!("session-proxy-{:016x}", fastrand::u64(..));
        let path = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    /// Writes a file, in the place of an earlier one of that name.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn write(&self, name: &str, content: &Value) -> io::Result<PathBuf> {
        let path = self.0.join(name);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(content.to_string().as_bytes())?;
        Ok(path)
    }

    /// The kubeconfig for children: with the context and the user to act as that we were told, which
    /// no variable tells. `None`: they find the cluster as we do.
    ///
    /// # Errors
    /// There is no kubeconfig to say it in, or it cannot be written.
    pub(super) fn kubeconfig(&self, access: &Access) -> anyhow::Result<Option<PathBuf>> {
        let is_plain = access.context.is_none()
            && access.impersonate.is_none()
            && access.impersonate_groups.is_empty();
        if is_plain {
            return Ok(access.kubeconfig.clone());
        }
        let read = match &access.kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        let kubeconfig =
            read.context("--context and --as need a kubeconfig; name one with --kubeconfig")?;
        let text =
            serde_json::to_value(told(kubeconfig, access)).context("a kubeconfig is JSON")?;
        let path = self.write("kubeconfig.json", &text);
        Ok(Some(
            path.context("cannot write the kubeconfig for the sessions")?,
        ))
    }
}

impl Folder {
    /// A kubeconfig for a program that knows no other way to the cluster, and reads its namespace from it.
    ///
    /// # Errors
    /// There is no cluster, or it cannot be written.
    pub(super) fn kubeconfig_in(
        &self,
        access: &Access,
        namespace: &str,
    ) -> anyhow::Result<PathBuf> {
        let read = match &access.kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        let mut text = match read {
            Ok(kubeconfig) => serde_json::to_value(told(kubeconfig, access)),
            Err(_) if access.kubeconfig.is_none() => Ok(of_pod()?),
            Err(error) => return Err(error).context("cannot read the kubeconfig"),
        }
        .context("a kubeconfig is JSON")?;
        let current = text["current-context"].clone();
        for named in text["contexts"].as_array_mut().into_iter().flatten() {
            if named["name"] == current {
                named["context"]["namespace"] = json!(namespace);
            }
        }
        self.write("telepresence-kubeconfig.json", &text)
            .context("cannot write a kubeconfig")
    }
}

/// What a pod has instead of a kubeconfig.
fn of_pod() -> anyhow::Result<Value> {
    let variable = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
    let host = variable("KUBERNETES_SERVICE_HOST").context("there is no kubeconfig")?;
    let port = variable("KUBERNETES_SERVICE_PORT")?;
    let host = match host.contains(':') {
        true => format!("[{host}]"),
        false => host,
    };
    const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "pod",
        "contexts": [{ "name": "pod", "context": { "cluster": "pod", "user": "pod" } }],
        "clusters": [{ "name": "pod", "cluster": {
            "server": format!("https://{host}:{port}"),
            "certificate-authority": format!("{ACCOUNT}/ca.crt"),
        } }],
        // The token is made anew now and then, so its file is named.
        "users": [{ "name": "pod", "user": { "tokenFile": format!("{ACCOUNT}/token") } }],
    }))
}

/// The kubeconfig with what the command line says beside it.
fn told(mut kubeconfig: Kubeconfig, access: &Access) -> Kubeconfig {
    if access.context.is_some() {
        kubeconfig.current_context.clone_from(&access.context);
    }
    let current = kubeconfig.current_context.as_ref();
    let current = kubeconfig
        .contexts
        .iter()
        .find(|named| Some(&named.name) == current);
    let user = current.and_then(|named| named.context.as_ref()?.user.clone());
    for named in &mut kubeconfig.auth_infos {
        if Some(&named.name) == user.as_ref()
            && let Some(info) = &mut named.auth_info
        {
            if access.impersonate.is_some() {
                info.impersonate.clone_from(&access.impersonate);
            }
            if !access.impersonate_groups.is_empty() {
                info.impersonate_groups = Some(access.impersonate_groups.clone());
            }
        }
    }
    kubeconfig
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Whoever removed it before us did our work.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The proxy's configuration in front of one target.
///
/// It listens on loopback: mirrord's sender comes from there, and nobody else needs to. Its
/// connections are kept for longer than the sender keeps them (60 s), so that a request never meets
/// one that is being closed. A copy of a request must not reach the app a second time: there is no
/// baseline for mirrored ones.
///
/// `ways` lead back to the app, in the order of `ports`.
pub(super) fn proxy(
    intercept: &Intercept,
    ports: &[Local],
    ways: &[SocketAddr],
    admin: SocketAddr,
) -> Value {
    let listener = |(local, way): (&Local, &SocketAddr)| {
        let mut listener = json!({
            "name": format!("port-{}", local.app_port),
            "address": local.address().to_string(),
            "protocol": "http",
            "appPort": local.app_port,
        });
        if intercept.mode == Mode::Steal {
            listener["baseline"] = json!(way.to_string());
        }
        listener
    };
    json!({
        "session": { "header": intercept.header, "baggageKey": intercept.baggage_key },
        "listeners": ports.iter().zip(ways).map(listener).collect::<Vec<_>>(),
        "discovery": { "kubernetes": { "namespace": intercept.namespace, "app": intercept.app } },
        "admin": { "address": admin.to_string() },
        "timeouts": { "keepAlive": "75s", "drain": "30s" },
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config;
    use crate::control::intercept::{Agent, AppProtocol, Backend, Port, Target, TargetKind};
    use crate::metrics::Metrics;
    use crate::plan::{Listener, ListenerKind, Plan};

    const KUBECONFIG: &str = "
apiVersion: v1
kind: Config
current-context: one
contexts:
  - { name: one, context: { cluster: c, user: alice } }
  - { name: two, context: { cluster: c, user: bob } }
clusters: [{ name: c, cluster: { server: 'https://127.0.0.1:6443' } }]
users:
  - { name: alice, user: { token: hers } }
  - { name: bob, user: { token: his } }
";

    #[test]
    fn children_read_what_the_command_line_said_of_the_cluster() {
        let folder = Folder::create().unwrap();
        let given = folder.0.join("given");
        fs::write(&given, KUBECONFIG).unwrap();
        let access = Access {
            kubeconfig: Some(given.clone()),
            context: Some("two".into()),
            impersonate: Some("carol".into()),
            impersonate_groups: vec!["staff".into()],
        };

        let written = folder.kubeconfig(&access).unwrap().unwrap();

        let read = Kubeconfig::read_from(&written).unwrap();
        assert_eq!(read.current_context.as_deref(), Some("two"));
        let info = |name: &str| {
            let named = read
                .auth_infos
                .iter()
                .find(|named| named.name == name)
                .unwrap();
            named.auth_info.clone().unwrap()
        };
        assert_eq!(info("bob").impersonate.as_deref(), Some("carol"));
        assert_eq!(
            info("bob").impersonate_groups,
            Some(vec!["staff".to_owned()])
        );
        assert!(info("bob").token.is_some());
        assert_eq!(info("alice").impersonate, None);
        let mode = fs::metadata(&written).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let plain = Access {
            kubeconfig: Some(given.clone()),
            ..Access::default()
        };
        assert_eq!(folder.kubeconfig(&plain).unwrap(), Some(given));
        assert_eq!(folder.kubeconfig(&Access::default()).unwrap(), None);
    }

    /// The plan that a child makes of its file.
    fn planned(mode: Mode) -> Plan {
        let port = |container_port, protocol| Port {
            container_port,
            protocol,
        };
        let intercept = Intercept {
            app: "orders".into(),
            namespace: "staging".into(),
            target: Target {
                kind: TargetKind::Deployment,
                name: "orders".into(),
            },
            ports: vec![port(8080, AppProtocol::Http), port(9000, AppProtocol::Grpc)],
            header: "x-dev-session".into(),
            baggage_key: String::new(),
            mode,
            agent: Agent {
                namespace: "staging".into(),
                is_ephemeral: false,
                image: None,
            },
            backend: Backend::Mirrord,
        };
        let local = |port, app_port| Local { port, app_port };
        let locals = [local(18080, 8080), local(18081, 9000)];
        let ways = ["127.0.0.1:8080", "127.0.0.1:9000"].map(|way| way.parse().unwrap());
        let admin = "127.0.0.1:18082".parse().unwrap();
        let written = proxy(&intercept, &locals, &ways, admin);
        let file = config::File::parse("proxy.json", written.to_string().as_bytes());
        Plan::compile(&file.expect("it is JSON"), &Metrics::new("1", "c")).expect("it is valid")
    }

    #[test]
    fn children_get_a_file_that_they_understand() {
        let plan = planned(Mode::Steal);

        let told = |listener: &Listener| match &listener.kind {
            ListenerKind::Http(http) => {
                let baseline = http.baseline.as_ref().map(|it| it.endpoints[0].to_string());
                (listener.address.to_string(), http.app_port, baseline)
            }
            _ => panic!("all of them speak HTTP"),
        };
        assert_eq!(
            plan.listeners.iter().map(told).collect::<Vec<_>>(),
            [
                (
                    "127.0.0.1:18080".to_owned(),
                    8080,
                    Some("127.0.0.1:8080".to_owned())
                ),
                (
                    "127.0.0.1:18081".to_owned(),
                    9000,
                    Some("127.0.0.1:9000".to_owned())
                ),
            ]
        );
        assert!(plan.timeouts.keep_alive > std::time::Duration::from_secs(60));
        assert!(plan.discovery.is_some());
        assert_eq!(plan.rule.baggage_key, None);
    }

    #[test]
    fn what_is_only_mirrored_has_no_way_back_to_the_app() {
        for listener in planned(Mode::Mirror).listeners.iter() {
            let ListenerKind::Http(http) = &listener.kind else {
                panic!("all of them speak HTTP");
            };
            assert!(http.baseline.is_none());
        }
    }

    #[test]
    fn the_folder_goes_with_its_owner() {
        let folder = Folder::create().unwrap();
        let path = folder.write("a.json", &json!({})).unwrap();

        drop(folder);

        assert!(!path.exists());
    }
}
