//! Puts conversations into a store that no backend has open: from an export, one JSON object per line, or made up.
//!
//! ```text
//! {"group": {"name": "tea", "owner": "ann", "members": ["ben"]}}
//! {"message": {"from": "ann", "to": {"conversation": "group:tea"}, "time_ms": 1700000000000, "text": "hello"}}
//! {"message": {"from": "ben", "to": {"user": "ann"}, "time_ms": 1700000001000, "type": 2, "payload": "AAEC"}}
//! {"read": {"user": "ann", "conversation": "c2c:ann:ben", "seq": 1}}
//! ```
//!
//! Lines take effect in order, up to the first that is wrong, and give seqs in that order. The same line in the same place of an export is stored once
//! within `im.idempotency_window`, so a file that was mended after an error is simply given in again.

use crate::clock::Clock;
use crate::config::BackendConfig;
use crate::error::BackendError;
use crate::im::store::{
    ConversationId, DeviceNumber, Disk, Draft, Durability, GroupChange, GroupEdit, Outcome, Refusal,
    SEQ_BYTES_MAX, Store, Target, UserId, Write,
};
use crate::im::{API_DEVICE, BATCH_WRITES_MAX, MessageIds, names, reason_of};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use crossbeam_channel::{Receiver, bounded};
use moorline_proto::ids::MessageKey;
use moorline_proto::message::client::Push;
use moorline_proto::message::{encode, im};
use moorline_proto::random::Random;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{HashMap, VecDeque};
use std::io::BufRead;
use std::time::Duration;

/// How long the store may take for a batch.
const COMMIT_WITHIN: Duration = Duration::from_secs(60);
/// A line may be this long, in bytes.
const LINE_BYTES_MAX: usize = 4 << 20;
/// A message may be from so far in the future: message ids go on behind the last one.
const AHEAD_MS_MAX: u64 = 86_400_000;
/// Of a new group, so many members are named to the others.
const TOLD_MAX: usize = 1000;
/// What the devices are called that the messages come from.
const DEVICE: &str = "import";

/// One line of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Line {
    /// A new group; one that exists and has this owner gets the members that it has not.
    Group {
        /// Its name.
        name: String,
        /// Who owns it.
        owner: String,
        /// Who else is in it.
        #[serde(default)]
        members: Vec<String>,
    },
    /// Something was said.
    Message {
        /// By whom.
        from: String,
        /// To whom.
        to: To,
        /// When, in Unix milliseconds.
        time_ms: u64,
        /// The application's content type.
        #[serde(default)]
        r#type: u32,
        /// As it is; or
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<String>,
        /// as Base64.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        payload: Option<String>,
    },
    /// A user has read everything up to here.
    Read {
        /// Who.
        user: String,
        /// Where.
        conversation: String,
        /// Up to here.
        seq: u64,
    },
}

/// To whom something was said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum To {
    /// One user.
    User(String),
    /// A group, or a conversation that exists.
    Conversation(String),
}

/// What was put into the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Messages.
    pub messages: u64,
    /// Those that were there before.
    pub repeated: u64,
    /// Groups, also those that were there before.
    pub groups: u64,
    /// Users that the store knows now.
    pub users: usize,
}

/// Why it ended early. What stands in earlier lines is stored, and nothing of later ones.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The settings or the store.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// There is no `im.folder`.
    #[error("nothing can be put into a store in memory: set im.folder")]
    NoFolder,
    /// The export cannot be read.
    #[error("cannot read the export: {0}")]
    Read(#[from] std::io::Error),
    /// A line that says nothing, or nothing that can be.
    #[error("line {line}: {problem}")]
    Line {
        /// Which, from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// The store takes no more.
    #[error("the store does not write any more; its log says why")]
    Stuck,
}

/// Puts an export into the store of `config`. `progress` is told the number of lines now and then.
///
/// # Errors
/// [`ImportError`]; earlier lines are stored.
pub fn import(
    config: &BackendConfig,
    mut lines: impl BufRead,
    mut progress: impl FnMut(u64),
) -> Result<Imported, ImportError> {
    let mut importer = Importer::open(config)?;
    let read = read(&mut importer, &mut lines, &mut progress);
    // What stands before a wrong line is stored, unless some of that is wrong too.
    let imported = importer.finish()?;
    read.map(|()| imported)
}

fn read(
    importer: &mut Importer,
    lines: &mut impl BufRead,
    progress: &mut impl FnMut(u64),
) -> Result<(), ImportError> {
    let (mut text, mut number) = (String::new(), 0);
    loop {
        text.clear();
        number += 1;
        match std::io::Read::take(&mut *lines, LINE_BYTES_MAX as u64).read_line(&mut text) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                return Err(ImportError::Line { line: number, problem: "it is not UTF-8".into() });
            }
            Err(error) => return Err(error.into()),
        }
        if text.len() >= LINE_BYTES_MAX {
            return Err(ImportError::Line { line: number, problem: "it is longer than 4 MiB".into() });
        }
        if text.trim().is_empty() {
            continue;
        }
        let line = serde_json::from_str(&text).map_err(|error| {
            // It counts lines of its own, and there is only one.
            let (error, column) = (error.to_string(), error.column());
            let what = error.rsplit_once(" at line ").map_or(&*error, |(what, _)| what);
            ImportError::Line { line: number, problem: format!("{what}, at column {column}") }
        })?;
        importer.take(number, line)?;
        if number % 10_000 == 0 {
            progress(number);
        }
    }
}

