//! The command line as clap sees it; every number is checked here for its range.

use crate::compare::{ROUNDS_MAX, ROUNDS_MIN, Row};
use crate::expect::Expectation;
use crate::scenario::PAYLOAD_BYTES_MAX;
use crate::socket::Sources;
use crate::units::{parse_count, parse_duration, parse_part, parse_rate};
use clap::{Args, Parser, Subcommand, ValueEnum};
use moorline_proto::dedupe::WINDOW_FRAMES;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Load for a Moorline gateway, with every message checked.
///
/// Exit: 0 pass, 1 usage, 2 preflight, 3 unreachable, 4 integrity, 5 generator saturated, 99 expectation
/// failed, 130 interrupted (the report is still written).
#[derive(Debug, Parser)]
#[command(name = "moorload", version)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Compares the needs of a run of this size with this machine, with the command that closes each gap.
    Doctor(DoctorArgs),
    /// Hold an idle fleet with heartbeats: memory per connection.
    Hold(HoldArgs),
    /// Send messages and wait for their answers: latency, CPU per message.
    Ping(PingArgs),
    /// Chat one to one, from end to end: each message checked where it arrives.
    Chat(ChatArgs),
    /// Groups of a writer and many readers.
    Group(GroupArgs),
    /// Break a part of all connections in one moment: how long until 99 in 100 are back.
    Storm(StormArgs),
    /// Restart the server in the middle of a chat: what is dropped, lost, repeated.
    Restart(RestartArgs),
    /// The highest rate at which everything expected holds.
    Find(FindArgs),
    /// Moorline beside the bare server, interleaved, as one table.
    Compare(CompareArgs),
    /// Runs of the past beside each other.
    Report(ReportArgs),
    /// Run the bare reference server, or the backend behind it.
    Bare(BareArgs),
    /// Process of a larger run; started by moorload itself.
    #[command(hide = true)]
    Worker,
}

/// Target and clients.
#[derive(Clone, Debug, Args)]
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
    /// Measuring time.
    #[arg(short = 'd', long = "duration", default_value = "30s", value_parser = parse_duration)]
    pub(super) duration: Duration,
    /// Time after the ramp that does not count.
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    pub(super) warmup: Duration,
    /// Longest wait at the end for messages under way.
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    pub(super) drain: Duration,
    /// Interval of the heartbeats of each connection.
    #[arg(long, default_value = "20s", value_parser = parse_duration)]
    pub(super) heartbeat: Duration,
    /// Processes to spread the clients over: a number, or as many as the descriptor limit demands.
    #[arg(long, default_value = "auto", value_parser = Processes::parse)]
    pub(super) procs: Processes,
    /// Source addresses, such as 127.0.0.1-40; by default one per 10,000 loopback connections.
    #[arg(long, value_parser = Sources::parse)]
    pub(super) src: Option<Sources>,
    /// Source ports to bind deliberately, such as 20000-59999; by default the kernel chooses.
    #[arg(long, value_parser = Sources::parse_ports)]
    pub(super) ports: Option<(u16, u16)>,
    /// User ids are this and a number.
    #[arg(long, default_value = "load")]
    pub(super) uid_prefix: String,
    /// HS256 secret, or Ed25519 private key in PEM: sign a token per user; without it and --token-file the gateway must be in dev mode.
    #[arg(long)]
    pub(super) key_file: Option<PathBuf>,
    /// File with a token a line, one for each client: a JWT, or the user's id, a space and a token.
    #[arg(long, conflicts_with = "key_file")]
    pub(super) token_file: Option<PathBuf>,
    /// Audience of those tokens.
    #[arg(long, requires = "key_file")]
    pub(super) audience: Option<String>,
    /// The gateway's process: its memory and CPU time too.
    #[arg(long)]
    pub(super) pid: Option<i32>,
    /// File with the gateway's process id (handover.pid_file), instead of --pid; followed over hot restarts.
    #[arg(long, conflicts_with = "pid")]
    pub(super) pid_file: Option<PathBuf>,
    /// Allow a target outside this machine.
    #[arg(long)]
    pub(super) allow_remote: bool,
    #[command(flatten)]
    pub(super) carry: CarryArgs,
    /// Expectation that must hold, such as 'deliver.p99<20ms'; may be given several times.
    #[arg(long = "expect")]
    pub(super) expect: Vec<Expectation>,
    /// Condition that ends the run early when it holds for a second, such as 'deliver.p99>1s'.
    #[arg(long = "abort")]
    pub(super) abort: Vec<Expectation>,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// Carriers of the clients' bytes.
