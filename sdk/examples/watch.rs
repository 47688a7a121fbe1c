//! People who write to each other over several gateways, and check each message: for drills of a cluster.
//!
//! ```text
//! cargo run -p moorline-sdk --example watch -- --dispatch http://127.0.0.1:7300 127.0.0.1:7001 127.0.0.1:7002
//! ```
//!
//! Each person has two devices at different gateways and writes to three others, at a steady rate whatever happens. A message
//! that was acknowledged must reach both devices of its receiver, once, at the seq of its receipt, and in the order in which it
//! was written. Standard output has one line of JSON at a time:
//!
//! - `{"state": ..}` twice a second: messages without an answer, and the age of the oldest one in milliseconds;
//! - `{"window": ..}` when all messages of a window have arrived: how long they waited. A line `mark NAME` on standard input
//!   begins the window NAME;
//! - `{"fault": ..}` for what must not be;
//! - `{"verdict": ..}` at the end, after the end of standard input. Exit code 1: something was lost, came twice or out of order.
//!
//! Example: node 2 is killed in the window `node`. `u3` writes message 17 to `u7`; the answer comes 5,400 ms later from
//! another node. So the window has `acked_max_ms` 5400, and `u7`'s devices must each get 17 behind 16.

use clap::Parser;
use moorline_proto::random::Random;
use moorline_sdk::Platform;
use moorline_sdk::client::{Client, Pending};
use moorline_sdk::core::{SendFailure, Target};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{BufRead as _, Write as _};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

/// Others to whom each person writes.
const OTHERS: usize = 3;
/// Devices of each person.
const DEVICES: usize = 2;
/// Messages of one person to another one without an answer; a further one is not written.
const OPEN_MAX: usize = 256;
/// Between two looks at all clients.
const LOOK: Duration = Duration::from_millis(2);
const STATE_EVERY: Duration = Duration::from_millis(500);
/// Longest wait for the first login of a device, and for what is on its way at the end.
const LOGIN_MAX: Duration = Duration::from_secs(60);
const REST_MAX: Duration = Duration::from_secs(120);
/// A message that waited longer counts as slow.
const SLOW: Duration = Duration::from_secs(1);
/// Faults that are told in words.
const FAULTS_TOLD: u64 = 50;

/// Write and check messages over several gateways.
#[derive(Parser)]
struct Args {
    /// Gateways on this machine: HOST:PORT
    #[arg(required = true)]
    gateways: Vec<String>,
    /// Dispatch server that names gateways when one dies: http://HOST:PORT
    #[arg(long)]
    dispatch: Option<String>,
    /// People
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(4..=200))]
    people: u16,
    /// Messages a second of all people together
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=2_000))]
    rate: u32,
    /// Seed of who writes when
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// One person's messages to another one.
struct Pair {
    from: usize,
    to: usize,
    /// Number of the last message that was written, from 1.
    written: u64,
    /// Messages without a receipt, oldest first.
    open: VecDeque<Open>,
    /// Messages that each device of the receiver has.
    got: [Got; DEVICES],
    /// Messages that are not with all, by number.
    under_way: BTreeMap<u64, UnderWay>,
}

struct Open {
    number: u64,
    pending: Pending,
}

#[derive(Default)]
struct Got {
    highest: u64,
    /// Numbers below the highest that did not come.
    missing: BTreeSet<u64>,
}

/// One message, from the moment at which it was due.
struct UnderWay {
    due: Instant,
    window: usize,
    /// Seq of the receipt, or of the first delivery; 0: neither has come.
    seq: u64,
    is_acked: bool,
    /// Given to the client again after it gave up: such a message may come behind later ones.
    is_again: bool,
    deliveries: usize,
}

/// Figures of one stretch of time.
#[derive(Default)]
struct Window {
    name: String,
    messages: u64,
    open: u64,
    slow: u64,
    acked_max: Duration,
    delivered_max: Duration,
    is_over: bool,
    is_told: bool,
}

