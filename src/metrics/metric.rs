//! Name, meaning and kind of a figure. Plain data, usable in consts.

/// One series: a name, perhaps one label, and how it moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// Without the prefix and without `_total`: `[a-z][a-z0-9_]*`, a unit at its end if it has one.
    pub name: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// Kind of the series.
    pub kind: Kind,
    /// Key and value. Metric of one name differ in the value only.
    pub label: Option<(&'static str, &'static str)>,
}

/// Kind of a series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// A level.
    Gauge,
    /// Number of values up to each bound.
    Histogram {
        /// Rising, in the unit that is observed.
        bounds: &'static [u64],
        /// Factor from the observed to the exported unit: [`SECONDS`] for nanoseconds, 1 for bytes.
        scale: f64,
    },
}

/// The scale of histograms that observe nanoseconds and export seconds.
pub const SECONDS: f64 = 1e-9;

impl Metric {
    /// A figure that only grows.
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: Kind::Counter, label: None }
    }

    /// A level.
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: Kind::Gauge, label: None }
    }

    /// A distribution; see [`Kind::Histogram`].
    pub const fn histogram(
        name: &'static str,
        help: &'static str,
        bounds: &'static [u64],
        scale: f64,
    ) -> Self {
        Self { name, help, kind: Kind::Histogram { bounds, scale }, label: None }
    }

    /// The series of this name with `key="value"`.
    #[must_use]
    pub const fn labelled(mut self, key: &'static str, value: &'static str) -> Self {
        self.label = Some((key, value));
        self
    }

    /// Numbers it takes: 1; a histogram one per bound, one for larger values, and their sum.
    pub const fn cells(&self) -> usize {
        match self.kind {
            Kind::Counter | Kind::Gauge => 1,
            Kind::Histogram { bounds, .. } => bounds.len() + 2,
        }
    }

    /// True if a scraper will take it.
    pub(super) fn is_well_named(&self) -> bool {
        let is_word = |word: &str| {
            word.starts_with(|c: char| c.is_ascii_lowercase())
                && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        is_word(self.name) && !self.name.ends_with("_total") && self.label.is_none_or(|(key, _)| is_word(key))
    }
}
