//! Hot restart against real processes: what moves, and what happens when the new process does wrong.
//!
//! Wrong ones are shell scripts that speak the handover's lines: honest up to a step, and then not.

use crate::beside::{Chat, Silent};
use crate::gateway::{Backend, Gateway};
use crate::process::{TempFile, is_alive, run};
use crate::raw::{Acks, Client, bytes_of, hello, message, send_frame};
use crate::series::{Series, descriptors};
use crate::until;
use moorline_proto::frame::{Command, Flags, HEADER_BYTES};
use moorline_proto::message::client::{Code, Hello, Resume, Welcome};
use moorline_proto::message::frame_of;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

#[test]
fn a_busy_gateway_changes_its_process_and_nobody_notices() {
    let backend = Backend::start();
    let series = Series::start(&backend, &[]);
    let address = series.gateway.listener;
    let chat = Chat::start(address);
    // The same without a restart, to compare.
    chat.go_on(100);
    let control = chat.lap();
    let mut idle: Vec<Client> =
        (0..40).map(|number| Client::login(address, &format!("idle-{number}"), "d")).collect();
    // A login is counted a moment after its WELCOME.
    let metrics = crate::until("everybody is counted", || {
        let metrics = series.gateway.metrics();
        (metrics["logins_total"] > 41.5).then_some(metrics)
    });
    let (mut counts, mut epoch) = (Vec::new(), None);
    for generation in 1..=4 {
        chat.go_on(20);
        let restart = series.restart();
        println!("{restart:?}");
        assert_eq!(restart.generation, generation);
        assert!(restart.sockets >= 44, "{restart:?}");
        chat.go_on(20);
        counts.push(descriptors(series.pid()));
        let varz = series.gateway.varz();
        assert_eq!((varz.generation, varz.pid), (generation, series.pid()));
    }
    for (number, client) in idle.iter_mut().enumerate() {
        let peer = format!("idle-{}", (number + 1) % 40);
        assert_eq!(client.tell(number as u128 + 1_000, &peer, b"still here").code(), Code::Ok);
        client.beat(30);
        let welcome = client.heard.welcome.clone().expect("logged in");
        assert_eq!(*epoch.get_or_insert(welcome.epoch), welcome.epoch);
    }
    for client in &mut idle {
        client.until("the neighbour's message", |heard| heard.pushes.len() == 1);
        assert!(client.heard.end.is_none() && client.heard.repeats == 0);
    }
    let report = chat.finish();
    println!(
        "{} messages, the slowest {:?}; p99 of the control {:?}",
        report.messages, report.slowest, control.p99
    );
    let after = crate::until("what was said since is counted", || {
        let after = series.gateway.metrics();
        (after["sends_total"] > metrics["sends_total"]).then_some(after)
    });
    for name in ["logins_total", "accepted_total", "link_connects_total"] {
        let grown = after[name] - metrics[name];
        assert!(grown.abs() < 0.5, "{name}: counters go on and nobody came anew: {grown}");
    }
    let last = counts.last().expect("four");
    assert!(
        counts.iter().all(|count| count.abs_diff(*last) <= 2),
        "no descriptor is left behind: {counts:?}"
    );
    // Who comes now is let in.
    Client::login(address, "newcomer", "d").beat(30);
}

#[test]
fn a_frame_that_is_cut_anywhere_goes_on_at_the_exact_byte() {
    let backend = Backend::start();
    let series = Series::start(&backend, &[]);
    let mut bob = Client::login(series.gateway.listener, "bob", "d");
    let frame = |number: usize| {
        let payload = format!("cut at {number}");
        bytes_of(&send_frame(1, &message(number as u128 + 1, "bob", payload.as_bytes())))
    };
    let mut cut: Vec<Client> = Vec::new();
    for number in 0..HEADER_BYTES + 8 {
        let mut client = Client::login(series.gateway.listener, &format!("cut-{number}"), "d");
        client.write(&frame(number)[..number]);
        cut.push(client);
    }
    // One that has said half a HELLO, and one that has said nothing.
    let greeting = bytes_of(&frame_of(Command::Hello, &hello("late", "d")));
    let mut late = Client::connect(series.gateway.listener);
    late.write(&greeting[..11]);
    let mut silent = Client::connect(series.gateway.listener);
    series.restart();
    series.restart();
    for (number, client) in cut.iter_mut().enumerate() {
        client.write(&frame(number)[number..]);
        assert_eq!(client.answer(1).code(), Code::Ok, "cut at {number}");
    }
    late.write(&greeting[11..]);
    late.until("WELCOME", |heard| heard.welcome.is_some());
    silent.put(&frame_of(Command::Hello, &hello("silent", "d")));
    silent.until("WELCOME", |heard| heard.welcome.is_some());
    bob.until("every message", |heard| heard.pushes.len() == cut.len());
}

