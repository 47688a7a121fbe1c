//! What a fleet does once it is logged in. One file per scenario.

mod chat;
mod fanout;
mod hold;
mod ping;

pub use chat::Chat;
pub use fanout::FanOut;
pub use hold::Hold;
pub use ping::{Load, Ping};

/// Largest payload of a message, in bytes.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 10;
