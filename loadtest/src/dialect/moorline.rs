//! Moorline's own wire, through `moorline-proto`'s codec.

use super::token::Tokens;
use super::{Ask, Broken, Dialect, Event, Message, Numbered, Outcome, To};
use bytes::{BufMut, Bytes};
use moorline_proto::PROTOCOL_VERSION;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{
    BODY_BYTES_CEILING, Batch, Command, Decoder, Flags, Frame, HEADER_BYTES, Header, Lane,
};
use moorline_proto::message::client::{
    Ack, Close, Code, GoAway, Hello, Kick, Notify, Ping, Platform, Push, Req, Resp, Send, SendAck, Welcome,
    send,
};
use moorline_proto::message::im::{GroupCreateRequest, GroupRequest, PullRequest, PullResponse};
use moorline_proto::message::{decode, encode, frame_of};
use prost::Message as _;
use std::time::Duration;

/// Ids of requests, by their kind.
const JOIN_ID: u32 = 1;
const PULL_ID: u32 = 2;

/// Agent of the clients.
#[derive(Debug)]
pub struct MoorlineOptions {
    /// User ids are this and a number.
    pub uid_prefix: String,
    /// The number of this fleet's first client.
    pub first: u32,
    /// Tokens of the clients.
    pub tokens: Tokens,
    /// Heartbeat interval of a client: the shortest that PING can promise.
    pub heartbeat: Duration,
}

/// Moorline's client side.
#[derive(Debug)]
pub struct Moorline {
    options: MoorlineOptions,
    promise_s: u32,
    /// Makes message keys of this run differ from those of any other.
    run: [u8; 8],
}

impl Moorline {
    /// A fleet's dialect.
    pub fn new(options: MoorlineOptions) -> Self {
        let mut run = [0; 8];
        getrandom::fill(&mut run).expect("the kernel has random bytes");
        let promise_s = u32::try_from(options.heartbeat.as_secs() + 1).unwrap_or(u32::MAX);
        Self { options, promise_s, run }
    }

    /// The user id of a client.
    pub fn uid(&self, who: u32) -> String {
        let MoorlineOptions { uid_prefix, first, tokens, .. } = &self.options;
        let number = first + who;
        tokens.uid(number).map_or_else(|| format!("{uid_prefix}-{number:07}"), str::to_owned)
    }

    /// The name of a group; no two fleets of a run share one.
    fn group(&self, group: u32) -> String {
        format!("{}-g{:07}-{group}", self.options.uid_prefix, self.options.first)
    }

    fn key(&self, from: u32, number: u32) -> Bytes {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&self.run);
        key[8..12].copy_from_slice(&from.to_be_bytes());
        key[12..].copy_from_slice(&number.to_be_bytes());
        Bytes::copy_from_slice(&key)
    }

    fn push_event(&mut self, frame: &Frame, events: &mut Vec<Event>) -> Result<(), Broken> {
        if frame.header.flags.contains(Flags::BATCH) {
            for inner in Batch::new(frame.body.clone()) {
                self.push_event(&inner.map_err(|_| Broken)?, events)?;
            }
            return Ok(());
        }
        let event = self.event_of(frame)?;
        let is_delivery = event.number().is_some();
        events.push(event);
        if is_delivery && frame.header.flags.contains(Flags::ACK_REQ) {
            events.push(Event::Probe);
        }
        Ok(())
    }

    fn event_of(&mut self, frame: &Frame) -> Result<Event, Broken> {
        let Header { seq, lane, .. } = frame.header;
        let number = Numbered { seq, may_wait: matches!(lane, Lane::Group | Lane::Bulk) };
        Ok(match frame.header.command {
            Command::Welcome => {
                let welcome: Welcome = decode(&frame.body).map_err(|_| Broken)?;
                self.promise_s = self.promise_s.max(welcome.heartbeat_min_s);
                Event::Welcome
            }
            Command::Pong => Event::BeatBack,
            Command::SendAck => {
                let answer: SendAck = decode(&frame.body).map_err(|_| Broken)?;
                Event::Answer { cid: answer.cid, outcome: outcome_of(answer.code()) }
            }
            Command::Resp => {
                let answer: Resp = decode(&frame.body).map_err(|_| Broken)?;
                if answer.id == PULL_ID { pulled(&answer)? } else { Event::Said(outcome_of(answer.code())) }
            }
            Command::Push => {
                let push: Push = decode(&frame.body).map_err(|_| Broken)?;
                if push.happened.is_empty() {
                    Event::Delivery { number, payload: push.payload }
                } else {
                    Event::Notice { number }
                }
            }
            Command::Notify => {
                let notify: Notify = decode(&frame.body).map_err(|_| Broken)?;
                Event::Missed { number, from: notify.first }
            }
            Command::Ping => Event::Probe,
            Command::GoAway => {
                let goaway: GoAway = decode(&frame.body).unwrap_or_default();
                Event::Leave(Duration::from_millis(goaway.window_ms.into()))
            }
            Command::Close => {
                let close: Close = decode(&frame.body).unwrap_or_default();
                let retry_after = Duration::from_millis(close.retry_after_ms.into());
                Event::Closing { code: close.code, retry_after }
            }
            Command::Kick => {
                let kick: Kick = decode(&frame.body).unwrap_or_default();
                Event::Closing { code: kick.code, retry_after: Duration::ZERO }
            }
            _ => Event::Other,
        })
    }
}

