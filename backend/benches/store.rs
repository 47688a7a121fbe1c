//! Cost of a message in the store on disk, with stores of rising size.
//!
//! For each size the store is filled as fast as it takes messages. Right behind that, while its tables are still being
//! merged, messages come at a fixed rate for a while. Each line counts, per message: CPU time by thread, bytes that the
//! process wrote, commits, and the time from `submit` to the completion.
//!
//! ```text
//! cargo bench -p moorline-backend --bench store -- FOLDER 0,100000,1000000 2000 15
//!                                                  new    sizes            rate seconds
//! ```
//!
//! A message has a payload of 100 bytes, a key, and an entry in two inboxes, which a device of each user acknowledges.
#![allow(clippy::disallowed_methods)] // a bench times by the clock

use bytes::{Bytes, BytesMut};
use crossbeam_channel::{Receiver, bounded};
use moorline_backend::config::ImConfig;
use moorline_backend::im::MessageIds;
use moorline_backend::im::store::{
    Batch, Command, Completion, DeviceNumber, Disk, Draft, Durability, Login, Outcome, SEQ_BYTES_MAX, Store,
    Target, Ticket, UserId, Write,
};
use moorline_proto::ids::MessageKey;
use moorline_proto::message::client::Push;
use moorline_proto::random::Random;
use prost::Message as _;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, fs};

const USERS: u32 = 10_000;
/// A user writes to at most this many others.
const NEIGHBOURS: u64 = 20;
const PAYLOAD_BYTES: usize = 100;
/// Writes of one batch, and batches at once, as in the backend.
const BATCH_WRITES_MAX: usize = 256;
const BATCHES_AT_ONCE: usize = 2;
/// Longest time that a commit may take.
const COMMIT_WITHIN: Duration = Duration::from_secs(120);

/// Counts of this process.
#[derive(Clone, Default)]
struct Usage {
    /// Nanoseconds on a processor, by thread.
    threads: BTreeMap<(u32, String), u64>,
    /// Bytes that were given to the system.
    written: u64,
    commits: u64,
    stalls: u64,
}

fn usage(store: &Disk) -> Usage {
    let mut threads = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").expect("the threads").flatten() {
        let (Ok(name), Ok(times)) =
            (fs::read_to_string(task.path().join("comm")), fs::read_to_string(task.path().join("schedstat")))
        else {
            continue; // it has ended
        };
        let nanos = times.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0);
        let id = task.file_name().to_string_lossy().parse().unwrap_or(0);
        threads.insert((id, name.trim().to_owned()), nanos);
    }
    let io = fs::read_to_string("/proc/self/io").unwrap_or_default();
    let written = io.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse().ok()).unwrap_or(0);
    let counts = store.counts();
    Usage { threads, written, commits: counts.commits, stalls: counts.stalls }
}

/// Prints what was used since `before`, per message.
fn report(what: &str, messages: u64, before: &Usage, after: &Usage, times: &mut [Duration]) {
    let mut by_name = BTreeMap::<&str, u64>::new();
    for ((id, name), nanos) in &after.threads {
        let begun = before.threads.get(&(*id, name.clone())).copied().unwrap_or(0);
        *by_name.entry(name).or_default() += nanos - begun;
    }
    #[allow(clippy::cast_precision_loss)] // figures for people
    let per = |count: u64| count as f64 / messages as f64;
    let total = per(by_name.values().sum::<u64>()) / 1e3;
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    print!("{what:<26} cpu {total:>5.1} us =");
    for (name, nanos) in by_name {
        let each = per(nanos) / 1e3;
        if each >= 0.05 {
            print!(" {name} {each:.1}");
        }
    }
    println!(
        "; written {:.0} bytes; {:.1} messages a commit; p50 {:.2} p99 {:.2} max {:.2} ms; stalls {}",
        per(after.written - before.written),
        1.0 / per(after.commits - before.commits),
        at(50),
        at(99),
        at(100),
        after.stalls - before.stalls
    );
}

