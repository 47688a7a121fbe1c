//! The bare reference server: what this machine can do, to hold figures beside.
//!
//! One thread, one epoll, a length-prefixed protocol, a table of who is where, and nothing else: no
//! sessions, no windows, no timers, no acks of deliveries. It logs in, echoes heartbeats, answers
//! messages, forwards them over shared links to a trivial backend, delivers one to one and to all.
//! Absolute times on a shared machine do not repeat; ratios to this server, interleaved, do.
//!
//! | file | holds |
//! |---|---|
//! | `wire` | the frames: 4 bytes of length, 1 byte of kind, a body |
//! | `stream` | a socket with what it did not take and what it has not finished |
//! | `server` | the server |
//! | `acker` | the backend behind its links: it answers every message |
//! | `client` | the client's side, driven by the same fleet as Moorline's |

mod acker;
mod client;
mod server;
mod stream;
mod wire;

pub use acker::Acker;
pub use client::{BareClient, Uplink};
pub use server::{BareServer, LINKS};

use crate::exit::Failure;
use crate::fleet::Stop;
use crate::terminal;
use rustls::ServerConfig;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Longest sleep of the loops before they check the clock and signals.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Program to run.
#[derive(Clone, Debug)]
pub enum Role {
    /// The server, forwarding to a backend if it has one.
    Server {
        /// An [`Acker`]'s address.
        backend: Option<SocketAddr>,
        /// TLS of its clients, by rustls alone; `None`: plain TCP.
        tls: Option<Arc<ServerConfig>>,
    },
    /// The backend.
    Acker,
}

/// Runs until a signal, or for `at_most`; prints the ready line first.
pub fn run(role: Role, listen: SocketAddr, at_most: Duration, stop: &Stop) -> Result<(), Failure> {
    match role {
        Role::Server { backend, tls } => {
            let mut server = BareServer::bind(listen, backend, tls)?;
            terminal::print(format!("bare ready listener={} pid={}", server.address()?, std::process::id()));
            server.run(at_most, stop)
        }
        Role::Acker => {
            let mut acker = Acker::bind(listen)?;
            terminal::print(format!("bare acker ready link={} pid={}", acker.address()?, std::process::id()));
            acker.run(at_most, stop)
        }
    }
}
