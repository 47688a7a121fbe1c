//! The threaded client: a [`Core`] with a thread and a socket of its own.
//!
//! ```no_run
//! # use moorline_sdk::client::Client;
//! # use moorline_sdk::core::Target;
//! # use moorline_sdk::Platform;
//! # use std::time::Duration;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let im = Client::builder("tcp://127.0.0.1:7000")
//!     .user("alice")
//!     .device("laptop", Platform::Linux)
//!     .token_provider(|why| std::fs::read_to_string("token").ok())
//!     .build()?;
//! let sent = im.send(Target::user("bob"), 1, "hi")?; // taken at once, survives reconnects
//! let receipt = sent.wait_durable(Duration::from_secs(10))?;
//! while let Ok(message) = im.recv_timeout(Duration::from_secs(60)) {
//!     println!("{}: {:?}", message.sender, message.payload);
//! } // each message is acked when it is dropped
//! # Ok(()) }
//! ```
//!
//! `tls://host:port` is the address of a gateway on another machine, and `tcp://` one on this machine: a token and messages
//! cross no network unprotected. TLS is 1.3; the gateway's certificate must come from an authority that the platform trusts,
//! or that the application has given, and must be valid for the host, also after a gateway has sent the client elsewhere.
//! A gateway that is not proved is told as [`Lost::Tls`](crate::core::Lost::Tls) with the fault, and tried again.
//!
//! ```no_run
//! # use moorline_sdk::client::Client;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let im = Client::builder("tls://gw.example:7443")
//!     .roots_pem(&std::fs::read("our-ca.pem")?) // the platform's authorities without it
//!     .user("alice")
//!     .build()?;
//! # Ok(()) }
//! ```
//!
//! It reconnects by itself, for ever, unless the gateway forbids it; a restart of the gateway shows
//! at most as a pause. Every method may be called from any thread.

mod alarm;
mod builder;
mod calls;
mod clock;
mod dispatch;
mod driver;
mod endpoint;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod jobs;
mod jwt;
mod keeper;
mod outcome;
mod pending;
mod shared;
mod socket;
mod tls;
mod token;

pub use crate::core::Notice;
pub use builder::{BuildError, ClientBuilder};
pub use pending::{Pending, SendError};
pub use shared::Incoming;
pub use tls::TlsSetupError;

use crate::core::{
    ClosedWhy, Core, Message, NetworkId, Repeat, RequestError, RequestRefused, SendRefused, Target, TokenWhy,
};
use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use moorline_proto::ids::MessageKey;
use moorline_proto::keepalive::Attention;
use moorline_proto::time::Instant;
use outcome::Outcome;
use shared::Shared;
use std::borrow::Cow;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

type TokenProvider = Box<dyn FnMut(TokenWhy) -> Option<String> + Send>;

/// No message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecvError {
    /// There was no result within the time.
    #[error("no message within the time")]
    TimedOut,
    /// There will never be a result.
    #[error("the client is closed")]
    Closed,
    /// Messages go to the handler that was given to the builder.
    #[error("messages go to the handler; build the client without on_message to receive them")]
    HasHandler,
}

/// A request that brought no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The request was not sent.
    #[error(transparent)]
    NotAsked(#[from] RequestRefused),
    /// The request was sent.
    #[error(transparent)]
    Failed(#[from] RequestError),
    /// The backend's answer is not what the method promises.
    #[error("the answer to {method} cannot be read; is this the IM backend?")]
    BadAnswer {
        /// The method of the request.
        method: &'static str,
    },
}

/// A logged-in device. Dropping it says goodbye, and waits at most [`ClientBuilder::linger`] until the last bytes have
/// left and as long again until the store is written; and for the message handler, if it is at work.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    messages: Option<Receiver<Message>>,
    notices: Receiver<Notice>,
    /// Own thread, and the handler's thread.
    threads: Vec<JoinHandle<()>>,
    me: Arc<str>,
    device: Arc<str>,
    restored: Vec<Pending>,
    linger: Duration,
}

impl Client {
    /// A client of the gateway at `tls://host:port`, or on this machine at `tcp://host:port`. Without a scheme: TLS.
    pub fn builder(endpoint: &str) -> ClientBuilder {
        ClientBuilder::new(endpoint)
    }

    /// Takes a message; works offline. Messages of one conversation are stored in the order of the
    /// calls. `kind` is the application's content type.
    ///
    /// # Errors
    /// [`SendRefused`]: it was not taken.
    pub fn send(&self, target: Target, kind: u32, payload: impl Into<Bytes>) -> Result<Pending, SendRefused> {
        self.shared.send(None, target, kind, payload.into())
    }

