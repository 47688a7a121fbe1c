//! Frames on their way to one socket, in order, with the half-written head.

use crate::snapshot::{FrameRecord, Records, Section, SnapshotError};
use bytes::Bytes;
use moorline_proto::frame::{Command, Frame, HEADER_BYTES, Header};
use std::collections::VecDeque;

/// The rest of a body is copied into the block of a write if it is shorter than this; a longer one is
/// written from where it is, however many receivers share it.
const SHARED_MIN: usize = 2 << 10;
/// A pooled queue keeps at most this capacity, in frames.
const POOLED_FRAMES_MAX: usize = 16;
/// Queues in the pool at most.
const POOL_MAX: usize = 512;

/// Takes the bytes of one write.
pub trait Gather {
    /// Number of bytes gathered.
    fn gathered(&self) -> usize;
    /// Appends bytes by copying them.
    fn copy(&mut self, bytes: &[u8]);
    /// Appends the bytes of a body from `skipped` on, which may be shared.
    fn share(&mut self, body: &Bytes, skipped: usize);
}

impl Gather for Vec<u8> {
    fn gathered(&self) -> usize {
        self.len()
    }

    fn copy(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn share(&mut self, body: &Bytes, skipped: usize) {
        self.extend_from_slice(&body[skipped..]);
    }
}

/// Frames that one connection still has to write.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    frames: VecDeque<Frame>,
    bytes: usize,
    /// Bytes of the first frame that the kernel has taken.
    head_sent: usize,
    /// Number of frames, from the first on, whose bodies have memory of their own.
    own: usize,
}

impl Outbound {
    pub(super) fn push(&mut self, frame: Frame) {
        self.bytes += frame.wire_len();
        self.frames.push_back(frame);
    }

    /// Bodies of the frames.
    pub(super) fn bodies(&self) -> impl Iterator<Item = &Bytes> {
        self.frames.iter().map(|frame| &frame.body)
    }

    /// Writes the frames, and the number of bytes sent of the first one.
    pub(super) fn freeze(&self, out: &mut Section) -> (Vec<FrameRecord>, u32) {
        let Self { frames, bytes: _, head_sent, own: _ } = self;
        let frame = |frame: &Frame| FrameRecord {
            head: Bytes::copy_from_slice(&frame.header.to_bytes()),
            body: out.body(&frame.body),
        };
        (frames.iter().map(frame).collect(), u32::try_from(*head_sent).expect("less than a frame"))
    }

    /// Reads the frames.
    pub(super) fn thaw(
        frames: &[FrameRecord],
        head_sent: u32,
        from: &Records,
    ) -> Result<Self, SnapshotError> {
        let mut outbound = Self::default();
        for FrameRecord { head, body } in frames {
            let head: &[u8; HEADER_BYTES] =
                head[..].try_into().map_err(|_| from.contradiction("a frame's header has not 16 bytes"))?;
            let header =
                Header::parse(head).map_err(|_| from.contradiction("a frame's header is not valid"))?;
            let body = from.body(*body)?;
            if body.len() != header.body_len as usize {
                return Err(from.contradiction("a frame's body is not as long as its header says"));
            }
            outbound.push(Frame { header, body });
        }
        let head_sent = head_sent as usize;
        if head_sent > 0 && outbound.frames.front().is_none_or(|frame| head_sent >= frame.wire_len()) {
            return Err(from.contradiction("more of a frame is sent than it has"));
        }
        (outbound.head_sent, outbound.bytes) = (head_sent, outbound.bytes - head_sent);
        Ok(outbound)
    }

