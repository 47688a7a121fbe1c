//! Tests of who may speak for a gateway: proofs, strangers, and two processes of one name.

use super::super::{LinkFigures, Refusal, counters::LinkCounters};
use super::*;
use moorline_proto::link::{Role, Secret, Secrets, Transcript};
use moorline_proto::message::backend::{LinkChallenge, LinkNotice, LinkProof, Notice};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "another-secret-of-thirty-two-bytes";
/// Nonce of the gateway, and of the backend.
const NONCES: (Nonce, Nonce) = ([7; NONCE_BYTES], [9; NONCE_BYTES]);
/// Time of these tests, in milliseconds since 1970.
const UNIX_MS: u64 = 1_700_000_000_000;

/// A host that believes nobody without a proof.
fn strict(secrets: &str) -> Desk {
    strict_with(&LinkConfig::default(), secrets)
}

fn strict_with(config: &LinkConfig, secrets: &str) -> Desk {
    let now = Now { unix_ms: UNIX_MS, ..Now::default() };
    let mut desk = Desk { host: LinkHost::new(config, "b".into(), 1), now };
    desk.host.handle_secrets(Secrets::parse(secrets).expect("valid"));
    desk.tick();
    desk
}

fn greeting(node: &str, epoch: u64) -> LinkHello {
    LinkHello { node: node.into(), nonce: NONCES.0.to_vec().into(), ..hello(1, epoch) }
}

fn transcript(node: &str, epoch: u64) -> Transcript<'_> {
    Transcript { gateway: (node, epoch), backend: ("b", 1), nonces: NONCES }
}

fn prove(node: &str, epoch: u64, secret: &str, role: Role) -> Vec<u8> {
    let secret = Secret::new(secret.as_bytes()).expect("long enough");
    transcript(node, epoch).prove(&secret, role).to_vec()
}

impl Desk {
    /// Sends HELLO on a new link over the network, and returns the challenge.
    fn challenge(&mut self, node: &str, epoch: u64) -> (LinkId, LinkChallenge) {
        self.turn_end();
        let link = self.visit(Peer::Network, NONCES.1);
        self.say(link, Kind::Hello, 0, &greeting(node, epoch));
        assert!(self.drain().is_empty(), "nothing is believed yet");
        let [frame] = &self.turn_end()[..] else { panic!("one frame") };
        assert_eq!(frame.kind, Kind::Challenge);
        (link, frame.message().expect("a challenge"))
    }

    fn say_proof(&mut self, link: LinkId, proof: Vec<u8>) -> Vec<Output> {
        self.say(link, Kind::Proof, 0, &LinkProof { proof: proof.into() });
        self.drain()
    }

    /// Opens a link with a proof.
    fn proven(&mut self, node: &str, epoch: u64) -> LinkId {
        let (link, _) = self.challenge(node, epoch);
        let outputs = self.say_proof(link, prove(node, epoch, SECRET, Role::Gateway));
        assert!(is_up(&outputs, link), "{outputs:?}");
        assert_eq!(self.turn_end().last().expect("a frame").kind, Kind::Hello);
        link
    }

    fn figures(&self) -> LinkFigures {
        let counters = LinkCounters::default();
        self.host.count(self.now, &counters);
        counters.read()
    }

    /// Answers the PING that a link was just sent.
    fn pong(&mut self, ping: &LinkFrame, link: LinkId) -> Vec<Output> {
        assert_eq!(ping.kind, Kind::Ping);
        self.say(link, Kind::Pong, ping.correlation, &());
        self.drain()
    }
}

fn is_up(outputs: &[Output], link: LinkId) -> bool {
    outputs.iter().any(|it| matches!(it, Output::Event(Event::LinkUp { link: up, .. }) if *up == link))
}

/// The refusal of a link, and what its gateway is told.
fn refusal(outputs: &[Output], wanted: LinkId) -> Option<(Refusal, Option<LinkNotice>)> {
    outputs.iter().find_map(|output| match output {
        Output::Close { link, end: LinkEnd::Refused { refusal, .. }, was_open: false, farewell }
            if *link == wanted =>
        {
            let frame = LinkDecoder::new().decode(&mut farewell.clone()).expect("valid");
            Some((*refusal, frame.map(|frame| frame.message().expect("a notice"))))
        }
        _ => None,
    })
}

