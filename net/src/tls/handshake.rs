//! The handshake of one connection: rustls, fed one record at a time until the peer's `Finished` is there.
//!
//! The keys are taken over as two traffic secrets, through the library's key log, and the sequence numbers from the library
//! itself. That both belong together is checked by deriving the keys again: if they differ from the library's, the
//! connection fails.
//!
//! Run-through: a client sends 330 bytes of `ClientHello`. `advance` appends `ServerHello` up to `Finished` to the output
//! and returns `More`. The client's `Finished` and, in the same packet, its first record of 90 bytes come: `advance`
//! appends a ticket and returns `Done`, with the 90 bytes as `leftover`.

use super::fault::Alert;
use super::provider::{Suite, provider};
use super::records::{CIPHER_BYTES_MAX, HEADER_BYTES, Records};
use super::secret::Secret;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::CertificateDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, ServerConfig,
    UnbufferedServerConnection,
};
use rustls::sign::CertifiedKey;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{ConnectionTrafficSecrets, HandshakeKind, KeyLog};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use zeroize::Zeroizing;

/// Limit of all that a peer sends until its handshake is done, in bytes.
pub const HANDSHAKE_BYTES_MAX: usize = 64 << 10;
/// Tickets that a client gets; each is good for one connection.
const TICKETS: usize = 1;
/// Steps of the library for one record. It has at most a few outputs.
const STEPS_MAX: usize = 64;

/// Protocols that a listener speaks inside of TLS (ALPN).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Protocols {
    names: Vec<Vec<u8>>,
    is_required: bool,
}

impl Protocols {
    /// A client has to offer this protocol.
    pub fn required(name: &str) -> Self {
        Self { names: vec![name.into()], is_required: true }
    }

    /// A client offers this protocol, or none.
    pub fn optional(name: &str) -> Self {
        Self { names: vec![name.into()], is_required: false }
    }
}

/// Settings that the handshakes of a listener share.
#[derive(Clone)]
pub struct Server {
    config: ServerConfig,
    certificates: Arc<dyn ResolvesServerCert>,
    protocols: Arc<Protocols>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("certificates", &self.certificates).finish_non_exhaustive()
    }
}

impl Server {
    /// Returns a server that speaks TLS 1.3. With `clients`, each client has to show a certificate that the verifier
    /// accepts, at every connection: such a server gives no tickets and takes none.
    pub fn new(
        certificates: Arc<dyn ResolvesServerCert>,
        tickets: Arc<dyn ProducesTickets>,
        protocols: Protocols,
        clients: Option<Arc<dyn ClientCertVerifier>>,
    ) -> Self {
        let versions = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has suites and groups of TLS 1.3");
        let is_mutual = clients.is_some();
        let mut config = match clients {
            Some(clients) => versions.with_client_cert_verifier(clients),
            None => versions.with_no_client_auth(),
        }
        .with_cert_resolver(certificates.clone());
        config.ignore_client_order = true;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        if !is_mutual {
            // A ticket says nothing of the client's certificate, and one of another listener has the same keys.
            config.ticketer = tickets;
            config.send_tls13_tickets = TICKETS;
        }
        config.alpn_protocols.clone_from(&protocols.names);
        config.enable_secret_extraction = true;
        assert_eq!(config.max_early_data_size, 0, "early data can be replayed");
        Self { config, certificates, protocols: Arc::new(protocols) }
    }

    /// Begins a connection that the library serves to its end, for servers whose connections end with the process.
    ///
    /// # Errors
    /// [`HandshakeError::Tls`]: the library refuses its configuration.
    pub(crate) fn connection(&self) -> Result<rustls::ServerConnection, HandshakeError> {
        rustls::ServerConnection::new(Arc::new(self.config.clone())).map_err(HandshakeError::Tls)
    }

