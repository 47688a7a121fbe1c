//! Users and what they make of each other, over real nodes: relations, settings, invitations.

use super::{Cluster, Person, people, start, stored};
use crate::sdk::connect;
use crate::{PATIENCE, until};
use bytes::Bytes;
use moorline_proto::message::im::{
    Friendship, GroupChangeRequest, GroupSettings, Relation, RelationChange, SettingsGetResponse,
    SettingsSetRequest, UserSettings, WhoMayAdd,
};
use moorline_proto::message::{decode, encode};

use moorline_sdk::core::{ConversationEvent, Repeat, Target};

/// Changes what one person makes of another one.
fn relate(by: &Person, other: &Person, change: RelationChange) -> Relation {
    by.devices[0].relate(&other.uid, change, "", PATIENCE).expect("changed")
}

/// Waits until the list of a person says this of another one; `None`: it does not name the other one.
fn until_listed(of: &Person, other: &Person, wanted: Option<(Friendship, bool)>) {
    until("the list of relations", || {
        let list = of.devices[0].relations(PATIENCE).expect("a list");
        let found = list.iter().find(|it| it.user == other.uid);
        (found.map(|it| (it.friendship(), it.is_blocked)) == wanted).then_some(())
    });
}

/// The refusal of a message, or `None`: it is stored.
fn refusal(from: &Person, to: &Person, text: &str) -> Option<String> {
    let pending = from.devices[0].send(Target::user(&to.uid), 1, text.to_owned()).expect("taken");
    pending.wait_durable(PATIENCE).err().map(|error| error.to_string())
}

#[test]
fn friends_and_blocks_hold_from_each_node_and_outlive_one() {
    let Some(mut cluster) = start("friends_and_blocks_hold_from_each_node_and_outlive_one", 2, 2) else {
        return;
    };
    let people = people(&cluster);
    let others = || people[1..].iter();
    for other in others() {
        let asked = relate(&people[0], other, RelationChange::Befriend);
        assert_eq!((asked.user.as_str(), asked.friendship()), (other.uid.as_str(), Friendship::Asked));
        until_listed(other, &people[0], Some((Friendship::WasAsked, false)));
        assert_eq!(relate(other, &people[0], RelationChange::Befriend).friendship(), Friendship::Friends);
        until_listed(&people[0], other, Some((Friendship::Friends, false)));
    }
    // From the answer on nothing comes through, in either direction.
    for other in others() {
        assert!(relate(&people[0], other, RelationChange::Block).is_blocked);
        for (from, to) in [(other, &people[0]), (&people[0], other)] {
            let refused = refusal(from, to, "no").expect("refused");
            assert!(refused.contains("has blocked the other"), "{refused}");
        }
        until_listed(other, &people[0], Some((Friendship::Friends, false)));
        let asked = other.devices[1].create_group(&format!("of-{}", other.uid), &[&people[0].uid], PATIENCE);
        assert!(asked.expect_err("refused").to_string().contains("has blocked the other"));
    }
    let address = cluster.nodes.remove(&2).expect("it runs").kill();
    cluster.until_owned(&[1, 3]);
    for other in others() {
        assert!(refusal(other, &people[0], "still no").is_some(), "another node has read it from the cell");
    }
    cluster.start_node(2, &address.to_string());
    cluster.until_owned(&[1, 2, 3]);
    for other in others() {
        assert!(!relate(&people[0], other, RelationChange::Unblock).is_blocked);
        assert_eq!(refusal(other, &people[0], "yes"), None);
        relate(&people[0], other, RelationChange::Unfriend);
        until_listed(other, &people[0], None);
    }
    let sent = others().map(|other| {
        let text = format!("to {}", other.uid);
        (text.clone(), people[0].devices[0].send(Target::user(&other.uid), 1, text).expect("taken"))
    });
    let sent = stored(sent.collect());
    assert!(sent.iter().all(|(_, seq, _)| *seq == 2), "nothing that was refused has a seq: {sent:?}");
}

#[test]
fn only_friends_write_where_the_operator_says_so() {
    let test = "only_friends_write_where_the_operator_says_so";
    let Some(cluster) = Cluster::start_with(test, &["im.who_may_write=friends"]) else { return };
    let people = people(&cluster);
    let [first, second, third, ..] = &people[..] else { panic!("there are six") };
    let refused = refusal(first, second, "who are you").expect("refused");
    assert!(refused.contains("not friends"), "{refused}");
    assert!(first.devices[0].conversations(PATIENCE).expect("a list").is_empty(), "nothing came of it");
    relate(first, second, RelationChange::Befriend);
    assert!(first.devices[0].conversations(PATIENCE).expect("a list").is_empty(), "nobody has said anything");
    relate(second, first, RelationChange::Befriend);
    assert_eq!(refusal(first, second, "hello"), None);
    assert!(refusal(third, second, "me too").is_some());
    let late = connect(cluster.gateway(0).listener, &second.uid, "late");
    until("the message on a new device", || {
        let list = late.conversations(PATIENCE).expect("a list");
        list.iter().any(|it| it.id == "c2c:user0:user1").then_some(())
    });
}

