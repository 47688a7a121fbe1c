//! A gateway that is hostile or broken: numbers at the end of their range, names and lists without end, pauses of weeks.

use super::*;
use crate::core::limits::{NAME_BYTES_MAX, PAUSE_MAX, SEQ_MAX};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::compress::try_compress;
use moorline_proto::frame::encode_batch;
use moorline_proto::message::client::SubAck;
use moorline_proto::message::im::{
    Conversation, ConversationsResponse, Happened, ReadCount, ReadCounts, Signal, happened::What,
};

/// Memory that the application may hold in one of the tests, in bytes.
const UNHANDLED_TEST_BYTES: usize = 128 << 10;

/// Reasons of the frames that were dropped.
fn dropped(rig: &mut Rig) -> Vec<&'static str> {
    let reason = |event| match event {
        Event::Notice(Notice::FrameDropped { reason, .. }) => Some(reason),
        _ => None,
    };
    rig.events().into_iter().filter_map(reason).collect()
}

fn reliable(rig: &mut Rig, command: Command, body: &impl prost::Message) {
    rig.dseq += 1;
    let frame = frame_of(command, body).with_seq(rig.dseq);
    rig.give(&frame);
}

#[test]
fn seqs_at_the_end_of_their_range_are_dropped_and_acked_and_hang_nothing() {
    let mut rig = Rig::logged_in();
    rig.push(1);
    assert_eq!(rig.read(), [1]);
    for seq in [SEQ_MAX + 1, u64::MAX - 1, u64::MAX] {
        rig.push(seq);
        assert_eq!(dropped(&mut rig), ["a seq is 2^63 or more"]);
        let notify = |latest, first| Notify { conversation: "group:g".into(), latest, first };
        reliable(&mut rig, Command::Notify, &notify(seq, 0));
        reliable(&mut rig, Command::Notify, &notify(1, seq));
        assert_eq!(dropped(&mut rig).len(), 2);
        rig.frame(Command::SendAck, &SendAck { conversation: "group:g".into(), seq, ..SendAck::default() });
        assert_eq!(rig.events(), []);
    }
    rig.push(2);
    assert_eq!(rig.read(), [2], "the conversation is not disturbed");
    assert_eq!(rig.core.inbox.downlink().base(), rig.dseq, "what was dropped does not come again");
    rig.push(SEQ_MAX);
    assert!(rig.core.next_deadline().is_some());
    rig.tick_next();
}

#[test]
fn the_last_seq_of_all_is_delivered_and_nothing_is_behind_it() {
    let mut rig = Rig::logged_in();
    rig.push(SEQ_MAX);
    rig.push(SEQ_MAX);
    assert_eq!(rig.read(), [SEQ_MAX]);
    reliable(
        &mut rig,
        Command::Notify,
        &Notify { conversation: "group:g".into(), latest: SEQ_MAX, first: SEQ_MAX },
    );
    rig.events();
    let cursor = rig.core.cursor("group:g").expect("followed");
    assert_eq!((cursor.next, rig.core.inbox.downlink().base()), (SEQ_MAX + 1, rig.dseq));
}

#[test]
fn a_page_with_numbers_at_the_end_of_their_range_leaves_the_order_whole() {
    let mut rig = Rig::logged_in();
    rig.push(1);
    rig.push(4);
    rig.tick(ms(200));
    let (id, _) = rig.pull();
    let messages = vec![message(u64::MAX), message(SEQ_MAX), message(2)];
    let voids = vec![VoidRange { from: 3, to: 3 }, VoidRange { from: u64::MAX, to: u64::MAX }];
    let page = PullResponse { messages, voids, latest: u64::MAX, ..PullResponse::default() };
    rig.answer(id, Code::Ok, encode(&page));
    assert_eq!(rig.read(), [1, 2, 4]);
    rig.push(5);
    assert_eq!(rig.read(), [5]);
}

#[test]
fn a_stored_cursor_that_cannot_be_is_not_followed() {
    for (start, next) in [(0, u64::MAX), (9, 8), (u64::MAX, u64::MAX), (0, 0)] {
        let cursor = ConversationCursor { start, next, newest: Newest::default() };
        assert!(!Rig::new().core.restore("group:g", cursor), "{cursor:?}");
    }
    let last = ConversationCursor { start: 1, next: SEQ_MAX + 1, newest: Newest::default() };
    assert!(Rig::new().core.restore("group:g", last));
}

