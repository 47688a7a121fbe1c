//! The link host driven by hand: bytes in, outputs out, time as the test says.

use super::{
    Event, Kick, LinkEnd, LinkHost, LinkId, Now, Output, Peer, PushSpec, ReplyTo, SessionId, Visitor,
};
use crate::config::{LinkConfig, Unproven};
use bytes::{Bytes, BytesMut};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Lane};
use moorline_proto::link::{Kind, LinkDecoder, LinkFrame, NONCE_BYTES, Nonce, encode};
use moorline_proto::message::backend::{Announce, ConnDown, ConnUp, LinkHello, Outcome, Up};
use moorline_proto::message::client::Code;
use moorline_proto::time::Duration;
use prost::Message;

const SPEC: PushSpec = PushSpec { want_ack: true, ..PushSpec::new(Command::Push, Lane::Chat) };

mod cluster;
mod greeting;
mod group_rooms;

struct Desk {
    host: LinkHost,
    now: Now,
}

impl Desk {
    fn new(config: &LinkConfig) -> Self {
        let config = LinkConfig { unproven: Unproven::Loopback, ..config.clone() };
        let mut desk = Self { host: LinkHost::new(&config, "b".into(), 1), now: Now::default() };
        desk.tick();
        desk
    }

    fn open(&mut self) -> LinkId {
        self.visit(Peer::Loopback, [0; NONCE_BYTES])
    }

    fn visit(&mut self, peer: Peer, nonce: Nonce) -> LinkId {
        self.host.handle_link_opened(self.now, Visitor { peer, nonce }).expect("it may come in")
    }

    /// A link that greeted as this epoch of gateway `g`, with its outputs drained.
    fn greeted(&mut self, epoch: u64) -> LinkId {
        let link = self.open();
        self.say(link, Kind::Hello, 0, &hello(1, epoch));
        self.drain();
        self.turn_end();
        link
    }

    fn say(&mut self, link: LinkId, kind: Kind, correlation: u64, body: &impl Message) {
        let mut wire = BytesMut::new();
        encode(&mut wire, kind, correlation, 0, body);
        let mut input = wire.freeze();
        self.host.handle_link_bytes(self.now, link, &mut input);
        assert!(input.is_empty(), "one frame");
    }

    fn log_in(&mut self, link: LinkId, handle: u64) -> SessionId {
        let login = ConnUp { handle, uid: format!("user{handle}"), ..ConnUp::default() };
        self.say(link, Kind::ConnUp, 0, &login);
        match &self.drain()[..] {
            [Output::Event(Event::ConnUp { session, is_new: true, .. })] => *session,
            other => panic!("{other:?}"),
        }
    }

    /// Forwards a SEND. Returns the right to answer it, and whether the link was paused.
    fn ask(&mut self, link: LinkId, handle: u64, correlation: u64) -> (ReplyTo, bool) {
        let up = Up { handle, command: Command::Send.byte().into(), ..Up::default() };
        self.say(link, Kind::Up, correlation, &up);
        let mut outputs = self.drain();
        let Some(Output::Event(Event::Up(super::Up { reply: Some(reply), .. }))) = outputs.pop() else {
            panic!("{outputs:?}")
        };
        (reply, matches!(outputs[..], [Output::Pause(it)] if it == link))
    }

    fn drain(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.host.poll_output()).collect()
    }

    fn pass(&mut self, time: Duration) -> Vec<Output> {
        self.now.instant += time;
        self.tick()
    }

    fn tick(&mut self) -> Vec<Output> {
        self.host.handle_timeouts(self.now);
        self.drain()
    }

    /// Ends the turn; the frames that sockets which take everything have taken.
    fn turn_end(&mut self) -> Vec<LinkFrame> {
        self.turn_end_by_link().into_iter().map(|(_, frame)| frame).collect()
    }

    /// Frames of the turn, with their links.
    fn turn_end_by_link(&mut self) -> Vec<(LinkId, LinkFrame)> {
        self.host.handle_turn_end(self.now);
        let mut frames = Vec::new();
        for output in self.drain() {
            let Output::Write(link) = output else { panic!("{output:?}") };
            let mut wire = Bytes::copy_from_slice(self.host.unsent(link));
            self.host.handle_link_sent(self.now, link, wire.len());
            let mut decoder = LinkDecoder::new();
            let next = || decoder.decode(&mut wire).expect("valid frames").map(|frame| (link, frame));
            frames.extend(std::iter::from_fn(next));
        }
        frames
    }
}

