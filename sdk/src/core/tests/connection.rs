//! The life of a connection: login, backoff, heartbeats, the ends.

use super::*;

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
fn attempts_back_off_and_codes_decide_whether_to_come_back() {
    let mut rig = Rig::new();
    let mut waits = Vec::new();
    for _ in 0..12 {
        rig.tick_next();
        rig.core.handle_disconnected(rig.now, None);
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
        rig.core.handle_token(rig.now, Some("t".into()), None);
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
    let mut rig = Rig::with(CoreConfig { alternates: Arc::new(["other:1".into()]), ..config() });
    rig.tick(ms(0));
    rig.log_in(Welcome::default());
    rig.tick(ms(5000)); // a login that lasted
    rig.frames();
    let alternates = vec![owned("evil:1"), owned("Other:1")];
    rig.frame(Command::GoAway, &GoAway { window_ms: 4000, alternates });
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

#[test]
fn a_gateway_that_is_not_proved_is_told_and_a_logout_stays_one() {
    let mut rig = Rig::new();
    rig.tick(ms(0));
    rig.core.handle_disconnected(rig.now, Some(TlsFault::Expired));
    let told = rig.events().pop();
    assert!(
        matches!(&told, Some(Event::Notice(Notice::Disconnected { why: Lost::Tls(TlsFault::Expired), .. }))),
        "{told:?}"
    );
    rig.tick_next();
    rig.log_in(Welcome::default());
    rig.core.logout(rig.now);
    rig.core.handle_disconnected(rig.now, Some(TlsFault::CutOff));
    assert_eq!(rig.events().pop(), Some(Event::Notice(Notice::Closed(ClosedWhy::LoggedOut))));
}
