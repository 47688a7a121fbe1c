//! Calls of the server API at a node: each is done by the node that owns the slot of its user, as a frame of that user is. Pure.
//!
//! A shop asks node 1 to kick alice, whose slot is node 2's: node 1 sends the call to node 2, which has her sessions and answers;
//! node 1 answers the shop. A push to 100 users of three nodes has three parts. A slot that moves, or whose cell does not answer,
//! takes no call: the caller is told to try again, and nothing was done. Without an answer of a node in [`CALL_WAIT`] the caller
//! gets none: then the call may have been done.

use super::store::{ClusterStore, Home, PeerMessage};
use crate::im::{ApiAnswer, ApiBody, ApiCall, ApiReply, PushTo};
use bytes::BytesMut;
use moorline_proto::message::client::Code;
use moorline_proto::message::im::PresenceRequest;
use moorline_proto::message::{decode, encode};
use moorline_proto::slots::{NodeId, Slot};
use moorline_proto::time::{Duration, Instant};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// Wait for the answer of another node.
pub const CALL_WAIT: Duration = Duration::from_secs(5);
/// Parts of calls at other nodes that are under way; further calls are answered RETRY.
const PARTS_MAX: usize = 4096;
/// Parts of one call that are under way at once; the others follow, so that a large push does not hold up the chat of a node.
const AT_ONCE_MAX: usize = 4;
/// Users of one part of a push into inboxes: one transaction has room for them beside others.
const INBOXES_MAX: usize = 64;
/// When a caller is told to try again, in milliseconds.
const RETRY_MS: u32 = 1000;
/// Users of one request for presences.
const PRESENCES_MAX: usize = 100;
/// Method that is about the sessions of the users in the request.
const PRESENCE: &str = "im.presence";

/// One thing for the driver to do.
#[derive(Debug)]
pub enum Output {
    /// Has the [`crate::im::Im`] of this node do a call.
    Do(ApiCall, ApiReply),
    /// Sends a message to another node, which may get lost.
    Peer(NodeId, PeerMessage),
}

/// Figures since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallStatus {
    /// Parts of calls that were sent to other nodes.
    pub forwarded: u64,
    /// Calls, and parts of other nodes, that were answered RETRY: a slot moved, or a cell did not answer.
    pub put_off: u64,
    /// Parts that other nodes did not answer in time.
    pub unanswered: u64,
}

/// Place of an answer of this node's [`crate::im::Im`].
#[derive(Clone, Copy, Debug)]
enum Asker {
    /// A part of a call of this node.
    Here(u64),
    /// A part of a call of another node, by its number there.
    Peer(NodeId, u64),
}

/// Answers of this node's [`crate::im::Im`] that nobody has taken yet.
type Answers = Arc<Mutex<VecDeque<(Asker, ApiAnswer)>>>;

/// A call with parts under way.
#[derive(Debug)]
struct Open {
    /// `None`: the caller gets no answer, since a part has none.
    reply: Option<ApiReply>,
    /// Parts under way.
    missing: usize,
    /// Parts that begin when others are done.
    waiting: Vec<(Home, ApiCall)>,
    answer: Option<ApiAnswer>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Calls {
    /// Calls by number.
    open: BTreeMap<u64, Open>,
    /// Parts: number of the call, and the time at which the wait ends.
    parts: BTreeMap<u64, (u64, Instant)>,
    last: u64,
    answers: Answers,
    /// Time of the last input.
    now: Instant,
    out: VecDeque<Output>,
    status: CallStatus,
}

impl Calls {
    /// Takes a call of a caller of this node.
    pub fn handle_call(&mut self, store: &ClusterStore, now: Instant, call: ApiCall, reply: ApiReply) {
        if let Some(reason) = missing(&call) {
            return reply.give(ApiAnswer::new(Code::Unsupported, reason, 0, ApiBody::NotBuilt));
        }
        // Its parts would not be.
        if call.is_too_large()
            || slots(&call).0.len() > PRESENCES_MAX && matches!(call, ApiCall::Request { .. })
        {
            return self.out.push_back(Output::Do(call, reply));
        }
        let Some(mut parts) = divide(store, call) else { return self.put_off(reply) };
        if self.parts.len() + AT_ONCE_MAX > PARTS_MAX {
            return self.put_off(reply);
        }
        let is_one = parts.len() == 1;
        if is_one && let Some((_, call)) = parts.pop_if(|(home, _)| *home == Home::Here) {
            return self.out.push_back(Output::Do(call, reply));
        }
        self.last += 1;
        let number = self.last;
        self.open.insert(number, Open { reply: Some(reply), missing: 0, waiting: parts, answer: None });
        self.begin_parts(number, now);
    }

