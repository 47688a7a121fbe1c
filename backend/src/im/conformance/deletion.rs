//! Deletion and retention: what is gone reads as void everywhere, and no seq is given twice.

use super::{Bench, WIDE, by, event, recall};
use crate::im::store::API_DEVICE;
use crate::im::store::{
    ConversationId, Friendship, GroupChange, KEEP_FOR_EVER, NOBODY, Origin, Outcome, Refusal, RelationChange,
    Role, Store, Stored, SweepNeed, Target, UserId, Write,
};
use crate::im::time_ms;
use bytes::{Bytes, BytesMut};
use moorline_proto::message::client::Push;
use moorline_proto::message::decode;
use prost::Message as _;

/// Seqs of the messages that a user can read, and the voids.
fn view<S: Store>(
    bench: &mut Bench<S>,
    conversation: ConversationId,
    reader: UserId,
) -> (Vec<u64>, Vec<(u64, u64)>) {
    let page = bench.page(conversation, reader, (1, u64::MAX), WIDE).expect("a member");
    let seqs = page.messages.iter().map(|body| decode::<Push>(body).expect("a Push").seq);
    (seqs.collect(), page.voids)
}

fn dissolve(conversation: ConversationId, by: Origin) -> Write {
    Write::Dissolve { conversation, by, event: event() }
}

/// Says something; `ms`: milliseconds after the first time that an id can have.
fn say_at<S: Store>(bench: &mut Bench<S>, sender: UserId, target: Target, key: u8, ms: u64) -> Stored {
    match bench.draft(sender, 0, target, key, 7) {
        Write::Append(mut draft) => {
            draft.id = ms << 22;
            let push = Push { message_id: draft.id, ..Push::decode(&draft.body[..]).expect("a Push") };
            draft.body = BytesMut::with_capacity(push.encoded_len() + 16);
            push.encode_raw(&mut draft.body);
            bench.append(Write::Append(draft)).expect("stored")
        }
        other => panic!("{other:?}"),
    }
}

/// Unix time of such a moment.
fn unix(ms: u64) -> u64 {
    time_ms(ms << 22)
}

pub(super) fn a_dissolved_group_is_gone_and_its_seqs_are_not_given_again<S: Store>(bench: &mut Bench<S>) {
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|uid| bench.user(uid));
    let group = bench.create(a, vec![b, c]).expect("created");
    bench.login("b", "phone");
    for key in 1..=3 {
        bench.say(a, Target::Conversation(group), key);
    }
    let invite = Write::Invite { group: "g".into(), by: by(a), users: vec![d], event: event() };
    bench.done(invite).expect("invited");
    assert_eq!(bench.done(dissolve(group, by(b))), Err(Refusal::NotAllowed));
    assert_eq!(bench.done(dissolve(group, by(d))), Err(Refusal::NotMember));
    assert_eq!(bench.done(dissolve(group, by(a))), Ok(vec![a, b, c]), "members are told");
    assert_eq!(bench.find("group:g"), None);
    assert_eq!((bench.member(group, b), bench.conversations(b)), (None, vec![]));
    let said = bench.draft(b, 0, Target::Conversation(group), 9, 7);
    assert_eq!(bench.append(said), Err(Refusal::NotMember));
    assert_eq!(bench.change(group, d, GroupChange::Join), Err(Refusal::NotFound), "nobody comes back");
    assert_eq!(bench.page(group, b, (1, 9), WIDE), Err(Refusal::NotMember));
    let entries = bench.stream(b, 0);
    assert!(entries.iter().all(|(_, id)| *id == super::EVENT), "no message is owed any more: {entries:?}");
    assert_eq!(bench.store.sweep_need(), SweepNeed::Removal);
    assert_eq!(bench.sweep(0), (3, vec![]));
    assert_eq!(bench.store.sweep_need(), SweepNeed::Nothing);
    // Another group of the name, of somebody else.
    let again = bench.create(d, vec![b]).expect("the name is free");
    assert_ne!(again, group);
    let role = bench.member(again, d).map(|member| member.role());
    assert_eq!((bench.find("group:g"), role), (Some(again), Some(Role::Owner)));
    assert_eq!(bench.say(d, Target::Conversation(again), 1).seq, 4, "numbers go on");
    assert_eq!(view(bench, again, b), (vec![4], vec![(1, 3)]));
    assert_eq!(bench.done(dissolve(again, (NOBODY, API_DEVICE))), Ok(vec![b, d]), "the operator may");
}

