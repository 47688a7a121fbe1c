//! Messages on their way to the application: once each, in their conversation's order.
//!
//! Driven by [`Core`](super::Core). A place after a hole is held while the hole may close by itself,
//! then the hole is pulled. Transport numbers belong to [`Downlink`]; places to [`Conversation`].

use super::Tuning;
use super::backoff::part_of;
use super::conversation::{Conversation, Place, Repair};
use super::downlink::{Admission, Downlink, Slot};
use super::event::{ConversationCursor, ConversationEvent, Event, Message, Notice, Token};
use super::limits::{self, SEQ_MAX};
use super::output::Outputs;
use bytes::Bytes;
use moorline_proto::ids::Seq;
use moorline_proto::message::client::{Push, SendAck};
use moorline_proto::message::im::PullResponse;
use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant};
use prost::Message as _;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Messages with the application; further pushes are refused (not acked) until it hands some back.
pub(super) const UNHANDLED_MAX: usize = 2048;
/// No pull while the application holds this many.
const UNHANDLED_PULL_MAX: usize = 256;
/// Messages of one pull.
pub(super) const PULL_PAGE: u32 = 64;
/// Pulls at a time.
const PULLS_MAX: usize = 4;
/// Ids remembered of messages that have no place to be known by.
const RECENT_MAX: usize = 128;
/// The wait after a pull that brought nothing, doubled each time.
const PULL_PAUSE: Duration = Duration::from_secs(1);
const PULL_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Answers that bring nothing before the hole is passed over.
const EMPTY_PAGES_MAX: u32 = 5;

/// A hole to pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hole {
    pub(super) conversation: Arc<str>,
    pub(super) from: u64,
    pub(super) to: u64,
}

/// Reason why a pull brought no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PullFailure {
    /// A later pull may succeed.
    Later,
    /// No pull will succeed.
    Never,
}

#[derive(Debug)]
struct Unhandled {
    token: Token,
    conversation: Arc<str>,
    seq: u64,
    message_id: u64,
    /// Memory of the message, in bytes.
    cost: usize,
}

/// Hands messages out and knows which are still out.
#[derive(Debug)]
struct Delivery {
    downlink: Downlink,
    unhandled: VecDeque<Unhandled>,
    /// Sum of their `cost`.
    unhandled_bytes: usize,
    recent: VecDeque<u64>,
    last_token: u64,
}

impl Delivery {
    fn deliver(&mut self, conversation: &Arc<str>, push: Push, outputs: &mut Outputs) -> Token {
        self.last_token += 1;
        let token = Token(self.last_token);
        let (seq, message_id, cost) = (push.seq, push.message_id, limits::delivered_cost(&push));
        self.unhandled_bytes += cost;
        self.unhandled.push_back(Unhandled {
            token,
            conversation: Arc::clone(conversation),
            seq,
            message_id,
            cost,
        });
        self.downlink.on_delivered(conversation, seq, token);
        outputs.push(Event::Message(Message {
            token,
            message_id,
            conversation: Arc::clone(conversation),
            seq,
            sender: push.sender,
            sender_device: push.sender_device,
            kind: push.r#type,
            payload: Bytes::copy_from_slice(&push.payload), // a slice would hold the whole block that was read
            time_ms: push.time_ms,
            happened: happened(&push.happened),
        }));
        token
    }

    /// Message that a repeated message's frame waits for.
    fn slot_of(&self, is_it: impl Fn(&Unhandled) -> bool) -> Slot {
        let out = self.unhandled.iter().find(|unhandled| is_it(unhandled));
        out.map_or(Slot::Handled, |unhandled| Slot::Delivered(unhandled.token))
    }

    /// True if the id is new among the last [`RECENT_MAX`]; 0 means no id.
    fn is_new(&mut self, message_id: u64) -> bool {
        if message_id == 0 {
            return true;
        }
        if self.recent.contains(&message_id) {
            return false;
        }
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(message_id);
        true
    }
}

/// A message that waits, in memory of its own: a slice would hold the whole block that was read.
fn owned(push: Push) -> Push {
    let (payload, happened) = (Bytes::copy_from_slice(&push.payload), Bytes::copy_from_slice(&push.happened));
    Push { payload, happened, ..push }
}

/// An event of a later backend that this client does not know counts as a message without content.
fn happened(bytes: &[u8]) -> Option<Box<ConversationEvent>> {
    if bytes.is_empty() {
        return None;
    }
    moorline_proto::message::im::Happened::decode(bytes).ok()?.what.map(Box::new)
}

