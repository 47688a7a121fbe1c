//! Raw system calls and the clock. The only place where `unsafe` may appear, and where time is read.

pub mod child;
pub mod clock;
pub mod executable;
pub mod limits;
pub mod memory;
pub mod notify;
pub mod process;
pub mod room;
pub mod send_queue;
pub mod signals;
pub mod sockets;
pub mod volunteer;
