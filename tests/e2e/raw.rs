//! A blocking client that knows the frames and nothing else: it sends what it is told, good or bad, and
//! keeps what it hears.

use crate::PATIENCE;
use crate::tunnel::Tunnel;
use bytes::Bytes;
use moorline::sys::clock;
use moorline_proto::frame::{BODY_BYTES_CEILING, Command, Decoder, Flags, Frame, Lane};
use moorline_proto::ids::Seq;
use moorline_proto::message::client::{
    Close, GoAway, Hello, Kick, Ping, Push, Req, Resp, Send, SendAck, SubAck, Welcome, send,
};
use moorline_proto::message::im::{Happened, happened};
use moorline_proto::message::{decode, frame_of};
use std::collections::HashSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Reason why a connection ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum End {
    Close(Close),
    Kick(Kick),
    /// The gateway closed without a word.
    Eof,
    Reset,
}

impl End {
    /// The code of CLOSE or KICK; 0 for an end without a word.
    pub(crate) fn code(&self) -> u32 {
        match self {
            Self::Close(close) => close.code,
            Self::Kick(kick) => kick.code,
            Self::Eof | Self::Reset => 0,
        }
    }
}

/// Everything a client was told, by kind, in order.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) welcome: Option<Welcome>,
    pub(crate) pongs: usize,
    /// PINGs of the gateway, with ACK_REQ or not.
    pub(crate) pings: Vec<Frame>,
    pub(crate) send_acks: Vec<SendAck>,
    /// Each message once, as [P-6.6] asks.
    pub(crate) pushes: Vec<Push>,
    /// Conversation events [P-11.6], each once.
    pub(crate) happened: Vec<(String, happened::What)>,
    /// Messages that came again: lawful when a link died or a slot moved, and else not.
    pub(crate) repeats: usize,
    /// Frames that came again under their seq.
    pub(crate) again: usize,
    message_ids: HashSet<u64>,
    pub(crate) responses: Vec<Resp>,
    pub(crate) sub_acks: Vec<SubAck>,
    /// Bare ACKs: the cids that they say were taken.
    pub(crate) acks: Vec<Seq>,
    /// THROTTLEs; this client takes no notice.
    pub(crate) throttles: usize,
    pub(crate) goaway: Option<GoAway>,
    pub(crate) app: Vec<Frame>,
    pub(crate) end: Option<End>,
}

impl Heard {
    /// The answers to a cid, oldest first.
    pub(crate) fn answers(&self, cid: Seq) -> Vec<&SendAck> {
        self.send_acks.iter().filter(|ack| ack.cid == cid).collect()
    }

    /// The payloads of all messages, in the order in which they came.
    pub(crate) fn payloads(&self) -> Vec<&[u8]> {
        self.pushes.iter().map(|push| &push.payload[..]).collect()
    }
}

/// Policy of acknowledging pushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acks {
    /// Each at once.
    Prompt,
    /// Does not acknowledge.
    Withheld,
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    /// Layers between the frames and the stream; `None`: there are none.
    pub(crate) tunnel: Option<Tunnel>,
    pub(crate) heard: Heard,
    pub(crate) acks: Acks,
    decoder: Decoder,
    /// Highest reliable seq heard.
    pub(crate) last_seq: Seq,
    last_cid: Seq,
    name: String,
}

/// The HELLO of a device.
pub(crate) fn hello(uid: &str, device: &str) -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        uid: uid.into(),
        device: device.into(),
        agent: "e2e/1".into(),
        ..Hello::default()
    }
}

/// A message to a user, with a key made of a number.
pub(crate) fn message(key: u128, user: &str, payload: &[u8]) -> Send {
    Send {
        key: Bytes::copy_from_slice(&key.to_be_bytes()),
        target: Some(send::Target::User(user.into())),
        r#type: 1,
        payload: Bytes::copy_from_slice(payload),
    }
}

/// Sends into a conversation.
pub(crate) fn message_into(key: u128, conversation: &str, payload: &[u8]) -> Send {
    let target = Some(send::Target::Conversation(conversation.into()));
    Send { target, ..message(key, "", payload) }
}

/// SEND with a cid.
pub(crate) fn send_frame(cid: Seq, send: &Send) -> Frame {
    frame_of(Command::Send, send).with_lane(Lane::Chat).with_seq(cid)
}

/// A frame's bytes.
pub(crate) fn bytes_of(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(frame.wire_len());
    frame.encode(&mut bytes);
    bytes
}

