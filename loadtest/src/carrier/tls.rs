//! Configurations of rustls for the fleet and for the bare server.

use crate::exit::Failure;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, NamedGroup, RootCertStore, ServerConfig, SignatureScheme,
};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Protocol of a native connection.
const NATIVE: &[u8] = b"moorline/1";
/// Protocol of the upgrade request.
const HTTP: &[u8] = b"http/1.1";
/// Rule for TLS; it travels between processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsRule {
    /// Name or address that the certificate must be valid for, and that is asked for (SNI).
    pub name: String,
    /// Authorities that are trusted.
    pub trust: Trust,
    /// True if a connection resumes the session of an earlier one where it can.
    pub resumes: bool,
}

/// Authorities that clients trust.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trust {
    /// Those in a PEM file.
    File(PathBuf),
    /// Any certificate, also of somebody in between.
    Anybody,
}

impl TlsRule {
    /// Configuration of all clients, which keep their tickets in `tickets`.
    pub(super) fn client_config(
        &self,
        is_websocket: bool,
        tickets: &Arc<Tickets>,
    ) -> Result<ClientConfig, Failure> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_protocol_versions(&[&TLS13]).map_err(unusable("start TLS"))?;
        let mut config = match &self.trust {
            Trust::File(path) => builder.with_root_certificates(roots(path)?).with_no_client_auth(),
            Trust::Anybody => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
                .with_no_client_auth(),
        };
        config.alpn_protocols = vec![if is_websocket { HTTP } else { NATIVE }.to_vec()];
        config.resumption = if self.resumes {
            Resumption::store(Arc::clone(tickets) as Arc<dyn ClientSessionStore>)
        } else {
            Resumption::disabled()
        };
        Ok(config)
    }
}

/// Configuration of the bare server: rustls alone, TLS 1.3, sessions resumed by tickets.
///
/// # Errors
/// [`Failure::Usage`]: a file that cannot be used.
pub fn server_config(certificates: &Path, key: &Path) -> Result<Arc<ServerConfig>, Failure> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider);
    let builder = builder.with_protocol_versions(&[&TLS13]).map_err(unusable("start TLS"))?;
    let chain = certificates_of(certificates)?;
    let key = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| Failure::Usage(format!("{} holds no private key in PEM: {error}", key.display())))?;
    let mut config = builder
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable("use the certificate"))?;
    config.alpn_protocols = vec![NATIVE.to_vec()];
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(unusable("make ticket keys"))?;
    Ok(Arc::new(config))
}

fn unusable(what: &'static str) -> impl FnOnce(Error) -> Failure {
    move |error| Failure::Usage(format!("cannot {what}: {error}"))
}

fn roots(path: &Path) -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates_of(path)? {
        let refused = |error| Failure::Usage(format!("{}: not an authority: {error}", path.display()));
        roots.add(certificate).map_err(refused)?;
    }
    Ok(roots)
}

fn certificates_of(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let refused = |why: &dyn std::fmt::Display| {
        Failure::Usage(format!("{} holds no certificates in PEM: {why}", path.display()))
    };
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = certificates.map_err(|error| refused(&error))?;
    if certificates.is_empty() { Err(refused(&"none found")) } else { Ok(certificates) }
}

/// Newest ticket of each client of a loop: a client resumes its own session, and no other's. The library asks for a ticket
/// and gives one without naming the client, so the loop's one thread says whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Tickets {
    /// Client whose connection is made or read now.
    turn: AtomicU32,
    kept: Mutex<HashMap<u32, Tls13ClientSessionValue>>,
}

impl Tickets {
    /// Notes that a client's connection is made or read from now on.
    pub(super) fn begin_turn(&self, client: u32) {
        self.turn.store(client, Ordering::Relaxed);
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let client = self.turn.load(Ordering::Relaxed);
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(client, ticket);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let client = self.turn.load(Ordering::Relaxed);
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(&client)
    }
}

/// A verifier that accepts any certificate; the peer still proves that it has the key.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
