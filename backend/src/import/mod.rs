//! Puts conversations into a store that no backend has open: from an export, one JSON object per line, or made up.
//!
//! ```text
//! {"group": {"name": "tea", "owner": "ann", "members": ["ben"]}}
//! {"message": {"from": "ann", "to": {"conversation": "group:tea"}, "time_ms": 1700000000000, "text": "hello"}}
//! {"message": {"from": "ben", "to": {"user": "ann"}, "time_ms": 1700000001000, "type": 2, "payload": "AAEC"}}
//! {"read": {"user": "ann", "conversation": "c2c:ann:ben", "seq": 1}}
//! ```
//!
//! Lines take effect in order, up to the first wrong line, and give seqs in that order. An equal line at the same
//! place of an export is stored once within `im.idempotency_window`, so a file can be given again after a line was
//! corrected.
//!
//! | file | holds |
//! |---|---|
//! | `line` | the form of a line, and the reading of lines |
//! | `load` | lines into writes of the store |
//! | `seed` | made-up users, groups and messages |

mod line;
mod load;
mod seed;

pub use line::{Line, To};
pub use seed::{Seed, seed};

use crate::config::BackendConfig;
use crate::error::BackendError;
use load::Importer;
use std::io::BufRead;

/// Counts of one import.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Stored messages.
    pub messages: u64,
    /// Messages that the store had before.
    pub repeated: u64,
    /// Groups, including those that the store had before.
    pub groups: u64,
    /// Users that the store knows after the import.
    pub users: usize,
}

/// Reason why an import ended early. The lines before the named one are stored, and no later line is.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The settings are wrong, or the store cannot be opened.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// There is no `im.folder`.
    #[error("cannot import into a store in memory; set `im.folder`")]
    NoFolder,
    /// The export cannot be read.
    #[error("cannot read the export: {0}")]
    Read(#[from] std::io::Error),
    /// A line is not valid, or its effect is refused.
    #[error("line {line}: {problem}")]
    Line {
        /// Number of the line, from 1.
        line: u64,
        /// Cause, for people.
        problem: String,
    },
    /// The store does not accept writes.
    #[error("the store accepts no more writes; its log names the cause")]
    Stuck,
}

/// Puts an export into the store of `config`. `progress` gets the number of lines after every 10,000.
///
/// # Errors
/// [`ImportError`]; earlier lines are stored.
pub fn import(
    config: &BackendConfig,
    mut lines: impl BufRead,
    mut progress: impl FnMut(u64),
) -> Result<Imported, ImportError> {
    let mut importer = Importer::open(config)?;
    let read = line::read(&mut lines, &mut progress, |number, line| importer.take(number, line));
    // The lines before a wrong one are stored, unless one of them is wrong too.
    let imported = importer.finish()?;
    read.map(|()| imported)
}
