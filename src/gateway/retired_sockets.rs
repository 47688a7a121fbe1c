//! Admin sockets that the settings do not name any more.
//!
//! For example, a hot restart moves the admin socket from `a.sock` to `b.sock`. Whoever gave the order at `a.sock` reads its
//! verdict there for 10 s more; other questions and orders are answered with the new place. A second restart within that time
//! takes `a.sock` over, with the time that is left and the verdicts of both; one that is undone leaves it where it was.

use crate::admin::{self, Status};
use crate::metrics::Registry;
use crate::sys::clock;
use moorline_net::http::Server;
use moorline_net::unix_socket::FileId;
use moorline_proto::time::Instant;
use nix::unistd::Gid;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Time for which a socket that the settings have given up still answers.
pub(super) const RETIRED_TIME: Duration = Duration::from_secs(10);
/// Sockets that are given up at one time; of more the oldest ends at once.
pub(super) const RETIRED_MAX: usize = 4;
/// Interval at which a held time is looked at.
const HELD_LOOK: Duration = Duration::from_secs(1);

/// A listening socket at a path that is given up.
#[derive(Debug)]
pub(super) struct RetiredPlace {
    /// The socket.
    pub(super) listener: UnixListener,
    /// Group that may read and drain; `None`: no group.
    pub(super) group: Option<Gid>,
    /// Path of the socket.
    pub(super) path: PathBuf,
    /// The file that the socket was bound to; `None`: the path has another one, or none.
    pub(super) file: Option<FileId>,
    /// End of its time by `CLOCK_MONOTONIC`; `None`: its time begins when this process serves.
    pub(super) until: Option<Instant>,
}

impl RetiredPlace {
    /// Returns whether whoever connects to the path meets this socket.
    pub(super) fn is_found(&self) -> bool {
        self.file.is_some_and(|file| file.is_at(&self.path))
    }

    fn remove_file(&self) {
        self.file.into_iter().for_each(|file| file.remove(&self.path));
    }
}

/// A place and its server.
#[derive(Debug)]
struct Served {
    place: RetiredPlace,
    server: Server,
}

#[derive(Debug, Default)]
struct State {
    served: Vec<Served>,
    /// A hot restart is under way: the new process may take the places over.
    is_held: bool,
    /// All end before their time.
    is_ending: bool,
    /// Paths are being removed.
    is_closing: bool,
}

impl State {
    /// Takes what has to end now.
    fn take_over(&mut self, now: Instant) -> Vec<Served> {
        let (is_ending, is_held) = (self.is_ending, self.is_held);
        let is_over = |served: &mut Served| {
            is_ending || !is_held && served.place.until.is_some_and(|until| until <= now)
        };
        self.served.extract_if(.., is_over).collect()
    }

    /// Time until the next look; `None`: nothing is left.
    fn next_look(&self, now: Instant) -> Option<Duration> {
        let left = self
            .served
            .iter()
            .map(|served| served.place.until.map_or(HELD_LOOK, |until| until.saturating_since(now)));
        let next = left.min()?;
        Some(if self.is_held { HELD_LOOK } else { next })
    }
}

/// The running servers at sockets that the settings do not name any more.
#[derive(Debug, Default)]
pub(super) struct RetiredSockets {
    state: Mutex<State>,
    changed: Condvar,
}

impl RetiredSockets {
    /// Starts a thread for each place, which accepts nobody before [`Self::open`]. `now`: path of the socket of today, if
    /// there is one.
    ///
    /// # Errors
    /// The system's: no descriptor, no poll, no thread.
    pub(super) fn start(
        mut places: Vec<RetiredPlace>,
        now: Option<&Path>,
        status: &Arc<Status>,
        registry: &Arc<Registry>,
    ) -> io::Result<Self> {
        places.sort_by_key(|place| place.until.map_or(u64::MAX, Instant::as_nanos));
        let over = places.len().saturating_sub(RETIRED_MAX);
        places[..over].iter_mut().for_each(|place| place.until = Some(Instant::from_nanos(0)));
        let mut served = Vec::new();
        for place in places {
            let shared = (place.listener.try_clone()?, place.group);
            let server = admin::spawn_retired(shared, now, status, registry)?;
            served.push(Served { place, server });
        }
        Ok(Self { state: Mutex::new(State { served, ..State::default() }), changed: Condvar::new() })
    }

