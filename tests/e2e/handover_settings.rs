//! Hot restart with other settings: what is inherited never wins without a word.
//!
//! Needs the places of `moorline::failpoint`: a debug build, or the feature.

use crate::gateway::Backend;
use crate::process::{Stopped, TempFile, program, run};
use crate::raw::{Acks, Client};
use crate::series::Series;
use crate::until;
use moorline::sys::clock;
use moorline_net::unix_socket;
use moorline_proto::frame::{Command, Flags};
use moorline_proto::message::client::Code;
use moorline_proto::message::frame_of;
use moorline_proto::time::Instant;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port")
}

/// Starts a gateway whose places are all in its settings file.
fn series_of(settings: &TempFile) -> Series {
    let pid_file = TempFile::new("");
    let arguments = [
        "run",
        "-c",
        settings.path().to_str().expect("text"),
        "--set=reactor.count=2",
        &format!("--set=handover.pid_file={}", pid_file.path().display()),
    ];
    let gateway = crate::gateway::Gateway::of_command(crate::process::program(&arguments));
    Series::of(gateway, pid_file)
}

#[test]
fn links_stay_when_their_number_and_the_order_of_endpoints_change() {
    // Two endpoints of one store.
    let backend = Backend::start();
    let places = [backend.address.to_string(), format!("localhost:{}", backend.address.port())];
    let file = TempFile::new("");
    let port = free();
    let settings = |order: [usize; 2], each: usize| {
        let [a, b] = order.map(|number| &places[number]);
        let text = format!(
            "[listener]\naddress = \"{port}\"\n[backend]\nendpoints = [\"{a}\", \"{b}\"]\nlinks_per_worker = {each}\n\
             [auth]\nmode = \"dev\"\n[worker]\ncount = 1\n"
        );
        std::fs::write(file.path(), text).expect("our file");
    };
    settings([0, 1], 2);
    let series = Series::start_file(file.path());
    series.gateway.until_metric("links_up", 4);
    let mut people: Vec<Client> =
        (0..20).map(|number| Client::login(port, &format!("p{number}"), "d")).collect();
    let mut key = 0;
    let mut connects = series.gateway.metric("link_connects_total");
    for (order, each, new) in [([0, 1], 3, 2), ([1, 0], 3, 0), ([0, 1], 2, 0), ([0, 1], 1, 0), ([1, 0], 2, 2)]
    {
        // Pushes whose outcome their backend learns only after the restart.
        for person in &mut people {
            person.acks = Acks::Withheld;
        }
        for (number, person) in people.iter_mut().enumerate() {
            key += 1;
            assert_eq!(person.tell(key, &format!("p{number}"), b"before").code(), Code::Ok);
        }
        settings(order, each);
        series.restart();
        for person in &mut people {
            person.acks = Acks::Prompt;
            person.put(&frame_of(Command::Ping, &()).with_flags(Flags::ACK_REQ).with_ack(person.last_seq));
        }
        series.gateway.until_metric("links_up", 2 * each as u64);
        connects += new;
        assert_eq!(series.gateway.metric("link_connects_total"), connects, "{order:?} {each}: links stay");
        for (number, person) in people.iter_mut().enumerate() {
            // A user of a link that is gone is announced on another one first, maybe to the other endpoint.
            until("the backend knows it", || {
                key += 1;
                let answer = person.tell(key, &format!("p{number}"), b"after");
                (answer.code() == Code::Ok).then_some(())
            });
            assert_eq!((person.heard.repeats, person.heard.again), (0, 0), "{order:?} {each}: p{number}");
        }
    }
}

#[test]
fn the_admin_address_the_backlog_and_the_name_are_those_of_the_settings_or_said_to_stay() {
    let backend = Backend::start();
    let file = TempFile::new("");
    let (port, first, second) = (free(), free(), free());
    let settings = |admin: SocketAddr, backlog: u32, id: &str| {
        let text = format!(
            "[gateway]\nid = \"{id}\"\n[listener]\naddress = \"{port}\"\nbacklog = {backlog}\n[admin]\naddress = \"{admin}\"\n\
             [backend]\nendpoints = [\"{}\"]\n[auth]\nmode = \"dev\"\n",
            backend.address
        );
        std::fs::write(file.path(), text).expect("our file");
    };
    settings(first, 64, "one");
    let mut series = series_of(&file);
    series.gateway.until_ready();
    let mut client = Client::login(port, "alice", "d");
    let old = series.pid();
    settings(second, 7, "two");
    // The socket has the name of the address; the command reads its verdict at the old one.
    let (code, said, error) = run(&["upgrade", "--admin", &first.to_string()]);
    assert!(code == Some(0) && said.contains("the admin socket is"), "{code:?} {said} {error}");
    until("another process serves", || (series.pid() != old).then_some(()));
    client.beat(30);
    series.gateway.admin = second;
    series.gateway.until_ready();
    until("nobody listens where it was", || TcpStream::connect(first).is_err().then_some(()));
    let restarts = series.restarts();
    let last = restarts.restarts.last().expect("one");
    let kept = last.steps.iter().find(|step| step.name == "kept").expect("the name stays");
    assert!(kept.detail.contains("gateway.id stays \"one\""), "{kept:?}");
    // /proc shows the length of the queue as the second queue of a listening socket only to `ss`; a full queue shows it.
    let queue = || {
        let table =
            std::process::Command::new("ss").args(["-Hltn", &format!("sport = :{}", port.port())]).output();
        let text = String::from_utf8(table.ok()?.stdout).ok()?;
        text.split_whitespace().nth(2)?.parse::<u32>().ok()
    };
    match queue() {
        Some(_) => until("the backlog is the new one", || (queue() == Some(7)).then_some(())),
        None => crate::skipped("no `ss` on this machine"),
    }
}

