//! A router over two nodes of a cluster, driven by hand: bytes in, orders out.

use super::*;
use crate::messages::{Downlink, Uplink};
use crate::shard_map::{Pins, UserKey};
use bytes::{Bytes, BytesMut};
use moorline_proto::frame::Command;
use moorline_proto::ids::ConnKey;
use moorline_proto::link::{self, Kind, LinkDecoder, LinkFrame, NONCE_BYTES};
use moorline_proto::message::backend::{
    Announce, ConnUp, Leave, LinkHello, Moved as MovedBody, NodeAddress, Slots as SlotsBody, Up as UpBody,
    UpResult,
};
use moorline_proto::message::client::Code;
use moorline_proto::slots::{Moved, NodeId, Owner, SlotTable};
use moorline_proto::time::Duration;
use prost::Message;

const UP_TIMEOUT: Duration = Duration::from_secs(3);
/// Links to nodes 1 and 2.
const ONE: LinkIndex = LinkIndex(0);
const TWO: LinkIndex = LinkIndex(1);
const ALICE: &str = "alice";

fn owner(node: u16, epoch: u64) -> Owner {
    Owner { node: Some(NodeId(node)), epoch }
}

struct Desk {
    router: Router,
    now: Instant,
    key: UserKey,
}

impl Desk {
    /// Both links are open, and node 1 owns everything.
    fn new() -> Self {
        let key = UserKey::new([7; 16], Pins::Cluster);
        let hello =
            LinkHello { version_min: 1, version_max: 1, node: "g".into(), epoch: 5, ..LinkHello::default() };
        let link = LinkSettings {
            hello: LinkHello { knows_slots: true, ..hello },
            times: LinkTimes::default(),
            reconnect_min: Duration::from_millis(10),
            reconnect_max: Duration::from_millis(20),
            up_timeout: UP_TIMEOUT,
            output_max: LINK_OUTPUT_MAX,
            pending_bytes: 1 << 20,
            body_max: 1 << 20,
        };
        let settings = RouterSettings {
            shard_map: ShardMap::new(1).with_key(key),
            number: 0,
            endpoints: ["127.0.0.1:1", "127.0.0.1:2"].map(|place| place.parse().expect("an endpoint")).into(),
            stores: Stores::default(),
            links_per_endpoint: 1,
            balance: Balance::Cluster,
            link,
            parking: ParkingLimits { frames: 100, bytes: 1 << 20, changes: 100 },
            overload: OverloadLimits {
                latency: Duration::from_secs(60),
                queue_frames: 1 << 20,
                hold: Duration::from_secs(2),
            },
            compress_min: 512,
            seed: 1,
        };
        let router = Router::new(settings, Judge::Backend, Instant::ZERO);
        let mut desk = Self { router, now: Instant::ZERO, key };
        desk.router.handle_timeouts(desk.now);
        for (index, node) in [(ONE, 1), (TWO, 2)] {
            desk.open(index, node);
        }
        desk.slots(ONE, owner(1, 1));
        desk.turn();
        desk
    }

    fn open(&mut self, index: LinkIndex, node: u32) {
        let trust = Trust { secrets: Vec::new(), unproven: Unproven::Private };
        let connected = Connected {
            trust,
            nonce: [1; NONCE_BYTES],
            is_known: true,
            is_encrypted: false,
            is_loopback: true,
            unix_base_nanos: 0,
        };
        self.router.handle_link_connected(self.now, index, connected);
        let hello = LinkHello {
            version_min: 1,
            version_max: 1,
            node: format!("b{node}"),
            cluster_node: node + 1,
            store: "c".into(),
            ..LinkHello::default()
        };
        self.say(index, Kind::Hello, 0, 64, &hello);
    }

    fn say(&mut self, index: LinkIndex, kind: Kind, correlation: u64, credit: u32, body: &impl Message) {
        let mut wire = BytesMut::new();
        link::encode(&mut wire, kind, correlation, credit, body);
        self.router.handle_link_bytes(self.now, index, wire.freeze());
    }

