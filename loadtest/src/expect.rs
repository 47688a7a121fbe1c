//! "deliver.p99<20ms": what must hold for a run to pass, and what ends it early.

use crate::record::Metric;
use crate::units;
use std::fmt;
use std::str::FromStr;

/// Statistics of a latency that can be named.
pub const STATISTICS: [&str; 7] = ["p50", "p90", "p99", "p999", "max", "mean", "count"];

/// Figures that can be named beside latencies, each with what it is.
pub const FIGURES: [(&str, &str); 20] = [
    ("rate", "operations done per second"),
    ("offered", "operations meant per second"),
    ("unsent", "messages due that never left"),
    ("lost", "messages"),
    ("duplicated", "messages"),
    ("reordered", "messages"),
    ("refused", "messages"),
    ("repeated", "deliveries over a new connection that came before"),
    ("dropped", "connections lost"),
    ("not_in", "connections never logged in"),
    ("held", "connections at the end"),
    ("silence", "longest time without a delivery"),
    ("lag.p99", "of the generator itself"),
    ("busy", "part of a core that the busiest generator process used"),
    ("handshakes", "TLS handshakes per second in the ramp"),
    ("resumed", "part of the TLS handshakes that resumed a session"),
    ("bytes_per_connection", "of the server's resident memory"),
    ("cpu_per_million", "server CPU seconds per million operations"),
    ("login_cpu_per_million", "server CPU seconds per million logins"),
    ("rss", "server's resident bytes"),
];

/// Comparison of a figure with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
}

impl Relation {
    /// Longest first, so that "<=" is not read as "<".
    const ALL: [(&str, Self); 5] = [
        ("<=", Self::LessOrEqual),
        (">=", Self::GreaterOrEqual),
        ("==", Self::Equal),
        ("<", Self::Less),
        (">", Self::Greater),
    ];

    #[allow(clippy::float_cmp)] // "==" is for counts
    fn holds(self, figure: f64, value: f64) -> bool {
        match self {
            Self::Less => figure < value,
            Self::LessOrEqual => figure <= value,
            Self::Greater => figure > value,
            Self::GreaterOrEqual => figure >= value,
            Self::Equal => figure == value,
        }
    }
}

/// A figure, a relation and a value: nanoseconds, bytes, or a plain number.
#[derive(Clone, Debug, PartialEq)]
pub struct Expectation {
    text: String,
    name: String,
    relation: Relation,
    value: f64,
}

/// Source of figures.
pub trait Figures {
    /// A figure by its name; `None`: this run has none such.
    fn figure(&self, name: &str) -> Option<f64>;
}

impl Expectation {
    /// Returns whether it is about a latency of the server, and not about the generator's own lag.
    pub fn is_latency(&self) -> bool {
        latency_of(&self.name).is_some() && !self.name.starts_with("lag.")
    }

    /// The figure it is about.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// True if the figure counts faults of messages or connections.
    pub fn judge(&self, figures: &impl Figures) -> Result<(), String> {
        match figures.figure(&self.name) {
            None => Err(format!("{self}: this run has no {}", self.name)),
            Some(figure) if self.relation.holds(figure, self.value) => Ok(()),
            Some(figure) => Err(format!("{self}: it is {}", self.shown(figure))),
        }
    }

    /// Like [`Expectation::judge`], where nothing to judge is not yet a failure.
    pub fn is_met(&self, figures: &impl Figures) -> bool {
        figures.figure(&self.name).is_some_and(|figure| self.relation.holds(figure, self.value))
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // shown, not used
    fn shown(&self, figure: f64) -> String {
        if is_time(&self.name) { units::latency(figure.max(0.0) as u64) } else { units::three_digits(figure) }
    }
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Expectation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found =
            Relation::ALL.iter().find_map(|(sign, relation)| Some((text.split_once(sign)?, *relation)));
        let ((name, value), relation) = found
            .ok_or_else(|| format!("{text:?} is no expectation: write deliver.p99<20ms or rate>=10k"))?;
        let (name, value) = (name.trim(), value.trim());
        if !is_known(name) {
            return Err(format!("{name:?} is no figure; there are {}", known()));
        }
        let value = parse_value(name, value)?;
        Ok(Self { text: text.to_owned(), name: name.to_owned(), relation, value })
    }
}

