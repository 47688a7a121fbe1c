//! Ends of conversations and inboxes, so that opening need not look at all of them.
//!
//! Each commit names what it makes longer (`touched`). A name that has not come again for a while has its end written down
//! (`ends`), and a row of names goes when all of them have: bit by bit, with other commits. Opening reads the ends, and
//! looks only at what is named still.

use super::tables::{Change, Tables, decode};
use super::{DiskError, load};
use crate::im::store::directory::Directory;
use crate::im::store::embedded::Progress;
use crate::im::store::{ConversationId, UserId};
use prost::Message;
use std::collections::{HashMap, VecDeque};

/// Time that a row of names stays, in milliseconds.
const AFTER_MS: u64 = 2_000;
/// Rows that go with one commit: more than the one that comes with it.
const ROWS_AT_ONCE: usize = 2;

/// Conversations and inboxes that one commit makes longer.
#[derive(Clone, PartialEq, prost::Message)]
struct ChangedTails {
    #[prost(uint32, repeated, tag = "1")]
    conversations: Vec<u32>,
    #[prost(uint32, repeated, tag = "2")]
    users: Vec<u32>,
}

/// Names, and the commits that wrote them.
#[derive(Debug, Default)]
pub(super) struct StreamTails {
    /// Oldest first.
    rows: VecDeque<Row>,
    /// The last row that names it.
    last: HashMap<(u8, u32), u64>,
    next: u64,
}

#[derive(Debug)]
struct Row {
    number: u64,
    at_ms: u64,
    touched: ChangedTails,
}

impl ChangedTails {
    fn names(&self) -> impl Iterator<Item = (u8, u32)> {
        let conversations = self.conversations.iter().map(|number| (CONVERSATION, *number));
        conversations.chain(self.users.iter().map(|number| (USER, *number)))
    }
}

/// Ends as written.
#[derive(Debug, Default)]
pub(super) struct Written {
    conversations: HashMap<u32, u64>,
    users: HashMap<u32, u64>,
}

const CONVERSATION: u8 = 0;
const USER: u8 = 1;

fn key((kind, number): (u8, u32)) -> Vec<u8> {
    let mut key = vec![kind];
    key.extend_from_slice(&number.to_be_bytes());
    key
}

impl StreamTails {
    pub(super) fn load(tables: &Tables) -> Result<(Self, Written), DiskError> {
        let (mut tails, mut written) = (Self::default(), Written::default());
        let damaged = || DiskError::Damaged { what: "an end", problem: "its key or its value".into() };
        for entry in tables.touched.iter() {
            let (key, value) = entry.into_inner().map_err(DiskError::engine("read a table"))?;
            let number = u64::from_be_bytes(key[..].try_into().map_err(|_| damaged())?);
            if number == u64::MAX {
                return Err(damaged());
            }
            tails.push(number, 0, decode("what a commit made longer", &value)?);
        }
        for entry in tables.ends.iter() {
            let (key, value) = entry.into_inner().map_err(DiskError::engine("read a table"))?;
            let [kind, rest @ ..] = <[u8; 5]>::try_from(&key[..]).map_err(|_| damaged())?;
            let end = u64::from_be_bytes(value[..].try_into().map_err(|_| damaged())?);
            let all = match kind {
                CONVERSATION => &mut written.conversations,
                USER => &mut written.users,
                _ => return Err(damaged()),
            };
            let number = u32::from_be_bytes(rest);
            if !tails.last.contains_key(&(kind, number)) {
                all.insert(number, end);
            }
        }
        Ok((tails, written))
    }

    /// Checks that every name is one of a conversation or a user that there is.
    ///
    /// # Errors
    /// [`DiskError::Damaged`]
    pub(super) fn check(&self, directory: &Directory) -> Result<(), DiskError> {
        const WHAT: &str = "what a commit made longer";
        for (kind, number) in self.last.keys() {
            match *kind {
                CONVERSATION => _ = load::known_conversation(directory, *number, WHAT)?,
                _ => _ = load::known_user(directory, *number, WHAT)?,
            }
        }
        Ok(())
    }

    fn push(&mut self, number: u64, at_ms: u64, touched: ChangedTails) {
        for name in touched.names() {
            self.last.insert(name, number);
        }
        self.rows.push_back(Row { number, at_ms, touched });
        self.next = number + 1;
    }

    /// Adds to a commit what it makes longer, and the ends of what has not become longer for a while.
    pub(super) fn note(
        &mut self,
        now_ms: u64,
        progress: &Progress,
        directory: &Directory,
        tables: &Tables,
        changes: &mut Vec<Change>,
    ) {
        let mut touched = ChangedTails {
            conversations: progress.messages.iter().map(|(conversation, _)| conversation.index()).collect(),
            users: progress.entries.iter().map(|(user, _)| user.index()).collect(),
        };
        for named in [&mut touched.conversations, &mut touched.users] {
            named.sort_unstable();
            named.dedup();
        }
        if !touched.conversations.is_empty() || !touched.users.is_empty() {
            let number = self.next.to_be_bytes().to_vec();
            changes.push(Change::put(&tables.touched, number, touched.encode_to_vec()));
            self.push(self.next, now_ms, touched);
        }
        for _ in 0..ROWS_AT_ONCE {
            let is_due = |row: &Row| now_ms.abs_diff(row.at_ms) >= AFTER_MS;
            if !self.rows.front().is_some_and(is_due) {
                return;
            }
            self.write_oldest(directory, tables, changes);
        }
    }

    /// Adds the ends of all that is named.
    pub(super) fn write_all(&mut self, directory: &Directory, tables: &Tables, changes: &mut Vec<Change>) {
        while !self.rows.is_empty() {
            self.write_oldest(directory, tables, changes);
        }
    }

    fn write_oldest(&mut self, directory: &Directory, tables: &Tables, changes: &mut Vec<Change>) {
        let Some(Row { number, touched, .. }) = self.rows.pop_front() else { return };
        for name in touched.names() {
            if self.last.get(&name) != Some(&number) {
                continue; // a later row names it too
            }
            self.last.remove(&name);
            let end = match name {
                (CONVERSATION, number) => directory.conversations.get(ConversationId::of(number)).numbered,
                (_, number) => directory.users.get(UserId::of(number)).numbered,
            };
            changes.push(Change::put(&tables.ends, key(name), end.to_be_bytes()));
        }
        changes.push(Change::remove(&tables.touched, number.to_be_bytes().to_vec()));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_of_nobody_and_of_no_conversation_are_damage() {
        let directory = Directory::new(&crate::config::ImConfig::default());
        for (conversations, users) in [(vec![0], vec![]), (vec![], vec![7])] {
            let mut tails = StreamTails::default();
            tails.push(1, 0, ChangedTails { conversations, users });
            assert!(matches!(tails.check(&directory), Err(DiskError::Damaged { .. })));
        }
        assert!(StreamTails::default().check(&directory).is_ok());
    }
}
