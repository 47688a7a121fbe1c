//! Random users, devices, connects, sends, repeats, recalls, reads, acks, failures and ends of the process against an
//! oracle: in the end every device sees what its user should.

mod hearing;
mod runs;
mod settling;

use super::*;
use moorline_proto::message::im::{
    Conversation, ConversationDeleteRequest, GroupCreateRequest, GroupCreateResponse, GroupRequest,
    GroupResponse, Happened, ReadRequest, RecallRequest, RecallResponse, happened::What,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const USERS: usize = 3;
/// Number of devices of each user.
const DEVICES: usize = 2;
const GROUP: &str = "group:g";

#[derive(Clone, Debug)]
enum Step {
    Connect(usize),
    Disconnect { device: usize, unheard: usize },
    Reannounce(usize),
    Send { device: usize, to: usize },
    Repeat { device: usize, which: usize, changed: bool },
    Recall { device: usize, which: usize },
    Read { device: usize, of: usize, back: u64 },
    Ack { device: usize, count: usize },
    Fail { device: usize, from: usize },
    Join(usize),
    Leave(usize),
    Dissolve(usize),
    Clear { device: usize, of: usize, back: u64 },
    Delete(usize),
    Pass,
    LoseRoom,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let device = 0..USERS * DEVICES;
    prop_oneof![
        4 => device.clone().prop_map(Step::Connect),
        2 => (device.clone(), 0..4usize).prop_map(|(device, unheard)| Step::Disconnect { device, unheard }),
        2 => device.clone().prop_map(Step::Reannounce),
        16 => (device.clone(), 0..=USERS).prop_map(|(device, to)| Step::Send { device, to }),
        4 => (device.clone(), any::<usize>(), any::<bool>())
            .prop_map(|(device, which, changed)| Step::Repeat { device, which, changed }),
        3 => (device.clone(), any::<usize>()).prop_map(|(device, which)| Step::Recall { device, which }),
        4 => (device.clone(), 0..=USERS, 0..3u64).prop_map(|(device, of, back)| Step::Read { device, of, back }),
        12 => (device.clone(), 1..6usize).prop_map(|(device, count)| Step::Ack { device, count }),
        2 => (device.clone(), 0..4usize).prop_map(|(device, from)| Step::Fail { device, from }),
        2 => device.clone().prop_map(Step::Join),
        2 => device.clone().prop_map(Step::Leave),
        1 => device.clone().prop_map(Step::Dissolve),
        2 => (device, 0..=USERS, 0..3u64).prop_map(|(device, of, back)| Step::Clear { device, of, back }),
        1 => (0..USERS).prop_map(Step::Delete),
        2 => Just(Step::Pass),
        1 => Just(Step::LoseRoom),
        1 => Just(Step::Crash),
    ]
}

/// A device as its client sees it.
#[derive(Default)]
struct Device {
    session: Option<SessionId>,
    /// Pushed and not yet handled, as in the gateway's queue.
    queue: VecDeque<Pushed>,
    /// The seqs it has, by conversation.
    has: BTreeMap<String, BTreeSet<u64>>,
    /// Messages that the device has and knows to be recalled.
    recalled: BTreeSet<(String, u64)>,
    /// Read marks that the device knows.
    reads: BTreeMap<(String, String), u64>,
    /// Authors of messages, and whether they are messages and not events.
    authors: BTreeMap<(String, u64), (String, bool)>,
    /// Deletions that the device knows: conversation, user, and the last seq that they may concern.
    erased: Vec<(String, String, u64)>,
}

impl Device {
    fn on_read(&mut self, conversation: &str, uid: &str, seq: u64) {
        let known = self.reads.entry((conversation.to_owned(), uid.to_owned())).or_default();
        *known = seq.max(*known);
    }

    /// Forgets messages of deleted users.
    fn forget_erased(&mut self) {
        for (conversation, user, to) in &self.erased {
            let authors = &self.authors;
            let is_theirs = |seq: &u64| {
                let author = authors.get(&(conversation.clone(), *seq));
                let is_recalled = self.recalled.contains(&(conversation.clone(), *seq));
                let is_said = author.is_some_and(|(author, is_said)| author == user && *is_said);
                *seq <= *to && is_said && !is_recalled
            };
            if let Some(has) = self.has.get_mut(conversation) {
                has.retain(|seq| !is_theirs(seq));
            }
        }
    }

    fn on_listed(&mut self, uid: &str, listed: &Conversation) {
        self.on_read(&listed.id, uid, listed.read);
        if let Some((_, pair)) = listed.id.split_once("c2c:")
            && let Some((a, b)) = pair.split_once(':')
        {
            self.on_read(&listed.id, if a == uid { b } else { a }, listed.peer_read);
        }
    }

    /// A message, wherever it came from: pushed, or pulled.
    fn on_message(&mut self, push: &Push) {
        self.has.entry(push.conversation.clone()).or_default().insert(push.seq);
        let happened: Happened = decode(&push.happened).expect("a Happened");
        let mut is_said = true;
        match happened.what {
            Some(What::Recalled(recalled)) => {
                is_said = recalled.seq == push.seq;
                self.recalled.insert((push.conversation.clone(), recalled.seq));
            }
            Some(What::Erased(erased)) => {
                is_said = false;
                let (conversation, user, to) = (push.conversation.clone(), erased.user, erased.to);
                self.erased.push((conversation, user, to));
            }
            _ => {}
        }
        let author = (push.conversation.clone(), push.seq);
        self.authors.insert(author, (push.sender.clone(), push.happened.is_empty()));
        self.forget_erased();
        // Who takes something back has read nothing for that.
        if is_said {
            self.on_read(&push.conversation, &push.sender, push.seq);
        }
    }
}

/// A message as it was stored.
#[derive(Clone)]
struct Sent {
    user: usize,
    key: [u8; 16],
    target: send::Target,
    conversation: String,
    seq: u64,
    id: u64,
    /// True once the author was deleted.
    is_erased: bool,
}

/// A random world, and the promises that hold in it.
struct World<S> {
    bench: BenchOf<S>,
    /// Another life of the store.
    reopen: Box<dyn FnMut(S) -> S>,
    devices: Vec<Device>,
    version: u64,
    /// By user: what each of its devices must have in the end.
    expected: Vec<BTreeMap<String, BTreeSet<u64>>>,
    sent: Vec<Sent>,
    /// Recalled messages, with the seqs that announce the recalls.
    recalls: BTreeMap<(String, u64), u64>,
    latest: BTreeMap<String, u64>,
    /// With the first seq of the group that the membership may read.
    members: BTreeMap<usize, u64>,
    has_left: BTreeSet<usize>,
    /// Users who were deleted once.
    deleted: BTreeSet<usize>,
    /// The first seq of the group that has its name now.
    group_from: u64,
    /// The first seq of each conversation that a user has not deleted.
    cleared: BTreeMap<(usize, String), u64>,
    /// Nothing leaves an inbox unacked here, and all goes through inboxes, so holes may not be seen.
    is_lossless: bool,
    /// A NOTIFY took the place of an entry.
    has_replaced: bool,
}

fn uid(user: usize) -> String {
    format!("u{user}")
}

impl<S: Store> World<S> {
    fn new(config: ImConfig, store: S, is_lossless: bool, reopen: Box<dyn FnMut(S) -> S>) -> Self {
        let devices = (0..USERS * DEVICES).map(|_| Device::default()).collect();
        let mut world = Self {
            bench: BenchOf::over(config, store),
            reopen,
            devices,
            version: 0,
            expected: vec![BTreeMap::new(); USERS],
            sent: Vec::new(),
            recalls: BTreeMap::new(),
            latest: BTreeMap::new(),
            members: (0..USERS).map(|user| (user, 1)).collect(),
            has_left: BTreeSet::new(),
            deleted: BTreeSet::new(),
            group_from: 1,
            cleared: BTreeMap::new(),
            is_lossless,
            has_replaced: false,
        };
        // Every device is known from the start: what it misses is owed to it.
        (0..USERS * DEVICES).for_each(|device| world.connect(device));
        let session = world.devices[0].session.expect("connected");
        let request = GroupCreateRequest { group: "g".into(), members: (0..USERS).map(uid).collect() };
        world.bench.req::<GroupCreateResponse>(session, "im.group.create", &request).expect("created");
        world.sort_pushes();
        world
    }

    fn connect(&mut self, device: usize) {
        self.disconnect(device, 0);
        self.version += 1;
        let name = format!("d{}", device % DEVICES);
        let slot = u32::try_from(device).expect("small");
        self.devices[device].session =
            Some(self.bench.login(slot, &uid(device / DEVICES), &name, self.version));
        self.sort_pushes();
    }

    /// The client handles some of what it was sent, but its acks are lost.
    fn disconnect(&mut self, device: usize, unheard: usize) {
        let Some(session) = self.devices[device].session else { return };
        for _ in 0..unheard {
            let Some(pushed) = self.devices[device].queue.pop_front() else { break };
            self.take(device, session, &pushed);
        }
        self.devices[device].session = None;
        self.devices[device].queue.clear();
        self.bench.logout(session);
        self.sort_pushes();
    }

    fn reannounce(&mut self, device: usize) {
        let Some(session) = self.devices[device].session else { return };
        self.devices[device].queue.clear(); // lost with the link
        let name = format!("d{}", device % DEVICES);
        self.bench.conn_up(session, &uid(device / DEVICES), &name, 0, false);
        self.sort_pushes();
    }

    /// The backend ends without a word and begins anew; gateways announce what they have.
    fn crash(&mut self) {
        self.bench.restart(&mut self.reopen);
        for device in 0..self.devices.len() {
            if self.devices[device].session.take().is_some() {
                self.devices[device].queue.clear();
                self.connect(device);
            }
        }
    }

    /// The link of the group's room ends: what went to the room and was not handled is lost, but what has its outcome.
    fn lose_room(&mut self) {
        let Some((room, _)) = self.bench.out.group_rooms.pop_first() else { return };
        for device in &mut self.devices {
            device.queue.retain(|pushed| !pushed.is_to_room || pushed.want_ack);
        }
        self.bench.event(Event::RoomLost { room });
        self.bench.fan_out();
        self.sort_pushes();
    }

    fn receivers(&self, conversation: &str) -> BTreeSet<usize> {
        if conversation == GROUP {
            return self.members.keys().copied().collect();
        }
        (0..USERS).filter(|user| conversation.split(':').any(|part| part == uid(*user))).collect()
    }

    /// Something was stored under the next seq.
    fn on_stored(&mut self, device: usize, conversation: &str, seq: u64) {
        let latest = self.latest.entry(conversation.to_owned()).or_default();
        *latest += 1;
        assert_eq!(seq, *latest, "seqs are dense from 1");
        for receiver in self.receivers(conversation) {
            self.expected[receiver].entry(conversation.to_owned()).or_default().insert(seq);
        }
        let device = &mut self.devices[device];
        device.has.entry(conversation.to_owned()).or_default().insert(seq);
    }

    fn send(&mut self, device: usize, to: usize) {
        let (Some(session), user_index) = (self.devices[device].session, device / DEVICES) else { return };
        let target = if to < USERS { user(&uid(to)) } else { conversation(GROUP) };
        let number = u64::try_from(self.sent.len()).expect("small");
        let mut key = [0; 16];
        key[..8].copy_from_slice(&number.to_le_bytes());
        let (code, ack) = self.bench.send(session, target.clone(), &key, &number.to_le_bytes());
        if to >= USERS && !self.members.contains_key(&user_index) {
            assert_eq!(code, self.refusal_of_strangers());
            return;
        }
        assert_eq!(code, Code::Ok);
        self.on_stored(device, &ack.conversation, ack.seq);
        self.devices[device].on_read(&ack.conversation, &uid(user_index), ack.seq);
        let (conversation, seq, id) = (ack.conversation, ack.seq, ack.message_id);
        let place = (conversation.clone(), seq);
        self.devices[device].authors.insert(place, (uid(user_index), true));
        self.sent.push(Sent { user: user_index, key, target, conversation, seq, id, is_erased: false });
        self.sort_pushes();
    }

    /// Code for users who are not in the group.
    fn refusal_of_strangers(&self) -> Code {
        if self.members.is_empty() { Code::NotFound } else { Code::NotMember }
    }

    /// True if the message was in a group that is gone.
    fn is_dissolved(&self, sent: &Sent) -> bool {
        sent.conversation == GROUP && (sent.seq < self.group_from || self.members.is_empty())
    }

    /// The first seq of a conversation that a user has not deleted.
    fn first_kept(&self, user: usize, conversation: &str) -> u64 {
        self.cleared.get(&(user, conversation.to_owned())).copied().unwrap_or(1)
    }

    /// One of what the user of a device has sent.
    fn own(&self, device: usize, which: usize) -> Option<usize> {
        let is_own = |at: &usize| self.sent[*at].user == device / DEVICES && !self.sent[*at].is_erased;
        let own: Vec<_> = (0..self.sent.len()).filter(is_own).collect();
        own.get(which % own.len().max(1)).copied()
    }

    fn repeat(&mut self, device: usize, which: usize, changed: bool) {
        let (Some(session), Some(at)) = (self.devices[device].session, self.own(device, which)) else {
            return;
        };
        let Sent { key, target, seq, .. } = &self.sent[at];
        let payload = (at as u64 + u64::from(changed)).to_le_bytes();
        let (code, ack) = self.bench.send(session, target.clone(), key, &payload);
        let expected = match () {
            () if self.is_dissolved(&self.sent[at]) && self.members.is_empty() => (Code::NotFound, 0),
            () if changed || self.is_dissolved(&self.sent[at]) => (Code::Conflict, 0),
            () => (Code::Dup, *seq),
        };
        assert_eq!((code, ack.seq), expected);
        self.bench.fan_out();
        self.sort_pushes();
    }

    fn recall(&mut self, device: usize, which: usize) {
        let (Some(session), Some(at)) = (self.devices[device].session, self.own(device, which)) else {
            return;
        };
        if self.is_dissolved(&self.sent[at]) {
            return;
        }
        let Sent { conversation, seq, id, user, .. } = &self.sent[at];
        let place = (conversation.clone(), *seq);
        let request = RecallRequest { conversation: conversation.clone(), seq: *seq, message_id: *id };
        let is_member = conversation != GROUP || self.members.contains_key(user);
        let is_visible = (conversation != GROUP || self.members.get(user).is_some_and(|first| first <= seq))
            && *seq >= self.first_kept(*user, conversation);
        let answer = self.bench.req::<RecallResponse>(session, "im.recall", &request);
        match (answer, self.recalls.get(&place)) {
            (Err(code), _) if !is_member => assert_eq!(code, Code::NotMember),
            (Ok(answer), Some(known)) => assert_eq!(answer.seq, *known, "once"),
            (Err(code), None) if !is_visible => assert_eq!(code, Code::NotFound),
            (Ok(answer), None) => {
                self.on_stored(device, &place.0, answer.seq);
                self.devices[device].recalled.insert(place.clone());
                self.recalls.insert(place, answer.seq);
            }
            (other, known) => panic!("{place:?}: {other:?}, {known:?}"),
        }
        self.sort_pushes();
    }

    fn read(&mut self, device: usize, of: usize, back: u64) {
        let (Some(session), own) = (self.devices[device].session, uid(device / DEVICES)) else { return };
        let mut conversation = GROUP.to_owned();
        if of < USERS {
            conversation.clear();
            crate::im::names::write_one_to_one(&mut conversation, &own, &uid(of));
        }
        let latest = self.latest.get(&conversation).copied().unwrap_or(0);
        let seq = latest.saturating_sub(back);
        let request = ReadRequest { conversation: conversation.clone(), seq };
        let answer = self.bench.req::<()>(session, "im.read", &request);
        if conversation == GROUP && !self.members.contains_key(&(device / DEVICES)) {
            assert_eq!(answer, Err(self.refusal_of_strangers()));
        } else if conversation != GROUP && latest == 0 {
            assert_eq!(answer, Err(Code::NotFound), "they have not spoken");
        } else {
            answer.expect("it may");
            self.devices[device].on_read(&conversation, &own, seq);
        }
        self.sort_pushes();
    }

    fn ack(&mut self, device: usize, count: usize) {
        let Some(session) = self.devices[device].session else { return };
        for _ in 0..count {
            let Some(pushed) = self.devices[device].queue.pop_front() else { break };
            self.take(device, session, &pushed);
            self.bench.outcome(&pushed, Outcome::Acked);
            self.sort_pushes();
        }
    }

    /// The gateway's queue is full: it takes nothing from there on. What it had to take without a word it delivers.
    fn fail(&mut self, device: usize, from: usize) {
        let from = from.min(self.devices[device].queue.len());
        if self.devices[device].queue.iter().skip(from).any(|pushed| !pushed.want_ack) {
            return;
        }
        for pushed in self.devices[device].queue.split_off(from) {
            self.bench.outcome(&pushed, Outcome::Full);
        }
        self.sort_pushes();
    }

    /// Joins or leaves the group. A group that nobody is in is gone: then a user who would join makes it anew.
    fn membership(&mut self, device: usize, method: &str) -> bool {
        let Some(session) = self.devices[device].session else { return false };
        let request = GroupRequest { conversation: GROUP.into(), ..Default::default() };
        let answer = self.bench.req::<GroupResponse>(session, method, &request);
        let mut is_done = true;
        if self.members.is_empty() {
            assert_eq!(answer, Err(Code::NotFound), "nobody is in it");
            is_done = method == "im.group.join";
            if is_done {
                self.group_from = self.latest.get(GROUP).map_or(1, |latest| latest + 1);
                let request = GroupCreateRequest { group: "g".into(), members: Vec::new() };
                self.bench
                    .req::<GroupCreateResponse>(session, "im.group.create", &request)
                    .expect("its name is free");
            }
        } else {
            answer.expect("allowed");
        }
        self.sort_pushes();
        is_done
    }

    /// The group ends if the user owns it.
    fn dissolve(&mut self, device: usize) {
        let Some(session) = self.devices[device].session else { return };
        let request = GroupRequest { conversation: GROUP.into(), ..Default::default() };
        match self.bench.req::<GroupResponse>(session, "im.group.dissolve", &request) {
            Ok(_) => {
                assert!(self.members.contains_key(&(device / DEVICES)));
                self.has_left.extend(std::mem::take(&mut self.members).into_keys());
            }
            Err(Code::NotFound) => assert!(self.members.is_empty()),
            Err(Code::NotMember) => assert!(!self.members.contains_key(&(device / DEVICES))),
            Err(code) => assert_eq!(code, Code::Denied, "another one owns it"),
        }
        self.sort_pushes();
    }

    fn clear(&mut self, device: usize, of: usize, back: u64) {
        let (Some(session), user) = (self.devices[device].session, device / DEVICES) else { return };
        let mut conversation = GROUP.to_owned();
        if of < USERS {
            conversation.clear();
            crate::im::names::write_one_to_one(&mut conversation, &uid(user), &uid(of));
        }
        let to = self.latest.get(&conversation).copied().unwrap_or(0).saturating_sub(back);
        if to == 0 {
            return;
        }
        let request = ConversationDeleteRequest { conversation: conversation.clone(), to };
        if self.bench.req::<()>(session, "im.conversation.delete", &request).is_ok() {
            let first = self.cleared.entry((user, conversation)).or_default();
            *first = (*first).max(to + 1);
        }
        self.sort_pushes();
    }

    /// The operator deletes a user: others forget the user's messages, and the user comes again as a new one.
    fn delete(&mut self, user: usize) {
        let now = self.bench.now;
        let call = ApiCall::DeleteUser { user: uid(user) };
        self.bench.im().handle_api(now, call, ApiReply::new(|answer| assert_eq!(answer.code, Code::Ok)));
        self.bench.perform();
        self.bench.end_turn();
        let mut told = BTreeSet::new();
        if self.members.contains_key(&user) && self.members.len() > 1 {
            told.insert(GROUP.to_owned());
        }
        for sent in &self.sent {
            let is_gone =
                sent.conversation == GROUP && (sent.seq < self.group_from || self.members.is_empty());
            let is_recalled = self.recalls.contains_key(&(sent.conversation.clone(), sent.seq));
            let ends = sent.conversation == GROUP && self.members.keys().all(|member| *member == user);
            if sent.user == user && !sent.is_erased && !is_gone && !is_recalled && !ends {
                told.insert(sent.conversation.clone());
            }
        }
        for sent in self.sent.iter_mut().filter(|sent| sent.user == user && !sent.is_erased) {
            sent.is_erased = true;
            // A message that was taken back has lost its content before.
            if self.recalls.contains_key(&(sent.conversation.clone(), sent.seq)) {
                continue;
            }
            for expected in &mut self.expected {
                expected.get_mut(&sent.conversation).map(|seqs| seqs.remove(&sent.seq));
            }
        }
        for device in user * DEVICES..(user + 1) * DEVICES {
            if let Some(session) = self.devices[device].session.take() {
                self.bench.logout(session);
            }
            self.devices[device] = Device::default();
        }
        self.members.remove(&user);
        self.has_left.insert(user);
        self.deleted.insert(user);
        self.expected[user].clear();
        self.bench.pass(Duration::from_secs(1));
        self.bench.fan_out();
        // What says so is the next message of each conversation that had a message of the user, or the user as a member.
        for conversation in told {
            let latest = self.latest.entry(conversation.clone()).or_default();
            *latest += 1;
            let seq = *latest;
            for receiver in self.receivers(&conversation).into_iter().filter(|receiver| *receiver != user) {
                self.expected[receiver].entry(conversation.clone()).or_default().insert(seq);
            }
        }
        self.sort_pushes();
        (user * DEVICES..(user + 1) * DEVICES).for_each(|device| self.connect(device));
    }

    fn walk(mut self, steps: &[Step]) {
        steps.iter().for_each(|step| self.step(step));
        self.settle();
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Connect(device) => self.connect(device),
            Step::Disconnect { device, unheard } => self.disconnect(device, unheard),
            Step::Reannounce(device) => self.reannounce(device),
            Step::Send { device, to } => self.send(device, to),
            Step::Repeat { device, which, changed } => self.repeat(device, which, changed),
            Step::Recall { device, which } => self.recall(device, which),
            Step::Read { device, of, back } => self.read(device, of, back),
            Step::Ack { device, count } => self.ack(device, count),
            Step::Fail { device, from } => self.fail(device, from),
            Step::Join(device) => {
                if self.membership(device, "im.group.join") {
                    let first = self.latest.get(GROUP).map_or(1, |latest| latest + 1);
                    self.members.entry(device / DEVICES).or_insert(first);
                }
            }
            Step::Leave(device) => {
                if self.membership(device, "im.group.leave") {
                    self.members.remove(&(device / DEVICES));
                    self.has_left.insert(device / DEVICES);
                }
            }
            Step::Dissolve(device) => self.dissolve(device),
            Step::Clear { device, of, back } => self.clear(device, of, back),
            Step::Delete(user) => self.delete(user),
            Step::Pass => {
                self.bench.pass(Duration::from_millis(400));
                self.sort_pushes();
            }
            Step::LoseRoom => self.lose_room(),
            Step::Crash => self.crash(),
        }
    }
}
