//! Objects of the cluster, read and written so that others who do the same at once come to no harm.
//!
//! What is created is created only where nothing is, what is deleted only while it is the very object
//! that was looked at, and of an object that others use too, one owner is added and nothing else is
//! touched. A request that an ailing API server fails is sent again for a while; one that it refuses
//! names the verb and the resource.

mod object;
mod patience;

use std::sync::Arc;
use std::time::Duration;

use futures_util::io::AsyncReadExt;
use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, ListParams, LogParams, Patch, PatchParams,
    PostParams, Preconditions,
};
use kube::core::GroupVersionKind;
use kube::{Api, Client};
use serde_json::json;
use tokio::time::Instant;

use crate::cli;
use crate::kubernetes::{Access, AccessError, Refusal};
use patience::Patience;

pub use object::{Draft, Kind, Marks, Name, Object};

/// Whose hand the objects are created by, for the API server's books.
const MANAGER: &str = "session-proxy";

/// Tells apart who created an object, or has taken it over: two calls at once may want the same name.
const CREATED_BY: &str = "session-proxy/created-by";

/// The cluster, as one call of a command sees it.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    /// Differs from call to call.
    call: Arc<str>,
    patience: Patience,
}

/// What became of a wish to create.
#[derive(Debug)]
pub enum Creation {
    /// It is there, and this call made it.
    Made(Box<ObjectMeta>),
    /// Somebody else's is there, or was just then.
    Occupied,
}

/// What became of a wish to delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It is not there any more.
    Gone,
    /// It will go when it has ended in its own way.
    Going,
    /// It is not as it was when it was looked at, and stays.
    Changed,
}

impl Cluster {
    /// Makes a client of the credentials, without having asked the cluster anything yet.
    ///
    /// # Errors
    /// No credentials, or ones that cannot be used.
    pub async fn reach(
        arguments: &cli::cluster::Cluster,
        deadline: Instant,
    ) -> Result<Self, AccessError> {
        let arguments = arguments.clone();
        let access = Access {
            kubeconfig: arguments.kubeconfig,
            context: arguments.context,
            impersonate: arguments.impersonate,
            impersonate_groups: arguments.impersonate_groups,
        };
        Ok(Self::new(access.candid_client().await?, deadline))
    }

    fn new(client: Client, deadline: Instant) -> Self {
        let call = format!("{:016x}", fastrand::u64(..));
        Self {
            client,
            call: call.into(),
            patience: Patience::until(deadline),
        }
    }

    /// Whether the API server can be asked at all.
    ///
    /// # Errors
    /// Why it cannot.
    pub async fn greet(&self) -> kube::Result<()> {
        self.client.apiserver_version().await.map(drop)
    }

    /// The same call, with another deadline.
    pub fn until(&self, deadline: Instant) -> Self {
        Self {
            patience: self.patience.prolonged(deadline),
            ..self.clone()
        }
    }

    pub fn deadline(&self) -> Instant {
        self.patience.deadline
    }

    /// An object; `None` when there is none of that name.
    pub async fn read<K: Object>(&self, namespace: &str, name: &str) -> Result<Option<K>, Refusal> {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        self.patience
            .persist("get", K::URL_PATH_SEGMENT, namespace, || api.get_opt(name))
            .await
    }

