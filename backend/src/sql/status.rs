//! State of a cluster, as its cells have it: for people and programs of the operator.
//!
//! Example: node 2 is dead for a minute. Its slots have new owners, and [`ClusterState::problems`] is empty. A cell without a
//! standby answers no commit: the problem names the cell.

use super::CellAddress;
use super::admin::CellState;
use super::connection::{SqlError, connect, within};
use super::schema::VERSION;
use moorline_proto::slots::SLOTS;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Longest wait for the answers of one cell.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages on their way that are counted, at most.
const WAITING_MAX: i64 = 100_000;

const CELL: &str = "select cluster, cell, cells, version from moorline_cell";
const STANDBYS: &str = "
select application_name, sync_state, coalesce((extract(epoch from replay_lag) * 1000)::int8, 0)
from pg_stat_replication where state = 'streaming' or state is null order by application_name";
const WANTED: &str = "select current_setting('synchronous_standby_names'), current_setting('synchronous_commit'), current_user::text";
const OWNERS: &str = "select slot, node from owner order by slot";
const NODES: &str = "
select number, address, (extract(epoch from until - clock_timestamp()) * 1000)::int8 from node order by number";

/// A cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ClusterState {
    /// Name of the cluster.
    pub cluster: String,
    /// Nodes that have, or had, a lease.
    pub nodes: Vec<NodeState>,
    /// Slots without an owner.
    pub unowned: usize,
    /// Cells in the order of the settings.
    pub cells: Vec<CellReport>,
    /// Sentences about what does not work.
    pub problems: Vec<String>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeState {
    /// Number of the node.
    pub node: u16,
    /// Address where other nodes connect; empty: the node has no lease.
    pub address: String,
    /// Rest of the lease in milliseconds; 0: the lease has ended.
    pub lease_ms: u64,
    /// Slots that the node owns.
    pub slots: usize,
}

/// A cell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CellReport {
    /// Number of the cell.
    pub cell: u16,
    /// Hosts and database.
    pub address: String,
    /// Version of the tables.
    pub version: i32,
    /// Standbys that receive: name, `quorum`, `sync` or `async`, and lag in milliseconds. Empty instead of the kind: the user of the
    /// cell may not see it (`pg_monitor`).
    pub standbys: Vec<(String, String, u64)>,
    /// Setting `synchronous_standby_names` of the server; empty: a commit waits for no standby.
    pub quorum: String,
    /// Messages on their way to other slots, at most 100,000.
    pub waiting: u64,
}

/// Reads the state of a cluster. What cannot be read is one of [`ClusterState::problems`].
pub fn read(cells: &[CellAddress]) -> ClusterState {
    let mut state = ClusterState::default();
    let (mut slots, mut unowned) = (BTreeMap::<u16, usize>::new(), SLOTS);
    let mut leases = Vec::new();
    for (cell, address) in (0..).zip(cells) {
        let mut report = CellReport { cell, address: address.to_string(), ..CellReport::default() };
        match read_cell(address) {
            Ok(found) => {
                judge(&mut state, &mut report, &found, cells.len());
                for node in &found.owners {
                    *slots.entry(*node).or_default() += 1;
                    unowned -= 1;
                }
                if cell == 0 {
                    leases = found.leases;
                }
            }
            Err(error) => state.problems.push(format!("cell {cell} at {address}: {error}")),
        }
        state.cells.push(report);
    }
    let known: BTreeSet<u16> = leases.iter().map(|(node, ..)| *node).chain(slots.keys().copied()).collect();
    for node in known {
        let lease = leases.iter().find(|(number, ..)| *number == node);
        let (address, lease_ms) = lease.map_or((String::new(), 0), |(_, address, ms)| (address.clone(), *ms));
        let slots = slots.get(&node).copied().unwrap_or(0);
        if lease_ms == 0 && slots > 0 {
            state.problems.push(format!("node {node} owns {slots} slots and has no lease"));
        }
        state.nodes.push(NodeState { node, address, lease_ms, slots });
    }
    state.unowned = unowned;
    if unowned > 0 {
        state.problems.push(format!("{unowned} slots have no owner, or their owner cannot be read"));
    }
    if !state.nodes.iter().any(|node| node.lease_ms > 0) {
        state.problems.push("no node has a lease; start one, and read its log".to_owned());
    }
    state
}

