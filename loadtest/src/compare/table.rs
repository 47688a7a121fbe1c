//! Samples, medians, ranges, ratios, and the table that shows them.

use super::Side;
use crate::units::three_digits;
use serde::Serialize;
use std::fmt::Write;

/// A figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Row {
    /// Resident bytes per idle, logged-in connection.
    Idle,
    /// A login.
    Login,
    /// A heartbeat.
    Heartbeat,
    /// A message answered by the backend.
    Forward,
    /// Operations per second, closed loop.
    ForwardCeiling,
    /// A message answered by the backend, at half the ceiling.
    ForwardOpen,
    /// Latency from the intended time.
    ForwardOpenP99,
    /// A message answered by the front server itself.
    Echo,
    /// A message delivered to one other client.
    Chat,
    /// A message delivered to one of many, one message at a time.
    FanOut,
    /// Fan-out with four messages under way.
    FanOutBusy,
}

impl Row {
    /// All figures.
    pub const ALL: [Self; 11] = [
        Self::Idle,
        Self::Login,
        Self::Heartbeat,
        Self::Forward,
        Self::ForwardCeiling,
        Self::ForwardOpen,
        Self::ForwardOpenP99,
        Self::Echo,
        Self::Chat,
        Self::FanOut,
        Self::FanOutBusy,
    ];

    /// Name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Login => "login",
            Self::Heartbeat => "heartbeat",
            Self::Forward => "forward",
            Self::ForwardCeiling => "forward-ceiling",
            Self::ForwardOpen => "forward-open",
            Self::ForwardOpenP99 => "forward-open-p99",
            Self::Echo => "echo",
            Self::Chat => "chat",
            Self::FanOut => "fan-out",
            Self::FanOutBusy => "fan-out-busy",
        }
    }

    /// True for the cost of an operation, of which each leg has one.
    pub const fn is_cpu(self) -> bool {
        matches!(
            self,
            Self::Heartbeat
                | Self::Forward
                | Self::ForwardOpen
                | Self::Echo
                | Self::Chat
                | Self::FanOut
                | Self::FanOutBusy
        )
    }

    /// Name and unit.
    const fn title(self) -> (&'static str, &'static str) {
        match self {
            Self::Idle => ("idle connection", "bytes"),
            Self::Login => ("login", "cpu s/1M"),
            Self::Heartbeat => ("heartbeat", "cpu s/1M"),
            Self::Forward => ("acked forwarding, closed loop", "cpu s/1M"),
            Self::ForwardCeiling => ("acked forwarding, ceiling", "k/s"),
            Self::ForwardOpen => ("acked forwarding, half ceiling", "cpu s/1M"),
            Self::ForwardOpenP99 => ("acked forwarding, its p99", "ms"),
            Self::Echo => ("acked uplink", "cpu s/1M"),
            Self::Chat => ("one to one, delivered", "cpu s/1M"),
            Self::FanOut => ("fan-out, per delivery", "cpu s/1M"),
            Self::FanOutBusy => ("fan-out, four under way", "cpu s/1M"),
        }
    }

    /// Bar for our side.
    const fn bar(self) -> &'static str {
        match self {
            Self::Idle => "<= 256 bytes",
            Self::Login | Self::Chat => "<= 2.5 x",
            Self::Heartbeat => "<= 1.2 x",
            Self::Forward | Self::ForwardOpen => "<= 1.4 x",
            Self::FanOut | Self::FanOutBusy => "<= 1.0 x",
            Self::ForwardCeiling | Self::ForwardOpenP99 | Self::Echo => "",
        }
    }
}

impl std::str::FromStr for Row {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::name).join(", ");
        let row = Self::ALL.into_iter().find(|row| row.name() == text);
        row.ok_or_else(|| format!("{text:?} is no figure; there are {}", known()))
    }
}

/// A measured value.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// In which round.
    pub round: u32,
    /// On which side.
    pub side: Side,
    /// Name of the figure.
    pub row: Row,
    /// In the row's unit.
    pub value: f64,
}