#[test]
fn what_is_unacknowledged_queued_or_waiting_for_its_client_moves_too() {
    let backend = Backend::start();
    let series = Series::start(&backend, &["limits.queue_bytes=8MiB"]);
    let address = series.gateway.listener;
    let mut alice = Client::login(address, "alice", "d");
    // Bob hears, and does not acknowledge; Carol does not read at all; Dave loses his connection.
    let mut bob = Client::login(address, "bob", "d");
    bob.acks = Acks::Withheld;
    let mut carol = Client::login(address, "carol", "d");
    let mut dave = Client::login(address, "dave", "d");
    assert_eq!(alice.tell(1, "dave", b"one").code(), Code::Ok);
    dave.until("one", |heard| heard.pushes.len() == 1);
    let Welcome { session, epoch, ticket, .. } = dave.heard.welcome.clone().expect("logged in");
    drop(dave);
    series.gateway.until_metric("detached", 1);
    let large = vec![7; 16 << 10];
    for number in 0..64u128 {
        assert_eq!(alice.tell(100 + number, "carol", &large).code(), Code::Ok);
    }
    assert_eq!(alice.tell(2, "bob", b"one").code(), Code::Ok);
    assert_eq!(alice.tell(3, "dave", b"two").code(), Code::Ok);
    bob.until("one", |heard| heard.pushes.len() == 1);
    let silent = Silent::start(vec![bob]);
    series.restart();
    assert_eq!(alice.tell(4, "bob", b"two").code(), Code::Ok);
    assert_eq!(alice.tell(4, "bob", b"two").code(), Code::Dup, "the backend saw it once");
    let mut bob = silent.finish().swap_remove(0);
    bob.until("two", |heard| heard.pushes.len() == 2);
    assert_eq!(bob.heard.payloads(), [b"one", b"two"]);
    carol.until("all of a megabyte", |heard| heard.pushes.len() == 64);
    assert!(carol.heard.pushes.iter().all(|push| push.payload == large) && carol.heard.repeats == 0);
    let resume = Resume { session, epoch, ticket, last_seq: 1, sack: 0 };
    let mut dave = Client::connect(address);
    dave.last_seq = 1;
    dave.put(&frame_of(Command::Hello, &Hello { resume: Some(resume), ..hello("dave", "d") }));
    dave.until("what came meanwhile", |heard| heard.pushes.len() == 1);
    assert!(dave.heard.welcome.as_ref().is_some_and(|welcome| welcome.resumed), "the ticket is good");
    assert_eq!(dave.heard.payloads(), [b"two"]);
    // Bob's ack window goes on where it was.
    bob.put(&frame_of(Command::Ping, &()).with_flags(Flags::ACK_REQ).with_ack(2));
    bob.until("PONG", |heard| heard.pongs == 1);
    assert_eq!(alice.tell(5, "bob", b"three").code(), Code::Ok);
    bob.until("three", |heard| heard.pushes.len() == 3);
}

#[test]
fn bytes_that_were_queued_before_are_not_carried_in_the_pause() {
    let backend = Backend::start();
    let sets = [
        "limits.queue_bytes=16MiB",
        "limits.body_max=64KiB",
        "limits.user_rate=0",
        "limits.memory_watermark=1GiB",
        "log.level=info",
    ];
    let series = Series::start(&backend, &sets);
    let (each, size) = (32, 16 << 10);
    let address = series.gateway.listener;
    let mut alice = Client::login(address, "alice", "d");
    let silent: Vec<Client> =
        (0..50).map(|number| Client::login(address, &format!("silent-{number}"), "d")).collect();
    let count = silent.len();
    let silent = Silent::start(silent);
    let mut key = 0;
    let payload = |number: usize| [&number.to_be_bytes()[..], &vec![7; size]].concat();
    for number in 1..=each {
        for to in 0..count {
            key += 1;
            assert_eq!(alice.tell(key, &format!("silent-{to}"), &payload(number)).code(), Code::Ok);
        }
    }
    // The backend gives each client a window at once, and the rest as those are acknowledged.
    let queued = until("much is queued", || {
        let queued = series.gateway.metric("queued_bytes");
        (queued > 5 << 20).then_some(queued)
    });
    // The frames under way are sent again once and wait as copies; that may happen between the last look and a pause.
    let carried: Vec<u64> = (0..3)
        .map(|_| {
            let restart = series.restart();
            println!("{queued} bytes queued: {:?}", restart.steps);
            let step = restart.steps.iter().find(|step| step.name == "snapshot").expect("a step");
            let bytes = step.detail.split(' ').next().and_then(|bytes| bytes.parse().ok());
            bytes.expect("a number")
        })
        .collect();
    let few = carried.iter().filter(|bytes| **bytes < queued / 5).count();
    assert!(few >= 2, "{queued} were queued, the pauses carried {carried:?}");
    for client in &mut silent.finish() {
        client.until("all of it", |heard| heard.pushes.len() == each);
        let whole =
            (1..=each).zip(&client.heard.pushes).all(|(number, push)| push.payload == payload(number));
        assert!(whole && client.heard.repeats == 0, "in order, once, unaltered");
    }
}

