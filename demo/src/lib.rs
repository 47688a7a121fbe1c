//! `moorline demo`: the whole system on this machine, thousands of clients, and a checker that believes
//! nobody.
//!
//! | file | holds | may import |
//! |---|---|---|
//! | `number`, `latency`, `clock`, `machine` | figures for people, times, what a process uses | - |
//! | `client` | one device's side of the protocol; pure | - |
//! | `size` | number of connections, rate of messages; pure | number |
//! | `roster`, `traffic`, `content` | who talks with whom, when, and what is said; pure | - |
//! | `checker` | lost, duplicated, reordered, corrupted; pure | client, roster, content |
//! | `certificate` | the gateway's certificate and its key for this run, and the clients' side of TLS | folder |
//! | `folder`, `stop`, `server`, `upgrade`, `progress` | logs, Ctrl-C, child processes, the line of progress | usage |
//! | `fleet` | all clients on one loop, each with TLS by rustls | client, certificate |
//! | `observer` | sorts what clients say | checker, client, latency, roster, fleet |
//! | `stage` | what every act does with the clients: log in, send, wait | all above |
//! | `play` | the acts of one gateway and one backend | stage |
//! | `cluster` | a cluster with a database, and its acts | stage |
//! | `judgement` | pass, fail, or too busy to judge; pure | checker, play, cluster, upgrade |
//! | `report` | the figures | judgement, latency, play |
//!
//! Gateway and backend are real processes of the executable that the demo is given; the clients speak the
//! protocol on real sockets. The demo depends on the protocol crate only. Driven by `moorline demo`. No
//! process that it started outlives it.
//!
//! Example: alice's phone sends message 3 to her group while the gateway restarts. Her SENDACK says place 17,
//! so every other device of the group must be given message 3, byte by byte as it was sent, at place 17, once,
//! and before place 18.

mod certificate;
mod checker;
mod client;
mod clock;
mod cluster;
mod content;
mod fleet;
mod folder;
mod judgement;
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
mod stage;
mod stop;
mod traffic;
mod upgrade;

pub use cluster::{ClusterReport, run_cluster};
pub use judgement::Judgement;
pub use report::Report;

use certificate::Certificate;
use client::{Client, Login, Target};
use fleet::Fleet;
use folder::RunFolder;
use moorline_proto::random::Random;
use observer::Observer;
use play::Servers;
use progress::Progress;
use report::{ClientFigures, Parts, SizeFigures};
use roster::{Kind, Roster};
use server::Server;
use size::{Layout, Machine, Size};
use stage::Stage;
use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use stop::Stop;

/// Wishes for one run; `None`: the demo's own choice.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `moorline` executable: gateway and backend are processes of it.
    pub program: PathBuf,
    /// True if the program is copied into the demo's own folder, and run from there.
    pub is_copied: bool,
    /// Client connections; lowered to what the machine allows.
    pub connections: Option<u32>,
    /// Length of the chat.
    pub chat: Duration,
    /// Messages per second of all clients together; `None`: a short run finds a rate.
    pub rate: Option<u32>,
    /// Seed of who talks with whom, when, and what is said.
    pub seed: Option<u64>,
    /// Logs that stay.
    pub logs: Logs,
}

/// Logs that stay after a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logs {
    /// Logs of a run that does not pass.
    OfFailures,
    /// All logs.
    Always,
}

/// Reason why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The system refused something.
    #[error("cannot {operation}: {source}")]
    System {
        /// Operation that failed.
        operation: &'static str,
        /// Cause of the failure.
        source: io::Error,
    },
    /// A server did not come up, or did not stay.
    #[error("the {name} failed: {problem}")]
    Server {
        /// `gateway`, `backend`, or another one of a cluster.
        name: &'static str,
        /// Cause of the failure.
        problem: String,
    },
    /// Something is not installed that the demo of a cluster needs.
    #[error("cannot start a cluster without {0}")]
    Missing(String),
    /// Clients were told to stay away.
    #[error("only {done} of {of} clients could log in: {why}")]
    Logins {
        /// Logins that stood.
        done: u32,
        /// Number of clients.
        of: u32,
        /// The last failure.
        why: String,
    },
    /// A group was refused.
    #[error("only {done} groups could be made: {why}")]
    Groups {
        /// Groups that stand.
        done: usize,
        /// The last failure.
        why: String,
    },
    /// Nothing failed, and nothing went on.
    #[error("this machine was too busy to judge: {0}")]
    TooBusy(String),
    /// A signal ended the demo.
    #[error("interrupted")]
    Interrupted,
    /// Any of the others, with the logs that may explain it.
    #[error("{cause}; logs: {logs}")]
    Logged {
        /// Cause of the failure.
        cause: Box<DemoError>,
        /// Folder of the logs.
        logs: PathBuf,
    },
}

