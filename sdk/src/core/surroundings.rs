//! Environment of the application: rooms, networks, whether a person looks, and the state that an earlier run
//! has left.

use super::event::{SendId, SendRefused, Target};
use super::frames::SIGNAL;
use super::networks::NetworkId;
use super::requests::{Owner, Question};
use super::{Core, Repeat, Standing};
use crate::im::{self, Call};
use bytes::Bytes;
use moorline_proto::frame::BODY_BYTES_CEILING;
use moorline_proto::ids::MessageKey;
use moorline_proto::keepalive::Attention;
use moorline_proto::message::client::SendAck;
use moorline_proto::message::encode;
use moorline_proto::message::im::Signal;
use moorline_proto::time::{Duration, Instant};

/// Time for asking the newest seqs after a session that could not be resumed.
const SYNC_TIMEOUT: Duration = Duration::from_secs(60);

impl Core {
    /// Enters a room [P-2.5], now or when logged in, and again with each new session, until
    /// [`Core::leave_room`]. [`RoomEntered`](super::Event::RoomEntered) or
    /// [`RoomRefused`](super::Event::RoomRefused) follows. False: 256 are wanted.
    pub fn enter_room(&mut self, now: Instant, room: &str) -> bool {
        let is_taken = self.rooms.enter(now, room);
        self.pump(now);
        is_taken
    }

    /// Leaves a room.
    pub fn leave_room(&mut self, now: Instant, room: &str) {
        if let Some(frame) = self.rooms.leave(room)
            && self.line.is_logged_in()
        {
            self.put(now, frame);
        }
    }

    /// Signals something to everybody in the room of a conversation, at most once [P-11.5]; false if not
    /// logged in now.
    pub fn try_signal(&mut self, now: Instant, conversation: &str, payload: Bytes) -> bool {
        let signal = Signal { conversation: conversation.to_owned(), payload, ..Signal::default() };
        self.try_app(now, SIGNAL, encode(&signal))
    }

    /// Tells whether a person looks at the application: in the foreground the core beats at the shortest interval, in
    /// the background as seldom as the network allows [P-7.6].
    pub fn set_attention(&mut self, now: Instant, attention: Attention) {
        self.networks.attend(attention);
        self.tune_pulse(now);
    }

    /// A hint that the network is another one: connect now if waiting, else see whether it still works.
    /// What is known of `network` from before decides how often to beat.
    pub fn network_changed(&mut self, now: Instant, network: NetworkId) {
        self.networks.enter(network);
        self.tune_pulse(now);
        self.line.on_network_changed(now);
        if let Some(pulse) = &mut self.pulse {
            pulse.probe();
            self.on_beat(now);
        }
    }

    /// Beats as what is known of the network allows.
    pub(super) fn tune_pulse(&mut self, now: Instant) {
        if let Some(pulse) = &mut self.pulse {
            let interval = self.networks.interval(pulse.bounds(), now);
            pulse.set_interval(interval, now);
        }
    }

    /// Restores the cursor of an earlier run in a conversation. Before the first login; false:
    /// `conversations_max` are followed.
    pub fn restore(&mut self, conversation: &str, standing: Standing) -> bool {
        self.inbox.restore(conversation, standing)
    }

    /// Cursor of the application in a conversation; `None`: the conversation is not followed.
    pub fn standing(&self, conversation: &str) -> Option<Standing> {
        self.inbox.standing(conversation)
    }

    /// The core's own request took this place of a conversation: nothing will be pushed there.
    pub fn on_own_place(&mut self, now: Instant, conversation: &str, seq: u64) {
        let ack = SendAck { conversation: conversation.to_owned(), seq, ..SendAck::default() };
        self.inbox.handle_own(now, &ack, &mut self.events);
    }

    /// Takes what an earlier life of this device had taken and not sent. Gateways take different sizes, so what this one
    /// takes shows when it is sent.
    ///
    /// # Errors
    /// As [`Core::send`].
    pub fn restore_send(
        &mut self,
        now: Instant,
        key: MessageKey,
        target: Target,
        kind: u32,
        payload: Bytes,
    ) -> Result<SendId, SendRefused> {
        self.take_send(now, key, target, kind, payload, BODY_BYTES_CEILING as usize)
    }

    /// True if [`Core::send_with_key`] would take this message now.
    ///
    /// # Errors
    /// As [`Core::send`].
    pub fn check_send(
        &self,
        key: MessageKey,
        target: Target,
        kind: u32,
        payload: Bytes,
    ) -> Result<(), SendRefused> {
        self.outbox.judge(&self.entry(key, target, kind, payload)?, self.uplink.body_max)
    }

    /// A session could not be resumed: what came meanwhile may be a hole at the end that no push shows.
    pub(super) fn sync(&mut self, now: Instant) {
        if self.inbox.is_following() {
            self.ask_latest(now, "");
        }
    }

    /// Page of the conversations behind this one.
    pub(super) fn ask_latest(&mut self, now: Instant, after: &str) {
        let Call { method, payload } = im::conversations(after);
        let (owner, repeat) = (Owner::Sync, Repeat::UntilAnswered);
        let deadline = now + SYNC_TIMEOUT;
        self.requests.push(now, Question { owner, method: method.into(), payload, deadline, repeat });
    }
}
