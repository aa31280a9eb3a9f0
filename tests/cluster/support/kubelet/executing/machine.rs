//! The machine that runs pods: which programs its images have, and what it keeps between pods.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use k8s_openapi::api::core::v1::Pod;
use tempfile::TempDir;

use crate::support::baseline::name_of;
use crate::support::cluster::Cluster;

/// What runs when a container has that image.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// The command of a container that says none.
    pub entrypoint: Vec<String>,
    /// Programs at the paths where the image has them, beside those of this machine.
    pub programs: Vec<(String, PathBuf)>,
}

/// Runs the pods of one namespace.
pub struct Machine {
    pub(super) cluster: Cluster,
    /// By the beginning of the image's name.
    images: Vec<(String, Image)>,
    pub(super) folder: TempDir,
    /// The folders behind persistent volume claims, by name.
    claims: Mutex<HashMap<String, PathBuf>>,
    /// The output of each container that ran: pod, container, file.
    outputs: Mutex<Vec<(String, String, PathBuf)>>,
}

impl Image {
    /// With these programs in `/usr/local/bin`.
    pub fn with(programs: &[(&str, &Path)]) -> Self {
        let at = |name: &str| format!("/usr/local/bin/{name}");
        let programs = programs.iter();
        Self {
            entrypoint: Vec::new(),
            programs: programs
                .map(|(name, file)| (at(name), (*file).to_owned()))
                .collect(),
        }
    }
}

impl Machine {
    pub fn new(cluster: &Cluster, images: Vec<(String, Image)>) -> Self {
        Self {
            cluster: cluster.clone(),
            images,
            folder: tempfile::tempdir().expect("a writable temp folder"),
            claims: Mutex::default(),
            outputs: Mutex::default(),
        }
    }

    /// What is on a claim, to look into or to prepare before a pod has it.
    pub fn claim(&self, name: &str) -> PathBuf {
        let mut claims = self.claims.lock().expect("nobody panics with it");
        let folder = claims.entry(name.to_owned()).or_insert_with(|| {
            let folder = self.folder.path().join("claims").join(name);
            std::fs::create_dir_all(&folder).expect("a writable folder");
            folder
        });
        folder.clone()
    }

    /// What containers of pods whose names begin so have written, each under its name.
    pub fn said(&self, prefix: &str) -> String {
        let outputs = self.outputs.lock().expect("nobody panics with it");
        let of = outputs.iter().filter(|(pod, ..)| pod.starts_with(prefix));
        of.map(|(pod, container, file)| {
            let text = std::fs::read(file).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            format!("--- {pod} {container}\n{text}\n")
        })
        .collect()
    }

    pub(super) fn image(&self, name: &str) -> Option<&Image> {
        let mut images = self.images.iter();
        images
            .find(|(prefix, _)| name.starts_with(prefix.as_str()))
            .map(|(_, image)| image)
    }

    /// Where a container of that pod is to write.
    pub(super) fn output(&self, pod: &Pod, container: &str) -> PathBuf {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let file = self.folder.path().join(format!("{uid}-{container}.log"));
        let output = (name_of(pod), container.to_owned(), file.clone());
        self.outputs
            .lock()
            .expect("nobody panics with it")
            .push(output);
        file
    }
}
