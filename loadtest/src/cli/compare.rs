//! `compare` and `bare`.

use super::arguments::{AuthArg, BareArgs, CompareArgs};
use super::scenarios::HOLD_DEFAULT;
use crate::bare::{self, Role};
use crate::carrier;
use crate::compare::{self, Auth, Programs, Row, TlsFiles};
use crate::exit::{Exit, Failure};
use crate::fleet::Stop;
use crate::preflight;
use crate::terminal;
use std::path::Path;
use std::time::Duration;

pub(super) fn compare(args: &CompareArgs, stop: &Stop) -> Result<Exit, Failure> {
    let room = preflight::room()?;
    let own = std::env::current_exe().map_err(Failure::io("find this program"))?;
    let moorline = match (&args.moorline, args.bare_only) {
        (_, true) => None,
        (Some(path), _) => Some(path.clone()),
        (None, _) => Some(own.with_file_name("moorline")),
    };
    if let Some(path) = moorline.as_ref().filter(|path| !path.is_file()) {
        return Err(Failure::Preflight(format!(
            "no moorline binary at {}: build it (cargo build --release), name it with --moorline, or use --bare-only",
            path.display()
        )));
    }
    let auth = match args.auth {
        AuthArg::Dev => Auth::Dev,
        AuthArg::Jwt => Auth::Jwt,
    };
    let options = compare::Options {
        programs: Programs {
            moorline,
            bare: own,
            auth,
            settings: args.settings.clone(),
            tls: tls_files(args)?,
        },
        rounds: args.rounds,
        idle_clients: preflight::clients(args.connections, HOLD_DEFAULT, &room)?,
        busy_clients: preflight::clients(Some(args.busy), args.busy, &room)?,
        members: preflight::clients(Some(args.members), args.members, &room)?,
        measure: args.duration.clamp(Duration::from_millis(100), Duration::from_secs(600)),
        payload_bytes: args.payload,
        rows: if args.rows.is_empty() { Row::ALL.to_vec() } else { args.rows.clone() },
        is_quiet: args.quiet,
    };
    let comparison = compare::run(&options, stop)?;
    print_comparison(&options, &comparison, args.json);
    Ok(comparison.exit())
}

/// The files of --tls-cert and --tls-key, for programs that may run in another folder.
fn tls_files(args: &CompareArgs) -> Result<Option<TlsFiles>, Failure> {
    let (Some(certificates), Some(key)) = (&args.tls_cert, &args.tls_key) else { return Ok(None) };
    let absolute = |path: &Path| {
        path.canonicalize().map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))
    };
    let files = TlsFiles { certificates: absolute(certificates)?, key: absolute(key)? };
    carrier::server_config(&files.certificates, &files.key)?; // a file that cannot be used is told before anything starts
    Ok(Some(files))
}

fn print_comparison(options: &compare::Options, comparison: &compare::Comparison, is_json: bool) {
    if is_json {
        let lines = comparison.table.lines();
        terminal::print(serde_json::to_string_pretty(&lines).expect("a table is plain data"));
        return;
    }
    let programs = &options.programs;
    terminal::print(format!(
        "{} rounds of {:?} a leg, {} idle, {} busy, {} members, {}-byte payloads; auth {:?}, settings {:?}",
        options.rounds,
        options.measure,
        options.idle_clients,
        options.busy_clients,
        options.members,
        options.payload_bytes,
        programs.auth,
        programs.settings
    ));
    terminal::print("median (lowest-highest); ratios within a round");
    terminal::print(comparison.table.text().trim_end());
    for (side, tally) in [("bare", &comparison.bare), ("ours", &comparison.ours)] {
        if !tally.is_clean() {
            terminal::print(format!("integrity of {side}: {tally:?}"));
        }
    }
    if comparison.late_legs > 0 {
        let legs = comparison.late_legs;
        terminal::print(format!(
            "the generator was late in {legs} open-loop legs: the p99 is not the servers' alone"
        ));
    }
    match &comparison.table.missed()[..] {
        [] => terminal::print(comparison.exit().label()),
        missed => {
            terminal::print(format!("{}: above the bar: {}", comparison.exit().label(), missed.join(", ")));
        }
    }
}

pub(super) fn serve_bare(args: &BareArgs, stop: &Stop) -> Result<Exit, Failure> {
    if !args.listen.ip().is_loopback() {
        return Err(Failure::Preflight("the bare server checks nobody: it listens on loopback only".into()));
    }
    preflight::room()?;
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(certificates), Some(key)) => Some(carrier::server_config(certificates, key)?),
        _ => None,
    };
    let role = if args.acker { Role::Acker } else { Role::Server { backend: args.backend, tls } };
    bare::run(role, args.listen, args.at_most, stop)?;
    Ok(Exit::Pass)
}
