//! REQ: history, groups, the list of conversations.

use super::names;
use super::send::{Refused, USERS_FULL, refused};
use super::store::{ConversationId, PageLimits, Refusal, Store, UserId, Write};
use super::{Im, Outputs, Waiting};
use crate::server::{ReplyTo, SessionId};
use bytes::Bytes;
use moorline_proto::message::client::{Code, Req, Resp};
use moorline_proto::message::{encode, im};
use prost::Message;

/// An answer may always be this large, in bytes, whatever `im.payload_max` says.
const ANSWER_BYTES: usize = 60 << 10;
/// Room for what surrounds one payload of the largest size.
const ANSWER_OVERHEAD_BYTES: usize = 1 << 10;

const BAD_PAYLOAD: Refused = (Code::Invalid, "the payload is no request of this method");
const MEMBERS_TOO_LARGE: Refused = (Code::TooLarge, "the list of members does not fit one answer");

/// [`im::PullResponse`] with messages as they are stored; the same on the wire.
#[derive(Clone, PartialEq, prost::Message)]
struct PullAnswer {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    messages: Vec<Bytes>,
    #[prost(message, repeated, tag = "2")]
    voids: Vec<im::VoidRange>,
    #[prost(uint64, tag = "3")]
    latest: u64,
    #[prost(bool, tag = "4")]
    more: bool,
}

impl<S: Store> Im<S> {
    pub(super) fn on_req(&mut self, session: SessionId, body: Bytes, reply: ReplyTo, out: &mut impl Outputs) {
        let Ok(req) = Req::decode(body) else {
            return answer(reply, Err((Code::Invalid, "the body is no Req")), out);
        };
        let user = match self.owner(session) {
            Ok((user, _)) => user,
            Err(refused) => return answer(reply, Err(refused), out),
        };
        let payload = req.payload;
        match req.method.as_str() {
            "im.pull" => answer(reply, self.pull(user, payload), out),
            "im.conversations" => answer(reply, Ok(self.conversations(user)), out),
            "im.group.members" => answer(reply, self.group_members(user, payload), out),
            "im.group.create" => match self.create(user, payload) {
                Ok(write) => self.write(write, Waiting::Create(reply)),
                Err(refused) => answer(reply, Err(refused), out),
            },
            "im.group.join" => match self.group(user, payload) {
                Ok(conversation) => {
                    self.write(Write::Join { conversation, user }, Waiting::Join(reply, user));
                }
                Err(refused) => answer(reply, Err(refused), out),
            },
            "im.group.leave" => match self.group(user, payload) {
                Ok(conversation) => {
                    self.write(
                        Write::Leave { conversation, user },
                        Waiting::Leave(reply, user, conversation),
                    );
                }
                Err(refused) => answer(reply, Err(refused), out),
            },
            _ => answer(reply, Err((Code::Unsupported, "no method of the IM backend")), out),
        }
    }

    fn pull(&self, user: UserId, payload: Bytes) -> Result<Bytes, Refused> {
        let request = im::PullRequest::decode(payload).map_err(|_| BAD_PAYLOAD)?;
        let to = if request.to == 0 { u64::MAX } else { request.to };
        let from = request.from.max(1);
        if from > to {
            return Err((Code::Invalid, "`from` is after `to`"));
        }
        let peer = self.peer(user, &request.conversation)?;
        let Some(conversation) = self.store.find(&request.conversation) else {
            // Two who have not spoken yet have an empty history.
            return peer.map(|_| Bytes::new()).ok_or(refused(Refusal::NotFound));
        };
        let messages_max = self.config.pull_messages_max;
        let messages = match request.limit as usize {
            0 => messages_max,
            wanted => wanted.min(messages_max),
        };
        let limits = PageLimits { messages, bytes: self.answer_bytes_max() };
        let page = self.store.read_range(conversation, user, (from, to), limits).map_err(refused)?;
        let voids = page.voids.into_iter().map(|(from, to)| im::VoidRange { from, to }).collect();
        Ok(encode(&PullAnswer { messages: page.messages, voids, latest: page.latest, more: page.more }))
    }

    fn answer_bytes_max(&self) -> usize {
        self.config.payload_max.max(ANSWER_BYTES) + ANSWER_OVERHEAD_BYTES
    }

