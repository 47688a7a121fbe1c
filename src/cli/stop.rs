//! `moorline stop`: ends a running gateway as TERM does, and waits until it has ended.

use super::admin::Running;
use super::find::AdminArgs;
use super::{Failure, note, say};
use crate::admin::Varz;
use crate::sys::clock;
use crate::sys::process::ProcessFd;
use clap::Args;
use moorline_net::http::{Method, Question};
use moorline_proto::time::Instant;
use std::io;
use std::time::Duration;

/// Between looks at how far it is.
const LOOK: Duration = Duration::from_millis(100);
/// Between lines that say so.
const SAY: Duration = Duration::from_secs(1);
/// Time beyond the clients' in which the gateway must end: its threads, its links, its log.
const END_MAX: Duration = Duration::from_secs(15);
/// Longest `--timeout`.
const TIMEOUT_MAX: Duration = Duration::from_secs(2 * 3600);
/// Time without a listening socket after which a gateway whose process cannot be watched counts as ended.
const GONE_MAX: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct StopArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Until the gateway must have ended; default: drain.grace and 15 s
    #[arg(long, value_name = "TIME", value_parser = timeout)]
    timeout: Option<Duration>,
}

fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = crate::config::parse_duration(text).map_err(|error| error.to_string())?;
    if timeout <= TIMEOUT_MAX { Ok(timeout) } else { Err("expected at most 2h".into()) }
}

/// A gateway on its way to the end.
struct Ending {
    gateway: Running,
    /// The last answer.
    seen: Varz,
    /// Process of that answer; `None`: it is in another namespace, or this user may not look at it.
    process: Option<ProcessFd>,
    /// Since when nobody holds the socket; `None`: somebody does.
    gone_since: Option<Instant>,
}

/// Orders a gateway to end, and waits until it has.
pub(super) fn stop(args: &StopArgs) -> Result<(), Failure> {
    let gateway = args.admin.find()?;
    let cannot = |error: io::Error| gateway.cannot("get the status from", &error);
    let mut ending = Ending::watch(gateway.clone()).map_err(cannot)?;
    let (first, start) = (ending.seen.clone(), clock::machine_now());
    let json = Some("{}".to_owned());
    let question = Question { method: Method::POST, json, ..Question::get("/v1/stop") };
    let grace = gateway.order("order the end of the gateway at", &question)?;
    let timeout = args.timeout.unwrap_or_else(|| Duration::from_millis(grace).saturating_add(END_MAX));
    note(&format!("{}, pid {}: draining {} connections", first.gateway, first.pid, first.connections));
    let mut said_at = start;
    while !ending.look() {
        let (now, seen) = (clock::machine_now(), &ending.seen);
        let seconds = now.saturating_since(start).as_secs_f64();
        if now.saturating_since(start) >= timeout {
            return Err(Failure::Failed(format!(
                "{}, pid {}, has not ended within {seconds:.0} s: {} connections are left; it goes on ending, \
                 `kill -9 {}` ends it at once",
                seen.gateway, seen.pid, seen.connections, seen.pid
            )));
        }
        if now.saturating_since(said_at) >= SAY {
            note(&format!("{seconds:>6.1} s  {:>8} connected", seen.connections));
            said_at = now;
        }
        std::thread::park_timeout(LOOK);
    }
    let (seconds, seen) = (clock::machine_now().saturating_since(start).as_secs_f64(), &ending.seen);
    say(&format!("stopped: {}, pid {}, ended after {seconds:.1} s\n", seen.gateway, seen.pid))
}

impl Ending {
    fn watch(gateway: Running) -> io::Result<Self> {
        let (process, seen) = process_of(&gateway, None)?;
        Ok(Self { gateway, seen, process, gone_since: None })
    }

    /// Looks at the gateway. True: it has ended, and no process of its series serves.
    fn look(&mut self) -> bool {
        match process_of(&self.gateway, Some(self.seen.pid)) {
            Ok((process, seen)) => {
                // Another process of the series may serve: an order beside a hot restart.
                if seen.pid != self.seen.pid {
                    self.process = process;
                }
                (self.seen, self.gone_since) = (seen, None);
                false
            }
            Err(error)
                if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) =>
            {
                let since = *self.gone_since.get_or_insert_with(clock::machine_now);
                let is_gone = clock::machine_now().saturating_since(since) >= GONE_MAX;
                self.process.as_ref().map_or(is_gone, ProcessFd::has_ended)
            }
            // A connection that ended with the process.
            Err(_) => false,
        }
    }
}

/// Asks who serves, and opens the process unless it is the known one.
fn process_of(gateway: &Running, known: Option<u32>) -> io::Result<(Option<ProcessFd>, Varz)> {
    let body = gateway.ask(&Question::get("/v1/varz"))?;
    let seen: Varz = serde_json::from_str(&body).map_err(io::Error::other)?;
    let process = if known == Some(seen.pid) { None } else { ProcessFd::open(seen.pid).ok() };
    Ok((process, seen))
}
