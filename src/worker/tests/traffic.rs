//! Healthy links: answers, time, credit, pushes, logins.

use super::*;
use crate::messages::{Push, PushRef, Target};
use moorline_proto::frame::Lane;
use moorline_proto::message::backend::{ConnDown, Kick, Outcome, PushOutcome, PushResult};

fn resp_of(item: Downlink) -> Resp {
    match item {
        Downlink::Answer { command: Command::Resp, cid: 0, body, .. } => {
            message::decode(&body).expect("a Resp")
        }
        other => panic!("no RESP: {other:?}"),
    }
}

#[test]
fn sends_and_requests_are_answered_and_application_frames_pass() {
    let (backend, user) = (Backend::bind(), User::new(0));
    let world = World::start(settings(&[&backend]));
    let (mut peer, announced) = backend.greet_announced(0);
    assert!(announced.is_empty());
    world.login(&user);
    assert_eq!(peer.expect(Kind::ConnUp).message(), Ok(user.login()));

    let req = message::encode(&message::client::Req { id: 77, method: "m".into(), ..Default::default() });
    let app = user.up(Command::App(0x41), 0, "app");
    world.mail(&user, vec![user.send(1), user.up(Command::Req, 77, req.clone()), app]);
    let (send, up) = peer.up();
    assert_eq!((up.handle, up.command, up.seq, up.dup), (user.key.as_u64(), 0x10, 1, false));
    assert_eq!(up.body, "user-0/1");
    let (request, up) = peer.up();
    assert_eq!((up.command, up.seq, &up.body), (0x15, 0, &req));
    let (none, up) = peer.up();
    assert_eq!((none, up.command, &up.body[..]), (0, 0x41, &b"app"[..]));

    let answer = message::encode(&Resp { payload: "yes".into(), ..Default::default() });
    peer.send(
        Kind::UpResult,
        request,
        0,
        &UpResult { code: Code::NotFound.into(), answer, ..Default::default() },
    );
    peer.answer(send, 9);
    let resp = resp_of(world.downlink(user.key.shard()));
    assert_eq!((resp.id, resp.code(), &resp.payload[..]), (77, Code::NotFound, &b"yes"[..]));
    let ack = world.send_ack(&user);
    assert_eq!((ack.code(), ack.seq), (Code::Ok, 9));

    world.mail(&user, vec![Uplink::ConnDown { key: user.key, pin: user.pin, code: 3004 }]);
    let down = peer.expect(Kind::ConnDown).message();
    assert_eq!(down, Ok(ConnDown { handle: user.key.as_u64(), code: 3004 }));
    world.await_count(Count::UpResults, 2);
}

#[test]
fn no_answer_in_time_is_a_retry_and_the_late_one_is_dropped() {
    let (backend, user) = (Backend::bind(), User::new(0));
    let mut settings = settings(&[&backend]);
    settings.link.up_timeout = Duration::from_millis(30);
    let world = World::start(settings);
    let (mut peer, _) = backend.greet_announced(0);
    world.mail(&user, vec![user.send(1)]);
    let (late, _) = peer.up();
    let retry = world.send_ack(&user);
    assert_eq!((retry.cid, retry.code()), (1, Code::Retry));
    assert!((500..1_500).contains(&retry.retry_after_ms));
    peer.answer(late, 1);
    world.await_count(Count::LateResults, 1);
    assert!(world.shards[user.key.shard().index()].try_recv().is_err(), "answered once");
}

#[test]
fn credit_bounds_what_is_unanswered_and_order_holds() {
    let (backend, user) = (Backend::bind(), User::new(0));
    let world = World::start(settings(&[&backend]));
    let (mut peer, _) = backend.greet_announced(2);
    world.mail(&user, (1..=6).map(|cid| user.send(cid)).collect());
    let (first, up) = peer.up();
    assert_eq!(up.seq, 1);
    assert_eq!(peer.up().1.seq, 2);
    peer.expect_nothing_before_pong();
    assert_eq!(world.counter_set.get(Count::UpsParked as usize), 4);
    peer.answer(first, 1);
    assert_eq!(peer.up().1.seq, 3);
    peer.expect_nothing_before_pong();
    peer.send(Kind::Credit, 0, 4, &());
    assert_eq!((peer.up().1.seq, peer.up().1.seq), (4, 5));
    peer.expect_nothing_before_pong();
}

