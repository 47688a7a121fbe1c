//! One announcement: the logins of some slots, gathered from every shard for one link. Pure.

use super::counters::Count;
use super::{LinkIndex, Moves, Sides, Slot, SlotSet, Slots, Split};
use crate::messages::Downlink;
use crate::snapshot::{AnnouncementRecord, LoginRecord};
use moorline_proto::ids::{Pin, ShardId};
use moorline_proto::link::Kind;
use moorline_proto::message::backend::{Announce, ConnUp};
use std::collections::VecDeque;

/// Logins in one ANNOUNCE frame.
const ANNOUNCE_LOGINS_MAX: usize = 1024;

/// Slots on their way to being live on a link. Holds at most the logins of those slots, so the bound
/// is the process's connection limit.
#[derive(Debug)]
struct Announcement {
    request: u32,
    link: LinkIndex,
    slots: SlotSet,
    silent: Vec<bool>,
    logins: VecDeque<ConnUp>,
    is_finished: bool,
}

impl Announcement {
    fn new(request: u32, link: LinkIndex, slots: SlotSet, shards: usize) -> Self {
        Self { request, link, slots, silent: vec![true; shards], logins: VecDeque::new(), is_finished: false }
    }

    /// Writes it down.
    fn freeze(&self) -> AnnouncementRecord {
        let Self { request, link, slots, silent, logins, is_finished: _ } = self;
        AnnouncementRecord {
            request: *request,
            link: u32::from(link.0),
            slots: slots.words().first().copied().unwrap_or(0),
            more_slots: slots.words().iter().skip(1).copied().collect(),
            silent: silent.clone(),
            logins: logins.iter().map(LoginRecord::from).collect(),
        }
    }

    /// Reads it.
    fn thaw(record: &AnnouncementRecord) -> Self {
        let link = LinkIndex(u16::try_from(record.link).unwrap_or(u16::MAX));
        Self {
            request: record.request,
            link,
            slots: SlotSet::of_words(std::iter::once(record.slots).chain(record.more_slots.iter().copied())),
            silent: record.silent.clone(),
            logins: record.logins.iter().map(ConnUp::from).collect(),
            is_finished: false,
        }
    }

    /// A shard's answer, or a part of it.
    fn handle_part(&mut self, split: Split, from: ShardId, logins: Vec<(Pin, ConnUp)>, is_last: bool) {
        let slots = self.slots;
        let wanted = |(pin, login)| slots.contains(split.slot_of(pin)).then_some(login);
        self.logins.extend(logins.into_iter().filter_map(wanted));
        if let Some(silent) = self.silent.get_mut(from.index()) {
            *silent &= !is_last;
        }
    }

    /// The next frame to send; the last one has `more` unset, even if it names nobody. `None`: wait
    /// for shards, or all is said.
    fn next_frame(&mut self) -> Option<Announce> {
        let is_complete = !self.silent.contains(&true);
        if self.is_finished || (self.logins.is_empty() && !is_complete) {
            return None;
        }
        let connections = self.logins.drain(..self.logins.len().min(ANNOUNCE_LOGINS_MAX)).collect();
        self.is_finished = is_complete && self.logins.is_empty();
        Some(Announce { connections, more: !self.is_finished })
    }

    /// True if the last frame was taken.
    const fn is_finished(&self) -> bool {
        self.is_finished
    }
}

/// All announcements of one router.
#[derive(Debug, Default)]
pub(super) struct Announcements {
    all: Vec<Announcement>,
}

impl Announcements {
    /// The announcements that are not finished.
    pub(super) fn freeze(&self) -> impl Iterator<Item = AnnouncementRecord> {
        self.all.iter().map(Announcement::freeze)
    }

    /// Reads what [`Self::freeze`] gave. `place`: the place that a link has now; an announcement on a link without one is
    /// dropped.
    pub(super) fn thaw(
        records: &[AnnouncementRecord],
        place: impl Fn(LinkIndex) -> Option<LinkIndex>,
    ) -> Self {
        let here = |one: Announcement| Some(Announcement { link: place(one.link)?, ..one });
        Self { all: records.iter().map(Announcement::thaw).filter_map(here).collect() }
    }

