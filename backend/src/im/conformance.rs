//! What every [`Store`] must do, as one function that its tests call.

use super::store::{
    ConversationId, Delivery, DeviceNumber, Draft, Entry, Outcome, PageLimits, Refusal, SEQ_BYTES_MAX, Store,
    Stored, Target, UserId, Write,
};
use crate::clock::Clock;
use crate::config::ImConfig;
use bytes::BytesMut;
use moorline_proto::ids::MessageKey;
use moorline_proto::message::client::Push;
use prost::Message;
use std::time::Duration;

/// How long a batch may take to become durable here.
const COMMIT_MAX: Duration = Duration::from_secs(30);
const WIDE: PageLimits = PageLimits { messages: 1000, bytes: 1 << 20 };

/// Runs every check, each on a fresh store of `open`.
///
/// # Panics
/// If the store does not do what [`Store`] says.
pub fn check<S: Store>(mut open: impl FnMut(&ImConfig) -> S) {
    let mut fresh = |config: ImConfig| Bench { store: open(&config), next_id: 1 };
    seqs_are_dense_and_keys_count_once(&mut fresh(ImConfig::default()));
    let idempotency_window = Duration::from_millis(100);
    keys_are_forgotten(&mut fresh(ImConfig { idempotency_window, ..ImConfig::default() }));
    only_members_write_and_read(&mut fresh(ImConfig { group_members_max: 3, ..ImConfig::default() }));
    pages_cover_their_range(&mut fresh(ImConfig::default()));
    inboxes_wait_for_every_device(&mut fresh(ImConfig { devices_max: 2, ..ImConfig::default() }));
    full_inboxes_say_where_to_pull(&mut fresh(ImConfig { inbox_entries_max: 3, ..ImConfig::default() }));
}

struct Bench<S> {
    store: S,
    next_id: u64,
}

impl<S: Store> Bench<S> {
    fn user(&mut self, uid: &str) -> UserId {
        let user = self.store.try_user(uid).expect("room for users");
        assert_eq!(self.store.try_user(uid), Some(user), "a uid keeps its number");
        assert_eq!(self.store.uid(user), uid);
        user
    }

    fn commit(&mut self, now_ms: u64, batch: Vec<Write>) -> Vec<(Outcome, Vec<(UserId, u64)>)> {
        let wanted = batch.len();
        assert!(self.store.try_commit(now_ms, batch).is_ok(), "an idle store takes a batch");
        let clock = Clock::new();
        let deadline = clock.read().instant + COMMIT_MAX;
        let committed = loop {
            match self.store.poll_committed() {
                Some(committed) => break committed,
                None => assert!(clock.read().instant < deadline, "the batch never became durable"),
            }
            std::thread::yield_now();
        };
        assert_eq!(committed.outcomes.len(), wanted, "one outcome per write");
        let inboxes = |outcome: &Outcome| match outcome {
            Outcome::Appended(Ok(Stored { delivery: Some(Delivery { recipients, .. }), .. })) => {
                committed.recipients[recipients.clone()].iter().map(|it| (it.user, it.position)).collect()
            }
            _ => Vec::new(),
        };
        let inboxes: Vec<_> = committed.outcomes.iter().map(inboxes).collect();
        committed.outcomes.into_iter().zip(inboxes).collect()
    }

    fn draft(&mut self, sender: UserId, device: u32, target: Target, key: u8, digest: u64) -> Write {
        let id = self.next_id;
        self.next_id += 1;
        let push = Push { message_id: id, sender: self.store.uid(sender).into(), ..Default::default() };
        let mut body = BytesMut::with_capacity(push.encoded_len() + SEQ_BYTES_MAX);
        push.encode_raw(&mut body);
        let (device, key) = (DeviceNumber(device), MessageKey([key; 16]));
        Write::Append(Draft { sender, device, target, key, id, digest, body })
    }

    fn append(&mut self, draft: Write) -> Result<Stored, Refusal> {
        let Some((Outcome::Appended(result), _)) = self.commit(0, vec![draft]).pop() else {
            panic!("an Append is answered by Appended");
        };
        result
    }

