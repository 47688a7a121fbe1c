//! Layers that a client puts between its frames and its socket: a PROXY header, TLS by rustls, a WebSocket made by hand.

use crate::PATIENCE;
use crate::process::TempFile;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

/// Name in the certificates of these tests.
pub(crate) const NAME: &str = "gateway.test";
/// Mask of every message: its value means nothing.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A certificate with its key, in files, and the clients that trust it.
pub(crate) struct Authority {
    pub(crate) certificate: TempFile,
    pub(crate) key: TempFile,
    roots: RootCertStore,
}

impl Authority {
    /// One that signs itself, for these names.
    pub(crate) fn new(names: &[&str]) -> Self {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(names).expect("a certificate");
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(cert.der().to_vec())).expect("a certificate");
        let (certificate, key) = (TempFile::new(cert.pem()), TempFile::new(signing_key.serialize_pem()));
        Self { certificate, key, roots }
    }

    /// A client's settings: TLS 1.3, this authority, this protocol.
    pub(crate) fn client(&self, protocol: &str) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let versions = builder.with_protocol_versions(&[&rustls::version::TLS13]).expect("TLS 1.3");
        let mut config = versions.with_root_certificates(self.roots.clone()).with_no_client_auth();
        config.alpn_protocols = vec![protocol.into()];
        config
    }
}

/// Layers of one client.
#[derive(Default)]
pub(crate) struct Tunnel {
    tls: Option<Box<ClientConnection>>,
    websocket: Option<Websocket>,
}

#[derive(Default)]
struct Websocket {
    /// Bytes of a message that is not whole yet.
    input: Vec<u8>,
    /// Payloads that nobody has read.
    payload: Vec<u8>,
    /// Code of the gateway's close.
    close: Option<u16>,
}

impl Tunnel {
    /// TLS over the socket.
    pub(crate) fn tls(stream: &mut TcpStream, config: ClientConfig) -> io::Result<Self> {
        Self::tls_to(stream, config, NAME)
    }

    /// TLS with a server of this name.
    pub(crate) fn tls_to(stream: &mut TcpStream, config: ClientConfig, name: &str) -> io::Result<Self> {
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let mut tls = Box::new(ClientConnection::new(Arc::new(config), name).expect("lawful settings"));
        stream.set_read_timeout(Some(PATIENCE))?;
        while tls.is_handshaking() {
            tls.complete_io(stream)?;
        }
        Ok(Self { tls: Some(tls), websocket: None })
    }

    /// A WebSocket over what there is. The answer must be 101.
    pub(crate) fn upgrade(mut self, stream: &mut TcpStream, origin: &str) -> io::Result<Self> {
        let answer = self.ask_upgrade(stream, origin)?;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        // The example of RFC 6455, 1.3.
        assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
        self.websocket = Some(Websocket::default());
        Ok(self)
    }

