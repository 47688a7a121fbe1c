//! The Moorline gateway.
pub mod config;
pub mod handoff;
pub mod mailbox;
pub mod metrics;
