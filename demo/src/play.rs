//! The acts of the demo, one after the other: log in, stand still, make groups, chat, wait for the rest.
//!
//! Owns the fleet and the observer while they last. Every wait has a bound, ends when the demo is to
//! stop, and notices a server that is gone.

use crate::clock;
use crate::fleet::Fleet;
use crate::number::count;
use crate::observer::Observer;
use crate::progress::Progress;
use crate::roster::{Kind, Roster};
use crate::server::{Server, value};
use crate::stop::Stop;
use crate::traffic::{Traffic, Utterance};
use crate::{DemoError, system};
use moorline_proto::message::encode;
use moorline_proto::message::im::GroupCreateRequest;
use moorline_proto::time::{Duration, Instant};
use moorline_sdk::core::Target;
use std::sync::Arc;

/// Logins under way at once.
const LOGINS_AT_ONCE: u32 = 256;
const LOGIN_WITHIN: Duration = Duration::from_secs(30);
/// Nobody says a word before the memory is read.
const IDLE: Duration = Duration::from_secs(1);
/// Groups asked for at once.
const GROUPS_AT_ONCE: usize = 64;
const GROUPS_WITHIN: Duration = Duration::from_secs(10);
/// Messages sent between two looks at the sockets.
const SENDS_AT_ONCE: usize = 128;
/// After the chat: for everything to arrive.
const DRAIN_WITHIN: Duration = Duration::from_secs(8);
/// After that: for what should not arrive.
const SETTLE: Duration = Duration::from_millis(500);

/// The processes of one run. Fields end in this order: the gateway first.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) gateway: Server,
    pub(crate) backend: Server,
}

/// What the processes used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// Of the gateway, with no client.
    pub(crate) rss_before: u64,
    /// Of the gateway, with all clients idle.
    pub(crate) rss_idle: u64,
    /// From the first message to the last delivery.
    pub(crate) gateway_cpu: Duration,
    pub(crate) backend_cpu: Duration,
    /// From the first message to the last one sent.
    pub(crate) chat: Duration,
    /// From the first message to the last delivery.
    pub(crate) until_drained: Duration,
    /// Messages that a client would not take: its outbox was full.
    pub(crate) refused: u64,
    /// In the middle of the chat; `None`: the gateway did not restart.
    pub(crate) restart: Option<Restarted>,
    /// After three quarters of it; `None`: the backend was not killed, or never answered again.
    pub(crate) kill: Option<Killed>,
}

/// What an end of the backend without a word was to those who chat.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) struct Killed {
    /// From `kill -9` until a message was durable again.
    pub(crate) silent_ms: f64,
}

/// What the new process says of a hot restart.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) struct Restarted {
    /// For so long nothing was read or written.
    pub(crate) pause_ms: f64,
    /// Sockets that moved.
    pub(crate) sockets: u64,
}

/// When what happens in the chat.
#[derive(Clone, Copy)]
struct Acts {
    restart: Instant,
    kill: Instant,
}

/// Processor time of processes that ended on the way, and when the backend was killed.
#[derive(Default)]
struct Used {
    gateway: Duration,
    backend: Duration,
    killed: Option<Instant>,
}

pub(crate) struct Play<'a> {
    pub(crate) roster: Arc<Roster>,
    pub(crate) fleet: Fleet,
    pub(crate) observer: Observer,
    pub(crate) servers: &'a mut Servers,
    pub(crate) stop: &'a Stop,
    pub(crate) progress: &'a mut Progress,
}

/// From a readiness line.
fn restarted(line: &str) -> Option<Restarted> {
    let pause_ms = value(line, "pause_ms")?.parse().ok()?;
    Some(Restarted { pause_ms, sockets: value(line, "sockets")?.parse().ok()? })
}