#[derive(Debug)]
pub(super) struct Inbox {
    tuning: Arc<Tuning>,
    uid: Arc<str>,
    device: Arc<str>,
    delivery: Delivery,
    conversations: BTreeMap<Arc<str>, Conversation>,
    /// Conversations with a hole.
    open: Vec<Arc<str>>,
    held_bytes: usize,
    clock: u64,
}

impl Inbox {
    pub(super) fn new(tuning: Arc<Tuning>, uid: Arc<str>, device: Arc<str>) -> Self {
        let delivery = Delivery {
            downlink: Downlink::new(tuning.ack_delay, tuning.group_ack_delay),
            unhandled: VecDeque::new(),
            unhandled_bytes: 0,
            recent: VecDeque::new(),
            last_token: 0,
        };
        Self {
            tuning,
            uid,
            device,
            delivery,
            conversations: BTreeMap::new(),
            open: Vec::new(),
            held_bytes: 0,
            clock: 0,
        }
    }

    /// Continues at this cursor. False: there are too many conversations.
    pub(super) fn restore(&mut self, conversation: &str, cursor: ConversationCursor) -> bool {
        let is_possible = cursor.next != 0 && cursor.start <= cursor.next && cursor.next <= SEQ_MAX + 1;
        if !is_possible || self.conversations.len() >= self.tuning.conversations_max {
            return false;
        }
        let name = self.intern(conversation);
        self.conversations.get_mut(&name).expect("interned").restore(cursor);
        true
    }

    /// Cursor of the application.
    pub(super) fn cursor(&self, conversation: &str) -> Option<ConversationCursor> {
        let cursor = self.conversations.get(conversation)?.cursor()?;
        // What comes from before the start is outside the order, and known by its id.
        let is_in_order = |seq: &u64| (cursor.start..cursor.next).contains(seq);
        let out = self.delivery.unhandled.iter().filter(|out| *out.conversation == *conversation);
        let first = out.map(|out| out.seq).filter(is_in_order).min();
        Some(ConversationCursor { next: first.unwrap_or(cursor.next), ..cursor })
    }

    pub(super) const fn downlink(&self) -> &Downlink {
        &self.delivery.downlink
    }

    pub(super) const fn downlink_mut(&mut self) -> &mut Downlink {
        &mut self.delivery.downlink
    }

    /// Memory of the messages that wait behind holes, in bytes.
    #[cfg(test)]
    pub(super) const fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Messages that wait behind holes.
    #[cfg(test)]
    pub(super) fn held_count(&self) -> usize {
        self.conversations.values().filter_map(|known| known.gap.as_ref()).map(|gap| gap.held.len()).sum()
    }

    pub(super) fn unhandled(&self) -> usize {
        self.delivery.unhandled.len()
    }

    /// Judges a frame's number; 0 has none to judge. `may_wait`: its ack may [P-6.3].
    pub(super) fn admit(&mut self, now: Instant, seq: Seq, may_wait: bool) -> Admission {
        if seq == 0 { Admission::New } else { self.delivery.downlink.admit(now, seq, may_wait) }
    }

    /// A reliable frame that nobody hands back was dealt with.
    pub(super) fn settle(&mut self, now: Instant, seq: Seq) {
        if seq != 0 {
            self.delivery.downlink.set(now, seq, Slot::Handled);
        }
    }

    /// A PUSH under an admitted number.
    pub(super) fn handle_push(&mut self, now: Instant, seq: Seq, push: Push, outputs: &mut Outputs) {
        let is_full = self.delivery.unhandled.len() >= UNHANDLED_MAX
            || self.delivery.unhandled_bytes >= self.tuning.unhandled_bytes_max;
        if is_full {
            return; // neither delivered nor acked: it will come again
        }
        let name = self.intern(&push.conversation);
        let slot = self.sort(now, &name, push, outputs);
        if seq != 0 {
            self.delivery.downlink.set(now, seq, slot);
        }
        self.settle_holes(now, &name);
    }