    /// Begins a handshake.
    ///
    /// # Errors
    /// [`HandshakeError::Tls`]: the library refuses its configuration.
    pub fn handshake(&self) -> Result<Handshake, HandshakeError> {
        let notes = Arc::new(Notes::default());
        let (certificates, protocols) = (self.certificates.clone(), self.protocols.clone());
        let mut config = self.config.clone();
        config.key_log = notes.clone();
        config.cert_resolver = Arc::new(Watch { certificates, protocols, notes: notes.clone() });
        let connection = UnbufferedServerConnection::new(Arc::new(config)).map_err(HandshakeError::Tls)?;
        Ok(Handshake {
            connection: Some(Connection::Server(connection)),
            notes,
            protocol: None,
            input: Vec::new(),
            offered: 0,
            received: 0,
            hello: Some(Vec::new()),
        })
    }
}

/// Observer of one handshake of a server: refuses clients before the library works for them.
struct Watch {
    certificates: Arc<dyn ResolvesServerCert>,
    protocols: Arc<Protocols>,
    notes: Arc<Notes>,
}

/// Notes of one handshake: its secrets, and why it is refused.
#[derive(Default)]
pub(super) struct Notes(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    client: Zeroizing<Vec<u8>>,
    server: Zeroizing<Vec<u8>>,
    server_name: Option<String>,
    refusal: Option<Refusal>,
}

#[derive(Clone, Copy)]
enum Refusal {
    Name,
    Protocol,
}

impl Notes {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Notes")
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

impl KeyLog for Notes {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        let mut seen = self.seen();
        match label {
            "CLIENT_TRAFFIC_SECRET_0" => seen.client = Zeroizing::new(secret.to_vec()),
            "SERVER_TRAFFIC_SECRET_0" => seen.server = Zeroizing::new(secret.to_vec()),
            _ => {}
        }
    }

    fn will_log(&self, label: &str) -> bool {
        matches!(label, "CLIENT_TRAFFIC_SECRET_0" | "SERVER_TRAFFIC_SECRET_0")
    }
}

impl ResolvesServerCert for Watch {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut seen = self.notes.seen();
        seen.server_name = hello.server_name().map(str::to_ascii_lowercase);
        let is_refused = match hello.alpn() {
            None => self.protocols.is_required,
            Some(mut offered) => {
                // The library would look at them only after the work of a key exchange.
                let names = &self.protocols.names;
                !names.is_empty() && !offered.any(|name| names.iter().any(|own| own == name))
            }
        };
        if is_refused {
            seen.refusal = Some(Refusal::Protocol);
            return None;
        }
        let found = self.certificates.resolve(hello);
        if found.is_none() {
            seen.refusal = Some(Refusal::Name);
        }
        found
    }
}

/// Handshake of one connection, until it is done or has failed.
pub struct Handshake {
    /// `None`: the handshake has ended.
    connection: Option<Connection>,
    notes: Arc<Notes>,
    /// Protocol that the server has to choose, of a client; `None`: whatever was offered.
    protocol: Option<Vec<u8>>,
    /// Records that the library has not discarded yet, and the beginning of the next one.
    input: Vec<u8>,
    /// Bytes of `input` that were offered to the library: whole records.
    offered: usize,
    /// Bytes of the peer so far.
    received: usize,
    /// All that the client has sent; `None`: something was answered, or this end is the client.
    hello: Option<Vec<u8>>,
}

/// The library's connection, of either role.
enum Connection {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// Evaluates one expression for the connection of either role.
macro_rules! of_role {
    ($connection:expr, $inner:ident => $value:expr) => {
        match $connection {
            Connection::Server($inner) => $value,
            Connection::Client($inner) => $value,
        }
    };
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake").field("received", &self.received).finish_non_exhaustive()
    }
}

// Handshakes are done by a pool of threads.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Handshake>();
    is_send::<Established>();
};

/// State after [`Handshake::advance`].
#[derive(Debug)]
pub enum Progress {
    /// The peer has to send more.
    More,
    /// The handshake is done.
    Done(Box<Established>),
}

