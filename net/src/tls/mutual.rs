//! Mutual TLS under an own CA: both ends show a certificate, and each verifies the other's.
//!
//! Four files make an end: the certificates of the CA, an own certificate with its key, and, if there is one, a list of revoked
//! certificates. They are read and compared before any of them is in force. With a list, a certificate whose issuer has no list
//! in the file is refused; certificates of issuers in between are not looked up. A list whose time is over is still used.
//!
//! Example: the gateway `g1` has a certificate with the name `g1`, the backend one with `backend.internal`, both of one CA. The
//! gateway dials `backend.internal:7100` and expects that name; the backend expects any certificate of the CA, and hands its
//! names on to whoever compares them with what the peer says it is.

use super::certificates::{CertificateError, CertificateFiles, CertificateSet, Certificates, FILE_BYTES_MAX};
use super::handshake::{Handshake, HandshakeError, Notes, Protocols, Server};
use super::provider::provider;
use crate::secret_file;
use rustls::client::{ResolvesClientCert, Resumption, UnbufferedClientConnection, WebPkiServerVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName};
use rustls::server::{ProducesTickets, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{CertificateError as PeerFault, ClientConfig, Error, RootCertStore};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Certificates of a CA file: the old one and the new one while they are rolled over, and some more.
const ROOTS_MAX: usize = 16;
/// Lists of revoked certificates in one file.
const CRLS_MAX: usize = 16;
/// Limit of the file with the lists, in bytes.
const CRL_BYTES_MAX: u64 = 1 << 20;

type Crl = CertificateRevocationListDer<'static>;

/// Files of one end: the settings `[backend.tls]` of a gateway and `[link.tls]` of a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "server", derive(serde::Deserialize, serde::Serialize))]
pub struct MutualFiles {
    /// Certificates (PEM) of the CA of both ends; empty: links over TCP are not encrypted.
    #[cfg_attr(feature = "server", serde(rename = "ca_file"))]
    pub ca: PathBuf,
    /// Certificate (PEM) of this end, followed by its issuers.
    #[cfg_attr(feature = "server", serde(rename = "certificate_file"))]
    pub certificate: PathBuf,
    /// Key of that certificate.
    #[cfg_attr(feature = "server", serde(rename = "key_file"))]
    pub key: PathBuf,
    /// Lists of revoked certificates (PEM); empty: there are none.
    #[cfg_attr(feature = "server", serde(rename = "crl_file"))]
    pub crl: PathBuf,
}

impl MutualFiles {
    /// Returns the files; `None`: links over TCP are not encrypted.
    pub fn set(&self) -> Option<&Self> {
        (!self.ca.as_os_str().is_empty()).then_some(self)
    }

    /// Returns whether no file is named.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Keys of the files that an end needs, with whether each is named.
    pub fn needed(&self) -> [(&'static str, bool); 3] {
        [("ca_file", &self.ca), ("certificate_file", &self.certificate), ("key_file", &self.key)]
            .map(|(key, file)| (key, !file.as_os_str().is_empty()))
    }
}

impl MutualFiles {
    /// Reads the files for a client that the library serves to its end, such as one of a database: it verifies its server in
    /// full, and shows a certificate if one is named. Returns sentences for the log, too.
    ///
    /// # Errors
    /// [`MutualError`].
    pub fn client_config(
        &self,
        protocol: &str,
        unix_now_s: u64,
    ) -> Result<(ClientConfig, Vec<String>), MutualError> {
        let shows_none = self.certificate.as_os_str().is_empty() && self.key.as_os_str().is_empty();
        let own = if shows_none { None } else { Some(self.own(unix_now_s)?) };
        let (roots, crls) = self.trusted()?;
        let verifier = verify_servers(&roots, &crls).map_err(|_| self.bad_lists())?;
        let warnings = own.as_ref().map_or_else(Vec::new, |own| own.warnings().to_vec());
        Ok((client_config(verifier, own.as_ref(), protocol), warnings))
    }

    fn own(&self, unix_now_s: u64) -> Result<CertificateSet, MutualError> {
        let (chain, key) = (self.certificate.clone(), self.key.clone());
        let own = CertificateSet::read(&[CertificateFiles { chain, key, is_default: true }], unix_now_s);
        own.map_err(|cause| {
            let is_key = cause.path() == Some(self.key.as_path());
            MutualError { key: if is_key { "key_file" } else { "certificate_file" }, cause }
        })
    }

    /// Reads whom to believe, and whom not any more.
    fn trusted(&self) -> Result<(Arc<RootCertStore>, Vec<Crl>), MutualError> {
        let roots = read_roots(&self.ca).map_err(|cause| MutualError { key: "ca_file", cause })?;
        let roots = Arc::new(roots);
        if self.crl.as_os_str().is_empty() {
            return Ok((roots, Vec::new()));
        }
        let crls = read_crls(&self.crl).map_err(|cause| MutualError { key: "crl_file", cause })?;
        verify_servers(&roots, &crls).map_err(|_| self.bad_lists())?;
        Ok((roots, crls))
    }

    /// Only lists can be at fault when a verifier is refused.
    fn bad_lists(&self) -> MutualError {
        let problem = "one of its lists is not a complete list of revoked certificates (version 2)";
        let cause = CertificateError::Content { path: self.crl.clone(), problem: problem.to_owned() };
        MutualError { key: "crl_file", cause }
    }
}

fn verify_servers(
    roots: &Arc<RootCertStore>,
    crls: &[Crl],
) -> Result<Arc<WebPkiServerVerifier>, rustls::client::VerifierBuilderError> {
    WebPkiServerVerifier::builder_with_provider(roots.clone(), provider())
        .with_crls(crls.to_vec())
        .only_check_end_entity_revocation()
        .build()
}

/// Settings of a client that offers this protocol (ALPN).
fn client_config(
    verifier: Arc<WebPkiServerVerifier>,
    own: Option<&CertificateSet>,
    protocol: &str,
) -> ClientConfig {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has suites and groups of TLS 1.3")
        .with_webpki_verifier(verifier);
    let mut config = match own.and_then(CertificateSet::default_key) {
        Some(own) => {
            let own: Arc<dyn ResolvesClientCert> = Arc::new(SingleCertAndKey::from(own));
            config.with_client_cert_resolver(own)
        }
        None => config.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled(); // a ticket would outlive a revocation
    config.alpn_protocols = vec![protocol.into()];
    config
}

/// Reason why the files of an end are not usable.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {cause}")]
pub struct MutualError {
    /// Name of the setting in its section.
    pub key: &'static str,
    /// Cause, with the file and what to do.
    pub cause: CertificateError,
}

/// One end of mutual TLS: what it believes, and what it shows.
pub struct Mutual {
    roots: Arc<RootCertStore>,
    crls: Vec<Crl>,
    own: CertificateSet,
}

impl fmt::Debug for Mutual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutual").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Mutual {
    /// Reads the files.
    ///
    /// # Errors
    /// [`MutualError`].
    pub fn read(files: &MutualFiles, unix_now_s: u64) -> Result<Self, MutualError> {
        let own = files.own(unix_now_s)?;
        let (roots, crls) = files.trusted()?;
        Ok(Self { roots, crls, own })
    }

    /// Returns sentences for the log: a key that others can read, a certificate that ends soon.
    pub fn warnings(&self) -> &[String] {
        self.own.warnings()
    }

    /// Returns the DNS names of the own certificate, in lower case.
    pub fn names(&self) -> &[String] {
        self.own.about().first().map_or(&[], |about| &about.names)
    }

    /// Returns whether the own certificate has this DNS name. `*` stands for nothing here.
    pub fn is_for(&self, name: &str) -> bool {
        self.names().iter().any(|own| own.eq_ignore_ascii_case(name))
    }

    /// Returns the last second in which the own certificate is valid, since 1970.
    pub fn not_after(&self) -> u64 {
        self.own.about().first().map_or(0, |about| about.not_after)
    }

    /// Returns a client that offers this protocol (ALPN).
    ///
    /// # Errors
    /// [`HandshakeError::Library`]: the library refuses what [`Self::read`] has checked.
    pub fn client(&self, protocol: &str) -> Result<Client, HandshakeError> {
        let verifier = verify_servers(&self.roots, &self.crls);
        let verifier = verifier.map_err(|_| HandshakeError::Library("it refuses the roots"))?;
        let mut config = client_config(verifier, Some(&self.own), protocol);
        config.enable_secret_extraction = true;
        Ok(Client { config, protocol: protocol.into() })
    }

    /// Returns a server that requires this protocol (ALPN) and a certificate of each client.
    ///
    /// # Errors
    /// [`HandshakeError::Library`]: the library refuses what [`Self::read`] has checked.
    pub fn server(self, protocol: &str) -> Result<Server, HandshakeError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots, provider())
            .with_crls(self.crls)
            .only_check_end_entity_revocation()
            .build()
            .map_err(|_| HandshakeError::Library("it refuses the roots"))?;
        let certificates = Arc::new(Certificates::new(self.own));
        Ok(Server::new(certificates, Arc::new(NoTickets), Protocols::required(protocol), Some(verifier)))
    }
}

