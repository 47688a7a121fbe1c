//! Proof that the parts of a store agree: seqs without holes, members, inboxes, cursors, message keys and maxima.
//!
//! ```text
//! conversation 7: seq 12 is neither a message nor a recorded void
//! the inbox of user 3 has no entry 41, and should have 40 to 44
//! ```
//!
//! Reads every row once. At most [`PROBLEMS_MAX`] problems are described; all are counted.

use super::high_water::HighWaterFile;
use super::tables::{EntryRecord, KeyRecord, LAST_ID, Tables, decode, numbers};
use super::{DiskError, content};
use crate::im::store::directory::Directory;
use crate::im::store::embedded::{Content, EVENTS};
use crate::im::store::{ConversationId, UserId};
use moorline_proto::message::client::Push;
use prost::Message as _;

/// Problems that are described.
const PROBLEMS_MAX: usize = 100;

/// Figures of a verification.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Users that are known.
    pub users: u64,
    /// Conversations that are known.
    pub conversations: u64,
    /// Stored messages.
    pub messages: u64,
    /// Seqs that hold no message, and are recorded as void.
    pub voids: u64,
    /// Entries of inboxes.
    pub entries: u64,
    /// Message keys.
    pub keys: u64,
    /// Descriptions of problems, at most 100.
    pub problems: Vec<String>,
    /// Number of problems.
    pub problem_count: u64,
}

impl Verified {
    fn problem(&mut self, text: impl FnOnce() -> String) {
        self.problem_count += 1;
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(text());
        }
    }
}

/// Reads all rows, and compares them with each other and with what was loaded.
pub(super) fn verify(
    tables: &Tables,
    directory: &Directory,
    high_water: &HighWaterFile,
) -> Result<Verified, DiskError> {
    let mut report = Verified {
        users: directory.users.len() as u64,
        conversations: directory.conversations.len() as u64,
        ..Verified::default()
    };
    let last_id = tables.number(LAST_ID)?;
    let has_seqs = || directory.conversations.all().any(|id| directory.conversations.get(id).numbered > 0);
    if high_water.knows_nothing() && has_seqs() {
        report.problem(|| {
            "`sequences` is missing or empty, and seqs were given: put it back, or run `moorline backend restore` without a \
             folder, which goes on far behind them"
                .into()
        });
    }
    for id in directory.conversations.all() {
        conversation(tables, directory, id, last_id, &mut report)?;
        let place = directory.conversations.get(id);
        if high_water.maximum(id).is_some_and(|maximum| maximum < place.numbered) {
            report.problem(|| format!("`sequences` is below the last seq of conversation {}", id.index()));
        }
        for member in &place.members {
            if member.read > place.numbered || member.visible_from > place.numbered + 1 {
                let user = member.user.index();
                report.problem(|| format!("user {user} has read what conversation {} has not", id.index()));
            }
        }
    }
    for user in (0..directory.users.len()).filter_map(|at| u32::try_from(at).ok()).map(UserId::of) {
        inbox(tables, directory, user, &mut report)?;
    }
    for (_, table) in &tables.keys {
        for entry in table.iter() {
            let (key, value) = entry.into_inner().map_err(DiskError::engine("read a table"))?;
            message_key(tables, directory, &key, decode("a key", &value)?, &mut report)?;
        }
    }
    Ok(report)
}

fn conversation(
    tables: &Tables,
    directory: &Directory,
    id: ConversationId,
    last_id: u64,
    report: &mut Verified,
) -> Result<(), DiskError> {
    let place = directory.conversations.get(id);
    let mut name = String::new();
    directory.write_id(id, &mut name);
    let mut next = 1;
    for entry in tables.messages.prefix(id.index().to_be_bytes()) {
        let (key, value) = entry.into_inner().map_err(DiskError::engine("read a message"))?;
        let seq = numbers(&key)?.1;
        gap(directory, id, (next, seq), report);
        next = seq + 1;
        if value.is_empty() || seq <= place.gone {
            report.voids += 1; // erased, or about to be removed
            continue;
        }
        report.messages += 1;
        match Push::decode(&value[..]) {
            Ok(push)
                if push.seq == seq
                    && (push.conversation == name || push.conversation.is_empty())
                    && push.message_id <= last_id => {}
            Ok(push) => report.problem(|| {
                format!(
                    "the message {seq} of {name} says that it is the message {} of {}, with the id {}; the last id is {last_id}",
                    push.seq, push.conversation, push.message_id
                )
            }),
            Err(error) => report.problem(|| format!("the message {seq} of {name} cannot be read: {error}")),
        }
    }
    if next > place.numbered + 1 {
        report.problem(|| format!("{name} ends at seq {} and has a message {}", place.numbered, next - 1));
    }
    gap(directory, id, (next, place.numbered + 1), report);
    Ok(())
}

