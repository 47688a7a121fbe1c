//! Links that die, return and drain: announcements, re-sending, order.

use super::*;
use moorline_proto::random::Random;
use std::collections::{BTreeMap, BTreeSet};

fn seqs(peer: &mut Peer, count: usize) -> Vec<(u32, bool)> {
    (0..count).map(|_| peer.up().1).map(|up| (up.seq, up.dup)).collect()
}

#[test]
fn what_came_before_the_first_link_follows_its_announcement() {
    let (backend, early, late) = (Backend::bind(), User::new(0), User::new(1));
    let world = World::start(settings(&[&backend]));
    world.login(&early);
    world.mail(&early, vec![early.send(1), early.send(2)]);
    let shut = Arc::clone(&world.logins);
    let guard = shut.lock().expect("unpoisoned");
    let mut peer = backend.greet(0);
    world.await_count(Count::LinksUp, 1);
    // The shards do not answer yet; what comes now waits behind them, a login too.
    world.mail(&late, vec![Uplink::ConnUp { pin: late.pin, login: Box::new(late.login()) }, late.send(1)]);
    peer.expect_nothing_before_pong();
    drop(guard);
    assert_eq!(peer.announced(), [early.login()]);
    let mut got = BTreeMap::<u64, Vec<Kind>>::new();
    for _ in 0..4 {
        let frame = peer.next().expect("a frame");
        let handle = match frame.kind {
            Kind::ConnUp => frame.message::<ConnUp>().expect("decodes").handle,
            Kind::Up => frame.message::<backend::Up>().expect("decodes").handle,
            kind => panic!("{kind:?}"),
        };
        got.entry(handle).or_default().push(frame.kind);
    }
    assert_eq!(got[&early.key.as_u64()], [Kind::Up, Kind::Up]);
    assert_eq!(got[&late.key.as_u64()], [Kind::ConnUp, Kind::Up]);
}

#[test]
fn a_cut_link_sends_its_unanswered_frames_again_in_order() {
    let (backend, user) = (Backend::bind(), User::new(0));
    let world = World::start(settings(&[&backend]));
    let (mut peer, _) = backend.greet_announced(4);
    world.login(&user);
    peer.expect(Kind::ConnUp);
    world.mail(&user, (1..=6).map(|cid| user.send(cid)).collect());
    let correlations: Vec<_> = (0..4).map(|_| peer.up().0).collect();
    peer.answer(correlations[1], 2);
    assert_eq!(peer.up().1.seq, 5, "the answer's credit");
    peer.cut();
    assert_eq!(world.send_ack(&user).cid, 2);
    world.await_count(Count::Reroutes, 4);
    world.mail(&user, vec![user.send(7)]);
    let (mut peer, announced) = backend.greet_announced(0);
    assert_eq!(announced, [user.login()]);
    let wanted = [(1, true), (3, true), (4, true), (5, true), (6, false), (7, false)];
    assert_eq!(seqs(&mut peer, 6), wanted);
}

#[test]
fn a_dead_endpoint_hands_its_users_to_the_other() {
    let backends = [Backend::bind(), Backend::bind()];
    let world = World::start(settings(&[&backends[0], &backends[1]]));
    let users: Vec<User> = (0..40).map(User::new).collect();
    let (mut a, _) = backends[0].greet_announced(0);
    let mut b = backends[1].greet(0);
    // Half the slots move to the second link; both are told who is there.
    assert!(b.announced().is_empty());
    for user in &users {
        world.login(user);
        world.mail(user, vec![user.send(1), user.send(2)]);
    }
    let mut on_a = BTreeSet::new();
    world.await_count(Count::UpsPending, 80);
    a.send(Kind::Ping, 0, 0, &());
    while let Some(frame) = a.next().filter(|frame| frame.kind != Kind::Pong) {
        if frame.kind == Kind::ConnUp {
            on_a.insert(frame.message::<ConnUp>().expect("decodes").handle);
        }
    }
    assert!((5..35).contains(&on_a.len()), "{} of 40 on the first link", on_a.len());
    let [first, second] = backends;
    drop(first); // nobody listens there any more
    a.cut();
    let mut b_frames = Vec::new();
    while b_frames.len() < 40 - on_a.len() + 2 * (40 - on_a.len()) {
        b_frames.push(b.next().expect("its own users' frames").kind);
    }
    assert!(!b_frames.contains(&Kind::Announce));
    let moved: BTreeSet<u64> = b.announced().into_iter().map(|login| login.handle).collect();
    assert_eq!(moved, on_a);
    let mut order = BTreeMap::<u64, Vec<u32>>::new();
    for _ in 0..2 * on_a.len() {
        let (_, up) = b.up();
        assert!(up.dup && on_a.contains(&up.handle));
        order.entry(up.handle).or_default().push(up.seq);
    }
    assert!(order.values().all(|seqs| seqs == &[1, 2]), "{order:?}");
    drop(second);
}

