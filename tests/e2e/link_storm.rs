//! Links that end in quick succession, while clients log in and out: afterwards the backend knows exactly the sessions
//! that there are.

use crate::api::Api;
use crate::gateway::Gateway;
use crate::proxy::{Proxy, Weather};
use crate::raw;
use crate::sdk::connect;
use crate::{PATIENCE, until};
use moorline_proto::frame::{Command, Frame};
use moorline_sdk::core::Target;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Times that all links end.
const ENDS: u64 = 60;
/// Clients that stay.
const STAY: usize = 12;
/// Threads of clients that come and go.
const CHURN: usize = 3;
/// Ways of both workers to the backend.
const LINKS: u64 = 6;

/// Logs in and out until it is told to end. Every third client leaves by LOGOUT, every third by CLOSE, the others lose their
/// connection.
fn come_and_go(gateway: SocketAddr, number: usize, is_over: &AtomicBool, logins: &AtomicU64) {
    for round in 0.. {
        if is_over.load(Ordering::SeqCst) {
            return;
        }
        let mut client = raw::Client::login(gateway, &format!("guest{number}-{}", round % 7), "d");
        logins.fetch_add(1, Ordering::SeqCst);
        match round % 3 {
            0 => {
                client.put(&Frame::new(Command::Logout, bytes::Bytes::new()));
                client.end();
            }
            1 => client.put(&Frame::new(Command::Close, bytes::Bytes::new())),
            _ => {}
        }
    }
}

#[test]
fn links_that_end_in_quick_succession_leave_no_session_lost_and_none_behind() {
    let api = Api::start(&[]);
    let proxy = Proxy::start(api.backend.address, Weather::FINE, 1);
    let endpoint = format!("backend.endpoints={}", proxy.address);
    let gateway = Gateway::start_bare(&[
        &endpoint,
        "reactor.count=3",
        "worker.count=2",
        "backend.links_per_worker=3",
        "backend.up_timeout=1s",
        "backend.reconnect_max=50ms",
        "session.keep=1s",
    ]);
    gateway.until_ready();
    let staying: Vec<_> =
        (0..STAY).map(|number| connect(gateway.listener, &format!("stays{number}"), "d")).collect();
    let (is_over, logins) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for number in 0..CHURN {
            let (is_over, logins) = (&is_over, &logins);
            scope.spawn(move || come_and_go(gateway.listener, number, is_over, logins));
        }
        let made = || proxy.seen().connections.load(Ordering::SeqCst);
        for number in 0..ENDS {
            // The first link that is back ends again at once; now and then all of them come back before.
            let (links, before) =
                (if number % 5 == 0 { LINKS } else { 1 }, (made(), logins.load(Ordering::SeqCst)));
            proxy.end_all();
            until("links are made again", || (made() >= before.0 + links).then_some(()));
            until("somebody logs in", || (logins.load(Ordering::SeqCst) > before.1).then_some(()));
        }
        is_over.store(true, Ordering::SeqCst);
    });
    let staying_count = u64::try_from(STAY).expect("few");
    gateway.until_metric("links_up", LINKS);
    gateway.until_sessions(staying_count);
    until(&format!("the backend knows {STAY} sessions, last {}", api.sessions()), || {
        (api.sessions() == staying_count).then_some(())
    });
    // Each of them is the session of a client: what is sent there arrives.
    for (number, client) in staying.iter().enumerate() {
        let next = (number + 1) % STAY;
        let sent = client.send(Target::user(&format!("stays{next}")), 1, format!("{number}")).expect("taken");
        sent.wait_durable(PATIENCE).expect("stored");
        let heard = staying[next].recv_timeout(PATIENCE).expect("it arrives");
        assert_eq!(heard.payload, format!("{number}").as_bytes());
    }
    println!("{ENDS} ends of all links, {} logins beside them", logins.load(Ordering::SeqCst));
}