/// A script that answers the check as the real program does, and then does `what` with its descriptors.
pub(crate) fn wrong(what: &str) -> TempFile {
    let script = format!(
        "#!/bin/bash\nif [ \"$MOORLINE_HANDOVER\" = check ]; then exec {} \"$@\"; fi\n\
         talk=${{MOORLINE_HANDOVER%%,*}}\n{what}\n",
        crate::process::binary().display()
    );
    let file = TempFile::new(script);
    set_permissions(file.path(), Permissions::from_mode(0o755)).expect("our file");
    file
}

#[test]
fn a_new_process_that_does_wrong_is_undone_at_every_step() {
    let backend = Backend::start();
    let series = Series::start(&backend, &[]);
    let chat = Chat::start(series.gateway.listener);
    let mut idle = Client::login(series.gateway.listener, "idle", "d");
    let pid = series.pid();
    let warm = "echo warm >&$talk; read -r line <&$talk;";
    let ready = format!("{warm} echo ready 5 >&$talk; read -r line <&$talk;");
    let cases = [
        ("ends at its start", "exit 7".to_owned(), "ended with exit status: 7"),
        ("crashes at its start", "kill -SEGV $$".to_owned(), "signal: 11"),
        ("hangs at its start", "exec sleep 60".to_owned(), "was not warm in time"),
        ("closes its socket", "exec {talk}>&-; exec sleep 60".to_owned(), "closed its socket"),
        ("says something else", "echo hello >&$talk; exec sleep 60".to_owned(), "unexpected line: hello"),
        ("refuses what it was given", format!("{warm} echo failed: no >&$talk; exec sleep 60"), "failed: no"),
        ("ends with the snapshot", format!("{warm} exit 3"), "exit status: 3"),
        ("crashes with the snapshot", format!("{warm} kill -SEGV $$"), "signal: 11"),
        ("hangs with the snapshot", format!("{warm} exec sleep 60"), "was not ready in time"),
        ("ends after the commit", format!("{ready} exit 4"), "after the commit"),
        ("is killed after the commit", format!("{ready} kill -KILL $$"), "after the commit"),
        ("hangs after the commit", format!("{ready} exec sleep 60"), "after the commit"),
    ];
    for (name, what, problem) in &cases {
        let file = wrong(what);
        let (code, restart) =
            series.upgrade(&["--timeout", "2s", "--binary", file.path().to_str().expect("text")]);
        assert_eq!((code, restart.verdict.as_str()), (Some(1), "rolled_back"), "{name}: {restart:?}");
        assert!(restart.problem.contains(problem), "{name}: {}", restart.problem);
        assert_eq!(series.pid(), pid, "{name}: the old process serves on");
        chat.go_on(10);
        assert!(series.gateway.process.children().is_empty(), "{name}: no child is left");
    }
    // What is refused before anything was touched.
    let plain = TempFile::new("#!/bin/sh\nexit 0\n");
    let text = |file: &TempFile| file.path().to_str().expect("text").to_owned();
    let (_, restart) = series.upgrade(&["--binary", &text(&plain)]);
    assert!(
        restart.problem.contains("not a regular file that this user may run"),
        "not executable: {}",
        restart.problem
    );
    set_permissions(plain.path(), Permissions::from_mode(0o755)).expect("our file");
    let (_, restart) = series.upgrade(&["--binary", &text(&plain)]);
    assert!(restart.problem.contains("is not a moorline that can take over"), "{}", restart.problem);
    set_permissions(plain.path(), Permissions::from_mode(0o777)).expect("our file");
    let (_, restart) = series.upgrade(&["--binary", &text(&plain)]);
    assert!(restart.problem.contains("can be written by its group or by others"), "{}", restart.problem);
    let other = TempFile::new(b"\x7fELF\x02\x01\x01 of another machine");
    set_permissions(other.path(), Permissions::from_mode(0o755)).expect("our file");
    let (_, restart) = series.upgrade(&["--binary", &text(&other)]);
    assert_eq!(restart.verdict, "rolled_back", "another architecture: {}", restart.problem);
    let (code, restart) = series.upgrade(&["--dry-run"]);
    assert_eq!((code, restart.verdict.as_str()), (Some(0), "dry_run"), "{restart:?}");
    assert_eq!(series.pid(), pid);
    idle.beat(30);
    // None of it stands in the way of one that does right.
    series.restart();
    chat.go_on(10);
    idle.beat(30);
    let report = chat.finish();
    println!("{} messages, the slowest {:?}", report.messages, report.slowest);
}

