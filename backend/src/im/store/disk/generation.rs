//! Recognition of an old copy that was put back over the store in place.
//!
//! `cp` over the files of a store writes into them, so they are still the files that were [created](super::identity) here. But no
//! program can put back the time at which the system last changed a file (ctime). So two small files are written in turn, each
//! with a number, and each notes the time of the other one. The newer one proves the older one, and a copy proves nothing:
//!
//! ```text
//! generation-0: number 6, commits 170                                    changed at 12:00:08.5
//! generation-1: number 7, commits 190, the other was changed at 12:00:08.5
//! ```
//!
//! They are written at each start, at each stop, and every 10 s while there are commits, by the thread that seals journals.
//! The length changes with the number: `rsync` leaves a file alone that has the same length and time as its copy. The number of
//! commits tells an old database that somebody put back without these files. A kill between any two steps leaves files
//! that prove each other.

use super::sync;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The files; a number is in the one of its last bit.
const FILES: [&str; 2] = ["generation-0", "generation-1"];
/// Lengths that the files have in turn.
const LENGTHS: u64 = 64;
/// Numbers are below: there is always a next one.
const NUMBER_END: u64 = 1 << 62;

/// Time of the last change of a file by the system, in seconds and nanoseconds.
type Time = (i64, i64);

/// Content of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Note {
    number: u64,
    /// Time of the other file; `None`: there was none that counted.
    other: Option<Time>,
    /// Commits that there were at least.
    commits: u64,
}

fn path_of(folder: &Path, number: u64) -> PathBuf {
    folder.join(FILES[usize::from(number % 2 == 1)])
}

fn time_of(path: &Path) -> io::Result<Time> {
    let found = fs::metadata(path)?;
    Ok((found.ctime(), found.ctime_nsec()))
}

fn text(note: &Note) -> String {
    let Note { number, other, commits } = note;
    let other = other.map_or_else(|| "none".into(), |(seconds, nanos)| format!("{seconds}.{nanos}"));
    let line = format!("number {number} commits {commits} other {other}");
    let padding = usize::try_from(number / 2 % LENGTHS).unwrap_or(0);
    format!("{line:<width$}\n", width = line.len() + padding)
}

fn parse(text: &str) -> Option<Note> {
    let mut words = text.split_ascii_whitespace();
    let mut word = |title: &str| words.next().filter(|word| *word == title).and_then(|_| words.next());
    let number = word("number")?.parse().ok().filter(|number| *number < NUMBER_END)?;
    let commits = word("commits")?.parse().ok()?;
    let other = match word("other")? {
        "none" => None,
        time => {
            let (seconds, nanos) = time.split_once('.')?;
            Some((seconds.parse().ok()?, nanos.parse().ok()?))
        }
    };
    let note = Note { number, other, commits };
    (self::text(&note) == text).then_some(note)
}

/// Result of a look at one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Note(Note, Time),
    /// Nobody has written this here.
    Damaged,
}

impl Found {
    fn look(folder: &Path, index: u64) -> io::Result<Self> {
        let path = path_of(folder, index);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::Nothing),
            Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        };
        let note = String::from_utf8(bytes).ok().and_then(|text| parse(&text));
        let note = note.filter(|note| note.number % 2 == index);
        note.map_or(Ok(Self::Damaged), |note| time_of(&path).map(|time| Self::Note(note, time)))
    }

    fn number(&self) -> u64 {
        match self {
            Self::Note(note, _) => note.number,
            Self::Nothing | Self::Damaged => 0,
        }
    }
}

fn look(folder: &Path) -> io::Result<[Found; 2]> {
    Ok([Found::look(folder, 0)?, Found::look(folder, 1)?])
}

/// Judges the files of a store with this number of commits. True: they are not those that its backend wrote, or the database is older.
/// `None`: the number of commits proves nothing. A store of an earlier version has no such files, and is taken for what it says.
fn is_copy(found: &[Found; 2], commits: Option<u64>) -> bool {
    let is_older = |note: &Note| commits.is_some_and(|commits| commits < note.commits);
    match found {
        [Found::Nothing, Found::Nothing] => false,
        // Killed between the first two.
        [Found::Nothing, Found::Note(note, _)] => {
            *note != Note { number: 1, other: None, ..*note } || is_older(note)
        }
        [Found::Note(first, first_time), Found::Note(second, second_time)] => {
            let (newer, older, time) = if first.number > second.number {
                (first, second, second_time)
            } else {
                (second, first, first_time)
            };
            newer.number != older.number + 1 || newer.other != Some(*time) || is_older(newer)
        }
        _ => true,
    }
}

/// True if an old copy was put back over the store in a folder. `commits`: those that the database has.
pub(super) fn is_put_back(folder: &Path, commits: Option<u64>) -> io::Result<bool> {
    Ok(is_copy(&look(folder)?, commits))
}

