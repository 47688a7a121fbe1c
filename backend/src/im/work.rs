//! Work of users: estimated and charged before it is done, and done in slices beside everything else.
//!
//! A unit is about a microsecond of one processor. Every user has a share of the backend's time (`im.work_share`): a SEND or
//! request that the share has no room for is answered RETRY, with the time until it has. What costs more than
//! [`LARGE_UNITS`] waits in a queue of its user; each turn takes at most [`TURN_UNITS`] from these queues, one user after the
//! other. So six members who ask for the 10,000 names of their group wait for each other, and somebody's chat waits for one
//! slice.

use super::api::{ApiAnswer, ApiBody};
use super::disk_floor::{self, DiskFloor};
use super::output::Outputs;
use super::request::Request;
use super::store::Store;
use super::store::{ConversationId, Facts, UserId};
use super::tasks::Task;
use super::waiting::Queues;
use super::{Im, ImConfig};
use crate::server::{Now, SessionId};
use hashbrown::HashMap;
use moorline_proto::message::client::{Code, Send, send};
use moorline_proto::message::im::{PullRequest, Signal};
use moorline_proto::time::Instant;
use std::collections::VecDeque;

/// Units in a second.
const UNITS_PER_SECOND: u64 = 1_000_000;
/// Time whose share a user may use at once, in milliseconds.
const BURST_MS: u64 = 250;
/// Units from which work waits in the queue of its user.
pub(super) const LARGE_UNITS: u64 = 250;
/// Units of large work in one turn; the first piece is always done.
pub(super) const TURN_UNITS: u64 = 2000;
/// Pieces of large work that wait, of all users together.
const WAITING_MAX: usize = 65_536;
/// Users whose use is remembered; at the limit those without a debt are forgotten.
const USERS_MAX: usize = 262_144;

/// Shares of users, and large work that waits.
#[derive(Debug)]
pub(super) struct Work {
    /// Units of one user in a second.
    rate: u64,
    /// Units of one user at once.
    burst: u64,
    shares: HashMap<UserId, Share>,
    waiting: HashMap<UserId, VecDeque<Large>>,
    /// Users with waiting work, in turn.
    order: VecDeque<UserId>,
    /// Pieces in `waiting`.
    count: usize,
    status: WorkStatus,
}

/// Units that a user has used and that time has not given back.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    used: u64,
    at: Instant,
}

/// A piece of work that waits.
#[derive(Debug)]
struct Large {
    session: Option<SessionId>,
    task: Task,
    units: u64,
}

/// Figures since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkStatus {
    /// Units that were charged.
    pub units: u64,
    /// SENDs and requests that were put off: the user's share was used up.
    pub put_off: u64,
    /// Pieces of large work that wait now.
    pub waiting: usize,
}

impl Work {
    pub(super) fn new(config: &ImConfig) -> Self {
        let rate = UNITS_PER_SECOND * config.work_share as u64 / 100;
        Self {
            rate,
            burst: rate * BURST_MS / 1000,
            shares: HashMap::new(),
            waiting: HashMap::new(),
            order: VecDeque::new(),
            count: 0,
            status: WorkStatus::default(),
        }
    }

    /// Charges a user.
    ///
    /// # Errors
    /// The share has no room: milliseconds until it has.
    fn charge(&mut self, now: Instant, user: UserId, units: u64) -> Result<(), u32> {
        let (rate, burst) = (self.rate, self.burst);
        let left = |share: &Share| share.left(now, rate);
        if self.shares.len() >= USERS_MAX && !self.shares.contains_key(&user) {
            self.shares.retain(|_, share| left(share) > 0);
        }
        let share = self.shares.entry(user).or_default();
        let used = left(share);
        // A piece that is larger than the burst needs a share without debts.
        let room = burst.max(units).saturating_sub(used);
        if room < units {
            self.status.put_off += 1;
            let wait_ms = (units - room).saturating_mul(1000).div_ceil(rate);
            return Err(u32::try_from(wait_ms).unwrap_or(u32::MAX));
        }
        self.status.units += units;
        *share = Share { used: used + units, at: now };
        Ok(())
    }

    fn push(&mut self, user: UserId, large: Large) {
        let queue = self.waiting.entry(user).or_default();
        if queue.is_empty() {
            self.order.push_back(user);
        }
        queue.push_back(large);
        self.count += 1;
    }

    /// Takes the next piece of the next user.
    fn pop(&mut self) -> Option<Large> {
        let user = self.order.pop_front()?;
        let queue = self.waiting.get_mut(&user)?;
        let large = queue.pop_front();
        if queue.is_empty() {
            self.waiting.remove(&user);
        } else {
            self.order.push_back(user);
        }
        self.count -= usize::from(large.is_some());
        large
    }

    pub(super) fn has_more(&self) -> bool {
        self.count > 0
    }

    pub(super) const fn status(&self) -> WorkStatus {
        WorkStatus { waiting: self.count, ..self.status }
    }
}

