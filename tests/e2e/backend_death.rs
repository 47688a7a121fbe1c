//! The backend is killed under a living gateway.

use crate::gateway::{Backend, Gateway};
use crate::lateness::Lateness;
use crate::raw::{Client, message, send_frame};
use moorline::sys::clock;
use moorline_proto::frame::Flags;
use moorline_proto::message::client::Code;
use moorline_proto::message::client::Send;
use std::time::Duration;

const SPEAKERS: u32 = 20;
/// Threads that run one after the other for all answers: each client reads its own.
const ANSWER_HOPS: u32 = 4 + SPEAKERS;

#[test]
fn clients_get_retry_and_then_service_on_the_same_connections() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &["worker.count=2", "backend.links_per_worker=2"]);
    let login = |role: &str, number| Client::login(gateway.listener, &format!("{role}-{number}"), "d");
    let mut speakers: Vec<_> = (0..SPEAKERS).map(|number| login("speaker", number)).collect();
    let mut listeners: Vec<_> = (0..SPEAKERS).map(|number| login("listener", number)).collect();
    let say = |number: u32, round: u32| -> Send {
        let key = u128::from(number) << 32 | u128::from(round);
        message(key, &format!("listener-{number}"), format!("round {round}").as_bytes())
    };
    for (number, speaker) in (0..).zip(&mut speakers) {
        speaker.send(&say(number, 1));
        assert_eq!(speaker.answer(1).code(), Code::Ok);
    }
    for listener in &mut listeners {
        listener.until("round 1", |heard| heard.payloads() == [b"round 1"]);
    }

    let place = backend.kill();
    crate::until("the gateway notices", || (gateway.varz().links_up == 0).then_some(()));
    assert_eq!((gateway.get("/readyz").0, gateway.get("/healthz").0), (503, 200));
    let (started, lateness) = (clock::now(), Lateness::start());
    for (number, speaker) in (0..).zip(&mut speakers) {
        speaker.send(&say(number, 2));
    }
    for speaker in &mut speakers {
        let answer = speaker.answer(2);
        assert_eq!(answer.code(), Code::Retry);
        assert!(answer.retry_after_ms > 0);
    }
    let took = clock::now().saturating_since(started);
    // 3 s are configured; 5 s and what the machine itself delays are for the way there and back.
    let most = Duration::from_secs(8) + ANSWER_HOPS * lateness.finish();
    assert!(took > Duration::from_millis(2_500) && took < most, "RETRY after {took:?}, at most {most:?}");
    // Logins are judged without a backend.
    let mut late = login("listener", SPEAKERS);

    let _backend = Backend::start_at(&place);
    crate::until("the links come back", || (gateway.varz().links_up == 4).then_some(()));
    gateway.until_ready();
    for (number, speaker) in (0..).zip(&mut speakers) {
        speaker.put(&send_frame(2, &say(number, 2)).with_flags(Flags::DUP));
    }
    for speaker in &mut speakers {
        speaker.until("the answer to the second try", |heard| heard.answers(2).len() == 2);
        assert_eq!(speaker.heard.answers(2)[1].code(), Code::Ok);
    }
    for listener in &mut listeners {
        listener.until("round 2", |heard| heard.pushes.len() == 2);
        assert_eq!(listener.heard.payloads(), [b"round 1", b"round 2"]);
    }
    assert_eq!(speakers[0].tell(99, &format!("listener-{SPEAKERS}"), b"welcome").code(), Code::Ok);
    late.until("a message", |heard| heard.payloads() == [b"welcome"]);
    gateway.until_at_least("logins_announced_total", u64::from(2 * SPEAKERS)); // to the new backend
    gateway.until_metric("connections", u64::from(2 * SPEAKERS + 1)); // nobody had to reconnect
}

/// Under way when the backend dies, and there again within the time for an answer: nobody notices more
/// than a pause.
#[test]
fn a_short_death_is_a_pause() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &["backend.up_timeout=20s"]);
    let mut alice = Client::login(gateway.listener, "alice", "d");
    let mut bob = Client::login(gateway.listener, "bob", "d");
    assert_eq!(alice.tell(1, "bob", b"1").code(), Code::Ok);
    let place = backend.kill();
    for number in 2..=40u32 {
        alice.send(&message(number.into(), "bob", format!("{number}").as_bytes()));
    }
    let _backend = Backend::start_at(&place);
    alice.until("40 answers", |heard| heard.send_acks.len() == 40);
    assert!(alice.heard.send_acks.iter().all(|ack| ack.code() == Code::Ok));
    bob.until("40 messages", |heard| heard.pushes.len() == 40);
    let expected: Vec<_> = (1..=40).map(|number| format!("{number}")).collect();
    assert_eq!(bob.heard.payloads(), expected.iter().map(String::as_bytes).collect::<Vec<_>>());
    assert_eq!(gateway.metric("retries_total"), 0);
}
