//! `moorline backend`: the reference backend in this process.

use super::{Failure, logging, say};
use crate::config::LogFormat;
use crate::sys::clock;
use clap::{Args, Subcommand};
use moorline_backend::{BackendConfig, BackendError, import};
use moorline_net::log::LogWriter;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use toml::{Table, Value};

#[derive(Debug, Args)]
pub(super) struct BackendArgs {
    #[command(subcommand)]
    action: Option<Action>,
    /// Settings file in TOML; without it the defaults apply
    #[arg(short = 'c', long = "config", value_name = "FILE", global = true)]
    file: Option<PathBuf>,
    /// Override one setting, as often as needed; beats the file
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
    /// Put an export of conversations into im.folder, which no backend may have open
    Import {
        /// JSON lines, as docs/im.md says; - is standard input
        #[arg(value_name = "FILE")]
        export: PathBuf,
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
        /// The same seed makes the same, in an empty store
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

fn act(action: &Action, config: &BackendConfig) -> Result<(), Failure> {
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
    let config = load(args)?;
    let log = logging::start(&args.log_level, LogFormat::Text)?;
    let outcome = run_logged(args, &config, &log);
    log.flush();
    outcome
}

fn run_logged(args: &BackendArgs, config: &BackendConfig, log: &LogWriter) -> Result<(), Failure> {
    let variables = std::env::vars_os().map(|(name, _)| name);
    let names: Vec<_> = variables.filter(|name| name.as_encoded_bytes().starts_with(b"MOORLINE__")).collect();
    if !names.is_empty() {
        tracing::warn!(?names, "variables set the gateway only: a backend has a file and --set");
    }
    if let Some(action) = &args.action {
        return act(action, config);
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| Failure::Failed(format!("cannot listen for signals: {error}")))?;
    }
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
        let store = if config.im.folder.as_os_str().is_empty() { "memory" } else { "disk" };
        let pid = std::process::id();
        let line = format!("moorline backend ready link={}{api} pid={pid} store={store}\n", ready.link);
        moorline_net::log::announce(line);
    };
    moorline_backend::run(config, &log.dropped(), ready, &stop).map_err(|error| match error {
        BackendError::InvalidConfig { .. } | BackendError::ReadConfig { .. } => Failure::usage(error),
        other => Failure::failed(other),
    })
}

/// The settings that a backend with this file and these flags has.
pub(super) fn settings(file: Option<PathBuf>, sets: Vec<String>) -> Result<BackendConfig, Failure> {
    load(&BackendArgs { action: None, file, sets, until_eof: false, log_level: String::new() })
}

/// The file alone first, so that its mistakes are reported with their lines; then each flag.
pub(super) fn load(args: &BackendArgs) -> Result<BackendConfig, Failure> {
    let mut table = Table::new();
    if let Some(path) = &args.file {
        let named =
            |error: &dyn ToString| Failure::Usage(format!("{}: {}", path.display(), error.to_string()));
        let text = std::fs::read_to_string(path).map_err(|error| named(&error))?;
        BackendConfig::read(&text).map_err(|error| named(&error))?;
        table = toml::from_str(&text).map_err(|error| named(&error))?;
    }
    let mut config = BackendConfig::default();
    if !table.is_empty() {
        config = parse(&table)?;
    }
    for set in &args.sets {
        let refused = |problem: String| Failure::Usage(format!("--set {set}: {problem}"));
        insert(&mut table, set).map_err(refused)?;
        config = parse(&table).map_err(|failure| match failure {
            Failure::Usage(problem) => refused(problem),
            other => other,
        })?;
    }
    // All of them together: one may need another.
    config.validate().map_err(|error| {
        let BackendError::InvalidConfig { key, .. } = &error else { return Failure::usage(error) };
        let named = args.sets.iter().rev().find(|set| set.trim_start().starts_with(key));
        Failure::Usage(named.map_or_else(|| error.to_string(), |set| format!("--set {set}: {error}")))
    })?;
    Ok(config)
}

fn parse(table: &Table) -> Result<BackendConfig, Failure> {
    let text = toml::to_string(table).map_err(Failure::usage)?;
    BackendConfig::read(&text).map_err(Failure::usage)
}

fn insert(table: &mut Table, set: &str) -> Result<(), String> {
    let (path, text) = set.split_once('=').ok_or("expected key=value or section.key=value")?;
    let value = literal(text.trim());
    let (sections, name) = path.trim().rsplit_once('.').unwrap_or(("", path.trim()));
    let mut place = table;
    for section in sections.split('.').filter(|section| !section.is_empty()) {
        let slot = place.entry(section).or_insert_with(|| Value::Table(Table::new()));
        place = slot.as_table_mut().ok_or_else(|| format!("{section} is no section"))?;
    }
    place.insert(name.to_owned(), value);
    Ok(())
}

/// A TOML value as it stands, else text: `--set listen=127.0.0.1:0` needs no quotes.
fn literal(text: &str) -> Value {
    let table: Option<Table> = toml::from_str(&format!("value = {text}")).ok();
    let value = table.and_then(|mut table| table.remove("value").filter(|_| table.is_empty()));
    value.unwrap_or_else(|| Value::String(text.to_owned()))
}
