//! SEND: its draft or its refusal, and the answer when the message is stored.

use super::delivery::Deliveries;
use super::names;
use super::names::Conversation;
use super::newcomers;
use super::output::Reply;
use super::quotas::{Quota, Quotas};
use super::ranks::rank_of;
use super::refusal::{
    Refused, USERS_FULL, code_and_reason, invalid_user, no_such_user, refuse, refused, undecodable,
};
use super::request::{Then, peer};
use super::store::{
    Draft, Facts, Need, Origin, ReadSet, Recipient, Refusal, SEQ_BYTES_MAX, Store, Stored, Target, Write,
};
use super::tasks::{Asked, Task};
use super::waiting::Waiter;
use super::{Im, MessageIds, NOBODY};
use crate::server::{Now, ReplyTo, SessionId};
use bytes::{Bytes, BytesMut};
use moorline_proto::ids::MessageKey;
use moorline_proto::message::backend::Rank;
use moorline_proto::message::client::{Code, Push, Send, SendAck, send};
use moorline_proto::message::encode;
use moorline_proto::message::im::{Happened, happened};
use moorline_proto::random::mix;
use prost::Message;

/// Wait that RETRY asks for when a conversation takes no more messages now, in milliseconds.
const TOO_FAST_RETRY_MS: u32 = 2000;

impl<S: Store> Im<S> {
    pub(super) fn on_send(
        &mut self,
        now: Now,
        session: SessionId,
        is_repeat: bool,
        body: Bytes,
        reply: ReplyTo,
    ) {
        let reply = Reply::Link(reply);
        let decoded = Send::decode(body).map_err(|cause| undecodable("Send", &cause));
        match decoded.and_then(|send| Ok((send, self.sessions.author(now, session)?))) {
            Ok((send, asked)) => {
                self.run(Some(session), Task::Send(Asked { is_repeat, ..asked }, send, reply));
            }
            Err(refused) => self.out.refuse_send(reply, refused),
        }
    }

    /// Judges a SEND. `may_wait`: it has not waited for a login yet.
    pub(super) fn execute_send(&mut self, asked: &Asked, send: Send, reply: Reply, may_wait: bool) {
        let waits = asked.session.filter(|_| may_wait && self.newcomers.has_room());
        let mut drafts = Drafts {
            facts: &mut self.storage.store,
            ids: &mut self.ids,
            push: &mut self.scratch.push,
            quotas: &mut self.quotas,
            payload_max: self.config.payload_max,
        };
        let drafted = match drafts.target(asked, &send) {
            Ok(Wanted::Known(target)) => drafts.try_draft(asked, target, send),
            Ok(Wanted::Nobody(uid)) => match waits {
                Some(session) => {
                    self.newcomers.wait(uid, newcomers::Waiter { asked: asked.clone(), send, reply });
                    return self.queues.begin(session);
                }
                None => Err(no_such_user("user", &uid)),
            },
            Err(refused) => Err(refused),
        };
        match drafted {
            Ok(draft) => {
                self.storage.write(Write::Append(draft), Waiter::Request(reply, asked.origin, Then::Sent));
            }
            Err(refused) => self.out.refuse_send(reply, refused),
        }
    }
}

impl<S: Store> Deliveries<'_, S> {
    pub(super) fn on_appended(
        &mut self,
        reply: Reply,
        origin: Origin,
        result: Result<Stored, Refusal>,
        recipients: &[Recipient],
    ) {
        let stored = match result {
            Ok(stored) => stored,
            Err(Refusal::TooFast) => {
                let (_, reason) = code_and_reason(Refusal::TooFast);
                return self.out.put_off_send(reply, reason, TOO_FAST_RETRY_MS);
            }
            Err(refusal) => return self.out.refuse_send(reply, refused(refusal)),
        };
        let code = if stored.delivery.is_some() { Code::Ok } else { Code::Dup };
        let answer = SendAck {
            message_id: stored.id,
            conversation: self.storage.store.id(stored.conversation),
            seq: stored.seq,
            time_ms: stored.time_ms,
            ..Default::default()
        };
        let rank = rank_of(&self.storage.store, self.config, stored.conversation);
        self.fanouts.has_chat |= rank == Rank::First;
        self.out.answer_sent(reply, code, answer, rank);
        self.tally.repeated += u64::from(code == Code::Dup);
        self.on_stored(origin, stored, recipients);
    }

    /// Pushes a new message to the devices that are online.
    pub(super) fn on_stored(&mut self, origin: Origin, stored: Stored, recipients: &[Recipient]) {
        let Some(delivery) = stored.delivery else { return };
        self.tally.stored += 1;
        if origin != NOBODY && self.storage.store.is_group(stored.conversation) {
            self.receipts.on_message(stored.conversation, stored.seq, origin.0);
        }
        if delivery.is_read_fanout {
            let rank = rank_of(&self.storage.store, self.config, stored.conversation);
            self.fanouts.push(stored.conversation, rank, (stored.seq, delivery.body), origin);
        } else {
            self.deliver(Some(stored.conversation), origin, &delivery, recipients);
        }
    }
}

/// Bytes that a message has beside its payload, about.
const MESSAGE_BYTES: usize = 128;

/// Names the facts that a SEND is judged on.
pub(super) fn plan(asked: &Asked, target: Option<&send::Target>, set: &mut ReadSet) {
    let peer = match target {
        Some(send::Target::User(uid)) if names::is_valid(uid) => &**uid,
        Some(send::Target::Conversation(id)) => match Conversation::parse(id) {
            Some(Conversation::OneToOne(a, b)) if a == asked.uid() => b,
            Some(Conversation::OneToOne(a, b)) if b == asked.uid() => a,
            Some(Conversation::Group(_)) => return set.add(Need::Named(id.clone(), None)),
            _ => return,
        },
        _ => return,
    };
    let need = if asked.is_operator() { Need::NewUser } else { Need::User };
    set.add(need(peer.to_owned()));
    let mut id = String::new();
    names::write_one_to_one(&mut id, asked.uid(), peer);
    set.add(Need::Named(id, None));
}

