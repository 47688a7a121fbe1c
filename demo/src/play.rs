//! The acts of the demo with one gateway and one backend, one after the other: log in, stand still, make groups, calibrate,
//! chat, wait for the rest.

use crate::DemoError;
use crate::checker::Tally;
use crate::clock;
use crate::server::Server;
use crate::size::Pace;
use crate::stage::{SENDS_AT_ONCE, SETTLE, Serving, Stage};
use crate::traffic::Traffic;
use crate::upgrade::{Upgrade, Upgraded};
use moorline_proto::time::{Duration, Instant};

/// Pause without a message before the memory is read.
const IDLE: Duration = Duration::from_secs(1);
/// Hot restarts that are tried, and the pause between two tries.
const RESTARTS_MAX: u32 = 5;
const RESTART_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Chat beyond its time, if the restart or the kill is late.
const OVERTIME_MAX: Duration = Duration::from_secs(60);
/// Chat after a late kill, so that there is a message to be stored again.
const AFTER_KILL: Duration = Duration::from_secs(1);

/// The processes of one run. Fields end in this order: the gateway first.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) gateway: Server,
    pub(crate) backend: Server,
}

/// Figures of the processes, and of the acts.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) pace: Pace,
    /// Counts before the chat: of the calibration.
    pub(crate) before: Tally,
    /// Resident bytes of the gateway without a client.
    pub(crate) rss_before: u64,
    /// Resident bytes of the gateway with all clients idle.
    pub(crate) rss_idle: u64,
    /// Processor time from the first message of the chat to the last delivery.
    pub(crate) gateway_cpu: Duration,
    pub(crate) backend_cpu: Duration,
    /// From the first message of the chat to the last one sent.
    pub(crate) chat: Duration,
    /// From the first message of the chat to the last delivery.
    pub(crate) until_drained: Duration,
    /// Messages that a client did not take: its outbox was full.
    pub(crate) refused: u64,
    /// Deliveries that came only when the clients asked for them.
    pub(crate) pulled: u64,
    /// Connections over TLS 1.3 that stand at the end.
    pub(crate) secure: usize,
    /// The hot restart; `None`: no try has a verdict.
    pub(crate) restart: Option<Upgraded>,
    /// Tries of the hot restart.
    pub(crate) restart_tries: u32,
    /// The end of the backend; `None`: nothing was stored after it.
    pub(crate) kill: Option<Killed>,
}

/// Figures of the kill of the backend, as clients see it.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) struct Killed {
    /// From `kill -9` until a message was durable again.
    pub(crate) silent_ms: f64,
}

/// The restart and the kill during the chat, and their state.
struct Acts {
    restart_at: Instant,
    kill_at: Instant,
    tries: u32,
    upgrade: Option<Upgrade>,
    restart: Option<Upgraded>,
    /// Processor time of the processes that were replaced, up to then.
    gateway_cpu: Duration,
    backend_cpu: Duration,
    killed: Option<Instant>,
}

impl Acts {
    /// Returns true if a new process of the gateway serves, or no further try is made.
    const fn is_restart_over(&self) -> bool {
        matches!(self.restart, Some(Upgraded::Committed(_)))
            || (self.upgrade.is_none() && self.tries >= RESTARTS_MAX)
    }
}

impl Serving for Servers {
    fn check(&mut self) -> Result<(), DemoError> {
        self.gateway.check()?;
        self.backend.check()
    }
}

