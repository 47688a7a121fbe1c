//! The client core, driven frame by frame.

mod connection;
mod hostile;
mod inbox;
mod sends;

use super::*;
use moorline_proto::frame::{Decoder, Flags, Header};
use moorline_proto::message::client::{
    self, Close, Code, GoAway, Kick, Notify, Ping, Platform, Push, Req, Resp, Send, SendAck, Throttle,
    Welcome,
};
use moorline_proto::message::im::{PullRequest, PullResponse, VoidRange};
use moorline_proto::message::{decode, encode};
use prost::Message as _;

/// A core and the gateway's end of its connection.
struct Rig {
    core: Core,
    now: Instant,
    gateway: Decoder,
    dseq: u32,
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl Rig {
    fn with(config: CoreConfig) -> Self {
        Self { core: Core::new(config, 1), now: Instant::from_nanos(7), gateway: Decoder::new(), dseq: 0 }
    }

    fn new() -> Self {
        Self::with(config())
    }

    fn logged_in() -> Self {
        let mut rig = Self::new();
        rig.tick(ms(0));
        rig.log_in(Welcome::default());
        rig
    }

    fn tick(&mut self, by: Duration) {
        self.now += by;
        self.core.handle_timeout(self.now);
    }

    /// Goes to the core's next deadline.
    fn tick_next(&mut self) -> Duration {
        let at = self.core.next_deadline().expect("has a deadline").max(self.now);
        let by = at.saturating_since(self.now);
        self.tick(by);
        by
    }

    fn log_in(&mut self, welcome: Welcome) {
        assert_eq!(self.events().last(), Some(&Event::Connect { alternate: None }));
        self.core.handle_connected(self.now);
        let hello = self.frames();
        assert_eq!((hello.len(), hello[0].header.command), (1, Command::Hello));
        (self.gateway, self.dseq) = (Decoder::new(), 0);
        let resumed = welcome.resumed;
        self.frame(Command::Welcome, &Welcome { version: 1, uplink_window: 64, ..welcome });
        assert_eq!(self.events(), [Event::Notice(Notice::LoggedIn { resumed })]);
    }

    fn relogin(&mut self) {
        self.core.handle_disconnected(self.now, None);
        assert!(matches!(self.events()[..], [.., Event::Notice(Notice::Disconnected { .. })]));
        self.tick_next();
        self.log_in(Welcome::default());
    }

    fn frame(&mut self, command: Command, body: &impl prost::Message) {
        self.give(&frame_of(command, body));
    }

    fn give(&mut self, frame: &Frame) {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes);
        self.core.handle_bytes(self.now, bytes.freeze());
    }

    fn push(&mut self, seq: u64) {
        self.dseq += 1;
        let frame = frame_of(Command::Push, &message(seq)).with_seq(self.dseq);
        self.give(&frame);
    }

    fn ack(&mut self, cid: u32, code: Code) {
        let seq = cid.into();
        let conversation = format!("own{cid}");
        let ack =
            SendAck { cid, code: code.into(), message_id: seq, conversation, seq, ..SendAck::default() };
        self.frame(Command::SendAck, &ack);
    }

    fn frames(&mut self) -> Vec<Frame> {
        let mut out = BytesMut::new();
        self.core.poll_transmit(&mut out);
        let (mut bytes, mut frames) = (out.freeze(), Vec::new());
        while let Some(frame) = self.gateway.decode(&mut bytes, u32::MAX).expect("lawful") {
            frames.push(frame);
        }
        frames
    }

    /// Sent messages as (cid, is DUP, key, payload).
    fn sends(&mut self) -> Vec<(u32, bool, Bytes, String)> {
        let frames = self.frames().into_iter().filter(|frame| frame.header.command == Command::Send);
        frames
            .map(|Frame { header: Header { seq, flags, .. }, body }| {
                let send: Send = decode(&body).unwrap();
                let text = String::from_utf8(send.payload.to_vec()).unwrap();
                (seq, flags.contains(Flags::DUP), send.key, text)
            })
            .collect()
    }

    fn texts(&mut self) -> Vec<(u32, String)> {
        self.sends().into_iter().map(|(cid, _, _, text)| (cid, text)).collect()
    }

    fn say(&mut self, to: &str, text: &str) -> SendId {
        let payload = Bytes::copy_from_slice(text.as_bytes());
        self.core.send(self.now, Target::user(to), 1, payload).expect("taken").0
    }

    fn events(&mut self) -> Vec<Event> {
        // Frames are looked at by `frames`, whenever a test wants to.
        std::iter::from_fn(|| self.core.poll_event()).filter(|event| *event != Event::Transmit).collect()
    }

    /// Delivered places; handles them at once.
    fn read(&mut self) -> Vec<u64> {
        let messages = self.events().into_iter().filter_map(|event| match event {
            Event::Message(message) => Some(message),
            _ => None,
        });
        let messages: Vec<Message> = messages.collect();
        for message in &messages {
            self.core.handled(self.now, message.token);
        }
        messages.into_iter().map(|message| message.seq).collect()
    }

    fn pull(&mut self) -> (u32, PullRequest) {
        let frames = self.frames();
        let req = frames.iter().find(|frame| frame.header.command == Command::Req).expect("asks");
        let req: Req = decode(&req.body).unwrap();
        assert_eq!(req.method, "im.pull");
        (req.id, PullRequest::decode(req.payload).unwrap())
    }

    fn answer(&mut self, id: u32, code: Code, payload: Bytes) {
        self.frame(Command::Resp, &Resp { id, code: code.into(), payload, ..Resp::default() });
    }
}

fn config() -> CoreConfig {
    CoreConfig::new("alice", "phone", Platform::Ios, TokenSource::Fixed("secret".into()))
}

fn message(seq: u64) -> Push {
    Push {
        message_id: seq.wrapping_add(1000),
        conversation: "group:g".into(),
        seq,
        sender: "bob".into(),
        ..Push::default()
    }
}

fn owned(text: &str) -> String {
    text.to_owned()
}