impl DemoError {
    /// Returns true if the machine alone is to blame.
    pub fn is_too_busy(&self) -> bool {
        match self {
            Self::TooBusy(_) => true,
            Self::Logged { cause, .. } => cause.is_too_busy(),
            _ => false,
        }
    }
}

fn system(operation: &'static str) -> impl FnOnce(io::Error) -> DemoError {
    move |source| DemoError::System { operation, source }
}

/// Plays the demo; progress goes to standard error.
///
/// # Errors
/// [`DemoError`]: the demo could not be played to the end. A fault that the checker found is not an error; the
/// report has it.
pub fn run(options: &Options) -> Result<Report, DemoError> {
    let (report, logs) = in_folder(options, |folder, stop| play(options, folder, stop), Report::judgement)?;
    Ok(report.with_logs(logs))
}

/// Plays a demo with a folder for its logs, which stays if the logs are wanted. Returns the report, and the folder if it stays.
fn in_folder<R>(
    options: &Options,
    play: impl FnOnce(&RunFolder, &Stop) -> Result<R, DemoError>,
    judgement: impl FnOnce(&R) -> Judgement,
) -> Result<(R, Option<PathBuf>), DemoError> {
    let stop = Stop::on_signals().map_err(system("listen for signals"))?;
    let mut folder = RunFolder::create().map_err(system("make a folder for the logs"))?;
    let outcome = play(&folder, &stop);
    let is_wanted = match &outcome {
        Ok(report) => judgement(report) != Judgement::Pass,
        Err(error) => !matches!(error, DemoError::Interrupted | DemoError::Missing(_)),
    };
    if !is_wanted && options.logs == Logs::OfFailures {
        return outcome.map(|report| (report, None));
    }
    folder.keep();
    let logs = folder.path().to_owned();
    match outcome {
        Ok(report) => Ok((report, Some(logs))),
        Err(error) => Err(DemoError::Logged { cause: Box::new(error), logs }),
    }
}

/// Things that each demo begins with.
struct Setup {
    size: Size,
    seed: u64,
    program: PathBuf,
    certificate: Certificate,
    progress: Progress,
}

impl Setup {
    fn new(options: &Options, folder: &RunFolder, layout: Layout) -> Result<Self, DemoError> {
        let machine = Machine {
            open_files: machine::raise_open_files(),
            cores: machine::cores(),
            is_optimised: !cfg!(debug_assertions),
        };
        let size = Size::choose(machine, layout, options.connections);
        let mut progress = Progress::new();
        progress.say(&size.why);
        let drawn = || getrandom::u64().map_or(1, |seed| seed >> 32);
        let seed = options.seed.unwrap_or_else(drawn);
        let program = if options.is_copied {
            let copy = folder.path().join("moorline");
            std::fs::copy(&options.program, &copy)
                .and_then(|_| std::fs::set_permissions(&copy, Permissions::from_mode(0o700)))
                .map_err(system("copy the program into the demo's folder"))?;
            copy
        } else {
            options.program.clone()
        };
        let certificate = Certificate::make(folder)?;
        Ok(Self { size, seed, program, certificate, progress })
    }
}

