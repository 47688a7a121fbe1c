//! A certificate for `moorline dev --tls`: for this machine's names, in a folder of its own, gone with the command.

use super::Failure;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

/// Names that clients may connect to.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// Tries for a folder that is free.
const FOLDERS_MAX: u32 = 100;

/// A certificate that signs itself, and its key. Dropping it removes both.
#[derive(Debug)]
pub(super) struct Certificate {
    folder: PathBuf,
}

impl Certificate {
    /// Makes a key and a certificate.
    ///
    /// # Errors
    /// No folder or file can be made, or the system gives no randomness.
    pub(super) fn make() -> Result<Self, Failure> {
        let made = rcgen::generate_simple_self_signed(NAMES.map(str::to_owned));
        let rcgen::CertifiedKey { cert, signing_key } = made.map_err(|error| {
            Failure::Failed(format!("cannot make a certificate for `dev --tls`: {error}"))
        })?;
        let folder = make_folder()?;
        let certificate = Self { folder };
        for (path, text) in
            [(certificate.path(), cert.pem()), (certificate.key(), signing_key.serialize_pem())]
        {
            let mut private = OpenOptions::new();
            let opened = private.write(true).create_new(true).mode(0o600).open(&path);
            opened.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| {
                Failure::Failed(format!("cannot write {} for `dev --tls`: {error}", path.display()))
            })?;
        }
        Ok(certificate)
    }

    /// File with the certificate, which clients trust.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.join("certificate.pem")
    }

    fn key(&self) -> PathBuf {
        self.folder.join("key.pem")
    }

    /// Settings of a gateway whose listener has TLS with this certificate.
    pub(super) fn sets(&self) -> Vec<String> {
        vec![
            "listener.kind=tls".to_owned(),
            format!("tls.certificates=[{:?}]", self.path().display().to_string()),
            format!("tls.keys=[{:?}]", self.key().display().to_string()),
            format!("tls.default={:?}", self.path().display().to_string()),
        ]
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.folder).ok(); // nobody is left to tell
    }
}

fn make_folder() -> Result<PathBuf, Failure> {
    let parent = std::env::temp_dir();
    let mut last = io::Error::from(ErrorKind::AlreadyExists);
    for number in 0..FOLDERS_MAX {
        let path = parent.join(format!("moorline-dev-{}-{number}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => last = error,
            Err(error) => {
                last = error;
                break;
            }
        }
    }
    let parent = parent.display();
    Err(Failure::Failed(format!(
        "cannot make a folder in {parent} for the certificate of `dev --tls`: {last}; set TMPDIR"
    )))
}
