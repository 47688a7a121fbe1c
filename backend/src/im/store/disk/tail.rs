//! The end of the journals, judged before the engine opens them.
//!
//! A process or a machine that ends while a commit is written leaves a part of it: the disk may have its end and not its
//! middle. The engine takes such a batch for damage and refuses the database for ever. The [mark](super::mark) tells the
//! two apart: what is incomplete behind the mark, with nothing whole behind it, was never acknowledged and is cut off;
//! anything else that cannot be read is damage and is refused, by the name of the file.
//!
//! One case is ambiguous, after a power cut only: the mark is older than the last commit, and the last acknowledged commit is damaged.
//! That commit is cut off, as an incomplete one is.

use super::journal::{self, Batch, Found, Reader};
use super::mark::{End, Mark, Noted};
use super::{DiskError, SIDE_FILE, sync};
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

/// Commits, and numbers of the engine, in which something whole behind a damaged place is looked for.
const NEAR: u64 = 64;

/// The end of a journal that is to be cut off.
#[derive(Debug, PartialEq, Eq)]
struct Cut {
    path: PathBuf,
    at: u64,
}

/// The last batch that was seen.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    seqno: Option<u64>,
    commits: Option<u64>,
}

impl Last {
    fn is_near(self, batch: &Batch) -> bool {
        let is_next = |number: u64, last: u64| number > last && number - last <= NEAR;
        self.seqno.is_none_or(|last| is_next(batch.seqno, last))
            && self.commits.zip(batch.commits).is_none_or(|(last, commits)| is_next(commits, last))
    }
}

/// Judges the journals of a database that nobody has open, and cuts off what is incomplete. `sealed` are those that are
/// known to be whole. A store that goes on without what it lost loses everything behind the first damage.
///
/// # Errors
/// [`DiskError::Altered`], [`DiskError::Lost`]: something that was acknowledged is damaged or missing.
pub(super) fn mend(
    folder: &Path,
    database: &Path,
    noted: &Noted,
    sealed: &BTreeSet<u64>,
) -> Result<(), DiskError> {
    if noted == &Noted::Damaged {
        return Ok(()); // it is refused if there is anything
    }
    let numbers = match journal::numbers(database) {
        Ok(numbers) => numbers,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(file_error("read", database)(error)),
    };
    let mark = noted.mark().copied();
    let mut judge = Judge { folder, mark, last: Last::default(), cuts: Vec::new(), is_met: false };
    if let Some(End { journal, .. }) = judge.end()
        && numbers
            .last()
            .is_none_or(|newest| *newest < journal || numbers[0] < journal && !numbers.contains(&journal))
    {
        return Err(judge.damage(&journal::path_of(database, journal), "it is gone".into()));
    }
    for number in numbers {
        // That of the mark is walked although it is known to be whole: the mark may be of another store.
        if sealed.contains(&number) && judge.end().is_none_or(|end| end.journal != number) {
            judge.last = Last::default();
        } else {
            judge.judge(&journal::path_of(database, number), number)?;
        }
    }
    for cut in judge.cuts {
        cut.make().map_err(file_error("cut off the end of", &cut.path))?;
    }
    Ok(())
}

fn file_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_owned();
    move |cause| DiskError::File { operation, path, cause }
}

/// Looks at one journal after the other, oldest first.
struct Judge<'a> {
    folder: &'a Path,
    /// `None`: the store goes on without what it lost.
    mark: Option<Mark>,
    last: Last,
    cuts: Vec<Cut>,
    /// A commit ends where the mark says, and has its number.
    is_met: bool,
}

