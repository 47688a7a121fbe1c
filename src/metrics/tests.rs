//! Figures from several threads on one page.

use super::*;
use std::sync::Arc;

const METRICS: &[Metric] = &[
    Metric::counter("closed", "Connections ended.").labelled("reason", "slow"),
    Metric::counter("closed", "Connections ended.").labelled("reason", "kicked"),
    Metric::histogram("wait_seconds", "How long.", &[1_000_000_000, 2_000_000_000], SECONDS),
    Metric::gauge("connections", "Open connections."),
];

#[test]
fn a_renamed_metric_is_on_the_page_under_both_names() {
    const METRICS: &[Metric] = &[Metric::counter("detached_expired", "Sessions.")];
    let (registry, counters) = (Registry::new(), Arc::new(CounterSet::new(METRICS)));
    counters.add(0, 3);
    registry.add(counters);
    let page = registry.page();
    for line in ["moorline_detached_expired_total 3", "moorline_kept_in_vain_total 3"] {
        assert!(page.lines().any(|got| got == line), "{line} in {page}");
    }
    assert_eq!((names::current("kept_in_vain"), names::current("sends")), ("detached_expired", "sends"));
}

#[test]
fn equal_series_are_summed_over_boards() {
    let registry = Registry::new();
    let counter_sets = [Arc::new(CounterSet::new(METRICS)), Arc::new(CounterSet::new(METRICS))];
    for counter_set in &counter_sets {
        registry.add(Arc::clone(counter_set));
    }
    let mut counters = Counters::new(METRICS);
    counters.add(0, 2);
    counters.set(3, 7);
    for value in [1_000_000_000, 1_500_000_000, 9_000_000_000] {
        counters.observe(2, value);
    }
    counter_sets[0].publish(counters.cells());
    counter_sets[1].add(3, 5);
    counter_sets[1].add(3, 5);
    counter_sets[1].set(1, 1);
    assert_eq!((registry.sum("connections"), registry.sum("closed"), registry.sum("nothing")), (17, 3, 0));
    assert_eq!((counter_sets[1].get(3), counters.get(0)), (10, 2));
    let page = registry.page();
    for line in [
        "# HELP moorline_closed Connections ended.",
        "# TYPE moorline_closed counter",
        "moorline_closed_total{reason=\"slow\"} 2",
        "moorline_closed_total{reason=\"kicked\"} 1",
        "moorline_connections 17",
        "moorline_wait_seconds_sum 11.5",
        "moorline_wait_seconds_count 3",
        "moorline_wait_seconds_bucket{le=\"1.0\"} 1",
        "moorline_wait_seconds_bucket{le=\"2.0\"} 2",
        "moorline_wait_seconds_bucket{le=\"+Inf\"} 3",
        concat!("moorline_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        "# EOF",
    ] {
        assert!(page.lines().any(|found| found == line), "no {line:?} in\n{page}");
    }
    assert_eq!(page.matches("# TYPE moorline_closed ").count(), 1);
}

#[test]
fn every_series_is_there_before_anything_happened() {
    let registry = Registry::new();
    registry.add(Arc::new(CounterSet::new(METRICS.to_vec())));
    assert!(registry.page().contains("moorline_closed_total{reason=\"kicked\"} 0\n"));
    assert!(registry.page().contains("moorline_wait_seconds_count 0\n"));
}

#[test]
#[should_panic(expected = "one kind")]
fn one_name_cannot_be_two_things() {
    let registry = Registry::new();
    registry.add(Arc::new(CounterSet::new(METRICS)));
    registry.add(Arc::new(CounterSet::new(vec![Metric::counter("connections", "x")])));
}

#[test]
#[should_panic(expected = "Sends_total")]
fn a_name_no_scraper_takes_is_refused() {
    Registry::new().add(Arc::new(CounterSet::new(vec![Metric::counter("Sends_total", "x")])));
}
