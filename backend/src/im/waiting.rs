//! Operations that wait for the store: commands and prefetches without a completion, and UPs behind them.
//!
//! carol sends a SEND and then asks for her devices. The SEND names a user that a store behind a network has to look up:
//! its task waits in [`Open`] under a ticket, and the request in the queue of carol's session, so that both take effect in
//! her order.

use super::api::ApiReply;
use super::output::Reply;
use super::request::{AfterRead, Then};
use super::store::{LoginRule, Origin, Ticket, UserId};
use super::tasks::{Asked, Task};
use crate::server::{Now, SessionId, Up};
use hashbrown::HashMap;
use std::collections::VecDeque;

/// UPs of one session that wait for each other. The credit of a link is the limit in practice.
const QUEUE_MAX: usize = 4096;

/// Waiter for a write that becomes durable.
#[derive(Debug)]
pub(super) enum Waiter {
    /// The answer to a SEND or a request of a user, on one of the user's devices.
    Request(Reply, Origin, Then),
    /// The answer to an API call that tells this many users something.
    Told(ApiReply, usize),
    /// Nothing. Users whom this user has invited are told.
    Invited(Origin),
    /// The answer to an API call that changes the logins of a user, and the part of the rule that is new.
    Ruled(ApiReply, UserId, LoginRule),
    /// Nothing. A sweep has gone on.
    Sweep,
    /// Nothing. The ack of this session is given again if the store is busy.
    Ack(SessionId),
    /// No waiter.
    Nobody,
}

/// Purpose of a completion.
#[derive(Debug)]
pub(super) enum Waiting {
    /// A batch: one waiter for each write.
    Commit(Vec<Waiter>),
    /// A prefetch: the task, and the session whose queue waits for the task.
    Facts(Option<SessionId>, Box<Task>),
    /// A read for a request.
    Request(Box<(Asked, Reply, AfterRead)>),
    /// The login of a session, which began at this time.
    Login(SessionId, Now),
    /// The backlog of a session's device.
    Backlog(SessionId),
    /// The stream of a session's user.
    Stream(SessionId),
    /// The login of a webhook, or a read for it.
    Webhook(usize),
}

/// Commands and prefetches that the store has not completed.
#[derive(Debug)]
pub(super) struct Open {
    by_ticket: HashMap<Ticket, Waiting>,
    last: Ticket,
    commits: usize,
}

impl Default for Open {
    fn default() -> Self {
        Self { by_ticket: HashMap::new(), last: Ticket::FIRST, commits: 0 }
    }
}

impl Open {
    pub(super) fn next_ticket(&mut self) -> Ticket {
        self.last = self.last.next();
        self.last
    }

    pub(super) fn insert(&mut self, ticket: Ticket, waiting: Waiting) {
        self.commits += usize::from(matches!(waiting, Waiting::Commit(_)));
        self.by_ticket.insert(ticket, waiting);
    }

    /// Takes what a completion is for.
    pub(super) fn take(&mut self, ticket: Ticket) -> Option<Waiting> {
        let waiting = self.by_ticket.remove(&ticket)?;
        self.commits -= usize::from(matches!(waiting, Waiting::Commit(_)));
        Some(waiting)
    }

    /// Number of batches that are not durable yet.
    pub(super) const fn commits(&self) -> usize {
        self.commits
    }

    /// True if anything but a batch is open.
    pub(super) fn has_reads(&self) -> bool {
        self.by_ticket.len() > self.commits
    }

    /// True if nothing is open.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_ticket.is_empty()
    }
}

/// UPs of sessions that wait for a completion, in the order of each session.
#[derive(Debug, Default)]
pub(super) struct Queues(HashMap<SessionId, Queue>);

#[derive(Debug, Default)]
struct Queue {
    /// An operation of the session waits for a completion.
    is_held: bool,
    ups: VecDeque<(Now, Up)>,
}

impl Queues {
    pub(super) fn is_waiting(&self, session: SessionId) -> bool {
        !self.0.is_empty() && self.0.contains_key(&session)
    }

    /// Holds the UPs of a session until [`Self::end`].
    pub(super) fn begin(&mut self, session: SessionId) {
        self.0.entry(session).or_default().is_held = true;
    }

    /// Ends the wait of a session; [`Self::next`] gives its UPs.
    pub(super) fn end(&mut self, session: SessionId) {
        if let Some(queue) = self.0.get_mut(&session) {
            queue.is_held = false;
        }
    }

    /// Puts an UP behind what the session waits for.
    ///
    /// # Errors
    /// The UP: the queue is full.
    pub(super) fn push(&mut self, now: Now, up: Up) -> Result<(), Up> {
        let queue = &mut self.0.entry(up.session).or_default().ups;
        if queue.len() >= QUEUE_MAX {
            return Err(up);
        }
        queue.push_back((now, up));
        Ok(())
    }

    /// Takes the next UP of a session. `None`: an operation waits again, or nothing is left.
    pub(super) fn next(&mut self, session: SessionId) -> Option<(Now, Up)> {
        let queue = self.0.get_mut(&session).filter(|queue| !queue.is_held)?;
        let next = queue.ups.pop_front();
        if next.is_none() {
            self.0.remove(&session);
        }
        next
    }

    /// True if no session waits.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use moorline_proto::frame::Command;

    fn up(session: SessionId, seq: u32) -> Up {
        Up { session, command: Command::Send, seq, dup: false, body: Bytes::new(), reply: None }
    }

    #[test]
    fn a_session_waits_until_its_queue_is_empty() {
        let (mut queues, session, now) = (Queues::default(), SessionId::new(1, 1), Now::default());
        assert!(!queues.is_waiting(session) && queues.next(session).is_none());
        queues.begin(session);
        (1..=2).for_each(|seq| queues.push(now, up(session, seq)).expect("room"));
        assert!(queues.is_waiting(session) && !queues.is_waiting(SessionId::new(2, 1)));
        assert!(queues.next(session).is_none(), "held");
        queues.end(session);
        let seqs = [(); 3].map(|()| queues.next(session).map(|(_, up)| up.seq));
        assert_eq!(seqs, [Some(1), Some(2), None]);
        assert!(!queues.is_waiting(session));
    }

    #[test]
    fn a_queue_is_bounded() {
        let (mut queues, session, now) = (Queues::default(), SessionId::new(1, 1), Now::default());
        (0..4096).for_each(|seq| queues.push(now, up(session, seq)).expect("room"));
        assert!(queues.push(now, up(session, 9)).is_err());
    }
}
