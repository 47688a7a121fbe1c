//! Addresses of host names, looked up by threads of their own and kept.
//!
//! A look-up can take half a minute when a name server is silent. So nobody who serves waits for one: [`Resolver::look_up`]
//! returns what is known, and the owner is woken when an answer has come. An answer is kept until a later look-up succeeds.
//!
//! ```text
//! look_up(a) = Pending     the first look-up is under way; the owner is woken
//! look_up(a) = Known       [10.0.0.1, 10.0.0.2]
//! refresh(a)               a connection broke: the name is looked up again, at most once a second
//! look_up(a) = Known       [10.0.0.1, 10.0.0.2] if that fails, and the failure is counted and logged
//! ```

use crate::clock::Clock;
use moorline_proto::line_limit::LineLimit;
use moorline_proto::link::HostPort;
use moorline_proto::time::{Duration, Instant};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Shortest interval between two look-ups of one name.
const PAUSE: Duration = Duration::from_secs(1);
/// Addresses of one name that are kept.
const ADDRESSES_MAX: usize = 16;
/// Names of one resolver, each with a thread.
pub const NAMES_MAX: usize = 64;

/// Knowledge of a name, as of now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// Addresses of the last look-up that succeeded; at least 1.
    Addresses(Vec<SocketAddr>),
    /// No look-up has succeeded, and one is under way: the owner is woken.
    Pending,
    /// No look-up has succeeded: the cause of the last failure.
    Failed(String),
}

/// A look-up that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looked {
    /// There are addresses.
    Found,
    /// There are none.
    Failed,
}

/// Looks a name up; blocks meanwhile.
pub type LookUp = Box<dyn Fn(&HostPort) -> io::Result<Vec<SocketAddr>> + Send + Sync>;

/// Functions of the owner. Called by the resolver's threads, one at a time.
pub struct Hooks {
    /// Wakes whoever got [`Known::Pending`].
    pub wake: Box<dyn Fn() + Send + Sync>,
    /// Counts a look-up.
    pub count: Box<dyn Fn(Looked) + Send + Sync>,
}

/// Names and their addresses. A clone is the same resolver; its threads end with the last one.
#[derive(Clone, Debug)]
pub struct Resolver(Arc<Owner>);

/// Ends the threads when it is dropped.
#[derive(Debug)]
struct Owner(Arc<Shared>);

struct Shared {
    names: Mutex<Names>,
    changed: Condvar,
    clock: Clock,
    look_up: LookUp,
    hooks: Hooks,
}

#[derive(Debug, Default)]
struct Names {
    by_name: BTreeMap<HostPort, Entry>,
    is_stopping: bool,
}

#[derive(Debug)]
struct Entry {
    /// Addresses of the last look-up that succeeded; empty: none has.
    addresses: Vec<SocketAddr>,
    /// Cause of the failure of the last look-up; `None`: it succeeded, or there was none.
    problem: Option<String>,
    /// A look-up is to be begun.
    is_wanted: bool,
    /// A look-up is under way.
    is_running: bool,
    /// Somebody was told that the look-up is pending.
    is_awaited: bool,
    /// Earliest time of the next look-up.
    next: Instant,
    lines: LineLimit,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Resolver {
    /// Starts a thread for each name, which asks the system at once. Names above [`NAMES_MAX`] are never found.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(names: impl IntoIterator<Item = HostPort>, hooks: Hooks) -> io::Result<Self> {
        let look_up = |name: &HostPort| Ok((name.host(), name.port()).to_socket_addrs()?.collect());
        Self::start_with(names, hooks, Clock::default(), Box::new(look_up))
    }

