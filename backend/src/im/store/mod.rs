//! Stores of conversations, inboxes and cursors: the [`Store`] trait, and the stores inside this process.
//!
//! The boundary speaks operations of instant messaging, not get and put: a store can then turn a whole batch into one
//! commit. Commands go in and completions come back, each with the [`Ticket`] of its command; small, hot state is
//! prefetched and then read as [`Facts`]. A store may answer at once or after a network round trip.
//!
//! Users and conversations have names that the store gives, devices numbers; an asker uses them as they are.

mod commands;
mod directory;
mod disk;
mod dropped;
mod embedded;
mod memory;
mod queries;
pub mod rules;
mod types;

pub use commands::*;
#[cfg(any(test, fuzzing))]
pub use disk::fuzz;
#[cfg(test)]
pub(in crate::im) use disk::scratch;
pub use disk::{Disk, DiskError, Durability, Verified, Work};
pub use memory::Memory;
pub use moorline_proto::message::im::{Friendship, RelationChange, Role, WhoMayAdd};
pub use queries::*;
pub use types::*;

use bytes::Bytes;
use std::io;

/// Length of the name of a store, in bytes.
const NAME_BYTES: usize = 16;

/// Makes the name of a new store.
fn random_name() -> io::Result<Bytes> {
    let mut name = [0; NAME_BYTES];
    getrandom::fill(&mut name).map_err(io::Error::from)?;
    Ok(Bytes::copy_from_slice(&name))
}
