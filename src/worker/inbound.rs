//! What backends send: answers, pushes, kicks. Whatever breaks the link's rules closes that link.

use super::Count;
use super::Worker;
use crate::handoff::{Downlink, Push, PushTicket, Target};
use crate::link::{LinkIndex, Phase, Taken};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::compress::try_compress;
use moorline_proto::frame::{Command, Lane};
use moorline_proto::ids::{ConnKey, Pin};
use moorline_proto::link::{Kind, LinkError, LinkFrame};
use moorline_proto::message::backend::{Kick, Outcome, PushOutcome, UpResult};
use moorline_proto::time::{Duration, Instant};
use prost::Message;

impl Worker {
    /// Takes one frame of a link.
    ///
    /// # Errors
    /// Close that link: it sent what it must not.
    pub(super) fn handle_frame(&mut self, index: LinkIndex, frame: &LinkFrame) -> Result<(), LinkError> {
        self.link(index).handle_credit(frame.credit);
        let is_greeting = matches!(self.link(index).state.phase(), Phase::Greeting(_));
        if is_greeting != (frame.kind == Kind::Hello) {
            return Err(LinkError::Unexpected(frame.kind));
        }
        match frame.kind {
            Kind::Hello => self.on_hello(index, frame),
            Kind::UpResult => self.on_up_result(index, frame),
            Kind::AuthResult => self.on_auth_result(index, frame),
            Kind::Push => self.on_push(index, frame),
            Kind::Kick => self.on_kick(frame),
            Kind::Bind => self.on_bind(index, frame),
            Kind::Unbind => self.on_unbind(frame),
            Kind::Query => self.on_query(index, frame),
            Kind::Ping => {
                self.link(index).send_empty(Kind::Pong, frame.correlation);
                Ok(())
            }
            Kind::Drain => {
                self.link(index).state.on_drain();
                self.needs_balance = true;
                Ok(())
            }
            Kind::Pong | Kind::Credit => Ok(()),
            kind => Err(LinkError::Unexpected(kind)),
        }
    }

    fn on_hello(&mut self, index: LinkIndex, frame: &LinkFrame) -> Result<(), LinkError> {
        let now = self.now;
        let link = self.link(index);
        let hello = link.handle_hello(frame, now)?;
        let address = link.address();
        tracing::info!(worker = self.settings.number, link = index.0, %address, node = hello.node, "link up");
        self.tally[Count::LinkConnects] += 1;
        self.on_link_ready();
        Ok(())
    }

    fn on_up_result(&mut self, index: LinkIndex, frame: &LinkFrame) -> Result<(), LinkError> {
        let result: UpResult = frame.message()?;
        match self.links[index.index()].pending.take(frame.correlation) {
            Taken::Answered(up) => {
                self.tally[Count::UpResults] += 1;
                let took = self.now.saturating_since(up.taken_at);
                self.tally.record_latency(took);
                self.overload.record(self.now, took);
                self.needs_balance |= self.endpoints.on_answer(self.now, index, took);
                self.slots.on_settled(up.slot);
                let answer = self.answers.answer(&up, result.code, &result.answer);
                self.outbox.push(up.key.shard(), answer);
                Ok(())
            }
            Taken::Late => {
                self.tally[Count::LateResults] += 1;
                Ok(())
            }
            Taken::Unknown => Err(LinkError::Unexpected(frame.kind)),
        }
    }

