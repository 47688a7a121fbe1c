//! `find`: the same run at one rate after another.

use super::arguments::FindArgs;
use super::launch::{Landed, Launch};
use crate::exit::{Exit, Failure};
use crate::find::{DONE_PART_MIN, Found, Probe, Search};
use crate::fleet::Stop;
use crate::report::Report;
use crate::terminal;
use crate::units;
use std::fmt::Write;

pub(super) fn run(launch: &Launch, args: &FindArgs, stop: &Stop) -> Result<Exit, Failure> {
    let folder = launch.folder("find")?;
    let mut search = Search::new(args.from, args.to, args.within);
    let mut found = Found { best: None, is_own_limit: false, is_machine_busy: false, probes: Vec::new() };
    let (mut best, mut end): (Option<Landed>, Option<Exit>) = (None, None);
    while let Some(rate) = search.next() {
        let mut probe_launch = launch.clone();
        probe_launch.job.work = launch.job.work.at_rate(rate);
        probe_launch.output.quiet = true;
        let landed = probe_launch.fly(stop)?;
        let probe = probe_of(rate, launch, &landed.report);
        // Once: on standard output, where the result comes, or beside the JSON that is printed there.
        if !launch.output.json {
            terminal::print(line(&probe));
        } else if !launch.output.quiet {
            terminal::note(line(&probe));
        }
        let holds = probe.failed.is_none();
        search.learn(rate, holds);
        found.probes.push(probe);
        match landed.report.exit() {
            exit @ (Exit::Interrupted | Exit::Integrity) => end = Some(exit),
            // Above this the generator is at its end, and nothing can be said of the server.
            Exit::Saturated => {
                found.is_own_limit = true;
                found.is_machine_busy |= landed.report.is_machine_busy();
            }
            _ => {}
        }
        if holds && search.best() == Some(rate) {
            best = Some(landed);
        }
        if end.is_some() {
            break;
        }
    }
    found.best = search.best();
    if let (Some(best), Some(folder)) = (&best, &folder) {
        best.write(Some(folder))?;
        let path = folder.path().join("find.json");
        let text = serde_json::to_string_pretty(&found).expect("plain data");
        std::fs::write(&path, text).map_err(Failure::file(&path))?;
    }
    if launch.output.json {
        terminal::print(serde_json::to_string_pretty(&found).expect("plain data"));
    } else {
        terminal::print(text(launch, &found, best.as_ref().map(|landed| &landed.report)).trim_end());
    }
    Ok(end.unwrap_or(match (found.best, found.is_own_limit) {
        (_, true) => Exit::Saturated,
        (Some(_), false) => Exit::Pass,
        (None, false) => Exit::Unexpected,
    }))
}

fn probe_of(rate: f64, launch: &Launch, report: &Report) -> Probe {
    let part = report.done_per_s / per_message(launch) / rate;
    let failed = if let Some(judged) = report.expectations.iter().find(|judged| judged.failed.is_some()) {
        judged.failed.clone()
    } else if report.exit != 0 {
        Some(report.verdict.clone())
    } else if report.unsent > 0 {
        Some(format!("{} messages did not leave in time", report.unsent))
    } else if part < DONE_PART_MIN {
        Some(format!("only {:.1}% were done", part * 100.0))
    } else {
        None
    };
    let p99 = report.latencies.get(launch.main.name()).map(|latency| latency.p99);
    Probe { rate, done_per_s: report.done_per_s, p99, failed }
}

/// Operations done per message sent: each reader of a group is one.
fn per_message(launch: &Launch) -> f64 {
    match launch.job.work {
        crate::job::Work::Group { members, .. } => f64::from(members - 1),
        _ => 1.0,
    }
}

fn line(probe: &Probe) -> String {
    let p99 = probe.p99.map_or_else(|| "-".to_owned(), units::latency);
    let done = units::three_digits(probe.done_per_s);
    let word = probe.failed.as_deref().unwrap_or("holds");
    format!("{:>10}/s  done {done:>8}/s  p99 {p99:>8}  {word}", units::three_digits(probe.rate))
}

fn text(launch: &Launch, found: &Found, best: Option<&Report>) -> String {
    let mut out = String::new();
    let name = launch.job.work.name();
    let expected: Vec<String> = launch.expect.iter().map(ToString::to_string).collect();
    let expected = if expected.is_empty() { "nothing lost".to_owned() } else { expected.join(", ") };
    match found.best {
        Some(rate) => {
            let _ = writeln!(
                out,
                "find {name}   highest stable rate {}/s   ({expected})",
                units::three_digits(rate)
            );
        }
        None => {
            let _ = writeln!(out, "find {name}   no rate holds   ({expected})");
        }
    }
    if found.is_own_limit {
        let who = if found.is_machine_busy {
            "this machine was too busy"
        } else {
            "the generator itself was too slow"
        };
        let _ = writeln!(out, "above that {who}: the server's own limit is higher");
    }
    if let Some(report) = best {
        out.push_str(&report.text());
    }
    out
}
