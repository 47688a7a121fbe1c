//! Online sessions: all of them, and per user a list of those that are pushed to.

use super::names::Names;
use super::refusal::{NO_SESSION, Refused};
use super::store::{ConversationId, DeviceNumber, NOBODY, Origin, Ticket, UserId};
use super::suspects::Caution;
use super::tasks::Asked;
use super::window::Window;
use crate::growth::make_room;
use crate::server::{Kick, Now, SessionId};
use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};
use moorline_proto::message::backend::ConnUp;
use moorline_proto::time::Instant;
use std::hash::BuildHasher as _;

/// One login, as the link announced it.
#[allow(clippy::struct_excessive_bools)] // each is a list that names the session, or does not
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    /// The user; [`NOBODY`]: the login is not complete, or it was refused and is being kicked.
    user: UserId,
    /// The user's device.
    device: DeviceNumber,
    /// Names of the user and the device; empty before the login is complete.
    pub(super) names: Names,
    pub(super) platform: u32,
    pub(super) login_version: u64,
    /// Time of the token's issue, in Unix seconds; 0: not known.
    pub(super) issued_s: u64,
    pub(super) window: Window,
    /// Position of the newest entry of the user's stream that is known here.
    pub(super) end: u64,
    /// Large groups of which the device is still to be told.
    pub(super) pending: PendingNotifies,
    /// The open read of the device's backlog, or of the user's stream. `None`: no read is open.
    pub(super) reading: Option<Ticket>,
    pub(super) state: LoginState,
    /// Slot of the next session in the list of the same user; [`LAST`]: there is none.
    next: u32,
    /// The session is in its user's list: it is pushed to.
    pub(super) is_listed: bool,
    /// Kick that ended the login. Its gateway may not have heard of it.
    pub(super) kicked: Option<&'static Kick>,
    /// Way in which the device is pushed its next entry.
    pub(super) caution: Caution,
    /// [`Self::is_up_to_date`] when the rooms of groups were last told of the session.
    pub(super) was_up_to_date: bool,
    is_acked: bool,
    is_stalled: bool,
}

/// End of a user's list of sessions.
const LAST: u32 = u32::MAX;

/// State of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LoginState {
    /// The store has not been asked, or it refused.
    Begun,
    /// The store registers the device.
    LoggingIn,
    /// The backlog of the device is being read.
    Loading,
    /// The device gets what comes.
    Ready,
}

impl Session {
    pub(super) fn new(id: SessionId, login: &ConnUp) -> Self {
        Self {
            id,
            user: NOBODY,
            device: DeviceNumber(0),
            names: Names::default(),
            platform: u32::try_from(login.platform).unwrap_or(0),
            login_version: login.login_version,
            issued_s: login.issued_at,
            window: Window::new(0),
            end: 0,
            pending: PendingNotifies::default(),
            reading: None,
            state: LoginState::Begun,
            next: LAST,
            is_listed: false,
            kicked: None,
            caution: Caution::None,
            was_up_to_date: false,
            is_acked: false,
            is_stalled: false,
        }
    }

    /// Returns the user and the device. `None`: the login is not complete, or it was refused and is being kicked.
    pub(super) fn owner(&self) -> Option<Origin> {
        (self.user != NOBODY).then_some((self.user, self.device))
    }

    /// Completes the login.
    pub(super) fn set_owner(&mut self, (user, device): Origin, names: Names) {
        (self.user, self.device, self.names) = (user, device, names);
    }

    /// Entries that may be in flight, of a limit of `outstanding`.
    pub(super) fn pushes_max(&self, outstanding: usize) -> usize {
        if self.caution == Caution::None { outstanding } else { 1 }
    }

    /// True if messages of large groups go to the device directly, instead of behind its backlog.
    pub(super) fn is_up_to_date(&self) -> bool {
        self.state == LoginState::Ready && self.window.pushed() >= self.end
    }
}

/// Large groups of which a device is to be told, each with the first seq that the device may miss: after the entries of
/// its inbox, and before later messages of the group, since a client that knows nothing of a conversation begins with the
/// first message that it gets [P-6.7].
#[derive(Debug, Default)]
pub(super) struct PendingNotifies {
    /// `None`: the device misses nothing, as nearly all at any time.
    groups: Option<Box<Groups>>,
}

#[derive(Debug, Default)]
struct Groups {
    all: Vec<PendingNotify>,
    has_begun: bool,
    /// A group was added since the notifications began.
    has_more: bool,
}

