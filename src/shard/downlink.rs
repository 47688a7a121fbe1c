//! Messages from workers: verdicts, answers, pushes, kicks, rooms, and the workers' own state.
//!
//! Example: the backend pushes to the user `bob`, who has two devices here. The target is resolved to two keys,
//! and each session gets the push. A user whom another shard may own is forwarded there.

use super::delivery::report;
use super::ending::KickOrder;
use super::login::{Newcomer, Transfer};
use super::{Count, Output, Outputs, Shard};
use crate::messages::{Admission, Downlink, Push, Rank, Target};
use bytes::Bytes;
use moorline_proto::connection::server::State;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Command, Frame};
use moorline_proto::ids::{ConnKey, Seq, ShardId};
use moorline_proto::message::backend::Outcome;
use moorline_proto::time::Instant;

impl Shard {
    /// Handles a message from a worker.
    pub fn handle_downlink(&mut self, now: Instant, downlink: Downlink, outputs: &mut Outputs) {
        match downlink {
            Downlink::Verdict { key, verdict } => self.on_verdict(now, key, verdict, outputs),
            Downlink::Answer { key, command, cid, is_final, rank, body } => {
                self.fanouts.pace.on_answer(now, key, cid, rank);
                let answered = (command == Command::SendAck).then_some((cid, is_final));
                if answered.is_some() {
                    let map = &self.clients.ledger.settings.shard_map;
                    self.gate.sheds.on_answer(now, map, rank, &body);
                }
                self.on_answer(now, key, answered, Frame::new(command, body), outputs);
            }
            Downlink::Push(push) => self.on_push(now, push, outputs),
            Downlink::Kick { target, login_version, code, may_reconnect, reason } => {
                let order = KickOrder { login_version, code, may_reconnect, reason };
                self.on_kick(now, target, order, outputs);
            }
            Downlink::Bind { room, version, keys, reset } => self.clients.bind(&room, version, &keys, reset),
            Downlink::Unbind { room, version, keys } => {
                keys.iter().for_each(|key| self.clients.rooms.unbind(&room, version, *key));
            }
            Downlink::Query { ticket, uid, room } => match self.home_after(&uid) {
                Some(home) => outputs.forwards.push((home, Downlink::Query { ticket, uid, room })),
                None => self.clients.answer_query(ticket, &uid, &room, outputs),
            },
            Downlink::Hold { worker, slots } => {
                for key in self.clients.ledger.pauses.set_full(worker, slots) {
                    self.try_end_pause(now, key, outputs);
                }
            }
            Downlink::Overload { worker, level } => self.clients.ledger.pauses.set_overload(worker, level),
            Downlink::Announce { worker, request, slots } => {
                self.clients.announce(worker, request, slots, outputs);
            }
        }
    }

    fn on_verdict(
        &mut self,
        now: Instant,
        key: ConnKey,
        verdict: Result<Admission, CloseReason>,
        outputs: &mut Outputs,
    ) {
        let state = self.clients.connection(key).map(|connection| connection.state);
        if state != Some(State::Authenticating) {
            return;
        }
        let admission = match verdict {
            Ok(admission) => admission,
            Err(reason) => return self.clients.close(now, key, reason, outputs),
        };
        let settings = &self.clients.ledger.settings;
        let first = settings.shard_map.first(settings.shard_map.pin(&admission.uid));
        let home = if first == settings.shard { self.home_after(&admission.uid) } else { Some(first) };
        let Some(home) = home else {
            let newcomer = Newcomer { key, has_socket: true };
            self.logins.admit(now, &mut self.clients, newcomer, &admission, outputs);
            return;
        };
        let connection = self.clients.take(key);
        let partial = Bytes::copy_from_slice(connection.decoder.partial());
        self.clients.ledger.counters[Count::Moved] += 1;
        outputs.push(Output::Move(key, Box::new(Transfer { home, admission, partial })));
    }

