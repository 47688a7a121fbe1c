//! Hot restart beside signals, orders and the end of the gateway: nothing is lost, and nobody waits for a verdict that
//! nobody will give.
//!
//! Needs the places of `moorline::failpoint`: a debug build, or the feature.

use crate::gateway::Backend;
use crate::process::{StoreFolder, TempFile, is_alive, run};
use crate::raw::Client;
use crate::series::Series;
use crate::{gateway, until};
use moorline::sys::clock;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

/// Longest time in which an end must be told: 2 s, and what a busy machine adds.
const TOLD_WITHIN: Duration = Duration::from_secs(20);

/// Waits until a place of the failpoints is reached once more than `before` times.
fn until_reached(series: &Series, place: &str) {
    until(place, || series.gateway.process.log().contains(place).then_some(()));
}

/// Runs a command beside `meanwhile`; its exit code, standard error and time.
fn beside(arguments: &[&str], meanwhile: impl FnOnce()) -> (Option<i32>, String, Duration) {
    std::thread::scope(|scope| {
        let command = scope.spawn(|| run(arguments));
        meanwhile();
        let since = clock::now();
        let (code, _, error) = command.join().expect("no panic");
        (code, error, clock::now().saturating_since(since))
    })
}

#[test]
fn the_death_of_the_gateway_is_told_and_not_waited_for() {
    let backend = Backend::start();
    let series = Series::start(&backend, &[]);
    series.set_faults("old.check hang\n");
    let admin = series.gateway.admin.to_string();
    let (code, error, took) = beside(&["upgrade", "--admin", &admin], || {
        until_reached(&series, "old.check");
        series.signal(Signal::SIGKILL);
    });
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("nobody listens at") && error.contains("has ended"), "{error}");
    assert!(took < TOLD_WITHIN, "{took:?}");
}

#[test]
fn the_verdict_of_another_gateway_is_nobodys() {
    let backend = Backend::start();
    let folder = StoreFolder::new();
    std::fs::create_dir(folder.path()).expect("made");
    set_permissions(folder.path(), Permissions::from_mode(0o700)).expect("ours");
    let socket = folder.path().join("admin.sock");
    let socket = socket.to_str().expect("text");
    let set = format!("admin.socket={socket}");
    let endpoints = format!("backend.endpoints={}", backend.address);
    let pid_file = TempFile::new("");
    let faults = TempFile::new("old.check hang\n");
    let first = gateway::Gateway::start_as(&[&set, &endpoints], |command| {
        command.env(moorline::failpoint::VARIABLE, faults.path());
    });
    let mut first = Series::of(first, pid_file);
    let (code, error, took) = beside(&["upgrade", "--admin", socket], || {
        until_reached(&first, "old.check");
        // Gone when this returns: up to then it listens, and nobody else gets its socket.
        first.gateway.process.kill();
        // Whoever restarts it is quick, and its first restart has the same number.
        let second = gateway::Gateway::start_as(&[&set, &endpoints], |_| ());
        let again = run(&["upgrade", "--admin", socket]);
        assert_eq!(again.0, Some(0), "{again:?}");
        let status = run(&["status", "--json", "--admin", socket]).1;
        let varz: moorline::admin::Varz = serde_json::from_str(&status).expect("JSON");
        kill(Pid::from_raw(i32::try_from(varz.pid).expect("a pid")), Signal::SIGKILL).expect("it runs");
        drop(second);
    });
    assert_eq!(code, Some(1), "{error}");
    let is_told = error.contains("another one (epoch") || error.contains("nobody listens at");
    assert!(is_told, "{error}");
    assert!(took < TOLD_WITHIN, "{took:?}");
}

#[test]
fn a_gateway_that_ends_takes_no_order_and_ends_a_restart_under_way() {
    let backend = Backend::start();
    let mut series = Series::start(&backend, &["drain.grace=5s"]);
    let mut client = Client::login(series.gateway.listener, "alice", "d");
    let admin = series.gateway.admin.to_string();
    // A check that hangs, with many signals before the one that counts.
    let hangs = TempFile::new("#!/bin/sh\n# MOORLINE_HANDOVER\nexec sleep 60\n");
    set_permissions(hangs.path(), Permissions::from_mode(0o755)).expect("our file");
    let binary = hangs.path().to_str().expect("text");
    let (code, error, took) = beside(&["upgrade", "--admin", &admin, "--binary", binary], || {
        until("it is checked", || series.restarts().is_under_way.then_some(()));
        (0..40).for_each(|_| series.signal(Signal::SIGHUP));
        series.signal(Signal::SIGTERM);
    });
    assert_eq!(code, Some(1), "{error}");
    assert!(
        error.contains("the gateway ends: ") && error.contains("a signal came before the commit"),
        "{error}"
    );
    assert!(!error.contains("serves on"), "{error}");
    assert!(took < TOLD_WITHIN, "{took:?}");
    // It drains now, and says so to whoever orders something.
    for order in [&["upgrade"][..], &["undrain"], &["reload"]] {
        let (code, _, error) = run(&[order, &["--admin", &admin]].concat());
        assert_eq!(code, Some(1), "{order:?}");
        assert!(error.contains("the gateway ends"), "{order:?}: {error}");
    }
    client.beat(30);
    drop(client);
    assert_eq!(series.gateway.process.end().code(), Some(0));
}

