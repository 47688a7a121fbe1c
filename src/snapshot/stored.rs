//! Bodies that the new process reads while the old one still serves, so that the pause does not grow with queued bytes.
//!
//! For example, 300 clients that do not read have 25 MB queued. The old process writes these bodies into a file in memory
//! before it starts the new one, and keeps them alive: no other body gets their address meanwhile. The new process reads the
//! file while it warms up. In the pause the snapshot names the bodies by number, and has only those that came later.
//!
//! The file: length u32 (big-endian) and bytes of each body, one after the other.

use bytes::{Buf as _, Bytes};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Shortest body that is stored: naming it takes hardly less than writing it.
const BODY_BYTES_MIN: usize = 256;

/// The stored bodies of the old process.
#[derive(Debug, Default)]
pub struct StoredBodies {
    /// The bodies, kept alive: their addresses are names.
    bodies: Vec<Bytes>,
    /// Numbers, by address and length in memory.
    numbers: HashMap<(usize, usize), u32>,
}

impl StoredBodies {
    /// Adds a body, once, if it is worth it.
    pub fn add(&mut self, body: Bytes) {
        if body.len() < BODY_BYTES_MIN {
            return;
        }
        let Ok(next) = u32::try_from(self.bodies.len()) else { return };
        let name = (body.as_ptr() as usize, body.len());
        if let Entry::Vacant(vacant) = self.numbers.entry(name) {
            vacant.insert(next);
            self.bodies.push(body);
        }
    }

    /// Returns the number of a body that is stored.
    pub(super) fn number(&self, body: &Bytes) -> Option<u32> {
        self.numbers.get(&(body.as_ptr() as usize, body.len())).copied()
    }

    /// Returns the number of bytes of all bodies.
    pub fn bytes(&self) -> u64 {
        self.bodies.iter().map(|body| body.len() as u64).sum()
    }

    /// Forgets the bodies from this number on: the new process does not get them.
    pub fn truncate(&mut self, number: usize) {
        self.bodies.truncate(number);
        self.numbers.retain(|_, known| (*known as usize) < number);
    }

    /// Returns the bodies in the order of their numbers.
    pub fn bodies(&self) -> &[Bytes] {
        &self.bodies
    }
}

/// Reads a file of stored bodies. Each body gets memory of its own, which is free when its last frame is.
///
/// `None`: the file is cut off.
pub fn read_stored(mut file: &[u8]) -> Option<Vec<Bytes>> {
    let mut bodies = Vec::new();
    while !file.is_empty() {
        let length = file.try_get_u32().ok()? as usize;
        let (body, rest) = file.split_at_checked(length)?;
        bodies.push(Bytes::copy_from_slice(body));
        file = rest;
    }
    Some(bodies)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Header, Item, Section, SectionKind, Snapshot, UserSpentRecord, Writer};
    use std::sync::Arc;

    #[test]
    fn a_body_that_came_before_is_named_and_a_later_one_is_written() {
        let (early, late) = (Bytes::from(vec![7; 4096]), Bytes::from(vec![8; 4096]));
        let mut stored = StoredBodies::default();
        stored.add(early.clone());
        stored.add(early.clone());
        stored.add(Bytes::from_static(b"short"));
        assert_eq!((stored.bodies().len(), stored.bytes()), (1, 4096));
        let file: Vec<u8> =
            stored.bodies().iter().flat_map(|body| [&4096u32.to_be_bytes()[..], body].concat()).collect();
        let mut section = Section::with_stored(Arc::new(stored));
        for body in [&early, &late] {
            let spent = section.body(body);
            section.put(Item::UserSpent(UserSpentRecord { spent, ..UserSpentRecord::default() }));
        }
        assert!(section.len() < 5000, "one of both is there: {}", section.len());
        let mut writer = Writer::default();
        writer.add(SectionKind::Shard, 0, section);
        let bytes: Bytes = writer.finish(Header::default()).concat().into();
        let read = |stored: Vec<Bytes>| {
            let snapshot = Snapshot::open(bytes.clone()).expect("whole").with_stored(stored.into());
            let (_, mut records) = snapshot.sections(SectionKind::Shard).expect("one").remove(0);
            let mut found = Vec::new();
            while let Some(item) = records.next()? {
                let Item::UserSpent(record) = item else { panic!("{item:?}") };
                found.push(records.body(record.spent)?);
            }
            Ok::<_, crate::snapshot::SnapshotError>(found)
        };
        assert_eq!(read(read_stored(&file).expect("whole")), Ok(vec![early, late]));
        assert!(read(Vec::new()).is_err(), "a body that did not come");
        assert_eq!(read_stored(&file[..file.len() - 1]), None);
        assert_eq!(read_stored(&file[..2]), None);
    }
}
