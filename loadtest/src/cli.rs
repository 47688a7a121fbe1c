//! The arguments of `moorload`, from them a run, from it an exit code.

use crate::bare::{self, Role};
use crate::compare::{self, Auth, Programs, ROUNDS_MAX, ROUNDS_MIN, Row};
use crate::dialect::token::TokenMint;
use crate::dialect::{Moorline, MoorlineOptions};
use crate::exit::{Exit, Failure};
use crate::fleet::{self, BeatsFrom, Live, Plan, RampRule, Stop};
use crate::integrity::Tally;
use crate::phase::Timeline;
use crate::preflight::{self, PHASE_SECONDS_MAX, Reach, Room};
use crate::process::Watched;
use crate::report::Report;
use crate::scenario::{Hold, Load, PAYLOAD_BYTES_MAX, Ping};
use crate::socket::Sources;
use crate::terminal;
use crate::units::{parse_count, parse_duration, parse_rate};
use clap::{Args, Parser, Subcommand};
use moorline_proto::dedupe::WINDOW_FRAMES;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Load for a Moorline gateway, with every message checked.
///
/// Exit: 0 pass, 1 usage, 2 preflight, 3 unreachable, 4 integrity, 5 generator saturated, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "moorload", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Hold an idle fleet with heartbeats: memory per connection.
    Hold(HoldArgs),
    /// Send messages and wait for their answers: latency, CPU per message.
    Ping(PingArgs),
    /// Moorline beside the bare server, interleaved, as one table.
    Compare(CompareArgs),
    /// Run the bare reference server, or the backend behind it.
    Bare(BareArgs),
}

