//! The Moorline gateway.
pub mod admin;
pub mod auth;
pub mod cli;
pub mod config;
pub mod crew;
pub mod failpoint;
pub mod gateway;
pub mod handoff;
pub mod homes;
pub mod metrics;
pub mod pause;
pub mod reactor;
pub mod router;
pub mod shard;
pub mod snapshot;
pub mod sys;
pub mod worker;
