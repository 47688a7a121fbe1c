//! Knowledge about gateways, and the choice of those that a client gets. Pure.
//!
//! Run-through: the file names `eu-1` and `eu-2`. Nothing is known at the start, so both are given, and the answer is marked
//! as degraded. Then both say that they are ready, one with 900 of 1,000 places taken, one with 100: of ten newcomers
//! nine get `eu-2` first. `eu-2` drains: it is left out. `eu-1` does not answer any more: after 6 s it is silent, and
//! given only because no other gateway is ready.
//!
//! Newcomers are spread by chance, with the weight `weight x free places in a thousand`. Load that is some seconds old
//! sends a crowd to the gateway that was the emptiest one; a share by chance follows the room that each one has,
//! and needs no memory of what was given.

use super::config::{DispatchConfig, GatewayEntry};
use moorline_net::http::Address;
use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant};

/// Endpoints of one answer.
pub const ENDPOINTS_MAX: usize = 8;
/// Free places of a gateway that has no limit, or of which nothing is known, in a thousand.
const FREE_DEFAULT: u64 = 500;

/// State that a gateway has told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The gateway takes newcomers.
    Ready {
        /// Open connections.
        used: u64,
        /// Connections that it may have; 0: no limit.
        max: u64,
    },
    /// The gateway asks its clients to leave, or is without a backend.
    NotReady,
}

/// State of a gateway as of now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The gateway takes newcomers.
    Ready,
    /// The gateway has said that it does not.
    NotReady,
    /// The gateway has not answered for a time, or never.
    Silent,
}

/// One gateway and its last report.
#[derive(Clone, Debug)]
struct Gateway {
    name: String,
    entry: GatewayEntry,
    admin: Address,
    last: Option<(Instant, Report)>,
}

/// All gateways.
#[derive(Clone, Debug)]
pub struct Table {
    gateways: Vec<Gateway>,
    silent_after: Duration,
}

/// Gateways for one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice<'a> {
    /// Endpoints and their regions, at most [`ENDPOINTS_MAX`], in the order in which the client should try them. Empty: every
    /// gateway has said that it takes nobody.
    pub endpoints: Vec<(&'a str, &'a str)>,
    /// True if the wanted region has no gateway that is known to be ready.
    pub is_degraded: bool,
    /// Age of the oldest report behind the answer; `None`: at least one of the gateways has never answered.
    pub age: Option<Duration>,
}

impl Gateway {
    fn state(&self, now: Instant, silent_after: Duration) -> State {
        match self.last {
            Some((at, report)) if now.saturating_since(at) < silent_after => match report {
                Report::Ready { .. } => State::Ready,
                Report::NotReady => State::NotReady,
            },
            Some(_) | None => State::Silent,
        }
    }

    /// Share of newcomers: at least 1, so that a full gateway is not forgotten.
    fn share(&self) -> u64 {
        let free = match self.last {
            Some((_, Report::Ready { used, max: max @ 1.. })) => {
                u64::try_from(u128::from(max.saturating_sub(used)) * 1000 / u128::from(max)).unwrap_or(0)
            }
            _ => FREE_DEFAULT,
        };
        (u64::from(self.entry.weight) * free).max(1)
    }
}

impl Table {
    /// Returns a table that knows the file and nothing else.
    pub fn new(config: &DispatchConfig) -> Self {
        let gateway = |(name, entry): (&String, &GatewayEntry)| {
            let admin = entry.admin.parse().ok()?; // validated
            Some(Gateway { name: name.clone(), entry: entry.clone(), admin, last: None })
        };
        let gateways = config.gateway.iter().filter_map(gateway).collect();
        Self { gateways, silent_after: config.silent_after }
    }

    /// Returns the table of other settings, with the reports of the gateways that are still there.
    #[must_use]
    pub fn with(&self, config: &DispatchConfig) -> Self {
        let mut table = Self::new(config);
        for gateway in &mut table.gateways {
            let before = self.gateways.iter().find(|it| it.name == gateway.name && it.admin == gateway.admin);
            gateway.last = before.and_then(|before| before.last);
        }
        table
    }

    /// Places to ask, in an order that [`Self::on_report`] knows until the next reload.
    pub fn places(&self) -> Vec<Address> {
        self.gateways.iter().map(|gateway| gateway.admin.clone()).collect()
    }

    /// Takes the report of the gateway with this admin address. One that the settings do not name any more is dropped.
    pub fn on_report(&mut self, admin: &Address, now: Instant, report: Report) {
        for gateway in self.gateways.iter_mut().filter(|gateway| gateway.admin == *admin) {
            gateway.last = Some((now, report));
        }
    }

    /// Numbers of gateways that are ready, not ready, and silent.
    pub fn counts(&self, now: Instant) -> [u64; 3] {
        let mut counts = [0; 3];
        for gateway in &self.gateways {
            counts[gateway.state(now, self.silent_after) as usize] += 1;
        }
        counts
    }

