//! Hot restart behind the point of no return: whatever fails or is slow there, the new process serves.
//!
//! Needs the places of `moorline::failpoint`: a debug build, or the feature. `MOORLINE_SOAK_SECONDS=1000` makes the storm
//! long: 200 restarts.

use crate::beside::Chat;
use crate::exhaustion::limit_files;
use crate::gateway::{Backend, Gateway, field};
use crate::process::{Process, Stopped, TempFile};
use crate::raw::Client;
use crate::series::Series;
use crate::soak;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::io::{BufRead as _, BufReader, PipeReader, PipeWriter};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A series whose standard output is a pipe of the test, of which the first line is read.
fn piped(backend: &Backend) -> (Series, BufReader<PipeReader>, PipeWriter) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut reader = BufReader::new(reader);
    let series = Series::start_by(backend, &[], |command: Command| {
        let output = Stdio::from(writer.try_clone().expect("a descriptor"));
        let process = Process::spawn("gateway", command, output);
        let mut line = String::new();
        reader.read_line(&mut line).expect("a ready line");
        Gateway::of_process(process, field(&line, "listener="), field(&line, "admin="))
    });
    (series, reader, writer)
}

#[test]
fn a_ready_line_that_nobody_takes_ends_no_service() {
    let backend = Backend::start();
    for is_reader_gone in [true, false] {
        let (series, reader, writer) = piped(&backend);
        let mut client = Client::login(series.gateway.listener, "alice", "d");
        let _kept = if is_reader_gone {
            None
        } else {
            fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("our pipe");
            while nix::unistd::write(&writer, &[b'x'; 4096]).is_ok() {}
            while nix::unistd::write(&writer, b"x").is_ok() {}
            fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).expect("our pipe");
            Some(reader)
        };
        for _ in 0..3 {
            series.restart();
            client.beat(30);
        }
    }
}

