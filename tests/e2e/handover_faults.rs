//! Hot restart while either process ends, hangs or stops at every step, and while the system refuses.
//!
//! Needs the places of `moorline::failpoint`: a debug build, or the feature. Beside each case two people chat, and
//! every message of theirs must come once, in order, unaltered. `MOORLINE_SOAK_SECONDS=1000` makes it long.

use crate::beside::Chat;
use crate::exhaustion::{hard_limit, limit_files};
use crate::gateway::Backend;
use crate::process::{Stopped, family, is_alive, is_stopped};
use crate::raw::{Client, message};
use crate::series::{Series, descriptors};
use crate::{soak, until};
use moorline_proto::message::client::Code;
use nix::sys::signal::Signal;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

/// Places of the new process before its first read.
const NEW: [&str; 6] = ["new.started", "new.warm", "new.told", "new.adopted", "new.ready", "new.touched"];

#[test]
fn a_new_process_that_dies_at_any_step_before_its_first_read_is_undone() {
    let backend = Backend::start();
    let series = Series::start(&backend, &[]);
    let chat = Chat::start(series.gateway.listener);
    let mut idle = Client::login(series.gateway.listener, "idle", "d");
    let (pid, before) = (series.pid(), descriptors(series.pid()));
    for place in &NEW[..5] {
        for action in ["kill", "crash", "exit:0", "hang"] {
            series.set_faults(&format!("{place} {action}\n"));
            let (code, restart) = series.upgrade(&["--timeout", "1s"]);
            assert_eq!((code, restart.verdict.as_str()), (Some(1), "rolled_back"), "{place} {action}");
            println!("{place} {action}: {}", restart.problem);
            assert_eq!(series.pid(), pid, "{place} {action}: the old process serves on");
            chat.go_on(5);
            idle.beat(30);
            assert!(series.gateway.process.children().is_empty(), "{place} {action}: no child is left");
        }
    }
    assert!(descriptors(pid).abs_diff(before) <= 2, "no descriptor is left");
    series.set_faults("");
    series.restart();
    chat.go_on(5);
    idle.beat(30);
    chat.finish();
}

#[test]
fn one_that_dies_after_its_first_read_takes_the_old_one_along_and_says_so() {
    for action in ["kill", "crash"] {
        let backend = Backend::start();
        let mut series = Series::start(&backend, &[]);
        let mut client = Client::login(series.gateway.listener, "alice", "d");
        series.set_faults(&format!("new.touched {action}\n"));
        series.signal(Signal::SIGUSR2);
        let end = client.end();
        assert_eq!(series.gateway.process.end().code(), Some(1), "{action}");
        let log = series.gateway.process.log();
        assert!(log.contains("took over and failed"), "{action}, {end:?}: {log}");
    }
}

#[test]
fn an_old_process_that_is_killed_standing_still_loses_nothing() {
    for place in ["old.ready", "old.committed", "old.running", "new.ready kill-parent"] {
        let backend = Backend::start();
        let series = Series::start(&backend, &[]);
        let chat = Chat::start(series.gateway.listener);
        let mut idle = Client::login(series.gateway.listener, "idle", "d");
        let old = series.pid();
        let fault = if place.contains(' ') { format!("{place}\n") } else { format!("{place} kill\n") };
        series.set_faults(&fault);
        series.signal(Signal::SIGUSR2);
        until("another process serves", || (series.pid() != old).then_some(()));
        until("the old one is dead", || (!is_alive(old)).then_some(()));
        series.set_faults("");
        chat.go_on(20);
        idle.beat(30);
        let restarts = series.restarts();
        let last = restarts.restarts.last().expect("one");
        assert_eq!((last.verdict.as_str(), restarts.generation), ("committed", 1), "{place}: {last:?}");
        // It goes on as any other.
        series.restart();
        chat.go_on(10);
        idle.beat(30);
        chat.finish();
    }
}

