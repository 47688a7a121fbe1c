//! Sessions that outlive their connections: waiting, coming back, and who may not.

use super::*;
use moorline_proto::keepalive::server_patience;
use moorline_proto::message::client::Resume;

const KEEP: Duration = Duration::from_secs(120);

/// A client as it comes back: what it knows of its session.
struct Claim {
    resume: Resume,
    key: ConnKey,
}

fn world(change: impl FnOnce(&mut Settings)) -> World {
    let mut settings = Settings { session_keep: KEEP, kept_max: 100, ..settings() };
    change(&mut settings);
    let now = Instant::from_nanos(1_000_000_000);
    World { shard: Shard::new(settings, now), now, outputs: Outputs::new(1) }
}

fn welcome_of(frame: &Frame) -> Welcome {
    assert_eq!(frame.header.command, Command::Welcome);
    decode(&frame.body).expect("a WELCOME")
}

impl World {
    /// HELLO and its verdict on a new connection: where its socket belongs, and all that it hears.
    fn greet(&mut self, uid: &str, device: &str, resume: Option<Resume>) -> (ConnKey, Vec<Frame>) {
        self.greet_with(uid, device, resume, (0, 0))
    }

    /// Likewise, with the issue and the expiry of the token, in Unix seconds.
    fn greet_with(
        &mut self,
        uid: &str,
        device: &str,
        resume: Option<Resume>,
        (issued_s, expires_s): (u64, u64),
    ) -> (ConnKey, Vec<Frame>) {
        let key = self.accept();
        let (uid, device) = (uid.to_owned(), device.to_owned());
        let hello = Hello {
            version_min: 1,
            version_max: 1,
            uid: uid.clone(),
            device: device.clone(),
            resume: resume.clone(),
            ..Hello::default()
        };
        self.frame(key, &frame_of(Command::Hello, &hello));
        let resume = resume.map(Box::new);
        let admission = Admission { uid, device, issued_s, expires_s, resume, ..Admission::default() };
        self.downlink(Downlink::Verdict { key, verdict: Ok(admission) });
        let client = self.outputs.iter().find_map(|output| match output {
            Output::Reattach { from, to } if *from == key => Some(*to),
            _ => None,
        });
        let client = client.unwrap_or(key);
        let frames = self.written(client);
        (client, frames)
    }

    fn unix_s(&self) -> u64 {
        self.shard.clients.ledger.settings.unix_millis(self.now) / 1_000
    }

    fn login_kept(&mut self, uid: &str) -> Claim {
        let (key, frames) = self.greet(uid, "phone", None);
        let Welcome { session, epoch, ticket, .. } = welcome_of(&frames[0]);
        self.uplinks();
        Claim { resume: Resume { session, epoch, ticket, ..Resume::default() }, key }
    }

    fn lose(&mut self, key: ConnKey) {
        self.shard.handle_peer_closed(self.now, key, &mut self.outputs);
        self.shard.check();
        assert_eq!(self.closes().last(), Some(&key));
    }
}

