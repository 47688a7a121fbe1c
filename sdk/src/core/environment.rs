//! Environment of the application: the rooms that it is in, the network of the device, the person before it.
//!
//! Example: the device goes from Wi-Fi to a cell network. [`Core::network_changed`] probes the connection at once, and
//! beats at the interval that this cell network is known to allow.

use super::Core;
use super::connection_state::Ending;
use super::frames::SIGNAL;
use super::networks::NetworkId;
use bytes::Bytes;
use moorline_proto::keepalive::Attention;
use moorline_proto::message::encode;
use moorline_proto::message::im::Signal;
use moorline_proto::time::Instant;

impl Core {
    /// Enters a room [P-2.5], now or when logged in, and again with each new session, until
    /// [`Core::leave_room`]. [`RoomEntered`](super::Notice::RoomEntered) or
    /// [`RoomRefused`](super::Notice::RoomRefused) follows. False: 256 are wanted, or the name has more than 192 bytes.
    pub fn enter_room(&mut self, now: Instant, room: &str) -> bool {
        let is_taken = self.rooms.enter(now, room);
        self.pump(now);
        is_taken
    }

    /// Leaves a room.
    pub fn leave_room(&mut self, now: Instant, room: &str) {
        if let Some(frame) = self.rooms.leave(room)
            && self.connection.is_logged_in()
        {
            self.transport.send(now, frame, &mut self.outputs);
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
        self.transport.set_attention(now, attention);
    }

    /// Tells that the device is on another network, or has slept on the same one (`None`): a core that waits connects
    /// now, a connected one probes the connection. The core's knowledge of the network decides how often to beat.
    pub fn network_changed(&mut self, now: Instant, network: Option<NetworkId>) {
        match network {
            Some(network) => self.transport.set_network(now, network),
            None => self.transport.probe(),
        }
        self.connection.on_network_changed(now);
        if let Err(why) = self.transport.poll_heartbeat(now, &mut self.outputs) {
            self.end(now, Ending::lost(why));
        }
    }
}
