//! Reaction of a device to a push: it checks, keeps and pulls.

use super::*;
use moorline_proto::message::client::Notify;
use moorline_proto::message::im::{ConversationsRequest, ConversationsResponse, PullRequest, PullResponse};

impl<S: Store> World<S> {
    /// Puts what was pushed into the queues.
    pub(super) fn sort_pushes(&mut self) {
        self.bench.fan_out();
        self.has_replaced |= self.bench.im().status().replaced > 0;
        for pushed in self.bench.pushes() {
            let to = self.devices.iter_mut().find(|it| it.session == Some(pushed.session));
            to.expect("pushes go to live sessions").queue.push_back(pushed);
        }
    }

    /// Reaction of a client to a push.
    pub(super) fn take(&mut self, device: usize, session: SessionId, pushed: &Pushed) {
        let own = uid(device / DEVICES);
        let (conversation, from, through) = if pushed.command == Command::Notify {
            assert!(!self.is_lossless || self.has_replaced, "nothing was dropped");
            let notify: Notify = decode(&pushed.body).expect("a Notify");
            (notify.conversation, notify.first.max(1), notify.latest)
        } else {
            let push = pushed.push();
            if push.seq == 0 {
                return self.take_happened(device, session, &push);
            }
            let empty = BTreeSet::new();
            let owed = self.expected[device / DEVICES].get(&push.conversation).unwrap_or(&empty);
            let is_it = |sent: &Sent| {
                sent.is_erased && sent.conversation == push.conversation && sent.seq == push.seq
            };
            let was_owed = || self.sent.iter().any(is_it);
            assert!(owed.contains(&push.seq) || was_owed(), "only what is for this user");
            let has = self.devices[device].has.get(&push.conversation).unwrap_or(&empty);
            let kept = self.first_kept(device / DEVICES, &push.conversation)..push.seq.max(1);
            let kept = kept.start.min(kept.end)..kept.end;
            let hole = owed.range(kept).find(|seq| !has.contains(seq)).copied();
            let is_new_membership = push.conversation == GROUP && self.has_left.contains(&(device / DEVICES));
            let may_miss = !self.is_lossless || self.has_replaced || is_new_membership;
            assert!(may_miss || hole.is_none(), "{} came before {hole:?}", push.seq);
            self.devices[device].on_message(&push);
            if hole.is_none() {
                return;
            }
            (push.conversation, 1, push.seq)
        };
        let request = PullRequest { conversation, from, to: through, ..Default::default() };
        match self.bench.req::<PullResponse>(session, "im.pull", &request) {
            Ok(page) => {
                assert!(!page.more);
                page.messages.iter().for_each(|push| self.devices[device].on_message(push));
            }
            Err(code) => {
                let is_out = matches!(code, Code::NotMember | Code::NotFound);
                assert!(is_out && self.has_left.contains(&(device / DEVICES)), "{own}: {code:?}");
            }
        }
    }

    fn take_happened(&mut self, device: usize, session: SessionId, push: &Push) {
        let happened: Happened = decode(&push.happened).expect("a Happened");
        match happened.what.expect("something") {
            What::Read(read) => self.devices[device].on_read(&push.conversation, &read.user, read.seq),
            What::Resync(_) => {
                assert!(!self.is_lossless || self.has_replaced, "nothing was dropped");
                let listed = self.list(session);
                listed.iter().for_each(|it| self.devices[device].on_listed(&uid(device / DEVICES), it));
            }
            What::Group(_) | What::ReadCounts(_) | What::Dissolved(_) | What::Cleared(_) => {}
            other => panic!("nobody did that: {other:?}"),
        }
    }

    pub(super) fn list(&mut self, session: SessionId) -> Vec<Conversation> {
        let request = ConversationsRequest::default();
        let answer: ConversationsResponse =
            self.bench.req(session, "im.conversations", &request).expect("listed");
        answer.conversations
    }
}
