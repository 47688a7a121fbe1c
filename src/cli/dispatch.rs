//! `moorline dispatch`: gives clients endpoints of gateways.

use super::settings::{refuse_strays, say_valid, variables, warn};
use super::{Failure, logging, say};
use crate::config::LogFormat;
use crate::dispatch::config::{DispatchConfig, SCHEMA};
use crate::dispatch::{Dispatch, DispatchError, Reloaded, read_certificates};
use crate::sys::signals;
use clap::{Args, Subcommand};
use moorline_net::settings::Loaded;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(super) struct DispatchArgs {
    #[command(subcommand)]
    action: Option<Action>,
    /// Settings file in TOML, with a [gateway.NAME] for each gateway
    #[arg(short = 'c', long = "config", value_name = "FILE", global = true)]
    file: Option<PathBuf>,
    /// Override one setting, as often as needed; beats MOORLINE_DISPATCH__KEY, which beats the file
    #[arg(long = "set", value_name = "[SECTION.]KEY=VALUE", global = true)]
    sets: Vec<String>,
    /// error, warn, info, debug or trace, or tracing directives
    #[arg(long, value_name = "LEVEL", default_value = "info", global = true)]
    log_level: String,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Validate settings and the certificate; 0: valid, 2: what is wrong, where, and what is expected
    Check,
    /// Print settings
    Config {
        #[command(subcommand)]
        what: Printed,
    },
}

#[derive(Debug, Subcommand)]
enum Printed {
    /// A settings file that holds every key with its default and meaning
    Default,
    /// The values in force, each with where it came from
    Effective,
    /// The reference tables, in Markdown
    Doc,
}

impl DispatchArgs {
    fn load(&self) -> Result<Loaded<DispatchConfig>, Failure> {
        refuse_strays(&SCHEMA.strays(&crate::config::SCHEMA, variables()))?;
        let loaded = DispatchConfig::load(self.file.as_deref(), &self.sets, variables());
        let loaded = loaded.map_err(Failure::usage)?;
        warn(&loaded.warnings);
        Ok(loaded)
    }
}

pub(super) fn run(args: &DispatchArgs) -> Result<(), Failure> {
    match &args.action {
        Some(Action::Check) => {
            read_certificates(&args.load()?.config).map_err(Failure::usage)?;
            say_valid(args.file.as_deref())
        }
        Some(Action::Config { what: Printed::Default }) => say(&SCHEMA.default_toml()),
        Some(Action::Config { what: Printed::Doc }) => say(&SCHEMA.reference_markdown()),
        Some(Action::Config { what: Printed::Effective }) => say(&SCHEMA.effective_toml(&args.load()?)),
        None => serve(args),
    }
}

fn serve(args: &DispatchArgs) -> Result<(), Failure> {
    let config = args.load()?.config;
    let (log, _) = logging::start(&args.log_level, LogFormat::Text)?;
    let cannot = |error| Failure::Failed(format!("cannot listen for signals: {error}"));
    let mut signals = Signals::new(signals::listened()).map_err(cannot)?;
    let dispatch = Dispatch::start(&config, log.dropped()).map_err(failure)?;
    let (clients, admin) = dispatch.addresses();
    let scheme = if config.has_tls() { "https" } else { "http" };
    let (pid, gateways) = (std::process::id(), config.gateway.len());
    moorline_net::log::announce(&format!(
        "moorline dispatch ready listen={scheme}://{clients} admin={admin} pid={pid} gateways={gateways}\n"
    ));
    for signal in signals.forever() {
        match signal {
            SIGTERM | SIGINT | SIGQUIT => break,
            SIGHUP => reload(args, &dispatch),
            SIGUSR1 => {} // there is no audit log
            other => signals::pass_over(other),
        }
    }
    dispatch.stop();
    log.flush();
    Ok(())
}

fn reload(args: &DispatchArgs, dispatch: &Dispatch) {
    let read = DispatchConfig::load(args.file.as_deref(), &args.sets, variables());
    let read = read.map_err(|error| error.to_string());
    match read.and_then(|loaded| dispatch.reload(&loaded.config).map_err(|error| error.to_string())) {
        Ok(Reloaded { taken, kept }) => {
            tracing::info!(taken = taken.join(", "), "settings and the certificate were read again");
            if !kept.is_empty() {
                tracing::warn!(
                    kept = kept.join(", "),
                    "these settings need a restart; the old values stay in force"
                );
            }
        }
        Err(error) => tracing::error!(%error, "cannot reload the settings; nothing has changed"),
    }
}

fn failure(error: DispatchError) -> Failure {
    match error {
        DispatchError::Certificate(_) => Failure::usage(error),
        other => Failure::failed(other),
    }
}