fn pulled(answer: &Resp) -> Result<Event, Broken> {
    if answer.code() != Code::Ok {
        let payloads = (answer.code() != Code::Retry).then(Vec::new);
        return Ok(Event::Pulled { payloads, rest: None });
    }
    let PullResponse { messages, more, .. } = decode(&answer.payload).map_err(|_| Broken)?;
    let rest = messages.last().filter(|_| more).map(|last| last.seq + 1);
    Ok(Event::Pulled { payloads: Some(messages.into_iter().map(|push| push.payload).collect()), rest })
}

const fn outcome_of(code: Code) -> Outcome {
    match code {
        Code::Ok | Code::Dup => Outcome::Done,
        Code::Retry => Outcome::Retry,
        _ => Outcome::Refused,
    }
}

impl Dialect for Moorline {
    type Decoder = Decoder;

    fn hello(&mut self, who: u32, out: &mut Vec<u8>) {
        let uid = self.uid(who);
        let (uid, token) = self.options.tokens.login(self.options.first + who, &uid);
        let version = u32::from(PROTOCOL_VERSION);
        let hello = Hello {
            version_min: version,
            version_max: version,
            token,
            uid,
            device: "moorload".into(),
            platform: Platform::Bot.into(),
            resume: None,
            accept: 0,
            agent: concat!("moorload/", env!("CARGO_PKG_VERSION")).into(),
        };
        frame_of(Command::Hello, &hello).encode(out);
    }

    fn beat(&mut self, out: &mut Vec<u8>) {
        frame_of(Command::Ping, &Ping { next_s: self.promise_s }).encode(out);
    }

    fn message(&mut self, message: &Message, out: &mut Vec<u8>) {
        let target = match message.to {
            // A note to oneself: the IM backend knows only users who have logged in.
            To::Server => send::Target::User(self.uid(message.from)),
            To::Client(who) => send::Target::User(self.uid(who)),
            To::Group(group) => send::Target::Conversation(format!("group:{}", self.group(group))),
        };
        let body = Send {
            key: self.key(message.from, message.number),
            target: Some(target),
            r#type: 0,
            payload: message.payload.clone(),
        };
        let header = Header {
            command: Command::Send,
            flags: Flags::default(),
            lane: Lane::Chat,
            reliable: true,
            body_len: u32::try_from(body.encoded_len()).expect("payloads are bounded"),
            seq: message.cid,
            ack: message.ack,
        };
        out.reserve(HEADER_BYTES + body.encoded_len());
        out.put_slice(&header.to_bytes());
        body.encode_raw(out);
    }

    fn ask(&mut self, _who: u32, what: Ask, out: &mut Vec<u8>) -> bool {
        let id = if matches!(what, Ask::Pull { .. }) { PULL_ID } else { JOIN_ID };
        let (method, payload) = match what {
            Ask::Create(group) => (
                "im.group.create",
                encode(&GroupCreateRequest { group: self.group(group), members: Vec::new() }),
            ),
            Ask::Join(group) => {
                let conversation = format!("group:{}", self.group(group));
                ("im.group.join", encode(&GroupRequest { conversation, ..GroupRequest::default() }))
            }
            Ask::Pull { group, from } => {
                let conversation = format!("group:{}", self.group(group));
                ("im.pull", encode(&PullRequest { conversation, from, ..PullRequest::default() }))
            }
        };
        frame_of(Command::Req, &Req { id, method: method.into(), payload }).encode(out);
        true
    }

