//! A TCP proxy with weather: what passes is cut into drips, held up, or ends in the middle of a frame, by a
//! FIN, a reset, or of one direction only. It never alters, drops or reorders a byte that it passes on.

use moorline_proto::random::Random;
use socket2::SockRef;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes taken at once.
const CHUNK: usize = 2_048;
/// A proxy that is to end is looked at so often.
const LOOK: Duration = Duration::from_millis(50);

/// Faults of a chunk: each happens once in this many chunks; 0: never.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// The chunk passes a few bytes at a time.
    pub(crate) drip: u64,
    /// The chunk waits for up to 20 ms.
    pub(crate) delay: u64,
    /// The chunk waits for up to 400 ms.
    pub(crate) stall: u64,
    /// The connection ends behind any byte of it.
    pub(crate) cut: u64,
    /// The proxy ends this direction, and the other one a moment later.
    pub(crate) half_close: u64,
}

impl Weather {
    /// Everything passes at once.
    pub(crate) const FINE: Self = Self { drip: 0, delay: 0, stall: 0, cut: 0, half_close: 0 };
}

/// Counts of faults so far.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) connections: AtomicU64,
    pub(crate) drips: AtomicU64,
    pub(crate) stalls: AtomicU64,
    pub(crate) resets: AtomicU64,
    pub(crate) fins: AtomicU64,
    pub(crate) half_closes: AtomicU64,
}

impl Seen {
    /// Connections that ended by the weather.
    pub(crate) fn cuts(&self) -> u64 {
        [&self.resets, &self.fins, &self.half_closes].map(|count| count.load(Ordering::SeqCst)).iter().sum()
    }
}

struct Sky {
    /// One end of each connection that was made.
    streams: Mutex<Vec<TcpStream>>,
    weather: Weather,
    is_calm: AtomicBool,
    is_over: AtomicBool,
    seen: Seen,
}

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    sky: Arc<Sky>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens, and passes every connection on to `to`. The seed decides what happens to which byte.
    pub(crate) fn start(to: SocketAddr, weather: Weather, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        SockRef::from(&listener).set_read_timeout(Some(LOOK)).expect("a timeout bounds accept");
        let address = listener.local_addr().expect("bound");
        let (is_calm, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
        let sky =
            Arc::new(Sky { streams: Mutex::default(), weather, is_calm, is_over, seen: Seen::default() });
        let above = Arc::clone(&sky);
        let thread = std::thread::spawn(move || serve(&listener, to, &above, seed));
        Self { address, sky, thread: Some(thread) }
    }

    /// From now on everything passes at once.
    pub(crate) fn calm_down(&self) {
        self.sky.is_calm.store(true, Ordering::SeqCst);
    }

    pub(crate) fn storm_again(&self) {
        self.sky.is_calm.store(false, Ordering::SeqCst);
    }

    /// Ends all connections that stand: every second one by a reset, in which bytes under way are lost.
    pub(crate) fn end_all(&self) {
        let streams = std::mem::take(&mut *self.sky.streams.lock().expect("nobody panics with it"));
        for (number, stream) in streams.into_iter().enumerate() {
            if number % 2 == 0 {
                SockRef::from(&stream).set_linger(Some(Duration::ZERO)).ok();
            }
            stream.shutdown(Shutdown::Both).ok(); // it may have ended by itself
        }
    }

    pub(crate) fn seen(&self) -> &Seen {
        &self.sky.seen
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.sky.is_over.store(true, Ordering::SeqCst);
        self.thread.take().expect("joined once").join().ok();
    }
}