    /// Chooses gateways. `region`: as the client names it; `None`, or a region of no gateway: any.
    ///
    /// Ready gateways of the region come alone. Without one the answer is degraded: ready gateways of other regions, and
    /// behind them the silent ones of the region, since perhaps only this process does not reach them; without any ready
    /// gateway, all silent ones. A gateway that says it takes nobody is in no answer.
    pub fn choose(&self, region: Option<&str>, now: Instant, random: &mut Random) -> Choice<'_> {
        let is_here = |gateway: &&Gateway| region.is_none_or(|region| gateway.entry.region == region);
        let is_known = self.gateways.iter().any(|gateway| is_here(&gateway));
        let in_state = |wanted: State| {
            self.gateways.iter().filter(move |gateway| gateway.state(now, self.silent_after) == wanted)
        };
        let of_region = |state| in_state(state).filter(|gateway| !is_known || is_here(gateway)).collect();
        let others = |state| in_state(state).filter(|gateway| is_known && !is_here(gateway)).collect();
        let ready: Vec<&Gateway> = of_region(State::Ready);
        let is_degraded = ready.is_empty();
        let mut chosen = Vec::with_capacity(ENDPOINTS_MAX);
        draw(ready, ENDPOINTS_MAX, random, &mut chosen);
        if is_degraded {
            let silent: Vec<&Gateway> = of_region(State::Silent);
            let elsewhere: Vec<&Gateway> = others(State::Ready);
            // A place is kept for a gateway of the region: a dead region and one out of sight look the same from here.
            draw(elsewhere, ENDPOINTS_MAX - usize::from(!silent.is_empty()), random, &mut chosen);
            draw(silent, ENDPOINTS_MAX, random, &mut chosen);
            if chosen.is_empty() {
                draw(others(State::Silent), ENDPOINTS_MAX, random, &mut chosen);
            }
        }
        let ages = chosen.iter().map(|gateway| gateway.last.map(|(at, _)| now.saturating_since(at)));
        let age = ages.reduce(|one, other| Some(one?.max(other?))).flatten();
        let endpoints =
            chosen.iter().map(|gateway| (&*gateway.entry.endpoint, &*gateway.entry.region)).collect();
        Choice { endpoints, is_degraded, age }
    }
}

