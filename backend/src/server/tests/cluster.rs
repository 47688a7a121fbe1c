//! A node of a cluster: SLOTS, MOVED, LEAVE, and links between nodes.

use super::*;
use crate::server::{NodeSlots, PeerConnected, Refusal};
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
    let peers = vec![(ME, address(1)), (OTHER, address(2))];
    NodeSlots { node: ME, table, owned, peers }
}

fn address(number: u8) -> moorline_proto::link::LinkAddress {
    format!("127.0.0.{number}:7100").parse().expect("an address")
}

fn desk(others: &[&str]) -> Desk {
    let mut desk = Desk::new(&LinkConfig::default());
    desk.host.handle_store(Bytes::from_static(b"cluster"));
    desk.host.handle_slots(desk.now.instant, slots(1, others));
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
    desk.host.handle_slots(desk.now.instant, slots(2, &["bob"]));
    assert!(desk.turn_end().is_empty(), "too early after the last one");
    assert!(desk.host.next_deadline() <= desk.now.instant + Duration::from_millis(100));
    desk.now.instant += Duration::from_millis(100);
    assert_eq!(told(&desk.turn_end()), Some(slots(2, &["bob"]).table));
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
    desk.host.handle_slots(desk.now.instant, slots(2, &["user4"]));
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

/// Two nodes whose links are joined by hand.
struct Pair {
    nodes: [Desk; 2],
    /// Link of node 1 at node 2.
    link: Option<LinkId>,
}

impl Pair {
    fn new(config: &LinkConfig, secrets: [&str; 2], stores: [&'static [u8]; 2]) -> Self {
        let node = |number: usize| {
            let mut desk = Desk { host: LinkHost::new(config, "b".into(), 5), now: Now::default() };
            desk.host.handle_secrets(Secrets::parse(secrets[number]).expect("valid"));
            desk.host.handle_store(Bytes::from_static(stores[number]));
            let node = [ME, OTHER][number];
            desk.host.handle_slots(desk.now.instant, NodeSlots { node, ..slots(1, &[]) });
            desk
        };
        Self { nodes: [node(0), node(1)], link: None }
    }

    /// Connects node 1 to node 2, and lets them talk. Returns the events at node 2.
    fn talk(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        for _ in 0..20 {
            self.nodes[0].host.handle_timeouts(self.nodes[0].now);
            self.nodes[0].host.handle_turn_end(self.nodes[0].now);
            for output in self.nodes[0].drain() {
                match output {
                    Output::Dial(node, to) => {
                        assert_eq!((node, to), (OTHER, address(2)));
                        self.link = Some(self.nodes[1].visit(Peer::Network, [2; NONCE_BYTES]));
                        let (nonce, is_known, is_loopback) = ([1; NONCE_BYTES], false, false);
                        let connected = PeerConnected { nonce, is_known, is_loopback };
                        self.nodes[0].host.handle_peer_connected(self.nodes[0].now, node, connected);
                    }
                    Output::WritePeer(node) => {
                        let mut bytes = Bytes::copy_from_slice(self.nodes[0].host.peer_unsent(node));
                        self.nodes[0].host.handle_peer_sent(self.nodes[0].now, node, bytes.len());
                        let Some(link) = self.link else { continue };
                        while !bytes.is_empty() {
                            self.nodes[1].host.handle_link_bytes(self.nodes[1].now, link, &mut bytes);
                        }
                    }
                    Output::HangUp(_) => self.link = None,
                    Output::Event(Event::Tick) => {}
                    other => panic!("{other:?}"),
                }
            }
            self.nodes[1].host.handle_turn_end(self.nodes[1].now);
            for output in self.nodes[1].drain() {
                match output {
                    Output::Write(link) => {
                        let bytes = Bytes::copy_from_slice(self.nodes[1].host.unsent(link));
                        self.nodes[1].host.handle_link_sent(self.nodes[1].now, link, bytes.len());
                        self.nodes[0].host.handle_peer_bytes(self.nodes[0].now, OTHER, bytes);
                    }
                    Output::Close { farewell, .. } => {
                        self.nodes[0].host.handle_peer_bytes(self.nodes[0].now, OTHER, farewell);
                        self.link = None;
                    }
                    Output::Event(event) => events.push(event),
                    Output::Dial(..) | Output::HangUp(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        events
    }

    fn told(events: &[Event]) -> Vec<(NodeId, Bytes)> {
        let told = events.iter().filter_map(|event| match event {
            Event::Peer { node, message } => Some((*node, message.clone())),
            _ => None,
        });
        told.collect()
    }
}

const SECRET: &str = "node-1 0123456789abcdef0123456789abcdef";

#[test]
fn nodes_prove_themselves_and_what_waited_is_sent() {
    let mut pair = Pair::new(&LinkConfig::default(), [SECRET, SECRET], [b"c", b"c"]);
    pair.nodes[0].host.send_peer(OTHER, Bytes::from_static(b"early"));
    assert_eq!(Pair::told(&pair.talk()), [(ME, Bytes::from_static(b"early"))]);
    pair.nodes[0].host.send_peer(OTHER, Bytes::from_static(b"late"));
    pair.nodes[0].host.send_peer(NodeId(9), Bytes::from_static(b"to nobody"));
    assert_eq!(Pair::told(&pair.talk()), [(ME, Bytes::from_static(b"late"))]);
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
        pair.nodes[0].host.send_peer(OTHER, Bytes::from_static(b"hi"));
        assert_eq!(Pair::told(&pair.talk()), [], "{secrets:?} {stores:?}");
        assert_eq!(pair.link, None, "{secrets:?} {stores:?}");
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
    pair.nodes[1].say(link, Kind::ConnUp, 0, &ConnUp { handle: 1, uid: "a".into(), ..ConnUp::default() });
    assert!(pair.nodes[1].drain().iter().any(|output| matches!(output, Output::Close { .. })));
}

#[test]
fn a_node_that_is_silent_or_gone_is_given_up_and_dialled_again() {
    let mut pair = Pair::new(&LinkConfig::default(), [SECRET, SECRET], [b"c", b"c"]);
    pair.talk();
    let silence = LinkConfig::default().silence_timeout;
    let outputs = pair.nodes[0].pass(silence);
    assert!(outputs.iter().any(|output| matches!(output, Output::HangUp(OTHER))), "{outputs:?}");
    let outputs = pair.nodes[0].pass(Duration::from_secs(3));
    assert!(outputs.iter().any(|output| matches!(output, Output::Dial(OTHER, _))), "{outputs:?}");
    let gone = NodeSlots { peers: Vec::new(), ..slots(2, &[]) };
    pair.nodes[0].host.handle_slots(pair.nodes[0].now.instant, gone);
    assert!(pair.nodes[0].drain().iter().any(|output| matches!(output, Output::HangUp(OTHER))));
}
