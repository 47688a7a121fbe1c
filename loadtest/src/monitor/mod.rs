//! Progress of a run: one row a second, on the terminal and for the files.
//!
//! Fed by the loop of this process, or by the coordinator of several. It may end a run early.

mod live;

pub use live::Live;

use crate::clock;
use crate::cores::Cores;
use crate::exit::Failure;
use crate::expect::{Expectation, Figures};
use crate::fleet::{Counts, Order, Overseer, Second};
use crate::phase::Phase;
use crate::process::Watch;
use crate::record::{Latencies, LatencySummary, Metric};
use moorline_proto::time::Instant;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

/// Interval of the rows.
const SECOND: Duration = Duration::from_secs(1);

/// A second of a run, over all its processes.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Seconds since the run began.
    pub at_s: f64,
    /// Phase of the process that is furthest behind.
    pub phase: &'static str,
    /// Clients logged in.
    pub active: u32,
    /// Fewest clients logged in at any moment of this second.
    pub lowest: u32,
    /// Clients that come back or log in.
    pub under_way: u32,
    /// Connections lost so far.
    pub dropped: u32,
    /// Operations done per second.
    pub done_per_s: f64,
    /// Operations done so far.
    pub done: u64,
    /// The scenario's main latency in this second, in nanoseconds.
    pub latency: LatencySummary,
    /// The server's resident bytes.
    pub server_rss: Option<u64>,
    /// Cores that the server used.
    pub server_cores: Option<f64>,
    /// Cores that the generator used.
    pub own_cores: f64,
}

/// Something that was done to the server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Marker {
    /// Seconds since the run began.
    pub at_s: f64,
    /// The event, in words.
    pub label: String,
}

/// Markers from any thread.
#[derive(Clone, Debug)]
pub struct Markers {
    began: Instant,
    list: Arc<Mutex<Vec<Marker>>>,
}

impl Markers {
    /// Something happened now.
    pub fn add(&self, label: impl Into<String>) {
        let at_s = clock::now().saturating_since(self.began).as_secs_f64();
        self.put(Marker { at_s, label: label.into() });
    }

    fn put(&self, marker: Marker) {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).push(marker);
    }

    /// All so far.
    pub fn list(&self) -> Vec<Marker> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Watches a run.
#[derive(Debug)]
pub struct Monitor {
    began: Instant,
    next: Instant,
    parts: Vec<Second>,
    second: Latencies,
    watch: Watch,
    before: (u64, Option<Duration>, Duration),
    live: Live,
    main: Metric,
    abort: Vec<Expectation>,
    /// Reason why the run was ended early.
    pub aborted: Option<String>,
    /// Rows of the run.
    pub rows: Vec<Row>,
    /// Restarts of the server.
    pub markers: Markers,
    /// The main latency of each second, as lines of an HDR log.
    pub hdr_lines: Vec<u8>,
    /// Receiver of the start of measuring.
    measure_news: Option<mpsc::Sender<Instant>>,
    /// Events to mark, by their time since the beginning of measuring.
    planned: Vec<(Duration, String)>,
    /// The cores of the machine at the last row.
    cores: Option<Cores>,
    beside: Beside,
}

/// Use of the machine's cores in the rows of measuring, in seconds of a core.
#[derive(Clone, Copy, Debug, Default)]
struct Beside {
    all: f64,
    used: f64,
    steal: f64,
    /// Used by the generator and by the watched processes.
    known: f64,
}

/// Use of the machine's cores while a run measured. Parts of the time of all cores, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Part that all programs used together.
    pub busy: f64,
    /// Part that others used than the generator and the processes of `--pid`.
    pub others: f64,
    /// Part that another machine had while a core was wanted here.
    pub steal: f64,
}

impl Monitor {
    /// The run is about to begin. `main` is the latency of the rows.
    pub fn new(live: Live, watch: Watch, main: Metric, abort: Vec<Expectation>) -> Self {
        let began = clock::now();
        Self {
            began,
            next: began + SECOND,
            parts: Vec::new(),
            second: Latencies::default(),
            watch,
            before: (0, None, Duration::ZERO),
            live,
            main,
            abort,
            aborted: None,
            rows: Vec::new(),
            markers: Markers { began, list: Arc::default() },
            hdr_lines: Vec::new(),
            measure_news: None,
            planned: Vec::new(),
            cores: None,
            beside: Beside::default(),
        }
    }

    /// Marks an event this long after the beginning of measuring.
    pub fn plan_marker(&mut self, after: Duration, label: String) {
        self.planned.push((after, label));
    }

    /// Use of the machine's cores while the run measured; `None`: it did not measure for a second.
    pub fn machine(&self) -> Option<Machine> {
        let Beside { all, used, steal, known } = self.beside;
        let part = |seconds: f64| (seconds / all).clamp(0.0, 1.0);
        (all > 0.0).then(|| Machine {
            busy: part(used),
            others: part((used - known).max(0.0)),
            steal: part(steal),
        })
    }

    /// Tells when measuring begins, for whoever does something to the server then.
    pub fn tell_measure(&mut self) -> mpsc::Receiver<Instant> {
        let (news, inbox) = mpsc::channel();
        self.measure_news = Some(news);
        inbox
    }

    /// News of one process.
    pub fn add(&mut self, part: usize, second: Second) {
        if self.parts.len() <= part {
            self.parts.resize(part + 1, Second::default());
        }
        self.second.merge(&second.latencies);
        self.parts[part] = second;
    }

    /// Measuring will not begin any more: nobody waits for it.
    pub fn forget_measure(&mut self) {
        self.measure_news = None;
    }

