//! Hot restart while peers come, leave, reset, drip and repeat, and under other supervisors and settings.
//!
//! Needs the places of `moorline::failpoint`: a debug build, or the feature. `MOORLINE_SOAK_SECONDS=1000` makes it
//! long: 100 restarts, 5,000 newcomers.

use crate::beside::Chat;
use crate::gateway::Backend;
use crate::process::{Stopped, TempFile};
use crate::raw::{Acks, Client, bytes_of, hello, message, message_into, send_frame};
use crate::series::{Series, descriptors};
use crate::{is_too_slow, soak, until};
use moorline::sys::clock;
use moorline_proto::frame::{Command, Flags};
use moorline_proto::message::client::{Code, Send, SendAck};
use moorline_proto::message::im::GroupCreateRequest;
use moorline_proto::message::{encode, frame_of};
use moorline_proto::random::Random;
use nix::sys::signal::Signal;
use socket2::SockRef;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

#[test]
fn peers_that_come_leave_and_reset_while_everything_stands_still_are_served_or_gone() {
    let (_many, newcomers) = crate::descriptors::many(if soak::is_long() { 5_000 } else { 300 });
    let backend = Backend::start();
    let series = Series::start(&backend, &["listener.handshakes_max=16384", "limits.handshake_timeout=30s"]);
    let address = series.gateway.listener;
    let chat = Chat::start(address);
    let login = |name: &str, count: usize| -> Vec<Client> {
        (0..count).map(|number| Client::login(address, &format!("{name}-{number}"), "d")).collect()
    };
    for (fault, verdict) in [
        ("old.frozen sleep:300", "committed"),
        ("new.told sleep:300", "committed"),
        ("old.frozen sleep:300\nold.snapshot ENOSPC", "rolled_back"),
    ] {
        let (leavers, resetters, mut talkers) =
            (login("leaver", 20), login("resetter", 20), login("talker", 20));
        series.set_faults(&format!("{fault}\n"));
        let (restart, mut late) = std::thread::scope(|scope| {
            let restart = scope.spawn(|| series.upgrade(&[]));
            let place = fault.split(' ').next().expect("a place");
            let marks = series.gateway.process.log().matches(place).count();
            until("it stands still", || {
                (series.gateway.process.log().matches(place).count() > marks).then_some(())
            });
            drop(leavers);
            for client in resetters {
                SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).expect("a socket");
                drop(client);
            }
            for (number, talker) in talkers.iter_mut().enumerate() {
                talker.send(&message(number as u128 + 1, "nobody", b"while it stands"));
            }
            // They wait in the kernel's queue.
            let late: Vec<TcpStream> =
                (0..newcomers).map(|_| TcpStream::connect(address).expect("queued")).collect();
            (restart.join().expect("no panic").1, late)
        });
        assert_eq!(restart.verdict, verdict, "{fault}: {restart:?}");
        series.set_faults("");
        for talker in &mut talkers {
            talker.answer(1);
        }
        for (number, stream) in late.iter_mut().enumerate() {
            let hello = hello(&format!("late-{number}"), "d");
            stream.write_all(&bytes_of(&frame_of(Command::Hello, &hello))).expect("it stands");
        }
        for stream in &mut late {
            stream.set_read_timeout(Some(crate::PATIENCE)).expect("a socket");
            let mut first = [0; 2];
            stream.read_exact(&mut first).expect("WELCOME begins");
        }
        // Who left is gone there too.
        drop((late, talkers));
        series.gateway.until_metric("connections", 2);
        chat.go_on(10);
    }
    chat.finish();
}

