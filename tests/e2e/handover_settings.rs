//! Hot restart with other settings: what is inherited never wins without a word.
//!
//! Needs the places of `moorline::failpoint`: a debug build, or the feature.

use crate::gateway::Backend;
use crate::process::{TempFile, run};
use crate::raw::{Acks, Client};
use crate::series::Series;
use crate::until;
use moorline_proto::frame::{Command, Flags};
use moorline_proto::message::client::Code;
use moorline_proto::message::frame_of;
use std::net::{SocketAddr, TcpListener, TcpStream};

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
    assert!(!b.exists(), "an upgrade removes what the one before had left");
    until("the socket is gone in the end", || (!a.exists()).then_some(()));
}
