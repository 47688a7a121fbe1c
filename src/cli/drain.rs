//! `moorline drain` and `moorline undrain`: sends clients elsewhere, and lets them come again.

use super::admin::{Running, Watch};
use super::find::AdminArgs;
use super::{Failure, note, say};
use crate::admin::{DrainArguments, Drainz, ORDER_HEADER};
use crate::config::is_host_port;
use crate::sys::clock;
use clap::Args;
use moorline_net::http::{Method, Question};
use std::io;
use std::time::Duration;

/// Between looks at how far it is.
const LOOK: Duration = Duration::from_millis(100);
/// Between lines that say so.
const SAY: Duration = Duration::from_secs(1);
/// For an order to be carried out.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// From being asked until a client that stayed is closed; default: drain.grace
    #[arg(long, value_name = "TIME", value_parser = duration)]
    grace: Option<Duration>,
    /// Clients asked per second, such as 500/s; default: all at once, and they spread themselves over the grace
    #[arg(long, value_name = "RATE", value_parser = rate)]
    rate: Option<u32>,
    /// Address for the clients to go to, one of gateway.alternates; default: gateway.alternates, else the address they came to
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
    redirect: Option<String>,
    /// Do not wait until they have left
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, Args)]
pub(super) struct UndrainArgs {
    #[command(flatten)]
    admin: AdminArgs,
}

fn duration(text: &str) -> Result<Duration, String> {
    let grace = crate::config::parse_duration(text).map_err(|error| error.to_string())?;
    let hour = Duration::from_secs(3600);
    if grace <= hour { Ok(grace) } else { Err("expected at most 1h".into()) }
}

fn rate(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    let expected = "expected clients per second, 1/s to 1000000/s";
    number.parse().ok().filter(|rate| (1..=1_000_000).contains(rate)).ok_or_else(|| expected.into())
}

fn host_port(text: &str) -> Result<String, String> {
    if is_host_port(text) { Ok(text.into()) } else { Err("expected host:port".into()) }
}

/// Asks the clients of a running gateway to leave, and waits until they have.
pub(super) fn drain(args: &DrainArgs) -> Result<(), Failure> {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let arguments =
        DrainArguments { grace_ms: args.grace.map(millis), rate: args.rate, redirect: args.redirect.clone() };
    let json = serde_json::to_string(&arguments).map_err(Failure::failed)?;
    let gateway = args.admin.find()?;
    let began = order(&gateway, "/v1/drain", arguments.old_headers(), json)?;
    if args.no_wait {
        return say(&format!("draining: {} connections are asked to leave\n", began.connections));
    }
    let start = clock::machine_now();
    let (mut said_at, mut before) = (start, began.connections);
    note(&format!("draining {before} connections"));
    loop {
        let now = look(&gateway)?;
        if now.epoch != began.epoch && began.epoch != 0 {
            return Err(Failure::Failed(format!(
                "the gateway that drained has ended, and another one was started at {gateway}"
            )));
        }
        if !now.is_draining {
            return Err(Failure::Failed("somebody ended the drain with undrain".into()));
        }
        let seconds = clock::machine_now().saturating_since(start).as_secs_f64();
        if now.connections == 0 {
            return say(&format!(
                "drained: {} connections left in {seconds:.1} s; undrain lets them come again, TERM ends the gateway\n",
                began.connections
            ));
        }
        if clock::machine_now().saturating_since(said_at) >= SAY {
            note(&format!(
                "{seconds:>6.1} s  {:>8} connected, {:>6} left",
                now.connections,
                before - now.connections.min(before)
            ));
            (said_at, before) = (clock::machine_now(), now.connections);
        }
        std::thread::park_timeout(LOOK);
    }
}

/// Has a gateway that was drained let clients in again.
pub(super) fn undrain(args: &UndrainArgs) -> Result<(), Failure> {
    let headers = vec![(ORDER_HEADER, "undrain".to_owned())];
    order(&args.admin.find()?, "/v1/undrain", headers, "{}".to_owned())?;
    say("clients may come again\n")
}

/// Gives an order and waits until it is carried out.
fn order(
    gateway: &Running,
    path: &str,
    headers: Vec<(&'static str, String)>,
    json: String,
) -> Result<Drainz, Failure> {
    let question = Question { method: Method::POST, path, headers, json: Some(json) };
    let number = gateway.order("order that at", &question)?;
    let until = clock::machine_now() + PATIENCE;
    loop {
        let shown = look(gateway)?;
        if shown.number >= number {
            return if shown.problem.is_empty() { Ok(shown) } else { Err(Failure::Failed(shown.problem)) };
        }
        if clock::machine_now() >= until {
            return Err(Failure::Failed(format!(
                "{gateway} took the order and has not carried it out in 10 s"
            )));
        }
        std::thread::park_timeout(LOOK);
    }
}

/// Reads `/v1/drainz`. A connection that ended with the process of before is tried anew.
fn look(gateway: &Running) -> Result<Drainz, Failure> {
    let (mut watch, until) = (Watch::begin(0), clock::machine_now() + PATIENCE);
    loop {
        match gateway.ask(&Question::get("/v1/drainz")) {
            Ok(body) => return serde_json::from_str(&body).map_err(Failure::failed),
            Err(error)
                if error.kind() == io::ErrorKind::PermissionDenied || clock::machine_now() >= until =>
            {
                return Err(gateway.cannot("read /v1/drainz of", &error));
            }
            Err(error) => watch.judge(gateway, Err(&error))?,
        }
        std::thread::park_timeout(LOOK);
    }
}
