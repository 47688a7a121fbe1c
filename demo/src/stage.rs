//! The clients of a run and what every act does with them: log in, make groups, calibrate, send, wait for the rest.
//!
//! Owns the fleet and the observer while they last. Every wait ends when nothing has moved for a while, when
//! its bound is reached, when the demo is to stop, or when a server is gone. A wait that gives up is not a
//! fault of the gateway: the machine was too busy.

use crate::clock;
use crate::fleet::Fleet;
use crate::number::count;
use crate::observer::Observer;
use crate::progress::Progress;
use crate::roster::{Kind, Roster};
use crate::size::{self, Pace};
use crate::stop::Stop;
use crate::traffic::{Traffic, Utterance};
use crate::{DemoError, system};
use moorline_proto::message::encode;
use moorline_proto::message::im::{ConversationsRequest, GroupCreateRequest};
use moorline_proto::time::{Duration, Instant};
use std::sync::Arc;

/// Logins under way at once.
const LOGINS_AT_ONCE: u32 = 256;
/// Groups asked for at once.
const GROUPS_AT_ONCE: usize = 64;
/// Length of the calibration.
const CALIBRATION: Duration = Duration::from_secs(2);
/// Messages without an answer, and deliveries to come, beyond which the calibration sends nothing.
const CALIBRATION_OPEN_MAX: u64 = 256;
const CALIBRATION_OWED_MAX: u64 = 2_048;
/// Messages sent between two looks at the sockets.
pub(crate) const SENDS_AT_ONCE: usize = 128;
/// A wait goes on while anything moves within this time; more than one repetition of a send.
const PATIENCE: Duration = Duration::from_secs(25);
/// Wait for arrivals that should not come, at the end.
pub(crate) const SETTLE: Duration = Duration::from_millis(500);
/// Bound of every wait, however much moves.
const WAIT_MAX: Duration = Duration::from_secs(240);

/// The servers of a run.
pub(crate) trait Serving {
    /// Fails if a server is gone that should be there.
    fn check(&mut self) -> Result<(), DemoError>;
}

/// Clients, their judge, and the servers that they talk to.
pub(crate) struct Stage<'a, S> {
    pub(crate) roster: Arc<Roster>,
    pub(crate) fleet: Fleet,
    pub(crate) observer: Observer,
    pub(crate) servers: &'a mut S,
    pub(crate) stop: &'a Stop,
    pub(crate) progress: &'a mut Progress,
}

impl<S: Serving> Stage<'_, S> {
    /// Logs everybody in.
    pub(crate) fn log_in(&mut self) -> Result<(), DemoError> {
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

    /// Has every device ask the backend something, and waits for the answers: then the backend knows all users.
    pub(crate) fn become_known(&mut self) -> Result<(), DemoError> {
        let everybody = self.connections();
        self.observer.known = Some(0);
        self.observer.last_failure.clear();
        for asked in 0..everybody {
            let request = encode(&ConversationsRequest::default());
            self.fleet.ask(asked, "im.conversations", request, &mut self.observer);
            self.wait("login", |stage| {
                asked - stage.observer.known.unwrap_or(asked).min(asked) < LOGINS_AT_ONCE
            })?;
        }
        let is_answered = self.wait("login", |stage| stage.observer.known >= Some(everybody))?;
        let (known, why) = (self.observer.known.take(), &self.observer.last_failure);
        match known {
            _ if is_answered && why.is_empty() => Ok(()),
            Some(done) if why.is_empty() => {
                Err(DemoError::TooBusy(format!("only {done} of {everybody} clients had an answer")))
            }
            done => {
                Err(DemoError::Logins { done: done.unwrap_or_default(), of: everybody, why: why.clone() })
            }
        }
    }

    /// Has the first user of every group make it.
    pub(crate) fn make_groups(&mut self) -> Result<(), DemoError> {
        let roster = Arc::clone(&self.roster);
        let mut asked = 0;
        for (leader, group) in roster.groups() {
            let Kind::Group { name, members } = &group.kind else { continue };
            let members = members.iter().map(|user| roster.user(*user).uid.to_string()).collect();
            let request = encode(&GroupCreateRequest { group: name.clone(), members });
            self.fleet.ask(leader, "im.group.create", request, &mut self.observer);
            asked += 1;
            self.wait("groups", |stage| stage.observer.groups_open(asked) < GROUPS_AT_ONCE)?;
        }
        let is_answered = self.wait("groups", |stage| stage.observer.groups_open(asked) == 0)?;
        let (done, why) = (self.observer.groups_made, self.observer.last_failure.clone());
        match self.observer.groups_failed {
            0 if is_answered => Ok(()),
            0 => Err(DemoError::TooBusy(format!("only {done} of {asked} groups could be made"))),
            _ => Err(DemoError::Groups { done, why }),
        }
    }

    /// Finds a rate that this machine has to spare: a short chat with a bounded number of open messages.
    pub(crate) fn calibrate(&mut self, rate_max: u32, seed: u64) -> Result<Pace, DemoError> {
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

    /// Sends one message; false: the client did not take it.
    pub(crate) fn say(&mut self, said: Utterance) -> bool {
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
    pub(crate) fn drain(&mut self, act: &str) -> Result<bool, DemoError> {
        self.wait(act, |stage| stage.observer.checker.unanswered() == 0 && stage.observer.checker.owed() == 0)
    }

    /// Has every device that lacks a durable message ask for it. Returns the deliveries that came by it.
    pub(crate) fn pull_the_rest(&mut self) -> Result<u64, DemoError> {
        let before = self.observer.checker.tally().delivered;
        for device in self.observer.checker.lacking() {
            self.fleet.pull_all(device, &mut self.observer);
        }
        self.drain("pull")?;
        Ok(self.observer.checker.tally().delivered - before)
    }

    /// Turns until `is_over`; false: nothing moved for [`PATIENCE`], or [`WAIT_MAX`] is over.
    pub(crate) fn wait(&mut self, act: &str, is_over: impl Fn(&Self) -> bool) -> Result<bool, DemoError> {
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
    pub(crate) fn rest(&mut self, act: &str, time: Duration) -> Result<(), DemoError> {
        let until = clock::now() + time;
        while clock::now() < until {
            self.turn(act, until)?;
        }
        Ok(())
    }

    pub(crate) fn turn(&mut self, act: &str, until: Instant) -> Result<(), DemoError> {
        self.stop.check()?;
        let until = until.min(self.progress.deadline());
        self.fleet.turn(until, &mut self.observer).map_err(system("wait for sockets"))?;
        let now = clock::now();
        if now >= self.progress.deadline() {
            self.servers.check()?;
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