/// Who connects where, and how.
#[derive(Debug, Args)]
struct FleetArgs {
    /// HOST:PORT of the gateway.
    target: String,
    /// Connections, such as 500, 10k or 1m; the default fits the descriptor limit.
    #[arg(short = 'c', value_parser = parse_count)]
    connections: Option<u32>,
    /// Connects per second, such as 500/s or 20k/s; by default as fast as logins are answered.
    #[arg(short = 'R', value_parser = parse_rate)]
    ramp: Option<f64>,
    /// Logins under way at once.
    #[arg(long, default_value = "256", value_parser = parse_count)]
    at_once: u32,
    /// How long to measure.
    #[arg(short = 'd', long = "duration", default_value = "30s", value_parser = parse_duration)]
    duration: Duration,
    /// Time after the ramp that does not count.
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    warmup: Duration,
    /// Interval of the heartbeats of each connection.
    #[arg(long, default_value = "20s", value_parser = parse_duration)]
    heartbeat: Duration,
    /// Source addresses, such as 127.0.0.1-40; by default one per 10,000 loopback connections.
    #[arg(long, value_parser = Sources::parse)]
    src: Option<Sources>,
    /// User ids are this and a number.
    #[arg(long, default_value = "load")]
    uid_prefix: String,
    /// HS256 secret: sign a token per user; without it the gateway must be in dev mode.
    #[arg(long)]
    key_file: Option<PathBuf>,
    /// Audience of those tokens.
    #[arg(long, requires = "key_file")]
    audience: Option<String>,
    /// The gateway's process: print its memory and CPU time too.
    #[arg(long)]
    pid: Option<i32>,
    /// Allow a target outside this machine.
    #[arg(long)]
    allow_remote: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct OutputArgs {
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// No line per second.
    #[arg(long, short = 'q')]
    quiet: bool,
}

#[derive(Debug, Args)]
struct HoldArgs {
    #[command(flatten)]
    fleet: FleetArgs,
}

#[derive(Debug, Args)]
struct PingArgs {
    #[command(flatten)]
    fleet: FleetArgs,
    /// Messages per second over all connections; without it the loop is closed.
    #[arg(short = 'r', value_parser = parse_rate)]
    rate: Option<f64>,
    /// Unanswered messages per connection at most; 1 in the closed loop, 64 in the open one.
    #[arg(short = 'w', value_parser = clap::value_parser!(u32).range(1..=i64::from(WINDOW_FRAMES)))]
    window: Option<u32>,
    /// Bytes of payload.
    #[arg(long, default_value = "128", value_parser = clap::value_parser!(u32).range(0..=i64::from(PAYLOAD_BYTES_MAX)))]
    payload: u32,
}

#[derive(Debug, Args)]
struct CompareArgs {
    /// The moorline binary; by default the one beside this program.
    #[arg(long)]
    moorline: Option<PathBuf>,
    /// Measure the bare server alone.
    #[arg(long, conflicts_with = "moorline")]
    bare_only: bool,
    /// Interleaved rounds.
    #[arg(long, default_value_t = ROUNDS_MIN, value_parser = clap::value_parser!(u32).range(1..=i64::from(ROUNDS_MAX)))]
    rounds: u32,
    /// Connections of the idle fleet.
    #[arg(short = 'c', value_parser = parse_count)]
    connections: Option<u32>,
    /// Connections that send.
    #[arg(long, default_value = "1000", value_parser = parse_count)]
    busy: u32,
    /// Members of the fan-out.
    #[arg(long, default_value = "10k", value_parser = parse_count)]
    members: u32,
    /// Measuring time per leg, side and round.
    #[arg(short = 'd', long = "duration", default_value = "5s", value_parser = parse_duration)]
    duration: Duration,
    /// Bytes of payload.
    #[arg(long, default_value = "128", value_parser = clap::value_parser!(u32).range(16..=i64::from(PAYLOAD_BYTES_MAX)))]
    payload: u32,
    /// Figures, with commas between; all by default.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<Row>,
    /// How Moorline checks logins.
    #[arg(long, value_enum, default_value_t = AuthArg::Dev)]
    auth: AuthArg,
    /// Further settings of `moorline run`, such as reactor.count=1.
    #[arg(long = "set")]
    settings: Vec<String>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum AuthArg {
    /// Not at all.
    Dev,
    /// HS256 tokens.
    Jwt,
}

#[derive(Debug, Args)]
struct BareArgs {
    /// Where to listen; loopback only.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Forward over links to this backend.
    #[arg(long, conflicts_with = "acker")]
    backend: Option<SocketAddr>,
    /// Be that backend: answer every message.
    #[arg(long)]
    acker: bool,
    /// End by itself after this.
    #[arg(long = "for", default_value = "1h", value_parser = parse_duration)]
    at_most: Duration,
}

/// Runs one command line; the program and its tests share it.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Pass };
        }
    };
    run(&cli).unwrap_or_else(|failure| {
        terminal::note(format!("moorload: {failure}"));
        failure.exit()
    })
}

fn run(cli: &Cli) -> Result<Exit, Failure> {
    let stop = Stop::on_signals()?;
    match &cli.command {
        Command::Hold(args) => hold(args, &stop),
        Command::Ping(args) => ping(args, &stop),
        Command::Compare(args) => compare(args, &stop),
        Command::Bare(args) => serve_bare(args, &stop),
    }
}

/// Clients of a run whose size nobody chose.
const HOLD_DEFAULT: u32 = 15_000;
const PING_DEFAULT: u32 = 1_000;
/// What a ramp may take beyond its own rate.
const RAMP_GRACE: Duration = Duration::from_secs(30);
/// How long answers under way are waited for at the end.
const DRAIN_MAX: Duration = Duration::from_secs(5);

fn hold(args: &HoldArgs, stop: &Stop) -> Result<Exit, Failure> {
    let (plan, room) = plan(&args.fleet, HOLD_DEFAULT)?;
    let mut hold = Hold::default();
    let ran = fleet::run(&plan, moorline(&args.fleet)?, &mut hold, stop)?;
    let lost = ran.counts.beats.saturating_sub(ran.counts.beats_back);
    let mut report = Report::new("hold", &plan, &ran, Tally { lost, ..Tally::default() });
    explain_size(&mut report, &args.fleet, &plan, &room);
    Ok(print(&report, &args.fleet.output))
}