    fn sort(&mut self, now: Instant, name: &Arc<str>, push: Push, outputs: &mut Outputs) -> Slot {
        let delivery = &mut self.delivery;
        let conversation = self.conversations.get_mut(name).expect("interned");
        let (seq, id) = (push.seq, push.message_id);
        if seq != 0 && conversation.is_recounted(seq, push.time_ms) {
            // What waited has its place in the old count, and nobody will fill the hole before it.
            self.held_bytes -= conversation.held_bytes();
            conversation.gap = None;
            conversation.begin(seq);
            delivery.downlink.on_passed(now, name, u64::MAX);
        }
        let place = if seq == 0 || seq > SEQ_MAX { Place::Before } else { conversation.place(seq) };
        match place {
            Place::Before if delivery.is_new(id) => Slot::Delivered(delivery.deliver(name, push, outputs)),
            Place::Before => delivery.slot_of(|out| out.message_id == id),
            Place::Passed => delivery.slot_of(|out| out.seq == seq && out.conversation == *name),
            Place::Next => {
                conversation.next += 1;
                conversation.on_delivered(seq, push.time_ms);
                let token = delivery.deliver(name, push, outputs);
                self.advance(now, name, outputs);
                Slot::Delivered(token)
            }
            Place::Ahead => {
                let gap = conversation.gap_mut();
                gap.latest = gap.latest.max(seq);
                let has_room = self.held_bytes + limits::held_cost(&push) <= self.tuning.held_bytes_max;
                if gap.filled.end_at(seq).is_some() {
                    return Slot::Handled;
                }
                if has_room && !gap.held.contains_key(&seq) {
                    self.held_bytes += limits::held_cost(&push);
                    gap.held.insert(seq, owned(push));
                }
                Slot::Held { conversation: Arc::clone(name), seq }
            }
        }
    }

    /// A SENDACK: the place is the core's own.
    pub(super) fn handle_own(&mut self, now: Instant, ack: &SendAck, outputs: &mut Outputs) {
        let SendAck { conversation, seq, time_ms, .. } = ack;
        if conversation.is_empty() || *seq == 0 || limits::check_place(conversation, *seq).is_err() {
            return;
        }
        let name = self.intern(conversation);
        self.conversations.get_mut(&name).expect("interned").fill(*seq, *time_ms);
        self.advance(now, &name, outputs);
        self.settle_holes(now, &name);
    }

    /// A NOTIFY: places up to `latest` exist; those from `first` on, if it is not 0, are not
    /// pushed. Under the admitted number `frame`.
    pub(super) fn handle_notify(
        &mut self,
        now: Instant,
        conversation: &str,
        latest: u64,
        first: u64,
        frame: Seq,
    ) -> Arc<str> {
        let name = self.intern(conversation);
        if frame != 0 {
            // Acknowledged like the pushes it stands for [P-6.8].
            let told = Slot::Notified { conversation: Arc::clone(&name), latest };
            self.delivery.downlink.set(now, frame, if first == 0 { Slot::Handled } else { told });
        }
        let known = self.conversations.get_mut(&name).expect("interned");
        if latest != 0 && known.next == 0 {
            known.begin(if first == 0 { latest } else { first.min(latest) });
        }
        if latest != 0 && latest >= known.next {
            let gap = known.gap_mut();
            gap.latest = gap.latest.max(latest);
        }
        self.settle_holes(now, &name);
        name
    }

    /// True if any conversation is followed.
    pub(super) fn is_following(&self) -> bool {
        self.conversations.values().any(|known| known.next != 0)
    }

    /// Places up to `latest` exist in a conversation; one that is not followed stays so.
    pub(super) fn handle_latest(&mut self, now: Instant, conversation: &str, latest: u64) {
        if latest <= SEQ_MAX && self.conversations.get(conversation).is_some_and(|known| known.next != 0) {
            self.handle_notify(now, conversation, latest, 0, 0);
        }
    }

    /// The application has the message safe.
    pub(super) fn handled(&mut self, now: Instant, token: Token) {
        let at = self.delivery.unhandled.binary_search_by_key(&token, |unhandled| unhandled.token);
        if let Ok(at) = at {
            let done = self.delivery.unhandled.remove(at).expect("just found");
            self.delivery.unhandled_bytes -= done.cost;
            self.delivery.downlink.on_handled(now, token);
            self.settle_notified(now, &done.conversation);
        }
        if self.delivery.unhandled.is_empty() && self.delivery.unhandled.capacity() > 16 {
            self.delivery.unhandled = VecDeque::new();
        }
    }

    /// True unless the application has so much to handle that nothing should be added.
    fn may_pull(&self) -> bool {
        self.delivery.unhandled.len() < UNHANDLED_PULL_MAX
            && self.delivery.unhandled_bytes < self.tuning.unhandled_bytes_max / 2
    }

