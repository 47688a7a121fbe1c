//! Three ways for two reactors to share the accepting, on loopback.
//!
//! (a) one listening socket, registered edge-triggered with both epolls; (b) a listening socket each,
//! by SO_REUSEPORT; (c) one acceptor thread that hands accepted sockets to the reactors in turn. An
//! accepted connection is registered with its reactor's epoll, as in the gateway. Rounds are
//! interleaved; the table shows medians and ranges.
#![allow(clippy::disallowed_methods)] // a bench times by the clock

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use nix::time::{ClockId, clock_gettime};
use socket2::{Domain, Socket, Type};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const CONNECTIONS: u64 = 5_000;
const REACTORS: usize = 2;
const ROUNDS: usize = 7;
const BACKLOG: i32 = 4_096;
/// Connects that nobody has accepted yet, at most: below the backlog, or SYNs would be dropped.
const AHEAD_MAX: u32 = 1_024;
/// Accepts of one turn, as in the gateway: other sockets must get their turn too.
const ACCEPT_BUDGET: usize = 64;
const LISTENER: Token = Token(usize::MAX - 1);
const WAKER: Token = Token(usize::MAX - 2);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Shared,
    ReusePort,
    Acceptor,
}

impl Way {
    const ALL: [Self; 3] = [Self::Shared, Self::ReusePort, Self::Acceptor];

    const fn label(self) -> &'static str {
        match self {
            Self::Shared => "(a) one socket in both epolls, edge-triggered",
            Self::ReusePort => "(b) SO_REUSEPORT, a socket each",
            Self::Acceptor => "(c) one acceptor hands over",
        }
    }
}

/// Result of one thread.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    cpu: Duration,
    accepted: u64,
    /// Turns that found nothing to accept.
    futile: u64,
}

struct Round {
    per_second: f64,
    cpu: f64,
    /// The smaller reactor's part of the connections; 0.5 is even.
    smaller_part: f64,
    futile: f64,
}

struct Shared {
    accepted: AtomicU64,
    is_over: AtomicBool,
}

fn main() {
    println!(
        "{CONNECTIONS} connections, {REACTORS} reactors, {ROUNDS} interleaved rounds; median (lowest-highest)"
    );
    println!(
        "{:<47} {:<22} {:<24} {:<20} futile wake-ups",
        "", "connections/s", "cpu s per 1M accepts", "smaller part"
    );
    let mut rounds: [Vec<Round>; 3] = Default::default();
    for number in 0..ROUNDS * 3 {
        // Latin square: each way is first, second and third equally often.
        let at = (number / 3 + number) % 3;
        rounds[at].push(measure(Way::ALL[at]));
    }
    for (way, rounds) in Way::ALL.iter().zip(&rounds) {
        let spread = |digits: usize, of: fn(&Round) -> f64| {
            let mut values: Vec<f64> = rounds.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            let (median, low, high) = (values[values.len() / 2], values[0], values[values.len() - 1]);
            format!("{median:.digits$} ({low:.digits$}-{high:.digits$})")
        };
        println!(
            "{:<47} {:<22} {:<24} {:<20} {}",
            way.label(),
            spread(0, |round| round.per_second),
            spread(1, |round| round.cpu),
            spread(2, |round| round.smaller_part),
            spread(0, |round| round.futile)
        );
    }
}

fn measure(way: Way) -> Round {
    let shared = Arc::new(Shared { accepted: AtomicU64::new(0), is_over: AtomicBool::new(false) });
    let first = listen("127.0.0.1:0".parse().expect("an address"), way);
    let address = first.local_addr().expect("bound");
    let mut wakers = Vec::new();
    let mut threads = Vec::new();
    let mut channels = Vec::new();
    let mut listeners = listeners(way, first, address);
    for _ in 0..REACTORS {
        let poll = Poll::new().expect("epoll");
        let waker = Arc::new(Waker::new(poll.registry(), WAKER).expect("waker"));
        wakers.push(Arc::clone(&waker));
        let (sender, handed) = mpsc::sync_channel(AHEAD_MAX as usize);
        channels.push((sender, waker));
        let listener = if way == Way::Acceptor { None } else { listeners.pop() };
        let shared = Arc::clone(&shared);
        threads.push(thread::spawn(move || react(poll, listener, &handed, &shared)));
    }
    if way == Way::Acceptor {
        let (listener, shared) = (listeners.pop().expect("one is left"), Arc::clone(&shared));
        let poll = Poll::new().expect("epoll");
        wakers.push(Arc::new(Waker::new(poll.registry(), WAKER).expect("waker")));
        threads.push(thread::spawn(move || hand_over(poll, listener, &channels, &shared)));
    }
    let begun = Instant::now();
    let clients = connect_all(address, &shared);
    while shared.accepted.load(Ordering::Acquire) < CONNECTIONS {
        thread::yield_now();
    }
    let took = begun.elapsed().as_secs_f64();
    shared.is_over.store(true, Ordering::Release);
    wakers.iter().for_each(|waker| waker.wake().expect("wake"));
    let work: Vec<Work> = threads.into_iter().map(|thread| thread.join().expect("no panic")).collect();
    drop(clients);
    summarise(&work, took)
}

