//! Users of each backend: balance, slow endpoints, and endpoints that do not answer.

use super::{Breaker, LinkIndex, Links, Phase, Share, Spread, Target, WEIGHT};
use moorline_proto::link::{self, LinkAddress};
use moorline_proto::random::{Random, mix};
use moorline_proto::time::{Duration, Instant, nanos_of};

/// Interval of adjusting weights.
const INTERVAL: Duration = Duration::from_secs(5);
/// Divisor of the weight of an endpoint on trial.
const TRIAL_PARTS: u32 = 16;
/// Each answer moves the average by one part of this many.
const AVERAGE_PARTS: u64 = 16;
/// Latency, as a multiple of the fastest, above which the weight is halved, down to a quarter.
const SLOW_TIMES: u64 = 3;
/// Latency, as a multiple of the fastest, up to which the weight comes back.
const FAST_TIMES: u64 = 2;
/// Answers faster than this are fast, whatever others do.
const SLOW_MIN: Duration = Duration::from_millis(20);
/// Halvings of the weight of a slow one.
const SLOWNESS_MAX: u32 = 2;

/// Rule that spreads users over endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Balance {
    /// Evenly over links, away from slow ones.
    LeastLoaded,
    /// Consistent hashing: a user has the same endpoint from every gateway.
    Hash,
    /// One weight for each endpoint.
    Weighted(Vec<u32>),
    /// To the node of a cluster that owns the user's slot.
    Cluster,
}

/// The endpoints of one worker.
#[derive(Debug)]
pub(super) struct Endpoints {
    all: Vec<Endpoint>,
    links_each: usize,
    balance: Balance,
    next_look: Instant,
}

#[derive(Debug)]
struct Endpoint {
    /// Hash of the endpoint's name, the same in every gateway.
    name: u64,
    breaker: Breaker,
    /// Average latency of answers since the last look, in nanoseconds; 0: no answer.
    average: u64,
    /// Halvings of its weight.
    slowness: u32,
    /// When it had a timeout that should trip it.
    wants_trip: bool,
}

impl Endpoint {
    fn new(place: &link::Endpoint) -> Self {
        let breaker = Breaker::default();
        Self { name: name_of(place), breaker, average: 0, slowness: 0, wants_trip: false }
    }
}

impl Endpoints {
    pub(super) fn new(places: &[link::Endpoint], links_each: usize, balance: Balance) -> Self {
        let all = places.iter().map(Endpoint::new).collect();
        Self { all, links_each, balance, next_look: Instant::ZERO }
    }

    /// Adds an endpoint behind all others.
    pub(super) fn add(&mut self, place: &link::Endpoint) {
        self.all.push(Endpoint::new(place));
    }

    /// Puts another endpoint into the place of one.
    pub(super) fn replace(&mut self, at: usize, place: &link::Endpoint) {
        self.all[at] = Endpoint::new(place);
    }

    const fn place(&self, link: LinkIndex) -> usize {
        link.index() / self.links_each
    }

    fn of(&mut self, link: LinkIndex) -> &mut Endpoint {
        let place = self.place(link);
        &mut self.all[place]
    }

