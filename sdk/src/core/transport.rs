//! Transport of one core: decoding of frames, and the heartbeats at the pace that the network allows.
//!
//! Pure data of [`Core`](super::Core). Example: nothing is sent for an interval, so [`Transport::poll_heartbeat`] writes
//! a PING; no byte arrives within `pong_timeout`, so the next call says that the gateway is gone, and the network is
//! remembered as one that forgets connections so soon.

use super::event::Lost;
use super::heartbeat::{Beat, Heartbeat};
use super::networks::{NetworkId, Networks};
use super::output::Outputs;
use bytes::Bytes;
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{BODY_BYTES_CEILING, BODY_BYTES_MAX, Batch, Command, Decoder, Flags, Frame};
use moorline_proto::keepalive::Attention;
use moorline_proto::message::client::{Close, Ping, Welcome};
use moorline_proto::message::{encode, frame_of};
use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant};

/// Bytes of one read, on their way to be frames.
#[derive(Debug)]
pub(super) struct Received {
    bytes: Bytes,
    /// Rest of the batch that is being taken apart; `None`: the next frame comes from `bytes`.
    batch: Option<Batch>,
}

impl Received {
    pub(super) const fn new(bytes: Bytes) -> Self {
        Self { bytes, batch: None }
    }
}

#[derive(Debug)]
pub(super) struct Transport {
    decoder: Decoder,
    /// Heartbeat of the login; `None`: not logged in.
    heartbeat: Option<Heartbeat>,
    networks: Networks,
}

impl Transport {
    pub(super) fn new() -> Self {
        Self { decoder: Decoder::new(), heartbeat: None, networks: Networks::new() }
    }

    /// Takes the next plain frame out of the bytes; the frames of a batch one by one. `None`: the rest of a frame has not
    /// arrived.
    pub(super) fn poll_frame(&mut self, received: &mut Received) -> Result<Option<Frame>, CloseReason> {
        // Down, a body may be longer than the limit that WELCOME tells for frames up [P-1.4]; WELCOME itself is short.
        let body_max = if self.heartbeat.is_some() { BODY_BYTES_CEILING } else { BODY_BYTES_MAX };
        loop {
            if let Some(inner) = received.batch.as_mut().and_then(Batch::next) {
                return inner?.into_plain(body_max).map(Some);
            }
            received.batch = None;
            let Some(frame) = self.decoder.decode(&mut received.bytes, body_max)? else {
                return Ok(None);
            };
            let is_packed = frame.header.flags.contains(Flags::COMPRESSED);
            let frame = frame.into_plain(body_max)?;
            if !frame.header.flags.contains(Flags::BATCH) {
                return Ok(Some(frame));
            }
            // In a batch that was compressed no frame may be: each level would multiply the work for a byte.
            received.batch =
                Some(if is_packed { Batch::of_packed(frame.body) } else { Batch::new(frame.body) });
        }
    }

    /// Notes that bytes arrived.
    pub(super) fn on_received(&mut self, now: Instant) {
        if let Some(heartbeat) = &mut self.heartbeat
            && heartbeat.on_received(now)
        {
            self.networks.on_pong(heartbeat.bounds(), now);
            self.tune(now);
        }
    }

    /// Starts the heartbeats of a login.
    pub(super) fn on_welcome(
        &mut self,
        now: Instant,
        welcome: &Welcome,
        patience: Duration,
        random: &mut Random,
    ) {
        self.heartbeat = Some(Heartbeat::new(welcome, patience, now, random));
        self.tune(now);
    }