impl Share {
    /// Units that are used at `now`.
    fn left(&self, now: Instant, rate: u64) -> u64 {
        if self.used == 0 {
            return 0;
        }
        // After five hours at the most this saturates, far above what anybody can have used.
        let nanos = now.as_nanos().saturating_sub(self.at.as_nanos());
        self.used.saturating_sub(nanos.saturating_mul(rate) / 1_000_000_000)
    }
}

/// Does large work, as much as a turn has time for.
pub(super) fn do_large_work<S: Store>(im: &mut Im<S>) {
    let mut left = TURN_UNITS;
    while left > 0
        && let Some(Large { session, task, units }) = im.work.pop()
    {
        left = left.saturating_sub(units);
        session.into_iter().for_each(|session| im.queues.end(session));
        im.run(session, Task::Admitted(Box::new(task)));
        session.into_iter().for_each(|session| im.resume(session));
    }
}

/// Parts of the backend that decide whether a task is done now.
pub(super) struct Admission<'a, F> {
    pub(super) config: &'a ImConfig,
    pub(super) facts: &'a F,
    pub(super) work: &'a mut Work,
    pub(super) disk_floor: &'a mut DiskFloor,
    pub(super) signals: &'a mut Signals,
    pub(super) queues: &'a mut Queues,
    pub(super) out: &'a mut Outputs,
}

impl<F: Facts> Admission<'_, F> {
    /// Charges the author of a task, and puts large work into its queue. `None`: it waits, or was answered RETRY.
    pub(super) fn admit(&mut self, task: Task) -> Option<Task> {
        if !self.disk_floor.admit(&task) {
            self.wait_for_room(task);
            return None;
        }
        let (Task::Send(asked, ..) | Task::Request(asked, ..) | Task::Signal(asked, ..)) = &task else {
            return Some(match task {
                Task::Admitted(task) => *task,
                task => task,
            });
        };
        if asked.is_operator() {
            return Some(task);
        }
        let (now, session, user) = (asked.now.instant, asked.session, asked.origin.0);
        let units = cost(self.facts, self.config, &task);
        let is_large = units >= LARGE_UNITS && !matches!(task, Task::Send(..));
        let charged = if is_large && self.work.count >= WAITING_MAX {
            Err(super::BUSY_RETRY_MS)
        } else {
            self.work.charge(now, user, units)
        };
        if let Err(retry_after_ms) = charged {
            self.put_off(task, retry_after_ms);
            return None;
        }
        if is_large {
            session.into_iter().for_each(|session| self.queues.begin(session));
            self.work.push(user, Large { session, task, units });
            return None;
        }
        Some(task)
    }

    /// Answers that the disk has no room.
    fn wait_for_room(&mut self, task: Task) {
        let (reason, retry_after_ms) = (disk_floor::REASON, disk_floor::RETRY_MS);
        match task {
            Task::Send(_, _, reply) | Task::LateSend(_, _, reply) => {
                self.out.put_off_send(reply, reason, retry_after_ms);
            }
            Task::Request(_, _, reply) => self.out.put_off_req(reply, reason, retry_after_ms),
            Task::Admitted(task) => self.wait_for_room(*task),
            Task::Api(_, _, reply) => {
                let answer = ApiAnswer::new(Code::Retry, reason, retry_after_ms, ApiBody::Nothing);
                self.out.answer_api(reply, answer);
            }
            task => unreachable!("it stores little: {task:?}"),
        }
    }

    /// Answers that the author's share is used up.
    fn put_off(&mut self, task: Task, retry_after_ms: u32) {
        let reason = "your requests have used up your share of the backend's time (`im.work_share`)";
        match task {
            Task::Send(_, _, reply) => self.out.put_off_send(reply, reason, retry_after_ms),
            Task::Request(_, _, reply) => self.out.put_off_req(reply, reason, retry_after_ms),
            _ => self.signals.status.too_many += 1,
        }
    }
}

/// Estimates the units of a task whose facts are readable.
fn cost(facts: &impl Facts, config: &ImConfig, task: &Task) -> u64 {
    let cost = Cost { facts, config };
    match task {
        Task::Send(_, send, _) => cost.of_send(send),
        Task::Signal(_, Signal { conversation, .. }) => 5 + cost.members(conversation) / 16,
        Task::Request(_, request, _) => cost.of_request(request),
        _ => 0,
    }
}

struct Cost<'a, F> {
    facts: &'a F,
    config: &'a ImConfig,
}