#[test]
fn whom_only_friends_may_add_is_invited_and_joins() {
    let test = "whom_only_friends_may_add_is_invited_and_joins";
    let Some(mut cluster) = start(test, 2, 1) else { return };
    let people = people(&cluster);
    let (owner, guests) = people.split_first().expect("six");
    for guest in guests {
        set_rule(guest, WhoMayAdd::AddFriends);
    }
    let uids: Vec<&str> = guests.iter().map(|guest| guest.uid.as_str()).collect();
    let group = owner.devices[0].create_group("den", &uids, PATIENCE).expect("created");
    let settings = GroupSettings { by_invitation: true, ..GroupSettings::default() };
    let change =
        GroupChangeRequest { conversation: group.clone(), settings: Some(settings), ..Default::default() };
    owner.devices[0].change_group(&change, PATIENCE).expect("the owner");
    assert_eq!(
        owner.devices[0].members(&group, PATIENCE).expect("members"),
        std::slice::from_ref(&owner.uid)
    );
    for guest in guests {
        until("the invitation", || (invitations(guest) == [group.clone()]).then_some(()));
    }
    // What a node knew of it, another one reads.
    let address = cluster.nodes.remove(&3).expect("it runs").kill();
    cluster.until_owned(&[1, 2]);
    cluster.start_node(3, &address.to_string());
    cluster.until_owned(&[1, 2, 3]);
    let (last, others) = guests.split_last().expect("five");
    for guest in others {
        guest.devices[0].join(&group, PATIENCE).expect("invited");
        until("the end of the invitation", || invitations(guest).is_empty().then_some(()));
    }
    // Who declines needs another invitation.
    last.devices[0].leave(&group, PATIENCE).expect("declined");
    assert!(invitations(last).is_empty());
    let refused = last.devices[0].join(&group, PATIENCE).expect_err("not invited any more").to_string();
    assert!(refused.contains("you need an invitation"), "{refused}");
    let again =
        GroupChangeRequest { conversation: group.clone(), add: vec![last.uid.clone()], ..Default::default() };
    owner.devices[0].change_group(&again, PATIENCE).expect("invited again");
    until("the second invitation", || (invitations(last) == [group.clone()]).then_some(()));
    last.devices[0].join(&group, PATIENCE).expect("invited");
    set_rule(last, WhoMayAdd::AddDefault);
    last.devices[0].leave(&group, PATIENCE).expect("left");
    owner.devices[0].change_group(&again, PATIENCE).expect("added");
    assert_eq!(owner.devices[0].members(&group, PATIENCE).expect("members").len(), people.len());
}

fn set_rule(person: &Person, who_may_add: WhoMayAdd) {
    let request = SettingsSetRequest { settings: Some(UserSettings { who_may_add: who_may_add.into() }) };
    let set = person.devices[0].request("im.settings.set", encode(&request), Repeat::UntilAnswered, PATIENCE);
    set.expect("set");
}

/// Groups to which a person is invited.
fn invitations(person: &Person) -> Vec<String> {
    let got = person.devices[0].request("im.settings.get", Bytes::new(), Repeat::UntilAnswered, PATIENCE);
    decode::<SettingsGetResponse>(&got.expect("settings")).expect("settings").invitations
}

#[test]
fn a_removed_device_is_ended_and_comes_again_as_a_new_one() {
    let test = "a_removed_device_is_ended_and_comes_again_as_a_new_one";
    let Some(mut cluster) = Cluster::start_with(test, &["im.devices_max=3"]) else { return };
    let people = people(&cluster);
    let names = |person: &Person| -> Vec<String> {
        let devices = person.devices[0].devices(PATIENCE).expect("devices");
        devices.into_iter().map(|device| device.device).collect()
    };
    for person in &people {
        let pad = connect(cluster.gateway(0).listener, &person.uid, "pad");
        until("the pad", || (names(person) == ["d0", "pad"]).then_some(()));
        person.devices[0].remove_device("pad", PATIENCE).expect("removed");
        until("the end of its login", || pad.conversations(PATIENCE).is_err().then_some(()));
        assert_eq!(names(person), ["d0"]);
    }
    let address = cluster.nodes.remove(&1).expect("it runs").kill();
    cluster.until_owned(&[2, 3]);
    cluster.start_node(1, &address.to_string());
    cluster.until_owned(&[1, 2, 3]);
    for person in &people {
        assert_eq!(names(person), ["d0"], "the cell says so, too");
        let later = ["pad", "tab"].map(|name| connect(cluster.gateway(0).listener, &person.uid, name));
        until("three devices", || (names(person).len() == 3).then_some(()));
        // The device that was seen longest ago makes room.
        let desk = connect(cluster.gateway(0).listener, &person.uid, "desk");
        until("the end of the first device", || {
            person.devices[0].conversations(PATIENCE).is_err().then_some(())
        });
        let left = desk.devices(PATIENCE).expect("devices");
        assert_eq!((left.len(), left.iter().any(|device| device.device == "d0")), (3, false), "{left:?}");
        drop(later);
    }
}

