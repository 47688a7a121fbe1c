//! Calls of the server API at any node: callers repeat what is not answered, and what may be tried again, at another node with the same key.
//!
//! Each message of a call is stored once, and the answer says where; each profile that was answered is the last one that is stored;
//! who is barred from logging in has no session after the answer.

use crate::world::{CHAOS_MS, GROUP, World};
use bytes::Bytes;
use moorline_backend::im::{ApiAnswer, ApiBody, ApiCall, ApiReply, PushTo};
use moorline_proto::ids::MessageKey;
use moorline_proto::message::client::{Code, Send, send};
use moorline_proto::message::{decode, encode, im};
use moorline_proto::random::Random;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

/// Callers, each with one call under way.
const CALLERS: usize = 4;
/// Calls of each.
const CALLS: usize = 14;
/// Number of the first message of a call; those of devices are smaller.
const FIRST_NUMBER: u64 = 5_000;
/// Time after which a call without an answer is repeated, in milliseconds.
const ANSWER_MS: u64 = 6_000;
/// Content type of pushes into inboxes.
pub(crate) const INBOX: u32 = 78;
/// Content type of pushes that belong to no conversation.
pub(crate) const LIVE: u32 = 77;

/// A caller, who has a user of its own that never logs in.
#[derive(Debug, Default)]
pub(crate) struct Caller {
    waiting: VecDeque<(u64, ApiCall)>,
    flight: Option<Flight>,
    /// Messages as answered: number, conversation, seq.
    told: Vec<(u64, String, u64)>,
    /// Pushes into inboxes that were answered: number, users.
    pushed: Vec<(Bytes, Vec<String>)>,
    /// Name in the last profile that was answered.
    profile: Option<String>,
}

#[derive(Debug)]
struct Flight {
    call: ApiCall,
    /// Number of this try among all tries of all callers.
    attempt: u64,
    again_ms: u64,
}

/// All callers, and the answers that they have not read.
#[derive(Debug, Default)]
pub(crate) struct Callers {
    all: Vec<Caller>,
    /// Users of whom a caller was told that they may not log in.
    pub(crate) barred: BTreeSet<String>,
    last_attempt: u64,
    answers: Arc<Mutex<Vec<(usize, u64, ApiAnswer)>>>,
}

fn uid_of(caller: usize) -> String {
    format!("shop{caller}")
}

/// True for a push that has a key.
const fn is_keyed(number: u64) -> bool {
    !number.is_multiple_of(4)
}

fn key_of(number: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&number.to_le_bytes());
    key
}