#[test]
fn an_old_process_that_is_killed_earlier_leaves_nobody_behind() {
    for place in ["old.check", "old.spawned", "old.warm", "old.frozen", "old.snapshot"] {
        let backend = Backend::start();
        let mut series = Series::start(&backend, &[]);
        let mut client = Client::login(series.gateway.listener, "alice", "d");
        let pid = series.pid();
        series.set_faults(&format!("{place} kill\n"));
        series.signal(Signal::SIGUSR2);
        let end = client.end();
        assert_eq!(series.gateway.process.end().code(), None, "{place}: {end:?}");
        // The child heard nothing, and has nothing: it ends, and the port is free for whoever starts anew.
        until("the address is free", || TcpListener::bind(series.gateway.listener).ok());
        assert_eq!(series.pid(), pid, "{place}");
    }
}

#[test]
fn a_new_process_that_hangs_ends_with_the_old_one_that_is_killed() {
    let scripts = [
        ("", "exec sleep 600"),
        ("", "echo warm >&$talk; exec sleep 600"),
        ("", "echo warm >&$talk; read -r line <&$talk; echo ready 5 >&$talk; exec sleep 600"),
    ];
    let faults = [("new.warm hang\n", ""), ("new.adopted hang\n", ""), ("new.ready hang\n", "")];
    for (fault, script) in scripts.into_iter().chain(faults) {
        let backend = Backend::start();
        let mut series = Series::start(&backend, &[]);
        let mut client = Client::login(series.gateway.listener, "alice", "d");
        series.set_faults(fault);
        let file = crate::handover::wrong(script);
        let name = if script.is_empty() { fault.split(' ').next().expect("a place") } else { script };
        std::thread::scope(|scope| {
            let file = file.path().to_str().expect("text").to_owned();
            let series = &series;
            let admin = series.gateway.admin.to_string();
            let upgrade = scope.spawn(move || {
                let binary = if script.is_empty() { vec![] } else { vec!["--binary", &file] };
                crate::process::run(&[&["upgrade", "--admin", &admin], &binary[..]].concat())
            });
            // The old process, the guard, the new process.
            until("the new process is there", || (family(series.pid()).len() >= 3).then_some(()));
            if script.is_empty() {
                until(name, || series.gateway.process.log().contains(name).then_some(()));
            }
            series.signal(Signal::SIGKILL);
            assert_eq!(upgrade.join().expect("no panic").0, Some(1), "{name}");
        });
        _ = series.gateway.process.end();
        println!("{name}: the client hears of it");
        client.end();
        // Nobody keeps the address.
        until("the address is free", || TcpListener::bind(series.gateway.listener).ok());
    }
}

#[test]
fn a_pause_that_threads_miss_is_tried_once_more() {
    let backend = Backend::start();
    let series = Series::start(&backend, &["handover.quiesce_timeout=200ms"]);
    let chat = Chat::start(series.gateway.listener);
    for place in ["old.worker", "old.reactor"] {
        // On a busy machine who waits for the threads may look so late that all of them stand still by then.
        until("a pause that a thread misses", || {
            let before = series.gateway.process.log().matches(place).count();
            series.set_faults(&format!("{place} sleep:400\n"));
            let restart = std::thread::scope(|scope| {
                let restart = scope.spawn(|| series.upgrade(&[]).1);
                until(place, || (series.gateway.process.log().matches(place).count() > before).then_some(()));
                series.set_faults("");
                restart.join().expect("no panic")
            });
            assert_eq!(restart.verdict, "committed", "{place}: {restart:?}");
            restart.steps.iter().any(|step| step.name == "quiesce").then_some(())
        });
        chat.go_on(10);
    }
    chat.finish();
}