    /// Those joined last come first; as many as fit.
    fn conversations(&self, user: UserId) -> Bytes {
        let (mut room, mut conversations) = (self.answer_bytes_max(), Vec::new());
        for conversation in self.store.conversations(user).into_iter().rev() {
            let members = u32::try_from(self.store.member_count(conversation)).unwrap_or(u32::MAX);
            let (id, latest) = (self.id_of(conversation), self.store.latest(conversation));
            let entry = im::Conversation { id, latest, members };
            let Some(left) = room.checked_sub(entry.encoded_len() + 4) else { break };
            room = left;
            conversations.push(entry);
        }
        encode(&im::ConversationsResponse { conversations })
    }

    fn group_members(&self, user: UserId, payload: Bytes) -> Result<Bytes, Refused> {
        let request = im::GroupRequest::decode(payload).map_err(|_| BAD_PAYLOAD)?;
        let peer = self.peer(user, &request.conversation)?;
        if let (Some(peer), None) = (peer, self.store.find(&request.conversation)) {
            let mut members = vec![self.store.uid(user).to_owned(), peer.to_owned()];
            members.dedup();
            return Ok(encode(&im::GroupResponse { members }));
        }
        let conversation = self.store.find(&request.conversation).ok_or(refused(Refusal::NotFound))?;
        self.members_answer(conversation, user)
    }

    fn members_answer(&self, conversation: ConversationId, asker: UserId) -> Result<Bytes, Refused> {
        let members = self.store.members(conversation, asker).map_err(refused)?;
        let members = members.into_iter().map(|user| self.store.uid(user).to_owned()).collect();
        let answer = im::GroupResponse { members };
        if answer.encoded_len() > self.answer_bytes_max() {
            return Err(MEMBERS_TOO_LARGE);
        }
        Ok(encode(&answer))
    }

    fn create(&mut self, creator: UserId, payload: Bytes) -> Result<Write, Refused> {
        let request = im::GroupCreateRequest::decode(payload).map_err(|_| BAD_PAYLOAD)?;
        if !names::is_valid(&request.group) {
            return Err((Code::Invalid, "a group's name has 1 to 64 bytes, no colon, no control character"));
        }
        // Judged before any name is remembered.
        if request.members.len() > self.config.group_members_max {
            return Err(refused(Refusal::GroupFull));
        }
        if !request.members.iter().all(|uid| names::is_valid(uid)) {
            return Err((Code::Invalid, "no user can have the uid of one of the members"));
        }
        let members = request.members.iter().map(|uid| self.store.try_user(uid).ok_or(USERS_FULL));
        Ok(Write::CreateGroup { name: request.group, creator, members: members.collect::<Result<_, _>>()? })
    }

    /// The group that a request to join or leave names.
    fn group(&self, user: UserId, payload: Bytes) -> Result<ConversationId, Refused> {
        let request = im::GroupRequest::decode(payload).map_err(|_| BAD_PAYLOAD)?;
        if self.peer(user, &request.conversation)?.is_some() {
            return Err(refused(Refusal::Denied));
        }
        self.store.find(&request.conversation).ok_or(refused(Refusal::NotFound))
    }

    pub(super) fn on_created(
        &self,
        reply: ReplyTo,
        result: Result<ConversationId, Refusal>,
        out: &mut impl Outputs,
    ) {
        let created =
            |conversation| encode(&im::GroupCreateResponse { conversation: self.id_of(conversation) });
        answer(reply, result.map(created).map_err(refused), out);
    }

    /// The new member is told who is there; nobody, if that does not fit one answer.
    pub(super) fn on_joined(
        &self,
        reply: ReplyTo,
        user: UserId,
        result: Result<ConversationId, Refusal>,
        out: &mut impl Outputs,
    ) {
        let members = |conversation| self.members_answer(conversation, user).unwrap_or_default();
        answer(reply, result.map(members).map_err(refused), out);
    }
}

/// Who has left is told nothing about the group any more.
pub(super) fn on_left(reply: ReplyTo, result: Result<ConversationId, Refusal>, out: &mut impl Outputs) {
    answer(reply, result.map(|_| Bytes::new()).map_err(refused), out);
}

fn answer(reply: ReplyTo, result: Result<Bytes, Refused>, out: &mut impl Outputs) {
    match result {
        Ok(payload) => out.answer_req(reply, Code::Ok, Resp { payload, ..Default::default() }),
        Err((code, reason)) => {
            out.answer_req(reply, code, Resp { reason: reason.to_owned(), ..Default::default() });
        }
    }
}
