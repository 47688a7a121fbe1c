//! Reasons why the store on disk cannot be opened or read.

use super::SIDE_FILE;
use super::whole::Work;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Reason why a store cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The folder or the side file.
    #[error("cannot {operation} {}: {cause}", path.display())]
    File {
        /// The operation.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// The system's word.
        cause: io::Error,
    },
    /// The database.
    #[error("the store cannot {operation}: {cause}")]
    Engine {
        /// The operation.
        operation: &'static str,
        /// The engine's word.
        cause: Box<fjall::Error>,
    },
    /// The database cannot be opened.
    #[error("the store in {} cannot be opened: {cause}; if that is damage, restore a backup (moorline backend restore)", folder.display())]
    Open {
        /// Folder of the store.
        folder: PathBuf,
        /// The engine's word.
        cause: Box<fjall::Error>,
    },
    /// A record that cannot be.
    #[error("the store is damaged: {what}: {problem}; restore a backup (moorline backend restore)")]
    Damaged {
        /// Key of the record.
        what: &'static str,
        /// Cause of the damage.
        problem: String,
    },
    /// The number of commits is damaged.
    #[error(
        "{} should hold the number of commits and does not; restore a backup, or remove the file to go on \
         behind every seq that was given", path.display()
    )]
    SideFile {
        /// Name of the file.
        path: PathBuf,
    },
    /// Somebody else has the store.
    #[error("the store in {} is open in another process: stop that one, or name another im.folder", folder.display())]
    Locked {
        /// Folder of the store.
        folder: PathBuf,
    },
    /// A part of it is not what it was.
    #[error(
        "the store in {} is damaged: {}: {problem}; restore a backup, or remove {} to go on with what is left, behind \
         every seq that was given", folder.display(), path.display(), folder.join(SIDE_FILE).display()
    )]
    Altered {
        /// Folder of the store.
        folder: PathBuf,
        /// Name of the file.
        path: PathBuf,
        /// Cause of the damage.
        problem: String,
    },
    /// The store that was open is not at its place any more.
    #[error(
        "the store in {} is no longer there: it was removed or moved, or its disk was unmounted, while the backend ran; move \
         it back, mount the disk, or restore a backup, and then start the backend again, which makes a new store where \
         there is none", folder.display()
    )]
    Removed {
        /// Folder of the store.
        folder: PathBuf,
    },
    /// There is nothing to verify, to back up or to mark.
    #[error("there is no store in {}; check im.folder", folder.display())]
    NoStore {
        /// The folder.
        folder: PathBuf,
    },
    /// A file without which the database cannot be opened.
    #[error(
        "the store in {} is damaged: {} is gone; put it back from a copy of the folder, or restore a backup (moorline \
         backend restore)", folder.display(), path.display()
    )]
    Gone {
        /// Folder of the store.
        folder: PathBuf,
        /// The file.
        path: PathBuf,
    },
    /// A backup or a restore was interrupted.
    #[error("{}", unfinished(folder, *work))]
    Unfinished {
        /// The folder.
        folder: PathBuf,
        /// The work that was interrupted.
        work: Work,
    },
    /// The folder that is to be restored is not whole.
    #[error("{} is not a whole backup: {problem}; name the folder of another backup", folder.display())]
    NotBackup {
        /// The folder.
        folder: PathBuf,
        /// Name of what is missing or wrong.
        problem: String,
    },
    /// The copy of a backup is damaged, and so the backup.
    #[error(
        "the backup in {} is damaged: {problem}; restore another backup; until then {}/unfinished keeps the folder from \
         being opened", from.display(), folder.display()
    )]
    DamagedBackup {
        /// Folder of the backup.
        from: PathBuf,
        /// Folder of the store.
        folder: PathBuf,
        /// Cause of the damage, with the name of the file.
        problem: String,
    },
    /// The copy of a backup could not be opened or read through.
    #[error(
        "the backup is copied into {}, but it could not be verified: {cause}; run `moorline backend restore` again when that is \
         mended", folder.display()
    )]
    Unverified {
        /// Folder of the store.
        folder: PathBuf,
        /// Cause, of the verification.
        cause: Box<DiskError>,
    },
    /// A backup and a store in each other.
    #[error(
        "the backup {} and the store {} cannot be in each other; name a folder for the backup that is outside of the store",
        backup.display(), folder.display()
    )]
    Nested {
        /// Folder of the backup, without links.
        backup: PathBuf,
        /// Folder of the store, without links.
        folder: PathBuf,
    },
    /// A backup is to be put where a store is.
    #[error(
        "cannot restore into {}: there is a store; move `{}/database` away, and leave `sequences` there if it is the newest",
        folder.display(), folder.display()
    )]
    Taken {
        /// Folder of the store.
        folder: PathBuf,
    },
    /// Commits are missing.
    #[error(
        "the store in {} has lost writes that were acknowledged: {found} commits are there, {known} were made; restore \
         a backup, or remove {} to go on without them, behind every seq that was given", folder.display(),
        side_file.display()
    )]
    Lost {
        /// Folder of the store.
        folder: PathBuf,
        /// Error of the engine.
        side_file: PathBuf,
        /// Commits that are there.
        found: u64,
        /// Commits that there were.
        known: u64,
    },
}

