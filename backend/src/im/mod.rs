//! The reference IM backend: conversations, groups, inboxes, pull.
//!
//! [`Im`] is pure: events, time and a [`Store`] go in, answers and pushes come out as one queue of
//! [`Output`]s. Same input, same output. [`ImHandler`] puts it on a [`crate::server::Server`].
//!
//! ```text
//! SEND -> Task --facts prefetched--> Draft --turn's end--> Store::submit
//!                                                              |  durable
//!             SENDACK <- on_committed <- completion <---- Store::poll
//!                             |
//!                             +-> each online device of each member that is up to date: one shared push
//!                                 a device that is behind: its window pumps from its user's stream
//! ```
//!
//! A device's window holds how far its user's stream was pushed to it and how far it has
//! acked. A new login starts at what it acked, so whatever was lost on the way comes again; clients
//! drop what they have. A new device starts at the beginning of what is still kept [P-6.12].

mod api;
pub mod conformance;
mod delivery;
mod fanout;
mod handler;
mod ids;
pub mod names;
mod output;
mod presence;
mod receipts;
mod refusal;
mod request;
mod room;
mod send;
mod sessions;
pub mod store;
mod tasks;
#[cfg(test)]
mod tests;
mod waiting;
mod webhooks;
mod window;

pub(crate) use api::API_DEVICE;
pub use api::{ApiAnswer, ApiBody, ApiCall, ApiReply, PushTo, Status};
pub use handler::{BackendMessage, ImHandler};
pub use ids::{MessageIds, time_ms};
pub use output::Output;
pub use webhooks::{WebhookCall, WebhookResult, WebhookStatus};

use crate::config::ImConfig;
use crate::server::{Event, Now, PushId, SessionId, Up};
use api::Broadcasts;
use fanout::{AskedPush, Fanouts};
use moorline_proto::frame::Command;
use moorline_proto::message::backend::Outcome;
use moorline_proto::message::client::{self, Code};
use moorline_proto::time::{Duration, Instant};
use output::Outputs;
use presence::Presences;
use receipts::Receipts;
use sessions::Sessions;
use store::{Batch, ConversationId, Entry, Origin, Store, Write};
use waiting::{Open, Queues, Waiter, Waiting};
use webhooks::Webhooks;

/// A refusal, for people.
pub(crate) fn reason_of(refusal: store::Refusal) -> &'static str {
    refusal::refused(refusal).1
}

/// Writes in one batch of the store; more gain nothing and cost the last ones.
pub const BATCH_WRITES_MAX: usize = 256;
/// Batches that the store has before small ones wait for each other.
const BATCHES_AT_ONCE: usize = 2;
/// How long a device rests whose gateway would not take a push.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// What a client is told to wait when the store is busy, in milliseconds.
const BUSY_RETRY_MS: u32 = 1000;

/// The backend's whole logic.
#[derive(Debug)]
pub struct Im<S> {
    config: ImConfig,
    store: S,
    ids: MessageIds,
    sessions: Sessions,
    fanouts: Fanouts,
    receipts: Receipts,
    presences: Presences,
    broadcasts: Broadcasts,
    webhooks: Webhooks,
    tally: Status,
    /// The batch of this turn, and what follows each of its writes.
    writes: Vec<Write>,
    waiters: Vec<Waiter>,
    /// Commands and prefetches that the store has not completed.
    open: Open,
    queues: Queues,
    scratch: Scratch,
    out: Outputs,
}

/// No user's device.
const NOBODY: Origin = (store::UserId(u32::MAX), store::DeviceNumber(u32::MAX));

/// Buffers that are used again, so that a message costs few allocations.
#[derive(Debug, Default)]
struct Scratch {
    push: client::Push,
    /// Sessions of a fan-out, and at which position of their streams.
    targets: Vec<(SessionId, u64)>,
    target_sessions: Vec<SessionId>,
    /// Lists for entries of streams.
    entries: Vec<Vec<(u64, Entry)>>,
}

impl<S: Store> Im<S> {
    /// A backend on `store`; `node_number` goes into message ids.
    pub fn new(config: ImConfig, node_number: u16, store: S) -> Self {
        let mut im = Self {
            webhooks: Webhooks::new(&config),
            config,
            ids: MessageIds::after(node_number, store.last_id()),
            store,
            sessions: Sessions::default(),
            fanouts: Fanouts::default(),
            receipts: Receipts::default(),
            presences: Presences::default(),
            broadcasts: Broadcasts::default(),
            tally: Status::default(),
            writes: Vec::new(),
            waiters: Vec::new(),
            open: Open::default(),
            queues: Queues::default(),
            scratch: Scratch::default(),
            out: Outputs::default(),
        };
        im.log_in_webhooks();
        im.take_completions();
        im
    }

    /// Takes one event of the link.
    pub fn handle(&mut self, now: Now, event: Event) {
        match event {
            Event::Up(up) => self.on_up(now, up),
            Event::Pushed { session, push, outcome } => self.on_pushed(now, session, push, outcome),
            Event::ConnUp { session, login, is_new, .. } => self.on_conn_up(now, session, login, is_new),
            Event::ConnDown { session, .. } => self.on_conn_down(now, session),
            Event::Tick => self.on_tick(now),
            // Sessions are announced again or end: each has an event of its own.
            Event::GatewayUp { .. }
            | Event::LinkUp { .. }
            | Event::Announced { .. }
            | Event::LinkDown { .. }
            | Event::GatewayDown { .. } => {}
        }
        if self.writes.len() >= BATCH_WRITES_MAX {
            self.commit(now);
        } else if self.open.has_reads() {
            self.take_completions();
        }
    }

