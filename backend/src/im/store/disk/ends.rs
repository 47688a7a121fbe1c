//! How far each conversation and each inbox goes, so that opening need not look at all of them.
//!
//! Each commit names what it makes longer (`touched`); now and then the ends of all that was named are written down
//! (`ends`), and the names removed. Opening reads the ends, and looks only at what is named still.

use super::DiskError;
use super::tables::{Change, Tables, decode};
use crate::im::store::directory::Directory;
use crate::im::store::embedded::Progress;
use crate::im::store::{ConversationId, UserId};
use prost::Message;
use std::collections::{BTreeSet, HashMap};

/// How often ends are written down, in milliseconds.
const EVERY_MS: u64 = 10_000;

/// What one commit makes longer.
#[derive(Clone, PartialEq, prost::Message)]
struct Touched {
    #[prost(uint32, repeated, tag = "1")]
    conversations: Vec<u32>,
    #[prost(uint32, repeated, tag = "2")]
    users: Vec<u32>,
}

/// What is named, and by which commits.
#[derive(Debug, Default)]
pub(super) struct Ends {
    conversations: BTreeSet<u32>,
    users: BTreeSet<u32>,
    /// Of the names that are there.
    first: u64,
    next: u64,
    written_at_ms: u64,
}

/// As they were written down.
#[derive(Debug, Default)]
pub(super) struct Written {
    conversations: HashMap<u32, u64>,
    users: HashMap<u32, u64>,
}

const CONVERSATION: u8 = 0;
const USER: u8 = 1;

fn key(kind: u8, number: u32) -> Vec<u8> {
    let mut key = vec![kind];
    key.extend_from_slice(&number.to_be_bytes());
    key
}

impl Ends {
    pub(super) fn load(tables: &Tables) -> Result<(Self, Written), DiskError> {
        let (mut ends, mut written) = (Self::default(), Written::default());
        let damaged = || DiskError::Damaged { what: "an end", problem: "its key or its value".into() };
        let mut is_first = true;
        for entry in tables.touched.iter() {
            let (key, value) = entry.into_inner().map_err(DiskError::engine("read a table"))?;
            let number = u64::from_be_bytes(key[..].try_into().map_err(|_| damaged())?);
            let Touched { conversations, users } = decode("what a commit made longer", &value)?;
            ends.conversations.extend(conversations);
            ends.users.extend(users);
            if std::mem::take(&mut is_first) {
                ends.first = number;
            }
            ends.next = number + 1;
        }
        for entry in tables.ends.iter() {
            let (key, value) = entry.into_inner().map_err(DiskError::engine("read a table"))?;
            let [kind, rest @ ..] = <[u8; 5]>::try_from(&key[..]).map_err(|_| damaged())?;
            let end = u64::from_be_bytes(value[..].try_into().map_err(|_| damaged())?);
            let (all, named) = match kind {
                CONVERSATION => (&mut written.conversations, &ends.conversations),
                USER => (&mut written.users, &ends.users),
                _ => return Err(damaged()),
            };
            let number = u32::from_be_bytes(rest);
            if !named.contains(&number) {
                all.insert(number, end);
            }
        }
        Ok((ends, written))
    }

    /// Adds to a commit what it makes longer, or the ends of all that was named since they were written down.
    pub(super) fn note(
        &mut self,
        now_ms: u64,
        progress: &Progress,
        directory: &Directory,
        tables: &Tables,
        changes: &mut Vec<Change>,
    ) {
        let mut touched = Touched {
            conversations: progress.messages.iter().map(|(conversation, _)| conversation.0).collect(),
            users: progress.entries.iter().map(|(user, _)| user.0).collect(),
        };
        for named in [&mut touched.conversations, &mut touched.users] {
            named.sort_unstable();
            named.dedup();
        }
        let has_news = !touched.conversations.is_empty() || !touched.users.is_empty();
        self.conversations.extend(&touched.conversations);
        self.users.extend(&touched.users);
        let is_due = now_ms.abs_diff(self.written_at_ms) >= EVERY_MS;
        if is_due && (!self.conversations.is_empty() || !self.users.is_empty()) {
            for number in std::mem::take(&mut self.conversations) {
                let end = directory.conversations.get(ConversationId(number)).numbered;
                changes.push(Change::put(&tables.ends, key(CONVERSATION, number), end.to_be_bytes()));
            }
            for number in std::mem::take(&mut self.users) {
                let end = directory.users.get(UserId(number)).numbered;
                changes.push(Change::put(&tables.ends, key(USER, number), end.to_be_bytes()));
            }
            let named = self.first..self.next;
            changes
                .extend(named.map(|number| Change::remove(&tables.touched, number.to_be_bytes().to_vec())));
            self.first = self.next;
            self.written_at_ms = now_ms;
        } else if has_news {
            let number = self.next.to_be_bytes().to_vec();
            changes.push(Change::put(&tables.touched, number, touched.encode_to_vec()));
            self.next += 1;
        }
    }
}

impl Written {
    /// The last seq of a conversation.
    pub(super) fn of_conversation(&self, tables: &Tables, number: u32) -> Result<u64, DiskError> {
        match self.conversations.get(&number) {
            Some(end) => Ok(*end),
            None => Ok(Tables::last(&tables.messages, number)?.unwrap_or(0)),
        }
    }

    /// The last position of an inbox.
    pub(super) fn of_user(&self, tables: &Tables, number: u32) -> Result<u64, DiskError> {
        match self.users.get(&number) {
            Some(end) => Ok(*end),
            None => Ok(Tables::last(&tables.streams, number)?.unwrap_or(0)),
        }
    }
}
