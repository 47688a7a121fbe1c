//! Figures from several threads on one page.

use super::*;
use std::sync::Arc;

const SERIES: &[Series] = &[
    Series::counter("closed", "Connections ended.").labelled("reason", "slow"),
    Series::counter("closed", "Connections ended.").labelled("reason", "kicked"),
    Series::histogram("wait_seconds", "How long.", &[1_000_000_000, 2_000_000_000], SECONDS),
    Series::gauge("connections", "Open connections."),
];

#[test]
fn equal_series_are_summed_over_boards() {
    let registry = Registry::new();
    let boards = [Arc::new(Board::new(SERIES)), Arc::new(Board::new(SERIES))];
    for board in &boards {
        registry.add(Arc::clone(board));
    }
    let mut tally = Tally::new(SERIES);
    tally.add(0, 2);
    tally.set(3, 7);
    for value in [1_000_000_000, 1_500_000_000, 9_000_000_000] {
        tally.observe(2, value);
    }
    boards[0].publish(tally.cells());
    boards[1].add(3, 5);
    boards[1].add(3, 5);
    boards[1].set(1, 1);
    assert_eq!((registry.sum("connections"), registry.sum("closed"), registry.sum("nothing")), (17, 3, 0));
    assert_eq!((boards[1].get(3), tally.get(0)), (10, 2));
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
    registry.add(Arc::new(Board::new(SERIES.to_vec())));
    assert!(registry.page().contains("moorline_closed_total{reason=\"kicked\"} 0\n"));
    assert!(registry.page().contains("moorline_wait_seconds_count 0\n"));
}

#[test]
#[should_panic(expected = "one kind")]
fn one_name_cannot_be_two_things() {
    let registry = Registry::new();
    registry.add(Arc::new(Board::new(SERIES)));
    registry.add(Arc::new(Board::new(vec![Series::counter("connections", "x")])));
}

#[test]
#[should_panic(expected = "Sends_total")]
fn a_name_no_scraper_takes_is_refused() {
    Registry::new().add(Arc::new(Board::new(vec![Series::counter("Sends_total", "x")])));
}
