//! Two people who chat in lock-step while something else happens to their gateway.

use crate::raw::{Acks, Client, message};
use moorline::sys::clock;
use moorline_proto::message::client::Code;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Threads that run one after the other for one message: client, reactor, worker, backend, and back.
pub(crate) const CHAT_HOPS: u32 = 8;

/// Figures of both clients.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    /// Messages sent, acknowledged, and delivered in order.
    pub(crate) messages: u64,
    /// The longest time from a SEND to its SENDACK and PUSH.
    pub(crate) slowest: Duration,
}

/// Times from a SEND to its SENDACK and PUSH.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lap {
    pub(crate) count: usize,
    pub(crate) p99: Duration,
    /// Processor time of both clients.
    pub(crate) cpu: Duration,
}

/// Latencies of messages, and the processor time of the chat's thread when they began and at their end.
#[derive(Default)]
struct Times {
    took: Vec<Duration>,
    cpu: (Duration, Duration),
}

/// A chat in a thread of its own. It panics, and so does [`Chat::finish`], when anything is lost,
/// repeated, out of order, or when a connection ends.
pub(crate) struct Chat {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    /// Latencies of the messages since the last call.
    times: Arc<Mutex<Times>>,
    thread: JoinHandle<Report>,
}

impl Chat {
    /// Sends one message after the other, below the user's rate limit.
    pub(crate) fn start(gateway: SocketAddr) -> Self {
        Self::start_unhurried(gateway, Duration::from_millis(3))
    }

    /// With a pause after each message.
    pub(crate) fn start_unhurried(gateway: SocketAddr, pause: Duration) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (is_over, count) = (Arc::clone(&stop), Arc::clone(&done));
        let times = Arc::new(Mutex::new(Times::default()));
        let taken = Arc::clone(&times);
        let thread = std::thread::spawn(move || chat((gateway, pause), &is_over, &count, &taken));
        let chat = Self { stop, done, times, thread };
        chat.go_on(1);
        chat
    }

    /// Waits until this many more messages have arrived.
    pub(crate) fn go_on(&self, messages: u64) {
        let wanted = self.done.load(Ordering::SeqCst) + messages;
        crate::until("the chat goes on", || {
            assert!(!self.thread.is_finished(), "the chat beside broke off");
            (self.done.load(Ordering::SeqCst) >= wanted).then_some(())
        });
    }

    /// Latencies of the messages since the last call, or since the start.
    pub(crate) fn lap(&self) -> Lap {
        let mut kept = self.times.lock().expect("nobody panics with it");
        let (began, ended) = kept.cpu;
        kept.cpu.0 = ended;
        let mut times = std::mem::take(&mut kept.took);
        drop(kept);
        times.sort_unstable();
        let quantile =
            |percent: usize| times.get((times.len() * percent / 100).min(times.len().saturating_sub(1)));
        let p99 = quantile(99).copied().unwrap_or_default();
        Lap { count: times.len(), p99, cpu: ended.saturating_sub(began) }
    }

    pub(crate) fn finish(self) -> Report {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("the chat went well")
    }
}

fn chat(
    (gateway, pause): (SocketAddr, Duration),
    is_over: &AtomicBool,
    done: &AtomicU64,
    times: &Mutex<Times>,
) -> Report {
    let mut pair = [Client::login(gateway, "beside-ann", "d"), Client::login(gateway, "beside-ben", "d")];
    let names = ["beside-ben", "beside-ann"];
    let mut report = Report { messages: 0, slowest: Duration::ZERO };
    while !is_over.load(Ordering::SeqCst) {
        let (number, started) = (report.messages + 1, clock::now());
        let speaker = usize::from(number % 2 == 0);
        let payload = format!("message {number}");
        let send = message(u128::from(number), names[speaker], payload.as_bytes());
        let cid = pair[speaker].send(&send);
        let answer = pair[speaker].answer(cid);
        assert_eq!((answer.code(), answer.seq), (Code::Ok, number));
        let listener = &mut pair[1 - speaker];
        listener.until("PUSH", |heard| heard.pushes.last().is_some_and(|push| push.seq >= number));
        let heard = listener.heard.pushes.last().expect("just heard");
        assert_eq!((heard.seq, &heard.payload[..]), (number, payload.as_bytes()));
        report.messages = number;
        let took = clock::now().saturating_since(started);
        report.slowest = report.slowest.max(took);
        let mut times = times.lock().expect("nobody panics with it");
        times.took.push(took);
        times.cpu.1 = moorline_usage::thread_cpu_time();
        drop(times);
        done.store(number, Ordering::SeqCst);
        pair[speaker].is_quiet_for(pause);
    }
    let repeats: usize = pair.iter().map(|client| client.heard.repeats).sum();
    let [ann, ben] = pair.map(|client| client.heard.pushes.len() as u64);
    assert_eq!((ann + ben, repeats), (report.messages, 0), "each message came once");
    report
}

/// Clients in a thread of their own that answer PINGs and acknowledge nothing: what is for them waits in the gateway, for as
/// long as a busy machine takes.
pub(crate) struct Silent {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Client>>,
}

impl Silent {
    pub(crate) fn start(mut clients: Vec<Client>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&stop);
        clients.iter_mut().for_each(|client| client.acks = Acks::Withheld);
        let thread = std::thread::spawn(move || {
            while !is_over.load(Ordering::SeqCst) {
                for client in &mut clients {
                    client.listen(Duration::from_millis(1));
                    client.answer_pings();
                }
            }
            clients
        });
        Self { stop, thread }
    }

    /// Returns the clients, which acknowledge everything now.
    pub(crate) fn finish(self) -> Vec<Client> {
        self.stop.store(true, Ordering::SeqCst);
        let mut clients = self.thread.join().expect("they hear nothing wrong");
        clients.iter_mut().for_each(Client::acknowledge);
        clients
    }
}
