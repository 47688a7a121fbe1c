//! Deletions: a group for all of its members, a conversation for one user, the author's account.

use super::{Asked, Requests, Step, Then, peer};
use crate::config::WhoMayDelete;
use crate::im::quotas::Quota;
use crate::im::refusal::{Refused, refuse, refused};
use crate::im::store::{ConversationId, Facts, Refusal, Write};
use bytes::Bytes;
use moorline_proto::message::client::Code;
use moorline_proto::message::im;

impl<F: Facts> Requests<'_, F> {
    pub(super) fn dissolve(&mut self, asked: &Asked, request: &im::GroupRequest) -> Result<Step, Refused> {
        if peer(asked.uid(), &request.conversation)?.is_some() {
            return Err(refused(Refusal::Denied));
        }
        let conversation = self.own_conversation(asked, &request.conversation)?;
        self.charge(asked, &[(Quota::GroupChanges, 1)])?;
        let (write, then) = self.dissolution(asked, conversation, &request.conversation);
        Ok(Step::Write(write, then))
    }

    /// The end of a group whose members are readable.
    pub(in crate::im) fn dissolution(
        &mut self,
        asked: &Asked,
        conversation: ConversationId,
        name: &str,
    ) -> (Write, Then) {
        let members = self.facts.members(conversation, None).map(|member| member.user).collect();
        let what = im::happened::What::Dissolved(im::Dissolved { by: asked.uid().to_owned() });
        let (_, event) = self.encode_happened(asked, name, what);
        let write = Write::Dissolve { conversation, by: asked.origin, event: event.freeze() };
        (write, Then::Left(conversation, members, Bytes::new()))
    }

    pub(super) fn delete_account(&mut self, asked: &Asked) -> Result<Step, Refused> {
        if self.config.who_may_delete == WhoMayDelete::Operator && !asked.is_operator() {
            return Err(refuse(Code::Denied, "only the operator deletes accounts (`im.who_may_delete`)"));
        }
        let write = self.account_deletion(asked)?;
        let others = self.sessions.of(asked.origin.0).filter(|it| Some(it.id) != asked.session);
        Ok(Step::Delete(others.map(|session| session.id).collect(), write))
    }

    /// The deletion of the author.
    ///
    /// # Errors
    /// DENIED: a webhook answers for the user.
    fn account_deletion(&mut self, asked: &Asked) -> Result<Write, Refused> {
        if self.config.webhooks.contains_key(asked.uid()) {
            let reason = "the user is a webhook; remove it from the settings (`im.webhooks`) first";
            return Err(refuse(Code::Denied, reason));
        }
        let what = im::happened::What::Erased(im::Erased { user: asked.uid().to_owned(), to: 0 });
        let (to_id, event) = self.encode_happened(asked, "", what);
        Ok(Write::DeleteUser { user: asked.origin.0, to_id, event: event.freeze() })
    }

    pub(super) fn delete_conversation(
        &mut self,
        asked: &Asked,
        request: &im::ConversationDeleteRequest,
    ) -> Result<Step, Refused> {
        let im::ConversationDeleteRequest { conversation: name, to } = request;
        let conversation = self.own_conversation(asked, name)?;
        let latest = self.facts.latest(conversation);
        let to = if *to == 0 { latest } else { latest.min(*to) };
        let what = im::happened::What::Cleared(im::Cleared { to });
        let (_, event) = self.encode_happened(asked, name, what);
        let write = Write::Clear { conversation, by: asked.origin, to, event: event.freeze() };
        Ok(Step::Write(write, Then::Answer(Bytes::new())))
    }
}
