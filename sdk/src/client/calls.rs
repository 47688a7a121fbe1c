//! The typed calls of the IM backend. All of them are asked again until they are answered, and fail with
//! [`CallError`], by `timeout` at the latest.

use super::{CallError, Client};
use crate::core::Repeat;
use crate::im::{self, Call};
use std::time::Duration;

/// Pages asked for by one call of [`Client::members`] or [`Client::conversations`].
const PAGES_MAX: usize = 1000;

impl Client {
    /// Messages `from` to `to` of a conversation (`to` 0: the newest), at most `limit` (0: a page).
    ///
    /// # Errors
    /// [`CallError`].
    pub fn pull(
        &self,
        conversation: &str,
        from: u64,
        to: u64,
        limit: u32,
        timeout: Duration,
    ) -> Result<im::PullResponse, CallError> {
        self.call(im::pull(conversation, from, to, limit), timeout)
    }

    /// The conversations of this user, joined last first; each page has `timeout`.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn conversations(&self, timeout: Duration) -> Result<Vec<im::Conversation>, CallError> {
        let mut all: Vec<im::Conversation> = Vec::new();
        for _ in 0..PAGES_MAX {
            let after = all.last().map_or_else(String::new, |last| last.id.clone());
            let page: im::ConversationsResponse = self.call(im::conversations(&after), timeout)?;
            all.extend(page.conversations);
            if !page.more {
                break;
            }
        }
        Ok(all)
    }

    /// Marks everything up to `seq` as read by this user: no longer unread here and on the user's other devices, and reported to
    /// the other one of two.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn read(&self, conversation: &str, seq: u64, timeout: Duration) -> Result<(), CallError> {
        self.call::<im::ReadResponse>(im::read(conversation, seq), timeout).map(drop)
    }

    /// Returns who has read a message and who has not, as many names as fit one answer.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn receipts(
        &self,
        conversation: &str,
        seq: u64,
        timeout: Duration,
    ) -> Result<im::ReceiptsResponse, CallError> {
        self.call(im::receipts(conversation, seq), timeout)
    }

    /// Takes a message back, for everybody.
    ///
    /// # Errors
    /// [`CallError`]; DENIED if it is another one's, or too old.
    pub fn recall(
        &self,
        conversation: &str,
        seq: u64,
        message_id: u64,
        timeout: Duration,
    ) -> Result<(), CallError> {
        let answer: im::RecallResponse = self.call(im::recall(conversation, seq, message_id), timeout)?;
        if !answer.by_other_device {
            self.with_core(|core, now| core.on_own_place(now, conversation, answer.seq));
        }
        Ok(())
    }

    /// Makes a group of the caller and `members`; returns its conversation's id.
    ///
    /// # Errors
    /// [`CallError`]; CONFLICT if somebody else made it.
    pub fn create_group(&self, name: &str, members: &[&str], timeout: Duration) -> Result<String, CallError> {
        let answer: im::GroupCreateResponse = self.call(im::create_group(name, members), timeout)?;
        Ok(answer.conversation)
    }

    /// Joins a group.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn join(&self, conversation: &str, timeout: Duration) -> Result<(), CallError> {
        self.call::<im::GroupResponse>(im::join(conversation), timeout).map(drop)
    }

    /// Leaves a group.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn leave(&self, conversation: &str, timeout: Duration) -> Result<(), CallError> {
        self.call::<im::GroupResponse>(im::leave(conversation), timeout).map(drop)
    }

    /// Returns the members of a conversation in the order of their uids; each page has `timeout`.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn members(&self, conversation: &str, timeout: Duration) -> Result<Vec<String>, CallError> {
        let mut all: Vec<String> = Vec::new();
        for _ in 0..PAGES_MAX {
            let after = all.last().cloned().unwrap_or_default();
            let page: im::GroupResponse = self.call(im::members(conversation, &after), timeout)?;
            all.extend(page.members);
            if !page.more {
                break;
            }
        }
        Ok(all)
    }

    /// Returns the settings of a group, and a page of its members with their roles, after the uid `after`.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn group_info(
        &self,
        conversation: &str,
        after: &str,
        timeout: Duration,
    ) -> Result<im::GroupInfoResponse, CallError> {
        self.call(im::group_info(conversation, after), timeout)
    }

    /// Changes a group: members, roles, silence, settings.
    ///
    /// # Errors
    /// [`CallError`]; DENIED if it takes another role.
    pub fn change_group(&self, change: &im::GroupChangeRequest, timeout: Duration) -> Result<(), CallError> {
        self.call::<im::GroupChangeResponse>(im::change_group(change), timeout).map(drop)
    }

    /// Makes something of another user: asks to be friends (or agrees to it), ends it, blocks, unblocks.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn relate(
        &self,
        user: &str,
        change: im::RelationChange,
        text: &str,
        timeout: Duration,
    ) -> Result<im::Relation, CallError> {
        let answer: im::RelationResponse = self.call(im::relation(user, change, text), timeout)?;
        answer.relation.ok_or(CallError::BadAnswer { method: "im.relation" })
    }

    /// Returns this user's relations to others; each page has `timeout`.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn relations(&self, timeout: Duration) -> Result<Vec<im::Relation>, CallError> {
        let mut all: Vec<im::Relation> = Vec::new();
        for _ in 0..PAGES_MAX {
            let after = all.last().map_or_else(String::new, |last| last.user.clone());
            let page: im::RelationsResponse = self.call(im::relations(&after), timeout)?;
            all.extend(page.relations);
            if !page.more {
                break;
            }
        }
        Ok(all)
    }

    /// Replaces this user's profile.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn set_profile(&self, profile: im::Profile, timeout: Duration) -> Result<(), CallError> {
        self.call::<()>(im::set_profile(profile), timeout)
    }

    /// Returns the profiles of those users that have one; at most 100 at once.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn profiles(&self, users: &[&str], timeout: Duration) -> Result<Vec<im::Profile>, CallError> {
        self.call(im::profiles(users), timeout).map(|answer: im::ProfileGetResponse| answer.profiles)
    }

    /// Ends a group that this user owns, with its messages.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn dissolve_group(&self, conversation: &str, timeout: Duration) -> Result<(), CallError> {
        self.call::<im::GroupResponse>(im::dissolve_group(conversation), timeout).map(drop)
    }

    /// Deletes a conversation for this user alone, on all devices, up to `to` (0: the newest).
    ///
    /// # Errors
    /// [`CallError`].
    pub fn delete_conversation(
        &self,
        conversation: &str,
        to: u64,
        timeout: Duration,
    ) -> Result<(), CallError> {
        self.call::<()>(im::delete_conversation(conversation, to), timeout)
    }

    /// Deletes the account of this user, if the operator lets users do that. The login ends behind the answer.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn delete_account(&self, timeout: Duration) -> Result<(), CallError> {
        self.call::<()>(im::delete_account(), timeout)
    }

    /// The devices of this user.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn devices(&self, timeout: Duration) -> Result<Vec<im::Device>, CallError> {
        self.call(im::devices(), timeout).map(|answer: im::DevicesResponse| answer.devices)
    }

    /// Ends the login of a device of this user, and forgets the device. Of this device: see [`Client::sign_out`].
    ///
    /// # Errors
    /// [`CallError`].
    pub fn remove_device(&self, device: &str, timeout: Duration) -> Result<(), CallError> {
        self.call::<()>(im::remove_device(device), timeout)
    }

    /// Returns the presence of at most 100 users at once; with `watch` changes come as messages with
    /// [`ConversationEvent::Presence`](crate::core::ConversationEvent), as long as this login lasts.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn presence(
        &self,
        users: &[&str],
        watch: bool,
        timeout: Duration,
    ) -> Result<Vec<im::Presence>, CallError> {
        self.call(im::presence(users, watch), timeout).map(|answer: im::PresenceResponse| answer.presences)
    }

    fn call<A: prost::Message + Default>(&self, call: Call, timeout: Duration) -> Result<A, CallError> {
        let Call { method, payload } = call;
        let answer = self.request(method, payload, Repeat::UntilAnswered, timeout)?;
        A::decode(answer).map_err(|_| CallError::BadAnswer { method })
    }
}
