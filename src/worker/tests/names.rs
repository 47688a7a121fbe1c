//! Endpoints that are names: all their addresses are tried, and nobody waits for a name server.

use super::*;
use moorline_net::resolve::Hooks;
use moorline_proto::link::Endpoint;
use std::net::SocketAddr;

const NAME: &str = "backend.internal:7100";

/// A name server that answers with what the test last set.
#[derive(Clone, Debug, Default)]
struct NameServer(Arc<Mutex<Vec<SocketAddr>>>);

impl NameServer {
    fn set(&self, addresses: &[SocketAddr]) {
        *self.0.lock().expect("unpoisoned") = addresses.to_vec();
    }

    fn resolver(&self, mail: Sender<UplinkBatch>) -> Resolver {
        let answers = self.clone();
        let wake = Box::new(move || mail.wake().expect("eventfd"));
        let hooks = Hooks { wake, count: Box::new(|_| ()) };
        let look_up = Box::new(move |_: &HostPort| Ok(answers.0.lock().expect("unpoisoned").clone()));
        let clock = crate::sys::clock::machine_clock();
        Resolver::start_with([NAME.parse().expect("a name")], hooks, clock, look_up).expect("a thread")
    }
}

fn named() -> RouterSettings {
    let name = NAME.parse().map(Endpoint::Name).expect("a name");
    let mut settings = RouterSettings { endpoints: vec![name], ..settings(&[]) };
    // A busy machine takes its time to refuse a connection.
    settings.link.times.connect_timeout = PATIENCE;
    settings
}

fn start(settings: RouterSettings, resolver: impl FnOnce(Sender<UplinkBatch>) -> Resolver) -> World {
    let clock = crate::sys::clock::machine_clock();
    World::start_with((settings, clock, Judge::Here(Arc::new(Names))), resolver)
}

/// An address at which nobody listens.
fn nobody() -> SocketAddr {
    Backend::bind().address()
}

#[test]
fn every_address_of_a_name_is_tried() {
    let (backend, server) = (Backend::bind(), NameServer::default());
    server.set(&[nobody(), nobody(), backend.address(), nobody()]);
    let world = start(named(), |mail| server.resolver(mail));
    let (_peer, logins) = backend.greet_announced(100);
    assert!(logins.is_empty());
    world.await_count(Count::LinkConnects, 1);
    assert_eq!(world.counter_set.get(Count::LinkFailures as usize), 0, "one attempt tries all of them");
}

#[test]
fn a_name_is_looked_up_again_when_its_link_breaks() {
    let (first, second, server) = (Backend::bind(), Backend::bind(), NameServer::default());
    server.set(&[first.address()]);
    let world = start(named(), |mail| server.resolver(mail));
    let (peer, _) = first.greet_announced(100);
    server.set(&[second.address()]);
    drop(first);
    peer.cut();
    let (_peer, _) = second.greet_announced(100);
    world.await_count(Count::LinkConnects, 2);
}

#[test]
fn a_link_waits_for_a_silent_name_server_and_others_do_not() {
    let (late, here) = (Backend::bind(), Backend::bind());
    let (release, held) = mpsc::channel::<()>();
    let (address, held) = (late.address(), Mutex::new(held));
    let mut settings = named();
    settings.endpoints.push(here.address().into());
    let world = start(settings, |mail| {
        let wake = Box::new(move || mail.wake().expect("eventfd"));
        let hooks = Hooks { wake, count: Box::new(|_| ()) };
        let look_up = Box::new(move |_: &HostPort| {
            held.lock().expect("unpoisoned").recv().ok();
            Ok(vec![address])
        });
        let clock = crate::sys::clock::machine_clock();
        Resolver::start_with([NAME.parse().expect("a name")], hooks, clock, look_up).expect("a thread")
    });
    let (_here, _) = here.greet_announced(100);
    world.await_count(Count::LinksUp, 1);
    release.send(()).expect("the look-up waits");
    let (_late, _) = late.greet_announced(100);
    world.await_count(Count::LinksUp, 2);
}
