//! `moorline demo`: the whole system on this machine, thousands of clients, and a checker that believes
//! nobody.
//!
//! | file | holds | may import |
//! |---|---|---|
//! | `number`, `latency`, `usage` | numbers for people, times, what a process uses | - |
//! | `size` | how much, and why | number |
//! | `roster`, `traffic`, `content` | who talks with whom, when, and what is said; pure | - |
//! | `checker` | lost, duplicated, reordered, corrupted; pure | roster, content |
//! | `folder`, `stop`, `server`, `progress` | logs, Ctrl-C, child processes, the line of progress | usage |
//! | `fleet` | all clients on one loop | - |
//! | `observer` | what clients say, put where it belongs | checker, latency, roster, fleet |
//! | `play` | the acts, one after the other | all above |
//! | `report` | the figures | checker, latency, play |
//!
//! Gateway and backend are real processes of the executable that it is given; the clients are SDK cores on real
//! sockets. Driven by `moorline demo`. Nothing it started outlives it.

mod checker;
mod clock;
mod content;
mod fleet;
mod folder;
mod latency;
mod machine;
mod number;
mod observer;
mod play;
mod progress;
mod report;
mod roster;
mod server;
mod size;
mod stop;
mod traffic;
mod usage;

pub use report::Report;

use fleet::Fleet;
use folder::RunFolder;
use moorline_proto::message::client::Platform;
use moorline_proto::random::Random;
use moorline_sdk::core::{Core, CoreConfig, TokenSource, Tuning};
use observer::Observer;
use play::{Play, Servers};
use progress::Progress;
use report::{ClientFigures, Parts, SizeFigures};
use roster::Roster;
use server::Server;
use size::{Machine, Size};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use stop::Stop;

/// What a demo is asked for; `None`: its own choice.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `moorline` executable: gateway and backend are processes of it.
    pub program: PathBuf,
    /// Client connections; lowered to what the machine allows.
    pub connections: Option<u32>,
    /// How long they chat.
    pub chat: Duration,
    /// Messages per second, of all clients together.
    pub rate: Option<u32>,
    /// Decides who talks with whom, when, and what is said.
    pub seed: Option<u64>,
    /// Which logs stay.
    pub logs: Logs,
}

/// Which logs stay after a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logs {
    /// Those of a run that is no pass.
    OfFailures,
    /// All.
    Always,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The system refused something.
    #[error("cannot {operation}: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A server did not come up, or did not stay.
    #[error("the {name} failed: {problem}")]
    Server {
        /// Which one.
        name: &'static str,
        /// What went wrong.
        problem: String,
    },
    /// Not everybody got in.
    #[error("only {done} of {of} clients could log in: {why}")]
    Logins {
        /// Logins that stood.
        done: u32,
        /// Clients.
        of: u32,
        /// The last failure.
        why: String,
    },
    /// A group could not be made.
    #[error("only {done} groups could be made: {why}")]
    Groups {
        /// Groups that stand.
        done: usize,
        /// The last failure.
        why: String,
    },
    /// Somebody wanted it to end.
    #[error("interrupted")]
    Interrupted,
    /// Any of the others, with the logs that may explain it.
    #[error("{cause}; logs: {logs}")]
    Logged {
        /// What went wrong.
        cause: Box<DemoError>,
        /// The folder of the logs.
        logs: PathBuf,
    },
}

fn system(operation: &'static str) -> impl FnOnce(io::Error) -> DemoError {
    move |source| DemoError::System { operation, source }
}

/// Plays the demo; progress goes to standard error. Call it from the main thread: the processes it
/// starts end with the thread.
///
/// # Errors
/// [`DemoError`]: it could not be played to the end. A fault that the checker found is no error but in
/// the report.
pub fn run(options: &Options) -> Result<Report, DemoError> {
    let stop = Stop::on_signals().map_err(system("listen for signals"))?;
    let mut folder = RunFolder::create().map_err(system("make a folder for the logs"))?;
    let outcome = play(options, &folder, &stop);
    let is_wanted = match &outcome {
        Ok(report) => !report.is_pass(),
        Err(error) => !matches!(error, DemoError::Interrupted),
    };
    if !is_wanted && options.logs == Logs::OfFailures {
        return outcome;
    }
    folder.keep();
    let logs = folder.path().to_owned();
    match outcome {
        Ok(report) => Ok(report.with_logs(logs)),
        Err(error) => Err(DemoError::Logged { cause: Box::new(error), logs }),
    }
}

