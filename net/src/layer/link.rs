//! TLS between two servers: long flights in the handshake, few connections, and much in one write.
//!
//! Both ends are driven alike ([`Layer::drive`]): the owner calls it when the socket has an edge and when a thread's result is
//! there. Behind [`Driven::Open`] the layer has records, and is read and written like any other.

use super::{Job, JobResult, Layer, Opening, OpeningFault, Step, Tls};
use crate::read_block::ReadBlock;
use crate::stream::Stream;
use crate::tls::Client;
use crate::upgrade::Origins;
use moorline_proto::time::Instant;
use std::io;
use std::sync::Arc;

/// Plain bytes of one write: four full records.
const BULK_BYTES: usize = 64 << 10;

/// The next thing to do for a handshake.
#[derive(Debug)]
pub enum Driven {
    /// Wait for an edge or for a thread's result.
    Wait,
    /// A thread is needed; its result goes to [`Layer::handle_result`].
    Job(Job),
    /// The handshake is done.
    Open,
}

impl Layer {
    /// TLS of which the peer begins the handshake.
    pub fn awaiting() -> Self {
        Self::Opening(Box::new(Opening::mutual(None)))
    }

    /// TLS of which this end begins the handshake, with a server that has to have this name.
    pub fn dialling(client: Arc<Client>, name: &str) -> Self {
        Self::Opening(Box::new(Opening::mutual(Some(Box::new((client, name.to_owned()))))))
    }

    /// Returns whether the handshake is not done.
    pub const fn is_opening(&self) -> bool {
        matches!(self, Self::Opening(_))
    }

    /// Goes on with the handshake, as far as it goes without a thread.
    ///
    /// # Errors
    /// [`OpeningFault`]. The peer has been told, as far as the socket took it.
    pub fn drive(
        &mut self,
        stream: &mut Stream,
        block: &mut ReadBlock,
        now: Instant,
    ) -> Result<Driven, OpeningFault> {
        let Self::Opening(opening) = self else { return Ok(Driven::Open) };
        loop {
            let has_come = opening.read(stream, block)?;
            match opening.advance(&Origins::default(), now, true)? {
                Step::Wait if has_come => {}
                Step::Wait | Step::Proxied(_) => {
                    opening.flush(stream)?;
                    return Ok(Driven::Wait);
                }
                Step::Job => {
                    opening.flush(stream)?; // before the peer's next bytes are answered
                    return Ok(Driven::Job(opening.take_job()));
                }
                Step::Done(done) => {
                    let mut layer = done.layer.unwrap_or_else(Self::closed);
                    layer.flush(stream)?;
                    *self = layer;
                    return Ok(Driven::Open);
                }
            }
        }
    }

    /// Takes a thread's result; [`Self::drive`] goes on with it.
    ///
    /// # Errors
    /// The handshake failed. The peer has been told, as far as the socket took it.
    pub fn handle_result(&mut self, stream: &mut Stream, result: JobResult) -> Result<(), OpeningFault> {
        let Self::Opening(opening) = self else { return Ok(()) };
        opening.handle_result(result).inspect_err(|_| {
            opening.flush(stream).ok(); // the connection ends
        })
    }

    /// Writes bytes with one write for each 64 KiB of them. Returns how many bytes the layer took; less than all: the socket
    /// takes nothing more for now. `scratch`: memory of the caller, which holds nothing between two calls.
    ///
    /// # Errors
    /// The stream is broken.
    pub fn write_bulk(
        &mut self,
        stream: &mut Stream,
        bytes: &[u8],
        scratch: &mut Vec<u8>,
    ) -> io::Result<usize> {
        if !self.flush(stream)? {
            return Ok(0);
        }
        match self {
            Self::Tls(tls) => tls.write_bulk(stream, bytes, scratch),
            _ => Ok(0),
        }
    }
}

impl Tls {
    fn write_bulk(&mut self, stream: &mut Stream, bytes: &[u8], scratch: &mut Vec<u8>) -> io::Result<usize> {
        self.records.keep(); // a link is hardly ever silent
        let mut taken = 0;
        for part in bytes.chunks(BULK_BYTES) {
            scratch.clear();
            self.records.seal(&[part], scratch).map_err(io::Error::other)?;
            taken += part.len();
            let sent = stream.write(scratch)?;
            if sent < scratch.len() {
                self.buffers.append(&scratch[sent..]);
                break;
            }
        }
        Ok(taken)
    }
}
