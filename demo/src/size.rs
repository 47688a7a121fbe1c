//! Number of connections and rate of messages for this machine, with reasons. Pure.

use crate::number;
use std::time::Duration;

/// Connections when nothing says otherwise.
const CONNECTIONS: u32 = 4_000;
/// Connections of a program built without optimisation.
const CONNECTIONS_DEBUG: u32 = 400;
/// Most messages per second: about a third of what two free cores sustain.
const RATE: u32 = 3_000;
const RATE_DEBUG: u32 = 200;
/// Least messages per second, however busy the machine is.
const RATE_MIN: u32 = 10;
/// The chat gets this part of the calibrated rate, if that is below the most.
const SPARE: u32 = 3;
/// Connections and messages per second of a cluster, whose messages are each in several transactions of a database on this machine.
const CLUSTER: (u32, u32) = (400, 400);
const CLUSTER_DEBUG: (u32, u32) = (100, 60);
/// Descriptors of each process that are not client connections.
const RESERVED_FDS: u64 = 200;
/// Connections from one address to one port: the kernel's 28,232 ports, less what others use.
const PORTS: u32 = 25_000;
/// Fewest connections: two can talk.
const CONNECTIONS_MIN: u32 = 2;

/// Properties of the machine and of the program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    pub(crate) open_files: u64,
    pub(crate) cores: usize,
    pub(crate) is_optimised: bool,
}

/// Servers of a demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// A gateway, and a backend with a store of its own.
    OneBackend,
    /// Three gateways, three nodes, and a database with two standbys.
    Cluster,
}

/// The size of one demo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) connections: u32,
    /// Most messages per second that the calibration may choose.
    pub(crate) rate_max: u32,
    pub(crate) why: String,
}

/// Rate of the chat, and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Pace {
    /// Messages per second of all clients together.
    pub(crate) rate: u32,
    /// Messages per second that were durable in the calibration; `None`: the rate was asked for.
    pub(crate) calibrated: Option<u32>,
}

impl Size {
    pub(crate) fn choose(machine: Machine, layout: Layout, connections: Option<u32>) -> Self {
        let room = machine.open_files.saturating_sub(RESERVED_FDS).min(u64::from(PORTS));
        let room = u32::try_from(room).expect("at most PORTS").max(CONNECTIONS_MIN);
        let (usual, usual_rate) = match (layout, machine.is_optimised) {
            (Layout::OneBackend, true) => (CONNECTIONS, RATE),
            (Layout::OneBackend, false) => (CONNECTIONS_DEBUG, RATE_DEBUG),
            (Layout::Cluster, true) => CLUSTER,
            (Layout::Cluster, false) => CLUSTER_DEBUG,
        };
        let usual_rate = if machine.cores > 1 { usual_rate } else { usual_rate / 2 };
        let wanted = connections.unwrap_or(usual);
        let chosen = wanted.clamp(CONNECTIONS_MIN, room);
        let (chosen_text, wanted_text) = (number::count(chosen.into()), number::count(wanted.into()));
        let because = match connections {
            _ if chosen < wanted => format!("{chosen_text} connections, not {wanted_text}: "),
            Some(_) => format!("{chosen_text} connections as asked: "),
            None if machine.is_optimised => format!("{chosen_text} connections: "),
            None => format!("{chosen_text} connections: a build without optimisation (try --release), "),
        };
        let cores =
            if machine.cores == 1 { "one core".to_owned() } else { format!("{} cores", machine.cores) };
        let limit = number::count(machine.open_files);
        let why =
            format!("{because}fd limit {limit} per process, {cores}; --connections and --rate to change");
        Self { connections: chosen, rate_max: usual_rate, why }
    }
}

/// The rate of a chat after a calibration in which `stored` messages were durable within `time`.
pub(crate) fn pace(stored: u64, time: Duration, rate_max: u32) -> Pace {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    let calibrated = u32::try_from(stored.saturating_mul(1_000) / millis).unwrap_or(u32::MAX);
    // Nine tenths: the last messages of the calibration have no answer yet.
    let is_enough = calibrated >= rate_max - rate_max / 10;
    let rate = if is_enough { rate_max } else { (calibrated / SPARE).max(RATE_MIN) };
    Pace { rate, calibrated: Some(calibrated) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_machine_gets_a_part_of_what_it_has_to_spare() {
        let rate = |stored, millis| pace(stored, Duration::from_millis(millis), 3_000).rate;
        assert_eq!([rate(6_000, 2_000), rate(5_500, 2_000), rate(5_000, 2_000)], [3_000, 3_000, 833]);
        assert_eq!([rate(40, 2_000), rate(0, 0)], [RATE_MIN, RATE_MIN]);
        assert_eq!(pace(1_500, Duration::from_secs(2), 3_000).calibrated, Some(750));
    }

    const MACHINE: Machine = Machine { open_files: 20_000, cores: 2, is_optimised: true };

    #[test]
    fn a_usual_machine_gets_the_usual_size() {
        let size = Size::choose(MACHINE, Layout::OneBackend, None);
        assert_eq!((size.connections, size.rate_max), (CONNECTIONS, RATE));
        assert!(
            size.why.starts_with("4,000 connections: fd ") && size.why.contains("limit 20,000"),
            "{}",
            size.why
        );
    }

    #[test]
    fn the_file_limit_and_the_ports_bound_it() {
        let small = Size::choose(Machine { open_files: 1_024, ..MACHINE }, Layout::OneBackend, None);
        assert_eq!(small.connections, 824);
        assert!(small.why.starts_with("824 connections, not 4,000: "), "{}", small.why);
        let tiny = Size::choose(Machine { open_files: 20, ..MACHINE }, Layout::OneBackend, None);
        assert_eq!(tiny.connections, CONNECTIONS_MIN);
        let large =
            Size::choose(Machine { open_files: 1 << 20, ..MACHINE }, Layout::OneBackend, Some(1_000_000));
        assert_eq!((large.connections, large.rate_max), (PORTS, RATE));
    }

    #[test]
    fn one_core_and_no_optimisation_get_less() {
        assert_eq!(
            Size::choose(Machine { cores: 1, ..MACHINE }, Layout::OneBackend, None).rate_max,
            RATE / 2
        );
        let debug = Size::choose(Machine { is_optimised: false, ..MACHINE }, Layout::OneBackend, None);
        assert_eq!((debug.connections, debug.rate_max), (CONNECTIONS_DEBUG, RATE_DEBUG));
    }
}
