//! SEND: what is wrong with it, or its way into the store and its answer.

use super::names::{self, Conversation};
use super::store::{Draft, Recipient, Refusal, SEQ_BYTES_MAX, Store, Stored, Target, UserId, Write};
use super::{Im, Origin, Outputs, Waiting, time_ms};
use crate::server::{Now, ReplyTo, SessionId};
use bytes::{Bytes, BytesMut};
use moorline_proto::ids::MessageKey;
use moorline_proto::message::client::{Code, Send, SendAck, send};
use moorline_proto::random::mix;
use prost::Message;

/// An answer that is not OK: its code, and why, for people. For good, so never [`Code::Retry`].
pub(super) type Refused = (Code, &'static str);

/// How a store's refusal is told to a client.
pub(super) fn refused(refusal: Refusal) -> Refused {
    match refusal {
        Refusal::NotMember => (Code::NotMember, "you are no member of this conversation"),
        Refusal::NotFound => (Code::NotFound, "there is no such conversation"),
        Refusal::Conflict => (Code::Conflict, "known already, with other content or another creator"),
        Refusal::Denied => (Code::Denied, "a one-to-one conversation cannot be joined or left"),
        Refusal::GroupFull => (Code::Denied, "the group has im.group_members_max members"),
        Refusal::StoreFull => (Code::Denied, "im.conversations_max conversations are known"),
    }
}

pub(super) const USERS_FULL: Refused = (Code::Denied, "im.users_max users are known");
const NO_SESSION: Refused = (Code::Denied, "this login was refused");

impl<S: Store> Im<S> {
    pub(super) fn on_send(
        &mut self,
        now: Now,
        session: SessionId,
        body: Bytes,
        reply: ReplyTo,
        out: &mut impl Outputs,
    ) {
        match self.try_draft(now, session, body) {
            Ok(draft) => {
                let origin = (draft.sender, draft.device);
                self.write(Write::Append(draft), Waiting::Send(reply, origin));
            }
            Err(refused) => refuse_send(reply, refused, out),
        }
    }

    fn try_draft(&mut self, now: Now, session: SessionId, body: Bytes) -> Result<Draft, Refused> {
        let send = Send::decode(body).map_err(|_| (Code::Invalid, "the body is no Send"))?;
        let key =
            <[u8; 16]>::try_from(&send.key[..]).map_err(|_| (Code::Invalid, "a message key has 16 bytes"))?;
        if send.payload.len() > self.config.payload_max {
            return Err((Code::TooLarge, "the payload is over im.payload_max"));
        }
        let (sender, device) = self.owner(session)?;
        let target = self.target(sender, send.target.as_ref())?;
        let id = self.ids.next(now.unix_ms);
        let digest = digest(send.r#type, &send.payload);
        let body = self.encode_push(session, id, target, send);
        Ok(Draft { sender, device, target, key: MessageKey(key), id, digest, body })
    }

    pub(super) fn owner(&self, session: SessionId) -> Result<Origin, Refused> {
        self.sessions.get(session).and_then(|session| session.owner).ok_or(NO_SESSION)
    }

    fn target(&mut self, sender: UserId, target: Option<&send::Target>) -> Result<Target, Refused> {
        let uid = match target {
            None => return Err((Code::Invalid, "neither user nor conversation is set")),
            Some(send::Target::User(uid)) => uid,
            Some(send::Target::Conversation(id)) => match self.peer(sender, id)? {
                Some(peer) => peer,
                None => {
                    return self.store.find(id).map(Target::Conversation).ok_or(refused(Refusal::NotFound));
                }
            },
        };
        if !names::is_valid(uid) {
            return Err((Code::Invalid, "no user can have this uid"));
        }
        self.store.try_user(uid).map(Target::User).ok_or(USERS_FULL)
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

    /// The body that every recipient gets; only its seq is missing.
    fn encode_push(&mut self, session: SessionId, id: u64, target: Target, send: Send) -> BytesMut {
        let push = &mut self.scratch.push;
        push.clear();
        let session = self.sessions.get(session).expect("its owner was found");
        let (sender, _) = session.owner.expect("its owner was found");
        push.sender.push_str(self.store.uid(sender));
        push.sender_device.push_str(&session.device);
        match target {
            Target::User(peer) => {
                let (a, b) = (self.store.uid(sender), self.store.uid(peer));
                names::write_one_to_one(&mut push.conversation, a, b);
            }
            Target::Conversation(conversation) => self.store.write_id(conversation, &mut push.conversation),
        }
        push.message_id = id;
        push.time_ms = time_ms(id);
        push.r#type = send.r#type;
        push.payload = send.payload;
        let mut body = BytesMut::with_capacity(push.encoded_len() + SEQ_BYTES_MAX);
        push.encode_raw(&mut body);
        push.payload = Bytes::new(); // lets go of the read buffer
        body
    }

    pub(super) fn on_appended(
        &mut self,
        reply: ReplyTo,
        origin: Origin,
        result: Result<Stored, Refusal>,
        recipients: &[Recipient],
        out: &mut impl Outputs,
    ) {
        let stored = match result {
            Ok(stored) => stored,
            Err(refusal) => return refuse_send(reply, refused(refusal), out),
        };
        let code = if stored.delivery.is_some() { Code::Ok } else { Code::Dup };
        let answer = SendAck {
            message_id: stored.id,
            conversation: self.id_of(stored.conversation),
            seq: stored.seq,
            time_ms: time_ms(stored.id),
            ..Default::default()
        };
        out.answer_send(reply, code, answer);
        if let Some(delivery) = &stored.delivery {
            self.deliver(stored.conversation, origin, delivery, recipients, out);
        }
    }
}

fn refuse_send(reply: ReplyTo, (code, reason): Refused, out: &mut impl Outputs) {
    out.answer_send(reply, code, SendAck { reason: reason.to_owned(), ..Default::default() });
}

/// Tells contents apart; not for secrets. Eight bytes per step of SplitMix64's finaliser.
fn digest(kind: u32, payload: &[u8]) -> u64 {
    let lead = mix(u64::from(kind) << 32 ^ payload.len() as u64 ^ 0x6D6F_6F72);
    payload.chunks(8).fold(lead, |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(hash.rotate_left(5) ^ u64::from_le_bytes(word))
    })
}
