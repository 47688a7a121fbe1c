//! Records that no honest end seals, and counters near their end: for tests.
#![allow(dead_code)] // the fuzz body needs some of it

use super::{Flags, HEADER_BYTES, Keep, Records, Slot, UPDATE_NOT_REQUESTED, UPDATE_REQUESTED};
#[cfg(test)]
use std::cell::RefCell;

#[cfg(test)]
thread_local! {
    /// Secret and number of each record that this thread has sealed.
    static SEALED: RefCell<Vec<(Vec<u8>, u32)>> = const { RefCell::new(Vec::new()) };
}

/// Notes that a record is sealed.
#[cfg(test)]
pub(super) fn note_sealed(secret: &[u8], seq: u32) {
    SEALED.with_borrow_mut(|sealed| sealed.push((secret.to_vec(), seq)));
}

/// Takes the notes of this thread.
#[cfg(test)]
pub(in crate::tls) fn take_sealed() -> Vec<(Vec<u8>, u32)> {
    SEALED.take()
}

impl Records {
    /// Pretends that this number of records was sealed under the key.
    pub(in crate::tls) fn pretend_sealed(&mut self, records: u32) {
        self.cool();
        assert!(self.state.try_set_write_seq(records), "at most 2^24");
    }

    /// Pretends that this number of records was opened with the key.
    pub(in crate::tls) fn pretend_opened(&mut self, records: u32) {
        self.cool();
        self.read_seq = records;
    }

    /// Returns the key's secret and the number of the next record to seal.
    pub(in crate::tls) fn next_nonce(&self) -> (Vec<u8>, u32) {
        (self.write.bytes(self.suite()).to_vec(), self.state.write_seq())
    }

    /// Seals a KeyUpdate, and changes the key behind it.
    pub(in crate::tls) fn seal_raw_update(&mut self, is_requested: bool) -> Vec<u8> {
        let mut out = Vec::new();
        let request = if is_requested { UPDATE_REQUESTED } else { UPDATE_NOT_REQUESTED };
        self.update(request, &mut out).expect("owner");
        out
    }

    /// Seals one record of any kind.
    pub(in crate::tls) fn seal_raw(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        let (suite, seq) = (self.suite(), self.state.write_seq());
        self.cool();
        let mut record = Vec::new();
        let key = Slot::Empty.take(Keep::Nothing, suite, &mut self.write);
        let sealed = key.seal(seq, kind.into(), &content.into(), &mut record);
        sealed.expect("sealed");
        assert!(self.state.try_set_write_seq(seq + 1), "at most 2^24");
        assert!(!self.state.has(Flags::FROZEN));
        record
    }

    /// Seals one record with this content, kind and padding.
    pub(in crate::tls) fn seal_raw_inner(&mut self, inner: &[u8]) -> Vec<u8> {
        let (kind, content) = inner.split_last().expect("not empty");
        let record = self.seal_raw(*kind, content);
        assert_eq!(record.len(), HEADER_BYTES + inner.len() + 16);
        record
    }
}