#[test]
fn a_supervisor_that_reads_nothing_ends_no_service() {
    let folder = TempFile::new("");
    let path = folder.path().with_extension("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    let backend = Backend::start();
    let series = Series::start_as(&backend, &[], |command| _ = command.env("NOTIFY_SOCKET", &path));
    let mut client = Client::login(series.gateway.listener, "alice", "d");
    let filler = UnixDatagram::unbound().expect("a socket");
    filler.set_nonblocking(true).expect("a socket");
    while filler.send_to(b"STATUS=nobody reads this", &path).is_ok() {}
    for _ in 0..3 {
        series.restart();
        client.beat(30);
    }
    drop(socket);
    // Nor does one that is gone.
    series.restart();
    client.beat(30);
    std::fs::remove_file(&path).ok();
}

#[test]
fn what_fails_or_hangs_behind_the_commit_ends_no_service() {
    let backend = Backend::start();
    let series = Series::start(&backend, &[]);
    let chat = Chat::start(series.gateway.listener);
    let mut idle = Client::login(series.gateway.listener, "idle", "d");
    for (generation, fault) in (1..).zip([
        "new.touched sleep:3000", // longer than the old process waits for the swap
        "new.notify hang",
        "new.pid_file hang",
        "new.line hang",
        "new.line ENOSPC",
        "new.line EIO",
        "new.line EPIPE",
        "old.running sleep:2000",
        "old.running exit:1",
        "old.running stop",
        "new.touched sleep:11000", // longer than the old process waits for a word
    ]) {
        series.set_faults(&format!("{fault}\n"));
        // It would stand still for ever.
        let _stopped = (fault == "old.running stop").then(|| Stopped::of(series.pid()));
        let (code, restart) = series.upgrade(&[]);
        assert_eq!((code, restart.verdict.as_str()), (Some(0), "committed"), "{fault}: {restart:?}");
        series.set_faults("");
        chat.go_on(5);
        idle.beat(30);
        assert_eq!(series.restarts().generation, generation, "{fault}");
    }
    // One that could not be written before is written now.
    series.restart();
    chat.finish();
}

#[test]
fn a_thread_or_a_pid_file_that_the_system_refuses_undoes_it_before_the_commit() {
    let backend = Backend::start();
    let folder = std::env::temp_dir().join(format!("moorline-e2e-pid-{}", std::process::id()));
    std::fs::create_dir(&folder).expect("made");
    let pid_file = format!("handover.pid_file={}", folder.join("pid").display());
    let series = Series::start(&backend, &[&pid_file]);
    let mut client = Client::login(series.gateway.listener, "alice", "d");
    let refused = |cause: &str| {
        let (code, restart) = series.upgrade(&[]);
        assert_eq!((code, restart.verdict.as_str()), (Some(1), "rolled_back"), "{restart:?}");
        assert!(restart.problem.contains(cause), "{}", restart.problem);
    };
    for cause in ["ENOMEM", "EAGAIN"] {
        series.set_faults(&format!("new.thread {cause}\n"));
        refused("cannot start a");
        client.beat(30);
    }
    series.set_faults("");
    std::fs::remove_dir_all(&folder).expect("ours");
    refused("handover.pid_file");
    client.beat(30);
    std::fs::create_dir(&folder).expect("made");
    let (code, _) = series.upgrade(&[]);
    assert_eq!(code, Some(0));
    client.beat(30);
    let named = std::fs::read_to_string(folder.join("pid")).expect("written before the verdict");
    assert_eq!(named.trim(), series.gateway.varz().pid.to_string());
    std::fs::rename(folder.join("pid"), series.pid_file.path()).expect("one file system");
    std::fs::remove_dir_all(&folder).ok();
}

#[test]
fn with_few_descriptors_it_is_committed_or_undone_and_never_half() {
    let backend = Backend::start();
    let mut verdicts = Vec::new();
    for free in [33, 38, 44, 50, 53, 56, 60, 66, 74, 84, 96, 128] {
        let file = TempFile::new("");
        let settings = |reactors: usize| {
            let text = format!(
                "[listener]\naddress = \"127.0.0.1:0\"\n[backend]\nendpoints = [\"{}\"]\n[auth]\nmode = \"dev\"\n\
                 [reactor]\ncount = {reactors}\n[worker]\ncount = {reactors}\n",
                backend.address
            );
            std::fs::write(file.path(), text).expect("our file");
        };
        settings(1);
        let series = Series::start_file(file.path());
        let mut client = Client::login(series.gateway.listener, "alice", "d");
        // With them the limit is above what a gateway keeps from clients.
        let other = |number: usize| Client::login(series.gateway.listener, &format!("bob-{number}"), "d");
        let _others: Vec<_> = (0..100).map(other).collect();
        settings(10);
        let taken = u64::try_from(series.gateway.process.descriptors().len()).expect("few");
        if limit_files(&series.gateway.process, taken + free, taken + free).is_none() {
            return;
        }
        let (_, restart) = series.upgrade(&[]);
        client.beat(30);
        println!("{free}: {} {}", restart.verdict, restart.problem);
        verdicts.push((free, restart.verdict));
    }
    assert!(verdicts.iter().any(|(_, verdict)| verdict == "rolled_back"), "{verdicts:?}");
    assert!(verdicts.iter().any(|(_, verdict)| verdict == "committed"), "{verdicts:?}");
}

#[test]
fn logins_that_change_their_shard_while_sockets_are_listed_undo_nothing() {
    let (restarts, threads) = if soak::is_long() { (200, 8) } else { (8, 4) };
    let backend = Backend::start();
    let series = Series::start(&backend, &["reactor.count=4", "session.keep=0s", "log.level=info"]);
    // Between the answers of two reactors many logins come and move.
    series.set_faults("old.listed sleep:20\n");
    let (is_over, logins) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (is_over, logins, address) = (&is_over, &logins, series.gateway.listener);
            scope.spawn(move || {
                for number in 0.. {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    drop(Client::login(address, &format!("u-{thread}-{number}"), "d"));
                    logins.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let undone: Vec<String> = (0..restarts)
            .map(|_| series.upgrade(&[]).1)
            .filter(|restart| restart.verdict != "committed")
            .map(|restart| restart.problem)
            .collect();
        is_over.store(true, Ordering::Relaxed);
        println!("{} logins beside {restarts} restarts", logins.load(Ordering::Relaxed));
        assert!(undone.is_empty(), "{undone:?}");
    });
}
