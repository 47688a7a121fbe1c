//! The client core, driven frame by frame.

use super::*;
use moorline_proto::frame::{Decoder, Flags, Header};
use moorline_proto::message::client::{
    self, Close, Code, GoAway, Kick, Notify, Ping, Platform, Push, Req, Resp, Send, SendAck, Throttle,
    Welcome,
};
use moorline_proto::message::im::{PullRequest, PullResponse, VoidRange};
use moorline_proto::message::{decode, encode};
use prost::Message as _;

/// A core and the gateway's end of its connection.
struct Rig {
    core: Core,
    now: Instant,
    gateway: Decoder,
    dseq: u32,
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl Rig {
    fn with(config: CoreConfig) -> Self {
        Self { core: Core::new(config, 1), now: Instant::from_nanos(7), gateway: Decoder::new(), dseq: 0 }
    }

    fn new() -> Self {
        Self::with(config())
    }

    fn logged_in() -> Self {
        let mut rig = Self::new();
        rig.tick(ms(0));
        rig.log_in(Welcome::default());
        rig
    }

    fn tick(&mut self, by: Duration) {
        self.now += by;
        self.core.handle_timeout(self.now);
    }

    /// Goes to the core's next deadline.
    fn tick_next(&mut self) -> Duration {
        let at = self.core.next_deadline().expect("has a deadline").max(self.now);
        let by = at.saturating_since(self.now);
        self.tick(by);
        by
    }

    fn log_in(&mut self, welcome: Welcome) {
        assert_eq!(self.events().last(), Some(&Event::Connect { alternate: None }));
        self.core.handle_connected(self.now);
        let hello = self.frames();
        assert_eq!((hello.len(), hello[0].header.command), (1, Command::Hello));
        (self.gateway, self.dseq) = (Decoder::new(), 0);
        let resumed = welcome.resumed;
        self.frame(Command::Welcome, &Welcome { version: 1, uplink_window: 64, ..welcome });
        assert_eq!(self.events(), [Event::Notice(Notice::LoggedIn { resumed })]);
    }

    fn relogin(&mut self) {
        self.core.handle_disconnected(self.now);
        assert!(matches!(self.events()[..], [.., Event::Notice(Notice::Disconnected { .. })]));
        self.tick_next();
        self.log_in(Welcome::default());
    }

    fn frame(&mut self, command: Command, body: &impl prost::Message) {
        self.give(&frame_of(command, body));
    }

    fn give(&mut self, frame: &Frame) {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes);
        self.core.handle_bytes(self.now, bytes.freeze());
    }

    fn push(&mut self, seq: u64) {
        self.dseq += 1;
        let frame = frame_of(Command::Push, &message(seq)).with_seq(self.dseq);
        self.give(&frame);
    }

    fn ack(&mut self, cid: u32, code: Code) {
        let seq = cid.into();
        let conversation = format!("own{cid}");
        let ack =
            SendAck { cid, code: code.into(), message_id: seq, conversation, seq, ..SendAck::default() };
        self.frame(Command::SendAck, &ack);
    }

    fn frames(&mut self) -> Vec<Frame> {
        let mut out = BytesMut::new();
        self.core.poll_transmit(&mut out);
        let (mut bytes, mut frames) = (out.freeze(), Vec::new());
        while let Some(frame) = self.gateway.decode(&mut bytes, u32::MAX).expect("lawful") {
            frames.push(frame);
        }
        frames
    }

    /// Sent messages as (cid, is DUP, key, payload).
    fn sends(&mut self) -> Vec<(u32, bool, Bytes, String)> {
        let frames = self.frames().into_iter().filter(|frame| frame.header.command == Command::Send);
        frames
            .map(|Frame { header: Header { seq, flags, .. }, body }| {
                let send: Send = decode(&body).unwrap();
                let text = String::from_utf8(send.payload.to_vec()).unwrap();
                (seq, flags.contains(Flags::DUP), send.key, text)
            })
            .collect()
    }

    fn texts(&mut self) -> Vec<(u32, String)> {
        self.sends().into_iter().map(|(cid, _, _, text)| (cid, text)).collect()
    }

    fn say(&mut self, to: &str, text: &str) -> SendId {
        let payload = Bytes::copy_from_slice(text.as_bytes());
        self.core.send(self.now, Target::user(to), 1, payload).expect("taken").0
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.core.poll_event()).collect()
    }

    /// Delivered places; handles them at once.
    fn read(&mut self) -> Vec<u64> {
        let messages = self.events().into_iter().filter_map(|event| match event {
            Event::Message(message) => Some(message),
            _ => None,
        });
        let messages: Vec<Message> = messages.collect();
        for message in &messages {
            self.core.handled(self.now, message.token);
        }
        messages.into_iter().map(|message| message.seq).collect()
    }

    fn pull(&mut self) -> (u32, PullRequest) {
        let frames = self.frames();
        let req = frames.iter().find(|frame| frame.header.command == Command::Req).expect("asks");
        let req: Req = decode(&req.body).unwrap();
        assert_eq!(req.method, "im.pull");
        (req.id, PullRequest::decode(req.payload).unwrap())
    }

    fn answer(&mut self, id: u32, code: Code, payload: Bytes) {
        self.frame(Command::Resp, &Resp { id, code: code.into(), payload, ..Resp::default() });
    }
}