#[test]
fn a_lost_connection_leaves_its_session_and_the_client_goes_on() {
    let mut world = world(|_| ());
    let mut claim = world.login_kept("alice");
    world.frame(claim.key, &send(1));
    world.push(claim.key, 1, b"one");
    world.push(claim.key, 2, b"two");
    assert_eq!(world.written(claim.key).len(), 2);
    world.uplinks();
    world.lose(claim.key);
    assert!(world.uplinks().is_empty(), "the backend sees nothing of it");
    assert_eq!((world.shard.counters()[Count::Detached], world.shard.counters()[Count::Connections]), (1, 0));
    // What happens meanwhile waits.
    world.push(claim.key, 3, b"three");
    world.downlink(answer(claim.key, 1, Code::Ok, Rank::First));
    assert!(world.written(claim.key).is_empty());
    world.uplinks();
    world.pass(KEEP / 2);
    // It had handled the first push, and the ack was lost.
    claim.resume.last_seq = 1;
    let (client, frames) = world.greet("alice", "phone", Some(claim.resume.clone()));
    assert_eq!(client, claim.key, "the session keeps its name");
    let welcome = welcome_of(&frames[0]);
    assert!(welcome.resumed && welcome.session == claim.resume.session && welcome.replay == 1);
    assert_eq!(welcome.cid_answered, 1);
    let pushes: Vec<_> = frames[1..].iter().map(|it| (it.header.seq, &it.body[..])).collect();
    assert_eq!(pushes, [(2, &b"two"[..]), (3, b"three")]);
    let is_dup = |frame: &Frame| frame.header.flags.contains(Flags::DUP);
    assert!(is_dup(&frames[1]) && !is_dup(&frames[2]));
    // The answer that it missed comes from memory, and the next cid is lawful.
    world.uplinks();
    world.frame(client, &send(1).with_flags(Flags::DUP));
    let answer: SendAck = decode(&world.written(client)[0].body).expect("a SENDACK");
    assert_eq!((answer.cid, answer.code()), (1, Code::Ok));
    world.frame(client, &send(2));
    assert_eq!(cids(&world.uplinks()), [(2, false)]);
    assert_eq!(world.shard.counters()[Count::Resumes], 1);
}

#[test]
fn a_frame_that_ends_its_client_each_time_is_not_sent_again_for_ever() {
    let mut world = world(|_| ());
    let mut claim = world.login_kept("alice");
    world.push(claim.key, 1, b"poison");
    let resumed = (0..20).take_while(|_| {
        world.lose(claim.key);
        let (_, frames) = world.greet("alice", "phone", Some(claim.resume.clone()));
        let welcome = welcome_of(&frames[0]);
        claim.resume.ticket = welcome.ticket;
        assert_eq!(welcome.resumed, frames.len() == 2, "it comes with the old session only");
        welcome.resumed
    });
    assert_eq!(resumed.count(), 8);
    let outcomes = world.outcomes();
    assert!(outcomes.iter().all(|(_, outcome)| *outcome != Outcome::Acked), "{outcomes:?}");
    assert_eq!(world.shard.counters()[Count::ResumesRefused], 1);
}

type Spoil = fn(&mut Resume);

#[test]
fn a_ticket_is_good_once_for_its_own_session_and_in_time() {
    let spoil: [(&str, Spoil); 7] = [
        ("forged", |resume| {
            let mut ticket = resume.ticket.to_vec();
            ticket[3] ^= 1;
            resume.ticket = ticket.into();
        }),
        ("no ticket", |resume| resume.ticket = Bytes::new()),
        ("another session", |resume| resume.session = vec![0; 16].into()),
        ("another epoch", |resume| resume.epoch += 1),
        ("acks what was never sent", |resume| resume.last_seq = 9),
        ("lost what it had acknowledged", |resume| resume.last_seq = 0),
        ("the last seq of all", |resume| resume.last_seq = u32::MAX),
    ];
    for (why, spoil) in spoil {
        let mut world = world(|_| ());
        let mut claim = world.login_kept("alice");
        world.push(claim.key, 1, b"one");
        world.push(claim.key, 2, b"two");
        world.written(claim.key);
        world.frame(claim.key, &Frame::new(Command::Ack, Bytes::new()).with_ack(1));
        world.lose(claim.key);
        world.uplinks();
        claim.resume.last_seq = 1;
        spoil(&mut claim.resume);
        let (client, frames) = world.greet("alice", "phone", Some(claim.resume));
        let welcome = welcome_of(&frames[0]);
        assert!(!welcome.resumed && client != claim.key, "{why}");
        assert_eq!(world.outcomes(), [(2, Outcome::Offline)], "{why}: the backend gets it back");
    }
}

