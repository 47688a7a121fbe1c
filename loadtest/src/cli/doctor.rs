//! `doctor` and `report`: nothing is loaded.

use super::arguments::{DoctorArgs, ReportArgs};
use crate::doctor::{self, Facts, Size, State};
use crate::exit::{Exit, Failure};
use crate::preflight::{self, Reach};
use crate::report::{Comparison, Past};
use crate::socket::Sources;
use crate::terminal;

pub(super) fn doctor(args: &DoctorArgs) -> Result<Exit, Failure> {
    let reach = if args.allow_remote { Reach::Anywhere } else { Reach::Loopback };
    let target = preflight::resolve(&args.target, reach)?;
    preflight::room()?; // as a run would: raises the soft limit
    let sources = Sources::chosen(args.src.as_ref(), args.ports, target, args.connections);
    let size = Size { connections: args.connections, is_local: target.ip().is_loopback(), has_tls: args.tls };
    let mut needs = doctor::needs(size, &Facts::here(&sources, args.pid));
    let is_there = doctor::reach(target);
    let reached = is_there.state;
    needs.push(is_there);
    if args.json {
        terminal::print(serde_json::to_string_pretty(&needs).expect("rows are plain data"));
    } else {
        terminal::print(doctor::text(size, &needs).trim_end());
    }
    let (others, _) = needs.split_at(needs.len() - 1);
    Ok(match (others.iter().any(|need| need.state == State::Missing), reached) {
        (true, _) => Exit::Preflight,
        (false, State::Missing) => Exit::Unreachable,
        (false, _) => Exit::Pass,
    })
}

pub(super) fn report(args: &ReportArgs) -> Result<Exit, Failure> {
    let base = args.compare.as_deref().map(Past::read).transpose()?;
    let runs = args.runs.iter().map(|path| Past::read(path)).collect::<Result<Vec<_>, _>>()?;
    for past in base.iter().chain(&runs).filter(|past| !past.is_consistent()) {
        terminal::note(format!("{}: summary.json and latency.hlog do not tell of the same run", past.name));
    }
    if args.json {
        let all: Vec<_> = base.iter().chain(&runs).map(|past| &past.report).collect();
        terminal::print(serde_json::to_string_pretty(&all).expect("a report is plain data"));
        return Ok(Exit::Pass);
    }
    let comparison = Comparison::new(base, runs);
    terminal::print(comparison.text().trim_end());
    if let Some(path) = &args.html {
        std::fs::write(path, comparison.page()).map_err(Failure::file(path))?;
    }
    Ok(Exit::Pass)
}