    /// Ends a turn: gives the store its batch, and takes completions.
    pub fn handle_turn_end(&mut self, now: Now) {
        self.write_acks();
        self.commit(now);
        self.fan_out();
        self.broadcast();
        self.take_completions();
        self.fan_out_again();
    }

    /// Takes the oldest output; to be asked after each input, until there is none.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.poll()
    }

    /// Takes back the receivers of an [`Output::Push`], so that a later push does not allocate.
    pub fn reuse(&mut self, sessions: Vec<SessionId>) {
        self.out.reuse(sessions);
    }

    /// The store, for another life of the backend. Writes that it was not given are lost.
    pub fn into_store(self) -> S {
        self.store
    }

    /// The store, for reading.
    pub fn store(&self) -> &S {
        &self.store
    }

    fn on_up(&mut self, now: Now, up: Up) {
        if !self.queues.is_waiting(up.session) {
            return self.begin_up(now, up);
        }
        if let Err(mut up) = self.queues.push(now, up) {
            let Some(reply) = up.reply.take() else { return };
            self.tally.put_off += 1;
            self.out.refuse_for_now(up.command, reply);
        }
    }

    /// Begins an UP of a session that waits for nothing.
    fn begin_up(&mut self, now: Now, mut up: Up) {
        let Some(reply) = up.reply.take() else { return self.on_app(&up) };
        match up.command {
            Command::Send => self.on_send(now, up.session, up.body, reply),
            Command::Req => self.on_req(now, up.session, up.body, reply),
            Command::Sub | Command::Unsub => self.on_room(now, &up, reply),
            _ => self.out.put(Output::Refuse { reply, code: Code::Unsupported }),
        }
    }

    fn write(&mut self, write: Write, waiter: Waiter) {
        self.writes.push(write);
        self.waiters.push(waiter);
    }

    /// Positions acked in this turn, one write per device.
    fn write_acks(&mut self) {
        for id in self.sessions.take_acked() {
            if let Some(session) = self.sessions.get(id)
                && let Some((user, device)) = session.owner
            {
                let position = session.window.acked();
                self.write(Write::Acked { user, device, position, gone_ms: 0 }, Waiter::Ack(id));
            }
        }
    }

    fn commit(&mut self, now: Now) {
        // A store that is busy gets more at once, with the turn in which it has made something durable.
        let is_busy = self.open.commits() >= BATCHES_AT_ONCE && !self.store.is_broken();
        let is_held = is_busy && self.writes.len() < BATCH_WRITES_MAX;
        if !is_held && !self.writes.is_empty() {
            let waiters = std::mem::take(&mut self.waiters);
            let writes = std::mem::take(&mut self.writes);
            if let Err(waiters) = self.try_commit(now, writes, waiters) {
                waiters.into_iter().for_each(|waiter| self.on_busy(waiter));
            }
        }
        self.take_completions();
    }

    /// Gives the store a batch.
    ///
    /// # Errors
    /// The waiters: the store takes no more.
    fn try_commit(&mut self, now: Now, writes: Vec<Write>, waiters: Vec<Waiter>) -> Result<(), Vec<Waiter>> {
        let batch = Batch { now_ms: now.unix_ms, last_id: self.ids.last(), writes };
        let ticket = self.open.next_ticket();
        match self.store.submit(ticket, store::Command::Commit(batch)) {
            Ok(()) => {
                self.open.insert(ticket, Waiting::Commit(waiters));
                Ok(())
            }
            Err(_) => Err(waiters),
        }
    }

    fn on_pushed(&mut self, now: Now, session: SessionId, push: PushId, outcome: Outcome) {
        let Some(known) = self.sessions.get_mut(session) else { return };
        if let Some(AskedPush { conversation, first, last }) = self.fanouts.asked(push) {
            if let (Outcome::Acked, Some(by)) = (outcome, known.owner) {
                self.write(Write::Confirm { by, conversation, seq: last }, Waiter::Nobody);
                self.notify_next(session);
            } else if !matches!(outcome, Outcome::Queued | Outcome::Offline) {
                // A later push of the group would confirm these messages, which the device does not have.
                known.pending.add(conversation, first);
                known.window.stall_until(now.instant + RETRY_AFTER);
                self.sessions.on_stalled(session);
            }
            return;
        }
        if outcome == Outcome::Acked {
            self.tally.acked += 1;
            if known.window.on_acked(push) {
                self.sessions.on_acked(session);
            }
            self.pump(session);
        } else if outcome == Outcome::Queued {
            // The client is away and its session is kept: the real outcome follows.
        } else if outcome == Outcome::Offline {
            known.window.on_failed(push, Instant::FAR_FUTURE); // its next ConnUp starts over
        } else if known.window.on_failed(push, now.instant + RETRY_AFTER) {
            self.sessions.on_stalled(session);
        }
    }

    fn on_tick(&mut self, now: Now) {
        for session in self.sessions.take_due(now.instant) {
            self.pump(session);
        }
        if self.writes.is_empty() && self.store.wants_commit(now.unix_ms) {
            self.try_commit(now, Vec::new(), Vec::new()).ok();
        }
        self.tell_read_counts(now);
        self.tell_presence(now);
    }

    fn id_of(&self, conversation: ConversationId) -> String {
        let mut id = String::new();
        self.store.write_id(conversation, &mut id);
        id
    }
}