#[test]
fn a_ticket_of_another_user_or_an_older_one_is_worth_nothing() {
    let mut world = world(|_| ());
    let claim = world.login_kept("alice");
    let (_, frames) = world.greet("mallory", "phone", Some(claim.resume.clone()));
    assert!(!welcome_of(&frames[0]).resumed);
    world.lose(claim.key);
    let (client, frames) = world.greet("alice", "phone", Some(claim.resume.clone()));
    let fresh = welcome_of(&frames[0]);
    assert!(fresh.resumed && fresh.ticket != claim.resume.ticket);
    world.lose(client);
    // That WELCOME may have been lost, so the ticket before it is good once more, and not a third time.
    let (client, frames) = world.greet("alice", "phone", Some(claim.resume.clone()));
    assert!(welcome_of(&frames[0]).resumed);
    world.lose(client);
    let (other, frames) = world.greet("alice", "phone", Some(claim.resume));
    assert!(!welcome_of(&frames[0]).resumed && other != client, "that ticket was used");
    assert_eq!(world.shard.counters()[Count::ResumesRefused], 2);
}

#[test]
fn an_expired_ticket_is_worth_nothing() {
    let mut world = world(|settings| settings.ticket_ttl = Duration::from_secs(60));
    let claim = world.login_kept("alice");
    world.pass(Duration::from_secs(61));
    world.lose(claim.key);
    let (_, frames) = world.greet("alice", "phone", Some(claim.resume));
    assert!(!welcome_of(&frames[0]).resumed);
}

#[test]
fn a_session_that_nobody_comes_back_to_ends_and_gives_everything_back() {
    let mut world = world(|_| ());
    let claim = world.login_kept("alice");
    world.push(claim.key, 1, b"one");
    world.lose(claim.key);
    world.push(claim.key, 2, b"two");
    world.uplinks();
    world.pass(KEEP * 9 / 10);
    assert_eq!(world.shard.sessions(), 1);
    world.pass(KEEP / 5);
    assert_eq!((world.shard.sessions(), world.shard.clients()), (0, 0));
    let uplinks = world.uplinks();
    let is_offline = |it: &&Uplink| matches!(it, Uplink::Pushed { outcome: Outcome::Offline, .. });
    assert_eq!(uplinks.iter().filter(is_offline).count(), 2);
    assert!(matches!(uplinks.last(), Some(Uplink::ConnDown { code: 0, .. })));
    let (_, frames) = world.greet("alice", "phone", Some(claim.resume));
    assert!(!welcome_of(&frames[0]).resumed);
}

#[test]
fn a_half_dead_connection_is_taken_over() {
    let mut world = world(|_| ());
    let claim = world.login_kept("alice");
    let (client, frames) = world.greet("alice", "phone", Some(claim.resume));
    assert!(client == claim.key && welcome_of(&frames[0]).resumed);
    let operations = world.operations();
    let at = operations.iter().position(|it| matches!(it, Output::FinalBytes(..))).expect("a last frame");
    let [
        Output::FinalBytes(key, last),
        Output::Close(closed),
        Output::Reattach { to, .. },
        Output::Write(written),
    ] = &operations[at..]
    else {
        panic!("the old socket hears its end and closes before the new one is attached: {operations:?}")
    };
    assert_eq!([key, closed, to, written], [&client; 4]);
    let mut last = Bytes::copy_from_slice(last);
    let frame = Decoder::new().decode(&mut last, u32::MAX).expect("a frame").expect("whole");
    let kick: Kick = decode(&frame.body).expect("a KICK");
    assert_eq!((kick.code, kick.may_reconnect), (CloseReason::Replaced.code(), false));
    assert!(world.uplinks().iter().all(|it| !matches!(it, Uplink::ConnDown { .. } | Uplink::ConnUp { .. })));
    assert_eq!(world.shard.counters()[Count::Takeovers], 1);
}