#[test]
fn acks_and_repeats_that_arrive_while_everything_stands_still_count_once() {
    let backend = Backend::start();
    let series = Series::start(&backend, &[]);
    let mut alice = Client::login(series.gateway.listener, "alice", "d");
    let mut bob = Client::login(series.gateway.listener, "bob", "d");
    bob.acks = Acks::Withheld;
    // A window full of answered frames: the next ones lie at its boundary.
    for number in 1..=64u128 {
        assert_eq!(alice.tell(number, "bob", b"before").code(), Code::Ok);
    }
    bob.until("a window full", |heard| heard.pushes.len() >= 16);
    let heard = bob.last_seq;
    let restart = |during: &mut dyn FnMut()| {
        series.set_faults("old.frozen sleep:300\n");
        std::thread::scope(|scope| {
            let marks = series.gateway.process.log().matches("old.frozen").count();
            let restart = scope.spawn(|| series.upgrade(&[]));
            until("it stands still", || {
                (series.gateway.process.log().matches("old.frozen").count() > marks).then_some(())
            });
            during();
            let (code, restart) = restart.join().expect("no panic");
            assert_eq!(code, Some(0), "{restart:?}");
        });
        series.set_faults("");
    };
    restart(&mut || {
        // The ack of what was heard, and the last cids once more.
        bob.put(&frame_of(Command::Ping, &()).with_flags(Flags::ACK_REQ).with_ack(heard));
        for cid in 60..=64u32 {
            alice.put(&send_frame(cid, &message(cid.into(), "bob", b"before")));
        }
        alice.send(&message(65, "bob", b"after"));
    });
    bob.acks = Acks::Prompt;
    alice.until("the answers", |heard| (60..=64).all(|cid| heard.answers(cid).len() == 2));
    assert_eq!(alice.answer(65).code(), Code::Ok);
    assert_eq!(alice.tell(66, "bob", b"last").code(), Code::Ok);
    bob.put(&frame_of(Command::Ping, &()).with_flags(Flags::ACK_REQ).with_ack(bob.last_seq));
    bob.until("all of them", |heard| heard.pushes.len() == 66);
    assert_eq!(bob.heard.repeats, 0, "each once");
}

#[test]
fn ten_thousand_questions_and_half_frames_on_the_links_go_on() {
    let (clients, each) = (200, if soak::is_long() { 60 } else { 50 });
    let backend = Backend::start();
    let series = Series::start(
        &backend,
        &[
            "backend.up_timeout=60s",
            "limits.user_rate=0",
            "overload.queue_frames=1048576",
            "backend.parked_frames=65536",
            "backend.parked_bytes=64MiB",
        ],
    );
    let mut people: Vec<Client> = (0..clients)
        .map(|number| Client::login(series.gateway.listener, &format!("p{number}"), "d"))
        .collect();
    // The backend reads nothing: links fill up to the middle of a frame, questions wait.
    let stopped = Stopped::stop(backend.process.pid());
    let payload = |from: usize, number: usize| {
        let mut payload = format!("{from} {number} ").into_bytes();
        payload.resize(400, b'x');
        payload
    };
    let key = |from: usize, number: usize| (from as u128) << 64 | number as u128;
    let asked = clock::now();
    for (from, person) in people.iter_mut().enumerate() {
        for number in 1..=each {
            let to = format!("p{}", (from + 1) % clients);
            person.send(&message(key(from, number), &to, &payload(from, number)));
        }
    }
    let taken = u64::try_from(clients * each).expect("small");
    series.gateway.until_metric("sends_total", taken);
    for _ in 0..3 {
        let restart = series.restart();
        println!("{restart:?}");
    }
    stopped.go_on();
    let since = clock::now();
    for (from, person) in people.iter_mut().enumerate() {
        person.until("every answer", |heard| heard.send_acks.len() == each);
        let codes: Vec<_> = person.heard.send_acks.iter().map(SendAck::code).collect();
        if codes.contains(&Code::Retry) && is_too_slow(asked) {
            return;
        }
        assert!(codes.iter().all(|code| *code == Code::Ok), "{from}: {codes:?}");
        person.until("every message", |heard| heard.pushes.len() == each);
        // An ack that is not read within 2 s is asked for, and the same frames are sent again.
        let took = clock::now().saturating_since(since);
        let (repeats, again) = (person.heard.repeats, person.heard.again);
        assert!(
            repeats == 0 && (again == 0 || took > Duration::from_secs(1)),
            "{from}: {repeats} {again} {took:?}"
        );
        let before = (from + clients - 1) % clients;
        for (number, push) in (1..).zip(&person.heard.pushes) {
            assert!(push.payload == payload(before, number), "{from} hears {before} in order");
        }
        if from % 50 == 0 {
            series.restart(); // while answers come, links are in the middle of frames the other way
        }
    }
}

