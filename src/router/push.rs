//! Pushes and kicks of backends, split by shard. Pure.

use super::counters::Count;
use super::{LinkIndex, Rooms, Sides};
use crate::messages::{Downlink, Push, PushRef, Rank, Target};
use crate::shard_map::ShardMap;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::compress::try_compress;
use moorline_proto::frame::{Command, Lane};
use moorline_proto::ids::{ConnKey, ShardId};
use moorline_proto::line_limit::LineLimit;
use moorline_proto::link::{Kind, LinkError, LinkFrame};
use moorline_proto::message::backend::{self, Kick, Outcome, PushOutcome};
use moorline_proto::time::{Duration, Instant};
use prost::Message;

/// Splits the pushes of backends; its memory is used again for every push.
#[derive(Debug)]
pub(super) struct Pushes {
    shard_map: ShardMap,
    compress_min: usize,
    /// Bytes of a body that clients accept.
    body_max: usize,
    /// Log lines about larger bodies.
    lines: LineLimit,
    message: backend::Push,
    /// By shard.
    targets: Vec<Vec<Target>>,
}

impl Pushes {
    /// `compress_min`: shortest body of a push to many that is compressed, in bytes; 0: no body is compressed.
    pub(super) fn new(shard_map: ShardMap, compress_min: usize, body_max: usize, shards: usize) -> Self {
        let targets = (0..shards).map(|_| Vec::new()).collect();
        Self {
            shard_map,
            compress_min,
            body_max,
            lines: LineLimit::new(),
            message: backend::Push::default(),
            targets,
        }
    }

    /// Splits a push by shard; the body is shared.
    pub(super) fn on_push(
        &mut self,
        sides: &mut Sides,
        index: LinkIndex,
        frame: &LinkFrame,
    ) -> Result<(), LinkError> {
        let mut message = std::mem::take(&mut self.message);
        message.clear();
        message.merge(frame.body.clone()).map_err(|_| LinkError::Body(Kind::Push))?;
        let command = pushable(message.command).ok_or(LinkError::Body(Kind::Push))?;
        if message.body.len() > self.body_max {
            self.refuse_too_large(sides, index, frame.correlation, &message);
            self.message = message;
            return Ok(());
        }
        let mut push = Push {
            ticket: message.want_ack.then(|| sides.ticket(index, frame.correlation)),
            targets: Vec::new(),
            command,
            lane: Lane::from_number(message.lane),
            rank: Rank::of(message.rank, Lane::from_number(message.lane)),
            expires_at: match message.ttl_ms {
                0 => Instant::FAR_FUTURE,
                ttl_ms => sides.now + Duration::from_millis(u64::from(ttl_ms)),
            },
            body: std::mem::take(&mut message.body),
            packed: None,
            except: (message.except != 0).then(|| ConnKey::from_u64(message.except)),
            collapse: (!message.collapse_key.is_empty()).then(|| message.collapse_key.as_str().into()),
        };
        let is_for_many = message.handles.len() + message.uids.len() > 1 || !message.room.is_empty();
        if is_for_many && self.compress_min > 0 && push.body.len() >= self.compress_min {
            push.packed = try_compress(&push.body);
            sides.counters[Count::Compressed] += u64::from(push.packed.is_some());
        }
        sides.counters[Count::Pushes] += 1;
        sides.counters[Count::PushTargets] += (message.handles.len() + message.uids.len()) as u64;
        if let ([handle], [], "") = (&message.handles[..], &message.uids[..], message.room.as_str())
            && ConnKey::from_u64(*handle).shard().index() < sides.shards.shards()
        {
            let key = ConnKey::from_u64(*handle);
            let targets = vec![Target::Connection(key)];
            sides.shards.push(key.shard(), Downlink::Push(Push { targets, ..push }));
        } else {
            self.split(sides, index, &push, &message.handles, message.uids.drain(..));
            if !message.room.is_empty() {
                Rooms::push(sides, &push, &message.room);
            }
        }
        self.message = message;
        Ok(())
    }

    /// Reports a push that no client would accept: each would close its connection, come back, and get the push again.
    fn refuse_too_large(
        &mut self,
        sides: &mut Sides,
        index: LinkIndex,
        correlation: u64,
        push: &backend::Push,
    ) {
        sides.counters[Count::PushesTooLarge] += 1;
        if let Some(others) = self.lines.allow(sides.now) {
            let (worker, bytes, limit) = (sides.number, push.body.len(), self.body_max);
            tracing::warn!(
                worker,
                bytes,
                limit,
                others,
                "a push of the backend is larger than limits.body_max and was not sent; lower im.payload_max of the \
                 backend, or raise limits.body_max"
            );
        }
        if !push.want_ack {
            return;
        }
        let link = &mut sides.links[index];
        let outcome = if link.knows_too_large { Outcome::TooLarge } else { Outcome::Expired };
        let handles = push.handles.iter().copied().chain(push.uids.iter().map(|_| 0));
        handles.for_each(|handle| {
            link.push_outcome(PushOutcome { correlation, handle, outcome: outcome.into() });
        });
    }

    fn split(
        &mut self,
        sides: &mut Sides,
        index: LinkIndex,
        push: &Push,
        handles: &[u64],
        uids: impl Iterator<Item = String>,
    ) {
        for handle in handles {
            let key = ConnKey::from_u64(*handle);
            match self.targets.get_mut(key.shard().index()) {
                Some(targets) => targets.push(Target::Connection(key)),
                None => on_unroutable(sides, index, push.ticket, *handle),
            }
        }
        for uid in uids {
            let shard = self.shard_map.first(self.shard_map.pin(&uid));
            self.targets[shard.index()].push(Target::User(uid.into_boxed_str()));
        }
        for (shard, targets) in (0u8..).zip(&mut self.targets) {
            if !targets.is_empty() {
                let part = Push { targets: std::mem::take(targets), ..push.clone() };
                sides.shards.push(ShardId(shard), Downlink::Push(part));
            }
        }
    }

    /// Passes a kick on to the shard that owns its target.
    pub(super) fn on_kick(&self, sides: &mut Sides, frame: &LinkFrame) -> Result<(), LinkError> {
        let kick: Kick = frame.message()?;
        sides.counters[Count::Kicks] += 1;
        let (shard, target) = if kick.handle != 0 {
            let key = ConnKey::from_u64(kick.handle);
            (key.shard(), Target::Connection(key))
        } else if kick.uid.is_empty() {
            return Err(LinkError::Body(Kind::Kick));
        } else {
            let shard = self.shard_map.first(self.shard_map.pin(&kick.uid));
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
        sides.shards.push(shard, Downlink::Kick { target, login_version, code, may_reconnect, reason });
        Ok(())
    }
}

/// Answers for a target that cannot be connected here.
fn on_unroutable(sides: &mut Sides, index: LinkIndex, ticket: Option<PushRef>, handle: u64) {
    sides.counters[Count::PushUnroutable] += 1;
    if let Some(PushRef { correlation, .. }) = ticket {
        let outcome = Outcome::Offline.into();
        sides.links[index].push_outcome(PushOutcome { correlation, handle, outcome });
    }
}

/// The command of a PUSH, if a backend may send it to clients.
fn pushable(command: u32) -> Option<Command> {
    let command = Command::from_byte(u8::try_from(command).ok()?)?;
    matches!(command, Command::Push | Command::Notify | Command::App(_)).then_some(command)
}
