//! Puts the configured handler on a server.

use crate::config::{BackendConfig, HandlerKind};
use crate::echo::{Echo, Mode};
use crate::error::BackendError;
use crate::im::store::Memory;
use crate::im::{Im, ImHandler};
use crate::server::{Handler, Server};
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
    match config.handler {
        HandlerKind::Im => {
            let im = Im::new(config.im.clone(), config.node_number, Memory::new(&config.im));
            guard(config, ImHandler::new(im), ready, stop)
        }
        HandlerKind::Echo => guard(config, Echo::new(Mode::Echo), ready, stop),
        HandlerKind::Acker => guard(config, Echo::new(Mode::Acker), ready, stop),
    }
}

/// Logins are judged by `tokens_file`, if there is one.
fn guard<H: Handler>(
    config: &BackendConfig,
    mut handler: H,
    ready: impl FnOnce(SocketAddr),
    stop: &AtomicBool,
) -> Result<(), BackendError> {
    if config.tokens_file.as_os_str().is_empty() {
        return serve(config, &mut handler, ready, stop);
    }
    let tokens = Tokens::load(&config.tokens_file)?;
    serve(config, &mut Guarded { handler, tokens }, ready, stop)
}

fn serve<H: Handler>(
    config: &BackendConfig,
    handler: &mut H,
    ready: impl FnOnce(SocketAddr),
    stop: &AtomicBool,
) -> Result<(), BackendError> {
    let server = Server::bind(config)?;
    tracing::info!(address = %server.address(), handler = ?config.handler, "backend listens");
    ready(server.address());
    server.run(handler, stop)
}
