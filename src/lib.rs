//! The Moorline gateway.
pub mod handoff;
pub mod mailbox;