#[test]
fn signals_in_a_row_are_one_restart_and_the_next_one_works_at_once() {
    let backend = Backend::start();
    let series = Series::start(&backend, &[]);
    let chat = Chat::start(series.gateway.listener);
    let old = series.pid();
    (0..20).for_each(|_| series.signal(Signal::SIGUSR2));
    until("another process serves", || (series.pid() != old).then_some(()));
    until("the old one leaves", || (!is_alive(old)).then_some(()));
    chat.go_on(10);
    series.restart();
    series.restart();
    let (code, said, _) = run(&["rollback", "--admin", &series.gateway.admin.to_string()]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("committed: generation "), "{said}");
    chat.go_on(10);
    assert!(series.restarts().restarts.len() >= 4);
    // The end of a series is as orderly as that of one process.
    series.signal(Signal::SIGTERM);
    chat.finish();
}

#[test]
fn a_supervisor_stays_while_processes_come_and_go() {
    let backend = Backend::start();
    let start = || {
        let pid_file = TempFile::new("");
        let sets = [
            format!("handover.pid_file={}", pid_file.path().display()),
            format!("backend.endpoints={}", backend.address),
        ];
        let gateway = Gateway::supervised(&[&sets[0], &sets[1]]);
        gateway.until_ready();
        Series::of(gateway, pid_file)
    };
    let mut series = start();
    let mut alice = Client::login(series.gateway.listener, "alice", "d");
    series.restart();
    // A signal to the one that stays is for the one that serves.
    let old = series.pid();
    series.gateway.process.signal(Signal::SIGUSR2);
    until("another process serves", || (series.pid() != old).then_some(()));
    until("the old one leaves", || (!is_alive(old)).then_some(()));
    alice.beat(30);
    assert!(series.gateway.process.is_running());
    drop(alice);
    series.gateway.process.signal(Signal::SIGTERM);
    assert_eq!(
        series.gateway.process.end().code(),
        Some(0),
        "it ends with the last one, and as that one did"
    );
    let mut series = start();
    series.restart();
    series.signal(Signal::SIGKILL);
    assert_eq!(series.gateway.process.end().code(), Some(128 + 9), "so that whoever started it knows");
}

#[test]
fn a_new_process_may_be_killed_at_any_moment() {
    let backend = Backend::start();
    let mut series = Series::start(&backend, &[]);
    let mut client = Client::login(series.gateway.listener, "alice", "d");
    let old = series.pid();
    for microseconds in (0..60_000u64).step_by(5_000) {
        series.signal(Signal::SIGUSR2);
        std::thread::park_timeout(Duration::from_micros(microseconds));
        let serves = series.pid();
        // The child, wherever it is in taking over.
        for child in series.gateway.process.children() {
            if child != serves {
                kill(Pid::from_raw(i32::try_from(child).expect("a pid")), Signal::SIGKILL).ok();
            }
        }
        if series.pid() != old {
            break; // it was quicker: from now on it is no child of the first one
        }
        until("the verdict", || (!series.restarts().is_under_way).then_some(()));
    }
    if series.pid() == old && !series.gateway.process.is_running() {
        // It was killed after its first read: there is no way back, and the old one says so.
        assert_eq!(series.gateway.process.end().code(), Some(1));
    } else {
        client.beat(30);
    }
}

#[test]
fn a_silent_connection_of_the_process_before_makes_room_for_a_newcomer() {
    let backend = Backend::start();
    let places = ["listener.handshakes_max=16", "listener.address_handshakes=0"];
    let series = Series::start(&backend, &[places[0], places[1], "limits.handshake_timeout=300s"]);
    let _silent: Vec<_> = (0..16).map(|_| Client::connect(series.gateway.listener)).collect();
    series.gateway.until_metric("connections", 16);
    series.restart();
    drop(Client::login(series.gateway.listener, "alice", "d"));
    series.gateway.until_at_least("handshakes_evicted_total", 1);
}
