//! Several listeners: both serve, and a hot restart keeps, adds and removes them.
//!
//! Run-through: `near` and `far` both have port 0. alice logs in at one, bob at the other, and they write to each
//! other. An upgrade keeps both ports. Then `far` is removed and `new` is added: an upgrade keeps `near`, closes
//! `far`, and bob's connection lives on.

use crate::gateway::Backend;
use crate::process::TempFile;
use crate::raw::{Client, bytes_of, hello};
use crate::series::Series;
use crate::until;
use moorline_proto::frame::Command;
use moorline_proto::message::client::Code;
use moorline_proto::message::frame_of;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

fn write(file: &Path, backend: &Backend, listeners: &[(&str, &str)]) {
    let table = |(name, address): &(&str, &str)| {
        format!("[[listener]]\nname = \"{name}\"\naddress = \"{address}\"\n")
    };
    let listeners = listeners.iter().map(table).collect::<Vec<_>>().concat();
    let text =
        format!("{listeners}[backend]\nendpoints = [\"{}\"]\n[auth]\nmode = \"dev\"\n", backend.address);
    std::fs::write(file, text).expect("our file");
}

/// Names and addresses, as the admin address has them.
fn listeners(series: &Series) -> Vec<(String, SocketAddr)> {
    let shown = until("/v1/varz answers", || series.gateway.try_get("/v1/varz").ok());
    let (_, body) = shown.split_once("\r\n\r\n").expect("HTTP");
    let varz: moorline::admin::Varz = serde_json::from_str(body).expect("JSON of this version");
    varz.listeners.into_iter().map(|listener| (listener.name, listener.address)).collect()
}

#[test]
fn two_listeners_serve_and_an_upgrade_keeps_adds_and_removes_them() {
    let backend = Backend::start();
    let file = TempFile::new("");
    let any = "127.0.0.1:0";
    write(file.path(), &backend, &[("near", any), ("far", any)]);
    let series = Series::start_file(file.path());
    let first = listeners(&series);
    let [near, far] = [first[0].1, first[1].1];
    assert_eq!(series.gateway.listeners, [near, far], "the ready line has both");
    assert_eq!((first[0].0.as_str(), first[1].0.as_str()), ("near", "far"));
    let (mut alice, mut bob) = (Client::login(near, "alice", "d"), Client::login(far, "bob", "d"));
    assert_eq!(alice.tell(1, "bob", b"from near to far").code(), Code::Ok);
    bob.until("alice's message", |heard| heard.pushes.len() == 1);
    series.gateway.until_metric("admitted_total{listener=\"1\"}", 1);
    series.gateway.until_metric("admitted_total{listener=\"2\"}", 1);

    series.restart();
    assert_eq!(listeners(&series), first, "port 0 keeps its port by the listener's name");
    alice.beat(30);
    bob.beat(30);
    let mut carol = Client::login(far, "carol", "d");
    assert_eq!(carol.tell(2, "alice", b"from far to near").code(), Code::Ok);
    alice.until("carol's message", |heard| heard.pushes.len() == 1);

    write(file.path(), &backend, &[("new", any), ("near", any)]);
    series.restart();
    let second = listeners(&series);
    assert_eq!((second[0].0.as_str(), second[1].clone()), ("new", ("near".to_owned(), near)));
    assert_ne!(second[0].1, far);
    until("nobody listens at the removed one", || TcpStream::connect(far).is_err().then_some(()));
    for address in [near, second[0].1] {
        Client::login(address, "dave", &address.port().to_string()).beat(30);
    }
    for client in [&mut alice, &mut bob, &mut carol] {
        client.beat(30);
        assert!(client.heard.end.is_none() && client.heard.repeats == 0);
    }
}

#[test]
fn who_comes_to_a_removed_listener_is_served_or_refused_and_never_reset() {
    let backend = Backend::start();
    let file = TempFile::new("");
    let any = "127.0.0.1:0";
    for round in 0..2 {
        write(file.path(), &backend, &[("near", any), ("far", any)]);
        let series = Series::start_file(file.path());
        let far = listeners(&series)[1].1;
        std::thread::scope(|scope| {
            let storm = |thread: usize| {
                for number in 0.. {
                    let mut stream = match TcpStream::connect(far) {
                        Ok(stream) => stream,
                        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return number,
                        Err(error) => panic!("{error}"),
                    };
                    let hello = hello(&format!("u-{round}-{thread}-{number}"), "d");
                    stream.set_read_timeout(Some(crate::PATIENCE)).expect("a socket");
                    let served = stream
                        .write_all(&bytes_of(&frame_of(Command::Hello, &hello)))
                        .and_then(|()| stream.read_exact(&mut [0; 2]));
                    served.unwrap_or_else(|error| panic!("connection {number} was made: {error}"));
                }
                unreachable!("numbers do not end");
            };
            let storms: Vec<_> = (0..4).map(|thread| scope.spawn(move || storm(thread))).collect();
            write(file.path(), &backend, &[("near", any)]);
            series.restart();
            let served: Vec<usize> =
                storms.into_iter().map(|storm| storm.join().expect("no panic")).collect();
            println!("served before they were refused: {served:?}");
        });
    }
}
