//! Events that many users are told are stored once, and inboxes name them.

use super::bench::Bench;
use super::by;
use crate::im::store::{
    Command, Completion, Entry, GroupChange, GroupEdit, GroupSettings, Read, Refusal, Store, Target, TellKey,
    UserId, Write,
};
use bytes::Bytes;
use moorline_proto::ids::MessageKey;

/// Everything in a user's inbox: events, and an empty text where some are gone.
fn inbox<S: Store>(bench: &mut Bench<S>, user: UserId) -> Vec<Bytes> {
    let read = Read::Stream { user, after: 0, limit: 1000, into: Vec::new() };
    let Completion::Stream(page) = bench.command(Command::Read(read)) else { panic!("not a stream") };
    let text = |(_, entry): (u64, Entry)| match entry {
        Entry::Event { body, .. } => body,
        Entry::EventsDropped => Bytes::new(),
        other => panic!("not an event: {other:?}"),
    };
    page.entries.into_iter().map(text).collect()
}

fn text(what: &str, number: u64) -> Bytes {
    Bytes::from(format!("{what} {number}"))
}

pub(super) fn they_are_stored_once<S: Store>(bench: &mut Bench<S>) {
    let users = ["a", "b", "c", "d"].map(|uid| bench.user(uid));
    let [a, b, ..] = users;
    let group = bench.create(a, users[1..].to_vec()).expect("created");
    bench.login("b", "phone");
    let change = |edit: GroupEdit, event: Bytes| Write::ChangeGroup {
        conversation: group,
        by: by(a),
        change: GroupChange::Edit(edit),
        event,
    };
    let settings = |number: u64| {
        let settings = GroupSettings { notice: format!("{number}"), ..GroupSettings::default() };
        change(GroupEdit { settings: Some(settings), ..GroupEdit::default() }, text("settings", number))
    };
    let silence = |number: u64| {
        change(GroupEdit { silence: Some((b, number)), ..GroupEdit::default() }, text("silence", number))
    };
    let before = inbox(bench, b).len();
    for number in 1..=5 {
        assert_eq!(bench.done(settings(number)).expect("the owner").len(), 4, "all are told");
    }
    let seen = inbox(bench, b);
    assert_eq!(seen[before..], [text("settings", 5)], "the last says it all");
    for number in 1..=3 {
        bench.done(silence(number)).expect("the owner");
    }
    bench.done(settings(6)).expect("the owner");
    let seen = inbox(bench, b);
    let expected: Vec<_> =
        (1..=3).map(|number| text("silence", number)).chain([text("settings", 6)]).collect();
    assert_eq!(seen[before..], expected);
    for number in 4..=100 {
        bench.done(silence(number)).expect("the owner");
    }
    let seen = inbox(bench, b);
    let expected: Vec<_> = (37..=100).map(|number| text("silence", number)).collect();
    let (newest, dropped) = (&seen[seen.len() - 64..], &seen[seen.len() - 65]);
    assert_eq!(
        (newest, dropped),
        (&expected[..], &Bytes::new()),
        "64 events, and a word that there were more"
    );
    assert_eq!(seen.iter().filter(|text| text.is_empty()).count(), 1, "one word");
    for number in 1..=3 {
        let tell = Write::Tell { users: users.to_vec(), event: text("news", number), key: None };
        assert_eq!(bench.done(tell).expect("told").len(), 4);
    }
    bench.done(Write::Tell { users: vec![b], event: text("secret", 1), key: None }).expect("told");
    let seen = inbox(bench, b);
    let news = [text("news", 1), text("news", 2), text("news", 3), text("secret", 1)];
    assert_eq!(seen[seen.len() - 4..], news);
}

pub(super) fn a_key_tells_each_user_once<S: Store>(bench: &mut Bench<S>) {
    let [a, b, c] = ["a", "b", "c"].map(|uid| bench.user(uid));
    let tell = |bench: &mut Bench<S>, users: &[UserId], key: u8, digest: u64| {
        bench.next_id += 1;
        let key = TellKey { key: MessageKey([key; 16]), digest, id: bench.next_id };
        bench.done(Write::Tell { users: users.to_vec(), event: text("news", digest), key: Some(key) })
    };
    assert_eq!(tell(bench, &[a, b], 1, 7), Ok(vec![a, b]));
    assert_eq!(tell(bench, &[a, b], 1, 7), Ok(vec![]), "both have it");
    assert_eq!(tell(bench, &[b, c], 1, 7), Ok(vec![c]), "as after a call of which a part was done");
    assert_eq!(tell(bench, &[a, b], 2, 7), Ok(vec![a, b]), "another key");
    assert_eq!(tell(bench, &[a], 1, 8), Err(Refusal::Conflict), "other content");
    let said = bench.draft(a, 0, Target::User(b), 1, 7);
    assert!(bench.append(said).is_ok(), "keys of messages are others");
    let read = Read::Stream { user: b, after: 0, limit: 1000, into: Vec::new() };
    let Completion::Stream(page) = bench.command(Command::Read(read)) else { panic!("not a stream") };
    let news = page.entries.iter().filter(|(_, entry)| matches!(entry, Entry::Event { .. }));
    assert_eq!(news.count(), 2, "of each key");
    for key in 3..90 {
        assert_eq!(tell(bench, &[c], key, 9), Ok(vec![c]));
    }
    assert_eq!(tell(bench, &[c], 89, 9), Ok(vec![]));
    assert_eq!(tell(bench, &[c], 30, 9), Ok(vec![]), "the last 64 at least are known");
}