/// Waits until each person sees all of these online, and watches them.
fn until_seen(people: &[Person], uids: &[&str]) {
    for person in people {
        until("everybody's presence", || {
            let seen = person.devices[0].presence(uids, true, PATIENCE).ok()?;
            (seen.len() == uids.len() && seen.iter().all(|it| !it.platforms.is_empty())).then_some(())
        });
    }
}

/// Waits until each person is told that a user came, or went.
fn until_told(people: &[Person], uid: &str, is_there: bool) {
    for person in people {
        until("news of a user", || {
            let message = person.devices[0].recv_timeout(PATIENCE).expect("it comes");
            let Some(ConversationEvent::Presence(it)) = message.happened.as_deref() else { return None };
            (it.user == uid && it.platforms.is_empty() != is_there).then_some(())
        });
    }
}

#[test]
fn whoever_is_online_is_seen_from_each_node_and_watchers_hear_of_changes() {
    let test = "whoever_is_online_is_seen_from_each_node_and_watchers_hear_of_changes";
    let Some(mut cluster) = start(test, 2, 1) else { return };
    let mut people = people(&cluster);
    let uids: Vec<String> = people.iter().map(|person| person.uid.clone()).collect();
    let uids: Vec<&str> = uids.iter().map(String::as_str).collect();
    until_seen(&people, &uids);
    let gone = people.pop().expect("six").uid;
    until_told(&people, &gone, false);
    let back = connect(cluster.gateway(0).listener, &gone, "d0");
    until_told(&people, &gone, true);
    let address = cluster.nodes.remove(&2).expect("it runs").kill();
    until_seen(&people, &uids);
    cluster.start_node(2, &address.to_string());
    cluster.until_owned(&[1, 2, 3]);
    until_seen(&people, &uids);
    drop(back);
    until_told(&people, &gone, false);
}

#[test]
fn messages_of_a_group_that_is_gone_are_emptied_though_a_node_dies() {
    let test = "messages_of_a_group_that_is_gone_are_emptied_though_a_node_dies";
    let Some(mut cluster) = start(test, 1, 1) else { return };
    let people = people(&cluster);
    let (owner, others) = people.split_first().expect("six");
    let uids: Vec<&str> = others.iter().map(|other| other.uid.as_str()).collect();
    let groups = ["attic", "den", "hall", "loft"];
    let say = |group: &str, count: usize| {
        let send = |number: usize| owner.devices[0].send(Target::group(group), 1, number.to_string());
        let sent: Vec<_> = (0..count).map(|number| send(number).expect("taken")).collect();
        let stored = sent.into_iter().map(|pending| pending.wait_durable(PATIENCE).expect("stored").seq);
        stored.max().expect("some")
    };
    for group in groups {
        owner.devices[0].create_group(group, &uids, PATIENCE).expect("created");
    }
    // More than one piece of one, and a little of the others.
    assert_eq!((say("den", 600), say("attic", 3), say("hall", 3), say("loft", 3)), (600, 3, 3, 3));
    for group in &groups[..3] {
        owner.devices[0].dissolve_group(&format!("group:{group}"), PATIENCE).expect("its owner");
    }
    cluster.nodes.remove(&2).expect("it runs").kill();
    let count = |what: &str| -> u64 {
        let text = format!(
            "select count(*) from msg m join conv c on c.slot = m.slot and c.conv = m.conv where c.is_group and {what}"
        );
        cluster.servers[0].sql("cell0", &text).parse().expect("a number")
    };
    until("empty messages", || (count("c.is_dissolved and octet_length(m.body) > 0") == 0).then_some(()));
    assert_eq!(count("c.is_dissolved"), 606, "keys stay");
    assert_eq!(count("octet_length(m.body) > 0"), 3, "of the other group");
    // The next group of the name goes on behind it, and nobody sees what was said before.
    owner.devices[0].create_group("den", &uids, PATIENCE).expect("created");
    assert_eq!(say("den", 1), 601);
    let page = others[0].devices[0].pull("group:den", 1, 0, 0, PATIENCE).expect("a member");
    assert_eq!(page.messages.iter().map(|message| message.seq).collect::<Vec<_>>(), [601]);
}