/// Connection after its handshake.
#[derive(Debug)]
pub struct Established {
    /// The record layer from here on.
    pub records: Records,
    /// Cipher text that came behind the handshake: the first bytes to open.
    pub leftover: Vec<u8>,
    /// Name that the client asked for, in lower case.
    pub server_name: Option<String>,
    /// Protocol that both speak (ALPN).
    pub protocol: Option<Vec<u8>>,
    /// DNS names in the peer's certificate, in lower case; empty without one.
    pub peer_names: Vec<String>,
    /// The client came with a ticket.
    pub is_resumed: bool,
}

/// Reason why a handshake failed. The alert for the peer is in the output.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer does not speak TLS 1.3 as this end does, or was refused.
    #[error("the TLS handshake failed: {0}")]
    Tls(rustls::Error),
    /// The peer sent more than 64 KiB, or a record longer than TLS allows.
    #[error("the TLS handshake failed: the peer sent more than a handshake needs")]
    TooLong,
    /// The peer sent something else than TLS.
    #[error("the TLS handshake failed: the peer does not speak TLS")]
    NotTls,
    /// There is no certificate for the name, or the client gave none and there is no default.
    #[error("the TLS handshake failed: no certificate for {}", .0.as_deref().unwrap_or("a client that names no server"))]
    UnknownName(Option<String>),
    /// The client did not offer the protocol that this listener speaks, or the server did not choose the one that was offered.
    #[error("the TLS handshake failed: the peer does not speak the protocol of this port (ALPN)")]
    NoProtocol,
    /// The library does not behave as this version of it was known to.
    #[error("the TLS handshake failed: cannot take its keys over from the library: {0}")]
    Library(&'static str),
    /// The handshake had ended before.
    #[error("the TLS handshake has ended")]
    Ended,
}

impl Handshake {
    /// A handshake of this client's connection, which has said nothing yet.
    pub(super) fn of_client(
        connection: UnbufferedClientConnection,
        notes: Arc<Notes>,
        protocol: Vec<u8>,
    ) -> Self {
        Self {
            connection: Some(Connection::Client(connection)),
            notes,
            protocol: Some(protocol),
            input: Vec::new(),
            offered: 0,
            received: 0,
            hello: None,
        }
    }