    /// `answered`: cid of the answered SEND, and whether the answer is final; `None`: another request.
    fn on_answer(
        &mut self,
        now: Instant,
        key: ConnKey,
        answered: Option<(Seq, bool)>,
        answer: Frame,
        outputs: &mut Outputs,
    ) {
        let Some(mut client) = self.clients.client(key).filter(|client| client.session.is_some()) else {
            self.clients.ledger.counters[Count::AnswersStale] += 1;
            return;
        };
        self.gate.handle_answer(now, &mut client, answered, &answer.body);
        client.send(answer, outputs);
        if let Err(reason) = client.check_clogged() {
            self.clients.close(now, key, reason, outputs);
        }
    }

    /// Delivers one payload to some of this shard's connections: at once to a few, in slices to many.
    fn on_push(&mut self, now: Instant, mut push: Push, outputs: &mut Outputs) {
        let targets = std::mem::take(&mut push.targets);
        if push.rank == Rank::First {
            self.fanouts.pace.on_chat(now);
        }
        if let (None, None, Command::App(_), Some(from), [Target::Room(room)]) =
            (push.ticket, &push.collapse, push.command, push.except, &targets[..])
        {
            // Of the signals of one sender that wait for the same receiver, the newest one counts.
            push.collapse = Some(format!("{room}\0{}", from.as_u64()).into());
        }
        if let ([Target::Connection(key)], None) = (&targets[..], push.except)
            && !self.fanouts.must_wait(push.rank, 1)
        {
            // Most are for one, and need no list.
            return self.deliver(now, *key, &push, &mut None, outputs);
        }
        let mut keys = Vec::with_capacity(targets.len());
        for target in targets {
            if let Target::Connection(key) = target {
                keys.extend((push.except != Some(key)).then_some(key)); // gone ones show when their turn comes
                continue;
            }
            if let Some(home) = self.home_of_target(&target) {
                let part = Push { targets: vec![target], ..push.clone() };
                outputs.forwards.push((home, Downlink::Push(part)));
                continue;
            }
            let found = self.clients.resolve(&target);
            if found.is_empty() && !matches!(target, Target::Room(_)) {
                self.clients.ledger.counters[Count::PushesOffline] += 1;
                report(push.ticket, ConnKey::from_u64(0), Outcome::Offline, outputs);
            }
            keys.extend(found.into_iter().filter(|key| push.except != Some(*key)));
        }
        if self.fanouts.must_wait(push.rank, keys.len()) {
            let is_begun = self.fanouts.try_begin(push, keys, outputs);
            self.clients.ledger.set_fanout_bytes(self.fanouts.bytes());
            let count = if is_begun { Count::Fanouts } else { Count::FanoutsRefused };
            self.clients.ledger.counters[count] += 1;
            return;
        }
        let mut own = None;
        keys.into_iter().for_each(|key| self.deliver(now, key, &push, &mut own, outputs));
    }

    /// Delivers one push to one session.
    pub(super) fn deliver(
        &mut self,
        now: Instant,
        key: ConnKey,
        push: &Push,
        own: &mut Option<Bytes>,
        outputs: &mut Outputs,
    ) {
        let Some(mut client) = self.clients.client(key).filter(|client| client.session.is_some()) else {
            self.clients.ledger.counters[Count::PushesOffline] += 1;
            return report(push.ticket, key, Outcome::Offline, outputs);
        };
        if let Err(reason) = client.deliver(now, push, own, outputs) {
            self.clients.close(now, key, reason, outputs);
        }
    }

    fn on_kick(&mut self, now: Instant, target: Target, order: KickOrder, outputs: &mut Outputs) {
        let Some(home) = self.home_of_target(&target) else {
            return self.clients.kick(now, &target, &order, outputs);
        };
        let KickOrder { login_version, code, may_reconnect, reason } = order;
        let kick = Downlink::Kick { target, login_version, code, may_reconnect, reason };
        outputs.forwards.push((home, kick));
    }

    /// The shard that may own a user who has no session here; `None`: this one owns the user.
    pub(super) fn home_after(&self, uid: &str) -> Option<ShardId> {
        let settings = &self.clients.ledger.settings;
        let home = settings.shard_map.after(settings.shard_map.pin(uid), settings.shard)?;
        self.clients.registry.of_user(uid).is_empty().then_some(home)
    }

    fn home_of_target(&self, target: &Target) -> Option<ShardId> {
        match target {
            Target::User(uid) | Target::Device(uid, _) => self.home_after(uid),
            Target::Connection(_) | Target::Room(_) => None,
        }
    }
}