    /// The next hole to pull.
    pub(super) fn poll_hole(&mut self, now: Instant) -> Option<Hole> {
        if self.open.is_empty() || !self.may_pull() {
            return None;
        }
        let mut asked = 0;
        for name in &self.open {
            let repair =
                self.conversations.get(name).and_then(|known| known.gap.as_ref()).map(|gap| gap.repair);
            asked += usize::from(repair == Some(Repair::Asked));
        }
        if asked >= PULLS_MAX {
            return None;
        }
        for name in &self.open {
            let Some(known) = self.conversations.get_mut(name) else { continue };
            let (from, to) = (known.next, known.hole_end());
            let Some(gap) = &mut known.gap else { continue };
            if matches!(gap.repair, Repair::Waiting(until) if until <= now) {
                gap.repair = Repair::Asked;
                return Some(Hole { conversation: Arc::clone(name), from, to });
            }
        }
        None
    }

    /// The answer to a pull of a hole that ended at `to`.
    pub(super) fn handle_pull(
        &mut self,
        now: Instant,
        name: &Arc<str>,
        to: u64,
        answer: Result<PullResponse, PullFailure>,
        random: &mut Random,
        outputs: &mut Outputs,
    ) {
        let Some(known) = self.conversations.get_mut(name) else { return };
        let before = known.next;
        let Some(gap) = &mut known.gap else { return };
        gap.repair = Repair::Idle;
        let mut is_last_word = answer == Err(PullFailure::Never);
        let mut has_more = false;
        let is_page = answer.is_ok();
        if let Ok(page) = answer {
            has_more = page.more;
            is_last_word = !page.more && page.latest >= to;
            for range in &page.voids {
                gap.filled.add(range.from.max(before), range.to);
            }
            let asked_for = |push: &Push| (before..=to).contains(&push.seq);
            for push in page.messages.into_iter().filter(asked_for).take(PULL_PAGE as usize) {
                let is_own = push.sender == *self.uid && push.sender_device == *self.device;
                if is_own {
                    gap.filled.add(push.seq, push.seq);
                } else if let Entry::Vacant(place) = gap.held.entry(push.seq) {
                    self.held_bytes += limits::held_cost(&push);
                    place.insert(owned(push));
                }
            }
        }
        self.advance(now, name, outputs);
        let Some(known) = self.conversations.get_mut(name) else { return };
        let has_progress = known.next > before;
        if let Some(gap) = &mut known.gap {
            gap.failures = if has_progress { 0 } else { gap.failures + 1 };
            gap.empty_pages = if has_progress { 0 } else { gap.empty_pages + u32::from(is_page) };
            is_last_word |= gap.empty_pages >= EMPTY_PAGES_MAX;
        }
        if is_last_word {
            self.pass_over(now, name, to, outputs);
        }
        self.trim_held(name); // not before: what is passed over is said aloud, and so would be what was forgotten
        self.settle_holes(now, name);
        self.schedule_pull(now, name, before, has_more, random);
    }

    /// Forgets the last of the messages that wait behind a hole until all that wait fit: a page may hold more than that.
    /// They are pulled again.
    fn trim_held(&mut self, name: &Arc<str>) {
        let gap = self.conversations.get_mut(name).and_then(|known| known.gap.as_mut());
        let Some(gap) = gap else { return };
        while self.held_bytes > self.tuning.held_bytes_max
            && let Some((_, push)) = gap.held.pop_last()
        {
            self.held_bytes -= limits::held_cost(&push);
        }
    }

    /// After the last word on a hole nothing may stay open up to `to`; what is passed over is said aloud.
    fn pass_over(&mut self, now: Instant, name: &Arc<str>, to: u64, outputs: &mut Outputs) {
        while let Some(known) = self.conversations.get_mut(name) {
            let (next, end) = (known.next, known.hole_end().min(to));
            if !known.has_hole() || end < next {
                return;
            }
            known.gap_mut().filled.add(next, end);
            let conversation = Arc::clone(name);
            outputs.push(Event::Notice(Notice::Hole { conversation, from: next, to: end }));
            self.advance(now, name, outputs);
        }
    }