#[test]
fn a_link_that_returns_gets_idle_slots_back_and_a_draining_one_gives_them_up() {
    let backends = [Backend::bind(), Backend::bind()];
    let world = World::start(settings(&[&backends[0], &backends[1]]));
    let users: Vec<User> = (0..40).map(User::new).collect();
    world.logins.lock().expect("unpoisoned").extend(users.iter().map(|user| (user.pin, user.login())));
    let (mut a, first) = backends[0].greet_announced(0);
    assert_eq!(first.len(), 40);
    let (b, moved) = backends[1].greet_announced(0);
    assert!((5..35).contains(&moved.len()));
    b.cut();
    let back = a.announced();
    assert_eq!(back.len(), moved.len());
    let (mut b, again) = backends[1].greet_announced(0);
    assert!((5..35).contains(&again.len()));
    a.send(Kind::Drain, 0, 0, &backend::Drain::default());
    assert_eq!(b.announced().len(), 40 - again.len());
    let user = &users[0];
    world.mail(user, vec![user.send(1)]);
    assert_eq!(b.up().1.handle, user.key.as_u64());
}

#[test]
fn a_busy_slot_stays_where_its_answers_are_due() {
    let backends = [Backend::bind(), Backend::bind()];
    let world = World::start(settings(&[&backends[0], &backends[1]]));
    let user = User::new(0);
    let (mut a, _) = backends[0].greet_announced(0);
    world.mail(&user, vec![user.send(1)]);
    let (first, _) = a.up();
    let (mut b, _) = backends[1].greet_announced(0);
    a.send(Kind::Drain, 0, 0, &backend::Drain::default());
    a.expect_nothing_before_pong();
    world.mail(&user, vec![user.send(2)]);
    let (second, up) = a.up();
    assert_eq!((up.seq, up.dup), (2, false));
    a.answer(second, 2);
    a.answer(first, 1);
    assert_eq!((world.send_ack(&user).cid, world.send_ack(&user).cid), (2, 1));
    world.mail(&user, vec![user.send(3)]);
    let up = std::iter::from_fn(|| b.next()).find(|frame| frame.kind == Kind::Up).expect("moved when idle");
    assert_eq!(up.message::<backend::Up>().expect("decodes").seq, 3);
}

#[test]
fn too_many_waiting_login_changes_become_one_announcement() {
    let (backend, user) = (Backend::bind(), User::new(0));
    let mut settings = settings(&[&backend]);
    settings.parking.changes = 2;
    let world = World::start(settings);
    let (mut peer, _) = backend.greet_announced(1);
    world.login(&user);
    peer.expect(Kind::ConnUp);
    world.mail(&user, vec![user.send(1), user.send(2)]);
    let (first, _) = peer.up();
    let up = || Uplink::ConnUp { pin: user.pin, login: Box::new(user.login()) };
    world.mail(&user, vec![up(), up(), up()]);
    assert_eq!(peer.announced(), [user.login()]);
    peer.answer(first, 1);
    assert_eq!(peer.up().1.seq, 2, "and what waited goes on");
    peer.expect_nothing_before_pong();
}

/// The login change waited behind a frame when the link died, and the end came while there was no link.
#[test]
fn who_left_between_two_links_is_not_said_to_be_there() {
    let (backend, user) = (Backend::bind(), User::new(0));
    let world = World::start(settings(&[&backend]));
    let (mut peer, _) = backend.greet_announced(1);
    world.login(&user);
    peer.expect(Kind::ConnUp);
    let guest = ConnUp { handle: user.key.as_u64() + 1, ..user.login() };
    let up = Uplink::ConnUp { pin: user.pin, login: Box::new(guest.clone()) };
    world.mail(&user, vec![user.send(1), user.send(2), up]);
    peer.up();
    peer.cut();
    world.await_count(Count::LinkFailures, 1);
    let key = ConnKey::from_u64(guest.handle);
    world.mail(&user, vec![Uplink::ConnDown { key, pin: user.pin, code: 0 }]);
    world.await_count(Count::ChangesSkipped, 1);
    let (mut peer, logins) = backend.greet_announced(8);
    assert_eq!(logins, [user.login()]);
    assert_eq!(seqs(&mut peer, 2), [(1, true), (2, false)]);
    // Another link, which lives, may have spoken for the session: its end is told in any case.
    let down: backend::ConnDown = peer.expect(Kind::ConnDown).message().expect("decodes");
    assert_eq!(down.handle, guest.handle);
    peer.expect_nothing_before_pong();
}