#[test]
fn over_the_parking_limits_a_retry_comes_at_once() {
    let user = User::new(0);
    let mut settings = settings(&[]);
    settings.parking.frames = 2;
    settings.link.up_timeout = Duration::from_millis(200);
    let world = World::start(settings);
    let app = user.up(Command::App(0x41), 0, "nobody waits for this");
    world.mail(&user, vec![user.send(1), user.send(2), user.send(3), app]);
    let order: Vec<_> = (0..3).map(|_| world.send_ack(&user)).map(|ack| (ack.cid, ack.code())).collect();
    assert_eq!(order, [(3, Code::Retry), (1, Code::Retry), (2, Code::Retry)]);
    world.await_count(Count::UpTimeouts, 2);
    world.await_count(Count::UpsDropped, 1);
}

#[test]
fn pushes_are_split_by_shard_and_outcomes_go_back_together() {
    let backend = Backend::bind();
    let world = World::start(settings(&[&backend]));
    let (mut peer, _) = backend.greet_announced(0);
    let users = [0, 1, 2].map(User::on_shard);
    let push = backend::Push {
        handles: vec![users[0].key.as_u64(), users[1].key.as_u64(), 200 << 56],
        uids: vec![users[1].uid.clone(), users[2].uid.clone()],
        command: u32::from(Command::Push.byte()),
        lane: 2,
        want_ack: true,
        ttl_ms: 60_000,
        body: "hello all".into(),
        ..Default::default()
    };
    let before = crate::sys::clock::now();
    peer.send(Kind::Push, 31, 0, &push);
    let by_key = |user: &User| Target::Connection(user.key);
    let by_uid = |user: &User| Target::User(user.uid.as_str().into());
    let wanted =
        [vec![by_key(&users[0])], vec![by_key(&users[1]), by_uid(&users[1])], vec![by_uid(&users[2])]];
    let mut tickets = Vec::new();
    for (user, wanted) in users.iter().zip(wanted) {
        let Downlink::Push(Push { ticket, targets, command, lane, expires_at, body, .. }) =
            world.downlink(user.key.shard())
        else {
            panic!("no push")
        };
        assert_eq!(
            (targets, command, lane, &body[..]),
            (wanted, Command::Push, Lane::Group, &b"hello all"[..])
        );
        assert!(expires_at >= before + Duration::from_secs(60) && expires_at < Instant::FAR_FUTURE);
        tickets.push(ticket.expect("an outcome is wanted"));
    }
    let offline = PushOutcome { correlation: 31, handle: 200 << 56, outcome: Outcome::Offline.into() };
    let result: PushResult = peer.expect(Kind::PushResult).message().expect("decodes");
    assert_eq!(result.outcomes, [offline]);

    let stale = PushRef { link_generation: tickets[0].link_generation + 1, ..tickets[0] };
    let pushed = |ticket, user: &User, outcome| Uplink::Pushed { ticket, key: user.key, outcome };
    let items = vec![
        pushed(stale, &users[0], Outcome::Acked),
        pushed(tickets[0], &users[0], Outcome::Acked),
        pushed(tickets[1], &users[1], Outcome::Full),
    ];
    world.mail(&users[0], items);
    let result: PushResult = peer.expect(Kind::PushResult).message().expect("decodes");
    let told: Vec<_> =
        result.outcomes.iter().map(|one| (one.correlation, one.handle, one.outcome())).collect();
    let [a, b] = [&users[0], &users[1]].map(|user| user.key.as_u64());
    assert_eq!(told, [(31, a, Outcome::Acked), (31, b, Outcome::Full)]);
    world.await_count(Count::OutcomesStale, 1);
}

/// Otherwise the backend no longer knows the login whose ack it is, and pushes again.
#[test]
fn an_outcome_is_told_before_the_login_ends() {
    let (backend, user) = (Backend::bind(), User::new(0));
    let world = World::start(settings(&[&backend]));
    let (mut peer, _) = backend.greet_announced(0);
    world.login(&user);
    peer.expect(Kind::ConnUp);
    let command = u32::from(Command::Push.byte());
    let push =
        backend::Push { handles: vec![user.key.as_u64()], command, want_ack: true, ..Default::default() };
    peer.send(Kind::Push, 7, 0, &push);
    let Downlink::Push(Push { ticket: Some(ticket), .. }) = world.downlink(user.key.shard()) else {
        panic!("no push with a ticket")
    };
    let acked = Uplink::Pushed { ticket, key: user.key, outcome: Outcome::Acked };
    world.mail(&user, vec![acked, Uplink::ConnDown { key: user.key, pin: user.pin, code: 0 }]);
    let result: PushResult = peer.expect(Kind::PushResult).message().expect("decodes");
    assert_eq!(result.outcomes[0].correlation, 7);
    peer.expect(Kind::ConnDown);
}