struct Load {
    store: Disk,
    durable: Receiver<()>,
    ids: MessageIds,
    random: Random,
    users: Vec<(UserId, DeviceNumber)>,
    /// Positions to acknowledge.
    acks: HashMap<UserId, u64>,
    /// Times at which the messages of each open batch were due, and their number.
    committing: VecDeque<Vec<Instant>>,
    ticket: Ticket,
    text: Bytes,
    times: Vec<Duration>,
    messages: u64,
}

impl Load {
    fn open(folder: &Path) -> Self {
        let (sender, durable) = bounded(1);
        // A full channel holds a message of the same meaning.
        let notify = move || _ = sender.try_send(());
        let config = ImConfig::default();
        let store = Disk::open(folder, &config, Durability::Disk, notify).expect("a folder for a store");
        let (ids, random) = (MessageIds::after(1, store.last_id()), Random::new(7));
        let text = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
        let mut load = Self {
            store,
            durable,
            ids,
            random,
            users: Vec::new(),
            acks: HashMap::new(),
            committing: VecDeque::new(),
            ticket: Ticket::FIRST,
            text,
            times: Vec::new(),
            messages: 0,
        };
        for number in 0..USERS {
            let (uid, device) = (format!("user-{number}"), "phone".to_owned());
            let login = Login { uid, device, platform: 1, now_ms: unix_ms(), issued_s: 0 };
            let ticket = load.next_ticket();
            load.store.submit(ticket, Command::Login(login)).expect("logins are taken");
            let Some((_, Completion::LoggedIn(Some(login)))) = load.store.poll() else { panic!("a login") };
            load.users.push((login.user, login.cursor.device));
        }
        load
    }

    fn next_ticket(&mut self) -> Ticket {
        let ticket = self.ticket;
        self.ticket = ticket.next();
        ticket
    }

    fn draft(&mut self, now_ms: u64) -> Write {
        let users = self.users.len() as u64;
        let from = self.random.below(users);
        let to = (from + 1 + self.random.below(NEIGHBOURS)) % users;
        let at = |index: u64| self.users[usize::try_from(index).expect("few users")].0;
        let (sender, peer) = (at(from), at(to));
        let id = self.ids.next(now_ms);
        let mut key = [0; 16];
        for half in key.chunks_mut(8) {
            half.copy_from_slice(&self.random.below(u64::MAX).to_be_bytes());
        }
        let push = Push {
            message_id: id,
            conversation: format!("c2c:user-{from}:user-{to}"),
            sender: format!("user-{from}"),
            sender_device: "web".to_owned(),
            r#type: 1,
            payload: self.text.clone(),
            time_ms: now_ms,
            ..Push::default()
        };
        let mut body = BytesMut::with_capacity(push.encoded_len() + SEQ_BYTES_MAX);
        push.encode_raw(&mut body);
        // Another device of the sender wrote it, so that both inboxes get an entry.
        let device = DeviceNumber(u32::MAX);
        let (target, digest) = (Target::User(peer), id);
        Write::Append(Draft {
            sender,
            device,
            target,
            key: MessageKey(key),
            id,
            time_ms: now_ms,
            digest,
            body,
            is_repeat: false,
        })
    }

    /// Gives the store a batch with a message for each of these times, and the acks that wait.
    fn submit(&mut self, due: Vec<Instant>) {
        let now_ms = unix_ms();
        let mut writes: Vec<_> = due.iter().map(|_| self.draft(now_ms)).collect();
        for (user, position) in self.acks.drain() {
            writes.push(Write::Acked { user, device: DeviceNumber(0), position, gone_ms: 0 });
        }
        let (ticket, last_id) = (self.next_ticket(), self.ids.last());
        let taken = self.store.submit(ticket, Command::Commit(Batch { now_ms, last_id, writes }));
        assert!(taken.is_ok(), "two batches are taken");
        self.messages += due.len() as u64;
        self.committing.push_back(due);
    }

