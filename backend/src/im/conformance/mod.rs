//! Duties of every [`Store`], as one function that its tests call.

mod bench;
mod deletion;
mod events;
mod invitations;
mod limits;

#[cfg(test)]
pub(super) use bench::stream_of;

use super::store::{
    DeviceNumber, Friendship, GroupChange, GroupEdit, GroupSettings, Origin, Outcome, PageLimits, Recall,
    Refusal, RelationChange, Role, Store, Stored, Target, UserId, Write,
};
use crate::config::{ImConfig, WhoMayWrite};
use bench::Bench;
use bytes::Bytes;
use moorline_proto::message::client::Push;
use moorline_proto::message::decode;
use moorline_proto::message::im::{Happened, happened};
use prost::Message;
use std::time::Duration;

const WIDE: PageLimits = PageLimits { messages: 1000, bytes: 1 << 20 };

/// Runs every check, each on a fresh store of `open`.
///
/// # Panics
/// If the store does not do what [`Store`] says.
pub fn check<S: Store>(open: impl FnMut(&ImConfig) -> S) {
    check_some(open, |_| true);
}

/// Runs the checks whose names are wanted, for a store that is not complete. Returns their number.
///
/// # Panics
/// If the store does not do what [`Store`] says.
pub fn check_some<S: Store>(mut open: impl FnMut(&ImConfig) -> S, is_wanted: impl Fn(&str) -> bool) -> usize {
    let mut count = 0;
    let mut run = |name: &str, config: ImConfig, check: Check<S>| {
        if is_wanted(name) {
            count += 1;
            check(&mut Bench::new(open(&config)));
        }
    };
    run_of_messages(&mut run);
    run_of_the_rest(&mut run);
    count
}

/// One check, on a fresh store.
type Check<S> = fn(&mut Bench<S>);

fn run_of_messages<S: Store>(mut run: impl FnMut(&str, ImConfig, Check<S>)) {
    run("seqs_are_dense_and_keys_count_once", ImConfig::default(), seqs_are_dense_and_keys_count_once);
    run(
        "keys_are_forgotten",
        ImConfig { idempotency_window: Duration::from_millis(100), ..ImConfig::default() },
        keys_are_forgotten,
    );
    run(
        "only_members_write_and_read",
        ImConfig { group_members_max: 3, ..ImConfig::default() },
        only_members_write_and_read,
    );
    run("pages_cover_their_range", ImConfig::default(), pages_cover_their_range);
    run(
        "inboxes_wait_for_every_device",
        ImConfig { devices_max: 2, ..ImConfig::default() },
        inboxes_wait_for_every_device,
    );
    run(
        "full_inboxes_say_where_to_pull",
        ImConfig { inbox_entries_max: 3, ..ImConfig::default() },
        full_inboxes_say_where_to_pull,
    );
    run(
        "roles_say_who_may_do_what",
        ImConfig { group_members_max: 4, ..ImConfig::default() },
        roles_say_who_may_do_what,
    );
    run("messages_are_taken_back_once", ImConfig::default(), messages_are_taken_back_once);
    run("what_is_read_is_told_and_counted", ImConfig::default(), what_is_read_is_told_and_counted);
}

