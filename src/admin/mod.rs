//! The admin address: health, metrics and status over a deliberately small HTTP/1.1.
//!
//! Owns one thread with its own poll and at most 16 connections; driven by the
//! kernel, asks nobody anything: it reads the boards of [`Registry`] and the flags of [`Status`]. It
//! has no login, so it belongs on loopback. Must not touch a client's connection.
//!
//! | path | answers |
//! |---|---|
//! | `/healthz` | 200 as long as this process serves anything |
//! | `/readyz` | 200; 503 while draining or while no link to a backend is up |
//! | `/metrics` | OpenMetrics text |
//! | `/v1/varz` | [`Varz`] as JSON |
//! | `/v1/restartz` | [`Restartz`] as JSON |
//! | `/v1/drainz` | [`Drainz`] as JSON |
//! | POST `/v1/drain`, `/v1/undrain` | 202 and the number that the order has in `/v1/drainz` |
//! | POST `/v1/upgrade` | 202 and the number that the hot restart has in `/v1/restartz` |

mod connection;
mod drains;
mod restarts;
mod routes;
mod server;
mod status;
#[cfg(test)]
mod tests;
mod token;

pub use drains::{ClientsOrder, DrainControl, DrainWish, Drainz};
pub use restarts::{Restart, RestartControl, RestartOrder, Restartz, Step, UnderWay};
pub use status::{Phase, Status, Varz};

use crate::metrics::{Board, Registry};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::Duration;

/// What the responder allows itself and its visitors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Connections open at once; one more is closed unread.
    pub(crate) connections: usize,
    /// Bytes of a request's head; over it: 431.
    pub(crate) request_bytes: usize,
    /// From accept to the last byte of the answer; over it the connection is closed.
    pub(crate) time: Duration,
}

/// The bounds in force.
pub(crate) const BOUNDS: Bounds =
    Bounds { connections: 16, request_bytes: 8 << 10, time: Duration::from_secs(2) };

/// The running responder.
#[derive(Debug)]
pub struct Admin {
    address: SocketAddr,
    bell: Arc<mio::Waker>,
    is_paused: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Admin {
    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no more visitors, or does again: another process may serve the address next.
    pub fn set_paused(&self, is_paused: bool) {
        self.is_paused.store(is_paused, std::sync::atomic::Ordering::SeqCst);
    }

    /// Ends the thread; open connections are closed.
    pub fn stop(self) {
        if let Err(error) = self.bell.wake() {
            tracing::warn!(%error, "cannot wake the admin thread to end it");
            return;
        }
        if self.thread.join().is_err() {
            tracing::error!("the admin thread panicked");
        }
    }
}

/// Serves `listener` in a thread of its own. Its own figures are added to `registry`.
///
/// # Errors
/// The system's: no poll, no thread.
pub fn spawn(listener: TcpListener, status: Arc<Status>, registry: Arc<Registry>) -> io::Result<Admin> {
    spawn_bounded(listener, status, registry, BOUNDS)
}

fn spawn_bounded(
    listener: TcpListener,
    status: Arc<Status>,
    registry: Arc<Registry>,
    bounds: Bounds,
) -> io::Result<Admin> {
    let address = listener.local_addr()?;
    let board = Arc::new(Board::new(server::SERIES));
    registry.add(Arc::clone(&board));
    let routes = routes::Routes::new(registry, status);
    let is_paused = Arc::new(AtomicBool::new(false));
    let (server, bell) = server::Server::new(listener, routes, board, bounds, Arc::clone(&is_paused))?;
    let thread = std::thread::Builder::new().name("moorline-admin".to_owned()).spawn(move || server.run())?;
    tracing::info!(%address, "admin address is up");
    Ok(Admin { address, bell, is_paused, thread })
}
