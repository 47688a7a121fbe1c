//! TLS of the client's connections: whom the client trusts, and one connection's records.
//!
//! TLS 1.3 alone, the protocol `moorline/1` (ALPN) is required, and sessions are resumed from memory. The certificate must be
//! valid for the host that the application has named, also at an address that a gateway names when it stops; an alternate
//! that the application has listed by name may also prove that name.

use super::endpoint::host_of;
use crate::core::TlsFault;
use bytes::BytesMut;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::version::TLS13;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error,
    OtherError, RootCertStore, SignatureScheme,
};
use sha2::{Digest as _, Sha256};
use std::io::{self, BufRead as _, ErrorKind, Write as _};
use std::sync::Arc;

#[cfg(not(any(feature = "ring", feature = "aws-lc-rs")))]
compile_error!("moorline-sdk needs a provider of cryptography: turn on the feature `ring` or `aws-lc-rs`");

/// Protocol of a native connection.
const PROTOCOL: &[u8] = b"moorline/1";
/// Names of which sessions are kept: the endpoint, and alternates.
const SESSIONS_MAX: usize = 16;
/// Words of the library about a fault, in bytes: a certificate may have long names.
const WORDS_BYTES_MAX: usize = 256;

/// Authorities and keys that the application trusts.
#[derive(Clone, Debug, Default)]
pub(super) struct Trust {
    /// Authorities instead of the platform's, in PEM; with those in DER empty: the platform's.
    pub(super) roots_pem: Vec<Vec<u8>>,
    /// Authorities in DER, beside those in PEM.
    pub(super) roots_der: Vec<Vec<u8>>,
    /// SHA-256 of the keys that a gateway may have; empty: any key.
    pub(super) pins: Vec<[u8; 32]>,
    /// Name that certificates must be valid for; `None`: the endpoint's host.
    pub(super) name: Option<String>,
}

impl Trust {
    /// Settings for HTTPS servers: the same authorities, each server under its own name. Keys are pinned for gateways alone.
    pub(super) fn of_web(&self) -> Result<Arc<ClientConfig>, TlsSetupError> {
        let config = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
        let mut config = config.with_root_certificates(roots(self)?).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Reason why TLS cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    /// There is no certificate, or one that cannot be read.
    #[error("the authorities given to the builder cannot be used: {0}")]
    Roots(String),
    /// The platform has no authorities that can be read.
    #[error("cannot read this platform's certificate authorities: {0}; give yours by roots_pem")]
    Platform(String),
    /// Neither a host name nor an IP address.
    #[error("{0:?} is neither a host name nor an IP address")]
    Name(String),
    /// The library refuses the settings.
    #[error("cannot set up TLS: {0}")]
    Library(#[from] Error),
}

/// TLS of one client.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    config: Arc<ClientConfig>,
    original: ServerName<'static>,
    /// Alternates that the application has listed by a host name.
    listed: Vec<(String, ServerName<'static>)>,
}

impl Tls {
    /// `place`: the endpoint's `host:port`; `alternates`: those that the application has listed.
    pub(super) fn new<'a>(
        trust: &Trust,
        place: &str,
        alternates: impl Iterator<Item = &'a str>,
    ) -> Result<Self, TlsSetupError> {
        let host = trust.name.as_deref().unwrap_or_else(|| host_of(place));
        let name_of = |host: &str| {
            ServerName::try_from(host.to_owned()).map_err(|_| TlsSetupError::Name(host.to_owned()))
        };
        let original = name_of(host)?;
        let mut listed = Vec::new();
        for place in alternates {
            if let name @ ServerName::DnsName(_) = name_of(host_of(place))? {
                listed.push((place.to_ascii_lowercase(), name));
            }
        }
        let provider = provider();
        let inner =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots(trust)?), Arc::clone(&provider))
                .build();
        let inner = inner.map_err(|error| TlsSetupError::Roots(error.to_string()))?;
        let verifier = Verifier { inner, original: original.clone(), pins: trust.pins.clone() };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
        Ok(Self { config: Arc::new(config), original, listed })
    }

    /// Begins a connection; `alternate`: the `host:port` that a gateway has named.
    pub(super) fn connection(&self, alternate: Option<&str>) -> Result<Secured, TlsFault> {
        let listed = alternate
            .and_then(|place| self.listed.iter().find(|(listed, _)| listed.eq_ignore_ascii_case(place)));
        let name = listed.map_or(&self.original, |(_, name)| name).clone();
        let told = self.original.to_str().into_owned();
        let connection = ClientConnection::new(Arc::clone(&self.config), name);
        let mut connection = connection.map_err(|error| fault_of(&error, &told))?;
        connection.set_buffer_limit(None); // the core bounds what is not sent
        let (opened, sealed) = (BytesMut::new(), BytesMut::new());
        Ok(Secured { connection: Box::new(connection), original: told, opened, sealed, has_left: false })
    }
}