#[test]
fn both_ends_prove_that_they_know_the_secret_before_anything_else() {
    let mut desk = strict(&format!("g {SECRET}"));
    desk.host.handle_store("a store".into());
    let (link, challenge) = desk.challenge("g", 5);
    assert_eq!((challenge.node.as_str(), challenge.epoch, &challenge.nonce[..]), ("b", 1, &NONCES.1[..]));
    assert_eq!(challenge.proofs, [prove("g", 5, SECRET, Role::Backend)]);
    assert_eq!(desk.figures().links, 0);
    let outputs = desk.say_proof(link, prove("g", 5, SECRET, Role::Gateway));
    assert!(is_up(&outputs, link), "{outputs:?}");
    let answer: LinkHello = desk.turn_end()[0].message().expect("HELLO");
    assert_eq!((answer.node.as_str(), answer.outcome_max, &answer.store[..]), ("b", 5, &b"a store"[..]));
    assert_eq!((desk.figures().links, desk.figures().unproven), (1, 0));
}

#[test]
fn a_node_has_two_secrets_while_one_takes_the_place_of_the_other() {
    let mut desk = strict(&format!("g {OTHER}\ng {SECRET}"));
    let (link, challenge) = desk.challenge("g", 5);
    let proofs = [OTHER, SECRET].map(|secret| prove("g", 5, secret, Role::Backend));
    assert_eq!(challenge.proofs, proofs, "the gateway may know either");
    assert!(is_up(&desk.say_proof(link, prove("g", 5, SECRET, Role::Gateway)), link));
    desk.host.handle_secrets(Secrets::parse(&format!("g {OTHER}")).expect("valid"));
    let (late, _) = desk.challenge("g", 5);
    let outputs = desk.say_proof(late, prove("g", 5, SECRET, Role::Gateway));
    assert!(matches!(refusal(&outputs, late), Some((Refusal::Proof, Some(_)))), "{outputs:?}");
    assert_eq!(desk.figures().links, 1, "what is open stays open");
}

#[test]
fn no_wrong_proof_opens_a_link() {
    let right = prove("g", 5, SECRET, Role::Gateway);
    let old_nonce = {
        let secret = Secret::new(SECRET.as_bytes()).expect("long enough");
        let nonces = (NONCES.0, [8; NONCE_BYTES]);
        Transcript { nonces, ..transcript("g", 5) }.prove(&secret, Role::Gateway).to_vec()
    };
    for (name, proof) in [
        ("of another secret", prove("g", 5, OTHER, Role::Gateway)),
        ("the backend's own", prove("g", 5, SECRET, Role::Backend)),
        ("of another node", prove("h", 5, SECRET, Role::Gateway)),
        ("of another epoch", prove("g", 6, SECRET, Role::Gateway)),
        ("of an earlier link", old_nonce),
        ("cut off", right[..31].to_vec()),
        ("too long", [&right[..], &[0]].concat()),
        ("nothing", Vec::new()),
    ] {
        let mut desk = strict(&format!("g {SECRET}\nh {SECRET}x"));
        let (link, _) = desk.challenge("g", 5);
        let outputs = desk.say_proof(link, proof);
        let Some((Refusal::Proof, Some(notice))) = refusal(&outputs, link) else {
            panic!("{name}: {outputs:?}")
        };
        assert_eq!(notice.notice(), Notice::Refused);
        assert!(outputs.len() == 1 && desk.host.unsent(link).is_empty(), "{name}: {outputs:?}");
    }
}

#[test]
fn a_gateway_says_nothing_before_its_proof() {
    for kind in [Kind::ConnUp, Kind::Up, Kind::Announce, Kind::Ping, Kind::Hello, Kind::Auth, Kind::Digest] {
        let mut desk = strict(&format!("g {SECRET}"));
        let (link, _) = desk.challenge("g", 5);
        desk.say(link, kind, 0, &());
        let outputs = desk.drain();
        assert!(
            matches!(&outputs[..], [Output::Close { end: LinkEnd::Protocol(_), was_open: false, .. }]),
            "{kind:?}: {outputs:?}"
        );
    }
}