/// Settings that the handshakes of a client share.
#[derive(Clone)]
pub struct Client {
    config: ClientConfig,
    protocol: Vec<u8>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// Begins a handshake with a server that has to have this name, a DNS name or an address.
    ///
    /// # Errors
    /// [`HandshakeError::Tls`]: this cannot be the name of a server.
    pub fn handshake(&self, name: &str) -> Result<Handshake, HandshakeError> {
        let name = name_of_server(name).ok_or_else(|| {
            HandshakeError::Tls(Error::General(format!("{name:?} is not a DNS name or an address")))
        })?;
        let notes = Arc::new(Notes::default());
        let mut config = self.config.clone();
        config.key_log = notes.clone();
        let connection = UnbufferedClientConnection::new(Arc::new(config), name);
        let connection = connection.map_err(HandshakeError::Tls)?;
        Ok(Handshake::of_client(connection, notes, self.protocol.clone()))
    }
}

/// Returns whether a certificate can be for this name: a DNS name or an address.
pub fn is_name_of_server(name: &str) -> bool {
    name_of_server(name).is_some()
}

fn name_of_server(name: &str) -> Option<ServerName<'static>> {
    ServerName::try_from(name.strip_suffix('.').unwrap_or(name).to_owned()).ok()
}

impl HandshakeError {
    /// Returns what is wrong, and what to do, for an end of mutual TLS. `peer`: word for the other end.
    pub fn explain(&self, peer: &str) -> String {
        let Self::Tls(error) = self else { return self.to_string() };
        explain(error, peer, "ca_file", "crl_file").unwrap_or_else(|| self.to_string())
    }
}