fn unfinished(folder: &Path, work: Work) -> String {
    let folder = folder.display();
    match work {
        Work::Backup => format!(
            "the backup in {folder} was not finished, as {folder}/unfinished says: remove the folder, and make another backup"
        ),
        Work::Restore => format!(
            "the restore into {folder} was not finished, as {folder}/unfinished says: run `moorline backend restore` \
             again with a whole backup, or remove the folder to begin with an empty store"
        ),
    }
}

impl DiskError {
    /// Trying again will not help.
    pub(crate) const fn is_lasting(&self) -> bool {
        matches!(
            self,
            Self::Lost { .. }
                | Self::Damaged { .. }
                | Self::Altered { .. }
                | Self::SideFile { .. }
                | Self::Removed { .. }
                | Self::Gone { .. }
                | Self::Unfinished { .. }
                | Self::NotBackup { .. }
                | Self::DamagedBackup { .. }
        )
    }

    /// The error as if it were of another folder, which has the same files.
    pub(super) fn moved(mut self, from: &Path, to: &Path) -> Self {
        let place = |path: &mut PathBuf| {
            if let Ok(inner) = path.strip_prefix(from) {
                *path = if inner.as_os_str().is_empty() { to.to_owned() } else { to.join(inner) };
            }
        };
        match &mut self {
            Self::File { path, .. } | Self::SideFile { path } => place(path),
            Self::Altered { folder, path, .. } | Self::Gone { folder, path } => {
                place(folder);
                place(path);
            }
            Self::Lost { folder, side_file, .. } => {
                place(folder);
                place(side_file);
            }
            Self::Open { folder, .. }
            | Self::Locked { folder }
            | Self::Removed { folder }
            | Self::NoStore { folder }
            | Self::Unfinished { folder, .. }
            | Self::NotBackup { folder, .. }
            | Self::DamagedBackup { folder, .. }
            | Self::Unverified { folder, .. }
            | Self::Taken { folder } => place(folder),
            Self::Engine { .. } | Self::Damaged { .. } | Self::Nested { .. } => {}
        }
        self
    }

    /// Describes what is damaged, and how, without advice. `None`: it is not damage.
    pub(super) fn damage(&self) -> Option<String> {
        let is_damage = |kind: ErrorKind| {
            matches!(kind, ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::NotFound)
        };
        match self {
            Self::Altered { path, problem, .. } => Some(format!("{}: {problem}", path.display())),
            Self::Gone { path, .. } => Some(format!("{} is gone", path.display())),
            Self::SideFile { path } => {
                Some(format!("{} should hold the number of commits and does not", path.display()))
            }
            Self::Lost { folder, found, known, .. } => {
                Some(format!("{}/database has {found} commits, and {known} were made", folder.display()))
            }
            Self::Damaged { what, problem } => Some(format!("{what}: {problem}")),
            Self::File { path, cause, .. } => {
                is_damage(cause.kind()).then(|| format!("{}: {cause}", path.display()))
            }
            Self::Open { cause, .. } | Self::Engine { cause, .. } => match &**cause {
                fjall::Error::Io(io) if !is_damage(io.kind()) => None,
                cause => Some(cause.to_string()),
            },
            _ => None,
        }
    }

    /// The database in the store's folder could not be opened.
    pub(super) fn open(folder: &Path, cause: fjall::Error) -> Self {
        match cause {
            fjall::Error::Locked => Self::Locked { folder: folder.to_owned() },
            cause => Self::Open { folder: folder.to_owned(), cause: Box::new(cause) },
        }
    }

    pub(super) fn engine(operation: &'static str) -> impl FnOnce(fjall::Error) -> Self {
        move |cause| Self::Engine { operation, cause: Box::new(cause) }
    }
}
