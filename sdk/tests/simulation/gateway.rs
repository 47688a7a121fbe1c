//! A scripted gateway: keeps every rule that the client relies on, answers badly where it may.
//!
//! It checks the client's side of the rules as it goes: cids dense and inside the window, one key per
//! cid, acks only of frames that were sent.

use crate::store::{Device, State, Store};
use bytes::{Bytes, BytesMut};
use moorline_proto::frame::{Command, Decoder, Flags, Frame, encode_batch};
use moorline_proto::message::client::{
    Close, Code, GoAway, Hello, Notify, Ping, Req, Resp, Send, SendAck, Welcome, send,
};
use moorline_proto::message::im::{Conversation, ConversationsResponse, PullRequest};
use moorline_proto::message::{decode, encode, frame_of};
use moorline_proto::random::Random;
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Faults and repairs that occurred, so that a run can prove that it tested something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Coverage {
    pub(crate) retries: u32,
    pub(crate) unanswered: u32,
    pub(crate) repeats: u32,
    pub(crate) lost_pushes: u32,
    pub(crate) swapped_pushes: u32,
    pub(crate) repeated_pushes: u32,
    pub(crate) pulls: u32,
    pub(crate) syncs: u32,
    pub(crate) resets: u32,
    pub(crate) batches: u32,
}

/// The gateway's end of a connection.
pub(crate) struct Connection {
    decoder: Decoder,
    pub(crate) device: Option<Device>,
    keys: BTreeMap<u32, Bytes>,
    answered: BTreeSet<u32>,
    base: u32,
    dseq: u32,
    /// Frames in flight: number, index in the device's stream.
    flight: VecDeque<(u32, usize)>,
    last_push: Option<Frame>,
    pub(crate) is_over: bool,
}

const WINDOW: usize = 32;

impl Connection {
    pub(crate) fn new() -> Self {
        Self {
            decoder: Decoder::new(),
            device: None,
            keys: BTreeMap::new(),
            answered: BTreeSet::new(),
            base: 0,
            dseq: 0,
            flight: VecDeque::new(),
            last_push: None,
            is_over: false,
        }
    }

    /// The connection is gone: what was in flight is not delivered.
    pub(crate) fn end(&mut self, store: &mut Store) {
        self.is_over = true;
        let Some(device) = &self.device else { return };
        let stream = store.streams.entry(device.clone()).or_default();
        for (_, at) in self.flight.drain(..) {
            if stream[at].state == State::InFlight {
                stream[at].state = State::Pending;
            }
        }
    }

    /// Bytes of the client; returns the bytes to answer.
    pub(crate) fn handle_bytes(&mut self, mut bytes: Bytes, script: &mut Script, store: &mut Store) -> Bytes {
        let mut out = Vec::new();
        while let Some(frame) =
            self.decoder.decode(&mut bytes, 64 << 10).expect("the client keeps the format")
        {
            if self.is_over {
                break;
            }
            if self.device.is_some() {
                self.on_ack(frame.header.ack, store);
            }
            self.on_frame(&frame, script, store, &mut out);
        }
        self.pump(script, store, &mut out);
        join(&out, script)
    }

    fn on_ack(&mut self, ack: u32, store: &mut Store) {
        assert!(ack <= self.dseq, "the client acks {ack}, the last sent is {}", self.dseq);
        let device = self.device.clone().unwrap();
        let stream = store.streams.entry(device.clone()).or_default();
        while self.flight.front().is_some_and(|(dseq, _)| *dseq <= ack) {
            let (_, at) = self.flight.pop_front().unwrap();
            let message = (device.clone(), stream[at].conversation.clone(), stream[at].seq);
            assert!(store.handled.contains(&message), "acked before it was handled: {message:?}");
            stream[at].state = State::Acked;
        }
    }

