//! Rooms: one per conversation, entered by its members, for signals that are not stored.
//!
//! bob opens his chat with alice and enters its room by SUB; alice types, and her signal is pushed to the room. Each signal is
//! judged as a message would be: after a block, or while alice is silenced, it is dropped. So is one that is too large, or one
//! too many (`im.signal_max`, `im.signal_rate`): a signal has no answer.

use super::refusal::{Refused, no_such_user, refused, undecodable};
use super::request::peer;
use super::sessions::Sessions;
use super::store::rules::{Rules, Wish, judge_speaker};
use super::store::{Facts, Need, ReadSet, Refusal, Store};
use super::tasks::{Asked, Task};
use super::work::Signals;
use super::{Im, ImConfig, Output};
use crate::server::{Now, PushSpec, ReplyTo, Up};
use moorline_proto::frame::{Command, Lane};
use moorline_proto::message::backend::Rank;
use moorline_proto::message::client::{Code, Sub};
use moorline_proto::message::im::Signal;
use moorline_proto::message::{decode, encode};
use prost::Message;

/// The application command of signals [P-11.5].
const SIGNAL: Command = Command::App(0x40);
/// Time after which an unsent signal is dropped, in milliseconds.
const SIGNAL_TTL_MS: u32 = 5_000;

impl<S: Store> Im<S> {
    /// SUB and UNSUB [P-2.5].
    pub(super) fn on_room(&mut self, now: Now, up: &Up, reply: ReplyTo) {
        let Sub { room, .. } = match Sub::decode(up.body.clone()) {
            Ok(sub) => sub,
            Err(cause) => {
                let (code, reason) = undecodable("Sub", &cause);
                return self.out.put(Output::AnswerSub { reply, code, reason });
            }
        };
        if up.command == Command::Unsub {
            self.out.put(Output::LeaveRoom { session: up.session, room });
            return self.out.put(Output::AnswerSub { reply, code: Code::Ok, reason: "".into() });
        }
        let asked = self.sessions.author(now, up.session);
        match asked.and_then(|asked| peer(asked.uid(), &room).map(|_| asked)) {
            Ok(asked) => self.run(Some(up.session), Task::Enter(asked, room, reply)),
            Err((code, reason)) => self.out.put(Output::AnswerSub { reply, code, reason }),
        }
    }
}

/// Reads an application frame. Only signals of complete logins are known here; a signal that is too large, or one too many, is
/// dropped.
pub(super) fn read_signal(
    config: &ImConfig,
    sessions: &Sessions,
    signals: &mut Signals,
    now: Now,
    up: &Up,
) -> Option<(Asked, Signal)> {
    let (SIGNAL, Ok(signal)) = (up.command, decode::<Signal>(&up.body)) else { return None };
    let asked = sessions.author(now, up.session).ok()?;
    if peer(asked.uid(), &signal.conversation).is_err() {
        signals.on_judged(false);
        return None;
    }
    signals.admit(config, now, asked.origin.0, &signal).then_some((asked, signal))
}

/// Passes a signal to the room of its conversation. `None`: the user may not speak there.
pub(super) fn pass(facts: &impl Facts, rules: Rules, asked: &Asked, signal: Signal) -> Option<Output> {
    let room = signal.conversation.clone();
    judge(facts, rules, asked, &room, true).ok()?;
    let (sender, sender_device) = (asked.uid().to_owned(), asked.device().to_owned());
    let body = encode(&Signal { sender, sender_device, ..signal });
    let spec = PushSpec {
        command: SIGNAL,
        lane: Lane::Chat,
        want_ack: false,
        ttl_ms: SIGNAL_TTL_MS,
        rank: Rank::Second,
    };
    Some(Output::PushRoom { room, from: asked.session, spec, body })
}

/// Names the facts that a SUB or a signal is judged on.
pub(super) fn plan(asked: &Asked, room: &str, set: &mut ReadSet) {
    match peer(asked.uid(), room) {
        Ok(Some(peer)) => set.add(Need::Contact(peer.to_owned(), asked.origin.0)),
        Ok(None) => set.add(Need::Named(room.to_owned(), Some(asked.origin.0))),
        Err(_) => {}
    }
}

/// Judges whether a user may be in the room of a conversation, or speak there.
fn judge(facts: &impl Facts, rules: Rules, asked: &Asked, room: &str, speaks: bool) -> Result<(), Refused> {
    if let Some(peer) = peer(asked.uid(), room)? {
        // Unknown users have no rooms: nobody could fill the table of rooms with invented names.
        let other = facts.find_user(peer).ok_or_else(|| no_such_user("room", peer))?;
        return rules.judge(Wish::Say, facts.contact(asked.origin, other)).map_err(refused);
    }
    let group = facts.find(room).ok_or_else(|| refused(Refusal::NotFound))?;
    let member = facts.member(group, asked.origin.0).ok_or_else(|| refused(Refusal::NotMember))?;
    if speaks {
        judge_speaker(&member, facts.is_silent(group), asked.now.unix_ms).map_err(refused)?;
    }
    Ok(())
}

/// Lets a user enter the room of a conversation, or refuses.
pub(super) fn enter(
    facts: &impl Facts,
    rules: Rules,
    asked: &Asked,
    room: String,
    reply: ReplyTo,
) -> Option<Output> {
    match judge(facts, rules, asked, &room, false) {
        Ok(()) => Some(Output::EnterRoom { reply, session: asked.session?, room }),
        Err((code, reason)) => Some(Output::AnswerSub { reply, code, reason }),
    }
}