    fn say(&mut self, sender: UserId, target: Target, key: u8) -> Stored {
        let draft = self.draft(sender, 0, target, key, 7);
        self.append(draft).expect("stored")
    }

    fn group(&mut self, write: Write) -> Result<ConversationId, Refusal> {
        match self.commit(0, vec![write]).pop() {
            Some((Outcome::Group(result), _)) => result,
            other => panic!("a group operation was answered by {other:?}"),
        }
    }

    fn acked(&mut self, user: UserId, device: DeviceNumber, position: u64) {
        self.commit(0, vec![Write::Acked { user, device, position }]);
    }

    /// Positions and ids (0: dropped) after `after`.
    fn stream(&self, user: UserId, after: u64) -> Vec<(u64, u64)> {
        let mut entries = Vec::new();
        self.store.read_stream(user, after, 100, &mut entries);
        let id = |entry| match entry {
            Entry::Message { body, .. } => Push::decode(body).expect("a Push").message_id,
            Entry::Dropped { .. } => 0,
        };
        entries.into_iter().map(|(position, entry)| (position, id(entry))).collect()
    }
}

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
    let conversation = bench.store.find("c2c:a:b").expect("it came with its first message");
    let mut id = String::new();
    bench.store.write_id(conversation, &mut id);
    assert_eq!((id.as_str(), bench.store.latest(conversation)), ("c2c:a:b", 3));
    assert!(!bench.store.is_group(conversation) && bench.store.find("c2c:a:c").is_none());
    let again = bench.say(a, Target::Conversation(conversation), 1);
    assert_eq!((again.seq, again.delivery), (1, None), "the target may be named either way");
    let page = bench.store.read_range(conversation, b, (1, 9), WIDE).expect("b is in it");
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
    let bench = &mut Bench { store, next_id: 1 };
    let mut say = |now_ms, key| say_at(bench, now_ms, key);
    assert_eq!([say(1, 1), say(1, 2), say(1, 1)], [1, 2, 1]);
    assert_eq!([say(1, 3), say(1, 1)], [3, 4], "the oldest makes room");
}

fn only_members_write_and_read<S: Store>(bench: &mut Bench<S>) {
    let (a, b, c, d) = (bench.user("a"), bench.user("b"), bench.user("c"), bench.user("d"));
    let create = |creator, members| Write::CreateGroup { name: "g".into(), creator, members };
    let group = bench.group(create(a, vec![b, b, a])).expect("created");
    assert_eq!(bench.store.find("group:g"), Some(group));
    assert_eq!(bench.group(create(a, vec![])), Ok(group), "the same creator again");
    assert_eq!(bench.group(create(b, vec![])), Err(Refusal::Conflict));
    assert_eq!(bench.store.members(group, b), Ok(vec![a, b]));
    assert_eq!(bench.store.members(group, c), Err(Refusal::NotMember));
    let target = Target::Conversation(group);
    bench.say(a, target, 1);
    let outsider = bench.draft(c, 0, target, 1, 7);
    assert_eq!(bench.append(outsider), Err(Refusal::NotMember));
    assert_eq!(bench.store.read_range(group, c, (1, 1), WIDE), Err(Refusal::NotMember));
    let join = |user| Write::Join { conversation: group, user };
    let first = bench.draft(c, 0, target, 2, 7);
    let outcomes = bench.commit(0, vec![join(c), first, Write::Leave { conversation: group, user: b }]);
    assert!(matches!(&outcomes[1].0, Outcome::Appended(Ok(stored)) if stored.seq == 2), "in order");
    assert_eq!(bench.group(join(c)), Ok(group), "joining twice changes nothing");
    assert_eq!(bench.group(join(d)), Ok(group));
    assert_eq!(bench.group(join(b)), Err(Refusal::GroupFull));
    assert_eq!(
        bench.group(Write::Leave { conversation: group, user: b }),
        Ok(group),
        "so does leaving twice"
    );
    assert_eq!((bench.store.member_count(group), bench.store.conversations(b)), (3, vec![]));
    let page = bench.store.read_range(group, c, (1, 2), WIDE).expect("a member");
    assert_eq!((page.voids, page.messages.len()), (vec![(1, 1)], 1), "what was said before is not for c");
    let direct = bench.say(a, Target::User(b), 9).conversation;
    assert_eq!(bench.group(Write::Join { conversation: direct, user: c }), Err(Refusal::Denied));
    assert_eq!(bench.store.conversations(a), [group, direct]);
    let own = bench.say(a, Target::User(a), 10).conversation;
    assert_eq!((bench.store.find("c2c:a:a"), bench.store.member_count(own)), (Some(own), 1));
}