    /// Returns whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.state().served.is_empty()
    }

    /// Returns the path of the one whose time has not begun; `None`: there is none.
    pub(super) fn newest(&self) -> Option<PathBuf> {
        self.state().served.iter().find(|it| it.place.until.is_none()).map(|it| it.place.path.clone())
    }

    /// Tells each place to `note`, for the process that takes over.
    pub(super) fn list<T>(&self, note: impl FnMut(&RetiredPlace) -> T) -> Vec<T> {
        self.state().served.iter().map(|served| &served.place).map(note).collect()
    }

    /// Accepts connections: this process serves.
    pub(super) fn open(&self) {
        let until = clock::machine_now() + RETIRED_TIME;
        self.state().served.iter_mut().for_each(|it| _ = it.place.until.get_or_insert(until));
        self.set_paused(false);
        self.changed.notify_all();
    }

    /// Accepts no more connections, or accepts again: another process may serve the places next.
    pub(super) fn set_paused(&self, is_paused: bool) {
        self.state().served.iter().for_each(|served| served.server.set_paused(is_paused));
    }

    /// Ends each place when its time is over, and removes its path. Returns when none is left. The file system may hang: call it
    /// once, in a thread that serves nobody, of a process that serves.
    pub(super) fn end_in_time(&self) {
        let mut state = self.state();
        loop {
            let now = clock::machine_now();
            let over = state.take_over(now);
            if !over.is_empty() {
                state.is_closing = true;
                drop(state);
                over.iter().for_each(|served| served.place.remove_file());
                for Served { place, server } in over {
                    server.stop();
                    drop(place); // its file was its own up to here
                }
                state = self.state();
                state.is_closing = false;
                self.changed.notify_all();
            } else if let Some(look) = state.next_look(now) {
                let waited = self.changed.wait_timeout(state, look);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            } else {
                return;
            }
        }
    }

    /// Has no place end by its time before [`Self::release`]: a new process may take them over. Waits for those that end now, no
    /// longer than this.
    pub(super) fn hold(&self, time: Duration) {
        let mut state = self.state();
        state.is_held = true;
        let closed = self.changed.wait_timeout_while(state, time, |state| state.is_closing);
        drop(closed.unwrap_or_else(PoisonError::into_inner));
    }

    /// Lets the places end by their time.
    pub(super) fn release(&self) {
        self.state().is_held = false;
        self.changed.notify_all();
    }

    /// Has all end now, and waits for that no longer than this.
    pub(super) fn end_within(&self, time: Duration) {
        let mut state = self.state();
        state.is_ending = true;
        self.changed.notify_all();
        let is_there = |state: &mut State| state.is_closing || !state.served.is_empty();
        let ended = self.changed.wait_timeout_while(state, time, is_there);
        drop(ended.unwrap_or_else(PoisonError::into_inner));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn of_more_places_than_the_limit_the_oldest_ends_and_a_held_one_does_not_and_foreign_files_stay() {
        let folder = std::env::temp_dir().join(format!("moorline-retired-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("made");
        let later = clock::machine_now() + Duration::from_secs(3600);
        let place = |number: usize| {
            let path = folder.join(number.to_string());
            std::fs::remove_file(&path).ok();
            let listener = UnixListener::bind(&path).expect("bound");
            let until = (number > 0).then_some(later + Duration::from_secs(number as u64));
            let file = FileId::of(&path).ok();
            RetiredPlace { listener, group: None, path, file, until }
        };
        let places: Vec<_> = (0..=RETIRED_MAX).map(place).collect();
        let (status, registry) = (Arc::new(Status::new(&Config::default(), "g1")), Arc::new(Registry::new()));
        let retired = Arc::new(RetiredSockets::start(places, None, &status, &registry).expect("started"));
        assert_eq!(retired.newest(), Some(folder.join("0")), "its time has not begun");
        retired.hold(Duration::ZERO);
        retired.open();
        let ending = Arc::clone(&retired);
        let thread = std::thread::spawn(move || ending.end_in_time());
        assert_eq!(retired.list(|_| ()).len(), RETIRED_MAX + 1, "a new process may take over all of them");
        assert!(folder.join("1").exists());
        // Somebody else is at this path by now.
        std::fs::remove_file(folder.join("2")).expect("it is there");
        let other = UnixListener::bind(folder.join("2")).expect("bound");
        retired.release();
        while retired.list(|_| ()).len() > RETIRED_MAX {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        retired.end_within(Duration::from_secs(60));
        thread.join().expect("no panic");
        assert_eq!(std::fs::read_dir(&folder).expect("there").count(), 1, "the other one's");
        drop(other);
        std::fs::remove_dir_all(&folder).expect("ours");
    }
}