    /// Measuring begins at this moment.
    pub fn on_measure(&mut self, at: Instant) {
        self.cores = Cores::now();
        for (after, label) in std::mem::take(&mut self.planned) {
            let at_s = (at + after).saturating_since(self.began).as_secs_f64();
            self.markers.put(Marker { at_s, label });
        }
        if let Some(news) = self.measure_news.take() {
            let _ = news.send(at); // nobody may be interested any more
        }
    }

    /// Makes a row when a second has passed, and says whether the run must end.
    pub fn on_glance(&mut self, now: Instant) -> Option<Order> {
        self.watch.look();
        if now < self.next {
            return None;
        }
        // On the second, also after a late one; after a long stall from here on.
        self.next = if now < self.next + SECOND { self.next + SECOND } else { now + SECOND };
        let row = self.take_row(now);
        self.live.show(&row);
        let is_measuring = row.phase == Phase::Measure.label();
        let met = self.abort.iter().find(|it| is_measuring && it.is_met(&RowFigures(&row, self.main)));
        let must_end = self.aborted.is_none().then_some(met).flatten().map(ToString::to_string);
        self.rows.push(row);
        if must_end.is_some() {
            self.aborted = must_end;
            return Some(Order::Stop);
        }
        None
    }

    fn take_row(&mut self, now: Instant) -> Row {
        let mut counts = Counts::default();
        self.parts.iter().for_each(|part| counts.merge(&part.counts));
        let done: u64 = self.parts.iter().map(|part| part.done).sum();
        let own_cpu: Duration = self.parts.iter().map(|part| part.own_cpu).sum();
        let usage = self.watch.quick_usage();
        let at = now.saturating_since(self.began);
        let seconds = (at.as_secs_f64() - self.rows.last().map_or(0.0, |row| row.at_s)).max(1e-3);
        let (done_before, server_before, own_before) = self.before;
        let phase = self.parts.iter().filter_map(|part| part.phase).min().unwrap_or(Phase::Ramp);
        let server_cpu = usage.map(|usage| usage.cpu);
        let row = Row {
            at_s: at.as_secs_f64(),
            phase: phase.label(),
            active: counts.active,
            lowest: counts.lowest,
            under_way: counts.under_way + counts.away,
            dropped: counts.dropped,
            done_per_s: done.saturating_sub(done_before) as f64 / seconds,
            done,
            latency: self.second.summary(),
            server_rss: usage.map(|usage| usage.rss_bytes),
            server_cores: server_cpu
                .zip(server_before)
                .map(|(now, before)| now.saturating_sub(before).as_secs_f64() / seconds),
            own_cores: own_cpu.saturating_sub(own_before).as_secs_f64() / seconds,
        };
        self.look_beside(phase, &row, seconds);
        self.before = (done, server_cpu, own_cpu);
        if !self.second.is_empty() {
            let length = Duration::from_secs_f64(seconds);
            self.second.write_hdr_line(
                self.main.name(),
                at.saturating_sub(length),
                length,
                &mut self.hdr_lines,
            );
        }
        self.second.clear();
        row
    }

    /// Adds what the cores did in the second of a row, while the run measures.
    fn look_beside(&mut self, phase: Phase, row: &Row, seconds: f64) {
        let now = Cores::now();
        let shares = now.zip(self.cores).and_then(|(now, before)| now.since(&before));
        if let Some(shares) = shares.filter(|_| phase == Phase::Measure) {
            self.beside.all += shares.seconds;
            self.beside.used += shares.busy * shares.seconds;
            self.beside.steal += shares.steal * shares.seconds;
            self.beside.known += (row.own_cores + row.server_cores.unwrap_or(0.0)) * seconds;
        }
        self.cores = now;
    }

    /// The latency of the rows.
    pub const fn main(&self) -> Metric {
        self.main
    }

    /// Time since the run began.
    pub fn age(&self) -> Duration {
        clock::now().saturating_since(self.began)
    }

    fn add_rest(&mut self, rest: &Latencies) {
        if !rest.is_empty() {
            let age = self.age();
            rest.write_hdr_line(self.main.name(), age, SECOND, &mut self.hdr_lines);
        }
    }

    /// The run is over: the live view goes.
    pub fn finish(&mut self, rest: &Latencies) {
        self.second.merge(rest);
        let rest = std::mem::take(&mut self.second);
        self.add_rest(&rest);
        self.live.finish();
    }
}

impl Overseer for Monitor {
    fn on_second(&mut self, second: Second) -> Result<Option<Order>, Failure> {
        self.add(0, second);
        Ok(self.on_glance(clock::now()))
    }

    fn on_look(&mut self) {
        self.watch.look();
    }

    fn on_phase(&mut self, phase: Phase, now: Instant) {
        if phase == Phase::Measure {
            self.on_measure(now);
        }
    }
}

/// Figures that `--abort` can name: the main latency and a few counts, second by second.
struct RowFigures<'a>(&'a Row, Metric);

impl Figures for RowFigures<'_> {
    fn figure(&self, name: &str) -> Option<f64> {
        let Self(row, main) = self;
        match name {
            "rate" => Some(row.done_per_s),
            "dropped" => Some(f64::from(row.dropped)),
            "held" => Some(f64::from(row.active)),
            "rss" => row.server_rss.map(|bytes| bytes as f64),
            _ => {
                let statistic = name.strip_prefix(main.name())?.strip_prefix('.')?;
                row.latency.statistic(statistic).filter(|_| row.latency.count > 0)
            }
        }
    }
}

/// True if `--abort` can name this figure in a run with this main latency.
pub fn can_abort_on(name: &str, main: Metric) -> bool {
    let is_main = name.strip_prefix(main.name()).is_some_and(|rest| rest.starts_with('.'));
    is_main || ["rate", "dropped", "held", "rss"].contains(&name)
}
