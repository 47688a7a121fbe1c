//! A node of a cluster: SLOTS, MOVED, LEAVE, and links between nodes.

use super::*;
use crate::server::{NodeSlots, PeerConnected, PeerLinks, PeerOutput, Refusal};
use moorline_proto::link::Secrets;
use moorline_proto::message::backend::{Leave, Peer as PeerBody, Slots};
use moorline_proto::slots::{Moved, NodeId, Owner, Slot, SlotSet, SlotTable};

const ME: NodeId = NodeId(1);
const OTHER: NodeId = NodeId(2);

/// A table in which node 1 has all slots, but those of these users, which node 2 has.
fn slots(version: u64, others: &[&str]) -> NodeSlots {
    let (mut table, mut owned) = (SlotTable::default(), SlotSet::default());
    for slot in Slot::all() {
        let is_other = others.iter().any(|uid| Slot::of(uid) == slot);
        table.learn(slot, Owner { node: Some(if is_other { OTHER } else { ME }), epoch: version });
        if !is_other {
            owned.insert(slot);
        }
    }
    NodeSlots { node: ME, table, owned, addresses: Vec::new() }
}

fn address(number: u8) -> moorline_proto::link::LinkAddress {
    format!("127.0.0.{number}:7100").parse().expect("an address")
}

fn desk(others: &[&str]) -> Desk {
    let mut desk = Desk::new(&LinkConfig::default());
    desk.host.handle_store(Bytes::from_static(b"cluster"));
    desk.host.handle_slots(slots(1, others));
    desk
}

/// A link of a gateway that follows slots.
fn gateway(desk: &mut Desk) -> LinkId {
    let link = desk.open();
    desk.say(link, Kind::Hello, 0, &LinkHello { knows_slots: true, ..hello(1, 7) });
    desk.drain();
    link
}

fn moved(frames: &[LinkFrame]) -> Vec<(u64, Option<Moved>)> {
    let moved = frames.iter().filter(|frame| frame.kind == Kind::Moved);
    moved.map(|frame| (frame.correlation, Moved::of(&frame.message().expect("a Moved")))).collect()
}

#[test]
fn a_gateway_is_told_the_slots_with_the_hello_and_when_they_change() {
    let mut desk = desk(&[]);
    gateway(&mut desk);
    let frames = desk.turn_end();
    let hello: LinkHello = frames[0].message().expect("a HELLO");
    assert_eq!((hello.cluster_node, &hello.store[..]), (2, &b"cluster"[..]));
    let told = |frames: &[LinkFrame]| {
        let last = frames.iter().rfind(|frame| frame.kind == Kind::Slots)?;
        SlotTable::of(&last.message::<Slots>().expect("Slots"))
    };
    assert_eq!(told(&frames), Some(slots(1, &[]).table));
    assert!(desk.turn_end().is_empty(), "nothing is new");
    desk.host.handle_slots(slots(2, &["bob"]));
    assert!(desk.turn_end().is_empty(), "too early after the last one");
    assert!(desk.host.next_deadline() <= desk.now.instant + Duration::from_millis(100));
    desk.now.instant += Duration::from_millis(100);
    assert_eq!(told(&desk.turn_end()), Some(slots(2, &["bob"]).table));
}

#[test]
fn a_gateway_is_told_the_addresses_of_nodes_and_when_they_change() {
    let with = |nodes: &[u8]| {
        let addresses = nodes.iter().map(|node| (NodeId(u16::from(*node)), address(*node))).collect();
        NodeSlots { addresses, ..slots(1, &[]) }
    };
    let mut desk = desk(&[]);
    desk.host.handle_slots(with(&[1]));
    gateway(&mut desk);
    let told = |frames: &[LinkFrame]| {
        let last = frames.iter().rfind(|frame| frame.kind == Kind::Slots)?;
        let slots: Slots = last.message().expect("Slots");
        Some(slots.addresses.into_iter().map(|named| (named.node, named.address)).collect::<Vec<_>>())
    };
    let first = (2, "127.0.0.1:7100".to_owned());
    assert_eq!(told(&desk.turn_end()), Some(vec![first.clone()]));
    desk.now.instant += Duration::from_millis(100);
    desk.host.handle_slots(with(&[1]));
    assert!(desk.turn_end().is_empty(), "nothing is new");
    // No slot has another owner, and a node has come.
    desk.host.handle_slots(with(&[1, 2]));
    assert_eq!(told(&desk.turn_end()), Some(vec![first, (3, "127.0.0.2:7100".to_owned())]));
}