/// All samples of a comparison.
#[derive(Debug, Default)]
pub struct Table {
    samples: Vec<Sample>,
}

/// Median and range of some values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Half are not above.
    pub median: f64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

impl Spread {
    /// Median, lowest and highest of these values; `None`: no values.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self { median, min, max })
    }

    fn text(this: Option<Self>) -> String {
        this.map_or_else(
            || "-".into(),
            |Self { median, min, max }| {
                format!("{} ({}-{})", three_digits(median), three_digits(min), three_digits(max))
            },
        )
    }
}

/// Row for programs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Line {
    /// Name of the figure.
    pub row: Row,
    /// Unit of the values.
    pub unit: &'static str,
    /// The bare server's.
    pub bare: Option<Spread>,
    /// Values of our side.
    pub ours: Option<Spread>,
    /// Ours over bare, within each round.
    pub ratio: Option<Spread>,
    /// Bar for our side.
    pub bar: &'static str,
}

impl Table {
    /// Adds a value.
    pub fn push(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    fn values(&self, row: Row, side: Side) -> Vec<(u32, f64)> {
        let of = |sample: &&Sample| sample.row == row && sample.side == side;
        self.samples.iter().filter(of).map(|sample| (sample.round, sample.value)).collect()
    }

    /// Lines of the table, one per measured figure.
    pub fn lines(&self) -> Vec<Line> {
        Row::ALL.into_iter().filter_map(|row| self.line(row)).collect()
    }

    fn line(&self, row: Row) -> Option<Line> {
        let (bare, ours) = (self.values(row, Side::Bare), self.values(row, Side::Ours));
        if bare.is_empty() && ours.is_empty() {
            return None;
        }
        let in_round = |round: u32| bare.iter().find(|(other, _)| *other == round).map(|(_, value)| *value);
        let ratios =
            ours.iter().filter_map(|(round, value)| Some(value / in_round(*round).filter(|v| *v > 0.0)?));
        let ratio = Spread::of(ratios.collect());
        let spread = |values: &[(u32, f64)]| Spread::of(values.iter().map(|(_, value)| *value).collect());
        Some(Line {
            row,
            unit: row.title().1,
            bare: spread(&bare),
            ours: spread(&ours),
            ratio,
            bar: row.bar(),
        })
    }

    /// For a terminal: medians, ranges in brackets.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let mut put = |cells: [&str; 6]| {
            let [name, unit, bare, ours, ratio, bar] = cells;
            let line = format!("{name:<31} {unit:<9} {bare:<22} {ours:<22} {ratio:<18} {bar}");
            let _ = writeln!(out, "{}", line.trim_end());
        };
        put(["", "", "bare", "ours", "x bare", "bar"]);
        for line in self.lines() {
            let (name, unit) = line.row.title();
            let cells = [line.bare, line.ours, line.ratio].map(Spread::text);
            put([name, unit, &cells[0], &cells[1], &cells[2], line.bar]);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ranges() {
        assert_eq!(Spread::of(vec![]), None);
        let spread = |values: &[f64]| Spread::of(values.to_vec()).unwrap();
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(spread(&[4.0, 1.0]), Spread { median: 2.5, min: 1.0, max: 4.0 });
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let mut table = Table::default();
        for (round, bare, ours) in [(0, 10.0, 11.0), (1, 20.0, 24.0), (2, 5.0, 6.5)] {
            table.push(Sample { round, side: Side::Bare, row: Row::Login, value: bare });
            table.push(Sample { round, side: Side::Ours, row: Row::Login, value: ours });
        }
        table.push(Sample { round: 0, side: Side::Bare, row: Row::Echo, value: 4.2 });
        let lines = table.lines();
        assert_eq!(lines[0].ratio, Some(Spread { median: 1.2, min: 1.1, max: 1.3 }));
        assert_eq!((lines[1].row, lines[1].ours, lines[1].ratio), (Row::Echo, None, None));
        let text = table.text();
        assert!(text.contains("1.20 (1.10-1.30)"), "{text}");
        assert!(text.lines().count() == 3, "{text}");
    }
}