    /// Begins parts of a call that wait.
    fn begin_parts(&mut self, number: u64, now: Instant) {
        while let Some(open) = self.open.get_mut(&number).filter(|open| open.missing < AT_ONCE_MAX) {
            let Some((home, call)) = open.waiting.pop() else { return };
            open.missing += 1;
            self.last += 1;
            let part = self.last;
            self.parts.insert(part, (number, now + CALL_WAIT));
            if let Home::At(node) = home {
                self.status.forwarded += 1;
                self.out.push_back(Output::Peer(node, PeerMessage::Call(part, Box::new(call))));
            } else {
                self.act(Asker::Here(part), call);
            }
        }
    }

    /// Takes [`PeerMessage::Call`] and [`PeerMessage::Called`] of another node.
    pub fn handle_peer(&mut self, store: &ClusterStore, from: NodeId, message: PeerMessage) {
        match message {
            PeerMessage::Call(part, call) => {
                if is_here(store, &call) && missing(&call).is_none() {
                    return self.act(Asker::Peer(from, part), *call);
                }
                self.status.put_off += 1;
                self.out.push_back(Output::Peer(from, PeerMessage::Called(part, Box::new(moving()))));
            }
            PeerMessage::Called(part, answer) => self.on_answer(part, Some(*answer)),
            _ => {}
        }
    }

    /// Ends waits.
    pub fn handle_time(&mut self, now: Instant) {
        self.now = now;
        let due = self.parts.iter().filter(|(_, (_, until))| *until <= now).map(|(part, _)| *part);
        for part in due.collect::<Vec<_>>() {
            self.status.unanswered += 1;
            self.on_answer(part, None);
        }
    }

    /// Takes the oldest output; call it after each input, and after the outputs of the [`crate::im::Im`].
    pub fn poll_output(&mut self) -> Option<Output> {
        let answers = Arc::clone(&self.answers);
        let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((asker, answer)) = answers.pop_front() {
            match asker {
                Asker::Here(part) => self.on_answer(part, Some(answer)),
                Asker::Peer(node, part) => {
                    let called = PeerMessage::Called(part, Box::new(answer));
                    self.out.push_back(Output::Peer(node, called));
                }
            }
        }
        drop(answers);
        self.out.pop_front()
    }

    /// Time of the next [`Self::handle_time`]. `None`: no part is under way.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.parts.values().map(|(_, until)| *until).min()
    }

    /// Figures since the start.
    pub const fn status(&self) -> CallStatus {
        self.status
    }

    fn put_off(&mut self, reply: ApiReply) {
        self.status.put_off += 1;
        reply.give(moving());
    }

    /// Has this node do a part.
    fn act(&mut self, asker: Asker, call: ApiCall) {
        let answers = Arc::clone(&self.answers);
        let give = move |answer| {
            answers.lock().unwrap_or_else(PoisonError::into_inner).push_back((asker, answer));
        };
        self.out.push_back(Output::Do(call, ApiReply::new(give)));
    }

