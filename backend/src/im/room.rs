//! Rooms: one per conversation, entered by its members, for signals that are not stored.
//!
//! bob opens his chat with alice and enters its room by SUB; alice types, and her signal is pushed to the room.

use super::refusal::{refused, undecodable};
use super::request::peer;
use super::sessions::Sessions;
use super::store::{Facts, Refusal, Store};
use super::tasks::{Asked, Task};
use super::{Im, Output};
use crate::server::{Now, PushSpec, ReplyTo, Up};
use moorline_proto::frame::{Command, Lane};
use moorline_proto::message::client::{Code, Sub};
use moorline_proto::message::im::Signal;
use moorline_proto::message::{decode, encode};
use prost::Message;

/// The application command of signals [P-11.5].
const SIGNAL: Command = Command::App(0x40);
/// Time after which an unsent signal is dropped, in milliseconds.
const SIGNAL_TTL_MS: u32 = 5_000;

impl<S: Store> Im<S> {
    /// SUB and UNSUB [P-2.5].
    pub(super) fn on_room(&mut self, now: Now, up: &Up, reply: ReplyTo) {
        let Sub { room, .. } = match Sub::decode(up.body.clone()) {
            Ok(sub) => sub,
            Err(cause) => {
                let (code, reason) = undecodable("Sub", &cause);
                return self.out.put(Output::AnswerSub { reply, code, reason });
            }
        };
        if up.command == Command::Unsub {
            self.out.put(Output::LeaveRoom { session: up.session, room });
            return self.out.put(Output::AnswerSub { reply, code: Code::Ok, reason: "".into() });
        }
        let asked = self.sessions.author(now, up.session);
        let judged = asked.and_then(|asked| Ok((peer(&asked.uid, &room)?.is_some(), asked)));
        let (code, reason) = match judged {
            Ok((true, asked)) => {
                return enter(&asked, room, reply).into_iter().for_each(|output| self.out.put(output)); // one of the two
            }
            Ok((false, asked)) => return self.run(Some(up.session), Task::Enter(asked, room, reply)),
            Err(refused) => refused,
        };
        self.out.put(Output::AnswerSub { reply, code, reason });
    }
}

/// Lets a member of a group enter its room, or refuses.
pub(super) fn enter_group(facts: &impl Facts, asked: &Asked, room: String, reply: ReplyTo) -> Option<Output> {
    let (user, _) = asked.origin;
    let refusal = match facts.find(&room) {
        Some(group) if facts.member(group, user).is_some() => return enter(asked, room, reply),
        Some(_) => Refusal::NotMember,
        None => Refusal::NotFound,
    };
    let (code, reason) = refused(refusal);
    Some(Output::AnswerSub { reply, code, reason })
}

fn enter(asked: &Asked, room: String, reply: ReplyTo) -> Option<Output> {
    Some(Output::EnterRoom { reply, session: asked.session?, room })
}

/// Passes a signal to the room of its conversation. `None`: the UP is not a signal of a complete login.
pub(super) fn signal(sessions: &Sessions, up: &Up) -> Option<Output> {
    let (SIGNAL, Ok(signal)) = (up.command, decode::<Signal>(&up.body)) else { return None };
    let asked = sessions.author(Now::default(), up.session).ok()?;
    let (sender, sender_device) = (asked.uid.to_string(), asked.device.to_string());
    let room = signal.conversation.clone();
    let body = encode(&Signal { sender, sender_device, ..signal });
    let spec = PushSpec { command: SIGNAL, lane: Lane::Chat, want_ack: false, ttl_ms: SIGNAL_TTL_MS };
    Some(Output::PushRoom { room, from: Some(up.session), spec, body })
}
