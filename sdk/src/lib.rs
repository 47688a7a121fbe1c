//! The Moorline client library.
//!
//! | module | holds |
//! |---|---|
//! | [`client`] | the threaded client: what most applications want |
//! | [`core`] | the client without sockets, threads or clocks: for other event loops and for simulation |
//! | [`im`] | the requests of the reference IM backend |
#![forbid(unsafe_code)]

pub mod client;
pub mod core;
#[cfg(test)]
mod corpus;
pub mod im;
pub mod store;

pub use bytes::Bytes;
pub use moorline_proto::ids::MessageKey;
pub use moorline_proto::message::client::{Code, Platform};
