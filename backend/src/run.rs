//! Puts the configured handler on a server.

use crate::api::Api;
use crate::config::{BackendConfig, DurabilityPoint, HandlerKind};
use crate::echo::{Echo, Mode};
use crate::error::BackendError;
use crate::im::store::{Disk, Durability, Memory, Store};
use crate::im::{Im, ImHandler, Order};
use crate::server::{Handler, Remote, Server};
use crate::tokens::{Guarded, Tokens};
use crate::webhook::Endpoints;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Runs a backend on this thread until `stop` is true (noticed within a quarter of a second; a
/// signal handler may set it). `ready` is told the addresses once gateways can connect.
///
/// # Errors
/// [`BackendError`]: a bad setting, an address in use, or a failing poll.
pub fn run(
    config: &BackendConfig,
    ready: impl FnOnce(Ready),
    stop: &Arc<AtomicBool>,
) -> Result<(), BackendError> {
    let im = &config.im;
    match config.handler {
        HandlerKind::Im if im.folder.as_os_str().is_empty() => {
            let make = |remote: Remote<Order>| {
                let im = Im::new(im.clone(), config.node_number, Memory::new(im));
                serve_im(config, im, remote)
            };
            guard(config, make, ready, stop)
        }
        HandlerKind::Im => {
            let make = |remote: Remote<Order>| {
                // A full mailbox has a message of the same meaning in it.
                let waker = remote.clone();
                let notify = move || _ = waker.try_send(Order::Committed);
                let durability = match im.durability {
                    DurabilityPoint::Disk => Durability::Disk,
                    DurabilityPoint::System => Durability::System,
                };
                let store = Disk::open(&im.folder, im, durability, notify)?;
                serve_im(config, Im::new(im.clone(), config.node_number, store), remote)
            };
            guard(config, make, ready, stop)
        }
        HandlerKind::Echo => guard(config, |_| Ok((Echo::new(Mode::Echo), None)), ready, stop),
        HandlerKind::Acker => guard(config, |_| Ok((Echo::new(Mode::Acker), None)), ready, stop),
    }
}

/// With the threads around it.
fn serve_im<S: Store>(
    config: &BackendConfig,
    im: Im<S>,
    remote: Remote<Order>,
) -> Result<(ImHandler<S>, Option<Api>), BackendError> {
    let endpoints = Endpoints::start(config, &remote)?;
    let handler = ImHandler::new(im, move |call| endpoints.call(call));
    Ok((handler, Api::start(&config.api, remote)?))
}

/// Where a backend can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Where gateways connect.
    pub link: SocketAddr,
    /// Where the server API listens.
    pub api: Option<SocketAddr>,
}

/// Logins are judged by `tokens_file`, if there is one.
fn guard<H: Handler>(
    config: &BackendConfig,
    make: impl FnOnce(Remote<H::Message>) -> Result<(H, Option<Api>), BackendError>,
    ready: impl FnOnce(Ready),
    stop: &AtomicBool,
) -> Result<(), BackendError> {
    let server = Server::bind(config)?;
    let (mut handler, api) = make(server.remote())?;
    let where_it_is = Ready { link: server.address(), api: api.as_ref().map(Api::address) };
    tracing::info!(address = %server.address(), handler = ?config.handler, "backend listens");
    if config.tokens_file.as_os_str().is_empty() {
        ready(where_it_is);
        return server.run(&mut handler, stop);
    }
    let tokens = Tokens::load(&config.tokens_file)?;
    ready(where_it_is);
    server.run(&mut Guarded { handler, tokens }, stop)
}
