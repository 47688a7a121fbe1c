//! History, the list of conversations, what was read, and taking messages back.

use super::{Answer, Asked, BAD_PAYLOAD, Step, Then, fill};
use crate::im::send::{Refused, refused};
use crate::im::store::{
    ConversationId, Draft, Origin, PageLimits, Recall, Recipient, Refusal, Store, Stored, Target, UserId,
    Write,
};
use crate::im::{Im, Reply, Waiting};
use bytes::Bytes;
use moorline_proto::ids::MessageKey;
use moorline_proto::message::client::{Code, Push};
use moorline_proto::message::{decode, encode, im};

/// A larger message is not shown in the list of conversations.
const LAST_BYTES_MAX: usize = 4 << 10;

const LEFT_MEANWHILE: Refused =
    (Code::NotFound, "the conversation to go on after is none of yours any more: ask from the first on");

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
    pub(super) fn pull(&mut self, asked: &Asked) -> Result<Step, Refused> {
        let request: im::PullRequest = decode(&asked.payload).map_err(|_| BAD_PAYLOAD)?;
        let to = if request.to == 0 { u64::MAX } else { request.to };
        let from = request.from.max(1);
        if from > to {
            return Err((Code::Invalid, "`from` is after `to`"));
        }
        let (user, _) = asked.origin;
        let peer = self.peer(user, &request.conversation)?;
        let Some(conversation) = self.store.find(&request.conversation) else {
            // Two who have not spoken yet have an empty history.
            return peer.map(|_| Step::Answer(Bytes::new())).ok_or(refused(Refusal::NotFound));
        };
        let messages_max = self.config.pull_messages_max;
        let messages = match request.limit as usize {
            0 => messages_max,
            wanted => wanted.min(messages_max),
        };
        let limits = PageLimits { messages, bytes: self.answer_bytes_max() };
        let page = self.store.read_range(conversation, user, (from, to), limits).map_err(refused)?;
        if request.confirmed > 0 {
            let write = Write::Confirm { by: asked.origin, conversation, seq: request.confirmed };
            self.write(write, Waiting::Nobody);
        }
        let voids = page.voids.into_iter().map(|(from, to)| im::VoidRange { from, to }).collect();
        let answer = PullAnswer { messages: page.messages, voids, latest: page.latest, more: page.more };
        Ok(Step::Answer(encode(&answer)))
    }

    /// Those joined last come first.
    pub(super) fn conversations(&self, asked: &Asked) -> Result<Step, Refused> {
        let request: im::ConversationsRequest = decode(&asked.payload).map_err(|_| BAD_PAYLOAD)?;
        let (user, _) = asked.origin;
        let mut all = self.store.conversations(user);
        if !request.after.is_empty() {
            let after = self.store.find(&request.after).and_then(|id| all.iter().position(|it| *it == id));
            all.truncate(after.ok_or(LEFT_MEANWHILE)?);
        }
        let entries = all.into_iter().rev().map(|conversation| self.conversation_of(user, conversation));
        let (conversations, more) = fill(self.answer_bytes_max(), entries);
        Ok(Step::Answer(encode(&im::ConversationsResponse { conversations, more })))
    }

    fn conversation_of(&self, user: UserId, conversation: ConversationId) -> im::Conversation {
        let latest = self.store.latest(conversation);
        let members = self.store.members(conversation);
        let own = self.store.member(conversation, user);
        let is_group = self.store.is_group(conversation);
        let peer = members.iter().find(|member| !is_group && member.user != user);
        let newest = PageLimits { messages: 1, bytes: LAST_BYTES_MAX };
        let last = self.store.read_range(conversation, user, (latest.max(1), latest.max(1)), newest);
        let last = last.ok().and_then(|page| page.messages.into_iter().next());
        im::Conversation {
            id: self.id_of(conversation),
            latest,
            members: u32::try_from(members.len()).unwrap_or(u32::MAX),
            unread: u32::try_from(self.store.unread(conversation, user)).unwrap_or(u32::MAX),
            read: own.map_or(0, |member| member.read),
            peer_read: peer.map_or(0, |member| member.read),
            last: last.filter(|body| body.len() <= LAST_BYTES_MAX).unwrap_or_default(),
        }
    }

    pub(super) fn read(&mut self, asked: &Asked) -> Result<Step, Refused> {
        let request: im::ReadRequest = decode(&asked.payload).map_err(|_| BAD_PAYLOAD)?;
        let conversation = self.own_conversation(asked.origin.0, &request.conversation)?;
        let seq = request.seq.min(self.store.latest(conversation));
        let user = self.store.uid(asked.origin.0).to_owned();
        let what = im::happened::What::Read(im::Read { user, seq });
        let (_, event) = self.encode_happened(asked, &request.conversation, what);
        let write = Write::Read { conversation, by: asked.origin, seq, event: event.freeze() };
        Ok(Step::Write(write, Then::Read(conversation)))
    }

    pub(super) fn receipts_of(&self, asked: &Asked) -> Result<Step, Refused> {
        let request: im::ReceiptsRequest = decode(&asked.payload).map_err(|_| BAD_PAYLOAD)?;
        let (user, _) = asked.origin;
        let conversation = self.own_conversation(user, &request.conversation)?;
        let one = PageLimits { messages: 1, bytes: usize::MAX };
        let page =
            self.store.read_range(conversation, user, (request.seq, request.seq), one).map_err(refused)?;
        let message = page.messages.first().ok_or(refused(Refusal::NotFound))?;
        let message: Push = decode(message).map_err(|_| refused(Refusal::NotFound))?;
        let sender = self.store.find_user(&message.sender);
        let (mut read, mut unread) = (Vec::new(), Vec::new());
        let (mut read_count, mut unread_count) = (0, 0);
        let mut room = self.answer_bytes_max();
        for member in self.store.members(conversation) {
            // Whoever came later is not asked to have read it.
            if Some(member.user) == sender || member.visible_from > request.seq {
                continue;
            }
            let has_read = member.read >= request.seq;
            let (count, names) =
                if has_read { (&mut read_count, &mut read) } else { (&mut unread_count, &mut unread) };
            *count += 1;
            let uid = self.store.uid(member.user);
            if let Some(left) = room.checked_sub(uid.len() + 3) {
                room = left;
                names.push(uid.to_owned());
            }
        }
        Ok(Step::Answer(encode(&im::ReceiptsResponse { read_count, unread_count, read, unread })))
    }

    pub(super) fn recall(&mut self, asked: &Asked) -> Result<Step, Refused> {
        let request: im::RecallRequest = decode(&asked.payload).map_err(|_| BAD_PAYLOAD)?;
        let im::RecallRequest { conversation: name, seq, message_id } = request;
        let (sender, device) = asked.origin;
        let conversation = self.own_conversation(sender, &name)?;
        let by = self.store.uid(sender).to_owned();
        let what = im::happened::What::Recalled(im::Recalled { seq, message_id, by });
        let (id, body) = self.encode_happened(asked, &name, what);
        // The same wish has the same key, so it comes true once.
        let mut key = *b"recall\0\0........";
        key[8..].copy_from_slice(&message_id.to_be_bytes());
        let target = Target::Conversation(conversation);
        let draft = Draft { sender, device, target, key: MessageKey(key), id, digest: seq, body };
        Ok(Step::Write(Write::Recall(Recall { draft, seq, message_id }), Then::Recalled))
    }

    pub(in crate::im) fn on_recalled(
        &mut self,
        reply: Reply,
        origin: Origin,
        result: Result<Stored, Refusal>,
        recipients: &[Recipient],
    ) {
        let said: Answer = match &result {
            Ok(stored) => {
                let by_other_device = !self.is_said_by(origin, stored);
                Ok(encode(&im::RecallResponse { seq: stored.seq, by_other_device }))
            }
            Err(refusal) => Err(refused(*refusal)),
        };
        self.answer(reply, said);
        if let Ok(stored) = result {
            self.on_stored(origin, stored, recipients);
        }
    }

    /// Whether no other device of the user was earlier with the same wish.
    fn is_said_by(&self, (user, device): Origin, stored: &Stored) -> bool {
        if stored.delivery.is_some() {
            return true;
        }
        let one = PageLimits { messages: 1, bytes: usize::MAX };
        let page = self.store.read_range(stored.conversation, user, (stored.seq, stored.seq), one);
        let said = page.ok().and_then(|page| decode::<Push>(page.messages.first()?).ok());
        let name = self.store.devices(user).into_iter().find(|it| it.number == device).map(|it| it.name);
        said.map(|said| said.sender_device) == name
    }
}
