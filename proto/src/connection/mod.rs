//! State tables of a connection: the commands that each state allows.
//!
//! Each side is an enum and one transition function over (state, event), so that the whole table can
//! be printed and compared: [`server`] is the gateway's view, [`client`] the SDK's. Neither holds
//! data; sessions, windows and timers belong to their owners.

pub mod client;
pub mod server;
