//! A node whose way to its cell is cut: in one direction or in both, while gateways and other nodes reach it as before.
//!
//! Bytes that are cut off wait in the way and arrive later: statements of a node whose slots others own by then. The fence makes them
//! harmless.

use super::{Cluster, check, people, stored, write};
use crate::postgres::{self, Postgres};
use crate::process::StoreFolder;
use moorline::sys::clock;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Directions of a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    ToCell,
    FromCell,
}

/// A way to a PostgreSQL server that can be cut.
struct Way {
    folder: StoreFolder,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    cut: Vec<Direction>,
    is_over: bool,
    /// Pieces that had to wait.
    held: usize,
    streams: Vec<UnixStream>,
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    fn is_over(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_over
    }

    /// Waits while a direction is cut. False: it is over.
    fn wait(&self, direction: Direction) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.held += usize::from(state.cut.contains(&direction));
        let is_cut = |state: &mut State| state.cut.contains(&direction) && !state.is_over;
        let state = self.changed.wait_while(state, is_cut).unwrap_or_else(PoisonError::into_inner);
        !state.is_over
    }
}

impl Way {
    /// Opens a way to the server whose socket is in `to`.
    fn open(to: &str) -> Self {
        let folder = StoreFolder::new();
        std::fs::create_dir_all(folder.path()).expect("a temporary folder");
        let listener = UnixListener::bind(folder.path().join(SOCKET)).expect("a socket");
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        let (server, of_thread) = (PathBuf::from(to).join(SOCKET), Arc::clone(&shared));
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = UnixStream::connect(&server) else { continue };
                let both = |stream: &UnixStream| stream.try_clone().expect("a descriptor");
                of_thread.change(|state| state.streams.extend([both(&near), both(&far)]));
                if of_thread.is_over() {
                    return;
                }
                for (direction, from, to) in
                    [(Direction::ToCell, both(&near), both(&far)), (Direction::FromCell, far, near)]
                {
                    let shared = Arc::clone(&of_thread);
                    std::thread::spawn(move || carry(&shared, direction, from, to));
                }
            }
        });
        Self { folder, shared }
    }

    /// Host of the way, for a connection string.
    fn host(&self) -> String {
        self.folder.path().display().to_string()
    }

    /// Cuts these directions, and opens the others. Returns how many pieces had to wait before.
    fn cut(&self, directions: &[Direction]) -> usize {
        let mut held = 0;
        self.shared.change(|state| {
            state.cut = directions.to_vec();
            held = std::mem::take(&mut state.held);
        });
        held
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.shared.change(|state| {
            state.is_over = true;
            state.streams.drain(..).for_each(|stream| _ = stream.shutdown(Shutdown::Both));
        });
        UnixStream::connect(self.folder.path().join(SOCKET)).ok(); // wakes who accepts
    }
}

/// Carries one direction of a connection to its end, which arrives behind everything that was sent before.
fn carry(shared: &Shared, direction: Direction, mut from: UnixStream, mut to: UnixStream) {
    let mut chunk = [0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut chunk) {
        if !shared.wait(direction) || to.write_all(&chunk[..length]).is_err() {
            return;
        }
    }
    if shared.wait(direction) {
        to.shutdown(Shutdown::Write).ok(); // it may be gone
    }
}

/// Name of PostgreSQL's socket.
const SOCKET: &str = ".s.PGSQL.5432";

#[test]
fn a_node_that_is_cut_off_from_its_cell_loses_its_slots_and_writes_nothing_late() {
    let test = "a_node_that_is_cut_off_from_its_cell_loses_its_slots_and_writes_nothing_late";
    let Some(server) = Postgres::start(&[("fsync", "off"), ("max_connections", "160")]) else {
        return postgres::skip(test);
    };
    let address = server.database("cell0");
    let way = Way::open(&server.host());
    let cut_off = format!("store.cells=[\"host={} user=moorline dbname=cell0\"]", way.host());
    let trust = move |node| {
        let own = (node == 1).then(|| cut_off.clone());
        [Some("link.unproven=loopback".to_owned()), own].into_iter().flatten().collect()
    };
    let gateways = ["g0", "g1"].map(|id| vec![format!("gateway.id={id}")]);
    let cluster = Cluster::trusting(vec![server], &[address], &gateways, Box::new(trust));
    let mut people = people(&cluster);
    let (mut all, mut round) = (stored(write(&people, 0)), 1);
    for cut in [&[Direction::ToCell][..], &[Direction::FromCell], &[Direction::ToCell, Direction::FromCell]] {
        println!("cut: {cut:?}");
        let before = write(&people, round);
        way.cut(cut);
        let cut_at = clock::now();
        let under_way = write(&people, round + 1);
        all.extend(stored(before));
        all.extend(stored(under_way));
        println!("every message is stored after {:?}", clock::now().saturating_since(cut_at));
        cluster.until_owned(&[2, 3]);
        all.extend(stored(write(&people, round + 2)));
        check(&mut people, &all);
        // What the node sent before arrives now.
        assert!(way.cut(&[]) > 0, "something had to wait");
        cluster.until_owned(&[1, 2, 3]);
        all.extend(stored(write(&people, round + 3)));
        check(&mut people, &all);
        round += 4;
    }
}