    /// Asks every shard for the logins of slots that go to a link.
    pub(super) fn begin(&mut self, sides: &mut Sides, moves: Moves) {
        for (link, slots) in moves {
            let (worker, request) = (sides.number, sides.next_announcement());
            sides.counters[Count::Announces] += 1;
            self.all.push(Announcement::new(request, link, slots, sides.shards.shards()));
            // The shards know 64 groups, and answer with a few more logins where there are more slots.
            sides.shards.push_to_all(|| Downlink::Announce { worker, request, slots: slots.folded() });
        }
    }

    /// Takes a shard's answer, or a part of it. An answer for a link that died meanwhile is dropped.
    pub(super) fn handle_part(
        &mut self,
        split: Split,
        from: ShardId,
        request: u32,
        (logins, is_last): (Vec<(Pin, ConnUp)>, bool),
    ) {
        if let Some(one) = self.all.iter_mut().find(|one| one.request == request) {
            one.handle_part(split, from, logins, is_last);
        }
    }

    /// Writes announcements as far as shards have answered and outputs have room. One at a time per
    /// link, so that `more` has a meaning.
    pub(super) fn pump(&mut self, sides: &mut Sides, slots: &mut Slots) {
        let mut at = 0;
        while at < self.all.len() {
            let (earlier, rest) = self.all.split_at_mut(at);
            let announcement = &mut rest[0];
            let link = &mut sides.links[announcement.link];
            at += 1;
            if earlier.iter().any(|other| other.link == announcement.link) {
                continue;
            }
            while link.has_output_room()
                && let Some(frame) = announcement.next_frame()
            {
                sides.counters[Count::LoginsAnnounced] += frame.connections.len() as u64;
                announcement.slots.iter().for_each(|slot| link.note_sent(slot));
                link.send(Kind::Announce, announcement.request.into(), &frame);
            }
            if announcement.is_finished() {
                slots.set_live(announcement.slots);
                at -= 1;
                self.all.remove(at);
            }
        }
    }

    /// True if a slot is on its way to a link.
    pub(super) fn is_on(&self, link: LinkIndex, slot: Slot) -> bool {
        self.all.iter().any(|one| one.link == link && one.slots.contains(slot))
    }

    /// Forgets what was to be announced on a link that is gone.
    pub(super) fn on_link_closed(&mut self, link: LinkIndex) {
        self.all.retain(|announcement| announcement.link != link);
    }

    /// Takes a slot out of all announcements.
    pub(super) fn remove_slot(&mut self, slot: Slot) {
        self.all.iter_mut().for_each(|announcement| announcement.slots.remove(slot));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logins(count: u64) -> Vec<(Pin, ConnUp)> {
        (0..count).map(|handle| (Pin(3 << 8), ConnUp { handle, ..Default::default() })).collect()
    }

    #[test]
    fn it_ends_when_every_shard_has_said_all() {
        let mut slots = SlotSet::EMPTY;
        slots.insert(Split::Plain.slot_of(Pin(3 << 8)));
        let mut announcement = Announcement::new(1, LinkIndex(0), slots, 2);
        assert!(announcement.next_frame().is_none());
        announcement.handle_part(Split::Plain, ShardId(1), logins(1), false);
        announcement.handle_part(Split::Plain, ShardId(1), vec![(Pin(4 << 8), ConnUp::default())], true);
        let frame = announcement.next_frame().expect("one login");
        assert!(frame.connections.len() == 1 && frame.more, "another slot's login is not ours to tell");
        assert!(announcement.next_frame().is_none() && !announcement.is_finished());
        announcement.handle_part(Split::Plain, ShardId(0), logins(2_500), true);
        let frames: Vec<_> = std::iter::from_fn(|| announcement.next_frame()).collect();
        let sizes: Vec<_> = frames.iter().map(|frame| (frame.connections.len(), frame.more)).collect();
        assert_eq!(sizes, [(1024, true), (1024, true), (452, false)]);
        assert!(announcement.is_finished());
    }

    #[test]
    fn nobody_is_announced_by_one_empty_frame() {
        let mut announcement = Announcement::new(1, LinkIndex(0), SlotSet::EMPTY, 1);
        announcement.handle_part(Split::Plain, ShardId(0), Vec::new(), true);
        assert_eq!(announcement.next_frame(), Some(Announce::default()));
        assert!(announcement.is_finished() && announcement.next_frame().is_none());
    }
}
