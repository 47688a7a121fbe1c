//! The highest seq that may have been given, in a file beside the database.
//!
//! A database that is whole knows where a conversation goes on: behind its last message. One that lost its newest commits,
//! or an old copy of one, does not, and would give seqs again that clients have seen. So the maximum of each section, which
//! is [`SECTION`] conversations with neighbouring numbers, is kept apart: raised by [`STEP`] and written down before a commit
//! gives a seq above it. A store that goes on without what it lost begins there, and what lies between holds no message.
//!
//! The file is numbers of 8 bytes, big-endian: behind which seq conversations begin that are new, then the maximum of
//! each section.

use super::check::NUMBER_MAX;
use super::stream_tails::StreamTails;
use super::tables::{Change, Tables};
use super::{rows, sync};
use crate::im::store::ConversationId;
use crate::im::store::directory::{Changed, Directory};
use crate::im::store::embedded::Progress;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Step of a high water mark: seqs for one write and one fsync.
pub(super) const STEP: u64 = 10_000;
/// Distance by which a copy goes on behind its last known maximum: more than a conversation can have been given since.
pub(super) const JUMP: u64 = 1 << 32;
/// Conversations that share a maximum.
const SECTION: u32 = 1024;

#[derive(Debug)]
pub(super) struct HighWaterFile {
    /// Conversations that are new begin after this seq.
    pub(super) begin_after: u64,
    maxima: Vec<u64>,
    /// There was no file, or nothing in it: nothing is known.
    is_new: bool,
}

/// A new maximum.
#[derive(Debug)]
pub(super) struct HighWater {
    section: usize,
    maximum: u64,
}

fn section_of(conversation: usize) -> usize {
    conversation / SECTION as usize
}

impl HighWaterFile {
    /// Reads the file, which is made if it is not there.
    ///
    /// # Errors
    /// The system's, or a number that no store has written: there would be no seq behind it.
    pub(super) fn open(path: &Path) -> io::Result<(Self, File)> {
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok((Self::parse(&bytes)?, file))
    }

