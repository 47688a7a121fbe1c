//! Messages between nodes as bytes: what a PEER frame carries.
//!
//! They are protobuf, so that a node of the version before skips fields that it does not know. A message that it cannot read at
//! all is dropped, as if it were lost on the way: whoever sent it sends it again, or is answered RETRY.

mod calls;
mod presence;
mod questions;

use super::cell::{Content, Deliver, Known, Passage, relation_code, relation_of};
use super::store::{Append, AppendedAt, PeerMessage, Wanted};
use crate::im::store::{ConversationId, DeviceNumber, Origin, Refusal, UserId};
use bytes::Bytes;
use moorline_proto::ids::MessageKey;
use moorline_proto::slots::{NodeId, Owner, Slot};
use prost::Message as _;

#[derive(Clone, PartialEq, prost::Message)]
struct Envelope {
    #[prost(oneof = "Body", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15")]
    body: Option<Body>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Body {
    #[prost(message, tag = "1")]
    Append(AppendBody),
    #[prost(message, tag = "2")]
    Appended(AppendedBody),
    #[prost(message, tag = "3")]
    Deliver(DeliverBody),
    #[prost(message, tag = "4")]
    Delivered(DeliveredBody),
    #[prost(message, tag = "5")]
    Given(GivenBody),
    #[prost(message, tag = "6")]
    Ask(questions::AskBody),
    #[prost(message, tag = "7")]
    Answered(questions::AnsweredBody),
    #[prost(message, tag = "8")]
    Call(calls::CallBody),
    #[prost(message, tag = "9")]
    Called(calls::CalledBody),
    #[prost(message, tag = "10")]
    AskOnline(presence::AskOnlineBody),
    #[prost(message, tag = "11")]
    Online(presence::OnlineBody),
    #[prost(bool, tag = "15")]
    Stopping(bool),
}

#[derive(Clone, PartialEq, prost::Message)]
struct AppendBody {
    #[prost(fixed64, tag = "1")]
    request: u64,
    /// 0: the pair with the id.
    #[prost(uint64, tag = "2")]
    conversation: u64,
    #[prost(string, tag = "3")]
    pair: String,
    #[prost(uint64, repeated, tag = "4")]
    users: Vec<u64>,
    #[prost(string, repeated, tag = "5")]
    uids: Vec<String>,
    #[prost(uint64, tag = "6")]
    sender: u64,
    #[prost(uint32, tag = "7")]
    device: u32,
    #[prost(bytes = "bytes", tag = "8")]
    key: Bytes,
    #[prost(fixed64, tag = "9")]
    id: u64,
    #[prost(fixed64, tag = "10")]
    time_ms: u64,
    #[prost(fixed64, tag = "11")]
    digest: u64,
    #[prost(bytes = "bytes", tag = "12")]
    body: Bytes,
    #[prost(bool, tag = "13")]
    is_repeat: bool,
    #[prost(fixed64, tag = "14")]
    now_ms: u64,
    /// Seq of a message that is taken back; 0: none is.
    #[prost(uint64, tag = "15")]
    recall_seq: u64,
    #[prost(fixed64, tag = "16")]
    recall_id: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AppendedBody {
    #[prost(fixed64, tag = "1")]
    request: u64,
    /// 0: it was stored.
    #[prost(uint32, tag = "2")]
    refusal: u32,
    #[prost(uint64, tag = "3")]
    conversation: u64,
    #[prost(string, tag = "4")]
    conversation_id: String,
    #[prost(bool, tag = "5")]
    is_group: bool,
    #[prost(uint64, tag = "6")]
    members: u64,
    #[prost(uint64, tag = "7")]
    seq: u64,
    #[prost(fixed64, tag = "8")]
    id: u64,
    #[prost(fixed64, tag = "9")]
    time_ms: u64,
    #[prost(fixed64, tag = "10")]
    digest: u64,
    #[prost(bool, tag = "11")]
    is_repeat: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DeliverBody {
    #[prost(uint64, tag = "1")]
    user: u64,
    #[prost(uint64, tag = "2")]
    conversation: u64,
    #[prost(string, tag = "3")]
    conversation_id: String,
    #[prost(bool, tag = "4")]
    is_group: bool,
    #[prost(uint64, tag = "5")]
    members: u64,
    #[prost(uint64, tag = "6")]
    visible_from: u64,
    #[prost(uint64, tag = "7")]
    order: u64,
    #[prost(uint64, tag = "8")]
    after: u64,
    #[prost(uint64, tag = "9")]
    sender: u64,
    #[prost(uint32, tag = "10")]
    device: u32,
    #[prost(bytes = "bytes", tag = "11")]
    body: Bytes,
    /// Seq of a message; 0: an event.
    #[prost(uint64, tag = "12")]
    seq: u64,
    /// Number of an event in the log; 0: it is not there.
    #[prost(uint64, tag = "13")]
    event: u64,
    /// 0: stays, 1: enters, 2: leaves, 3: relates, 4: is invited.
    #[prost(uint32, tag = "14")]
    passage: u32,
    /// The other user of a relation, and the relation as a number.
    #[prost(uint64, tag = "15")]
    other: u64,
    #[prost(uint32, tag = "16")]
    relation: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DeliveredBody {
    #[prost(uint64, tag = "1")]
    conversation: u64,
    #[prost(uint64, tag = "2")]
    user: u64,
    #[prost(uint64, tag = "3")]
    order: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GivenBody {
    #[prost(uint32, repeated, tag = "1")]
    slots: Vec<u32>,
    /// Number of the node, and 1 more; 0: nobody.
    #[prost(uint32, repeated, tag = "2")]
    nodes: Vec<u32>,
    #[prost(uint64, repeated, tag = "3")]
    epochs: Vec<u64>,
}

/// Refusals by their number on the wire, from 1. A further one goes to the end.
const REFUSALS: [Refusal; 19] = [
    Refusal::NotMember,
    Refusal::NotFound,
    Refusal::Conflict,
    Refusal::Denied,
    Refusal::NotAllowed,
    Refusal::Silent,
    Refusal::Blocked,
    Refusal::NotFriends,
    Refusal::TooLate,
    Refusal::GroupFull,
    Refusal::StoreFull,
    Refusal::TooManyRelations,
    Refusal::TooManyRequests,
    Refusal::TooManyBlocks,
    Refusal::MembersFull,
    Refusal::Unreadable,
    Refusal::Moved,
    Refusal::Frozen,
    Refusal::TooFast,
];

fn number_of(refusal: Refusal) -> u32 {
    (1..).zip(REFUSALS).find(|(_, known)| *known == refusal).map_or(17, |(number, _)| number)
}

/// A refusal that this version does not know is one of an unknown outcome.
fn refusal_of(number: u32) -> Refusal {
    let index = usize::try_from(number).unwrap_or(usize::MAX).saturating_sub(1);
    REFUSALS.get(index).copied().unwrap_or(Refusal::Moved)
}

/// Writes a message.
pub fn encode(message: PeerMessage) -> Bytes {
    let body = match message {
        PeerMessage::Append(request, append) => Body::Append(of_append(request, append)),
        PeerMessage::Appended(request, Ok(at)) => Body::Appended(of_appended(request, at)),
        PeerMessage::Appended(request, Err(refusal)) => {
            Body::Appended(AppendedBody { request, refusal: number_of(refusal), ..AppendedBody::default() })
        }
        PeerMessage::Deliver(deliver) => Body::Deliver(of_deliver(deliver)),
        PeerMessage::Ask(request, question) => Body::Ask(questions::of_question(request, *question)),
        PeerMessage::Answered(request, result) => Body::Answered(questions::of_answer(request, result)),
        PeerMessage::Delivered(conversation, user, order) => {
            let (conversation, user) = (conversation.number(), user.number());
            Body::Delivered(DeliveredBody { conversation, user, order })
        }
        PeerMessage::Given(owners) => {
            let mut given = GivenBody::default();
            for (slot, owner) in owners {
                given.slots.push(slot.number().into());
                given.nodes.push(owner.node.map_or(0, |node| u32::from(node.0) + 1));
                given.epochs.push(owner.epoch);
            }
            Body::Given(given)
        }
        PeerMessage::Stopping => Body::Stopping(true),
        PeerMessage::Call(part, call) => Body::Call(calls::of_call(part, *call)),
        PeerMessage::Called(part, answer) => Body::Called(calls::of_called(part, *answer)),
        PeerMessage::AskOnline(request, users) => Body::AskOnline(presence::of_question(request, &users)),
        PeerMessage::Online(request, online) => Body::Online(presence::of_online(request, online)),
    };
    Envelope { body: Some(body) }.encode_to_vec().into()
}

/// Reads a message. `None`: this version cannot read it.
pub fn decode(bytes: Bytes) -> Option<PeerMessage> {
    match Envelope::decode(bytes).ok()?.body? {
        Body::Append(body) => Some(PeerMessage::Append(body.request, append_of(body)?)),
        Body::Appended(body) => Some(PeerMessage::Appended(body.request, appended_of(body)?)),
        Body::Deliver(body) => Some(PeerMessage::Deliver(deliver_of(body)?)),
        Body::Delivered(DeliveredBody { conversation, user, order }) => {
            Some(PeerMessage::Delivered(conversation_of(conversation)?, user_of(user)?, order))
        }
        Body::Ask(body) => Some(PeerMessage::Ask(body.request, Box::new(questions::question_of(body)?))),
        Body::Answered(body) => Some(PeerMessage::Answered(body.request, questions::answer_of(body)?)),
        Body::Given(given) => given_of(&given).map(PeerMessage::Given),
        Body::Stopping(_) => Some(PeerMessage::Stopping),
        Body::Call(body) => Some(PeerMessage::Call(body.part, Box::new(calls::call_of(body)?))),
        Body::AskOnline(body) => presence::question_of(body),
        Body::Online(body) => presence::online_of(body),
        Body::Called(body) => Some(PeerMessage::Called(body.part, Box::new(calls::answer_of(body)?))),
    }
}

/// Returns the user with this number: it has 48 bits, with the slot in front, and is not 0.
fn user_of(number: u64) -> Option<UserId> {
    (1..1 << 48).contains(&number).then(|| UserId::new(number))
}

fn conversation_of(number: u64) -> Option<ConversationId> {
    (1..1 << 48).contains(&number).then(|| ConversationId::new(number))
}

fn origin_of(user: u64, device: u32) -> Option<Origin> {
    Some((user_of(user)?, DeviceNumber(device)))
}

fn of_append(request: u64, append: Append) -> AppendBody {
    let (recall_seq, recall_id) = append.recall.unwrap_or_default();
    let Append {
        wanted, origin: (sender, device), key, id, time_ms, digest, body, is_repeat, now_ms, ..
    } = append;
    let (mut conversation, mut pair, mut users, mut uids) = (0, String::new(), Vec::new(), Vec::new());
    match wanted {
        Wanted::Number(number) => conversation = number.number(),
        Wanted::Pair(id, members) => {
            pair = id.to_string();
            users = members.iter().map(|(user, _)| user.number()).collect();
            uids = members.iter().map(|(_, uid)| uid.to_string()).collect();
        }
    }
    let (sender, device, key) = (sender.number(), device.0, Bytes::copy_from_slice(&key.0));
    AppendBody {
        request,
        conversation,
        pair,
        users,
        uids,
        sender,
        device,
        key,
        id,
        time_ms,
        digest,
        body,
        is_repeat,
        now_ms,
        recall_seq,
        recall_id,
    }
}

fn append_of(body: AppendBody) -> Option<Append> {
    let AppendBody { conversation, pair, users, uids, sender, device, key, id, time_ms, digest, .. } = body;
    let wanted = if conversation == 0 {
        // One with oneself has one member.
        if pair.is_empty() || users.is_empty() || users.len() > 2 || users.len() != uids.len() {
            return None;
        }
        let members = users.into_iter().zip(uids).map(|(user, uid)| Some((user_of(user)?, uid.into())));
        Wanted::Pair(pair.into(), members.collect::<Option<_>>()?)
    } else {
        Wanted::Number(conversation_of(conversation)?)
    };
    let (origin, key) = (origin_of(sender, device)?, MessageKey(key.as_ref().try_into().ok()?));
    let (is_repeat, now_ms) = (body.is_repeat, body.now_ms);
    let recall = (body.recall_seq != 0).then_some((body.recall_seq, body.recall_id));
    let body = body.body;
    Some(Append { wanted, origin, key, id, time_ms, digest, body, is_repeat, now_ms, recall })
}

fn of_appended(request: u64, at: AppendedAt) -> AppendedBody {
    let AppendedAt { conversation, id: conversation_id, is_group, members, known, is_repeat } = at;
    let Known { seq, id, time_ms, digest } = known;
    AppendedBody {
        request,
        refusal: 0,
        conversation: conversation.number(),
        conversation_id: conversation_id.to_string(),
        is_group,
        members: members as u64,
        seq,
        id,
        time_ms,
        digest,
        is_repeat,
    }
}

fn appended_of(body: AppendedBody) -> Option<Result<AppendedAt, Refusal>> {
    if body.refusal != 0 {
        return Some(Err(refusal_of(body.refusal)));
    }
    let AppendedBody { conversation, conversation_id, is_group, members, seq, id, time_ms, digest, .. } =
        body;
    Some(Ok(AppendedAt {
        conversation: conversation_of(conversation)?,
        id: conversation_id.into(),
        is_group,
        members: usize::try_from(members).ok()?,
        known: Known { seq, id, time_ms, digest },
        is_repeat: body.is_repeat,
    }))
}

fn of_deliver(deliver: Deliver) -> DeliverBody {
    let Deliver { user, conversation, id, is_group, members, visible_from, order, after, .. } = deliver;
    let (seq, event) = match deliver.content {
        Content::Message(seq) => (seq, 0),
        Content::Event(number) => (0, number),
        Content::Own => (0, 0),
    };
    let (passage, other, relation) = match deliver.passage {
        Passage::Stays => (0, 0, 0),
        Passage::Enters => (1, 0, 0),
        Passage::Leaves => (2, 0, 0),
        Passage::Relates(other, relation) => (3, other.number(), relation_code(relation)),
        Passage::Invited => (4, 0, 0),
    };
    DeliverBody {
        user: user.number(),
        conversation: conversation.number(),
        conversation_id: id.to_string(),
        is_group,
        members: members as u64,
        visible_from,
        order,
        after,
        sender: deliver.origin.0.number(),
        device: deliver.origin.1.0,
        body: deliver.body,
        seq,
        event,
        passage,
        other,
        relation,
    }
}

fn deliver_of(body: DeliverBody) -> Option<Deliver> {
    let DeliverBody { user, conversation, conversation_id, is_group, members, visible_from, .. } = body;
    let content = match (body.seq, body.event) {
        (0, 0) => Content::Own,
        (0, number) => Content::Event(number),
        (seq, _) => Content::Message(seq),
    };
    let passage = match body.passage {
        0 => Passage::Stays,
        1 => Passage::Enters,
        2 => Passage::Leaves,
        3 => Passage::Relates(user_of(body.other)?, relation_of(body.relation)),
        4 => Passage::Invited,
        _ => return None,
    };
    Some(Deliver {
        user: user_of(user)?,
        conversation: conversation_of(conversation)?,
        id: conversation_id.into(),
        is_group,
        members: usize::try_from(members).ok()?,
        visible_from,
        order: body.order,
        after: body.after,
        content,
        passage,
        origin: origin_of(body.sender, body.device)?,
        body: body.body,
    })
}

fn given_of(given: &GivenBody) -> Option<Vec<(Slot, Owner)>> {
    let GivenBody { slots, nodes, epochs } = given;
    if slots.len() != nodes.len() || slots.len() != epochs.len() {
        return None;
    }
    let owners = slots.iter().zip(nodes).zip(epochs).map(|((slot, node), epoch)| {
        let node = match node.checked_sub(1) {
            None => None,
            Some(number) => Some(NodeId(u16::try_from(number).ok()?)),
        };
        Some((Slot::from_number((*slot).into())?, Owner { node, epoch: *epoch }))
    });
    owners.collect()
}

#[cfg(test)]
mod tests;
