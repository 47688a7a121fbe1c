//! Rules that one value alone cannot break: ranges, and values that must fit each other.

use super::problem::{Origin, Problem, SettingsError};
use super::units::{ByteSize, format_duration};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

/// Collects every broken rule, each with the place of the value that it blames.
#[derive(Debug)]
pub struct Rules<'a, T> {
    config: &'a T,
    /// Places of the values; what is not among them is a default.
    origins: &'a BTreeMap<String, Origin>,
    problems: Vec<Problem>,
}

impl<'a, T> Rules<'a, T> {
    pub(super) fn new(config: &'a T, origins: &'a BTreeMap<String, Origin>) -> Self {
        Self { config, origins, problems: Vec::new() }
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// Checks settings that a program made up itself.
    ///
    /// # Errors
    /// [`SettingsError::Invalid`] with every broken rule.
    pub fn check(config: &'a T, check: impl FnOnce(&mut Self)) -> Result<(), SettingsError> {
        static NOWHERE: BTreeMap<String, Origin> = BTreeMap::new();
        let mut rules = Self::new(config, &NOWHERE);
        check(&mut rules);
        let of_program = |problem: Problem| Problem { origin: Origin::Program, ..problem };
        let problems: Vec<_> = rules.problems.into_iter().map(of_program).collect();
        if problems.is_empty() { Ok(()) } else { Err(SettingsError::Invalid(problems)) }
    }

    /// Settings to check.
    pub fn config(&self) -> &'a T {
        self.config
    }

    /// Blames `key` unless `is_met`.
    pub fn require(&mut self, is_met: bool, key: &str, message: impl FnOnce() -> String) {
        if !is_met {
            let origin = self.origins.get(key).cloned().unwrap_or(Origin::Default);
            self.problems.push(Problem { key: key.to_owned(), origin, message: message() });
        }
    }

    /// Requires a number in `range`.
    pub fn count(&mut self, key: &str, value: usize, range: RangeInclusive<usize>) {
        self.range(key, &value, &range, ToString::to_string);
    }

    /// Requires a size in `range` of bytes.
    pub fn size(&mut self, key: &str, value: ByteSize, range: RangeInclusive<u64>) {
        let range = ByteSize::new(*range.start())..=ByteSize::new(*range.end());
        self.range(key, &value, &range, ToString::to_string);
    }

    /// Requires a duration in `range`.
    pub fn time(&mut self, key: &str, value: Duration, range: RangeInclusive<Duration>) {
        self.range(key, &value, &range, |duration| format_duration(*duration));
    }

    /// Requires a value in `range`; `show` writes values as a file has them.
    pub fn range<V: PartialOrd>(
        &mut self,
        key: &str,
        value: &V,
        range: &RangeInclusive<V>,
        show: fn(&V) -> String,
    ) {
        self.require(range.contains(value), key, || {
            format!(
                "{} is out of range, expected {} to {}",
                show(value),
                show(range.start()),
                show(range.end())
            )
        });
    }

    /// Requires `value` of `key` to be at least `floor`, which is the value of `other`.
    pub fn at_least<V: PartialOrd + Display + Copy>(&mut self, key: &str, value: V, other: &str, floor: V) {
        self.require(value >= floor, key, || {
            format!("{value} is less than {other} = {floor}, raise it or lower {other}")
        });
    }
}