#[test]
fn without_a_proof_only_what_the_settings_name_is_believed() {
    let cases = [
        (Unproven::Refuse, Peer::Loopback, false),
        (Unproven::Refuse, Peer::Network, false),
        (Unproven::Loopback, Peer::Loopback, true),
        (Unproven::Loopback, Peer::Network, false),
        (Unproven::Private, Peer::Network, true),
    ];
    for (unproven, peer, is_believed) in cases {
        let config = LinkConfig { unproven, ..LinkConfig::default() };
        // `g` is of a version that knows no proofs; `h` has a secret that it must not get round by silence.
        for (secrets, why) in [(String::new(), Refusal::NoSecret), (format!("g {SECRET}"), Refusal::NoNonce)]
        {
            let mut desk = strict_with(&config, &secrets);
            let link = desk.visit(peer.clone(), NONCES.1);
            desk.say(link, Kind::Hello, 0, &hello(1, 5));
            let outputs = desk.drain();
            assert_eq!(is_up(&outputs, link), is_believed, "{unproven:?} {peer:?}: {outputs:?}");
            if !is_believed {
                assert_eq!(refusal(&outputs, link), Some((why, None)), "it would not understand a notice");
            }
        }
        // A gateway that has no secret yet says so, while secrets are rolled in.
        let mut desk = strict_with(&config, &format!("g {SECRET}"));
        let link = desk.visit(peer.clone(), NONCES.1);
        desk.say(link, Kind::Hello, 0, &greeting("g", 5));
        desk.turn_end();
        assert_eq!(is_up(&desk.say_proof(link, Vec::new()), link), is_believed, "{unproven:?} {peer:?}");
    }
}

#[test]
fn a_certificate_is_believed_for_its_names_and_a_secret_is_asked_beside_it() {
    let config = LinkConfig { unproven: Unproven::Private, ..LinkConfig::default() };
    let certified = |desk: &mut Desk, names: &[&str]| {
        let link = desk.visit(Peer::nobody(), NONCES.1);
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        desk.host.handle_link_certified(link, names.into());
        link
    };
    // Without a handshake nobody is anybody, whatever the settings say; a certificate is for its own names only.
    for names in [&[][..], &["h"], &["*", "xg", "gx"]] {
        let mut desk = strict_with(&config, "");
        let link = certified(&mut desk, names);
        desk.say(link, Kind::Hello, 0, &greeting("g", 5));
        let outputs = desk.drain();
        let (why, _) = refusal(&outputs, link).expect("refused");
        assert_eq!(why, Refusal::Certificate, "{names:?}");
    }
    let mut desk = strict_with(&config, "");
    let link = certified(&mut desk, &["h", "g"]);
    desk.say(link, Kind::Hello, 0, &greeting("G", 5));
    assert!(is_up(&desk.drain(), link));
    desk.tick();
    assert_eq!((desk.figures().links, desk.figures().unproven, desk.figures().encrypted), (1, 0, 1));
    // A node with a secret has to prove that it knows it.
    for (proof, is_right) in [(prove("g", 5, SECRET, Role::Gateway), true), (Vec::new(), false)] {
        let mut desk = strict_with(&config, &format!("g {SECRET}"));
        let link = certified(&mut desk, &["g"]);
        desk.say(link, Kind::Hello, 0, &greeting("g", 5));
        assert!(!is_up(&desk.drain(), link));
        desk.turn_end();
        assert_eq!(is_up(&desk.say_proof(link, proof), link), is_right);
    }
}

#[test]
fn the_user_id_of_a_unix_socket_is_believed_if_it_is_named() {
    let config = LinkConfig { peer_uids: vec![1000], ..LinkConfig::default() };
    let mut desk = strict_with(&config, "");
    let visitor = Visitor { peer: Peer::Uid(1001), nonce: NONCES.1 };
    assert!(desk.host.handle_link_opened(desk.now, visitor).is_none());
    let link = desk.visit(Peer::Uid(1000), NONCES.1);
    desk.say(link, Kind::Hello, 0, &hello(1, 5));
    assert!(is_up(&desk.drain(), link));
}

#[test]
fn one_user_does_not_take_the_name_of_another_ones_gateway() {
    let config = LinkConfig { peer_uids: vec![1000, 1001], ..LinkConfig::default() };
    let mut desk = strict_with(&config, "");
    let first = desk.visit(Peer::Uid(1000), NONCES.1);
    desk.say(first, Kind::Hello, 0, &greeting("g", 5));
    desk.drain();
    for epoch in [5, 6] {
        let other = desk.visit(Peer::Uid(1001), NONCES.1);
        desk.say(other, Kind::Hello, 0, &greeting("g", epoch));
        let outputs = desk.drain();
        assert!(matches!(refusal(&outputs, other), Some((Refusal::Standing, _))), "{outputs:?}");
    }
}