    /// The rule for backends of no cluster.
    pub(super) const fn spread(&self) -> Spread<'static> {
        match self.balance {
            Balance::LeastLoaded | Balance::Weighted(_) | Balance::Cluster => Spread::Weight,
            Balance::Hash => Spread::Hash,
        }
    }

    /// Counts an answer of this link and its latency. True: weights have changed.
    pub(super) fn on_answer(&mut self, now: Instant, link: LinkIndex, took: Duration) -> bool {
        let endpoint = self.of(link);
        let took = nanos_of(took);
        endpoint.average = match endpoint.average {
            0 => took,
            average => average - average / AVERAGE_PARTS + took / AVERAGE_PARTS,
        };
        endpoint.breaker.on_answer(now)
    }

    /// A question on this link had no answer in time.
    pub(super) fn on_timeout(&mut self, now: Instant, link: LinkIndex) {
        let endpoint = self.of(link);
        endpoint.wants_trip |= endpoint.breaker.on_timeout(now);
    }

    /// Weight of this link beside others; `None`: no slots.
    fn weight(&mut self, now: Instant, link: LinkIndex) -> Option<u32> {
        let place = self.place(link);
        let endpoint = &mut self.all[place];
        let full = match &self.balance {
            Balance::LeastLoaded => WEIGHT >> endpoint.slowness,
            Balance::Hash | Balance::Cluster => WEIGHT,
            Balance::Weighted(weights) => WEIGHT * weights[place],
        };
        match endpoint.breaker.share(now) {
            Share::Full => Some(full),
            Share::Trial => Some(full / TRIAL_PARTS),
            Share::Nothing => None,
        }
    }

    /// Compares the endpoints' answers. True: weights may have changed.
    fn look(&mut self, now: Instant) -> bool {
        if now < self.next_look {
            return false;
        }
        self.next_look = now + INTERVAL;
        let fastest = self.all.iter().map(|endpoint| endpoint.average).filter(|average| *average > 0).min();
        for endpoint in &mut self.all {
            let average = std::mem::take(&mut endpoint.average);
            let is_over = |times| average > fastest.unwrap_or(0).saturating_mul(times);
            if is_over(SLOW_TIMES) && average > nanos_of(SLOW_MIN) {
                endpoint.slowness = (endpoint.slowness + 1).min(SLOWNESS_MAX);
            } else if !is_over(FAST_TIMES) || average <= nanos_of(SLOW_MIN) / 2 {
                endpoint.slowness = endpoint.slowness.saturating_sub(1);
            }
        }
        true
    }

    /// Links that take slots.
    pub(super) fn targets(&mut self, now: Instant, links: &Links) -> Vec<Target> {
        let mut targets = Vec::new();
        for link in links.indices() {
            if links[link].state.phase() == Phase::Ready
                && let Some(weight) = self.weight(now, link)
            {
                let endpoint = self.of(link).name;
                targets.push(Target { link, weight, endpoint, node: links[link].node });
            }
        }
        targets
    }

    /// The places of endpoints that had too many timeouts since the last call.
    pub(super) fn take_suspects(&mut self) -> Vec<usize> {
        if self.is_alone() {
            return Vec::new();
        }
        let all = self.all.iter_mut().enumerate();
        all.filter_map(|(place, endpoint)| std::mem::take(&mut endpoint.wants_trip).then_some(place))
            .collect()
    }

    /// Compares the endpoints' answers now and then. True: weights may have changed.
    pub(super) fn look_around(&mut self, now: Instant) -> bool {
        !self.is_alone() && self.look(now)
    }

    /// Earliest time at which [`Self::look_around`] has something to do.
    pub(super) const fn next_deadline(&self) -> Instant {
        if self.is_alone() { Instant::FAR_FUTURE } else { self.next_look }
    }

    /// Without a second endpoint there is nothing to compare and nobody to take over. In a cluster no node does the work of
    /// another one that lives.
    const fn is_alone(&self) -> bool {
        self.all.len() < 2 || matches!(self.balance, Balance::Cluster)
    }

    /// True if links of other endpoints could do the work of the endpoint at `place`.
    pub(super) fn has_other(&self, place: usize, targets: &[Target]) -> bool {
        let is_well = |other: &Target| other.weight >= WEIGHT >> SLOWNESS_MAX;
        targets.iter().any(|target| self.place(target.link) != place && is_well(target))
    }

    /// Opens the breaker of the endpoint at `place`. Returns the end of the pause.
    pub(super) fn trip(&mut self, now: Instant, place: usize, random: &mut Random) -> Instant {
        self.all[place].breaker.trip(now, random)
    }

    /// The links to the endpoint at `place`.
    pub(super) fn links_of(&self, place: usize) -> impl Iterator<Item = LinkIndex> + use<> {
        let first = place * self.links_each;
        let index = |index| LinkIndex(u16::try_from(index).expect("a router has at most 65,535 links"));
        (first..first + self.links_each).map(index)
    }

    /// Tries endpoints whose breaker is open: no other link is left, and one to an endpoint that does not answer
    /// is better than none.
    pub(super) fn force_breakers(&mut self, now: Instant, links: &mut Links) {
        for index in links.indices() {
            if self.of(index).breaker.force(now) {
                links[index].state.wait_until(now);
            }
        }
    }

    /// Number of endpoints that are left alone.
    pub(super) fn breakers_open(&mut self, now: Instant) -> u64 {
        let all = self.all.iter_mut();
        all.filter_map(|endpoint| (endpoint.breaker.share(now) == Share::Nothing).then_some(())).count()
            as u64
    }
}