    /// Splits a push by shard; the body is shared.
    fn on_push(&mut self, index: LinkIndex, frame: &LinkFrame) -> Result<(), LinkError> {
        let mut message = std::mem::take(&mut self.scratch.push);
        message.clear();
        message.merge(frame.body.clone()).map_err(|_| LinkError::Body(Kind::Push))?;
        let command = pushable(message.command).ok_or(LinkError::Body(Kind::Push))?;
        let ticket = message.want_ack.then(|| PushTicket {
            worker: self.settings.number,
            link: index.0,
            link_generation: self.links[index.index()].state.generation(),
            correlation: frame.correlation,
        });
        let mut push = Push {
            ticket,
            targets: Vec::new(),
            command,
            lane: Lane::from_number(message.lane),
            expires_at: match message.ttl_ms {
                0 => Instant::FAR_FUTURE,
                ttl_ms => self.now + Duration::from_millis(u64::from(ttl_ms)),
            },
            body: std::mem::take(&mut message.body),
            packed: None,
            except: (message.except != 0).then(|| ConnKey::from_u64(message.except)),
            collapse: (!message.collapse_key.is_empty()).then(|| message.collapse_key.as_str().into()),
        };
        let is_for_many = message.handles.len() + message.uids.len() > 1 || !message.room.is_empty();
        let compress_min = self.settings.compress_min;
        if is_for_many && compress_min > 0 && push.body.len() >= compress_min {
            push.packed = try_compress(&push.body);
            self.tally[Count::Compressed] += u64::from(push.packed.is_some());
        }
        self.tally[Count::Pushes] += 1;
        self.tally[Count::PushTargets] += (message.handles.len() + message.uids.len()) as u64;
        if let ([handle], [], "") = (&message.handles[..], &message.uids[..], message.room.as_str())
            && ConnKey::from_u64(*handle).shard().index() < self.outbox.shards()
        {
            let key = ConnKey::from_u64(*handle);
            let targets = vec![Target::Connection(key)];
            self.outbox.push(key.shard(), Downlink::Push(Push { targets, ..push }));
        } else {
            self.split_push(index, &push, &message.handles, message.uids.drain(..));
            if !message.room.is_empty() {
                self.push_to_room(&push, &message.room);
            }
        }
        self.scratch.push = message;
        Ok(())
    }

    fn split_push(
        &mut self,
        index: LinkIndex,
        push: &Push,
        handles: &[u64],
        uids: impl Iterator<Item = String>,
    ) {
        for handle in handles {
            let key = ConnKey::from_u64(*handle);
            match self.scratch.targets.get_mut(key.shard().index()) {
                Some(targets) => targets.push(Target::Connection(key)),
                None => self.on_unroutable(index, push.ticket, *handle),
            }
        }
        for uid in uids {
            let shard = self.settings.homes.first(Pin::of(&uid));
            self.scratch.targets[shard.index()].push(Target::User(uid.into_boxed_str()));
        }
        for (shard, targets) in (0u8..).zip(&mut self.scratch.targets) {
            if !targets.is_empty() {
                let part = Push { targets: std::mem::take(targets), ..push.clone() };
                self.outbox.push(moorline_proto::ids::ShardId(shard), Downlink::Push(part));
            }
        }
    }

    /// A target that cannot be connected here.
    fn on_unroutable(&mut self, index: LinkIndex, ticket: Option<PushTicket>, handle: u64) {
        self.tally[Count::PushUnroutable] += 1;
        if let Some(PushTicket { correlation, .. }) = ticket {
            let outcome = Outcome::Offline.into();
            self.link(index).push_outcome(PushOutcome { correlation, handle, outcome });
        }
    }

    fn on_kick(&mut self, frame: &LinkFrame) -> Result<(), LinkError> {
        let kick: Kick = frame.message()?;
        self.tally[Count::Kicks] += 1;
        let (shard, target) = if kick.handle != 0 {
            let key = ConnKey::from_u64(kick.handle);
            (key.shard(), Target::Connection(key))
        } else if kick.uid.is_empty() {
            return Err(LinkError::Body(Kind::Kick));
        } else {
            let shard = self.settings.homes.first(Pin::of(&kick.uid));
            let uid = kick.uid.into_boxed_str();
            let target = if kick.device.is_empty() {
                Target::User(uid)
            } else {
                Target::Device(uid, kick.device.into_boxed_str())
            };
            (shard, target)
        };
        let code = if kick.code == 0 { CloseReason::Kicked.code() } else { kick.code };
        let Kick { login_version, may_reconnect, reason, .. } = kick;
        self.outbox.push(shard, Downlink::Kick { target, login_version, code, may_reconnect, reason });
        Ok(())
    }
}

/// The command of a PUSH, if a backend may send it to clients.
fn pushable(command: u32) -> Option<Command> {
    let command = Command::from_byte(u8::try_from(command).ok()?)?;
    matches!(command, Command::Push | Command::Notify | Command::App(_)).then_some(command)
}