fn summarise(work: &[Work], took: f64) -> Round {
    let reactors = &work[..REACTORS];
    let cpu: f64 = work.iter().map(|work| work.cpu.as_secs_f64()).sum();
    let smaller = reactors.iter().map(|work| work.accepted).min().unwrap_or(0);
    let futile: u64 = work.iter().map(|work| work.futile).sum();
    let count = |number: u64| u32::try_from(number).map_or(f64::NAN, f64::from);
    Round {
        per_second: count(CONNECTIONS) / took,
        cpu: cpu * 1e6 / count(CONNECTIONS),
        smaller_part: count(smaller) / count(CONNECTIONS),
        futile: count(futile),
    }
}

fn listeners(way: Way, first: TcpListener, address: SocketAddr) -> Vec<TcpListener> {
    let second = match way {
        Way::Shared => {
            use std::os::fd::AsFd;
            let same = first.as_fd().try_clone_to_owned().expect("dup");
            Some(TcpListener::from_std(same.into()))
        }
        Way::ReusePort => Some(listen(address, way)),
        Way::Acceptor => None,
    };
    std::iter::once(first).chain(second).collect()
}

fn listen(address: SocketAddr, way: Way) -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), None).expect("socket");
    socket.set_reuse_port(way == Way::ReusePort).expect("reuse port");
    socket.bind(&address.into()).expect("bind");
    socket.listen(BACKLOG).expect("listen");
    TcpListener::from_std(socket.into())
}

/// Connects, never further ahead of the accepting than the backlog allows.
fn connect_all(address: SocketAddr, shared: &Shared) -> Vec<std::net::TcpStream> {
    let connect = |number: u64| {
        while number >= shared.accepted.load(Ordering::Acquire) + u64::from(AHEAD_MAX) {
            thread::yield_now();
        }
        std::net::TcpStream::connect(address).expect("connect")
    };
    (0..CONNECTIONS).map(connect).collect()
}

fn react(
    mut poll: Poll,
    listener: Option<TcpListener>,
    handed: &mpsc::Receiver<TcpStream>,
    shared: &Shared,
) -> Work {
    let mut work = Work::default();
    let mut listener = listener;
    if let Some(listener) = &mut listener {
        poll.registry().register(listener, LISTENER, Interest::READABLE).expect("register");
    }
    let (mut streams, mut events, mut is_more) = (Vec::new(), Events::with_capacity(1_024), false);
    while !shared.is_over.load(Ordering::Acquire) {
        poll.poll(&mut events, is_more.then_some(Duration::ZERO)).expect("poll");
        let is_ready = is_more || events.iter().any(|event| event.token() == LISTENER);
        let before = streams.len();
        if let Some(listener) = listener.as_ref().filter(|_| is_ready) {
            is_more = accept_some(listener, |stream| streams.push(stream));
            work.futile += u64::from(streams.len() == before);
        }
        streams.extend(handed.try_iter());
        for (at, stream) in streams.iter_mut().enumerate().skip(before) {
            stream.set_nodelay(true).expect("nodelay");
            poll.registry().register(stream, Token(at), Interest::READABLE).expect("register");
        }
        let new = (streams.len() - before) as u64;
        work.accepted += new;
        shared.accepted.fetch_add(new, Ordering::AcqRel);
    }
    work.cpu = thread_cpu();
    work
}

/// Accepts up to the budget; true if there may be more.
fn accept_some(listener: &TcpListener, mut each: impl FnMut(TcpStream)) -> bool {
    for _ in 0..ACCEPT_BUDGET {
        match listener.accept() {
            Ok((stream, _)) => each(stream),
            Err(_) => return false,
        }
    }
    true
}

fn hand_over(
    mut poll: Poll,
    mut listener: TcpListener,
    reactors: &[(mpsc::SyncSender<TcpStream>, Arc<Waker>)],
    shared: &Shared,
) -> Work {
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE).expect("register");
    let (mut work, mut events, mut is_more, mut next) =
        (Work::default(), Events::with_capacity(8), false, 0_usize);
    while !shared.is_over.load(Ordering::Acquire) {
        poll.poll(&mut events, is_more.then_some(Duration::ZERO)).expect("poll");
        let before = next;
        is_more = accept_some(&listener, |stream| {
            reactors[next % REACTORS].0.send(stream).expect("the reactor lives");
            next += 1;
        });
        work.futile += u64::from(next == before);
        // One wake per reactor and turn, not per connection.
        for (at, (_, waker)) in reactors.iter().enumerate() {
            if (before..next).any(|number| number % REACTORS == at) {
                waker.wake().expect("wake");
            }
        }
    }
    work.cpu = thread_cpu();
    work
}

fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}