/// The provider of cryptography: one for the whole program, chosen by the crate's features.
fn provider() -> Arc<CryptoProvider> {
    #[cfg(feature = "aws-lc-rs")]
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    #[cfg(not(feature = "aws-lc-rs"))]
    let provider = rustls::crypto::ring::default_provider();
    Arc::new(provider)
}

/// Reads certificates in PEM.
fn certificates_of(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsSetupError> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    match certificates {
        Ok(certificates) if certificates.is_empty() => {
            Err(TlsSetupError::Roots("the PEM holds no certificate".into()))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(TlsSetupError::Roots(error.to_string())),
    }
}

fn roots(trust: &Trust) -> Result<RootCertStore, TlsSetupError> {
    let mut roots = RootCertStore::empty();
    if trust.roots_pem.is_empty() && trust.roots_der.is_empty() {
        add_platform_roots(&mut roots)?;
        return Ok(roots);
    }
    let mut given: Vec<_> = trust.roots_der.iter().map(|der| CertificateDer::from(der.clone())).collect();
    for pem in &trust.roots_pem {
        given.extend(certificates_of(pem)?);
    }
    for root in given {
        roots.add(root).map_err(|error| TlsSetupError::Roots(error.to_string()))?;
    }
    Ok(roots)
}

#[cfg(feature = "platform-roots")]
fn add_platform_roots(roots: &mut RootCertStore) -> Result<(), TlsSetupError> {
    let found = rustls_native_certs::load_native_certs();
    // A platform may hold some that are not valid; what can be used is used.
    let (added, _) = roots.add_parsable_certificates(found.certs);
    let why = || found.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
    if added == 0 { Err(TlsSetupError::Platform(why())) } else { Ok(()) }
}

#[cfg(not(feature = "platform-roots"))]
fn add_platform_roots(_: &mut RootCertStore) -> Result<(), TlsSetupError> {
    Err(TlsSetupError::Platform("the feature platform-roots is off".into()))
}

/// The library's verifier, with the original name behind an alternate's, and pinned keys.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    original: ServerName<'static>,
    pins: Vec<[u8; 32]>,
}

/// Reason of a verifier that the library has no word for.
#[derive(Debug, thiserror::Error)]
#[error("the key is not a pinned one")]
struct WrongKey([u8; 32]);

