//! Puts the configured handler on a server.

use crate::config::{BackendConfig, DurabilityPoint, HandlerKind};
use crate::echo::{Echo, Mode};
use crate::error::BackendError;
use crate::im::store::{Disk, Durability, Memory};
use crate::im::{Im, ImHandler};
use crate::server::{Handler, Remote, Server};
use crate::tokens::{Guarded, Tokens};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Runs a backend on this thread until `stop` is true (noticed within a quarter of a second; a
/// signal handler may set it). `ready` is told the address once gateways can connect.
///
/// # Errors
/// [`BackendError`]: a bad setting, an address in use, or a failing poll.
pub fn run(
    config: &BackendConfig,
    ready: impl FnOnce(SocketAddr),
    stop: &Arc<AtomicBool>,
) -> Result<(), BackendError> {
    let im = &config.im;
    match config.handler {
        HandlerKind::Im if im.folder.as_os_str().is_empty() => guard(
            config,
            |_| Ok(ImHandler::new(Im::new(im.clone(), config.node_number, Memory::new(im)))),
            ready,
            stop,
        ),
        HandlerKind::Im => {
            let make = |remote: Remote<()>| {
                // A full mailbox has a message of the same meaning in it.
                let notify = move || _ = remote.try_send(());
                let durability = match im.durability {
                    DurabilityPoint::Disk => Durability::Disk,
                    DurabilityPoint::System => Durability::System,
                };
                let store = Disk::open(&im.folder, im, durability, notify)?;
                Ok(ImHandler::new(Im::new(im.clone(), config.node_number, store)))
            };
            guard(config, make, ready, stop)
        }
        HandlerKind::Echo => guard(config, |_| Ok(Echo::new(Mode::Echo)), ready, stop),
        HandlerKind::Acker => guard(config, |_| Ok(Echo::new(Mode::Acker)), ready, stop),
    }
}

/// Logins are judged by `tokens_file`, if there is one.
fn guard<H: Handler>(
    config: &BackendConfig,
    make: impl FnOnce(Remote<H::Message>) -> Result<H, BackendError>,
    ready: impl FnOnce(SocketAddr),
    stop: &AtomicBool,
) -> Result<(), BackendError> {
    let server = Server::bind(config)?;
    let mut handler = make(server.remote())?;
    if config.tokens_file.as_os_str().is_empty() {
        return serve(config, server, &mut handler, ready, stop);
    }
    let tokens = Tokens::load(&config.tokens_file)?;
    serve(config, server, &mut Guarded { handler, tokens }, ready, stop)
}

fn serve<H: Handler>(
    config: &BackendConfig,
    server: Server<H::Message>,
    handler: &mut H,
    ready: impl FnOnce(SocketAddr),
    stop: &AtomicBool,
) -> Result<(), BackendError> {
    tracing::info!(address = %server.address(), handler = ?config.handler, "backend listens");
    ready(server.address());
    server.run(handler, stop)
}