/// Hash of the endpoint, the same in every gateway.
fn name_of(place: &link::Endpoint) -> u64 {
    let of_text = |text: &str| text.bytes().fold(0, |hash, byte| mix(hash ^ u64::from(byte)));
    let address = match place {
        link::Endpoint::Address(LinkAddress::Ip(address)) => address,
        link::Endpoint::Address(LinkAddress::Unix(path)) => return of_text(path),
        link::Endpoint::Name(name) => return of_text(name.host()) ^ mix(u64::from(name.port())),
    };
    let ip = match address.ip().to_canonical() {
        std::net::IpAddr::V4(ip) => u128::from(u32::from(ip)),
        std::net::IpAddr::V6(ip) => u128::from(ip),
    };
    let bytes = ip.to_be_bytes();
    let (high, low) = bytes.split_at(8);
    let half = |half: &[u8]| u64::from_be_bytes(half.try_into().expect("eight of sixteen"));
    mix(mix(half(high)) ^ half(low)) ^ mix(u64::from(address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: LinkIndex = LinkIndex(0);
    const B: LinkIndex = LinkIndex(1);

    fn endpoints(balance: Balance) -> Endpoints {
        let addresses =
            ["10.0.0.1:7100", "10.0.0.2:7100"].map(|address| address.parse().expect("an address"));
        Endpoints::new(&addresses, 1, balance)
    }

    #[test]
    fn a_slow_endpoint_loses_weight_step_by_step_and_gets_it_back() {
        let mut endpoints = endpoints(Balance::LeastLoaded);
        let mut now = Instant::from_nanos(1);
        let mut weights = Vec::new();
        for slow_ms in [2, 100, 100, 100, 100, 50, 2, 2, 2] {
            for _ in 0..100 {
                endpoints.on_answer(now, A, Duration::from_millis(slow_ms));
                endpoints.on_answer(now, B, Duration::from_millis(20));
            }
            now += INTERVAL;
            assert!(endpoints.look(now) && !endpoints.look(now));
            weights.push(endpoints.weight(now, A).expect("it answers"));
            // However fast the other one is, this is fast enough.
            assert_eq!(endpoints.weight(now, B), Some(WEIGHT));
        }
        assert_eq!(weights, [1_000, 500, 250, 250, 250, 250, 500, 1_000, 1_000]);
    }

    #[test]
    fn weights_are_those_of_the_settings_and_trials_are_small() {
        let mut endpoints = endpoints(Balance::Weighted(vec![3, 1]));
        let now = Instant::from_nanos(1);
        assert_eq!((endpoints.weight(now, A), endpoints.weight(now, B)), (Some(3_000), Some(1_000)));
        (0..20).for_each(|_| endpoints.on_timeout(now, A));
        assert!(endpoints.all[0].wants_trip && !endpoints.all[1].wants_trip);
        let until = endpoints.all[0].breaker.trip(now, &mut moorline_proto::random::Random::new(1));
        assert_eq!(endpoints.weight(now, A), None);
        assert_eq!(endpoints.weight(until, A), Some(187));
    }
}
