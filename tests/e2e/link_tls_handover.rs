//! Encrypted links over hot restarts.

use crate::PATIENCE;
use crate::link_tls::{Ca, backend, chat, gateway_sets, login, strs};
use crate::series::Series;
use std::io::Read as _;
use std::net::TcpListener;

#[test]
fn a_handshake_of_a_link_that_is_under_way_is_begun_anew_by_the_next_process() {
    let ca = Ca::new("own");
    let (paper, own) = (ca.backend(), ca.issue(&["g1"]));
    let backend = backend(&paper, &ca, &[]);
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let place = silent.local_addr().expect("bound");
    let mut sets = gateway_sets(&own, &ca);
    sets.push(format!("backend.endpoints=[\"{}\", \"{place}\"]", backend.address));
    let series = Series::start(&backend, &strs(&sets));
    let mut clients = login(&series.gateway);
    chat(&mut clients, 1, b"before");
    let (mut before, _) = silent.accept().expect("the gateway comes");
    before.set_read_timeout(Some(PATIENCE)).expect("a socket");
    before.read_exact(&mut [0; 5]).expect("a ClientHello");
    series.restart();
    before.read_to_end(&mut Vec::new()).ok(); // it ends with its process
    let (mut behind, _) = silent.accept().expect("the next process comes");
    behind.set_read_timeout(Some(PATIENCE)).expect("a socket");
    behind.read_exact(&mut [0; 5]).expect("a ClientHello");
    chat(&mut clients, 2, b"behind");
    assert_eq!(series.gateway.metric("links_encrypted"), 1);
}

#[test]
fn encrypted_links_go_over_hot_restarts_under_load_and_lose_nothing() {
    let ca = Ca::new("own");
    let (paper, own) = (ca.backend(), ca.issue(&["g1"]));
    let backend = backend(&paper, &ca, &[]);
    let sets = gateway_sets(&own, &ca);
    let series = Series::start(
        &backend,
        &[&strs(&sets)[..], &["worker.count=2", "backend.links_per_worker=2"]].concat(),
    );
    series.gateway.until_metric("links_encrypted", 4);
    let mut clients = login(&series.gateway);
    let large = vec![7; 50_000];
    for round in 0..4 {
        chat(&mut clients, 2 * round + 1, b"small");
        series.restart();
        chat(&mut clients, 2 * round + 2, &large);
        assert_eq!(series.gateway.metric("links_encrypted"), 4);
    }
    let upgrade = format!("{} upgrade --admin {}", env!("CARGO_BIN_EXE_moorline"), series.gateway.admin);
    let line = "restart --hot -c 20 -r 300/s -d 12s --after 300ms --every 3s --times 3 --warmup 200ms --payload 3000";
    let file = series.pid_file.path().display().to_string();
    let (code, report) =
        crate::load::run(line, &["--command", &upgrade, "--pid-file", &file], series.gateway.listener);
    assert!(crate::load::is_clean(code, &report), "exit {code}, {report}");
    chat(&mut clients, 100, b"at the end");
    // No link was made anew.
    assert_eq!(series.gateway.metric("link_connects_total"), 4);
    assert_eq!(backend.process.log().matches("link down").count(), 0, "{}", backend.process.log());
}

/// Keys that two processes had for a moment are used by one of them: a record that both sealed would break the link.
#[cfg(any(feature = "failpoints", debug_assertions))]
#[test]
fn encrypted_links_go_on_in_the_old_process_when_a_restart_is_undone_at_any_step() {
    let ca = Ca::new("own");
    let (paper, own) = (ca.backend(), ca.issue(&["g1"]));
    let backend = backend(&paper, &ca, &[]);
    let sets = gateway_sets(&own, &ca);
    let series = Series::start(&backend, &[&strs(&sets)[..], &["backend.links_per_worker=2"]].concat());
    series.gateway.until_metric("links_encrypted", 2);
    let mut clients = login(&series.gateway);
    let mut key = 0;
    let mut talk = || {
        // More than one message in a row: each link has its share.
        for body in [b"small".to_vec(), vec![7; 40_000], b"again".to_vec()] {
            key += 1;
            chat(&mut clients, key, &body);
        }
    };
    talk();
    let pid = series.pid();
    for place in ["new.started", "new.warm", "new.told", "new.adopted", "new.ready"] {
        for action in ["kill", "hang"] {
            series.set_faults(&format!("{place} {action}\n"));
            let (code, restart) = series.upgrade(&["--timeout", "1s"]);
            assert_eq!((code, restart.verdict.as_str()), (Some(1), "rolled_back"), "{place} {action}");
            assert_eq!(series.pid(), pid, "{place} {action}: the old process serves on");
            talk();
            assert_eq!(series.gateway.metric("links_encrypted"), 2, "{place} {action}");
        }
    }
    series.set_faults("");
    series.restart();
    talk();
    assert_eq!(series.gateway.metric("link_connects_total"), 2, "no link was made anew");
    assert_eq!(backend.process.log().matches("link down").count(), 0, "{}", backend.process.log());
}