    /// Bytes not yet taken by the kernel.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn frames(&self) -> usize {
        self.frames.len()
    }

    /// Returns whether more than `bytes_max` wait. One frame that alone is larger than that does not count.
    pub(super) fn is_over(&self, bytes_max: usize) -> bool {
        let largest = || self.frames.iter().map(Frame::wire_len).max().filter(|it| *it > bytes_max);
        self.bytes > bytes_max && self.bytes > bytes_max + largest().unwrap_or(0)
    }

    /// Appends the next frames until `bytes_max` is reached.
    pub(super) fn gather(&self, out: &mut impl Gather, bytes_max: usize) {
        let mut skip = self.head_sent;
        for frame in &self.frames {
            if out.gathered() >= bytes_max {
                return;
            }
            let head = frame.header.to_bytes();
            out.copy(&head[skip.min(HEADER_BYTES)..]);
            let skipped = skip.saturating_sub(HEADER_BYTES);
            if frame.body.len() - skipped < SHARED_MIN {
                out.copy(&frame.body[skipped..]);
            } else {
                out.share(&frame.body, skipped);
            }
            skip = 0;
        }
    }

    /// The kernel took `sent` more bytes.
    pub(super) fn advance(&mut self, sent: usize) {
        self.bytes -= sent;
        self.head_sent += sent;
        while let Some(frame) = self.frames.front() {
            let wire_len = frame.wire_len();
            if self.head_sent < wire_len {
                return;
            }
            self.head_sent -= wire_len;
            self.frames.pop_front();
            self.own = self.own.saturating_sub(1);
        }
        assert_eq!(self.head_sent, 0, "the kernel cannot take more than it was given");
    }

    /// Gives the bodies memory of their own: the socket takes nothing for now, and a small body would keep the whole
    /// block that a link read.
    pub(super) fn make_own(&mut self) {
        let own = std::mem::replace(&mut self.own, self.frames.len());
        for frame in self.frames.iter_mut().skip(own).filter(|frame| !frame.body.is_empty()) {
            frame.body = Bytes::copy_from_slice(&frame.body);
        }
    }

    /// Drops every frame of which no byte was sent, but not a WELCOME: without it a KICK means nothing
    /// [P-3.2].
    pub(super) fn drop_unsent(&mut self) {
        let is_welcome = |frame: &Frame| frame.header.command == Command::Welcome;
        let keep = usize::from(self.head_sent > 0 || self.frames.front().is_some_and(is_welcome));
        self.frames.truncate(keep);
        self.own = self.own.min(keep);
        self.bytes = self.frames.iter().map(Frame::wire_len).sum::<usize>() - self.head_sent;
    }
}

/// Empty queues for reuse, so that an answer on an idle connection allocates nothing.
#[derive(Debug, Default)]
pub(super) struct OutboundPool {
    #[allow(clippy::vec_box)] // the boxes themselves are what is reused
    queues: Vec<Box<Outbound>>,
}

impl OutboundPool {
    #[allow(clippy::unnecessary_box_returns)] // the box is what a connection keeps
    pub(super) fn take(&mut self) -> Box<Outbound> {
        // Most queues only ever hold one answer.
        let one = || Box::new(Outbound { frames: VecDeque::with_capacity(1), ..Outbound::default() });
        self.queues.pop().unwrap_or_else(one)
    }

    pub(super) fn give_back(&mut self, queue: Box<Outbound>) {
        if self.queues.len() < POOL_MAX
            && queue.frames.capacity() <= POOLED_FRAMES_MAX
            && queue.frames.is_empty()
        {
            self.queues.push(queue);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn any_partial_writes_give_the_same_bytes() {
        let frames = [b"abc".as_slice(), b"", b"defgh"]
            .map(|body| Frame::new(Command::Push, Bytes::from_static(body)));
        let mut whole = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut whole));
        for step in 1..=whole.len() {
            let mut queue = Outbound::default();
            frames.iter().for_each(|frame| queue.push(frame.clone()));
            let mut got = Vec::new();
            while queue.bytes() > 0 {
                let mut next = Vec::new();
                queue.gather(&mut next, step);
                let sent = next.len().min(step);
                got.extend_from_slice(&next[..sent]);
                queue.advance(sent);
            }
            assert_eq!((got, queue.frames()), (whole.clone(), 0), "step {step}");
        }
    }

    #[test]
    fn a_half_written_head_survives_dropping_the_rest() {
        let mut queue = Outbound::default();
        (0..3).for_each(|_| queue.push(Frame::new(Command::Push, Bytes::from_static(b"abc"))));
        queue.advance(5);
        queue.drop_unsent();
        assert_eq!((queue.frames(), queue.bytes()), (1, HEADER_BYTES + 3 - 5));
        queue.advance(HEADER_BYTES + 3 - 5);
        queue.push(Frame::new(Command::Close, Bytes::new()));
        queue.drop_unsent();
        assert_eq!((queue.frames(), queue.bytes()), (0, 0));
        for command in [Command::Welcome, Command::Push] {
            queue.push(Frame::new(command, Bytes::new()));
        }
        queue.drop_unsent();
        assert_eq!(queue.frames.front().map(|frame| frame.header.command), Some(Command::Welcome));
        assert_eq!(queue.frames(), 1);
    }
}