fn run_of_the_rest<S: Store>(mut run: impl FnMut(&str, ImConfig, Check<S>)) {
    run(
        "friends_and_blocks_say_who_may_write",
        ImConfig {
            who_may_write: WhoMayWrite::Friends,
            relations_max: 2,
            blocks_max: 1,
            ..ImConfig::default()
        },
        friends_and_blocks_say_who_may_write,
    );
    run(
        "large_groups_are_read_by_cursor",
        ImConfig { fanout_members_max: 3, ..ImConfig::default() },
        large_groups_are_read_by_cursor,
    );
    run("invitations_say_who_may_join", ImConfig::default(), invitations::they_say_who_may_join);
    run("devices_and_profiles_are_kept", ImConfig::default(), devices_and_profiles_are_kept);
    run("they_are_stored_once", ImConfig::default(), events::they_are_stored_once);
    run("a_key_tells_each_user_once", ImConfig::default(), events::a_key_tells_each_user_once);
    run(
        "a_dissolved_group_is_gone_and_its_seqs_are_not_given_again",
        ImConfig::default(),
        deletion::a_dissolved_group_is_gone_and_its_seqs_are_not_given_again,
    );
    run("the_last_member_ends_a_group", ImConfig::default(), deletion::the_last_member_ends_a_group);
    run(
        "a_conversation_is_deleted_for_one_user",
        ImConfig::default(),
        deletion::a_conversation_is_deleted_for_one_user,
    );
    run(
        "expired_messages_become_voids",
        ImConfig { retention: Duration::from_secs(100), ..ImConfig::default() },
        deletion::expired_messages_become_voids,
    );
    run(
        "a_conversation_may_be_kept_longer_or_shorter",
        ImConfig::default(),
        deletion::a_conversation_may_be_kept_longer_or_shorter,
    );
    run(
        "a_conversation_takes_what_the_operator_allows",
        ImConfig::default(),
        limits::it_takes_what_is_allowed,
    );
    run(
        "a_deleted_user_leaves_nothing_and_may_come_again",
        ImConfig::default(),
        deletion::a_deleted_user_leaves_nothing_and_may_come_again,
    );
}

/// On a device that nobody has.
fn by(user: UserId) -> Origin {
    (user, DeviceNumber(99))
}

fn event() -> Bytes {
    Bytes::from_static(b"an event")
}

/// Instead of the id of a message.
const EVENT: u64 = 99_999;

fn seqs_are_dense_and_keys_count_once<S: Store>(bench: &mut Bench<S>) {
    let (a, b, c) = (bench.user("a"), bench.user("b"), bench.user("c"));
    let batch = vec![
        bench.draft(a, 0, Target::User(b), 1, 7),
        bench.draft(b, 0, Target::User(a), 1, 7), // the same key of another sender
        bench.draft(a, 0, Target::User(b), 1, 7), // again, in one batch
        bench.draft(a, 0, Target::User(b), 1, 8), // other content
        bench.draft(a, 0, Target::User(c), 1, 7), // other target
        bench.draft(a, 0, Target::User(b), 2, 7),
    ];
    let outcomes = bench.commit(0, batch);
    let results: Vec<_> = outcomes
        .iter()
        .map(|(outcome, _)| match outcome {
            Outcome::Appended(Ok(stored)) => Ok((stored.seq, stored.id, stored.delivery.is_some())),
            Outcome::Appended(Err(refusal)) => Err(*refusal),
            other => panic!("an Append was answered by {other:?}"),
        })
        .collect();
    let conflict = Err(Refusal::Conflict);
    assert_eq!(
        results,
        [Ok((1, 1, true)), Ok((2, 2, true)), Ok((1, 1, false)), conflict, conflict, Ok((3, 6, true))]
    );
    let conversation = bench.find("c2c:a:b").expect("it came with its first message");
    let mut id = String::new();
    bench.conversation(conversation).write_id(conversation, &mut id);
    assert_eq!((id.as_str(), bench.conversation(conversation).latest(conversation)), ("c2c:a:b", 3));
    assert!(!bench.conversation(conversation).is_group(conversation) && bench.find("c2c:a:c").is_none());
    let again = bench.say(a, Target::Conversation(conversation), 1);
    assert_eq!((again.seq, again.delivery), (1, None), "the target may be named either way");
    let page = bench.page(conversation, b, (1, 9), WIDE).expect("b is in it");
    let read: Vec<_> = page.messages.iter().map(|it| Push::decode(it.clone()).expect("a Push")).collect();
    assert_eq!(read.iter().map(|it| (it.seq, it.message_id)).collect::<Vec<_>>(), [(1, 1), (2, 2), (3, 6)]);
}

fn say_at<S: Store>(bench: &mut Bench<S>, now_ms: u64, key: u8) -> u64 {
    let (a, b) = (bench.user("a"), bench.user("b"));
    let draft = bench.draft(a, 0, Target::User(b), key, 7);
    match bench.commit(now_ms, vec![draft]).pop() {
        Some((Outcome::Appended(Ok(stored)), _)) => stored.seq,
        other => panic!("not stored: {other:?}"),
    }
}

