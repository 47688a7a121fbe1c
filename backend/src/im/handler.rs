//! Puts [`Im`] on a server.

use super::store::Store;
use super::{ApiCall, ApiReply, Im, WebhookCall, WebhookResult};
use crate::cluster::cell::{CellResult, RequestId};
use crate::server::{Event, Handler, JudgeTo, Now, Outbox};
use bytes::Bytes;
use moorline_proto::error::CloseReason;
use moorline_proto::message::backend::Auth;
use moorline_proto::time::{Duration, Instant};
use std::fmt;

/// Time that a store without writes still answers reads, before it is opened again.
const BROKEN_FOR: Duration = Duration::from_secs(5);

/// The IM backend as a [`Handler`].
pub struct ImHandler<S> {
    im: Im<S>,
    /// Takes deliveries of webhooks; [`BackendMessage::Webhook`] brings their results.
    call: Box<dyn FnMut(WebhookCall)>,
    /// Judge of logins; `None`: every login is refused.
    judge: Option<Box<Judge>>,
    broken_since: Option<Instant>,
}

/// Judges a login at once, or later by [`BackendMessage::Judged`].
pub type Judge = dyn FnMut(Now, Auth, JudgeTo) -> Option<(JudgeTo, Judgement)>;

/// Judgement about a login (`auth.mode = "backend"`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The client is this user.
    Admitted {
        /// Name of the user.
        uid: String,
        /// Time of the token's issue, in Unix seconds; 0: not known.
        issued_s: u64,
        /// Expiry of the token, in Unix seconds; 0: it does not expire.
        expires_s: u64,
    },
    /// The client is refused, for this reason.
    Refused(String),
    /// Nobody could judge, for this reason: the client comes back.
    Unavailable(&'static str),
}

impl Judgement {
    fn perform(self, judge: JudgeTo, out: &mut Outbox) {
        match self {
            Self::Admitted { uid, issued_s, expires_s } => out.admit_until(judge, &uid, issued_s, expires_s),
            Self::Refused(reason) => out.refuse(judge, CloseReason::AuthFailed, &reason),
            Self::Unavailable(reason) => out.refuse(judge, CloseReason::Unavailable, reason),
        }
    }
}

/// Messages from other threads, through [`crate::server::Remote`].
#[derive(Debug)]
pub enum BackendMessage {
    /// The free bytes of the disk of `im.folder` were read; `None`: they cannot be.
    FreeDisk(Option<u64>),
    /// The store has made something durable: look.
    Committed,
    /// Result of a webhook's delivery.
    Webhook(usize, WebhookResult),
    /// A login was judged.
    Judged(JudgeTo, Judgement),
    /// The server API asks.
    Api(ApiCall, ApiReply),
    /// A cell of a cluster has answered a request, or has not. For the handler of a node alone.
    Cell(RequestId, Box<CellResult>),
}

impl<S: Store> ImHandler<S> {
    /// Serves `im`; `call` takes deliveries of webhooks.
    pub fn new(im: Im<S>, call: impl FnMut(WebhookCall) + 'static) -> Self {
        Self { im, call: Box::new(call), judge: None, broken_since: None }
    }

    /// Has `judge` judge logins.
    #[must_use]
    pub fn with_judge(
        self,
        judge: impl FnMut(Now, Auth, JudgeTo) -> Option<(JudgeTo, Judgement)> + 'static,
    ) -> Self {
        Self { judge: Some(Box::new(judge)), ..self }
    }

    /// The backend's logic, for a driver of its store.
    pub(crate) const fn im(&self) -> &Im<S> {
        &self.im
    }

    /// See [`Self::im`].
    pub(crate) const fn im_mut(&mut self) -> &mut Im<S> {
        &mut self.im
    }

    /// Performs all outputs on the link.
    fn perform(&mut self, out: &mut Outbox) {
        while let Some(output) = self.im.poll_output() {
            if let Some(sessions) = output.perform(out, &mut self.call) {
                self.im.reuse(sessions);
            }
        }
    }
}

impl<S> fmt::Debug for ImHandler<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImHandler").finish_non_exhaustive()
    }
}

impl<S: Store> Handler for ImHandler<S> {
    type Message = BackendMessage;

    fn store_name(&self) -> Bytes {
        self.im.store().name()
    }

    fn handle(&mut self, now: Now, event: Event, out: &mut Outbox) {
        self.im.handle(now, event);
        self.perform(out);
    }

    fn handle_auth(&mut self, now: Now, question: Auth, judge: JudgeTo, out: &mut Outbox) {
        let Some(ask) = &mut self.judge else {
            return out.refuse(judge, CloseReason::AuthFailed, "this backend checks no tokens");
        };
        if let Some((judge, judgement)) = ask(now, question, judge) {
            judgement.perform(judge, out);
        }
    }

    fn handle_message(&mut self, now: Now, order: BackendMessage, out: &mut Outbox) {
        match order {
            BackendMessage::Committed => self.im.handle_committed(),
            BackendMessage::FreeDisk(free) => self.im.handle_free_disk(free),
            BackendMessage::Webhook(webhook, result) => self.im.handle_webhook(now, webhook, result),
            BackendMessage::Judged(judge, judgement) => judgement.perform(judge, out),
            BackendMessage::Api(call, reply) => self.im.handle_api(now, call, reply),
            BackendMessage::Cell(..) => {}
        }
        self.perform(out);
    }

    fn handle_turn_end(&mut self, now: Now, out: &mut Outbox) {
        self.im.handle_turn_end(now);
        self.perform(out);
        if self.im.store().is_broken() {
            self.broken_since.get_or_insert(now.instant);
        }
    }

    fn is_over(&self, now: Now) -> bool {
        self.broken_since.is_some_and(|since| now.instant >= since + BROKEN_FOR)
    }
}
