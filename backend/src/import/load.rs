//! Lines into writes of the store, in batches.

use super::{ImportError, Imported, Line, To};
use crate::clock::Clock;
use crate::config::BackendConfig;
use crate::error::BackendError;
use crate::im::store::{
    API_DEVICE, Batch, Command, Completion, ConversationId, DeviceNumber, Disk, Draft, Durability, Facts,
    GroupChange, GroupEdit, Outcome, Refusal, SEQ_BYTES_MAX, Store, Target, Ticket, UserId, Write,
};
use crate::im::{BATCH_WRITES_MAX, MessageIds, names, reason_of};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use crossbeam_channel::{Receiver, bounded};
use moorline_proto::ids::MessageKey;
use moorline_proto::message::client::Push;
use moorline_proto::message::{encode, im};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// Longest time that the store may take for a batch.
const COMMIT_WITHIN: Duration = Duration::from_secs(60);
/// Longest time that a message may be ahead of the clock: message ids continue after the last one.
const AHEAD_MS_MAX: u64 = 86_400_000;
/// Members of a new group that the others are told by name.
const TOLD_MAX: usize = 1000;
/// Device name of imported messages.
const DEVICE: &str = names::IMPORT;

/// A group of a line, until its batch is committed.
struct Created {
    line: u64,
    id: String,
    creator: (UserId, DeviceNumber),
    members: Vec<UserId>,
    event: Bytes,
}

/// A store that is filled line by line.
pub(super) struct Importer {
    store: Disk,
    ids: MessageIds,
    durable: Receiver<()>,
    /// Occurrences of equal messages, so that each becomes a message of its own.
    seen: HashMap<[u8; 16], u64>,
    writes: Vec<Write>,
    lines: Vec<u64>,
    /// Groups that the open batch creates; bounded as the batch is.
    created: Vec<Created>,
    committing: VecDeque<Vec<u64>>,
    /// Lines of the next batch.
    ticket: Ticket,
    imported: Imported,
    now_ms: u64,
    payload_max: usize,
}

impl Importer {
    pub(super) fn open(config: &BackendConfig) -> Result<Self, ImportError> {
        config.validate().map_err(BackendError::from)?;
        if config.im.folder.as_os_str().is_empty() {
            return Err(ImportError::NoFolder);
        }
        let (sender, durable) = bounded(1);
        // A full channel holds a message of the same meaning.
        let notify = move || _ = sender.try_send(());
        let mut store = Disk::open(&config.im.folder, &config.im, Durability::Disk, notify)
            .map_err(BackendError::from)?;
        // A line that is corrected and given again must come before those after it.
        store.stop_at_refusal();
        let now_ms = Clock::new().read().unix_ms;
        Ok(Self {
            ids: MessageIds::after(config.node_number, store.last_id()),
            store,
            durable,
            seen: HashMap::new(),
            writes: Vec::new(),
            lines: Vec::new(),
            created: Vec::new(),
            committing: VecDeque::new(),
            ticket: Ticket::FIRST,
            imported: Imported::default(),
            now_ms,
            payload_max: config.im.payload_max,
        })
    }

