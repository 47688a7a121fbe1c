//! A worker's state and rules: which link takes which user, what waits, what is answered. Pure.

mod announce;
mod answers;
mod backoff;
mod breaker;
mod outbox;
mod overload;
mod parking;
mod pending;
mod slots;
mod state;
mod tally;
mod up;

pub(crate) use announce::Announcement;
pub(crate) use answers::Answers;
pub use backoff::{Backoff, DELAY_FLOOR};
pub use breaker::{Breaker, Share};
pub(crate) use outbox::{OUTBOX_ITEMS_HARD_MAX, OUTBOX_ITEMS_MAX, Outbox};
pub(crate) use overload::Overload;
pub use overload::OverloadLimits;
pub use parking::ParkingLimits;
pub(crate) use parking::{Change, Parked, Parking};
pub use pending::{Pending, SPAN_MAX, Taken};
pub use slots::{LinkIndex, Moves, SLOTS, Seat, Slot, SlotSet, Slots, Spread, Target, WEIGHT};
pub use state::{Due, Failure, LinkState, LinkTimes, Phase};
pub use tally::{Count, Tally, series};
pub use up::Up;