#[test]
fn bytes_that_drip_across_ten_restarts_make_whole_frames() {
    let backend = Backend::start();
    let series = Series::start(&backend, &[]);
    let mut bob = Client::login(series.gateway.listener, "bob", "d");
    let mut drips: Vec<(Client, Vec<u8>, usize)> = (0..8)
        .map(|number| {
            let client = Client::login(series.gateway.listener, &format!("drip-{number}"), "d");
            let send: Send = message(number + 1, "bob", format!("drop by drop {number}").as_bytes());
            (client, bytes_of(&send_frame(1, &send)), 0)
        })
        .collect();
    let length = drips.iter().map(|(_, bytes, _)| bytes.len()).max().expect("eight");
    for step in 0..length {
        for (client, bytes, at) in &mut drips {
            if let Some(byte) = bytes.get(*at) {
                client.write(&[*byte]);
                *at += 1;
            }
        }
        if step % (length / 10) == 0 {
            series.restart();
        }
    }
    for (client, ..) in &mut drips {
        assert_eq!(client.answer(1).code(), Code::Ok);
    }
    bob.until("all of them", |heard| heard.pushes.len() == 8);
    assert_eq!(bob.heard.repeats, 0);
}

#[test]
fn restarts_amid_comings_goings_kicks_and_groups_leave_nothing_behind() {
    let restarts = if soak::is_long() { 100 } else { 6 };
    let backend = Backend::start();
    let series = Series::start(&backend, &["session.keep=0s"]);
    let address = series.gateway.listener;
    let chat = Chat::start(address);
    let mut group: Vec<Client> =
        (0..20).map(|number| Client::login(address, &format!("member-{number}"), "d")).collect();
    let members = (1..20).map(|number| format!("member-{number}")).collect();
    let create = GroupCreateRequest { group: "g".into(), members };
    // The backend reads the links in any order: it may know the creator before it knows a member.
    let mut number = 0;
    until("every member is known", || {
        number += 1;
        (group[0].request(number, "im.group.create", encode(&create)).code() == Code::Ok).then_some(())
    });
    series.restart();
    let mut random = Random::new(soak::seed());
    let (mut spoken, mut counts) = (0u128, Vec::new());
    for round in 0..restarts {
        std::thread::scope(|scope| {
            let churn = scope.spawn(|| churn(address, round));
            let restart = scope.spawn(|| series.restart());
            std::thread::park_timeout(Duration::from_millis(random.below(20)));
            for _ in 0..10 {
                spoken += 1;
                let speaker = usize::try_from(spoken % 20).expect("small");
                let send = message_into(1 << 64 | spoken, "group:g", format!("{spoken}").as_bytes());
                let cid = group[speaker].send(&send);
                assert_eq!(group[speaker].answer(cid).code(), Code::Ok, "round {round}");
            }
            restart.join().expect("a restart that is committed");
            churn.join().expect("comings and goings");
        });
        chat.go_on(5);
        series.gateway.until_sessions(22);
        let metrics = series.gateway.metrics();
        counts.push((
            descriptors(series.pid()),
            resident_kib(series.pid()),
            metrics["sessions"],
            metrics["timers"],
        ));
    }
    for (number, member) in group.iter_mut().enumerate() {
        let own = (1..=spoken).filter(|spoken| usize::try_from(spoken % 20) == Ok(number)).count();
        let wanted = usize::try_from(spoken).expect("small") - own;
        member.until("all that others said", |heard| heard.pushes.len() == wanted);
        let said: Vec<u128> = member
            .heard
            .payloads()
            .iter()
            .map(|payload| std::str::from_utf8(payload).expect("text").parse().expect("a number"))
            .collect();
        assert!(said.is_sorted() && member.heard.repeats == 0, "{number}: in order, once");
    }
    println!("descriptors, KiB, sessions, timers: {counts:?}");
    let (first, last) = (counts[0], counts[counts.len() - 1]);
    assert!(first.0.abs_diff(last.0) <= 2, "descriptors: {counts:?}");
    assert!(last.1 < first.1 * 3 / 2 + 8_192, "memory: {counts:?}");
    assert_eq!((first.2.to_bits(), first.3.to_bits()), (last.2.to_bits(), last.3.to_bits()), "{counts:?}");
    chat.finish();
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("resident memory");
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("a number")
}

