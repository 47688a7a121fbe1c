//! The server's end against a client of rustls, in memory.

mod handshakes;
mod pair;
mod sealed;