    /// Asks for a WebSocket, and returns the head of the answer.
    pub(crate) fn ask_upgrade(&mut self, stream: &mut TcpStream, origin: &str) -> io::Result<String> {
        let request = format!(
            "GET /chat HTTP/1.1\r\nHost: {NAME}\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: {origin}\r\nSec-WebSocket-Protocol: moorline.v1\r\n\
             Sec-WebSocket-Version: 13\r\n\r\n"
        );
        self.write(stream, request.as_bytes())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let (mut answer, mut byte) = (Vec::new(), [0]);
        while !answer.ends_with(b"\r\n\r\n") {
            match self.read(stream, &mut byte)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                _ => answer.push(byte[0]),
            }
        }
        Ok(String::from_utf8(answer).expect("text"))
    }

    /// Writes frames, as one message if there is a WebSocket.
    pub(crate) fn write(&mut self, stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
        match &self.websocket {
            None => self.write_raw(stream, bytes),
            Some(_) => self.write_raw(stream, &masked(0x82, bytes)),
        }
    }

    /// Writes what stands under the WebSocket.
    pub(crate) fn write_raw(&mut self, stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return stream.write_all(bytes) };
        tls.writer().write_all(bytes)?;
        while tls.wants_write() {
            tls.write_tls(stream)?;
        }
        Ok(())
    }

    /// Records of these bytes, which do not go out.
    pub(crate) fn seal(&mut self, bytes: &[u8]) -> Vec<u8> {
        let tls = self.tls.as_mut().expect("TLS");
        tls.writer().write_all(bytes).expect("room");
        let mut wire = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut wire).expect("memory");
        }
        wire
    }

    /// The first flight of a client.
    pub(crate) fn client_hello(config: &ClientConfig) -> Vec<u8> {
        let name = ServerName::try_from(NAME).expect("a name");
        let mut tls = ClientConnection::new(Arc::new(config.clone()), name).expect("lawful settings");
        let mut wire = Vec::new();
        tls.write_tls(&mut wire).expect("memory");
        wire
    }

    /// Changes the client's keys, and asks the gateway to change its own.
    pub(crate) fn update_keys(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        tls.refresh_traffic_keys().expect("the handshake is done");
        while tls.wants_write() {
            tls.write_tls(stream)?;
        }
        Ok(())
    }

    /// Code of the gateway's WebSocket close.
    pub(crate) fn close_code(&self) -> Option<u16> {
        self.websocket.as_ref()?.close
    }

    /// Reads bytes of frames; 0: the gateway has ended the connection in due form.
    pub(crate) fn read(&mut self, stream: &mut TcpStream, block: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(websocket) = &mut self.websocket {
                websocket.take();
                if !websocket.payload.is_empty() {
                    let count = websocket.payload.len().min(block.len());
                    block[..count].copy_from_slice(&websocket.payload[..count]);
                    websocket.payload.drain(..count);
                    return Ok(count);
                }
            }
            let mut raw = [0; 16 << 10];
            let most = if self.websocket.is_some() { raw.len() } else { block.len().min(raw.len()) };
            let count = match &mut self.tls {
                None => stream.read(&mut raw[..most])?,
                Some(tls) => read_tls(tls, stream, &mut raw[..most])?,
            };
            match &mut self.websocket {
                Some(websocket) if count > 0 => websocket.input.extend_from_slice(&raw[..count]),
                _ => {
                    block[..count].copy_from_slice(&raw[..count]);
                    return Ok(count);
                }
            }
        }
    }
}

fn read_tls(tls: &mut ClientConnection, stream: &mut TcpStream, block: &mut [u8]) -> io::Result<usize> {
    loop {
        match tls.reader().read(block) {
            // Without close_notify this is UnexpectedEof.
            Ok(count) => return Ok(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        tls.read_tls(stream)?;
        tls.process_new_packets().map_err(io::Error::other)?;
        while tls.wants_write() {
            tls.write_tls(stream)?;
        }
    }
}

/// A frame of a client.
pub(crate) fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        short @ ..126 => frame.push(0x80 | u8::try_from(short).expect("short")),
        middle @ ..0x1_0000 => {
            frame.push(0xFE);
            frame.extend_from_slice(&u16::try_from(middle).expect("16 bits").to_be_bytes());
        }
        long => {
            frame.push(0xFF);
            frame.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

impl Websocket {
    /// Takes whole messages out of the input.
    fn take(&mut self) {
        while let Some((opcode, head, length)) = header(&self.input)
            && self.input.len() >= head + length
        {
            let payload = &self.input[head..head + length];
            match opcode {
                2 => self.payload.extend_from_slice(payload),
                8 => self.close = payload.first_chunk().map(|code| u16::from_be_bytes(*code)),
                10 => {}
                other => panic!("the gateway sent a message of kind {other}"),
            }
            self.input.drain(..head + length);
        }
    }
}

/// Kind of a frame of the gateway, and the lengths of its header and its payload.
fn header(input: &[u8]) -> Option<(u8, usize, usize)> {
    let (&first, &second) = (input.first()?, input.get(1)?);
    assert!(
        first & 0xF0 == 0x80 && second < 0x80,
        "whole messages, no extension, no mask: {first:x} {second:x}"
    );
    let (head, length) = match second {
        126 => (4, usize::from(u16::from_be_bytes(*input.get(2..4)?.first_chunk()?))),
        127 => (10, usize::try_from(u64::from_be_bytes(*input.get(2..10)?.first_chunk()?)).expect("small")),
        short => (2, usize::from(short)),
    };
    Some((first & 0x0F, head, length))
}

/// A PROXY header of version 2 for a client at this address.
pub(crate) fn proxy_header(client: SocketAddr) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    let SocketAddr::V4(client) = client else { unreachable!("these tests use IPv4") };
    header.extend_from_slice(&client.ip().octets());
    header.extend_from_slice(&[127, 0, 0, 1]);
    header.extend_from_slice(&client.port().to_be_bytes());
    header.extend_from_slice(&443_u16.to_be_bytes());
    header
}