impl Verifier {
    /// Checks the key of the gateway itself: certificates above it may be sent by anybody.
    fn check_pin(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        if self.pins.is_empty() {
            return Ok(());
        }
        let key = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
        let sha256 = <[u8; 32]>::from(Sha256::digest(&key));
        let is_pinned = self.pins.contains(&sha256);
        if is_pinned { Ok(()) } else { Err(Error::Other(OtherError(Arc::new(WrongKey(sha256))))) }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verify =
            |name: &ServerName<'_>| self.inner.verify_server_cert(certificate, chain, name, ocsp, now);
        let verified = match verify(name) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if *name != self.original => verify(&self.original),
            other => other,
        };
        verified.and_then(|verified| self.check_pin(certificate).map(|()| verified))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Secured {
    connection: Box<ClientConnection>,
    /// Name of the endpoint, for words about faults.
    original: String,
    /// Bytes that were opened and not taken.
    opened: BytesMut,
    /// Bytes for the socket.
    pub(super) sealed: BytesMut,
    /// The gateway has said goodbye.
    pub(super) has_left: bool,
}

impl Secured {
    /// Returns whether the handshake has ended and the gateway speaks the right protocol.
    pub(super) fn is_open(&self) -> Result<bool, TlsFault> {
        if self.connection.is_handshaking() {
            return Ok(false);
        }
        let is_right = self.connection.alpn_protocol() == Some(PROTOCOL);
        if is_right { Ok(true) } else { Err(TlsFault::NoProtocol) }
    }

    /// Takes bytes of the socket.
    pub(super) fn receive(&mut self, mut bytes: &[u8]) -> Result<(), TlsFault> {
        while !bytes.is_empty() && !self.has_left {
            let other = |error: io::Error| TlsFault::Other { why: words(&error) };
            self.connection.read_tls(&mut bytes).map_err(other)?;
            let processed = self.connection.process_new_packets();
            self.seal_pending(); // also the alert behind a fault
            processed.map_err(|error| fault_of(&error, &self.original))?;
            self.take_opened().map_err(other)?;
        }
        Ok(())
    }

    fn take_opened(&mut self) -> io::Result<()> {
        loop {
            let mut reader = self.connection.reader();
            match reader.fill_buf() {
                Ok([]) => {
                    self.has_left = true;
                    return Ok(());
                }
                Ok(chunk) => {
                    let count = chunk.len();
                    self.opened.extend_from_slice(chunk);
                    reader.consume(count);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes what was opened.
    pub(super) fn poll_opened(&mut self) -> Option<BytesMut> {
        (!self.opened.is_empty()).then(|| std::mem::take(&mut self.opened))
    }

    /// Seals everything in `out` for the socket.
    pub(super) fn seal(&mut self, out: &mut BytesMut) -> io::Result<()> {
        if !out.is_empty() {
            self.connection.writer().write_all(out)?;
            out.clear();
        }
        self.seal_pending();
        Ok(())
    }

    /// Seals the goodbye.
    pub(super) fn say_goodbye(&mut self) {
        self.connection.send_close_notify();
        self.seal_pending();
    }

    fn seal_pending(&mut self) {
        let mut sealed = Vec::new();
        // A vector takes everything.
        while self.connection.wants_write() && self.connection.write_tls(&mut sealed).is_ok() {}
        self.sealed.extend_from_slice(&sealed);
    }
}

/// The library's words, cut off at [`WORDS_BYTES_MAX`].
fn words(error: &dyn std::fmt::Display) -> String {
    let mut text = error.to_string();
    let mut end = text.len().min(WORDS_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// The library's error as a fault; `name`: what the certificate must be valid for.
fn fault_of(error: &Error, name: &str) -> TlsFault {
    match error {
        // A bad signature: the issuer has the name of an authority, and not its key.
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            TlsFault::UnknownAuthority
        }
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            TlsFault::Expired
        }
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => TlsFault::NotYetValid,
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => TlsFault::WrongName { name: name.to_owned() },
        Error::InvalidCertificate(CertificateError::Revoked) => TlsFault::Revoked,
        Error::InvalidCertificate(other) => TlsFault::BadCertificate { why: words(other) },
        Error::NoApplicationProtocol | Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
            TlsFault::NoProtocol
        }
        Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => TlsFault::NotTls,
        Error::AlertReceived(alert) => TlsFault::Alert { alert: words(&format_args!("{alert:?}")) },
        Error::Other(OtherError(other)) => match other.downcast_ref::<WrongKey>() {
            Some(WrongKey(sha256)) => TlsFault::WrongKey { sha256: *sha256 },
            None => TlsFault::Other { why: words(other) },
        },
        other => TlsFault::Other { why: words(other) },
    }
}
