//! Search of a gateway for its backends: names, and the one store that it serves.

use crate::gateway::{Backend, Gateway};
use crate::process::{StoreFolder, run};
use crate::raw::Client;
use crate::series::Series;
use crate::until;

fn endpoints(backends: &[&Backend]) -> String {
    let places: Vec<_> = backends.iter().map(|backend| format!("\"{}\"", backend.address)).collect();
    format!("backend.endpoints=[{}]", places.join(","))
}

#[test]
fn a_name_is_an_endpoint_and_its_links_stay_through_a_hot_restart() {
    let backend = Backend::start();
    let named = format!("backend.endpoints=localhost:{}", backend.address.port());
    let series = Series::start(&backend, &[&named]);
    let mut client = Client::login(series.gateway.listener, "alice", "d");
    let lookups = "backend_lookups_total";
    series.gateway.until_at_least(lookups, 1);
    let connects = series.gateway.metric("link_connects_total");
    series.restart();
    client.beat(30);
    assert_eq!(series.gateway.metric("link_connects_total"), connects, "the links went over");
    // The link breaks: the name is looked up again, and leads to the next backend.
    let before = series.gateway.metric(lookups);
    let place = backend.kill();
    series.gateway.until_metric("links_up", 0);
    let _backend = Backend::start_at(&place);
    series.gateway.until_ready();
    series.gateway.until_at_least(lookups, before + 1);
    client.beat(30);
}

#[test]
fn a_name_that_does_not_exist_is_valid_and_told() {
    let named = "backend.endpoints=moorline.invalid:7100";
    let (code, said, error) = run(&["check", "--set", "auth.mode=dev", "--set", named]);
    assert_eq!(code, Some(0), "{said}{error}");
    let gateway = Gateway::start_bare(&[named]);
    gateway.until_at_least("backend_lookups_failed_total", 1);
    until("the log tells", || gateway.process.log().contains("cannot resolve").then_some(()));
    let told = gateway.varz().problems.join("\n");
    assert!(told.contains("cannot resolve `moorline.invalid:7100`"), "{told}");
    let (status, body) = gateway.get("/readyz");
    assert!(status == 503 && body.contains("warning: faults of backends: 1;"), "{body}");
    for wrong in ["backend.endpoints=10.0.0:7100", "backend.endpoints=backend", "backend.endpoints=backend:0"]
    {
        let (code, _, error) = run(&["check", "--set", "auth.mode=dev", "--set", wrong]);
        assert!(code == Some(2) && error.contains("backend.endpoints"), "{error}");
    }
}

#[test]
fn a_backend_with_another_store_is_refused_by_name_until_the_first_one_is_gone() {
    let folders = [StoreFolder::new(), StoreFolder::new()];
    let start = |folder: &StoreFolder| Backend::start_with(&["listen=127.0.0.1:0", &folder.set()]);
    let (first, second) = (start(&folders[0]), start(&folders[1]));
    // The order of the settings does not decide: the store that answers first serves.
    let series = Series::start(&first, &[&endpoints(&[&first, &second]), "worker.count=2"]);
    series.gateway.until_at_least("link_stores_refused_total", 1);
    until("two of four links serve", || (series.gateway.metric("links_up") == 2).then_some(()));
    let told = series.gateway.varz().problems.join("\n");
    assert!(told.contains("has another store than the one at"), "{told}");
    for backend in [&first, &second] {
        assert!(told.contains(&backend.address.to_string()), "{told}");
    }
    until("the log tells", || series.gateway.process.log().contains("has another store").then_some(()));
    let status = run(&["status", "--admin", &series.gateway.admin.to_string()]).1;
    assert!(status.contains("warning: the backend"), "{status}");
    let (status, body) = series.gateway.get("/readyz");
    assert!(status == 200 && body.contains("warning: faults of backends: 1;"), "{body}");
    // The next process knows which store serves.
    series.restart();
    series.gateway.until_metric("links_up", 2);
    assert_eq!(series.gateway.varz().problems.len(), 1);
    // Whichever serves: when it is gone for long, the other one is taken.
    let is_first_refused = told.contains(&format!("at {} has another", first.address));
    drop(if is_first_refused { second } else { first });
    series.gateway.until_metric("links_up", 0);
    series.gateway.until_metric("links_up", 2);
    until("nobody is refused", || series.gateway.varz().problems.is_empty().then_some(()));
}

#[test]
fn a_backend_that_starts_again_with_an_empty_store_in_memory_is_accepted_at_once() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &["worker.count=2"]);
    gateway.until_metric("links_up", 2);
    let _backend = Backend::start_at(&backend.kill());
    gateway.until_metric("link_connects_total", 4);
    gateway.until_metric("links_up", 2);
    assert_eq!(gateway.metric("link_stores_refused_total"), 0);
}

#[test]
fn backends_that_keep_nothing_are_not_compared() {
    let start = || Backend::start_with(&["listen=127.0.0.1:0", "handler=echo"]);
    let (first, second) = (start(), start());
    let gateway = Gateway::start_bare(&[&endpoints(&[&first, &second])]);
    gateway.until_metric("links_up", 2);
    assert_eq!(gateway.metric("link_stores_refused_total"), 0);
}