fn serve(listener: &TcpListener, to: SocketAddr, sky: &Arc<Sky>, seed: u64) {
    let mut random = Random::new(seed);
    while !sky.is_over.load(Ordering::SeqCst) {
        // The timeout says that nobody came.
        let Ok((near, _)) = listener.accept() else { continue };
        // Whoever listens there may be gone: then so is this connection.
        let Ok(far) = TcpStream::connect(to) else { continue };
        sky.seen.connections.fetch_add(1, Ordering::SeqCst);
        for stream in [&near, &far] {
            stream.set_nodelay(true).expect("a socket");
            stream.set_read_timeout(Some(LOOK)).expect("a socket");
            stream.set_write_timeout(Some(Duration::from_secs(30))).expect("a socket");
        }
        let both = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
        sky.streams.lock().expect("nobody panics with it").push(both(&far));
        for (from, to) in [(both(&near), both(&far)), (far, near)] {
            let (sky, random) = (Arc::clone(sky), Random::new(random.next_u64()));
            std::thread::spawn(move || Pump { from, to, sky, random }.run());
        }
    }
}

/// Forwards one direction of a connection.
struct Pump {
    from: TcpStream,
    to: TcpStream,
    sky: Arc<Sky>,
    random: Random,
}

impl Pump {
    fn run(mut self) {
        let mut chunk = [0; CHUNK];
        loop {
            let length = match self.from.read(&mut chunk) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if is_timeout(&error) && !self.sky.is_over.load(Ordering::SeqCst) => continue,
                Err(_) => return self.reset(),
            };
            if !self.pass(&chunk[..length]) {
                return;
            }
        }
        self.to.shutdown(Shutdown::Write).ok(); // it may be gone
    }

    /// False: the connection has ended.
    fn pass(&mut self, bytes: &[u8]) -> bool {
        let Sky { weather, seen, .. } = &*Arc::clone(&self.sky);
        if self.sky.is_calm.load(Ordering::SeqCst) {
            return self.to.write_all(bytes).is_ok();
        }
        if self.random.one_in(weather.delay) {
            self.pause(20);
        }
        if self.random.one_in(weather.stall) {
            seen.stalls.fetch_add(1, Ordering::SeqCst);
            self.pause(400);
        }
        if self.random.one_in(weather.cut) {
            let cut = usize::try_from(self.random.below(bytes.len() as u64 + 1)).expect("small");
            self.to.write_all(&bytes[..cut]).ok();
            self.cut();
            return false;
        }
        if self.random.one_in(weather.half_close) {
            seen.half_closes.fetch_add(1, Ordering::SeqCst);
            self.to.shutdown(Shutdown::Write).ok();
            self.pause(100);
            self.from.shutdown(Shutdown::Both).ok();
            return false;
        }
        if !self.random.one_in(weather.drip) {
            return self.to.write_all(bytes).is_ok();
        }
        seen.drips.fetch_add(1, Ordering::SeqCst);
        let mut rest = bytes;
        while !rest.is_empty() {
            // A few bytes apart for the first hundred, then the rest: a drip is not a stall.
            let few = 1 + usize::try_from(self.random.below(7)).expect("small");
            let step = if bytes.len() - rest.len() < 100 { few.min(rest.len()) } else { rest.len() };
            if self.to.write_all(&rest[..step]).is_err() {
                return false;
            }
            rest = &rest[step..];
            std::thread::yield_now();
        }
        true
    }

    fn cut(&mut self) {
        if self.random.one_in(2) {
            self.sky.seen.fins.fetch_add(1, Ordering::SeqCst);
            self.from.shutdown(Shutdown::Both).ok();
            self.to.shutdown(Shutdown::Both).ok();
        } else {
            self.sky.seen.resets.fetch_add(1, Ordering::SeqCst);
            self.reset();
        }
    }

    /// Both ends are told by a reset, once the other direction has let go, too.
    fn reset(&self) {
        for stream in [&self.from, &self.to] {
            SockRef::from(stream).set_linger(Some(Duration::ZERO)).ok();
            stream.shutdown(Shutdown::Read).ok();
        }
    }

    fn pause(&mut self, most_ms: u64) {
        let until = moorline::sys::clock::now() + Duration::from_millis(self.random.below(most_ms));
        loop {
            let left = until.saturating_since(moorline::sys::clock::now());
            if left.is_zero() {
                return;
            }
            std::thread::park_timeout(left);
        }
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}