#[test]
fn silence_ends_the_connection_and_not_the_session() {
    let mut world = world(|_| ());
    let claim = world.login_kept("alice");
    world.frame(claim.key, &frame_of(Command::Ping, &Ping { next_s: 30 }));
    world.written(claim.key);
    world.pass(Duration::from_secs(46));
    let operations = world.operations();
    let [.., Output::FinalBytes(_, last), Output::Close(closed)] = &operations[..] else {
        panic!("{operations:?}")
    };
    let mut last = Bytes::copy_from_slice(last);
    let frame = Decoder::new().decode(&mut last, u32::MAX).expect("a frame").expect("whole");
    let close: Close = decode(&frame.body).expect("a CLOSE");
    assert_eq!(close.code, CloseReason::HeartbeatTimeout.code());
    assert_eq!((*closed, world.shard.sessions()), (claim.key, 1));
    let (client, frames) = world.greet("alice", "phone", Some(claim.resume));
    assert!(client == claim.key && welcome_of(&frames[0]).resumed);
}

#[test]
fn whoever_says_goodbye_or_is_sent_away_has_no_session_left() {
    let close = frame_of(Command::Close, &Close::default());
    for last in [close, Frame::new(Command::Logout, Bytes::new()), Frame::new(Command::Push, Bytes::new())] {
        let mut world = world(|_| ());
        let claim = world.login_kept("alice");
        world.frame(claim.key, &last);
        assert_eq!(world.shard.sessions(), 0, "{:?}", last.header.command);
    }
}

#[test]
fn a_kick_and_a_newer_login_end_a_session_that_waits() {
    let mut world = world(|_| ());
    let claim = world.login_kept("alice");
    world.lose(claim.key);
    world.downlink(Downlink::Kick {
        target: Target::Connection(claim.key),
        login_version: 0,
        code: 3531,
        may_reconnect: false,
        reason: String::new(),
    });
    assert_eq!((world.shard.sessions(), world.shard.clients()), (0, 0));
    let claim = world.login_kept("alice");
    world.lose(claim.key);
    world.uplinks();
    let (client, _) = world.greet("alice", "phone", None);
    assert!(client != claim.key && world.shard.sessions() == 1);
    let code = |it: Uplink| if let Uplink::ConnDown { code, .. } = it { Some(code) } else { None };
    let codes: Vec<_> = world.uplinks().into_iter().filter_map(code).collect();
    assert_eq!(codes, [CloseReason::Replaced.code()]);
}

#[test]
fn of_too_many_waiting_sessions_the_oldest_ends() {
    let mut world = world(|settings| settings.kept_max = 2);
    let claims: Vec<_> = ["a", "b", "c"].map(|uid| world.login_kept(uid)).into();
    for claim in &claims {
        world.pass(Duration::from_secs(1));
        world.shard.handle_peer_closed(world.now, claim.key, &mut world.outputs);
    }
    world.shard.check();
    assert_eq!((world.shard.sessions(), world.shard.counters()[Count::DetachedOverMax]), (2, 1));
    let (_, frames) = world.greet("a", "phone", Some(claims[0].resume.clone()));
    assert!(!welcome_of(&frames[0]).resumed);
    let (_, frames) = world.greet("c", "phone", Some(claims[2].resume.clone()));
    assert!(welcome_of(&frames[0]).resumed);
}

#[test]
fn a_drain_ends_what_waits_and_keeps_nobody() {
    let mut world = world(|_| ());
    let (waiting, there) = (world.login_kept("a"), world.login_kept("b"));
    world.lose(waiting.key);
    world.shard.handle_drain(world.now, &DrainOrder::within(Duration::from_secs(5)), &mut world.outputs);
    world.shard.check();
    assert_eq!(world.shard.sessions(), 1);
    world.shard.handle_peer_closed(world.now, there.key, &mut world.outputs);
    assert_eq!(world.shard.clients(), 0);
}

