//! `hold` and `ping`: from arguments to a plan, from a run to a report.

use super::arguments::{FleetArgs, HoldArgs, OutputArgs, PingArgs};
use crate::dialect::token::TokenMint;
use crate::dialect::{Moorline, MoorlineOptions};
use crate::exit::{Exit, Failure};
use crate::fleet::{self, BeatsFrom, Live, Plan, RampRule, Stop};
use crate::integrity::Tally;
use crate::phase::Timeline;
use crate::preflight::{self, PHASE_SECONDS_MAX, Reach, Room};
use crate::process::Watched;
use crate::report::Report;
use crate::scenario::{Hold, Load, Ping};
use crate::socket::Sources;
use crate::terminal;
use moorline_proto::dedupe::WINDOW_FRAMES;
use std::time::Duration;

/// Clients of a run whose size nobody chose.
pub(super) const HOLD_DEFAULT: u32 = 15_000;
const PING_DEFAULT: u32 = 1_000;
/// What a ramp may take beyond its own rate.
const RAMP_GRACE: Duration = Duration::from_secs(30);

pub(super) fn hold(args: &HoldArgs, stop: &Stop) -> Result<Exit, Failure> {
    let (plan, room) = plan(&args.fleet, HOLD_DEFAULT)?;
    let mut hold = Hold::default();
    let ran = fleet::run(&plan, moorline(&args.fleet)?, &mut hold, stop)?;
    let lost = ran.counts.beats.saturating_sub(ran.counts.beats_back);
    let mut report = Report::new("hold", &plan, &ran, Tally { lost, ..Tally::default() });
    explain_size(&mut report, &args.fleet, &plan, &room);
    Ok(print(&report, &args.fleet.output))
}

pub(super) fn ping(args: &PingArgs, stop: &Stop) -> Result<Exit, Failure> {
    let (plan, room) = plan(&args.fleet, PING_DEFAULT)?;
    let load = match args.rate {
        None => Load::Closed { window: args.window.unwrap_or(1) },
        Some(rate) => Load::Open { rate, window: args.window.unwrap_or(WINDOW_FRAMES) },
    };
    let mut ping = Ping::new(load, args.payload);
    let ran = fleet::run(&plan, moorline(&args.fleet)?, &mut ping, stop)?;
    let mut report = Report::new("ping", &plan, &ran, ping.tally);
    report.unsent = ping.unsent();
    match load {
        Load::Closed { .. } => report.add_latency("answer", &ping.recorder.raw),
        Load::Open { .. } => {
            report.offered_per_s = Some(ping.offered() as f64 / report.seconds.max(1e-9));
            report.add_latency("answer corrected", &ping.recorder.corrected);
            report.add_latency("answer raw", &ping.recorder.raw);
            report.add_lag(&ping.recorder.lag);
        }
    }
    explain_size(&mut report, &args.fleet, &plan, &room);
    Ok(print(&report, &args.fleet.output))
}

fn plan(args: &FleetArgs, default_clients: u32) -> Result<(Plan, Room), Failure> {
    for length in [args.duration, args.warmup, args.drain] {
        if length.as_secs() > PHASE_SECONDS_MAX {
            return Err(Failure::Usage(format!("{length:?} is longer than a day")));
        }
    }
    let reach = if args.allow_remote { Reach::Anywhere } else { Reach::Loopback };
    let target = preflight::resolve(&args.target, reach)?;
    let room = preflight::room()?;
    let clients = preflight::clients(args.connections, default_clients, &room)?;
    let ramp_length = args.ramp.map_or(0.0, |rate| f64::from(clients) / rate);
    if ramp_length > PHASE_SECONDS_MAX as f64 {
        return Err(Failure::Usage("this ramp takes longer than a day: raise -R or lower -c".into()));
    }
    let plan = Plan {
        target,
        clients,
        ramp: RampRule { rate: args.ramp, at_once: args.at_once },
        sources: args.src.clone().unwrap_or_else(|| Sources::for_target(target, clients)),
        beats: (args.heartbeat, BeatsFrom::Ramp),
        timeline: Timeline {
            ramp_max: Duration::from_secs_f64(ramp_length) + RAMP_GRACE,
            warmup: args.warmup,
            measure: args.duration,
            drain_max: args.drain,
        },
        watched: Watched::new(args.pid),
        live: live(&args.output),
    };
    if args.pid.is_some() && plan.watched.usage().is_none() {
        return Err(Failure::Usage("--pid names no process that may be read".into()));
    }
    Ok((plan, room))
}

fn moorline(args: &FleetArgs) -> Result<Moorline, Failure> {
    let tokens = match &args.key_file {
        Some(path) => Some(TokenMint::from_file(path, args.audience.clone())?),
        None => None,
    };
    Ok(Moorline::new(MoorlineOptions {
        uid_prefix: args.uid_prefix.clone(),
        tokens,
        heartbeat: args.heartbeat,
    }))
}

pub(super) const fn live(output: &OutputArgs) -> Live {
    if output.quiet { Live::Quiet } else { Live::Lines }
}

fn explain_size(report: &mut Report, args: &FleetArgs, plan: &Plan, room: &Room) {
    if args.connections.is_none() {
        let clients = plan.clients;
        report.notes.push(format!(
            "{clients} connections by default; at most {} here: {}",
            room.connections, room.why
        ));
    }
}

fn print(report: &Report, output: &OutputArgs) -> Exit {
    if output.json {
        terminal::print(serde_json::to_string_pretty(report).expect("a report is plain data"));
    } else {
        terminal::print(report.text().trim_end());
    }
    report.exit
}
