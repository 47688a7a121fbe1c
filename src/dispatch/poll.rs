//! The thread that asks gateways how they are.
//!
//! Each round asks every admin address for `/readyz`, and those that are ready for `/metrics`, at most [`ASKED_AT_ONCE`] at the same
//! time. Example: `/readyz` answers 200 and `/metrics` has `moorline_cap_used{cap="connections_max"} 900`: the report is
//! `Ready` with 900 places taken. 503: `NotReady`. No answer: no report, and the last one grows old.

use super::Shared;
use super::table::Report;
use moorline_net::http::{Address, StatusCode, ask_all};
use moorline_proto::time::Duration;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Gateways that are asked at the same time: each takes a descriptor.
const ASKED_AT_ONCE: usize = 128;
/// Samples of the metrics page.
const USED: &str = "moorline_cap_used{cap=\"connections_max\"} ";
const MAX: &str = "moorline_cap_max{cap=\"connections_max\"} ";

/// Asks until the process ends. The owner ends a pause between two rounds by unparking the thread.
pub(super) fn run(shared: &Arc<Shared>) {
    while !shared.is_ending.load(Ordering::Relaxed) {
        let begun = shared.clock.now();
        let (places, timeout, interval) = shared.to_poll();
        if let Err(error) = round(shared, places, timeout) {
            tracing::warn!(%error, "cannot ask gateways; their last answers are used");
        }
        let took = shared.clock.now().saturating_since(begun);
        std::thread::park_timeout(interval.saturating_sub(took));
    }
}

fn round(shared: &Shared, places: Vec<Address>, timeout: Duration) -> io::Result<()> {
    let questions: Vec<_> = places.into_iter().map(|place| (place, "/readyz")).collect();
    let answers = ask_all(&questions, timeout, ASKED_AT_ONCE)?;
    let (mut ready, mut failures) = (Vec::new(), 0);
    for ((place, _), answer) in questions.iter().zip(answers) {
        match answer.map(|answer| answer.status) {
            Ok(StatusCode::OK) => ready.push((place.clone(), "/metrics")),
            Ok(StatusCode::SERVICE_UNAVAILABLE) => shared.on_report(place, Report::NotReady),
            Ok(status) => {
                failures += 1;
                tracing::debug!(admin = %place, %status, "a gateway gives an answer that means nothing");
            }
            Err(error) => {
                failures += 1;
                tracing::debug!(admin = %place, %error, "a gateway does not answer");
            }
        }
    }
    for ((place, _), answer) in ready.iter().zip(ask_all(&ready, timeout, ASKED_AT_ONCE)?) {
        // A gateway that is ready and shows no figures is as good as one without a limit.
        let page = answer.map(|answer| answer.body).unwrap_or_default();
        shared.on_report(place, Report::Ready { used: sample(&page, USED), max: sample(&page, MAX) });
    }
    shared.on_round(questions.len(), failures);
    Ok(())
}

/// Value of a sample of a metrics page; 0: the page has none that is a whole number.
fn sample(page: &str, name: &str) -> u64 {
    page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_from_the_page_of_a_gateway() {
        let page = "# TYPE moorline_cap_used gauge\nmoorline_cap_used{cap=\"kept_max\"} 1\n\
                    moorline_cap_used{cap=\"connections_max\"} 900\nmoorline_cap_max{cap=\"connections_max\"} 1000\n";
        assert_eq!((sample(page, USED), sample(page, MAX)), (900, 1000));
        assert_eq!((sample("", USED), sample("moorline_cap_max{cap=\"connections_max\"} -1\n", MAX)), (0, 0));
    }

    #[test]
    fn the_page_of_this_version_has_these_samples() {
        let registry = crate::metrics::Registry::new();
        let cap = registry.show_cap(Arc::new(moorline_net::cap::CapWatch::new("limits.connections_max")));
        cap.note(3, 10, moorline_proto::time::Instant::ZERO);
        let page = registry.page();
        assert_eq!((sample(&page, USED), sample(&page, MAX)), (3, 10), "{page}");
    }
}