    /// Time at which the import began, in Unix milliseconds.
    pub(super) const fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Performs one line; `line`: its number.
    pub(super) fn take(&mut self, line: u64, what: Line) -> Result<(), ImportError> {
        let wrong = |problem: String| ImportError::Line { line, problem };
        match what {
            Line::Group { name, owner, members } => {
                let creator = (self.user(line, &owner)?, API_DEVICE);
                let added = members.iter().take(TOLD_MAX).cloned().collect();
                let members: Vec<UserId> =
                    members.iter().map(|uid| self.user(line, uid)).collect::<Result<_, _>>()?;
                if !names::is_valid(&name) {
                    return Err(wrong(format!("`{name}` is not a valid name of a group: {}", names::RULE)));
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
                    _ => return Err(wrong("give exactly one of `text` and `payload`".into())),
                };
                if payload.len() > self.payload_max {
                    let (bytes, most) = (payload.len(), self.payload_max);
                    return Err(wrong(format!(
                        "the payload has {bytes} bytes; `im.payload_max` allows {most}"
                    )));
                }
                if time_ms > self.now_ms + AHEAD_MS_MAX {
                    let problem =
                        format!("`time_ms` {time_ms} is more than a day ahead; give milliseconds since 1970");
                    return Err(wrong(problem));
                }
                let draft = self.draft(line, from, &to, (time_ms, r#type, payload))?;
                self.write(line, Write::Append(draft))
            }
            Line::Read { user, conversation, seq } => {
                let by = (self.user(line, &user)?, API_DEVICE);
                let found = self.find(line, &conversation)?;
                self.commit()?; // a waiting write may hold the newest message
                let what = im::happened::What::Read(im::Read { user: user.clone(), seq });
                let event = self.happened(&user, &conversation, what);
                self.write(line, Write::Read { conversation: found, by, seq, event })
            }
        }
    }

    /// Encodes the event that tells clients of a change.
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
        let problem = || format!("there is no conversation `{id}`");
        self.store.find(id).ok_or_else(|| ImportError::Line { line, problem: problem() })
    }

    fn user(&mut self, line: u64, uid: &str) -> Result<UserId, ImportError> {
        let wrong = |problem| ImportError::Line { line, problem };
        if !names::is_valid(uid) {
            return Err(wrong(format!("`{uid}` is not a valid user id: {}", names::RULE)));
        }
        self.store.try_user(uid).ok_or_else(|| wrong("the store has `im.users_max` users".into()))
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
        let times = self.seen.entry(key).or_default();
        *times += 1;
        let count = times.to_be_bytes();
        key.iter_mut().zip(count.iter().rev()).for_each(|(byte, times)| *byte ^= times);
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
        Ok(Draft {
            is_repeat: false,
            sender,
            device: API_DEVICE,
            target,
            key: MessageKey(key),
            id,
            time_ms,
            digest,
            body,
        })
    }

    fn write(&mut self, line: u64, write: Write) -> Result<(), ImportError> {
        self.writes.push(write);
        self.lines.push(line);
        if self.writes.len() < BATCH_WRITES_MAX { Ok(()) } else { self.commit() }
    }

    fn commit(&mut self) -> Result<(), ImportError> {
        let writes = std::mem::take(&mut self.writes);
        if writes.is_empty() {
            return Ok(());
        }
        let mut command = Command::Commit(Batch { now_ms: self.now_ms, last_id: self.ids.last(), writes });
        while let Err(back) = self.store.submit(self.ticket, command) {
            if matches!(&back, Command::Commit(batch) if batch.writes.is_empty()) {
                return Err(ImportError::Stuck);
            }
            command = back;
            self.durable.recv_timeout(COMMIT_WITHIN).map_err(|_| ImportError::Stuck)?;
            self.settle()?;
        }
        self.ticket = self.ticket.next();
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

    /// Takes the outcomes of durable batches.
    fn settle(&mut self) -> Result<(), ImportError> {
        while let Some((_, Completion::Committed(committed))) = self.store.poll() {
            let lines = self.committing.pop_front().expect("one answer per batch");
            for (line, outcome) in lines.into_iter().zip(committed.outcomes) {
                let refused = |refusal: Refusal| {
                    Err(ImportError::Line { line, problem: reason_of(refusal).to_owned() })
                };
                match outcome {
                    Outcome::Appended(Ok(stored)) if stored.delivery.is_none() => self.imported.repeated += 1,
                    Outcome::Appended(Ok(_)) => self.imported.messages += 1,
                    Outcome::Created(Ok(_)) | Outcome::Done(Ok(_)) | Outcome::Swept(_) => {}
                    Outcome::Appended(Err(refusal))
                    | Outcome::Created(Err(refusal))
                    | Outcome::Done(Err(refusal)) => return refused(refusal),
                }
            }
        }
        Ok(())
    }

    /// Waits until everything is durable, and closes the store.
    pub(super) fn finish(mut self) -> Result<Imported, ImportError> {
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