#[test]
fn a_name_that_is_proven_beats_one_that_is_only_asserted() {
    let config = LinkConfig { unproven: Unproven::Private, ..LinkConfig::default() };
    let mut desk = strict_with(&config, &format!("g {SECRET}"));
    let squatter = desk.visit(Peer::Network, NONCES.1);
    desk.say(squatter, Kind::Hello, 0, &hello(1, 9));
    desk.drain();
    desk.turn_end();
    assert_eq!(desk.figures().unproven, 1);
    let (link, _) = desk.challenge("g", 5);
    let outputs = desk.say_proof(link, prove("g", 5, SECRET, Role::Gateway));
    assert!(matches!(outputs[0], Output::Close { link, end: LinkEnd::Replaced, .. } if link == squatter));
    assert!(is_up(&outputs, link), "{outputs:?}");
    let late = desk.visit(Peer::Network, NONCES.1);
    desk.say(late, Kind::Hello, 0, &hello(1, 10));
    assert!(matches!(refusal(&desk.drain(), late), Some((Refusal::Standing, None))));
}

#[test]
fn an_epoch_is_not_far_ahead_of_the_clock() {
    let now_ns = UNIX_MS * 1_000_000;
    for (epoch, is_taken) in
        [(now_ns + 3_600_000_000_000, true), (now_ns + 90_000_000_000_000, false), (u64::MAX, false)]
    {
        let mut desk = strict(&format!("g {SECRET}"));
        desk.proven("g", now_ns);
        let link = desk.visit(Peer::Network, NONCES.1);
        desk.say(link, Kind::Hello, 0, &greeting("g", epoch));
        let outputs = desk.drain();
        assert_eq!(outputs.is_empty(), is_taken, "{outputs:?}");
        if !is_taken {
            assert!(matches!(refusal(&outputs, link), Some((Refusal::Epoch, Some(_)))), "{outputs:?}");
        }
    }
}

#[test]
fn while_the_older_process_answers_a_newer_one_of_its_name_is_refused() {
    let mut desk = strict(&format!("g {SECRET}"));
    let old = desk.proven("g", 5);
    let session = desk.log_in(old, 1);
    let (new, _) = desk.challenge("g", 6);
    assert!(desk.say_proof(new, prove("g", 6, SECRET, Role::Gateway)).is_empty(), "it waits");
    let frames = desk.turn_end();
    let [ping] = &frames[..] else { panic!("{frames:?}") };
    let outputs = desk.pong(ping, old);
    let Some((Refusal::Duplicate, Some(notice))) = refusal(&outputs, new) else { panic!("{outputs:?}") };
    assert!(notice.text.contains("gateway.id"), "{notice:?}");
    let frames = desk.turn_end();
    let [told] = &frames[..] else { panic!("{frames:?}") };
    let told: LinkNotice = told.message().expect("a notice");
    assert_eq!(told.notice(), Notice::Duplicate);
    assert!(told.text.contains("gateway g;"), "the older one is told too: {told:?}");
    desk.host.outbox().kick(session, Kick::of(CloseReason::Kicked));
    assert_eq!(desk.turn_end()[0].kind, Kind::Kick, "its sessions are as before");
    // The copy tries again and again; the older one is told once in 10 s.
    for _ in 0..3 {
        let (again, _) = desk.challenge("g", 6);
        assert!(desk.say_proof(again, prove("g", 6, SECRET, Role::Gateway)).is_empty());
        let frames = desk.turn_end();
        let outputs = desk.pong(&frames[0], old);
        assert!(matches!(refusal(&outputs, again), Some((Refusal::Duplicate, Some(_)))), "{outputs:?}");
        assert!(desk.turn_end().is_empty());
    }
}

#[test]
fn a_process_that_does_not_answer_for_a_second_is_followed_by_its_successor() {
    let mut desk = strict(&format!("g {SECRET}"));
    let old = desk.proven("g", 5);
    desk.log_in(old, 1);
    let links = [desk.challenge("g", 6).0, desk.challenge("g", 6).0];
    for link in links {
        assert!(desk.say_proof(link, prove("g", 6, SECRET, Role::Gateway)).is_empty());
    }
    assert_eq!(desk.turn_end().len(), 1, "one question for all");
    let outputs = desk.pass(Duration::from_millis(750));
    assert!(!links.iter().any(|link| is_up(&outputs, *link)), "{outputs:?}");
    let outputs = desk.pass(Duration::from_millis(500));
    assert!(
        matches!(outputs[0], Output::Close { link, end: LinkEnd::Replaced, was_open: true, .. } if link == old)
    );
    assert!(links.iter().all(|link| is_up(&outputs, *link)), "{outputs:?}");
    let ended = outputs.iter().filter(|it| matches!(it, Output::Event(Event::ConnDown { .. }))).count();
    assert_eq!(ended, 1);
    desk.host.check();
}

