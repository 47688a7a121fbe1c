//! Gateways that dispatch servers have named: which one the next attempt goes to, and when to ask again. Pure.
//!
//! Run-through: at the start there is no list, so the first attempt asks. The answer names `a` and `b` for 60 s. The attempts go
//! to `a`, `b`, and to the application's own endpoint. The list is used up by then, so the next attempt asks again. If nobody
//! answers, the own endpoint is next, and then the list of before.
//!
//! There is no storm of questions: each belongs to an attempt to connect, so it waits for the backoff as attempts do, and
//! after a failed question further ones have a backoff of their own. A login that lasted is tried again at the same gateway,
//! which has its session, without a question.

use super::Backoff;
use super::endpoint_list::EndpointList;
use super::endpoint_round::EndpointRound;
use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant};
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct Endpoints {
    /// Dispatch servers; at least 1.
    servers: Arc<[Arc<str>]>,
    /// Index of the server that is asked next.
    server: usize,
    /// Last list, in its order; empty: none has come.
    list: Vec<Arc<str>>,
    round: EndpointRound,
}

impl Endpoints {
    /// Returns the state without a list. The first server is chosen by chance, so that all of them are asked alike.
    pub(super) fn new(servers: &Arc<[Arc<str>]>, random: &mut Random) -> Self {
        let server = usize::try_from(random.below(servers.len().max(1) as u64)).unwrap_or(0);
        Self { servers: Arc::clone(servers), server, list: Vec::new(), round: EndpointRound::default() }
    }

    /// Names the dispatch server to be asked before the next attempt; `None`: the attempt goes on without a question.
    pub(super) fn poll_question(&self, now: Instant) -> Option<Arc<str>> {
        self.servers.get(self.server).filter(|_| self.round.is_question_due(now)).cloned()
    }

    /// Takes a list.
    pub(super) fn on_list(&mut self, now: Instant, list: EndpointList) {
        self.round.on_list(now, u8::try_from(list.places.len()).unwrap_or(u8::MAX), list.lifetime);
        self.list = list.places;
    }

    /// Notes that a question brought no list: the next one goes to another server, `after` and a random wait later.
    pub(super) fn on_no_list(&mut self, now: Instant, after: Duration, policy: Backoff, random: &mut Random) {
        self.server = (self.server + 1) % self.servers.len().max(1);
        self.round.on_no_list(now, after, policy, random);
    }

    /// Names the gateway of an attempt that begins; `None`: the driver's own endpoint.
    pub(super) fn begin(&mut self) -> Option<Arc<str>> {
        self.round.begin().and_then(|at| self.list.get(at).cloned())
    }

    /// Takes the end of an attempt or a login; see [`EndpointRound::on_lost`].
    pub(super) fn on_lost(&mut self, has_served: bool) {
        self.round.on_lost(has_served);
    }

    /// Notes that the network is another one.
    pub(super) fn on_network_changed(&mut self) {
        self.round.on_network_changed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(secs)
    }

    fn endpoints() -> Endpoints {
        let servers: Arc<[Arc<str>]> = Arc::new(["one".into(), "two".into()]);
        let mut endpoints = Endpoints::new(&servers, &mut Random::new(1));
        endpoints.server = 0;
        endpoints
    }

    fn list(places: &[&str]) -> EndpointList {
        let places = places.iter().map(|place| (*place).into()).collect();
        EndpointList { places, lifetime: Duration::from_secs(60) }
    }

    /// The next attempt, which fails.
    fn fail(endpoints: &mut Endpoints) -> Option<String> {
        let place = endpoints.begin().map(|place| place.to_string());
        endpoints.on_lost(false);
        place
    }

    #[test]
    fn a_list_is_tried_to_its_end_and_to_the_own_endpoint_before_the_next_question() {
        let mut endpoints = endpoints();
        assert_eq!(endpoints.poll_question(at(0)).as_deref(), Some("one"));
        endpoints.on_list(at(0), list(&["a", "b"]));
        assert_eq!(endpoints.poll_question(at(0)), None);
        assert_eq!(fail(&mut endpoints).as_deref(), Some("a"));
        assert_eq!(endpoints.poll_question(at(1)), None);
        assert_eq!(fail(&mut endpoints).as_deref(), Some("b"));
        assert_eq!(endpoints.poll_question(at(2)).as_deref(), Some("one"), "used up");
        endpoints.on_no_list(at(2), Duration::ZERO, Backoff::default(), &mut Random::new(1));
        assert_eq!(fail(&mut endpoints), None, "the own endpoint");
        assert_eq!(fail(&mut endpoints).as_deref(), Some("a"), "the last list is kept");
    }

    #[test]
    fn without_any_list_the_own_endpoint_is_tried() {
        let mut endpoints = endpoints();
        endpoints.on_no_list(at(0), Duration::ZERO, Backoff::default(), &mut Random::new(1));
        assert!((0..5).all(|_| fail(&mut endpoints).is_none()));
    }

    #[test]
    fn failed_questions_wait_longer_and_longer_and_go_to_each_server() {
        let (mut endpoints, mut random) = (endpoints(), Random::new(7));
        let (mut now, mut asked, mut last) = (at(0), Vec::new(), Duration::ZERO);
        for _ in 0..200 {
            let asked_at = now;
            asked.push(endpoints.poll_question(now).expect("due").to_string());
            endpoints.on_no_list(now, Duration::ZERO, Backoff::default(), &mut random);
            assert_eq!(endpoints.poll_question(now), None);
            while endpoints.poll_question(now).is_none() {
                now += Duration::from_millis(100);
            }
            last = now.saturating_since(asked_at);
            assert!(last >= Duration::from_secs(1) && last <= Duration::from_secs(31), "{last:?}");
        }
        assert_eq!(asked[..4], ["one", "two", "one", "two"]);
        assert!(now > at(200 * 10), "a mean of 15 s at the cap: {now:?}, {last:?}");
        endpoints.on_no_list(now, Duration::from_secs(500), Backoff::default(), &mut random);
        assert_eq!(endpoints.poll_question(now + Duration::from_secs(499)), None, "the server's pause");
        endpoints.on_network_changed();
        assert!(endpoints.poll_question(now).is_some());
    }

    #[test]
    fn a_gateway_that_served_is_tried_first_and_one_that_asked_to_leave_is_not() {
        let mut endpoints = endpoints();
        endpoints.on_list(at(0), list(&["a", "b"]));
        assert_eq!(endpoints.begin().as_deref(), Some("a"));
        endpoints.on_lost(true);
        assert_eq!(endpoints.poll_question(at(1000)), None, "its session may be resumed there");
        assert_eq!(fail(&mut endpoints).as_deref(), Some("a"));
        assert!(endpoints.poll_question(at(1000)).is_some(), "the list is old");
        assert_eq!(endpoints.begin().as_deref(), Some("b"));
        endpoints.on_lost(false); // GOAWAY
        assert_eq!(endpoints.begin(), None);
    }
}
