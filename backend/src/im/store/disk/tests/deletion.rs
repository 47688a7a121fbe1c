//! Deletion on disk: content leaves the folder with a compaction, and an end of the process changes nothing of it.

use super::*;
use crate::im::store::{NOBODY, Sweep, SweepNeed};
use moorline_proto::message::client::Push;
use prost::Message as _;

/// A message with this content.
fn said(sender: (UserId, &str), target: Target, key: u8, id: u64, text: &str) -> Write {
    let push = Push {
        message_id: id,
        sender: sender.1.into(),
        payload: Bytes::copy_from_slice(text.as_bytes()),
        ..Push::default()
    };
    let mut body = BytesMut::with_capacity(push.encoded_len() + SEQ_BYTES_MAX);
    push.encode_raw(&mut body);
    let (device, key) = (DeviceNumber(0), MessageKey([key; 16]));
    Write::Append(Draft {
        is_repeat: false,
        sender: sender.0,
        device,
        target,
        key,
        id,
        time_ms: 0,
        digest: 7,
        body,
    })
}

/// Commits, behind every id of these tests.
fn committed(store: &mut Disk, batch: Vec<Write>) -> Vec<Outcome> {
    assert!(store.commit(1, 2_000_000 << 22, batch));
    loop {
        if let Some(committed) = store.committed() {
            return committed.outcomes;
        }
        scratch::wait();
    }
}

fn sweep(store: &mut Disk, judged_ms: u64) {
    while store.sweep_need() == SweepNeed::Removal {
        sweep_once(store, judged_ms);
    }
    sweep_once(store, judged_ms);
}

fn sweep_once(store: &mut Disk, judged_ms: u64) {
    let sweep = Sweep { id: 70, judged_ms, clock_ms: judged_ms };
    committed(store, vec![Write::Sweep(sweep)]);
}

#[test]
fn a_frozen_conversation_stays_frozen_over_restarts() {
    let folder = Folder::new();
    let mut store = folder.open().expect("opens");
    let [a, b] = ["a", "b"].map(|uid| store.try_user(uid).expect("room"));
    let outcomes = committed(&mut store, vec![said((a, "a"), Target::User(b), 1, 1, "before")]);
    let Outcome::Appended(Ok(stored)) = &outcomes[0] else { panic!("{outcomes:?}") };
    let conversation = stored.conversation;
    committed(&mut store, vec![Write::LimitSends { conversation, per_minute: Some(0) }]);
    drop(store);
    let mut store = folder.open().expect("opens");
    let later = |key| said((a, "a"), Target::User(b), key, u64::from(key), "later");
    let outcomes = committed(&mut store, vec![later(2)]);
    assert!(matches!(outcomes[0], Outcome::Appended(Err(Refusal::Frozen))), "{outcomes:?}");
    committed(&mut store, vec![Write::LimitSends { conversation, per_minute: None }]);
    drop(store);
    let outcomes = committed(&mut folder.open().expect("opens"), vec![later(3)]);
    assert!(matches!(outcomes[0], Outcome::Appended(Ok(_))), "{outcomes:?}");
}

/// Files below a folder that hold a text.
fn holders(folder: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            found.extend(holders(&path, text));
        } else if std::fs::read(&path).expect("readable").windows(text.len()).any(|it| it == text.as_bytes())
        {
            found.push(path);
        }
    }
    found
}

/// Secrets that are deleted, each in its way.
const SECRETS: [&str; 6] =
    ["recalled-4711", "expired-4711", "dissolved-4711", "the-title-4711", "of-a-user-4711", "profile-4711"];

/// A time of an id that does not expire here.
const LATE: u64 = 1_000_000 << 22;

