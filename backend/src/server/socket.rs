//! The socket of a link, with TLS if there is any, and its other end.

use super::event::LinkId;
use super::greeting::Peer;
use super::links::LinkEnd;
use super::tls;
use moorline_net::layer::{Driven, JobResult, Layer, LayerError};
use moorline_net::read_block::ReadBlock;
use moorline_net::stream::{Reading, Stream};
use moorline_net::tls::Fault;
use moorline_net::unix_socket;
use moorline_proto::time::Instant;
use std::net::SocketAddr;
use std::{fmt, io};

/// Other end of a connection, for logs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    Ip(SocketAddr),
    Uid(u32),
}

impl Origin {
    /// Returns what the system knows of the other end.
    pub(super) fn peer(self) -> Peer {
        match self {
            Self::Ip(address) if address.ip().to_canonical().is_loopback() => Peer::Loopback,
            Self::Ip(_) => Peer::Network,
            Self::Uid(uid) => Peer::Uid(uid),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Uid(uid) => write!(f, "user id {uid}"),
        }
    }
}

/// Returns the other end of a connection.
///
/// # Errors
/// The system's.
pub(super) fn origin_of(stream: &Stream, address: Option<SocketAddr>) -> io::Result<Origin> {
    address.map_or_else(|| unix_socket::peer_uid(stream).map(Origin::Uid), |address| Ok(Origin::Ip(address)))
}

/// One link's socket.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) id: LinkId,
    pub(super) origin: Origin,
    /// Marked as held while the link host does not want its bytes.
    pub(super) stream: Stream,
    /// TLS; `None`: frames come at once.
    pub(super) layer: Option<Layer>,
}

impl Socket {
    /// Goes on with the handshake. [`Driven::Open`]: there is none, or it is done.
    ///
    /// # Errors
    /// Reason why the handshake failed.
    pub(super) fn shake(&mut self, block: &mut ReadBlock, now: Instant) -> Result<Driven, LinkEnd> {
        let Some(layer) = &mut self.layer else { return Ok(Driven::Open) };
        layer.drive(&mut self.stream, block, now).map_err(tls::end_of)
    }

    /// Takes the result of a thread.
    ///
    /// # Errors
    /// Reason why the handshake failed.
    pub(super) fn handle_result(&mut self, result: JobResult) -> Result<(), LinkEnd> {
        let Some(layer) = &mut self.layer else { return Ok(()) };
        layer.handle_result(&mut self.stream, result).map_err(tls::end_of)
    }

    /// Reads once.
    ///
    /// # Errors
    /// Reason why the link ends.
    pub(super) fn read(&mut self, block: &mut ReadBlock, now: Instant) -> Result<Reading, LinkEnd> {
        match &mut self.layer {
            None => self.stream.read(block).map_err(LinkEnd::Io),
            Some(layer) => layer.read(&mut self.stream, block, now).map_err(|error| match error {
                LayerError::Socket(cause) => LinkEnd::Io(cause),
                LayerError::Tls(Fault::Alert(alert)) if alert.is_of_certificate() => LinkEnd::Tls(format!(
                    "the gateway refuses the certificate of this backend, link.tls.certificate_file: alert {alert}; its \
                     log says why"
                )),
                error => LinkEnd::Tls(error.to_string()),
            }),
        }
    }

    /// Returns whether a read may bring something.
    pub(super) fn wants_read(&self) -> bool {
        self.stream.is_readable() || self.layer.as_ref().is_some_and(Layer::wants_read)
    }

    /// Writes encrypted bytes that the stream did not take before.
    ///
    /// # Errors
    /// The stream is broken.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match &mut self.layer {
            Some(layer) if !layer.is_opening() && self.stream.is_writable() => {
                layer.flush(&mut self.stream).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Writes once, or once for each 64 KiB over TLS. Returns how many bytes were taken.
    ///
    /// # Errors
    /// The stream is broken.
    pub(super) fn write(&mut self, bytes: &[u8], scratch: &mut Vec<u8>) -> io::Result<usize> {
        match &mut self.layer {
            None => self.stream.write(bytes),
            Some(layer) => layer.write_bulk(&mut self.stream, bytes, scratch),
        }
    }

    /// Tells the gateway that nothing more comes, as far as the socket takes it. What it has sent meanwhile is read, because a
    /// socket that is closed with unread bytes is reset, and then the gateway might not read the last word.
    pub(super) fn shut(&mut self, block: &mut ReadBlock) {
        if let Some(layer) = &mut self.layer {
            layer.shut(&mut self.stream, 0);
            self.stream.read(block).ok();
        }
    }
}

pub(super) fn socket_of(sockets: &mut [Option<Socket>], link: LinkId) -> Option<&mut Socket> {
    sockets.get_mut(link.slot as usize)?.as_mut().filter(|socket| socket.id == link)
}

/// Lists a socket that may have bytes to read.
pub(super) fn list(ready: &mut Vec<usize>, socket: &mut Socket) {
    let marks = socket.stream.marks();
    if !marks.is_listed && !marks.is_held {
        marks.is_listed = true;
        ready.push(socket.id.slot as usize);
    }
}
