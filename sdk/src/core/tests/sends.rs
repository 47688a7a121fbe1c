//! Sends and requests: order, numbers, repetition, limits.

use super::*;

#[test]
fn one_send_per_conversation_is_under_way_and_conversations_share_the_window() {
    let mut rig = Rig::logged_in();
    let first = rig.say("bob", "b1");
    rig.say("bob", "b2");
    rig.say("carol", "c1");
    assert_eq!(rig.texts(), [(1, owned("b1")), (2, owned("c1"))]);
    rig.ack(1, Code::Ok);
    let Event::Sent(receipt) = &rig.events()[0] else { panic!("no receipt") };
    assert_eq!((receipt.id, receipt.message_id, receipt.is_repeat), (first, 1, false));
    assert_eq!(rig.texts(), [(3, owned("b2"))]);
    rig.ack(9, Code::Ok);
    assert_eq!(rig.events(), []);
    assert_eq!(rig.core.sends_open(), 2);
}

#[test]
fn the_window_of_cids_is_kept_from_the_oldest_unanswered() {
    let mut rig = Rig::logged_in();
    for user in 0..100 {
        rig.say(&format!("u{user}"), "x");
    }
    assert_eq!(rig.sends().len(), 64);
    for cid in 2..=64 {
        rig.ack(cid, Code::Ok);
    }
    assert_eq!(rig.sends().len(), 0, "cid 65 is 64 beyond the answered base");
    rig.frame(Command::SendAck, &SendAck { cid: 1, code: Code::Retry.into(), ..SendAck::default() });
    assert_eq!(rig.texts().iter().map(|send| send.0).collect::<Vec<_>>(), (65..=100).collect::<Vec<_>>());
}

#[test]
fn retry_repeats_cid_and_key_after_the_time_until_it_took_too_long() {
    let mut rig = Rig::logged_in();
    let id = rig.say("bob", "b1");
    rig.say("bob", "b2");
    let first = rig.sends();
    let mut retries = 0;
    loop {
        let ack = SendAck { cid: 1, code: Code::Retry.into(), retry_after_ms: 4000, ..SendAck::default() };
        rig.frame(Command::SendAck, &ack);
        let failed = rig.events();
        if !failed.is_empty() {
            let Event::SendFailed { id: of, failure, .. } = &failed[0] else { panic!("{failed:?}") };
            assert_eq!((*of, failure), (id, &SendFailure::PutOff));
            break;
        }
        rig.tick(ms(3999));
        assert_eq!(rig.sends(), []);
        rig.tick(ms(1001));
        let again = rig.sends();
        assert_eq!((again[0].0, again[0].1), (1, true));
        assert_eq!(again[0].2, first[0].2, "the same key");
        retries += 1;
    }
    assert!((10..=15).contains(&retries), "{retries} tries in 60 s");
    assert_eq!(rig.texts(), [(2, owned("b2"))], "the next one goes on");
}

#[test]
fn no_answer_is_repeated_three_times_then_fails_and_the_session_is_given_up() {
    let mut rig = Rig::logged_in();
    let id = rig.say("bob", "b1");
    rig.say("bob", "b2");
    let mut tries = Vec::new();
    let mut events = Vec::new();
    while !events.iter().any(|event| matches!(event, Event::Notice(Notice::Disconnected { .. }))) {
        for frame in rig.frames() {
            match frame.header.command {
                Command::Send => tries.push(frame.header.seq),
                Command::Ping => rig.frame(Command::Pong, &client::Ping::default()),
                _ => {}
            }
        }
        rig.tick_next();
        events = rig.events();
    }
    assert_eq!(tries, [1, 1, 1, 1]);
    let Event::SendFailed { id: of, failure: SendFailure::Unanswered, .. } = events[0] else { panic!() };
    assert_eq!(of, id);
    assert!(events.contains(&Event::Hangup));
    rig.tick_next();
    rig.log_in(Welcome::default());
    assert_eq!(rig.texts(), [(1, owned("b2"))]);
}

#[test]
fn a_new_session_renumbers_in_order_with_the_same_keys() {
    let mut rig = Rig::logged_in();
    for text in ["1", "2", "3"] {
        rig.say(text, text);
    }
    let before = rig.sends();
    rig.ack(1, Code::Ok);
    rig.events();
    rig.relogin();
    let after = rig.sends();
    assert_eq!(after.iter().map(|send| (send.0, send.1)).collect::<Vec<_>>(), [(1, true), (2, true)]);
    assert_eq!((&after[0].2, &after[1].2), (&before[1].2, &before[2].2));
}