#[test]
fn an_upgrade_that_moves_or_disables_the_admin_socket_is_told_by_the_socket_of_before() {
    let backend = Backend::start();
    let file = TempFile::new("");
    let (port, admin) = (free(), free());
    let folder = TempFile::new("");
    let [a, b] = ["a", "b"].map(|name| folder.path().with_extension(name));
    let settings = |more: &str| {
        let text = format!(
            "[listener]\naddress = \"{port}\"\n[backend]\nendpoints = [\"{}\"]\n[auth]\nmode = \"dev\"\n\
             [admin]\naddress = \"{admin}\"\n{more}\n",
            backend.address
        );
        std::fs::write(file.path(), text).expect("our file");
    };
    let at = |path: &std::path::Path| format!("socket = \"{}\"", path.display());
    settings(&at(&a));
    let _series = series_of(&file);
    let mut client = Client::login(port, "alice", "d");
    let ask = |command: &str, path: &std::path::Path| run(&[command, "--admin", &path.display().to_string()]);
    // Back at once, while the socket of before still answers.
    for (before, after) in [(&a, &b), (&b, &a)] {
        settings(&at(after));
        let (code, said, error) = ask("upgrade", before);
        let moved = format!("the admin socket is {} now", after.display());
        assert!(code == Some(0) && said.contains(&moved), "{code:?} {said} {error}");
        client.beat(30);
        let (code, _, error) = ask("status", before);
        assert!(code == Some(1) && error.contains(&moved), "{code:?} {error}");
        assert_eq!(ask("status", after).0, Some(0));
    }
    settings("enabled = false");
    let (code, said, error) = ask("upgrade", &a);
    assert!(code == Some(0) && said.contains("no admin socket any more"), "{code:?} {said} {error}");
    client.beat(30);
    until("the sockets are gone in the end", || (!a.exists() && !b.exists()).then_some(()));
}

/// A gateway whose admin socket moves, with a failpoint file.
struct Moving {
    settings: TempFile,
    faults: TempFile,
    backend: Backend,
    places: [SocketAddr; 2],
    series: Option<Series>,
    sockets: [PathBuf; 3],
}

impl Moving {
    /// Starts the gateway at the first of three sockets.
    fn start() -> Self {
        let folder = TempFile::new("");
        let sockets = ["a", "b", "c"].map(|name| folder.path().with_extension(name));
        let (settings, faults) = (TempFile::new(""), TempFile::new(""));
        let (backend, places) = (Backend::start(), [free(), free()]);
        let mut moving = Self { settings, faults, backend, places, series: None, sockets };
        moving.settings_say(&moving.sockets[0]);
        let pid_file = TempFile::new("");
        let pid_set = format!("--set=handover.pid_file={}", pid_file.path().display());
        let file = moving.settings.path().to_str().expect("text");
        let mut command = program(&["run", "-c", file, "--set=reactor.count=2", &pid_set]);
        command.env(moorline::failpoint::VARIABLE, moving.faults.path());
        moving.series = Some(Series::of(crate::gateway::Gateway::of_command(command), pid_file));
        moving
    }

    fn settings_say(&self, socket: &Path) {
        let [listener, admin] = self.places;
        let text = format!(
            "[listener]\naddress = \"{listener}\"\n[backend]\nendpoints = [\"{}\"]\n[auth]\nmode = \"dev\"\n\
             [admin]\naddress = \"{admin}\"\nsocket = \"{}\"\n",
            self.backend.address,
            socket.display()
        );
        std::fs::write(self.settings.path(), text).expect("our file");
    }

    /// Moves the socket by an order at the one of before. Returns the moment of the order: the ten seconds are not over before 10
    /// s have passed since then.
    fn upgrade(&self, before: &Path, after: &Path) -> Instant {
        self.settings_say(after);
        let since = clock::now();
        let (code, said, error) = ask("upgrade", before);
        assert_eq!(code, Some(0), "{said} {error}");
        since
    }
}

