//! The commit word: one number in memory that both processes share. It decides which of them owns the sockets.
//!
//! ```text
//!        parent: COMMIT             child: TAKE
//!  OPEN ───────────────► COMMITTED ─────────────► TOUCHED     the child owns the sockets
//!   │                       │ parent: RECLAIM
//!   │                       └───────────────────► RECLAIMED   the parent owns them again
//!   └─ child: CLAIM, after the parent's end ────► TOUCHED     from RECLAIMED too
//! ```
//!
//! For example, the child hangs after `ready`: the parent commits, waits, and its RECLAIM wins, because the word is still
//! COMMITTED; only then it kills the child. Had the child's TAKE come first, RECLAIM would lose, and the child would live.

use crate::sys::memory::SharedWord;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// The parent owns the sockets.
pub(super) const OPEN: u32 = 0;
/// The parent has offered the sockets to the child.
pub(super) const COMMITTED: u32 = 1;
/// The child reads the sockets, and the parent can never have them back.
pub(super) const TOUCHED: u32 = 2;
/// The parent has withdrawn the offer.
pub(super) const RECLAIMED: u32 = 3;

/// An atomic change of the word.
#[derive(Clone, Copy, Debug)]
pub(super) struct Swap {
    /// Values that allow the change.
    pub(super) from: &'static [u32],
    /// Value after the change.
    pub(super) to: u32,
}

/// Offers the sockets to the child.
pub(super) const COMMIT: Swap = Swap { from: &[OPEN], to: COMMITTED };
/// Accepts the parent's offer.
pub(super) const TAKE: Swap = Swap { from: &[COMMITTED], to: TOUCHED };
/// Takes the sockets of a parent that has ended, whatever it got to: it kills the child before it serves again.
pub(super) const CLAIM: Swap = Swap { from: &[OPEN, COMMITTED, RECLAIMED], to: TOUCHED };
/// Withdraws the offer.
pub(super) const RECLAIM: Swap = Swap { from: &[COMMITTED], to: RECLAIMED };

/// View of the word in one process.
pub(super) struct CommitWord(SharedWord);

impl CommitWord {
    /// Makes a word with the value [`OPEN`], and the file that the child maps.
    pub(super) fn create() -> io::Result<(Self, OwnedFd)> {
        let (word, file) = SharedWord::create()?;
        Ok((Self(word), file))
    }

    /// Maps the word that the parent made.
    pub(super) fn map(file: &impl AsFd) -> io::Result<Self> {
        SharedWord::map(file).map(Self)
    }

    /// Returns whether the child has taken the sockets.
    pub(super) fn is_touched(&self) -> bool {
        self.0.get() == TOUCHED
    }

    /// Changes the word; false: its value does not allow the change.
    pub(super) fn swap(&self, swap: Swap) -> bool {
        swap.from.iter().any(|from| self.0.swap(*from, swap.to))
    }
}
