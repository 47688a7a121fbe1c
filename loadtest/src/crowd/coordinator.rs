//! The process that people started: workers, and what they say.

use super::Word;
use crate::clock;
use crate::exit::Failure;
use crate::fleet::{Order, Stop};
use crate::job::{Job, Part};
use crate::monitor::Monitor;
use crate::phase::Timeline;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// Longest sleep of the coordinator: a signal is seen at most this late.
const GLANCE: Duration = Duration::from_millis(100);
/// Between the order to begin and the beginning: it reaches all before.
const HEAD_START: Duration = Duration::from_millis(200);
/// A worker is late when the whole timeline and this have passed.
const GRACE: Duration = Duration::from_secs(60);

/// Runs a job over as many processes as there are parts.
pub fn run(job: &Job, processes: u32, monitor: &mut Monitor, stop: &Stop) -> Result<Part, Failure> {
    let jobs = job.split(processes);
    let (news, inbox) = mpsc::channel();
    let mut workers = Vec::new();
    for job in &jobs {
        let worker = Worker::start(workers.len(), job, &news)?;
        workers.push(worker);
        if workers.len() == 1 {
            wait_for_first(&inbox)?;
        }
    }
    drop(news);
    let deadline = clock::now() + bound(&job.plan.timeline);
    let warmup = job.plan.timeline.warmup;
    let mut crowd = Crowd { workers, warmup, gathered: 0, parts: Vec::new(), stops: 0 };
    while crowd.parts.len() < crowd.workers.len() {
        match inbox.recv_timeout(GLANCE) {
            Ok((who, word)) => crowd.handle(who, word, monitor)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(died("a worker")),
        }
        let now = clock::now();
        if stop.take() || monitor.on_glance(now) == Some(Order::Stop) || now > deadline {
            crowd.stop()?;
        }
        if now > deadline + GRACE {
            return Err(died("a worker that did not end in time"));
        }
    }
    Ok(crowd.sum())
}

fn bound(timeline: &Timeline) -> Duration {
    timeline.ramp_max * 2 + timeline.warmup + timeline.measure + timeline.drain_max + GRACE
}

fn died(who: &str) -> Failure {
    Failure::Part { exit: crate::exit::Exit::Preflight, why: format!("lost {who}: out of memory, or killed") }
}

/// The first worker watches the server, and has seen it before anybody connects.
fn wait_for_first(inbox: &mpsc::Receiver<(usize, Word)>) -> Result<(), Failure> {
    match inbox.recv_timeout(GRACE) {
        Ok((_, Word::Began)) => Ok(()),
        Ok((_, Word::Failed { exit, why })) => Err(Failure::of_part(exit, why)),
        Ok(_) | Err(_) => Err(died("the first worker")),
    }
}

struct Crowd {
    workers: Vec<Worker>,
    warmup: Duration,
    gathered: usize,
    parts: Vec<Part>,
    stops: u32,
}

impl Crowd {
    fn handle(&mut self, who: usize, word: Word, monitor: &mut Monitor) -> Result<(), Failure> {
        match word {
            Word::Began => {}
            Word::Second(second) => monitor.add(who, *second),
            Word::Gathered => {
                self.gathered += 1;
                if self.gathered == self.workers.len() {
                    let at = clock::now() + HEAD_START;
                    self.tell(Order::Go(at.as_nanos()))?;
                    monitor.on_measure(at + self.warmup);
                }
            }
            Word::Done(part) => self.parts.push(*part),
            Word::Failed { exit, why } => return Err(Failure::of_part(exit, why)),
        }
        Ok(())
    }

    fn tell(&mut self, order: Order) -> Result<(), Failure> {
        self.workers.iter_mut().try_for_each(|worker| worker.tell(order))
    }

    /// Once: end with what there is. Again: at once. More do nothing.
    fn stop(&mut self) -> Result<(), Failure> {
        self.stops += 1;
        if self.stops <= 2 { self.tell(Order::Stop) } else { Ok(()) }
    }

    fn sum(&mut self) -> Part {
        let mut parts = std::mem::take(&mut self.parts);
        // The one that watched the server is the one the others are added to.
        parts.sort_by_key(|part| part.ran.marks.first().is_none_or(|mark| mark.usage.is_none()));
        let sum = parts.into_iter().reduce(|mut sum, part| {
            sum.merge(&part);
            sum
        });
        sum.unwrap_or_default()
    }
}

struct Worker {
    child: Child,
    orders: ChildStdin,
}

impl Worker {
    fn start(number: usize, job: &Job, news: &mpsc::Sender<(usize, Word)>) -> Result<Self, Failure> {
        let own = std::env::current_exe().map_err(Failure::io("find this program"))?;
        let mut child = Command::new(own)
            .arg("worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0) // a Ctrl-C reaches the coordinator, which then stops all in order
            .spawn()
            .map_err(Failure::io("start a worker"))?;
        let mut orders = child.stdin.take().expect("stdin is piped");
        let stdout = child.stdout.take().expect("stdout is piped");
        let news = news.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let word = serde_json::from_str(&line)
                    .unwrap_or_else(|error| Word::Failed { exit: 2, why: format!("a worker says: {error}") });
                if news.send((number, word)).is_err() {
                    return;
                }
            }
        });
        let mut line = serde_json::to_vec(job).expect("a job is plain data");
        line.push(b'\n');
        orders.write_all(&line).map_err(Failure::io("give a worker its job"))?;
        Ok(Self { child, orders })
    }

    fn tell(&mut self, order: Order) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(&order).expect("an order is plain data");
        line.push(b'\n');
        match self.orders.write_all(&line) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()), // it has ended
            other => other.map_err(Failure::io("give a worker an order")),
        }
    }
}

impl Drop for Worker {
    /// After a run it has ended; after a failure nobody wants the rest.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
