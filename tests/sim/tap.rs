//! Listens in on one connection at the gateway's end and checks what must hold on the wire.
//!
//! What the shard read and what it wrote is decoded once more, independent of both state machines:
//! the downlink window, the order of login and last frame, heartbeats' promises.

use crate::coverage::Coverage;
use bytes::Bytes;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{Batch, Command, Decoder, Flags, Frame};
use moorline_proto::ids::Seq;
use moorline_proto::keepalive::server_patience;
use moorline_proto::message::client::{Ack, Close, Code, Ping, Send, SendAck};
use moorline_proto::message::decode;
use moorline_proto::time::{Duration, Instant};
use std::collections::BTreeSet;

/// Reliable frames in flight toward one client.
pub(crate) const DOWNLINK_FRAMES: usize = 32;
/// Bounds of the heartbeat, in seconds.
pub(crate) const HEARTBEAT_S: (u16, u16) = (2, 8);

/// One connection as it was heard.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)] // independent facts
pub(crate) struct Tap {
    is_honest: bool,
    up: Decoder,
    down: Decoder,
    /// The client broke the format: nothing more is understood.
    is_deaf: bool,
    /// WELCOME is out.
    is_welcome: bool,
    /// KICK or CLOSE is out.
    is_over: bool,
    in_flight: BTreeSet<Seq>,
    /// The highest cumulative ack, and what was acknowledged beyond it.
    acked: Seq,
    sacked: BTreeSet<Seq>,
    sent_max: Seq,
    cids_open: BTreeSet<Seq>,
    heard_at: Instant,
    promised: Duration,
}

/// Claim of a message on the wire, for the backend to confirm.
pub(crate) type Claims = Vec<SendAck>;

impl Tap {
    pub(crate) fn new(is_honest: bool) -> Self {
        Self {
            is_honest,
            up: Decoder::new(),
            down: Decoder::new(),
            is_deaf: false,
            is_welcome: false,
            is_over: false,
            in_flight: BTreeSet::new(),
            acked: 0,
            sacked: BTreeSet::new(),
            sent_max: 0,
            cids_open: BTreeSet::new(),
            heard_at: Instant::ZERO,
            promised: Duration::from_secs(HEARTBEAT_S.1.into()),
        }
    }

    /// This one keeps the rules, whoever it is.
    pub(crate) const fn trust(&mut self) {
        self.is_honest = true;
    }

    /// The shard is about to see these bytes.
    pub(crate) fn hear_up(&mut self, now: Instant, bytes: &[u8], seen: &mut Coverage) {
        self.heard_at = now;
        if self.is_deaf {
            return;
        }
        let (mut bytes, mut frames) = (Bytes::copy_from_slice(bytes), 0);
        loop {
            match self.up.decode(&mut bytes, u32::MAX) {
                Ok(Some(frame)) if frame.header.flags.contains(Flags::BATCH) => {
                    seen.batches += 1;
                    Batch::new(frame.body).flatten().for_each(|frame| self.on_up(&frame));
                }
                Ok(Some(frame)) => self.on_up(&frame),
                Ok(None) => break,
                Err(reason) => {
                    assert!(!self.is_honest, "the client wrote what cannot be read: {reason}");
                    self.is_deaf = true;
                    return;
                }
            }
            frames += 1;
        }
        seen.split_frames += u64::from(self.up.partial_len() > 0);
        seen.coalesced_frames += u64::from(frames > 1);
    }