fn keys_are_forgotten<S: Store>(bench: &mut Bench<S>) {
    let mut say = |now_ms, key| say_at(bench, now_ms, key);
    assert_eq!([say(0, 1), say(99, 1), say(100, 1)], [1, 1, 2], "after the window it is a new message");
}

/// For a store that remembers only `idempotency_entries_max` keys, of two.
///
/// # Panics
/// If it does not.
pub fn check_few_keys<S: Store>(store: S) {
    let bench = &mut Bench::new(store);
    let mut say = |now_ms, key| say_at(bench, now_ms, key);
    assert_eq!([say(1, 1), say(1, 2), say(1, 1)], [1, 2, 1]);
    assert_eq!([say(1, 3), say(1, 1)], [3, 4], "the oldest makes room");
}

fn only_members_write_and_read<S: Store>(bench: &mut Bench<S>) {
    let (a, b, c, d) = (bench.user("a"), bench.user("b"), bench.user("c"), bench.user("d"));
    let group = bench.create(a, vec![b, b, a]).expect("created");
    assert_eq!(bench.find("group:g"), Some(group));
    assert_eq!(bench.create(a, vec![]), Ok(group), "the same creator again");
    assert_eq!(bench.create(b, vec![]), Err(Refusal::Conflict));
    assert_eq!(bench.members(group), [a, b]);
    assert!(bench.member(group, c).is_none());
    let target = Target::Conversation(group);
    bench.say(a, target, 1);
    let outsider = bench.draft(c, 0, target, 1, 7);
    assert_eq!(bench.append(outsider), Err(Refusal::NotMember));
    assert_eq!(bench.page(group, c, (1, 1), WIDE), Err(Refusal::NotMember));
    let change =
        |who, change| Write::ChangeGroup { conversation: group, by: by(who), change, event: event() };
    let first = bench.draft(c, 0, target, 2, 7);
    let outcomes = bench.commit(0, vec![change(c, GroupChange::Join), first, change(b, GroupChange::Leave)]);
    assert_eq!(outcomes[0].1.len(), 3, "all members are told, the new one too");
    assert!(matches!(&outcomes[1].0, Outcome::Appended(Ok(stored)) if stored.seq == 2), "in order");
    assert_eq!(outcomes[2].1.len(), 3, "so is who has left");
    assert_eq!(bench.change(group, c, GroupChange::Join), Ok(vec![]), "joining twice changes nothing");
    assert_eq!(bench.change(group, d, GroupChange::Join), Ok(vec![a, c, d]));
    assert_eq!(bench.change(group, b, GroupChange::Join), Err(Refusal::GroupFull));
    assert_eq!(bench.change(group, b, GroupChange::Leave), Ok(vec![]), "so does leaving twice");
    assert_eq!((bench.conversation(group).member_count(group), bench.conversations(b)), (3, vec![]));
    let page = bench.page(group, c, (1, 2), WIDE).expect("a member");
    assert_eq!((page.voids, page.messages.len()), (vec![(1, 1)], 1), "what was said before is not for c");
    let direct = bench.say(a, Target::User(b), 9).conversation;
    assert_eq!(bench.change(direct, c, GroupChange::Join), Err(Refusal::Denied));
    assert_eq!(bench.conversations(a), ["c2c:a:b", "group:g"]);
    let own = bench.say(a, Target::User(a), 10).conversation;
    assert_eq!((bench.find("c2c:a:a"), bench.conversation(own).member_count(own)), (Some(own), 1));
}