    fn on_frame(&mut self, frame: &Frame, script: &mut Script, store: &mut Store, out: &mut Vec<Frame>) {
        match frame.header.command {
            Command::Hello => {
                let hello: Hello = decode(&frame.body).unwrap();
                if script.chance(10) {
                    self.is_over = true;
                    let close = Close { code: 3001, retry_after_ms: 300, ..Close::default() };
                    out.push(frame_of(Command::Close, &close));
                    return;
                }
                self.device = Some((hello.uid, hello.device));
                let welcome =
                    Welcome { version: 1, uplink_window: 64, heartbeat_min_s: 5, ..Welcome::default() };
                out.push(frame_of(Command::Welcome, &welcome));
                if script.chance(8) {
                    out.push(frame_of(Command::GoAway, &GoAway { window_ms: 3000, alternates: Vec::new() }));
                }
            }
            Command::Ping => out.push(frame_of(Command::Pong, &Ping::default())),
            Command::Send => self.on_send(frame, script, store, out),
            Command::Req => {
                let req: Req = decode(&frame.body).unwrap();
                if req.method == "im.conversations" {
                    script.seen.syncs += 1;
                    let payload = self.conversations(store);
                    out.push(frame_of(Command::Resp, &Resp { id: req.id, payload, ..Resp::default() }));
                    return;
                }
                assert_eq!(req.method, "im.pull");
                script.seen.pulls += 1;
                let (code, page) = if script.chance(5) {
                    (Code::Retry, Bytes::new())
                } else {
                    (Code::Ok, encode(&store.pull(&PullRequest::decode(req.payload).unwrap())))
                };
                if !script.chance(15) {
                    let resp = Resp { id: req.id, code: code.into(), payload: page, ..Resp::default() };
                    out.push(frame_of(Command::Resp, &resp));
                }
            }
            Command::Ack | Command::Pong => {}
            Command::Close => self.end(store),
            other => panic!("the client said {other:?}"),
        }
    }

    fn on_send(&mut self, frame: &Frame, script: &mut Script, store: &mut Store, out: &mut Vec<Frame>) {
        let (cid, send): (u32, Send) = (frame.header.seq, decode(&frame.body).unwrap());
        let next = self.keys.last_key_value().map_or(1, |(last, _)| last + 1);
        assert!(cid <= next, "cid {cid} leaves a hole after {}", next - 1);
        assert!(cid <= self.base + 64, "cid {cid} is beyond the window of {}", self.base);
        let known = self.keys.entry(cid).or_insert_with(|| send.key.clone());
        assert_eq!(*known, send.key, "one key per cid");
        if cid < next {
            script.seen.repeats += 1;
        }
        let mut ack = SendAck { cid, ..SendAck::default() };
        let is_put_off = script.chance(6);
        if !is_put_off || script.chance(2) {
            let from = self.device.clone().expect("logged in");
            let conversation = match send.target.expect("has a target") {
                send::Target::Conversation(id) => id,
                send::Target::User(to) if to < from.0 => format!("c2c:{to}:{}", from.0),
                send::Target::User(to) => format!("c2c:{}:{to}", from.0),
            };
            let stored = store.append(&from, &conversation, send.key, send.payload, &mut script.random);
            let code = if stored.is_repeat { Code::Dup } else { Code::Ok };
            (ack.code, ack.conversation, ack.seq) = (code.into(), stored.conversation, stored.seq);
        }
        if is_put_off {
            script.seen.retries += 1;
            let retry_after_ms = u32::try_from(script.random.below(400)).unwrap();
            ack = SendAck { cid, code: Code::Retry.into(), retry_after_ms, ..SendAck::default() };
        } else if script.chance(40) {
            script.seen.unanswered += 1;
            return;
        }
        self.answered.insert(cid);
        while self.answered.remove(&(self.base + 1)) {
            self.base += 1;
        }
        out.push(frame_of(Command::SendAck, &ack));
        if script.chance(10) {
            out.push(frame_of(Command::SendAck, &ack));
        }
    }

