//! State of a core that outlives its process: cursors of conversations, and sends without a result.
//!
//! Example: a laptop restarts after alice has read up to seq 7 and sent `hi` offline. The driver stores
//! [`Core::cursor`] and each send; the next process gives them to [`Core::restore`] and [`Core::restore_send`] before
//! its first login.

use super::Core;
use super::event::{ConversationCursor, SendId, SendRefused, Target};
use bytes::Bytes;
use moorline_proto::frame::BODY_BYTES_CEILING;
use moorline_proto::ids::MessageKey;
use moorline_proto::message::client::SendAck;
use moorline_proto::time::Instant;

impl Core {
    /// Restores the cursor of an earlier run in a conversation. Before the first login; false:
    /// `conversations_max` are followed.
    pub fn restore(&mut self, conversation: &str, cursor: ConversationCursor) -> bool {
        self.inbox.restore(conversation, cursor)
    }

    /// Cursor of the application in a conversation; `None`: the conversation is not followed.
    pub fn cursor(&self, conversation: &str) -> Option<ConversationCursor> {
        self.inbox.cursor(conversation)
    }

    /// Notes that a request of the core itself took this seq of a conversation: nothing will be pushed there.
    pub fn on_own_place(&mut self, now: Instant, conversation: &str, seq: u64) {
        if self.connection.is_closed() {
            return; // nothing follows Closed, and a message that waits behind this place would
        }
        let ack = SendAck { conversation: conversation.to_owned(), seq, ..SendAck::default() };
        self.inbox.handle_own(now, &ack, &mut self.outputs);
    }

    /// Takes a message that an earlier run of this device had taken and not sent. Gateways have different limits on the
    /// size, so a message that is too large for this one fails when it is sent.
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
        if self.connection.is_closing() {
            return Err(SendRefused::Closed);
        }
        self.outbox.judge(&self.outbox.entry(key, target, kind, payload), self.uplink.body_max)
    }
}