fn play(options: &Options, folder: &RunFolder, stop: &Stop) -> Result<Report, DemoError> {
    let machine = Machine {
        open_files: machine::raise_open_files(),
        cores: machine::cores(),
        is_optimised: !cfg!(debug_assertions),
    };
    let size = Size::choose(machine, options.connections, options.rate);
    let mut progress = Progress::new();
    progress.say(&size.why);
    let drawn = || getrandom::u64().map_or(1, |seed| seed >> 32);
    let seed = options.seed.unwrap_or_else(drawn);

    let mut servers = start(&options.program, folder, stop)?;
    let (gateway, admin) = (servers.gateway.address("listener")?, servers.gateway.address("admin")?);
    progress.say(&format!(
        "gateway {gateway} (pid {})   backend pid {}   admin http://{admin}",
        servers.gateway.pid(),
        servers.backend.pid()
    ));
    let roster = Arc::new(Roster::new(size.connections, seed));
    let fleet = Fleet::new(gateway, cores(&roster, seed)).map_err(system("make the clients' epoll"))?;
    let observer = Observer::new(Arc::clone(&roster), seed);
    let mut play = Play { roster, fleet, observer, servers: &mut servers, stop, progress: &mut progress };
    let measured = play.run(options.chat, size.rate, seed)?;
    let Play { roster, mut fleet, observer, .. } = play;
    // The gateway ends at once when nobody is left.
    fleet.close(&mut fleet::Deaf);
    Ok(Report::new(Parts {
        seed,
        size: SizeFigures {
            connections: size.connections,
            users: roster.users.len(),
            groups: roster.groups().count(),
            why: size.why,
        },
        measured,
        durable: observer.durable.quantiles(),
        delivered: observer.delivered.quantiles(),
        clients: ClientFigures {
            lag_p99_ms: observer.lag.quantiles().p99_ms,
            lost_logins: observer.lost_logins,
        },
        verdict: observer.checker.verdict(),
        admin: admin.to_string(),
    }))
}

/// Backend and gateway on free ports, ready.
fn start(program: &Path, folder: &RunFolder, stop: &Stop) -> Result<Servers, DemoError> {
    let log = |name| folder.file(name).map_err(system("make a log file"));
    let arguments = |verb: &str, sets: &[String]| -> Vec<String> {
        let sets = sets.iter().flat_map(|set| ["--set".to_owned(), set.clone()]);
        std::iter::once(verb.to_owned()).chain(sets).collect()
    };
    // It stores for real: it will be killed.
    let store = format!("im.folder=\"{}\"", folder.path().join("store").display());
    let mut sets = arguments("backend", &["listen=127.0.0.1:0".to_owned(), store]);
    sets.push("--until-eof".to_owned());
    let backend = Server::start("backend", program, &sets, log("backend.log")?, stop)?;
    let link: SocketAddr = backend.address("link")?;
    let sets = [
        "gateway.id=demo".to_owned(),
        "listener.address=127.0.0.1:0".to_owned(),
        "admin.address=127.0.0.1:0".to_owned(),
        "auth.mode=dev".to_owned(),
        "drain.grace=1s".to_owned(),
        format!("backend.endpoints=[\"{link}\"]"),
    ];
    let mut sets = arguments("run", &sets);
    // Whatever process serves then: it ends with this one.
    sets.push("--until-eof".to_owned());
    let gateway = Server::start("gateway", program, &sets, log("gateway.log")?, stop)?;
    Ok(Servers { gateway, backend })
}

/// One SDK core per device.
fn cores(roster: &Roster, seed: u64) -> impl Iterator<Item = Core> {
    let tuning = Arc::new(Tuning::default());
    let (token, agent): (Arc<str>, Arc<str>) = ("".into(), "moorline-demo".into());
    let mut random = Random::new(seed);
    roster.devices.iter().map(move |device| {
        let config = CoreConfig {
            uid: Arc::clone(&roster.user(device.user).uid),
            device: device.name.into(),
            platform: Platform::Bot,
            token: TokenSource::Fixed(Arc::clone(&token)),
            agent: Arc::clone(&agent),
            tuning: Arc::clone(&tuning),
        };
        Core::new(config, random.next_u64())
    })
}
