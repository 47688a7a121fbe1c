//! TLS of links over TCP: the gateway is the client, and shows a certificate [B-5.9].
//!
//! A handshake is arithmetic of up to a millisecond, and is done by threads of its own. The worker writes and reads its bytes
//! between other work; the router's deadline for the connection holds for the handshake, too.
//!
//! Run-through: link 2 is connected to `backend.internal:7100`. `on_connected` begins a handshake with that name and gives a
//! job to a thread. Its result wakes the worker, which writes the ClientHello. The backend's flight makes the next job. When
//! that one is done, the worker greets the backend, in records.

use super::Worker;
use super::socket::Socket;
use crate::router::{Failure, LinkIndex, Trust};
use moorline_net::layer::{Driven, HandshakePool, Job, JobResult, Layer, OpeningFault};
use moorline_net::tls::{Client, HandshakeError};
use std::io::{self, ErrorKind};
use std::sync::{Arc, PoisonError, RwLock};

/// Results of handshakes that a worker has not taken. Threads wait above this number.
pub(super) const RESULTS_MAX: usize = 64;

/// Reasons of this gateway to believe backends, and the certificate that it shows them.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Reasons to believe a backend.
    pub trust: Trust,
    /// TLS over TCP; `None`: links are not encrypted.
    pub tls: Option<LinkTls>,
    /// Links of this gateway or of a process before it may have TLS.
    pub had_tls: bool,
}

/// Credentials that a reload replaces. Read once for each connection that is made.
pub type SharedCredentials = Arc<RwLock<Credentials>>;

/// TLS of links over TCP.
#[derive(Clone, Debug)]
pub struct LinkTls {
    /// Certificates of both sides.
    pub client: Arc<Client>,
    /// Name in the certificates of backends; empty: the host of the endpoint.
    pub server_name: String,
    /// Threads for handshakes.
    pub pool: HandshakePool,
}

/// Result of a thread, with the link and the number of its connection.
pub(super) type Handshaken = (LinkIndex, u64, JobResult);

impl Worker {
    /// A connection was made: begins the handshake, or greets the backend if there is none.
    pub(super) fn on_connected(&mut self, link: LinkIndex) {
        let tls = self.credentials.read().unwrap_or_else(PoisonError::into_inner).tls.clone();
        let Some(socket) = &mut self.sockets[link.index()] else { return };
        let Some(tls) = tls.filter(|_| socket.is_tcp()) else { return self.greet(link) };
        let name = if tls.server_name.is_empty() {
            self.dials[link.index()].host().unwrap_or_default()
        } else {
            &tls.server_name
        };
        self.connections += 1;
        socket.begin_tls(Layer::dialling(tls.client, name), self.connections, tls.pool);
        self.shake(link);
    }

    /// Goes on with the handshake of a link, if it has one.
    pub(super) fn shake(&mut self, link: LinkIndex) {
        let Some(socket) = &mut self.sockets[link.index()] else { return };
        match socket.shake(&mut self.block, self.now) {
            None | Some(Ok(Driven::Wait)) => {}
            Some(Ok(Driven::Open)) => self.greet(link),
            Some(Ok(Driven::Job(job))) => self.submit(link, job),
            Some(Err(fault)) => self.lose(link, &failure_of(&fault)),
        }
    }

    fn submit(&mut self, link: LinkIndex, job: Job) {
        let Some((number, pool)) = self.sockets[link.index()].as_ref().and_then(Socket::handshake) else {
            return;
        };
        let (results, bell) = (self.results.0.clone(), self.bell.clone());
        let reply = move |result| {
            // The worker may have ended.
            results.send((link, number, result)).ok();
            bell.wake().ok();
        };
        if pool.submit(job, None, reply).is_err() {
            let busy = io::Error::new(ErrorKind::ResourceBusy, "too many TLS handshakes wait for a thread");
            self.lose(link, &busy.into());
        }
    }

    /// Takes the results of threads.
    pub(super) fn take_handshakes(&mut self) {
        while let Ok((link, number, result)) = self.results.1.try_recv() {
            let Some(socket) = &mut self.sockets[link.index()] else { continue };
            match socket.handle_result(number, result) {
                Ok(()) => self.shake(link),
                Err(fault) => self.lose(link, &failure_of(&fault)),
            }
        }
    }
}

fn failure_of(fault: &OpeningFault) -> Failure {
    let closed = "the backend closed the connection in the TLS handshake; has it link.tls, and is this its link port? Its log \
                  may say why";
    match fault {
        OpeningFault::Left => Failure::Tls(closed.to_owned()),
        OpeningFault::Socket(error) if error.kind() == ErrorKind::ConnectionReset => {
            Failure::Tls(closed.to_owned())
        }
        OpeningFault::Socket(error) => io::Error::from(error.kind()).into(),
        OpeningFault::Handshake(HandshakeError::NotTls) => Failure::Tls(
            "the backend does not speak TLS; set link.tls there, or leave backend.tls empty".to_owned(),
        ),
        OpeningFault::Handshake(error) => Failure::Tls(error.explain("backend")),
        fault => Failure::Tls(fault.to_string()),
    }
}