#[test]
fn one_that_makes_room_for_another_may_have_been_due_itself() {
    let patience = server_patience(Duration::from_secs(u64::from(settings().heartbeat_s.1)));
    let mut made_room = 0;
    // One has waited long enough and the other was silent for too long, in either order, in one look.
    let before = patience.saturating_sub(KEEP);
    for seconds in 1..20 {
        let mut world = world(|settings| settings.kept_max = 1);
        let (silent, waiting) = (world.login_kept("a"), world.login_kept("b"));
        world.pass(before.saturating_sub(Duration::from_secs(10)) + Duration::from_secs(seconds));
        world.lose(waiting.key);
        world.pass(KEEP + Duration::from_secs(20));
        made_room += world.shard.counters()[Count::DetachedOverMax];
        assert!(world.shard.clients.connection(waiting.key).is_none());
        world.pass(KEEP + Duration::from_secs(20));
        assert!(world.shard.clients.connection(silent.key).is_none());
    }
    assert!(made_room > 0, "or it is not about what it says");
}

#[test]
fn a_session_ends_when_its_newest_token_expired_too_long_ago() {
    let grace = Duration::from_secs(60);
    let mut world = world(|settings| settings.session_max = grace);
    let now_s = world.unix_s();
    let (key, frames) = world.greet_with("alice", "phone", None, (5, now_s + 10));
    let Welcome { session, epoch, ticket, .. } = welcome_of(&frames[0]);
    let login = world.uplinks().into_iter().find_map(|uplink| match uplink {
        Uplink::ConnUp { login, .. } => Some(login.issued_at),
        _ => None,
    });
    assert_eq!(login, Some(5), "the backend learns when the token was issued");
    world.pass(Duration::from_secs(65));
    assert_eq!(world.shard.sessions(), 1);
    // A newer token prolongs the session.
    let resume = Resume { session, epoch, ticket, ..Resume::default() };
    let (resumed, frames) = world.greet_with("alice", "phone", Some(resume), (70, now_s + 75));
    let welcome = welcome_of(&frames[0]);
    assert!(resumed == key && welcome.resumed);
    world.pass(Duration::from_secs(69));
    assert_eq!(world.shard.sessions(), 1);
    world.pass(Duration::from_secs(2));
    let frames = world.written(key);
    let close: Close = decode(&frames.last().expect("a frame").body).expect("a CLOSE");
    assert_eq!((close.code, world.shard.sessions()), (CloseReason::TokenExpired.code(), 0));
    assert_eq!(world.shard.counters()[Count::SessionsExpired], 1);
}

#[test]
fn a_detached_session_ends_with_its_token_and_an_older_token_resumes_nothing() {
    let mut world = world(|settings| settings.session_max = Duration::from_secs(1));
    let now_s = world.unix_s();
    let (key, frames) = world.greet_with("alice", "phone", None, (100, now_s + 60));
    let Welcome { session, epoch, ticket, .. } = welcome_of(&frames[0]);
    world.uplinks();
    world.lose(key);
    let resume = Resume { session, epoch, ticket, ..Resume::default() };
    let (_, frames) = world.greet_with("alice", "phone", Some(resume), (99, now_s + 60));
    assert!(!welcome_of(&frames[0]).resumed, "the backend would judge by the newer one");
    let (key, _) = world.greet_with("bob", "phone", None, (100, now_s + 60));
    world.lose(key);
    world.pass(Duration::from_secs(62));
    assert_eq!((world.shard.sessions(), world.shard.counters()[Count::SessionsExpired]), (0, 2));
}

#[test]
fn sessions_outlive_their_tokens_unless_the_settings_say_otherwise() {
    let mut world = world(|_| ());
    let now_s = world.unix_s();
    let (key, _) = world.greet_with("alice", "phone", None, (1, now_s + 1));
    for _ in 0..10 {
        world.pass(Duration::from_secs(100));
        world.frame(key, &frame_of(Command::Ping, &Ping { next_s: 300 }));
    }
    assert_eq!(world.shard.sessions(), 1);
    let mut changed = world.shard.clients.ledger.settings.clone();
    changed.session_max = Duration::from_secs(1);
    reload(&mut world.shard, &changed);
    world.pass(Duration::from_secs(460));
    assert_eq!(world.shard.sessions(), 0, "a reload holds for sessions that stand");
}
