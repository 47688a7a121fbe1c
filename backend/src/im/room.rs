//! Rooms: one per conversation, entered by members, for what is said only now.

use super::send::Refused;
use super::store::{ConversationId, Refusal, Store, UserId};
use super::{Im, Output, send};
use crate::server::{PushSpec, ReplyTo, SessionId, Up};
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
    pub(super) fn on_room(&mut self, up: &Up, reply: ReplyTo) {
        let Ok(Sub { room, .. }) = decode(&up.body) else {
            let (code, reason) = (Code::Invalid, "the body is no Sub");
            return self.out.put(Output::AnswerSub { reply, code, reason });
        };
        if up.command == Command::Unsub {
            self.out.put(Output::LeaveRoom { session: up.session, room });
            return self.out.put(Output::AnswerSub { reply, code: Code::Ok, reason: "" });
        }
        match self.judge_room(up.session, &room) {
            Ok(()) => self.out.put(Output::EnterRoom { reply, session: up.session, room }),
            Err((code, reason)) => self.out.put(Output::AnswerSub { reply, code, reason }),
        }
    }

    /// Members of a conversation may enter its room.
    fn judge_room(&self, session: SessionId, room: &str) -> Result<(), Refused> {
        let (user, _) = self.owner(session)?;
        if self.peer(user, room)?.is_some() {
            return Ok(()); // one of the two
        }
        let group = self.store.find(room).ok_or(send::refused(Refusal::NotFound))?;
        self.store.member(group, user).map(|_| ()).ok_or(send::refused(Refusal::NotMember))
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
        let Ok((user, _)) = self.owner(up.session) else { return };
        let device = self.sessions.get(up.session).map_or("", |session| &*session.device);
        let (sender, sender_device) = (self.store.uid(user).to_owned(), device.to_owned());
        let room = signal.conversation.clone();
        let body = encode(&Signal { sender, sender_device, ..signal });
        let spec = PushSpec { command: SIGNAL, lane: Lane::Chat, want_ack: false, ttl_ms: SIGNAL_TTL_MS };
        self.out.put(Output::PushRoom { room, from: Some(up.session), spec, body });
    }
}
