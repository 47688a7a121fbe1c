//! The acts of the demo, one after the other: log in, stand still, make groups, calibrate, chat, wait for the
//! rest.
//!
//! Owns the fleet and the observer while they last. Every wait ends when nothing has moved for a while, when
//! its bound is reached, when the demo is to stop, or when a server is gone. A wait that gives up is not a
//! fault of the gateway: the machine was too busy.

use crate::checker::Tally;
use crate::clock;
use crate::fleet::Fleet;
use crate::number::count;
use crate::observer::Observer;
use crate::progress::Progress;
use crate::roster::{Kind, Roster};
use crate::server::Server;
use crate::size::{self, Pace};
use crate::stop::Stop;
use crate::traffic::{Traffic, Utterance};
use crate::upgrade::{Upgrade, Upgraded};
use crate::{DemoError, system};
use moorline_proto::message::encode;
use moorline_proto::message::im::GroupCreateRequest;
use moorline_proto::time::{Duration, Instant};
use std::sync::Arc;

/// Logins under way at once.
const LOGINS_AT_ONCE: u32 = 256;
/// Groups asked for at once.
const GROUPS_AT_ONCE: usize = 64;
/// Pause without a message before the memory is read.
const IDLE: Duration = Duration::from_secs(1);
/// Length of the calibration.
const CALIBRATION: Duration = Duration::from_secs(2);
/// Messages without an answer, and deliveries to come, beyond which the calibration sends nothing.
const CALIBRATION_OPEN_MAX: u64 = 256;
const CALIBRATION_OWED_MAX: u64 = 2_048;
/// Messages sent between two looks at the sockets.
const SENDS_AT_ONCE: usize = 128;
/// A wait goes on while anything moves within this time; more than one repetition of a send.
const PATIENCE: Duration = Duration::from_secs(25);
/// Bound of every wait, however much moves.
const WAIT_MAX: Duration = Duration::from_secs(240);
/// Wait for arrivals that should not come, at the end.
const SETTLE: Duration = Duration::from_millis(500);
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

pub(crate) struct Play<'a> {
    pub(crate) roster: Arc<Roster>,
    pub(crate) fleet: Fleet,
    pub(crate) observer: Observer,
    pub(crate) servers: &'a mut Servers,
    pub(crate) stop: &'a Stop,
    pub(crate) progress: &'a mut Progress,
}

