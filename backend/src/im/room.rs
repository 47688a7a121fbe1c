//! Rooms: one per conversation, entered by members, for what is said only now.

use super::send::Refused;
use super::store::{ConversationId, Refusal, Store, UserId};
use super::{Im, Outputs, send};
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
    pub(super) fn on_room(&self, up: &Up, reply: ReplyTo, out: &mut impl Outputs) {
        let Ok(Sub { room, .. }) = decode(&up.body) else {
            return out.answer_sub(reply, Code::Invalid, "the body is no Sub");
        };
        if up.command == Command::Unsub {
            out.unbind(up.session, &room);
            return out.answer_sub(reply, Code::Ok, "");
        }
        match self.judge_room(up.session, &room) {
            Ok(()) if out.bind(up.session, &room) => out.answer_sub(reply, Code::Ok, ""),
            Ok(()) => out.answer_sub(reply, Code::Retry, "a limit of rooms is reached"),
            Err((code, reason)) => out.answer_sub(reply, code, reason),
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
    pub(super) fn on_left_room(&self, user: UserId, conversation: ConversationId, out: &mut impl Outputs) {
        let room = self.id_of(conversation);
        self.sessions.of(user).for_each(|session| out.unbind(session.id, &room));
    }

    /// Application commands have no answer; the one that is known here is the signal.
    pub(super) fn on_app(&self, up: &Up, out: &mut impl Outputs) {
        let (SIGNAL, Ok(signal)) = (up.command, decode::<Signal>(&up.body)) else { return };
        let Ok((user, _)) = self.owner(up.session) else { return };
        let device = self.sessions.get(up.session).map_or("", |session| &*session.device);
        let (sender, sender_device) = (self.store.uid(user).to_owned(), device.to_owned());
        let body = encode(&Signal { sender, sender_device, ..signal.clone() });
        let spec = PushSpec { command: SIGNAL, lane: Lane::Chat, want_ack: false, ttl_ms: SIGNAL_TTL_MS };
        out.push_room(&signal.conversation, Some(up.session), spec, &body);
    }
}