    /// Sends with the caller's key: a message sent twice with one key is stored once.
    ///
    /// # Errors
    /// [`SendRefused`]: it was not taken.
    pub fn send_with_key(
        &self,
        key: MessageKey,
        target: Target,
        kind: u32,
        payload: impl Into<Bytes>,
    ) -> Result<Pending, SendRefused> {
        self.shared.send(Some(key), target, kind, payload.into())
    }

    /// Messages that earlier runs of the application sent without a result, in that order; this client sends them.
    pub fn restored(&self) -> &[Pending] {
        &self.restored
    }

    /// The next message. It is acked when the [`Incoming`] is dropped; until then the gateway keeps
    /// it for the next login.
    ///
    /// # Errors
    /// [`RecvError`].
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Incoming, RecvError> {
        let messages = self.messages.as_ref().ok_or(RecvError::HasHandler)?;
        match messages.recv_timeout(timeout) {
            Ok(message) => Ok(Incoming::new(message, Arc::clone(&self.shared))),
            Err(RecvTimeoutError::Timeout) => Err(RecvError::TimedOut),
            Err(RecvTimeoutError::Disconnected) => Err(RecvError::Closed),
        }
    }

    /// Events beside messages and results; the newest 256 are kept for the reader.
    pub const fn notices(&self) -> &Receiver<Notice> {
        &self.notices
    }

    /// Asks the backend and waits for the answer, offline times included.
    ///
    /// # Errors
    /// [`CallError`], by `timeout` at the latest.
    pub fn request(
        &self,
        method: impl Into<Cow<'static, str>>,
        payload: Bytes,
        repeat: Repeat,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        let (mut hub, now) = self.shared.hub();
        let id = hub.core.request(now, method, payload, repeat, timeout)?;
        let outcome = Outcome::new();
        hub.requests.insert(id, Arc::clone(&outcome));
        drop(hub);
        self.shared.wake();
        // The core gives every request a result in time, and the end of the client gives the rest.
        Ok(outcome.wait_for_ever()?)
    }

    /// The user.
    pub fn me(&self) -> &str {
        &self.me
    }

    /// True while the client is logged in.
    pub fn is_logged_in(&self) -> bool {
        self.shared.hub().0.core.is_logged_in()
    }

    /// A hint that the network is another one, so that the client need not find out by waiting. What
    /// was learned of `network` before decides how often to beat there.
    pub fn network_changed(&self, network: NetworkId) {
        self.with_core(|core, now| core.network_changed(now, Some(network)));
    }

    /// Tells whether a person looks at the application: in the background heartbeats become as rare as the
    /// network allows.
    pub fn foreground(&self, is_foreground: bool) {
        let attention = if is_foreground { Attention::Foreground } else { Attention::Background };
        self.with_core(|core, now| core.set_attention(now, attention));
    }

    /// Enters a room, and again with each new session. False: 256 are wanted already, or the name has more than 192
    /// bytes.
    pub fn enter_room(&self, room: &str) -> bool {
        self.with_core(|core, now| core.enter_room(now, room))
    }

    /// Leaves a room.
    pub fn leave_room(&self, room: &str) {
        self.with_core(|core, now| core.leave_room(now, room));
    }

    /// Signals something that is true only now to everybody in the room of a conversation, at most once.
    /// False: not logged in at this moment.
    pub fn signal(&self, conversation: &str, payload: Bytes) -> bool {
        self.with_core(|core, now| core.try_signal(now, conversation, payload))
    }

    fn with_core<T>(&self, act: impl FnOnce(&mut Core, Instant) -> T) -> T {
        let (mut hub, now) = self.shared.hub();
        let result = act(&mut hub.core, now);
        drop(hub);
        self.shared.wake();
        result
    }

    /// Signs the device out: the backend forgets the device, and no message waits for it any more. Then the backend ends
    /// the login, and the client closes.
    ///
    /// # Errors
    /// [`CallError`]: the device may still be known.
    pub fn sign_out(self, timeout: Duration) -> Result<(), CallError> {
        self.remove_device(&self.device, timeout)
    }

    /// Ends the login itself, not only the connection: the gateway forgets the session. Whatever has
    /// no result yet fails. `None`: not done within `timeout`.
    pub fn logout(self, timeout: Duration) -> Option<ClosedWhy> {
        let (mut hub, now) = self.shared.hub();
        hub.core.logout(now);
        drop(hub);
        self.shared.wake();
        self.shared.closed.wait(timeout)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let (mut hub, now) = self.shared.hub();
        hub.core.close(now);
        drop(hub);
        self.shared.wake();
        let own = std::thread::current().id(); // a handler may be the last one to have the client
        for thread in self.threads.drain(..).filter(|thread| thread.thread().id() != own) {
            let _ = thread.join(); // its panic was printed
        }
        if let Some(keeper) = &self.shared.keeper
            && !keeper.finish(self.linger)
        {
            tracing::warn!("the store is still being written; what is not is sent, or comes, once more");
        }
    }
}
