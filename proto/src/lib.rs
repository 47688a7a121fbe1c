//! Protocols between a Moorline client, the gateway and a backend, as pure code.
//!
//! This crate holds the wire formats and every state machine that both ends share. It is `no_std`
//! with `alloc` and forbids `unsafe`, so no socket, thread or clock can be named in it: time comes
//! in as [`time::Instant`], bytes come in and go out as [`bytes::Bytes`].
//!
//! | module | holds |
//! |---|---|
//! | [`time`], [`ids`], [`random`] | monotonic nanoseconds; typed identifiers; seeded jitter |
//! | [`wheel`] | the timing wheel |
//! | [`frame`] | header, incremental decoder, encoder (`docs/protocol.md` section 1) |
//! | [`message`] | typed bodies, generated from `proto/schema` |
//! | [`window`], [`dedupe`], [`keepalive`] | in-flight window, uplink dedupe window, heartbeat policy |
//! | [`connection`] | which command is lawful in which state, server side and client side |
//! | [`link`] | gateway-backend frames (`docs/backend.md`) |
//! | [`websocket`] | server side of WebSocket framing: read, write |
//! | [`slots`] | slots of a cluster and their owners |
//! | [`cost`] | measured time of one piece of work |
//! | [`line_limit`] | one log line for many events |
//! | [`error`] | close codes |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod connection;
pub mod cost;
pub mod dedupe;
pub mod error;
pub mod frame;
pub mod ids;
pub mod keepalive;
pub mod line_limit;
pub mod link;
pub mod message;
pub mod random;
pub mod slots;
pub mod time;
pub mod websocket;
pub mod wheel;
pub mod window;

/// The wire protocol version this crate speaks (the low nibble of a frame's first byte).
pub const PROTOCOL_VERSION: u8 = 1;