fn pages_cover_their_range<S: Store>(bench: &mut Bench<S>) {
    let (a, b) = (bench.user("a"), bench.user("b"));
    let conversation =
        (1..=9).map(|key| bench.say(a, Target::User(b), key).conversation).last().expect("nine");
    let mut read = |range, messages, bytes| {
        let page = bench.page(conversation, b, range, PageLimits { messages, bytes });
        let page = page.expect("b is in it");
        let seqs = page.messages.into_iter().map(|it| Push::decode(it).expect("a Push").seq);
        assert_eq!((page.latest, page.voids), (9, vec![]));
        (seqs.collect::<Vec<_>>(), page.more)
    };
    assert_eq!(read((3, 5), 10, 1 << 20), (vec![3, 4, 5], false));
    assert_eq!(read((3, 5), 2, 1 << 20), (vec![3, 4], true));
    assert_eq!(read((8, u64::MAX), 2, 1 << 20), (vec![8, 9], false));
    assert_eq!(read((1, 9), 10, 1), (vec![1], true), "one message always fits");
    assert_eq!(read((10, 20), 10, 1 << 20), (vec![], false));
}

fn inboxes_wait_for_every_device<S: Store>(bench: &mut Bench<S>) {
    let (a, b) = (bench.user("a"), bench.user("b"));
    let from = bench.login("a", "phone").device;
    let draft = bench.draft(a, from.0, Target::User(b), 1, 7);
    let outcomes = bench.commit(0, vec![draft]);
    assert_eq!(outcomes[0].1, [(b, 1)], "a's only device wrote it");
    assert_eq!((bench.stream(b, 0), bench.stream_end(b)), (vec![(1, 1)], 1), "before b's first login");
    let phone = bench.login("b", "phone");
    assert_eq!((phone.acked, phone.forgotten), (0, None));
    let pad = bench.login("b", "pad").device;
    assert_ne!(phone.device, pad);
    bench.say(a, Target::User(b), 2);
    bench.acked(b, phone.device, 2);
    assert_eq!(bench.login("b", "phone").acked, 2);
    assert_eq!(bench.stream(b, 0).len(), 2, "the pad has nothing yet");
    bench.acked(b, pad, 1);
    assert_eq!(bench.stream(b, 0), [(2, 2)]);
    let draft = bench.draft(b, pad.0, Target::User(a), 3, 7);
    let outcomes = bench.commit(0, vec![draft]);
    assert_eq!(outcomes[0].1.iter().map(|(user, _)| *user).collect::<Vec<_>>(), [a, b], "b's phone wants it");
    let desk = bench.login("b", "desk");
    assert_eq!((desk.forgotten, desk.acked), (Some(pad), 0), "its login is longest ago");
    bench.acked(b, pad, 99);
    bench.acked(b, phone.device, 3);
    bench.acked(b, desk.device, 3);
    assert_eq!((bench.stream(b, 0), bench.stream_end(b)), (vec![], 3));
    assert_eq!(bench.say(a, Target::User(b), 4).seq, 4);
    assert_eq!(bench.stream(b, 3), [(4, 4)], "positions go on");
}

fn full_inboxes_say_where_to_pull<S: Store>(bench: &mut Bench<S>) {
    let (a, b, c) = (bench.user("a"), bench.user("b"), bench.user("c"));
    bench.login("b", "phone");
    bench.say(c, Target::User(b), 1);
    for key in 1..=4 {
        bench.say(a, Target::User(b), key);
    }
    assert_eq!(bench.stream(b, 0), [(1, 0), (2, 0), (3, 3), (4, 4), (5, 5)]);
    bench.say(a, Target::User(b), 5);
    assert_eq!(bench.stream(b, 0), [(1, 0), (3, 0), (4, 4), (5, 5), (6, 6)], "one per conversation");
    let conversation = bench.find("c2c:a:b").expect("spoken");
    let page = bench.page(conversation, b, (1, 9), WIDE).expect("b is in it");
    assert_eq!(page.messages.len(), 5, "the history has them all");
}

