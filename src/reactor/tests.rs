//! One reactor on its own poll, turn by turn, between real sockets and mailboxes.

use super::*;
use crate::messages::{Admission, Downlink, Push, PushRef, Rank, Target, Uplink, UplinkBatch};
use bytes::Bytes;
use mio::net::TcpListener;
use moorline_net::mailbox;
use moorline_proto::frame::{Command, Frame, Lane};
use moorline_proto::ids::ShardId;
use moorline_proto::message::backend::Outcome;
use moorline_proto::message::client::{Close, Hello};
use moorline_proto::message::frame_of;
use std::io::{Read, Write};
use std::net::TcpStream as Client;

/// Limit of turns; a test that waits longer has failed.
const TURNS_MAX: usize = 1_000;

const LIMITS: ListenerLimits = ListenerLimits {
    accept_rate: 0,
    handshakes_max: 1_000,
    address_handshakes: 0,
    address_connections: 0,
    address_rate: 0,
};

struct World {
    poll: Poll,
    events: Events,
    reactor: Reactor,
    mail: Sender<ReactorMail>,
    uplinks: Receiver<UplinkBatch>,
    addresses: Vec<std::net::SocketAddr>,
}

impl World {
    fn new(connections_max: usize, accept_budget: usize) -> Self {
        Self::with(connections_max, &[LIMITS], accept_budget)
    }

    fn with(connections_max: usize, limits: &[ListenerLimits], accept_budget: usize) -> Self {
        let poll = Poll::new().expect("epoll");
        let (mail, inbox) = mailbox::mailbox(64, waker(poll.registry()).expect("eventfd"));
        let worker = Poll::new().expect("epoll");
        let (sender, uplinks) = mailbox::mailbox(64, waker(worker.registry()).expect("eventfd"));
        let bind = |_| TcpListener::bind("127.0.0.1:0".parse().expect("an address")).expect("loopback");
        let listeners: Vec<_> = limits.iter().map(bind).collect();
        let addresses = listeners.iter().map(|listener| listener.local_addr().expect("bound")).collect();
        let mut settings = Settings::new(
            &crate::config::Config::default(),
            ShardId(0),
            crate::shard_map::ShardMap::new(1),
            1,
            crate::shard::Birth { epoch: 1, unix_base_nanos: 0, ticket_key: [1; 32] },
            1,
        );
        (settings.frame_rate, settings.user_rate) = (0, 0);
        settings.session_keep = moorline_proto::time::Duration::ZERO;
        let parts = ReactorParts {
            listeners,
            openings: OpeningRules::plain(limits.len()),
            door: Door::new(connections_max, limits.iter().copied()),
            clock: moorline_net::clock::Clock::default(),
            inbox,
            reactors: vec![mail.clone()],
            workers: vec![sender],
            counter_set: Arc::new(CounterSet::new(metrics(limits.len()))),
            kept: Arc::new(moorline_net::cap::CapWatch::new("session.kept_max")),
            read_budget: 64 << 10,
            accept_budget,
        };
        let reactor = Reactor::new(&poll, settings, parts).expect("epoll");
        Self { poll, events: Events::with_capacity(EVENTS_MAX), reactor, mail, uplinks, addresses }
    }

    fn turn(&mut self) {
        let until = self.reactor.time_of_waking();
        let timeout = until.map_or(Duration::ZERO, |until| until.saturating_since(self.reactor.clock.now()));
        self.poll.poll(&mut self.events, Some(timeout)).expect("epoll");
        self.reactor.run_turn(Some(&self.events));
    }

    fn connect(&self) -> Client {
        Client::connect(self.addresses[0]).expect("loopback")
    }

    /// Turns until `is_done` has what it wants.
    fn turn_until<T>(&mut self, mut is_done: impl FnMut(&mut Self) -> Option<T>) -> T {
        for _ in 0..TURNS_MAX {
            if let Some(found) = is_done(self) {
                return found;
            }
            // Nobody must be waited for: what a test looks for is on its way.
            self.mail.wake().expect("eventfd");
            self.turn();
        }
        panic!("not after {TURNS_MAX} turns");
    }

    fn login(&mut self, uid: &str) -> Client {
        let mut client = self.connect();
        let hello = Hello {
            version_min: 1,
            version_max: 1,
            uid: uid.into(),
            device: "d".into(),
            ..Default::default()
        };
        client.write_all(&wire(&frame_of(Command::Hello, &hello), 1)).expect("room");
        let key = self.turn_until(|world| match world.uplinks.try_recv()?.items.pop()? {
            Uplink::Login { key, .. } => Some(key),
            _ => None,
        });
        let admission =
            Admission { uid: uid.into(), device: "d".into(), platform: 0, ..Admission::default() };
        let items = vec![Downlink::Verdict { key, verdict: Ok(admission) }];
        self.mail.try_send(ReactorMail::Downlink(DownlinkBatch { items })).expect("room");
        self.turn_until(|world| world.uplinks.try_recv().map(|_| ()));
        client
    }
}

fn wire(frame: &Frame, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    (0..count).for_each(|_| frame.encode(&mut bytes));
    bytes
}

