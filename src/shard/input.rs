//! Bytes from clients: cut into frames, each paid for before the work is done.
//!
//! A frame costs one token of the connection's rate, decompressing one more for each KiB. When the rate is exceeded, or
//! a worker has no room, the client's reading pauses, and no frame behind that one is handled: the rest of the input
//! waits in the decoder, counted, until the pause ends.
//!
//! Example: at 1,000 frames per second a client sends 60 KB of compressed frames that announce 64 KiB each. The first 31
//! exceed the burst of 2,000; the others wait as they came, and one is decompressed every 65 ms.

use super::clients::Clients;
use super::{Count, Outputs, Shard};
use bytes::Bytes;
use moorline_proto::connection::server::{Event, State, Transition};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::compress::plain_len;
use moorline_proto::frame::{Batch, Command, Flags, Frame};
use moorline_proto::ids::ConnKey;
use moorline_proto::message::client::Close;
use moorline_proto::message::decode;
use moorline_proto::time::Instant;

impl Shard {
    /// Handles bytes from a client. While its reading is paused they wait, so the owner must not go on reading.
    pub fn handle_received(&mut self, now: Instant, key: ConnKey, mut bytes: Bytes, outputs: &mut Outputs) {
        if let Some(client) = self.clients.client(key) {
            client.ledger.counters[Count::BytesIn] += bytes.len() as u64;
            if client.is_logged_in() {
                client.connection.note_rx(client.ledger.settings.frame_fill(), now);
            }
        }
        if let Err(reason) = self.handle_frames(now, key, &mut bytes, outputs) {
            self.clients.close(now, key, reason, outputs);
        }
    }

    /// Handles frames until the input is used up, or the client is paused.
    fn handle_frames(
        &mut self,
        now: Instant,
        key: ConnKey,
        bytes: &mut Bytes,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        loop {
            let Some(mut client) = self.clients.client(key) else { return Ok(()) };
            let settings = &client.ledger.settings;
            let body_max = match client.connection.state {
                State::Closing | State::Detached => return Ok(()),
                State::AwaitHello | State::Authenticating => settings.hello_bytes_max,
                State::Active | State::Leaving => settings.body_bytes_max,
            };
            if client.ledger.pauses.is_paused(key) {
                client.with_input(|decoder| decoder.hold(bytes));
                return client.check_input(now);
            }
            match client.with_input(|decoder| decoder.decode(bytes, body_max))? {
                Some(frame) => self.on_frame_or_batch(now, key, frame, outputs)?,
                None => return client.check_input(now),
            }
        }
    }

    /// Ends a client's pause if no cause is left, and handles the frames that waited.
    pub(super) fn try_end_pause(&mut self, now: Instant, key: ConnKey, outputs: &mut Outputs) {
        let Some(mut client) = self.clients.client(key) else { return };
        if client.try_end_pause(now, outputs) && client.connection.held_bytes() > 0 {
            self.handle_received(now, key, Bytes::new(), outputs);
        }
    }

    fn on_frame_or_batch(
        &mut self,
        now: Instant,
        key: ConnKey,
        frame: Frame,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        let flags = frame.header.flags;
        if flags.0 & (Flags::BATCH.0 | Flags::COMPRESSED.0) == 0 {
            return self.on_frame(now, key, frame, outputs);
        }
        if !self.clients.connection(key).is_some_and(|connection| connection.state.is_logged_in()) {
            return Err(CloseReason::Unexpected);
        }
        let frame = self.clients.unpack(now, key, frame, outputs)?;
        if !flags.contains(Flags::BATCH) {
            return self.on_frame(now, key, frame, outputs);
        }
        let is_packed = flags.contains(Flags::COMPRESSED);
        let mut batch = if is_packed { Batch::of_packed(frame.body) } else { Batch::new(frame.body) };
        while let Some(frame) = batch.next() {
            let frame = self.clients.unpack(now, key, frame?, outputs)?;
            self.on_frame(now, key, frame, outputs)?;
            if self.clients.ledger.pauses.is_paused(key) && !batch.is_over() {
                let rest = batch.into_rest()?;
                if let Some(mut client) = self.clients.client(key) {
                    client.with_input(|decoder| decoder.hold_first(&rest));
                }
                return Ok(());
            }
        }
        Ok(())
    }

    fn on_frame(
        &mut self,
        now: Instant,
        key: ConnKey,
        frame: Frame,
        outputs: &mut Outputs,
    ) -> Result<(), CloseReason> {
        self.clients.ledger.counters[Count::FramesIn] += 1;
        let Some(mut client) = self.clients.client(key) else { return Ok(()) };
        let (command, is_logged_in) = (frame.header.command, client.is_logged_in());
        if is_logged_in {
            client.spend(now, 1, outputs);
        }
        match client.connection.state.on(Event::Received(command)) {
            Transition::Ignore if !is_logged_in => return Ok(()),
            Transition::Close(reason) => return Err(reason),
            // Dropped but for its header [P-2.2]; closing has work to do first, see `ending`.
            Transition::Ignore | Transition::To(State::Closing) => {}
            Transition::To(state) => client.connection.state = state,
        }
        if client.is_logged_in() {
            if let Some(flight) = client.session.as_mut().and_then(|session| session.flight.as_mut()) {
                flight.handle_answer(); // any frame answers PING [P-7.5]
            }
            if frame.header.ack != 0 {
                client.handle_ack(now, frame.header.ack, 0, outputs)?; // any frame carries it [P-6.2]
            }
            if frame.header.flags.contains(Flags::ACK_REQ) && command != Command::Send {
                client.send(Frame::new(Command::Ack, Bytes::new()), outputs);
                client.check_clogged()?;
            }
        }
        match command {
            Command::Hello => self.on_hello(now, key, &frame.body, outputs),
            Command::Ping => client.handle_ping(now, &frame.body, outputs),
            Command::Send => {
                self.fanouts.pace.on_send(now, key, frame.header.seq);
                self.gate.handle_send(now, &mut client, frame, outputs)
            }
            Command::Req | Command::Sub | Command::Unsub | Command::App(_) => {
                self.gate.handle_unnumbered(now, &mut client, frame, outputs)
            }
            Command::Ack => client.handle_ack_frame(now, &frame, outputs),
            Command::Logout => Err(CloseReason::LoggedOut),
            Command::Close => {
                let code = decode::<Close>(&frame.body).map_or(0, |close| close.code);
                client.ledger.counters.closed_by_peer += 1;
                self.clients.forget(key, code, outputs);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl Clients {
    /// Decompresses a body, which the client pays for first, by the length that it announces. A frame that is
    /// dropped for its command stays as it is.
    fn unpack(
        &mut self,
        now: Instant,
        key: ConnKey,
        frame: Frame,
        outputs: &mut Outputs,
    ) -> Result<Frame, CloseReason> {
        let (command, flags) = (frame.header.command, frame.header.flags);
        let is_dropped = matches!(command, Command::Ignorable(_)) && !flags.contains(Flags::BATCH);
        if is_dropped || !flags.contains(Flags::COMPRESSED) {
            return Ok(frame);
        }
        let Some(mut client) = self.client(key) else { return Ok(frame) };
        let body_max = client.ledger.settings.body_bytes_max;
        let (plain, cost) = (plain_len(&frame.body)?, frame.unpack_cost()?);
        if plain > frame.body_max(body_max) {
            return Err(CloseReason::TooLarge);
        }
        client.ledger.counters[Count::UnpackedBytes] += u64::from(plain);
        client.spend(now, cost, outputs);
        frame.into_plain(body_max)
    }
}