fn roles_say_who_may_do_what<S: Store>(bench: &mut Bench<S>) {
    let [a, b, c, d, other] = ["a", "b", "c", "d", "e"].map(|uid| bench.user(uid));
    let group = bench.create(a, vec![b, c]).expect("created");
    let role = |bench: &mut Bench<S>, user| bench.member(group, user).map(|member| member.role());
    let edit = GroupEdit::default;
    let set = |user, role| GroupChange::Edit(GroupEdit { role: Some((user, role)), ..edit() });
    let add = |users: &[UserId]| GroupChange::Edit(GroupEdit { add: users.to_vec(), ..edit() });
    let remove = |users: &[UserId]| GroupChange::Edit(GroupEdit { remove: users.to_vec(), ..edit() });
    let silence = |user, until| GroupChange::Edit(GroupEdit { silence: Some((user, until)), ..edit() });
    let settings = |by_invitation, is_silent| {
        let settings = GroupSettings { title: "t".into(), notice: String::new(), by_invitation, is_silent };
        GroupChange::Edit(GroupEdit { settings: Some(settings), ..edit() })
    };
    assert_eq!((role(bench, a), role(bench, b)), (Some(Role::Owner), Some(Role::Member)));
    let refused = Err(Refusal::NotAllowed);
    for change in [set(c, Role::Admin), remove(&[c]), settings(true, false), silence(c, 9)] {
        assert_eq!(bench.change(group, b, change), refused, "a member");
    }
    assert_eq!(bench.change(group, d, add(&[other])), Err(Refusal::NotMember));
    assert_eq!(bench.change(group, a, set(d, Role::Admin)), Err(Refusal::NotMember));
    assert_eq!(bench.change(group, a, set(b, Role::Admin)), Ok(vec![a, b, c]));
    assert_eq!(bench.change(group, a, set(b, Role::Admin)), Ok(vec![]), "no change");
    assert_eq!(bench.change(group, b, remove(&[a])), refused);
    assert_eq!(bench.change(group, b, set(c, Role::Admin)), refused);
    assert_eq!(bench.change(group, c, add(&[d])), Ok(vec![a, b, c, d]), "any member may");
    assert_eq!(bench.change(group, c, add(&[other])), Err(Refusal::GroupFull));
    assert_eq!(bench.change(group, b, settings(true, true)), Ok(vec![a, b, c, d]));
    assert_eq!(bench.conversation(group).settings(group).title, "t");
    assert_eq!(bench.change(group, b, remove(&[d])), Ok(vec![a, b, c, d]), "the one removed too");
    assert_eq!(
        (bench.change(group, c, add(&[d])), bench.change(group, d, GroupChange::Join)),
        (refused.clone(), refused)
    );
    let target = Target::Conversation(group);
    let said = bench.draft(c, 0, target, 1, 7);
    assert_eq!(bench.append(said), Err(Refusal::Silent), "only administrators speak");
    assert_eq!(bench.say(b, target, 1).seq, 1);
    bench.change(group, a, settings(false, false)).expect("the owner");
    bench.change(group, b, silence(c, 1)).expect("an administrator");
    let said = bench.draft(c, 0, target, 1, 7);
    assert_eq!(bench.append(said), Err(Refusal::Silent), "until 1 ms, and it is 0");
    let said = bench.draft(c, 0, target, 1, 7);
    let outcome = bench.commit(1, vec![said]).pop();
    assert!(matches!(outcome, Some((Outcome::Appended(Ok(Stored { seq: 2, .. })), _))));
    let heirless = GroupEdit { remove: vec![c], role: Some((c, Role::Owner)), ..edit() };
    assert_eq!(bench.change(group, a, GroupChange::Edit(heirless)), Err(Refusal::Denied));
    assert_eq!(bench.change(group, a, set(c, Role::Owner)), Ok(vec![a, b, c]));
    assert_eq!((role(bench, a), role(bench, c)), (Some(Role::Admin), Some(Role::Owner)));
    bench.change(group, c, GroupChange::Leave).expect("left");
    assert_eq!(role(bench, a), Some(Role::Owner), "the administrator that is in it longest");
}

fn recall(bench: &mut Bench<impl Store>, who: UserId, of: &Stored, key: u8) -> Write {
    let target = Target::Conversation(of.conversation);
    match bench.draft(who, 0, target, key, 3) {
        Write::Append(draft) => Write::Recall(Recall { draft, seq: of.seq, message_id: of.id }),
        other => other,
    }
}

