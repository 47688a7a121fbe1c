//! A server's end and a client's, with the bytes between them.

use crate::tls::{
    Established, Handshake, HandshakeError, Progress, Protocols, Records, Server, Suite, provider,
};
use moorline_proto::time::Instant;
use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ProducesTickets, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::io::{Read as _, Write as _};
use std::sync::{Arc, LazyLock};

/// A certificate, which is its own root.
pub(super) struct Identity {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: KeyPair,
}

impl Identity {
    pub(super) fn new(names: &[&str]) -> Self {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().expect("a P-256 key");
        let certificate = CertificateParams::new(names).expect("names").self_signed(&key).expect("signed");
        Self { certificate: certificate.der().clone(), key }
    }

    pub(super) fn pem(&self) -> String {
        let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &self.certificate);
        let lines: Vec<_> =
            text.as_bytes().chunks(64).map(|line| str::from_utf8(line).expect("ASCII")).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    }

    pub(super) fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).expect("PKCS 8")
    }

    pub(super) fn resolver(&self) -> Arc<dyn ResolvesServerCert> {
        let key = CertifiedKey::from_der(vec![self.certificate.clone()], self.key_der(), &provider());
        Arc::new(SingleCertAndKey::from(key.expect("a pair")))
    }

    pub(super) fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("a root");
        Arc::new(roots)
    }
}

pub(super) static IDENTITY: LazyLock<Identity> = LazyLock::new(|| Identity::new(&["chat.example"]));

pub(super) fn tickets() -> Arc<dyn ProducesTickets> {
    rustls::crypto::aws_lc_rs::Ticketer::new().expect("random keys")
}

pub(super) fn server(protocols: Protocols) -> Server {
    Server::new(IDENTITY.resolver(), tickets(), protocols, None)
}

/// A client that believes this certificate only.
pub(super) fn client_of(identity: &Identity) -> ClientConfig {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(identity.roots())
        .with_no_client_auth()
}

pub(super) fn client_config(suite: Suite, protocols: &[&str]) -> ClientConfig {
    let provider =
        Arc::new(CryptoProvider { cipher_suites: vec![suite.supported()], ..(*provider()).clone() });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(IDENTITY.roots())
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

pub(super) fn connect(config: impl Into<Arc<ClientConfig>>, name: &str) -> ClientConnection {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    ClientConnection::new(config.into(), name).expect("a client")
}

/// Takes all that a client wants to send.
pub(super) fn sent_by(client: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).expect("memory");
    }
    bytes
}

/// Gives a client what the server sent. Returns the text.
pub(super) fn give(client: &mut ClientConnection, mut bytes: &[u8]) -> Result<Vec<u8>, rustls::Error> {
    let mut text = Vec::new();
    let mut room = [0; 4096];
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).expect("memory");
        client.process_new_packets()?;
        while let Ok(count @ 1..) = client.reader().read(&mut room) {
            text.extend_from_slice(&room[..count]);
        }
    }
    Ok(text)
}

/// Drives a handshake in pieces of `step` bytes.
pub(super) fn shake(
    client: &mut ClientConnection,
    mut handshake: Handshake,
    step: usize,
) -> Result<Established, HandshakeError> {
    loop {
        let sent = sent_by(client);
        assert!(!sent.is_empty(), "one of both has to send");
        let mut pieces = sent.chunks(step);
        while let Some(piece) = pieces.next() {
            let mut out = Vec::new();
            let outcome = handshake.advance(piece, &mut out);
            let told = give(client, &out);
            if let Progress::Done(mut done) = outcome? {
                told.expect("a valid flight");
                pieces.for_each(|piece| done.leftover.extend_from_slice(piece));
                return Ok(*done);
            }
            told.expect("a valid flight");
        }
    }
}

/// A server's record layer whose client is rustls.
pub(super) struct Pair {
    pub(super) client: ClientConnection,
    pub(super) records: Records,
    /// Cipher text on its way to the server.
    pub(super) inbound: Vec<u8>,
    pub(super) now: Instant,
}

impl Pair {
    pub(super) fn new(suite: Suite) -> Self {
        let mut client = connect(client_config(suite, &["moorline/1"]), "chat.example");
        let handshake = server(Protocols::required("moorline/1")).handshake().expect("a server");
        let done = shake(&mut client, handshake, usize::MAX).expect("a handshake");
        Self {
            client,
            records: done.records,
            inbound: done.leftover,
            now: Instant::from_nanos(5_000_000_000),
        }
    }

    pub(super) fn client_sends(&mut self, text: &[u8]) {
        self.client.set_buffer_limit(None);
        self.client.writer().write_all(text).expect("memory");
        self.inbound.extend(sent_by(&mut self.client));
    }

    /// Opens what is on its way to the server.
    pub(super) fn server_reads(&mut self) -> Vec<u8> {
        let opened = self.records.open(&mut self.inbound, self.now);
        assert_eq!(opened.end, None);
        let text = self.inbound[opened.plain].to_vec();
        self.inbound.drain(..opened.consumed);
        text
    }

    /// Seals text, and returns what the client reads.
    pub(super) fn server_sends(&mut self, pieces: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        self.records.seal(pieces, &mut out).expect("sealed");
        give(&mut self.client, &out).expect("valid records")
    }

    /// Sends text there and back.
    pub(super) fn echo(&mut self, text: &[u8]) {
        self.client_sends(text);
        assert_eq!(self.server_reads(), text);
        assert_eq!(self.server_sends(&[text]), text);
    }
}

/// Two ends of the record layer, without a library between them.
pub(super) fn ends(suite: Suite) -> (Records, Records) {
    let secret =
        |byte| super::super::secret::Secret::new(suite, &vec![byte; suite.secret_bytes()]).expect("length");
    let server = Records::new(suite, secret(1), secret(2), 0);
    let client = Records::new(suite, secret(2), secret(1), 0);
    (server, client)
}
