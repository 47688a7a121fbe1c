//! Three ways to send upward, compared on networks that lose, reorder and break: one message after the
//! other (`strict`), a window with a bitmap (`window`, this product's own [`Dedupe`]), and messages that
//! name their predecessor (`predecessor`, which exists only here).
//!
//! The simulation is deterministic, so the table in `docs/reliability.md` is exactly what it prints;
//! `SCHEMES_WRITE=1 cargo test --test schemes` writes it anew.
//!
//! [`Dedupe`]: moorline_proto::dedupe::Dedupe

mod network;
mod receiver;
mod run;
mod sender;

use network::Weather;
use receiver::Scheme;
use run::Outcome;
use std::fmt::Write;
use std::fs;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reliability.md");
const BEGIN: &str = "<!-- schemes: written by cargo test --test schemes -->\n";
const END: &str = "<!-- /schemes -->\n";

/// The networks, from fair to foul.
const WEATHERS: &[Weather] = &[
    Weather { name: "50 ms", rtt_ms: 50, ..Weather::FAIR },
    Weather { name: "200 ms", ..Weather::FAIR },
    Weather { name: "200 ms, reordering", jitter_ms: 200, ..Weather::FAIR },
    Weather { name: "200 ms, 1% lost", loss_permille: 10, ..Weather::FAIR },
    Weather { name: "200 ms, 5% lost, reordering", loss_permille: 50, jitter_ms: 200, ..Weather::FAIR },
    Weather { name: "200 ms, 20% lost, reordering", loss_permille: 200, jitter_ms: 200, ..Weather::FAIR },
    Weather { name: "200 ms, cut each 2 s", life_ms: 2_000, ..Weather::FAIR },
];

fn table(outcomes: &[(Weather, Scheme, Outcome)]) -> String {
    let mut text = String::from(
        "| round trip | scheme | messages/s | p50, ms | p99, ms | frames sent per message | bytes on top per message | most bytes held |\n|---|---|---|---|---|---|---|---|\n",
    );
    for (weather, scheme, it) in outcomes {
        writeln!(
            text,
            "| {} | {} | {:.1} | {} | {} | {:.2} | {:.1} | {} |",
            weather.name,
            scheme.name(),
            it.rate(),
            it.quantile_ms(500),
            it.quantile_ms(990),
            it.sent_per_message(),
            it.bytes_per_message(),
            it.state_max
        )
        .expect("a string takes everything");
    }
    text
}

#[test]
fn the_table_of_the_docs_is_what_three_schemes_do() {
    let all = WEATHERS.iter().flat_map(|weather| Scheme::ALL.iter().map(move |scheme| (*weather, *scheme)));
    let outcomes: Vec<_> =
        all.map(|(weather, scheme)| (weather, scheme, run::outcome(scheme, weather))).collect();
    let table = table(&outcomes);
    println!("{table}");
    let page = fs::read_to_string(PAGE).expect("the page");
    let (head, rest) = page.split_once(BEGIN).expect("the page has the place for the table");
    let (old, tail) = rest.split_once(END).expect("the table has an end");
    if std::env::var_os("SCHEMES_WRITE").is_some() {
        fs::write(PAGE, [head, BEGIN, &table, END, tail].concat()).expect("writable");
        return;
    }
    assert_eq!(old, table, "SCHEMES_WRITE=1 cargo test --test schemes writes the table anew");
}

#[test]
fn what_the_docs_conclude_is_so() {
    for weather in WEATHERS {
        let [strict, window, predecessor] = Scheme::ALL.map(|scheme| run::outcome(scheme, *weather));
        let name = weather.name;
        assert!(window.rate() > 3.0 * strict.rate(), "{name}: strict waits a round trip for each message");
        assert!(strict.state_max <= 8 && window.state_max < predecessor.state_max, "{name}: bytes held");
        assert!(window.bytes_per_message() < predecessor.bytes_per_message(), "{name}: bytes sent");
        if weather.loss_permille == 0 {
            // Over TCP nothing is lost but by a cut, and then everything is sent again anyway.
            assert!(window.sent_per_message() <= predecessor.sent_per_message(), "{name}: frames sent");
            let (ours, theirs) = (window.quantile_ms(990), predecessor.quantile_ms(990));
            assert!(theirs * 20 >= ours * 19, "{name}: asking gains {ours} - {theirs} ms");
        }
    }
}