#[test]
fn a_signal_to_the_process_that_leaves_is_the_new_ones() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let backend = Backend::start();
        let series = Series::start(&backend, &["drain.grace=1s"]);
        let old = series.pid();
        series.set_faults("old.running sleep:300\n");
        let admin = series.gateway.admin.to_string();
        let _ = beside(&["upgrade", "--admin", &admin], || {
            until_reached(&series, "old.running");
            kill(Pid::from_raw(i32::try_from(old).expect("a pid")), signal).expect("it lives");
        });
        let new = series.pid();
        assert_ne!(new, old);
        until("the new one ends, too", || (!is_alive(new)).then_some(()));
    }
}

#[test]
fn signals_to_every_process_of_the_service_undo_nothing() {
    let backend = Backend::start();
    let series = Series::start(&backend, &[]);
    let old = series.pid();
    let restart = std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| series.upgrade(&[]).1);
        // As `kill -HUP $(pidof moorline)` does, again and again.
        while !upgrade.is_finished() {
            for pid in crate::process::family(old) {
                kill(Pid::from_raw(i32::try_from(pid).expect("a pid")), Signal::SIGHUP).ok();
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
        upgrade.join().expect("no panic")
    });
    assert_eq!(restart.verdict, "committed", "{restart:?}");
}

#[test]
fn fresh_scrapes_beside_restarts_are_answered() {
    let backend = Backend::start();
    let series = Series::start(&backend, &["log.level=info"]);
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let (asked, failed) = std::thread::scope(|scope| {
        let scraper = scope.spawn(|| {
            let (mut asked, mut failed) = (0, 0);
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                asked += 1;
                let answer = series.gateway.try_get("/healthz");
                failed += u32::from(!answer.is_ok_and(|answer| answer.ends_with("ok\n")));
            }
            (asked, failed)
        });
        for _ in 0..10 {
            series.restart();
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        scraper.join().expect("no panic")
    });
    println!("{failed} of {asked} scrapes beside 10 restarts were not answered");
    assert_eq!(failed, 0, "of {asked}");
}

#[test]
fn an_upgrade_that_is_ordered_during_another_one_waits_and_has_its_own_verdict() {
    let backend = Backend::start();
    let series = Series::start(&backend, &[]);
    series.set_faults("old.check sleep:1000\n");
    std::thread::scope(|scope| {
        let since = clock::now();
        let first = scope.spawn(|| series.upgrade(&[]));
        until_reached(&series, "old.check");
        let admin = series.gateway.admin.to_string();
        let (code, said, error) = run(&["upgrade", "--json", "--admin", &admin]);
        let first = first.join().expect("no panic").1;
        assert_eq!((&*first.verdict, first.number), ("committed", 1), "{first:?}");
        if code != Some(0) && is_over(since) {
            return;
        }
        let second: moorline::admin::Restart = serde_json::from_str(&said).expect(&error);
        assert_eq!((&*second.verdict, second.number, second.generation), ("committed", 2, 2), "{second:?}");
        assert_eq!(series.restarts().restarts.len(), 2, "neither was carried out twice");
    });
}

/// True, and said, if the ten seconds have passed in which a command gives its order again.
fn is_over(since: moorline_proto::time::Instant) -> bool {
    crate::is_over(Duration::from_secs(10), since, "on this busy machine a restart takes longer than 10 s")
}

#[test]
fn a_rollback_that_meets_an_upgrade_undoes_only_what_was_there_when_it_was_ordered() {
    let backend = Backend::start();
    let series = Series::start(&backend, &[]);
    series.restart();
    let admin = series.gateway.admin.to_string();
    for (fault, verdict) in [("new.warm exit:1\n", "rolled_back"), ("", "committed")] {
        let reached = |log: String| log.matches("old.check").count();
        let before = reached(series.gateway.process.log());
        series.set_faults(&format!("old.check sleep:1000\n{fault}"));
        std::thread::scope(|scope| {
            let since = clock::now();
            let upgrade = scope.spawn(|| series.upgrade(&[]).1);
            let log = || series.gateway.process.log();
            until("it is checked", || (reached(log()) > before).then_some(()));
            let rollback = scope.spawn(|| run(&["rollback", "--admin", &admin]));
            assert_eq!(upgrade.join().expect("no panic").verdict, verdict);
            series.set_faults("");
            let (code, said, error) = rollback.join().expect("no panic");
            if verdict == "committed" {
                let is_told = error.contains("another hot restart was committed meanwhile");
                assert!(code == Some(1) && is_told || is_over(since), "{said} {error}");
            } else {
                assert!(
                    code == Some(0) && said.contains("committed: generation 2") || is_over(since),
                    "{said} {error}"
                );
            }
        });
    }
}

#[test]
fn a_drain_that_is_ordered_during_a_restart_is_carried_out() {
    let backend = Backend::start();
    let series = Series::start(&backend, &["drain.grace=60s"]);
    let _client = Client::login(series.gateway.listener, "alice", "d");
    let (old, admin) = (series.pid(), series.gateway.admin.to_string());
    series.set_faults("old.check sleep:1000\n");
    std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| series.upgrade(&[]));
        until_reached(&series, "old.check");
        let (code, said, error) = run(&["drain", "--no-wait", "--admin", &admin]);
        assert_eq!(code, Some(0), "{said} {error}");
        assert_eq!(upgrade.join().expect("no panic").1.verdict, "committed");
    });
    assert_ne!(series.pid(), old);
    assert_eq!(series.gateway.get("/readyz").0, 503, "the one that serves drains");
}