/// Runs a command at this socket.
fn ask(command: &str, socket: &Path) -> (Option<i32>, String, String) {
    run(&[command, "--admin", &socket.display().to_string()])
}

/// True, and said, if more than the ten seconds of a socket of before have passed.
fn is_over(since: Instant) -> bool {
    crate::is_over(Duration::from_secs(10), since, "on this busy machine two restarts take longer than 10 s")
}

#[test]
fn a_restart_that_is_undone_leaves_the_admin_socket_of_before_the_rest_of_its_time() {
    let moving = Moving::start();
    let [a, b, _] = &moving.sockets;
    let since = moving.upgrade(a, b);
    std::fs::write(moving.faults.path(), "new.ready exit:1\n").expect("our file");
    let (code, _, error) = ask("upgrade", b);
    assert!(code == Some(1) && error.contains("rolled back"), "{code:?} {error}");
    let (code, _, error) = ask("status", a);
    assert!(error.contains("the admin socket is") || is_over(since), "{code:?} {error}");
    until("it is gone in the end", || (!a.exists()).then_some(()));
    assert_eq!(ask("status", b).0, Some(0));
}

#[test]
fn the_pid_file_leads_to_the_gateway_while_the_socket_of_before_still_answers() {
    let moving = Moving::start();
    let [a, b, c] = &moving.sockets;
    let pid_file = moving.series.as_ref().expect("it runs").pid_file.path().display().to_string();
    let by_pid_file = |command: &str| run(&[command, "--pid-file", &pid_file]);
    moving.upgrade(a, b);
    let (code, _, error) = by_pid_file("status");
    assert_eq!(code, Some(0), "{error}");
    // The file of settings names the next place before the gateway does.
    moving.settings_say(c);
    let (code, _, error) = run(&["upgrade", "-c", moving.settings.path().to_str().expect("text")]);
    assert!(code == Some(1) && error.contains("--pid-file") && error.contains("--admin"), "{code:?} {error}");
    let (code, said, error) = by_pid_file("upgrade");
    assert_eq!(code, Some(0), "{said} {error}");
    // With the socket turned off the commands say so.
    let text = std::fs::read_to_string(moving.settings.path()).expect("our file");
    std::fs::write(moving.settings.path(), format!("{text}enabled = false\n")).expect("our file");
    let since = clock::now();
    let (code, said, error) = ask("upgrade", c);
    assert_eq!(code, Some(0), "{said} {error}");
    for command in ["stop", "upgrade"] {
        let (code, _, error) = by_pid_file(command);
        let is_told = code == Some(1) && error.contains("settings of today have no admin socket");
        assert!(is_told || is_over(since), "{command}: {code:?} {error}");
    }
}

#[test]
fn a_file_that_somebody_else_has_put_in_place_of_a_socket_of_before_stays() {
    let moving = Moving::start();
    let [a, b, _] = &moving.sockets;
    moving.upgrade(a, b);
    std::fs::remove_file(a).ok(); // there, unless ten seconds have passed
    std::fs::write(a, "mine").expect("written");
    let pid = moving.series.as_ref().expect("it runs").pid();
    let listens = || unix_socket::listened_by(pid).expect("it runs").contains(a);
    until("its time is over", || (!listens()).then_some(()));
    assert_eq!(std::fs::read(a).expect("still there"), b"mine");
    std::fs::remove_file(a).expect("ours");
}

#[test]
fn a_verdict_is_read_at_the_admin_socket_of_before_although_another_restart_has_followed() {
    let moving = Moving::start();
    let [a, b, c] = &moving.sockets;
    moving.settings_say(b);
    std::fs::write(moving.faults.path(), "old.check wait\n").expect("our file");
    let mut first = program(&["upgrade", "--admin", &a.display().to_string()]);
    let first = first.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let log = || moving.series.as_ref().expect("it runs").gateway.process.log();
    until("it is ordered", || log().contains("old.check").then_some(()));
    let stopped = Stopped::stop(first.id());
    let since = clock::now();
    std::fs::write(moving.faults.path(), "").expect("our file");
    until("it is carried out", || (b.exists() && ask("status", b).0 == Some(0)).then_some(()));
    moving.upgrade(b, c);
    let is_late = clock::now().saturating_since(since) >= Duration::from_secs(10);
    stopped.go_on();
    let told = first.wait_with_output().expect("it ends");
    let [said, error] = [told.stdout, told.stderr].map(|bytes| String::from_utf8(bytes).expect("text"));
    let is_told = told.status.code() == Some(0) && said.contains("committed: generation 1");
    assert!(is_told || is_late && is_over(since), "{said} {error}");
    until("both are gone in the end", || (!a.exists() && !b.exists()).then_some(()));
    assert_eq!(ask("status", c).0, Some(0));
}
