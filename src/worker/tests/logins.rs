//! HELLOs that the backend judges.

use super::*;
use moorline_proto::message::backend::{Auth, AuthResult};

fn world(settings: RouterSettings) -> World {
    World::start_judged(settings, Clock::default(), Judge::Backend)
}

fn hello(user: &User, token: &str) -> Uplink {
    let hello = Hello { uid: user.uid.clone(), device: "d".into(), token: token.into(), ..Hello::default() };
    Uplink::Login { key: user.key, pin: user.pin, hello: Box::new(hello) }
}

fn verdict(world: &World, user: &User) -> Result<Admission, CloseReason> {
    match world.downlink(user.key.shard()) {
        Downlink::Verdict { key, verdict } if key == user.key => verdict,
        other => panic!("no verdict: {other:?}"),
    }
}

fn question(peer: &mut Peer) -> (u64, Auth) {
    let frame = peer.expect(Kind::Auth);
    (frame.correlation, frame.message().expect("decodes"))
}

#[test]
fn the_backend_admits_names_and_refuses() {
    let backend = Backend::bind();
    let world = world(settings(&[&backend]));
    let (mut peer, _) = backend.greet_announced(100);
    let user = User::on_shard(1);
    world.mail(&user, vec![hello(&user, "secret")]);
    let (correlation, auth) = question(&mut peer);
    assert_eq!(
        (auth.token.as_str(), auth.uid.as_str(), auth.device.as_str()),
        ("secret", user.uid.as_str(), "d")
    );
    peer.send(Kind::AuthResult, correlation, 0, &AuthResult { uid: "real".into(), ..Default::default() });
    assert_eq!(verdict(&world, &user).expect("admitted").uid, "real");
    for (result, expected) in [
        (
            AuthResult { code: CloseReason::TokenExpired.code(), ..Default::default() },
            CloseReason::TokenExpired,
        ),
        (AuthResult { code: 77, ..Default::default() }, CloseReason::AuthFailed),
        (AuthResult { uid: "a:b".into(), ..Default::default() }, CloseReason::Internal),
    ] {
        world.mail(&user, vec![hello(&user, "secret")]);
        let (correlation, _) = question(&mut peer);
        peer.send(Kind::AuthResult, correlation, 0, &result);
        assert_eq!(verdict(&world, &user), Err(expected));
    }
    let nameless = User { uid: String::new(), ..user.clone() };
    world.mail(&user, vec![hello(&nameless, "secret")]);
    assert_eq!(
        verdict(&world, &user),
        Err(CloseReason::AuthFailed),
        "the backend is not asked about no name"
    );
    // An answer that nobody asked for ends the link.
    peer.send(Kind::AuthResult, 99, 0, &AuthResult::default());
    assert!(peer.next().is_none());
}

#[test]
fn whoever_nobody_judges_in_time_is_told_to_come_back() {
    let backend = Backend::bind();
    let mut settings = settings(&[&backend]);
    settings.link.up_timeout = Duration::from_millis(50);
    let world = world(settings);
    let user = User::on_shard(0);
    world.mail(&user, vec![hello(&user, "early")]);
    assert_eq!(verdict(&world, &user), Err(CloseReason::Unavailable), "there is no link yet");
    let (mut peer, _) = backend.greet_announced(100);
    world.mail(&user, vec![hello(&user, "t")]);
    let (correlation, _) = question(&mut peer);
    assert_eq!(verdict(&world, &user), Err(CloseReason::Unavailable));
    peer.send(Kind::AuthResult, correlation, 0, &AuthResult::default());
    peer.expect_nothing_before_pong();
    world.await_count(Count::LoginsUnjudged, 2);
}

#[test]
fn a_dead_backend_leaves_its_judging_to_another() {
    let (first, second) = (Backend::bind(), Backend::bind());
    let world = world(settings(&[&first, &second]));
    let (mut one, _) = first.greet_announced(100);
    let user = User::on_shard(2);
    world.mail(&user, vec![hello(&user, "t")]);
    question(&mut one);
    let (mut two, _) = second.greet_announced(100);
    one.cut();
    let asked = std::iter::from_fn(|| two.next()).find(|frame| frame.kind == Kind::Auth).expect("asked");
    two.send(Kind::AuthResult, asked.correlation, 0, &AuthResult::default());
    assert_eq!(verdict(&world, &user).expect("admitted").uid, user.uid);
}