    fn on_up(&mut self, frame: &Frame) {
        let frame = &frame.clone().into_plain(64 << 10).unwrap_or_else(|_| frame.clone());
        let header = frame.header;
        self.acked = self.acked.max(header.ack);
        match header.command {
            Command::Ack => {
                let sack = decode::<Ack>(&frame.body).map_or(0, |ack| ack.sack);
                let bits = (0..64).filter(|bit| sack >> bit & 1 == 1);
                self.sacked.extend(bits.filter_map(|bit| header.ack.checked_add(2 + bit)));
            }
            Command::Ping => {
                let (min, max) = (HEARTBEAT_S.0.into(), HEARTBEAT_S.1.into());
                if let Ok(Ping { next_s }) = decode(&frame.body) {
                    self.promised = Duration::from_secs(u64::from(next_s).clamp(min, max));
                }
            }
            Command::Send if self.is_honest => {
                self.cids_open.insert(header.seq);
                let span = header.seq - self.cids_open.first().expect("just put in");
                assert!(span < 64, "the client runs {span} ahead of its oldest open cid");
                decode::<Send>(&frame.body).expect("a SEND");
            }
            _ => {}
        }
        let (acked, sacked) = (self.acked, &mut self.sacked);
        sacked.retain(|seq| *seq > acked);
        self.in_flight.retain(|seq| *seq > acked && !sacked.contains(seq));
    }

    /// The kernel took these bytes from the shard.
    pub(crate) fn hear_down(&mut self, bytes: &[u8], seen: &mut Coverage, claims: &mut Claims) {
        let mut bytes = Bytes::copy_from_slice(bytes);
        while let Some(frame) = self.down.decode(&mut bytes, u32::MAX).expect("the gateway keeps the format")
        {
            self.on_down(&frame, seen, claims);
        }
    }

    fn on_down(&mut self, frame: &Frame, seen: &mut Coverage, claims: &mut Claims) {
        let is_compressed = frame.header.flags.contains(Flags::COMPRESSED);
        seen.compressed += u64::from(is_compressed);
        let frame = &frame.clone().into_plain(64 << 10).expect("the gateway keeps the format");
        if frame.header.flags.contains(Flags::BATCH) {
            seen.merged_pushes += 1;
            for frame in Batch::new(frame.body.clone()) {
                self.on_down(&frame.expect("the gateway keeps the format"), seen, claims);
            }
            return;
        }
        let (command, seq) = (frame.header.command, frame.header.seq);
        assert!(!self.is_over, "{command:?} after the last frame");
        match command {
            Command::Welcome => assert!(!std::mem::replace(&mut self.is_welcome, true), "welcome twice"),
            Command::Close => self.on_close(&decode(&frame.body).expect("a CLOSE")),
            _ => assert!(self.is_welcome, "{command:?} before WELCOME"),
        }
        self.is_over = matches!(command, Command::Close | Command::Kick);
        if command == Command::SendAck {
            let ack: SendAck = decode(&frame.body).expect("a SENDACK");
            self.cids_open.remove(&ack.cid);
            if matches!(ack.code(), Code::Ok | Code::Dup) && self.is_honest {
                claims.push(ack);
            }
        }
        // One that was acknowledged before may be on its way once more, or only now: on a resumed
        // connection, when the application handled it after the HELLO.
        if seq > self.sent_max && !self.is_deaf {
            self.sent_max = seq;
            if seq > self.acked && !self.sacked.contains(&seq) {
                self.in_flight.insert(seq);
            }
            let count = self.in_flight.len();
            assert!(count <= DOWNLINK_FRAMES || !self.is_honest, "{count} reliable frames in flight");
            seen.full_windows += u64::from(count == DOWNLINK_FRAMES);
        }
    }

    fn on_close(&self, close: &Close) {
        let is_fault = (3500..3530).contains(&close.code) || close.code == CloseReason::Internal.code();
        assert!(!(is_fault && self.is_honest), "an honest client is told {} {}", close.code, close.reason);
    }

    /// Ended for silence: was it silent for that long?
    pub(crate) fn check_silence(&self, now: Instant) {
        let (since, patience) = (now.saturating_since(self.heard_at), server_patience(self.promised));
        assert!(since >= patience, "ended after {since:?} of silence, {patience:?} were promised");
    }

    /// True if WELCOME is out.
    pub(crate) const fn is_welcome(&self) -> bool {
        self.is_welcome
    }

    /// True if the last frame is out.
    pub(crate) const fn is_over(&self) -> bool {
        self.is_over
    }
}
