//! A configuration file on disk, and the three ways in which such a file changes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

const NAME: &str = "session-proxy.yaml";

/// A file in a folder of its own, which goes when it is dropped.
pub struct ConfigFile {
    folder: TempDir,
    versions: usize,
}

impl ConfigFile {
    /// A plain file.
    pub fn plain(text: &str) -> Self {
        let file = Self::empty();
        fs::write(file.path(), text).expect("the folder is writable");
        file
    }

    /// A file as a mounted ConfigMap has it: a link to `..data`, itself a link to a dated folder.
    pub fn mounted(text: &str) -> Self {
        let mut file = Self::empty();
        symlink(format!("..data/{NAME}"), file.path()).expect("the folder is writable");
        file.swap_symlink(text);
        file
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join(NAME)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Truncates and writes the same inode, as an editor may.
    pub fn write_in_place(&self, text: &str) {
        fs::write(self.path(), text).expect("the folder is writable");
    }

    /// Writes another file and renames it over this one.
    pub fn rename_over(&self, text: &str) {
        let new = self.folder.path().join(".new");
        fs::write(&new, text).expect("the folder is writable");
        fs::rename(new, self.path()).expect("a rename within a folder");
    }

    /// What the kubelet does: a new dated folder, `..data` swapped over to it, the old one removed.
    pub fn swap_symlink(&mut self, text: &str) {
        let data = self.folder.path().join("..data");
        let old = fs::read_link(&data).ok();
        self.versions += 1;
        let dated = format!("..version_{}", self.versions);
        let target = self.folder.path().join(&dated);
        fs::create_dir(&target).expect("the folder is writable");
        fs::write(target.join(NAME), text).expect("the folder is writable");
        let swap = self.folder.path().join("..data_tmp");
        symlink(&dated, &swap).expect("the folder is writable");
        fs::rename(swap, &data).expect("a rename within a folder");
        if let Some(old) = old {
            fs::remove_dir_all(self.folder.path().join(old)).expect("the old version is ours");
        }
    }

    fn empty() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a writable temp folder"),
            versions: 0,
        }
    }
}
