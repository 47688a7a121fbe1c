//! Use of a store whose rows a fuzz input made: every read and every kind of write.
//!
//! For example, the rows are two users and a group: both log in, write to each other and to the group, read, recall; then one
//! dissolves the group and deletes the account, and sweeps remove what is left.

use super::super::tables::Tables;
use super::super::{Changed, Directory, Disk, MessageKey, rows, scratch};
use super::NOW_MS;
use crate::im::store::{
    Batch, Command, Completion, ConversationId, DeviceNumber, Draft, Facts as _, GroupChange, KEEP_FOR_EVER,
    Login, LoginChange, Origin, PageLimits, Read, Recall, RelationChange, SEQ_BYTES_MAX, Store as _, Sweep,
    SweepNeed, Target, Ticket, UserId, WhoMayAdd, Write,
};
use bytes::{Bytes, BytesMut};
use moorline_proto::message::client::Push;
use moorline_proto::message::encode;

/// Users and conversations of an input that are looked at.
const LOOKED_AT: usize = 4;
/// Entries of one read.
const ENTRIES_MAX: usize = 16;
/// Sweeps of one input.
const SWEEPS_MAX: usize = 6;
/// Limits of an answer to a read.
const PAGE: PageLimits = PageLimits { messages: ENTRIES_MAX, bytes: 1 << 16 };

/// Looks at everything that was read, and makes rows of it again.
pub(super) fn look_at(tables: &Tables, directory: &Directory) {
    let users = (0..u32::try_from(directory.users.len()).unwrap_or(u32::MAX)).map(UserId::of);
    for user in users.take(LOOKED_AT) {
        let known = directory.users.get(user);
        assert_eq!(directory.users.find(directory.users.uid(user)), Some(user));
        let mut changed = vec![Changed::User(user), Changed::Inbox(user)];
        changed.extend(known.devices.iter().map(|device| Changed::Device(user, device.number)));
        changed.extend(directory.relations.of(user).map(|(other, _)| Changed::Relation(user, other)));
        changed.into_iter().for_each(|changed| drop(rows::change(tables, directory, changed)));
        known.conversations().iter().for_each(|conversation| _ = directory.unread(*conversation, user));
    }
    for conversation in directory.conversations.all().take(LOOKED_AT) {
        let mut id = String::new();
        directory.write_id(conversation, &mut id);
        let place = directory.conversations.get(conversation);
        let mut changed = vec![Changed::Conversation(conversation)];
        changed.extend(place.uncounted().map(|(first, _)| Changed::Uncounted(conversation, first)));
        changed.extend(place.members.iter().map(|member| Changed::Member(conversation, member.user)));
        changed.into_iter().for_each(|changed| drop(rows::change(tables, directory, changed)));
    }
}

pub(super) fn ask(store: &mut Disk, command: Command) -> Completion {
    assert!(store.submit(Ticket::FIRST, command).is_ok(), "logins and reads are always taken");
    store.poll().expect("at once").1
}

pub(super) fn stream_end(store: &mut Disk, of: Origin) -> u64 {
    match ask(store, Command::Read(Read::Backlog { of })) {
        Completion::Backlog(backlog) => backlog.end,
        other => panic!("{other:?}"),
    }
}

/// Does with a store what clients and operators cause: every read, logins, a batch with every kind of write, deletions, and
/// sweeps.
pub(super) fn use_store(mut store: Disk) {
    let counts = store.counts();
    let users: Vec<UserId> =
        (0..counts.users.min(LOOKED_AT)).filter_map(|at| u32::try_from(at).ok()).map(UserId::of).collect();
    let places: Vec<ConversationId> = (0..counts.conversations.min(LOOKED_AT))
        .filter_map(|at| u32::try_from(at).ok())
        .map(ConversationId::of)
        .collect();
    for place in &places {
        let id = store.id(*place);
        assert!(!id.is_empty());
        store.settings(*place);
        let members: Vec<_> = store.members(*place, None).collect();
        assert_eq!(members.len(), store.member_count(*place));
        members.iter().for_each(|member| _ = store.uid(member.user).len());
    }
    let mut sources = Vec::new();
    for user in &users {
        read_all(&mut store, *user, &places);
        if let Some(device) = log_in(&mut store, *user) {
            let end = stream_end(&mut store, (*user, device));
            sources.push(((*user, device), end));
        }
    }
    let writes = sources.iter().flat_map(|(by, end)| writes_of(&store, *by, *end, &users, &places)).collect();
    if !commit(&mut store, writes) {
        return;
    }
    users.iter().for_each(|user| read_all(&mut store, *user, &places));
    let later = sources.iter().flat_map(|(by, _)| deletions_of(&store, *by, &users, &places)).collect();
    if !commit(&mut store, later) {
        return;
    }
    users.iter().for_each(|user| read_all(&mut store, *user, &places));
    for _ in 0..SWEEPS_MAX {
        let sweep = sweep(&store);
        if store.sweep_need() == SweepNeed::Nothing || !commit(&mut store, vec![sweep]) {
            break;
        }
    }
    for user in &users {
        read_all(&mut store, *user, &places);
        log_in(&mut store, *user);
    }
}

/// Logs in a device of a user; `None`: the user is banned, or there is no room for the name.
fn log_in(store: &mut Disk, user: UserId) -> Option<DeviceNumber> {
    let uid = store.uid(user).to_owned();
    let login = Login { uid, device: "fuzz".into(), platform: 1, now_ms: NOW_MS, issued_s: NOW_MS / 1000 };
    match ask(store, Command::Login(login)) {
        Completion::LoggedIn(login) => login.map(|login| login.cursor.device),
        Completion::LoginDenied(_) => None,
        other => panic!("a login was answered by {other:?}"),
    }
}

