//! Users and what they make of each other, over real nodes: relations.

use super::{Cluster, Person, people, start, stored};
use crate::sdk::connect;
use crate::{PATIENCE, until};
use moorline_proto::message::im::{Friendship, Relation, RelationChange};
use moorline_sdk::core::Target;

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