struct Watch {
    clients: Vec<[Client; DEVICES]>,
    pairs: Vec<Pair>,
    /// Last seq of each conversation at each device.
    last_seq: BTreeMap<(usize, usize, String), u64>,
    windows: Vec<Window>,
    acked: u64,
    delivered: u64,
    again: u64,
    unsent: u64,
    faults: BTreeMap<&'static str, u64>,
}

fn main() {
    match run(&Args::parse()) {
        Ok(true) => {}
        Ok(false) => std::process::exit(1),
        Err(error) => {
            eprintln!("watch: {error}");
            std::process::exit(2);
        }
    }
}

#[allow(clippy::disallowed_methods)] // the one place of this program that reads the clock
fn now() -> Instant {
    Instant::now()
}

fn say(line: &Value) {
    let mut output = std::io::stdout().lock();
    // Nobody reads any more: the run goes on to its verdict, which is in the exit code.
    writeln!(output, "{line}").and_then(|()| output.flush()).ok();
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Names of windows, from lines `mark NAME`.
fn marks() -> Receiver<String> {
    let (sender, marks) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let Some(name) = line.strip_prefix("mark ") else { continue };
            if sender.send(name.to_owned()).is_err() {
                return;
            }
        }
    });
    marks
}

fn run(args: &Args) -> Result<bool, Box<dyn std::error::Error>> {
    let mut watch = Watch::start(args)?;
    let (marks, mut random) = (marks(), Random::new(args.seed));
    let interval = Duration::from_secs(1) / args.rate;
    let (mut due, mut state_due) = (now(), now());
    loop {
        match marks.try_recv() {
            Ok(name) => watch.begin(name),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => break,
        }
        while due <= now() {
            let pair = usize::try_from(random.below(watch.pairs.len() as u64))?;
            watch.write(pair, due);
            due += interval;
        }
        watch.look();
        if state_due <= now() {
            state_due += STATE_EVERY;
            watch.say_state();
        }
        std::thread::park_timeout(LOOK);
    }
    let end = now() + REST_MAX;
    while watch.open() > 0 && now() < end {
        watch.look();
        std::thread::park_timeout(LOOK);
    }
    Ok(watch.judge())
}

impl Watch {
    fn start(args: &Args) -> Result<Self, Box<dyn std::error::Error>> {
        let gateways: Vec<_> = args.gateways.iter().map(|gateway| format!("tcp://{gateway}")).collect();
        let people = usize::from(args.people);
        let mut clients = Vec::new();
        for person in 0..people {
            let device = |number: usize| {
                let own = &gateways[(person + number) % gateways.len()];
                Client::builder(own)
                    .alternates(gateways.iter().map(String::as_str))
                    .dispatch(args.dispatch.as_deref())
                    .user(&format!("u{person}"))
                    .device(&format!("d{number}"), Platform::Linux)
                    .build()
            };
            clients.push([device(0)?, device(1)?]);
        }
        // A message to a user whom the cell does not know is refused for good: each device has an answer of the backend first.
        for client in clients.iter().flatten() {
            client.conversations(LOGIN_MAX)?;
        }
        let pair = |from: usize, by: usize| Pair {
            from,
            to: (from + by) % people,
            written: 0,
            open: VecDeque::new(),
            got: <[Got; DEVICES]>::default(),
            under_way: BTreeMap::new(),
        };
        let pairs = (0..people).flat_map(|from| (1..=OTHERS).map(move |by| pair(from, by))).collect();
        let windows = vec![Window { name: "start".to_owned(), ..Window::default() }];
        Ok(Self {
            clients,
            pairs,
            last_seq: BTreeMap::new(),
            windows,
            acked: 0,
            delivered: 0,
            again: 0,
            unsent: 0,
            faults: BTreeMap::new(),
        })
    }

    fn begin(&mut self, name: String) {
        self.windows.last_mut().expect("the first").is_over = true;
        self.windows.push(Window { name, ..Window::default() });
    }