fn pages_cover_their_range<S: Store>(bench: &mut Bench<S>) {
    let (a, b) = (bench.user("a"), bench.user("b"));
    let conversation =
        (1..=9).map(|key| bench.say(a, Target::User(b), key).conversation).last().expect("nine");
    let read = |range, messages, bytes| {
        let page = bench.store.read_range(conversation, b, range, PageLimits { messages, bytes });
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
    let from = bench.store.login(a, "phone").device;
    let draft = bench.draft(a, from.0, Target::User(b), 1, 7);
    let outcomes = bench.commit(0, vec![draft]);
    assert_eq!(outcomes[0].1, [(b, 1)], "a's only device wrote it");
    assert_eq!((bench.stream(b, 0), bench.store.stream_end(b)), (vec![(1, 1)], 1), "before b's first login");
    let phone = bench.store.login(b, "phone");
    assert_eq!((phone.acked, phone.forgotten), (0, None));
    let pad = bench.store.login(b, "pad").device;
    assert_ne!(phone.device, pad);
    bench.say(a, Target::User(b), 2);
    bench.acked(b, phone.device, 2);
    assert_eq!(bench.store.login(b, "phone").acked, 2);
    assert_eq!(bench.stream(b, 0).len(), 2, "the pad has nothing yet");
    bench.acked(b, pad, 1);
    assert_eq!(bench.stream(b, 0), [(2, 2)]);
    let draft = bench.draft(b, pad.0, Target::User(a), 3, 7);
    let outcomes = bench.commit(0, vec![draft]);
    assert_eq!(outcomes[0].1.iter().map(|(user, _)| *user).collect::<Vec<_>>(), [a, b], "b's phone wants it");
    let desk = bench.store.login(b, "desk");
    assert_eq!((desk.forgotten, desk.acked), (Some(pad), 0), "its login is longest ago");
    bench.acked(b, pad, 99);
    bench.acked(b, phone.device, 3);
    bench.acked(b, desk.device, 3);
    assert_eq!((bench.stream(b, 0), bench.store.stream_end(b)), (vec![], 3));
    assert_eq!(bench.say(a, Target::User(b), 4).seq, 4);
    assert_eq!(bench.stream(b, 3), [(4, 4)], "positions go on");
}

fn full_inboxes_say_where_to_pull<S: Store>(bench: &mut Bench<S>) {
    let (a, b, c) = (bench.user("a"), bench.user("b"), bench.user("c"));
    bench.store.login(b, "phone");
    bench.say(c, Target::User(b), 1);
    for key in 1..=4 {
        bench.say(a, Target::User(b), key);
    }
    assert_eq!(bench.stream(b, 0), [(1, 0), (2, 0), (3, 3), (4, 4), (5, 5)]);
    bench.say(a, Target::User(b), 5);
    assert_eq!(bench.stream(b, 0), [(1, 0), (3, 0), (4, 4), (5, 5), (6, 6)], "one per conversation");
    let conversation = bench.store.find("c2c:a:b").expect("spoken");
    let page = bench.store.read_range(conversation, b, (1, 9), WIDE).expect("b is in it");
    assert_eq!(page.messages.len(), 5, "the history has them all");
}