fn hello(version: u32, epoch: u64) -> LinkHello {
    LinkHello { version_min: version, version_max: version, node: "g".into(), epoch, ..LinkHello::default() }
}

#[test]
fn a_refused_hello_does_not_end_the_older_epoch() {
    let mut desk = Desk::new(&LinkConfig::default());
    let live = desk.greeted(5);
    let session = desk.log_in(live, 1);
    let foreign = desk.open();
    desk.say(foreign, Kind::Hello, 0, &hello(9, 6));
    let outputs = desk.drain();
    let [Output::Close { link, end: LinkEnd::Refused { .. }, .. }] = outputs[..] else {
        panic!("{outputs:?}")
    };
    assert_eq!(link, foreign);
    desk.host.outbox().kick(session, Kick::of(CloseReason::Kicked));
    assert_eq!(desk.turn_end()[0].kind, Kind::Kick, "the session is reachable");
}

#[test]
fn a_gateway_that_uses_its_whole_credit_is_read_and_one_that_goes_over_it_is_not() {
    let mut desk = Desk::new(&LinkConfig { credit: 1, ..LinkConfig::default() });
    let link = desk.greeted(1);
    desk.log_in(link, 1);
    let (first, is_paused) = desk.ask(link, 1, 1);
    assert!(!is_paused);
    let (second, is_paused) = desk.ask(link, 1, 2);
    assert!(is_paused);
    desk.host.outbox().answer(first, Code::Ok, Bytes::new());
    let outputs = desk.drain();
    assert!(matches!(outputs[..], [Output::Resume(it)] if it == link), "{outputs:?}");
    desk.host.outbox().answer(second, Code::Ok, Bytes::new());
    assert!(desk.drain().is_empty());
    let answers: Vec<u64> = desk.turn_end().iter().map(|frame| frame.correlation).collect();
    assert_eq!(answers, [1, 2], "one write, in the order of the answers");
}

#[test]
fn a_session_that_leaves_in_the_same_read_is_still_there_for_its_last_message() {
    let mut desk = Desk::new(&LinkConfig::default());
    let link = desk.greeted(1);
    let session = desk.log_in(link, 1);
    let mut wire = BytesMut::new();
    let up = Up { handle: 1, command: Command::App(0x40).byte().into(), ..Up::default() };
    encode(&mut wire, Kind::Up, 0, 0, &up);
    encode(&mut wire, Kind::ConnDown, 0, 0, &ConnDown { handle: 1, code: 0 });
    let mut input = wire.freeze();
    desk.host.handle_link_bytes(desk.now, link, &mut input);
    let outputs = desk.drain();
    assert!(matches!(&outputs[..], [Output::Event(Event::Up(_))]), "{outputs:?}");
    assert!(desk.host.outbox().bind(session, "hall"), "its route lives until the handler has seen the UP");
    desk.host.handle_link_bytes(desk.now, link, &mut input);
    let outputs = desk.drain();
    assert!(matches!(&outputs[..], [Output::Event(Event::ConnDown { .. })]), "{outputs:?}");
    assert!(input.is_empty());
}

#[test]
fn a_slow_consumer_gets_full_then_loses_its_link_after_the_stall_timeout() {
    let config = LinkConfig { output_max: 1000, ..LinkConfig::default() };
    let mut desk = Desk::new(&config);
    let link = desk.greeted(1);
    let session = desk.log_in(link, 1);
    let body = Bytes::from(vec![0; 2000]);
    desk.host.outbox().push(&[session], SPEC, &body);
    let outputs = desk.drain();
    assert!(matches!(outputs[..], [Output::Pause(it)] if it == link), "{outputs:?}");
    desk.host.handle_turn_end(desk.now);
    desk.drain();
    desk.host.handle_link_sent(desk.now, link, 10);
    desk.host.outbox().push(&[session], SPEC, &body);
    assert!(desk.host.next_deadline() <= desk.now.instant, "the outcome is known, and is told at once");
    let outputs = desk.tick();
    assert!(
        matches!(outputs[..], [Output::Event(Event::Pushed { outcome: Outcome::Full, .. })]),
        "{outputs:?}"
    );
    assert!(desk.pass(config.stall_timeout / 2).iter().all(|it| !matches!(it, Output::Close { .. })));
    let outputs = desk.pass(config.stall_timeout / 2);
    assert!(
        outputs.iter().any(|it| matches!(it, Output::Close { end: LinkEnd::Stalled, .. })),
        "{outputs:?}"
    );
}