impl Play<'_> {
    /// All acts.
    pub(crate) fn run(&mut self, chat: Duration, rate: u32, seed: u64) -> Result<Measured, DemoError> {
        let rss_before = self.servers.gateway.resident_bytes()?;
        self.log_in()?;
        self.wait("idle", clock::now() + IDLE, |_| false)?;
        let rss_idle = self.servers.gateway.resident_bytes()?;
        self.make_groups()?;

        let cpu = (self.servers.gateway.cpu_time()?, self.servers.backend.cpu_time()?);
        let start = clock::now();
        let half = start + chat / 2;
        let acts = Acts { restart: half, kill: half + chat / 4 };
        let (refused, used) = self.chat(Traffic::new(start, chat, rate, seed), acts)?;
        let until_restart = used.gateway;
        let chat = clock::now().saturating_since(start);
        let is_all_here =
            |play: &Self| play.observer.checker.unanswered() == 0 && play.observer.checker.owed() == 0;
        self.wait("drain", clock::now() + DRAIN_WITHIN, is_all_here)?;
        let until_drained = clock::now().saturating_since(start);
        let restart = self.servers.gateway.successor().and_then(restarted);
        // The first process's time until it was told, and all of the second one's.
        let gateway_cpu = match restart {
            Some(_) => until_restart.saturating_sub(cpu.0) + self.servers.gateway.cpu_time()?,
            None => self.servers.gateway.cpu_time()?.saturating_sub(cpu.0),
        };
        let backend_cpu = self.servers.backend.cpu_time()? + used.backend.saturating_sub(cpu.1);
        let kill = used
            .killed
            .zip(self.observer.stored_again)
            .map(|(killed, again)| Killed { silent_ms: again.saturating_since(killed).as_secs_f64() * 1e3 });
        self.wait("drain", clock::now() + SETTLE, |_| false)?;
        Ok(Measured {
            rss_before,
            rss_idle,
            gateway_cpu,
            backend_cpu,
            chat,
            until_drained,
            refused,
            restart,
            kill,
        })
    }

    /// Everybody logs in.
    fn log_in(&mut self) -> Result<(), DemoError> {
        let everybody = self.connections();
        let until = clock::now() + LOGIN_WITHIN;
        let mut started = 0;
        while self.observer.logged_in < everybody {
            while started < everybody && started - self.observer.logged_in.min(started) < LOGINS_AT_ONCE {
                self.fleet.start(started, &mut self.observer);
                started += 1;
            }
            if clock::now() >= until || self.observer.closed > 0 {
                return Err(DemoError::Logins {
                    done: self.observer.logged_in,
                    of: everybody,
                    why: self.observer.last_failure.clone(),
                });
            }
            self.turn("login", until)?;
        }
        Ok(())
    }

    /// The first user of every group makes it.
    fn make_groups(&mut self) -> Result<(), DemoError> {
        let roster = Arc::clone(&self.roster);
        let until = clock::now() + GROUPS_WITHIN;
        let mut asked = 0;
        for (leader, group) in roster.groups() {
            let Kind::Group { name, members } = &group.kind else { continue };
            let members = members.iter().map(|user| roster.user(*user).uid.to_string()).collect();
            let request = encode(&GroupCreateRequest { group: name.clone(), members });
            let left = until.saturating_since(clock::now());
            let taken = self.fleet.ask(leader, "im.group.create", request, left, &mut self.observer);
            taken.map_err(|error| DemoError::Groups { done: asked, why: error.to_string() })?;
            asked += 1;
            self.wait("groups", until, |play| play.observer.groups_open(asked) < GROUPS_AT_ONCE)?;
        }
        self.wait("groups", until, |play| play.observer.groups_open(asked) == 0)?;
        if self.observer.groups_made == asked {
            return Ok(());
        }
        Err(DemoError::Groups { done: self.observer.groups_made, why: self.observer.last_failure.clone() })
    }

    /// Everybody talks, at the rate of the traffic whatever the answers are. On the way the gateway restarts, and the
    /// backend is killed: what they had used until then comes back too.
    fn chat(&mut self, mut traffic: Traffic, acts: Acts) -> Result<(u64, Used), DemoError> {
        let (mut refused, mut used, mut has_restarted) = (0, Used::default(), false);
        while let Some(due) = traffic.deadline() {
            for _ in 0..SENDS_AT_ONCE {
                let Some(said) = traffic.take_due(clock::now(), &self.roster) else { break };
                refused += u64::from(!self.say(said));
            }
            if !has_restarted && clock::now() >= acts.restart {
                used.gateway = self.servers.gateway.cpu_time()?;
                self.servers.gateway.restart();
                has_restarted = true;
            }
            if used.killed.is_none() && clock::now() >= acts.kill {
                used.backend = self.servers.backend.cpu_time()?;
                let listen = format!("listen={}", self.servers.backend.address("link")?);
                let now = clock::now();
                self.servers.backend.kill_and_start_again(&[listen])?;
                used.killed = Some(now);
                self.observer.on_killed(now);
            }
            self.turn("chat", traffic.deadline().unwrap_or(due))?;
        }
        Ok((refused, used))
    }

    /// One message; false if the client would not take it.
    fn say(&mut self, said: Utterance) -> bool {
        let Utterance { device, seat, intended } = said;
        let message = self.observer.checker.begin(device, seat, intended);
        let conversation =
            &self.roster.conversations[self.roster.device(device).seats[seat].conversation as usize];
        let target = match &conversation.kind {
            Kind::Group { .. } => Target::Conversation(Arc::clone(&conversation.id)),
            Kind::Pair => {
                let me = self.roster.device(device).user;
                let other = conversation.devices.iter().find(|other| self.roster.device(**other).user != me);
                Target::User(Arc::clone(self.roster.uid_of(*other.expect("a pair has two users"))))
            }
        };
        self.observer.lag.record(intended, clock::now());
        let key = message.0;
        match self.fleet.send(device, message, target, &mut self.observer) {
            Ok(()) => true,
            Err(why) => {
                self.observer.checker.on_failed(device, key, &why.to_string());
                false
            }
        }
    }

    /// Turns until `is_over`, or `until` has come.
    fn wait(&mut self, act: &str, until: Instant, is_over: impl Fn(&Self) -> bool) -> Result<(), DemoError> {
        while !is_over(self) && clock::now() < until {
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
