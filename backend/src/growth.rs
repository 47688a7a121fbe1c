//! Growth of tables that have an entry per user or session: by a sixteenth, not to twice their size.
//!
//! Example: a list that doubles has room for 262,144 sessions when 131,073 are there. The system moves the pages of a large
//! list without copying them, so growing more often costs little.

use slab::Slab;

/// Entries that a small list grows by.
const LEAST: usize = 16;

const fn step(len: usize) -> usize {
    if len / 16 > LEAST { len / 16 } else { LEAST }
}

/// Makes room for one more entry.
pub(crate) fn make_room<T>(list: &mut Vec<T>) {
    if list.len() == list.capacity() {
        list.reserve_exact(step(list.len()));
    }
}

/// Makes room for one more entry of a slab.
pub(crate) fn make_room_in_slab<T>(slab: &mut Slab<T>) {
    if slab.len() == slab.capacity() {
        slab.reserve_exact(step(slab.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_at_most_a_sixteenth_to_spare() {
        let (mut list, mut slab) = (Vec::new(), Slab::new());
        for number in 0..10_000_u32 {
            make_room(&mut list);
            list.push(number);
            make_room_in_slab(&mut slab);
            slab.insert(number);
            let most = list.len() + (list.len() / 16).max(LEAST);
            assert!(list.capacity() <= most && slab.capacity() <= most, "{} of {}", list.capacity(), most);
        }
    }
}
