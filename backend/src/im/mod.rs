//! The reference IM backend: conversations, groups, inboxes, pull.
//!
//! [`Im`] is pure: events, time and a [`Store`] go in, answers and pushes come out as one queue of
//! [`Output`]s. Same input, same output. [`ImHandler`] puts it on a [`crate::server::Server`].
//!
//! ```text
//! SEND -> checks -> Draft --turn's end--> Store::try_commit
//!                                              |  durable
//!             SENDACK <- on_committed <- Store::poll_committed
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
mod request;
mod room;
mod send;
mod services;
mod sessions;
pub mod store;
#[cfg(test)]
mod tests;
mod window;

pub(crate) use api::API_DEVICE;
pub use api::{ApiAnswer, ApiBody, ApiCall, ApiReply, PushTo, Status};
pub use handler::{ImHandler, Order};
pub use ids::{MessageIds, time_ms};
pub use output::Output;
pub use services::{ServiceCall, ServiceResult, ServiceStatus};

use crate::config::ImConfig;
use crate::server::{Event, Now, PushId, SessionId, Up};
use api::Broadcasts;
use bytes::Bytes;
use fanout::Fanouts;
use moorline_proto::frame::Command;
use moorline_proto::message::backend::Outcome;
use moorline_proto::message::client::{self, Code, Resp, SendAck};
use moorline_proto::time::{Duration, Instant};
use output::{Outputs, Reply};
use presence::Presences;
use receipts::Receipts;
use services::Service;
use sessions::Sessions;
use std::collections::VecDeque;
use store::{Committed, ConversationId, Entry, Origin, Store, Write};

/// A refusal, for people.
pub(crate) fn reason_of(refusal: store::Refusal) -> &'static str {
    send::refused(refusal).1
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
    services: Vec<Service>,
    tally: Status,
    /// The batch of this turn, and who waits for each of its writes.
    writes: Vec<Write>,
    waiting: Vec<Waiting>,
    /// The same of batches the store has not made durable yet, oldest first.
    committing: VecDeque<Vec<Waiting>>,
    scratch: Scratch,
    out: Outputs,
}

/// Who waits for a write.
#[derive(Debug)]
enum Waiting {
    /// With who wrote it.
    Send(Reply, Origin),
    /// With who takes it back.
    Recall(Reply, Origin),
    Create(Reply, Origin),
    Change(Reply, Origin, ConversationId, Change),
    /// With the answer if it is done, and who is told what on which devices.
    Done(Reply, Origin, Bytes),
    Read(Reply, Origin, ConversationId),
    Related(Reply, Origin, store::UserId),
    /// Whoever asked by the API that so many are told.
    Told(ApiReply, usize),
    /// An ack of this session; nobody is told.
    Ack(SessionId),
    Nobody,
}

/// What a change of a group was, for what follows it.
#[derive(Debug)]
enum Change {
    /// Whoever joins is told the members.
    Join,
    /// These leave the room.
    Leave(Vec<store::UserId>),
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
    entries: Vec<(u64, Entry)>,
}

impl<S: Store> Im<S> {
    /// A backend on `store`; `node_number` goes into message ids.
    pub fn new(config: ImConfig, node_number: u16, mut store: S) -> Self {
        Self {
            services: Self::open_services(&config, &mut store),
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
            waiting: Vec::new(),
            committing: VecDeque::new(),
            scratch: Scratch::default(),
            out: Outputs::default(),
        }
    }

    /// Takes one event of the link.
    pub fn handle(&mut self, now: Now, event: Event) {
        match event {
            Event::Up(up) => self.on_up(now, up),
            Event::Pushed { session, push, outcome } => self.on_pushed(now, session, push, outcome),
            Event::ConnUp { session, login, is_new, .. } => {
                self.on_conn_up(now, session, &login, is_new);
            }
            Event::ConnDown { session, .. } => self.on_conn_down(now, session),
            Event::Tick => self.on_tick(now),
            // Sessions are announced again or end: each tells by itself.
            Event::GatewayUp { .. }
            | Event::LinkUp { .. }
            | Event::Announced { .. }
            | Event::LinkDown { .. }
            | Event::GatewayDown { .. } => {}
        }
        if self.writes.len() >= BATCH_WRITES_MAX {
            self.commit(now);
        }
    }

