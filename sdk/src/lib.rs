//! The Moorline client library.
//!
//! | module | holds |
//! |---|---|
//! | [`core`] | the client without sockets, threads or clocks: bytes, time and calls in; bytes and events out |
//!
#![forbid(unsafe_code)]

pub mod core;
