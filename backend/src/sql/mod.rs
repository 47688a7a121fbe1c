//! Cells in PostgreSQL: performs [`CellRequest`](crate::cluster::cell::CellRequest)s as SQL.
//!
//! Node 2 commits a batch: one statement reads the rows `owner` of its slots `for share`, writes what belongs to slots that are
//! still node 2's, and returns the others. The answer counts when it came; whatever ends the connection before is
//! [`UnknownOutcome`](crate::cluster::cell::UnknownOutcome).
//!
//! | module | holds |
//! |---|---|
//! | `schema` | the tables of a cell, by version |
//! | `statements` | the SQL |
//! | `address` | the address of a cell |
//! | [`Connection`] | one connection: requests in, replies out, with a deadline for each |
//! | `columns` | the columns of a transaction |
//! | `commit` | the statement of a transaction |
//! | `load` | reads |
//! | [`admin`] | makes and checks the tables |
//! | `tls` | TLS to the servers of a cell |
//! | [`status`] | the state of a cluster, as its cells have it |

mod address;
pub mod admin;
mod columns;
mod commit;
mod connection;
mod load;
mod schema;
mod statements;
pub mod status;
mod tls;

pub use address::{CellAddress, CellAddressError};
pub use connection::{Connection, SqlError};
pub use tls::{CellTls, CellTlsError};

use crate::cluster::cell::slot_of;
use crate::im::store::{ConversationId, UserId};
use moorline_proto::slots::Slot;

/// Returns a column's value for a slot.
fn slot_column(slot: Slot) -> i32 {
    i32::from(slot.number())
}

/// Returns a column's value for the slot of a name.
fn slot_of_user(user: UserId) -> i32 {
    slot_column(slot_of(user.number()))
}

/// Returns a column's value for the slot of a name.
fn slot_of_conversation(conversation: ConversationId) -> i32 {
    slot_column(slot_of(conversation.number()))
}

/// Returns a column's value for a name.
fn user_column(user: UserId) -> i64 {
    user.number().cast_signed()
}

/// Returns a column's value for a name.
fn conversation_column(conversation: ConversationId) -> i64 {
    conversation.number().cast_signed()
}

/// Returns a column's value for a limit or a position that may be larger than any that is stored.
fn capped(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