/// The files of a store that is open.
#[derive(Debug)]
pub(super) struct Generations {
    folder: PathBuf,
    number: u64,
    /// Times of the files, by index.
    times: [Option<Time>; 2],
    /// Commits as last noted.
    commits: u64,
}

impl Generations {
    /// Notes that the store is where it belongs, and that a process has it open.
    pub(super) fn settle(folder: &Path, commits: u64) -> io::Result<Self> {
        let found = look(folder)?;
        let number = found.iter().map(Found::number).max().unwrap_or(0);
        let times = found.map(|found| match found {
            Found::Note(_, time) => Some(time),
            Found::Nothing | Found::Damaged => None,
        });
        let is_known = !is_copy(&found, None) && number > 1;
        let mut this = Self { folder: folder.to_owned(), number, times, commits };
        if !is_known {
            // The first one counts on nothing.
            this.times = [None; 2];
            this.write(commits)?;
        }
        this.write(commits)?;
        Ok(this)
    }

    /// Begins the next generation, if there were commits since the last one began.
    ///
    /// # Errors
    /// The system's; or somebody else wrote a file, which then stays as it is, for the next start to see.
    pub(super) fn advance(&mut self, commits: u64) -> io::Result<()> {
        if commits == self.commits {
            return Ok(());
        }
        for (index, time) in (0..).zip(self.times) {
            let path = path_of(&self.folder, index);
            let found = time_of(&path)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
            if Some(found) != time {
                let problem = format!(
                    "{} was changed by another program: the next start takes the store for a copy",
                    path.display()
                );
                return Err(io::Error::other(problem));
            }
        }
        self.write(commits)
    }

    fn write(&mut self, commits: u64) -> io::Result<()> {
        let number = self.number + 1;
        let is_odd = number % 2 == 1;
        let (at, other) = (usize::from(is_odd), usize::from(!is_odd));
        let path = path_of(&self.folder, number);
        let fresh = path.with_extension("new");
        // For this user alone from the beginning: a change of its rights would count as one.
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(text(&Note { number, other: self.times[other], commits }).as_bytes())?;
        sync::data(&file, &path)?;
        fs::rename(&fresh, &path)?;
        (self.number, self.commits) = (number, commits);
        // Its new name changed its time, which the next one notes.
        let synced = sync::all(&file, &path).and_then(|()| sync::folder(&self.folder));
        drop(file);
        self.times[at] = Some(time_of(&path)?);
        synced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTE: Note = Note { number: 7, other: Some((1_700_000_000, 5)), commits: 41 };

    #[test]
    fn a_note_is_read_as_it_was_written_and_nothing_else_is() {
        for number in [1, 2, 7, 127, 128, 129, NUMBER_END - 1] {
            for other in [None, NOTE.other, Some((-3, 0))] {
                let note = Note { number, other, ..NOTE };
                assert_eq!(parse(&text(&note)), Some(note));
            }
        }
        let whole = text(&NOTE);
        for damaged in ["", "\n", "number 7", whole.trim_end(), &format!("{whole}\n")] {
            assert_eq!(parse(damaged), None, "{damaged:?}");
        }
        assert_eq!(parse(&text(&Note { number: NUMBER_END, ..NOTE })), None, "there is no next one");
    }

    #[test]
    fn a_file_has_another_length_the_next_time() {
        let length = |number| text(&Note { number, ..NOTE }).len();
        for number in 10..90 {
            assert_ne!(length(number), length(number + 2), "{number}");
        }
    }

    #[test]
    fn the_newer_file_proves_the_older_one_and_a_copy_proves_nothing() {
        let at = |note: Note, nanos| Found::Note(note, (1_700_000_000, nanos));
        let (older, newer) = (Note { number: 6, commits: 40, ..NOTE }, NOTE);
        let whole = [at(older, 5), at(newer, 9)];
        assert!(!is_copy(&whole, Some(41)) && !is_copy(&whole, None));
        assert!(is_copy(&whole, Some(40)), "an older database");
        assert!(is_copy(&[at(older, 6), at(newer, 9)], Some(41)), "another file");
        assert!(!is_copy(&[Found::Nothing; 2], Some(41)), "an earlier version");
        for one in [Found::Nothing, Found::Damaged] {
            assert!(is_copy(&[one, at(newer, 9)], None) && is_copy(&[at(older, 5), one], None), "{one:?}");
        }
        let first = Note { number: 1, other: None, commits: 0 };
        assert!(!is_copy(&[Found::Nothing, at(first, 1)], Some(0)), "killed behind the first one");
        assert!(is_copy(&[at(Note { number: 8, ..older }, 5), at(Note { number: 11, ..newer }, 9)], None));
    }
}