#[test]
fn a_gateway_that_does_not_follow_slots_is_refused() {
    let mut desk = desk(&[]);
    let link = desk.open();
    desk.say(link, Kind::Hello, 0, &hello(1, 7));
    let refused = desk.drain().into_iter().any(|output| {
        matches!(output, Output::Close { end: LinkEnd::Refused { refusal: Refusal::Cluster, .. }, .. })
    });
    assert!(refused);
}

#[test]
fn a_login_of_a_foreign_slot_is_answered_moved_and_not_known() {
    let mut desk = desk(&["user5"]);
    let link = gateway(&mut desk);
    desk.turn_end();
    desk.log_in(link, 4);
    desk.say(link, Kind::ConnUp, 3, &ConnUp { handle: 5, uid: "user5".into(), ..ConnUp::default() });
    assert!(desk.drain().is_empty(), "the handler hears nothing");
    let owner = Owner { node: Some(OTHER), epoch: 1 };
    let expected = Moved { slot: Slot::of("user5"), owner };
    assert_eq!(moved(&desk.turn_end()), [(0, Some(expected))]);
}

#[test]
fn an_up_of_a_slot_that_was_lost_is_answered_moved_with_its_number() {
    let mut desk = desk(&[]);
    let link = gateway(&mut desk);
    desk.log_in(link, 4);
    desk.turn_end();
    desk.host.handle_slots(slots(2, &["user4"]));
    let up = Up { handle: 4, command: Command::Send.byte().into(), ..Up::default() };
    desk.say(link, Kind::Up, 9, &up);
    assert!(desk.drain().is_empty(), "the handler hears nothing");
    let owner = Owner { node: Some(OTHER), epoch: 2 };
    assert_eq!(moved(&desk.turn_end()), [(9, Some(Moved { slot: Slot::of("user4"), owner }))]);
    // It holds no credit: the link is not paused by many of them.
    for correlation in 0..u64::from(LinkConfig::default().credit) + 10 {
        desk.say(link, Kind::Up, 10 + correlation, &up);
    }
    assert!(desk.drain().is_empty());
}

