//! TLS 1.3 without sockets and threads: bytes in, bytes out. Servers, and clients with a certificate.
//!
//! A connection begins as a [`Handshake`], which rustls does. From the first record of the application on it is a
//! [`Records`]: two secrets and two sequence numbers, 112 bytes while idle, which can go to another process
//! ([ADR 0030](../../../docs/adr/0030-an-own-record-layer-for-tls.md)).
//!
//! Run-through: `handshake.advance(bytes, &mut out)` is called with what a client sends and its output is written, until it
//! returns [`Progress::Done`]. Then `records.open(buffer, now)` decrypts in place, `records.seal(pieces, &mut out)`
//! encrypts, and `records.cool()` gives memory back when the connection is idle. For a hot restart, `records.freeze()`
//! gives bytes, `Records::thaw` makes the same state of them, and exactly one of the two processes calls
//! `records.resume()`; the other one calls `records.retire()`.

#![forbid(unsafe_code)]

mod certificates;
mod der;
mod fault;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod handshake;
mod mutual;
mod provider;
mod records;
mod secret;
mod tickets;

pub use certificates::{
    CERTIFICATES_MAX, CertificateAbout, CertificateError, CertificateFiles, CertificateSet, Certificates,
};
pub use fault::{Alert, Fault};
pub use handshake::{
    Established, HANDSHAKE_BYTES_MAX, Handshake, HandshakeError, Progress, Protocols, Server, refuse_hello,
};
pub use mutual::{Client, Mutual, MutualError, MutualFiles, explain, is_name_of_server};
pub use provider::{Suite, provider, warm_up};
pub use records::{End, FROZEN_BYTES_MAX, Frozen, Opened, RECORD_BYTES_MAX, Records, ThawError};
pub use tickets::{TICKET_KEYS_MAX, TicketKeyError, TicketKeySet, TicketKeys};

#[cfg(test)]
pub(crate) mod tests;