#[test]
fn names_longer_than_any_name_are_dropped_and_not_kept() {
    let mut rig = Rig::logged_in();
    let long = "n".repeat(NAME_BYTES_MAX + 1);
    for push in [
        Push { conversation: long.clone(), ..message(1) },
        Push { sender: long.clone(), ..message(1) },
        Push { sender_device: long.clone(), ..message(1) },
    ] {
        reliable(&mut rig, Command::Push, &push);
        assert_eq!(dropped(&mut rig), ["a name is longer than 192 bytes"]);
    }
    reliable(&mut rig, Command::Notify, &Notify { conversation: long.clone(), latest: 1, first: 0 });
    let signal = Signal { conversation: "group:g".into(), sender: long.clone(), ..Signal::default() };
    reliable(&mut rig, Command::App(0x40), &signal);
    assert_eq!(dropped(&mut rig).len(), 2);
    rig.frame(Command::SendAck, &SendAck { conversation: long.clone(), seq: 1, ..SendAck::default() });
    assert_eq!(rig.core.cursor(&long), None);
    let longest = "n".repeat(NAME_BYTES_MAX);
    reliable(&mut rig, Command::Push, &Push { conversation: longest, ..message(1) });
    assert_eq!(rig.read(), [1]);
}

#[test]
fn messages_that_are_not_numbered_end_the_connection() {
    let notify = Notify { conversation: "group:g".into(), latest: 1, first: 0 };
    for frame in [frame_of(Command::Push, &message(1)), frame_of(Command::Notify, &notify)] {
        let mut rig = Rig::logged_in();
        rig.give(&frame);
        let why = Lost::Protocol(CloseReason::BadHeader);
        assert!(
            matches!(&rig.events()[..], [Event::Hangup, Event::Notice(Notice::Disconnected { why: it, .. })] if *it == why)
        );
    }
}

#[test]
fn a_compressed_frame_in_a_compressed_batch_ends_the_connection() {
    let inner = Frame::new(Command::App(0x41), try_compress(&[0; 4096]).expect("zeros"))
        .with_flags(Flags::COMPRESSED);
    let batch = encode_batch(&[inner.clone(), inner]);
    for (flags, body, is_valid) in [
        (Flags::BATCH.with(Flags::COMPRESSED), try_compress(&batch.body).expect("twice the same"), false),
        (Flags::BATCH, batch.body, true),
    ] {
        let mut rig = Rig::logged_in();
        rig.give(&Frame::new(Command::App(0x41), body).with_flags(flags));
        assert_eq!(rig.core.is_logged_in(), is_valid, "{flags:?}");
    }
}

#[test]
fn before_the_login_bodies_are_short() {
    let mut rig = Rig::new();
    rig.tick(ms(0));
    rig.events();
    rig.core.handle_connected(rig.now);
    let welcome = Welcome { version: 1, ticket: vec![0; 70_000].into(), ..Welcome::default() };
    rig.frame(Command::Welcome, &welcome);
    assert!(!rig.core.is_logged_in());
}

#[test]
fn a_ticket_that_fits_no_hello_is_not_kept() {
    for (bytes, is_kept) in [(512, true), (2_000, false)] {
        let mut rig = Rig::new();
        rig.tick(ms(0));
        rig.log_in(Welcome {
            ticket: vec![1; bytes].into(),
            session: vec![2; 16].into(),
            ..Welcome::default()
        });
        rig.core.handle_disconnected(rig.now, None);
        rig.events();
        rig.tick_next();
        rig.core.handle_connected(rig.now);
        let hello: Hello = decode(&rig.frames()[0].body).expect("a HELLO");
        assert_eq!(hello.resume.is_some(), is_kept, "{bytes} bytes");
    }
}

