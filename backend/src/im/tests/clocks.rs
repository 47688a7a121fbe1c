//! A wall clock that is set: clients see its time, and nothing else follows it.

use super::*;
use crate::im::time_ms;
use moorline_proto::message::im::{RecallRequest, RecallResponse};

const DAY: Duration = Duration::from_secs(86_400);
const DAY_MS: u64 = 86_400_000;

/// A bench on which ann and ben are logged in.
fn bench() -> (Bench, SessionId, SessionId) {
    let mut bench = Bench::new(ImConfig::default());
    let (ann, ben) = (bench.login(1, "ann", "phone", 1), bench.login(2, "ben", "phone", 1));
    (bench, ann, ben)
}

fn say(bench: &mut Bench, session: SessionId, number: u8) -> SendAck {
    let (code, ack) = bench.send(session, user("ben"), &key(number), b"hi");
    assert_eq!(code, Code::Ok);
    ack
}

#[test]
fn a_clock_that_jumps_ahead_and_back_moves_one_time_and_no_id() {
    let (mut bench, ann, _) = bench();
    let before = say(&mut bench, ann, 1);
    bench.now.unix_ms += 40 * DAY_MS;
    bench.pass(Duration::from_millis(300));
    let jumped = say(&mut bench, ann, 2);
    bench.now.unix_ms -= 40 * DAY_MS;
    bench.pass(Duration::from_millis(300));
    let after = say(&mut bench, ann, 3);
    assert_eq!(jumped.time_ms - before.time_ms, 40 * DAY_MS + 300, "clients see what the clock said");
    assert_eq!(after.time_ms - before.time_ms, 600);
    let ids = [&before, &jumped, &after].map(|ack| ack.message_id);
    assert!(ids.is_sorted() && time_ms(ids[2]) - time_ms(ids[0]) < 1_000, "{ids:?}");
    let clock = bench.im().status().clock;
    assert_eq!((clock.steps, clock.ahead_ms), (2, 0));
    // A duplicate has the time of the first try.
    let (code, again) = bench.send(ann, user("ben"), &key(2), b"hi");
    assert_eq!((code, again.time_ms), (Code::Dup, jumped.time_ms));
}

#[test]
fn the_window_for_recalls_closes_whatever_the_clock_said() {
    let (mut bench, ann, _) = bench();
    bench.now.unix_ms += 40 * DAY_MS;
    bench.pass(Duration::from_millis(300));
    let ahead = say(&mut bench, ann, 1);
    bench.now.unix_ms -= 80 * DAY_MS;
    bench.pass(Duration::from_millis(300));
    let behind = say(&mut bench, ann, 2);
    bench.now.unix_ms += 40 * DAY_MS;
    let recall = |bench: &mut Bench, ack: &SendAck| {
        let request =
            RecallRequest { conversation: "c2c:ann:ben".into(), seq: ack.seq, message_id: ack.message_id };
        bench.req::<RecallResponse>(ann, "im.recall", &request).map(drop)
    };
    bench.pass(DAY * 9 / 10);
    assert_eq!(recall(&mut bench, &behind), Ok(()), "it is not a day old");
    bench.pass(DAY / 5);
    assert_eq!(recall(&mut bench, &ahead), Err(Code::Denied), "it is more than a day old");
}