    /// Messages that are not with all yet.
    fn open(&self) -> usize {
        self.pairs.iter().map(|pair| pair.under_way.len()).sum()
    }

    fn write(&mut self, number: usize, due: Instant) {
        let pair = &mut self.pairs[number];
        if pair.open.len() >= OPEN_MAX {
            self.unsent += 1;
            return;
        }
        let (to, text) = (format!("u{}", pair.to), format!("{number} {}", pair.written + 1));
        let Ok(pending) = self.clients[pair.from][0].send(Target::user(&to), 1, text) else {
            self.unsent += 1;
            return;
        };
        pair.written += 1;
        pair.open.push_back(Open { number: pair.written, pending });
        let window = self.windows.len() - 1;
        let message = UnderWay { due, window, seq: 0, is_acked: false, is_again: false, deliveries: 0 };
        pair.under_way.insert(pair.written, message);
        let window = &mut self.windows[window];
        window.messages += 1;
        window.open += 1;
    }

    /// Takes receipts and messages, and tells windows that are complete.
    fn look(&mut self) {
        for pair in 0..self.pairs.len() {
            self.take_receipts(pair);
        }
        for person in 0..self.clients.len() {
            for device in 0..DEVICES {
                while let Ok(message) = self.clients[person][device].recv_timeout(Duration::ZERO) {
                    let text = String::from_utf8_lossy(&message.payload).into_owned();
                    self.take(person, device, (&message.conversation, message.seq), &text);
                }
            }
        }
        for window in
            self.windows.iter_mut().filter(|window| window.is_over && !window.is_told && window.open == 0)
        {
            window.is_told = true;
            say(&json!({"window": window.name, "messages": window.messages, "slow": window.slow,
                "acked_max_ms": millis(window.acked_max), "delivered_max_ms": millis(window.delivered_max)}));
        }
    }

    fn take_receipts(&mut self, number: usize) {
        while let Some(open) = self.pairs[number].open.front() {
            let Some(result) = open.pending.result() else { return };
            let open = self.pairs[number].open.pop_front().expect("looked at");
            match result {
                Ok(receipt) => {
                    self.on_receipt(number, open.number, receipt.seq);
                }
                Err(SendFailure::Refused { code, reason }) => {
                    self.fault(
                        "refused",
                        &format!("message {} of pair {number}: {code:?} {reason}", open.number),
                    );
                    self.forget(number, open.number);
                }
                Err(why) => self.write_again(number, &open, &why),
            }
        }
    }

    /// Gives a message to the client again that got no answer for too long: the same key stores it once.
    fn write_again(&mut self, number: usize, open: &Open, why: &SendFailure) {
        let pair = &mut self.pairs[number];
        let (to, text) = (format!("u{}", pair.to), format!("{number} {}", open.number));
        match self.clients[pair.from][0].send_with_key(open.pending.key(), Target::user(&to), 1, text) {
            Ok(pending) => {
                self.again += 1;
                pair.open.push_back(Open { number: open.number, pending });
                if let Some(message) = pair.under_way.get_mut(&open.number) {
                    message.is_again = true;
                }
            }
            Err(error) => {
                self.fault("refused", &format!("message {} of pair {number}: {why}; {error}", open.number));
            }
        }
    }