#[test]
fn no_pause_that_a_gateway_names_is_longer_than_ten_minutes() {
    let long = u32::MAX;
    let end = |rig: &Rig| rig.now + PAUSE_MAX + PAUSE_MAX / 4 + ms(30_000);

    let mut rig = Rig::logged_in();
    rig.frame(Command::GoAway, &GoAway { window_ms: long, alternates: Vec::new() });
    assert!(rig.core.connection.deadline().expect("leaves") <= end(&rig));

    let mut rig = Rig::logged_in();
    rig.frame(Command::Throttle, &Throttle { retry_after_ms: long, reason: String::new() });
    assert!(rig.core.connection.deadline().expect("ends") <= end(&rig));

    let mut rig = Rig::logged_in();
    rig.frame(Command::Close, &Close { code: 3001, retry_after_ms: long, ..Close::default() });
    assert!(rig.core.next_deadline().expect("comes back") <= end(&rig));

    let config = CoreConfig {
        tuning: Arc::new(Tuning { send_retry_for: ms(3_600_000), ..Tuning::default() }),
        ..config()
    };
    let mut rig = Rig::with(config);
    rig.tick(ms(0));
    rig.log_in(Welcome::default());
    rig.say("bob", "x");
    rig.frames();
    let retry = SendAck { cid: 1, code: Code::Retry.into(), retry_after_ms: long, ..SendAck::default() };
    rig.frame(Command::SendAck, &retry);
    assert!(rig.core.outbox.deadline().expect("tries again") <= end(&rig));

    let mut rig = Rig::logged_in();
    let timeout = ms(7_200_000);
    rig.core.request(rig.now, "m", Bytes::new(), Repeat::UntilAnswered, timeout).expect("taken");
    rig.frames();
    let retry = Resp { id: 1, code: Code::Retry.into(), retry_after_ms: long, ..Resp::default() };
    rig.frame(Command::Resp, &retry);
    assert!(rig.core.requests.deadline(true).expect("asks again") <= end(&rig));

    let mut rig = Rig::new();
    rig.tick(ms(0));
    rig.log_in(Welcome { heartbeat_min_s: long, heartbeat_max_s: long, ..Welcome::default() });
    assert!(rig.core.next_deadline().expect("beats") <= rig.now + ms(3_600_000));
}

#[test]
fn a_retry_of_a_millisecond_is_not_a_loop() {
    let mut rig = Rig::logged_in();
    rig.core.request(rig.now, "m", Bytes::new(), Repeat::UntilAnswered, ms(1_000)).expect("taken");
    rig.frames();
    rig.frame(Command::Resp, &Resp { id: 1, code: Code::Retry.into(), retry_after_ms: 1, ..Resp::default() });
    assert_eq!(rig.core.requests.deadline(true), Some(rig.now + ms(20)));
}

#[test]
fn gateways_that_send_a_client_to_each_other_do_not_make_it_hurry() {
    let mut rig = Rig::logged_in();
    let (mut logins, begun) = (0, rig.now);
    while rig.now.saturating_since(begun) < ms(60_000) {
        rig.frame(Command::GoAway, &GoAway::default());
        while !rig.events().iter().any(|event| matches!(event, Event::Connect { .. })) {
            rig.tick_next();
        }
        rig.core.handle_connected(rig.now);
        (rig.gateway, rig.dseq) = (Decoder::new(), 0);
        rig.frames();
        rig.frame(Command::Welcome, &Welcome { version: 1, ..Welcome::default() });
        logins += 1;
        assert!(logins < 40, "{logins} logins in {:?}", rig.now.saturating_since(begun));
    }
}

#[test]
fn a_client_goes_only_to_addresses_that_its_application_listed() {
    let mut rig = Rig::logged_in();
    rig.tick(ms(6_000));
    let alternates = vec![owned("evil.example:1"), owned("127.0.0.1:26666")];
    rig.frame(Command::GoAway, &GoAway { window_ms: 0, alternates });
    rig.tick_next();
    assert_eq!(rig.events().last(), Some(&Event::Connect { alternate: None }), "none is listed");
}

#[test]
fn messages_behind_a_hole_are_counted_whole() {
    let tuning = Tuning { held_bytes_max: 64 << 10, ..Tuning::default() };
    let mut rig = Rig::with(CoreConfig { tuning: Arc::new(tuning), ..config() });
    rig.tick(ms(0));
    rig.log_in(Welcome::default());
    rig.push(1);
    rig.read();
    // Empty ones, and ones whose content is an event.
    for seq in 3..900 {
        let happened = if seq % 2 == 0 { Bytes::from(vec![0x3A; 200]) } else { Bytes::new() };
        reliable(&mut rig, Command::Push, &Push { happened, ..message(seq) });
    }
    assert!(rig.core.inbox.held_bytes() <= 64 << 10);
    assert!(rig.core.inbox.held_count() <= 256, "{} messages", rig.core.inbox.held_count());
}