    /// Starts likewise, with another clock and another way to look names up.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start_with(
        names: impl IntoIterator<Item = HostPort>,
        hooks: Hooks,
        clock: Clock,
        look_up: LookUp,
    ) -> io::Result<Self> {
        let by_name = names.into_iter().take(NAMES_MAX).map(|name| (name, Entry::new())).collect();
        let names = Mutex::new(Names { by_name, is_stopping: false });
        let shared = Arc::new(Shared { names, changed: Condvar::new(), clock, look_up, hooks });
        let resolver = Self(Arc::new(Owner(Arc::clone(&shared))));
        let names: Vec<HostPort> = shared.lock().by_name.keys().cloned().collect();
        for name in names {
            let shared = Arc::clone(&shared);
            let named = std::thread::Builder::new().name("resolve".into());
            named.spawn(move || shared.run(&name))?;
        }
        Ok(resolver)
    }

    /// Returns what is known of a name now.
    pub fn look_up(&self, name: &HostPort) -> Known {
        let mut names = self.shared().lock();
        let Some(entry) = names.by_name.get_mut(name) else {
            return Known::Failed("it is not looked up: there are too many names".into());
        };
        if !entry.addresses.is_empty() {
            return Known::Addresses(entry.addresses.clone());
        }
        match &entry.problem {
            Some(problem) if !entry.is_wanted && !entry.is_running => Known::Failed(problem.clone()),
            _ => {
                entry.is_awaited = true;
                Known::Pending
            }
        }
    }

    /// Has a name looked up again.
    pub fn refresh(&self, name: &HostPort) {
        let mut names = self.shared().lock();
        if let Some(entry) = names.by_name.get_mut(name) {
            entry.is_wanted = true;
            self.shared().changed.notify_all();
        }
    }

    /// Returns a sentence for each name whose last look-up failed.
    pub fn problems(&self) -> Vec<String> {
        let names = self.shared().lock();
        let failed = names.by_name.iter().filter_map(|(name, entry)| entry.told(name));
        failed.collect()
    }

    fn shared(&self) -> &Shared {
        &self.0.0
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.lock().is_stopping = true;
        self.0.changed.notify_all();
    }
}

impl Entry {
    const fn new() -> Self {
        Self {
            addresses: Vec::new(),
            problem: None,
            is_wanted: true,
            is_running: false,
            is_awaited: false,
            next: Instant::ZERO,
            lines: LineLimit::new(),
        }
    }

    /// Returns a sentence about the last failure; `None`: the last look-up succeeded.
    fn told(&self, name: &HostPort) -> Option<String> {
        let problem = self.problem.as_ref()?;
        let kept = if self.addresses.is_empty() { "" } else { "; its last addresses stay in use" };
        Some(format!("cannot resolve `{name}`: {problem}{kept}"))
    }

    /// Takes the result of a look-up. Returns whether somebody waits for it.
    fn take(&mut self, name: &HostPort, now: Instant, found: io::Result<Vec<SocketAddr>>) -> (bool, Looked) {
        self.is_running = false;
        self.next = now + PAUSE;
        let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        let found = found.and_then(|found| if found.is_empty() { Err(none()) } else { Ok(found) });
        let looked = match found {
            Ok(addresses) => {
                self.keep(name, addresses);
                Looked::Found
            }
            Err(error) => {
                self.problem = Some(error.to_string());
                if let (Some(told), Some(skipped)) = (self.told(name), self.lines.allow(now)) {
                    tracing::warn!(skipped, "{told}");
                }
                Looked::Failed
            }
        };
        (std::mem::take(&mut self.is_awaited), looked)
    }

