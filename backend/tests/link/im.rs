//! The IM backend behind two gateways.

use crate::{Backend, config};
use moorline_proto::frame::Command;
use moorline_proto::link::Kind;
use moorline_proto::message::backend::{Announce, ConnDown, Kick, Outcome};
use moorline_proto::message::client::{Code, Push};
use moorline_proto::message::im::{PullRequest, PullResponse};
use moorline_proto::message::{decode, encode};

use crate::gateway::login;

#[test]
fn two_users_on_two_gateways_chat() {
    let backend = Backend::run(config());
    let (mut one, mut two) = (backend.gateway("g1", 1), backend.gateway("g2", 1));
    assert_eq!(one.credit, 65_536);
    one.conn_up(1, "alice", "phone", 1);
    two.conn_up(1, "bob", "phone", 1);
    two.say(Kind::Ping, 1, &());
    two.expect(Kind::Pong); // bob is there
    let (code, ack) = one.send(1, "bob", 1, b"hi");
    assert_eq!((code, ack.seq, ack.conversation.as_str()), (Code::Ok, 1, "c2c:alice:bob"));
    let (correlation, push) = two.push();
    assert_eq!((&push.handles[..], push.want_ack, push.lane), (&[1][..], true, 1));
    assert_eq!(push.command, u32::from(Command::Push.byte()));
    let message: Push = decode(&push.body).expect("a Push");
    assert_eq!((&message.payload[..], message.message_id), (&b"hi"[..], ack.message_id));
    assert_eq!(one.send(1, "bob", 1, b"hi"), (Code::Dup, ack));
    two.outcome(correlation, 1, Outcome::Acked.into());
    let pull = PullRequest { conversation: "c2c:alice:bob".into(), from: 1, ..Default::default() };
    let (code, page) = two.req(1, "im.pull", encode(&pull));
    assert_eq!(code, Code::Ok);
    assert_eq!(decode::<PullResponse>(&page).expect("a PullResponse").messages, [message]);
}

#[test]
fn what_was_not_acked_comes_again_on_the_next_link() {
    let backend = Backend::run(config());
    let mut one = backend.gateway("g1", 1);
    one.conn_up(1, "alice", "phone", 1);
    one.conn_up(2, "bob", "phone", 1);
    let (mut seqs, mut pushes) = (Vec::new(), Vec::new());
    for key in 1..=3 {
        seqs.push(one.send(1, "bob", key, b"").1.seq);
        pushes.push(one.push());
    }
    one.outcome(pushes[0].0, 2, Outcome::Acked.into());
    one.say(Kind::Ping, 1, &());
    one.expect(Kind::Pong); // the ack was read
    drop(one);
    let mut next = backend.gateway("g1", 1);
    let connections = vec![login(1, "alice", "phone", 1), login(2, "bob", "phone", 1)];
    next.say(Kind::Announce, 0, &Announce { connections, more: false });
    for seq in [2, 3] {
        let (_, push) = next.push();
        assert_eq!((&push.handles[..], decode::<Push>(&push.body).expect("a Push").seq), (&[2][..], seq));
    }
    let question = next.up(1, Command::Send, crate::gateway::send_body("bob", 3, b""));
    assert_eq!(next.answer(question).code(), Code::Dup, "asked again after the link died");
}

#[test]
fn a_login_on_another_gateway_ends_the_older_one() {
    let backend = Backend::run(config());
    let (mut one, mut two) = (backend.gateway("g1", 1), backend.gateway("g2", 1));
    one.conn_up(8, "bob", "phone", 100);
    one.say(Kind::Ping, 1, &());
    one.expect(Kind::Pong);
    two.conn_up(9, "bob", "phone", 101);
    let kick: Kick = one.expect(Kind::Kick).message().expect("a Kick");
    assert_eq!((kick.handle, kick.login_version, kick.code, kick.may_reconnect), (8, 100, 3530, false));
    one.say(Kind::ConnDown, 0, &ConnDown { handle: 8, code: 3530 });
    assert_eq!(two.send(9, "bob", 1, b"me").0, Code::Ok);
}

/// The clocks of gateways need not agree: what the backend hears of later is the newer login.
#[test]
fn a_login_on_a_gateway_whose_clock_is_behind_ends_the_older_one_too() {
    let backend = Backend::run(config());
    let (mut one, mut two) = (backend.gateway("g1", 1), backend.gateway("g2", 1));
    one.conn_up(8, "bob", "phone", 2_000_000_000);
    one.say(Kind::Ping, 1, &());
    one.expect(Kind::Pong);
    two.conn_up(9, "bob", "phone", 1_000_000_000);
    let kick: Kick = one.expect(Kind::Kick).message().expect("a Kick");
    assert_eq!((kick.handle, kick.code), (8, 3530));
    one.say(Kind::ConnDown, 0, &ConnDown { handle: 8, code: 3530 });
    assert_eq!(two.send(9, "bob", 1, b"me").0, Code::Ok, "the newer login stays");
    // A new link tells what was known: the order stays.
    let mut again = backend.gateway("g2", 1);
    let connections = vec![login(9, "bob", "phone", 1_000_000_000)];
    again.say(Kind::Announce, 0, &Announce { connections, more: false });
    assert_eq!(again.send(9, "bob", 2, b"me").0, Code::Ok);
}