    /// An object of a kind that not every cluster knows; `None` also where it does not.
    pub async fn read_other(
        &self,
        kind: &GroupVersionKind,
        resource: &'static str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<DynamicObject>, Refusal> {
        let kind = ApiResource::from_gvk_with_plural(kind, resource);
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &kind);
        self.patience
            .persist("get", resource, namespace, || api.get_opt(name))
            .await
    }

    /// Every object that a label selector selects.
    pub async fn list<K: Object>(
        &self,
        namespace: &str,
        selector: &str,
    ) -> Result<Vec<K>, Refusal> {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let params = ListParams::default().labels(selector);
        let list = self
            .patience
            .persist("list", K::URL_PATH_SEGMENT, namespace, || api.list(&params))
            .await?;
        Ok(list.items)
    }

    /// An object of ours, whatever its kind; `None` when there is none.
    pub async fn look(&self, name: &Name) -> Result<Option<DynamicObject>, Refusal> {
        let api = self.api(name);
        self.patience
            .persist("get", name.kind.resource(), &name.namespace, || {
                api.get_opt(&name.name)
            })
            .await
    }

    /// The objects of one kind that a label selector selects.
    pub async fn find(
        &self,
        kind: Kind,
        namespace: &str,
        selector: &str,
    ) -> Result<Vec<DynamicObject>, Refusal> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &kind.api_resource());
        let params = ListParams::default().labels(selector);
        let list = self
            .patience
            .persist("list", kind.resource(), namespace, || api.list(&params))
            .await?;
        Ok(list.items)
    }

    /// What the cluster has to say about an object, chosen by a field selector.
    pub async fn events(&self, namespace: &str, selector: &str) -> Result<Vec<Event>, Refusal> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let params = ListParams::default().fields(selector);
        let list = self
            .patience
            .persist("list", "events", namespace, || api.list(&params))
            .await?;
        Ok(list.items)
    }

    /// The last lines of a container: of its run before this one, when that has ended.
    pub async fn last_lines(
        &self,
        place: (&str, &str, &str),
        is_previous: bool,
    ) -> Result<String, Refusal> {
        let params = LogParams {
            previous: is_previous,
            tail_lines: Some(20),
            ..LogParams::default()
        };
        let log = self.log(place, params, 16 * 1024).await?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    /// What a container logged within that time, at most that many bytes of it, UTF-8 or not.
    pub async fn log_within(
        &self,
        place: (&str, &str, &str),
        time: Duration,
        longest: u64,
    ) -> Result<Vec<u8>, Refusal> {
        let params = LogParams {
            since_seconds: i64::try_from(time.as_secs()).ok(),
            ..LogParams::default()
        };
        self.log(place, params, longest).await
    }

    async fn log(
        &self,
        (namespace, pod, container): (&str, &str, &str),
        params: LogParams,
        longest: u64,
    ) -> Result<Vec<u8>, Refusal> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let params = LogParams {
            container: Some(container.to_owned()),
            ..params
        };
        let read = || async {
            let stream = api.log_stream(pod, &params).await?;
            let mut log = Vec::new();
            let read = stream.take(longest).read_to_end(&mut log).await;
            read.map_err(kube::Error::ReadEvents)?;
            Ok(log)
        };
        self.patience
            .persist("get", "pods/log", namespace, read)
            .await
    }

    /// Creates an object where none of its name is.
    pub async fn create(&self, draft: &Draft) -> Result<Creation, Refusal> {
        let Draft { name, object } = draft;
        let api = self.api(name);
        let mut object = object.clone();
        let annotations = object.metadata.annotations.get_or_insert_default();
        annotations.insert(CREATED_BY.to_owned(), self.call.to_string());
        let params = PostParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PostParams::default()
        };
        let created = self
            .patience
            .persist("create", name.kind.resource(), &name.namespace, || {
                api.create(&params, &object)
            })
            .await;
        match created {
            Ok(object) => Ok(Creation::Made(object.metadata.into())),
            // It may be the fruit of our own request whose answer was lost.
            Err(refusal) if refusal.response().is_some_and(|r| r.is_already_exists()) => {
                let present = self.look(name).await?;
                let ours = present.filter(|object| self.is_author(&object.metadata));
                Ok(ours.map_or(Creation::Occupied, |object| {
                    Creation::Made(object.metadata.into())
                }))
            }
            // Two wanted to be counted by the same quota; the next try will be.
            Err(refusal) if refusal.code() == Some(409) => Ok(Creation::Occupied),
            Err(refusal) => Err(refusal),
        }
    }

    /// Whether this call created that object, and no other has taken it over.
    pub fn is_author(&self, object: &ObjectMeta) -> bool {
        let author = object.annotations.as_ref().and_then(|a| a.get(CREATED_BY));
        author.is_some_and(|author| **author == *self.call)
    }

    /// Adds an owner to the very object with that uid, and touches nothing else; `false` when it is gone.
    ///
    /// Owners are a list keyed by uid, so under a field manager of its own each owner adds and keeps one
    /// entry without seeing those of the others. The uid in the patch makes the API server refuse it for
    /// an object that was deleted and made again in between.
    pub async fn add_owner(
        &self,
        name: &Name,
        uid: &str,
        owner: &OwnerReference,
        manager: &str,
    ) -> Result<bool, Refusal> {
        let api = self.api(name);
        let resource = name.kind.api_resource();
        let patch = Patch::Apply(json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": { "name": name.name, "uid": uid, "ownerReferences": [owner] },
        }));
        let params = PatchParams::apply(manager).force();
        let patched = self
            .patience
            .persist("patch", name.kind.resource(), &name.namespace, || {
                api.patch(&name.name, &params, &patch)
            })
            .await;
        match patched {
            Ok(_) => Ok(true),
            Err(refusal) if is_about_another(&refusal) => Ok(false),
            Err(refusal) => Err(refusal),
        }
    }

    /// Sets and removes labels and annotations of the very object with that uid; `false` when it is gone.
    pub async fn mark(&self, name: &Name, uid: &str, marks: &Marks) -> Result<bool, Refusal> {
        let api = self.api(name);
        let patch = Patch::Merge(json!({
            "metadata": { "uid": uid, "labels": marks.labels, "annotations": marks.annotations },
        }));
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patched = self
            .patience
            .persist("patch", name.kind.resource(), &name.namespace, || {
                api.patch(&name.name, &params, &patch)
            })
            .await;
        match patched {
            Ok(_) => Ok(true),
            Err(refusal) if is_about_another(&refusal) => Ok(false),
            Err(refusal) => Err(refusal),
        }
    }

    /// As [`Cluster::mark`], and from now on this call counts as the one that created it.
    pub async fn take_over(
        &self,
        name: &Name,
        uid: &str,
        mut marks: Marks,
    ) -> Result<bool, Refusal> {
        let author = Some(self.call.to_string());
        marks.annotations.insert(CREATED_BY.to_owned(), author);
        self.mark(name, uid, &marks).await
    }

    /// Deletes the very object with that uid, whatever has happened to it meanwhile.
    pub async fn remove(&self, name: &Name, uid: &str) -> Result<Removal, Refusal> {
        let preconditions = Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        };
        let removal = self.delete(name, preconditions).await?;
        // Another object of that name: ours is gone.
        Ok(match removal {
            Removal::Changed => Removal::Gone,
            removal => removal,
        })
    }

    /// Deletes that object as long as nobody has touched it since.
    pub async fn remove_unchanged(
        &self,
        name: &Name,
        seen: &ObjectMeta,
    ) -> Result<Removal, Refusal> {
        let preconditions = Preconditions {
            uid: seen.uid.clone(),
            resource_version: seen.resource_version.clone(),
        };
        self.delete(name, preconditions).await
    }

    async fn delete(&self, name: &Name, preconditions: Preconditions) -> Result<Removal, Refusal> {
        let api = self.api(name);
        let params = DeleteParams::background().preconditions(preconditions);
        let deleted = self
            .patience
            .persist("delete", name.kind.resource(), &name.namespace, || {
                api.delete(&name.name, &params)
            })
            .await;
        match deleted {
            Ok(answer) if answer.is_left() => Ok(Removal::Going),
            Ok(_) => Ok(Removal::Gone),
            Err(refusal) => match refusal.code() {
                Some(404) => Ok(Removal::Gone),
                Some(409) => Ok(Removal::Changed),
                _ => Err(refusal),
            },
        }
    }

    fn api(&self, name: &Name) -> Api<DynamicObject> {
        Api::namespaced_with(
            self.client.clone(),
            &name.namespace,
            &name.kind.api_resource(),
        )
    }
}

/// Whether a patch with a uid was refused because that object is gone: nothing has its name any more, or
/// another object, whose uid "is immutable".
fn is_about_another(refusal: &Refusal) -> bool {
    let names_uid = || {
        let status = refusal.response();
        status.is_some_and(|status| status.message.contains("metadata.uid"))
    };
    match refusal.code() {
        Some(404 | 409) => true,
        Some(422) => names_uid(),
        _ => false,
    }
}
