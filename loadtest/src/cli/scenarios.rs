//! From the arguments of each scenario to its job.

use super::arguments::{
    ChatArgs, FindArgs, FindScenario, FleetArgs, GroupArgs, HoldArgs, PingArgs, RestartArgs, SignalArg,
    StormArgs, TrafficArgs,
};
use super::launch::{self, Launch};
use super::size::Size;
use crate::exit::{Exit, Failure};
use crate::fleet::{ReturnRule, Stop};
use crate::job::Work;
use crate::record::Metric;
use crate::report::Drops;
use crate::restarter::{How, RestartRule};
use crate::scenario::{LEAD_BYTES, Load, Patience, StormRule};
use moorline_proto::dedupe::WINDOW_FRAMES;
use nix::sys::signal::Signal;
use std::time::Duration;

/// Clients of a run whose size nobody chose.
pub(super) const HOLD_DEFAULT: u32 = 15_000;
const TRAFFIC_DEFAULT: u32 = 1_000;
/// A restarted server's clients come back with growing pauses: what is under way takes longer.
const RESTART_DRAIN_MIN: Duration = Duration::from_secs(40);

pub(super) fn hold(args: &HoldArgs, stop: &Stop) -> Result<Exit, Failure> {
    let size = Size::of(&args.fleet, HOLD_DEFAULT, 1)?;
    launch::run(&Launch::new(&args.fleet, size, Work::Hold, Metric::Login)?, stop)
}

pub(super) fn ping(args: &PingArgs, stop: &Stop) -> Result<Exit, Failure> {
    let size = Size::of(&args.fleet, TRAFFIC_DEFAULT, 1)?;
    let work = Work::Ping { load: load(&args.traffic), payload: args.traffic.payload };
    launch::run(&Launch::new(&args.fleet, size, work, Metric::Answer)?, stop)
}

pub(super) fn chat(args: &ChatArgs, stop: &Stop) -> Result<Exit, Failure> {
    let size = Size::of(&args.fleet, TRAFFIC_DEFAULT, 2)?;
    let payload = args.traffic.payload.max(LEAD_BYTES);
    let work = Work::Chat { load: load(&args.traffic), payload, patience: Patience::None };
    launch::run(&Launch::new(&args.fleet, size, work, Metric::Deliver)?, stop)
}

pub(super) fn group(args: &GroupArgs, stop: &Stop) -> Result<Exit, Failure> {
    let size = size_of_groups(&args.fleet, args.groups, args.members)?;
    let load = load(&args.traffic);
    let payload = args.traffic.payload.max(LEAD_BYTES);
    let work = Work::Group { load, payload, groups: args.groups, members: args.members };
    launch::run(&Launch::new(&args.fleet, size, work, Metric::Deliver)?, stop)
}

fn size_of_groups(fleet: &FleetArgs, groups: u32, members: u32) -> Result<Size, Failure> {
    if fleet.connections.is_some() {
        return Err(Failure::Usage(
            "-c does not go with groups: --groups times --members is the size".into(),
        ));
    }
    if members < 2 {
        return Err(Failure::Usage("--members is at least 2: a writer and a reader".into()));
    }
    let clients = groups.checked_mul(members).filter(|clients| *clients <= crate::preflight::CLIENTS_MAX);
    let clients = clients.ok_or_else(|| {
        Failure::Usage(format!(
            "{groups} groups of {members} are more than {} clients",
            crate::preflight::CLIENTS_MAX
        ))
    })?;
    let fleet = FleetArgs { connections: Some(clients), ..fleet.clone() };
    Size::of(&fleet, clients, members)
}

pub(super) fn storm(args: &StormArgs, stop: &Stop) -> Result<Exit, Failure> {
    let size = Size::of(&args.fleet, HOLD_DEFAULT, 2)?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a part of a u32
    let stay = size.clients - (f64::from(size.clients) * args.drop).round() as u32;
    if args.calm >= args.fleet.duration {
        return Err(Failure::Usage("--calm is shorter than the measuring time: raise -d".into()));
    }
    let rule = StormRule { stay: stay & !1, calm: args.calm };
    let load = Load::Open { rate: args.rate, window: WINDOW_FRAMES };
    let work = Work::Storm { load, payload: args.payload.max(LEAD_BYTES), rule };
    let mut launch = Launch::new(&args.fleet, size, work, Metric::Deliver)?;
    launch.job.plan.returns = Some(ReturnRule::default());
    launch::run(&launch, stop)
}

pub(super) fn restart(args: &RestartArgs, stop: &Stop) -> Result<Exit, Failure> {
    let size = Size::of(&args.fleet, TRAFFIC_DEFAULT, 2)?;
    let how = match (&args.serve, &args.command) {
        (Some(command), _) => {
            let signal = match args.signal {
                SignalArg::Term => Signal::SIGTERM,
                SignalArg::Kill => Signal::SIGKILL,
            };
            How::Serve { command: command.clone(), signal }
        }
        (None, Some(command)) => How::Command(command.clone()),
        (None, None) => return Err(Failure::Usage("name --command or --serve".into())), // clap asks for one
    };
    let rule = RestartRule { how, after: args.after, every: args.every, times: args.times };
    if rule.after + rule.every * (rule.times - 1) >= args.fleet.duration {
        return Err(Failure::Usage("the last restart is after the end of measuring: raise -d".into()));
    }
    // One open message per conversation keeps its order when it has to be sent again.
    let load = Load::Open { rate: args.rate, window: 1 };
    let work = Work::Chat { load, payload: args.payload.max(LEAD_BYTES), patience: Patience::Again };
    let mut launch = Launch::new(&args.fleet, size, work, Metric::Deliver)?;
    launch.job.plan.returns = Some(ReturnRule::default());
    launch.job.plan.timeline.drain_max = args.fleet.drain.max(RESTART_DRAIN_MIN);
    launch.drops = if args.hot { Drops::Fail } else { Drops::Count };
    launch.restart = Some(rule);
    launch::run(&launch, stop)
}

pub(super) fn find(args: &FindArgs, stop: &Stop) -> Result<Exit, Failure> {
    let load = Load::Open { rate: args.from, window: WINDOW_FRAMES };
    let payload = args.payload.max(LEAD_BYTES);
    let (size, work, main) = match args.scenario {
        FindScenario::Ping => {
            let work = Work::Ping { load, payload: args.payload };
            (Size::of(&args.fleet, TRAFFIC_DEFAULT, 1)?, work, Metric::Answer)
        }
        FindScenario::Chat => {
            let work = Work::Chat { load, payload, patience: Patience::None };
            (Size::of(&args.fleet, TRAFFIC_DEFAULT, 2)?, work, Metric::Deliver)
        }
        FindScenario::Group => {
            let (groups, members) = (args.groups, args.members);
            let work = Work::Group { load, payload, groups, members };
            (size_of_groups(&args.fleet, groups, members)?, work, Metric::Deliver)
        }
    };
    super::find::run(&Launch::new(&args.fleet, size, work, main)?, args, stop)
}

fn load(args: &TrafficArgs) -> Load {
    match args.rate {
        None => Load::Closed { window: args.window.unwrap_or(1) },
        Some(rate) => Load::Open { rate, window: args.window.unwrap_or(WINDOW_FRAMES) },
    }
}
