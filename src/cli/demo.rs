//! `moorline demo`: plays and checks the whole system.

use super::{Failure, say};
use crate::config::parse_duration;
use crate::sys::executable::Executable;
use clap::Args;
use moorline_demo::{DemoError, Judgement, Logs, Options};
use serde::Serialize;
use std::fmt::Display;
use std::time::Duration;

/// Longest chat: the checker keeps every message.
const CHAT_MAX: Duration = Duration::from_secs(600);

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 PASS, 1 it could not be played, 2 wrong usage, 4 FAIL: a fault is proven, 5 BUSY: this \
                        machine was too busy to judge, and nothing is proven to be wrong."
)]
pub(super) struct DemoArgs {
    /// Play a cluster: three nodes over PostgreSQL with two standbys, and three gateways, of which a gateway, a node and the
    /// primary are killed; needs the package `postgresql`, and does not run it as root
    #[arg(long)]
    cluster: bool,
    /// Client connections, 2 or more; without it a size for this machine
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    connections: Option<u32>,
    /// Length of the chat, up to 600s
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = chat)]
    duration: Duration,
    /// Messages per second of all clients together; without it a short run finds a rate for this machine
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: Option<u32>,
    /// Play a run again: who talks with whom, when, and what is said
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Keep the logs of gateway and backend also after a PASS
    #[arg(long)]
    keep: bool,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DemoArgs) -> Result<(), Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::Failed(format!("cannot find the own executable: {error}")))?;
    // Where the group may write, as in a source tree under umask 002, a gateway refuses to run its own program anew.
    let is_copied = Executable::open(&program).is_err();
    let options = Options {
        program,
        is_copied,
        connections: args.connections,
        chat: args.duration,
        rate: args.rate,
        seed: args.seed,
        logs: if args.keep { Logs::Always } else { Logs::OfFailures },
    };
    if args.cluster {
        let report = moorline_demo::run_cluster(&options).map_err(failure)?;
        tell(args, &report, report.judgement())
    } else {
        let report = moorline_demo::run(&options).map_err(failure)?;
        tell(args, &report, report.judgement())
    }
}

fn failure(error: DemoError) -> Failure {
    if error.is_too_busy() { Failure::Busy(error.to_string()) } else { Failure::failed(error) }
}

/// Prints the report, and ends by the verdict.
fn tell(args: &DemoArgs, report: &(impl Serialize + Display), judgement: Judgement) -> Result<(), Failure> {
    if args.json {
        let json = serde_json::to_string_pretty(report).map_err(Failure::failed)?;
        say(&format!("{json}\n"))?;
    } else {
        say(&report.to_string())?;
    }
    match judgement {
        Judgement::Pass => Ok(()),
        Judgement::Fail => Err(Failure::Faults("the demo found faults".to_owned())),
        Judgement::Busy => Err(Failure::Busy("this machine was too busy to judge".to_owned())),
    }
}

fn chat(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text).map_err(|error| error.to_string())?;
    let is_lawful = !duration.is_zero() && duration <= CHAT_MAX;
    if is_lawful { Ok(duration) } else { Err("must be over 0s and at most 600s".to_owned()) }
}
