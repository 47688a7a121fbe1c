//! REQ: everything a client asks for or does beside saying something (`docs/protocol.md`, section 11).

mod groups;
mod history;
mod people;

use super::names::{self, Conversation};
use super::send::{Refused, USERS_FULL, refused};
use super::store::{ConversationId, Origin, Refusal, Store, UserId, Write};
use super::{Im, Reply, Waiting};
use crate::server::{Now, SessionId};
use bytes::Bytes;
use moorline_proto::message::client::{Code, Req, Resp};
use prost::Message;

/// An answer may always be this large, in bytes, whatever `im.payload_max` says.
const ANSWER_BYTES: usize = 60 << 10;
/// Room for what surrounds one payload of the largest size.
const ANSWER_OVERHEAD_BYTES: usize = 1 << 10;

pub(super) const BAD_PAYLOAD: Refused = (Code::Invalid, "the payload is no request of this method");
const BAD_UID: Refused = (Code::Invalid, "no user can have one of these uids");

/// The answer's payload, or why there is none.
pub(super) type Answer = Result<Bytes, Refused>;

/// Who asks, and how.
pub(super) struct Asked {
    pub(super) now: Now,
    /// `None`: it was asked for a user, by the server API.
    pub(super) session: Option<SessionId>,
    pub(super) origin: Origin,
    /// The device's own name.
    pub(super) device: Box<str>,
    pub(super) payload: Bytes,
}

/// What becomes of a request: an answer now, or a write and its answer when that is durable.
enum Step {
    Answer(Bytes),
    Write(Write, Then),
}

/// What follows a write.
enum Then {
    Recalled,
    Created,
    Changed(ConversationId, super::Change),
    Read(ConversationId),
    /// The answer is what becomes of it.
    Related(UserId),
    /// This is the answer.
    Answer(Bytes),
}

impl<S: Store> Im<S> {
    pub(super) fn on_req(&mut self, now: Now, session: SessionId, body: Bytes, reply: Reply) {
        let decoded = Req::decode(body).map_err(|_| (Code::Invalid, "the body is no Req"));
        match decoded.and_then(|req| Ok((req, self.owner(session)?))) {
            Ok((Req { method, payload, .. }, origin)) => {
                let device = self.sessions.get(session).map(|session| session.device.clone());
                let (session, device) = (Some(session), device.unwrap_or_default());
                self.on_asked(&method, &Asked { now, session, origin, device, payload }, reply);
            }
            Err(refused) => self.answer(reply, Err(refused)),
        }
    }

    /// The same, when it is known who asks.
    pub(super) fn on_asked(&mut self, method: &str, asked: &Asked, reply: Reply) {
        let origin = asked.origin;
        self.tally.requests += 1;
        match self.step(method, asked) {
            Ok(Step::Answer(payload)) => self.answer(reply, Ok(payload)),
            Ok(Step::Write(write, then)) => {
                let waiting = match then {
                    Then::Recalled => Waiting::Recall(reply, origin),
                    Then::Created => Waiting::Create(reply, origin),
                    Then::Changed(conversation, change) => {
                        Waiting::Change(reply, origin, conversation, change)
                    }
                    Then::Read(conversation) => Waiting::Read(reply, origin, conversation),
                    Then::Related(other) => Waiting::Related(reply, origin, other),
                    Then::Answer(payload) => Waiting::Done(reply, origin, payload),
                };
                self.write(write, waiting);
            }
            Err(refused) => {
                self.tally.refused += 1;
                self.answer(reply, Err(refused));
            }
        }
    }

    fn step(&mut self, method: &str, asked: &Asked) -> Result<Step, Refused> {
        match method {
            "im.pull" => self.pull(asked),
            "im.conversations" => self.conversations(asked),
            "im.read" => self.read(asked),
            "im.receipts" => self.receipts_of(asked),
            "im.recall" => self.recall(asked),
            "im.group.create" => self.create(asked),
            "im.group.join" => self.join(asked),
            "im.group.leave" => self.leave(asked),
            "im.group.members" => self.group_members(asked),
            "im.group.change" => self.change(asked),
            "im.group.info" => self.group_info(asked),
            "im.relation" => self.relate(asked),
            "im.relations" => self.relations(asked),
            "im.profile.set" => self.set_profile(asked),
            "im.profile.get" => self.profiles(asked),
            "im.devices" => Ok(self.devices(asked)),
            "im.device.remove" => self.remove_device(asked),
            "im.presence" => self.presence(asked).map(Step::Answer),
            _ => Err((Code::Unsupported, "no method of the IM backend")),
        }
    }

    /// Answers a request.
    pub(super) fn answer(&mut self, reply: Reply, result: Answer) {
        match result {
            Ok(payload) => self.out.answer_req(reply, Code::Ok, Resp { payload, ..Default::default() }),
            Err((code, reason)) => {
                self.out.answer_req(reply, code, Resp { reason: reason.to_owned(), ..Default::default() });
            }
        }
    }

    fn answer_bytes_max(&self) -> usize {
        self.config.payload_max.max(ANSWER_BYTES) + ANSWER_OVERHEAD_BYTES
    }

    /// Users by their names, who need not have been seen before.
    pub(super) fn users(&mut self, uids: &[String]) -> Result<Vec<UserId>, Refused> {
        // Judged before any name is remembered.
        if !uids.iter().all(|uid| names::is_valid(uid)) {
            return Err(BAD_UID);
        }
        uids.iter().map(|uid| self.store.try_user(uid).ok_or(USERS_FULL)).collect()
    }

    /// A conversation that exists, and that the user is a member of.
    fn own_conversation(&self, user: UserId, id: &str) -> Result<ConversationId, Refused> {
        self.peer(user, id)?;
        let conversation = self.store.find(id).ok_or(refused(Refusal::NotFound))?;
        self.store.member(conversation, user).ok_or(refused(Refusal::NotMember))?;
        Ok(conversation)
    }

    /// With whom `user` speaks in the one-to-one conversation `id`; `None`: it is a group.
    pub(super) fn peer<'a>(&self, user: UserId, id: &'a str) -> Result<Option<&'a str>, Refused> {
        let uid = self.store.uid(user);
        match Conversation::parse(id) {
            None => Err(refused(Refusal::NotFound)),
            Some(Conversation::Group(_)) => Ok(None),
            Some(Conversation::OneToOne(a, b)) if a == uid => Ok(Some(b)),
            Some(Conversation::OneToOne(a, b)) if b == uid => Ok(Some(a)),
            Some(Conversation::OneToOne(..)) => Err(refused(Refusal::NotMember)),
        }
    }
}

/// Takes entries while they fit; whether some did not. The first one is always taken.
fn fill<T: Message>(mut room: usize, entries: impl Iterator<Item = T>) -> (Vec<T>, bool) {
    let mut taken = Vec::new();
    for entry in entries {
        // Its tag, and up to four bytes of length.
        let bytes = entry.encoded_len() + 5;
        if bytes > room && !taken.is_empty() {
            return (taken, true);
        }
        room = room.saturating_sub(bytes);
        taken.push(entry);
    }
    (taken, false)
}