impl Play<'_> {
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

    /// Logs everybody in.
    fn log_in(&mut self) -> Result<(), DemoError> {
        let everybody = self.connections();
        let mut started = 0;
        let mut patience = Patience::new(&self.observer);
        while self.observer.logged_in < everybody {
            while started < everybody && started - self.observer.logged_in.min(started) < LOGINS_AT_ONCE {
                self.fleet.start(started, &mut self.observer);
                started += 1;
            }
            let (done, why) = (self.observer.logged_in, &self.observer.last_failure);
            if self.observer.closed > 0 {
                return Err(DemoError::Logins { done, of: everybody, why: why.clone() });
            }
            if patience.is_over(&self.observer) {
                let why = if why.is_empty() { "no answer" } else { why };
                return Err(DemoError::TooBusy(format!("only {done} of {everybody} clients got in: {why}")));
            }
            self.turn("login", patience.until)?;
        }
        Ok(())
    }

    /// Has the first user of every group make it.
    fn make_groups(&mut self) -> Result<(), DemoError> {
        let roster = Arc::clone(&self.roster);
        let mut asked = 0;
        for (leader, group) in roster.groups() {
            let Kind::Group { name, members } = &group.kind else { continue };
            let members = members.iter().map(|user| roster.user(*user).uid.to_string()).collect();
            let request = encode(&GroupCreateRequest { group: name.clone(), members });
            self.fleet.ask(leader, "im.group.create", request, &mut self.observer);
            asked += 1;
            self.wait("groups", |play| play.observer.groups_open(asked) < GROUPS_AT_ONCE)?;
        }
        let is_answered = self.wait("groups", |play| play.observer.groups_open(asked) == 0)?;
        let (done, why) = (self.observer.groups_made, self.observer.last_failure.clone());
        match self.observer.groups_failed {
            0 if is_answered => Ok(()),
            0 => Err(DemoError::TooBusy(format!("only {done} of {asked} groups could be made"))),
            _ => Err(DemoError::Groups { done, why }),
        }
    }

    /// Finds a rate that this machine has to spare: a short chat with a bounded number of open messages.
    fn calibrate(&mut self, rate_max: u32, seed: u64) -> Result<Pace, DemoError> {
        let start = clock::now();
        let end = start + CALIBRATION;
        let before = self.observer.checker.tally().stored;
        let mut traffic = Traffic::new(start, CALIBRATION, rate_max, !seed);
        while clock::now() < end {
            for _ in 0..SENDS_AT_ONCE {
                let checker = &self.observer.checker;
                if checker.unanswered() >= CALIBRATION_OPEN_MAX || checker.owed() >= CALIBRATION_OWED_MAX {
                    break;
                }
                let Some(said) = traffic.take_due(clock::now(), &self.roster) else { break };
                self.say(said);
            }
            self.turn("pace", traffic.deadline().unwrap_or(end).min(end))?;
        }
        let time = clock::now().saturating_since(start);
        let pace = size::pace(self.observer.checker.tally().stored - before, time, rate_max);
        self.drain("pace")?;
        self.observer.begin_times();
        Ok(pace)
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

    /// Sends one message; false: the client did not take it.
    fn say(&mut self, said: Utterance) -> bool {
        let Utterance { device, seat, intended } = said;
        let message = self.observer.checker.begin(device, seat, intended);
        self.observer.lag.record(intended, clock::now());
        let key = message.0;
        match self.fleet.send(device, seat, message, &mut self.observer) {
            Ok(()) => true,
            Err(why) => {
                self.observer.checker.on_failed(device, key, &why.to_string());
                false
            }
        }
    }

    /// Waits until everything is answered and delivered; false: nothing moves any more.
    fn drain(&mut self, act: &str) -> Result<bool, DemoError> {
        self.wait(act, |play| play.observer.checker.unanswered() == 0 && play.observer.checker.owed() == 0)
    }

    /// Has every device that lacks a durable message ask for it. Returns the deliveries that came by it.
    fn pull_the_rest(&mut self) -> Result<u64, DemoError> {
        let before = self.observer.checker.tally().delivered;
        for device in self.observer.checker.lacking() {
            self.fleet.pull_all(device, &mut self.observer);
        }
        self.drain("pull")?;
        Ok(self.observer.checker.tally().delivered - before)
    }

    /// Turns until `is_over`; false: nothing moved for [`PATIENCE`], or [`WAIT_MAX`] is over.
    fn wait(&mut self, act: &str, is_over: impl Fn(&Self) -> bool) -> Result<bool, DemoError> {
        let mut patience = Patience::new(&self.observer);
        while !is_over(self) {
            if patience.is_over(&self.observer) {
                return Ok(false);
            }
            self.turn(act, patience.until)?;
        }
        Ok(true)
    }

    /// Turns for a time.
    fn rest(&mut self, act: &str, time: Duration) -> Result<(), DemoError> {
        let until = clock::now() + time;
        while clock::now() < until {
            self.turn(act, until)?;
        }
        Ok(())
    }

    fn turn(&mut self, act: &str, until: Instant) -> Result<(), DemoError> {
        self.stop.check()?;
        let until = until.min(self.progress.deadline());
        self.fleet.turn(until, &mut self.observer).map_err(system("wait for sockets"))?;
        let now = clock::now();
        if now >= self.progress.deadline() {
            self.servers.gateway.check()?;
            self.servers.backend.check()?;
        }
        let (observer, everybody) = (&self.observer, self.connections());
        self.progress.show(now, || {
            let tally = observer.checker.tally();
            let counts = [u64::from(observer.logged_in), everybody.into(), tally.sent, tally.stored, tally.delivered];
            let [logged_in, everybody, sent, stored, delivered] = counts.map(count);
            format!("{act:<6} connected {logged_in}/{everybody}  sent {sent}  durable {stored}  delivered {delivered}")
        });
        Ok(())
    }

    fn connections(&self) -> u32 {
        u32::try_from(self.roster.devices.len()).expect("bounded by the number of ports")
    }
}

/// A wait that lasts while anything moves.
struct Patience {
    /// End of the wait if nothing moves until then.
    until: Instant,
    end: Instant,
    progress: u64,
}

impl Patience {
    fn new(observer: &Observer) -> Self {
        let now = clock::now();
        Self { until: now + PATIENCE, end: now + WAIT_MAX, progress: observer.progress() }
    }

    fn is_over(&mut self, observer: &Observer) -> bool {
        let (now, progress) = (clock::now(), observer.progress());
        if progress != self.progress {
            self.progress = progress;
            self.until = (now + PATIENCE).min(self.end);
        }
        now >= self.until
    }
}