#[test]
fn leave_ends_the_sessions_that_no_later_announcement_has_named() {
    let mut desk = desk(&[]);
    let link = gateway(&mut desk);
    let login = |handle: u64, uid: &str| ConnUp { handle, uid: uid.into(), ..ConnUp::default() };
    for (number, handle, uid) in [(3, 1, "alice"), (3, 2, "bob"), (8, 3, "alice")] {
        desk.say(link, Kind::ConnUp, number, &login(handle, uid));
    }
    let sessions: Vec<_> = desk
        .drain()
        .into_iter()
        .filter_map(|output| match output {
            Output::Event(Event::ConnUp { session, .. }) => Some(session),
            _ => None,
        })
        .collect();
    desk.say(link, Kind::Leave, 7, &Leave { slots: vec![Slot::of("alice").number().into(), 5000] });
    let ended: Vec<_> = desk
        .drain()
        .into_iter()
        .map(|output| match output {
            Output::Event(Event::ConnDown { session, code: 0 }) => session,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ended, [sessions[0]]);
    desk.host.check();
}

/// A node's links to others, joined by hand to the link port of another node.
struct Pair {
    links: PeerLinks,
    other: Desk,
    now: Now,
    /// The link at the other node.
    link: Option<LinkId>,
}

impl Pair {
    fn new(config: &LinkConfig, secrets: [&str; 2], stores: [&'static [u8]; 2]) -> Self {
        let secrets = secrets.map(|secrets| Secrets::parse(secrets).expect("valid"));
        let mut other = Desk { host: LinkHost::new(config, "b".into(), 5), now: Now::default() };
        other.host.handle_secrets(secrets[1].clone());
        other.host.handle_store(Bytes::from_static(stores[1]));
        other.host.handle_slots(NodeSlots { node: OTHER, ..slots(1, &[]) });
        let mut links = PeerLinks::new(config, 5);
        links.handle_secrets(secrets[0].clone());
        links.handle_store(Bytes::from_static(stores[0]));
        links.handle_peers(other.now.instant, ME, vec![(ME, address(1)), (OTHER, address(2))]);
        Self { links, now: other.now, other, link: None }
    }

    fn drain(&mut self) -> Vec<PeerOutput> {
        std::iter::from_fn(|| self.links.poll_output()).collect()
    }

    /// Lets time pass at the node.
    fn pass(&mut self, time: Duration) -> Vec<PeerOutput> {
        self.now.instant += time;
        self.links.handle_timeouts(self.now.instant);
        self.drain()
    }

    /// Lets both talk. Returns the messages at the other node, with their sender.
    fn talk(&mut self) -> Vec<(NodeId, Bytes)> {
        let mut told = Vec::new();
        for _ in 0..20 {
            self.links.handle_timeouts(self.now.instant);
            self.links.flush();
            for output in self.drain() {
                self.on_output(output);
            }
            self.other.host.handle_turn_end(self.other.now);
            for output in self.other.drain() {
                match output {
                    Output::Write(link) => {
                        let bytes = Bytes::copy_from_slice(self.other.host.unsent(link));
                        self.other.host.handle_link_sent(self.other.now, link, bytes.len());
                        self.links.handle_bytes(self.now.instant, OTHER, bytes);
                    }
                    Output::Close { farewell, .. } => {
                        self.links.handle_bytes(self.now.instant, OTHER, farewell);
                        self.link = None;
                    }
                    Output::Event(Event::Peer { node, message }) => told.push((node, message)),
                    Output::Event(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        told
    }

    fn on_output(&mut self, output: PeerOutput) {
        match output {
            PeerOutput::Dial(node, to) => {
                assert_eq!((node, to), (OTHER, address(2)));
                self.link = Some(self.other.visit(Peer::Network, [2; NONCE_BYTES]));
                let (nonce, is_known, is_loopback) = ([1; NONCE_BYTES], false, false);
                let connected = PeerConnected { nonce, is_known, is_loopback };
                self.links.handle_connected(self.now.instant, node, connected);
            }
            PeerOutput::Write(node) => {
                let mut bytes = Bytes::copy_from_slice(self.links.unsent(node));
                self.links.handle_sent(self.now.instant, node, bytes.len());
                let Some(link) = self.link else { return };
                while !bytes.is_empty() {
                    self.other.host.handle_link_bytes(self.other.now, link, &mut bytes);
                }
            }
            PeerOutput::HangUp(_) => self.link = None,
        }
    }
}

const SECRET: &str = "node-1 0123456789abcdef0123456789abcdef";

#[test]
fn nodes_prove_themselves_and_what_waited_is_sent() {
    let mut pair = Pair::new(&LinkConfig::default(), [SECRET, SECRET], [b"c", b"c"]);
    pair.links.send(OTHER, Bytes::from_static(b"early"));
    assert_eq!(pair.talk(), [(ME, Bytes::from_static(b"early"))]);
    pair.links.send(OTHER, Bytes::from_static(b"late"));
    pair.links.send(NodeId(9), Bytes::from_static(b"to nobody"));
    assert_eq!(pair.talk(), [(ME, Bytes::from_static(b"late"))]);
    assert_eq!((pair.links.open(), pair.links.lost()), (1, 1));
}

#[test]
fn nodes_without_a_proof_or_of_another_cluster_exchange_nothing() {
    let other = "node-1 ffffffffffffffffffffffffffffffff";
    let cases: [([&str; 2], [&'static [u8]; 2]); 4] = [
        (["", ""], [b"c", b"c"]),
        ([SECRET, ""], [b"c", b"c"]),
        ([SECRET, other], [b"c", b"c"]),
        ([SECRET, SECRET], [b"c", b"d"]),
    ];
    for (secrets, stores) in cases {
        let mut pair = Pair::new(&LinkConfig::default(), secrets, stores);
        pair.links.send(OTHER, Bytes::from_static(b"hi"));
        assert_eq!(pair.talk(), [], "{secrets:?} {stores:?}");
        assert_eq!((pair.link, pair.links.open()), (None, 0), "{secrets:?} {stores:?}");
    }
}

#[test]
fn a_gateway_sends_no_peer_frame_and_a_node_no_login() {
    let mut desk = desk(&[]);
    let link = gateway(&mut desk);
    desk.turn_end();
    desk.say(link, Kind::Peer, 0, &PeerBody { message: Bytes::from_static(b"x") });
    assert!(desk.drain().iter().any(|output| matches!(output, Output::Close { .. })));
    let mut pair = Pair::new(&LinkConfig::default(), [SECRET, SECRET], [b"c", b"c"]);
    pair.talk();
    let link = pair.link.expect("open");
    pair.other.say(link, Kind::ConnUp, 0, &ConnUp { handle: 1, uid: "a".into(), ..ConnUp::default() });
    assert!(pair.other.drain().iter().any(|output| matches!(output, Output::Close { .. })));
}

#[test]
fn a_node_that_is_silent_or_gone_is_given_up_and_dialled_again() {
    let mut pair = Pair::new(&LinkConfig::default(), [SECRET, SECRET], [b"c", b"c"]);
    pair.talk();
    let silence = LinkConfig::default().silence_timeout;
    assert_eq!(pair.pass(silence), [PeerOutput::HangUp(OTHER)]);
    assert_eq!(pair.pass(Duration::from_secs(3)), [PeerOutput::Dial(OTHER, address(2))]);
    pair.links.handle_peers(pair.now.instant, ME, Vec::new());
    assert_eq!(pair.drain(), [PeerOutput::HangUp(OTHER)]);
}

#[test]
fn what_waits_for_a_node_is_bounded() {
    let mut pair = Pair::new(&LinkConfig::default(), [SECRET, SECRET], [b"c", b"c"]);
    let message = Bytes::from(vec![0; 64 << 10]);
    (0..64).for_each(|_| pair.links.send(OTHER, message.clone()));
    assert!(pair.links.lost() > 40, "{}", pair.links.lost());
    let told = pair.talk().len() as u64;
    assert_eq!(told + pair.links.lost(), 64);
}

#[test]
fn a_second_process_with_a_nodes_number_does_not_take_its_place() {
    let mut pair = Pair::new(&LinkConfig::default(), [SECRET, SECRET], [b"c", b"c"]);
    pair.talk();
    let secrets = Secrets::parse(SECRET).expect("valid");
    let mut twin = PeerLinks::new(&LinkConfig::default(), 6);
    twin.handle_secrets(secrets);
    twin.handle_store(Bytes::from_static(b"c"));
    twin.handle_peers(pair.now.instant, ME, vec![(OTHER, address(2))]);
    let first = std::mem::replace(&mut pair.links, twin);
    let link = pair.link.take();
    // The newcomer proves itself and has a later start: the first process is asked whether it lives.
    pair.talk();
    let twin = std::mem::replace(&mut pair.links, first);
    pair.link = link;
    pair.other.say(link.expect("open"), Kind::Pong, 1, &());
    let outputs = pair.other.drain();
    let is_refused = |output: &Output| {
        matches!(output, Output::Close { end: LinkEnd::Refused { refusal: Refusal::Duplicate, .. }, .. })
    };
    assert!(outputs.iter().any(is_refused), "{outputs:?}");
    assert_eq!(twin.open(), 0);
    pair.links.send(OTHER, Bytes::from_static(b"still here"));
    assert_eq!(pair.talk(), [(ME, Bytes::from_static(b"still here"))]);
}