#[test]
fn nobody_stands_still_longer_than_the_settings_say() {
    let backend = Backend::start();
    let series = Series::start(&backend, &["handover.pause_max=300ms"]);
    let mut idle = Client::login(series.gateway.listener, "idle", "d");
    for place in ["new.told", "new.adopted"] {
        series.set_faults(&format!("{place} hang\n"));
        let (code, restart) = series.upgrade(&[]);
        assert_eq!((code, restart.verdict.as_str()), (Some(1), "rolled_back"), "{place}: {restart:?}");
        assert!(restart.problem.contains("was not ready in time"), "{place}: {restart:?}");
        assert!(restart.pause_seconds < 10.0, "{place}: {restart:?}");
        idle.beat(30);
    }
    series.set_faults("");
    // On a busy machine this process, too, may need longer than 300 ms: then it is undone, and the next one follows.
    until("a restart within the time", || {
        let (code, restart) = series.upgrade(&[]);
        assert!(code == Some(0) || restart.problem.contains("was not ready in time"), "{restart:?}");
        (code == Some(0)).then_some(())
    });
    idle.beat(30);
}

#[test]
fn the_new_process_is_its_supervisors_child_before_it_is_named() {
    let backend = Backend::start();
    let series = Series::start_as(&backend, &[], |command| _ = command.arg("--supervise"));
    let mut idle = Client::login(series.gateway.listener, "idle", "d");
    let supervisor = series.gateway.process.pid();
    for _ in 0..2 {
        let old = series.pid();
        let before = series.gateway.process.log().matches("old.running").count();
        series.set_faults("old.running sleep:1000\n");
        std::thread::scope(|scope| {
            let restart = scope.spawn(|| series.upgrade(&[]).1);
            until("the old one has not named it", || {
                (series.gateway.process.log().matches("old.running").count() > before).then_some(())
            });
            until("it says who it is", || (series.pid() != old).then_some(()));
            assert!(is_alive(old), "the old process has not left");
            assert_eq!(crate::process::parent(series.pid()), Some(supervisor));
            assert_eq!(restart.join().expect("no panic").verdict, "committed");
        });
        until("the old process leaves", || (!is_alive(old)).then_some(()));
        idle.beat(30);
    }
}

#[test]
fn a_supervisor_follows_the_one_that_goes_on_for_a_dead_one() {
    let backend = Backend::start();
    let series = Series::start_as(&backend, &[], |command| _ = command.arg("--supervise"));
    let mut idle = Client::login(series.gateway.listener, "idle", "d");
    let old = series.pid();
    series.set_faults("old.ready kill\n");
    series.signal(Signal::SIGUSR2);
    until("another process serves", || (series.pid() != old).then_some(()));
    series.set_faults("");
    idle.beat(30);
    let (second, mut series) = (series.pid(), series);
    series.gateway.process.signal(Signal::SIGUSR2);
    until("the supervisor's signals reach it", || (series.pid() != second).then_some(()));
    idle.beat(30);
    // Without the supervisor they serve on: nobody is told to end.
    series.gateway.process.signal(Signal::SIGKILL);
    _ = series.gateway.process.end();
    idle.beat(30);
}

#[test]
fn either_process_may_be_stopped_for_a_while_at_any_step() {
    let pause = Duration::from_secs(if soak::is_long() { 30 } else { 1 });
    let backend = Backend::start();
    let series = Series::start(&backend, &["heartbeat.max=300s", "backend.up_timeout=60s"]);
    let chat = Chat::start(series.gateway.listener);
    let mut idle = Client::login(series.gateway.listener, "idle", "d");
    let places = ["old.spawned", "old.warm", "old.frozen", "old.told", "old.ready", "old.committed"];
    for place in places.iter().chain(&NEW[..5]) {
        let old = series.pid();
        series.set_faults(&format!("{place} stop\n"));
        series.signal(Signal::SIGUSR2);
        let who = until("somebody stops", || family(old).into_iter().find(|pid| is_stopped(*pid)));
        let stopped = Stopped::of(who);
        series.set_faults("");
        std::thread::park_timeout(pause);
        // The new process may be gone by then: the old one waits no longer than handover.timeout.
        stopped.go_on();
        until("a verdict", || {
            let restarts = series.restarts();
            (!restarts.is_under_way && !restarts.restarts.is_empty()).then_some(())
        });
        let last = series.restarts().restarts.last().cloned().expect("just seen");
        println!("{place} stopped: {} {}", last.verdict, last.problem);
        until("one process is left", || (family(series.pid()).len() == 1).then_some(()));
        chat.go_on(5);
        idle.beat(30);
    }
    chat.finish();
}

