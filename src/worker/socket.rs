//! The socket of a link: a stream that may still be connecting, with TLS if there is any.
//!
//! Run-through: the router orders a connection to 10.0.0.2:7100. `connect` begins it; when the poll reports the
//! socket writable, `try_finish_connect` returns true once, and from then on bytes are read and written.

use crate::router::Failure;
use mio::event::Event;
use mio::{Registry, Token};
use moorline_net::layer::{Driven, HandshakePool, JobResult, Layer, LayerError, OpeningFault};
use moorline_net::read_block::ReadBlock;
use moorline_net::stream::{Reading, Stream, StreamKind};
use moorline_net::tls::Fault;
use moorline_net::unix_socket;
use moorline_proto::link::LinkAddress;
use moorline_proto::time::Instant;
use std::io;
use std::path::Path;

/// One connection to a backend.
#[derive(Debug)]
pub(super) struct Socket {
    stream: Stream,
    is_connected: bool,
    /// TLS; `None`: frames come at once.
    layer: Option<Layer>,
    /// Number of the connection, and the threads for its handshake; `None`: there is no handshake.
    handshake: Option<(u64, HandshakePool)>,
}

impl Socket {
    /// Begins to connect.
    pub(super) fn connect(address: &LinkAddress, registry: &Registry, token: Token) -> io::Result<Self> {
        let mut stream = match address {
            LinkAddress::Ip(address) => Stream::connect(*address)?,
            LinkAddress::Unix(path) => Stream::connect_unix(Path::new(path))?,
        };
        stream.register(registry, token)?;
        Ok(Self { stream, is_connected: false, layer: None, handshake: None })
    }

    /// Takes over a connection that another process has made. It is read and written after [`Self::resume`].
    pub(super) fn adopt(
        mut stream: Stream,
        layer: Option<Layer>,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        stream.register(registry, token)?;
        Ok(Self { stream, is_connected: true, layer, handshake: None })
    }

    /// Puts TLS on the connection, as the client.
    pub(super) fn begin_tls(&mut self, layer: Layer, number: u64, pool: HandshakePool) {
        (self.layer, self.handshake) = (Some(layer), Some((number, pool)));
    }

    /// Number of the connection, and the threads for its handshake; `None`: there is no handshake.
    pub(super) fn handshake(&self) -> Option<(u64, HandshakePool)> {
        self.handshake.clone()
    }

    /// Goes on with the handshake; `None`: there is none.
    pub(super) fn shake(
        &mut self,
        block: &mut ReadBlock,
        now: Instant,
    ) -> Option<Result<Driven, OpeningFault>> {
        let layer = self.layer.as_mut().filter(|layer| layer.is_opening())?;
        let driven = layer.drive(&mut self.stream, block, now);
        if matches!(driven, Ok(Driven::Open)) {
            self.handshake = None;
        }
        Some(driven)
    }

    /// Takes the result of a thread, for the connection with this number.
    ///
    /// # Errors
    /// The handshake failed.
    pub(super) fn handle_result(&mut self, number: u64, result: JobResult) -> Result<(), OpeningFault> {
        let is_own = self.handshake.as_ref().is_some_and(|(own, _)| *own == number);
        match self.layer.as_mut().filter(|_| is_own) {
            Some(layer) => layer.handle_result(&mut self.stream, result),
            None => Ok(()),
        }
    }

    /// The TLS of the connection.
    pub(super) const fn layer(&mut self) -> Option<&mut Layer> {
        self.layer.as_mut()
    }

    /// Returns whether frames are encrypted.
    pub(super) const fn is_encrypted(&self) -> bool {
        self.layer.is_some()
    }

    /// Returns whether this is a connection over TCP.
    pub(super) fn is_tcp(&self) -> bool {
        self.stream.freeze() == StreamKind::Tcp
    }

    /// Tells the backend that nothing more comes, as far as the socket takes it.
    pub(super) fn shut(&mut self) {
        if let Some(layer) = &mut self.layer {
            layer.shut(&mut self.stream, 0);
        }
    }

    /// The connection.
    pub(super) const fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Returns whether a process of one of these users is at the other end of a Unix socket; false: it is a TCP socket.
    ///
    /// # Errors
    /// The process is of another user.
    pub(super) fn is_known(&self, uids: &[u32]) -> io::Result<bool> {
        if self.stream.freeze() == StreamKind::Tcp {
            return Ok(false);
        }
        let uid = unix_socket::peer_uid(&self.stream)?;
        if uids.contains(&uid) {
            return Ok(true);
        }
        let why = format!("user id {uid} listens there, which is not in backend.peer_uids");
        Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
    }