    /// Pushes what the window allows: usually the oldest, sometimes not at all, too early or again.
    pub(crate) fn pump(&mut self, script: &mut Script, store: &mut Store, out: &mut Vec<Frame>) {
        let Some(device) = self.device.clone().filter(|_| !self.is_over) else { return };
        while self.flight.len() < WINDOW {
            let stream = store.streams.entry(device.clone()).or_default();
            let pending = |entry: &&crate::store::Entry| entry.state == State::Pending;
            let mut waiting = (0..stream.len()).filter(|at| pending(&&stream[*at]));
            let (Some(mut at), second) = (waiting.next(), waiting.next()) else { break };
            if let Some(second) = second
                && !stream[at].is_first
                && !stream[second].is_first
                && script.chance(8)
            {
                script.seen.swapped_pushes += 1;
                at = second;
            }
            let is_first = stream[at].is_first;
            if !is_first && script.chance(10) {
                script.seen.lost_pushes += 1;
                stream[at].state = State::Acked;
                continue;
            }
            stream[at].state = State::InFlight;
            self.push(at, store, &device, out);
            if script.chance(10) {
                script.seen.repeated_pushes += 1;
                if script.chance(2) {
                    let again = self.last_push.clone().unwrap();
                    out.push(again.with_flags(Flags::DUP));
                } else {
                    self.push(at, store, &device, out);
                }
            }
        }
    }

    fn push(&mut self, at: usize, store: &Store, device: &Device, out: &mut Vec<Frame>) {
        self.dseq += 1;
        let entry = &store.streams[device][at];
        let push = store.message(&entry.conversation, entry.seq);
        let mut frame = frame_of(Command::Push, &push).with_seq(self.dseq);
        if self.dseq.is_multiple_of(7) {
            frame = frame.with_flags(Flags::ACK_REQ);
        }
        self.flight.push_back((self.dseq, at));
        self.last_push = Some(frame.clone());
        out.push(frame);
    }

    /// The newest place of every conversation that the device knows.
    fn conversations(&self, store: &Store) -> Bytes {
        let device = self.device.as_ref().expect("logged in");
        let known = store.conversations.iter().filter(|(id, _)| !store.expected(device, id).is_empty());
        let conversations = known.map(|(id, places)| Conversation {
            id: id.clone(),
            latest: places.len() as u64,
            ..Conversation::default()
        });
        encode(&ConversationsResponse { conversations: conversations.collect(), more: false })
    }

    /// Tells the newest place of every conversation that the device knows.
    pub(crate) fn notify(&mut self, script: &mut Script, store: &mut Store) -> Bytes {
        let mut out = Vec::new();
        self.pump(script, store, &mut out);
        if let Some(device) = self.device.as_ref().filter(|_| !self.is_over) {
            for (conversation, places) in &store.conversations {
                if !store.expected(device, conversation).is_empty() {
                    let latest = places.len() as u64;
                    out.push(frame_of(
                        Command::Notify,
                        &Notify { conversation: conversation.clone(), latest, first: 0 },
                    ));
                }
            }
        }
        join(&out, script)
    }
}

/// The run's dice.
pub(crate) struct Script {
    pub(crate) random: Random,
    pub(crate) is_calm: bool,
    pub(crate) seen: Coverage,
}

impl Script {
    /// Once in `n` while faults are on.
    pub(crate) fn chance(&mut self, n: u64) -> bool {
        self.random.one_in(n) && !self.is_calm
    }
}

fn join(frames: &[Frame], script: &mut Script) -> Bytes {
    let mut bytes = BytesMut::new();
    let is_batch = frames.len() > 1 && frames.len() <= 128 && script.chance(3);
    // WELCOME comes alone: nothing may be said before it.
    if is_batch && frames[0].header.command != Command::Welcome {
        script.seen.batches += 1;
        encode_batch(frames).encode(&mut bytes);
    } else {
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
    }
    bytes.freeze()
}