    /// Reads the file, which need not be there.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        match std::fs::read(path) {
            Ok(bytes) => Self::parse(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::parse(&[]),
            Err(error) => Err(error),
        }
    }

    fn parse(bytes: &[u8]) -> io::Result<Self> {
        // What is left over at the end was never synced, so nothing was committed that counts on it.
        let mut numbers = bytes.as_chunks::<8>().0.iter().map(|number| u64::from_be_bytes(*number));
        if let Some(number) = numbers.clone().find(|number| *number > NUMBER_MAX) {
            let problem = format!("{number} cannot be a seq: the file is damaged; restore it from a backup");
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        let first = numbers.next();
        let (begin_after, is_new) = (first.unwrap_or(0), first.is_none());
        Ok(Self { begin_after, maxima: numbers.collect(), is_new })
    }

    /// A conversation is to have a message with this seq.
    pub(super) fn raise(&mut self, conversation: ConversationId, seq: u64) -> Option<HighWater> {
        let section = section_of(conversation.index() as usize);
        if self.maxima.len() <= section {
            self.maxima.resize(section + 1, 0);
        }
        let maximum = &mut self.maxima[section];
        if seq <= *maximum {
            return None;
        }
        *maximum = seq + STEP;
        Some(HighWater { section, maximum: *maximum })
    }

    /// Takes the larger of each maximum.
    pub(super) fn merge(&mut self, other: &Self) {
        self.is_new &= other.is_new;
        self.begin_after = self.begin_after.max(other.begin_after);
        self.maxima.resize(self.maxima.len().max(other.maxima.len()), 0);
        for (maximum, other) in self.maxima.iter_mut().zip(&other.maxima) {
            *maximum = (*maximum).max(*other);
        }
    }

    /// The highest seq that may have been given in the section of a conversation. `None`: nothing was.
    pub(super) fn maximum(&self, conversation: ConversationId) -> Option<u64> {
        self.maxima.get(section_of(conversation.index() as usize)).copied()
    }

    /// A seq that was given and the lower maximum of its section: the file is of another store, or of an earlier time.
    /// `None`: it fits.
    pub(super) fn contradiction(&self, directory: &Directory) -> Option<(u64, u64)> {
        if self.is_new {
            return None;
        }
        let given = directory.conversations.all().map(|id| (id, directory.conversations.get(id).numbered));
        let mut pairs = given.map(|(id, given)| (given, self.maximum(id).unwrap_or(0).max(self.begin_after)));
        pairs.find(|(given, maximum)| given > maximum)
    }

    /// True if there was no file, or nothing in it.
    pub(super) fn knows_nothing(&self) -> bool {
        self.is_new
    }

    /// Nothing in the file counts.
    pub(super) fn distrust(&mut self) {
        *self = Self { begin_after: 0, maxima: Vec::new(), is_new: true };
    }

    /// The store is a copy of an unknown age: whatever was given since is below [`JUMP`] more.
    pub(super) fn jump(&mut self, directory: &Directory) {
        if self.is_new {
            self.guess(directory);
            self.is_new = false;
        }
        let sections = directory.conversations.len().div_ceil(SECTION as usize);
        self.maxima.resize(self.maxima.len().max(sections), 0);
        self.maxima.iter_mut().for_each(|maximum| *maximum = maximum.saturating_add(JUMP));
        self.begin_after = self.begin_after.saturating_add(JUMP);
    }

    /// A step behind the last seq of each section that is there.
    fn guess(&mut self, directory: &Directory) {
        let ends = directory.conversations.all().map(|id| directory.conversations.get(id).numbered);
        let ends: Vec<u64> = ends.collect();
        let highest = ends.chunks(SECTION as usize).map(|section| section.iter().copied().max().unwrap_or(0));
        self.maxima = highest.map(|end| end + STEP).collect();
    }

    /// Conversations go on behind every seq that may have been given. What is to be committed for it.
    pub(super) fn begin_anew(
        &mut self,
        tables: &Tables,
        directory: &mut Directory,
        tails: &mut StreamTails,
    ) -> Vec<Change> {
        if self.is_new {
            self.guess(directory);
        }
        // The numbers of conversations that were lost are given again, so the new ones stay clear of them.
        let first_lost = section_of(directory.conversations.len());
        let first_lost = if self.is_new { 0 } else { first_lost };
        let lost = self.maxima.get(first_lost..).unwrap_or(&[]);
        self.begin_after = lost.iter().copied().fold(self.begin_after, u64::max);
        let (mut changes, mut progress) = (Vec::new(), Progress::default());
        for id in directory.conversations.all() {
            let maximum = self.maxima.get(section_of(id.index() as usize)).copied().unwrap_or(0);
            let place = directory.conversations.get_mut(id);
            let first = place.numbered + 1;
            if place.skip_to(maximum) {
                changes.push(rows::change(tables, directory, Changed::Uncounted(id, first)));
                progress.messages.push((id, maximum));
            }
        }
        tails.note(0, &progress, directory, tables, &mut changes);
        tails.write_all(directory, tables, &mut changes);
        changes
    }

    /// Writes all of it, synced.
    pub(super) fn write(&self, file: &File, path: &Path) -> io::Result<()> {
        file.write_all_at(&self.bytes(), 0)?;
        sync::data(file, path)
    }

    fn bytes(&self) -> Vec<u8> {
        let numbers = [self.begin_after].into_iter().chain(self.maxima.iter().copied());
        numbers.flat_map(u64::to_be_bytes).collect()
    }

    /// Puts a new file in the place of the one that is there, if anything is known.
    pub(super) fn replace(&self, path: &Path) -> io::Result<()> {
        if self.is_new { Ok(()) } else { sync::replace(path, &self.bytes()) }
    }
}

impl HighWater {
    pub(super) fn write(&self, file: &File) -> io::Result<()> {
        file.write_all_at(&self.maximum.to_be_bytes(), (self.section as u64 + 1) * 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_maximum_with_no_seq_behind_it_is_refused() {
        let path = std::env::temp_dir().join(format!("moorline-high-water-{}", std::process::id()));
        for (number, is_taken) in [(NUMBER_MAX, true), (NUMBER_MAX + 1, false), (u64::MAX, false)] {
            std::fs::write(&path, [7_u64, number].map(u64::to_be_bytes).concat()).expect("written");
            match HighWaterFile::open(&path) {
                Ok((file, _)) => assert!(is_taken && file.maximum(ConversationId::of(0)) == Some(number)),
                Err(error) => {
                    assert!(!is_taken && error.to_string().contains(&number.to_string()), "{error}");
                }
            }
        }
        std::fs::remove_file(&path).ok();
    }
}