/// People who come, say something, are replaced by their next login, and go.
fn churn(address: SocketAddr, round: usize) {
    for number in 0..15 {
        let uid = format!("churn-{round}-{number}");
        let mut first = Client::login(address, &uid, "d");
        assert_eq!(first.tell(1, &uid, b"to myself").code(), Code::Ok);
        let mut second = Client::login(address, &uid, "d");
        assert_eq!(first.end().code(), 3530, "the newer login wins");
        second.beat(30);
    }
}

#[test]
fn a_notify_socket_hears_of_each_new_main_process_from_the_old_one() {
    let folder = TempFile::new("");
    let path = folder.path().with_extension("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(crate::PATIENCE)).expect("a socket");
    SockRef::from(&socket).set_passcred(true).expect("SO_PASSCRED");
    let backend = Backend::start();
    let series = Series::start_as(&backend, &[], |command| _ = command.env("NOTIFY_SOCKET", &path));
    let hear = |wanted: &str| {
        loop {
            let (text, from) = receive(&socket);
            if text.contains(wanted) {
                return (text, from);
            }
        }
    };
    let first = series.pid();
    assert_eq!(hear("READY=1").1, first);
    series.restart();
    let second = series.pid();
    let (text, from) = hear("MAINPID=");
    assert_eq!((text.trim(), from), (format!("MAINPID={second}").as_str(), first), "NotifyAccess=main");
    series.restart();
    let (text, from) = hear("MAINPID=");
    assert_eq!((text.trim(), from), (format!("MAINPID={}", series.pid()).as_str(), second));
    std::fs::remove_file(&path).ok();
}

/// A message and the process that sent it.
fn receive(socket: &UnixDatagram) -> (String, u32) {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg};
    use std::os::fd::AsRawFd as _;
    let (mut bytes, mut control) = ([0; 4096], nix::cmsg_space!(UnixCredentials));
    let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty());
    let message = message.expect("a message in time");
    let from = message.cmsgs().expect("whole").find_map(|control| match control {
        ControlMessageOwned::ScmCredentials(from) => Some(from.pid()),
        _ => None,
    });
    let length = message.bytes;
    let from = u32::try_from(from.expect("credentials")).expect("a pid");
    (String::from_utf8_lossy(&bytes[..length]).into_owned(), from)
}

#[test]
fn inherited_descriptors_of_whoever_started_it_do_not_multiply() {
    let backend = Backend::start();
    let files: Vec<TempFile> = (0..32).map(|_| TempFile::new("polluted")).collect();
    let series = Series::start_as(&backend, &[], |command| {
        // A shell that leaves 32 files open, and becomes the gateway.
        let mut script = String::from("exec ");
        for (number, file) in files.iter().enumerate() {
            write!(script, "{}<{} ", number + 20, file.path().display()).expect("a string");
        }
        let program = command.get_program().to_owned();
        let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        let environment: Vec<_> = command
            .get_envs()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
            .collect();
        let mut shell = std::process::Command::new("bash");
        shell.args(["-c", &format!("{script}; exec \"$0\" \"$@\"")]).arg(program).args(arguments);
        shell.envs(environment).stdin(std::process::Stdio::null());
        *command = shell;
    });
    let first = descriptors(series.pid());
    let mut counts = vec![first];
    for _ in 0..4 {
        series.restart();
        counts.push(descriptors(series.pid()));
    }
    println!("{counts:?}");
    let own = counts[1];
    assert!(own + 32 <= first + 2, "they are closed in the first new process: {counts:?}");
    assert!(counts[1..].iter().all(|count| count.abs_diff(own) <= 2), "{counts:?}");
}