    /// Takes the answer to a part. `None`: there is none.
    fn on_answer(&mut self, part: u64, answer: Option<ApiAnswer>) {
        let Some((number, _)) = self.parts.remove(&part) else { return };
        let Some(open) = self.open.get_mut(&number) else { return };
        open.missing -= 1;
        if answer.as_ref().is_none_or(|answer| answer.code != Code::Ok) {
            open.waiting.clear();
        }
        if let Some(answer) = answer {
            open.answer = Some(match open.answer.take() {
                Some(other) => both(other, answer),
                None => answer,
            });
        } else {
            open.reply = None;
        }
        let is_done = open.missing == 0 && open.waiting.is_empty();
        self.begin_parts(number, self.now);
        if is_done
            && let Some(Open { reply: Some(reply), answer: Some(answer), .. }) = self.open.remove(&number)
        {
            reply.give(answer);
        }
    }
}

/// The answer to a call whose user has no node now.
fn moving() -> ApiAnswer {
    let reason = "the slot of the user moves to another node, or its cell does not answer";
    ApiAnswer::new(Code::Retry, reason, RETRY_MS, ApiBody::Nothing)
}

/// One answer of those to two parts of a call: a refusal, if there is one.
fn both(first: ApiAnswer, second: ApiAnswer) -> ApiAnswer {
    let body = match (&first.body, &second.body) {
        (ApiBody::Reached(one), ApiBody::Reached(other)) => ApiBody::Reached(one + other),
        // Repeated fields of two encoded messages, one behind the other, are one list.
        (ApiBody::Payload(one), ApiBody::Payload(other)) => {
            let mut all = BytesMut::from(&one[..]);
            all.extend_from_slice(other);
            ApiBody::Payload(all.freeze())
        }
        _ if first.code == Code::Ok => return second,
        _ => return first,
    };
    ApiAnswer { body, ..first }
}

/// Reason why a node cannot do a call yet. `None`: it can.
fn missing(call: &ApiCall) -> Option<&'static str> {
    match call {
        ApiCall::DeleteUser { .. } => Some("a node of a cluster does not delete users yet"),
        ApiCall::Retain { .. } => Some("a node of a cluster has no retention yet"),
        ApiCall::Limit { .. } => Some("a node of a cluster limits no conversations yet"),
        ApiCall::Push { to: PushTo::Room(_), .. } => Some("a node of a cluster has no rooms yet"),
        ApiCall::Request { method, .. } if method == "im.account.delete" => {
            Some("a node of a cluster does not delete users yet")
        }
        _ => None,
    }
}

/// Slots that a call is about, and whether it is about the sessions of their users.
fn slots(call: &ApiCall) -> (Vec<Slot>, bool) {
    match call {
        ApiCall::Request { method, payload, .. } if method == PRESENCE => {
            let request = decode::<PresenceRequest>(payload).unwrap_or_default();
            (request.users.iter().map(|uid| Slot::of(uid)).collect(), true)
        }
        ApiCall::Send { from: user, .. }
        | ApiCall::Request { user, .. }
        | ApiCall::Revoke { user, .. }
        | ApiCall::Ban { user, .. }
        | ApiCall::DeleteUser { user } => (vec![Slot::of(user)], false),
        ApiCall::Kick { user, .. } => (vec![Slot::of(user)], true),
        ApiCall::Retain { conversation, .. }
        | ApiCall::Limit { conversation, .. }
        | ApiCall::Dissolve { conversation } => (vec![Slot::of(conversation)], false),
        ApiCall::Push { to, .. } => match to {
            PushTo::Inboxes(users, _) => (users.iter().map(|uid| Slot::of(uid)).collect(), false),
            PushTo::Users(users) => (users.iter().map(|uid| Slot::of(uid)).collect(), true),
            PushTo::Devices(devices) => (devices.iter().map(|(uid, _)| Slot::of(uid)).collect(), true),
            PushTo::Room(_) | PushTo::Everyone => (Vec::new(), false),
        },
        ApiCall::Status => (Vec::new(), false),
    }
}

