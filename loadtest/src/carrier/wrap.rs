//! One connection's TLS and WebSocket, in their order: bytes of the dialect in and out, bytes of the socket out and in.

use super::tls::Tickets;
use super::websocket::WebSocket;
use rustls::{ClientConnection, HandshakeKind};
use std::io::{BufRead as _, ErrorKind, Write as _};
use std::sync::Arc;

/// State of one connection: some 10 KiB with TLS.
#[derive(Debug)]
pub struct Wrap {
    tls: Option<Sealing>,
    websocket: Option<WebSocket>,
    /// `Host` of the upgrade request.
    host: Box<str>,
    /// Bytes of the dialect that wait for the end of the handshakes.
    waiting: Vec<u8>,
    is_secured: bool,
    is_open: bool,
}

/// TLS of one connection.
#[derive(Debug)]
pub(super) struct Sealing {
    pub(super) connection: Box<ClientConnection>,
    /// Keeper of this client's ticket.
    pub(super) tickets: Arc<Tickets>,
    /// Number of the client.
    pub(super) client: u32,
}

/// Events of a connection that bytes of the server brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// A TLS handshake ended; true: it resumed an earlier session.
    pub handshake: Option<bool>,
    /// The upgrade was accepted.
    pub is_upgraded: bool,
}

impl Wrap {
    pub(super) fn new(mut tls: Option<Sealing>, host: Option<&str>, number: u32) -> Self {
        if let Some(tls) = &mut tls {
            tls.connection.set_buffer_limit(None); // the fleet bounds what is not sent
        }
        Self {
            is_secured: tls.is_none(),
            tls,
            websocket: host.map(|_| WebSocket::new(number)),
            host: host.unwrap_or_default().into(),
            waiting: Vec::new(),
            is_open: false,
        }
    }

    /// Begins when the socket is connected: appends the first bytes for the server to `out`.
    ///
    /// # Errors
    /// Errors of [`Self::receive`].
    pub fn begin(&mut self, out: &mut Vec<u8>) -> Result<(), String> {
        if self.is_secured { self.on_secured(out) } else { self.flush(out) }
    }

    /// Wraps bytes of the dialect and appends them to `out`, or keeps them until the handshakes have ended.
    ///
    /// # Errors
    /// Errors of [`Self::receive`].
    pub fn send(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        if !self.is_open {
            self.waiting.extend_from_slice(plain);
            return Ok(());
        }
        match &mut self.websocket {
            None => self.seal(plain, out),
            Some(websocket) if self.tls.is_none() => {
                websocket.message(plain, out);
                Ok(())
            }
            Some(websocket) => {
                let mut message = Vec::with_capacity(plain.len() + 14);
                websocket.message(plain, &mut message);
                self.seal(&message, out)
            }
        }
    }

    /// Takes bytes of the socket: appends bytes of the dialect to `plain`, and answers for the server to `out`.
    ///
    /// # Errors
    /// A sentence: the server broke a protocol, or its certificate is not accepted. The connection is of no use.
    pub fn receive(&mut self, input: &[u8], plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<News, String> {
        let mut news = News::default();
        if self.tls.is_none() {
            self.unframe(input, plain, out, &mut news)?;
            return Ok(news);
        }
        let mut opened = Vec::new();
        self.open_records(input, &mut opened)?;
        self.flush(out)?;
        if !self.is_secured && self.tls.as_ref().is_some_and(|tls| !tls.connection.is_handshaking()) {
            self.is_secured = true;
            let kind = self.tls.as_ref().and_then(|tls| tls.connection.handshake_kind());
            news.handshake = Some(kind == Some(HandshakeKind::Resumed));
            self.on_secured(out)?;
        }
        if self.websocket.is_some() {
            self.unframe(&opened, plain, out, &mut news)?;
        } else {
            plain.append(&mut opened);
        }
        Ok(news)
    }

    fn unframe(
        &mut self,
        input: &[u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
        news: &mut News,
    ) -> Result<(), String> {
        let Some(websocket) = &mut self.websocket else { return Ok(()) };
        let mut answers = Vec::new();
        news.is_upgraded = websocket.receive(input, plain, &mut answers)?;
        self.seal(&answers, out)?;
        if news.is_upgraded { self.on_open(out) } else { Ok(()) }
    }

    fn on_secured(&mut self, out: &mut Vec<u8>) -> Result<(), String> {
        let Some(websocket) = &self.websocket else { return self.on_open(out) };
        let mut request = Vec::new();
        websocket.request(&self.host, &mut request);
        self.seal(&request, out)
    }

    fn on_open(&mut self, out: &mut Vec<u8>) -> Result<(), String> {
        self.is_open = true;
        let waiting = std::mem::take(&mut self.waiting);
        if waiting.is_empty() { Ok(()) } else { self.send(&waiting, out) }
    }

    /// Appends bytes as they go to the socket: in records, if there is TLS.
    fn seal(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        match &mut self.tls {
            None => out.extend_from_slice(bytes),
            Some(_) if bytes.is_empty() => {}
            Some(tls) => {
                tls.connection.writer().write_all(bytes).map_err(|error| format!("TLS: {error}"))?;
                self.flush(out)?;
            }
        }
        Ok(())
    }

    fn flush(&mut self, out: &mut Vec<u8>) -> Result<(), String> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while tls.connection.wants_write() {
            tls.connection.write_tls(out).map_err(|error| format!("TLS: {error}"))?;
        }
        Ok(())
    }

    fn open_records(&mut self, mut input: &[u8], opened: &mut Vec<u8>) -> Result<(), String> {
        let Some(Sealing { connection: tls, tickets, client }) = &mut self.tls else { return Ok(()) };
        tickets.begin_turn(*client);
        while !input.is_empty() {
            tls.read_tls(&mut input).map_err(|error| format!("TLS: {error}"))?;
            tls.process_new_packets().map_err(|error| format!("TLS: {error}"))?;
            loop {
                let mut reader = tls.reader();
                match reader.fill_buf() {
                    Ok([]) => return Ok(()), // the server has said goodbye; its FIN follows
                    Ok(chunk) => {
                        let count = chunk.len();
                        opened.extend_from_slice(chunk);
                        reader.consume(count);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(format!("TLS: {error}")),
                }
            }
        }
        Ok(())
    }
}