    /// Takes the batches that are durable.
    fn settle(&mut self) {
        while let Some((_, completion)) = self.store.poll() {
            let Completion::Committed(committed) = completion else { continue };
            assert!(!committed.outcomes.iter().any(Outcome::is_refused), "no message is refused");
            for recipient in committed.recipients {
                self.acks.insert(recipient.user, recipient.position);
            }
            let now = Instant::now();
            let due = self.committing.pop_front().expect("one completion per batch");
            self.times.extend(due.into_iter().map(|due| now.saturating_duration_since(due)));
        }
    }

    fn wait(&mut self, within: Duration) {
        self.durable.recv_timeout(within).ok();
        self.settle();
    }

    fn drain(&mut self) {
        let deadline = Instant::now() + COMMIT_WITHIN;
        while !self.committing.is_empty() {
            assert!(Instant::now() < deadline, "a commit takes too long");
            self.wait(Duration::from_millis(100));
        }
    }

    /// Stores messages as fast as they are taken, up to this number in all.
    fn fill(&mut self, size: u64) {
        while self.messages < size {
            while self.committing.len() < BATCHES_AT_ONCE && self.messages < size {
                let count = (size - self.messages).min(BATCH_WRITES_MAX as u64);
                self.submit((0..count).map(|_| Instant::now()).collect());
            }
            self.wait(COMMIT_WITHIN);
        }
        self.drain();
    }

    /// Stores messages at a rate, whose times count from when they are due.
    fn pace(&mut self, rate: u32, time: Duration) {
        let (begun, mut sent) = (Instant::now(), 0);
        let due_at = |number: u32| begun + Duration::from_secs(1) * number / rate;
        let count = u32::try_from(time.as_secs()).expect("seconds") * rate;
        while sent < count {
            let mut due = Vec::new();
            while self.committing.len() < BATCHES_AT_ONCE
                && sent < count
                && due.len() < BATCH_WRITES_MAX
                && due_at(sent) <= Instant::now()
            {
                due.push(due_at(sent));
                sent += 1;
            }
            if due.is_empty() {
                let is_full = self.committing.len() >= BATCHES_AT_ONCE;
                let until = due_at(sent).saturating_duration_since(Instant::now());
                self.wait(if is_full { COMMIT_WITHIN } else { until });
            } else {
                self.submit(due);
            }
        }
        self.drain();
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(0)
}

fn main() {
    let given: Vec<_> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [folder, rest @ ..] = &given[..] else {
        println!(
            "usage: cargo bench -p moorline-backend --bench store -- NEW-FOLDER [SIZES [RATE [SECONDS]]]"
        );
        return;
    };
    let sizes = rest.first().map_or("0,100000,1000000", |sizes| sizes);
    let number = |at: usize, default: u32| rest.get(at).map_or(default, |it| it.parse().expect("a number"));
    let (rate, seconds) = (number(1, 2_000), number(2, 15));
    fs::create_dir_all(folder).expect("a folder");
    let mut load = Load::open(Path::new(folder));
    for size in sizes.split(',').map(|size| size.parse::<u64>().expect("a size")) {
        if size > load.messages {
            let (before, first) = (usage(&load.store), load.messages);
            load.times.clear();
            load.fill(size);
            let mut times = std::mem::take(&mut load.times);
            report(&format!("filling up to {size}"), size - first, &before, &usage(&load.store), &mut times);
        }
        let (before, first) = (usage(&load.store), load.messages);
        load.times.clear();
        load.pace(rate, Duration::from_secs(seconds.into()));
        let mut times = std::mem::take(&mut load.times);
        let count = load.messages - first;
        report(&format!("{rate}/s behind {size}"), count, &before, &usage(&load.store), &mut times);
    }
}
