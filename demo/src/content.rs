//! Content of the messages: a description, and bytes that follow from it. Pure.
//!
//! Big-endian: sender's device u32, conversation u32, counter u32, intended send time u64 (monotonic
//! nanoseconds), then filler. Every byte follows from the description, so a reader notices a message that
//! was altered, cut or mixed up with another.

use bytes::{BufMut as _, Bytes, BytesMut};
use moorline_proto::ids::MessageKey;
use moorline_proto::random::{Random, mix};
use moorline_proto::time::Instant;

/// Bytes of the description.
const HEAD_BYTES: usize = 20;
/// Filler: 12 bytes and up to this many more.
const FILLER_SPREAD: u64 = 256;
const FILLER_MIN: u64 = 12;

/// The description of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) sender: u32,
    pub(crate) conversation: u32,
    /// From 1, per sender and conversation.
    pub(crate) counter: u32,
    pub(crate) intended: Instant,
}

impl Stamp {
    /// The whole content.
    pub(crate) fn content(&self, seed: u64) -> Bytes {
        let mut random = Random::new(self.mixed(seed));
        let filler = FILLER_MIN + random.below(FILLER_SPREAD);
        let filler = usize::try_from(filler).expect("a few hundred bytes");
        let mut content = BytesMut::with_capacity(HEAD_BYTES + filler + 8);
        content.put_u32(self.sender);
        content.put_u32(self.conversation);
        content.put_u32(self.counter);
        content.put_u64(self.intended.as_nanos());
        while content.len() < HEAD_BYTES + filler {
            content.put_u64(random.next_u64());
        }
        content.truncate(HEAD_BYTES + filler);
        content.freeze()
    }

    /// Reads the description.
    pub(crate) fn read(content: &[u8]) -> Option<Self> {
        let head: &[u8; HEAD_BYTES] = content.first_chunk()?;
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let intended = u64::from_be_bytes(head[12..].try_into().expect("eight bytes"));
        Some(Self {
            sender: word(0),
            conversation: word(4),
            counter: word(8),
            intended: Instant::from_nanos(intended),
        })
    }

    /// The idempotency key: unique within the run, and names the message.
    pub(crate) fn key(&self, seed: u64) -> MessageKey {
        let mut key = [0; 16];
        key[..4].copy_from_slice(&self.sender.to_be_bytes());
        key[4..8].copy_from_slice(&self.conversation.to_be_bytes());
        key[8..12].copy_from_slice(&self.counter.to_be_bytes());
        key[12..].copy_from_slice(&mix(seed).to_be_bytes()[..4]);
        MessageKey(key)
    }

    /// Sender, conversation and counter of a key.
    pub(crate) fn read_key(key: MessageKey) -> (u32, u32, u32) {
        let word = |at: usize| u32::from_be_bytes(key.0[at..at + 4].try_into().expect("four bytes"));
        (word(0), word(4), word(8))
    }

    fn mixed(&self, seed: u64) -> u64 {
        let who = u64::from(self.sender) << 32 | u64::from(self.conversation);
        mix(seed ^ mix(who)) ^ mix(u64::from(self.counter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { sender: 1, conversation: 2, counter: 3, intended: Instant::from_nanos(4) };

    #[test]
    fn a_content_says_what_it_is() {
        let content = STAMP.content(9);
        assert_eq!(Stamp::read(&content), Some(STAMP));
        assert_eq!(Stamp::read(&content[..HEAD_BYTES - 1]), None);
        assert_eq!(content, STAMP.content(9));
        assert_eq!(Stamp::read_key(STAMP.key(9)), (1, 2, 3));
    }

    #[test]
    fn contents_differ_in_filler_and_length() {
        let contents: Vec<Bytes> = (1..200).map(|counter| Stamp { counter, ..STAMP }.content(9)).collect();
        let lengths: std::collections::BTreeSet<usize> = contents.iter().map(Bytes::len).collect();
        assert!(lengths.len() > 50, "{lengths:?}");
        assert!(contents.windows(2).all(|two| two[0][HEAD_BYTES..] != two[1][HEAD_BYTES..]));
        assert_ne!(STAMP.content(9), STAMP.content(10));
    }
}
