//! The run folder: logs of the processes, thrown away unless they are wanted.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// Tries for a name that is free.
const NAMES_MAX: u32 = 100;

/// A folder of this run alone. Dropping it removes it, unless it is to be kept.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    is_kept: bool,
}

impl RunFolder {
    pub(crate) fn create() -> io::Result<Self> {
        let pid = std::process::id();
        let mut outcome = Err(io::Error::from(io::ErrorKind::AlreadyExists));
        for number in 0..NAMES_MAX {
            let path = std::env::temp_dir().join(format!("moorline-demo-{pid}-{number}"));
            outcome = DirBuilder::new().mode(0o700).create(&path).map(|()| Self { path, is_kept: false });
            if !matches!(&outcome, Err(error) if error.kind() == io::ErrorKind::AlreadyExists) {
                break;
            }
        }
        outcome
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A new file in it.
    pub(crate) fn file(&self, name: &str) -> io::Result<File> {
        File::create_new(self.path.join(name))
    }

    pub(crate) const fn keep(&mut self) {
        self.is_kept = true;
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if !self.is_kept {
            fs::remove_dir_all(&self.path).ok(); // nobody is left to tell
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_with_its_files_unless_kept() {
        let mut folder = RunFolder::create().expect("a folder");
        let other = RunFolder::create().expect("another");
        assert_ne!(folder.path(), other.path());
        folder.file("a.log").expect("a file");
        assert!(folder.file("a.log").is_err(), "nothing is overwritten");
        let path = folder.path().to_owned();
        folder.keep();
        drop(folder);
        assert!(path.join("a.log").exists());
        drop(RunFolder { path: path.clone(), is_kept: false });
        assert!(!path.exists());
    }
}
