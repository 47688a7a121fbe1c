//! One client against a script of the gateway's frames.

use super::*;
use moorline_proto::message::client::Req;
use moorline_proto::message::im::VoidRange;
use std::sync::Arc;

const PAIR: &str = "c2c:alice:bob";

/// A logged-in client, and everything that it said so far.
struct Scene {
    client: Client,
    now: Instant,
    frames: VecDeque<Frame>,
    said: Vec<Output>,
}

impl Scene {
    fn new() -> Self {
        let seats = vec![(Arc::from(PAIR), Target::User("bob".into()))];
        let login = Login { uid: "alice".into(), device: "phone", seats };
        let now = Instant::ZERO + Duration::from_secs(1);
        let mut scene =
            Self { client: Client::new(login, 1), now, frames: VecDeque::new(), said: Vec::new() };
        scene.log_in(false);
        scene
    }

    fn log_in(&mut self, resumed: bool) {
        self.frames.clear();
        self.pass(Duration::from_secs(20));
        self.client.handle_connected(self.now);
        self.drain();
        assert_eq!(self.frames.pop_front().map(|frame| frame.header.command), Some(Command::Hello));
        let ticket = Bytes::from_static(b"ticket");
        self.hear(&frame_of(
            Command::Welcome,
            &Welcome { version: 1, resumed, ticket, ..Welcome::default() },
        ));
        assert!(self.said.contains(&Output::LoggedIn));
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.client.handle_timeout(self.now);
        self.drain();
    }

    fn hear(&mut self, frame: &Frame) {
        let mut bytes = bytes::BytesMut::new();
        frame.encode(&mut bytes);
        self.client.handle_bytes(self.now, bytes.freeze());
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.client.poll_output() {
            match output {
                Output::Write(frame) => self.frames.push_back(frame),
                output => self.said.push(output),
            }
        }
    }

    fn push(&mut self, frame: u32, seq: u64) {
        let push = Push { seq, conversation: PAIR.into(), sender: "bob".into(), ..Push::default() };
        self.hear(&frame_of(Command::Push, &push).with_seq(frame));
    }

    /// The next frame of a command, and its body.
    fn frame<M: prost::Message + Default>(&mut self, command: Command) -> (Frame, M) {
        while let Some(frame) = self.frames.pop_front() {
            if frame.header.command == command {
                let body = decode(&frame.body).expect("our own");
                return (frame, body);
            }
        }
        panic!("no {command:?} was written");
    }

    fn places(&self) -> Vec<u64> {
        let place = |output: &Output| match output {
            Output::Message { push, .. } => Some(push.seq),
            _ => None,
        };
        self.said.iter().filter_map(place).collect()
    }
}

fn key(number: u8) -> MessageKey {
    MessageKey([number; 16])
}

#[test]
fn messages_come_once_in_order_and_are_acknowledged() {
    let mut scene = Scene::new();
    scene.push(1, 1);
    scene.push(2, 2);
    scene.push(2, 2);
    scene.push(4, 4);
    scene.push(3, 3);
    assert_eq!(scene.places(), [1, 2, 3, 4]);
    scene.pass(Duration::from_millis(200));
    let (frame, _) = scene.frame::<Ack>(Command::Ack);
    assert_eq!(frame.header.ack, 4);
}

#[test]
fn a_hole_is_pulled_and_what_the_backend_does_not_have_is_vacant() {
    let mut scene = Scene::new();
    scene.push(1, 1);
    scene.push(2, 5);
    assert_eq!(scene.places(), [1]);
    scene.pass(Duration::from_secs(1));
    let (_, req) = scene.frame::<Req>(Command::Req);
    let pull = PullRequest::decode(req.payload).expect("a pull");
    assert_eq!((pull.from, pull.to), (2, 4));
    let own = Push { seq: 3, sender: "alice".into(), sender_device: "phone".into(), ..Push::default() };
    let page = PullResponse {
        messages: vec![Push { seq: 2, ..Push::default() }, own],
        voids: vec![VoidRange { from: 4, to: 4 }],
        latest: 5,
        more: false,
    };
    scene.hear(&frame_of(Command::Resp, &Resp { id: req.id, payload: encode(&page), ..Resp::default() }));
    assert_eq!(scene.places(), [1, 2, 5]);
    assert!(scene.said.contains(&Output::Vacant { seat: 0, from: 4, to: 4 }), "{:?}", scene.said);
}