fn play(options: &Options, folder: &RunFolder, stop: &Stop) -> Result<Report, DemoError> {
    let Setup { size, seed, program, certificate, mut progress } =
        Setup::new(options, folder, Layout::OneBackend)?;
    let mut servers = start(&program, folder, &certificate, stop)?;
    let (gateway, admin) = (servers.gateway.address("listener")?, servers.gateway.address("admin")?);
    progress.say(&format!(
        "gateway tls://{gateway} (pid {})   backend pid {}   admin http://{admin}",
        servers.gateway.pid(),
        servers.backend.pid()
    ));
    let roster = Arc::new(Roster::new(size.connections, seed));
    let fleet = Fleet::new(vec![gateway], &certificate, clients(&roster, seed))
        .map_err(system("make the clients' epoll"))?;
    let observer = Observer::new(Arc::clone(&roster), seed);
    let mut stage = Stage { roster, fleet, observer, servers: &mut servers, stop, progress: &mut progress };
    let measured = stage.run(options.chat, options.rate, size.rate_max, seed)?;
    let Stage { roster, mut fleet, observer, .. } = stage;
    // The gateway ends at once when nobody is left.
    fleet.close(&mut fleet::Deaf);
    Ok(Report::new(Parts {
        seed,
        size: SizeFigures::of(size, &roster, measured.secure, measured.pace),
        measured,
        durable: observer.durable.quantiles(),
        delivered: observer.delivered.quantiles(),
        clients: ClientFigures::of(&observer),
        verdict: observer.checker.verdict(),
        admin: admin.to_string(),
    }))
}

/// Starts backend and gateway on free ports, and waits until both are ready.
fn start(
    program: &Path,
    folder: &RunFolder,
    certificate: &Certificate,
    stop: &Stop,
) -> Result<Servers, DemoError> {
    let log = |name| folder.file(name).map_err(system("make a log file"));
    // The backend stores on disk: it will be killed.
    let store = format!("im.folder=\"{}\"", folder.path().join("store").display());
    // Both are of this run and this machine, so they need no secret.
    let unproven = "link.unproven=loopback".to_owned();
    let sets = arguments("backend", &["listen=127.0.0.1:0".to_owned(), unproven, store]);
    let backend = Server::start("backend", program, &sets, log("backend.log")?, stop)?;
    let sets = arguments("run", &gateway_settings("demo", certificate, &[backend.address("link")?]));
    let gateway = Server::start("gateway", program, &sets, log("gateway.log")?, stop)?;
    Ok(Servers { gateway, backend })
}

/// Arguments of a server with these settings. Whichever process serves at the end, it ends with this one.
fn arguments(verb: &str, sets: &[String]) -> Vec<String> {
    let sets = sets.iter().flat_map(|set| ["--set".to_owned(), set.clone()]);
    let sets = std::iter::once(verb.to_owned()).chain(sets);
    sets.chain(std::iter::once("--until-eof".to_owned())).collect()
}

/// Settings of a gateway on free ports.
fn gateway_settings(id: &str, certificate: &Certificate, links: &[SocketAddr]) -> Vec<String> {
    let [chain, key] = certificate.files.each_ref().map(|file| file.display().to_string());
    let links: Vec<_> = links.iter().map(SocketAddr::to_string).collect();
    vec![
        format!("gateway.id={id}"),
        "listener.address=127.0.0.1:0".to_owned(),
        "listener.kind=tls".to_owned(),
        format!("tls.certificates=[{chain:?}]"),
        format!("tls.keys=[{key:?}]"),
        "admin.address=127.0.0.1:0".to_owned(),
        "auth.mode=dev".to_owned(),
        "drain.grace=1s".to_owned(),
        format!("backend.endpoints={links:?}"),
        "backend.unproven=loopback".to_owned(),
    ]
}

/// One client per device.
fn clients(roster: &Roster, seed: u64) -> impl Iterator<Item = Client> {
    let mut random = Random::new(seed);
    roster.devices.iter().map(move |device| {
        let seats = device.seats.iter().map(|seat| {
            let conversation = &roster.conversations[seat.conversation as usize];
            let target = match &conversation.kind {
                Kind::Group { .. } => Target::Conversation(Arc::clone(&conversation.id)),
                Kind::Pair => {
                    let mut others = conversation.devices.iter().map(|other| roster.device(*other).user);
                    let other = others.find(|user| *user != device.user).expect("a pair has two users");
                    Target::User(Arc::clone(&roster.user(other).uid))
                }
            };
            (Arc::clone(&conversation.id), target)
        });
        let login = Login {
            uid: Arc::clone(&roster.user(device.user).uid),
            device: device.name,
            seats: seats.collect(),
        };
        Client::new(login, random.next_u64())
    })
}
