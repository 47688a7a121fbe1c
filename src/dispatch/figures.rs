//! Figures of dispatch. Each list has one thread that writes it: the one that asks, the one that serves clients, and the one that
//! serves the page.

use crate::metrics::Metric;

const REFUSED: &str = "Questions of clients that got no list, by reason.";
const ANSWERS: &str = "Lists given to clients: fresh ones, and ones without a ready gateway of the region.";
const GATEWAYS: &str = "Gateways of the settings, by their state.";

/// Figures of the thread that asks gateways.
pub(super) const POLL_METRICS: &[Metric] = &[
    Metric::counter("dispatch_polls", "Questions to gateways."),
    Metric::counter("dispatch_polls_failed", "Questions to gateways without a usable answer."),
];
pub(super) const POLLS: usize = 0;
pub(super) const POLLS_FAILED: usize = 1;

/// Figures of the thread that serves clients.
pub(super) const CLIENT_METRICS: &[Metric] = &[
    Metric::counter("dispatch_answers", ANSWERS).labelled("kind", "fresh"),
    Metric::counter("dispatch_answers", ANSWERS).labelled("kind", "degraded"),
    Metric::counter("dispatch_refused", REFUSED).labelled("reason", "no_gateway"),
    Metric::counter("dispatch_refused", REFUSED).labelled("reason", "address_rate"),
    Metric::counter("dispatch_refused", REFUSED).labelled("reason", "bad_question"),
    Metric::counter("dispatch_refused", REFUSED).labelled("reason", "too_many"),
    Metric::counter("dispatch_refused", REFUSED).labelled("reason", "too_slow"),
    Metric::counter("dispatch_evicted", "Silent connections closed to make room for new ones."),
    Metric::gauge("dispatch_addresses", "Client addresses whose rate is remembered."),
];
pub(super) const FRESH: usize = 0;
pub(super) const DEGRADED: usize = 1;
pub(super) const NO_GATEWAY: usize = 2;
pub(super) const ADDRESS_RATE: usize = 3;
pub(super) const BAD_QUESTION: usize = 4;
pub(super) const TOO_MANY: usize = 5;
pub(super) const TOO_SLOW: usize = 6;
pub(super) const EVICTED: usize = 7;
pub(super) const ADDRESSES: usize = 8;

/// Figures of the thread that serves the page, in the order of the states.
pub(super) const STATE_METRICS: &[Metric] = &[
    Metric::gauge("dispatch_gateways", GATEWAYS).labelled("state", "ready"),
    Metric::gauge("dispatch_gateways", GATEWAYS).labelled("state", "not_ready"),
    Metric::gauge("dispatch_gateways", GATEWAYS).labelled("state", "silent"),
];
