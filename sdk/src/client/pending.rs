//! A message on its way.

use super::outcome::SendOutcome;
use crate::core::{Receipt, SendFailure, SendId};
use moorline_proto::ids::MessageKey;
use std::sync::Arc;
use std::time::Duration;

/// A message that was taken and has, or will have, exactly one result.
///
/// Dropping it changes nothing: the message is still delivered.
#[derive(Clone, Debug)]
pub struct Pending {
    pub(super) id: SendId,
    pub(super) key: MessageKey,
    pub(super) outcome: Arc<SendOutcome>,
}

/// Reason why there is no receipt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Not yet: the client goes on trying; wait again.
    #[error("the message is not durable yet; it is still being sent")]
    NotYet,
    /// Never: this was its final result.
    #[error(transparent)]
    Failed(#[from] SendFailure),
}

impl Pending {
    /// The client's name of the message.
    pub const fn id(&self) -> SendId {
        self.id
    }

    /// The key under which the message is stored once.
    pub const fn key(&self) -> MessageKey {
        self.key
    }

    /// Waits until the message is durable.
    ///
    /// # Errors
    /// [`SendError::NotYet`] after `timeout`; anything else is final.
    pub fn wait_durable(&self, timeout: Duration) -> Result<Receipt, SendError> {
        Ok(self.outcome.wait(timeout).ok_or(SendError::NotYet)??)
    }

    /// The result, if there is one.
    pub fn result(&self) -> Option<Result<Receipt, SendFailure>> {
        self.outcome.get()
    }
}