    /// A node tells that this one owns all slots.
    fn slots(&mut self, index: LinkIndex, owner: Owner) {
        let mut table = SlotTable::default();
        Slot::all().for_each(|slot| _ = table.learn(slot, owner));
        self.say(index, Kind::Slots, 0, 0, &SlotsBody::from(&table));
    }

    /// A node tells these nodes that live, and nothing new of slots.
    fn nodes(&mut self, index: LinkIndex, nodes: &[(u32, &str)]) {
        let named = nodes
            .iter()
            .map(|(node, address)| NodeAddress { node: node + 1, address: (*address).to_owned() });
        let slots = SlotsBody { addresses: named.collect(), ..SlotsBody::from(&SlotTable::default()) };
        self.say(index, Kind::Slots, 0, 0, &slots);
    }

    /// The endpoints that are to be connected to now.
    fn connects(&mut self) -> Vec<(LinkIndex, String)> {
        self.router.handle_timeouts(self.now);
        let outputs = std::iter::from_fn(|| self.router.poll_output());
        let connects = outputs.filter_map(|output| match output {
            Output::Connect { link, endpoint } => Some((link, endpoint.to_string())),
            _ => None,
        });
        connects.collect()
    }

    fn moved(&mut self, index: LinkIndex, correlation: u64, owner: Owner) {
        let moved = Moved { slot: Slot::of(ALICE), owner };
        self.say(index, Kind::Moved, correlation, 0, &MovedBody::from(moved));
    }

    fn shard(&mut self, items: Vec<Uplink>) {
        self.router.handle_uplink(self.now, UplinkBatch { from: ShardId(0), items });
    }

    fn log_in(&mut self) {
        let login = ConnUp { handle: 77, uid: ALICE.into(), ..ConnUp::default() };
        let pin = self.key.pin(ALICE);
        self.shard(vec![Uplink::ConnUp { pin, login: Box::new(login) }]);
    }

    fn send(&mut self, number: u32) {
        let (key, pin, command) = (ConnKey::from_u64(77), self.key.pin(ALICE), Command::Send);
        let body = Bytes::from(number.to_be_bytes().to_vec());
        self.shard(vec![Uplink::Up { key, pin, command, number, is_dup: false, body }]);
    }

    /// Ends turns until nothing moves; the shard answers announcements with alice. Returns what the links were written and
    /// what the shard was told.
    fn turn(&mut self) -> (Vec<(LinkIndex, LinkFrame)>, Vec<Downlink>) {
        let (mut frames, mut told) = (Vec::new(), Vec::new());
        for _ in 0..4 {
            self.router.handle_timeouts(self.now);
            self.router.handle_turn_end(self.now);
            while let Some(output) = self.router.poll_output() {
                match output {
                    Output::Write(index) => {
                        let mut bytes = Bytes::copy_from_slice(self.router.link_output(index));
                        self.router.handle_link_sent(self.now, index, bytes.len());
                        let mut decoder = LinkDecoder::new();
                        let next = || decoder.decode(&mut bytes).expect("valid frames");
                        frames.extend(std::iter::from_fn(next).map(|frame| (index, frame)));
                    }
                    Output::Deliver { batch, .. } => told.extend(batch.items),
                    _ => {}
                }
            }
            for item in std::mem::take(&mut told) {
                if let Downlink::Announce { request, .. } = item {
                    let login = ConnUp { handle: 77, uid: ALICE.into(), ..ConnUp::default() };
                    let logins = vec![(self.key.pin(ALICE), login)];
                    self.shard(vec![Uplink::Announced { request, logins, is_last: true }]);
                } else {
                    told.push(item);
                }
            }
            self.router.check();
        }
        (frames, told)
    }
}

/// Numbers of the SENDs of UPs, each with whether it has `dup`.
fn ups(frames: &[(LinkIndex, LinkFrame)], index: LinkIndex) -> Vec<(u64, u32, bool)> {
    let ups = frames.iter().filter(|(link, frame)| *link == index && frame.kind == Kind::Up);
    let ups = ups.map(|(_, frame)| {
        let up: UpBody = frame.message().expect("an Up");
        (frame.correlation, up.seq, up.dup)
    });
    ups.collect()
}

