//! The core's knowledge of networks: how long each keeps a silent connection [P-7.6].

use moorline_proto::keepalive::{Attention, Bounds, Probe};
use moorline_proto::time::{Duration, Instant};

/// Networks remembered; the one longest unused is forgotten.
const NETWORKS_MAX: usize = 16;
/// Age after which the search of a network starts again.
const FORGET_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);

/// The application's name of a network: a cell carrier, a Wi-Fi. Any number, 0 for "unknown".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkId(pub u64);

#[derive(Debug)]
struct Known {
    network: NetworkId,
    probe: Probe,
    since: Instant,
}

/// A search per network, the current network last.
#[derive(Debug)]
pub(super) struct Networks {
    current: NetworkId,
    attention: Attention,
    known: Vec<Known>,
}

impl Networks {
    pub(super) const fn new() -> Self {
        Self { current: NetworkId(0), attention: Attention::Foreground, known: Vec::new() }
    }

    pub(super) fn enter(&mut self, network: NetworkId) {
        self.current = network;
    }

    pub(super) fn attend(&mut self, attention: Attention) {
        self.attention = attention;
    }

    /// The interval to beat at, within the gateway's bounds.
    pub(super) fn interval(&mut self, bounds: Bounds, now: Instant) -> Duration {
        if self.attention == Attention::Foreground {
            return bounds.min; // nothing is searched, so nothing is remembered
        }
        let attention = self.attention;
        bounds.clamp(self.probe(bounds, now).interval(attention))
    }

    /// A PING after a whole silent interval was answered.
    pub(super) fn on_pong(&mut self, bounds: Bounds, now: Instant) {
        if self.attention == Attention::Background {
            self.probe(bounds, now).on_pong();
        }
    }

    /// A PING after a whole silent interval found the connection dead.
    pub(super) fn on_dead(&mut self, bounds: Bounds, now: Instant) {
        if self.attention == Attention::Background {
            self.probe(bounds, now).on_dead();
        }
    }

    fn probe(&mut self, bounds: Bounds, now: Instant) -> &mut Probe {
        let current = self.current;
        let fresh = Known { network: current, probe: Probe::new(bounds), since: now };
        let known = match self.known.iter().position(|known| known.network == current) {
            Some(at) => self.known.remove(at),
            None => fresh,
        };
        let is_old = now.saturating_since(known.since) >= FORGET_AFTER;
        let known =
            if is_old { Known { network: current, probe: Probe::new(bounds), since: now } } else { known };
        if self.known.len() == NETWORKS_MAX {
            self.known.remove(0);
        }
        self.known.push(known);
        &mut self.known.last_mut().expect("just put there").probe
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { min: Duration::from_secs(30), max: Duration::from_secs(600) };

    #[test]
    fn each_network_has_its_own_search_and_old_ones_are_forgotten() {
        let mut networks = Networks::new();
        let at = |secs: u64| Instant::ZERO + Duration::from_secs(secs);
        networks.on_pong(BOUNDS, at(0));
        assert!(networks.known.is_empty(), "in the foreground nothing is searched");
        networks.attend(Attention::Background);
        networks.enter(NetworkId(1));
        (0..5).for_each(|_| networks.on_pong(BOUNDS, at(0)));
        assert_eq!(networks.interval(BOUNDS, at(0)), Duration::from_secs(90));
        networks.enter(NetworkId(2));
        assert_eq!(networks.interval(BOUNDS, at(0)), BOUNDS.min);
        networks.enter(NetworkId(1));
        assert_eq!(networks.interval(BOUNDS, at(1)), Duration::from_secs(90));
        assert_eq!(networks.interval(BOUNDS, at(7 * 24 * 3600)), BOUNDS.min, "searched anew");
        for network in 10..40 {
            networks.enter(NetworkId(network));
            networks.interval(BOUNDS, at(1));
        }
        assert_eq!(networks.known.len(), NETWORKS_MAX);
    }
}
