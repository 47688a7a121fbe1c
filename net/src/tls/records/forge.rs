//! Records that no honest end seals, and counters near their end: for tests.

use super::{Flags, HEADER_BYTES, Records, encrypt, sealing_key};
use rustls::ContentType;

impl Records {
    /// Pretends that this number of records was sealed under the key.
    pub(in crate::tls) fn pretend_sealed(&mut self, records: u32) {
        self.cool();
        self.write_seq = records;
    }

    /// Pretends that this number of records was opened with the key.
    pub(in crate::tls) fn pretend_opened(&mut self, records: u64) {
        self.cool();
        self.read_seq = records;
    }

    /// Returns the key's secret and the number of the next record to seal.
    pub(in crate::tls) fn next_nonce(&self) -> (Vec<u8>, u32) {
        (self.write.bytes(self.suite()).to_vec(), self.write_seq)
    }

    /// Seals one record of any kind.
    pub(in crate::tls) fn seal_raw(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut key = sealing_key(self.suite(), &self.write, self.write_seq);
        self.cool();
        let record = encrypt(&mut *key, ContentType::from(kind), content.into(), self.write_seq);
        self.write_seq += 1;
        assert!(!self.flags.has(Flags::FROZEN));
        record.expect("sealed")
    }

    /// Seals one record with this content, kind and padding.
    pub(in crate::tls) fn seal_raw_inner(&mut self, inner: &[u8]) -> Vec<u8> {
        let (kind, content) = inner.split_last().expect("not empty");
        let record = self.seal_raw(*kind, content);
        assert_eq!(record.len(), HEADER_BYTES + inner.len() + 16);
        record
    }
}