#[derive(Debug)]
struct PendingNotify {
    conversation: ConversationId,
    first: u64,
    /// True while the notification is on its way.
    is_taken: bool,
}

impl PendingNotifies {
    /// Adds what the device's backlog names.
    pub(super) fn load(&mut self, groups: Vec<(ConversationId, u64)>) {
        for (conversation, first) in groups {
            let groups = &mut self.groups.get_or_insert_default().all;
            let known = groups.iter_mut().find(|known| known.conversation == conversation);
            match known {
                Some(known) => known.first = known.first.min(first),
                None => groups.push(PendingNotify { conversation, first, is_taken: false }),
            }
        }
    }

    /// Begins notifications: the inbox is delivered. True: there may be groups that no earlier notification leads to.
    pub(super) fn begin(&mut self) -> bool {
        let Some(groups) = &mut self.groups else { return false };
        let is_new = !std::mem::replace(&mut groups.has_begun, true);
        std::mem::take(&mut groups.has_more) || is_new
    }

    /// Adds a group, while the inbox holds entries that come before it. A group that is there begins no later than `first`.
    pub(super) fn add(&mut self, conversation: ConversationId, first: u64) {
        let all = self.groups.iter_mut().flat_map(|groups| &mut groups.all);
        if let Some(known) = all.into_iter().find(|known| known.conversation == conversation) {
            known.first = known.first.min(first);
        } else {
            let groups = self.groups.get_or_insert_default();
            groups.all.push(PendingNotify { conversation, first, is_taken: false });
            groups.has_more = true;
        }
    }

    /// The next group to notify of; it stays here until [`Self::take_before`].
    pub(super) fn next(&mut self) -> Option<ConversationId> {
        let groups = self.groups.as_mut().filter(|groups| groups.has_begun)?;
        let next = groups.all.iter_mut().rev().find(|group| !group.is_taken)?;
        next.is_taken = true;
        Some(next.conversation)
    }

    pub(super) fn has(&self, conversation: ConversationId) -> bool {
        self.groups.iter().flat_map(|groups| &groups.all).any(|group| group.conversation == conversation)
    }

    /// Takes what is due of this conversation, if it begins before `seq`.
    pub(super) fn take_before(&mut self, conversation: ConversationId, seq: u64) -> Option<u64> {
        let is_it = |group: &PendingNotify| group.conversation == conversation && group.first < seq;
        let groups = &mut self.groups.as_mut()?.all;
        let taken = groups.swap_remove(groups.iter().position(is_it)?);
        if groups.is_empty() {
            self.groups = None;
        }
        Some(taken.first)
    }
}

#[derive(Debug, Default)]
pub(super) struct Sessions {
    /// By slot.
    all: Vec<Option<Session>>,
    count: usize,
    /// Slot of the first session of each user's list, found by the user.
    online: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// Whose acked position moved in this turn; each once.
    acked: Vec<SessionId>,
    /// Whose window is stalled; each once.
    stalled: Vec<SessionId>,
}

impl Sessions {
    pub(super) fn get(&self, id: SessionId) -> Option<&Session> {
        self.all.get(id.slot())?.as_ref().filter(|session| session.id == id)
    }

