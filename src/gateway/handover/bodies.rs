//! The files of queued bodies that the new process reads while the old one still serves ([`StoredBodies`]).
//!
//! ```text
//!  old process: the bodies of now, in a sealed file ─► new process: reads it, and says `warm`
//!  old process: many came meanwhile: appended to a second file, `bodies LENGTH` ─► reads them, and says `warm` again
//!  old process: few came meanwhile: pauses
//! ```
//!
//! For example, 400 clients that do not read have 25 MB queued. While the new process reads them, the frames under way to
//! these clients are sent again, and wait as copies: 26 MB more, which would be copied in the pause.

use super::previous::named_by;
use crate::snapshot::{StoredBodies, read_stored};
use crate::sys::{memory, sockets};
use bytes::Bytes;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt as _;

/// Environment variable with the process that gives the files, and the files' descriptors.
pub(super) const BODIES: &str = "MOORLINE_HANDOVER_BODIES";
/// Bytes written at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Bodies that came later are given if they are at least this many bytes; fewer are copied in the pause.
const LATER_BYTES_MIN: u64 = 1 << 20;
/// Number of times that later bodies are given.
const LATER_ROUNDS_MAX: u32 = 4;

/// The files, as the old process has them.
#[derive(Debug)]
pub(super) struct Given {
    first: File,
    /// File to which bodies that came later are appended; `None`: the new process reads none.
    later: Option<File>,
    /// Length of that file.
    later_bytes: u64,
    rounds: u32,
}

impl Given {
    /// Writes the bodies of now. `knows_later`: the new process reads further ones.
    ///
    /// # Errors
    /// The system has no memory.
    pub(super) fn write(stored: &StoredBodies, knows_later: bool) -> io::Result<Self> {
        let first = memory::file("moorline-bodies")?;
        append(&first, stored.bodies())?;
        memory::write_sealed(&first, &[])?;
        let later = knows_later.then(|| memory::file("moorline-later-bodies")).transpose()?;
        Ok(Self { first, later, later_bytes: 0, rounds: 0 })
    }

    /// Returns the value of [`BODIES`] for a child.
    pub(super) fn name(&self) -> String {
        self.fds().fold(nix::unistd::getpid().to_string(), |name, fd| format!("{name} {fd}"))
    }

    /// Descriptors that the child inherits.
    pub(super) fn fds(&self) -> impl Iterator<Item = RawFd> {
        std::iter::once(&self.first).chain(&self.later).map(AsRawFd::as_raw_fd)
    }

    /// True if the new process takes further bodies.
    pub(super) fn takes_more(&self) -> bool {
        self.later.is_some() && self.rounds < LATER_ROUNDS_MAX
    }

    /// Appends bodies that came later, and returns the length of their file; `None`: they are too few.
    ///
    /// # Errors
    /// The system has no memory.
    pub(super) fn append(&mut self, bodies: &[Bytes]) -> io::Result<Option<u64>> {
        let Some(file) = self.later.as_ref().filter(|_| bytes_of(bodies) >= LATER_BYTES_MIN) else {
            return Ok(None);
        };
        self.later_bytes += append(file, bodies)?;
        self.rounds += 1;
        Ok(Some(self.later_bytes))
    }
}

/// Returns the number of bytes of bodies.
pub(super) fn bytes_of(bodies: &[Bytes]) -> u64 {
    bodies.iter().map(|body| body.len() as u64).sum()
}

/// Appends bodies to a file, and returns the number of bytes written.
fn append(file: &File, bodies: &[Bytes]) -> io::Result<u64> {
    let mut out = BufWriter::with_capacity(CHUNK_BYTES, file);
    let mut written = 0;
    for body in bodies {
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        out.write_all(&length.to_be_bytes())?;
        out.write_all(body)?;
        written += 4 + u64::from(length);
    }
    out.flush()?;
    Ok(written)
}

/// The files, as the new process has them.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// `None`: an old process that gives none.
    first: Option<File>,
    later: Option<File>,
    /// Bytes of the later file that are read.
    later_read: u64,
}

impl Taken {
    /// Takes the inherited files, if the variable is from `old`, the process before this one.
    pub(super) fn take(inherited: &mut HashSet<RawFd>, old: i32) -> Self {
        let Ok(value) = std::env::var(BODIES) else { return Self::default() };
        let Some((first, later)) = named_by(old, &value) else { return Self::default() };
        let mut file = |fd: RawFd| {
            let is_ours = inherited.remove(&fd);
            is_ours.then(|| sockets::take(fd).ok().map(File::from))?
        };
        let first = file(first);
        Self { first, later: later.parse().ok().and_then(file), later_read: 0 }
    }

    /// Reads the bodies from before the start of this process.
    ///
    /// # Errors
    /// The file is not whole, or the system has no memory.
    pub(super) fn read_first(&mut self) -> io::Result<Vec<Bytes>> {
        let Some(file) = self.first.take() else { return Ok(Vec::new()) };
        read_stored(memory::map_sealed(&file)?.as_ref()).ok_or_else(cut_off)
    }

    /// Reads the bodies that came later, up to this length of their file.
    ///
    /// # Errors
    /// There is no such file, or it is not whole, or the system has no memory.
    pub(super) fn read_later(&mut self, length: u64) -> io::Result<Vec<Bytes>> {
        let file = self.later.as_ref().ok_or_else(|| io::Error::other("there is no file of later bodies"))?;
        let there = file.metadata()?.len();
        let count = length.checked_sub(self.later_read).filter(|_| length <= there).ok_or_else(cut_off)?;
        let mut bytes = vec![0; usize::try_from(count).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, self.later_read)?;
        self.later_read = length;
        read_stored(&bytes).ok_or_else(cut_off)
    }
}

fn cut_off() -> io::Error {
    io::Error::other("the file is cut off")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(number: usize, length: usize) -> Bytes {
        let mut body = vec![7; length];
        body[..8].copy_from_slice(&number.to_be_bytes());
        body.into()
    }

    #[test]
    fn later_bodies_come_in_rounds_until_they_are_few_or_the_rounds_are_over() {
        let mut stored = StoredBodies::default();
        stored.add(body(0, 4096));
        let mut given = Given::write(&stored, true).expect("memory");
        let inherited = |file: &File| Some(file.try_clone().expect("a descriptor"));
        let later = given.later.as_ref().and_then(inherited);
        let mut taken = Taken { first: inherited(&given.first), later, later_read: 0 };
        assert_eq!(taken.read_first().expect("whole"), stored.bodies());
        assert_eq!(given.append(&[body(1, 4096)]).expect("memory"), None, "few");
        for round in 0..LATER_ROUNDS_MAX as usize {
            assert!(given.takes_more());
            let bodies = [body(2 * round, 1 << 20), body(2 * round + 1, 300)];
            let length = given.append(&bodies).expect("memory").expect("many");
            assert!(taken.read_later(length + 1).is_err(), "more than there is");
            assert_eq!(taken.read_later(length).expect("whole"), bodies);
        }
        assert!(!given.takes_more());
        assert!(taken.read_later(0).is_err(), "less than was read");
        assert!(!Given::write(&stored, false).expect("memory").takes_more());
        assert!(Taken::default().read_later(0).is_err(), "an old process that gives none");
    }
}