#[test]
fn an_end_is_told_however_many_logins_wait() {
    let (backend, user) = (Backend::bind(), User::new(0));
    let mut settings = settings(&[&backend]);
    settings.parking.changes = 2;
    let world = World::start(settings);
    let (mut peer, _) = backend.greet_announced(1);
    world.login(&user);
    peer.expect(Kind::ConnUp);
    world.mail(&user, vec![user.send(1), user.send(2)]);
    let (first, _) = peer.up();
    let (key, pin) = (user.key, user.pin);
    let up = || Uplink::ConnUp { pin, login: Box::new(user.login()) };
    world.logins.lock().expect("unpoisoned").clear();
    world.mail(&user, vec![Uplink::ConnDown { key, pin, code: 7 }, up(), up()]);
    assert_eq!(peer.announced(), []);
    peer.answer(first, 1);
    assert_eq!(peer.up().1.seq, 2);
    let down: backend::ConnDown = peer.expect(Kind::ConnDown).message().expect("decodes");
    assert_eq!((down.handle, down.code), (key.as_u64(), 7));
    // Ends alone that do not fit: the link is given up, and its backend forgets them with it.
    let down = || Uplink::ConnDown { key, pin, code: 7 };
    world.mail(&user, vec![user.send(3), down(), down(), down()]);
    assert_eq!(peer.next(), None);
}

/// A backend that reads a random number of frames, answers a random part and dies, again and again:
/// every frame is answered once, each link sees a user's frames in order, and none overtakes an
/// unanswered one.
#[test]
fn order_per_user_holds_across_any_number_of_cuts() {
    const CIDS: u32 = 60;
    for seed in 0..8 {
        let backend = Backend::bind();
        let mut settings = settings(&[&backend]);
        settings.link.reconnect_max = Duration::from_millis(2);
        let world = World::start(settings);
        let users: Vec<User> = (0..3).map(User::new).collect();
        for user in &users {
            world.login(user);
        }
        for cid in 1..=CIDS {
            for user in &users {
                world.mail(user, vec![user.send(cid)]);
            }
        }
        let (mut random, mut answered) = (Random::new(seed), BTreeMap::<u64, BTreeSet<u32>>::new());
        while answered.values().map(BTreeSet::len).sum::<usize>() < 3 * CIDS as usize {
            let (mut peer, logins) =
                backend.greet_announced(1 + u32::try_from(random.below(12)).expect("small"));
            assert_eq!(logins.len(), 3);
            let mut last = BTreeMap::<u64, u32>::new();
            for _ in 0..random.below(40) {
                if answered.values().map(BTreeSet::len).sum::<usize>() == 3 * CIDS as usize {
                    break;
                }
                let (correlation, up) = peer.up();
                let done = answered.entry(up.handle).or_default();
                let next =
                    (last.get(&up.handle).copied().unwrap_or(0) + 1..=CIDS).find(|cid| !done.contains(cid));
                assert_eq!(Some(up.seq), next, "seed {seed}: the next one that is not answered");
                last.insert(up.handle, up.seq);
                done.insert(up.seq);
                peer.answer(correlation, u64::from(up.seq));
            }
            // What was answered has arrived before the link dies.
            peer.send(Kind::Ping, 0, 0, &());
            while peer.next().expect("open").kind != Kind::Pong {}
            peer.cut();
        }
        for user in &users {
            let cids: Vec<u32> = (0..CIDS).map(|_| world.send_ack(user)).map(|ack| ack.cid).collect();
            assert_eq!(cids, (1..=CIDS).collect::<Vec<_>>(), "seed {seed}");
        }
    }
}

#[test]
fn an_endpoint_that_does_not_answer_is_left_alone_and_then_tried_with_a_few() {
    let (silent, well) = (Backend::bind(), Backend::bind());
    let mut settings = settings(&[&silent, &well]);
    // Longer than a slow machine needs for the answers of the other one.
    settings.link.up_timeout = Duration::from_secs(1);
    let world = World::start(settings);
    let users: Vec<User> = (0..64).map(User::new).collect();
    users.iter().for_each(|user| world.login(user));
    let mut quiet = silent.greet(1_000);
    let mut answering = well.greet(1_000);
    // Whatever comes is answered, so that only the silent one has timeouts.
    let answering = std::thread::spawn(move || {
        let mut announced = 0;
        while let Some(frame) = answering.next() {
            match frame.kind {
                Kind::Up => answering.answer(frame.correlation, 1),
                Kind::Announce => {
                    let announce: Announce = frame.message().expect("decodes");
                    announced += announce.connections.len();
                }
                _ => {}
            }
        }
        announced
    });
    users.iter().for_each(|user| world.mail(user, vec![user.send(1)]));
    world.await_count(Count::BreakerTrips, 1);
    assert_eq!(world.counter_set.get(Count::LinkFailures as usize), 1, "the silent one is closed");
    while quiet.next().is_some() {}
    world.await_count(Count::BreakersOpen, 1);
    // It is tried again after a second or two, with a few of the users.
    let (_trial, logins) = silent.greet_announced(1_000);
    assert!(logins.len() < 16, "{} of 64 users on trial", logins.len());
    drop(world);
    assert!(answering.join().expect("no panic") >= users.len());
}