#[test]
fn sessions_and_gateway_outlive_their_link_for_the_lease() {
    let config = LinkConfig::default();
    let mut desk = Desk::new(&config);
    let link = desk.greeted(1);
    let session = desk.log_in(link, 1);
    desk.host.handle_link_closed(desk.now, link, LinkEnd::Closed);
    let outputs = desk.drain();
    assert!(
        matches!(outputs[..], [Output::Close { .. }, Output::Event(Event::LinkDown { .. })]),
        "{outputs:?}"
    );
    let outputs = desk.pass(config.lease.saturating_sub(Duration::from_millis(1)));
    assert!(matches!(outputs[..], [Output::Event(Event::Tick)]), "{outputs:?}");
    let outputs = desk.pass(Duration::from_millis(251));
    let [
        Output::Event(Event::ConnDown { session: gone, code: 0 }),
        Output::Event(Event::GatewayDown { .. }),
        Output::Event(Event::Tick),
    ] = outputs[..]
    else {
        panic!("{outputs:?}")
    };
    assert_eq!(gone, session);
}

/// The gateway gave `old` up and announced the session on `new`; the backend reads what `old` held last.
#[test]
fn an_announcement_that_was_overtaken_moves_nothing() {
    let config = LinkConfig::default();
    let mut desk = Desk::new(&config);
    let (old, new) = (desk.greeted(1), desk.greeted(1));
    let login = ConnUp { handle: 1, uid: "alice".into(), ..ConnUp::default() };
    let announce = || Announce { connections: vec![login.clone()], more: false };
    desk.say(new, Kind::Announce, 2, &announce());
    let [Output::Event(Event::ConnUp { session, is_new: true, .. }), ..] = desk.drain()[..] else {
        panic!("a session")
    };
    desk.say(old, Kind::Announce, 1, &announce());
    desk.say(old, Kind::ConnUp, 1, &login);
    let outputs = desk.drain();
    assert!(matches!(outputs[..], [Output::Event(Event::Announced { .. })]), "{outputs:?}");
    desk.host.handle_link_closed(desk.now, old, LinkEnd::Closed);
    desk.drain();
    let step = config.silence_timeout / 2;
    for _ in 0..=config.lease.as_nanos() / step.as_nanos() {
        desk.say(new, Kind::Pong, 0, &());
        let outputs = desk.pass(step);
        assert!(!outputs.iter().any(|it| matches!(it, Output::Event(Event::ConnDown { .. }))), "{outputs:?}");
    }
    desk.host.outbox().kick(session, Kick::of(CloseReason::Kicked));
    assert!(desk.turn_end().iter().any(|frame| frame.kind == Kind::Kick), "the session is reachable");
}

/// A gateway that numbers no announcements, and one that goes on in its place.
#[test]
fn an_announcement_without_a_number_is_always_applied() {
    let mut desk = Desk::new(&LinkConfig::default());
    let (first, second) = (desk.greeted(1), desk.greeted(1));
    let login = ConnUp { handle: 1, ..ConnUp::default() };
    for (link, number) in [(first, 7), (second, 0), (first, 3)] {
        desk.say(link, Kind::ConnUp, number, &login);
        let outputs = desk.drain();
        assert!(matches!(outputs[..], [Output::Event(Event::ConnUp { .. })]), "{outputs:?}");
    }
}

#[test]
fn words_of_a_handler_after_the_writes_begin_another_turn_at_once() {
    let mut desk = Desk::new(&LinkConfig::default());
    let (dying, living) = (desk.greeted(1), desk.greeted(1));
    let session = desk.log_in(living, 1);
    desk.host.handle_link_closed(desk.now, dying, LinkEnd::Closed);
    desk.drain();
    desk.host.outbox().push(&[session], SPEC, &Bytes::new());
    assert!(desk.host.next_deadline() <= desk.now.instant);
    assert_eq!(desk.turn_end()[0].kind, Kind::Push);
    assert!(desk.host.next_deadline() > desk.now.instant);
}

#[test]
fn bytes_of_a_link_that_is_gone_are_dropped() {
    let mut desk = Desk::new(&LinkConfig::default());
    let link = desk.greeted(1);
    desk.host.handle_link_closed(desk.now, link, LinkEnd::Closed);
    desk.drain();
    let mut input = Bytes::from_static(b"anything");
    desk.host.handle_link_bytes(desk.now, link, &mut input);
    assert!(input.is_empty() && desk.drain().is_empty());
    let next = desk.open();
    assert_eq!((next.slot, next.generation == link.generation), (link.slot, false), "the slot is used again");
}