/// Stores the secrets, and deletes them.
fn store_and_delete(store: &mut Disk) {
    let [ann, ben, cem] = ["ann", "ben", "cem"].map(|uid| store.try_user(uid).expect("room"));
    let late = LATE;
    committed(store, vec![said((ann, "ann"), Target::User(ben), 1, 1, SECRETS[1])]);
    let recalled =
        stored(committed(store, vec![said((ann, "ann"), Target::User(ben), 2, late, SECRETS[0])]).pop());
    let create = |name: &str, creator, members| Write::CreateGroup {
        name: name.into(),
        creator: (creator, DeviceNumber(0)),
        members,
        event: Bytes::from_static(b"made"),
    };
    let Some(Outcome::Created(Ok((group, _)))) =
        committed(store, vec![create("g", ann, vec![ben, cem])]).pop()
    else {
        panic!("a group")
    };
    let settings = crate::im::store::GroupSettings { title: SECRETS[3].into(), ..Default::default() };
    let edit = crate::im::store::GroupEdit { settings: Some(settings), ..Default::default() };
    let by = (ann, DeviceNumber(0));
    let event = Bytes::from_static(SECRETS[3].as_bytes());
    committed(
        store,
        vec![
            Write::ChangeGroup { conversation: group, by, change: GroupChange::Edit(edit), event },
            said((ann, "ann"), Target::Conversation(group), 3, late, SECRETS[2]),
            said((cem, "cem"), Target::User(ben), 4, late, SECRETS[4]),
            said((ben, "ben"), Target::User(cem), 5, late, "kept-4711"),
            Write::SetProfile { user: cem, profile: Bytes::from_static(SECRETS[5].as_bytes()) },
        ],
    );
    let wish = match said((ann, "ann"), Target::Conversation(recalled.conversation), 6, late + 1, "") {
        Write::Append(draft) => {
            Write::Recall(crate::im::store::Recall { draft, seq: recalled.seq, message_id: late })
        }
        other => panic!("{other:?}"),
    };
    stored(committed(store, vec![wish]).pop());
    let event = Bytes::from_static(b"event");
    committed(
        store,
        vec![
            Write::Dissolve {
                conversation: group,
                by: (NOBODY, crate::im::store::API_DEVICE),
                event: event.clone(),
            },
            Write::DeleteUser { user: cem, to_id: late + 9, event },
        ],
    );
}

#[test]
fn what_is_deleted_leaves_the_folder_with_a_compaction() {
    let folder = Folder::new();
    let config = ImConfig { retention: std::time::Duration::from_secs(100), ..ImConfig::default() };
    let open = || Disk::open(&folder.0, &config, Durability::Disk, scratch::waker()).expect("it opens");
    let mut store = open();
    store_and_delete(&mut store);
    sweep(&mut store, crate::im::time_ms(200_000 << 22));
    drop(store);
    assert!(!holders(&folder.0, SECRETS[4]).is_empty(), "the engine keeps what was removed");
    let report = Disk::compact(&folder.0, &config).expect("compacted");
    assert_eq!(report.problems, Vec::<String>::new());
    for secret in SECRETS {
        assert_eq!(holders(&folder.0, secret), Vec::<PathBuf>::new(), "{secret}");
    }
    let mut store = open();
    let [ann, ben] = ["ann", "ben"].map(|uid| store.find_user(uid).expect("known"));
    let pair = store.find("c2c:ben:cem").expect("they spoke");
    let wide = PageLimits { messages: 100, bytes: 1 << 20 };
    let page = store.read_range(pair, ben, (1, 9), wide).expect("a member");
    assert_eq!(
        (page.messages.len(), page.voids),
        (2, vec![(1, 1)]),
        "his own message, and what says that cem is gone"
    );
    let next =
        stored(committed(&mut store, vec![said((ann, "ann"), Target::User(ben), 9, LATE + 20, "on")]).pop());
    assert_eq!(next.seq, 4, "seqs go on");
    drop(store);
    open();
    let report = Disk::compact(&folder.0, &config).expect("once more");
    assert_eq!(report.problems, Vec::<String>::new());
}

#[test]
fn an_erasure_goes_on_where_the_last_process_was() {
    let folder = Folder::new();
    let mut store = folder.open().expect("a new store");
    let [ann, ben] = ["ann", "ben"].map(|uid| store.try_user(uid).expect("room"));
    for batch in 0..8 {
        let writes = (0..200).map(|number| {
            let id = 1 + batch * 200 + number;
            let mut write = said((ann, "ann"), Target::User(ben), 0, id, "secret");
            if let Write::Append(draft) = &mut write {
                draft.key = MessageKey(u128::from(id).to_be_bytes());
            }
            write
        });
        committed(&mut store, writes.collect());
    }
    let event = Bytes::from_static(b"event");
    committed(&mut store, vec![Write::DeleteUser { user: ann, to_id: 1600, event }]);
    let mut sweeps = 0;
    while store.sweep_need() == SweepNeed::Removal {
        sweep_once(&mut store, 0);
        sweeps += 1;
        drop(store);
        store = folder.open().expect("the same store");
        let wide = PageLimits { messages: 5000, bytes: 1 << 24 };
        let pair = store.find("c2c:ann:ben").expect("they spoke");
        let page = store.read_range(pair, ben, (1, 5000), wide).expect("a member");
        let left = if sweeps < 4 { 1600 - 512 * sweeps } else { 1 };
        assert_eq!(page.messages.len(), left, "after {sweeps} sweeps");
    }
    assert!(sweeps >= 8, "4 for the messages, and 4 for the keys: {sweeps}");
    drop(store);
    let report = Disk::verify(&folder.0, &ImConfig::default()).expect("readable");
    assert_eq!((report.problems, report.keys), (Vec::<String>::new(), 0));
}