impl<F: Facts> Cost<'_, F> {
    fn group(&self, id: &str) -> Option<ConversationId> {
        if id.starts_with("group:") { self.facts.find(id) } else { None }
    }

    /// Members of a group; 2 of a conversation of two.
    fn members(&self, id: &str) -> u64 {
        self.group(id).map_or(2, |group| self.facts.member_count(group) as u64)
    }

    /// Cost of giving something to the members: an inbox entry for each, or a fan-out.
    fn told(&self, id: &str) -> u64 {
        let members = self.members(id);
        if members > self.config.fanout_members_max as u64 { members / 8 } else { members * 2 }
    }

    fn of_send(&self, Send { target, payload, .. }: &Send) -> u64 {
        let told = match target {
            Some(send::Target::Conversation(id)) => self.told(id),
            _ => 4,
        };
        10 + told + payload.len() as u64 / 512
    }

    fn of_request(&self, request: &Request) -> u64 {
        let each = |count: usize, units: u64| count as u64 * units;
        20 + match request {
            Request::Pull(PullRequest { from, to, limit, .. }) => {
                let range = if *to == 0 { u64::MAX } else { to.saturating_sub(*from).saturating_add(1) };
                let most = self.config.pull_messages_max as u64;
                let wanted = if *limit == 0 { most } else { most.min((*limit).into()) };
                range.min(wanted)
            }
            Request::Conversations(_) => 400,
            Request::Relations(_) => 200,
            Request::Receipts(request) => self.members(&request.conversation) / 16,
            Request::Members(request) => self.members(&request.conversation) / 16,
            Request::Info(request) => self.members(&request.conversation) / 8,
            // Each member's row, list and inbox.
            Request::Dissolve(request) => self.members(&request.conversation) * 3,
            // Rows of memberships and relations, whose number is not known here.
            Request::DeleteAccount => 1000,
            Request::Recall(request) => self.told(&request.conversation),
            Request::Join(request) | Request::Leave(request) => self.told(&request.conversation),
            Request::Create(request) => each(request.members.len(), 2),
            Request::Change(request) => {
                each(request.add.len() + request.remove.len(), 2) + self.told(&request.conversation)
            }
            Request::Profiles(request) => each(request.users.len(), 5),
            Request::Presence(request) => each(request.users.len(), 4),
            Request::Relate(_)
            | Request::Read(_)
            | Request::SetProfile(_)
            | Request::Devices
            | Request::RemoveDevice(_)
            | Request::SetSettings(_)
            | Request::DeleteConversation(_)
            | Request::Settings => 0,
        }
    }
}

/// Signals of a second, by user and room.
#[derive(Debug)]
pub(super) struct Signals {
    second: u64,
    counts: HashMap<(UserId, String), u32>,
    status: SignalStatus,
}

/// Signals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignalStatus {
    /// Signals that went to their rooms.
    pub passed: u64,
    /// Dropped: larger than `im.signal_max`.
    pub too_large: u64,
    /// Dropped: above `im.signal_rate`, or the sender's share of time was used up.
    pub too_many: u64,
    /// Dropped: the sender may not speak there.
    pub refused: u64,
}

/// Users and rooms with signals in one second; of further ones signals are dropped.
const SIGNALING_MAX: usize = 262_144;

impl Default for Signals {
    fn default() -> Self {
        Self { second: 0, counts: HashMap::new(), status: SignalStatus::default() }
    }
}

impl Signals {
    /// Counts a signal. False: it is dropped.
    pub(super) fn admit(&mut self, config: &ImConfig, now: Now, user: UserId, signal: &Signal) -> bool {
        if signal.payload.len() > config.signal_max {
            self.status.too_large += 1;
            return false;
        }
        let second = now.instant.as_nanos() / 1_000_000_000;
        if second != self.second {
            (self.second, self.counts) = (second, HashMap::new());
        }
        let is_known = self.counts.len() < SIGNALING_MAX;
        let count = self.counts.entry((user, signal.conversation.clone())).or_default();
        *count += 1;
        if !is_known || *count as usize > config.signal_rate {
            self.status.too_many += 1;
            return false;
        }
        true
    }

    pub(super) const fn on_judged(&mut self, is_passed: bool) {
        if is_passed {
            self.status.passed += 1;
        } else {
            self.status.refused += 1;
        }
    }

    pub(super) const fn status(&self) -> SignalStatus {
        self.status
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::time::Duration;

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn a_share_is_used_up_and_comes_back_with_time() {
        let mut work = Work::new(&ImConfig { work_share: 20, ..ImConfig::default() });
        let (eve, bob) = (UserId::of(1), UserId::of(2));
        assert_eq!([50_000, 1].map(|units| work.charge(at(9), eve, units)), [Ok(()), Err(1)]);
        assert_eq!(work.charge(at(9), bob, 50_000), Ok(()), "another user");
        assert_eq!(work.charge(at(9), eve, 10_000), Err(50), "until there is room");
        assert_eq!(work.charge(at(59), eve, 10_000), Ok(()));
        assert_eq!(work.charge(at(59), eve, 1), Err(1));
        assert_eq!(work.charge(at(400), eve, 80_000), Ok(()), "more than the burst, without debts");
        let mut done = 0;
        for ms in 1000..11_000 {
            while work.charge(at(ms), eve, 645).is_ok() {
                done += 645;
            }
        }
        assert!(done <= 2_000_000 + 50_000, "{done} units in 10 s are more than 20% of the time");
        assert_eq!(work.status().units, done + 50_000 + 50_000 + 10_000 + 80_000);
    }
}