impl Stage<'_, Servers> {
    /// Plays all acts. `rate`: asked for; `None`: calibrated, at most `rate_max`.
    pub(crate) fn run(
        &mut self,
        chat: Duration,
        rate: Option<u32>,
        rate_max: u32,
        seed: u64,
    ) -> Result<Measured, DemoError> {
        let rss_before = self.servers.gateway.resident_bytes()?;
        self.log_in()?;
        self.rest("idle", IDLE)?;
        let rss_idle = self.servers.gateway.resident_bytes()?;
        self.make_groups()?;
        let pace = match rate {
            Some(rate) => Pace { rate, calibrated: None },
            None => self.calibrate(rate_max, seed)?,
        };

        let before = self.observer.checker.tally();
        let cpu = (self.servers.gateway.cpu_time()?, self.servers.backend.cpu_time()?);
        let start = clock::now();
        let half = start + chat / 2;
        let acts = Acts {
            restart_at: half,
            kill_at: half + chat / 4,
            tries: 0,
            upgrade: None,
            restart: None,
            gateway_cpu: Duration::ZERO,
            backend_cpu: Duration::ZERO,
            killed: None,
        };
        let traffic = Traffic::new(start, chat, pace.rate, seed);
        let (refused, acts) = self.chat(traffic, acts)?;
        let chat = clock::now().saturating_since(start);
        let mut pulled = 0;
        if !self.drain("drain")? {
            pulled = self.pull_the_rest()?;
        }
        let until_drained = clock::now().saturating_since(start);
        // The first process's time until its last restart was ordered, and all of the second one's.
        let gateway_cpu = match acts.restart {
            Some(Upgraded::Committed(_)) => {
                acts.gateway_cpu.saturating_sub(cpu.0) + self.servers.gateway.cpu_time()?
            }
            _ => self.servers.gateway.cpu_time()?.saturating_sub(cpu.0),
        };
        let backend_cpu = match acts.killed {
            Some(_) => self.servers.backend.cpu_time()? + acts.backend_cpu.saturating_sub(cpu.1),
            None => self.servers.backend.cpu_time()?.saturating_sub(cpu.1),
        };
        let silent = acts.killed.zip(self.observer.stored_again);
        let kill = silent
            .map(|(killed, again)| Killed { silent_ms: again.saturating_since(killed).as_secs_f64() * 1e3 });
        self.rest("drain", SETTLE)?;
        let (restart, restart_tries) = (acts.restart, acts.tries);
        Ok(Measured {
            pace,
            before,
            rss_before,
            rss_idle,
            gateway_cpu,
            backend_cpu,
            chat,
            until_drained,
            refused,
            pulled,
            secure: self.fleet.secure(),
            restart,
            restart_tries,
            kill,
        })
    }

    /// Has everybody talk at the rate of the traffic, whatever the answers are. In the middle the gateway
    /// restarts, and later the backend is killed. Returns the messages that no client took.
    fn chat(&mut self, mut traffic: Traffic, mut acts: Acts) -> Result<(u64, Acts), DemoError> {
        let mut refused = 0;
        let overtime_until = traffic.end() + OVERTIME_MAX;
        loop {
            for _ in 0..SENDS_AT_ONCE {
                let Some(said) = traffic.take_due(clock::now(), &self.roster) else { break };
                refused += u64::from(!self.say(said));
            }
            self.restart(&mut acts)?;
            self.kill(&mut acts, &mut traffic)?;
            let now = clock::now();
            let is_done = acts.is_restart_over() && acts.killed.is_some();
            match traffic.deadline() {
                Some(due) => self.turn("chat", due)?,
                None if is_done || now >= overtime_until => return Ok((refused, acts)),
                None => traffic.extend_to(now + AFTER_KILL),
            }
        }
    }

    /// Restarts the gateway in the middle of the chat; a restart that was undone is tried again.
    fn restart(&mut self, acts: &mut Acts) -> Result<(), DemoError> {
        let now = clock::now();
        if let Some(upgrade) = &mut acts.upgrade {
            match upgrade.poll()? {
                Some(undone @ Upgraded::Undone { .. }) => {
                    if let Upgraded::Undone { why, .. } = &undone {
                        self.progress.say(&format!("the hot restart was undone, try {}: {why}", acts.tries));
                    }
                    acts.restart = Some(undone);
                    (acts.upgrade, acts.restart_at) = (None, now + RESTART_AGAIN_AFTER);
                }
                // The verdict is of use only when it is known who serves.
                Some(committed) if self.servers.gateway.has_successor() => {
                    (acts.upgrade, acts.restart) = (None, Some(committed));
                }
                Some(Upgraded::Committed(_)) | None => {}
            }
        } else if now >= acts.restart_at && !acts.is_restart_over() {
            acts.gateway_cpu = self.servers.gateway.cpu_time()?;
            acts.upgrade = Some(self.servers.gateway.upgrade()?);
            acts.tries += 1;
        }
        Ok(())
    }

    /// Kills the backend when its time has come and the gateway's restart is over.
    fn kill(&mut self, acts: &mut Acts, traffic: &mut Traffic) -> Result<(), DemoError> {
        let now = clock::now();
        if acts.killed.is_some() || now < acts.kill_at || acts.upgrade.is_some() || !acts.is_restart_over() {
            return Ok(());
        }
        acts.backend_cpu = self.servers.backend.cpu_time()?;
        let listen = format!("listen={}", self.servers.backend.address("link")?);
        let killed = clock::now();
        self.servers.backend.kill_and_start_again(&[listen])?;
        acts.killed = Some(killed);
        self.observer.handle_kill(killed);
        traffic.extend_to(killed + AFTER_KILL);
        Ok(())
    }
}