#[test]
fn a_resumed_session_keeps_its_cids() {
    let mut rig = Rig::new();
    rig.tick(ms(0));
    let ticket = || Welcome {
        session: Bytes::from_static(&[1; 16]),
        ticket: Bytes::from_static(b"t"),
        epoch: 3,
        ..Welcome::default()
    };
    rig.log_in(ticket());
    rig.say("a", "a");
    rig.say("b", "b");
    rig.ack(1, Code::Ok);
    rig.frames();
    rig.core.handle_disconnected(rig.now, None);
    rig.tick_next();
    rig.core.handle_connected(rig.now);
    rig.gateway = Decoder::new();
    let hello: Hello = decode(&rig.frames()[0].body).unwrap();
    assert_eq!(hello.resume.map(|resume| (resume.epoch, resume.ticket)), Some((3, Bytes::from_static(b"t"))));
    rig.frame(Command::Welcome, &Welcome { version: 1, resumed: true, ..ticket() });
    assert_eq!(rig.texts(), [(2, owned("b"))]);
    rig.say("c", "c");
    assert_eq!(rig.texts(), [(3, owned("c"))]);
}

#[test]
fn the_outbox_is_bounded_and_refuses_what_fits_no_frame() {
    let mut config = config();
    config.tuning = Arc::new(Tuning { outbox_sends_max: 2, outbox_bytes_max: 100, ..Tuning::default() });
    let mut rig = Rig::with(config);
    rig.say("b", "1");
    let mut send = |bytes| rig.core.send(rig.now, Target::user("b"), 1, Bytes::from(vec![0; bytes]));
    assert_eq!(send(100).unwrap_err(), SendRefused::OutboxFull { sends: 1, bytes: 1 });
    assert!(matches!(send(70_000), Err(SendRefused::TooLarge { bytes_max: 65536, .. })));
    assert!(send(99).is_ok());
    assert_eq!(send(0).unwrap_err(), SendRefused::OutboxFull { sends: 2, bytes: 100 });
}

#[test]
fn refusals_are_final_and_say_why() {
    let mut rig = Rig::logged_in();
    rig.say("bob", "x");
    let reason = owned("no such group");
    let ack = SendAck { cid: 1, code: Code::NotMember.into(), reason: reason.clone(), ..SendAck::default() };
    rig.frame(Command::SendAck, &ack);
    let Event::SendFailed { failure, .. } = &rig.events()[0] else { panic!() };
    assert_eq!(failure, &SendFailure::Refused { code: Code::NotMember, reason });
}

#[test]
fn throttle_holds_sends_back_without_spinning() {
    let mut rig = Rig::logged_in();
    rig.frame(Command::Throttle, &Throttle { retry_after_ms: 700, reason: String::new() });
    rig.say("bob", "x");
    rig.core.request(rig.now, "m", Bytes::new(), Repeat::Once, ms(5000)).unwrap();
    assert_eq!(rig.frames(), []);
    let mut steps = 0;
    while rig.frames().iter().filter(|frame| frame.header.command != Command::Ping).count() == 0 {
        rig.tick_next();
        steps += 1;
        assert!(steps < 5);
    }
    assert!(rig.now >= Instant::from_nanos(7) + ms(700));
}

#[test]
fn requests_have_one_result_each() {
    let mut rig = Rig::logged_in();
    let ask = |rig: &mut Rig, repeat, secs| {
        let timeout = Duration::from_secs(secs);
        rig.core.request(rig.now, "m", Bytes::new(), repeat, timeout).expect("taken")
    };
    let once = ask(&mut rig, Repeat::Once, 60);
    let always = ask(&mut rig, Repeat::UntilAnswered, 60);
    let late = ask(&mut rig, Repeat::UntilAnswered, 3);
    assert_eq!(rig.frames().len(), 3);
    rig.answer(always.0, Code::Retry, Bytes::new());
    rig.tick(ms(500));
    assert_eq!(rig.frames().len(), 1, "asked again after RETRY");
    rig.core.handle_disconnected(rig.now, None);
    assert_eq!(rig.events()[0], Event::Response { id: once, result: Err(RequestError::Lost) });
    rig.tick_next();
    rig.log_in(Welcome::default());
    assert_eq!(rig.frames().len(), 2, "asked again after the reconnect");
    rig.answer(always.0, Code::Ok, Bytes::from_static(b"yes"));
    assert_eq!(rig.events(), [Event::Response { id: always, result: Ok(Bytes::from_static(b"yes")) }]);
    rig.tick(ms(3000));
    assert_eq!(rig.events(), [Event::Response { id: late, result: Err(RequestError::TimedOut) }]);
}
