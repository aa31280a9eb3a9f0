//! The file that says which apps are live: a JSON map of app to PR pod.
//!
//! It exists from the start, empty, so that one of an earlier run is never taken for ours, and it is
//! replaced as a whole, so that nobody reads half of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, anyhow};

/// The map, and where it is written.
#[derive(Debug, Default)]
pub(super) struct DeployedPods {
    file: Option<PathBuf>,
    pods: BTreeMap<String, String>,
}

impl DeployedPods {
    /// An empty one.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn start(file: Option<PathBuf>) -> anyhow::Result<Self> {
        let started = Self {
            file,
            pods: BTreeMap::new(),
        };
        started.write()?;
        Ok(started)
    }

    /// An app is live.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn add(&mut self, app: &str, pod: &str) -> anyhow::Result<()> {
        self.pods.insert(app.to_owned(), pod.to_owned());
        self.write()
    }

    /// None is.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn clear(&mut self) -> anyhow::Result<()> {
        self.pods.clear();
        self.write()
    }

    /// On one line.
    pub(super) fn json(&self) -> String {
        serde_json::json!(self.pods).to_string()
    }

    fn write(&self) -> anyhow::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let name = file
            .file_name()
            .ok_or_else(|| anyhow!("cannot write {}: it names no file", file.display()))?;
        let hidden = format!(".{}.{}", name.to_string_lossy(), std::process::id());
        let draft = file.with_file_name(hidden);
        fs::write(&draft, self.json() + "\n")
            .and_then(|()| fs::rename(&draft, file))
            .inspect_err(|_| {
                // Nothing more can be done about a draft that will not go.
                let _ = fs::remove_file(&draft);
            })
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_there_from_the_start_and_whole_at_any_time() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deployed-pods.json");
        fs::write(&file, "{\"orders\":\"pr-of-yesterday\"}").unwrap();

        let mut deployed = DeployedPods::start(Some(file.clone())).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "{}\n");
        deployed.add("orders", "pr-orders-pr-42").unwrap();
        deployed.add("items", "pr-items-pr-42").unwrap();
        assert_eq!(
            fs::read_to_string(&file).unwrap(),
            "{\"items\":\"pr-items-pr-42\",\"orders\":\"pr-orders-pr-42\"}\n"
        );
        deployed.clear().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "{}\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_place_that_cannot_be_written_to_is_told_at_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("missing/deployed-pods.json");
        let error = DeployedPods::start(Some(file)).unwrap_err();
        assert!(format!("{error:#}").contains("missing/deployed-pods.json"));
    }
}
