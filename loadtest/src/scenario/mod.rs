//! Traffic of logged-in clients. One file per scenario.

mod chat;
mod group;
mod hold;
mod lead;
mod outflow;
mod ping;
mod storm;

pub use chat::{Chat, Patience};
pub use group::Group;
pub use hold::Hold;
pub use lead::LEAD_BYTES;
pub use outflow::Load;
pub use ping::Ping;
pub use storm::{Storm, StormRule};

/// Largest payload of a message, in bytes.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 10;
