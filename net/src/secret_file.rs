//! Files that hold secrets: read once, after a look at who else can read or write them.
//!
//! The file is opened first and judged by its descriptor, so that the file that was judged is the one that is read.
//! A file that others can write is refused: whoever writes a secret knows it. A file that others can read is read,
//! with a warning. Root and the owner of the process count as the operator; everybody else is "others".

use std::fs::{Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Bits of a mode that let the group or everybody write.
const WRITE_OTHERS: u32 = 0o022;
/// Bits of a mode that let the group or everybody read.
const READ_OTHERS: u32 = 0o044;
/// Bit of a folder in which only its owner removes a file.
const STICKY: u32 = 0o1000;

/// Content of a file with secrets.
#[derive(Debug)]
pub struct SecretFile {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Sentence for the log, if others can read the file.
    pub warning: Option<String>,
}

/// Reason why a file with secrets is not read. Shows nothing of its content.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// The system refuses.
    #[error("cannot read {}: {cause}", path.display())]
    Read {
        /// Path as it was given.
        path: PathBuf,
        /// Error of the system.
        cause: io::Error,
    },
    /// The path is of a folder, a pipe or a device.
    #[error("cannot read {}: it is not a regular file", path.display())]
    NotAFile {
        /// Path as it was given.
        path: PathBuf,
    },
    /// Others than the operator can change it.
    #[error("cannot trust {}: {who} can write {what}; {fix}", path.display())]
    Writable {
        /// Path as it was given.
        path: PathBuf,
        /// Users who can write.
        who: String,
        /// The file, or its folder.
        what: &'static str,
        /// Command that mends it.
        fix: String,
    },
    /// The file is longer than its reader accepts.
    #[error("cannot read {}: it has more than {max} bytes", path.display())]
    TooLarge {
        /// Path as it was given.
        path: PathBuf,
        /// Limit in bytes.
        max: u64,
    },
}

impl SecretFileError {
    /// Returns the path as it was given.
    pub fn path(&self) -> &Path {
        match self {
            Self::Read { path, .. }
            | Self::NotAFile { path }
            | Self::Writable { path, .. }
            | Self::TooLarge { path, .. } => path,
        }
    }
}

/// Reads a file with secrets of at most `max` bytes.
///
/// # Errors
/// [`SecretFileError`].
pub fn read(path: &Path, max: u64) -> Result<SecretFile, SecretFileError> {
    let failed = |cause| SecretFileError::Read { path: path.to_owned(), cause };
    // A pipe would be waited for without end.
    let file =
        OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if !about.is_file() {
        return Err(SecretFileError::NotAFile { path: path.to_owned() });
    }
    let writable =
        |who: String, what, fix| SecretFileError::Writable { path: path.to_owned(), who, what, fix };
    if let Some(who) = writer(&about) {
        let fix = format!("run `chmod go-w {}`, and have it owned by root or by this user", path.display());
        return Err(writable(who, "it", fix));
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let about_folder = folder.metadata().map_err(failed)?;
    if about_folder.mode() & STICKY == 0
        && let Some(who) = writer(&about_folder)
    {
        let fix = format!("run `chmod go-w {}`, or move the file", folder.display());
        return Err(writable(who, "its folder", fix));
    }
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > max {
        return Err(SecretFileError::TooLarge { path: path.to_owned(), max });
    }
    let is_readable = about.mode() & READ_OTHERS != 0;
    let warning = is_readable.then(|| {
        format!("{0} can be read by other users of this machine; run `chmod go-rwx {0}`", path.display())
    });
    Ok(SecretFile { bytes, warning })
}

/// Returns who beside the operator can write; `None`: nobody.
fn writer(about: &Metadata) -> Option<String> {
    let owner = about.uid();
    if owner != 0 && owner != nix::unistd::geteuid().as_raw() {
        return Some(format!("user {owner}, who owns it,"));
    }
    match about.mode() & WRITE_OTHERS {
        0 => None,
        0o020 => Some("its group".to_owned()),
        _ => Some("everybody".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("our file");
    }

    #[test]
    fn what_others_can_write_is_refused_and_what_they_can_read_is_warned_of() {
        let folder = std::env::temp_dir().join(format!("moorline-secret-file-{}", std::process::id()));
        fs::create_dir(&folder).expect("a new folder");
        set_mode(&folder, 0o700);
        let path = folder.join("secrets");
        fs::write(&path, "s3cret").expect("written");
        for (mode, is_warned) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true)] {
            set_mode(&path, mode);
            let read = read(&path, 100).expect("not writable by others");
            assert_eq!((&read.bytes[..], read.warning.is_some()), (&b"s3cret"[..], is_warned), "{mode:o}");
        }
        for (mode, who) in [(0o620, "its group can write it"), (0o602, "everybody"), (0o666, "everybody")] {
            set_mode(&path, mode);
            let error = read(&path, 100).expect_err("writable").to_string();
            assert!(error.contains(who) && !error.contains("s3cret"), "{mode:o}: {error}");
        }
        set_mode(&path, 0o600);
        set_mode(&folder, 0o777);
        let error = read(&path, 100).expect_err("the folder is writable").to_string();
        assert!(error.contains("everybody can write its folder"), "{error}");
        set_mode(&folder, 0o1777);
        read(&path, 100).expect("in a sticky folder nobody else removes it");
        assert!(matches!(read(&path, 5), Err(SecretFileError::TooLarge { max: 5, .. })));
        assert!(matches!(read(&folder, 5), Err(SecretFileError::NotAFile { .. })));
        let pipe = folder.join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).expect("a pipe");
        assert!(matches!(read(&pipe, 5), Err(SecretFileError::NotAFile { .. })), "it is not waited for");
        fs::remove_dir_all(&folder).expect("ours");
        assert!(matches!(read(&path, 5), Err(SecretFileError::Read { .. })));
    }
}