pub(super) fn the_last_member_ends_a_group<S: Store>(bench: &mut Bench<S>) {
    let (a, b) = (bench.user("a"), bench.user("b"));
    let group = bench.create(a, vec![]).expect("created");
    bench.say(a, Target::Conversation(group), 1);
    bench.change(group, a, GroupChange::Leave).expect("left");
    assert_eq!((bench.find("group:g"), bench.sweep(0).0), (None, 1));
    let again = bench.create(b, vec![]).expect("the name is free");
    assert_eq!(bench.say(b, Target::Conversation(again), 1).seq, 2);
}

pub(super) fn a_conversation_is_deleted_for_one_user<S: Store>(bench: &mut Bench<S>) {
    let (a, b) = (bench.user("a"), bench.user("b"));
    let phone = bench.login("b", "phone").device;
    bench.login("b", "pad");
    let mut pair = ConversationId::of(0);
    for key in 1..=4 {
        pair = bench.say(a, Target::User(b), key).conversation;
    }
    let clear = |to| Write::Clear { conversation: pair, by: (b, phone), to, event: event() };
    assert_eq!(bench.done(clear(3)), Ok(vec![b]), "his own devices");
    assert_eq!(bench.done(clear(2)), Ok(vec![]), "what is hidden stays hidden");
    assert_eq!(view(bench, pair, b), (vec![4], vec![(1, 3)]));
    assert_eq!((bench.unread("c2c:a:b", b), view(bench, pair, a).0.len()), (1, 4));
    assert_eq!(bench.done(clear(99)), Ok(vec![b]), "at most to the newest");
    assert_eq!((bench.conversations(b), bench.conversations(a).len()), (vec![], 1));
    let next = bench.say(a, Target::User(b), 5);
    assert_eq!((next.seq, bench.conversations(b).len()), (5, 1), "a new message brings it back");
    assert_eq!(view(bench, pair, b), (vec![5], vec![(1, 4)]));
    assert_eq!(bench.member(pair, b).map(|member| member.visible_from), Some(1), "for receipts of others");
    let c = bench.user("c");
    let foreign = Write::Clear { conversation: pair, by: by(c), to: 1, event: event() };
    assert_eq!(bench.done(foreign), Err(Refusal::NotMember));
}

pub(super) fn expired_messages_become_voids<S: Store>(bench: &mut Bench<S>) {
    let (a, b) = (bench.user("a"), bench.user("b"));
    let phone = bench.login("b", "phone").device;
    assert_eq!(bench.store.sweep_need(), SweepNeed::Expiry);
    let said: Vec<_> =
        (1..=6).map(|key| say_at(bench, a, Target::User(b), key, u64::from(key) * 1000)).collect();
    let pair = said[0].conversation;
    bench.next_id = 6500 << 22;
    let wish = recall(bench, a, &said[1], 20);
    bench.append(wish).expect("taken back");
    assert_eq!(bench.sweep(unix(100_999)), (0, vec![]), "none is older than 100 s");
    assert_eq!(bench.sweep(unix(103_000)), (3, vec![]));
    assert_eq!(view(bench, pair, a), ((4..=7).collect(), vec![(1, 3)]));
    assert_eq!(bench.unread("c2c:a:b", b), 3, "4 to 6");
    let wish = recall(bench, a, &said[2], 21);
    assert_eq!(bench.append(wish), Err(Refusal::NotFound), "it is not to be taken back any more");
    let seqs: Vec<_> = bench.stream(b, 0).into_iter().map(|(position, _)| position).collect();
    assert_eq!(seqs, [4, 5, 6, 7], "the inbox owes what is there");
    let again = bench.say(a, Target::User(b), 1);
    assert_eq!((again.seq, again.delivery), (1, None), "its key is known for its window");
    assert_eq!(bench.sweep(u64::MAX).0, 4);
    assert_eq!((view(bench, pair, b), bench.stream(b, 0)), ((vec![], vec![(1, 7)]), vec![]));
    assert_eq!(bench.unread("c2c:a:b", b), 0);
    let next = say_at(bench, a, Target::User(b), 9, 1 << 40);
    assert_eq!((next.seq, bench.store.retention_ms()), (8, u64::MAX), "numbers go on");
    bench.acked(b, phone, 99);
    assert_eq!(bench.stream_end(b), 8);
}

