//! Makes the tables of cells, and checks that they are those of this build and of one cluster.

use super::connection::{SqlError, connect, within};
use super::schema::{STEPS, VERSION};
use super::{CellAddress, slot_column};
use crate::cluster::cell::CellId;
use crate::cluster::store::Layout;
use moorline_proto::slots::Slot;
use std::fmt::Write as _;
use std::time::Duration;

/// Longest time for all tables of a cell.
const MIGRATE_TIMEOUT: Duration = Duration::from_secs(600);
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// Code of an error: a table does not exist.
const UNDEFINED_TABLE: &str = "42P01";

/// Tables of a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellState {
    /// Name of the cluster.
    pub cluster: String,
    /// Number of this cell.
    pub cell: u16,
    /// Number of cells of the cluster.
    pub cells: u16,
    /// Version of the tables.
    pub version: i32,
}

/// The tables of a cell are not those that this build needs.
#[derive(Debug, thiserror::Error)]
pub enum CellError {
    /// The cell did not answer.
    #[error("cell {cell} at {address}: {cause}")]
    Sql {
        /// Number of the cell.
        cell: u16,
        /// Address of the cell.
        address: Box<CellAddress>,
        /// Error of the connection.
        cause: SqlError,
    },
    /// There are no tables.
    #[error("cell {cell} at {address} has no tables; run `moorline backend migrate`")]
    Empty {
        /// Number of the cell.
        cell: u16,
        /// Address of the cell.
        address: Box<CellAddress>,
    },
    /// The tables are older than this build.
    #[error(
        "cell {cell} at {address} has tables of version {found}, this build needs {VERSION}; run `moorline backend migrate`"
    )]
    Old {
        /// Number of the cell.
        cell: u16,
        /// Address of the cell.
        address: Box<CellAddress>,
        /// Version of the tables.
        found: i32,
    },
    /// The tables are newer than this build.
    #[error(
        "cell {cell} at {address} has tables of version {found}, this build knows {VERSION}; use a newer build"
    )]
    New {
        /// Number of the cell.
        cell: u16,
        /// Address of the cell.
        address: Box<CellAddress>,
        /// Version of the tables.
        found: i32,
    },
    /// The cell belongs to another place of the list, or to another list.
    #[error(
        "{address} is cell {} of {} of cluster {}, and cell {cell} of {cells} in `store.cells`; list the cells of one \
         cluster in the order in which they were made", found.cell, found.cells, found.cluster
    )]
    Misplaced {
        /// Number of the cell in the list.
        cell: u16,
        /// Number of cells in the list.
        cells: u16,
        /// Address of the cell.
        address: Box<CellAddress>,
        /// State of the cell.
        found: CellState,
    },
}

/// Makes the tables of all cells, or brings them to this build's version. It may be repeated. Returns the state of each.
///
/// # Errors
/// [`CellError`]; cells before it in the list are done.
pub fn migrate(cells: &[CellAddress], cluster: &str) -> Result<Vec<CellState>, CellError> {
    let count = u16::try_from(cells.len()).unwrap_or(u16::MAX);
    let mut cluster = cluster.to_owned();
    let mut states = Vec::new();
    for (cell, address) in (0..).zip(cells) {
        let to_error = |cause| CellError::Sql { cell, address: Box::new(address.clone()), cause };
        let before = read(address).map_err(to_error)?;
        let version = match &before {
            Some(found) if found.version > VERSION => {
                return Err(CellError::New {
                    cell,
                    address: Box::new(address.clone()),
                    found: found.version,
                });
            }
            Some(found)
                if (found.cell, found.cells) != (cell, count) || cell > 0 && found.cluster != cluster =>
            {
                let (address, found) = (Box::new(address.clone()), found.clone());
                return Err(CellError::Misplaced { cell, cells: count, address, found });
            }
            Some(found) => {
                cluster.clone_from(&found.cluster);
                found.version
            }
            None => 0,
        };
        let state = CellState { cluster: cluster.clone(), cell, cells: count, version: VERSION };
        if version < VERSION {
            apply(address, version, &state).map_err(to_error)?;
        }
        states.push(state);
    }
    Ok(states)
}

/// Checks that cells have the tables of this build, and are one cluster. Returns the cluster's name.
///
/// # Errors
/// [`CellError`].
pub fn check(cells: &[CellAddress]) -> Result<String, CellError> {
    let count = u16::try_from(cells.len()).unwrap_or(u16::MAX);
    let mut cluster = None;
    for (cell, address) in (0..).zip(cells) {
        let found = read(address).map_err(|cause| CellError::Sql {
            cell,
            address: Box::new(address.clone()),
            cause,
        })?;
        let address = Box::new(address.clone());
        let Some(found) = found else { return Err(CellError::Empty { cell, address }) };
        if found.version != VERSION {
            let found = found.version;
            return Err(if found < VERSION {
                CellError::Old { cell, address, found }
            } else {
                CellError::New { cell, address, found }
            });
        }
        let name = cluster.get_or_insert_with(|| found.cluster.clone());
        if (found.cell, found.cells) != (cell, count) || *name != found.cluster {
            return Err(CellError::Misplaced { cell, cells: count, address, found });
        }
    }
    Ok(cluster.unwrap_or_default())
}

/// Reads what a cell says of itself. `None`: it has no tables.
fn read(address: &CellAddress) -> Result<Option<CellState>, SqlError> {
    let (runtime, client, _) = connect(address)?;
    let query = "select cluster, cell, cells, version from moorline_cell";
    let rows = match within(&runtime, CHECK_TIMEOUT, client.query(query, &[])) {
        Err(error) if error.code() == Some(UNDEFINED_TABLE) => return Ok(None),
        rows => rows?,
    };
    let number =
        |row: &tokio_postgres::Row, index| u16::try_from(row.get::<_, i32>(index)).unwrap_or(u16::MAX);
    Ok(rows.first().map(|row| CellState {
        cluster: row.get(0),
        cell: number(row, 1),
        cells: number(row, 2),
        version: row.get(3),
    }))
}

/// Makes the steps that are missing, in one transaction: after a kill all of them are made, or none.
fn apply(address: &CellAddress, version: i32, state: &CellState) -> Result<(), SqlError> {
    let layout = Layout { cells: state.cells };
    let mut sql = String::from("begin;\n");
    for step in STEPS.iter().skip(usize::try_from(version).unwrap_or(0)) {
        sql.push_str(step);
    }
    if version == 0 {
        let here = Slot::all().filter(|slot| layout.cell(*slot) == CellId(state.cell));
        for slot in here {
            _ = writeln!(sql, "insert into owner (slot) values ({});", slot_column(slot));
        }
        let cluster = state.cluster.replace('\'', "''");
        let (cell, cells) = (state.cell, state.cells);
        _ = writeln!(
            sql,
            "insert into moorline_cell values (true, '{cluster}', {cell}, {cells}, {VERSION});"
        );
    } else {
        _ = writeln!(sql, "update moorline_cell set version = {VERSION};");
    }
    sql.push_str("commit;\n");
    let (runtime, client, _) = connect(address)?;
    within(&runtime, MIGRATE_TIMEOUT, client.batch_execute(&sql))
}
