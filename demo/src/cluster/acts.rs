//! The acts of the demo of a cluster: log in, make groups, calibrate, and a chat of three parts, each with a loss in its middle.

use super::servers::Cluster;
use crate::DemoError;
use crate::checker::Tally;
use crate::clock;
use crate::size::Pace;
use crate::stage::{SENDS_AT_ONCE, SETTLE, Stage};
use crate::traffic::Traffic;
use moorline_proto::time::{Duration, Instant};
use serde::Serialize;

/// Server that is killed for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Loss {
    Gateway,
    Node,
    Primary,
}

const LOSSES: [Loss; 3] = [Loss::Gateway, Loss::Node, Loss::Primary];

/// One loss, as clients saw it.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Survived {
    pub(crate) loss: Loss,
    /// Longest time from the intended send time to the answer, of all messages that were answered behind the loss.
    pub(crate) longest_ms: f64,
}

/// Figures of the acts.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) pace: Pace,
    /// Counts before the chat: of the calibration.
    pub(crate) before: Tally,
    pub(crate) survived: Vec<Survived>,
    /// Connections that the killed gateway had.
    pub(crate) cut_off: u64,
    /// Time in which messages were sent.
    pub(crate) chat: Duration,
    /// From the first message of the chat to the last delivery.
    pub(crate) until_drained: Duration,
    /// Messages that a client did not take: its outbox was full.
    pub(crate) refused: u64,
    /// Deliveries that came only when the clients asked for them.
    pub(crate) pulled: u64,
    /// Connections over TLS 1.3 that stand at the end.
    pub(crate) secure: usize,
}

impl Stage<'_, Cluster> {
    /// Plays all acts. `rate`: asked for; `None`: calibrated, at most `rate_max`.
    pub(crate) fn run(
        &mut self,
        chat: Duration,
        rate: Option<u32>,
        rate_max: u32,
        seed: u64,
    ) -> Result<Measured, DemoError> {
        self.log_in()?;
        // A login is known to the gateway before it is known to the cell, and a message to an unknown user is refused for good.
        self.become_known()?;
        self.make_groups()?;
        let pace = match rate {
            Some(rate) => Pace { rate, calibrated: None },
            None => self.calibrate(rate_max, seed)?,
        };
        let before = self.observer.checker.tally();
        let start = clock::now();
        let (mut survived, mut cut_off, mut refused) = (Vec::new(), 0, 0);
        let part = chat / 3;
        for (loss, seed) in LOSSES.into_iter().zip(seed..) {
            let begin = clock::now();
            let traffic = Traffic::new(begin, part, pace.rate, seed);
            refused += self.chat(traffic, begin + part / 2, loss, &mut cut_off)?;
            self.drain("drain")?;
            let longest_ms = self.observer.handle_calm().as_secs_f64() * 1e3;
            survived.push(Survived { loss, longest_ms });
        }
        let pulled = if self.drain("drain")? { 0 } else { self.pull_the_rest()? };
        let until_drained = clock::now().saturating_since(start);
        self.rest("drain", SETTLE)?;
        let (chat, secure) = (part * 3, self.fleet.secure());
        Ok(Measured { pace, before, survived, cut_off, chat, until_drained, refused, pulled, secure })
    }

    /// Has everybody talk, and kills something at `at`. Returns the messages that no client took.
    fn chat(
        &mut self,
        mut traffic: Traffic,
        at: Instant,
        loss: Loss,
        cut_off: &mut u64,
    ) -> Result<u64, DemoError> {
        let (mut refused, mut is_lost) = (0, false);
        loop {
            for _ in 0..SENDS_AT_ONCE {
                let Some(said) = traffic.take_due(clock::now(), &self.roster) else { break };
                refused += u64::from(!self.say(said));
            }
            let now = clock::now();
            if !is_lost && now >= at {
                self.observer.handle_kill(now);
                self.lose(loss, cut_off)?;
                is_lost = true;
            }
            match traffic.deadline() {
                Some(due) if is_lost => self.turn("chat", due)?,
                Some(due) => self.turn("chat", due.min(at))?,
                None if is_lost => return Ok(refused),
                None => self.turn("chat", at)?,
            }
        }
    }

    fn lose(&mut self, loss: Loss, cut_off: &mut u64) -> Result<(), DemoError> {
        match loss {
            Loss::Gateway => {
                let gateway = self.servers.kill_gateway()?;
                *cut_off += self.fleet.connected_to(gateway);
                self.progress.say("killed gateway 2: its clients go to the others");
            }
            Loss::Node => {
                self.servers.kill_node()?;
                self.progress
                    .say("killed node 2: its slots go to the others when its lease has ended, after 5 s");
            }
            Loss::Primary => {
                self.servers.kill_primary()?;
                self.progress.say("killed the primary: a standby takes its place");
            }
        }
        Ok(())
    }
}