fn messages_are_taken_back_once<S: Store>(bench: &mut Bench<S>) {
    let (a, b, c) = (bench.user("a"), bench.user("b"), bench.user("c"));
    let group = bench.create(a, vec![b, c]).expect("created");
    let said = bench.say(b, Target::Conversation(group), 1);
    assert_eq!(bench.unread("group:g", c), 1);
    let wish = recall(bench, c, &said, 9);
    assert_eq!(bench.append(wish), Err(Refusal::NotAllowed), "neither the sender nor an administrator");
    let wrong = Stored { id: said.id + 1, ..said.clone() };
    let wish = recall(bench, b, &wrong, 9);
    assert_eq!(bench.append(wish), Err(Refusal::NotFound), "not its id");
    let wish = recall(bench, b, &said, 9);
    let done = bench.append(wish).expect("taken back");
    assert_eq!((done.seq, done.delivery.is_some()), (2, true));
    let wish = recall(bench, b, &said, 9);
    let again = bench.append(wish).expect("the same wish");
    assert_eq!((again.seq, again.delivery), (2, None));
    let wish = recall(bench, a, &said, 8);
    assert_eq!(bench.append(wish), Err(Refusal::Denied), "there is nothing left to take back");
    let page = bench.page(group, c, (1, 9), WIDE).expect("a member");
    let first: Push = decode(&page.messages[0]).expect("a Push");
    let Happened { what: Some(happened::What::Recalled(recalled)) } =
        decode(&first.happened).expect("it says so")
    else {
        panic!("{first:?}")
    };
    assert_eq!((first.seq, recalled.seq, recalled.message_id, &*recalled.by), (1, 1, said.id, "b"));
    assert!(first.payload.is_empty() && page.messages.len() == 2);
    assert_eq!(bench.unread("group:g", c), 0, "neither counts");
    // Who takes something back has read nothing for that.
    let unread = bench.say(c, Target::Conversation(group), 10);
    assert_eq!(bench.unread("group:g", b), 1);
    let mine = bench.say(b, Target::Conversation(group), 11);
    bench.say(c, Target::Conversation(group), 12);
    let wish = recall(bench, b, &mine, 13);
    bench.append(wish).expect("taken back");
    assert_eq!(bench.unread("group:g", b), 1, "not {}, but what came after", unread.seq);
    let old = bench.say(b, Target::Conversation(group), 2);
    let wish = recall(bench, b, &old, 7);
    let late = bench.commit(crate::im::time_ms(old.id) + 86_400_001, vec![wish]).pop();
    assert!(matches!(late, Some((Outcome::Appended(Err(Refusal::TooLate)), _))), "{late:?}");
    let wish = recall(bench, a, &old, 6);
    assert!(bench.append(wish).is_ok(), "the owner may");
    let both = bench.say(b, Target::Conversation(group), 3);
    let wishes = vec![recall(bench, b, &both, 5), recall(bench, a, &both, 4)];
    let results: Vec<_> = bench.commit(1, wishes).into_iter().map(|(outcome, _)| outcome).collect();
    assert!(
        matches!(&results[..], [Outcome::Appended(Ok(_)), Outcome::Appended(Err(Refusal::Denied))]),
        "once, also in one batch: {results:?}"
    );
}

fn what_is_read_is_told_and_counted<S: Store>(bench: &mut Bench<S>) {
    let (a, b) = (bench.user("a"), bench.user("b"));
    let phone = bench.login("b", "phone").device;
    let conversation =
        (1..=5).map(|key| bench.say(a, Target::User(b), key).conversation).last().expect("five");
    assert_eq!((bench.unread("c2c:a:b", a), bench.unread("c2c:a:b", b)), (0, 5));
    let read = |by, seq| Write::Read { conversation, by, seq, event: event() };
    assert_eq!(bench.done(read((b, phone), 3)), Ok(vec![a]), "b has no other device");
    assert_eq!(bench.done(read((b, phone), 2)), Ok(vec![]), "it never goes back");
    assert_eq!(bench.unread("c2c:a:b", b), 2);
    let pad = bench.login("b", "pad").device;
    assert_eq!(bench.done(read((b, pad), 99)), Ok(vec![a, b]), "the phone is told");
    let member = bench.member(conversation, b).expect("a member");
    assert_eq!((member.read, bench.unread("c2c:a:b", b)), (5, 0), "not beyond the newest");
    bench.say(a, Target::User(b), 6);
    bench.say(b, Target::User(a), 7);
    assert_eq!(bench.unread("c2c:a:b", b), 0, "who answers has read");
    let last = bench.stream(a, 0).len();
    assert_eq!(bench.stream(a, 0)[last - 2..].iter().map(|it| it.1).collect::<Vec<_>>()[0], 6);
    let c = bench.user("c");
    assert_eq!(bench.done(read(by(c), 1)), Err(Refusal::NotMember));
}

