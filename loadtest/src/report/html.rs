//! The report as one page with charts, which needs no other file and no network.

use super::{Environment, Report, ServerFigures};
use crate::monitor::Row;
use crate::record::{Distributions, Latencies, Metric};
use crate::units;
use serde_json::{Value, json};
use std::fmt::Write;

const TEMPLATE: &str = include_str!("../../assets/report.html");
const UPLOT_JS: &str = include_str!("../../assets/uPlot.iife.min.js");
const UPLOT_CSS: &str = include_str!("../../assets/uPlot.min.css");
/// Most points of a chart over time; longer runs show the worst value of each interval.
const POINTS_MAX: usize = 2_000;
/// Points of a percentile curve per factor of ten of 1/(1-percentile).
const CURVE_STEPS: i32 = 12;
/// A curve goes up to 99.9999%.
const CURVE_DECADES: i32 = 6;

/// The page of one run.
pub fn page(report: &Report, environment: &Environment, rows: &[Row], all: &Distributions) -> String {
    // Latencies of a late generator are not shown, in a table or as a curve.
    let shown = all.iter().filter(|_| !report.is_saturated());
    let curves: Vec<(String, &Latencies)> =
        shown.map(|(metric, latencies)| (metric.title().to_owned(), latencies)).collect();
    let data = json!({
        "main": main_of(report),
        "time": over_time(rows, !report.is_saturated()),
        "markers": report.markers,
        "percentiles": percentiles(&curves),
    });
    let subtitle = format!(
        "{} on {}, {} cores, Linux {}, load {:.1}; {}",
        environment.began,
        environment.processor,
        environment.cores,
        environment.kernel,
        environment.load_average.unwrap_or(0.0),
        environment.program
    );
    let title = format!("moorload {} to {}", report.scenario, report.target);
    fill(&title, &subtitle, (&report.verdict, report.exit == 0), &body(report, environment), &data)
}

/// The page of several runs beside each other.
pub(super) fn comparison_page(
    title: &str,
    table: &str,
    verdict: (&str, bool),
    curves: &[(String, &Latencies)],
) -> String {
    let empty: [f64; 0] = [];
    let time = json!({ "at_s": empty, "p50": empty, "p99": empty, "max": empty, "done": empty, "active": empty,
        "lowest": empty, "under_way": empty, "rss": empty, "server": empty, "own": empty });
    let data = json!({ "main": "", "time": time, "markers": [], "percentiles": percentiles(curves) });
    let body = format!(
        "<pre>{}</pre><div class=\"charts\"><div class=\"chart\" id=\"percentiles\"></div></div>",
        escape(table)
    );
    fill(title, "one run per column", verdict, &body, &data)
}

fn fill(title: &str, subtitle: &str, verdict: (&str, bool), body: &str, data: &Value) -> String {
    // "</" must not end the script that the data is in.
    let data = data.to_string().replace("</", "<\\/");
    let parts = [
        ("%TITLE%", escape(title)),
        ("%SUBTITLE%", escape(subtitle)),
        ("%VERDICT_CLASS%", (if verdict.1 { "good" } else { "bad" }).to_owned()),
        ("%VERDICT%", escape(verdict.0)),
        ("%BODY%", body.to_owned()),
        ("%UPLOT_CSS%", UPLOT_CSS.to_owned()),
        ("%UPLOT_JS%", UPLOT_JS.to_owned()),
        ("%DATA%", data),
    ];
    let (mut out, mut rest) = (String::with_capacity(TEMPLATE.len() + UPLOT_JS.len()), TEMPLATE);
    // One pass from left to right: nothing that was put in is looked at again.
    while let Some(at) = rest.find('%') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        if let Some((name, text)) = parts.iter().find(|(name, _)| from.starts_with(name)) {
            out.push_str(text);
            rest = &from[name.len()..];
        } else {
            out.push('%');
            rest = &from[1..];
        }
    }
    out.push_str(rest);
    out
}

fn main_of(report: &Report) -> &'static str {
    [Metric::Deliver, Metric::Answer]
        .into_iter()
        .find(|metric| report.latencies.contains_key(metric.name()))
        .map_or("none", Metric::title)
}