impl Judge<'_> {
    fn end(&self) -> Option<End> {
        self.mark.and_then(|mark| mark.end)
    }

    fn damage(&self, path: &Path, problem: String) -> DiskError {
        DiskError::Altered { folder: self.folder.to_owned(), path: path.to_owned(), problem }
    }

    fn judge(&mut self, path: &Path, number: u64) -> Result<(), DiskError> {
        let walked = self.walk(path, number).map_err(file_error("read", path))?;
        let (found, behind) = walked;
        let Some(mark) = self.mark else {
            if behind != Behind::Nothing {
                self.cuts.push(found);
            }
            return Ok(());
        };
        if let Some(End { offset, .. }) = self.end().filter(|end| end.journal == number)
            && found.at < offset
        {
            if behind == Behind::Nothing {
                let (folder, side_file) = (self.folder.to_owned(), self.folder.join(SIDE_FILE));
                let found = self.last.commits.unwrap_or(0);
                return Err(DiskError::Lost { folder, side_file, found, known: mark.commits });
            }
            let problem = format!("it is damaged at byte {}, and written up to byte {offset}", found.at);
            return Err(self.damage(path, problem));
        }
        if let Some(End { offset, .. }) = self.end().filter(|end| end.journal == number)
            && !self.is_met
        {
            let side_file = self.folder.join(SIDE_FILE);
            let problem = format!(
                "it is not of this store: no commit {} ends at byte {offset} of {number}.jnl",
                mark.commits
            );
            return Err(self.damage(&side_file, problem));
        }
        match behind {
            Behind::Nothing => {}
            Behind::Incomplete => self.cuts.push(found),
            Behind::Batch(place) => {
                let damaged = self.cuts.first().unwrap_or(&found);
                let problem = format!(
                    "it is damaged at byte {}: a later commit is whole, at byte {place} of {number}.jnl",
                    damaged.at
                );
                return Err(self.damage(&damaged.path, problem));
            }
            Behind::Unclear => {
                let problem = format!(
                    "it is damaged at byte {}, and more behind it looks like commits than a crash leaves",
                    found.at
                );
                return Err(self.damage(path, problem));
            }
        }
        Ok(())
    }

    /// Reads a journal from its beginning. When an earlier one is cut off, any batch is one too many.
    fn walk(&mut self, path: &Path, number: u64) -> io::Result<(Cut, Behind)> {
        let mut reader = Reader::open(path)?;
        let mut at = 0;
        while let Some(batch) = reader.batch(at)? {
            if !self.cuts.is_empty() {
                return Ok((Cut { path: path.to_owned(), at }, Behind::Batch(at)));
            }
            // The checksum of a batch leaves out its number: it must rise, and be the one of the mark at its place.
            let is_marked = |end: &End| (end.journal, end.offset) == (number, batch.end);
            if self.last.seqno.is_some_and(|seqno| batch.seqno <= seqno)
                || self.end().filter(is_marked).is_some_and(|end| end.seqno != batch.seqno)
            {
                break;
            }
            // Nothing but the engine's own batches may lie between the last commit and the mark.
            let last_commit = batch.commits.or(self.last.commits);
            self.is_met |= self.end().is_some_and(|end| is_marked(&end))
                && self.mark.zip(last_commit).is_none_or(|(mark, last)| mark.commits == last);
            self.last = Last { seqno: Some(batch.seqno), commits: batch.commits.or(self.last.commits) };
            at = batch.end;
        }
        let cut = Cut { path: path.to_owned(), at };
        if reader.is_empty_behind(at)? {
            return Ok((cut, Behind::Nothing));
        }
        if self.mark.is_none() {
            return Ok((cut, Behind::Incomplete)); // whatever it is, it is lost
        }
        // Where nothing was read, the mark knows where the engine was.
        let seqno = self.last.seqno.or(self.end().map(|end| end.seqno));
        let commits = self.last.commits.or(self.mark.map(|mark| mark.commits));
        let last = Last { seqno, commits };
        let behind = match reader.find_behind(at + 1, |batch| last.is_near(batch))? {
            Found::Batch(place) => Behind::Batch(place),
            Found::Nothing => Behind::Incomplete,
            Found::Unclear => Behind::Unclear,
        };
        Ok((cut, behind))
    }
}

/// Content behind the last whole batch of a journal.
#[derive(Debug, PartialEq, Eq)]
enum Behind {
    Nothing,
    Incomplete,
    /// A whole batch that begins at this byte.
    Batch(u64),
    /// Nobody can tell in a reasonable time.
    Unclear,
}

impl Cut {
    fn make(&self) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(&self.path)?;
        let bytes = file.metadata()?.len() - self.at;
        tracing::warn!(journal = %self.path.display(), at = self.at, bytes, "cuts off a commit that was not finished");
        file.set_len(self.at)?;
        sync::data(&file, &self.path)?;
        sync::parent(&self.path)
    }
}