/// How much to make up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed {
    /// Users `user-0` and so on.
    pub users: u32,
    /// Groups `group-0` and so on.
    pub groups: u32,
    /// Members of each group.
    pub members: u32,
    /// Messages, half of them one to one if there are groups.
    pub messages: u64,
    /// Bytes of each.
    pub payload: usize,
    /// The same seed makes the same.
    pub seed: u64,
}

/// Makes up users, groups and messages in the store of `config`.
///
/// # Errors
/// [`ImportError`].
pub fn seed(
    config: &BackendConfig,
    wanted: &Seed,
    mut progress: impl FnMut(u64),
) -> Result<Imported, ImportError> {
    if wanted.payload > config.im.payload_max {
        let reason = format!("--payload {} is over it", wanted.payload);
        return Err(BackendError::InvalidConfig { key: "im.payload_max", reason }.into());
    }
    let mut importer = Importer::open(config)?;
    let mut random = Random::new(wanted.seed);
    let start_ms = importer.now_ms.saturating_sub(wanted.messages);
    let users = u64::from(wanted.users.max(2));
    let uid = |number: u64| format!("user-{number}");
    let member = |group: u64, at: u64| uid((group * 7919 + at) % users);
    let members = u64::from(wanted.members).clamp(1, users);
    let mut number = 0;
    for group in 0..u64::from(wanted.groups) {
        number += 1;
        let members = (1..members).map(|at| member(group, at)).collect();
        let line = Line::Group { name: format!("group-{group}"), owner: member(group, 0), members };
        importer.take(number, line)?;
    }
    let text: String =
        (0..wanted.payload).map(|at| char::from(b'a' + u8::try_from(at % 26).unwrap_or(0))).collect();
    for at in 0..wanted.messages {
        number += 1;
        let (from, to) = if wanted.groups > 0 && random.one_in(2) {
            let group = random.below(wanted.groups.into());
            (member(group, random.below(members)), To::Conversation(format!("group:group-{group}")))
        } else {
            let from = random.below(users);
            (uid(from), To::User(uid((from + 1 + random.below(20.min(users - 1))) % users)))
        };
        let (time_ms, text) = (start_ms + at, Some(text.clone()));
        importer.take(number, Line::Message { from, to, time_ms, r#type: 1, text, payload: None })?;
        if number % 10_000 == 0 {
            progress(number);
        }
    }
    importer.finish()
}

/// A group of a line, until its batch is committed.
struct Created {
    line: u64,
    id: String,
    creator: (UserId, DeviceNumber),
    members: Vec<UserId>,
    event: Bytes,
}

struct Importer {
    store: Disk,
    ids: MessageIds,
    durable: Receiver<()>,
    /// How often the same was said, so that each is a message of its own.
    said: HashMap<[u8; 16], u64>,
    writes: Vec<Write>,
    lines: Vec<u64>,
    /// Groups that the open batch creates; bounded as the batch is.
    created: Vec<Created>,
    committing: VecDeque<Vec<u64>>,
    imported: Imported,
    now_ms: u64,
    payload_max: usize,
}

impl Importer {
    fn open(config: &BackendConfig) -> Result<Self, ImportError> {
        config.validate()?;
        if config.im.folder.as_os_str().is_empty() {
            return Err(ImportError::NoFolder);
        }
        let (sender, durable) = bounded(1);
        // One that waits already says the same.
        let notify = move || _ = sender.try_send(());
        let mut store = Disk::open(&config.im.folder, &config.im, Durability::Disk, notify)
            .map_err(BackendError::from)?;
        // A line that is mended and given in again comes before those behind it.
        store.stop_at_refusal();
        let now_ms = Clock::new().read().unix_ms;
        Ok(Self {
            ids: MessageIds::after(config.node_number, store.last_id()),
            store,
            durable,
            said: HashMap::new(),
            writes: Vec::new(),
            lines: Vec::new(),
            created: Vec::new(),
            committing: VecDeque::new(),
            imported: Imported::default(),
            now_ms,
            payload_max: config.im.payload_max,
        })
    }

    fn take(&mut self, line: u64, what: Line) -> Result<(), ImportError> {
        let wrong = |problem: String| ImportError::Line { line, problem };
        match what {
            Line::Group { name, owner, members } => {
                let creator = (self.user(line, &owner)?, API_DEVICE);
                let added = members.iter().take(TOLD_MAX).cloned().collect();
                let members: Vec<UserId> =
                    members.iter().map(|uid| self.user(line, uid)).collect::<Result<_, _>>()?;
                if !names::is_valid(&name) {
                    return Err(wrong(format!("no group can be called {name:?}")));
                }
                let by = owner.clone();
                let changed = im::GroupChanged { by, added, ..im::GroupChanged::default() };
                let event =
                    self.happened(&owner, &format!("group:{name}"), im::happened::What::Group(changed));
                let id = format!("group:{name}");
                self.created.push(Created {
                    line,
                    id,
                    creator,
                    members: members.clone(),
                    event: event.clone(),
                });
                self.imported.groups += 1;
                self.write(line, Write::CreateGroup { name, creator, members, event })
            }
            Line::Message { from, to, time_ms, r#type, text, payload } => {
                let payload = match (text, payload) {
                    (Some(text), None) => Bytes::from(text),
                    (None, Some(payload)) => {
                        BASE64.decode(payload).map_err(|error| wrong(format!("payload: {error}")))?.into()
                    }
                    _ => return Err(wrong("exactly one of text and payload is needed".into())),
                };
                if payload.len() > self.payload_max {
                    let (bytes, most) = (payload.len(), self.payload_max);
                    return Err(wrong(format!("a payload of {bytes} bytes; im.payload_max allows {most}")));
                }
                if time_ms > self.now_ms + AHEAD_MS_MAX {
                    let problem = format!(
                        "time_ms {time_ms} is more than a day ahead; it is in milliseconds since 1970"
                    );
                    return Err(wrong(problem));
                }
                let draft = self.draft(line, from, &to, (time_ms, r#type, payload))?;
                self.write(line, Write::Append(draft))
            }
            Line::Read { user, conversation, seq } => {
                let by = (self.user(line, &user)?, API_DEVICE);
                let found = self.find(line, &conversation)?;
                self.commit()?; // its newest message may be among what waits
                let what = im::happened::What::Read(im::Read { user: user.clone(), seq });
                let event = self.happened(&user, &conversation, what);
                self.write(line, Write::Read { conversation: found, by, seq, event })
            }
        }
    }

    /// What clients are told of it.
    fn happened(&mut self, by: &str, conversation: &str, what: im::happened::What) -> Bytes {
        encode(&Push {
            message_id: self.ids.next(self.now_ms),
            conversation: conversation.to_owned(),
            sender: by.to_owned(),
            sender_device: DEVICE.to_owned(),
            time_ms: self.now_ms,
            happened: encode(&im::Happened { what: Some(what) }),
            ..Push::default()
        })
    }

    /// Returns a conversation, which may come of a write of the open batch. Groups of that batch are completed
    /// first: whoever joined by a line above may speak in the next.
    fn find(&mut self, line: u64, id: &str) -> Result<ConversationId, ImportError> {
        if !self.created.is_empty() || self.store.find(id).is_none() {
            self.commit()?;
        }
        let problem = || format!("there is no conversation {id:?}");
        self.store.find(id).ok_or_else(|| ImportError::Line { line, problem: problem() })
    }

    fn user(&mut self, line: u64, uid: &str) -> Result<UserId, ImportError> {
        let wrong = |problem| ImportError::Line { line, problem };
        if !names::is_valid(uid) {
            return Err(wrong(format!("no user can be called {uid:?}")));
        }
        self.store.try_user(uid).ok_or_else(|| wrong("im.users_max users are known".into()))
    }

    fn draft(
        &mut self,
        line: u64,
        from: String,
        to: &To,
        (time_ms, kind, payload): (u64, u32, Bytes),
    ) -> Result<Draft, ImportError> {
        let sender = self.user(line, &from)?;
        let (target, conversation) = match to {
            To::User(uid) => {
                let mut id = String::new();
                names::write_one_to_one(&mut id, &from, uid);
                (Target::User(self.user(line, uid)?), id)
            }
            To::Conversation(id) => (Target::Conversation(self.find(line, id)?), id.clone()),
        };
        let digest = Sha256::new_with_prefix(&from)
            .chain_update([0])
            .chain_update(&conversation)
            .chain_update(time_ms.to_be_bytes())
            .chain_update(kind.to_be_bytes())
            .chain_update(&payload)
            .finalize();
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        let times = self.said.entry(key).or_default();
        *times += 1;
        let seen = times.to_be_bytes();
        key.iter_mut().zip(seen.iter().rev()).for_each(|(byte, times)| *byte ^= times);
        let id = self.ids.next(time_ms);
        let push = Push {
            message_id: id,
            conversation,
            sender: from,
            sender_device: DEVICE.to_owned(),
            r#type: kind,
            payload,
            time_ms,
            ..Push::default()
        };
        let mut body = BytesMut::with_capacity(push.encoded_len() + SEQ_BYTES_MAX);
        push.encode_raw(&mut body);
        let mut short = [0; 8];
        short.copy_from_slice(&digest[16..24]);
        let digest = u64::from_be_bytes(short);
        Ok(Draft { sender, device: API_DEVICE, target, key: MessageKey(key), id, digest, body })
    }

    fn write(&mut self, line: u64, write: Write) -> Result<(), ImportError> {
        self.writes.push(write);
        self.lines.push(line);
        if self.writes.len() < BATCH_WRITES_MAX { Ok(()) } else { self.commit() }
    }

    fn commit(&mut self) -> Result<(), ImportError> {
        let mut batch = std::mem::take(&mut self.writes);
        if batch.is_empty() {
            return Ok(());
        }
        while let Err(back) = self.store.try_commit(self.now_ms, self.ids.last(), batch) {
            batch = back;
            if batch.is_empty() {
                return Err(ImportError::Stuck);
            }
            self.durable.recv_timeout(COMMIT_WITHIN).map_err(|_| ImportError::Stuck)?;
            self.settle()?;
        }
        self.committing.push_back(std::mem::take(&mut self.lines));
        self.settle()?;
        self.complete_groups()
    }

    /// Adds members to groups of the committed batch that existed before, with fewer members.
    fn complete_groups(&mut self) -> Result<(), ImportError> {
        for Created { line, id, creator, members, event } in std::mem::take(&mut self.created) {
            let Some(conversation) = self.store.find(&id) else { continue }; // refused
            let is_new = |user: &UserId| self.store.member(conversation, *user).is_none();
            let add: Vec<_> = members.into_iter().filter(is_new).collect();
            if !add.is_empty() {
                let change = GroupChange::Edit(GroupEdit { add, ..GroupEdit::default() });
                self.write(line, Write::ChangeGroup { conversation, by: creator, change, event })?;
            }
        }
        Ok(())
    }

    /// Takes what is durable.
    fn settle(&mut self) -> Result<(), ImportError> {
        while let Some(committed) = self.store.poll_committed() {
            let lines = self.committing.pop_front().expect("one answer per batch");
            for (line, outcome) in lines.into_iter().zip(committed.outcomes) {
                let refused = |refusal: Refusal| {
                    Err(ImportError::Line { line, problem: reason_of(refusal).to_owned() })
                };
                match outcome {
                    Outcome::Appended(Ok(stored)) if stored.delivery.is_none() => self.imported.repeated += 1,
                    Outcome::Appended(Ok(_)) => self.imported.messages += 1,
                    Outcome::Created(Ok(_)) | Outcome::Done(Ok(_)) => {}
                    Outcome::Appended(Err(refusal))
                    | Outcome::Created(Err(refusal))
                    | Outcome::Done(Err(refusal)) => return refused(refusal),
                }
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Imported, ImportError> {
        while !self.writes.is_empty() {
            self.commit()?;
        }
        while !self.committing.is_empty() {
            self.durable.recv_timeout(COMMIT_WITHIN).map_err(|_| ImportError::Stuck)?;
            self.settle()?;
        }
        self.imported.users = self.store.counts().users;
        Ok(self.imported)
    }
}
