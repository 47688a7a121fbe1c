//! Ours beside the bare server, on the same load, interleaved.
//!
//! A round measures every leg on both sides, one right after the other, each on freshly started
//! processes; the next round swaps who goes first. Figures are medians over the rounds with their
//! ranges, and ratios are taken within a round, so that what else the machine does hits both alike.

mod legs;
mod sides;
mod table;

pub use sides::{Auth, Programs, Side, TlsFiles};
pub use table::{Row, Sample, Table};

use crate::exit::{Exit, Failure};
use crate::fleet::Stop;
use crate::integrity::Tally;
use crate::terminal;
use legs::{Leg, Measured};
use std::time::Duration;

/// Fewest rounds that a range means something for.
pub const ROUNDS_MIN: u32 = 3;
/// Most rounds.
pub const ROUNDS_MAX: u32 = 99;

/// Rows and sizes of a comparison.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of the servers' programs.
    pub programs: Programs,
    /// Interleaved rounds.
    pub rounds: u32,
    /// Connections of the idle fleet.
    pub idle_clients: u32,
    /// Connections that send.
    pub busy_clients: u32,
    /// Members of the fan-out.
    pub members: u32,
    /// Measuring time of one leg.
    pub measure: Duration,
    /// Bytes of a message's payload.
    pub payload_bytes: u32,
    /// Rows to measure.
    pub rows: Vec<Row>,
    /// Only the table, and no line per leg.
    pub is_quiet: bool,
}

/// Result of a comparison.
#[derive(Debug, Default)]
pub struct Comparison {
    /// Every sample.
    pub table: Table,
    /// Faults on our side.
    pub ours: Tally,
    /// Faults on the bare side.
    pub bare: Tally,
    /// Open-loop legs in which the generator itself was late: the latencies are not the servers' alone.
    pub late_legs: u32,
    /// True if a signal ended the run early.
    pub is_interrupted: bool,
}

impl Comparison {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        let is_clean = self.ours.is_clean() && self.bare.is_clean();
        match (self.is_interrupted, is_clean, self.table.missed().is_empty()) {
            (true, ..) => Exit::Interrupted,
            (false, false, _) => Exit::Integrity,
            (false, true, false) => Exit::Unexpected,
            (false, true, true) => Exit::Pass,
        }
    }
}

/// Runs the legs and measures.
pub fn run(options: &Options, stop: &Stop) -> Result<Comparison, Failure> {
    let table = Table::new(options.programs.tls.is_some());
    let mut comparison = Comparison { table, ..Comparison::default() };
    let mut ceilings = Ceilings::default();
    for round in 0..options.rounds {
        for leg in Leg::ALL {
            if !leg.rows().iter().any(|row| options.rows.contains(row)) {
                continue;
            }
            for side in order(round, leg, options) {
                if !options.is_quiet {
                    let (at, of) = (round + 1, options.rounds);
                    terminal::note(format!("round {at}/{of}  {leg:?}  {}", side.label()));
                }
                let measured = legs::measure(leg, side, options, ceilings, stop)?;
                comparison.add(round, side, &measured);
                ceilings.learn(round, leg, &measured);
                if comparison.is_interrupted {
                    return Ok(comparison);
                }
            }
        }
    }
    Ok(comparison)
}

/// Both sides in turn, the other first in the next round; the bare side alone where ours has no such leg yet.
fn order(round: u32, leg: Leg, options: &Options) -> Vec<Side> {
    let mut sides = vec![Side::Bare, Side::Ours];
    sides.retain(|side| *side == Side::Bare || (options.programs.moorline.is_some() && leg.is_ours_too()));
    if round % 2 == 1 {
        sides.reverse();
    }
    sides
}

/// Operations a second of the slower side in the first round's closed loops; modest ones if those were not asked for.
/// Open loops run at half of it, in all rounds.
#[derive(Clone, Copy, Debug)]
struct Ceilings {
    forward: f64,
    chat: f64,
}

impl Default for Ceilings {
    fn default() -> Self {
        Self { forward: Self::UNKNOWN, chat: Self::UNKNOWN }
    }
}

impl Ceilings {
    const UNKNOWN: f64 = 20_000.0;

    fn learn(&mut self, round: u32, leg: Leg, measured: &Measured) {
        let known = match leg {
            Leg::Forward => &mut self.forward,
            Leg::Chat => &mut self.chat,
            _ => return,
        };
        if round == 0 {
            let is_first = known.total_cmp(&Self::UNKNOWN).is_eq();
            *known = if is_first { measured.done_per_s } else { known.min(measured.done_per_s) }.max(2.0);
        }
    }
}

impl Comparison {
    fn add(&mut self, round: u32, side: Side, measured: &Measured) {
        for (row, value) in &measured.figures {
            self.table.push(Sample { round, side, row: *row, value: *value });
        }
        match side {
            Side::Ours => self.ours.merge(&measured.tally),
            Side::Bare => self.bare.merge(&measured.tally),
        }
        self.late_legs += u32::from(measured.is_late);
        self.is_interrupted |= measured.is_interrupted;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_bar_fails_the_comparison_and_a_fault_fails_it_more() {
        let mut comparison = Comparison::default();
        comparison.table.push(Sample { round: 0, side: Side::Ours, row: Row::Idle, value: 200.0 });
        assert_eq!(comparison.exit(), Exit::Pass);
        comparison.table.push(Sample { round: 1, side: Side::Ours, row: Row::Idle, value: 400.0 });
        assert_eq!(comparison.exit(), Exit::Unexpected, "the median is 300 bytes");
        comparison.ours.lost = 1;
        assert_eq!(comparison.exit(), Exit::Integrity);
    }

    #[test]
    fn the_open_loop_keeps_the_first_rounds_rate() {
        let mut ceilings = Ceilings::default();
        let measured = |done_per_s| Measured { done_per_s, ..Measured::default() };
        ceilings.learn(0, Leg::Forward, &measured(100_000.0));
        ceilings.learn(0, Leg::Forward, &measured(60_000.0));
        ceilings.learn(0, Leg::Echo, &measured(10.0));
        ceilings.learn(0, Leg::Chat, &measured(40_000.0));
        ceilings.learn(1, Leg::Forward, &measured(20_000.0));
        assert!((ceilings.forward - 60_000.0).abs() < 1e-9 && (ceilings.chat - 40_000.0).abs() < 1e-9);
    }
}
