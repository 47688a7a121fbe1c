//! Counters of the metrics page through hot restarts.

use crate::gateway::{Backend, Gateway};
use crate::raw::Client;
use crate::series::Series;
use crate::until;
use std::collections::BTreeMap;

/// Returns the counters, and the parts of histograms that only grow.
fn counters(gateway: &Gateway) -> BTreeMap<String, f64> {
    let grows = |name: &str| {
        let name = name.split('{').next().unwrap_or(name);
        ["_total", "_bucket", "_count", "_sum"].iter().any(|end| name.ends_with(end))
    };
    gateway.metrics().into_iter().filter(|(name, _)| grows(name)).collect()
}

#[test]
fn no_counter_goes_down_over_an_upgrade() {
    let backend = Backend::start();
    let series = Series::start(&backend, &["worker.count=2", "listener.address_connections=3"]);
    for round in 0..3 {
        let mut clients: Vec<_> =
            (0..3).map(|user| Client::login(series.gateway.listener, &format!("u{user}"), "d")).collect();
        clients.iter_mut().for_each(|client| client.beat(30));
        // One more than an address may have.
        drop(std::net::TcpStream::connect(series.gateway.listener).expect("it listens"));
        let refused = "addresses_refused_total";
        series.gateway.until_at_least(refused, round + 1);
        let before = counters(&series.gateway);
        assert!(before.len() > 100, "{}", before.len());
        series.restart();
        let after = counters(&series.gateway);
        for (name, value) in &before {
            let now = after.get(name).copied();
            assert!(now.is_some_and(|now| now >= *value), "round {round}: {name} was {value}, is {now:?}");
        }
        for name in ["reactor_turns_total", "admin_requests_total", "process_cpu_seconds_total", refused] {
            assert!(after[name] > 0.0, "{name}");
        }
        clients.iter_mut().for_each(|client| client.beat(30));
        drop(clients);
        let gone = || (series.gateway.metric("connections") == 0).then_some(());
        until("the clients are gone", gone);
    }
}