/// Answers of one cell.
struct Found {
    cell: Option<CellState>,
    standbys: Vec<(String, String, u64)>,
    quorum: String,
    commit: String,
    /// User of the connection.
    user: String,
    waiting: u64,
    owners: Vec<u16>,
    leases: Vec<(u16, String, u64)>,
}

fn judge(state: &mut ClusterState, report: &mut CellReport, found: &Found, cells: usize) {
    let CellReport { cell, address, .. } = report.clone();
    report.standbys.clone_from(&found.standbys);
    report.quorum.clone_from(&found.quorum);
    report.waiting = found.waiting;
    let problems = &mut state.problems;
    let Some(it) = &found.cell else {
        return problems
            .push(format!("cell {cell} at {address} has no tables; run `moorline backend migrate`"));
    };
    report.version = it.version;
    if cell == 0 {
        state.cluster.clone_from(&it.cluster);
    }
    if (it.cell, usize::from(it.cells)) != (cell, cells) || it.cluster != state.cluster {
        problems.push(format!(
            "{address} is cell {} of {} of cluster {}, and cell {cell} of {cells} in the settings",
            it.cell, it.cells, it.cluster
        ));
    }
    if it.version != VERSION {
        problems.push(format!("cell {cell} has tables of version {}, this build {VERSION}", it.version));
    }
    let (standbys, is_quorum) = (found.standbys.len(), !found.quorum.is_empty() && found.commit != "off");
    if !is_quorum {
        problems.push(format!(
            "cell {cell} commits without a standby: messages are lost with its primary; set synchronous_standby_names"
        ));
    } else if found.standbys.iter().any(|(_, kind, _)| kind.is_empty()) {
        let user = &found.user;
        problems.push(format!(
            "cell {cell}: the user {user} may not see whether its {standbys} standbys receive; as a superuser: grant pg_monitor to {user}"
        ));
    } else if standbys == 0 {
        problems.push(format!("cell {cell} has no standby and answers no commit until one comes back"));
    }
}

fn read_cell(address: &CellAddress) -> Result<Found, SqlError> {
    let (runtime, client, _) = connect(address)?;
    let count = format!("select count(*) from (select from outbox limit {WAITING_MAX}) o");
    within(&runtime, STATUS_TIMEOUT, async {
        let number = |value: i32| u16::try_from(value).unwrap_or(u16::MAX);
        let unsigned = |value: i64| u64::try_from(value).unwrap_or(0);
        let exists = client.query_one("select to_regclass('moorline_cell') is not null", &[]).await?;
        let rows = client.query(STANDBYS, &[]).await?;
        let standbys = rows.iter().map(|row| {
            let (name, kind): (Option<String>, Option<String>) = (row.get(0), row.get(1));
            (name.unwrap_or_default(), kind.unwrap_or_default(), unsigned(row.get(2)))
        });
        let standbys = standbys.collect();
        let wanted = client.query_one(WANTED, &[]).await?;
        let (quorum, commit, user) = (wanted.get(0), wanted.get(1), wanted.get(2));
        if !exists.get::<_, bool>(0) {
            let (cell, waiting, owners, leases) = (None, 0, Vec::new(), Vec::new());
            return Ok(Found { cell, standbys, quorum, commit, user, waiting, owners, leases });
        }
        let cell = client.query(CELL, &[]).await?.first().map(|row| CellState {
            cluster: row.get(0),
            cell: number(row.get(1)),
            cells: number(row.get(2)),
            version: row.get(3),
        });
        let waiting = unsigned(client.query_one(&count, &[]).await?.get(0));
        let rows = client.query(OWNERS, &[]).await?;
        let owners = rows.iter().filter_map(|row| row.get::<_, Option<i32>>(1).map(number)).collect();
        let rows = client.query(NODES, &[]).await?;
        let leases = rows.iter().map(|row| (number(row.get(0)), row.get(1), unsigned(row.get(2))));
        Ok(Found { cell, standbys, quorum, commit, user, waiting, owners, leases: leases.collect() })
    })
}
