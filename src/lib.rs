//! The Moorline gateway.
pub mod auth;
pub mod config;
pub mod handoff;
pub mod mailbox;
pub mod metrics;
