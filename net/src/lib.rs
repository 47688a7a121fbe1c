//! The IO that Moorline's programs share: the gateway, the IM backend and the client SDK.
//!
//! Pure code (shard, router, IM logic, SDK core) never imports this crate: a thread owns sockets, pure
//! state owns rules. The load generator does not import it either, because an instrument must not share
//! bugs with what it measures.
