//! Bytes that wait in a layer: of the peer, until the rest of them comes; to the peer, until the socket takes them.

use crate::stream::Stream;
use std::io;

/// The waiting bytes of one connection. Nothing is allocated while none wait.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    waiting: Option<Box<Waiting>>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Waiting {
    partial: Vec<u8>,
    plain: Vec<u8>,
    pending: Vec<u8>,
    /// Nobody has looked at `partial` yet.
    has_come: bool,
    /// The peer has said that nothing more comes.
    has_ended: bool,
}

impl Buffers {
    pub(super) const fn new() -> Self {
        Self { waiting: None }
    }

    pub(super) fn of(partial: Vec<u8>, plain: Vec<u8>, pending: Vec<u8>) -> Self {
        let waiting = Waiting { has_come: !partial.is_empty(), partial, plain, pending, has_ended: false };
        let mut buffers = Self { waiting: Some(Box::new(waiting)) };
        buffers.give_back();
        buffers
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.waiting.is_none()
    }

    /// Returns whether bytes of the socket came before this layer was there, and nobody has looked at them.
    pub(super) fn has_come(&self) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| waiting.has_come)
    }

    /// Returns the same, or whether the peer has said that nothing more comes.
    pub(super) fn wants_read(&self) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| waiting.has_come || waiting.has_ended)
    }

    /// Returns whether bytes came before this layer was there, and notes the look.
    pub(super) fn take_come(&mut self) -> bool {
        self.waiting.as_mut().is_some_and(|waiting| std::mem::take(&mut waiting.has_come))
    }

    /// Notes whether the peer has said that nothing more comes.
    pub(super) fn note_end(&mut self, has_ended: bool) {
        if has_ended {
            self.waiting.get_or_insert_default().has_ended = true;
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| waiting.has_ended)
    }

    /// Goes on with bytes of the socket that have come already, and with bytes for the socket.
    pub(super) fn go_on(&mut self, came: &[u8], unsent: &[u8]) {
        let waiting = self.waiting.get_or_insert_default();
        waiting.partial.extend_from_slice(came);
        waiting.has_come = !waiting.partial.is_empty();
        waiting.pending.extend_from_slice(unsent);
        self.give_back();
    }

    /// Bytes of the socket that are not read yet.
    pub(super) fn partial(&self) -> &[u8] {
        self.waiting.as_ref().map_or(&[], |waiting| &waiting.partial)
    }

    /// Decrypted bytes that are not read yet.
    pub(super) fn plain(&self) -> &[u8] {
        self.waiting.as_ref().map_or(&[], |waiting| &waiting.plain)
    }

    /// Bytes that the socket has not taken yet.
    pub(super) fn unsent(&self) -> &[u8] {
        self.waiting.as_ref().map_or(&[], |waiting| &waiting.pending)
    }

    /// Number of [`Self::unsent`].
    pub(super) fn pending(&self) -> usize {
        self.unsent().len()
    }

    pub(super) fn set_partial(&mut self, bytes: &[u8]) {
        self.set(bytes, |waiting| &mut waiting.partial);
    }

    pub(super) fn set_plain(&mut self, bytes: &[u8]) {
        self.set(bytes, |waiting| &mut waiting.plain);
    }

    /// Adds bytes for the socket.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.waiting.get_or_insert_default().pending.extend_from_slice(bytes);
        }
    }

    /// Writes what the socket did not take before. False: it does not take all of it.
    ///
    /// # Errors
    /// The stream is broken.
    pub(super) fn flush(&mut self, stream: &mut Stream) -> io::Result<bool> {
        let Some(waiting) = self.waiting.as_mut().filter(|waiting| !waiting.pending.is_empty()) else {
            return Ok(true);
        };
        let sent = stream.write(&waiting.pending)?;
        if sent < waiting.pending.len() {
            waiting.pending.drain(..sent);
            return Ok(false);
        }
        waiting.pending = Vec::new();
        self.give_back();
        Ok(true)
    }

    fn set(&mut self, bytes: &[u8], field: impl Fn(&mut Waiting) -> &mut Vec<u8>) {
        if bytes.is_empty() {
            if let Some(waiting) = &mut self.waiting {
                *field(waiting) = Vec::new();
                self.give_back();
            }
        } else {
            *field(self.waiting.get_or_insert_default()) = bytes.to_vec();
        }
    }

    fn give_back(&mut self) {
        if self.waiting.as_ref().is_some_and(|waiting| **waiting == Waiting::default()) {
            self.waiting = None;
        }
    }
}