fn friends_and_blocks_say_who_may_write<S: Store>(bench: &mut Bench<S>) {
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|uid| bench.user(uid));
    let say = |bench: &mut Bench<S>, from, to, key| {
        let draft = bench.draft(from, 0, Target::User(to), key, 7);
        bench.append(draft).map(|stored| stored.seq)
    };
    assert_eq!(say(bench, a, b, 1), Err(Refusal::NotFriends));
    assert!(bench.find("c2c:a:b").is_none(), "nothing came of it");
    assert_eq!(bench.relate(a, b, RelationChange::Befriend), Ok(vec![a, b]));
    let friendship = |bench: &mut Bench<S>, user, other| bench.relation(user, other).friendship;
    assert_eq!((friendship(bench, a, b), friendship(bench, b, a)), (Friendship::Asked, Friendship::WasAsked));
    assert_eq!(bench.relate(a, b, RelationChange::Befriend), Ok(vec![]), "asked already");
    assert_eq!(bench.relate(b, a, RelationChange::Befriend), Ok(vec![a, b]));
    assert_eq!(
        (friendship(bench, a, b), friendship(bench, b, a)),
        (Friendship::Friends, Friendship::Friends)
    );
    assert_eq!(say(bench, a, b, 1), Ok(1));
    assert_eq!(bench.relate(b, a, RelationChange::Block), Ok(vec![b]), "nobody else is told");
    assert_eq!((say(bench, a, b, 2), say(bench, b, a, 2)), (Err(Refusal::Blocked), Err(Refusal::Blocked)));
    assert_eq!(say(bench, a, b, 1), Ok(1), "stored before: the first result");
    assert_eq!(bench.relate(a, b, RelationChange::Befriend), Err(Refusal::Blocked));
    assert_eq!(bench.relate(b, a, RelationChange::Unblock), Ok(vec![b]));
    assert_eq!(say(bench, a, b, 2), Ok(2));
    assert_eq!(bench.relate(a, c, RelationChange::Befriend), Ok(vec![a, c]));
    assert_eq!(bench.relate(a, d, RelationChange::Befriend), Err(Refusal::TooManyRelations));
    assert_eq!(
        bench.relate(d, a, RelationChange::Befriend),
        Ok(vec![a, d]),
        "requests of others count apart"
    );
    assert_eq!(bench.relate(a, d, RelationChange::Block), Ok(vec![a]), "so do blocks");
    assert_eq!(bench.relate(a, c, RelationChange::Block), Err(Refusal::TooManyBlocks));
    assert_eq!(bench.relate(a, d, RelationChange::Unfriend), Ok(vec![a, d]));
    assert_eq!(bench.relate(a, d, RelationChange::Unblock), Ok(vec![a]));
    assert_eq!(bench.relate(a, a, RelationChange::Befriend), Err(Refusal::Denied));
    assert_eq!(bench.relations(a), [b, c]);
    assert_eq!(bench.relate(a, b, RelationChange::Unfriend), Ok(vec![a, b]));
    assert_eq!((bench.relations(b), say(bench, b, a, 3)), (vec![], Err(Refusal::NotFriends)));
}