/// Returns what is wrong with a handshake, and what to do; `None`: the library's own words are all there is. `peer`: word for the
/// other end; `ca`, `crl`: names of the settings with the files of trusted and of revoked certificates.
pub fn explain(error: &Error, peer: &str, ca: &str, crl: &str) -> Option<String> {
    let problem = match error {
        Error::NoCertificatesPresented => {
            format!("the {peer} shows no certificate; give it one of the CA in {ca}")
        }
        Error::InvalidCertificate(fault) => {
            format!("the certificate of the {peer} {}", problem_of(fault, ca, crl)?)
        }
        Error::AlertReceived(_) => format!("the {peer} refuses it; its log says why"),
        _ => return None,
    };
    Some(format!("the TLS handshake failed: {problem} ({error})"))
}

fn problem_of(fault: &PeerFault, ca: &str, crl: &str) -> Option<String> {
    let problem = match fault {
        PeerFault::UnknownIssuer | PeerFault::BadSignature => {
            return Some(format!("is not of a CA in {ca}; compare {ca} with its issuer"));
        }
        PeerFault::Revoked => return Some(format!("is revoked by {crl}; give it another one")),
        PeerFault::UnknownRevocationStatus => {
            return Some(format!("is of a CA that has no list in {crl}; add that list"));
        }
        PeerFault::Expired | PeerFault::ExpiredContext { .. } => "has expired; renew it there",
        PeerFault::NotValidYet | PeerFault::NotValidYetContext { .. } => {
            "is not valid yet; compare the clocks"
        }
        PeerFault::NotValidForName | PeerFault::NotValidForNameContext { .. } => {
            "has not the name that is dialled (subjectAltName)"
        }
        PeerFault::InvalidPurpose | PeerFault::InvalidPurposeContext { .. } => {
            "is not for this end of a connection (extendedKeyUsage)"
        }
        _ => return None,
    };
    Some(problem.to_owned())
}

/// Tickets of a server that gives none.
#[derive(Debug)]
struct NoTickets;

impl ProducesTickets for NoTickets {
    fn enabled(&self) -> bool {
        false
    }

    fn lifetime(&self) -> u32 {
        0
    }

    fn encrypt(&self, _plain: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn decrypt(&self, _cipher: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

fn refused(path: &Path, problem: impl Into<String>) -> CertificateError {
    CertificateError::Content { path: path.to_owned(), problem: problem.into() }
}

fn read_roots(path: &Path) -> Result<RootCertStore, CertificateError> {
    // Everybody may read it, but whoever writes it decides who is believed.
    let file = secret_file::read(path, FILE_BYTES_MAX)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&file.bytes).take(ROOTS_MAX + 1) {
        let certificate =
            certificate.map_err(|error| refused(path, format!("it is not valid PEM: {error}")))?;
        roots.add(certificate).map_err(|error| {
            refused(path, format!("one of its certificates cannot be that of a CA: {error}"))
        })?;
    }
    match roots.len() {
        0 => Err(refused(path, "it has no certificate in PEM; expected -----BEGIN CERTIFICATE-----")),
        count if count > ROOTS_MAX => {
            Err(refused(path, format!("it has more than {ROOTS_MAX} certificates")))
        }
        _ => Ok(roots),
    }
}

fn read_crls(path: &Path) -> Result<Vec<Crl>, CertificateError> {
    let file = secret_file::read(path, CRL_BYTES_MAX)?;
    let lists = CertificateRevocationListDer::pem_slice_iter(&file.bytes).take(CRLS_MAX + 1);
    let lists: Vec<_> = lists
        .collect::<Result<_, _>>()
        .map_err(|error| refused(path, format!("it is not valid PEM: {error}")))?;
    match lists.len() {
        0 => Err(refused(path, "it has no list in PEM; expected -----BEGIN X509 CRL-----")),
        count if count > CRLS_MAX => Err(refused(path, format!("it has more than {CRLS_MAX} lists"))),
        _ => Ok(lists),
    }
}