/// Draws gateways by their shares, each at most once, until `chosen` has `max`.
fn draw<'a>(mut from: Vec<&'a Gateway>, max: usize, random: &mut Random, chosen: &mut Vec<&'a Gateway>) {
    while chosen.len() < max && !from.is_empty() {
        let mut left = random.below(from.iter().map(|gateway| gateway.share()).sum());
        let drawn = from.iter().position(|gateway| {
            let share = gateway.share();
            let is_drawn = left < share;
            left = left.saturating_sub(share);
            is_drawn
        });
        chosen.push(from.swap_remove(drawn.unwrap_or(0)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::SCHEMA;
    use super::*;
    use std::path::Path;

    const FULL_AND_EMPTY: [Report; 2] =
        [Report::Ready { used: 900, max: 1000 }, Report::Ready { used: 100, max: 1000 }];

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    /// Gateways with names and regions; the first has the admin address 127.0.0.1:1, and so on.
    fn config(gateways: &[(&str, &str)]) -> DispatchConfig {
        let entry = |(number, (name, region)): (usize, &(&str, &str))| {
            let number = number + 1;
            format!(
                "[gateway.{name}]\nendpoint='tls://{name}:1'\nregion='{region}'\nadmin='127.0.0.1:{number}'\n"
            )
        };
        let text: String = gateways.iter().enumerate().map(entry).collect();
        SCHEMA.load_text(Path::new(""), &text, &[], [], |_| ()).expect("valid").config
    }

    fn table(gateways: &[(&str, &str)]) -> Table {
        Table::new(&config(gateways))
    }

    fn report(table: &mut Table, number: u16, seconds: u64, report: Report) {
        table.on_report(&admin(number), at(seconds), report);
    }

    fn admin(number: u16) -> Address {
        Address::Tcp(([127, 0, 0, 1], number).into())
    }

    fn names(table: &Table, region: Option<&str>, seconds: u64) -> (Vec<String>, bool) {
        let mut random = Random::new(1);
        let choice = table.choose(region, at(seconds), &mut random);
        let mut names: Vec<_> =
            choice.endpoints.iter().map(|(endpoint, _)| endpoint[6..endpoint.len() - 2].to_owned()).collect();
        names.sort();
        (names, choice.is_degraded)
    }

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn at_the_start_the_file_is_given_and_marked() {
        let table = table(&[("a", "eu"), ("b", "eu"), ("c", "us")]);
        assert_eq!(names(&table, Some("eu"), 0), (texts(&["a", "b"]), true));
        assert_eq!(names(&table, None, 0).0.len(), 3);
        assert_eq!(table.choose(None, at(0), &mut Random::new(1)).age, None);
        assert_eq!(table.counts(at(0)), [0, 0, 3]);
    }

    #[test]
    fn gateways_that_take_nobody_are_left_out() {
        let mut table = table(&[("a", "eu"), ("b", "eu")]);
        report(&mut table, 1, 10, FULL_AND_EMPTY[0]);
        report(&mut table, 2, 11, Report::NotReady);
        assert_eq!(names(&table, Some("eu"), 12), (texts(&["a"]), false));
        assert_eq!(table.choose(None, at(12), &mut Random::new(1)).age, Some(Duration::from_secs(2)));
        report(&mut table, 1, 12, Report::NotReady);
        assert_eq!(names(&table, Some("eu"), 12), (vec![], true), "both have said so");
        assert_eq!(table.counts(at(12)), [0, 2, 0]);
    }

    #[test]
    fn without_answers_the_last_knowledge_is_given() {
        let mut table = table(&[("a", "eu"), ("b", "eu"), ("c", "us")]);
        for number in 1..=3 {
            report(&mut table, number, 10, FULL_AND_EMPTY[1]);
        }
        report(&mut table, 3, 100, FULL_AND_EMPTY[1]);
        assert_eq!(
            names(&table, Some("eu"), 101),
            (texts(&["a", "b", "c"]), true),
            "others first, then silent ones"
        );
        let choice = table.choose(Some("eu"), at(101), &mut Random::new(1));
        assert_eq!((choice.endpoints[0].1, choice.age), ("us", Some(Duration::from_secs(91))));
        assert_eq!(names(&table, Some("eu"), 1000), (texts(&["a", "b"]), true));
        report(&mut table, 1, 1000, Report::NotReady);
        report(&mut table, 2, 1000, Report::NotReady);
        assert_eq!(names(&table, Some("eu"), 1001), (texts(&["c"]), true), "one of another region may live");
    }

    #[test]
    fn a_region_that_nobody_has_is_any_region() {
        let mut table = table(&[("a", "eu"), ("b", "us")]);
        report(&mut table, 1, 1, FULL_AND_EMPTY[0]);
        assert_eq!(names(&table, Some("mars"), 2), (texts(&["a"]), false));
    }

    #[test]
    fn a_crowd_spreads_by_the_room_that_each_gateway_has() {
        let mut table = table(&[("full", "eu"), ("empty", "eu")]);
        report(&mut table, 1, 1, FULL_AND_EMPTY[0]);
        report(&mut table, 2, 1, FULL_AND_EMPTY[1]);
        let mut random = Random::new(7);
        let mut first = 0;
        for _ in 0..10_000 {
            let choice = table.choose(Some("eu"), at(2), &mut random);
            assert_eq!(choice.endpoints.len(), 2);
            first += usize::from(choice.endpoints[0].0 == "tls://empty:1");
        }
        assert!((8_800..9_200).contains(&first), "nine of ten: {first}");
        report(&mut table, 1, 2, Report::Ready { used: 1000, max: 1000 });
        report(&mut table, 2, 2, Report::Ready { used: 1000, max: 1000 });
        assert_eq!(names(&table, None, 2).0.len(), 2, "full ones are tried when there is nothing else");
    }

    #[test]
    fn a_crowd_of_equal_gateways_has_equal_shares_and_lists_are_bounded() {
        let gateways: Vec<String> = (0..100).map(|number| format!("g{number:02}")).collect();
        let pairs: Vec<(&str, &str)> = gateways.iter().map(|name| (&**name, "eu")).collect();
        let mut table = table(&pairs);
        (1..=100).for_each(|number| report(&mut table, number, 1, FULL_AND_EMPTY[1]));
        let mut random = Random::new(7);
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..100_000 {
            let choice = table.choose(Some("eu"), at(2), &mut random);
            assert_eq!(choice.endpoints.len(), ENDPOINTS_MAX);
            *counts.entry(choice.endpoints[0].0.to_owned()).or_insert(0) += 1;
        }
        let (least, most) = (counts.values().min().expect("some"), counts.values().max().expect("some"));
        // The mean is 1,000, and five standard deviations are 158.
        assert!(counts.len() == 100 && *least > 840 && *most < 1160, "{least} to {most}");
    }

    #[test]
    fn a_reload_keeps_the_reports_of_gateways_that_stay() {
        let mut table = table(&[("a", "eu"), ("b", "eu")]);
        report(&mut table, 1, 1, FULL_AND_EMPTY[0]);
        report(&mut table, 2, 1, FULL_AND_EMPTY[0]);
        let table = table.with(&config(&[("a", "us"), ("c", "eu")]));
        assert_eq!(table.counts(at(1)), [1, 0, 1], "c has the place of b, and another name");
        assert_eq!(table.places(), [admin(1), admin(2)]);
    }
}