fn config() -> CoreConfig {
    CoreConfig::new("alice", "phone", Platform::Ios, TokenSource::Fixed("secret".into()))
}

fn message(seq: u64) -> Push {
    Push {
        message_id: 1000 + seq,
        conversation: "group:g".into(),
        seq,
        sender: "bob".into(),
        ..Push::default()
    }
}

fn owned(text: &str) -> String {
    text.to_owned()
}

#[test]
fn hello_says_who_and_the_first_login_needs_no_wait() {
    let mut rig = Rig::new();
    assert_eq!(rig.core.next_deadline(), Some(Instant::ZERO));
    rig.tick(ms(0));
    assert_eq!(rig.events(), [Event::Connect { alternate: None }]);
    rig.core.handle_connected(rig.now);
    let hello: Hello = decode(&rig.frames()[0].body).unwrap();
    assert_eq!((&*hello.uid, &*hello.device, &*hello.token), ("alice", "phone", "secret"));
    assert_eq!((hello.platform, hello.resume), (Platform::Ios.into(), None));
    assert!(!rig.core.is_logged_in());
}

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
    rig.core.handle_disconnected(rig.now);
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
fn attempts_back_off_and_codes_decide_whether_to_come_back() {
    let mut rig = Rig::new();
    let mut waits = Vec::new();
    for _ in 0..12 {
        rig.tick_next();
        rig.core.handle_disconnected(rig.now);
        let Some(Event::Notice(Notice::Disconnected { why: Lost::ConnectFailed, retry_in })) =
            rig.events().pop()
        else {
            panic!()
        };
        waits.push(retry_in);
    }
    assert!(waits[0] <= ms(500) && waits.iter().all(|wait| *wait <= ms(30_000)));
    assert!(waits.iter().any(|wait| *wait > ms(5_000)), "{waits:?}");

    for (code, comes_back) in
        [(3001, true), (3400, true), (3520, false), (3999, false), (4001, true), (4600, false)]
    {
        let mut rig = Rig::new();
        rig.tick(ms(0));
        rig.core.handle_connected(rig.now);
        rig.say("bob", "x");
        rig.events();
        rig.frame(Command::Close, &Close { code, retry_after_ms: 9000, ..Close::default() });
        let events = rig.events();
        assert_eq!(events[0], Event::Hangup);
        let Some(Event::Notice(Notice::Disconnected { retry_in, .. })) = events.last() else {
            assert!(
                !comes_back && matches!(events[1], Event::SendFailed { failure: SendFailure::Closed, .. })
            );
            assert!(
                matches!(events[2], Event::Notice(Notice::Closed(ClosedWhy::Told { .. })))
                    && rig.core.is_closed()
            );
            assert_eq!(rig.core.next_deadline(), None);
            continue;
        };
        assert!(comes_back && (ms(9000)..=ms(9500)).contains(retry_in));
    }
}

#[test]
fn an_expired_token_is_fetched_anew_but_not_for_ever() {
    let mut config = config();
    config.token = TokenSource::Ask;
    let mut rig = Rig::with(config);
    rig.tick(ms(0));
    for turn in 0..4 {
        let why = if turn == 0 { TokenWhy::First } else { TokenWhy::Expired };
        assert_eq!(rig.events().last(), Some(&Event::TokenNeeded(why)));
        rig.core.handle_token(rig.now, Some("t".into()));
        assert_eq!(rig.events(), [Event::Connect { alternate: None }]);
        rig.core.handle_connected(rig.now);
        rig.frame(Command::Close, &Close { code: 3521, ..Close::default() });
        if turn < 3 {
            rig.tick_next();
        }
    }
    assert!(matches!(
        rig.events().last(),
        Some(Event::Notice(Notice::Closed(ClosedWhy::Told { code: 3521, .. })))
    ));
}

#[test]
fn go_away_leads_elsewhere_within_the_window_and_nothing_is_lost() {
    let mut rig = Rig::logged_in();
    rig.frame(Command::GoAway, &GoAway { window_ms: 4000, alternates: vec![owned("other:1")] });
    rig.say("bob", "x");
    assert_eq!(rig.texts(), [(1, owned("x"))], "everything still works");
    assert!(rig.tick_next() <= ms(4000));
    assert_eq!(rig.frames().last().map(|frame| frame.header.command), Some(Command::Close));
    let events = rig.events();
    assert_eq!(events[0], Event::Hangup);
    assert_eq!(events[2], Event::Connect { alternate: Some("other:1".into()) });
    rig.core.handle_connected(rig.now);
    rig.gateway = Decoder::new();
    rig.frames();
    rig.frame(Command::Welcome, &Welcome { version: 1, ..Welcome::default() });
    assert_eq!(rig.texts(), [(1, owned("x"))]);
}

