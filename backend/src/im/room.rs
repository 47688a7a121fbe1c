//! Rooms: one per conversation, entered by members, for what is said only now.

use super::refusal::refused;
use super::request::peer;
use super::store::{ConversationId, Refusal, Store, UserId};
use super::tasks::{Asked, Task};
use super::{Im, Output};
use crate::server::{Now, PushSpec, ReplyTo, Up};
use moorline_proto::frame::{Command, Lane};
use moorline_proto::message::client::{Code, Sub};
use moorline_proto::message::im::Signal;
use moorline_proto::message::{decode, encode};

/// The application command of signals [P-11.5].
const SIGNAL: Command = Command::App(0x40);
/// A signal that could not be sent for so long is not true any more, in milliseconds.
const SIGNAL_TTL_MS: u32 = 5_000;

impl<S: Store> Im<S> {
    /// SUB and UNSUB [P-2.5].
    pub(super) fn on_room(&mut self, now: Now, up: &Up, reply: ReplyTo) {
        let Ok(Sub { room, .. }) = decode(&up.body) else {
            let (code, reason) = (Code::Invalid, "the body is no Sub");
            return self.out.put(Output::AnswerSub { reply, code, reason });
        };
        if up.command == Command::Unsub {
            self.out.put(Output::LeaveRoom { session: up.session, room });
            return self.out.put(Output::AnswerSub { reply, code: Code::Ok, reason: "" });
        }
        let asked = self.asked(now, up.session);
        let judged = asked.and_then(|asked| Ok((peer(&asked.uid, &room)?.is_some(), asked)));
        let (code, reason) = match judged {
            Ok((true, asked)) => return self.enter(&asked, room, reply), // one of the two
            Ok((false, asked)) => return self.run(Some(up.session), Task::Enter(asked, room, reply)),
            Err(refused) => refused,
        };
        self.out.put(Output::AnswerSub { reply, code, reason });
    }

    /// Lets a member of a group enter its room.
    pub(super) fn enter_room(&mut self, asked: &Asked, room: String, reply: ReplyTo) {
        let (user, _) = asked.origin;
        let refusal = match self.store.find(&room) {
            Some(group) if self.store.member(group, user).is_some() => return self.enter(asked, room, reply),
            Some(_) => Refusal::NotMember,
            None => Refusal::NotFound,
        };
        let (code, reason) = refused(refusal);
        self.out.put(Output::AnswerSub { reply, code, reason });
    }

    fn enter(&mut self, asked: &Asked, room: String, reply: ReplyTo) {
        if let Some(session) = asked.session {
            self.out.put(Output::EnterRoom { reply, session, room });
        }
    }

    /// Who leaves a group leaves its room.
    pub(super) fn on_left_room(&mut self, user: UserId, conversation: ConversationId) {
        let room = self.id_of(conversation);
        for session in self.sessions.of(user) {
            self.out.put(Output::LeaveRoom { session: session.id, room: room.clone() });
        }
    }

    /// Application commands have no answer; the one that is known here is the signal.
    pub(super) fn on_app(&mut self, up: &Up) {
        let (SIGNAL, Ok(signal)) = (up.command, decode::<Signal>(&up.body)) else { return };
        let Ok(asked) = self.asked(Now::default(), up.session) else { return };
        let (sender, sender_device) = (asked.uid.to_string(), asked.device.to_string());
        let room = signal.conversation.clone();
        let body = encode(&Signal { sender, sender_device, ..signal });
        let spec = PushSpec { command: SIGNAL, lane: Lane::Chat, want_ack: false, ttl_ms: SIGNAL_TTL_MS };
        self.out.put(Output::PushRoom { room, from: Some(up.session), spec, body });
    }
}
