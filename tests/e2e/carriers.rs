//! The client library and the load generator over TLS and WebSocket: they share no code with the gateway's side of both.

use crate::PATIENCE;
use crate::load::{is_clean, run};
use crate::tls::World;
use crate::tunnel::NAME;
use moorline_sdk::Platform;
use moorline_sdk::client::{Client, Notice};
use moorline_sdk::core::Target;

fn client(world: &World, uid: &str) -> Client {
    let pem = std::fs::read(world.authority.certificate.path()).expect("our file");
    let builder =
        Client::builder(&format!("tls://{}", world.address("tls"))).roots_pem(&pem).server_name(NAME);
    builder.user(uid).device("d", Platform::Linux).build().expect("a client")
}

#[test]
fn people_chat_over_tls_and_a_hot_restart_shows_at_most_as_a_pause() {
    let world = World::start();
    let (ann, ben) = (client(&world, "ann"), client(&world, "ben"));
    for round in 0..4 {
        let long = "x".repeat(20_000); // more than one record
        for (from, to, to_name) in [(&ann, &ben, "ben"), (&ben, &ann, "ann")] {
            let sent = from.send(Target::user(to_name), 1, long.clone()).expect("taken");
            sent.wait_durable(PATIENCE).expect("stored");
            assert_eq!(to.recv_timeout(PATIENCE).expect("comes").payload, long.as_bytes(), "round {round}");
        }
        world.series.restart();
    }
    for client in [ann, ben] {
        let notices: Vec<_> = client.notices().try_iter().collect();
        let is_lost = |notice: &Notice| matches!(notice, Notice::Disconnected { .. });
        assert!(!notices.iter().any(is_lost), "{notices:?}");
    }
}

#[test]
fn the_load_generator_passes_over_tls_over_websocket_and_over_both() {
    let world = World::start();
    let ca = world.authority.certificate.path().display().to_string();
    let tls = format!("--tls --tls-name {NAME} --ca {ca}");
    for (kind, carrier) in [("tls", tls.clone()), ("ws", "--ws".into()), ("wss", format!("--ws {tls}"))] {
        for work in ["ping -c 50 -r 500/s -d 500ms", "chat -c 50 --payload 20000 -d 500ms"] {
            let (code, report) = run(&format!("{work} --warmup 200ms {carrier}"), &[], world.address(kind));
            assert!(is_clean(code, &report), "{work} {carrier}: exit {code}, {report}");
            let expected = (50 * u32::from(kind != "ws"), 50 * u32::from(kind != "tls"));
            let counted = &report["carrier"];
            assert_eq!(
                (&counted["handshakes"], &counted["upgrades"]),
                (&expected.0.into(), &expected.1.into())
            );
        }
    }
    let storm = format!("storm -c 40 -d 3s --calm 500ms -r 100 {tls}");
    let (code, report) = run(&storm, &[], world.address("tls"));
    assert!(is_clean(code, &report), "exit {code}, {report}");
    assert_eq!(report["carrier"]["resumed"], 0.5, "whoever comes back resumes: {report}");
}
