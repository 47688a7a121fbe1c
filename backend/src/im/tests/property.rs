//! Random users, devices, connects, sends, repeats, acks and failures against a small oracle.

use super::*;
use moorline_proto::message::client::Notify;
use moorline_proto::message::im::{
    GroupCreateRequest, GroupCreateResponse, GroupRequest, GroupResponse, PullRequest, PullResponse,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const USERS: usize = 3;
/// Of each user.
const DEVICES: usize = 2;

#[derive(Clone, Debug)]
enum Step {
    Connect(usize),
    Disconnect { device: usize, unheard: usize },
    Reannounce(usize),
    Send { device: usize, to: usize },
    Repeat { device: usize, which: usize, changed: bool },
    Ack { device: usize, count: usize },
    Fail { device: usize, from: usize },
    Join(usize),
    Leave(usize),
    Pass,
}

fn step() -> impl Strategy<Value = Step> {
    let device = 0..USERS * DEVICES;
    prop_oneof![
        2 => device.clone().prop_map(Step::Connect),
        1 => (device.clone(), 0..4usize).prop_map(|(device, unheard)| Step::Disconnect { device, unheard }),
        1 => device.clone().prop_map(Step::Reannounce),
        8 => (device.clone(), 0..=USERS).prop_map(|(device, to)| Step::Send { device, to }),
        2 => (device.clone(), any::<usize>(), any::<bool>())
            .prop_map(|(device, which, changed)| Step::Repeat { device, which, changed }),
        6 => (device.clone(), 1..6usize).prop_map(|(device, count)| Step::Ack { device, count }),
        1 => (device.clone(), 0..4usize).prop_map(|(device, from)| Step::Fail { device, from }),
        1 => device.clone().prop_map(Step::Join),
        1 => device.prop_map(Step::Leave),
        1 => Just(Step::Pass),
    ]
}

/// A device as its client sees it.
#[derive(Default)]
struct Device {
    session: Option<SessionId>,
    /// Pushed and not yet handled, as in the gateway's queue.
    queue: VecDeque<Pushed>,
    /// What it has, by conversation.
    has: BTreeMap<String, BTreeSet<u64>>,
}

struct World {
    bench: Bench,
    devices: Vec<Device>,
    version: u64,
    /// By user: what each of its devices must have in the end.
    expected: Vec<BTreeMap<String, BTreeSet<u64>>>,
    /// User, key, target, seq of everything stored.
    sent: Vec<(usize, [u8; 16], send::Target, u64)>,
    members: BTreeSet<usize>,
    /// Nothing leaves an inbox unacked here, so holes may not be seen.
    is_lossless: bool,
}

impl World {
    fn new(config: ImConfig, is_lossless: bool) -> Self {
        let devices = (0..USERS * DEVICES).map(|_| Device::default()).collect();
        let (expected, members) = (vec![BTreeMap::new(); USERS], (0..USERS).collect());
        let bench = Bench::new(config);
        let mut world = Self { bench, devices, version: 0, expected, sent: Vec::new(), members, is_lossless };
        // Every device is known from the start: what it misses is owed to it.
        (0..USERS * DEVICES).for_each(|device| world.connect(device));
        let session = world.devices[0].session.expect("connected");
        let members = (0..USERS).map(|user| format!("u{user}")).collect();
        let request = GroupCreateRequest { group: "g".into(), members };
        world.bench.req::<GroupCreateResponse>(session, "im.group.create", &request).expect("created");
        world
    }

    fn connect(&mut self, device: usize) {
        self.disconnect(device, 0);
        self.version += 1;
        let (uid, name) = (format!("u{}", device / DEVICES), format!("d{}", device % DEVICES));
        let slot = u32::try_from(device).expect("small");
        self.devices[device].session = Some(self.bench.login(slot, &uid, &name, self.version));
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
    }

    fn reannounce(&mut self, device: usize) {
        let Some(session) = self.devices[device].session else { return };
        self.devices[device].queue.clear(); // lost with the link
        self.bench.conn_up(
            session,
            &format!("u{}", device / DEVICES),
            &format!("d{}", device % DEVICES),
            0,
            false,
        );
        self.sort_pushes();
    }

    fn send(&mut self, device: usize, to: usize) {
        let (Some(session), user_index) = (self.devices[device].session, device / DEVICES) else { return };
        let target = if to < USERS { user(&format!("u{to}")) } else { conversation("group:g") };
        let is_member = to < USERS || self.members.contains(&user_index);
        let number = u64::try_from(self.sent.len()).expect("small");
        let mut key = [0; 16];
        key[..8].copy_from_slice(&number.to_le_bytes());
        let (code, ack) = self.bench.send(session, target.clone(), &key, &number.to_le_bytes());
        if !is_member {
            assert_eq!(code, Code::NotMember);
            return;
        }
        assert_eq!(code, Code::Ok);
        let receivers = if to < USERS { BTreeSet::from([user_index, to]) } else { self.members.clone() };
        let last = self
            .sent
            .iter()
            .filter(|it| conversation_of(it.0, &it.2) == ack.conversation)
            .map(|it| it.3)
            .max();
        assert_eq!(ack.seq, last.unwrap_or(0) + 1, "seqs are dense from 1");
        for receiver in receivers {
            self.expected[receiver].entry(ack.conversation.clone()).or_default().insert(ack.seq);
        }
        self.sent.push((user_index, key, target, ack.seq));
        self.devices[device].has.entry(ack.conversation).or_default().insert(ack.seq);
        self.sort_pushes();
    }

    fn repeat(&mut self, device: usize, which: usize, changed: bool) {
        let Some(session) = self.devices[device].session else { return };
        let own: Vec<_> = self.sent.iter().enumerate().filter(|(_, it)| it.0 == device / DEVICES).collect();
        if own.is_empty() {
            return;
        }
        let (number, (_, key, target, seq)) = own[which % own.len()];
        let payload = (number as u64 + u64::from(changed)).to_le_bytes();
        let (code, ack) = self.bench.send(session, target.clone(), key, &payload);
        let expected = if changed { (Code::Conflict, 0) } else { (Code::Dup, *seq) };
        assert_eq!((code, ack.seq), expected);
        assert_eq!(self.bench.pushes(), [], "a repetition is delivered to nobody");
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

    /// The gateway's queue is full: it takes nothing from there on.
    fn fail(&mut self, device: usize, from: usize) {
        let from = from.min(self.devices[device].queue.len());
        for pushed in self.devices[device].queue.split_off(from) {
            self.bench.outcome(&pushed, Outcome::Full);
        }
        self.sort_pushes();
    }

    fn membership(&mut self, device: usize, method: &str) {
        let Some(session) = self.devices[device].session else { return };
        let request = GroupRequest { conversation: "group:g".into() };
        self.bench.req::<GroupResponse>(session, method, &request).expect("allowed");
    }

    /// Puts what was pushed into the queues.
    fn sort_pushes(&mut self) {
        for pushed in self.bench.pushes() {
            let to = self.devices.iter_mut().find(|it| it.session == Some(pushed.session));
            to.expect("pushes go to live sessions").queue.push_back(pushed);
        }
    }

    /// What a client does with a push.
    fn take(&mut self, device: usize, session: SessionId, pushed: &Pushed) {
        let (conversation, through) = if pushed.command == Command::Notify {
            assert!(!self.is_lossless, "nothing was dropped");
            let notify: Notify = decode(&pushed.body).expect("a Notify");
            (notify.conversation, notify.latest)
        } else {
            let push = pushed.push();
            (push.conversation, push.seq)
        };
        let has = self.devices[device].has.entry(conversation.clone()).or_default();
        if pushed.command == Command::Push {
            let is_owed = |seq: &&u64| **seq < through && !has.contains(seq);
            let owed = self.expected[device / DEVICES].get(&conversation).expect("it is for this user");
            assert!(owed.contains(&through), "only what is for this user");
            let hole = owed.iter().find(is_owed);
            assert!(!self.is_lossless || hole.is_none(), "{through} came before {hole:?}");
            has.insert(through);
            if hole.is_none() {
                return;
            }
        }
        let request = PullRequest { conversation: conversation.clone(), from: 1, to: through, limit: 0 };
        let page: PullResponse = self.bench.req(session, "im.pull", &request).expect("a member");
        assert!(!page.more && page.voids.is_empty());
        let has = self.devices[device].has.get_mut(&conversation).expect("made above");
        has.extend(page.messages.iter().map(|it| it.seq));
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Connect(device) => self.connect(device),
            Step::Disconnect { device, unheard } => self.disconnect(device, unheard),
            Step::Reannounce(device) => self.reannounce(device),
            Step::Send { device, to } => self.send(device, to),
            Step::Repeat { device, which, changed } => self.repeat(device, which, changed),
            Step::Ack { device, count } => self.ack(device, count),
            Step::Fail { device, from } => self.fail(device, from),
            Step::Join(device) if self.is_lossless && self.devices[device].session.is_some() => {
                self.membership(device, "im.group.join");
                self.members.insert(device / DEVICES);
            }
            Step::Leave(device) if self.is_lossless && self.devices[device].session.is_some() => {
                self.membership(device, "im.group.leave");
                self.members.remove(&(device / DEVICES));
            }
            Step::Join(_) | Step::Leave(_) => {}
            Step::Pass => {
                self.bench.pass(Duration::from_millis(400));
                self.sort_pushes();
            }
        }
    }

    /// Everyone comes online and handles everything: then everyone has everything, once.
    fn settle(&mut self) {
        (0..self.devices.len()).for_each(|device| self.connect(device));
        while let Some(device) = self.devices.iter().position(|it| !it.queue.is_empty()) {
            self.ack(device, 1);
        }
        for (index, device) in self.devices.iter().enumerate() {
            let expected = &self.expected[index / DEVICES];
            assert_eq!(&device.has, expected, "device {index}");
        }
        (0..USERS).for_each(|user| assert_eq!(self.bench.stream_of(&format!("u{user}")), 0, "all acked"));
    }
}

fn conversation_of(sender: usize, target: &send::Target) -> String {
    match target {
        send::Target::Conversation(id) => id.clone(),
        send::Target::User(peer) => {
            let mut id = String::new();
            crate::im::names::write_one_to_one(&mut id, &format!("u{sender}"), peer);
            id
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_device_gets_everything_once_and_in_order(steps in proptest::collection::vec(step(), 0..160)) {
        let mut world = World::new(ImConfig { outstanding: 4, ..ImConfig::default() }, true);
        steps.iter().for_each(|step| world.step(step));
        world.settle();
    }

    #[test]
    fn devices_with_a_tiny_inbox_converge_by_pulling(steps in proptest::collection::vec(step(), 0..160)) {
        let config = ImConfig { outstanding: 4, inbox_entries_max: 3, ..ImConfig::default() };
        let mut world = World::new(config, false);
        steps.iter().for_each(|step| world.step(step));
        world.settle();
    }
}
