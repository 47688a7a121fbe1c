//! TLS of a server's connection: rustls between the socket and hyper. It ends with the process, so it needs no record
//! layer of its own.

use rustls::ServerConnection;
use std::cell::RefCell;
use std::io::{self, ErrorKind, IoSlice, Read, Write};

/// Reads of the socket for one read of the owner.
const READS_MAX: usize = 64;

/// TLS of one connection.
#[derive(Debug)]
pub(super) struct Tls(RefCell<Box<ServerConnection>>);

impl Tls {
    pub(super) fn new(connection: ServerConnection) -> Self {
        Self(RefCell::new(Box::new(connection)))
    }

    /// Reads decrypted bytes; 0: the peer sends nothing more. Continues the handshake.
    ///
    /// # Errors
    /// `WouldBlock`: nothing for now. Others end the connection; the peer has its alert.
    pub(super) fn read(&self, socket: &mut (impl Read + Write), chunk: &mut [u8]) -> io::Result<usize> {
        let mut tls = self.0.borrow_mut();
        for _ in 0..READS_MAX {
            match tls.reader().read(chunk) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // Without close_notify: lost, which is the same for a request that is not complete.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                outcome => return outcome,
            }
            let count = tls.read_tls(socket)?;
            let processed = tls.process_new_packets().map_err(io::Error::other);
            flush(&mut tls, socket)?;
            processed?;
            if count == 0 && tls.is_handshaking() {
                return Ok(0);
            }
        }
        Err(ErrorKind::WouldBlock.into())
    }

    /// Encrypts bytes, and writes as many records as the socket takes. Returns how many bytes were taken.
    ///
    /// # Errors
    /// `WouldBlock`: the socket takes nothing for now.
    pub(super) fn write(&self, socket: &mut impl Write, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut tls = self.0.borrow_mut();
        let count = tls.writer().write_vectored(parts)?;
        flush(&mut tls, socket)?;
        let is_empty = parts.iter().all(|part| part.is_empty());
        if count == 0 && !is_empty { Err(ErrorKind::WouldBlock.into()) } else { Ok(count) }
    }

    /// Writes the records that wait. False: the socket does not take all of them.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn flush(&self, socket: &mut impl Write) -> io::Result<bool> {
        flush(&mut self.0.borrow_mut(), socket)
    }

    /// Tells the peer that nothing more comes, as far as the socket takes it.
    pub(super) fn end(&self, socket: &mut impl Write) {
        let mut tls = self.0.borrow_mut();
        tls.send_close_notify();
        flush(&mut tls, socket).ok();
    }
}

fn flush(tls: &mut ServerConnection, socket: &mut impl Write) -> io::Result<bool> {
    while tls.wants_write() {
        match tls.write_tls(socket) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
