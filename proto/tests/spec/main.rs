//! `docs/protocol.md` and the code say the same: rules, tables and hexdumps.
//!
//! `MOORLINE_REGENERATE=1 cargo test -p moorline-proto --test spec` writes the hexdumps anew.

mod citations;
mod document;
mod schema;
mod session;
mod tables;