#[test]
fn a_send_is_repeated_with_its_number_until_it_is_answered() {
    let mut scene = Scene::new();
    scene.client.send(scene.now, 0, key(1), Bytes::from_static(b"one")).expect("room");
    scene.client.send(scene.now, 0, key(2), Bytes::from_static(b"two")).expect("room");
    scene.drain();
    let (first, _) = scene.frame::<moorline_proto::message::client::Send>(Command::Send);
    assert_eq!((first.header.seq, first.header.flags), (1, Flags::default()));
    let retry = SendAck { cid: 1, code: Code::Retry.into(), retry_after_ms: 40, ..SendAck::default() };
    scene.hear(&frame_of(Command::SendAck, &retry));
    scene.pass(Duration::from_millis(60));
    let (again, _) = scene.frame::<moorline_proto::message::client::Send>(Command::Send);
    assert_eq!((again.header.seq, again.header.flags), (1, Flags::DUP));
    scene.client.handle_disconnected(scene.now);
    scene.log_in(true);
    let (resumed, _) = scene.frame::<moorline_proto::message::client::Send>(Command::Send);
    assert_eq!((resumed.header.seq, resumed.header.flags), (1, Flags::DUP));
    let stored = SendAck { cid: 1, conversation: PAIR.into(), seq: 1, ..SendAck::default() };
    scene.hear(&frame_of(Command::SendAck, &stored));
    let receipt = Receipt { key: key(1), is_repeat: false, conversation: PAIR.into(), seq: 1 };
    assert!(scene.said.contains(&Output::Stored(receipt)), "{:?}", scene.said);
    let (second, _) = scene.frame::<moorline_proto::message::client::Send>(Command::Send);
    assert_eq!((second.header.seq, second.header.flags), (2, Flags::default()), "only now: the order holds");
    scene.push(1, 2);
    assert_eq!(scene.places(), [2], "place 1 is her own");
}

#[test]
fn a_new_session_numbers_anew_and_asks_for_what_it_missed() {
    let mut scene = Scene::new();
    scene.client.send(scene.now, 0, key(1), Bytes::from_static(b"one")).expect("room");
    scene.drain();
    scene.client.handle_disconnected(scene.now);
    scene.log_in(false);
    let (again, _) = scene.frame::<moorline_proto::message::client::Send>(Command::Send);
    assert_eq!((again.header.seq, again.header.flags), (1, Flags::DUP));
    let (_, req) = scene.frame::<Req>(Command::Req);
    let pull = PullRequest::decode(req.payload).expect("a pull");
    assert_eq!((pull.from, pull.to), (1, 0));
}

#[test]
fn who_is_told_to_stay_away_does_and_slowness_is_no_fault() {
    let mut scene = Scene::new();
    let slow = Close { code: CloseReason::Slow.code(), ..Close::default() };
    scene.hear(&frame_of(Command::Close, &slow));
    let dropped = scene.said.iter().find_map(|output| match output {
        Output::Disconnected(why) => Some(why.is_slowness()),
        _ => None,
    });
    assert_eq!(dropped, Some(true));
    assert!(!Dropped::Socket.is_slowness());
    scene.log_in(true);
    let kick = Close { code: CloseReason::Kicked.code(), ..Close::default() };
    scene.hear(&frame_of(Command::Close, &kick));
    assert!(matches!(scene.said.last(), Some(Output::Closed(_))), "{:?}", scene.said);
    assert_eq!(scene.client.next_deadline(), None);
}
