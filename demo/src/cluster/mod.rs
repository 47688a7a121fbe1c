//! `moorline demo --cluster`: three nodes over a database with two standbys, three gateways, and clients of all of them. A gateway, a node and
//! the primary are killed one after the other, and none of them comes back.
//!
//! | file | holds |
//! |---|---|
//! | `cell` | PostgreSQL: a primary and two standbys, its death and its succession |
//! | `servers` | the processes: cell, nodes, gateways |
//! | `acts` | the chat, with a loss in the middle of each third |
//! | `report` | the figures |
//!
//! Example: alice is at gateway 1, which is killed while her message 7 is on its way. She logs in at gateway 2, sends 7 again with
//! its key, and is told the place that 7 has had all the time; bob gets it once.

mod acts;
mod cell;
mod report;
mod servers;

pub(crate) use acts::Measured;
pub use report::ClusterReport;

use crate::fleet::{self, Fleet};
use crate::folder::RunFolder;
use crate::observer::Observer;
use crate::report::{ClientFigures, SizeFigures};
use crate::roster::Roster;
use crate::size::Layout;
use crate::stage::Stage;
use crate::stop::Stop;
use crate::{DemoError, Options, Setup, clients, in_folder, system};
use report::Parts;
use servers::Cluster;
use std::sync::Arc;

/// Plays the demo of a cluster; progress goes to standard error.
///
/// # Errors
/// [`DemoError`]: the demo could not be played to the end; [`DemoError::Missing`]: PostgreSQL is not installed. A fault that the
/// checker found is not an error; the report has it.
pub fn run_cluster(options: &Options) -> Result<ClusterReport, DemoError> {
    let (outcome, logs) =
        in_folder(options, |folder, stop| play(options, folder, stop), ClusterReport::judgement)?;
    Ok(outcome.with_logs(logs))
}

fn play(options: &Options, folder: &RunFolder, stop: &Stop) -> Result<ClusterReport, DemoError> {
    let Setup { size, seed, program, certificate, mut progress } =
        Setup::new(options, folder, Layout::Cluster)?;
    progress.say("starting PostgreSQL with two standbys, three nodes and three gateways");
    let mut cluster = Cluster::start(&program, folder, &certificate, stop)?;
    progress.say(&cluster.describe());
    let roster = Arc::new(Roster::new(size.connections, seed));
    let fleet = Fleet::new(cluster.listeners()?, &certificate, clients(&roster, seed))
        .map_err(system("make the clients' epoll"))?;
    let observer = Observer::new(Arc::clone(&roster), seed);
    let mut stage = Stage { roster, fleet, observer, servers: &mut cluster, stop, progress: &mut progress };
    let measured = stage.run(options.chat, options.rate, size.rate_max, seed)?;
    let Stage { roster, mut fleet, observer, .. } = stage;
    fleet.close(&mut fleet::Deaf);
    Ok(ClusterReport::new(Parts {
        seed,
        size: SizeFigures::of(size, &roster, measured.secure, measured.pace),
        measured,
        durable: observer.durable.quantiles(),
        delivered: observer.delivered.quantiles(),
        clients: ClientFigures::of(&observer),
        verdict: observer.checker.verdict(),
    }))
}