#[test]
fn a_crash_lets_the_successor_in_at_once() {
    let mut desk = strict(&format!("g {SECRET}"));
    let old = desk.proven("g", 5);
    let (new, _) = desk.challenge("g", 6);
    assert!(desk.say_proof(new, prove("g", 6, SECRET, Role::Gateway)).is_empty());
    desk.host.handle_link_closed(desk.now, old, LinkEnd::Closed);
    assert!(is_up(&desk.drain(), new), "the system has told that the older one is gone");
    let (next, _) = desk.challenge("g", 6);
    assert!(is_up(&desk.say_proof(next, prove("g", 6, SECRET, Role::Gateway)), next), "the same epoch joins");
    let (late, _) = desk.challenge("g", 5);
    let outputs = desk.say_proof(late, prove("g", 5, SECRET, Role::Gateway));
    assert!(matches!(refusal(&outputs, late), Some((Refusal::Older, Some(_)))), "{outputs:?}");
}

#[test]
fn an_answer_that_the_backend_does_not_read_is_not_a_missing_answer() {
    let mut desk = strict_with(&LinkConfig { credit: 1, ..LinkConfig::default() }, &format!("g {SECRET}"));
    let old = desk.proven("g", 5);
    desk.log_in(old, 1);
    let (first, _) = desk.ask(old, 1, 1);
    let (second, is_paused) = desk.ask(old, 1, 2);
    assert!(is_paused, "the backend is behind");
    let (new, _) = desk.challenge("g", 6);
    assert!(desk.say_proof(new, prove("g", 6, SECRET, Role::Gateway)).is_empty());
    let ping = desk.turn_end().remove(0);
    for _ in 0..8 {
        let outputs = desk.pass(Duration::from_millis(500));
        assert!(!is_up(&outputs, new), "{outputs:?}");
    }
    desk.host.outbox().answer(first, Code::Ok, Bytes::new());
    desk.host.outbox().answer(second, Code::Ok, Bytes::new());
    desk.drain();
    let outputs = desk.pong(&ping, old);
    assert!(matches!(refusal(&outputs, new), Some((Refusal::Duplicate, _))), "{outputs:?}");
}

#[test]
fn a_visitor_takes_the_place_of_the_one_that_was_silent_for_longest() {
    let config = LinkConfig { visitors_max: 3, links_max: 2, ..LinkConfig::default() };
    let mut desk = strict_with(&config, &format!("g {SECRET}"));
    let open = desk.proven("g", 5);
    let (greeted, _) = desk.challenge("g", 5);
    let silent = [(); 2].map(|()| {
        desk.now.instant += Duration::from_millis(1);
        desk.visit(Peer::Network, NONCES.1)
    });
    for victim in silent {
        desk.now.instant += Duration::from_millis(1);
        desk.visit(Peer::Network, NONCES.1);
        let outputs = desk.drain();
        assert!(
            matches!(outputs[..], [Output::Close { link, end: LinkEnd::Evicted, was_open: false, .. }] if link == victim),
            "{outputs:?}"
        );
    }
    assert!(is_up(&desk.say_proof(greeted, prove("g", 5, SECRET, Role::Gateway)), greeted), "it was let in");
    assert_eq!((desk.figures().links, desk.host.unsent(open).is_empty()), (2, true));
    let (third, _) = desk.challenge("g", 5);
    let outputs = desk.say_proof(third, prove("g", 5, SECRET, Role::Gateway));
    assert!(matches!(refusal(&outputs, third), Some((Refusal::Links, Some(_)))), "{outputs:?}");
    desk.host.check();
}

#[test]
fn a_stranger_has_no_memory_set_aside() {
    let mut desk = strict(&format!("g {SECRET}"));
    let link = desk.visit(Peer::Network, NONCES.1);
    let mut wire = BytesMut::new();
    encode(&mut wire, Kind::Hello, 0, 0, &LinkHello { agent: "x".repeat(5_000), ..greeting("g", 5) });
    let mut input = wire.freeze().slice(..100);
    desk.host.handle_link_bytes(desk.now, link, &mut input);
    assert!(matches!(desk.drain()[..], [Output::Close { end: LinkEnd::Protocol(_), was_open: false, .. }]));
}