#[test]
fn a_push_for_one_goes_to_one_shard_without_a_ticket() {
    let (backend, user) = (Backend::bind(), User::on_shard(2));
    let world = World::start(settings(&[&backend]));
    let (mut peer, _) = backend.greet_announced(0);
    let handles = vec![user.key.as_u64()];
    let push = backend::Push { handles, command: 0x14, body: "n".into(), ..Default::default() };
    peer.send(Kind::Push, 1, 0, &push);
    let Downlink::Push(push) = world.downlink(ShardId(2)) else { panic!("no push") };
    assert_eq!((push.ticket, push.command, push.expires_at), (None, Command::Notify, Instant::FAR_FUTURE));
    assert_eq!(push.targets, [Target::Connection(user.key)]);
}

#[test]
fn kicks_reach_the_connection_the_user_or_the_device() {
    let (backend, user) = (Backend::bind(), User::on_shard(1));
    let world = World::start(settings(&[&backend]));
    let (mut peer, _) = backend.greet_announced(0);
    let kick = Kick { uid: user.uid.clone(), login_version: 8, reason: "out".into(), ..Default::default() };
    let by_device = Kick { device: "phone".into(), code: 4500, ..kick.clone() };
    let by_handle = Kick { handle: user.key.as_u64(), may_reconnect: true, ..Default::default() };
    for kick in [&kick, &by_device, &by_handle] {
        peer.send(Kind::Kick, 0, 0, kick);
    }
    let uid: Box<str> = user.uid.as_str().into();
    let wanted = [
        (Target::User(uid.clone()), 8, 3531, false, "out"),
        (Target::Device(uid, "phone".into()), 8, 4500, false, "out"),
        (Target::Connection(user.key), 0, 3531, true, ""),
    ];
    for wanted in wanted {
        match world.downlink(ShardId(1)) {
            Downlink::Kick { target, login_version, code, may_reconnect, reason } => {
                assert_eq!((target, login_version, code, may_reconnect, reason.as_str()), wanted);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn hellos_are_judged_without_any_backend() {
    let user = User::new(3);
    let world = World::start(settings(&[]));
    for (token, wanted) in [("good", Ok("user-3")), ("bad", Err(CloseReason::AuthFailed))] {
        let hello = Box::new(Hello { token: token.into(), uid: user.uid.clone(), ..Default::default() });
        world.mail(&user, vec![Uplink::Login { key: user.key, pin: user.pin, hello }]);
        match world.downlink(user.key.shard()) {
            Downlink::Verdict { key, verdict } => {
                assert_eq!(key, user.key);
                assert_eq!(verdict.as_ref().map(|who| who.uid.as_str()).map_err(|reason| *reason), wanted);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_stopping_worker_sends_what_it_was_given() {
    let (backend, user) = (Backend::bind(), User::new(0));
    let mut world = World::start(settings(&[&backend]));
    let (mut peer, _) = backend.greet_announced(0);
    world.mail(&user, vec![user.send(1), user.send(2)]);
    world.stop();
    assert_eq!((peer.up().1.seq, peer.up().1.seq), (1, 2));
    assert!(peer.next().is_none(), "then it closes");
}

#[test]
fn a_shard_that_takes_nothing_stops_the_reading_of_links_and_loses_nothing() {
    const PUSHES: u64 = 40_000;
    let (backend, user) = (Backend::bind(), User::on_shard(0));
    let world = World::start(settings(&[&backend]));
    let (mut peer, _) = backend.greet_announced(0);
    world.gates[0].store(true, Ordering::SeqCst);
    let mut wire = BytesMut::new();
    for number in 0..PUSHES {
        let mut body = vec![0; 1_024];
        body[..8].copy_from_slice(&number.to_be_bytes());
        let handles = vec![user.key.as_u64()];
        let push = backend::Push { handles, command: 0x12, body: body.into(), ..Default::default() };
        link::encode(&mut wire, Kind::Push, number, 0, &push);
    }
    peer.stream.set_write_timeout(Some(Duration::from_millis(300))).expect("timeout");
    let mut sent = 0;
    let mut patience = 200;
    let stopped = loop {
        match peer.stream.write(&wire[sent..]) {
            Ok(0) => break false,
            Ok(len) => sent += len,
            // The worker stopped reading, or this machine did not let it.
            Err(_) if world.counter_set.get(Count::Pushes as usize) < 16_384 && patience > 0 => patience -= 1,
            Err(_) => break true,
        }
    };
    assert!(stopped, "40 MB fit into a worker whose shard takes nothing");
    let taken = world.counter_set.get(Count::Pushes as usize);
    assert!((16_384..PUSHES).contains(&taken), "read {taken}");
    world.gates[0].store(false, Ordering::SeqCst);
    peer.stream.set_write_timeout(Some(PATIENCE)).expect("timeout");
    peer.stream.write_all(&wire[sent..]).expect("it reads on");
    for number in 0..PUSHES {
        let Downlink::Push(push) = world.downlink(ShardId(0)) else { panic!("no push") };
        assert_eq!(push.body[..8], number.to_be_bytes());
    }
}

#[test]
fn what_is_larger_than_clients_accept_is_reported_and_not_sent() {
    let (backend, user) = (Backend::bind(), User::new(0));
    let mut settings = settings(&[&backend]);
    settings.link.body_max = 1_000;
    let world = World::start(settings);
    let (mut peer, _) = backend.greet_announced(0);
    world.login(&user);
    assert_eq!(peer.expect(Kind::ConnUp).message(), Ok(user.login()));
    let push = backend::Push {
        handles: vec![user.key.as_u64()],
        command: 0x12,
        want_ack: true,
        body: vec![0; 1_001].into(),
        ..Default::default()
    };
    peer.send(Kind::Push, 7, 0, &push);
    let result: PushResult = peer.expect(Kind::PushResult).message().expect("a PushResult");
    // The HELLO of this backend knows no TOO_LARGE.
    let outcome = PushOutcome { correlation: 7, handle: user.key.as_u64(), outcome: Outcome::Expired.into() };
    assert_eq!(result.outcomes, [outcome]);
    let req = message::encode(&message::client::Req { id: 5, method: "m".into(), ..Default::default() });
    world.mail(&user, vec![user.up(Command::Req, 5, req)]);
    let (request, _) = peer.up();
    let answer = message::encode(&Resp { payload: vec![0; 1_000].into(), ..Default::default() });
    peer.send(Kind::UpResult, request, 0, &UpResult { code: Code::Ok.into(), answer, ..Default::default() });
    let resp = resp_of(world.downlink(user.key.shard()));
    assert_eq!((resp.id, resp.code(), resp.payload.len()), (5, Code::TooLarge, 0));
    world.await_count(Count::PushesTooLarge, 1);
}

#[test]
fn questions_of_a_mute_backend_take_no_more_bytes_than_the_settings_say() {
    let (backend, user) = (Backend::bind(), User::new(0));
    let mut settings = settings(&[&backend]);
    (settings.link.pending_bytes, settings.parking.bytes) = (10_000, 10_000);
    let world = World::start(settings);
    let (mut peer, _) = backend.greet_announced(0);
    world.login(&user);
    assert_eq!(peer.expect(Kind::ConnUp).message(), Ok(user.login()));
    let large = |id| user.up(Command::Req, id, vec![0u8; 4_000]);
    world.mail(&user, (1..=6).map(large).collect());
    let (first, _) = peer.up();
    peer.up();
    // Two are on the link, two wait, two are told to come again.
    for _ in 0..2 {
        assert_eq!(resp_of(world.downlink(user.key.shard())).code(), Code::Retry);
    }
    world.await_count(Count::UpsPendingBytes, 8_000);
    peer.send(
        Kind::UpResult,
        first,
        0,
        &UpResult { code: Code::Ok.into(), answer: Bytes::new(), ..Default::default() },
    );
    assert_eq!(resp_of(world.downlink(user.key.shard())).id, 1);
    let (_, third) = peer.up();
    assert_eq!(third.body.len(), 4_000, "an answer makes room for the next");
}
