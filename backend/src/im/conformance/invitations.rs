//! Invitations: users join a group for one, whatever its settings say, until they have joined, have declined, or the group is gone.

use super::bench::Bench;
use super::{by, event};
use crate::im::store::{
    ConversationId, GroupChange, GroupEdit, GroupSettings, Need, Refusal, Store, UserId, WhoMayAdd, Write,
};

fn invitations<S: Store>(bench: &mut Bench<S>, user: UserId) -> Vec<ConversationId> {
    bench.fetch(&[Need::Settings(user)]).invitations(user)
}

fn close<S: Store>(bench: &mut Bench<S>, group: ConversationId, owner: UserId) {
    let settings = GroupSettings { by_invitation: true, ..GroupSettings::default() };
    let edit = GroupEdit { settings: Some(settings), ..GroupEdit::default() };
    bench.change(group, owner, GroupChange::Edit(edit)).expect("the owner");
}

pub(super) fn they_say_who_may_join<S: Store>(bench: &mut Bench<S>) {
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|uid| bench.user(uid));
    bench.done(Write::SetSettings { user: d, who_may_add: WhoMayAdd::AddFriends }).expect("set");
    assert_eq!(bench.fetch(&[Need::Contact("d".into(), a)]).who_may_add(d), WhoMayAdd::AddFriends);
    let group = bench.create(a, vec![b]).expect("created");
    close(bench, group, a);
    let invite = |who, users: &[UserId]| Write::Invite {
        group: "g".into(),
        by: by(who),
        users: users.to_vec(),
        event: event(),
    };
    assert_eq!(bench.change(group, c, GroupChange::Join), Err(Refusal::NotAllowed));
    assert_eq!(
        bench.done(invite(b, &[c])),
        Ok(vec![]),
        "a member may not, where joining takes an invitation"
    );
    assert_eq!(bench.done(invite(a, &[b, c, d])), Ok(vec![c, d]), "a member needs none");
    assert_eq!(bench.done(invite(a, &[c])), Ok(vec![]), "once");
    assert_eq!((invitations(bench, c), invitations(bench, b)), (vec![group], vec![]));
    assert_eq!(bench.change(group, c, GroupChange::Join), Ok(vec![a, b, c]));
    assert_eq!(invitations(bench, c), []);
    bench.change(group, c, GroupChange::Leave).expect("left");
    assert_eq!(bench.change(group, c, GroupChange::Join), Err(Refusal::NotAllowed), "it was for once");
    bench.change(group, d, GroupChange::Leave).expect("declined");
    assert_eq!(bench.change(group, d, GroupChange::Join), Err(Refusal::NotAllowed));
    assert_eq!(invitations(bench, d), []);
    bench.done(invite(a, &[c, d])).expect("invited again");
    bench.done(Write::Dissolve { conversation: group, by: by(a), event: event() }).expect("the owner");
    assert_eq!((invitations(bench, c), invitations(bench, d)), (vec![], vec![]));
    let again = bench.create(a, vec![]).expect("the name is free");
    close(bench, again, a);
    assert_eq!(bench.change(again, c, GroupChange::Join), Err(Refusal::NotAllowed), "another group");
}
