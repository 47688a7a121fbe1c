//! Settings, keys and limits that are read again while the gateway serves, by HUP or by order.
//!
//! Example: the operator adds a key to the file of `auth.key_file` and sets `limits.user_rate = 100`. Both are read
//! and checked; then the workers verify with the new keys, and the reactors judge by the new rate. A faulty file
//! changes nothing.
//!
//! The files are read in a thread, with a deadline: on a file system that does not answer, the main thread must go on
//! hearing signals.

use super::GatewayError;
use super::assembly::Gateway;
use super::signals::Signals;
use super::tls::Fresh;
use super::trust;
use crate::auth::{Judge, Prepared};
use crate::config::{Config, SettingsError};
use crate::sys::room;
use crate::worker::Credentials;
use crossbeam_channel::{Receiver, Sender, TryRecvError, after, bounded, select};
use moorline_net::clock::Clock;
use moorline_net::thread;
use std::cell::RefCell;
use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Longest time for the files of a reload. The command line waits 10 s for the verdict.
const READ_MAX: Duration = Duration::from_secs(8);
/// Bytes of addresses for the files of a reload: each file has 1 MiB at most, and is parsed.
const ROOM_MIN: u64 = 8 << 20;

/// Reads all sources of the settings again.
pub type Reread = Arc<dyn Fn() -> Result<Config, SettingsError> + Send + Sync>;
/// Puts a log level in force.
pub type SetLogLevel = Box<dyn Fn(&str) -> Result<(), String>>;

/// Access to what a reload reads and changes outside of the gateway.
pub struct Sources {
    /// Reads all sources of the settings again.
    pub reread: Reread,
    /// Puts a log level in force.
    pub set_log_level: SetLogLevel,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sources")
    }
}

/// Settings of a reload that changed: those in force, and those that need a restart.
pub(super) type Changes = (Vec<String>, Vec<String>);

/// The settings in force, and how they are read again.
#[derive(Debug)]
pub(super) struct Reloading {
    pub(super) config: RefCell<Config>,
    sources: Sources,
    reader: ReadThread,
    /// Files that took longer than [`READ_MAX`]; nobody takes the result.
    late: RefCell<Option<Receiver<Result<Read, String>>>>,
}

/// The thread that reads files. It is there before the gateway serves: a system that refuses threads later ends nothing.
#[derive(Debug)]
pub(super) struct ReadThread {
    orders: Sender<Box<dyn FnOnce() + Send>>,
}

impl ReadThread {
    /// Starts the thread; it ends with this value.
    ///
    /// # Errors
    /// [`GatewayError::System`]: no thread.
    pub(super) fn start() -> Result<Self, GatewayError> {
        let (orders, taken) = bounded::<Box<dyn FnOnce() + Send>>(1);
        let started = thread::spawn("reload", move || taken.iter().for_each(|read| read()));
        started.map_err(GatewayError::system("start the thread that reads settings again"))?;
        Ok(Self { orders })
    }
}

/// Refuses a reload for whose files there may be no memory: an allocation that fails ends the process.
fn check_addresses() -> Result<(), String> {
    match room::of_addresses() {
        Some(room) if room.bytes < ROOM_MIN => {
            Err(format!("{ROOM_MIN} bytes of memory are needed to read them, {room}; raise that limit"))
        }
        _ => Ok(()),
    }
}

/// Files that were read and checked, and are not in force yet.
struct Read {
    new: Config,
    next: Config,
    rules: Prepared,
    credentials: Credentials,
    fresh: Option<Fresh>,
}

/// Everything that the reading thread needs.
struct Reader {
    reread: Reread,
    old: Config,
    judge: Judge,
    node: String,
    clock: Clock,
    in_force: Credentials,
    has_identity: bool,
}

impl Reader {
    fn read(self) -> Result<Read, String> {
        let Self { reread, old, judge, node, clock, in_force, has_identity } = self;
        let new = super::fit_to_memory(reread().map_err(|error| error.to_string())?);
        let next = old.reloaded(&new);
        let rules = judge.prepare(&next.auth).map_err(|error| error.to_string())?;
        let credentials =
            trust::credentials(&next, &node, &clock, Some(&in_force)).map_err(|error| error.to_string())?;
        let fresh = has_identity.then(|| Fresh::read(&next, clock.unix_nanos() / 1_000_000_000)).transpose();
        let fresh = fresh.map_err(|error| error.to_string())?.flatten();
        Ok(Read { new, next, rules, credentials, fresh })
    }
}

impl Reloading {
    pub(super) const fn new(config: Config, sources: Sources, reader: ReadThread) -> Self {
        Self { config: RefCell::new(config), sources, reader, late: RefCell::new(None) }
    }

    /// Reads everything again, then puts in force what can change, all or none. Ends early for a signal that ends the
    /// process.
    ///
    /// # Errors
    /// The reason why nothing was changed.
    pub(super) fn reload(&self, gateway: &Gateway, signals: &Signals) -> Result<Changes, String> {
        let old = self.config.borrow().clone();
        let Read { new, next, rules, credentials, fresh } = self.read(gateway, &old, signals)?;
        if next.log.level != old.log.level {
            (self.sources.set_log_level)(&next.log.level)?;
        }
        // From here on nothing fails.
        rules.apply();
        if let (Some(identity), Some(fresh)) = (gateway.identity.as_ref(), fresh) {
            identity.put(fresh);
        }
        *gateway.credentials.write().unwrap_or_else(PoisonError::into_inner) = credentials;
        gateway.set_limits(&next);
        gateway.status.set_grace(&next);
        let changes = (old.changed_keys(&next), next.changed_keys(&new));
        *self.config.borrow_mut() = next;
        Ok(changes)
    }

    fn read(&self, gateway: &Gateway, old: &Config, signals: &Signals) -> Result<Read, String> {
        let mut late = self.late.borrow_mut();
        if late.as_ref().is_some_and(|late| matches!(late.try_recv(), Err(TryRecvError::Empty))) {
            return Err(
                "the files of an earlier reload are still being read: their file system does not answer"
                    .to_owned(),
            );
        }
        *late = None;
        let reader = Reader {
            reread: Arc::clone(&self.sources.reread),
            old: old.clone(),
            judge: gateway.judge.clone(),
            node: gateway.node.clone(),
            clock: gateway.clock.clone(),
            in_force: gateway.credentials.read().unwrap_or_else(PoisonError::into_inner).clone(),
            has_identity: gateway.identity.is_some(),
        };
        check_addresses()?;
        let (sender, done) = bounded(1);
        let read = move || sender.send(reader.read()).unwrap_or(()); // nobody waits for it any more
        self.reader.orders.try_send(Box::new(read)).map_err(|_| "the thread that reads them has ended")?;
        let deadline = after(READ_MAX);
        let outcome = loop {
            select! {
                recv(done) -> read => return read.map_err(|_| "the thread that reads them has ended".to_owned())?,
                recv(signals.wake()) -> _ => if signals.is_ending() {
                    break "the process ends".to_owned();
                },
                recv(deadline) -> _ => {
                    let seconds = READ_MAX.as_secs();
                    break format!(
                        "the settings and the files that they name could not be read within {seconds} s: their file \
                         system does not answer, or one of them is a pipe"
                    );
                }
            }
        };
        *late = Some(done);
        Err(outcome)
    }
}
