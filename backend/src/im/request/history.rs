//! Requests about history, the list of conversations, read positions and recalls.

use super::{AfterRead, Answer, Asked, Requests, Step, Then, fill, peer};
use crate::im::delivery::Deliveries;
use crate::im::output::Reply;
use crate::im::refusal::{Refused, refuse, refused};
use crate::im::store::rules::{Rules, Wish};
use crate::im::store::{
    ConversationId, Draft, Facts, Listing, Page, PageLimits, Read, Recall, Recipient, Refusal, Store, Stored,
    Target, Write,
};
use crate::im::waiting::Waiting;
use bytes::Bytes;
use moorline_proto::ids::MessageKey;
use moorline_proto::message::client::{Code, Push};
use moorline_proto::message::{decode, encode, im};
use std::borrow::Cow;

/// Refusal of a list that would go on after a conversation that the user has left.
const LEFT_MEANWHILE: Refused = (
    Code::NotFound,
    Cow::Borrowed(
        "you are not a member of the conversation in `after` any more; list from the first one again",
    ),
);

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

impl<F: Facts> Requests<'_, F> {
    pub(super) fn pull(&mut self, asked: &Asked, request: &im::PullRequest) -> Result<Step, Refused> {
        let to = if request.to == 0 { u64::MAX } else { request.to };
        let from = request.from.max(1);
        if from > to {
            return Err(refuse(Code::Invalid, "`from` is larger than `to`"));
        }
        let peer = peer(asked.uid(), &request.conversation)?;
        let Some(conversation) = self.facts.find(&request.conversation) else {
            // Two users who have not written to each other have an empty history.
            return peer.map(|_| Step::Answer(Bytes::new())).ok_or_else(|| refused(Refusal::NotFound));
        };
        let messages_max = self.config.pull_messages_max;
        let messages = match request.limit as usize {
            0 => messages_max,
            wanted => wanted.min(messages_max),
        };
        let limits = PageLimits { messages, bytes: self.answer_bytes_max() };
        let read = Read::Page { conversation, reader: asked.origin.0, range: (from, to), limits };
        Ok(Step::Read(read, AfterRead::Pull(conversation, request.confirmed)))
    }

    /// Lists conversations, the newest membership first.
    pub(super) fn conversations(&self, asked: &Asked, request: im::ConversationsRequest) -> Step {
        let (user, after, bytes) = (asked.origin.0, request.after, self.answer_bytes_max());
        Step::Read(Read::Conversations { user, after, bytes }, AfterRead::Listing)
    }

    pub(super) fn conversations_answer(&self, listing: Result<Listing, Refusal>) -> Answer {
        let listing = listing.map_err(|_| LEFT_MEANWHILE)?;
        let entries = listing.entries.into_iter().map(|listed| im::Conversation {
            id: listed.id,
            latest: listed.latest,
            members: u32::try_from(listed.members).unwrap_or(u32::MAX),
            unread: u32::try_from(listed.unread).unwrap_or(u32::MAX),
            read: listed.read,
            peer_read: listed.peer_read,
            last: listed.last.unwrap_or_default(),
        });
        let (conversations, is_cut) = fill(self.answer_bytes_max(), entries);
        Ok(encode(&im::ConversationsResponse { conversations, more: is_cut || listing.more }))
    }

    pub(super) fn mark_read(&mut self, asked: &Asked, request: &im::ReadRequest) -> Result<Step, Refused> {
        let conversation = self.own_conversation(asked, &request.conversation)?;
        let seq = request.seq.min(self.facts.latest(conversation));
        let what = im::happened::What::Read(im::Read { user: asked.uid().to_owned(), seq });
        let (_, event) = self.encode_happened(asked, &request.conversation, what);
        let write = Write::Read { conversation, by: asked.origin, seq, event: event.freeze() };
        Ok(Step::Write(write, Then::Read(conversation)))
    }

    pub(super) fn receipts_of(&self, asked: &Asked, request: &im::ReceiptsRequest) -> Result<Step, Refused> {
        let conversation = self.own_conversation(asked, &request.conversation)?;
        if let Some(peer) = peer(asked.uid(), &request.conversation)?
            && let Some(peer) = self.facts.find_user(peer)
        {
            let contact = self.facts.contact(asked.origin, peer);
            Rules::new(self.config).judge(Wish::Say, contact).map_err(refused)?;
        }
        let read = Read::Page {
            conversation,
            reader: asked.origin.0,
            range: (request.seq, request.seq),
            limits: ONE_MESSAGE,
        };
        Ok(Step::Read(read, AfterRead::Receipts(conversation, request.seq)))
    }

    pub(in crate::im) fn receipts_answer(
        &self,
        conversation: ConversationId,
        seq: u64,
        sender: &str,
    ) -> Bytes {
        let sender = self.facts.find_user(sender);
        let (mut read, mut unread) = (Vec::new(), Vec::new());
        let (mut read_count, mut unread_count) = (0, 0);
        let mut room = self.answer_bytes_max();
        for member in self.facts.members(conversation, None) {
            // A member who came later is not asked to have read the message.
            if Some(member.user) == sender || member.visible_from > seq {
                continue;
            }
            let has_read = member.read >= seq;
            let (count, names) =
                if has_read { (&mut read_count, &mut read) } else { (&mut unread_count, &mut unread) };
            *count += 1;
            let uid = self.facts.uid(member.user);
            if let Some(left) = room.checked_sub(uid.len() + 3) {
                room = left;
                names.push(uid.to_owned());
            }
        }
        encode(&im::ReceiptsResponse { read_count, unread_count, read, unread })
    }

    pub(super) fn recall(&mut self, asked: &Asked, request: &im::RecallRequest) -> Result<Step, Refused> {
        let im::RecallRequest { conversation: name, seq, message_id } = request;
        let (sender, device) = asked.origin;
        let conversation = self.own_conversation(asked, name)?;
        let by = asked.uid().to_owned();
        let recalled = im::Recalled { seq: *seq, message_id: *message_id, by };
        let (id, body) = self.encode_happened(asked, name, im::happened::What::Recalled(recalled));
        // The same recall has the same message key, so it is stored once.
        let mut key = *b"recall\0\0........";
        key[8..].copy_from_slice(&message_id.to_be_bytes());
        let target = Target::Conversation(conversation);
        let draft = Draft {
            is_repeat: false,
            sender,
            device,
            target,
            key: MessageKey(key),
            id,
            time_ms: asked.now.unix_ms,
            digest: *seq,
            body,
        };
        let recall = Recall { draft, seq: *seq, message_id: *message_id };
        Ok(Step::Write(Write::Recall(recall), Then::Recalled(Box::new(asked.clone()))))
    }
}