fn latency_of(name: &str) -> Option<&str> {
    let (metric, statistic) = name.split_once('.')?;
    let is_latency = metric == "lag" || Metric::ALL.iter().any(|it| it.name() == metric);
    (is_latency && STATISTICS.contains(&statistic)).then_some(statistic)
}

fn is_known(name: &str) -> bool {
    latency_of(name).is_some() || FIGURES.iter().any(|(known, _)| *known == name)
}

fn is_time(name: &str) -> bool {
    name == "silence" || latency_of(name).is_some_and(|statistic| statistic != "count")
}

/// All names, for messages and help.
pub fn known() -> String {
    let metrics = Metric::ALL.map(Metric::name).join("|");
    let figures = FIGURES.map(|(name, _)| name).join(", ");
    format!("({metrics}).({}), {figures}", STATISTICS.join("|"))
}

fn parse_value(name: &str, text: &str) -> Result<f64, String> {
    if is_time(name) {
        return units::parse_duration(text).map(|time| time.as_nanos() as f64);
    }
    if let Some(size) = units::parse_bytes(text) {
        return Ok(size);
    }
    if let Some(percent) = text.strip_suffix('%') {
        return percent.trim().parse::<f64>().map(|it| it / 100.0).map_err(|_| not_a_number(text));
    }
    let plain = text.strip_suffix("/s").unwrap_or(text);
    units::parse_number(plain).map_err(|_| not_a_number(text))
}

fn not_a_number(text: &str) -> String {
    format!("{text:?} is no value: write 20ms, 256 bytes as 256B, 10k/s, 5% or a plain number")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(&'static str, f64);

    impl Figures for Fixed {
        fn figure(&self, name: &str) -> Option<f64> {
            (name == self.0).then_some(self.1)
        }
    }

    #[test]
    fn expectations_as_people_write_them() {
        let is_met =
            |text: &str, name, figure| text.parse::<Expectation>().unwrap().is_met(&Fixed(name, figure));
        assert!(is_met("deliver.p99<20ms", "deliver.p99", 19e6));
        assert!(!is_met("deliver.p99 < 20ms", "deliver.p99", 20e6));
        assert!(is_met("rate>=10k/s", "rate", 10_000.0));
        assert!(is_met("bytes_per_connection<=256B", "bytes_per_connection", 256.0));
        assert!(is_met("rss<1.5MiB", "rss", 1_500_000.0));
        assert!(is_met("busy<50%", "busy", 0.4));
        assert!(is_met("lost==0", "lost", 0.0));
        assert!(!is_met("lost==0", "dropped", 0.0), "nothing to judge is not met");
    }

    #[test]
    fn what_failed_is_said_with_its_value() {
        let expectation: Expectation = "answer.p999<=5ms".parse().unwrap();
        let why = expectation.judge(&Fixed("answer.p999", 7.25e6)).unwrap_err();
        assert_eq!(why, "answer.p999<=5ms: it is 7.25ms");
        assert!(expectation.judge(&Fixed("rate", 1.0)).unwrap_err().contains("no answer.p999"));
    }

    #[test]
    fn nonsense_is_refused_with_advice() {
        for (text, advice) in [
            ("deliver.p99", "write deliver.p99<20ms"),
            ("speed>9", "login|answer"),
            ("deliver.p42<1ms", "p999"),
            ("deliver.p99<20", "with its unit"),
            ("rate>fast", "no value"),
        ] {
            let error = text.parse::<Expectation>().unwrap_err();
            assert!(error.contains(advice), "{text}: {error}");
        }
    }
}