#[test]
fn what_the_system_refuses_or_a_snapshot_that_is_damaged_ends_in_the_old_process() {
    let backend = Backend::start();
    let series = Series::start(&backend, &["handover.quiesce_timeout=500ms"]);
    let chat = Chat::start(series.gateway.listener);
    let pid = series.pid();
    for (faults, problem) in [
        ("old.room ENOMEM", "bytes of memory are needed"),
        ("old.memory EMFILE", "Too many open files"),
        ("old.memory ENOMEM", "Cannot allocate memory"),
        ("old.snapshot ENOSPC", "No space left on device"),
        ("old.snapshot ENOMEM", "Cannot allocate memory"),
        ("old.damage cut", "is cut off"),
        ("old.damage flip", "damaged"),
        // A thread that does not come to rest in half a second.
        ("old.worker sleep:1000", "worker-0 did not"),
        ("old.reactor sleep:1000", "in time"),
    ] {
        series.set_faults(&format!("{faults}\n"));
        let (code, restart) = series.upgrade(&[]);
        assert_eq!((code, restart.verdict.as_str()), (Some(1), "rolled_back"), "{faults}: {restart:?}");
        assert!(restart.problem.contains(problem), "{faults}: {}", restart.problem);
        series.set_faults("");
        chat.go_on(5);
        assert_eq!(series.pid(), pid);
    }
    series.restart();
    chat.go_on(5);
    chat.finish();
}

#[test]
fn a_worker_that_is_stuck_for_ten_seconds_is_waited_for_and_nothing_is_lost() {
    let backend = Backend::start();
    let series = Series::start(&backend, &["backend.up_timeout=30s", "handover.quiesce_timeout=500ms"]);
    let mut alice = Client::login(series.gateway.listener, "alice", "d");
    let mut bob = Client::login(series.gateway.listener, "bob", "d");
    let stuck = if soak::is_long() { 10_000 } else { 2_000 };
    series.set_faults(&format!("old.worker sleep:{stuck}\n"));
    let restart = std::thread::scope(|scope| {
        let restart = scope.spawn(|| series.upgrade(&[]));
        until("it is called", || series.gateway.process.log().contains("old.worker").then_some(()));
        // What comes meanwhile waits before the worker.
        for number in 1..=50u128 {
            alice.send(&message(number, "bob", format!("{number}").as_bytes()));
        }
        restart.join().expect("no panic").1
    });
    assert_eq!(restart.verdict, "rolled_back", "{restart:?}");
    series.set_faults("");
    (1..=50).for_each(|cid| assert_eq!(alice.answer(cid).code(), Code::Ok));
    bob.until("all of them", |heard| heard.pushes.len() == 50);
    assert_eq!(bob.heard.repeats, 0);
    series.restart();
    assert_eq!(alice.tell(51, "bob", b"after").code(), Code::Ok);
}

#[test]
fn no_descriptor_left_means_no_restart_and_no_harm() {
    let backend = Backend::start();
    let series = Series::start(&backend, &[]);
    let chat = Chat::start(series.gateway.listener);
    let pid = series.pid();
    let (process, hard) = (&series.gateway.process, hard_limit(&series.gateway.process));
    let taken = process.descriptors();
    let free = (0..).zip(0..=taken.len()).find(|(number, _)| !taken.contains(number)).expect("one is free").0;
    if limit_files(process, u64::from(free) + 2, hard).is_none() {
        return;
    }
    // Newcomers take what is left, and more than that.
    let newcomers: Vec<_> = (0..64).map(|_| TcpStream::connect(series.gateway.listener)).collect();
    until("none is left", || series.gateway.process.log().contains("accept paused").then_some(()));
    series.signal(Signal::SIGUSR2);
    until("it says so", || series.gateway.process.log().contains("hot restart rolled back").then_some(()));
    chat.go_on(10);
    assert_eq!(series.pid(), pid);
    limit_files(process, hard, hard).expect("it was there");
    drop(newcomers);
    series.restart();
    chat.go_on(10);
    chat.finish();
}