    fn keep(&mut self, name: &HostPort, found: Vec<SocketAddr>) {
        let mut addresses = Vec::new();
        for address in found {
            if addresses.len() < ADDRESSES_MAX && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        self.problem = None;
        let has_same = addresses.iter().all(|address| self.addresses.contains(address));
        if !has_same || addresses.len() != self.addresses.len() {
            tracing::info!(%name, ?addresses, "the name has these addresses");
        }
        self.addresses = addresses;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Names> {
        // Each change of the table is whole.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks one name up, whenever that is wanted, until the resolver is dropped.
    fn run(&self, name: &HostPort) {
        while self.await_wish(name) {
            let found = (self.look_up)(name);
            let mut names = self.lock();
            let now = self.clock.now();
            let Some(entry) = names.by_name.get_mut(name) else { return };
            let (is_awaited, looked) = entry.take(name, now, found);
            (self.hooks.count)(looked);
            drop(names);
            if is_awaited {
                (self.hooks.wake)();
            }
        }
    }

    /// Waits until a look-up is wanted and allowed. False: the resolver was dropped.
    fn await_wish(&self, name: &HostPort) -> bool {
        let mut names = self.lock();
        while !names.is_stopping {
            let now = self.clock.now();
            let Some(entry) = names.by_name.get_mut(name) else { return false };
            if entry.is_wanted && now >= entry.next {
                (entry.is_wanted, entry.is_running) = (false, true);
                return true;
            }
            let pause = if entry.is_wanted { Some(entry.next.saturating_since(now)) } else { None };
            names = match pause {
                Some(pause) => {
                    let waited = self.changed.wait_timeout(names, pause);
                    waited.map_or_else(|poisoned| poisoned.into_inner().0, |(names, _)| names)
                }
                None => self.changed.wait(names).unwrap_or_else(PoisonError::into_inner),
            };
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

    fn name() -> HostPort {
        "backend.internal:7100".parse().expect("a name")
    }

    fn address(number: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, number], 7100))
    }

    /// A resolver whose look-ups the test answers, one by one.
    struct Desk {
        resolver: Resolver,
        answers: Sender<io::Result<Vec<SocketAddr>>>,
        asked: Receiver<()>,
        woken: Receiver<()>,
        counted: Receiver<Looked>,
        clock: Clock,
    }

    impl Desk {
        fn new() -> Self {
            let (answers, to_give) = channel::<io::Result<Vec<SocketAddr>>>();
            let (ask, asked) = channel();
            let ((wake, woken), (count, counted)) = (channel(), channel());
            let (to_give, ask) = (Mutex::new(to_give), Mutex::new(ask));
            let look_up = move |_: &HostPort| {
                ask.lock().expect("whole").send(()).ok();
                to_give.lock().expect("whole").recv().unwrap_or_else(|_| Ok(Vec::new()))
            };
            let hooks = Hooks {
                wake: Box::new(move || _ = wake.send(())),
                count: Box::new(move |looked| _ = count.send(looked)),
            };
            let clock = Clock::default();
            let resolver = Resolver::start_with([name()], hooks, clock.clone(), Box::new(look_up));
            Self { resolver: resolver.expect("a thread"), answers, asked, woken, counted, clock }
        }

        fn pass(&self, time: Duration) {
            self.clock.go_on_from(self.clock.now() + time);
        }

        /// Answers the look-up that is under way, or comes.
        fn answer(&self, found: io::Result<Vec<SocketAddr>>) -> Looked {
            self.asked.recv_timeout(PATIENCE).expect("a look-up");
            self.answers.send(found).expect("the thread lives");
            self.counted.recv_timeout(PATIENCE).expect("counted")
        }

        fn known(&self) -> Known {
            self.resolver.look_up(&name())
        }
    }

    #[test]
    fn nobody_waits_for_a_silent_name_server_and_the_owner_is_woken() {
        let desk = Desk::new();
        assert_eq!(desk.known(), Known::Pending);
        assert_eq!(desk.answer(Ok(vec![address(1), address(1), address(2)])), Looked::Found);
        desk.woken.recv_timeout(PATIENCE).expect("woken");
        assert_eq!(desk.known(), Known::Addresses(vec![address(1), address(2)]));
        // A look-up that hangs costs nobody anything.
        desk.pass(PAUSE);
        desk.resolver.refresh(&name());
        desk.asked.recv_timeout(PATIENCE).expect("a look-up");
        assert_eq!(desk.known(), Known::Addresses(vec![address(1), address(2)]));
        desk.answers.send(Ok(vec![address(3)])).expect("the thread lives");
        assert_eq!(desk.counted.recv_timeout(PATIENCE), Ok(Looked::Found));
        assert_eq!(desk.known(), Known::Addresses(vec![address(3)]));
    }

    #[test]
    fn the_last_good_answer_is_kept_when_a_look_up_fails() {
        let desk = Desk::new();
        assert_eq!(desk.answer(Ok(vec![address(1)])), Looked::Found);
        for failure in [Err(io::Error::other("no name server")), Ok(Vec::new())] {
            desk.pass(PAUSE);
            desk.resolver.refresh(&name());
            assert_eq!(desk.answer(failure), Looked::Failed);
            assert_eq!(desk.known(), Known::Addresses(vec![address(1)]));
            let told = desk.resolver.problems().join("");
            assert!(
                told.contains("cannot resolve `backend.internal:7100`") && told.contains("stay"),
                "{told}"
            );
        }
        desk.pass(PAUSE);
        desk.resolver.refresh(&name());
        assert_eq!(desk.answer(Ok(vec![address(2)])), Looked::Found);
        assert!(desk.resolver.problems().is_empty());
    }

    #[test]
    fn a_name_without_any_answer_fails_with_the_cause_until_it_is_asked_again() {
        let desk = Desk::new();
        assert_eq!(desk.known(), Known::Pending);
        assert_eq!(desk.answer(Err(io::Error::other("no such host"))), Looked::Failed);
        desk.woken.recv_timeout(PATIENCE).expect("woken");
        assert_eq!(desk.known(), Known::Failed("no such host".into()));
        desk.resolver.refresh(&name());
        assert_eq!(desk.known(), Known::Pending, "wanted, and not before a second has passed");
        let other = "other.internal:1".parse().expect("a name");
        assert!(matches!(desk.resolver.look_up(&other), Known::Failed(_)));
    }
}
