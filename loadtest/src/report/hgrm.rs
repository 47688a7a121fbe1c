//! The percentile table that HdrHistogram's plotters read.

use crate::record::Latencies;
use std::fmt::Write;

/// Steps per halving of the distance to 100%, as HdrHistogram's own tools have them.
const TICKS_PER_HALF: u32 = 5;
const NANOS_PER_MILLI: f64 = 1e6;

/// Formats a distribution, in milliseconds.
pub(super) fn table(latencies: &Latencies) -> String {
    let histogram = latencies.histogram();
    let mut out =
        format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    let mut counted = 0;
    for value in histogram.iter_quantiles(TICKS_PER_HALF) {
        counted += value.count_since_last_iteration();
        let (millis, part) =
            (value.value_iterated_to() as f64 / NANOS_PER_MILLI, value.quantile_iterated_to());
        let _ = write!(out, "{millis:>12.6} {part:>14.12} {counted:>10}");
        if part < 1.0 {
            let _ = write!(out, " {:>14.2}", 1.0 / (1.0 - part));
        }
        out.push('\n');
    }
    let millis = |nanos: f64| nanos / NANOS_PER_MILLI;
    let _ = writeln!(
        out,
        "#[Mean    = {:>12.6}, StdDeviation   = {:>12.6}]",
        millis(histogram.mean()),
        millis(histogram.stdev())
    );
    let _ = writeln!(
        out,
        "#[Max     = {:>12.6}, Total count    = {:>12}]",
        millis(histogram.max() as f64),
        histogram.len()
    );
    let _ = writeln!(out, "#[Buckets = {:>12}, SubBuckets     = {:>12}]", histogram.buckets(), 2_048);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_table_ends_with_all_of_them() {
        let mut latencies = Latencies::default();
        (1..=1_000).for_each(|millis| latencies.record(Duration::from_millis(millis)));
        let table = table(&latencies);
        let last = table.lines().rfind(|line| !line.starts_with('#')).unwrap();
        let cells: Vec<&str> = last.split_ascii_whitespace().collect();
        assert_eq!((cells[1], cells[2]), ("1.000000000000", "1000"), "{table}");
        let median = table.lines().find(|line| line.contains(" 0.500000000000 ")).unwrap();
        assert!(median.trim_start().starts_with("500."), "{median}");
        assert!(table.contains("Total count    =         1000"), "{table}");
    }
}