#[test]
fn beats_only_when_idle_and_silence_ends_the_connection() {
    let mut rig = Rig::new();
    rig.tick(ms(0));
    rig.log_in(Welcome { heartbeat_min_s: 30, heartbeat_max_s: 300, ..Welcome::default() });
    assert!(rig.tick_next() <= ms(30_000));
    let ping: Ping = decode(&rig.frames()[0].body).unwrap();
    assert!((30..=300).contains(&ping.next_s));
    rig.frame(Command::Pong, &Ping::default());
    rig.tick(ms(20_000));
    assert!(rig.core.try_app(rig.now, 0x40, Bytes::new()));
    rig.frames();
    assert_eq!(rig.tick_next(), ms(30_000), "the beat moved behind what was sent");
    assert_eq!(rig.frames()[0].header.command, Command::Ping);
    assert_eq!(rig.tick_next(), ms(10_000));
    assert!(matches!(
        rig.events()[..],
        [Event::Hangup, Event::Notice(Notice::Disconnected { why: Lost::HeartbeatTimeout, .. })]
    ));
}

#[test]
fn a_ping_of_the_gateway_is_answered_but_not_with_pong() {
    let mut rig = Rig::logged_in();
    rig.frames();
    for flags in [Flags::default(), Flags::ACK_REQ] {
        rig.give(&Frame::new(Command::Ping, Bytes::new()).with_flags(flags));
        let answers = rig.frames();
        assert_eq!((answers.len(), answers[0].header.command), (1, Command::Ack));
    }
}

#[test]
fn a_kick_is_told_and_obeyed() {
    for may_reconnect in [true, false] {
        let mut rig = Rig::logged_in();
        rig.frame(Command::Kick, &Kick { code: 3530, may_reconnect, reason: owned("elsewhere") });
        let events = rig.events();
        assert!(matches!(events[0], Event::Notice(Notice::Kicked { code: 3530, .. })));
        assert_eq!(events[1], Event::Hangup);
        assert_eq!(matches!(events[2], Event::Notice(Notice::Closed(_))), !may_reconnect);
        assert_eq!(rig.core.is_closed(), !may_reconnect);
    }
}

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
    assert_eq!(rig.read(), []);
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
    rig.frame(Command::Notify, &Notify { conversation: owned("group:g"), latest: 2, first: 0 });
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
    assert_eq!(push(&mut rig, 20, 103), [], "held behind a hole of the old count");
    assert_eq!(push(&mut rig, 8, 102), [], "a repetition");
    assert_eq!(push(&mut rig, 1, 200), [1]);
    assert_eq!(push(&mut rig, 2, 200), [2]);
    assert_eq!(push(&mut rig, 1, 200), [], "a repetition");
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
    rig.core.handle_disconnected(rig.now);
    assert_eq!(rig.events()[0], Event::Response { id: once, result: Err(RequestError::Lost) });
    rig.tick_next();
    rig.log_in(Welcome::default());
    assert_eq!(rig.frames().len(), 2, "asked again after the reconnect");
    rig.answer(always.0, Code::Ok, Bytes::from_static(b"yes"));
    assert_eq!(rig.events(), [Event::Response { id: always, result: Ok(Bytes::from_static(b"yes")) }]);
    rig.tick(ms(3000));
    assert_eq!(rig.events(), [Event::Response { id: late, result: Err(RequestError::TimedOut) }]);
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
fn logout_waits_for_the_gateway_and_ends_everything() {
    let mut rig = Rig::logged_in();
    rig.say("bob", "x");
    rig.frames();
    rig.core.logout(rig.now);
    assert_eq!(rig.frames()[0].header.command, Command::Logout);
    assert_eq!(rig.core.send(rig.now, Target::user("b"), 1, Bytes::new()).unwrap_err(), SendRefused::Closed);
    rig.ack(1, Code::Ok);
    assert_eq!(rig.events(), []);
    rig.frame(Command::Close, &Close { code: 3532, ..Close::default() });
    let events = rig.events();
    assert!(matches!(
        events[..],
        [Event::Hangup, Event::SendFailed { .. }, Event::Notice(Notice::Closed(ClosedWhy::LoggedOut))]
    ));
}

#[test]
fn garbage_in_the_place_of_the_answer_to_logout_ends_everything_too() {
    let mut rig = Rig::logged_in();
    rig.core.logout(rig.now);
    rig.core.handle_bytes(rig.now, Bytes::from_static(b"HTTP/1.1 400"));
    assert!(matches!(rig.events()[..], [Event::Hangup, Event::Notice(Notice::Closed(ClosedWhy::LoggedOut))]));
    assert!(rig.core.is_closed());
}

#[test]
fn garbage_and_lawless_frames_end_the_connection_not_the_core() {
    for bytes in [&b"HTTP/1.1 400"[..], &[0xA1, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
        let mut rig = Rig::logged_in();
        rig.core.handle_bytes(rig.now, Bytes::copy_from_slice(bytes));
        assert!(matches!(
            rig.events()[..],
            [Event::Hangup, Event::Notice(Notice::Disconnected { why: Lost::Protocol(_), .. })]
        ));
        assert!(!rig.core.is_closed());
    }
}

#[test]
fn an_idle_core_is_small() {
    assert!(size_of::<Core>() <= 1024, "{}", size_of::<Core>());
}