/// Judges seqs without a message: each has to be a recorded void.
fn gap(directory: &Directory, id: ConversationId, (first, end): (u64, u64), report: &mut Verified) {
    let place = directory.conversations.get(id);
    let mut next = first.max(place.began_after + 1).max(place.gone + 1);
    report.voids += next.min(end).saturating_sub(first);
    for (from, to) in place.uncounted() {
        if from <= next && next <= to && next < end {
            report.voids += to.min(end - 1) - next + 1;
            next = to + 1;
        }
    }
    if next < end {
        report.problem(|| {
            format!(
                "conversation {}: the seqs {next} to {} are neither messages nor voids",
                id.index(),
                end - 1
            )
        });
    }
}

fn inbox(tables: &Tables, directory: &Directory, id: UserId, report: &mut Verified) -> Result<(), DiskError> {
    let user = directory.users.get(id);
    let mut next = user.trimmed + 1;
    for entry in tables.streams.prefix(id.index().to_be_bytes()) {
        let (key, value) = entry.into_inner().map_err(DiskError::engine("read an inbox"))?;
        let position = numbers(&key)?.1;
        if position <= user.trimmed {
            continue; // removed with one of the next commits
        }
        report.entries += 1;
        if position != next || position > user.numbered {
            report.problem(|| {
                format!(
                    "the inbox of user {} has an entry {position} in the place of {next}, and ends at {}",
                    id.index(),
                    user.numbered
                )
            });
        }
        next = position + 1;
        let record: EntryRecord = decode("an entry", &value)?;
        if let Content::Message(conversation, seq) = content(record) {
            let is_known = (conversation.index() as usize) < directory.conversations.len()
                && seq <= directory.conversations.get(conversation).numbered;
            if !is_known {
                report.problem(|| {
                    format!(
                        "the inbox of user {} names seq {seq} of conversation {}",
                        id.index(),
                        conversation.index()
                    )
                });
            }
        }
    }
    if next <= user.numbered {
        let (from, to) = (next, user.numbered);
        report.problem(|| format!("the inbox of user {} has no entries {from} to {to}", id.index()));
    }
    for device in user.devices.iter() {
        if device.acked > user.numbered {
            report.problem(|| {
                format!(
                    "the device {} of user {} has acknowledged {}",
                    device.number.0,
                    id.index(),
                    device.acked
                )
            });
        }
        for (conversation, seq) in device.confirmed() {
            if seq > directory.conversations.get(conversation).numbered {
                report.problem(|| {
                    format!(
                        "a device of user {} has confirmed seq {seq} of conversation {}",
                        id.index(),
                        conversation.index()
                    )
                });
            }
        }
    }
    Ok(())
}

fn message_key(
    tables: &Tables,
    directory: &Directory,
    key: &[u8],
    record: KeyRecord,
    report: &mut Verified,
) -> Result<(), DiskError> {
    report.keys += 1;
    let KeyRecord { conversation, seq, id, .. } = record;
    if (conversation, seq) == (EVENTS.index(), 0) {
        return Ok(()); // of a push into the inbox
    }
    let is_known = (conversation as usize) < directory.conversations.len();
    if !is_known || seq == 0 || seq > directory.conversations.get(ConversationId::of(conversation)).numbered {
        report.problem(|| {
            format!("a key of user {} names seq {seq} of conversation {conversation}", user_of(key))
        });
        return Ok(());
    }
    let place = super::tables::place(conversation, seq);
    let value = tables.messages.get(place).map_err(DiskError::engine("read a message"))?;
    // A void keeps its key.
    let value = value.filter(|value| !value.is_empty());
    let Some(push) = value.and_then(|value| Push::decode(&value[..]).ok()) else { return Ok(()) };
    if push.message_id != id {
        report.problem(|| {
            format!("a key of user {} names the message {id}, and seq {seq} of conversation {conversation} is another", user_of(key))
        });
    }
    Ok(())
}

fn user_of(key: &[u8]) -> u32 {
    key.first_chunk().map_or(u32::MAX, |first| u32::from_be_bytes(*first))
}
