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
mod budget;
pub mod conformance;
mod deletion;
mod delivery;
mod disk_floor;
mod fanout;
mod group_rooms;
mod handler;
mod ids;
mod logins;
pub mod names;
mod newcomers;
mod onlookers;
mod output;
mod presence;
mod quotas;
mod ranks;
mod receipts;
mod refusal;
mod request;
mod room;
mod send;
mod sessions;
mod steady;
mod storage;
pub mod store;
mod suspects;
mod sweep;
mod tasks;
#[cfg(test)]
mod tests;
mod waiting;
mod webhooks;
mod window;
mod work;

pub use api::{ApiAnswer, ApiBody, ApiCall, ApiReply, PushTo, Status};
pub use deletion::Keep;
pub use disk_floor::DiskStatus;
pub use handler::{BackendMessage, ImHandler, Judge, Judgement};
pub use ids::{MessageIds, time_ms};
pub use output::Output;
pub use quotas::QuotaStatus;
pub use steady::ClockStatus;
pub use webhooks::{WebhookCall, WebhookResult, WebhookStatus};
pub use work::{SignalStatus, WorkStatus};

use crate::config::ImConfig;
use crate::server::{Event, Now, SessionId, Up};
use api::Broadcasts;
use delivery::Deliveries;
use disk_floor::DiskFloor;
use fanout::Fanouts;
use logins::Logins;
use moorline_proto::frame::Command;
use moorline_proto::message::client::{self, Code};
use moorline_proto::time::Duration;
use newcomers::Newcomers;
use output::Outputs;
use presence::{Hints, Presences};
use quotas::Quotas;
use receipts::Receipts;
use sessions::Sessions;
use storage::Storage;
use store::{Entry, Origin, Store};
use suspects::Suspects;
use sweep::Sweeper;
use tasks::Task;
use waiting::{Queues, Waiting};
use webhooks::Webhooks;
use work::{Signals, Work};

/// Returns the reason of a refusal, for people.
pub(crate) fn reason_of(refusal: store::Refusal) -> &'static str {
    refusal::code_and_reason(refusal).1
}

/// Writes in one batch of the store; more gain nothing and cost the last ones.
pub const BATCH_WRITES_MAX: usize = 256;
/// Batches that the store has before small ones wait for each other.
const BATCHES_AT_ONCE: usize = 2;
/// Pause of a device whose gateway did not take a push.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Wait that a client is told when the store is busy, in milliseconds.
const BUSY_RETRY_MS: u32 = 1000;

/// The backend's whole logic.
#[derive(Debug)]
pub struct Im<S> {
    config: ImConfig,
    storage: Storage<S>,
    ids: MessageIds,
    sessions: Sessions,
    fanouts: Fanouts,
    receipts: Receipts,
    presences: Presences,
    quotas: Quotas,
    work: Work,
    disk_floor: DiskFloor,
    sweeper: Sweeper,
    signals: Signals,
    broadcasts: Broadcasts,
    webhooks: Webhooks,
    tally: Status,
    queues: Queues,
    newcomers: Newcomers,
    suspects: Suspects,
    scratch: Scratch,
    out: Outputs,
}

