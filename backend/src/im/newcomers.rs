//! SENDs to names that nobody has yet: they wait a moment for a login that is on its way.
//!
//! A client is welcomed by its gateway before the backend has read of its login. bob logs in for the first time and tells
//! alice; her SEND to bob may come over another link before bob's login does. It waits here, and goes on when bob's login
//! comes, or is refused with NOT_FOUND after a second. The UPs behind it wait too, so that alice's order holds.

use super::Im;
use super::output::Reply;
use super::store::Store;
use super::tasks::{Asked, Task};
use moorline_proto::message::client::Send;
use moorline_proto::time::{Duration, Instant};

/// Longest wait for a login.
const WAIT: Duration = Duration::from_secs(1);
/// SENDs that wait; further ones are refused at once. A session has at most one.
const WAITING_MAX: usize = 1024;

/// A SEND that waits.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) asked: Asked,
    pub(super) send: Send,
    pub(super) reply: Reply,
}

/// Goes on with SENDs that waited for a login: it has come, or the wait is over.
pub(super) fn go_on<S: Store>(im: &mut Im<S>, waiters: Vec<Waiter>) {
    for Waiter { asked, send, reply } in waiters {
        let session = asked.session;
        session.into_iter().for_each(|session| im.queues.end(session));
        im.run(session, Task::LateSend(asked, send, reply));
        session.into_iter().for_each(|session| im.resume(session));
    }
}

/// SENDs that wait for a login, oldest first.
#[derive(Debug, Default)]
pub(super) struct Newcomers(Vec<(Instant, String, Waiter)>);

impl Newcomers {
    pub(super) const fn has_room(&self) -> bool {
        self.0.len() < WAITING_MAX
    }

    /// Lets a SEND wait for the login of `uid`.
    pub(super) fn wait(&mut self, uid: String, waiter: Waiter) {
        self.0.push((waiter.asked.now.instant + WAIT, uid, waiter));
    }

    /// Takes the SENDs to a user who has logged in.
    pub(super) fn take(&mut self, uid: &str) -> Vec<Waiter> {
        self.0.extract_if(.., |(_, wanted, _)| wanted == uid).map(|(.., waiter)| waiter).collect()
    }

    /// Takes the SENDs whose wait is over.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Waiter> {
        self.0.extract_if(.., |(until, ..)| *until <= now).map(|(.., waiter)| waiter).collect()
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