#[test]
fn a_crowd_at_the_cap_is_turned_away_within_the_accept_budget() {
    let mut world = World::new(0, 2);
    let mut crowd: Vec<_> = (0..7).map(|_| world.connect()).collect();
    for refused in [2, 4, 6, 7] {
        world.turn();
        assert_eq!(world.reactor.sockets.listeners.refused, refused);
    }
    for client in &mut crowd {
        let mut said = Vec::new();
        client.read_to_end(&mut said).expect("refused politely");
        assert_eq!(said[1], Command::Close.byte());
    }
}

#[test]
fn a_stopping_reactor_sleeps_though_somebody_knocks() {
    let mut world = World::new(10, 64);
    let _stays = world.login("alice");
    world.mail.try_send(ReactorMail::Stop).expect("room");
    let _knocks = world.connect();
    world.turn_until(|world| world.reactor.is_stopping.then_some(()));
    world.reactor.sockets.listeners.handle_edge(0);
    assert_eq!(world.reactor.shard.clients(), 1, "it lingers");
    assert!(world.reactor.time_of_waking() > Some(world.reactor.clock.now()));
}

#[test]
fn a_flood_is_handed_over_in_bounded_batches() {
    let mut world = World::new(10, 64);
    let mut clients: Vec<_> = (0..6).map(|i| world.login(&format!("u{i}"))).collect();
    let flood = wire(&Frame::new(Command::App(0x40), Bytes::new()), 3_000);
    clients.iter_mut().for_each(|client| client.write_all(&flood).expect("room"));
    let (mut got, mut largest) = (0, 0);
    world.turn_until(|world| {
        let batch = world.uplinks.try_recv()?.items.len();
        (got, largest) = (got + batch, largest.max(batch));
        (got == 6 * 3_000).then_some(())
    });
    assert!(largest < TURN_UPLINKS_MAX + 4_096, "{largest} in one batch");
}

#[test]
fn every_way_to_leave_frees_its_place() {
    let mut world = World::new(2, 64);
    for round in 0..6 {
        let (mut first, second) = (world.login("alice"), world.login("bob"));
        match round % 3 {
            0 => drop(first),
            1 => first.write_all(&wire(&Frame::new(Command::Close, Bytes::new()), 1)).expect("room"),
            _ => {
                first.write_all(&wire(&Frame::new(Command::Logout, Bytes::new()), 1)).expect("room");
                world.turn_until(|world| (world.reactor.shard.sessions() == 1).then_some(()));
                drop(first);
            }
        }
        drop(second);
        world.turn_until(|world| (world.reactor.shard.clients() == 0).then_some(()));
        while world.uplinks.try_recv().is_some() {}
    }
    assert_eq!(world.reactor.sockets.listeners.refused, 0);
}

#[test]
fn newcomers_wait_while_too_many_are_not_logged_in() {
    let mut world = World::with(10, &[ListenerLimits { handshakes_max: 2, ..LIMITS }], 64);
    let (first, _second) = (world.connect(), world.connect());
    let mut third = world.connect();
    world.turn_until(|world| (world.reactor.sockets.listeners.handshake_waits > 0).then_some(()));
    assert_eq!(world.reactor.shard.clients(), 2);
    drop(first);
    let hello =
        Hello { version_min: 1, version_max: 1, uid: "c".into(), device: "d".into(), ..Hello::default() };
    third.write_all(&wire(&frame_of(Command::Hello, &hello), 1)).expect("room");
    // The door is looked at again by the clock, so here turns do not count: nobody waits for ever.
    let is_login = |uplink: &Uplink| matches!(uplink, Uplink::Login { .. });
    while !world.uplinks.try_recv().is_some_and(|batch| batch.items.iter().any(is_login)) {
        world.turn();
    }
}

#[test]
fn an_address_has_its_share_of_places_and_others_find_room() {
    let limits = ListenerLimits { handshakes_max: 8, address_handshakes: 4, ..LIMITS };
    let mut world = World::with(100, &[limits], 64);
    let silent: Vec<_> = (0..6).map(|_| world.connect()).collect();
    world.turn_until(|world| (world.reactor.sockets.listeners.handshakes_refused > 0).then_some(()));
    assert_eq!(world.reactor.shard.clients(), 4, "half of the places are for anybody");
    drop(silent);
    world.turn_until(|world| (world.reactor.shard.clients() == 0).then_some(()));
    let _one = world.connect();
    world.turn_until(|world| (world.reactor.shard.clients() == 1).then_some(()));
}