/// True if this node can do a call.
fn is_here(store: &ClusterStore, call: &ApiCall) -> bool {
    let (slots, is_of_sessions) = slots(call);
    slots.iter().all(|slot| store.home(*slot, is_of_sessions) == Home::Here)
}

/// The parts of a call, with the nodes that have to do them. `None`: one of the nodes is not known.
fn divide(store: &ClusterStore, call: ApiCall) -> Option<Vec<(Home, ApiCall)>> {
    if let ApiCall::Push { to: PushTo::Everyone, kind, payload } = call {
        let homes = Slot::all().map(|slot| node_of(store, slot, true)).collect::<Option<BTreeSet<_>>>()?;
        let push = |_| ApiCall::Push { to: PushTo::Everyone, kind, payload: payload.clone() };
        return Some(homes.into_iter().map(|home| (home, push(home))).collect());
    }
    if let ApiCall::Push { to: PushTo::Inboxes(mut users, key), kind, payload } = call {
        users.sort_unstable();
        users.dedup(); // each gets it once, and those of a part are alone in it
        let homes =
            users.iter().map(|uid| node_of(store, Slot::of(uid), false)).collect::<Option<Vec<_>>>()?;
        let push = |users: &[String]| {
            let to = PushTo::Inboxes(users.to_vec(), key);
            ApiCall::Push { to, kind, payload: payload.clone() }
        };
        if users.is_empty() {
            return Some(vec![(Home::Here, push(&users))]);
        }
        let by_home = group(homes, users).into_iter();
        let parts = by_home.flat_map(|(home, users)| {
            users.chunks(INBOXES_MAX).map(|users| (home, push(users))).collect::<Vec<_>>()
        });
        return Some(parts.collect());
    }
    let (slots, is_of_sessions) = slots(&call);
    let homes = slots.iter().map(|slot| node_of(store, *slot, is_of_sessions)).collect::<Option<Vec<_>>>()?;
    let Some(first) = homes.first() else { return Some(vec![(Home::Here, call)]) };
    if homes.iter().all(|home| home == first) {
        return Some(vec![(*first, call)]);
    }
    Some(match call {
        ApiCall::Push { to, kind, payload } => {
            let push = |to| ApiCall::Push { to, kind, payload: payload.clone() };
            match to {
                PushTo::Users(users) => by_home(homes, users, |users| push(PushTo::Users(users))),
                PushTo::Devices(devices) => by_home(homes, devices, |devices| push(PushTo::Devices(devices))),
                to @ (PushTo::Inboxes(..) | PushTo::Room(_) | PushTo::Everyone) => {
                    vec![(Home::Here, push(to))]
                }
            }
        }
        ApiCall::Request { user, method, payload } => {
            let request = decode::<PresenceRequest>(&payload).unwrap_or_default();
            by_home(homes, request.users, |users| {
                let payload = encode(&PresenceRequest { users, watch: request.watch });
                ApiCall::Request { user: user.clone(), method: method.clone(), payload }
            })
        }
        call => vec![(*first, call)],
    })
}

/// Divides a list by the nodes of its entries.
fn group<T>(homes: Vec<Home>, list: Vec<T>) -> BTreeMap<Home, Vec<T>> {
    let mut groups = BTreeMap::<Home, Vec<T>>::new();
    for (home, entry) in homes.into_iter().zip(list) {
        groups.entry(home).or_default().push(entry);
    }
    groups
}

/// Makes a part of a call for each node of a list.
fn by_home<T>(homes: Vec<Home>, list: Vec<T>, call: impl Fn(Vec<T>) -> ApiCall) -> Vec<(Home, ApiCall)> {
    group(homes, list).into_iter().map(|(home, list)| (home, call(list))).collect()
}

/// Node of a slot. `None`: it is not known, or cannot do anything now.
fn node_of(store: &ClusterStore, slot: Slot, is_of_sessions: bool) -> Option<Home> {
    Some(store.home(slot, is_of_sessions)).filter(|home| *home != Home::Nowhere)
}
