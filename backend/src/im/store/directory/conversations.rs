//! Conversations: who is in them, how far they go, and how their messages are fanned out.

use crate::im::store::{ConversationId, GroupSettings, Member, UserId};
use hashbrown::HashMap;
use std::collections::BTreeMap;

/// An hour, in milliseconds.
const HOUR_MS: u64 = 3_600_000;

#[derive(Debug)]
pub(in crate::im::store) enum Kind {
    OneToOne(UserId, UserId),
    Group { name: Box<str>, creator: UserId },
}

/// Events of one conversation that are kept. A device that is further behind is told to ask for everything again.
pub(in crate::im::store) const EVENTS_MAX: u64 = 64;

/// When messages are no longer put into every member's inbox.
#[derive(Clone, Copy, Debug)]
pub(in crate::im::store) struct FanoutLimits {
    /// With more members than this.
    pub(in crate::im::store) members: usize,
    /// With more inbox entries in an hour.
    pub(in crate::im::store) entries_per_hour: u64,
}

#[derive(Debug)]
pub(in crate::im::store) struct Conversation {
    pub(in crate::im::store) kind: Kind,
    /// By user.
    pub(in crate::im::store) members: Vec<Member>,
    /// Differs after each join and leave in this life of the backend.
    pub(in crate::im::store) members_version: u32,
    /// The last seq that was given.
    pub(in crate::im::store) numbered: u64,
    /// The last seq that readers see.
    pub(in crate::im::store) durable: u64,
    /// Few have any.
    pub(in crate::im::store) settings: Option<Box<GroupSettings>>,
    /// Messages are read from here by cursor, and put into no inbox.
    pub(in crate::im::store) is_read_fanout: bool,
    /// The first and the last seq that was put into no inbox; 0: none ever.
    pub(in crate::im::store) unstreamed_from: u64,
    pub(in crate::im::store) unstreamed: u64,
    /// The last number in the log of events; the newest [`EVENTS_MAX`] are kept.
    pub(in crate::im::store) events: u64,
    /// The newest event that changes nothing but settings; it takes the place of the one before. 0: none.
    pub(in crate::im::store) settings_event: u64,
    /// The first seq is the one after this; 0 but in a store that goes on without what it lost, and in a group whose name
    /// another group had before.
    pub(in crate::im::store) began_after: u64,
    /// Seqs up to this one hold no message for anybody; 0: none are gone.
    pub(in crate::im::store) gone: u64,
    /// Seqs up to this one are removed from the engine; at most `gone`.
    pub(in crate::im::store) removed: u64,
    /// Seconds for which messages are kept; 0: as `im.retention` says; `KEEP_FOR_EVER`.
    pub(in crate::im::store) keep_s: u32,
    /// True once the group is gone. Its name may be another group's.
    pub(in crate::im::store) is_dissolved: bool,
    /// Seqs that do not count as unread: recalls, what they took back, and seqs without a message. Ranges, by their
    /// first; they do not overlap.
    uncounted: BTreeMap<u64, u64>,
    /// Messages of the hour `hour`, and of the one before.
    hour: u64,
    messages: (u64, u64),
}

impl Conversation {
    pub(in crate::im::store) fn member(&self, user: UserId) -> Option<&Member> {
        let index = self.members.binary_search_by_key(&user, |member| member.user).ok()?;
        Some(&self.members[index])
    }

    pub(in crate::im::store) fn member_mut(&mut self, user: UserId) -> Option<&mut Member> {
        let index = self.members.binary_search_by_key(&user, |member| member.user).ok()?;
        Some(&mut self.members[index])
    }

    pub(super) fn insert(&mut self, member: Member) {
        if let Err(index) = self.members.binary_search_by_key(&member.user, |member| member.user) {
            self.members.insert(index, member);
            self.members_version = self.members_version.wrapping_add(1);
        }
    }

    /// False: the user is not a member.
    pub(super) fn remove(&mut self, user: UserId) -> bool {
        self.members_version = self.members_version.wrapping_add(1);
        let index = self.members.binary_search_by_key(&user, |member| member.user);
        index.map(|index| self.members.remove(index)).is_ok()
    }

    pub(in crate::im::store) fn is_group(&self) -> bool {
        matches!(self.kind, Kind::Group { .. })
    }

    pub(in crate::im::store) fn creator(&self) -> Option<UserId> {
        match &self.kind {
            Kind::OneToOne(..) => None,
            Kind::Group { creator, .. } => Some(*creator),
        }
    }