fn body(report: &Report, environment: &Environment) -> String {
    let mut out = String::from("<div class=\"tiles\">");
    let mut tile = |value: String, what: &str| {
        let _ =
            write!(out, "<div class=\"tile\"><b>{}</b><span>{}</span></div>", escape(&value), escape(what));
    };
    let connections = &report.connections;
    let of = |count: u32| units::count(count.into());
    tile(format!("{} / {}", of(connections.held), of(connections.asked)), "connections held / asked for");
    tile(format!("{}/s", units::three_digits(report.done_per_s)), "operations done");
    if let Some(offered) = report.offered_per_s {
        tile(format!("{}/s", units::three_digits(offered)), "operations offered");
    }
    let tally = &report.integrity;
    tile(
        format!("{} / {} / {}", tally.lost, tally.duplicated, tally.reordered),
        "messages lost / duplicated / reordered",
    );
    if connections.may_drop {
        tile(format!("{} / {}", tally.refused, tally.not_in), "refused / never in");
        tile(of(connections.dropped), "connections dropped by the restarts");
        tile(units::count(report.repeated), "messages repeated over a new connection");
    } else {
        tile(
            format!("{} / {} / {}", tally.refused, tally.dropped, tally.not_in),
            "refused / dropped / never in",
        );
    }
    if report.silence_s > 0.0 && !report.markers.is_empty() {
        tile(format!("{:.2} s", report.silence_s), "longest time without a delivery");
    }
    if let Some(back) = report.latencies.get(Metric::Back.name()) {
        let [p50, p99] = [back.p50, back.p99].map(units::latency);
        tile(format!("{p50} / {p99}"), "back after the storm, p50 / p99");
    }
    if let Some(server) = &report.server {
        server_tiles(server, &mut tile);
    }
    if let Some(lag) = &report.generator.lag {
        tile(units::latency(lag.p99), "generator's own lag, p99");
    }
    out.push_str("</div>");
    latency_table(report, &mut out);
    out.push_str("<h2>Charts</h2><div class=\"charts\">");
    let of_latency: &[&str] = if report.is_saturated() { &[] } else { &["latency", "percentiles"] };
    for id in of_latency.iter().chain(&["rate", "connections", "memory", "cpu"]) {
        let _ = write!(out, "<div class=\"chart\" id=\"{id}\"></div>");
    }
    out.push_str("</div>");
    let arguments = environment.arguments.join(" ");
    let _ = write!(
        out,
        "<h2>As text</h2><pre>{}</pre><h2>Command</h2><pre>{}</pre>",
        escape(report.text().trim_end()),
        escape(&arguments)
    );
    out
}

fn server_tiles(server: &ServerFigures, tile: &mut impl FnMut(String, &str)) {
    tile(format!("{} B", server.bytes_per_connection.round()), "server memory per connection");
    tile(format!("{} s", units::three_digits(server.cpu_s_per_million)), "server CPU per million operations");
}

fn latency_table(report: &Report, out: &mut String) {
    if report.is_saturated() {
        let _ = write!(out, "<p class=\"bad\">No latencies are shown: {}.</p>", report.why_invalid());
        return;
    }
    if report.latencies.is_empty() {
        return;
    }
    out.push_str("<h2>Latencies</h2><div class=\"scroll\"><table><tr><th></th>");
    for name in ["p50", "p90", "p99", "p99.9", "max", "mean", "count"] {
        let _ = write!(out, "<th>{name}</th>");
    }
    out.push_str("</tr>");
    for metric in Metric::ALL {
        let Some(it) = report.latencies.get(metric.name()) else { continue };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a mean of latencies
        let values = [it.p50, it.p90, it.p99, it.p999, it.max, it.mean as u64].map(units::latency);
        let _ = write!(out, "<tr><td>{}</td>", metric.title());
        values.iter().for_each(|value| {
            let _ = write!(out, "<td>{value}</td>");
        });
        let _ = write!(out, "<td>{}</td></tr>", units::count(it.count));
    }
    out.push_str("</table></div>");
}