    fn take(&mut self, person: usize, device: usize, (conversation, seq): (&str, u64), text: &str) {
        let last = self.last_seq.entry((person, device, conversation.to_owned())).or_default();
        let (is_behind, before) = (seq <= *last, *last);
        *last = seq.max(*last);
        let mut numbers = text.split(' ').map(str::parse::<u64>);
        let (Some(Ok(pair)), Some(Ok(number))) = (numbers.next(), numbers.next()) else {
            return self.fault("foreign", &format!("{text:?} in {conversation} at u{person}/d{device}"));
        };
        let at =
            format!("message {number} of pair {pair}, seq {seq} in {conversation} at u{person}/d{device}");
        let pair = usize::try_from(pair).unwrap_or(usize::MAX);
        if self.pairs.get(pair).is_none_or(|pair| pair.written < number) {
            return self.fault("foreign", &at);
        }
        if self.pairs[pair].from == person {
            // Own messages of the other device.
            if is_behind {
                self.fault("out_of_order", &format!("{at}, behind {before}"));
            }
            return;
        }
        let Pair { got, under_way, .. } = &mut self.pairs[pair];
        let got = &mut got[device];
        let is_late = number <= got.highest;
        if is_late && !got.missing.remove(&number) {
            return self.fault("twice", &at);
        }
        if !is_late {
            got.missing.extend(got.highest + 1..number);
            got.highest = number;
        }
        let may_be_late = under_way.get(&number).is_some_and(|message| message.is_again);
        if is_behind || (is_late && !may_be_late) {
            self.fault("out_of_order", &format!("{at}, behind {before}"));
        }
        self.on_delivery(pair, number, seq);
    }

    fn on_receipt(&mut self, pair: usize, number: u64, seq: u64) {
        self.acked += 1;
        let Some(message) = self.pairs[pair].under_way.get_mut(&number) else { return };
        message.is_acked = true;
        let waited = now().saturating_duration_since(message.due);
        let window = &mut self.windows[message.window];
        window.acked_max = window.acked_max.max(waited);
        window.slow += u64::from(waited > SLOW);
        self.on_seq(pair, number, seq);
    }

    fn on_delivery(&mut self, pair: usize, number: u64, seq: u64) {
        self.delivered += 1;
        let Some(message) = self.pairs[pair].under_way.get_mut(&number) else { return };
        message.deliveries += 1;
        let window = &mut self.windows[message.window];
        window.delivered_max = window.delivered_max.max(now().saturating_duration_since(message.due));
        self.on_seq(pair, number, seq);
    }

    /// Compares a seq with the first one, and forgets a message that is with all.
    fn on_seq(&mut self, pair: usize, number: u64, seq: u64) {
        let Some(message) = self.pairs[pair].under_way.get_mut(&number) else { return };
        let first = if message.seq == 0 { seq } else { message.seq };
        message.seq = first;
        if message.is_acked && message.deliveries == DEVICES {
            self.forget(pair, number);
        }
        if first != seq {
            self.fault(
                "elsewhere",
                &format!("message {number} of pair {pair}: seq {seq}, and {first} before"),
            );
        }
    }

    fn forget(&mut self, pair: usize, number: u64) {
        if let Some(message) = self.pairs[pair].under_way.remove(&number) {
            self.windows[message.window].open -= 1;
        }
    }

    fn fault(&mut self, kind: &'static str, what: &str) {
        let count = self.faults.entry(kind).or_default();
        *count += 1;
        if *count <= FAULTS_TOLD {
            say(&json!({"fault": kind, "what": what}));
        }
    }

    fn say_state(&self) {
        let open = self.pairs.iter().flat_map(|pair| pair.under_way.values());
        let oldest =
            open.map(|message| now().saturating_duration_since(message.due)).max().unwrap_or_default();
        say(&json!({"state": self.open(), "oldest_ms": millis(oldest), "acked": self.acked}));
    }

    /// Tells the end of the run. True: nothing was wrong.
    fn judge(&mut self) -> bool {
        let mut missing = Vec::new();
        for (number, pair) in self.pairs.iter().enumerate() {
            for (message, state) in &pair.under_way {
                let kind = if state.is_acked { "lost" } else { "unanswered" };
                let deliveries = state.deliveries;
                let what =
                    format!("message {message} of pair {number}: with {deliveries} of {DEVICES} devices");
                missing.push((kind, what));
            }
        }
        for (kind, what) in missing {
            self.fault(kind, &what);
        }
        say(&json!({"verdict": if self.faults.is_empty() { "pass" } else { "fail" }, "faults": self.faults,
            "acked": self.acked, "delivered": self.delivered, "again": self.again, "unsent": self.unsent}));
        self.faults.is_empty()
    }
}