fn large_groups_are_read_by_cursor<S: Store>(bench: &mut Bench<S>) {
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|uid| bench.user(uid));
    let group = bench.create(a, vec![b, c]).expect("created");
    let target = Target::Conversation(group);
    let phone = bench.login("b", "phone").device;
    let is_read = |stored: &Stored| stored.delivery.as_ref().map(|delivery| delivery.is_read_fanout);
    let first = bench.say(a, target, 1);
    assert_eq!((is_read(&first), bench.unconfirmed(b, phone)), (Some(false), vec![]));
    assert_eq!(bench.change(group, d, GroupChange::Join), Ok(vec![]), "with four nobody is told");
    let second = bench.say(a, target, 2);
    assert_eq!(is_read(&second), Some(true));
    assert_eq!(bench.stream(b, 0).last().map(|it| it.1), Some(first.id), "not in the inbox");
    assert_eq!(bench.unconfirmed(b, phone), [(group, 2)]);
    let confirm = |seq| Write::Confirm { by: (b, phone), conversation: group, seq };
    let pad = bench.login("b", "pad").device;
    assert_eq!(bench.unconfirmed(b, pad), [(group, 2)], "its inbox has 1: nobody else tells it of 2");
    bench.done(confirm(99)).expect("noted");
    assert_eq!((bench.unconfirmed(b, phone), bench.unread("group:g", b)), (vec![], 2));
    bench.say(a, target, 3);
    bench.change(group, d, GroupChange::Leave).expect("left");
    let fourth = bench.say(a, target, 4);
    assert_eq!(is_read(&fourth), Some(false), "three again");
    assert_eq!(bench.stream(b, 0).last().map(|it| it.1), Some(fourth.id));
    assert_eq!(bench.unconfirmed(b, phone), [(group, 3)], "3 was in no inbox");
    bench.done(confirm(5)).expect("noted");
    assert_eq!(bench.unconfirmed(b, phone), []);
    let end = bench.stream(b, 0).last().expect("an entry").0;
    for device in [phone, pad] {
        bench.done(Write::Acked { user: b, device, position: end, gone_ms: 0 }).expect("noted");
    }
    let tab = bench.login("b", "tab").device;
    assert_eq!(bench.unconfirmed(b, tab), [], "its inbox has nothing: for a new device it begins now");
    let page = bench.page(group, b, (1, 9), WIDE).expect("a member");
    assert_eq!((page.messages.len(), page.latest), (4, 4));
}

fn devices_and_profiles_are_kept<S: Store>(bench: &mut Bench<S>) {
    assert_eq!(bench.store.last_id(), 0);
    let (a, b) = (bench.user("a"), bench.user("b"));
    assert_eq!((bench.find_user("a"), bench.find_user("z")), (Some(a), None));
    assert_eq!(bench.profile("a"), None);
    for profile in [&b"one"[..], b"two"] {
        let profile = Bytes::copy_from_slice(profile);
        bench.done(Write::SetProfile { user: a, profile: profile.clone() }).expect("set");
        assert_eq!(bench.profile("a"), Some(profile));
    }
    let [phone, pad] = ["phone", "pad"].map(|name| bench.login("a", name).device);
    bench.say(b, Target::User(a), 1);
    bench.acked(a, pad, 1);
    bench.commit(0, vec![Write::Acked { user: a, device: pad, position: 0, gone_ms: 55 }]);
    let devices = bench.devices(a);
    let seen: Vec<_> = devices.iter().map(|it| (&*it.name, it.platform, it.seen_ms)).collect();
    assert_eq!(seen, [("phone", 2, 7), ("pad", 2, 55)]);
    assert_eq!(bench.stream(a, 0).len(), 1, "the phone has not acked");
    bench.done(Write::RemoveDevice { user: a, device: phone }).expect("removed");
    assert_eq!((bench.devices(a).len(), bench.stream(a, 0)), (1, vec![]), "nobody waits for it");
    bench.done(Write::RemoveDevice { user: a, device: phone }).expect("twice");
    assert_eq!(bench.done(Write::Tell { users: vec![a, b], event: event(), key: None }), Ok(vec![a, b]));
    assert_eq!(bench.stream(b, 0).last().map(|it| it.1), Some(EVENT));
    assert_eq!(bench.store.counts().users, 2);
    assert_eq!(bench.store.last_id(), bench.next_id);
}