/// Kinds of the frames of a link, without those of every link.
fn kinds(frames: &[(LinkIndex, LinkFrame)], index: LinkIndex) -> Vec<Kind> {
    let of_link = frames.iter().filter(|(link, _)| *link == index).map(|(_, frame)| frame.kind);
    of_link.filter(|kind| !matches!(kind, Kind::Stats | Kind::Ping | Kind::Slots)).collect()
}

#[test]
fn users_go_to_the_node_that_owns_their_slot() {
    let mut desk = Desk::new();
    desk.log_in();
    desk.send(1);
    let (frames, _) = desk.turn();
    assert_eq!((kinds(&frames, ONE), kinds(&frames, TWO)), (vec![Kind::ConnUp, Kind::Up], vec![]));
}

#[test]
fn an_up_that_is_answered_moved_goes_to_the_owner_behind_its_announcement_and_in_order() {
    let mut desk = Desk::new();
    desk.log_in();
    (1..=3).for_each(|number| desk.send(number));
    let (frames, _) = desk.turn();
    assert_eq!(ups(&frames, ONE), [(1, 1, false), (2, 2, false), (3, 3, false)]);
    let result = UpResult { code: Code::Ok.into(), ..UpResult::default() };
    desk.say(ONE, Kind::UpResult, 1, 0, &result);
    desk.moved(ONE, 2, owner(2, 2));
    desk.send(4);
    let (frames, told) = desk.turn();
    let leave = frames.iter().find(|(link, frame)| *link == ONE && frame.kind == Kind::Leave).expect("LEAVE");
    let slots = leave.1.message::<Leave>().expect("a Leave").slots;
    assert_eq!(slots, [u32::from(Slot::of(ALICE).number())]);
    assert_eq!(kinds(&frames, TWO), [Kind::Announce, Kind::Up, Kind::Up, Kind::Up]);
    let announce = frames.iter().find(|(_, frame)| frame.kind == Kind::Announce).expect("ANNOUNCE");
    assert_eq!(announce.1.message::<Announce>().expect("an Announce").connections[0].uid, ALICE);
    assert_eq!(ups(&frames, TWO), [(1, 2, true), (2, 3, true), (3, 4, false)]);
    assert_eq!(told.iter().filter(|item| matches!(item, Downlink::Answer { .. })).count(), 1, "the first");
    // Node 1 may still answer what it had: that is late, and breaks nothing.
    desk.moved(ONE, 3, owner(2, 2));
    desk.say(ONE, Kind::UpResult, 2, 0, &result);
    let (frames, told) = desk.turn();
    assert!(ups(&frames, TWO).is_empty() && told.is_empty() && desk.router.is_open(ONE), "{told:?}");
}

#[test]
fn slots_of_a_node_that_is_gone_wait_for_the_news_of_another_one() {
    let mut desk = Desk::new();
    desk.log_in();
    desk.send(1);
    desk.turn();
    desk.router.handle_link_closed(desk.now, ONE, &Failure::Closed);
    let (frames, _) = desk.turn();
    assert!(kinds(&frames, TWO).is_empty(), "node 2 does not own it");
    desk.now += Duration::from_millis(300);
    let (frames, _) = desk.turn();
    let is_asked = frames.iter().any(|(link, frame)| *link == TWO && frame.kind == Kind::Slots);
    assert!(is_asked, "it asks who does");
    desk.slots(TWO, owner(2, 2));
    let (frames, _) = desk.turn();
    assert_eq!(ups(&frames, TWO), [(1, 1, true)]);
}

#[test]
fn without_an_owner_an_up_is_answered_retry_in_time() {
    let mut desk = Desk::new();
    desk.log_in();
    desk.turn();
    desk.slots(TWO, Owner { node: None, epoch: 2 });
    desk.send(1);
    let (frames, _) = desk.turn();
    assert!(ups(&frames, ONE).is_empty() && ups(&frames, TWO).is_empty());
    desk.now += UP_TIMEOUT;
    let (_, told) = desk.turn();
    assert!(told.iter().any(|item| matches!(item, Downlink::Answer { .. })), "{told:?}");
}