    /// True if nobody joins without an invitation.
    pub(in crate::im::store) fn is_by_invitation(&self) -> bool {
        self.settings.as_ref().is_some_and(|settings| settings.by_invitation)
    }

    /// True if only the owner and administrators speak.
    pub(in crate::im::store) fn is_silent(&self) -> bool {
        self.settings.as_ref().is_some_and(|settings| settings.is_silent)
    }

    /// Ends a group whose members were removed.
    pub(in crate::im::store) fn dissolve(&mut self) {
        self.is_dissolved = true;
        self.gone = self.numbered;
        self.settings = None;
    }

    pub(in crate::im::store) fn uncount(&mut self, from: u64, to: u64) {
        self.uncounted.insert(from, to);
    }

    /// Forgets ranges that end at `to` or before. Returns their first seqs.
    pub(in crate::im::store) fn forget_uncounted(&mut self, to: u64) -> Vec<u64> {
        let mut forgotten = Vec::new();
        while let Some(range) = self.uncounted.first_entry()
            && *range.get() <= to
        {
            forgotten.push(range.remove_entry().0);
        }
        forgotten
    }

    /// Makes another user the creator of a group.
    pub(super) fn set_creator(&mut self, user: UserId) {
        if let Kind::Group { creator, .. } = &mut self.kind {
            *creator = user;
        }
    }

    /// Ranges that do not count as unread: first and last seq, in order.
    pub(in crate::im::store) fn uncounted(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.uncounted.iter().map(|(first, last)| (*first, *last))
    }

    /// End of the range that begins there.
    pub(in crate::im::store) fn uncounted_from(&self, from: u64) -> Option<u64> {
        self.uncounted.get(&from).copied()
    }

    pub(in crate::im::store) fn uncounted_in(&self, from: u64, to: u64) -> u64 {
        let before =
            self.uncounted.range(..from).next_back().map_or(0, |(_, end)| (end + 1).saturating_sub(from));
        let inside =
            self.uncounted.range(from..=to).map(|(first, end)| end.min(&to) + 1 - first).sum::<u64>();
        before.min(to + 1 - from) + inside
    }

    /// Goes on behind `seq`, whatever was there before: what lies between holds no message. True: it was not there yet.
    pub(in crate::im::store) fn skip_to(&mut self, seq: u64) -> bool {
        let first = self.numbered + 1;
        if first > seq {
            return false;
        }
        self.uncount(first, seq);
        (self.numbered, self.durable) = (seq, seq);
        if self.is_read_fanout {
            self.unstreamed = seq;
        }
        true
    }

    /// Counts a message at `now_ms` and decides how it is fanned out. True: that has changed.
    ///
    /// Back to inboxes only well below the limits, so that nobody stands on the edge.
    pub(in crate::im::store) fn judge_fanout(&mut self, now_ms: u64, limits: FanoutLimits) -> bool {
        let hour = now_ms / HOUR_MS;
        if hour != self.hour {
            self.messages = (0, if hour == self.hour + 1 { self.messages.0 } else { 0 });
            self.hour = hour;
        }
        self.messages.0 += 1;
        if !self.is_group() {
            return false;
        }
        let members = self.members.len() as u64;
        let entries = members * self.messages.0.max(self.messages.1);
        let (members_max, entries_max) = (limits.members as u64, limits.entries_per_hour);
        let before = self.is_read_fanout;
        self.is_read_fanout = if before {
            members > members_max - members_max / 5 || entries > entries_max / 2
        } else {
            members > members_max || entries > entries_max
        };
        self.is_read_fanout != before
    }
}

#[derive(Debug)]
pub(in crate::im::store) struct Conversations {
    all: Vec<Conversation>,
    one_to_one: HashMap<(UserId, UserId), ConversationId>,
    groups: HashMap<Box<str>, ConversationId>,
    pub(in crate::im::store) capacity: usize,
    /// New ones begin after this seq; see [`Conversation::began_after`].
    pub(in crate::im::store) begin_after: u64,
}

impl Conversations {
    pub(super) fn new(capacity: usize) -> Self {
        let (one_to_one, groups) = (HashMap::new(), HashMap::new());
        Self { all: Vec::new(), one_to_one, groups, capacity, begin_after: 0 }
    }

    pub(in crate::im::store) fn len(&self) -> usize {
        self.all.len()
    }

