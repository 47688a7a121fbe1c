//! Startup of a backend: the configured handler on a server.
//!
//! Example: with `handler = "im"` and `im.folder` set, `run` opens the store, starts the threads of the server API and
//! of webhooks, and serves. When the disk is full, the handler ends; `run` opens the store again until it accepts writes.

use crate::api::{Api, Counters};
use crate::config::{BackendConfig, DurabilityPoint, HandlerKind};
use crate::disk_watch::DiskWatch;
use crate::echo::{Echo, Mode};
use crate::error::BackendError;
use crate::im::store::{Disk, DiskError, Durability, Memory, Store};
use crate::im::{BackendMessage, Im, ImHandler};
use crate::live::Live;
use crate::login_hook::{HookFigures, LoginHook};
use crate::node::{NodeFigures, NodeHandler};
use crate::server::{Handler, Server};
use crate::tokens::Guarded;
use crate::undelivered::UndeliveredFigures;
use crate::webhook::Endpoints;
use moorline_net::log::DroppedLines;
use moorline_proto::link::LinkAddress;
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Pause before a backend that could not restart tries again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Runs a backend on this thread until `stop` is true, which is noticed within 250 ms; a signal handler may set it.
/// `ready` gets the addresses once gateways can connect. A store that accepts no more writes, because its disk is
/// full, is opened again until it does. The metrics page shows `dropped_lines`, which the log counts. `live` has the
/// parts that can be replaced meanwhile, made from the same settings.
///
/// # Errors
/// [`BackendError`]: a setting is wrong, an address is in use, or polling fails.
pub fn run(
    config: &BackendConfig,
    live: &Live,
    dropped_lines: &DroppedLines,
    ready: impl FnOnce(Ready),
    stop: &Arc<AtomicBool>,
) -> Result<(), BackendError> {
    let im = &config.im;
    match config.handler {
        HandlerKind::Im if config.store.is_cluster() => {
            let make = |config: &BackendConfig, server: &Server<BackendMessage>| {
                let figures = Arc::new(NodeFigures::default());
                let hook = Arc::new(HookFigures::default());
                let mut handler = NodeHandler::open(config, server.address(), &server.remote(), &figures)?;
                if let Some(hook) = LoginHook::start(config, &server.remote(), &hook)? {
                    handler = handler.with_judge(move |now, auth, judge| hook.ask(now, auth, judge));
                }
                let undelivered = Arc::new(UndeliveredFigures::default());
                let parts = (hook, undelivered, Some(figures));
                Ok((handler, start_api((config, live), server, dropped_lines, parts)?))
            };
            guard((config, live), make, ready, stop)
        }
        HandlerKind::Im if im.folder.as_os_str().is_empty() => {
            tracing::warn!("no im.folder: messages are in memory, and gone with this process");
            let make = |config: &BackendConfig, server: &Server<BackendMessage>| {
                let im = Im::new(config.im.clone(), config.node_number, Memory::new(&config.im));
                make_im((config, live), im, server, dropped_lines)
            };
            guard((config, live), make, ready, stop)
        }
        HandlerKind::Im => {
            let was_open = Cell::new(false);
            let make = |config: &BackendConfig, server: &Server<BackendMessage>| {
                let im = &config.im;
                // A full mailbox holds a message of the same meaning.
                let waker = server.remote();
                let notify = move || _ = waker.try_send(BackendMessage::Committed);
                let durability = match im.durability {
                    DurabilityPoint::Disk => Durability::Disk,
                    DurabilityPoint::System => Durability::System,
                };
                if was_open.get() && !Disk::is_in(&im.folder) {
                    return Err(DiskError::Removed { folder: im.folder.clone() }.into());
                }
                let store = Disk::open(&im.folder, im, durability, notify)?;
                was_open.set(true);
                make_im((config, live), Im::new(im.clone(), config.node_number, store), server, dropped_lines)
            };
            guard((config, live), make, ready, stop)
        }
        HandlerKind::Echo => guard((config, live), |_, _| Ok((Echo::new(Mode::Echo), None)), ready, stop),
        HandlerKind::Acker => guard((config, live), |_, _| Ok((Echo::new(Mode::Acker), None)), ready, stop),
    }
}

