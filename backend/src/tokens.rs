//! List of tokens from a file: the smallest way for a backend to judge logins.
//!
//! Each line is `uid token`; a uid may have several tokens, and `#` begins a comment. The file is read at start, and again by a reload.
//! A backend with its own users implements [`Handler::handle_auth`] instead. Example: the line `alice s3cret` admits
//! alice with the token `s3cret`.

use crate::error::BackendError;
use crate::server::{Event, Handler, JudgeTo, NodeSlots, Now, Outbox};
use bytes::Bytes;
use moorline_proto::error::CloseReason;
use moorline_proto::link::LinkAddress;
use moorline_proto::message::backend::Auth;
use moorline_proto::slots::NodeId;
use moorline_proto::time::Instant;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

/// Tokens by uid.
#[derive(Debug, Default)]
pub struct Tokens {
    by_uid: HashMap<String, Vec<String>>,
}

impl Tokens {
    /// Reads a list.
    ///
    /// # Errors
    /// [`BackendError`]: the file cannot be read, or a line of it is not valid.
    pub fn load(path: &Path) -> Result<Self, BackendError> {
        let text = std::fs::read_to_string(path).map_err(|cause| BackendError::ReadConfig {
            what: "tokens_file",
            path: path.to_owned(),
            cause,
        })?;
        let mut tokens = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                [] => {}
                [uid, token] => tokens.by_uid.entry(uid.to_owned()).or_default().push(token.to_owned()),
                _ => {
                    let reason = format!("line {number} of {}: expected `uid token`", path.display());
                    return Err(BackendError::InvalidConfig { key: "tokens_file", reason });
                }
            }
        }
        Ok(tokens)
    }

    /// Returns whether `uid` has this token. A wrong token of the right length takes as long as the right one.
    fn has(&self, uid: &str, token: &str) -> bool {
        let differ = |known: &str| known.bytes().zip(token.bytes()).fold(0, |all, (a, b)| all | (a ^ b)) != 0;
        let is_it = |known: &String| known.len() == token.len() && !differ(known);
        self.by_uid.get(uid).is_some_and(|known| known.iter().any(is_it))
    }
}

/// Handler whose logins are judged by a list of tokens.
#[derive(Debug)]
pub struct Guarded<H> {
    /// Handler of everything but logins.
    pub handler: H,
    /// Tokens that admit a client.
    pub tokens: Arc<RwLock<Arc<Tokens>>>,
}

impl<H: Handler> Handler for Guarded<H> {
    type Message = H::Message;

    fn store_name(&self) -> Bytes {
        self.handler.store_name()
    }

    fn handle(&mut self, now: Now, event: Event, out: &mut Outbox) {
        self.handler.handle(now, event, out);
    }

    fn handle_auth(&mut self, _now: Now, question: Auth, judge: JudgeTo, out: &mut Outbox) {
        let tokens = Arc::clone(&self.tokens.read().unwrap_or_else(PoisonError::into_inner));
        if tokens.has(&question.uid, &question.token) {
            out.admit(judge, &question.uid);
        } else {
            out.refuse(judge, CloseReason::AuthFailed, "the token is not in tokens_file");
        }
    }

    fn handle_message(&mut self, now: Now, message: Self::Message, out: &mut Outbox) {
        self.handler.handle_message(now, message, out);
    }

    fn handle_turn_end(&mut self, now: Now, out: &mut Outbox) {
        self.handler.handle_turn_end(now, out);
    }

    fn poll_slots(&mut self) -> Option<(NodeSlots, Vec<(NodeId, LinkAddress)>)> {
        self.handler.poll_slots()
    }

    fn poll_peer(&mut self) -> Option<(NodeId, Bytes)> {
        self.handler.poll_peer()
    }

    fn next_deadline(&self) -> Instant {
        self.handler.next_deadline()
    }

    fn try_stop(&mut self, now: Now) -> bool {
        self.handler.try_stop(now)
    }

    fn is_over(&self, now: Now) -> bool {
        self.handler.is_over(now)
    }
}
