//! Rooms: one payload, everybody inside hears it; who left, or may not enter, does not.

use crate::gateway::{Backend, Gateway};
use crate::raw::{Client, message_into};
use crate::series::Series;
use crate::until;
use bytes::Bytes;
use moorline_proto::frame::Command;
use moorline_proto::message::client::{Code, Sub};
use moorline_proto::message::im::{GroupCreateRequest, GroupRequest, Signal};
use moorline_proto::message::{decode, encode, frame_of};
use std::time::Duration;

/// Long enough for what must not come.
const QUIET: Duration = Duration::from_millis(300);

fn knock(client: &mut Client, command: Command, room: &str) -> Code {
    let id = u32::try_from(client.heard.sub_acks.len()).expect("few") + 1;
    client.put(&frame_of(command, &Sub { id, room: room.into() }));
    client.until("SUBACK", |heard| heard.sub_acks.last().is_some_and(|ack| ack.id == id));
    client.heard.sub_acks.last().expect("just heard").code()
}

fn signal(conversation: &str, payload: &'static [u8]) -> Signal {
    let (conversation, payload) = (conversation.to_owned(), Bytes::from_static(payload));
    Signal { conversation, payload, ..Signal::default() }
}

#[test]
fn members_signal_each_other_in_the_room_of_their_group() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, &[]);
    let [mut ann, mut ben, mut eve] =
        ["ann", "ben", "eve"].map(|uid| Client::login(gateway.listener, uid, "d"));
    let create = GroupCreateRequest { group: "tea".into(), members: vec!["ben".into()] };
    assert_eq!(ann.request(1, "im.group.create", encode(&create)).code(), Code::Ok);
    assert_eq!(knock(&mut ann, Command::Sub, "group:tea"), Code::Ok);
    assert_eq!(knock(&mut ben, Command::Sub, "group:tea"), Code::Ok);
    assert_eq!(knock(&mut eve, Command::Sub, "group:tea"), Code::NotMember);
    assert_eq!(knock(&mut eve, Command::Sub, "group:none"), Code::NotFound);
    ann.put(&frame_of(Command::App(0x40), &signal("group:tea", b"typing")));
    eve.put(&frame_of(Command::App(0x40), &signal("group:tea", b"let me in")));
    ben.until("the signal", |heard| heard.app.len() == 1);
    let heard: Signal = decode(&ben.heard.app[0].body).expect("a Signal");
    assert_eq!((heard.sender.as_str(), heard.sender_device.as_str()), ("ann", "d"));
    assert_eq!(&heard.payload[..], b"typing");
    assert!(ann.is_quiet_for(QUIET) && ann.heard.app.is_empty(), "not to oneself, not from a stranger");
    assert!(ben.is_quiet_for(QUIET) && ben.heard.app.len() == 1 && eve.heard.app.is_empty());
    // Who leaves the group leaves its room.
    let leave = encode(&GroupRequest { conversation: "group:tea".into(), ..GroupRequest::default() });
    assert_eq!(ben.request(2, "im.group.leave", leave).code(), Code::Ok);
    ann.put(&frame_of(Command::App(0x40), &signal("group:tea", b"gone?")));
    assert!(ben.is_quiet_for(QUIET) && ben.heard.app.len() == 1);
    gateway.until_metric("rooms", 1);
    drop((ann, ben, eve));
}

#[test]
fn one_payload_reaches_everybody_in_a_large_room_once_and_in_order() {
    const MEMBERS: usize = 300;
    let backend = Backend::start_with(&["listen=127.0.0.1:0", "handler=echo"]);
    let gateway = Gateway::start(&backend, &[]);
    let name = |number| format!("member-{number}");
    let mut members: Vec<_> =
        (0..MEMBERS).map(|number| Client::login(gateway.listener, &name(number), "d")).collect();
    for member in &mut members {
        assert_eq!(knock(member, Command::Sub, "hall"), Code::Ok);
    }
    let mut speaker = Client::login(gateway.listener, "speaker", "d");
    // Compressible, so that the members who accept it could have it so; these do not.
    let payloads: Vec<Vec<u8>> = (0..5u8).map(|number| vec![number; 2_000]).collect();
    for (key, payload) in (0u128..).zip(&payloads) {
        let cid = speaker.send(&message_into(key, "hall", payload));
        assert_eq!(speaker.answer(cid).code(), Code::Ok);
    }
    for member in &mut members {
        member.until("all five", |heard| heard.pushes.len() == payloads.len());
        assert!(member.heard.payloads().iter().zip(&payloads).all(|(got, sent)| got == sent));
        assert_eq!(member.heard.repeats, 0);
    }
    assert_eq!(knock(&mut members[0], Command::Unsub, "hall"), Code::Ok);
    let cid = speaker.send(&message_into(99, "hall", b"the last"));
    assert_eq!(speaker.answer(cid).code(), Code::Ok);
    members[1].until("the last", |heard| heard.pushes.len() == payloads.len() + 1);
    assert!(members[0].is_quiet_for(QUIET) && members[0].heard.pushes.len() == payloads.len());
    gateway.until_at_least("fanouts_total", 5); // in slices
}

/// A message of a large group goes once to each gateway: by name twice, then to the room of the group, also behind a hot restart.
#[test]
fn a_message_of_a_large_group_goes_once_to_each_gateway() {
    let backend = Backend::start_with(&["listen=127.0.0.1:0", "im.fanout_members_max=2"]);
    let first = Series::start(&backend, &["gateway.id=\"first\""]);
    let second = Gateway::start(&backend, &["gateway.id=\"second\""]);
    let mut ann = Client::login(first.gateway.listener, "ann", "d");
    let mut others = [
        Client::login(first.gateway.listener, "ben", "d"),
        Client::login(second.listener, "cat", "d"),
        Client::login(second.listener, "dan", "d"),
    ];
    let members = ["ben", "cat", "dan"].map(str::to_owned).to_vec();
    let create = GroupCreateRequest { group: "tea".into(), members };
    let mut asked = 0;
    // The second gateway may still be telling of its logins.
    until("the group is made", || {
        asked += 1;
        (ann.request(asked, "im.group.create", encode(&create)).code() == Code::Ok).then_some(())
    });
    let mut said = 0u8;
    let mut say = |ann: &mut Client| {
        said += 1;
        let cid = ann.send(&message_into(said.into(), "group:tea", &[said]));
        assert_eq!(ann.answer(cid).code(), Code::Ok);
        usize::from(said)
    };
    let hears = |client: &mut Client, count: usize| {
        client.until("all that was said", |heard| heard.pushes.len() >= count);
        let expected: Vec<_> = (1..).take(count).map(|number: u8| vec![number]).collect();
        assert_eq!(client.heard.payloads(), expected, "once, and in order");
    };
    let to_rooms = || [&first.gateway, &second].map(|gateway| gateway.metric("link_room_pushes_total"));
    for _ in 0..6 {
        let count = say(&mut ann);
        others.iter_mut().for_each(|client| hears(client, count));
    }
    assert_eq!(to_rooms(), [4, 4]);
    first.restart();
    let count = say(&mut ann);
    others.iter_mut().for_each(|client| hears(client, count));
    // Who has left hears nothing of what is said later.
    let leave = encode(&GroupRequest { conversation: "group:tea".into(), ..GroupRequest::default() });
    assert_eq!(others[1].request(2, "im.group.leave", leave).code(), Code::Ok);
    for _ in 0..3 {
        let count = say(&mut ann);
        hears(&mut others[0], count);
        hears(&mut others[2], count);
    }
    assert!(others[1].is_quiet_for(QUIET) && others[1].heard.pushes.len() == 7);
}
