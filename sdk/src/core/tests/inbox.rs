//! Messages on their way to the application: order, holes, repetitions.

use super::*;

#[test]
fn messages_come_once_in_order_and_are_acked_when_handled() {
    let mut rig = Rig::logged_in();
    for seq in [5, 6, 6, 5] {
        rig.push(seq);
    }
    let events = rig.events();
    assert_eq!(events.len(), 2);
    rig.tick(ms(1000));
    assert!(rig.frames().iter().all(|frame| frame.header.ack == 0), "not handled, not acked");
    for event in events {
        let Event::Message(message) = event else { panic!() };
        rig.core.handled(rig.now, message.token);
    }
    assert_eq!(rig.frames().len(), 0);
    rig.tick(ms(200));
    let acks = rig.frames();
    assert_eq!((acks.len(), acks[0].header.command, acks[0].header.ack), (1, Command::Ack, 4));
    for seq in 7..15 {
        rig.push(seq);
    }
    assert_eq!(rig.read().len(), 8);
    assert_eq!(rig.frames()[0].header.ack, 12, "eight are acked at once");
}

#[test]
fn a_hole_closes_by_itself_by_a_pull_or_aloud() {
    let mut rig = Rig::logged_in();
    for seq in [1, 3, 2] {
        rig.push(seq);
    }
    assert_eq!(rig.read(), [1, 2, 3]);
    for seq in [8, 9] {
        rig.push(seq);
    }
    assert_eq!(rig.read(), [0_u64; 0]);
    rig.tick(ms(199));
    rig.frames();
    rig.tick(ms(1));
    let (id, pull) = rig.pull();
    assert_eq!((&*pull.conversation, pull.from, pull.to), ("group:g", 4, 7));
    let own = Push { sender: owned("alice"), sender_device: owned("phone"), ..message(6) };
    let page = PullResponse {
        messages: vec![message(4), own],
        voids: vec![VoidRange { from: 5, to: 5 }],
        latest: 9,
        more: true,
    };
    rig.answer(id, Code::Ok, encode(&page));
    assert_eq!(rig.read(), [4]);
    let (id, pull) = rig.pull();
    assert_eq!((pull.from, pull.to), (7, 7), "the rest at once");
    rig.answer(id, Code::NotMember, Bytes::new());
    let events = rig.events();
    assert_eq!(events[0], Event::Notice(Notice::Hole { conversation: "group:g".into(), from: 7, to: 7 }));
    assert_eq!(events.len(), 3);
}

#[test]
fn a_notify_is_pulled_and_a_failing_pull_is_tried_again_for_ever() {
    let mut rig = Rig::logged_in();
    rig.push(1);
    rig.read();
    rig.dseq += 1;
    let notify = Notify { conversation: owned("group:g"), latest: 2, first: 0 };
    rig.give(&frame_of(Command::Notify, &notify).with_seq(rig.dseq));
    rig.events();
    for turn in 0..20 {
        let id = loop {
            let req = rig.frames().into_iter().find(|frame| frame.header.command == Command::Req);
            if let Some(req) = req {
                break decode::<Req>(&req.body).unwrap().id;
            }
            rig.tick_next();
            rig.frame(Command::Pong, &Ping::default());
            assert_eq!(rig.events(), [], "no answer is no reason to pass over");
        };
        if turn == 19 {
            let page = PullResponse { messages: vec![message(2)], latest: 2, ..PullResponse::default() };
            rig.answer(id, Code::Ok, encode(&page));
        }
    }
    assert_eq!(rig.read(), [2]);
}