impl<S: Store> Deliveries<'_, S> {
    pub(in crate::im) fn on_recalled(
        &mut self,
        reply: Reply,
        asked: Asked,
        result: Result<Stored, Refusal>,
        recipients: &[Recipient],
    ) {
        let stored = match result {
            Ok(stored) => stored,
            Err(refusal) => return self.out.answer(reply, Err(refused(refusal))),
        };
        if stored.delivery.is_some() {
            let answer = im::RecallResponse { seq: stored.seq, by_other_device: false };
            self.out.answer(reply, Ok(encode(&answer)));
            return self.on_stored(asked.origin, stored, recipients);
        }
        // Recalled before: the message that says so names the device.
        let (conversation, seq) = (stored.conversation, stored.seq);
        let (reader, range) = (asked.origin.0, (seq, seq));
        let read = Read::Page { conversation, reader, range, limits: ONE_MESSAGE };
        let asked = Asked { session: None, ..asked };
        self.storage.read(read, Waiting::Request(Box::new((asked, reply, AfterRead::Recalled(seq)))));
    }
}

const ONE_MESSAGE: PageLimits = PageLimits { messages: 1, bytes: usize::MAX };

/// Answers a pull with its page of history.
pub(super) fn pull_answer(page: Result<Page, Refusal>) -> Answer {
    let page = page.map_err(refused)?;
    let voids = page.voids.into_iter().map(|(from, to)| im::VoidRange { from, to }).collect();
    let answer = PullAnswer { messages: page.messages, voids, latest: page.latest, more: page.more };
    Ok(encode(&answer))
}

/// Returns the sender of the only message of a page.
pub(super) fn sender_of(page: Result<Page, Refusal>) -> Result<String, Refused> {
    let page = page.map_err(refused)?;
    let message = page.messages.first().ok_or_else(|| refused(Refusal::NotFound))?;
    let message: Push = decode(message).map_err(|_| refused(Refusal::NotFound))?;
    Ok(message.sender)
}

/// Answers a recall that was done before: the page holds the message that recalled.
pub(super) fn recall_answer(asked: &Asked, seq: u64, page: Result<Page, Refusal>) -> Bytes {
    let said = page.ok().and_then(|page| decode::<Push>(page.messages.first()?).ok());
    let is_own = said.is_some_and(|said| said.sender_device == asked.device());
    encode(&im::RecallResponse { seq, by_other_device: !is_own })
}
