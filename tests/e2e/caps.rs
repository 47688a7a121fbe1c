//! A cap that is nearly used up is told before it refuses anybody: by a log line and by metrics.

use crate::api::Api;
use crate::gateway::Gateway;
use crate::process::Process;
use crate::raw::Client;

/// Waits for the one line about a cap, and returns whether it says that the cap is near.
fn until_told(process: &Process, cap: &str, text: &str) {
    let is_it = |line: &&str| line.contains(cap) && line.contains(text);
    let lines = || process.log().lines().filter(is_it).count();
    crate::until(&format!("a line of {cap}: {text}"), || (lines() > 0).then_some(()));
    assert_eq!(lines(), 1, "one line, not one for each:\n{}", process.log());
}

#[test]
fn connections_links_and_sessions_are_told_at_80_percent() {
    let api =
        Api::start(&["link.sessions_max=10", "link.gateways_max=1", "link.links_max=64", "link.rooms_max=2"]);
    let gateway = Gateway::start(
        &api.backend,
        &[
            "limits.connections_max=10",
            "listener.handshakes_max=16",
            "session.keep=60s",
            "session.kept_max=2",
        ],
    );
    let login = |number| Client::login(gateway.listener, &format!("user-{number}"), "d");
    let mut clients: Vec<_> = (0..7).map(login).collect();
    gateway.until_metric("cap_used{cap=\"connections_max\"}", 7);
    assert_eq!(gateway.metric("cap_max{cap=\"connections_max\"}"), 10);
    assert!(!gateway.process.log().contains("80% of a cap"), "{}", gateway.process.log());
    clients.push(login(7));
    until_told(&gateway.process, "limits.connections_max", "80% of a cap are used");

    let caps = || -> Vec<(String, u64, u64)> {
        let status = api.status();
        let of = |cap: &serde_json::Value| {
            let number = |name: &str| cap[name].as_u64().expect("a number");
            (cap["name"].as_str().expect("a name").to_owned(), number("used"), number("max"))
        };
        status["limits"]["caps"].as_array().expect("a list").iter().map(of).collect()
    };
    let is_there = |cap: &str, used, max| caps().contains(&(cap.to_owned(), used, max));
    crate::until("the sessions", || is_there("sessions_max", 8, 10).then_some(()));
    assert!(is_there("gateways_max", 1, 1) && is_there("rooms_max", 0, 2), "{:?}", caps());
    until_told(&api.backend.process, "link.sessions_max", "80% of a cap are used");
    until_told(&api.backend.process, "link.gateways_max", "80% of a cap are used");

    // Sessions that wait for their clients have a cap of their own: each reactor has its part.
    clients.truncate(3);
    until_told(&gateway.process, "limits.connections_max", "80% of a cap are used");
    crate::until("a line of session.kept_max", || {
        gateway.process.log().contains("session.kept_max").then_some(())
    });
}