    fn ack(&mut self, up_to: u32, out: &mut Vec<u8>) {
        frame_of(Command::Ack, &Ack { sack: 0 }).with_ack(up_to).encode(out);
    }

    fn probe_reply(&mut self, up_to: u32, out: &mut Vec<u8>) {
        self.ack(up_to, out);
    }

    fn decode(
        &mut self,
        decoder: &mut Decoder,
        input: &mut Bytes,
        events: &mut Vec<Event>,
    ) -> Result<(), Broken> {
        while let Some(frame) = decoder.decode(input, BODY_BYTES_CEILING).map_err(|_| Broken)? {
            self.push_event(&frame, events)?;
        }
        Ok(())
    }

    fn login_advice(&self, code: u32) -> Option<String> {
        let reason = CloseReason::from_code(code)?;
        if !matches!(reason, CloseReason::AuthFailed | CloseReason::TokenExpired) {
            return None;
        }
        let advice = match &self.options.tokens {
            Tokens::None => {
                "it checks tokens, and this run has none; sign them with --key-file, or read them with --token-file"
            }
            Tokens::Mint(_) => {
                "it refuses tokens of --key-file; give the key of its auth.key_file (the private one of an Ed25519 \
                 pair), the same --audience as its auth.audience, and clocks that agree"
            }
            Tokens::List(_) => {
                "it refuses tokens of --token-file; sign them anew with its key, for the users that the lines name"
            }
        };
        Some(format!("{advice} (close code {reason})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::frame::encode_batch;
    use moorline_proto::message::send_ack_body;

    fn moorline() -> Moorline {
        let heartbeat = Duration::from_secs(1);
        Moorline::new(MoorlineOptions { uid_prefix: "t".into(), first: 0, tokens: Tokens::None, heartbeat })
    }

    fn frames(bytes: Vec<u8>) -> Vec<Frame> {
        let (mut input, mut decoder) = (Bytes::from(bytes), Decoder::new());
        std::iter::from_fn(|| decoder.decode(&mut input, BODY_BYTES_CEILING).unwrap()).collect()
    }

    #[test]
    fn messages_have_unique_keys_and_carry_cid_and_ack() {
        let (mut ours, mut out) = (moorline(), Vec::new());
        for (from, cid) in [(1, 1), (1, 2), (2, 1)] {
            let payload = Bytes::from_static(b"x");
            ours.message(&Message { from, cid, number: cid, to: To::Client(9), ack: 4, payload }, &mut out);
        }
        let frames = frames(out);
        let keys: std::collections::BTreeSet<Bytes> =
            frames.iter().map(|frame| decode::<Send>(&frame.body).unwrap().key).collect();
        assert_eq!(keys.len(), 3);
        assert_eq!((frames[1].header.seq, frames[1].header.ack), (2, 4));
        let target = decode::<Send>(&frames[0].body).unwrap().target;
        assert_eq!(target, Some(send::Target::User("t-0000009".into())));
    }

    #[test]
    fn welcome_raises_the_promise_and_batches_are_walked() {
        let (mut ours, mut events) = (moorline(), Vec::new());
        let welcome = frame_of(Command::Welcome, &Welcome { heartbeat_min_s: 30, ..Welcome::default() });
        let refusal = Frame::new(Command::SendAck, send_ack_body(2, Code::Retry, b""));
        let answer = Frame::new(Command::SendAck, send_ack_body(1, Code::Ok, b""));
        let mut wire = Vec::new();
        welcome.encode(&mut wire);
        encode_batch(&[answer, refusal]).encode(&mut wire);
        let mut decoder = Decoder::new();
        for piece in wire.chunks(7) {
            ours.decode(&mut decoder, &mut Bytes::copy_from_slice(piece), &mut events).unwrap();
        }
        let expected = [
            Event::Welcome,
            Event::Answer { cid: 1, outcome: Outcome::Done },
            Event::Answer { cid: 2, outcome: Outcome::Retry },
        ];
        assert_eq!(events, expected);
        let mut out = Vec::new();
        ours.beat(&mut out);
        assert_eq!(decode::<Ping>(&frames(out)[0].body).unwrap().next_s, 30);
        assert_eq!(ours.decode(&mut decoder, &mut Bytes::from_static(b"HTTP"), &mut events), Err(Broken));
    }
}