    /// Takes bytes of the peer, and appends what it gets to `out`, also when the handshake fails. A client speaks first, so its
    /// first call is without bytes.
    ///
    /// # Errors
    /// [`HandshakeError`]; the connection is to be closed behind the output.
    pub fn advance(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<Progress, HandshakeError> {
        match &self.connection {
            None => return Err(HandshakeError::Ended),
            Some(Connection::Client(_)) if self.received == 0 && bytes.is_empty() => {
                return self.step(out).map(|_| Progress::More);
            }
            Some(_) => {}
        }
        loop {
            let rest = &self.input[self.offered..];
            let length = record_bytes(rest);
            let have = rest.len();
            let length = length.map_err(|error| self.refuse(error, out))?;
            if have < length {
                let (taken, behind) = bytes.split_at(bytes.len().min(length - have));
                if taken.is_empty() {
                    return Ok(Progress::More);
                }
                self.keep(taken, out)?;
                bytes = behind;
                continue;
            }
            self.offered += length;
            if self.step(out)? {
                return self.established(bytes).map(|done| Progress::Done(Box::new(done)));
            }
        }
    }

    /// Returns all that the client has sent, if nothing was answered: another process can begin anew with it.
    pub fn unanswered(&self) -> Option<&[u8]> {
        self.hello.as_deref()
    }

    fn keep(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), HandshakeError> {
        self.received += bytes.len();
        if self.received > HANDSHAKE_BYTES_MAX {
            return Err(self.refuse(HandshakeError::TooLong, out));
        }
        self.input.extend_from_slice(bytes);
        if let Some(hello) = &mut self.hello {
            hello.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Ends the handshake because the peer sends more than its owner keeps. The alert is appended to `out`.
    pub fn abort(&mut self, out: &mut Vec<u8>) -> HandshakeError {
        self.refuse(HandshakeError::TooLong, out)
    }

    /// Ends the handshake with an alert.
    fn refuse(&mut self, error: HandshakeError, out: &mut Vec<u8>) -> HandshakeError {
        if self.connection.is_some() {
            if self.hello.take().is_some() {
                let is_long = matches!(error, HandshakeError::TooLong);
                plain_alert(if is_long { Alert::RECORD_OVERFLOW } else { Alert::UNEXPECTED_MESSAGE }, out);
            } else {
                // Only the library has the keys for an alert, and it makes one for a record of no kind.
                self.input.truncate(self.offered);
                self.input.extend_from_slice(&[0, 3, 3, 0, 0]);
                self.offered = self.input.len();
                self.run(out).ok();
            }
        }
        self.connection = None;
        error
    }

    /// Has the library look at the records. Returns whether the handshake is done.
    fn step(&mut self, out: &mut Vec<u8>) -> Result<bool, HandshakeError> {
        let before = out.len();
        let outcome = self.run(out);
        if out.len() > before {
            self.hello = None;
        }
        if outcome.is_err() {
            self.connection = None;
            let refusal = self.notes.seen().refusal;
            if let Some(refusal) = refusal {
                // The library has one alert for both.
                out.truncate(before);
                let (alert, error) = match refusal {
                    Refusal::Name => {
                        let name = self.notes.seen().server_name.take();
                        (Alert::UNRECOGNIZED_NAME, HandshakeError::UnknownName(name))
                    }
                    Refusal::Protocol => (Alert::NO_APPLICATION_PROTOCOL, HandshakeError::NoProtocol),
                };
                plain_alert(alert, out);
                return Err(error);
            }
        }
        outcome
    }

    fn run(&mut self, out: &mut Vec<u8>) -> Result<bool, HandshakeError> {
        let connection = self.connection.as_mut().ok_or(HandshakeError::Ended)?;
        for _ in 0..STEPS_MAX {
            let input = &mut self.input[..self.offered];
            let (discard, verdict) = of_role!(connection, inner => {
                let UnbufferedStatus { discard, state, .. } = inner.process_tls_records(input);
                let verdict = match state {
                    Ok(ConnectionState::EncodeTlsData(mut record)) => append(&mut record, out).map(|()| None),
                    Ok(ConnectionState::TransmitTlsData(sent)) => {
                        sent.done();
                        Ok(None)
                    }
                    Ok(ConnectionState::BlockedHandshake) => Ok(Some(false)),
                    Ok(ConnectionState::WriteTraffic(_)) => Ok(Some(true)),
                    // The peer has closed; early data was never offered.
                    Ok(_) => Err(rustls::Error::HandshakeNotComplete),
                    Err(error) => Err(error),
                };
                (discard, verdict)
            });
            self.input.drain(..discard);
            self.offered -= discard;
            match verdict {
                Ok(None) => {}
                Ok(Some(is_done)) => return Ok(is_done),
                Err(error) => {
                    // Further calls give what is queued, the alert last. One more would look at the rest of the input
                    // and fail anew.
                    let is_queued =
                        |connection: &Connection| of_role!(connection, inner => inner.wants_write());
                    for _ in 0..STEPS_MAX {
                        if !is_queued(connection) {
                            break;
                        }
                        let input = &mut self.input[..self.offered];
                        of_role!(connection, inner => {
                            if let Ok(ConnectionState::EncodeTlsData(mut record)) =
                                inner.process_tls_records(input).state
                            {
                                append(&mut record, out).ok();
                            }
                        });
                    }
                    return Err(HandshakeError::Tls(error));
                }
            }
        }
        Err(HandshakeError::Library("it does not come to an end with a record"))
    }

    /// Takes the keys over. `behind` are the bytes that came after the handshake.
    fn established(&mut self, behind: &[u8]) -> Result<Established, HandshakeError> {
        let connection = self.connection.take().ok_or(HandshakeError::Ended)?;
        if self.offered != 0 || !self.input.is_empty() {
            return Err(HandshakeError::Library("it keeps a part of the handshake"));
        }
        let is_client = matches!(connection, Connection::Client(_));
        let (protocol, is_resumed, peer_names, keys) = of_role!(connection, inner => {
            let protocol = inner.alpn_protocol().map(<[u8]>::to_vec);
            let is_resumed = inner.handshake_kind() == Some(HandshakeKind::Resumed);
            let peer_names = inner.peer_certificates().and_then(|chain| chain.first()).map(names_of);
            let (keys, _) = inner.dangerous_into_kernel_connection().map_err(HandshakeError::Tls)?;
            (protocol, is_resumed, peer_names, keys)
        });
        if self.protocol.is_some() && self.protocol != protocol {
            return Err(HandshakeError::NoProtocol);
        }
        let (read_seq, read_keys) = keys.rx;
        let (write_seq, write_keys) = keys.tx;
        let mut seen = self.notes.seen();
        let (read, write) =
            if is_client { (&seen.server, &seen.client) } else { (&seen.client, &seen.server) };
        let (suite, read) = checked(read, read_keys)?;
        let (other_suite, write) = checked(write, write_keys)?;
        let write_seq = u32::try_from(write_seq).ok();
        let (Some(write_seq), 0, true) = (write_seq, read_seq, suite == other_suite) else {
            return Err(HandshakeError::Library("records were exchanged behind the handshake"));
        };
        Ok(Established {
            records: Records::new(suite, read, write, write_seq).of_client(is_client),
            leftover: behind.to_vec(),
            server_name: seen.server_name.take(),
            protocol,
            peer_names: peer_names.unwrap_or_default(),
            is_resumed,
        })
    }
}

/// Returns the secret, if the library's key is derived from it.
fn checked(secret: &[u8], keys: ConnectionTrafficSecrets) -> Result<(Suite, Secret), HandshakeError> {
    let (suite, key, iv) = match keys {
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Suite::Aes256, key, iv),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (Suite::ChaCha20, key, iv),
        _ => return Err(HandshakeError::Library("it took another cipher suite")),
    };
    let mut secret = Secret::new(suite, secret).ok_or(HandshakeError::Library("it reported no secret"))?;
    let (own_key, own_iv) = secret.keys(suite);
    if *own_key != key.as_ref() || own_iv != iv.as_ref() {
        return Err(HandshakeError::Library("its keys are not those of the secrets that it reported"));
    }
    Ok((suite, secret))
}

/// Returns the DNS names of a certificate that was verified.
fn names_of(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else { return Vec::new() };
    certificate.valid_dns_names().map(str::to_ascii_lowercase).collect()
}

/// Returns the bytes of the first record as far as they are known; 5: those of its header.
fn record_bytes(bytes: &[u8]) -> Result<usize, HandshakeError> {
    const KINDS: std::ops::RangeInclusive<u8> = 20..=23;
    if bytes.first().is_some_and(|kind| !KINDS.contains(kind))
        || bytes.get(1).is_some_and(|major| *major != 3)
    {
        return Err(HandshakeError::NotTls);
    }
    let &[_, _, _, high, low, ..] = bytes else { return Ok(HEADER_BYTES) };
    match usize::from(u16::from_be_bytes([high, low])) {
        length if length > CIPHER_BYTES_MAX => Err(HandshakeError::TooLong),
        length => Ok(HEADER_BYTES + length),
    }
}

fn append<Data>(record: &mut EncodeTlsData<'_, Data>, out: &mut Vec<u8>) -> Result<(), rustls::Error> {
    let start = out.len();
    let mut room = 0;
    loop {
        out.resize(start + room, 0);
        match record.encode(&mut out[start..]) {
            Ok(count) => {
                out.truncate(start + count);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(error)) if error.required_size > room => {
                room = error.required_size;
            }
            Err(error) => {
                out.truncate(start);
                return Err(rustls::Error::General(error.to_string()));
            }
        }
    }
}

/// Appends the alert for a client whose ClientHello is longer than is kept.
pub fn refuse_hello(out: &mut Vec<u8>) {
    plain_alert(Alert::RECORD_OVERFLOW, out);
}

/// Appends an alert in the clear, which stands where nothing was agreed on.
fn plain_alert(alert: Alert, out: &mut Vec<u8>) {
    out.extend_from_slice(&[21, 3, 3, 0, 2, 2, alert.0]);
}