    fn schedule_pull(
        &mut self,
        now: Instant,
        name: &Arc<str>,
        before: u64,
        has_more: bool,
        random: &mut Random,
    ) {
        let Some(known) = self.conversations.get_mut(name) else { return };
        let has_progress = known.next > before;
        let Some(gap) = &mut known.gap else { return };
        if !matches!(gap.repair, Repair::Waiting(_)) {
            return;
        }
        if has_progress && has_more {
            gap.repair = Repair::Waiting(now);
        } else if !has_progress {
            let pause = (PULL_PAUSE * (1 << gap.failures.min(5))).min(PULL_PAUSE_MAX);
            gap.repair = Repair::Waiting(now + pause / 2 + part_of(pause / 2, random));
        }
    }

    /// Time at which a hole must be pulled; only while logged in.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.open.is_empty() || !self.may_pull() {
            return None; // `handled` goes on with it
        }
        let gaps = self.open.iter().filter_map(|name| self.conversations.get(name)?.gap.as_ref());
        let (mut soonest, mut asked) = (None, 0);
        for gap in gaps {
            match gap.repair {
                Repair::Waiting(until) => soonest = Some(soonest.map_or(until, |at: Instant| at.min(until))),
                Repair::Asked => asked += 1,
                Repair::Idle => {}
            }
        }
        if asked >= PULLS_MAX { None } else { soonest }
    }

    /// Hands out everything that is in order now.
    fn advance(&mut self, now: Instant, name: &Arc<str>, outputs: &mut Outputs) {
        let Some(known) = self.conversations.get_mut(name) else { return };
        let before = known.next;
        while let Some(push) = known.poll_ready() {
            self.held_bytes -= limits::held_cost(&push);
            self.delivery.deliver(name, push, outputs);
        }
        if known.next > before {
            self.delivery.downlink.on_passed(now, name, known.next);
        }
        self.held_bytes -= known.tidy();
        let wait = now + self.tuning.gap_wait;
        if let Some(gap) = &mut known.gap
            && known.next > before
            && matches!(gap.repair, Repair::Waiting(_))
        {
            gap.repair = Repair::Waiting(wait); // it is closing by itself
        }
    }

    /// Starts or ends the wait for a conversation's hole.
    fn settle_holes(&mut self, now: Instant, name: &Arc<str>) {
        let Some(known) = self.conversations.get_mut(name) else { return };
        let has_hole = known.has_hole();
        let mut is_open = has_hole;
        if let Some(gap) = &mut known.gap {
            match gap.repair {
                Repair::Idle if has_hole => gap.repair = Repair::Waiting(now + self.tuning.gap_wait),
                Repair::Waiting(_) if !has_hole => gap.repair = Repair::Idle,
                Repair::Asked => is_open = true,
                Repair::Idle | Repair::Waiting(_) => {}
            }
        }
        let at = self.open.iter().position(|open| open == name);
        match (at, is_open) {
            (None, true) => self.open.push(Arc::clone(name)),
            (Some(at), false) => drop(self.open.swap_remove(at)),
            _ => {}
        }
        self.settle_notified(now, name);
    }

    /// A NOTIFY that stands for messages is handled when all of them are.
    fn settle_notified(&mut self, now: Instant, name: &Arc<str>) {
        while let Some(latest) = self.delivery.downlink.notified(name) {
            let is_passed = self.conversations.get(name).is_none_or(|known| known.next > latest);
            let mut out = self.delivery.unhandled.iter();
            if !is_passed || out.any(|out| out.seq <= latest && out.conversation == *name) {
                return;
            }
            self.delivery.downlink.on_told(now, name, latest);
        }
    }

    /// The shared name of a conversation; makes room by forgetting the one longest unused.
    fn intern(&mut self, name: &str) -> Arc<str> {
        self.clock += 1;
        if let Some((shared, _)) = self.conversations.get_key_value(name) {
            let shared = Arc::clone(shared);
            self.conversations.get_mut(name).expect("found").touched = self.clock;
            return shared;
        }
        if self.conversations.len() >= self.tuning.conversations_max.max(1) {
            // One with a hole only if all have one: what it held was not acked and comes again.
            let oldest = self.conversations.iter().min_by_key(|(_, known)| (known.has_hole(), known.touched));
            if let Some(oldest) = oldest.map(|(name, _)| Arc::clone(name)) {
                let forgotten = self.conversations.remove(&oldest);
                self.held_bytes -= forgotten.map_or(0, |known| known.held_bytes());
                self.open.retain(|open| *open != oldest);
            }
        }
        let shared: Arc<str> = name.into();
        self.conversations.insert(Arc::clone(&shared), Conversation::new(self.clock));
        shared
    }
}