/// No user's device.
const NOBODY: Origin = (store::NOBODY, store::API_DEVICE);

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
        let (quotas, work) = (Quotas::new(&config.quota), Work::new(&config));
        let (disk_floor, sweeper) = (DiskFloor::new(config.disk_floor), Sweeper::new(&store));
        let mut im = Self {
            webhooks: Webhooks::new(&config),
            ids: MessageIds::after(node_number, store.last_id()),
            storage: Storage::new(store),
            sessions: Sessions::default(),
            fanouts: Fanouts::new(config.room_idle),
            receipts: Receipts::default(),
            presences: Presences::default(),
            quotas,
            work,
            disk_floor,
            sweeper,
            signals: Signals::default(),
            broadcasts: Broadcasts::default(),
            tally: Status::default(),
            queues: Queues::default(),
            newcomers: Newcomers::default(),
            suspects: Suspects::default(),
            scratch: Scratch::default(),
            out: Outputs::default(),
            config,
        };
        for (index, login) in im.webhooks.logins().into_iter().enumerate() {
            im.storage.ask(store::Command::Login(login), Waiting::Webhook(index));
        }
        im.take_completions();
        im
    }

    /// Takes one event of the link.
    pub fn handle(&mut self, now: Now, event: Event) {
        match event {
            Event::Up(up) => on_up(self, now, up),
            Event::Pushed { session, push, outcome } => {
                self.deliveries().on_pushed(now, session, push, outcome);
            }
            Event::ConnUp { session, login, is_new, .. } => {
                self.logins().on_conn_up(now, session, login, is_new);
                self.deliveries().note_place(session);
            }
            Event::RoomLost { room } => self.deliveries().on_room_lost(room),
            Event::ConnDown { session, .. } => self.logins().on_conn_down(now, session),
            Event::Tick => self.on_tick(now),
            // Sessions are announced again or end: each has an event of its own.
            Event::GatewayUp { .. }
            | Event::LinkUp { .. }
            | Event::Announced { .. }
            | Event::LinkDown { .. }
            // The handler of a node has taken it.
            | Event::Peer { .. }
            | Event::GatewayDown { .. } => {}
        }
        if self.storage.writes.len() >= BATCH_WRITES_MAX {
            self.commit(now);
        } else if self.storage.open.has_reads() {
            self.take_completions();
        }
    }

    /// Ends a turn: gives the store its batch, takes completions, and calls webhooks.
    pub fn handle_turn_end(&mut self, now: Now) {
        work::do_large_work(self);
        self.deliveries().write_acks();
        onlookers::tell(self, now);
        sweep::sweep_on(self, now);
        self.commit(now);
        self.fan_out(now);
        self.take_completions();
        self.call_webhooks(now);
        if self.fanouts.has_more() || self.work.has_more() {
            self.out.put(Output::TurnAgain);
        }
    }

    /// Takes the free bytes of the disk of `im.folder`; `None`: they cannot be read.
    pub fn handle_free_disk(&mut self, free: Option<u64>) {
        self.disk_floor.on_free(free);
    }

    /// Takes the oldest output; call it after each input, until it returns `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.poll()
    }

    /// Takes back the receivers of an [`Output::Push`], so that a later push does not allocate.
    pub fn reuse(&mut self, sessions: Vec<SessionId>) {
        self.out.reuse(sessions);
    }

    /// The store, for another life of the backend. Writes that it was not given are lost.
    pub fn into_store(self) -> S {
        self.storage.store
    }

    /// The store, for a driver that brings it replies of others; call [`Self::handle_committed`] after that.
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.storage.store
    }

    /// The store, for reading.
    pub fn store(&self) -> &S {
        &self.storage.store
    }

    /// Begins an UP of a session that waits for nothing.
    fn begin_up(&mut self, now: Now, mut up: Up) {
        let Some(reply) = up.reply.take() else {
            // Application commands have no answer; the one that is known here is the signal.
            let signal = room::read_signal(&self.config, &self.sessions, &mut self.signals, now, &up);
            let task = signal.map(|(asked, signal)| Task::Signal(asked, signal));
            return task.into_iter().for_each(|task| self.run(Some(up.session), task));
        };
        match up.command {
            Command::Send => self.on_send(now, up.session, up.dup, up.body, reply),
            Command::Req => self.on_req(now, up.session, up.body, reply),
            Command::Sub | Command::Unsub => self.on_room(now, &up, reply),
            _ => self.out.put(Output::Refuse { reply, code: Code::Unsupported }),
        }
    }

    fn commit(&mut self, now: Now) {
        let now_ms = self.ids.steady_ms(now);
        for waiter in self.storage.commit(now_ms, self.ids.last()) {
            self.on_busy(waiter);
        }
        self.take_completions();
    }

    /// Returns the parts of the backend that logins change.
    fn logins(&mut self) -> Logins<'_, S> {
        Logins {
            storage: &mut self.storage,
            sessions: &mut self.sessions,
            presences: &mut self.presences,
            queues: &mut self.queues,
            suspects: &mut self.suspects,
            out: &mut self.out,
        }
    }

    /// Returns the parts of the backend that decide what devices are pushed.
    fn deliveries(&mut self) -> Deliveries<'_, S> {
        Deliveries {
            config: &self.config,
            storage: &mut self.storage,
            ids: &mut self.ids,
            sessions: &mut self.sessions,
            fanouts: &mut self.fanouts,
            receipts: &mut self.receipts,
            webhooks: &mut self.webhooks,
            tally: &mut self.tally,
            scratch: &mut self.scratch,
            out: &mut self.out,
        }
    }

    /// Returns the parts of the backend that hints need.
    fn hints(&mut self) -> Hints<'_, S> {
        Hints {
            facts: &self.storage.store,
            rules: store::rules::Rules::new(&self.config),
            ids: &mut self.ids,
            sessions: &self.sessions,
            receipts: &self.receipts,
            presences: &self.presences,
            out: &mut self.out,
        }
    }

    fn on_tick(&mut self, now: Now) {
        for session in self.sessions.take_due(now.instant) {
            self.deliveries().pump(session);
        }
        let waiters = self.newcomers.take_due(now.instant);
        newcomers::go_on(self, waiters);
        sweep::sweep(self, now);
        let now_ms = self.ids.steady_ms(now);
        self.storage.commit_late_writes(now_ms, self.ids.last());
        self.tell_read_counts(now);
        self.tell_presence(now);
        self.quotas.log(now, &self.config, &self.storage.store.counts());
    }
}

/// Begins an UP, or puts it behind what its session waits for.
fn on_up<S: Store>(im: &mut Im<S>, now: Now, up: Up) {
    if !im.queues.is_waiting(up.session) {
        return im.begin_up(now, up);
    }
    if let Err(mut up) = im.queues.push(now, up) {
        let Some(reply) = up.reply.take() else { return };
        im.tally.put_off += 1;
        im.out.refuse_for_now(up.command, reply);
    }
}