#[derive(Clone, Debug, Args)]
#[allow(clippy::struct_excessive_bools)] // switches of a command line
pub(super) struct CarryArgs {
    /// TLS 1.3. Needs --ca or --insecure.
    #[arg(long)]
    pub(super) tls: bool,
    /// File with the authorities that the clients trust, in PEM.
    #[arg(long, requires = "tls")]
    pub(super) ca: Option<PathBuf>,
    /// Name that the certificate must be valid for; by default the host of the target.
    #[arg(long, requires = "tls")]
    pub(super) tls_name: Option<String>,
    /// Accept any certificate, such as one that you made yourself.
    #[arg(long, requires = "tls", conflicts_with = "ca")]
    pub(super) insecure: bool,
    /// A full handshake for each connection, also for one that comes back.
    #[arg(long, requires = "tls")]
    pub(super) no_resumption: bool,
    /// WebSocket; with --tls inside of it (wss).
    #[arg(long)]
    pub(super) ws: bool,
    /// The target is the bare server: its protocol, without backend and without integrity of deliveries.
    #[arg(long)]
    pub(super) bare: bool,
}

/// Over how many processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Processes {
    /// The smallest number that can hold the clients.
    Auto,
    /// A fixed number.
    Fixed(u32),
}

impl Processes {
    /// No machine gains by more.
    const MAX: u32 = 256;

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => match text.parse() {
                Ok(count @ 1..=Self::MAX) => Ok(Self::Fixed(count)),
                _ => Err(format!("{text:?} is neither \"auto\" nor a number from 1 to {}", Self::MAX)),
            },
        }
    }
}

#[derive(Clone, Debug, Args)]
pub(super) struct OutputArgs {
    /// Print the report as JSON.
    #[arg(long)]
    pub(super) json: bool,
    /// No line per second.
    #[arg(long, short = 'q')]
    pub(super) quiet: bool,
    /// Folder for summary.json, report.html and the rest; by default a new one under moorload-runs.
    #[arg(long, short = 'o')]
    pub(super) out: Option<PathBuf>,
    /// Write no folder.
    #[arg(long, conflicts_with = "out")]
    pub(super) no_out: bool,
}

/// Messages: how many, how large.
#[derive(Clone, Debug, Args)]
pub(super) struct TrafficArgs {
    /// Messages per second over the whole fleet, each at its moment; without it the loop is closed.
    #[arg(short = 'r', value_parser = parse_rate)]
    pub(super) rate: Option<f64>,
    /// Unanswered messages per sender at most; 1 in the closed loop, 64 in the open one.
    #[arg(short = 'w', value_parser = clap::value_parser!(u32).range(1..=i64::from(WINDOW_FRAMES)))]
    pub(super) window: Option<u32>,
    /// Bytes of payload; at least 28 where deliveries are checked.
    #[arg(long, default_value = "128", value_parser = clap::value_parser!(u32).range(0..=i64::from(PAYLOAD_BYTES_MAX)))]
    pub(super) payload: u32,
}

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// HOST:PORT of the gateway; it is asked for a connection.
    pub(super) target: String,
    /// Connections, such as 500, 10k or 1m.
    #[arg(short = 'c', default_value = "10k", value_parser = parse_count)]
    pub(super) connections: u32,
    /// Source addresses, such as 127.0.0.1-40; by default what a run would take.
    #[arg(long, value_parser = Sources::parse)]
    pub(super) src: Option<Sources>,
    /// Source ports to bind deliberately.
    #[arg(long, value_parser = Sources::parse_ports)]
    pub(super) ports: Option<(u16, u16)>,
    /// The run will use TLS.
    #[arg(long)]
    pub(super) tls: bool,
    /// The gateway's process: its own limit is looked at.
    #[arg(long)]
    pub(super) pid: Option<i32>,
    /// Allow a target outside this machine.
    #[arg(long)]
    pub(super) allow_remote: bool,
    /// Print the rows as JSON.
    #[arg(long)]
    pub(super) json: bool,
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
    #[command(flatten)]
    pub(super) traffic: TrafficArgs,
}

#[derive(Debug, Args)]
pub(super) struct ChatArgs {
    #[command(flatten)]
    pub(super) fleet: FleetArgs,
    #[command(flatten)]
    pub(super) traffic: TrafficArgs,
}

#[derive(Debug, Args)]
pub(super) struct GroupArgs {
    #[command(flatten)]
    pub(super) fleet: FleetArgs,
    #[command(flatten)]
    pub(super) traffic: TrafficArgs,
    /// Number of groups.
    #[arg(long, default_value = "10", value_parser = parse_count)]
    pub(super) groups: u32,
    /// Clients of each group, its writer included.
    #[arg(long, default_value = "100", value_parser = parse_count)]
    pub(super) members: u32,
}

#[derive(Debug, Args)]
pub(super) struct StormArgs {
    #[command(flatten)]
    pub(super) fleet: FleetArgs,
    /// The part of all connections that breaks, such as 30%.
    #[arg(long, default_value = "100%", value_parser = parse_part)]
    pub(super) drop: f64,
    /// Measuring time before that.
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    pub(super) calm: Duration,
    /// Messages per second of those who stay.
    #[arg(short = 'r', default_value = "1000", value_parser = parse_rate)]
    pub(super) rate: f64,
    /// Bytes of payload.
    #[arg(long, default_value = "128", value_parser = clap::value_parser!(u32).range(0..=i64::from(PAYLOAD_BYTES_MAX)))]
    pub(super) payload: u32,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("how").required(true).args(["command", "serve"]))]
