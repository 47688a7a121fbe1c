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
    /// A message answered by the backend, at 10,000 a second.
    ForwardLow,
    /// Median of its latency, from the intended time.
    ForwardLowP50,
    /// A message delivered to one other client, at 5,000 a second.
    ChatLow,
    /// Median of its latency, from the intended time.
    ChatLowP50,
    /// A message delivered to one other client, at half the ceiling.
    ChatOpen,
    /// Latency of the same, from the intended time.
    ChatOpenP99,
    /// A delivery in a group of 100, at 10,000 a second.
    Group100,
    /// Latency of the same: nearly that of the last member.
    Group100P99,
    /// A delivery in a group of 1,000, at 10,000 a second.
    Group1k,
    /// Latency of the same.
    Group1kP99,
    /// A delivery in a group of all members, at 10,000 a second.
    GroupAll,
    /// Latency of the same.
    GroupAllP99,
}

impl Row {
    /// All figures.
    pub const ALL: [Self; 23] = [
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
        Self::ForwardLow,
        Self::ForwardLowP50,
        Self::ChatLow,
        Self::ChatLowP50,
        Self::ChatOpen,
        Self::ChatOpenP99,
        Self::Group100,
        Self::Group100P99,
        Self::Group1k,
        Self::Group1kP99,
        Self::GroupAll,
        Self::GroupAllP99,
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
            Self::ForwardLow => "forward-10k",
            Self::ForwardLowP50 => "forward-10k-p50",
            Self::ChatLow => "chat-5k",
            Self::ChatLowP50 => "chat-5k-p50",
            Self::ChatOpen => "chat-open",
            Self::ChatOpenP99 => "chat-open-p99",
            Self::Group100 => "group-100",
            Self::Group100P99 => "group-100-p99",
            Self::Group1k => "group-1k",
            Self::Group1kP99 => "group-1k-p99",
            Self::GroupAll => "group-all",
            Self::GroupAllP99 => "group-all-p99",
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
                | Self::ForwardLow
                | Self::ChatLow
                | Self::ChatOpen
                | Self::Group100
                | Self::Group1k
                | Self::GroupAll
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
            Self::ForwardLow => ("acked forwarding, 10,000/s", "cpu s/1M"),
            Self::ForwardLowP50 => ("acked forwarding, its p50", "ms"),
            Self::ChatLow => ("one to one, 5,000/s", "cpu s/1M"),
            Self::ChatLowP50 => ("one to one, its p50", "ms"),
            Self::ChatOpen => ("one to one, half ceiling", "cpu s/1M"),
            Self::ChatOpenP99 => ("one to one, its p99", "ms"),
            Self::Group100 => ("group of 100, per delivery", "cpu s/1M"),
            Self::Group100P99 => ("group of 100, p99", "ms"),
            Self::Group1k => ("group of 1,000, per delivery", "cpu s/1M"),
            Self::Group1kP99 => ("group of 1,000, p99", "ms"),
            Self::GroupAll => ("group of all, per delivery", "cpu s/1M"),
            Self::GroupAllP99 => ("group of all, p99", "ms"),
        }
    }

    /// Bar for our side; `None`: the figure has none. Over TLS both sides speak it, and a login is mostly its handshake.
    const fn bar(self, has_tls: bool) -> Option<Bar> {
        match self {
            Self::Idle if has_tls => Some(Bar::Bytes(400.0)),
            Self::Login if has_tls => Some(Bar::Ratio(1.3)),
            Self::Idle => Some(Bar::Bytes(256.0)),
            Self::Login | Self::Chat => Some(Bar::Ratio(2.5)),
            Self::Heartbeat => Some(Bar::Ratio(1.2)),
            Self::Forward | Self::ForwardOpen | Self::ForwardLowP50 => Some(Bar::Ratio(1.4)),
            Self::FanOut | Self::FanOutBusy => Some(Bar::Ratio(1.0)),
            Self::ForwardLow | Self::Group100 | Self::ChatLowP50 => Some(Bar::Ratio(1.5)),
            Self::ChatLow => Some(Bar::Ratio(1.8)),
            Self::Group1k | Self::GroupAll => Some(Bar::Ratio(0.9)),
            Self::Group100P99 => Some(Bar::Ratio(2.0)),
            Self::Group1kP99 => Some(Bar::Ratio(1.3)),
            Self::GroupAllP99 => Some(Bar::Ratio(1.1)),
            Self::ForwardCeiling | Self::ForwardOpenP99 | Self::ChatOpen | Self::ChatOpenP99 | Self::Echo => {
                None
            }
        }
    }
}

/// Highest value that our side may have.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bar {
    /// Median of our side, in bytes.
    Bytes(f64),
    /// Median of the ratios to the bare server.
    Ratio(f64),
}