    /// All events of this turn were handled: gives the store its batch, and takes what is durable.
    pub fn handle_turn_end(&mut self, now: Now) {
        self.write_acks();
        self.commit(now);
        self.fan_out();
        self.broadcast();
    }

    /// The store may have made something durable.
    pub fn handle_committed(&mut self) {
        while let Some(Committed { outcomes, recipients }) = self.store.poll_committed() {
            let waiting = self.committing.pop_front().expect("one Committed per batch");
            assert_eq!(waiting.len(), outcomes.len(), "one outcome per write");
            for (waiting, outcome) in waiting.into_iter().zip(outcomes) {
                self.on_outcome(waiting, outcome, &recipients);
            }
        }
    }

    /// Takes the oldest output; to be asked after each input, until there is none.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.poll()
    }

    /// Takes back the receivers of an [`Output::Push`], so that a later push does not allocate.
    pub fn reuse(&mut self, sessions: Vec<SessionId>) {
        self.out.reuse(sessions);
    }

    /// The store, for another life of the backend; what it was not given yet is gone.
    pub fn into_store(self) -> S {
        self.store
    }

    /// The store, for reading.
    pub fn store(&self) -> &S {
        &self.store
    }

    fn on_up(&mut self, now: Now, mut up: Up) {
        let Some(reply) = up.reply.take() else { return self.on_app(&up) };
        match up.command {
            Command::Send => self.on_send(now, up.session, up.body, Reply::Link(reply)),
            Command::Req => self.on_req(now, up.session, up.body, Reply::Link(reply)),
            Command::Sub | Command::Unsub => self.on_room(&up, reply),
            _ => self.out.put(Output::Refuse { reply, code: Code::Unsupported }),
        }
    }

    fn write(&mut self, write: Write, waiting: Waiting) {
        self.writes.push(write);
        self.waiting.push(waiting);
    }

    /// Positions acked in this turn, one write per device.
    fn write_acks(&mut self) {
        for id in self.sessions.take_acked() {
            if let Some(session) = self.sessions.get(id)
                && let Some((user, device)) = session.owner
            {
                let position = session.window.acked();
                self.write(Write::Acked { user, device, position, gone_ms: 0 }, Waiting::Ack(id));
            }
        }
    }

    fn commit(&mut self, now: Now) {
        // A store that is busy gets more at once, with the turn in which it has made something durable.
        let is_busy = self.committing.len() >= BATCHES_AT_ONCE && !self.store.is_broken();
        let is_held = is_busy && self.writes.len() < BATCH_WRITES_MAX;
        if !is_held && !self.writes.is_empty() {
            let waiting = std::mem::take(&mut self.waiting);
            match self.store.try_commit(now.unix_ms, self.ids.last(), std::mem::take(&mut self.writes)) {
                Ok(()) => self.committing.push_back(waiting),
                Err(_) => waiting.into_iter().for_each(|waiting| self.on_busy(waiting)),
            }
        }
        self.handle_committed();
    }

    /// The store takes no more: nothing of this batch happened.
    fn on_busy(&mut self, waiting: Waiting) {
        let reason = || "the store is busy".to_owned();
        self.tally.put_off += 1;
        match waiting {
            Waiting::Send(reply, _) => {
                let answer =
                    SendAck { retry_after_ms: BUSY_RETRY_MS, reason: reason(), ..Default::default() };
                self.out.answer_send(reply, Code::Retry, answer);
            }
            Waiting::Recall(reply, _)
            | Waiting::Create(reply, _)
            | Waiting::Change(reply, ..)
            | Waiting::Read(reply, ..)
            | Waiting::Related(reply, ..)
            | Waiting::Done(reply, ..) => {
                let answer = Resp { retry_after_ms: BUSY_RETRY_MS, reason: reason(), ..Default::default() };
                self.out.answer_req(reply, Code::Retry, answer);
            }
            Waiting::Ack(session) => self.sessions.on_acked(session),
            Waiting::Told(reply, _) => {
                let answer = ApiAnswer::new(Code::Retry, reason(), BUSY_RETRY_MS, ApiBody::Nothing);
                self.out.answer_api(reply, answer);
            }
            Waiting::Nobody => {}
        }
    }

    fn on_outcome(&mut self, waiting: Waiting, outcome: store::Outcome, recipients: &[store::Recipient]) {
        match (waiting, outcome) {
            (Waiting::Send(reply, origin), store::Outcome::Appended(result)) => {
                self.on_appended(reply, origin, result, recipients);
            }
            (Waiting::Recall(reply, origin), store::Outcome::Appended(result)) => {
                self.on_recalled(reply, origin, result, recipients);
            }
            (Waiting::Create(reply, origin), store::Outcome::Created(result)) => {
                self.on_created(reply, origin, result, recipients);
            }
            (Waiting::Change(reply, origin, conversation, change), store::Outcome::Done(result)) => {
                self.on_changed(reply, conversation, change, result.as_ref().map(drop));
                self.on_told(origin, result.ok().flatten().as_ref(), recipients);
            }
            (Waiting::Read(reply, origin, conversation), store::Outcome::Done(result)) => {
                let done = result.as_ref().map(|_| Bytes::new()).map_err(|refusal| send::refused(*refusal));
                self.answer(reply, done);
                let told = result.ok().flatten();
                if told.is_some() {
                    self.receipts.on_read(conversation);
                }
                self.on_told(origin, told.as_ref(), recipients);
            }
            (Waiting::Related(reply, origin, other), store::Outcome::Done(result)) => {
                let done = result.as_ref().map(|_| self.relation_answer(origin.0, other));
                self.answer(reply, done.map_err(|refusal| send::refused(*refusal)));
                self.on_told(origin, result.ok().flatten().as_ref(), recipients);
            }
            (Waiting::Done(reply, origin, answer), store::Outcome::Done(result)) => {
                let done = result.as_ref().map(|_| answer).map_err(|refusal| send::refused(*refusal));
                self.answer(reply, done);
                self.on_told(origin, result.ok().flatten().as_ref(), recipients);
            }
            (Waiting::Told(reply, count), store::Outcome::Done(Ok(told))) => {
                let answer = ApiAnswer::new(Code::Ok, "", 0, ApiBody::Reached(count));
                self.out.answer_api(reply, answer);
                if let Some(delivery) = &told {
                    self.deliver(None, NOBODY, delivery, recipients);
                }
            }
            (Waiting::Ack(_) | Waiting::Nobody, store::Outcome::Done(_)) => {}
            (waiting, outcome) => unreachable!("the store answered {waiting:?} with {outcome:?}"),
        }
    }

    fn on_pushed(&mut self, now: Now, session: SessionId, push: PushId, outcome: Outcome) {
        let Some(known) = self.sessions.get_mut(session) else { return };
        if let Some((conversation, seq)) = self.fanouts.asked(push) {
            if let (Outcome::Acked, Some(by)) = (outcome, known.owner) {
                self.write(Write::Confirm { by, conversation, seq }, Waiting::Nobody);
                self.notify_next(session);
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
        if self.writes.is_empty()
            && self.store.wants_commit(now.unix_ms)
            && self.store.try_commit(now.unix_ms, self.ids.last(), Vec::new()).is_ok()
        {
            self.committing.push_back(Vec::new());
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
