//! Number of clients and processes.

use super::arguments::{FleetArgs, Processes};
use crate::exit::Failure;
use crate::preflight::{self, CLIENTS_MAX, Room};

/// The size of a run.
#[derive(Clone, Debug)]
pub(super) struct Size {
    /// All clients.
    pub(super) clients: u32,
    /// Processes that share them.
    pub(super) processes: u32,
    /// Reason for this size, if nobody chose it.
    pub(super) note: Option<String>,
}

impl Size {
    /// `unit` clients stay together in one process.
    pub(super) fn of(args: &FleetArgs, default: u32, unit: u32) -> Result<Self, Failure> {
        let room = preflight::room()?;
        let clients = args.connections.unwrap_or(default.min(room.connections));
        if clients > CLIENTS_MAX {
            return Err(Failure::Preflight(format!("no run has more than {CLIENTS_MAX} connections")));
        }
        let note = args.connections.is_none().then(|| {
            format!(
                "{clients} connections by default; {} fit in one process here: {}",
                room.connections, room.why
            )
        });
        Ok(Self { clients, processes: processes(args.procs, clients, unit, &room)?, note })
    }
}

fn processes(asked: Processes, clients: u32, unit: u32, room: &Room) -> Result<u32, Failure> {
    let units_each = room.connections / unit;
    let units = clients.div_ceil(unit);
    if units_each == 0 {
        return Err(Failure::Preflight(format!(
            "{unit} clients stay in one process and do not fit: {}; raise `ulimit -n` to {}",
            room.why,
            unit + preflight::DESCRIPTORS_RESERVED
        )));
    }
    let fewest = units.div_ceil(units_each);
    match asked {
        Processes::Auto => Ok(fewest),
        Processes::Fixed(count) if count >= fewest => Ok(count.min(units)),
        Processes::Fixed(count) => Err(Failure::Preflight(format!(
            "{clients} connections do not fit in {count} processes: {}. Take --procs {fewest} or more, or auto",
            room.why
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room() -> Room {
        Room { connections: 19_800, why: "so".into() }
    }

    #[test]
    fn as_few_processes_as_hold_the_clients() {
        let auto = |clients, unit| processes(Processes::Auto, clients, unit, &room()).unwrap();
        assert_eq!((auto(19_800, 1), auto(19_801, 1), auto(1_000_000, 2)), (1, 2, 51));
        assert_eq!(auto(30_000, 10_000), 3, "two groups of 10,000 do not fit in one");
        assert_eq!(
            processes(Processes::Fixed(8), 6, 2, &room()).unwrap(),
            3,
            "no process is without clients"
        );
    }

    #[test]
    fn too_few_processes_are_refused_with_the_right_number() {
        let error = processes(Processes::Fixed(2), 100_000, 1, &room()).unwrap_err().to_string();
        assert!(error.contains("--procs 6"), "{error}");
        let error = processes(Processes::Auto, 20_000, 20_000, &room()).unwrap_err().to_string();
        assert!(error.contains("20200"), "{error}");
    }
}
