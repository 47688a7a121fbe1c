//! The heartbeat against networks that forget silent connections after a time that nobody tells [P-7.6].
//!
//! A real core on a virtual clock, a gateway that answers HELLO and PING, and a NAT between them that
//! forgets a silent connection: what is sent then is dropped without a word, or answered by a reset.

use bytes::{Bytes, BytesMut};
use moorline_proto::frame::{Command, Decoder, Frame};
use moorline_proto::keepalive::Attention;
use moorline_proto::message::client::{Platform, Welcome};
use moorline_proto::message::frame_of;
use moorline_proto::time::{Duration, Instant};
use moorline_sdk::core::{Core, CoreConfig, Event, NetworkId, Notice, TokenSource};

/// Half a round trip.
const LATENCY: Duration = Duration::from_millis(40);
/// The bounds of the gateway.
const MIN: Duration = Duration::from_secs(30);
const MAX: Duration = Duration::from_secs(300);
/// Time that a client waits for a PONG.
const PATIENCE: Duration = Duration::from_secs(10);
/// Step of the search, and margin below the longest interval that worked.
const STEP: Duration = Duration::from_secs(60);
const MARGIN: Duration = Duration::from_secs(20);

/// Behaviour of a network toward a connection that it has dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Silent,
    Reset,
}

struct World {
    core: Core,
    now: Instant,
    /// Time that the network keeps a silent connection.
    timeout: Duration,
    manner: Manner,
    is_connected: bool,
    /// Time of the last packet.
    passed_at: Instant,
    is_forgotten: bool,
    decoder: Decoder,
    /// Packets that arrive at the client, in order.
    coming: Vec<(Instant, Frame)>,
    /// Time of connecting.
    connected_at: Instant,
    /// From the login to the first beat, of each connection.
    first_beats: Vec<Duration>,
    has_beaten: bool,
    /// Pauses between PINGs of one connection.
    pauses: Vec<Duration>,
    beaten_at: Option<Instant>,
    losses: usize,
    /// From the moment at which the network forgot to the one at which the client knew.
    blind: Vec<Duration>,
}

impl World {
    fn new(timeout: Duration, manner: Manner, seed: u64) -> Self {
        let config = CoreConfig::new("ann", "phone", Platform::Android, TokenSource::Fixed("t".into()));
        let now = Instant::ZERO + Duration::from_secs(1_000);
        Self {
            core: Core::new(config, seed),
            now,
            timeout,
            manner,
            is_connected: false,
            passed_at: now,
            is_forgotten: false,
            decoder: Decoder::new(),
            coming: Vec::new(),
            connected_at: now,
            first_beats: Vec::new(),
            has_beaten: false,
            pauses: Vec::new(),
            beaten_at: None,
            losses: 0,
            blind: Vec::new(),
        }
    }

    /// Lets this much time pass.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        self.drain();
        while self.now < end {
            let arrival = self.coming.first().map(|(at, _)| *at);
            let next = [arrival, self.core.next_deadline(), Some(end)].into_iter().flatten().min();
            self.now = next.expect("there is an end").max(self.now);
            if arrival.is_some_and(|at| at <= self.now) {
                let (_, frame) = self.coming.remove(0);
                let mut bytes = Vec::new();
                frame.encode(&mut bytes);
                self.core.handle_bytes(self.now, Bytes::from(bytes));
            } else if self.core.next_deadline().is_some_and(|at| at <= self.now) {
                self.core.handle_timeout(self.now);
            }
            self.drain();
        }
    }

    fn drain(&mut self) {
        while let Some(event) = self.core.poll_event() {
            match event {
                Event::Transmit => {
                    let mut out = BytesMut::new();
                    self.core.poll_transmit(&mut out);
                    self.transmit(out.freeze());
                }
                Event::Connect { .. } => {
                    (self.is_connected, self.is_forgotten, self.has_beaten) = (true, false, false);
                    (self.decoder, self.coming, self.beaten_at) = (Decoder::new(), Vec::new(), None);
                    (self.connected_at, self.passed_at) = (self.now, self.now);
                    self.core.handle_connected(self.now);
                    self.drain();
                }
                Event::Notice(Notice::Disconnected { .. }) => {
                    self.losses += 1;
                    self.blind.push(self.now.saturating_since(self.passed_at + self.timeout));
                    self.is_connected = false;
                }
                _ => {}
            }
        }
    }

    /// Bytes leave the client.
    fn transmit(&mut self, mut bytes: Bytes) {
        if !self.is_connected {
            return;
        }
        self.is_forgotten |= self.now.saturating_since(self.passed_at) >= self.timeout;
        self.note_beats(bytes.clone());
        if self.is_forgotten {
            if self.manner == Manner::Reset {
                self.core.handle_disconnected(self.now, None);
                self.drain();
            }
            return;
        }
        self.passed_at = self.now;
        while let Some(frame) = self.decoder.decode(&mut bytes, u32::MAX).expect("own frames") {
            let answer = match frame.header.command {
                Command::Hello => {
                    let seconds = |time: Duration| u32::try_from(time.as_secs()).expect("small");
                    let (heartbeat_min_s, heartbeat_max_s) = (seconds(MIN), seconds(MAX));
                    let welcome =
                        Welcome { version: 1, heartbeat_min_s, heartbeat_max_s, ..Welcome::default() };
                    frame_of(Command::Welcome, &welcome)
                }
                Command::Ping => Frame::new(Command::Pong, Bytes::new()),
                _ => continue,
            };
            self.coming.push((self.now + LATENCY + LATENCY, answer));
        }
    }

    fn note_beats(&mut self, mut bytes: Bytes) {
        let mut decoder = Decoder::new();
        while let Some(frame) = decoder.decode(&mut bytes, u32::MAX).expect("own frames") {
            if frame.header.command == Command::Ping {
                if let Some(before) = self.beaten_at.replace(self.now) {
                    self.pauses.push(self.now.saturating_since(before));
                }
                if !std::mem::replace(&mut self.has_beaten, true) {
                    self.first_beats.push(self.now.saturating_since(self.connected_at));
                }
            }
        }
    }

    fn last_pause(&self) -> Duration {
        *self.pauses.last().expect("it beats")
    }
}