pub(super) fn a_conversation_may_be_kept_longer_or_shorter<S: Store>(bench: &mut Bench<S>) {
    let [a, b, c] = ["a", "b", "c"].map(|uid| bench.user(uid));
    let pair = say_at(bench, a, Target::User(b), 1, 1000).conversation;
    let other = say_at(bench, a, Target::User(c), 2, 1000).conversation;
    assert_eq!(bench.store.sweep_need(), SweepNeed::Nothing, "everything is kept");
    let keep = |conversation, keep_s| Write::SetRetention { conversation, keep_s };
    bench.done(keep(pair, 60)).expect("set");
    assert_eq!((bench.store.sweep_need(), bench.sweep(unix(61_000)).0), (SweepNeed::Expiry, 1));
    assert_eq!((view(bench, pair, a).0.len(), view(bench, other, a).0.len()), (0, 1));
    bench.done(keep(pair, KEEP_FOR_EVER)).expect("set");
    assert_eq!(bench.store.sweep_need(), SweepNeed::Nothing);
}

pub(super) fn a_deleted_user_leaves_nothing_and_may_come_again<S: Store>(bench: &mut Bench<S>) {
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|uid| bench.user(uid));
    let group = bench.create(a, vec![b, c]).expect("created");
    let phone = bench.login("a", "phone").device;
    bench.login("b", "pad");
    let pair = bench.say(a, Target::User(b), 1).conversation;
    bench.say(b, Target::User(a), 2);
    bench.say(a, Target::Conversation(group), 3);
    bench.say(b, Target::Conversation(group), 4);
    bench.say(a, Target::Conversation(group), 5);
    bench.done(Write::SetProfile { user: a, profile: Bytes::from_static(b"a") }).expect("set");
    bench.relate(a, b, RelationChange::Befriend).expect("asked");
    bench.relate(d, a, RelationChange::Block).expect("blocked");
    let left = Write::CreateGroup { name: "h".into(), creator: by(c), members: vec![a], event: event() };
    let outcome = bench.commit(0, vec![left]).pop();
    let Some((Outcome::Created(Ok((parted, _))), _)) = outcome else { panic!("{outcome:?}") };
    bench.say(a, Target::Conversation(parted), 6);
    bench.change(parted, a, GroupChange::Leave).expect("left");
    let to_id = bench.next_id;
    let deleted = bench.done(Write::DeleteUser { user: a, to_id, event: event() });
    assert_eq!(deleted, Ok(vec![b]), "who has a relation is told; who has only blocked her is not");
    assert_eq!((bench.devices(a), bench.conversations(a), bench.profile("a")), (vec![], vec![], None));
    assert_eq!(
        (bench.relation(a, b).friendship, bench.relation(b, a).friendship),
        (Friendship::None, Friendship::None)
    );
    assert!(bench.relation(d, a).is_blocked, "it is d's");
    assert_eq!(bench.member(group, a), None);
    assert_eq!(bench.member(group, b).map(|member| member.role()), Some(Role::Owner));
    // She comes again before the sweeps are done.
    let again = bench.login("a", "phone");
    assert!(again.is_new && again.device != phone, "{again:?}");
    bench.next_id += 10;
    let new = bench.say(a, Target::User(b), 1);
    assert_eq!((new.seq, new.delivery.is_some()), (3, true), "her old keys are not hers any more");
    let (removed, told) = bench.sweep(0);
    assert_eq!(
        (removed, told),
        (4, vec![b, c, a, b, c]),
        "of the group, of the pair, of the group that she had left"
    );
    assert_eq!(view(bench, pair, b), (vec![2, 3, 4], vec![(1, 1)]), "the last one says so");
    assert_eq!(view(bench, pair, a), (vec![3, 4], vec![(1, 2)]), "nothing of before is hers");
    assert_eq!(view(bench, group, c), (vec![2, 4], vec![(1, 1), (3, 3)]));
    assert_eq!(view(bench, parted, c), (vec![2], vec![(1, 1)]), "also where she had left");
    assert_eq!((bench.unread("group:g", c), bench.store.sweep_need()), (1, SweepNeed::Nothing));
    assert_eq!(bench.conversations(a), ["c2c:a:b"]);
    let ids: Vec<_> = bench.stream(b, 0).into_iter().filter(|(_, id)| *id == 1).collect();
    assert_eq!(ids, [], "her message is not owed to his pad any more");
}
