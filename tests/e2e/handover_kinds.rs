//! Listeners whose kind changes by the settings of an upgrade: clients that wait in the system's queue at that moment speak
//! the kind of before, and are served so.

use crate::gateway::Backend;
use crate::process::{TempFile, is_alive};
use crate::raw::{Client, bytes_of, hello};
use crate::series::Series;
use crate::tunnel::{Authority, NAME, Tunnel};
use crate::{PATIENCE, until};
use moorline::admin::Restart;
use moorline_proto::frame::Command;
use moorline_proto::message::frame_of;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

struct World {
    authority: Authority,
    backend: Backend,
    settings: TempFile,
    series: Series,
}

impl World {
    fn start(kinds: &[&str]) -> Self {
        let (authority, backend, settings) = (Authority::new(&[NAME]), Backend::start(), TempFile::new(""));
        write(&settings, &authority, &backend, kinds);
        let series = Series::start_file(settings.path());
        Self { authority, backend, settings, series }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.series.gateway.listener).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream
    }

    fn greet(&self, uid: &str) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(&bytes_of(&frame_of(Command::Hello, &hello(uid, "d")))).expect("it stands");
        stream
    }

    fn tls(&self, stream: &mut TcpStream) -> std::io::Result<Tunnel> {
        Tunnel::tls(stream, self.authority.client("moorline/1"))
    }

    /// Upgrades to other kinds. `meanwhile` runs while all threads stand still.
    fn upgrade<T>(&self, kinds: &[&str], meanwhile: impl FnOnce() -> T) -> (T, Restart) {
        write(&self.settings, &self.authority, &self.backend, kinds);
        let seen = || self.series.gateway.process.log().matches("old.frozen").count();
        let (before, old) = (seen(), self.series.pid());
        self.series.set_faults("old.frozen wait\n");
        let done = std::thread::scope(|scope| {
            let restart = scope.spawn(|| self.series.upgrade(&[]));
            until("all threads stand still", || (seen() > before).then_some(()));
            let found = meanwhile();
            self.series.set_faults("");
            (found, restart.join().expect("no panic").1)
        });
        assert_eq!(done.1.verdict, "committed", "{:?}", done.1);
        until("the old process leaves", || (!is_alive(old)).then_some(()));
        done
    }
}

/// Listeners of these kinds, by their numbers.
fn write(settings: &TempFile, authority: &Authority, backend: &Backend, kinds: &[&str]) {
    let listener = |(number, kind): (usize, &&str)| {
        format!("[[listener]]\nname = \"l{number}\"\nkind = \"{kind}\"\naddress = \"127.0.0.1:0\"\n")
    };
    let text = format!(
        "{}[backend]\nendpoints = [\"{}\"]\n[auth]\nmode = \"dev\"\n[tls]\ncertificates = [\"{}\"]\nkeys = [\"{}\"]\n",
        kinds.iter().enumerate().map(listener).collect::<String>(),
        backend.address,
        authority.certificate.path().display(),
        authority.key.path().display(),
    );
    std::fs::write(settings.path(), text).expect("our file");
}

fn kind_step(restart: &Restart) -> &str {
    &restart.steps.iter().find(|step| step.name == "kind").expect("the verdict tells").detail
}

#[test]
fn who_waits_at_a_listener_that_gets_another_kind_is_served_as_before_or_counted() {
    let world = World::start(&["tcp", "tls"]);
    let mut early = Client::login(world.series.gateway.listener, "early", "d");

    // From TCP to TLS: who waits speaks TCP.
    let (waiting, restart) = world.upgrade(&["tls", "tls"], || [world.greet("w0"), world.greet("w1")]);
    assert!(
        kind_step(&restart).contains("listener l0") && kind_step(&restart).contains(" 2 connections"),
        "{restart:?}"
    );
    for stream in waiting {
        let mut client = Client::over(stream, None);
        client.until("WELCOME", |heard| heard.welcome.is_some());
        client.beat(30);
    }
    early.beat(30);
    let mut plain = world.greet("late");
    let mut alert = Vec::new();
    plain.read_to_end(&mut alert).ok();
    assert_eq!(alert.first(), Some(&21), "TLS from now on: {alert:?}");

    // And back: who waits speaks TLS.
    let config = world.authority.client("moorline/1");
    let (mut waiting, restart) = world.upgrade(&["tcp", "tls"], || world.connect());
    assert!(kind_step(&restart).contains(" 1 connections"), "{restart:?}");
    let tunnel = Tunnel::tls(&mut waiting, config).expect("a handshake");
    Client::login_over(waiting, tunnel, "w2").beat(30);
    Client::login(world.series.gateway.listener, "w3", "d").beat(30);

    // Without keys there is no TLS: the connection ends, and the verdict has it.
    world.upgrade(&["tls", "tls"], || ());
    let (mut waiting, restart) = world.upgrade(&["tcp"], || world.connect());
    assert!(kind_step(&restart).ends_with("1 are closed"), "{restart:?}");
    assert!(world.tls(&mut waiting).is_err());
    early.beat(30);
}
