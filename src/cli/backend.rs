//! `moorline backend`: the reference backend in this process.

use super::settings::{refuse_strays, say_valid, variables, warn};
use super::{Failure, logging, say};
use crate::config::LogFormat;
use crate::sys::clock;
use crate::sys::signals;
use clap::{Args, Subcommand};
use crossbeam_channel::bounded;
use moorline_backend::config::SCHEMA;
use moorline_backend::im::store::{Disk, Verified};
use moorline_backend::sql::admin::{self, CellState};
use moorline_backend::tokens::Tokens;
use moorline_backend::{BackendConfig, BackendError, Live, Reloaded, import, node};
use moorline_net::audit::Entry;
use moorline_net::log::LogWriter;
use moorline_net::settings::Loaded;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug, Args)]
pub(super) struct BackendArgs {
    #[command(subcommand)]
    action: Option<Action>,
    /// Settings file in TOML; without it the defaults apply
    #[arg(short = 'c', long = "config", value_name = "FILE", global = true)]
    file: Option<PathBuf>,
    /// Override one setting, as often as needed; beats MOORLINE_BACKEND__SECTION__KEY, which beats the file
    #[arg(long = "set", value_name = "[SECTION.]KEY=VALUE", global = true)]
    sets: Vec<String>,
    /// End when standard input ends: for a parent that holds its other end, and may be killed
    #[arg(long)]
    until_eof: bool,
    /// error, warn, info, debug or trace, or tracing directives
    #[arg(long, value_name = "LEVEL", default_value = "info,fjall=warn,lsm_tree=warn", global = true)]
    log_level: String,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Validate settings and the list of tokens; 0: valid, 2: what is wrong, where, and what is expected
    Check,
    /// Print settings
    Config {
        #[command(subcommand)]
        what: Printed,
    },
    /// Put an export of conversations into im.folder, which no backend may have open
    Import {
        /// JSON lines, as docs/im.md says; - is standard input
        #[arg(value_name = "FILE")]
        export: PathBuf,
    },
    /// Copy the store in im.folder, which a backend may have open, to a new folder, and verify the copy
    Backup {
        /// The new folder; its parent must exist
        #[arg(value_name = "DIR")]
        to: PathBuf,
    },
    /// Put a copy into im.folder and verify it; all conversations go on behind every seq that was given
    Restore {
        /// A folder that `backup` made; without it im.folder holds the copy already
        #[arg(value_name = "DIR")]
        from: Option<PathBuf>,
    },
    /// Prove that seqs, members, inboxes, cursors, keys and heads of a store agree; a backend may have it open
    Verify {
        /// A folder that `backup` made; without it im.folder
        #[arg(value_name = "DIR")]
        folder: Option<PathBuf>,
    },
    /// Write the store in im.folder, which no backend may have open, anew, so that deleted content leaves the disk; verify it
    Compact,
    /// Make the tables of all cells in store.cells, or bring them to this build's version; may be repeated
    Migrate {
        /// Name of a new cluster; gateways and nodes compare it
        #[arg(long, value_name = "NAME", default_value = "moorline")]
        cluster: String,
    },
    /// Put made-up users, groups and messages into im.folder
    Seed {
        /// Users user-0, user-1 and so on
        #[arg(long, default_value_t = 1000)]
        users: u32,
        /// Groups group-0 and so on
        #[arg(long, default_value_t = 50)]
        groups: u32,
        /// Members of each group
        #[arg(long, default_value_t = 20)]
        members: u32,
        /// Messages: with groups, about half go from a random member to its group; the others go from a random user to one of the next 20 users by number
        #[arg(long, default_value_t = 100_000)]
        messages: u64,
        /// Bytes of each message
        #[arg(long, default_value_t = 100)]
        payload: usize,
        /// Seed of the generator: the same seed makes the same data in an empty store
        #[arg(long, default_value_t = 1)]
        seed: u64,
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

/// Backs up, restores or verifies a store; `None`: the action is another one.
fn keep(action: &Action, config: &BackendConfig) -> Option<Result<(), Failure>> {
    let im = &config.im;
    let is_named = matches!(action, Action::Verify { folder: Some(_) });
    let kept = match action {
        Action::Backup { .. } | Action::Restore { .. } | Action::Verify { .. } | Action::Compact
            if !is_named && im.folder.as_os_str().is_empty() =>
        {
            return Some(Err(Failure::Usage("there is no store in a folder; set `im.folder`".into())));
        }
        Action::Backup { to } => Disk::backup(&im.folder, to, im),
        Action::Restore { from } => Disk::restore(from.as_deref(), &im.folder, im),
        Action::Compact => Disk::compact(&im.folder, im),
        Action::Verify { folder } => Disk::verify(folder.as_ref().unwrap_or(&im.folder), im),
        Action::Migrate { cluster } => return Some(migrate(config, cluster)),
        Action::Check | Action::Config { .. } | Action::Import { .. } | Action::Seed { .. } => return None,
    };
    Some(kept.map_err(Failure::failed).and_then(|report| say_verified(&report)))
}

/// Makes the tables of all cells.
fn migrate(config: &BackendConfig, cluster: &str) -> Result<(), Failure> {
    if !config.store.is_cluster() {
        return Err(Failure::Usage("the settings name no cluster; set `store.cells`".into()));
    }
    if cluster.is_empty() || cluster.chars().any(char::is_control) {
        return Err(Failure::Usage("--cluster: expected a name without control characters".into()));
    }
    let cells = node::addresses(&config.store).map_err(failure)?;
    for state in admin::migrate(&cells, cluster).map_err(Failure::failed)? {
        let CellState { cluster, cell, cells, version } = state;
        say(&format!("cell {cell} of {cells}  cluster {cluster}  tables {version}\n"))?;
    }
    Ok(())
}

fn say_verified(report: &Verified) -> Result<(), Failure> {
    let Verified { users, conversations, messages, voids, entries, keys, problems, problem_count } = report;
    say(&format!(
        "users {users}  conversations {conversations}  messages {messages}  void seqs {voids}  inbox entries {entries}  \
         keys {keys}  problems {problem_count}\n"
    ))?;
    problems.iter().try_for_each(|problem| say(&format!("{problem}\n")))?;
    match problem_count {
        0 => Ok(()),
        count => Err(Failure::Failed(format!(
            "the store contradicts itself in {count} places; restore a backup, or report the lines above as a fault"
        ))),
    }
}

fn act(action: &Action, config: &BackendConfig) -> Result<(), Failure> {
    if let Some(outcome) = keep(action, config) {
        return outcome;
    }
    let start = clock::now();
    let progress = |lines: u64| tracing::info!(lines, "on the way");
    let imported = match action {
        Action::Import { export } if export.as_os_str() == "-" => {
            import::import(config, std::io::stdin().lock(), progress)
        }
        Action::Import { export } => {
            let failed = |error| Failure::Usage(format!("cannot open {}: {error}", export.display()));
            let opened = std::fs::File::open(export).map_err(failed)?;
            import::import(config, std::io::BufReader::new(opened), progress)
        }
        Action::Check
        | Action::Config { .. }
        | Action::Backup { .. }
        | Action::Restore { .. }
        | Action::Verify { .. }
        | Action::Migrate { .. }
        | Action::Compact => return Ok(()), // done above
        Action::Seed { users, groups, members, messages, payload, seed } => {
            let (users, groups, members, messages) = (*users, *groups, *members, *messages);
            let wanted = import::Seed { users, groups, members, messages, payload: *payload, seed: *seed };
            import::seed(config, &wanted, progress)
        }
    };
    let imported = imported.map_err(Failure::failed)?;
    let seconds = clock::now().saturating_since(start).as_secs_f64();
    say(&format!(
        "messages {}  repeated {}  groups {}  users known {}  in {seconds:.1} s\n",
        imported.messages, imported.repeated, imported.groups, imported.users
    ))
}

pub(super) fn run(args: &BackendArgs) -> Result<(), Failure> {
    match &args.action {
        Some(Action::Check) => return check(args),
        Some(Action::Config { what }) => return print(args, what),
        Some(_) | None => {}
    }
    let config = load(args)?;
    let (log, _) = logging::start(&args.log_level, LogFormat::Text)?;
    let outcome = run_logged(args, &config, &log);
    log.flush();
    outcome
}

fn run_logged(args: &BackendArgs, config: &BackendConfig, log: &LogWriter) -> Result<(), Failure> {
    if let Some(action) = &args.action {
        return act(action, config);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let live = Arc::new(Live::new(config).map_err(failure)?);
    let ends = listen(args, &live, &stop)?;
    if args.until_eof {
        let stop = Arc::clone(&stop);
        let watch = move || {
            // An error says the same as the end: nobody is there any more.
            std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).ok();
            stop.store(true, Ordering::SeqCst);
        };
        let named = std::thread::Builder::new().name("until-eof".into());
        named
            .spawn(watch)
            .map_err(|error| Failure::Failed(format!("cannot watch standard input: {error}")))?;
    }
    let ready = |ready: moorline_backend::Ready| {
        let api = ready.api.map(|api| format!(" api={api}")).unwrap_or_default();
        let store = match (config.store.is_cluster(), config.im.folder.as_os_str().is_empty()) {
            (true, _) => "cells",
            (false, true) => "memory",
            (false, false) => "disk",
        };
        let pid = std::process::id();
        let line = format!("moorline backend ready link={}{api} pid={pid} store={store}\n", ready.link);
        moorline_net::log::announce(&line);
    };
    let outcome = moorline_backend::run(config, &live, &log.dropped(), ready, &stop).map_err(failure);
    ends.close();
    live.audit().flush();
    outcome
}

fn failure(error: BackendError) -> Failure {
    match error {
        BackendError::Settings(_)
        | BackendError::InvalidConfig { .. }
        | BackendError::SecretFile { .. }
        | BackendError::LinkTls(_)
        | BackendError::LinkHandshakes(_)
        | BackendError::ReadConfig { .. } => Failure::usage(error),
        other => Failure::failed(other),
    }
}

/// Has a thread answer signals until the returned handle is closed: TERM, INT and QUIT stop, HUP reads the settings and
/// their files again, USR1 opens the audit log again.
fn listen(
    args: &BackendArgs,
    live: &Arc<Live>,
    stop: &Arc<AtomicBool>,
) -> Result<signal_hook::iterator::Handle, Failure> {
    let cannot = |error: std::io::Error| Failure::Failed(format!("cannot listen for signals: {error}"));
    let mut signals = Signals::new(signals::listened()).map_err(cannot)?;
    let (handle, live, stop) = (signals.handle(), Arc::clone(live), Arc::clone(stop));
    let (file, sets) = (args.file.clone(), args.sets.clone());
    // A file system that does not answer keeps nobody from hearing signals.
    let (sender, wanted) = bounded(1);
    let served = Arc::clone(&live);
    let reread = move || wanted.iter().for_each(|()| reload(file.as_deref(), &sets, &served));
    std::thread::Builder::new().name("reload".into()).spawn(reread).map_err(cannot)?;
    let run = move || {
        for signal in signals.forever() {
            match signal {
                SIGTERM | SIGINT | SIGQUIT => stop.store(true, Ordering::SeqCst),
                SIGHUP => sender.try_send(()).unwrap_or(()), // one that waits reads everything as well
                SIGUSR1 => live.audit().reopen(),
                other => signals::pass_over(other),
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(run).map_err(cannot)?;
    Ok(handle)
}

fn reload(file: Option<&Path>, sets: &[String], live: &Live) {
    let read = BackendConfig::load(file, sets, variables()).map_err(BackendError::from);
    let outcome = read.and_then(|loaded| live.reload(&loaded.config));
    let told = match &outcome {
        Ok(Reloaded { taken, kept }) => {
            tracing::info!(taken = taken.join(", "), "settings, keys and tokens were read again");
            if !kept.is_empty() {
                tracing::warn!(
                    kept = kept.join(", "),
                    "these settings need a restart; the old values stay in force"
                );
            }
            "done"
        }
        Err(error) => {
            tracing::error!(%error, "cannot reload the settings; nothing has changed");
            "refused"
        }
    };
    live.audit().note(&Entry { actor: "signal HUP", peer: "", action: "reload", target: "", outcome: told });
}

/// Returns the settings that a backend with this file and these flags has.
pub(super) fn settings(file: Option<PathBuf>, sets: Vec<String>) -> Result<BackendConfig, Failure> {
    load(&BackendArgs::of(file, sets))
}

pub(super) fn load(args: &BackendArgs) -> Result<BackendConfig, Failure> {
    load_with_origins(args).map(|loaded| loaded.config)
}

fn load_with_origins(args: &BackendArgs) -> Result<Loaded<BackendConfig>, Failure> {
    refuse_strays(&SCHEMA.strays(&crate::config::SCHEMA, variables()))?;
    let loaded = BackendConfig::load(args.file.as_deref(), &args.sets, variables());
    let loaded = loaded.map_err(Failure::usage)?;
    warn(&loaded.warnings);
    Ok(loaded)
}

impl BackendArgs {
    /// Arguments that only name settings.
    pub(super) const fn of(file: Option<PathBuf>, sets: Vec<String>) -> Self {
        Self { action: None, file, sets, until_eof: false, log_level: String::new() }
    }
}

/// Validates settings, reads the files that they name, and looks at the cells of a cluster.
fn check(args: &BackendArgs) -> Result<(), Failure> {
    let config = load(args)?;
    moorline_backend::secrets::load(&config).map_err(Failure::usage)?;
    moorline_backend::server::check_tls(&config).map_err(Failure::usage)?;
    if !config.tokens_file.as_os_str().is_empty() {
        Tokens::load(&config.tokens_file).map_err(Failure::usage)?;
    }
    if config.store.is_cluster() {
        let cells = node::addresses(&config.store).map_err(failure)?;
        let cluster = admin::check(&cells).map_err(Failure::failed)?;
        say(&format!("{} cells of cluster {cluster}\n", cells.len()))?;
    }
    say_valid(args.file.as_deref())
}

fn print(args: &BackendArgs, what: &Printed) -> Result<(), Failure> {
    match what {
        Printed::Default => say(&SCHEMA.default_toml()),
        Printed::Effective => say(&SCHEMA.effective_toml(&load_with_origins(args)?)),
        Printed::Doc => say(&SCHEMA.reference_markdown()),
    }
}