pub(super) struct RestartArgs {
    #[command(flatten)]
    pub(super) fleet: FleetArgs,
    /// Messages per second.
    #[arg(short = 'r', default_value = "1000", value_parser = parse_rate)]
    pub(super) rate: f64,
    /// Bytes of payload.
    #[arg(long, default_value = "128", value_parser = clap::value_parser!(u32).range(0..=i64::from(PAYLOAD_BYTES_MAX)))]
    pub(super) payload: u32,
    /// A shell command that restarts the server and ends with 0 when that is done.
    #[arg(long)]
    pub(super) command: Option<String>,
    /// The server's own command line: moorload runs it, ends it with --signal and starts it again.
    #[arg(long)]
    pub(super) serve: Option<String>,
    /// Signal that ends the server of --serve.
    #[arg(long, value_enum, default_value_t = SignalArg::Term)]
    pub(super) signal: SignalArg,
    /// Measuring time before the first restart.
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    pub(super) after: Duration,
    /// Time from one restart to the next.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub(super) every: Duration,
    /// Number of restarts.
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) times: u32,
    /// Connections must survive: one that is dropped fails the run.
    #[arg(long)]
    pub(super) hot: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum SignalArg {
    /// Let it finish what it does.
    Term,
    /// KILL, like a crash.
    Kill,
}

#[derive(Debug, Args)]
pub(super) struct FindArgs {
    /// Scenario to search with.
    #[arg(value_enum)]
    pub(super) scenario: FindScenario,
    #[command(flatten)]
    pub(super) fleet: FleetArgs,
    /// The first rate.
    #[arg(long, default_value = "1k/s", value_parser = parse_rate)]
    pub(super) from: f64,
    /// The highest rate.
    #[arg(long, default_value = "1m/s", value_parser = parse_rate)]
    pub(super) to: f64,
    /// The answer is this close below the first rate that fails.
    #[arg(long, default_value = "5%", value_parser = parse_part)]
    pub(super) within: f64,
    /// Bytes of payload.
    #[arg(long, default_value = "128", value_parser = clap::value_parser!(u32).range(0..=i64::from(PAYLOAD_BYTES_MAX)))]
    pub(super) payload: u32,
    /// Number of groups of `find group`.
    #[arg(long, default_value = "10", value_parser = parse_count)]
    pub(super) groups: u32,
    /// Clients of each group.
    #[arg(long, default_value = "100", value_parser = parse_count)]
    pub(super) members: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum FindScenario {
    /// Messages and their answers.
    Ping,
    /// Pairs of clients.
    Chat,
    /// Groups of a writer and readers.
    Group,
}

#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// Folders of runs.
    #[arg(required = true)]
    pub(super) runs: Vec<PathBuf>,
    /// The run that the others are held against.
    #[arg(long)]
    pub(super) compare: Option<PathBuf>,
    /// Write a page with all percentile curves here.
    #[arg(long)]
    pub(super) html: Option<PathBuf>,
    /// Print the summaries as JSON.
    #[arg(long)]
    pub(super) json: bool,
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
    /// Authentication mode of Moorline.
    #[arg(long, value_enum, default_value_t = AuthArg::Dev)]
    pub(super) auth: AuthArg,
    /// Both sides speak TLS with this chain of certificates, in PEM.
    #[arg(long, requires = "tls_key")]
    pub(super) tls_cert: Option<PathBuf>,
    /// Private key of the first certificate, in PEM.
    #[arg(long, requires = "tls_cert")]
    pub(super) tls_key: Option<PathBuf>,
    /// Further settings of `moorline run`, such as reactor.count=1.
    #[arg(long = "set")]
    pub(super) settings: Vec<String>,
    /// Print the table as JSON.
    #[arg(long)]
    pub(super) json: bool,
    /// No line per leg.
    #[arg(long, short = 'q')]
    pub(super) quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum AuthArg {
    /// Not at all.
    Dev,
    /// HS256 tokens.
    Jwt,
}

#[derive(Debug, Args)]
pub(super) struct BareArgs {
    /// Listening address; loopback only.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(super) listen: SocketAddr,
    /// Forward over links to this backend.
    #[arg(long, conflicts_with = "acker")]
    pub(super) backend: Option<SocketAddr>,
    /// Be that backend: answer every message.
    #[arg(long)]
    pub(super) acker: bool,
    /// Speak TLS with this chain of certificates, in PEM.
    #[arg(long, requires = "tls_key", conflicts_with = "acker")]
    pub(super) tls_cert: Option<PathBuf>,
    /// Private key of the first certificate, in PEM.
    #[arg(long, requires = "tls_cert")]
    pub(super) tls_key: Option<PathBuf>,
    /// End by itself after this.
    #[arg(long = "for", default_value = "1h", value_parser = parse_duration)]
    pub(super) at_most: Duration,
}
