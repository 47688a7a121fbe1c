//! Puts [`Im`] on a server.

use super::Im;
use super::store::Store;
use crate::server::{Event, Handler, Now, Outbox};

/// The IM backend as a [`Handler`].
///
/// A store that commits on another thread sends an [`ImHandler::Message`](Handler::Message) through
/// its [`crate::server::Remote`] whenever something has become durable.
#[derive(Debug)]
pub struct ImHandler<S> {
    im: Im<S>,
}

impl<S: Store> ImHandler<S> {
    /// Serves `im`.
    pub fn new(im: Im<S>) -> Self {
        Self { im }
    }
}

impl<S: Store> Handler for ImHandler<S> {
    /// Something is durable: look.
    type Message = ();

    fn handle(&mut self, now: Now, event: Event, out: &mut Outbox) {
        self.im.handle(now, event, out);
    }

    fn handle_message(&mut self, _now: Now, (): (), out: &mut Outbox) {
        self.im.handle_committed(out);
    }

    fn handle_turn_end(&mut self, now: Now, out: &mut Outbox) {
        self.im.handle_turn_end(now, out);
    }
}
