//! The way of a frame to the node that owns its user, with the answers SLOTS and MOVED. Pure.
//!
//! alice's SEND goes to node 3, which answers MOVED {epoch 8, node 5}: the gateway learns the owner of alice's slot, sends the
//! SEND to node 5 with DUP, and asks for SLOTS. An answer with an epoch that the gateway knows already says that node 3 does not
//! know it yet: the frame waits for [`PAUSE`] and goes to the owner that the gateway knows. A frame that was answered MOVED
//! [`MOVED_MAX`] times gets RETRY.

use super::{NodeId, Owner, Slot, SlotTable};
use crate::time::{Duration, Instant};
use alloc::collections::VecDeque;

/// MOVED answers to one frame, after which its client is answered RETRY.
pub const MOVED_MAX: u8 = 8;
/// Wait before a frame goes to a node again that may not have heard of its slot.
pub const PAUSE: Duration = Duration::from_millis(100);
/// Time between two questions for the table of slots.
pub const ASK_EVERY: Duration = Duration::from_millis(200);

/// MOVED: the answer of a node that does not own the user's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Slot of the user.
    pub slot: Slot,
    /// Owner that the node knows.
    pub owner: Owner,
}

/// Next step for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Send the frame to this node; with DUP if it was sent before.
    To(NodeId),
    /// Keep the frame and ask again at this time.
    Wait(Instant),
    /// Answer RETRY to the client.
    Retry,
}

/// Routes of one gateway.
#[derive(Debug, Default)]
pub struct NodeRoutes {
    table: SlotTable,
    /// True: a node has told of an owner that the table did not have.
    is_behind: bool,
    /// Time before which the table is not asked for.
    ask_at: Instant,
    /// Slots that another node owns now, and whose sessions are with the old one.
    moved: VecDeque<Slot>,
}

impl NodeRoutes {
    /// Returns the table.
    pub const fn table(&self) -> &SlotTable {
        &self.table
    }

    /// Notes that the table may be older than what nodes know: it is asked for.
    pub const fn note_behind(&mut self) {
        self.is_behind = true;
    }

    /// Returns the way of a new frame.
    pub fn route(&mut self, now: Instant, slot: Slot) -> Route {
        let Some(node) = self.table.owner(slot).node else {
            self.is_behind = true;
            return Route::Wait(now + PAUSE);
        };
        Route::To(node)
    }

    /// Takes SLOTS from a node.
    pub fn handle_slots(&mut self, table: &SlotTable) {
        if table.version() >= self.table.version() {
            self.is_behind = false;
        }
        self.moved.extend(self.table.merge(table));
    }

    /// Takes the next slot that another node owns now, by SLOTS or by MOVED: all sessions of its users are to be announced
    /// there, not only the one whose frame was answered MOVED.
    pub fn poll_moved(&mut self) -> Option<Slot> {
        self.moved.pop_front()
    }

    /// Takes MOVED for a frame that was answered MOVED `moves` times before.
    pub fn handle_moved(&mut self, now: Instant, moved: Moved, moves: u8) -> Route {
        if moves >= MOVED_MAX {
            return Route::Retry;
        }
        self.is_behind = true;
        let before = self.table.owner(moved.slot).node;
        if self.table.learn(moved.slot, moved.owner) {
            if before != moved.owner.node {
                self.moved.push_back(moved.slot);
            }
            self.route(now, moved.slot)
        } else {
            // The node has not heard of its own slot, or is not the one that the table names any more.
            Route::Wait(now + PAUSE)
        }
    }

    /// True: ask a node for its table now; the next question comes after [`ASK_EVERY`].
    pub fn try_ask(&mut self, now: Instant) -> bool {
        let is_due = self.is_behind && now >= self.ask_at;
        if is_due {
            self.ask_at = now + ASK_EVERY;
        }
        is_due
    }

    /// Time at which [`Self::try_ask`] is due. `None`: the table is as new as everything that was told.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.is_behind.then_some(self.ask_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T0: Instant = Instant::ZERO;

    fn owner(node: u16, epoch: u64) -> Owner {
        Owner { node: Some(NodeId(node)), epoch }
    }

    #[test]
    fn a_frame_follows_moved_to_the_newest_owner() {
        let (mut routes, slot) = (NodeRoutes::default(), Slot::of("alice"));
        assert_eq!(routes.route(T0, slot), Route::Wait(T0 + PAUSE), "nothing is known");
        assert!(routes.try_ask(T0) && !routes.try_ask(T0), "one question at a time");
        let mut table = SlotTable::default();
        table.learn(slot, owner(3, 7));
        routes.handle_slots(&table);
        assert_eq!((routes.poll_moved(), routes.poll_moved()), (Some(slot), None));
        assert_eq!((routes.route(T0, slot), routes.next_deadline()), (Route::To(NodeId(3)), None));
        let moved = Moved { slot, owner: owner(5, 8) };
        assert_eq!(routes.handle_moved(T0, moved, 0), Route::To(NodeId(5)));
        assert!(routes.next_deadline().is_some(), "other slots may have moved, too");
        assert_eq!(
            (routes.poll_moved(), routes.poll_moved()),
            (Some(slot), None),
            "all sessions of the slot"
        );
        routes.handle_slots(&table);
        assert_eq!(routes.poll_moved(), None, "an older table moves nothing back");
        assert_eq!(routes.route(T0, slot), Route::To(NodeId(5)));
    }

    #[test]
    fn a_node_that_is_behind_is_asked_again_after_a_pause() {
        let (mut routes, slot) = (NodeRoutes::default(), Slot::of("alice"));
        let mut table = SlotTable::default();
        table.learn(slot, owner(5, 8));
        routes.handle_slots(&table);
        let old = Moved { slot, owner: owner(3, 7) };
        assert_eq!(routes.handle_moved(T0, old, 1), Route::Wait(T0 + PAUSE));
        assert_eq!(routes.route(T0, slot), Route::To(NodeId(5)));
        assert_eq!(routes.handle_moved(T0, old, MOVED_MAX), Route::Retry, "not for ever");
    }

    #[test]
    fn a_slot_without_an_owner_waits() {
        let (mut routes, slot) = (NodeRoutes::default(), Slot::of("alice"));
        let moved = Moved { slot, owner: Owner { node: None, epoch: 9 } };
        assert_eq!(routes.handle_moved(T0, moved, 0), Route::Wait(T0 + PAUSE));
    }

    proptest! {
        #[test]
        fn the_newest_epoch_decides_in_any_order(epochs in proptest::collection::vec(1_u64..50, 1..30)) {
            let (mut routes, slot) = (NodeRoutes::default(), Slot::of("alice"));
            for epoch in &epochs {
                let owner = owner(u16::try_from(*epoch).expect("small"), *epoch);
                if epoch % 2 == 0 {
                    routes.handle_moved(T0, Moved { slot, owner }, 0);
                } else {
                    let mut table = SlotTable::default();
                    table.learn(slot, owner);
                    routes.handle_slots(&table);
                }
            }
            let newest = u16::try_from(*epochs.iter().max().expect("one")).expect("small");
            prop_assert_eq!(routes.route(T0, slot), Route::To(NodeId(newest)));
        }
    }
}
