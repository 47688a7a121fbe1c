//! Several nodes over one store: who owns which slot, and how messages pass from node to node. Pure.
//!
//! Nodes 1, 2 and 3 own a third of the 1,024 slots each. alice's frames go to the owner of her slot, which asks the owner of the
//! conversation; that one numbers the message, writes it into a cell behind a fence, and delivers it to the owners of the
//! members. `docs/adr/0031-one-owner-for-each-conversation-and-user.md` says why.
//!
//! | module | holds |
//! |---|---|
//! | [`lease`] | the lease of a node, which ends before the database thinks so |
//! | [`members`] | the nodes that live, and who should own what |
//! | [`owners`] | rendezvous hashing; what a node claims and gives away |
//! | [`chain`] | messages on their way to one member: in order, once |
//! | [`calls`] | calls of the server API, each at the node of its user |
//! | [`cell`] | requests to a cell and its replies, as values |
//! | [`wire`] | messages between nodes as bytes |
//! | [`rows`] | what a transaction writes, and what passes between nodes |
//! | [`store`] | the [`crate::im::store::Store`] of a node |
//!
//! [`crate::sql`] performs the requests in PostgreSQL, and `crate::server` has the links between nodes. The simulator
//! (`backend/tests/cluster`) runs several real [`crate::im::Im`]s over it.

pub mod calls;
pub mod cell;
pub mod chain;
pub mod lease;
pub mod members;
pub mod owners;
pub mod rows;
pub mod store;
pub mod wire;
