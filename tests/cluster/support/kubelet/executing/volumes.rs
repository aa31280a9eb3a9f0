//! The volumes of a pod, as folders.

use std::collections::HashMap;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Secret, Volume,
};
use kube::{Api, ResourceExt};
use tempfile::TempDir;

use super::machine::Machine;
use crate::support::account::token_of;

/// Where each volume is. Gone with its pod, but for claims.
pub(super) struct Volumes {
    pub(super) folder: TempDir,
    places: HashMap<String, PathBuf>,
}

impl Volumes {
    pub(super) async fn of(pod: &Pod, machine: &Machine) -> Self {
        let folder = tempfile::tempdir_in(machine.folder.path()).expect("a writable folder");
        let mut volumes = Self {
            folder,
            places: HashMap::new(),
        };
        let spec = pod.spec.as_ref().expect("a pod has a spec");
        for volume in spec.volumes.iter().flatten() {
            let place = volumes.furnish(pod, volume, machine).await;
            volumes.places.insert(volume.name.clone(), place);
        }
        volumes
    }

    /// Where a mount of that volume shows.
    pub(super) fn place(&self, volume: &str, sub_path: Option<&str>) -> PathBuf {
        let place = &self.places[volume];
        let Some(sub_path) = sub_path.filter(|path| !path.is_empty()) else {
            return place.clone();
        };
        let inner = place.join(sub_path);
        if !inner.exists() {
            std::fs::create_dir_all(&inner).expect("a writable folder");
            let like = std::fs::metadata(place).expect("it is there").permissions();
            std::fs::set_permissions(&inner, like).expect("it is ours");
        }
        inner
    }

    /// Writes what the downward API has to say again.
    pub(super) fn refresh(&self, pod: &Pod) {
        let spec = pod.spec.as_ref().expect("a pod has a spec");
        for volume in spec.volumes.iter().flatten() {
            if let Some(source) = &volume.downward_api {
                let items = source.items.as_deref();
                downward(&self.places[&volume.name], items.unwrap_or_default(), pod);
            }
        }
    }

    async fn furnish(&self, pod: &Pod, volume: &Volume, machine: &Machine) -> PathBuf {
        if let Some(claim) = &volume.persistent_volume_claim {
            let place = machine.claim(&claim.claim_name);
            give_to_group(&place, fs_group(pod));
            return place;
        }
        let place = self.folder.path().join("volumes").join(&volume.name);
        std::fs::create_dir_all(&place).expect("a writable folder");
        let reader = Reader { pod, machine };
        if volume.empty_dir.is_some() {
            // As a kubelet makes it: everybody's.
            set_mode(&place, 0o777);
            give_to_group(&place, fs_group(pod));
        } else if let Some(source) = &volume.config_map {
            let optional = source.optional.unwrap_or(false);
            let files = reader.config_map(&source.name, optional).await;
            write(&place, files, source.items.as_deref());
        } else if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().expect("a secret has a name");
            let files = reader.secret(name, source.optional.unwrap_or(false)).await;
            write(&place, files, source.items.as_deref());
        } else if let Some(source) = &volume.downward_api {
            downward(&place, source.items.as_deref().unwrap_or_default(), pod);
        } else if let Some(source) = &volume.projected {
            reader.project(&place, source).await;
        } else {
            panic!("this machine has no volume like {volume:?}");
        }
        place
    }
}

struct Reader<'a> {
    pod: &'a Pod,
    machine: &'a Machine,
}

type Files = Vec<(String, Vec<u8>)>;

