//! `moorline upgrade` and `moorline rollback`: orders a hot restart and waits for its verdict.

use super::admin::{Running, Watch};
use super::find::AdminArgs;
use super::{Failure, say};
use crate::admin::{Restart, Restartz, UpgradeArguments};
use crate::sys::clock;
use clap::Args;
use moorline_net::http::{Method, Question};
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Between looks at how far it is.
const LOOK: Duration = Duration::from_millis(50);
/// Longest `handover.timeout`, in milliseconds.
const TIMEOUT_MAX_MS: u64 = 600_000;
/// Beyond the restart's own deadline, on a machine that is busy with something else. A gateway that ends is noticed at once.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(super) struct UpgradeArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Binary to run; without it the path that the gateway was started by, as it is now
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// For the check, the start and the warming of the new process together; default: handover.timeout
    #[arg(long, value_name = "TIME", value_parser = humantime)]
    timeout: Option<Duration>,
    /// Check the binary and its settings and start it, but hand nothing over
    #[arg(long)]
    dry_run: bool,
    /// Print the JSON of the restart
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Print the JSON of the restart
    #[arg(long)]
    json: bool,
}

fn humantime(text: &str) -> Result<Duration, String> {
    crate::config::parse_duration(text).map_err(|error| error.to_string())
}

pub(super) fn upgrade(args: &UpgradeArgs) -> Result<(), Failure> {
    let binary = match &args.binary {
        Some(path) => {
            let failed = |error| Failure::Usage(format!("--binary {}: {error}", path.display()));
            path.metadata().map_err(failed)?;
            // Links stay as they are: a later upgrade follows them anew.
            Some(plain(&std::path::absolute(path).map_err(failed)?)?)
        }
        None => None,
    };
    let arguments = UpgradeArguments {
        timeout_ms: args.timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        dry_run: args.dry_run,
        binary,
        previous: false,
    };
    let (gateway, headers) = (args.admin.find()?, arguments.old_headers());
    let before = look(&gateway).map_err(|error| cannot_look(&gateway, &error))?;
    order(&gateway, before, &arguments, headers, args.json)
}

/// Returns a path as text for JSON and for a header.
fn plain(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().filter(|text| !text.contains(|c: char| c.is_control()));
    let wrong = || Failure::Usage(format!("--binary {}: not a plain name", path.display()));
    text.map(str::to_owned).ok_or_else(wrong)
}

/// Runs the binary again that served before the last hot restart that was committed and changed it.
pub(super) fn rollback(args: &RollbackArgs) -> Result<(), Failure> {
    let gateway = args.admin.find()?;
    let before = look(&gateway).map_err(|error| cannot_look(&gateway, &error))?;
    let last = before.restarts.iter().rev().find(|restart| restart.verdict == "committed");
    let last = last.ok_or_else(|| {
        Failure::Failed("no hot restart was committed: there is nothing to go back to".into())
    })?;
    let arguments = UpgradeArguments { previous: true, ..UpgradeArguments::default() };
    // A gateway of version 0.1 knows it by its path only.
    let by_path = UpgradeArguments {
        binary: Some(plain(Path::new(&last.previous_binary))?),
        ..UpgradeArguments::default()
    };
    let headers = by_path.old_headers();
    order(&gateway, before, &arguments, headers, args.json)
}

/// Gives the order and waits for its verdict. `seen`: the gateway as the order means it.
fn order(
    gateway: &Running,
    seen: Restartz,
    arguments: &UpgradeArguments,
    headers: Vec<(&'static str, String)>,
    is_json: bool,
) -> Result<(), Failure> {
    let (generation, mut before) = (seen.generation, seen);
    let json = serde_json::to_string(arguments).map_err(Failure::failed)?;
    let question = Question { method: Method::POST, path: "/v1/upgrade", headers, json: Some(json) };
    let number = gateway.order_after("order a hot restart at", &question, || {
        // Another restart may have been committed meanwhile, or another gateway started.
        before = look(gateway).map_err(|error| cannot_look(gateway, &error))?;
        if arguments.previous && before.generation != generation {
            return Err(Failure::Failed(committed_meanwhile(&before)));
        }
        Ok(())
    })?;
    let own_timeout = if before.timeout_ms == 0 { TIMEOUT_MAX_MS } else { before.timeout_ms };
    let timeout = Duration::from_millis(arguments.timeout_ms.unwrap_or(own_timeout));
    let until = clock::machine_now() + timeout + PATIENCE;
    let mut watch = Watch::begin(before.epoch);
    let restart = loop {
        let seen = look(gateway);
        watch.judge(gateway, seen.as_ref().map(|shown| shown.epoch))?;
        let restarts = seen.map(|shown| shown.restarts).unwrap_or_default();
        if let Some(restart) = restarts.into_iter().find(|restart| restart.number == number) {
            break restart;
        }
        if clock::machine_now() >= until {
            return Err(Failure::Failed(format!(
                "no verdict in time; look at /v1/restartz of {gateway} and the gateway's log"
            )));
        }
        std::thread::park_timeout(LOOK);
    };
    if is_json {
        say(&(serde_json::to_string_pretty(&restart).map_err(Failure::failed)? + "\n"))?;
    } else {
        say(&told(&restart))?;
    }
    match restart.verdict.as_str() {
        "committed" | "dry_run" => Ok(()),
        _ if restart.is_ending => {
            Err(Failure::Failed(format!("rolled back, and the gateway ends: {}", restart.problem)))
        }
        _ => Err(Failure::Failed(format!("rolled back, the old process serves on: {}", restart.problem))),
    }
}

/// Reads `/v1/restartz`. While it moves, the address may be nobody's for a moment.
fn look(gateway: &Running) -> io::Result<Restartz> {
    let body = gateway.ask(&Question::get("/v1/restartz"))?;
    serde_json::from_str(&body).map_err(io::Error::other)
}

fn cannot_look(gateway: &Running, error: &io::Error) -> Failure {
    gateway.cannot("read /v1/restartz of", error)
}

/// Says why a rollback is not ordered any more: the program to go back to is another one.
fn committed_meanwhile(shown: &Restartz) -> String {
    let last = shown.restarts.iter().rev().find(|restart| restart.verdict == "committed");
    let (from, to) = last.map_or(("?", "?"), |last| (&*last.from, &*last.to));
    format!(
        "not ordered: another hot restart was committed meanwhile, from {from} to {to}; `moorline rollback` would undo that \
         one now, run it again for this"
    )
}

fn told(restart: &Restart) -> String {
    let mut text = String::new();
    let count = restart.steps.len();
    for (place, step) in restart.steps.iter().enumerate() {
        let (name, detail, milliseconds) = (&step.name, &step.detail, step.seconds * 1e3);
        let line = format!("{}/{count} {name:<10} {milliseconds:>9.1} ms  {detail}", place + 1);
        writeln!(text, "{}", line.trim_end()).ok();
    }
    writeln!(text, "from {}\nto   {}", restart.from, restart.to).ok();
    match restart.verdict.as_str() {
        "committed" => writeln!(
            text,
            "committed: generation {}, pid {pid}, {} sockets moved, stood still for {:.1} ms\n\
             pid {pid} serves on; `moorline stop` or `kill -TERM {pid}` ends it",
            restart.generation,
            restart.sockets,
            restart.pause_seconds * 1e3,
            pid = restart.pid,
        ),
        "dry_run" => writeln!(text, "dry run: the new process would have taken over from here"),
        _ => Ok(()),
    }
    .ok();
    text
}