/// Target of a SEND, as it is asked for.
enum Wanted {
    Known(Target),
    /// A valid name that no user has.
    Nobody(String),
}

/// Parts of the backend that turn a SEND into a draft.
struct Drafts<'a, F> {
    facts: &'a mut F,
    ids: &'a mut MessageIds,
    /// Buffer of the push, so that a message costs few allocations.
    push: &'a mut Push,
    quotas: &'a mut Quotas,
    /// `im.payload_max`, in bytes.
    payload_max: usize,
}

impl<F: Facts> Drafts<'_, F> {
    fn try_draft(&mut self, asked: &Asked, target: Target, send: Send) -> Result<Draft, Refused> {
        let key = <[u8; 16]>::try_from(&send.key[..])
            .map_err(|_| refuse(Code::Invalid, format!("`key` has {} bytes, not 16", send.key.len())))?;
        let (bytes, payload_max) = (send.payload.len(), self.payload_max);
        if bytes > payload_max {
            let reason = format!("`payload` has {bytes} bytes; `im.payload_max` is {payload_max}");
            return Err(refuse(Code::TooLarge, reason));
        }
        let (sender, device) = asked.origin;
        self.charge(asked, target, bytes)?;
        let (id, time_ms) = (self.ids.next_now(asked.now), asked.now.unix_ms);
        let digest = digest(send.r#type, &send.payload);
        let body = self.encode_push(asked, id, target, send);
        let is_repeat = asked.is_repeat;
        Ok(Draft { is_repeat, sender, device, target, key: MessageKey(key), id, time_ms, digest, body })
    }

    /// Charges the sender for the bytes, and for a conversation that comes into being.
    fn charge(&mut self, asked: &Asked, target: Target, bytes: usize) -> Result<(), Refused> {
        if asked.is_operator() {
            return Ok(());
        }
        let mut amounts = [(Quota::Bytes, (bytes + MESSAGE_BYTES) as u64), (Quota::Conversations, 0)];
        if let Target::User(peer) = target
            && peer != asked.origin.0
        {
            amounts[1].1 = u64::from(self.facts.one_to_one(asked.origin.0, peer).is_none());
        }
        let unix_ms = self.ids.steady_ms(asked.now);
        self.quotas.charge(Now { unix_ms, ..asked.now }, asked.origin.0, &amounts)
    }

    fn target(&mut self, asked: &Asked, send: &Send) -> Result<Wanted, Refused> {
        let uid = match &send.target {
            None => return Err(refuse(Code::Invalid, "neither `user` nor `conversation` is set")),
            Some(send::Target::User(uid)) => uid,
            Some(send::Target::Conversation(id)) => {
                if let Some(peer) = peer(asked.uid(), id)? {
                    peer
                } else {
                    let found = self.facts.find(id).ok_or_else(|| refused(Refusal::NotFound));
                    return found.map(|conversation| Wanted::Known(Target::Conversation(conversation)));
                }
            }
        };
        if !names::is_valid(uid) {
            return Err(invalid_user("user"));
        }
        if asked.is_operator() {
            return self.facts.try_user(uid).map(|user| Wanted::Known(Target::User(user))).ok_or(USERS_FULL);
        }
        let found = self.facts.find_user(uid);
        Ok(found.map_or_else(|| Wanted::Nobody(uid.to_owned()), |user| Wanted::Known(Target::User(user))))
    }

    /// Encodes the body that every recipient gets, without its seq.
    fn encode_push(&mut self, asked: &Asked, id: u64, target: Target, send: Send) -> BytesMut {
        let push = &mut *self.push;
        push.clear();
        push.sender.push_str(asked.uid());
        push.sender_device.push_str(asked.device());
        match target {
            Target::User(peer) => {
                names::write_one_to_one(&mut push.conversation, asked.uid(), self.facts.uid(peer));
            }
            Target::Conversation(conversation) => self.facts.write_id(conversation, &mut push.conversation),
        }
        push.message_id = id;
        push.time_ms = asked.now.unix_ms;
        push.r#type = send.r#type;
        push.payload = send.payload;
        let mut body = BytesMut::with_capacity(push.encoded_len() + SEQ_BYTES_MAX);
        push.encode_raw(&mut body);
        push.payload = Bytes::new(); // lets go of the read buffer
        body
    }
}

/// Encodes a push that tells of something that happened. Its seq is missing, so that it can be sealed or sent as it is.
pub(super) fn encode_happened(id: u64, asked: &Asked, conversation: &str, what: happened::What) -> BytesMut {
    let push = Push {
        message_id: id,
        conversation: conversation.to_owned(),
        sender: asked.uid().to_owned(),
        sender_device: asked.device().to_owned(),
        time_ms: asked.now.unix_ms,
        happened: encode(&Happened { what: Some(what) }),
        ..Push::default()
    };
    let mut body = BytesMut::with_capacity(push.encoded_len() + SEQ_BYTES_MAX);
    push.encode_raw(&mut body);
    body
}

/// Returns a digest that tells contents apart; it is not cryptographic. Each step of SplitMix64's finaliser takes 8 bytes.
pub(super) fn digest(kind: u32, payload: &[u8]) -> u64 {
    let lead = mix(u64::from(kind) << 32 ^ payload.len() as u64 ^ 0x6D6F_6F72);
    payload.chunks(8).fold(lead, |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(hash.rotate_left(5) ^ u64::from_le_bytes(word))
    })
}
