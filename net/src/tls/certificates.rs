//! Certificates by the name that a client asks for, read from PEM files, and replaced while connections come in.
//!
//! All files are read and checked before any of them is in force. The name is looked up as it is, then with `*` for its
//! first label; then the default certificate is taken, and without one the client is refused.
//!
//! Example: one pair of files is for `chat.example` and `*.chat.example`, the other one, the default, for `10.0.0.7`. A
//! client that asks for `eu.chat.example` gets the first certificate, one that asks for nothing the second.

use super::der;
use super::provider::provider;
use crate::secret_file::{self, SecretFileError};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use zeroize::Zeroizing;

/// Certificates of a server.
pub const CERTIFICATES_MAX: usize = 256;
/// Limit of one file, in bytes.
pub(super) const FILE_BYTES_MAX: u64 = 256 << 10;
/// Certificates in one chain.
const CHAIN_MAX: usize = 10;
/// Time before the end of a certificate in which a warning is due, in seconds: 14 days.
const WARNING_S: u64 = 14 * 86_400;

/// Files of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// PEM of the server's certificate, followed by those of its issuers.
    pub chain: PathBuf,
    /// PEM of its private key.
    pub key: PathBuf,
    /// Clients that ask for another name, or for none, get this certificate.
    pub is_default: bool,
}

/// A certificate that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateAbout {
    /// File with the chain.
    pub chain: PathBuf,
    /// DNS names, in lower case.
    pub names: Vec<String>,
    /// Last second in which it is valid, since 1970.
    pub not_after: u64,
}

/// Certificates that were read and checked, to be put in force.
pub struct CertificateSet {
    by_name: HashMap<String, Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
    about: Vec<CertificateAbout>,
    warnings: Vec<String>,
}

impl fmt::Debug for CertificateSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateSet").field("about", &self.about).finish_non_exhaustive()
    }
}

/// Reason why a set of certificates is not read.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read, or not be trusted.
    #[error("cannot use a TLS certificate: {0}")]
    File(#[from] SecretFileError),
    /// The content of a file is not what it should be.
    #[error("cannot use {}: {problem}", path.display())]
    Content {
        /// Path as it was given.
        path: PathBuf,
        /// Cause, and what to do.
        problem: String,
    },
    /// The files do not go together.
    #[error("cannot use the TLS certificates: {0}")]
    Set(String),
}

impl CertificateError {
    /// Returns the file that is at fault; `None`: the files together are.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::File(error) => Some(error.path()),
            Self::Content { path, .. } => Some(path),
            Self::Set(_) => None,
        }
    }
}

impl CertificateSet {
    /// Reads all files. Nothing is in force before [`Certificates::put`].
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn read(files: &[CertificateFiles], unix_now_s: u64) -> Result<Self, CertificateError> {
        let wrong = |problem: String| Err(CertificateError::Set(problem));
        if files.is_empty() {
            return wrong("there is none; name a file with a chain and one with its key".to_owned());
        }
        if files.len() > CERTIFICATES_MAX {
            return wrong(format!("there are {}, expected at most {CERTIFICATES_MAX}", files.len()));
        }
        if files.iter().filter(|files| files.is_default).count() > 1 {
            return wrong("more than one is the default; choose one".to_owned());
        }
        let provider = provider();
        let mut set =
            Self { by_name: HashMap::new(), default: None, about: Vec::new(), warnings: Vec::new() };
        for files in files {
            set.add(files, unix_now_s, &provider)?;
        }
        Ok(set)
    }