impl Reader<'_> {
    fn namespace(&self) -> String {
        self.pod.namespace().expect("a pod is in a namespace")
    }

    async fn config_map(&self, name: &str, optional: bool) -> Files {
        let api = Api::<ConfigMap>::namespaced(self.machine.cluster.client(), &self.namespace());
        let found = api.get_opt(name).await.expect("the administrator may read");
        assert!(found.is_some() || optional, "there is no ConfigMap {name}");
        let data = found.and_then(|map| map.data).unwrap_or_default();
        data.into_iter()
            .map(|(file, text)| (file, text.into_bytes()))
            .collect()
    }

    async fn secret(&self, name: &str, optional: bool) -> Files {
        let api = Api::<Secret>::namespaced(self.machine.cluster.client(), &self.namespace());
        let found = api.get_opt(name).await.expect("the administrator may read");
        assert!(found.is_some() || optional, "there is no Secret {name}");
        let data = found.and_then(|secret| secret.data).unwrap_or_default();
        data.into_iter()
            .map(|(file, data)| (file, data.0))
            .collect()
    }

    async fn project(&self, place: &Path, source: &ProjectedVolumeSource) {
        for source in source.sources.iter().flatten() {
            if let Some(token) = &source.service_account_token {
                let spec = self.pod.spec.as_ref().expect("a pod has a spec");
                let account = spec.service_account_name.as_deref().unwrap_or("default");
                let cluster = &self.machine.cluster;
                let text = token_of(cluster, &self.namespace(), account).await;
                write(place, vec![(token.path.clone(), text.into_bytes())], None);
            } else if let Some(map) = &source.config_map {
                let files = self.config_map(&map.name, map.optional.unwrap_or(false));
                write(place, files.await, map.items.as_deref());
            } else if let Some(secret) = &source.secret {
                let files = self.secret(&secret.name, secret.optional.unwrap_or(false));
                write(place, files.await, secret.items.as_deref());
            } else if let Some(api) = &source.downward_api {
                downward(place, api.items.as_deref().unwrap_or_default(), self.pod);
            } else {
                panic!("this machine projects nothing like {source:?}");
            }
        }
    }
}

/// What the downward API says of a field.
pub(super) fn field(pod: &Pod, path: &str) -> Option<String> {
    let of = |map: &std::collections::BTreeMap<String, String>, key: &str| map.get(key).cloned();
    if let Some((kind, key)) = path.split_once("['") {
        let key = key.trim_end_matches("']");
        return Some(match kind {
            "metadata.annotations" => of(pod.annotations(), key).unwrap_or_default(),
            "metadata.labels" => of(pod.labels(), key).unwrap_or_default(),
            _ => return None,
        });
    }
    let spec = pod.spec.as_ref();
    match path {
        "metadata.name" => pod.metadata.name.clone(),
        "metadata.namespace" => pod.metadata.namespace.clone(),
        "metadata.uid" => pod.metadata.uid.clone(),
        "spec.serviceAccountName" => spec.and_then(|spec| spec.service_account_name.clone()),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()),
        _ => None,
    }
}

fn downward(place: &Path, items: &[DownwardAPIVolumeFile], pod: &Pod) {
    for item in items {
        let field_ref = item.field_ref.as_ref().expect("a field is named");
        let text = field(pod, &field_ref.field_path);
        let text = text.unwrap_or_else(|| panic!("no {} here", field_ref.field_path));
        // Whoever reads it meanwhile sees the old or the new one.
        let fresh = place.join(format!(".{}", item.path));
        std::fs::write(&fresh, text).expect("a writable folder");
        set_mode(&fresh, 0o644);
        std::fs::rename(fresh, place.join(&item.path)).expect("a writable folder");
    }
}

/// All files, or those that the items name at their paths.
fn write(place: &Path, files: Files, items: Option<&[KeyToPath]>) {
    for (name, data) in files {
        let path = match items {
            None => Some(name.as_str()),
            Some(items) => {
                { items.iter().find(|item| item.key == name) }.map(|item| item.path.as_str())
            }
        };
        if let Some(path) = path {
            let file = place.join(path);
            std::fs::create_dir_all(file.parent().expect("it is in a folder"))
                .expect("a writable folder");
            std::fs::write(&file, data).expect("a writable folder");
            set_mode(&file, 0o644);
        }
    }
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    context.fs_group.and_then(|group| group.try_into().ok())
}

/// As a kubelet does with the pod's `fsGroup`: the group owns the folder and what is and will be in it,
/// if it does not own the folder already.
fn give_to_group(place: &Path, group: Option<u32>) {
    let Some(group) = group else {
        return;
    };
    let about = std::fs::metadata(place).expect("it is there");
    if about.gid() != group {
        give(place, group);
    }
}

fn give(place: &Path, group: u32) {
    let about = std::fs::symlink_metadata(place).expect("it is there");
    if about.is_symlink() {
        return;
    }
    chown(place, None, Some(group)).expect("only root plays the kubelet");
    let added = if about.is_dir() { 0o2770 } else { 0o660 };
    set_mode(place, about.permissions().mode() | added);
    if about.is_dir() {
        for entry in std::fs::read_dir(place).expect("it is ours") {
            give(&entry.expect("it is ours").path(), group);
        }
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
}