#[test]
fn a_page_that_holds_more_than_may_wait_is_cut() {
    let tuning = Tuning { held_bytes_max: 10_000, ..Tuning::default() };
    let mut rig = Rig::with(CoreConfig { tuning: Arc::new(tuning), ..config() });
    rig.tick(ms(0));
    rig.log_in(Welcome::default());
    rig.push(1);
    reliable(&mut rig, Command::Notify, &Notify { conversation: "group:g".into(), latest: 60, first: 0 });
    rig.read();
    rig.tick(ms(200));
    let (id, _) = rig.pull();
    let large = |seq| Push { payload: vec![0; 1_000].into(), ..message(seq) };
    let page = PullResponse {
        messages: (3..=60).map(large).collect(),
        latest: 60,
        more: true,
        ..PullResponse::default()
    };
    rig.answer(id, Code::Ok, encode(&page));
    assert!(rig.core.inbox.held_bytes() <= 10_000, "{}", rig.core.inbox.held_bytes());
    assert!(rig.core.inbox.held_count() > 4);
    // The rest is pulled again, and nothing of it was passed over.
    assert!(!rig.events().iter().any(|event| matches!(event, Event::Notice(Notice::Hole { .. }))));
}

#[test]
fn messages_with_the_application_are_counted_whole_and_come_again() {
    let tuning = Tuning { unhandled_bytes_max: UNHANDLED_TEST_BYTES, ..Tuning::default() };
    let mut rig = Rig::with(CoreConfig { tuning: Arc::new(tuning), ..config() });
    rig.tick(ms(0));
    rig.log_in(Welcome::default());
    // Each event is a list of empty messages: two bytes on the wire, 48 in memory.
    let counts = ReadCounts { counts: vec![ReadCount::default(); 1_000] };
    let happened = encode(&Happened { what: Some(What::ReadCounts(counts)) });
    for seq in 1..=60 {
        reliable(&mut rig, Command::Push, &Push { happened: happened.clone(), ..message(seq) });
    }
    let taken = rig.core.messages_open();
    assert!((1..=4).contains(&taken), "{taken} messages of 48 KB in {UNHANDLED_TEST_BYTES} bytes");
    assert_eq!(rig.read().len(), taken);
    let seq = u64::try_from(taken).expect("few") + 1;
    rig.dseq = u32::try_from(taken).expect("few");
    reliable(&mut rig, Command::Push, &Push { happened, ..message(seq) });
    assert_eq!(rig.read(), [seq], "the gateway sends it again");
}

#[test]
fn a_message_does_not_pin_the_block_that_it_came_in() {
    let mut rig = Rig::logged_in();
    let mut bytes = BytesMut::new();
    frame_of(Command::Push, &Push { payload: Bytes::from_static(b"hi"), ..message(1) })
        .with_seq(1)
        .encode(&mut bytes);
    Frame::new(Command::Pong, Bytes::new()).encode(&mut bytes);
    let block = bytes.freeze();
    rig.core.handle_bytes(rig.now, block.clone());
    assert!(rig.events().iter().any(|event| matches!(event, Event::Message(_))));
    assert!(block.is_unique(), "nobody else holds it");
}

#[test]
fn notices_of_one_read_are_bounded() {
    let mut rig = Rig::logged_in();
    for number in 1..=1_000 {
        let conversation = format!("group:{number}");
        reliable(&mut rig, Command::Notify, &Notify { conversation, latest: 1, first: 0 });
    }
    assert_eq!(rig.events().len(), 256);
    assert_eq!(rig.core.inbox.downlink().base(), 1_000, "all of them count");
}

#[test]
fn a_list_of_conversations_without_end_is_asked_for_a_thousand_times_at_most() {
    let mut rig = Rig::logged_in();
    rig.push(1);
    rig.read();
    rig.relogin();
    let conversations = vec![Conversation { id: "group:g".into(), latest: 1, ..Conversation::default() }];
    let page = ConversationsResponse { conversations, more: true };
    let mut asked = 0;
    loop {
        let frames = rig.frames();
        let Some(req) = frames.iter().find(|frame| frame.header.command == Command::Req) else { break };
        let req: Req = decode(&req.body).expect("a REQ");
        asked += 1;
        assert!(asked <= 1_001, "asks for ever");
        rig.answer(req.id, Code::Ok, encode(&page));
    }
    assert_eq!(asked, 1_001);
}

#[test]
fn reasons_are_cut() {
    let mut rig = Rig::logged_in();
    assert!(rig.core.enter_room(rig.now, "hall"));
    let reason = "r".repeat(60_000);
    rig.frame(Command::SubAck, &SubAck { id: 1, code: Code::Denied.into(), reason: reason.clone() });
    rig.frame(Command::Kick, &Kick { code: 4000, may_reconnect: true, reason });
    let notices: Vec<Notice> = rig
        .events()
        .into_iter()
        .filter_map(|event| match event {
            Event::Notice(notice) => Some(notice),
            _ => None,
        })
        .collect();
    assert_eq!(notices.len(), 3, "refused, kicked, disconnected");
    assert!(notices.iter().all(|notice| notice.bytes() <= 1_100));
}
