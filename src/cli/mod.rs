//! Arguments and exit codes of the `moorline` program.
//!
//! Owns the command line; every subcommand is one small function over the library. Answers go to
//! standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage or
//! settings; of a demo also 4 a proven fault, 5 too busy to judge.

mod admin;
mod backend;
mod cluster;
mod demo;
mod dev;
mod dev_certificate;
mod dispatch;
mod drain;
mod find;
mod logging;
mod manual;
mod reload;
mod settings;
mod status;
mod stop;
mod supervise;
#[cfg(test)]
mod tests;
mod token;
mod upgrade;

use crate::config::Config;
use crate::gateway::{self, GatewayError};
use crate::sys::limits;
use clap::{CommandFactory as _, Parser, Subcommand};
use nix::sys::stat::{Mode, umask};
use std::error::Error;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Instant-messaging connection gateway.
#[derive(Debug, Parser)]
#[command(name = "moorline", version, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or settings; of `demo` also 4 and 5, see its help."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway until TERM (drains first) or INT
    Run {
        #[command(flatten)]
        settings: settings::SettingsArgs,
        /// End when standard input does: for a gateway that belongs to another process
        #[arg(long, hide = true)]
        until_eof: bool,
        /// Stay, and let other processes serve: what process 1 of a container does by itself
        #[arg(long)]
        supervise: bool,
    },
    /// Run the reference IM backend until TERM or INT
    Backend(backend::BackendArgs),
    /// Show the nodes and cells of a cluster of backends
    Cluster(cluster::ClusterArgs),
    /// Tell clients which gateways to try, by region and by room, until TERM or INT
    Dispatch(dispatch::DispatchArgs),
    /// Run a gateway and a backend for development, on this machine only, until TERM or INT
    Dev(dev::DevArgs),
    /// Play the whole system on this machine: gateway, backend, thousands of clients, and a checker
    Demo(demo::DemoArgs),
    /// Validate settings and key file; 0: valid, 2: what is wrong, where, and what is expected
    Check(settings::SettingsArgs),
    /// Print settings
    Config {
        #[command(subcommand)]
        what: settings::Printed,
    },
    /// Show how a running gateway is
    Status {
        #[command(flatten)]
        admin: find::AdminArgs,
        /// Print the JSON of /v1/varz
        #[arg(long)]
        json: bool,
    },
    /// Hand everything over to a new process, without dropping a connection, and wait for the verdict
    Upgrade(upgrade::UpgradeArgs),
    /// Hand everything over to the binary that served before the last upgrade
    Rollback(upgrade::RollbackArgs),
    /// Ask the clients of a running gateway to go elsewhere, and wait until they have
    Drain(drain::DrainArgs),
    /// End a running gateway as TERM does: drain it, and wait until it has ended
    Stop(stop::StopArgs),
    /// Let clients come again after a drain
    Undrain(drain::UndrainArgs),
    /// Have a running gateway read its settings and keys again
    Reload(reload::ReloadArgs),
    /// Sign an HS256 login token, for trying things out
    Token(token::TokenArgs),
    /// Print a completion script for a shell
    Completions {
        /// Shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one per subcommand
    Man {
        /// Write moorline.1 and moorline-COMMAND.1 into this directory
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// Reason why the program ends with another code than 0.
#[derive(Debug)]
enum Failure {
    /// 1: it was asked for something that did not work.
    Failed(String),
    /// 2: it was asked wrongly.
    Usage(String),
    /// 4: the demo proved a fault.
    Faults(String),
    /// 5: the demo could not judge.
    Busy(String),
    /// 0: nobody reads the answer any more (`moorline config doc | head`).
    Unread,
}

impl Failure {
    fn failed(error: impl Into<Box<dyn Error>>) -> Self {
        Self::Failed(error.into().to_string())
    }

    fn usage(error: impl Into<Box<dyn Error>>) -> Self {
        Self::Usage(error.into().to_string())
    }
}

impl From<GatewayError> for Failure {
    fn from(error: GatewayError) -> Self {
        match error {
            GatewayError::Config(_)
            | GatewayError::Auth(_)
            | GatewayError::Trust(_)
            | GatewayError::Tls(_) => Self::usage(error),
            _ => Self::failed(error),
        }
    }
}

/// Reads the arguments, does what they say, and tells the exit code.
pub fn main() -> ExitCode {
    gateway::restore_process_name();
    if let Some(code) = gateway::guard_if_asked() {
        return code;
    }
    if let Err(problem) = limits::check_stack() {
        note(&format!("moorline: {problem}"));
        return ExitCode::FAILURE;
    }
    let command = Arguments::parse().command;
    if matches!(
        command,
        Command::Run { .. } | Command::Backend(_) | Command::Dispatch(_) | Command::Dev(_) | Command::Demo(_)
    ) {
        // What a service writes is for its user alone: stores, logs, sockets.
        umask(Mode::S_IRWXG | Mode::S_IRWXO);
        // Sockets must not take the descriptors that a store needs.
        limits::raise_open_files();
        limits::survive_file_limit();
    }
    let outcome = match command {
        Command::Run { supervise, .. } if supervise::is_wanted(supervise) => match supervise::run() {
            Ok(code) => return ExitCode::from(code),
            Err(failure) => Err(failure),
        },
        Command::Run { settings, until_eof, .. } => run(&settings, until_eof),
        Command::Backend(args) => backend::run(&args),
        Command::Cluster(args) => cluster::run(args),
        Command::Dispatch(args) => dispatch::run(&args),
        Command::Dev(args) => dev::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Check(args) => settings::check(&args),
        Command::Config { what } => settings::print(&what),
        Command::Status { admin, json } => status::show(&admin, json),
        Command::Upgrade(args) => upgrade::upgrade(&args),
        Command::Rollback(args) => upgrade::rollback(&args),
        Command::Drain(args) => drain::drain(&args),
        Command::Stop(args) => stop::stop(&args),
        Command::Undrain(args) => drain::undrain(&args),
        Command::Reload(args) => reload::reload(&args),
        Command::Token(args) => token::sign(&args),
        Command::Completions { shell } => manual::completions(Arguments::command(), shell),
        Command::Man { dir } => manual::pages(Arguments::command(), dir.as_deref()),
    };
    let (code, message) = match outcome {
        Ok(()) | Err(Failure::Unread) => return ExitCode::SUCCESS,
        Err(Failure::Failed(message)) => (1, message),
        Err(Failure::Usage(message)) => (2, message),
        Err(Failure::Faults(message)) => (4, message),
        Err(Failure::Busy(message)) => (5, message),
    };
    let lines: Vec<_> = message.lines().map(|line| format!("moorline: {line}")).collect();
    note(&lines.join("\n"));
    ExitCode::from(code)
}

fn run(args: &settings::SettingsArgs, until_eof: bool) -> Result<(), Failure> {
    let config = args.load().inspect_err(|_| args.hint())?.config;
    let (log, set_log_level) = logging::start(&config.log.level, config.log.format)?;
    if args.file.is_none() {
        tracing::info!("no -c: defaults, MOORLINE__ variables and --set apply");
    }
    // One that is only asked what it reads has no input, and would end before it has answered.
    if until_eof && !gateway::is_only_asked() {
        // An error says the same as the end: nobody is there any more.
        let watch = || {
            io::copy(&mut io::stdin(), &mut io::sink()).ok();
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).ok();
        };
        let named = std::thread::Builder::new().name("until-eof".into());
        named
            .spawn(watch)
            .map_err(|error| Failure::Failed(format!("cannot watch standard input: {error}")))?;
    }
    let args = args.clone();
    let reread = Arc::new(move || Config::load(args.file.as_deref(), &args.sets, settings::variables()));
    let outcome = gateway::run(config, &log, gateway::Sources { reread, set_log_level });
    log.flush();
    Ok(outcome?)
}

/// Writes an answer to standard output.
fn say(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::Unread,
        _ => Failure::Failed(format!("cannot write to standard output: {error}")),
    })
}

/// Writes a line to standard error, within 2 s or not at all: a reader that is stuck must not hold up a
/// process that looks after others.
fn note(line: &str) {
    moorline_net::log::write_within_deadline(io::stderr(), format!("{line}\n")).ok();
}