    /// In the order of their numbers.
    pub(in crate::im::store) fn all(&self) -> impl Iterator<Item = ConversationId> + use<> {
        (0..u32::try_from(self.all.len()).expect("conversations_max fits u32")).map(ConversationId::of)
    }

    pub(in crate::im::store) fn get(&self, id: ConversationId) -> &Conversation {
        &self.all[id.index() as usize]
    }

    pub(in crate::im::store) fn get_mut(&mut self, id: ConversationId) -> &mut Conversation {
        &mut self.all[id.index() as usize]
    }

    pub(in crate::im::store) fn one_to_one(&self, a: UserId, b: UserId) -> Option<ConversationId> {
        self.one_to_one.get(&(a.min(b), a.max(b))).copied()
    }

    /// The group that has this name now.
    pub(in crate::im::store) fn group(&self, name: &str) -> Option<ConversationId> {
        self.last_group(name).filter(|group| !self.get(*group).is_dissolved)
    }

    /// The last group of this name, which may be dissolved.
    pub(in crate::im::store) fn last_group(&self, name: &str) -> Option<ConversationId> {
        self.groups.get(name).copied()
    }

    /// Without members. `None`: `conversations_max` are known.
    pub(in crate::im::store) fn open(&mut self, kind: Kind) -> Option<ConversationId> {
        if self.all.len() >= self.capacity {
            return None;
        }
        let id = ConversationId::of(u32::try_from(self.all.len()).expect("conversations_max fits u32"));
        // Clients have seen the seqs of a dissolved group.
        let before = match &kind {
            Kind::Group { name, .. } => self.last_group(name).map_or(0, |before| self.get(before).numbered),
            Kind::OneToOne(..) => 0,
        };
        let began_after = self.begin_after.max(before);
        match &kind {
            Kind::OneToOne(a, b) => _ = self.one_to_one.insert((*a, *b), id),
            Kind::Group { name, .. } => _ = self.groups.insert(name.clone(), id),
        }
        self.all.push(Conversation {
            kind,
            members: Vec::new(),
            members_version: 0,
            numbered: began_after,
            durable: began_after,
            settings: None,
            is_read_fanout: false,
            unstreamed_from: 0,
            unstreamed: 0,
            events: 0,
            settings_event: 0,
            began_after,
            gone: 0,
            removed: 0,
            keep_s: 0,
            is_dissolved: false,
            uncounted: BTreeMap::new(),
            hour: 0,
            messages: (0, 0),
        });
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::im::store::Role;

    #[test]
    fn what_does_not_count_is_counted() {
        let mut all = Conversations::new(9);
        let id = all.open(Kind::OneToOne(UserId::of(0), UserId::of(1))).expect("room");
        let place = all.get_mut(id);
        place.numbered = 9;
        place.uncount(4, 4);
        assert!(place.skip_to(20) && !place.skip_to(20));
        let counts = [(1, 9), (1, 20), (4, 4), (5, 9), (8, 12), (12, 14), (15, 30)];
        let counts = counts.map(|(from, to)| place.uncounted_in(from, to));
        assert_eq!(counts, [1, 12, 1, 0, 3, 3, 6]);
    }

    #[test]
    fn the_fan_out_changes_with_members_and_with_messages_and_not_on_the_edge() {
        let mut all = Conversations::new(9);
        let id = all.open(Kind::Group { name: "g".into(), creator: UserId::of(0) }).expect("room");
        let group = all.get_mut(id);
        let limits = FanoutLimits { members: 10, entries_per_hour: 100 };
        (0..10).for_each(|user| group.insert(Member::new(UserId::of(user), Role::Member, 1)));
        let mut at = 50 * HOUR_MS;
        assert_eq!((0..10).map(|_| group.judge_fanout(at, limits)).filter(|it| *it).count(), 0);
        assert!(group.judge_fanout(at, limits) && group.is_read_fanout, "110 entries in this hour");
        at += HOUR_MS;
        assert!(!group.judge_fanout(at, limits), "the hour before counts too");
        at += HOUR_MS;
        assert!(!group.judge_fanout(at, limits) && group.is_read_fanout, "ten members are near to the limit");
        group.remove(UserId::of(0));
        group.remove(UserId::of(1));
        assert!(group.judge_fanout(at, limits) && !group.is_read_fanout);
        (20..23).for_each(|user| group.insert(Member::new(UserId::of(user), Role::Member, 1)));
        assert!(group.judge_fanout(at, limits) && group.is_read_fanout, "eleven members");
    }
}
