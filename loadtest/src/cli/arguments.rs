//! The command line as clap sees it; every number is checked here for its range.

use crate::compare::{ROUNDS_MAX, ROUNDS_MIN, Row};
use crate::scenario::PAYLOAD_BYTES_MAX;
use crate::socket::Sources;
use crate::units::{parse_count, parse_duration, parse_rate};
use clap::{Args, Parser, Subcommand};
use moorline_proto::dedupe::WINDOW_FRAMES;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Load for a Moorline gateway, with every message checked.
///
/// Exit: 0 pass, 1 usage, 2 preflight, 3 unreachable, 4 integrity, 5 generator saturated, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "moorload", version)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
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
pub(super) struct FleetArgs {
    /// HOST:PORT of the gateway.
    pub(super) target: String,
    /// Connections, such as 500, 10k or 1m; the default fits the descriptor limit.
    #[arg(short = 'c', value_parser = parse_count)]
    pub(super) connections: Option<u32>,
    /// Connects per second, such as 500/s or 20k/s; by default as fast as logins are answered.
    #[arg(short = 'R', value_parser = parse_rate)]
    pub(super) ramp: Option<f64>,
    /// Logins under way at once.
    #[arg(long, default_value = "256", value_parser = parse_count)]
    pub(super) at_once: u32,
    /// How long to measure.
    #[arg(short = 'd', long = "duration", default_value = "30s", value_parser = parse_duration)]
    pub(super) duration: Duration,
    /// Time after the ramp that does not count.
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    pub(super) warmup: Duration,
    /// How long answers under way are waited for at the end, at most.
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    pub(super) drain: Duration,
    /// Interval of the heartbeats of each connection.
    #[arg(long, default_value = "20s", value_parser = parse_duration)]
    pub(super) heartbeat: Duration,
    /// Source addresses, such as 127.0.0.1-40; by default one per 10,000 loopback connections.
    #[arg(long, value_parser = Sources::parse)]
    pub(super) src: Option<Sources>,
    /// User ids are this and a number.
    #[arg(long, default_value = "load")]
    pub(super) uid_prefix: String,
    /// HS256 secret: sign a token per user; without it the gateway must be in dev mode.
    #[arg(long)]
    pub(super) key_file: Option<PathBuf>,
    /// Audience of those tokens.
    #[arg(long, requires = "key_file")]
    pub(super) audience: Option<String>,
    /// The gateway's process: print its memory and CPU time too.
    #[arg(long)]
    pub(super) pid: Option<i32>,
    /// Allow a target outside this machine.
    #[arg(long)]
    pub(super) allow_remote: bool,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct OutputArgs {
    /// Print the report as JSON.
    #[arg(long)]
    pub(super) json: bool,
    /// No line per second.
    #[arg(long, short = 'q')]
    pub(super) quiet: bool,
}

#[derive(Debug, Args)]
pub(super) struct HoldArgs {
    #[command(flatten)]
    pub(super) fleet: FleetArgs,
}

#[derive(Debug, Args)]
pub(super) struct PingArgs {
    #[command(flatten)]
    pub(super) fleet: FleetArgs,
    /// Messages per second over all connections; without it the loop is closed.
    #[arg(short = 'r', value_parser = parse_rate)]
    pub(super) rate: Option<f64>,
    /// Unanswered messages per connection at most; 1 in the closed loop, 64 in the open one.
    #[arg(short = 'w', value_parser = clap::value_parser!(u32).range(1..=i64::from(WINDOW_FRAMES)))]
    pub(super) window: Option<u32>,
    /// Bytes of payload.
    #[arg(long, default_value = "128", value_parser = clap::value_parser!(u32).range(0..=i64::from(PAYLOAD_BYTES_MAX)))]
    pub(super) payload: u32,
}

#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// The moorline binary; by default the one beside this program.
    #[arg(long)]
    pub(super) moorline: Option<PathBuf>,
    /// Measure the bare server alone.
    #[arg(long, conflicts_with = "moorline")]
    pub(super) bare_only: bool,
    /// Interleaved rounds.
    #[arg(long, default_value_t = ROUNDS_MIN, value_parser = clap::value_parser!(u32).range(1..=i64::from(ROUNDS_MAX)))]
    pub(super) rounds: u32,
    /// Connections of the idle fleet.
    #[arg(short = 'c', value_parser = parse_count)]
    pub(super) connections: Option<u32>,
    /// Connections that send.
    #[arg(long, default_value = "1000", value_parser = parse_count)]
    pub(super) busy: u32,
    /// Members of the fan-out.
    #[arg(long, default_value = "10k", value_parser = parse_count)]
    pub(super) members: u32,
    /// Measuring time per leg, side and round.
    #[arg(short = 'd', long = "duration", default_value = "5s", value_parser = parse_duration)]
    pub(super) duration: Duration,
    /// Bytes of payload.
    #[arg(long, default_value = "128", value_parser = clap::value_parser!(u32).range(16..=i64::from(PAYLOAD_BYTES_MAX)))]
    pub(super) payload: u32,
    /// Figures, with commas between; all by default.
    #[arg(long, value_delimiter = ',')]
    pub(super) rows: Vec<Row>,
    /// How Moorline checks logins.
    #[arg(long, value_enum, default_value_t = AuthArg::Dev)]
    pub(super) auth: AuthArg,
    /// Further settings of `moorline run`, such as reactor.count=1.
    #[arg(long = "set")]
    pub(super) settings: Vec<String>,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum AuthArg {
    /// Not at all.
    Dev,
    /// HS256 tokens.
    Jwt,
}

#[derive(Debug, Args)]
pub(super) struct BareArgs {
    /// Where to listen; loopback only.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(super) listen: SocketAddr,
    /// Forward over links to this backend.
    #[arg(long, conflicts_with = "acker")]
    pub(super) backend: Option<SocketAddr>,
    /// Be that backend: answer every message.
    #[arg(long)]
    pub(super) acker: bool,
    /// End by itself after this.
    #[arg(long = "for", default_value = "1h", value_parser = parse_duration)]
    pub(super) at_most: Duration,
}
