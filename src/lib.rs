//! The Moorline gateway.
pub mod admin;
pub mod auth;
pub mod cli;
pub mod config;
pub mod failpoint;
pub mod gateway;
pub mod messages;
pub mod metrics;
pub mod pause;
pub mod reactor;
pub mod router;
pub mod shard;
pub mod shard_map;
pub mod snapshot;
pub mod sys;
pub mod thread_group;
pub mod worker;