#[test]
fn settings_that_changed_on_the_way_count_or_stop_it_before_anything_is_touched() {
    let backend = Backend::start();
    let file = TempFile::new("");
    let settings = |listener: &str, more: &str| {
        let text = format!(
            "[listener]\naddress = \"{listener}\"\n[backend]\nendpoints = [\"{}\"]\n[auth]\nmode = \"dev\"\n{more}",
            backend.address
        );
        std::fs::write(file.path(), text).expect("our file");
    };
    let free = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("bound")
    };
    let (first, second) = (free(), free());
    settings(&first.to_string(), "");
    let series = Series::start_file(file.path());
    let mut alice = Client::login(first, "alice", "d");
    let pid = series.pid();
    for (more, problem) in
        [("[nonsense]\nx = 1\n", "nonsense"), ("[limits]\nbody_max = \"many\"\n", "limits.body_max")]
    {
        settings(&first.to_string(), more);
        let (code, restart) = series.upgrade(&[]);
        assert_eq!((code, restart.verdict.as_str()), (Some(1), "rolled_back"));
        assert!(
            restart.problem.starts_with("check:") && restart.problem.contains(problem),
            "{}",
            restart.problem
        );
        assert_eq!(series.pid(), pid);
        alice.beat(30);
    }
    settings(&second.to_string(), "");
    series.restart();
    alice.beat(30);
    Client::login(second, "bob", "d").beat(30);
    until("nobody listens where it was", || TcpStream::connect(first).is_err().then_some(()));
    alice.beat(30);
}

#[test]
fn reactors_and_workers_may_become_more_and_fewer_on_the_way() {
    let backend = Backend::start();
    let file = TempFile::new("");
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
    let settings = |reactors: usize, workers: usize| {
        let text = format!(
            "[listener]\naddress = \"{port}\"\n[backend]\nendpoints = [\"{}\"]\n[auth]\nmode = \"dev\"\n\
             [reactor]\ncount = {reactors}\n[worker]\ncount = {workers}\n",
            backend.address
        );
        std::fs::write(file.path(), text).expect("our file");
    };
    settings(2, 1);
    let series = Series::start_file(file.path());
    let chat = Chat::start(port);
    let mut people: Vec<Client> =
        (0..40).map(|number| Client::login(port, &format!("p{number}"), "phone")).collect();
    let threads = |name: &str| {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", series.pid())).expect("it runs");
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|comm| comm.starts_with(name)).count()
    };
    let mut key = 0;
    for (reactors, workers) in [(4, 3), (1, 1), (3, 2), (7, 4), (2, 1)] {
        settings(reactors, workers);
        let restart = series.restart();
        assert_eq!((threads("reactor-"), threads("worker-")), (reactors, workers), "{restart:?}");
        let varz = series.gateway.varz();
        assert_eq!((varz.reactors, varz.workers), (reactors, workers));
        chat.go_on(10);
        // Everybody reaches everybody, with devices from before and from now.
        let mut tablets: Vec<Client> = (0..40)
            .map(|number| Client::login(port, &format!("p{number}"), &format!("tablet-{reactors}-{workers}")))
            .collect();
        for number in 0..40 {
            key += 1;
            let (to, text) = ((number + 7) % 40, format!("{number} with {reactors} and {workers}"));
            assert_eq!(people[number].tell(key, &format!("p{to}"), text.as_bytes()).code(), Code::Ok);
            let heard = |heard: &crate::raw::Heard| heard.payloads().contains(&text.as_bytes());
            people[to].until("it", heard);
            tablets[to].until("it", heard);
        }
        // The same device again: the older login ends, wherever it is at home.
        for (number, person) in people.iter_mut().enumerate().step_by(5) {
            let mut again = Client::login(port, &format!("p{number}"), "phone");
            assert_eq!(person.end().code(), 3530, "p{number}");
            again.beat(30);
            *person = again;
        }
        assert!(tablets.iter().chain(&people).all(|client| client.heard.end.is_none()));
    }
    for person in &mut people {
        person.beat(30);
        assert_eq!(person.heard.repeats, 0);
    }
    chat.finish();
}