impl Bar {
    /// Judges a line; `None`: it has no such figure, because one side was not measured.
    fn judge(self, ours: Option<Spread>, ratio: Option<Spread>) -> Option<Judgement> {
        let (median, most) = match self {
            Self::Bytes(most) => (ours?.median, most),
            Self::Ratio(most) => (ratio?.median, most),
        };
        Some(if shown(median) <= most { Judgement::Met } else { Judgement::Missed })
    }

    fn text(self) -> String {
        match self {
            Self::Bytes(most) => format!("<= {most} bytes"),
            Self::Ratio(most) => format!("<= {most:.1} x"),
        }
    }
}

/// Rounds to the three digits that the table shows: what reads 1.20 meets a bar of 1.2.
fn shown(value: f64) -> f64 {
    three_digits(value).parse().unwrap_or(value)
}

/// Result of holding a figure against its bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Judgement {
    /// The median is not above the bar.
    Met,
    /// The median is above the bar.
    Missed,
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
    /// Both sides speak TLS.
    has_tls: bool,
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
#[derive(Clone, Debug, Serialize)]
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
    /// Bar for our side; empty: the figure has none.
    pub bar: String,
    /// Result of holding the median against the bar; `None`: there is no bar, or no median.
    pub judgement: Option<Judgement>,
}

impl Table {
    /// A table of runs over TLS, or not.
    pub const fn new(has_tls: bool) -> Self {
        Self { samples: Vec::new(), has_tls }
    }

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
        let ours = spread(&ours);
        Some(Line {
            row,
            unit: row.title().1,
            bare: spread(&bare),
            ours,
            ratio,
            bar: row.bar(self.has_tls).map_or_else(String::new, Bar::text),
            judgement: row.bar(self.has_tls).and_then(|bar| bar.judge(ours, ratio)),
        })
    }

    /// Names of the figures that are above their bar.
    pub fn missed(&self) -> Vec<&'static str> {
        let lines = self.lines().into_iter();
        lines.filter(|line| line.judgement == Some(Judgement::Missed)).map(|line| line.row.name()).collect()
    }

    /// For a terminal: medians, ranges in brackets.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let mut put = |cells: [&str; 7]| {
            let [name, unit, bare, ours, ratio, bar, word] = cells;
            let line = format!("{name:<31} {unit:<9} {bare:<22} {ours:<22} {ratio:<18} {bar:<13} {word}");
            let _ = writeln!(out, "{}", line.trim_end());
        };
        put(["", "", "bare", "ours", "x bare", "bar", ""]);
        for line in self.lines() {
            let (name, unit) = line.row.title();
            let cells = [line.bare, line.ours, line.ratio].map(Spread::text);
            let word = match line.judgement {
                None => "",
                Some(Judgement::Met) => "met",
                Some(Judgement::Missed) => "MISSED",
            };
            put([name, unit, &cells[0], &cells[1], &cells[2], &line.bar, word]);
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
    fn a_bar_is_met_or_missed_by_the_median_as_it_is_shown() {
        let table = |row, bare: Option<f64>, ours: f64| {
            let mut table = Table::default();
            for round in 0..3 {
                bare.into_iter().for_each(|value| table.push(Sample { round, side: Side::Bare, row, value }));
                table.push(Sample { round, side: Side::Ours, row, value: ours });
            }
            table
        };
        let judged = |row, bare, ours| table(row, bare, ours).lines()[0].judgement;
        assert_eq!(judged(Row::Idle, None, 256.0), Some(Judgement::Met));
        assert_eq!(judged(Row::Idle, None, 258.0), Some(Judgement::Missed));
        assert_eq!(judged(Row::Heartbeat, Some(10.0), 12.04), Some(Judgement::Met), "it reads 1.20");
        assert_eq!(judged(Row::Heartbeat, Some(10.0), 13.8), Some(Judgement::Missed));
        assert_eq!(judged(Row::FanOut, None, 5.0), None, "the bare side was not measured");
        assert_eq!(judged(Row::Echo, Some(1.0), 9.0), None, "it has no bar");
        let secured = Table { has_tls: true, ..table(Row::Idle, None, 390.0) };
        assert_eq!(secured.lines()[0].judgement, Some(Judgement::Met), "a bar of its own over TLS");
        let missed = table(Row::FanOut, Some(1.0), 1.48);
        assert_eq!(missed.missed(), ["fan-out"]);
        assert!(missed.text().contains("<= 1.0 x      MISSED"), "{}", missed.text());
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
        assert!(text.contains("<= 2.5 x") && text.contains("met"), "{text}");
        assert!(text.lines().count() == 3, "{text}");
    }
}
