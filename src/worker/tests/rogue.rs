//! Backends that break the rules: their link is closed, the worker and its other links go on.

use super::*;
use moorline_proto::random::Random;

fn frame(kind: Kind, correlation: u64, message: &impl Message) -> Vec<u8> {
    let mut out = BytesMut::new();
    link::encode(&mut out, kind, correlation, 0, message);
    out.to_vec()
}

fn raw(kind: u8, version: u8, len: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = len.to_be_bytes().to_vec();
    bytes.extend([version, kind, 0, 0]);
    bytes.extend([0; 12]);
    bytes.extend(body);
    bytes
}

/// A greeted link gets `bytes` and must be closed; the next connection comes by itself.
fn assert_closes(backend: &Backend, bytes: &[u8]) {
    let mut peer = backend.greet(0);
    peer.stream.write_all(bytes).expect("written");
    while peer.next().is_some() {}
}

#[test]
fn whatever_must_not_be_said_closes_the_link_and_no_other() {
    let (bad, good) = (Backend::bind(), Backend::bind());
    let world = World::start(settings(&[&bad, &good]));
    let mut healthy = good.greet(0);
    let hello = LinkHello { version_min: 1, version_max: 1, ..Default::default() };
    let send = backend::Push { command: 0x10, handles: vec![1], ..Default::default() };
    let cases: Vec<Vec<u8>> = vec![
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        raw(0x14, 2, 0, &[]),
        raw(0x77, 1, 0, &[]),
        raw(0x08, 1, link::BODY_BYTES_MAX + 1, &[]),
        raw(0x09, 1, 3, &[0xFF; 3]),
        frame(Kind::Hello, 0, &hello),
        frame(Kind::Up, 0, &backend::Up::default()),
        frame(Kind::ConnUp, 0, &ConnUp::default()),
        frame(Kind::UpResult, 123_456, &UpResult::default()),
        frame(Kind::UpResult, 0, &UpResult::default()),
        frame(Kind::Push, 0, &send),
        frame(Kind::Kick, 0, &backend::Kick::default()),
    ];
    for case in &cases {
        assert_closes(&bad, case);
    }
    world.await_count(Count::LinkErrors, cases.len() as u64);
    healthy.send(Kind::Ping, 7, 0, &());
    while healthy.next().expect("the other link lives").correlation != 7 {}
}

#[test]
fn random_bytes_never_stop_the_worker() {
    let (backend, user) = (Backend::bind(), User::new(0));
    let world = World::start(settings(&[&backend]));
    let mut random = Random::new(42);
    for _ in 0..60 {
        let mut bytes: Vec<u8> = (0..random.below(300)).map(|_| random.next_u64().to_le_bytes()[0]).collect();
        if random.one_in(2) {
            // Past the framing: a right header before a random body.
            let kind = Kind::ALL[usize::try_from(random.below(Kind::ALL.len() as u64)).expect("small")];
            bytes = raw(kind.byte(), 1, u32::try_from(bytes.len()).expect("small"), &bytes);
        }
        let mut peer = backend.greet(0);
        peer.stream.write_all(&bytes).ok();
        peer.stream.shutdown(Shutdown::Write).ok();
        while peer.next().is_some() {}
    }
    let mut peer = backend.greet(0);
    world.mail(&user, vec![user.send(1)]);
    while peer.next().expect("open").kind != Kind::Up {}
}

#[test]
fn a_first_frame_other_than_a_hello_of_our_version_closes() {
    let backend = Backend::bind();
    let world = World::start(settings(&[&backend]));
    let newer = LinkHello { version_min: 2, version_max: 3, ..Default::default() };
    for first in [frame(Kind::Ping, 0, &()), frame(Kind::Hello, 0, &newer)] {
        let mut peer = backend.accept();
        peer.expect(Kind::Hello);
        peer.stream.write_all(&first).expect("written");
        assert!(peer.next().is_none());
    }
    world.await_count(Count::LinkErrors, 2);
    assert_eq!(world.counter_set.get(Count::LinksUp as usize), 0);
}

#[test]
fn a_backend_that_never_greets_or_falls_silent_is_left() {
    let clock = Clock::default();
    let backend = Backend::bind();
    let mut settings = settings(&[&backend]);
    (settings.link.times.connect_timeout, settings.link.times.hello_timeout) = (PATIENCE, PATIENCE);
    settings.link.times.ping_interval = PATIENCE;
    settings.link.times.silence_max = 2 * PATIENCE;
    let world = World::start_by(settings, clock.clone());
    let pass = |secs| {
        clock.go_on_from(clock.now() + Duration::from_secs(secs));
        world.mail.wake().expect("eventfd");
    };
    let mut mute = backend.accept();
    mute.expect(Kind::Hello);
    pass(21);
    assert!(mute.next().is_none());
    let mut silent = backend.greet_by_hand(0);
    silent.announced();
    pass(21);
    silent.expect(Kind::Ping);
    pass(21);
    assert!(silent.next().is_none());
    backend.greet_announced(0);
}

#[test]
fn a_backend_that_does_not_read_is_left_before_its_output_grows() {
    let (backend, user) = (Backend::bind(), User::new(0));
    let mut settings = settings(&[&backend]);
    settings.link.output_max = 64 << 10;
    let world = World::start(settings);
    let mut peer = backend.greet_by_hand(0);
    peer.announced();
    let key = ConnKey::new(user.key.shard(), 0, 0);
    let mut mails = 0;
    // Login changes pass the limit for UPs; twice of it closes the link.
    while world.counter_set.get(Count::LinkFailures as usize) == 0 {
        let down = || Uplink::ConnDown { key, pin: user.pin, code: 3004 };
        let items = (0..1_000).map(|_| down()).collect();
        mails += usize::from(world.mail.try_send(UplinkBatch { from: key.shard(), items }).is_ok());
        assert!(mails < 5_000, "100 MB went to a backend that does not read");
    }
    while peer.next().is_some() {}
    // What still waits must not be poured on the next link: without one, it is skipped.
    while !world.mail.is_empty() {
        std::thread::yield_now();
    }
    backend.greet_announced(0);
}