/// Commits writes. False: the store takes no more.
fn commit(store: &mut Disk, writes: Vec<Write>) -> bool {
    let batch = Batch { now_ms: NOW_MS, last_id: store.last_id(), writes };
    if let Err(command) = store.submit(Ticket::FIRST, Command::Commit(batch)) {
        assert!(store.is_broken(), "refused {command:?}");
        return false;
    }
    while store.poll().is_none() {
        assert!(!store.is_broken(), "the database takes no writes");
        scratch::wait();
    }
    true
}

fn sweep(store: &Disk) -> Write {
    // Late enough that everything that may expire has.
    let late_ms = 2 * NOW_MS;
    Write::Sweep(Sweep { id: store.last_id().saturating_add(1), judged_ms: late_ms, clock_ms: late_ms })
}

/// Returns settings, retention, deletions and bans by one user.
fn deletions_of(store: &Disk, by: Origin, users: &[UserId], places: &[ConversationId]) -> Vec<Write> {
    let (user, event) = (by.0, || Bytes::from_static(b"event"));
    let mut writes = vec![Write::SetSettings { user, who_may_add: WhoMayAdd::AddFriends }];
    for (number, conversation) in (0_u32..).zip(places) {
        let (conversation, to) = (*conversation, store.latest(*conversation));
        writes.push(Write::Clear { conversation, by, to, event: event() });
        let keep_s = [1, 0, KEEP_FOR_EVER][number as usize % 3];
        writes.push(Write::SetRetention { conversation, keep_s });
        writes.push(Write::LimitSends {
            conversation,
            per_minute: [None, Some(0), Some(6)][number as usize % 3],
        });
        if let Some(group) = store.id(conversation).strip_prefix("group:") {
            let (group, users) = (group.to_owned(), users.to_vec());
            writes.push(Write::Invite { group, by, users, event: event() });
            if user.index().is_multiple_of(2) {
                writes.push(Write::Dissolve { conversation, by, event: event() });
            }
        }
    }
    match user.index() % 3 {
        0 => writes.push(Write::DeleteUser { user, to_id: store.last_id(), event: event() }),
        1 => writes.push(Write::RemoveDevice { user, device: by.1 }),
        _ => {
            let bans = [LoginChange::ValidFrom(NOW_MS / 1000 + 1), LoginChange::BannedUntil(u64::MAX)];
            writes.extend(bans.map(|change| Write::RuleLogins { user, change }));
        }
    }
    writes
}

fn read_all(store: &mut Disk, user: UserId, places: &[ConversationId]) {
    store.relations(user);
    let uid = store.uid(user).to_owned();
    let devices = store.devices(user).into_iter().take(LOOKED_AT);
    let mut reads: Vec<Read> = devices.map(|device| Read::Backlog { of: (user, device.number) }).collect();
    reads.push(Read::Conversations { user, after: String::new(), bytes: 1 << 12 });
    reads.push(Read::Stream { user, after: 0, limit: ENTRIES_MAX, into: Vec::new() });
    reads.push(Read::Profiles { uids: vec![uid] });
    for conversation in places {
        let range = (0, u64::MAX);
        reads.push(Read::Page { conversation: *conversation, reader: user, range, limits: PAGE });
    }
    for read in reads {
        match ask(store, Command::Read(read)) {
            Completion::Page(Ok(page)) => assert!(page.messages.len() <= ENTRIES_MAX),
            Completion::Stream(page) => assert!(page.entries.len() <= ENTRIES_MAX),
            Completion::Prefetched | Completion::Committed(_) => panic!("a read"),
            _ => {}
        }
    }
}

pub(super) fn writes_of(
    store: &Disk,
    by: Origin,
    end: u64,
    users: &[UserId],
    places: &[ConversationId],
) -> Vec<Write> {
    let event = || Bytes::from_static(b"event");
    let draft = |number: u8, target| {
        let push = encode(&Push { payload: Bytes::from_static(b"hi"), ..Push::default() });
        let mut body = BytesMut::with_capacity(push.len() + SEQ_BYTES_MAX);
        body.extend_from_slice(&push);
        let key = MessageKey([number; 16]);
        Draft {
            is_repeat: false,
            sender: by.0,
            device: by.1,
            target,
            key,
            id: store.last_id().saturating_add(1),
            time_ms: NOW_MS,
            digest: 7,
            body,
        }
    };
    let mut writes = vec![
        Write::Acked { user: by.0, device: by.1, position: end, gone_ms: NOW_MS },
        Write::SetProfile { user: by.0, profile: event() },
        Write::Tell { users: users.to_vec(), event: event(), key: None },
    ];
    for (number, other) in (0..).zip(users) {
        writes.push(Write::Append(draft(number, Target::User(*other))));
        for change in [RelationChange::Befriend, RelationChange::Block, RelationChange::Unblock] {
            writes.push(Write::Relate { by, other: *other, change, event: event() });
        }
    }
    for (number, conversation) in (100..).zip(places) {
        let (conversation, latest) = (*conversation, store.latest(*conversation));
        writes.push(Write::Append(draft(number, Target::Conversation(conversation))));
        writes.push(Write::Read { conversation, by, seq: latest, event: event() });
        writes.push(Write::Confirm { by, conversation, seq: latest });
        let recalled = draft(number + 50, Target::Conversation(conversation));
        writes.push(Write::Recall(Recall { draft: recalled, seq: latest, message_id: 1 }));
        if store.is_group(conversation) {
            for change in [GroupChange::Join, GroupChange::Leave] {
                writes.push(Write::ChangeGroup { conversation, by, change, event: event() });
            }
        }
    }
    writes
}