fn call(random: &mut Random, caller: usize, number: u64) -> ApiCall {
    let user = |random: &mut Random| format!("user{}", random.below(6));
    match random.below(12) {
        10 | 11 => {
            let users: Vec<_> = (0..6).map(|user| format!("user{user}")).chain([uid_of(caller)]).collect();
            let users = users[usize::try_from(random.below(3)).expect("small")..].to_vec();
            // Most callers have keys.
            let to = PushTo::Inboxes(users, is_keyed(number).then(|| MessageKey(key_of(number))));
            ApiCall::Push { to, kind: INBOX, payload: number.to_le_bytes().to_vec().into() }
        }
        0..=4 => {
            let key = key_of(number).to_vec();
            let (target, from) = match random.below(3) {
                0 => (send::Target::Conversation(GROUP.to_owned()), user(random)),
                1 => (send::Target::User(user(random)), uid_of(caller)),
                _ => (send::Target::User(user(random)), user(random)),
            };
            let payload = number.to_le_bytes().to_vec().into();
            let send = Send { key: key.into(), target: Some(target), r#type: 1, payload };
            // Some callers have keys and do not say so.
            ApiCall::Send { from, send, may_repeat: !number.is_multiple_of(4) }
        }
        5 | 6 => {
            let profile = im::Profile { name: format!("shop {number}"), ..Default::default() };
            let payload = encode(&im::ProfileSetRequest { profile: Some(profile) });
            ApiCall::Request { user: uid_of(caller), method: "im.profile.set".into(), payload }
        }
        7 => ApiCall::Kick { user: user(random), device: random.one_in(2).then(|| "device0".to_owned()) },
        8 => {
            let users = (0..6).map(|user| format!("user{user}")).collect();
            let payload = encode(&im::PresenceRequest { users, watch: false });
            ApiCall::Request { user: user(random), method: "im.presence".into(), payload }
        }
        _ => {
            let to = if random.one_in(3) {
                PushTo::Everyone
            } else {
                PushTo::Users((0..6).map(|user| format!("user{user}")).collect())
            };
            ApiCall::Push { to, kind: LIVE, payload: Bytes::from_static(b"now") }
        }
    }
}

/// A caller who bars a user from logging in, and lifts that again, by a ban or by a revocation.
fn warden(random: &mut Random, caller: usize) -> Caller {
    let user = format!("user{}", 4 + caller);
    let mut waiting = VecDeque::new();
    for turn in 0..3 {
        let at = 600 + turn * 2300 + random.below(400);
        let user = || user.clone();
        let (bar, lift) = if caller == 0 {
            let until_s = u64::MAX - random.below(2) * (u64::MAX / 2);
            (ApiCall::Ban { user: user(), until_s }, ApiCall::Ban { user: user(), until_s: 0 })
        } else {
            (
                ApiCall::Revoke { user: user(), before_s: None },
                ApiCall::Revoke { user: user(), before_s: Some(0) },
            )
        };
        waiting.extend([(at, bar), (at + 700 + random.below(600), lift)]);
    }
    Caller { waiting, ..Caller::default() }
}

/// User who may not log in once the call is done.
fn barred_by(call: &ApiCall) -> Option<&String> {
    match call {
        ApiCall::Ban { user, until_s: 1.. } | ApiCall::Revoke { user, before_s: None } => Some(user),
        _ => None,
    }
}

impl Callers {
    pub(crate) fn new(random: &mut Random) -> Self {
        let mut number = FIRST_NUMBER;
        let mut caller = |caller| {
            let mut times: Vec<u64> = (0..CALLS).map(|_| 500 + random.below(CHAOS_MS - 1000)).collect();
            times.sort_unstable();
            let waiting = times.into_iter().map(|at| {
                number += 1;
                (at, call(random, caller, number))
            });
            Caller { waiting: waiting.collect(), ..Caller::default() }
        };
        let mut all: Vec<_> = (0..CALLERS).map(&mut caller).collect();
        all.extend((0..2).map(|caller| warden(random, caller)));
        Self { all, ..Self::default() }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.all.iter().all(|caller| caller.waiting.is_empty() && caller.flight.is_none())
    }
}

impl World {
    /// Callers read their answers, and make the calls that are due.
    pub(crate) fn calls_due(&mut self) {
        let answers = std::mem::take(&mut *self.callers.answers.lock().expect("one thread"));
        for (caller, attempt, answer) in answers {
            self.on_called(caller, attempt, &answer);
        }
        for caller in 0..self.callers.all.len() {
            let now_ms = self.now_ms;
            let it = &mut self.callers.all[caller];
            if it.flight.is_none()
                && it.waiting.front().is_some_and(|(at, _)| *at <= now_ms)
                && let Some((_, call)) = it.waiting.pop_front()
            {
                self.coverage.calls += 1;
                it.flight = Some(Flight { call, attempt: 0, again_ms: now_ms });
            }
            let Some(flight) = it.flight.as_mut().filter(|flight| flight.again_ms <= now_ms) else {
                continue;
            };
            self.coverage.calls_repeated += u64::from(flight.attempt > 0);
            self.callers.last_attempt += 1;
            let attempt = self.callers.last_attempt;
            (flight.attempt, flight.again_ms) = (attempt, now_ms + ANSWER_MS);
            if let ApiCall::Ban { user, until_s: 0 } | ApiCall::Revoke { user, before_s: Some(_) } =
                &flight.call
            {
                self.callers.barred.remove(user);
                self.gateway.on_lifted(user);
            }
            let (call, answers) = (flight.call.clone(), Arc::clone(&self.callers.answers));
            let reply = ApiReply::new(move |answer| {
                answers.lock().expect("one thread").push((caller, attempt, answer));
            });
            // A node that stands still, or has ended, does not answer.
            let node = usize::try_from(self.random.below(self.nodes.len() as u64)).expect("few");
            if self.nodes[node].is_running() {
                self.input_all(node, |im, calls, now| {
                    calls.handle_call(im.store(), now.instant, call, reply);
                });
            }
        }
    }

    fn on_called(&mut self, caller: usize, attempt: u64, answer: &ApiAnswer) {
        let (now_ms, wait_ms) = (self.now_ms, 50 + self.random.below(300));
        let it = &mut self.callers.all[caller];
        let Some(flight) = it.flight.as_mut().filter(|flight| flight.attempt == attempt) else {
            return; // of an earlier try
        };
        match answer.code {
            Code::Retry => {
                self.coverage.calls_put_off += 1;
                flight.again_ms = now_ms + wait_ms;
                return;
            }
            // Nobody has this name before the first login.
            Code::NotFound if matches!(flight.call, ApiCall::Send { .. }) && self.now_ms < 2 * CHAOS_MS => {
                flight.again_ms = now_ms + wait_ms;
                return;
            }
            Code::Ok | Code::Dup => {}
            Code::NotMember | Code::NotFound | Code::Denied => {
                self.coverage.calls_refused += 1;
                it.flight = None;
                return;
            }
            code => panic!("{:?}: {code:?} {}", flight.call, answer.reason),
        }
        let Some(Flight { call, .. }) = it.flight.take() else { return };
        match (&call, &answer.body) {
            (ApiCall::Send { send, .. }, ApiBody::Stored(ack)) => {
                self.coverage.calls_stored += 1;
                self.coverage.calls_known += u64::from(answer.code == Code::Dup);
                let number = u64::from_le_bytes(send.key[..8].try_into().expect("8 bytes"));
                it.told.push((number, ack.conversation.clone(), ack.seq));
            }
            (ApiCall::Request { method, payload, .. }, ApiBody::Payload(_)) if method == "im.profile.set" => {
                let set: im::ProfileSetRequest = decode(payload).expect("a request");
                it.profile = set.profile.map(|profile| profile.name);
                self.coverage.calls_profiles += 1;
            }
            (ApiCall::Request { .. }, ApiBody::Payload(answer)) => {
                let got: im::PresenceResponse = decode(answer).expect("presences");
                let users: BTreeSet<_> = got.presences.iter().map(|it| &it.user).collect();
                assert_eq!(users.len(), got.presences.len(), "each user once: {got:?}");
                let online = got.presences.iter().filter(|it| !it.platforms.is_empty());
                self.coverage.calls_presences += online.count() as u64;
            }
            (ApiCall::Ban { .. } | ApiCall::Revoke { .. }, ApiBody::Reached(count)) => {
                if let Some(user) = barred_by(&call) {
                    self.coverage.barred += 1;
                    self.callers.barred.insert(user.clone());
                }
                self.coverage.barred_sessions += *count as u64;
            }
            (ApiCall::Kick { .. }, ApiBody::Reached(count)) => self.coverage.calls_kicked += *count as u64,
            (ApiCall::Push { to: PushTo::Inboxes(users, _), payload, .. }, ApiBody::Reached(count)) => {
                assert_eq!(*count, users.len(), "each inbox has it");
                self.coverage.inbox_pushes += *count as u64;
                it.pushed.push((payload.clone(), users.clone()));
            }
            (ApiCall::Push { .. }, ApiBody::Reached(_)) => self.coverage.calls_pushed += 1,
            (call, body) => panic!("{call:?} is answered with {body:?}"),
        }
    }

    /// Compares the answers of calls with what is stored. Each number is there once: [`Self::check`] has seen that.
    pub(crate) fn check_calls(&self, numbers: &BTreeMap<(String, u64), u64>) {
        for caller in &self.callers.all {
            for (number, conversation, seq) in &caller.told {
                let place = (conversation.clone(), *seq);
                assert_eq!(numbers.get(&place), Some(number), "a caller was told of {place:?}");
            }
        }
        for account in self.cells.users.values() {
            let ids: BTreeSet<u64> = account.pushes.iter().map(|(_, push)| push.message_id).collect();
            assert_eq!(ids.len(), account.pushes.len(), "{} has a push twice", account.uid);
            let numbers = account.pushes.iter().map(|(_, push)| &push.payload[..]);
            let numbers = numbers.map(|number| u64::from_le_bytes(number.try_into().expect("8 bytes")));
            let mut keyed: Vec<u64> = numbers.filter(|number| is_keyed(*number)).collect();
            let all = keyed.len();
            keyed.sort_unstable();
            keyed.dedup();
            assert_eq!(keyed.len(), all, "{} has a push with a key twice", account.uid);
        }
        for (payload, users) in self.callers.all.iter().flat_map(|caller| &caller.pushed) {
            for uid in users {
                let account =
                    self.cells.users.values().find(|account| *account.uid == **uid).expect("a user");
                let has = account.pushes.iter().any(|(_, push)| push.payload == payload);
                assert!(has, "{uid} lacks a push that was answered");
            }
        }
        for (caller, it) in self.callers.all.iter().enumerate() {
            if let Some(name) = &it.profile {
                let stored = self.cells.profile(&uid_of(caller)).expect("a profile");
                let stored: im::Profile = decode(&stored).expect("a profile");
                assert_eq!(&stored.name, name, "the profile of a caller");
            }
        }
    }

    /// Returns a push into an inbox that a device does not have.
    pub(crate) fn missing_push(&self) -> Option<String> {
        for device in &self.gateway.devices {
            let Some(account) = self.cells.users.values().find(|account| *account.uid == *device.uid) else {
                continue;
            };
            let Some(trimmed) = account.known_at.get(&*device.name) else { continue };
            let owed = account.pushes.iter().filter(|(position, _)| position > trimmed);
            if let Some((position, _)) =
                owed.into_iter().find(|(_, it)| !device.pushed.contains(&it.message_id))
            {
                return Some(format!("{}/{} lacks the push at {position}", device.uid, device.name));
            }
        }
        None
    }
}