#[test]
fn a_lock_that_the_gateway_was_started_with_is_held_by_whoever_serves() {
    let lock = TempFile::new("");
    let is_free = || std::fs::File::open(lock.path()).expect("our file").try_lock().is_ok();
    let backend = Backend::start();
    let has_flock = std::process::Command::new("flock").arg("--version").output().is_ok();
    if !has_flock {
        return crate::skipped("no `flock` (util-linux) on this machine");
    }
    let series = Series::start_as(&backend, &[], |command| {
        let mut shell = std::process::Command::new("bash");
        shell.args(["-c", "exec 9<\"$0\" && flock -n 9 && exec \"$@\""]).arg(lock.path());
        shell.arg(command.get_program()).args(command.get_args()).stdin(std::process::Stdio::null());
        command.get_envs().for_each(|(name, value)| match value {
            Some(value) => _ = shell.env(name, value),
            None => _ = shell.env_remove(name),
        });
        *command = shell;
    });
    let mut client = Client::login(series.gateway.listener, "alice", "d");
    assert!(!is_free());
    for _ in 0..2 {
        series.restart();
        assert!(!is_free(), "after an upgrade");
    }
    for fault in ["old.snapshot ENOSPC", "new.adopted kill", "new.ready kill"] {
        series.set_faults(&format!("{fault}\n"));
        let (_, restart) = series.upgrade(&[]);
        assert_eq!(restart.verdict, "rolled_back", "{fault}: {restart:?}");
        assert!(!is_free(), "after a rollback: {fault}");
        client.beat(30);
    }
    // The old process is killed when the new one can go on.
    series.set_faults("new.ready kill-parent\n");
    let before = series.pid();
    series.signal(Signal::SIGUSR2);
    until("another process serves", || {
        (series.gateway.try_get("/v1/varz").is_ok() && series.pid() != before).then_some(())
    });
    series.set_faults("");
    client.beat(30);
    assert!(!is_free(), "after a kill of the old process");
    series.signal(Signal::SIGKILL);
    until("it is free with the last process", || is_free().then_some(()));
}

/// `MOORLINE_PREVIOUS` names the program of an earlier version; without it there is nothing to go back to.
#[test]
fn an_earlier_version_hands_over_to_this_one_and_takes_back() {
    let Ok(previous) = std::env::var("MOORLINE_PREVIOUS") else {
        println!(
            "not asked for: MOORLINE_PREVIOUS names no program of an earlier version (docs/handover.md)"
        );
        return;
    };
    let backend = Backend::start();
    let series = Series::start_as(&backend, &[], |command| {
        let mut earlier = std::process::Command::new(&previous);
        earlier.args(command.get_args()).stdin(std::process::Stdio::null());
        earlier.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        *command = earlier;
    });
    let chat = Chat::start(series.gateway.listener);
    let mut bob = Client::login(series.gateway.listener, "bob", "d");
    bob.acks = Acks::Withheld;
    let mut alice = Client::login(series.gateway.listener, "alice", "d");
    let current = crate::process::binary().to_str().expect("text");
    for (round, binary) in [current, &previous, current].into_iter().enumerate() {
        let serves = |binary: &str| {
            let link = std::fs::read_link(format!("/proc/{}/exe", series.pid())).expect("it runs");
            link == std::fs::canonicalize(binary).expect("a program")
        };
        assert!(!serves(binary));
        let (key, frame) = (round as u128 + 1, format!("half before {binary}"));
        let bytes = bytes_of(&send_frame(
            u32::try_from(round).expect("small") + 1,
            &message(key, "bob", frame.as_bytes()),
        ));
        alice.write(&bytes[..9]);
        let (code, restart) = series.upgrade(&["--binary", binary]);
        assert_eq!((code, restart.verdict.as_str()), (Some(0), "committed"), "{restart:?}");
        assert!(serves(binary), "{restart:?}");
        chat.go_on(20);
        alice.write(&bytes[9..]);
        bob.until("the message", |heard| heard.pushes.len() == round + 1);
        assert_eq!(bob.heard.payloads()[round], frame.as_bytes());
        bob.beat(30);
    }
    chat.finish();
}