    /// Writes a frame that counts as a sign of life.
    pub(super) fn send(&mut self, now: Instant, frame: Frame, outputs: &mut Outputs) {
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.on_sent(now);
        }
        outputs.write(frame);
    }

    /// Writes the CLOSE of a client that leaves.
    pub(super) fn say_goodbye(&mut self, now: Instant, outputs: &mut Outputs) {
        let close = Close { code: CloseReason::GoingAway.code(), ..Close::default() };
        self.send(now, Frame::new(Command::Close, encode(&close)), outputs);
    }

    /// Writes the PING that is due. An error: the gateway is gone.
    pub(super) fn poll_heartbeat(&mut self, now: Instant, outputs: &mut Outputs) -> Result<(), Lost> {
        match self.heartbeat.as_mut().map_or(Beat::Quiet, |heartbeat| heartbeat.poll(now)) {
            Beat::Quiet => Ok(()),
            Beat::Ping { next_s } => {
                outputs.write(frame_of(Command::Ping, &Ping { next_s }));
                Ok(())
            }
            Beat::Dead => {
                self.on_dead(now);
                Err(Lost::HeartbeatTimeout)
            }
        }
    }

    /// Notes that the connection is dead: if a PING after a whole silent interval found that out, the silence was too
    /// long for the network.
    pub(super) fn on_dead(&mut self, now: Instant) {
        if let Some(heartbeat) = self.heartbeat.as_ref().filter(|heartbeat| heartbeat.is_telling()) {
            self.networks.on_dead(heartbeat.bounds(), now);
        }
    }

    /// Asks the gateway for a sign of life at the next [`Self::poll_heartbeat`].
    pub(super) fn probe(&mut self) {
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.probe();
        }
    }

    /// Notes whether a person looks at the application.
    pub(super) fn set_attention(&mut self, now: Instant, attention: Attention) {
        self.networks.attend(attention);
        self.tune(now);
    }

    /// Notes that the device is on another network, and probes the connection.
    pub(super) fn set_network(&mut self, now: Instant, network: NetworkId) {
        self.networks.enter(network);
        self.tune(now);
        self.probe();
    }

    /// Ends the heartbeats.
    pub(super) fn stop_heartbeat(&mut self) {
        self.heartbeat = None;
    }

    /// Forgets everything of a connection that is gone; what is known of networks stays.
    pub(super) fn reset(&mut self) {
        self.decoder = Decoder::new();
        self.heartbeat = None;
    }

    /// Time of the next heartbeat; `None`: not logged in.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.heartbeat.as_ref().map(Heartbeat::deadline)
    }

    /// Beats as what is known of the network allows.
    fn tune(&mut self, now: Instant) {
        if let Some(heartbeat) = &mut self.heartbeat {
            let interval = self.networks.interval(heartbeat.bounds(), now);
            heartbeat.set_interval(interval, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;

    fn at(secs: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(secs)
    }

    fn commands(outputs: &mut Outputs) -> Vec<Command> {
        let (mut transport, mut out) = (Transport::new(), BytesMut::new());
        outputs.poll_transmit(0, &mut out);
        let mut received = Received::new(out.freeze());
        let frames = std::iter::from_fn(|| transport.poll_frame(&mut received).expect("lawful"));
        frames.map(|frame| frame.header.command).collect()
    }

    #[test]
    fn a_silent_gateway_is_pinged_and_then_given_up() {
        let (mut transport, mut outputs) = (Transport::new(), Outputs::default());
        assert_eq!((transport.deadline(), transport.poll_heartbeat(at(9), &mut outputs)), (None, Ok(())));
        let (welcome, patience) = (Welcome::default(), Duration::from_secs(5));
        transport.on_welcome(at(0), &welcome, patience, &mut Random::new(1));
        let beat = transport.deadline().expect("a heartbeat");
        assert_eq!(transport.poll_heartbeat(beat, &mut outputs), Ok(()));
        assert_eq!(commands(&mut outputs), [Command::Ping]);
        assert_eq!(transport.deadline(), Some(beat + patience));
        let dead = transport.poll_heartbeat(beat + patience, &mut outputs);
        assert_eq!(dead, Err(Lost::HeartbeatTimeout));
        transport.reset();
        assert_eq!(transport.deadline(), None);
    }

    #[test]
    fn another_network_is_probed_at_once() {
        let (mut transport, mut outputs) = (Transport::new(), Outputs::default());
        transport.on_welcome(at(0), &Welcome::default(), Duration::from_secs(5), &mut Random::new(1));
        transport.set_network(at(1), NetworkId(2));
        assert_eq!(transport.poll_heartbeat(at(1), &mut outputs), Ok(()));
        assert_eq!(commands(&mut outputs), [Command::Ping]);
        transport.on_received(at(2));
        assert!(transport.deadline() > Some(at(7)), "the answer ends the wait");
    }

    #[test]
    fn half_a_frame_waits_for_its_rest() {
        let (mut transport, mut outputs, mut out) = (Transport::new(), Outputs::default(), BytesMut::new());
        transport.say_goodbye(at(0), &mut outputs);
        outputs.poll_transmit(0, &mut out);
        let (half, mut bytes) = (out.len() / 2, out.freeze());
        let mut first = Received::new(bytes.split_to(half));
        assert_eq!(transport.poll_frame(&mut first).expect("lawful"), None);
        let frame = transport.poll_frame(&mut Received::new(bytes)).expect("lawful").expect("whole");
        assert_eq!(frame.header.command, Command::Close);
    }
}
