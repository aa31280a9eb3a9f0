//! The machine that runs pods: which programs its images have, and what it keeps between pods.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use k8s_openapi::api::core::v1::{Container, Pod};
use tempfile::TempDir;

use crate::support::baseline::name_of;
use crate::support::cluster::Cluster;

/// What runs when a container has that image.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// The command of a container that says none.
    pub entrypoint: Vec<String>,
    /// Programs and folders at the paths where the image has them, beside those of this machine.
    pub programs: Vec<(String, PathBuf)>,
    /// What the image puts into the environment.
    pub environment: Vec<(String, String)>,
}

/// Some steps of a task's pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steps {
    Last,
    All,
}

/// Runs the pods of one namespace.
pub struct Machine {
    pub(super) cluster: Cluster,
    /// By the beginning of the image's name.
    images: Vec<(String, Image)>,
    pub(super) folder: TempDir,
    /// The folders behind persistent volume claims, by name.
    claims: Mutex<HashMap<String, PathBuf>>,
    /// What steps do instead of their own commands: pod, which of them, and the command.
    instead: Mutex<Vec<(String, Steps, Vec<String>)>>,
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
            environment: Vec::new(),
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
            instead: Mutex::default(),
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

    /// From now on steps of the pod of that name run this, below Tekton's entrypoint as ever.
    pub fn instead(&self, pod: &str, steps: Steps, words: &[&str]) {
        let words = words.iter().map(|&word| word.to_owned()).collect();
        let mut instead = self.instead.lock().expect("nobody panics with it");
        instead.push((pod.to_owned(), steps, words));
    }

    /// The command and arguments of a container, after Tekton's `-entrypoint` where something else is to run.
    pub(super) fn words(
        &self,
        pod: &Pod,
        container: &Container,
        words: Vec<String>,
    ) -> Vec<String> {
        let name = name_of(pod);
        let spec = pod.spec.as_ref().expect("a pod has a spec");
        let is_last = { spec.containers.last() }.is_some_and(|last| last.name == container.name);
        let instead = self.instead.lock().expect("nobody panics with it");
        let said = instead
            .iter()
            .find(|(pod, steps, _)| *pod == name && (*steps == Steps::All || is_last));
        let at = words.iter().position(|word| word == "-entrypoint");
        match (said, at) {
            (Some((_, _, other)), Some(at)) => {
                let (program, arguments) = other.split_first().expect("a command has a program");
                let mut all = words[..=at].to_vec();
                all.extend([program.clone(), "--".to_owned()]);
                all.extend(arguments.iter().cloned());
                all
            }
            _ => words,
        }
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