    fn add(
        &mut self,
        files: &CertificateFiles,
        unix_now_s: u64,
        provider: &CryptoProvider,
    ) -> Result<(), CertificateError> {
        let chain = read_chain(&files.chain)?;
        let (names, not_after) = read_leaf(&chain[0]).ok_or_else(|| {
            refused(&files.chain, "its first certificate is not one of a server (X.509, version 3)")
        })?;
        let key = self.read_key(&files.key)?;
        let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => refused(
                &files.key,
                format!("it is not the key of {}; give the one that belongs to it", files.chain.display()),
            ),
            error => refused(&files.key, format!("{error}; expected a key of ECDSA, Ed25519 or RSA in PEM")),
        })?;
        let key = Arc::new(key);
        if names.is_empty() && !files.is_default {
            let problem =
                "it has no DNS name (subjectAltName), so no client can ask for it; make it the default";
            return Err(refused(&files.chain, problem));
        }
        let place = files.chain.display();
        for name in &names {
            if self.by_name.insert(name.clone(), key.clone()).is_some() {
                return Err(refused(
                    &files.chain,
                    format!("another certificate is for {name}, too; leave one out"),
                ));
            }
        }
        match not_after.checked_sub(unix_now_s) {
            None => self.warnings.push(format!("the TLS certificate {place} has expired; renew it")),
            Some(left) if left < WARNING_S => {
                self.warnings
                    .push(format!("the TLS certificate {place} expires in {} days; renew it", left / 86_400));
            }
            Some(_) => {}
        }
        if files.is_default {
            self.default = Some(key);
        }
        self.about.push(CertificateAbout { chain: files.chain.clone(), names, not_after });
        Ok(())
    }

    fn read_key(&mut self, path: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
        let file = secret_file::read(path, FILE_BYTES_MAX)?;
        self.warnings.extend(file.warning);
        let pem = Zeroizing::new(file.bytes);
        PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
            refused(
                path,
                "it has no private key in PEM without a password; expected -----BEGIN PRIVATE KEY-----",
            )
        })
    }

    /// Returns sentences for the log: keys that others can read, certificates that end soon.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Returns what is known of each certificate, in the order of the files.
    pub fn about(&self) -> &[CertificateAbout] {
        &self.about
    }

    /// Returns the default certificate with its key.
    pub(super) fn default_key(&self) -> Option<CertifiedKey> {
        self.default.as_deref().cloned()
    }

    fn find(&self, name: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        let named = name.and_then(|name| {
            let name = name.to_ascii_lowercase();
            let wildcard = || name.split_once('.').map(|(_, rest)| format!("*.{rest}"));
            self.by_name.get(&name).or_else(|| self.by_name.get(&wildcard()?))
        });
        named.or(self.default.as_ref())
    }
}

fn refused(path: &Path, problem: impl Into<String>) -> CertificateError {
    CertificateError::Content { path: path.to_owned(), problem: problem.into() }
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    // Everybody may read a chain.
    let file = secret_file::read(path, FILE_BYTES_MAX)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&file.bytes).take(CHAIN_MAX + 1).collect();
    let chain = chain.map_err(|error| refused(path, format!("it is not valid PEM: {error}")))?;
    match chain.len() {
        0 => Err(refused(path, "it has no certificate in PEM; expected -----BEGIN CERTIFICATE-----")),
        count if count > CHAIN_MAX => {
            Err(refused(path, format!("its chain has more than {CHAIN_MAX} certificates")))
        }
        _ => Ok(chain),
    }
}

/// Returns the DNS names and the last valid second.
fn read_leaf(certificate: &CertificateDer<'_>) -> Option<(Vec<String>, u64)> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    let mut names: Vec<_> = parsed.valid_dns_names().map(str::to_ascii_lowercase).collect();
    names.sort_unstable();
    names.dedup();
    Some((names, der::not_after(certificate)?))
}

/// The certificates in force. A new set takes the place of the old one for the handshakes that begin afterwards.
pub struct Certificates(RwLock<Arc<CertificateSet>>);

impl Certificates {
    /// Puts a first set in force.
    pub fn new(set: CertificateSet) -> Self {
        Self(RwLock::new(Arc::new(set)))
    }

    /// Puts another set in force.
    pub fn put(&self, set: CertificateSet) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(set);
    }

    /// Returns the set in force.
    pub fn set(&self) -> Arc<CertificateSet> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.set().fmt(f)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.set().find(hello.server_name()).cloned()
    }
}
