//! The server's end against a client of rustls, in memory.

pub(crate) mod client;
mod files;
mod handovers;
mod handshakes;
mod openssl;
mod pair;
mod sealed;