/// Builds the IM handler, and starts the threads of webhooks and of the server API.
fn make_im<S: Store>(
    (config, live): (&BackendConfig, &Live),
    im: Im<S>,
    server: &Server<BackendMessage>,
    dropped_lines: &DroppedLines,
) -> Result<(ImHandler<S>, Option<Api>), BackendError> {
    let remote = server.remote();
    let undelivered = Arc::new(UndeliveredFigures::default());
    let endpoints = Endpoints::start(config, &remote, &undelivered)?;
    let folder = &config.im.folder;
    let watch = (!folder.as_os_str().is_empty()).then(|| DiskWatch::start(folder, server.remote()));
    let failed = |cause| BackendError::Poll { operation: "start a thread that looks at the disk", cause };
    let watch = watch.transpose().map_err(failed)?;
    let mut handler = ImHandler::new(im, move |call| {
        let _held = &watch; // it ends with the handler
        endpoints.call(call);
    });
    let hook = Arc::new(HookFigures::default());
    if let Some(hook) = LoginHook::start(config, &remote, &hook)? {
        handler = handler.with_judge(move |now, auth, judge| hook.ask(now, auth, judge));
    }
    Ok((handler, start_api((config, live), server, dropped_lines, (hook, undelivered, None))?))
}

/// Starts the server API, with the figures of the parts of a backend.
fn start_api(
    (config, live): (&BackendConfig, &Live),
    server: &Server<BackendMessage>,
    dropped_lines: &DroppedLines,
    (hook, undelivered, node): (Arc<HookFigures>, Arc<UndeliveredFigures>, Option<Arc<NodeFigures>>),
) -> Result<Option<Api>, BackendError> {
    let Some(access) = live.access.clone() else { return Ok(None) };
    let (dropped_lines, audit) = (dropped_lines.clone(), live.audit.clone());
    let counters = Counters { dropped_lines, links: server.counters(), audit, hook, undelivered, node };
    Api::start(&config.api, server.remote(), access, live.api_tls.as_ref(), counters)
}

/// Addresses of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Address for gateways.
    pub link: LinkAddress,
    /// Address of the server API; `None`: the API is off.
    pub api: Option<SocketAddr>,
}

/// Serves until `stop` is true. A handler that ends before is replaced: the addresses stay, and gateways reconnect.
fn guard<H: Handler>(
    (config, live): (&BackendConfig, &Live),
    make: impl Fn(&BackendConfig, &Server<H::Message>) -> Result<(H, Option<Api>), BackendError>,
    ready: impl FnOnce(Ready),
    stop: &AtomicBool,
) -> Result<(), BackendError> {
    let mut config = config.clone();
    serve((&mut config, live), &make, ready, stop)?;
    while !stop.load(Ordering::Relaxed) {
        match serve((&mut config, live), &make, |_| (), stop) {
            Ok(()) => {}
            Err(BackendError::Store(error)) if error.is_lasting() => return Err(error.into()),
            Err(error) => {
                tracing::error!(%error, "cannot restart the backend; the next try is in 1 s");
                std::thread::park_timeout(AGAIN_AFTER);
            }
        }
    }
    Ok(())
}

/// Serves until `stop` is true or the handler ends. `tokens_file`, if it is set, judges logins.
fn serve<H: Handler>(
    (config, live): (&mut BackendConfig, &Live),
    make: &impl Fn(&BackendConfig, &Server<H::Message>) -> Result<(H, Option<Api>), BackendError>,
    ready: impl FnOnce(Ready),
    stop: &AtomicBool,
) -> Result<(), BackendError> {
    (config.link.secrets_file, config.link.tls) = live.link_files();
    let server = Server::bind(config)?.with_shared(Arc::clone(&live.secrets), Arc::clone(&live.link_tls));
    // Dropped in reverse order: requests that the handler leaves unanswered are answered 504 by the API.
    let (handler, api) = make(config, &server)?;
    let mut handler = handler;
    let place = Ready { link: server.address().clone(), api: api.as_ref().and_then(Api::address) };
    (config.listen, config.api.listen) = (place.link.clone(), place.api);
    tracing::info!(address = %place.link, handler = ?config.handler, "backend listens");
    ready(place);
    match live.tokens.clone() {
        None => server.run(&mut handler, stop),
        Some(tokens) => server.run(&mut Guarded { handler, tokens }, stop),
    }
}
