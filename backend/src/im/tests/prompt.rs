//! The tests of behaviour on a store that answers at once.
#![allow(clippy::duplicate_mod)] // the same tests run on two kinds of store

#[path = "bans.rs"]
mod bans;
#[path = "behaviour.rs"]
mod behaviour;
#[path = "clocks.rs"]
mod clocks;
#[path = "deletion.rs"]
mod deletion;
#[path = "exposed.rs"]
mod exposed;
#[path = "group_rooms.rs"]
mod group_rooms;
#[path = "hostile.rs"]
mod hostile;
#[path = "large_groups.rs"]
mod large_groups;
#[path = "rooms.rs"]
mod rooms;
#[path = "social.rs"]
mod social;

use super::*;

type Bench = BenchOf<Memory>;
const IS_PROMPT: bool = true;
