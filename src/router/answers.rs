//! Bodies of SENDACK, RESP and SUBACK, cut from one arena so that an answer costs no allocation.

use super::Up;
use crate::messages::{Downlink, Rank};
use bytes::{BufMut, BytesMut};
use moorline_proto::frame::Command;
use moorline_proto::message::client::{Code, Resp, SendAck, SubAck};
use moorline_proto::random::Random;
use prost::Message;

/// Bytes of a fresh arena.
const ARENA_BYTES: usize = 16 << 10;
/// A RETRY says: come back after this many milliseconds, and up to [`RETRY_SPREAD_MS`] more.
const RETRY_AFTER_MS: u32 = 500;
/// Spreads the retries of many clients.
const RETRY_SPREAD_MS: u32 = 1_000;

/// Makes answers.
#[derive(Debug)]
pub(super) struct Answers {
    arena: BytesMut,
}

impl Answers {
    pub(super) fn new() -> Self {
        Self { arena: BytesMut::with_capacity(ARENA_BYTES) }
    }

    /// The backend's `answer` to `up`, led by what the gateway knows: protobuf messages concatenate
    /// by merging, so it is never decoded here.
    pub(super) fn answer(&mut self, up: &Up, (code, rank): (i32, Rank), answer: &[u8]) -> Downlink {
        self.arena.reserve(answer.len() + 24); // two tags and two varints lead
        self.lead(up, code, 0);
        self.arena.put_slice(answer);
        self.finish(up, code != i32::from(Code::Retry), rank)
    }

    /// Tells the client to try `up` again.
    pub(super) fn retry(&mut self, up: &Up, random: &mut Random) -> Downlink {
        let spread = u32::try_from(random.below(u64::from(RETRY_SPREAD_MS))).unwrap_or(0);
        let retry_after_ms = RETRY_AFTER_MS + spread;
        self.lead(up, Code::Retry.into(), retry_after_ms);
        self.finish(up, false, Rank::First)
    }

    /// The gateway's knowledge of an answer.
    fn lead(&mut self, up: &Up, code: i32, retry_after_ms: u32) {
        let number = up.number;
        match up.command {
            Command::Req => {
                let resp = Resp { id: number, code, retry_after_ms, ..Default::default() };
                resp.encode_raw(&mut self.arena);
            }
            Command::Sub | Command::Unsub => {
                SubAck { id: number, code, reason: String::new() }.encode_raw(&mut self.arena);
            }
            _ => {
                let ack = SendAck { cid: number, code, retry_after_ms, ..Default::default() };
                ack.encode_raw(&mut self.arena);
            }
        }
    }

    fn finish(&mut self, up: &Up, is_final: bool, rank: Rank) -> Downlink {
        let body = self.arena.split().freeze();
        let (command, cid) = match up.command {
            Command::Req => (Command::Resp, 0),
            Command::Sub | Command::Unsub => (Command::SubAck, 0),
            _ => (Command::SendAck, up.number),
        };
        Downlink::Answer { key: up.key, command, cid, is_final, rank, body }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::Split;
    use bytes::Bytes;
    use moorline_proto::ids::{ConnKey, Pin};
    use moorline_proto::message;
    use moorline_proto::time::Instant;

    fn up(command: Command) -> Up {
        let (key, slot) = (ConnKey::from_u64(9), Split::Plain.slot_of(Pin(0)));
        Up { key, slot, command, number: 7, is_dup: false, taken_at: Instant::ZERO, body: Bytes::new() }
    }

    #[test]
    fn answers_merge_behind_the_gateways_fields() {
        let mut answers = Answers::new();
        let backend = SendAck { seq: 4, conversation: "c".into(), ..Default::default() };
        let made =
            answers.answer(&up(Command::Send), (Code::Dup.into(), Rank::Last), &message::encode(&backend));
        let Downlink::Answer {
            command: Command::SendAck,
            cid: 7,
            is_final: true,
            rank: Rank::Last,
            body,
            ..
        } = made
        else {
            panic!("{made:?}")
        };
        let whole: SendAck = message::decode(&body).expect("decodes");
        assert_eq!(whole, SendAck { cid: 7, code: Code::Dup.into(), ..backend });
        let made = answers.answer(&up(Command::Req), (0, Rank::First), &[]);
        let Downlink::Answer { command: Command::Resp, cid: 0, body, .. } = made else { panic!("{made:?}") };
        assert_eq!(message::decode::<Resp>(&body), Ok(Resp { id: 7, ..Default::default() }));
    }

    #[test]
    fn a_retry_says_when_within_its_spread() {
        let (mut answers, mut random) = (Answers::new(), Random::new(5));
        let mut delays = Vec::new();
        for _ in 0..200 {
            let Downlink::Answer { is_final: false, body, .. } =
                answers.retry(&up(Command::Send), &mut random)
            else {
                panic!()
            };
            let ack: SendAck = message::decode(&body).expect("decodes");
            assert_eq!((ack.cid, ack.code()), (7, Code::Retry));
            delays.push(ack.retry_after_ms);
        }
        assert!(delays.iter().all(|delay| (500..1_500).contains(delay)));
        assert!(delays.iter().max() > Some(&1_300) && delays.iter().min() < Some(&700));
    }
}
