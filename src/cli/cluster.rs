//! `moorline cluster`: what the cells of a cluster know of its nodes.

use super::backend::{self, BackendArgs};
use super::{Failure, say};
use clap::{Args, Subcommand};
use moorline_backend::node;
use moorline_backend::sql::status::{self, CellReport, ClusterState, NodeState};
use std::fmt::Write as _;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(super) struct ClusterArgs {
    #[command(subcommand)]
    action: Action,
    /// Settings file of a backend in TOML, with store.cells
    #[arg(short = 'c', long = "config", value_name = "FILE", global = true)]
    file: Option<PathBuf>,
    /// Override one setting of the backend, as often as needed
    #[arg(long = "set", value_name = "[SECTION.]KEY=VALUE", global = true)]
    sets: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print nodes, slots and cells, and what does not work; 0: everything works, 1: something does not
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(args: ClusterArgs) -> Result<(), Failure> {
    let ClusterArgs { action: Action::Status { json }, file, sets } = args;
    let config = backend::load(&BackendArgs::of(file, sets))?;
    if !config.store.is_cluster() {
        return Err(Failure::Usage("the settings name no cluster; set `store.cells`".into()));
    }
    let cells = node::addresses(&config.store).map_err(Failure::usage)?;
    let state = status::read(&cells);
    if json {
        let text = serde_json::to_string_pretty(&state).map_err(Failure::failed)?;
        say(&format!("{text}\n"))?;
    } else {
        say(&text_of(&state))?;
    }
    match state.problems.len() {
        0 => Ok(()),
        1 => Err(Failure::Failed("the cluster has a problem; see above".into())),
        count => Err(Failure::Failed(format!("the cluster has {count} problems; see above"))),
    }
}

fn text_of(state: &ClusterState) -> String {
    let ClusterState { cluster, nodes, unowned, cells, problems } = state;
    let mut text = format!(
        "cluster {cluster}: {} nodes, {} cells, {unowned} slots without an owner\n",
        nodes.len(),
        cells.len()
    );
    for NodeState { node, address, lease_ms, slots } in nodes {
        let lease = if *lease_ms > 0 { format!("lease {lease_ms} ms") } else { "no lease".to_owned() };
        _ = writeln!(text, "node {node}  {address}  {lease}  slots {slots}");
    }
    for CellReport { cell, address, version, standbys, quorum, waiting } in cells {
        _ = writeln!(
            text,
            "cell {cell}  {address}  tables {version}  quorum {quorum:?}  on their way {waiting}"
        );
        for (name, kind, lag_ms) in standbys {
            _ = writeln!(text, "  standby {name}  {kind}  lag {lag_ms} ms");
        }
    }
    problems.iter().for_each(|problem| _ = writeln!(text, "PROBLEM: {problem}"));
    text
}