#[test]
fn a_node_that_has_not_heard_of_its_slot_is_tried_again_after_a_pause() {
    let mut desk = Desk::new();
    desk.slots(TWO, owner(2, 2));
    desk.log_in();
    desk.send(1);
    let (frames, _) = desk.turn();
    assert_eq!(ups(&frames, TWO), [(1, 1, false)]);
    desk.moved(TWO, 1, owner(1, 1));
    let (frames, _) = desk.turn();
    assert!(ups(&frames, TWO).is_empty() && ups(&frames, ONE).is_empty(), "it waits");
    desk.now += Duration::from_millis(100);
    let (frames, _) = desk.turn();
    assert_eq!(ups(&frames, TWO), [(2, 1, true)]);
}

#[test]
fn backends_of_another_kind_are_refused() {
    let mut desk = Desk::new();
    desk.router.handle_link_closed(desk.now, TWO, &Failure::Closed);
    desk.now += Duration::from_millis(50);
    desk.turn();
    let plain = LinkHello { version_min: 1, version_max: 1, node: "b".into(), ..LinkHello::default() };
    let trust = Trust { secrets: Vec::new(), unproven: Unproven::Private };
    let connected = Connected {
        trust,
        nonce: [1; NONCE_BYTES],
        is_known: true,
        is_encrypted: false,
        is_loopback: true,
        unix_base_nanos: 0,
    };
    desk.router.handle_link_connected(desk.now, TWO, connected);
    desk.say(TWO, Kind::Hello, 0, 64, &plain);
    assert!(!desk.router.is_open(TWO) && desk.router.is_open(ONE));
}

#[test]
fn nodes_that_the_settings_do_not_name_get_links_and_may_move() {
    let three = LinkIndex(2);
    let mut desk = Desk::new();
    let known = [(1, "127.0.0.1:1"), (2, "127.0.0.1:2")];
    desk.nodes(ONE, &known);
    assert_eq!(desk.connects(), [], "the settings name both");
    desk.nodes(ONE, &[known[0], known[1], (3, "127.0.0.1:3"), (3, "nowhere")]);
    assert_eq!(desk.connects(), [(three, "127.0.0.1:3".to_owned())]);
    desk.open(three, 3);
    desk.slots(three, owner(3, 2));
    desk.log_in();
    desk.send(1);
    let (frames, _) = desk.turn();
    assert_eq!(ups(&frames, three), [(1, 1, false)]);
    // It dies, and nobody names it: nobody tries it.
    desk.router.handle_link_closed(desk.now, three, &Failure::Closed);
    desk.nodes(ONE, &known);
    desk.now += Duration::from_secs(1);
    assert_eq!(desk.connects(), []);
    // A node of an earlier version names nobody, which tells nothing.
    desk.nodes(ONE, &[]);
    assert_eq!(desk.connects(), []);
    desk.nodes(ONE, &[known[0], known[1], (3, "127.0.0.1:33")]);
    assert_eq!(desk.connects(), [(three, "127.0.0.1:33".to_owned())], "in its old place");
    desk.open(three, 3);
    let (frames, _) = desk.turn();
    assert_eq!(
        ups(&frames, three).iter().map(|(_, number, dup)| (*number, *dup)).collect::<Vec<_>>(),
        [(1, true)]
    );
    // What the settings name another way is not linked twice.
    desk.nodes(ONE, &[(1, "10.0.0.1:1"), known[1], (3, "127.0.0.1:33")]);
    assert_eq!((desk.connects().len(), desk.router.links().count()), (0, 3));
}

#[test]
fn a_cluster_that_names_too_many_nodes_gets_links_to_some() {
    let mut desk = Desk::new();
    let names: Vec<_> = (0..100).map(|node| format!("10.0.0.{node}:7100")).collect();
    let nodes: Vec<_> = (10..).zip(names.iter().map(String::as_str)).collect();
    desk.nodes(ONE, &nodes);
    assert_eq!((desk.connects().len(), desk.router.links().count()), (64, 66));
    let counters = desk.router.counters();
    assert_eq!((counters[Count::NodesLearned], counters[Count::NodesRefused]), (64, 36));
}