/// Values, one per row or per few rows of a long run; latencies only if they are the server's.
fn over_time(rows: &[Row], has_latencies: bool) -> Value {
    let every = rows.len().div_ceil(POINTS_MAX).max(1);
    let mut time = json!({});
    let worst = |of: &dyn Fn(&Row) -> Option<f64>| -> Vec<Option<f64>> {
        rows.chunks(every)
            .map(|rows| {
                rows.iter().filter_map(of).fold(None, |worst, it| Some(worst.map_or(it, |w: f64| w.max(it))))
            })
            .collect()
    };
    let millis = |nanos: u64| nanos as f64 / 1e6;
    let latency = |row: &Row, nanos: u64| (has_latencies && row.latency.count > 0).then(|| millis(nanos));
    let mut put = |name: &str, of: &dyn Fn(&Row) -> Option<f64>| {
        time[name] = worst(of).into();
    };
    put("at_s", &|row| Some((row.at_s * 100.0).round() / 100.0));
    put("p50", &|row| latency(row, row.latency.p50));
    put("p99", &|row| latency(row, row.latency.p99));
    put("max", &|row| latency(row, row.latency.max));
    put("done", &|row| Some(row.done_per_s));
    put("active", &|row| Some(f64::from(row.active)));
    put("under_way", &|row| Some(f64::from(row.under_way)));
    put("rss", &|row| row.server_rss.map(|bytes| bytes as f64 / 1_048_576.0));
    put("server", &|row| row.server_cores);
    put("own", &|row| Some(row.own_cores));
    let lowest = |rows: &[Row]| rows.iter().map(|row| row.lowest).min();
    time["lowest"] = rows.chunks(every).map(lowest).collect::<Vec<_>>().into();
    time
}

/// Values in milliseconds over 1/(1-percentile), from 1 to a million.
fn percentiles(curves: &[(String, &Latencies)]) -> Value {
    let steps = CURVE_STEPS * CURVE_DECADES;
    let x: Vec<f64> = (0..=steps).map(|step| 10_f64.powf(f64::from(step) / f64::from(CURVE_STEPS))).collect();
    let curve = |latencies: &Latencies| -> Vec<Option<f64>> {
        let count = latencies.len() as f64;
        // Beyond the last one there is nothing to say.
        let known = x.iter().map(|x| (*x <= count.max(1.0) * 2.0).then(|| 1.0 - 1.0 / x));
        known
            .map(|part| part.map(|part| latencies.histogram().value_at_quantile(part) as f64 / 1e6))
            .collect()
    };
    let series: Vec<Value> = curves
        .iter()
        .map(|(label, latencies)| json!({ "label": label, "values": curve(latencies) }))
        .collect();
    json!({ "x": x, "series": series })
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_is_not_looked_at_again_and_cannot_break_out() {
        let data = json!({ "label": "</script><b>" });
        let page = fill("<%BODY%>", "", ("PASS", true), "%TITLE%", &data);
        assert!(page.contains("<title>&lt;%BODY%&gt;</title>"));
        assert!(!page.contains("</script><b>"));
        assert!(!page.contains("%DATA%") && !page.contains("%UPLOT_JS%"));
    }

    #[test]
    fn a_long_run_keeps_its_worst_seconds() {
        let row = |at: u32| Row {
            at_s: f64::from(at),
            phase: "measure",
            active: at,
            lowest: at,
            under_way: 0,
            dropped: 0,
            done_per_s: 1.0,
            done: 0,
            latency: crate::record::LatencySummary {
                max: u64::from(at == 7_001) * 1_000_000_000,
                count: 1,
                ..Default::default()
            },
            server_rss: None,
            server_cores: None,
            own_cores: 0.0,
        };
        let rows: Vec<Row> = (0..10_000).map(row).collect();
        let time = over_time(&rows, true);
        let max = time["max"].as_array().unwrap();
        assert!(max.len() <= POINTS_MAX && max.iter().any(|it| it == 1_000.0), "{}", max.len());
    }
}