impl Client {
    /// Connected, nothing said.
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the gateway accepts");
        stream.set_nodelay(true).expect("a socket");
        Self::over(stream, None)
    }

    /// Over a connection that is open.
    pub(crate) fn over(stream: TcpStream, tunnel: Option<Tunnel>) -> Self {
        Self {
            name: format!("{:?}", stream.local_addr().ok()),
            stream,
            tunnel,
            heard: Heard::default(),
            acks: Acks::Prompt,
            decoder: Decoder::new(),
            last_seq: 0,
            last_cid: 0,
        }
    }

    /// Connected, HELLO sent.
    pub(crate) fn greet(address: SocketAddr, hello: &Hello) -> Self {
        let mut client = Self::connect(address);
        client.name = format!("{}/{}", hello.uid, hello.device);
        client.put(&frame_of(Command::Hello, hello));
        client
    }

    /// Logs in over an open connection. Panics if it is refused.
    pub(crate) fn login_over(stream: TcpStream, tunnel: Tunnel, uid: &str) -> Self {
        let mut client = Self::over(stream, Some(tunnel));
        uid.clone_into(&mut client.name);
        client.put(&frame_of(Command::Hello, &hello(uid, "d")));
        client.until("WELCOME", |heard| heard.welcome.is_some());
        client
    }

    /// Logged in. Panics if it is refused.
    pub(crate) fn login(address: SocketAddr, uid: &str, device: &str) -> Self {
        let mut client = Self::greet(address, &hello(uid, device));
        client.until("WELCOME", |heard| heard.welcome.is_some());
        client
    }

    /// 0 if HELLO is answered by WELCOME, else the code of the end.
    pub(crate) fn verdict(address: SocketAddr, hello: &Hello) -> u32 {
        let mut client = Self::greet(address, hello);
        let deadline = clock::now() + PATIENCE;
        while client.heard.welcome.is_none() && client.heard.end.is_none() {
            let left = deadline.saturating_since(clock::now());
            assert!(!left.is_zero(), "{}: HELLO is not answered", client.name);
            client.listen(left);
        }
        if client.heard.welcome.is_some() { 0 } else { client.end().code() }
    }

    /// Logs in, and returns how the refusal ended the connection.
    pub(crate) fn refused(address: SocketAddr, hello: &Hello) -> End {
        let mut client = Self::greet(address, hello);
        let end = client.end();
        assert!(client.heard.welcome.is_none(), "{}: let in", client.name);
        end
    }

    /// Writes bytes as they are.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.try_write(bytes).unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    fn try_write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match &mut self.tunnel {
            None => self.stream.write_all(bytes),
            Some(tunnel) => tunnel.write(&mut self.stream, bytes),
        }
    }

    /// Writes a frame to a connection that may have ended.
    pub(crate) fn try_put(&mut self, frame: &Frame) {
        self.try_write(&bytes_of(frame)).ok();
    }

    pub(crate) fn put(&mut self, frame: &Frame) {
        self.write(&bytes_of(frame));
    }

    /// Sends with the next cid; returns it.
    pub(crate) fn send(&mut self, send: &Send) -> Seq {
        self.last_cid += 1;
        self.put(&send_frame(self.last_cid, send));
        self.last_cid
    }

    /// Sends to a user and waits for the answer.
    pub(crate) fn tell(&mut self, key: u128, user: &str, payload: &[u8]) -> SendAck {
        let cid = self.send(&message(key, user, payload));
        self.answer(cid)
    }

    /// Waits for the first answer to a cid.
    pub(crate) fn answer(&mut self, cid: Seq) -> SendAck {
        self.until("SENDACK", |heard| !heard.answers(cid).is_empty());
        self.heard.answers(cid)[0].clone()
    }

    /// Asks, and waits for the answer.
    pub(crate) fn request(&mut self, id: u32, method: &str, payload: Bytes) -> Resp {
        self.put(&frame_of(Command::Req, &Req { id, method: method.into(), payload }));
        let is_it = |resp: &&Resp| resp.id == id;
        self.until("RESP", |heard| heard.responses.iter().any(|resp| is_it(&resp)));
        self.heard.responses.iter().find(is_it).expect("just seen").clone()
    }

    /// PING, and its PONG.
    pub(crate) fn beat(&mut self, next_s: u32) {
        let wanted = self.heard.pongs + 1;
        self.put(&frame_of(Command::Ping, &Ping { next_s }));
        self.until("PONG", |heard| heard.pongs >= wanted);
    }

    /// Answers the PINGs that came, with an ack of nothing.
    pub(crate) fn answer_pings(&mut self) {
        for _ in std::mem::take(&mut self.heard.pings) {
            self.try_put(&Frame::new(Command::Ack, Bytes::new()).with_ack(0));
        }
    }

    /// Acknowledges all that came, and each frame from now on.
    pub(crate) fn acknowledge(&mut self) {
        self.acks = Acks::Prompt;
        self.put(&Frame::new(Command::Ack, Bytes::new()).with_ack(self.last_seq));
    }

    /// Waits for the end, and for the end of the bytes behind CLOSE or KICK.
    pub(crate) fn end(&mut self) -> End {
        let deadline = clock::now() + PATIENCE;
        while self.heard.end.is_none() {
            let left = deadline.saturating_since(clock::now());
            assert!(!left.is_zero(), "{}: not ended: {:?}", self.name, self.heard);
            self.listen(left);
        }
        self.heard.end.clone().expect("just seen")
    }

    /// Reads what comes behind the last frame, up to the end of the connection.
    pub(crate) fn read_close(&mut self) {
        let tunnel = self.tunnel.as_mut().expect("a tunnel");
        self.stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut rest = [0; 16];
        let count = tunnel.read(&mut self.stream, &mut rest).expect("the end in due form");
        assert_eq!(count, 0, "{}: nothing follows the last frame", self.name);
    }

    /// Hears until the condition holds. Panics if the connection ends first, or time is up.
    pub(crate) fn until(&mut self, what: &str, is_met: impl Fn(&Heard) -> bool) {
        let deadline = clock::now() + PATIENCE;
        while !is_met(&self.heard) {
            let left = deadline.saturating_since(clock::now());
            let name = &self.name;
            assert!(!left.is_zero(), "{name} waits for {what}: not within {PATIENCE:?}: {:?}", self.heard);
            assert!(self.heard.end.is_none(), "{name} waits for {what}: ended: {:?}", self.heard);
            self.listen(left);
        }
    }

    /// Hears whatever comes within the time; then looks whether the connection still stands.
    pub(crate) fn is_quiet_for(&mut self, time: Duration) -> bool {
        let deadline = clock::now() + time;
        loop {
            let left = deadline.saturating_since(clock::now());
            if left.is_zero() || self.heard.end.is_some() {
                return self.heard.end.is_none();
            }
            self.listen(left);
        }
    }

    /// Reads once, for at most `patience`.
    pub(crate) fn listen(&mut self, patience: Duration) {
        self.stream.set_read_timeout(Some(patience.max(Duration::from_millis(1)))).expect("a socket");
        let mut block = [0; 16 << 10];
        let read = match &mut self.tunnel {
            None => self.stream.read(&mut block),
            Some(tunnel) => tunnel.read(&mut self.stream, &mut block),
        };
        match read {
            Ok(0) => self.heard.end = self.heard.end.take().or(Some(End::Eof)),
            Ok(count) => self.hear(Bytes::copy_from_slice(&block[..count])),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => self.heard.end = self.heard.end.take().or(Some(End::Reset)),
        }
    }

    fn hear(&mut self, mut bytes: Bytes) {
        loop {
            let frame = self.decoder.decode(&mut bytes, BODY_BYTES_CEILING);
            match frame.unwrap_or_else(|reason| panic!("{}: the gateway sent {reason}", self.name)) {
                Some(frame) => self.take(&frame),
                None => return,
            }
        }
    }

    fn take(&mut self, frame: &Frame) {
        let (name, command) = (&self.name, frame.header.command);
        assert!(self.heard.end.is_none(), "{name}: {command:?} after the last frame");
        if frame.header.reliable && frame.header.seq <= self.last_seq {
            assert!(frame.header.flags.contains(Flags::DUP), "{name}: what comes again says so");
            self.heard.again += 1;
            return;
        }
        if frame.header.reliable {
            assert_eq!(frame.header.seq, self.last_seq + 1, "{name}: seqs have no holes");
            self.last_seq = frame.header.seq;
            if self.acks == Acks::Prompt {
                let ack = Frame::new(Command::Ack, Bytes::new()).with_ack(self.last_seq);
                // It may be that the gateway has closed by now; its last frame is still to be read.
                self.try_put(&ack);
            }
        }
        let heard = &mut self.heard;
        match command {
            Command::Welcome => heard.welcome = Some(body(frame)),
            Command::Pong => heard.pongs += 1,
            Command::Ping => heard.pings.push(frame.clone()),
            Command::SendAck => heard.send_acks.push(body(frame)),
            Command::Push => {
                let push: Push = body(frame);
                if heard.message_ids.insert(push.message_id) {
                    match decode::<Happened>(&push.happened).expect("a Happened").what {
                        Some(what) => heard.happened.push((push.conversation, what)),
                        None => heard.pushes.push(push),
                    }
                } else {
                    heard.repeats += 1;
                }
            }
            Command::Resp => heard.responses.push(body(frame)),
            Command::SubAck => heard.sub_acks.push(body(frame)),
            Command::Ack => heard.acks.push(frame.header.ack),
            Command::Throttle => heard.throttles += 1,
            Command::GoAway => heard.goaway = Some(body(frame)),
            Command::App(_) => heard.app.push(frame.clone()),
            Command::Close => heard.end = Some(End::Close(body(frame))),
            Command::Kick => heard.end = Some(End::Kick(body(frame))),
            other => panic!("{}: {other:?} is not for clients", self.name),
        }
    }
}

fn body<M: prost::Message + Default>(frame: &Frame) -> M {
    decode(&frame.body).unwrap_or_else(|_| panic!("{:?} has another body", frame.header.command))
}
