//! The Moorline gateway.
pub mod admin;
pub mod auth;
pub mod cli;
pub mod config;
pub mod demo;
pub mod freeze;
pub mod gateway;
pub mod handoff;
pub mod link;
pub mod mailbox;
pub mod metrics;
pub mod reactor;
pub mod read_block;
pub mod shard;
pub mod snapshot;
pub mod sys;
pub mod worker;