    /// Returns whether the other end is on this machine, over TCP.
    ///
    /// # Errors
    /// The other end is gone.
    pub(super) fn is_loopback(&self) -> io::Result<bool> {
        if self.stream.freeze() != StreamKind::Tcp {
            return Ok(false);
        }
        Ok(self.stream.peer_addr()?.ip().to_canonical().is_loopback())
    }

    /// Notes what the poll saw.
    pub(super) fn handle_event(&mut self, event: &Event) {
        self.stream.handle_event(event);
    }

    /// Finishes the connect. True: the connection was made by this call.
    ///
    /// # Errors
    /// The connection was refused, or the socket connected to itself.
    pub(super) fn try_finish_connect(&mut self) -> io::Result<bool> {
        if self.is_connected {
            return Ok(false);
        }
        self.is_connected = self.stream.try_finish_connect()?;
        Ok(self.is_connected)
    }

    /// Reads once.
    ///
    /// # Errors
    /// The connection is broken, or the backend does not keep to TLS.
    pub(super) fn read(&mut self, block: &mut ReadBlock, now: Instant) -> Result<Reading, Failure> {
        match &mut self.layer {
            _ if !self.is_connected => Ok(Reading::Blocked),
            None => Ok(self.stream.read(block)?),
            Some(layer) => layer.read(&mut self.stream, block, now).map_err(failure_of),
        }
    }

    /// Returns why the connection is broken: the alert of the backend, if one has come, or else the system's `error`.
    pub(super) fn reason(&mut self, error: io::Error, block: &mut ReadBlock, now: Instant) -> Failure {
        if self.layer.is_some() {
            while let Ok(Reading::Bytes(_)) = self.read(block, now) {}
            if let Err(failure @ Failure::Tls(_)) = self.read(block, now) {
                return failure;
            }
        }
        error.into()
    }

    /// Returns whether a read may bring something.
    pub(super) fn is_readable(&self) -> bool {
        let (has_come, is_opening) =
            self.layer.as_ref().map_or((false, false), |layer| (layer.wants_read(), layer.is_opening()));
        // A handshake reads at an edge until nothing is there, or until a thread has its turn.
        self.is_connected && !is_opening && (has_come || self.stream.is_readable())
    }

    /// Returns whether the stream may take bytes.
    pub(super) const fn is_writable(&self) -> bool {
        self.is_connected && self.stream.is_writable()
    }

    /// Returns whether encrypted bytes wait for the stream.
    pub(super) fn is_pending(&self) -> bool {
        self.layer.as_ref().is_some_and(|layer| layer.pending() > 0)
    }

    /// Sends encrypted bytes that the stream did not take before.
    ///
    /// # Errors
    /// The connection is broken.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match &mut self.layer {
            Some(layer) if self.is_connected && self.stream.is_writable() && !layer.is_opening() => {
                layer.flush(&mut self.stream).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Sends as much of `bytes` as the stream takes, with at most one write, or one for each 64 KiB over TLS. Returns the number
    /// of bytes sent. `scratch`: memory for encrypted records.
    ///
    /// # Errors
    /// The connection is broken.
    pub(super) fn write(&mut self, bytes: &[u8], scratch: &mut Vec<u8>) -> io::Result<usize> {
        if !self.is_writable() || bytes.is_empty() {
            return Ok(0);
        }
        match &mut self.layer {
            None => self.stream.write(bytes),
            Some(layer) => layer.write_bulk(&mut self.stream, bytes, scratch),
        }
    }
}

fn failure_of(error: LayerError) -> Failure {
    match error {
        LayerError::Socket(error) => error.into(),
        LayerError::Tls(Fault::Alert(alert)) if alert.is_of_certificate() => Failure::Tls(format!(
            "the backend refuses the certificate of this gateway, backend.tls.certificate_file: alert {alert}; its log says \
             why"
        )),
        error => io::Error::other(error.to_string()).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    /// A gateway that keeps asking for a port of its own machine gets itself in the end.
    #[test]
    fn a_socket_that_met_itself_is_not_a_backend() {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        socket.bind(&any.into()).expect("a free port");
        let own = socket.local_addr().expect("bound");
        socket.connect(&own).expect("TCP allows it");
        socket.set_nonblocking(true).expect("nonblocking");
        let stream = Stream::tcp(mio::net::TcpStream::from_std(socket.into()));
        let mut socket = Socket { stream, is_connected: false, layer: None, handshake: None };
        assert!(socket.try_finish_connect().is_err());
    }
}
