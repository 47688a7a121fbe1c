//! Everybody logs in at the same moment. Half of them arrive at the wrong reactor and move.

use crate::descriptors;
use crate::gateway::{Backend, Gateway};
use crate::raw::{Client, bytes_of, hello, message};
use moorline_proto::frame::Command;
use moorline_proto::message::client::{Code, Ping};
use moorline_proto::message::frame_of;

const LOGINS: usize = 4_000;

#[test]
fn everybody_is_let_in_counted_and_answered() {
    let (_many, count) = descriptors::many(LOGINS);
    let backend = Backend::start();
    let gateway =
        Gateway::start(&backend, &["limits.handshake_timeout=60s", "session.keep=0s", "log.level=info"]);
    let ping = bytes_of(&frame_of(Command::Ping, &Ping { next_s: 60 }));
    for round in 0..2 {
        let mut clients: Vec<_> = (0..count)
            .map(|number| Client::greet(gateway.listener, &hello(&format!("user-{number}"), "d")))
            .collect();
        for client in &mut clients {
            client.until("WELCOME", |heard| heard.welcome.is_some());
        }
        gateway.until_sessions(count as u64);
        gateway.until_metric("connections", count as u64);
        clients.iter_mut().for_each(|client| client.write(&ping));
        clients.iter_mut().for_each(|client| client.until("PONG", |heard| heard.pongs == 1));
        // The backend knows them all: some speak, and everybody who is spoken to hears it.
        for speaker in (0..count).step_by(50) {
            let listener = (speaker + 25) % count;
            let key = (round << 32 | speaker) as u128;
            let cid = clients[speaker].send(&message(key, &format!("user-{listener}"), b"hello"));
            assert_eq!(clients[speaker].answer(cid).code(), Code::Ok);
            clients[listener].until("PUSH", |heard| heard.payloads() == [b"hello"]);
        }
        drop(clients);
        gateway.until_metric("connections", 0);
    }
    let metrics = gateway.metrics();
    let (logins, moved) = (metrics["logins_total"], metrics["moved_total"]);
    println!("{logins} logins, {moved} of them moved to another reactor");
    assert!(moved > logins / 10.0, "{moved} of {logins} moved: is there a second reactor?");
    assert_eq!((metrics["sessions"], metrics["users"]), (0.0, 0.0));
}
