//! The accept loop of a server: slots, eviction, pauses and the end.

use super::connection::{Shared, Watch, refuse, serve};
use super::socket::{self, Socket};
use super::tls::Tls;
use super::{Event, Order, Refusal, Request, Response, Settings};
use nix::errno::Errno;
use std::fs::File;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc::Receiver;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{Sleep, sleep, timeout};

/// Pause after the system refused a descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that are being told that there is no room; further ones are closed at once.
const REFUSALS_MAX: usize = 16;
/// Connections beyond the limit that may ask for health and nothing else.
const HEALTH_PLACES: usize = 8;
/// Longest wait for running requests when the server stops.
const STOP_MAX: Duration = Duration::from_secs(2);

/// An open connection.
struct Open {
    task: AbortHandle,
    watch: Rc<Watch>,
}

/// Input of the loop.
enum Input {
    Order(Option<Order>),
    Accepted(io::Result<Socket>),
    /// A task ended: a connection, or a refusal.
    Ended(Result<(Id, ()), JoinError>),
    /// The pause after a failed accept is over.
    Continue,
}

/// State of the loop.
pub(super) struct Accepting<F, E> {
    listener: socket::Accepting,
    orders: Receiver<Order>,
    shared: Rc<Shared<F, E>>,
    tasks: JoinSet<()>,
    open: Vec<Open>,
    is_paused: bool,
    /// Set after the system refused a descriptor.
    pause: Option<Pin<Box<Sleep>>>,
    /// Failed accepts since the start.
    failures: u64,
    /// Descriptor that is closed for a connection when the process has no other. `None`: a connection has it.
    spare: Option<File>,
}

impl<F, A, E> Accepting<F, E>
where
    F: Fn(Request) -> A + 'static,
    A: Future<Output = Response> + 'static,
    E: Fn(Event) + 'static,
{
    pub(super) fn new(
        listener: socket::Accepting,
        spare: Option<File>,
        settings: Settings,
        handler: F,
        on_event: E,
        orders: Receiver<Order>,
    ) -> Self {
        Self {
            is_paused: settings.is_paused,
            listener,
            orders,
            shared: Rc::new(Shared { settings, handler, on_event }),
            tasks: JoinSet::new(),
            open: Vec::new(),
            pause: None,
            failures: 0,
            spare,
        }
    }

    /// Runs until the owner stops the server.
    pub(super) async fn run(mut self) {
        loop {
            match poll_fn(|cx| self.poll_input(cx)).await {
                Input::Order(Some(Order::Pause)) => {
                    self.is_paused = true;
                    self.close_idle();
                }
                Input::Order(Some(Order::Resume)) => self.is_paused = false,
                Input::Order(Some(Order::Stop) | None) => break,
                Input::Accepted(Ok(socket)) => self.admit_over(socket),
                Input::Accepted(Err(error)) if is_want_of_descriptor(&error) && self.spare.is_some() => {
                    self.spare = None; // and the next accept has it
                }
                Input::Accepted(Err(error)) => self.handle_accept_failure(&error),
                Input::Ended(ended) => {
                    let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                    self.open.retain(|open| open.task.id() != id);
                    self.spare = self.spare.take().or_else(spare);
                }
                Input::Continue => {
                    self.pause = None;
                    self.spare = self.spare.take().or_else(spare); // another thread may have had it first
                }
            }
        }
        self.close_idle();
        self.open.iter().filter(|open| open.watch.is_unasked()).for_each(|open| open.task.abort());
        let Self { listener, mut tasks, .. } = self;
        drop(listener);
        let ended = async { while tasks.join_next().await.is_some() {} };
        timeout(STOP_MAX, ended).await.ok();
    }

    /// Admits a socket, with TLS if the server has it.
    fn admit_over(&mut self, socket: Socket) {
        let Some(tls) = &self.shared.settings.tls else { return self.admit(socket) };
        match tls.connection() {
            Ok(connection) => self.admit(socket.with_tls(Tls::new(connection))),
            Err(error) => tracing::error!(%error, "cannot begin TLS for a connection"),
        }
    }

    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<Input> {
        if let Poll::Ready(order) = self.orders.poll_recv(cx) {
            return Poll::Ready(Input::Order(order));
        }
        if let Poll::Ready(Some(ended)) = self.tasks.poll_join_next_with_id(cx) {
            return Poll::Ready(Input::Ended(ended));
        }
        if let Some(pause) = &mut self.pause {
            return pause.as_mut().poll(cx).map(|()| Input::Continue);
        }
        if self.is_paused {
            return Poll::Pending;
        }
        self.listener.poll_accept(cx).map(Input::Accepted)
    }

    /// Gives a connection a place, if need be that of the connection which has been silent longest, or one of the
    /// places for health.
    fn admit(&mut self, socket: Socket) {
        let Settings { limits, refuse: refusal, .. } = self.shared.settings;
        let reserved = self.open.iter().filter(|open| open.watch.is_reserved()).count();
        let is_full = self.open.len() - reserved >= limits.connections_max && !self.evict(false);
        if is_full && reserved >= HEALTH_PLACES && !self.evict(true) {
            (self.shared.on_event)(Event::TooMany);
            if self.tasks.len() < limits.connections_max + HEALTH_PLACES + REFUSALS_MAX {
                self.tasks.spawn_local(refuse(socket, refusal(Refusal::Busy)));
            }
            return;
        }
        let watch = Rc::new(Watch::new(limits, is_full));
        if self.spare.is_none() {
            watch.close_after_answer(); // the next one needs its descriptor
        }
        let serving = serve(socket, Rc::clone(&watch), Rc::clone(&self.shared));
        self.open.push(Open { task: self.tasks.spawn_local(serving), watch });
    }

    /// Closes the connection that has been silent longest, among those with a place of the health paths or among
    /// the others. False: there is none.
    fn evict(&mut self, is_reserved: bool) -> bool {
        let open = self.open.iter().enumerate().filter(|(_, open)| open.watch.is_reserved() == is_reserved);
        let silent = open.filter_map(|(at, open)| Some((open.watch.evictable()?, at)));
        let Some((_, at)) = silent.min() else { return false };
        self.open.swap_remove(at).task.abort();
        (self.shared.on_event)(Event::Evicted);
        true
    }

    /// Closes connections between two requests, and the others after their answer.
    fn close_idle(&self) {
        for open in &self.open {
            open.watch.close_after_answer();
            if open.watch.idle_since().is_some() {
                open.task.abort();
            }
        }
    }

    fn handle_accept_failure(&mut self, error: &io::Error) {
        self.failures += 1;
        if self.failures.is_power_of_two() {
            let (thread, failures) = (self.shared.settings.thread, self.failures);
            tracing::warn!(%error, thread, failures, "cannot accept an HTTP connection; trying again in 100 ms");
        }
        self.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
    }
}

/// Opens a descriptor that can be given up; `None`: the process has none.
pub(super) fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

/// Returns true if the process, or the system, has no descriptor for a connection.
fn is_want_of_descriptor(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EMFILE | Errno::ENFILE))
}
