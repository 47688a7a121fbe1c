//! `moorline reload`: has a running gateway read its settings and keys again, and says what came of it.

use super::admin::Running;
use super::find::AdminArgs;
use super::{Failure, note, say};
use crate::admin::Reloadz;
use crate::sys::clock;
use clap::Args;
use moorline_net::http::{Method, Question};
use std::time::Duration;

/// Between looks at whether it is done.
const LOOK: Duration = Duration::from_millis(50);
/// For the reload to be carried out.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct ReloadArgs {
    #[command(flatten)]
    admin: AdminArgs,
}

/// Orders a reload and waits for its result.
pub(super) fn reload(args: &ReloadArgs) -> Result<(), Failure> {
    let gateway = args.admin.find()?;
    let json = Some("{}".to_owned());
    let question = Question { method: Method::POST, json, ..Question::get("/v1/reload") };
    let number = gateway.order("order a reload at", &question)?;
    let until = clock::machine_now() + PATIENCE;
    let done = loop {
        let shown = look(&gateway)?;
        if shown.number >= number {
            break shown;
        }
        if clock::machine_now() >= until {
            return Err(Failure::Failed(format!("{gateway} has not carried out the reload within 10 s")));
        }
        std::thread::park_timeout(LOOK);
    };
    let Reloadz { taken, kept, problem, .. } = done;
    if !problem.is_empty() {
        return Err(Failure::Failed(format!("nothing has changed: {problem}")));
    }
    if !kept.is_empty() {
        note(&format!("warning: these settings need `moorline upgrade` or a restart: {}", kept.join(", ")));
    }
    let changed = if taken.is_empty() { "no setting has changed".to_owned() } else { taken.join(", ") };
    say(&format!("settings and keys were read again; in force: {changed}\n"))
}

fn look(gateway: &Running) -> Result<Reloadz, Failure> {
    let answer = gateway.ask(&Question::get("/v1/reloadz")).map_err(|error| gateway.cannot("ask", &error))?;
    serde_json::from_str(&answer).map_err(Failure::failed)
}