/// The longest interval that the search tries and that a network with this timeout allows.
fn proven(timeout: Duration) -> Duration {
    let tries = std::iter::successors(Some(MIN), |interval| Some((*interval + STEP).min(MAX)));
    tries.take(6).filter(|interval| *interval + LATENCY + LATENCY < timeout).last().unwrap_or(MIN)
}

#[test]
fn in_the_background_it_finds_what_the_network_allows() {
    for (seed, timeout_s) in (1..).zip([40, 61, 95, 120, 170, 200, 240, 299, 320, 600, 3_600]) {
        for manner in [Manner::Silent, Manner::Reset] {
            let timeout = Duration::from_secs(timeout_s);
            let mut world = World::new(timeout, manner, seed);
            world.core.set_attention(world.now, Attention::Background);
            world.run(Duration::from_secs(24 * 3_600));
            let (pause, proven) = (world.last_pause(), proven(timeout));
            let expected = if proven == MAX { MAX } else { (proven.saturating_sub(MARGIN)).max(MIN) };
            assert_eq!(pause, expected, "{timeout:?} {manner:?}");
            assert!(pause < timeout, "it lives");
            let lost = if proven == MAX { 0 } else { 2 };
            assert_eq!(
                world.losses, lost,
                "{timeout:?} {manner:?}: two to find the end, and no more in a day"
            );
            // A dead connection is noticed within one try and the patience behind it.
            assert!(world.blind.iter().all(|blind| *blind <= STEP + PATIENCE), "{:?}", world.blind);
            let steps: Vec<_> = world.pauses.windows(2).map(|pair| (pair[0], pair[1])).collect();
            assert!(steps.iter().all(|(a, b)| *b <= *a + STEP + LATENCY + LATENCY), "stepwise: {steps:?}");
        }
    }
}

#[test]
fn in_the_foreground_it_beats_at_the_minimum_and_searches_nothing() {
    let mut world = World::new(Duration::from_secs(100), Manner::Silent, 1);
    world.run(Duration::from_secs(3_600));
    assert!(world.pauses.iter().all(|pause| *pause == MIN) && world.losses == 0);
    world.core.set_attention(world.now, Attention::Background);
    world.run(Duration::from_secs(4 * 3_600));
    assert_eq!(world.last_pause(), Duration::from_secs(70));
    world.core.set_attention(world.now, Attention::Foreground);
    world.run(Duration::from_secs(300));
    assert_eq!(world.last_pause(), MIN, "a person looks: soon at once");
    world.core.set_attention(world.now, Attention::Background);
    world.run(Duration::from_secs(600));
    assert_eq!((world.last_pause(), world.losses), (Duration::from_secs(70), 2), "what was learned stays");
}

#[test]
fn each_network_is_learned_by_itself_and_known_again() {
    let mut world = World::new(Duration::from_secs(100), Manner::Silent, 3);
    world.core.set_attention(world.now, Attention::Background);
    world.core.network_changed(world.now, Some(NetworkId(1)));
    world.run(Duration::from_secs(6 * 3_600));
    assert_eq!(world.last_pause(), Duration::from_secs(70));
    world.timeout = Duration::from_secs(250);
    world.core.network_changed(world.now, Some(NetworkId(2)));
    world.run(Duration::from_secs(12 * 3_600));
    assert_eq!(world.last_pause(), Duration::from_secs(190));
    let losses = world.losses;
    world.timeout = Duration::from_secs(100);
    world.core.network_changed(world.now, Some(NetworkId(1)));
    world.run(Duration::from_secs(3_600));
    assert_eq!((world.last_pause(), world.losses), (Duration::from_secs(70), losses), "not searched again");
}

/// The client is not told that another middlebox is in the way now, or that the old one drops connections sooner.
#[test]
fn a_network_that_becomes_worse_is_searched_anew() {
    for manner in [Manner::Silent, Manner::Reset] {
        let mut world = World::new(Duration::from_secs(250), manner, 5);
        world.core.set_attention(world.now, Attention::Background);
        world.run(Duration::from_secs(12 * 3_600));
        assert_eq!((world.last_pause(), world.losses), (Duration::from_secs(190), 2));
        world.timeout = Duration::from_secs(100);
        world.run(Duration::from_secs(12 * 3_600));
        assert_eq!(world.last_pause(), Duration::from_secs(70), "{manner:?}");
        assert_eq!(world.losses, 2 + 2 + 2, "two to notice, two to find out");
    }
}

#[test]
fn the_first_beat_comes_at_a_random_part_of_the_interval() {
    let first = |seed| {
        let mut world = World::new(MAX, Manner::Silent, seed);
        world.run(MIN + MIN);
        world.first_beats[0]
    };
    let firsts: Vec<Duration> = (0..200).map(first).collect();
    assert!(firsts.iter().all(|first| *first <= MIN + LATENCY + LATENCY));
    for third in 0..3 {
        let range = Duration::from_secs(third * 10)..Duration::from_secs(third * 10 + 10);
        let count = firsts.iter().filter(|first| range.contains(first)).count();
        assert!((40..100).contains(&count), "{count} of 200 in each third");
    }
}
