//! The plane that `tests/cluster/start` keeps, and taking turns with it.
//!
//! Tests run beside each other in namespaces of their own. One that takes the API server away has to
//! be alone, and gets the means for it only then.

use std::fmt::Debug;
use std::io::{BufRead, BufReader, Write};
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace as Object, ServiceAccount};
use kube::api::{DeleteParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::namespace::Namespace;

/// The variable that names the folder of a running plane.
const VARIABLE: &str = "SESSION_PROXY_TEST_CLUSTER";

/// How long controllers may stay away after the API server was.
const CONTROLLERS: Duration = Duration::from_secs(180);

static TURNS: RwLock<()> = RwLock::const_new(());

/// The cluster, as its administrator. A test takes it once, at its beginning.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    folder: PathBuf,
    _turn: Arc<Turn>,
}

#[allow(dead_code, reason = "guards are held, not read")]
enum Turn {
    Beside(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

/// The cluster without any other test in it: its API server can go away.
///
/// It is back, at the latest, when this is dropped.
pub struct AloneInCluster(Cluster);

impl Cluster {
    /// The cluster, with other tests in it.
    pub async fn shared() -> Self {
        Self::in_turn(Turn::Beside(TURNS.read().await)).await
    }

    /// The cluster, once all other tests have left it.
    pub async fn alone() -> AloneInCluster {
        AloneInCluster(Self::in_turn(Turn::Alone(TURNS.write().await)).await)
    }

    async fn in_turn(turn: Turn) -> Self {
        let folder = PathBuf::from(std::env::var(VARIABLE).unwrap_or_else(|_| {
            panic!("{VARIABLE} names no control plane: use tests/cluster/run, or tests/cluster/start and the folder that it was given")
        }));
        Self {
            client: client_of(&folder.join("admin.kubeconfig")).await,
            folder,
            _turn: Arc::new(turn),
        }
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The administrator's, for programs.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("admin.kubeconfig")
    }

    /// Where the API server listens: host and port.
    pub fn address(&self) -> (String, String) {
        let read = Kubeconfig::read_from(self.kubeconfig()).expect("the plane has written it");
        let cluster = read
            .clusters
            .first()
            .and_then(|named| named.cluster.as_ref());
        let server = cluster.and_then(|cluster| cluster.server.as_deref());
        let address = server.and_then(|server| server.strip_prefix("https://"));
        let (host, port) = address
            .and_then(|address| address.rsplit_once(':'))
            .expect("the plane names host and port");
        (host.to_owned(), port.to_owned())
    }

    /// Tekton in the cluster: its controller, its webhook, the settings of a stock install. The first who
    /// asks waits until it is there.
    pub async fn with_tekton(&self, folder: &Path) {
        self.say(format!("start-tekton {}", folder.display())).await;
    }

    async fn say(&self, word: String) {
        let folder = self.folder.clone();
        let spoken = word.clone();
        tokio::task::spawn_blocking(move || say(&folder, &spoken))
            .await
            .expect("saying a word does not panic")
            .unwrap_or_else(|error| panic!("the plane did not {word}: {error}"));
    }

    /// A new namespace, named after the running test.
    pub async fn namespace(&self) -> Namespace {
        Namespace::new(self, &[]).await
    }

    /// A new namespace with labels, such as `pod-security.kubernetes.io/enforce`.
    pub async fn namespace_with(&self, labels: &[(&str, &str)]) -> Namespace {
        Namespace::new(self, labels).await
    }
}

impl AloneInCluster {
    /// Takes the API server away: its connections break, its port refuses.
    pub async fn stop_api(&self) {
        self.say("stop-api".to_owned()).await;
    }

    /// Gives it back, at the same address and with the same data; returns when it is ready, and the controllers
    /// are back.
    ///
    /// It has forgotten what happened before: a watch goes on where it was only if nothing at all was
    /// written between the last that it saw and the stop, else it is told to list again (410).
    pub async fn start_api(&self) {
        self.say("start-api".to_owned()).await;
        self.controllers_return().await;
    }

    /// The controllers were refused meanwhile, and each looks again only after a while that grows with
    /// every refusal. The tests to come should not have to wait for that.
    async fn controllers_return(&self) {
        let name = format!("controllers-{:08x}", fastrand::u32(..));
        let namespaces: Api<Object> = Api::all(self.client());
        let metadata = json!({"metadata": {"name": name}});
        make(&namespaces, metadata).await;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), &name);
        let maps: Api<ConfigMap> = Api::namespaced(self.client(), &name);
        let sets: Api<ReplicaSet> = Api::namespaced(self.client(), &name);
        let nobody =
            json!([{"apiVersion": "v1", "kind": "Pod", "name": "nobody", "uid": "nobody"}]);
        let owned = json!({"metadata": {"name": "owned", "ownerReferences": nobody}});
        make(&maps, owned).await;
        let labels = json!({"app": "any"});
        let containers = json!([{"name": "app", "image": "registry.example/app:1"}]);
        let template = json!({"metadata": {"labels": labels}, "spec": {"containers": containers}});
        let spec = json!({"selector": {"matchLabels": labels}, "template": template});
        make(&sets, json!({"metadata": {"name": "any"}, "spec": spec})).await;

        let start = Instant::now();
        loop {
            let set = sets.get("any").await.ok().and_then(|set| set.status);
            let are_back = accounts.get("default").await.is_ok()
                && maps.get("owned").await.is_err()
                && set.is_some_and(|status| status.replicas == 1);
            if are_back {
                break;
            }
            assert!(start.elapsed() < CONTROLLERS, "the controllers stay away");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // What fails here ends with the plane.
        let _ = namespaces.delete(&name, &DeleteParams::default()).await;
    }
}

impl Deref for AloneInCluster {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.0
    }
}

impl Drop for AloneInCluster {
    fn drop(&mut self) {
        // Where this fails, every test to come will say so.
        let _ = say(&self.folder, "start-api");
    }
}

async fn make<K>(api: &Api<K>, object: serde_json::Value)
where
    K: Clone + Debug + DeserializeOwned + Serialize,
{
    let object = serde_json::from_value(object).expect("it is one");
    let made = api.create(&PostParams::default(), &object).await;
    made.expect("the administrator may make anything");
}

/// A client with the rights of that kubeconfig.
pub async fn client_of(kubeconfig: &Path) -> Client {
    let read = Kubeconfig::read_from(kubeconfig)
        .unwrap_or_else(|error| panic!("{}: {error}", kubeconfig.display()));
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
        .await
        .expect("the plane writes whole kubeconfigs");
    Client::try_from(config).expect("the plane's certificates can be used")
}

/// Runs a last request although its test is over, maybe by a panic, and with it its runtime.
pub fn at_last<F>(kubeconfig: PathBuf, deed: impl FnOnce(Client) -> F + Send + 'static)
where
    F: Future<Output = ()>,
{
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be made");
        runtime.block_on(async { deed(client_of(&kubeconfig).await).await });
    });
    // What could not be taken away ends with the plane.
    let _ = thread.join();
}

/// Says a word to the plane, and returns once it is done.
fn say(folder: &Path, word: &str) -> std::io::Result<()> {
    let mut plane = UnixStream::connect(folder.join("control"))?;
    writeln!(plane, "{word}")?;
    let mut answer = String::new();
    BufReader::new(plane).read_line(&mut answer)?;
    match answer.trim_end() {
        "ok" => Ok(()),
        "" => Err(std::io::Error::other("it ended")),
        failed => Err(std::io::Error::other(failed.to_owned())),
    }
}