    /// The session in a slot.
    fn at(&self, slot: u32) -> Option<&Session> {
        self.all.get(slot as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.all.get_mut(id.slot())?.as_mut().filter(|session| session.id == id)
    }

    /// Returns the user and the device of a session. `None`: the session is unknown, or its login is not complete.
    pub(super) fn owner(&self, id: SessionId) -> Option<Origin> {
        self.get(id)?.owner()
    }

    /// Returns the author of an UP.
    ///
    /// # Errors
    /// The login is not complete, or it was refused.
    pub(super) fn author(&self, now: Now, id: SessionId) -> Result<Asked, Refused> {
        let session = self.get(id).filter(|session| session.kicked.is_none()).ok_or(NO_SESSION)?;
        let origin = session.owner().ok_or(NO_SESSION)?;
        Ok(Asked { now, session: Some(id), origin, names: session.names.clone(), is_repeat: false })
    }

    /// Returns the platforms on which a user is online, in order.
    pub(super) fn platforms(&self, user: UserId) -> Vec<u32> {
        let mut platforms: Vec<_> = self.of(user).map(|session| session.platform).collect();
        platforms.sort_unstable();
        platforms.dedup();
        platforms
    }

    /// Number of sessions.
    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// Sessions in `slots` slots from `first` on that are pushed to; true if these were the last.
    pub(super) fn slice(&self, first: usize, slots: usize) -> (Vec<SessionId>, bool) {
        let end = self.all.len().min(first + slots);
        let listed = self.all[first.min(end)..end].iter().flatten().filter(|session| session.is_listed);
        (listed.map(|session| session.id).collect(), end == self.all.len())
    }

    pub(super) fn insert(&mut self, session: Session) {
        let slot = session.id.slot();
        while self.all.len() <= slot {
            make_room(&mut self.all);
            self.all.push(None);
        }
        if let Some(before) = self.all[slot].as_ref().map(|session| session.id) {
            self.unlist(before);
        }
        if self.all[slot].replace(session).is_none() {
            self.count += 1;
        }
    }

    pub(super) fn remove(&mut self, id: SessionId) {
        self.unlist(id);
        if self.get(id).is_some() {
            self.all[id.slot()] = None;
            self.count -= 1;
        }
    }

    /// The sessions of a user that are pushed to.
    pub(super) fn of(&self, user: UserId) -> impl Iterator<Item = &Session> + '_ {
        let is_first = |slot: &u32| user_at(&self.all, *slot) == user;
        let first = self.online.find(self.hasher.hash_one(user), is_first).copied().unwrap_or(LAST);
        std::iter::successors(self.at(first), |session| self.at(session.next))
    }

    /// Puts a session into its user's list.
    pub(super) fn list(&mut self, id: SessionId) {
        let Some(session) = self.get_mut(id) else { return };
        let (Some((user, _)), false) = (session.owner(), session.is_listed) else { return };
        session.is_listed = true;
        let Self { all, online, hasher, .. } = self;
        let is_first = |slot: &u32| user_at(all, *slot) == user;
        let hash = |slot: &u32| hasher.hash_one(user_at(all, *slot));
        let next = match online.entry(hasher.hash_one(user), is_first, hash) {
            Entry::Occupied(mut first) => std::mem::replace(first.get_mut(), id.slot),
            Entry::Vacant(place) => {
                place.insert(id.slot);
                LAST
            }
        };
        if let Some(session) = self.get_mut(id) {
            session.next = next;
        }
    }

    /// Takes it out again.
    pub(super) fn unlist(&mut self, id: SessionId) {
        let Some(session) = self.get_mut(id) else { return };
        let (Some((user, _)), true) = (session.owner(), session.is_listed) else { return };
        session.is_listed = false;
        let next = std::mem::replace(&mut session.next, LAST);
        let before = self.of(user).find(|other| other.next == id.slot).map(|other| other.id);
        if let Some(before) = before.and_then(|before| self.get_mut(before)) {
            before.next = next;
        } else {
            let first = self.online.find_entry(self.hasher.hash_one(user), |first| *first == id.slot);
            match (first, next) {
                (Ok(first), LAST) => drop(first.remove()),
                (Ok(mut first), next) => *first.get_mut() = next,
                (Err(_), _) => {}
            }
        }
    }

    /// Notes that the acked position moved.
    pub(super) fn on_acked(&mut self, id: SessionId) {
        if let Some(session) = self.get_mut(id)
            && !session.is_acked
        {
            session.is_acked = true;
            self.acked.push(id);
        }
    }

    pub(super) fn take_acked(&mut self) -> Vec<SessionId> {
        let acked = std::mem::take(&mut self.acked);
        for id in &acked {
            if let Some(session) = self.get_mut(*id) {
                session.is_acked = false;
            }
        }
        acked
    }

    /// Notes that the window is stalled.
    pub(super) fn on_stalled(&mut self, id: SessionId) {
        if let Some(session) = self.get_mut(id)
            && !session.is_stalled
        {
            session.is_stalled = true;
            self.stalled.push(id);
        }
    }

    /// The stalled sessions that may be tried again.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<SessionId> {
        let mut due = Vec::new();
        let mut stalled = std::mem::take(&mut self.stalled);
        stalled.retain(|id| {
            let Some(session) = self.get_mut(*id) else { return false };
            if session.window.try_retry(now) {
                due.push(*id);
            }
            session.is_stalled = session.window.is_stalled();
            session.is_stalled
        });
        self.stalled = stalled;
        due
    }
}

/// The user of the session in a slot; [`NOBODY`]: there is no session, or its login is not complete.
fn user_at(all: &[Option<Session>], slot: u32) -> UserId {
    all.get(slot as usize).and_then(Option::as_ref).map_or(NOBODY, |session| session.user)
}
