//! The folder of a store: made for this user alone, and only where its parent is.

use super::sync;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

/// Rights of the group and of others.
const OTHERS: u32 = 0o077;
/// Folders in each other that are looked through.
const DEPTH_MAX: usize = 8;

/// Makes the folder if it is missing, and takes the rights of others from it and its files.
///
/// # Errors
/// The parent does not exist: a disk that is not mounted must not become an empty store. Or the system's.
pub(super) fn prepare(folder: &Path) -> io::Result<()> {
    let made = DirBuilder::new().mode(0o700).create(folder);
    match made {
        Ok(()) => return sync::parent(folder),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let parent = folder.parent().unwrap_or(folder).display();
            let problem = format!(
                "{parent} does not exist; if its disk is not mounted, mount it; if the store is to be new, make {parent} first"
            );
            return Err(io::Error::new(ErrorKind::NotFound, problem));
        }
        Err(error) => return Err(error),
    }
    let found = fs::metadata(folder)?;
    if !found.is_dir() {
        return Err(io::Error::new(ErrorKind::NotADirectory, "it is not a folder"));
    }
    if found.permissions().mode() & OTHERS == 0 {
        return Ok(());
    }
    tracing::info!(folder = %folder.display(), "an earlier version let others read the store; that is taken away");
    close(folder, DEPTH_MAX)
}

/// Takes the rights of others from a folder and what is in it. The folder is last: a kill in between does it again.
fn close(folder: &Path, depth: usize) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() && depth > 0 {
            close(&entry.path(), depth - 1)?;
        } else if kind.is_file() {
            let mode = entry.metadata()?.permissions().mode();
            if mode & OTHERS == 0 {
                continue; // what changes a file in vain makes it a copy: see `generation`
            }
            fs::set_permissions(entry.path(), Permissions::from_mode(mode & !OTHERS))?;
        }
    }
    fs::set_permissions(folder, Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("moorline-store-{name}-{}", std::process::id()));
            fs::remove_dir_all(&path).ok();
            fs::create_dir(&path).expect("made");
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("there").permissions().mode() & 0o7777
    }

    #[test]
    fn a_missing_parent_is_an_error_that_names_it() {
        let folder = Folder::new("parent");
        let error = prepare(&folder.0.join("disk/store")).expect_err("no disk");
        assert!(error.to_string().contains("/disk does not exist"), "{error}");
        assert!(!folder.0.join("disk").exists());
        prepare(&folder.0.join("store")).expect("made");
        assert_eq!(mode(&folder.0.join("store")), 0o700);
        fs::write(folder.0.join("file"), "").expect("written");
        prepare(&folder.0.join("file")).expect_err("not a folder");
    }

    #[test]
    fn a_folder_of_an_earlier_version_is_closed_to_others_with_all_in_it() {
        let folder = Folder::new("closed");
        let store = folder.0.join("store");
        fs::create_dir_all(store.join("database/tables")).expect("made");
        let files = [store.join("commits"), store.join("database/tables/1.sst")];
        for file in &files {
            fs::write(file, "x").expect("written");
            fs::set_permissions(file, Permissions::from_mode(0o644)).expect("ours");
        }
        fs::set_permissions(&store, Permissions::from_mode(0o755)).expect("ours");
        prepare(&store).expect("ours");
        assert_eq!((mode(&store), mode(&store.join("database/tables"))), (0o700, 0o700));
        assert!(files.iter().all(|file| mode(file) == 0o600));
    }
}