/// Two silent connections are all that there may be; a third one says HELLO, and the oldest leaves for it.
fn a_newcomer_replaces_the_oldest(mut world: World) {
    let (mut first, _second) = (world.connect(), world.connect());
    world.turn_until(|world| (world.reactor.shard.clients() == 2).then_some(()));
    let hello =
        Hello { version_min: 1, version_max: 1, uid: "c".into(), device: "d".into(), ..Hello::default() };
    let greet = |world: &World| {
        let mut client = world.connect();
        client.write_all(&wire(&frame_of(Command::Hello, &hello), 1)).expect("room");
        client
    };
    // The eviction comes by the clock, so turns do not count. A newcomer that is refused comes again.
    let mut third = greet(&world);
    let mut refused = 0;
    let is_login = |uplink: &Uplink| matches!(uplink, Uplink::Login { .. });
    while !world.uplinks.try_recv().is_some_and(|batch| batch.items.iter().any(is_login)) {
        world.turn();
        if world.reactor.sockets.listeners.refused > refused {
            (third, refused) = (greet(&world), world.reactor.sockets.listeners.refused);
        }
    }
    assert_eq!(world.reactor.shard.counters()[crate::shard::Count::HandshakesEvicted], 1);
    let mut said = Vec::new();
    first.read_to_end(&mut said).expect("closed politely");
    assert_eq!(said[1], Command::Close.byte());
    drop(third);
}

#[test]
fn the_oldest_silent_connection_is_evicted_for_a_newcomer() {
    a_newcomer_replaces_the_oldest(World::with(10, &[ListenerLimits { handshakes_max: 2, ..LIMITS }], 64));
}

#[test]
fn at_the_limit_of_connections_the_oldest_silent_one_is_evicted() {
    a_newcomer_replaces_the_oldest(World::with(2, &[ListenerLimits { handshakes_max: 5, ..LIMITS }], 64));
}

#[test]
fn an_address_with_too_many_connections_hears_it_and_frees_its_places() {
    let mut world = World::with(10, &[ListenerLimits { address_connections: 2, ..LIMITS }], 64);
    for _ in 0..3 {
        let kept = [world.connect(), world.connect()];
        let mut over = world.connect();
        let refused = world.reactor.sockets.listeners.addresses_refused;
        world.turn_until(|world| (world.reactor.sockets.listeners.addresses_refused > refused).then_some(()));
        let mut said = Vec::new();
        over.read_to_end(&mut said).expect("refused politely");
        assert_eq!(said[1], Command::Close.byte());
        drop(kept);
        world.turn_until(|world| (world.reactor.shard.clients() == 0).then_some(()));
    }
}

#[test]
fn a_crowd_at_one_listener_does_not_starve_the_other() {
    let mut world = World::with(100, &[LIMITS, LIMITS], 4);
    let _crowd: Vec<_> = (0..40).map(|_| world.connect()).collect();
    let _other = Client::connect(world.addresses[1]).expect("loopback");
    world.turn_until(|world| (world.reactor.sockets.listeners.admitted[1] == 1).then_some(()));
    assert!(
        world.reactor.sockets.listeners.admitted[0] <= 8,
        "{:?}",
        world.reactor.sockets.listeners.admitted
    );
    world.turn_until(|world| (world.reactor.sockets.listeners.admitted[0] == 40).then_some(()));
}

/// Delivers a push whose outcome is wanted to the only client. Its seq is 1.
fn push(world: &World) {
    let key = world.reactor.shard.with_sockets().next().expect("somebody");
    let push = Push {
        ticket: Some(PushRef { worker: 0, link: 0, link_generation: 0, correlation: 1 }),
        targets: vec![Target::Connection(key)],
        command: Command::Push,
        lane: Lane::Chat,
        rank: Rank::First,
        expires_at: Instant::FAR_FUTURE,
        body: Bytes::from_static(b"hi"),
        packed: None,
        except: None,
        collapse: None,
    };
    let items = vec![Downlink::Push(push)];
    world.mail.try_send(ReactorMail::Downlink(DownlinkBatch { items })).expect("room");
}

fn is_outcome(item: &Uplink) -> bool {
    matches!(item, Uplink::Pushed { outcome: Outcome::Acked, .. })
}

#[test]
fn an_outcome_alone_waits_for_company_and_not_for_long() {
    let mut world = World::new(10, 64);
    let mut client = world.login("alice");
    push(&world);
    client.write_all(&wire(&Frame::new(Command::Ack, Bytes::new()).with_ack(1), 1)).expect("room");
    world.turn_until(|world| world.reactor.outcomes_due);
    assert!(world.uplinks.is_empty(), "it waits");
    let batch = world.turn_until(|world| world.uplinks.try_recv());
    assert!(matches!(&batch.items[..], [item] if is_outcome(item)), "{batch:?}");
    assert_eq!(world.reactor.outcomes_due, None);
}

#[test]
fn the_end_of_a_connection_hands_over_what_it_has_acknowledged() {
    let mut world = World::new(10, 64);
    let mut client = world.login("alice");
    push(&world);
    let ack = wire(&Frame::new(Command::Ack, Bytes::new()).with_ack(1), 1);
    client.write_all(&[ack, wire(&frame_of(Command::Close, &Close::default()), 1)].concat()).expect("room");
    client.set_nonblocking(true).expect("a socket");
    let has_ended = |client: &mut Client| matches!(client.read(&mut [0; 4096]), Ok(0));
    let mut batches = Vec::new();
    world.turn_until(|world| {
        batches.extend(std::iter::from_fn(|| world.uplinks.try_recv()));
        has_ended(&mut client).then_some(())
    });
    assert!(batches.iter().flat_map(|batch| &batch.items).any(is_outcome), "{batches:?}");
}