#[test]
fn messages_held_over_a_reconnect_are_neither_lost_nor_repeated() {
    let mut rig = Rig::logged_in();
    rig.push(1);
    let Some(Event::Message(first)) = rig.events().pop() else { panic!() };
    rig.push(3);
    rig.relogin();
    for seq in [1, 2, 3] {
        rig.push(seq);
    }
    assert_eq!(rig.read(), [2, 3]);
    rig.tick(ms(200));
    assert!(
        rig.frames().iter().all(|frame| frame.header.ack == 0),
        "the first is still with the application"
    );
    rig.core.handled(rig.now, first.token);
    rig.core.handled(rig.now, first.token);
    rig.tick(ms(200));
    assert_eq!(rig.frames().last().map(|frame| frame.header.ack), Some(3));
}

#[test]
fn a_backend_that_counts_anew_is_heard() {
    let mut rig = Rig::logged_in();
    let push = |rig: &mut Rig, seq, time_ms| {
        rig.dseq += 1;
        let push = Push { time_ms, message_id: time_ms, ..message(seq) };
        rig.give(&frame_of(Command::Push, &push).with_seq(rig.dseq));
        rig.read()
    };
    for (seq, time_ms) in [(7, 100), (8, 102), (9, 101)] {
        assert_eq!(push(&mut rig, seq, time_ms), [seq]);
    }
    assert_eq!(push(&mut rig, 20, 103), [0_u64; 0], "held behind a hole of the old count");
    assert_eq!(push(&mut rig, 8, 102), [0_u64; 0], "a repetition");
    assert_eq!(push(&mut rig, 1, 200), [1]);
    assert_eq!(push(&mut rig, 2, 200), [2]);
    assert_eq!(push(&mut rig, 1, 200), [0_u64; 0], "a repetition");
    assert_eq!(push(&mut rig, 3, 300), [3]);
    rig.tick(ms(200));
    assert_eq!(rig.frames().last().map(|frame| frame.header.ack), Some(9));
}

#[test]
fn a_backend_that_counts_anew_is_heard_by_one_who_only_sent() {
    let mut rig = Rig::logged_in();
    for (cid, seq, time_ms) in [(1, 1, 10), (2, 2, 20), (3, 2, 90)] {
        rig.say("bob", "x");
        let conversation = owned("group:g");
        let ack = SendAck { cid, conversation, seq, time_ms, ..SendAck::default() };
        rig.frame(Command::SendAck, &ack);
        assert_eq!(rig.events().len(), 1);
    }
    rig.dseq += 1;
    let push = Push { time_ms: 80, ..message(1) };
    rig.give(&frame_of(Command::Push, &push).with_seq(rig.dseq));
    assert_eq!(rig.read(), [1], "stored before the last send, but after all that is known of the old count");
}

#[test]
fn a_restored_core_takes_what_comes_again_for_what_it_is() {
    let mut rig = Rig::new();
    assert!(rig.core.restore(
        "group:g",
        ConversationCursor { start: 3, next: 6, newest: Newest { place: 5, stored_ms: 50 } }
    ));
    rig.tick(ms(0));
    rig.log_in(Welcome::default());
    // An event without a seq says nothing about the order of messages.
    for (id, seq, time_ms) in [(1, 0, 10), (4, 4, 40), (5, 5, 50), (2, 2, 20), (4, 4, 40), (6, 6, 60)] {
        rig.dseq += 1;
        let push = Push { message_id: id, time_ms, ..message(seq) };
        rig.give(&frame_of(Command::Push, &push).with_seq(rig.dseq));
    }
    assert_eq!(rig.read(), [0, 2, 6], "3 to 5 were handled, 2 is from before the start");
    let cursor = ConversationCursor { start: 3, next: 7, newest: Newest { place: 6, stored_ms: 60 } };
    assert_eq!(rig.core.cursor("group:g"), Some(cursor));
}

#[test]
fn messages_without_a_place_are_known_by_their_id() {
    let mut rig = Rig::logged_in();
    for id in [7, 8, 7, 0, 0] {
        rig.dseq += 1;
        let push = Push { message_id: id, conversation: owned("system"), ..Push::default() };
        rig.give(&frame_of(Command::Push, &push).with_seq(rig.dseq));
    }
    assert_eq!(rig.read().len(), 4);
}