fn ping(args: &PingArgs, stop: &Stop) -> Result<Exit, Failure> {
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
    for length in [args.duration, args.warmup] {
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
            drain_max: DRAIN_MAX,
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

const fn live(output: &OutputArgs) -> Live {
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

fn compare(args: &CompareArgs, stop: &Stop) -> Result<Exit, Failure> {
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
        programs: Programs { moorline, bare: own, auth, settings: args.settings.clone() },
        rounds: args.rounds,
        idle_clients: preflight::clients(args.connections, HOLD_DEFAULT, &room)?,
        busy_clients: preflight::clients(Some(args.busy), args.busy, &room)?,
        members: preflight::clients(Some(args.members), args.members, &room)?,
        measure: args.duration.clamp(Duration::from_millis(100), Duration::from_secs(600)),
        payload_bytes: args.payload,
        rows: if args.rows.is_empty() { Row::ALL.to_vec() } else { args.rows.clone() },
        live: live(&args.output),
    };
    let comparison = compare::run(&options, stop)?;
    print_comparison(&options, &comparison, &args.output);
    Ok(comparison.exit())
}

fn print_comparison(options: &compare::Options, comparison: &compare::Comparison, output: &OutputArgs) {
    if output.json {
        let lines = comparison.table.lines();
        terminal::print(serde_json::to_string_pretty(&lines).expect("a table is plain data"));
        return;
    }
    terminal::print(format!(
        "{} rounds, {} idle, {} busy, {} members, {}-byte payloads; median (lowest-highest)",
        options.rounds, options.idle_clients, options.busy_clients, options.members, options.payload_bytes
    ));
    terminal::print(comparison.table.text().trim_end());
    for (side, tally) in [("bare", &comparison.bare), ("ours", &comparison.ours)] {
        if !tally.is_clean() {
            terminal::print(format!("integrity of {side}: {tally:?}"));
        }
    }
    terminal::print(comparison.exit().label());
}

fn serve_bare(args: &BareArgs, stop: &Stop) -> Result<Exit, Failure> {
    if !args.listen.ip().is_loopback() {
        return Err(Failure::Preflight("the bare server checks nobody: it listens on loopback only".into()));
    }
    preflight::room()?;
    let role = if args.acker { Role::Acker } else { Role::Server { backend: args.backend } };
    bare::run(role, args.listen, args.at_most, stop)?;
    Ok(Exit::Pass)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_ascii_whitespace())
    }

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_ping_as_people_write_it() {
        let cli = parse("moorload ping -c 10k -r 200k/s -d 90s --src 127.0.0.1-40 127.0.0.1:7000").unwrap();
        let Command::Ping(args) = cli.command else { panic!("a ping") };
        assert_eq!(args.fleet.connections, Some(10_000));
        assert_eq!(args.rate, Some(200_000.0));
        assert_eq!(args.fleet.duration, Duration::from_secs(90));
        assert_eq!(args.fleet.src.unwrap().len(), 40);
    }

    #[test]
    fn usage_errors_exit_with_1() {
        for line in [
            "moorload",
            "moorload sing",
            "moorload ping",
            "moorload hold -c lots 127.0.0.1:1",
            "moorload ping -w 65 127.0.0.1:1",
            "moorload compare --rows speed",
            "moorload hold nowhere",
        ] {
            assert_eq!(main(line.split_ascii_whitespace().map(OsString::from)), Exit::Usage, "{line}");
        }
    }

    #[test]
    fn what_the_machine_or_the_rules_forbid_exits_with_2() {
        for line in [
            "moorload hold -c 900k 127.0.0.1:1",
            "moorload hold 192.0.2.1:7000",
            "moorload bare --listen 0.0.0.0:0",
        ] {
            assert_eq!(main(line.split_ascii_whitespace().map(OsString::from)), Exit::Preflight, "{line}");
        }
    }
}
