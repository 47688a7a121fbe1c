//! Relations, profiles, devices.

use super::{AfterRead, Answer, Asked, Requests, Step, Then, fill};
use crate::im::quotas::Quota;
use crate::im::refusal::{Refused, refuse};
use crate::im::store::{Facts, Friendship, Read, Relation, UserId, Write};
use crate::server::Kick;
use bytes::Bytes;
use moorline_proto::error::CloseReason;
use moorline_proto::message::client::Code;
use moorline_proto::message::{encode, im};
use prost::Message;

/// Longest text of a request to be friends, in bytes.
const TEXT_BYTES_MAX: usize = 256;
/// Longest parts of a profile, in bytes.
const NAME_BYTES_MAX: usize = 256;
const AVATAR_BYTES_MAX: usize = 1 << 10;
const EXTRA_BYTES_MAX: usize = 4 << 10;
/// Profiles of one question.
const PROFILES_MAX: usize = 100;

/// Kick of the logins of a removed device.
pub(in crate::im) static REMOVED: Kick = Kick {
    code: CloseReason::Kicked.code(),
    may_reconnect: false,
    reason: "The user has removed this device.",
};
/// Kick of the logins of a device that has removed itself.
pub(in crate::im) static SIGNED_OUT: Kick =
    Kick { code: CloseReason::Kicked.code(), may_reconnect: false, reason: "This device has signed out." };

impl<F: Facts> Requests<'_, F> {
    pub(super) fn relate(&mut self, asked: &Asked, request: im::RelationRequest) -> Result<Step, Refused> {
        let change = im::RelationChange::try_from(request.change)
            .map_err(|_| refuse(Code::Invalid, "`change` is not a known change of a relation"))?;
        if request.text.len() > TEXT_BYTES_MAX {
            return Err(refuse(Code::TooLarge, "`text` has more than 256 bytes"));
        }
        let other = self.named(asked, "user", std::slice::from_ref(&request.user))?[0];
        let is_new = self.facts.relation(asked.origin.0, other).friendship == Friendship::None;
        if change == im::RelationChange::Befriend && is_new {
            let bytes = request.text.len() as u64;
            self.charge(asked, &[(Quota::Relations, 1), (Quota::Bytes, bytes)])?;
        }
        let (by, change_code) = (asked.uid().to_owned(), request.change);
        let what = im::happened::What::Relation(im::RelationChanged {
            by,
            user: request.user.clone(),
            change: change_code,
            text: request.text,
        });
        let (_, event) = self.encode_happened(asked, "", what);
        let write = Write::Relate { by: asked.origin, other, change, event: event.freeze() };
        Ok(Step::Write(write, Then::Related(other, request.user)))
    }

    /// Answers a change of a relation with the relation of `user` to `other`.
    pub(in crate::im) fn relation_answer(&self, user: UserId, other: UserId, uid: String) -> Bytes {
        let relation = relation_message(uid, self.facts.relation(user, other));
        encode(&im::RelationResponse { relation: Some(relation) })
    }

    pub(super) fn relations(&self, asked: &Asked, request: &im::RelationsRequest) -> Step {
        let all = self.facts.relations(asked.origin.0).into_iter();
        let named = all.map(|(other, relation)| (self.facts.uid(other), relation));
        let mut all: Vec<_> = named.filter(|(uid, _)| *uid > &*request.after).collect();
        all.sort_unstable_by_key(|(uid, _)| *uid);
        let entries = all.into_iter().map(|(uid, relation)| relation_message(uid.to_owned(), relation));
        let (relations, more) = fill(self.answer_bytes_max(), entries);
        Step::Answer(encode(&im::RelationsResponse { relations, more }))
    }

    pub(super) fn profiles_answer(&self, profiles: Vec<Bytes>) -> Answer {
        let profiles = profiles.into_iter().filter_map(|profile| im::Profile::decode(profile).ok());
        let (profiles, is_cut) = fill(self.answer_bytes_max(), profiles);
        if is_cut {
            return Err(refuse(
                Code::TooLarge,
                "these profiles do not fit in one answer; ask for fewer users",
            ));
        }
        Ok(encode(&im::ProfileGetResponse { profiles }))
    }

    pub(super) fn devices(&self, asked: &Asked) -> Step {
        let (user, _) = asked.origin;
        let is_online =
            |number| self.sessions.of(user).any(|session| session.owner() == Some((user, number)));
        let devices = self.facts.devices(user).into_iter().map(|device| im::Device {
            is_online: is_online(device.number),
            device: device.name,
            platform: device.platform,
            seen_ms: device.seen_ms,
        });
        Step::Answer(encode(&im::DevicesResponse { devices: devices.collect() }))
    }

    pub(super) fn remove_device(&self, asked: &Asked, request: &im::DeviceRemoveRequest) -> Step {
        let (user, _) = asked.origin;
        let devices = self.facts.devices(user);
        let Some(device) = devices.iter().find(|device| device.name == request.device) else {
            return Step::Answer(Bytes::new()); // done before, perhaps
        };
        let write = Write::RemoveDevice { user, device: device.number };
        if device.number == asked.origin.1 {
            // The device signs out: the answer has to reach it before its login ends.
            return Step::Write(write, Then::SignedOut);
        }
        let owner = Some((user, device.number));
        let theirs = self.sessions.of(user).filter(|it| it.owner() == owner).map(|it| it.id);
        Step::EndLogins(theirs.collect(), write)
    }

    pub(super) fn set_profile(
        &mut self,
        asked: &Asked,
        request: im::ProfileSetRequest,
    ) -> Result<Step, Refused> {
        let profile = request.profile.unwrap_or_default();
        if profile.name.len() > NAME_BYTES_MAX
            || profile.avatar.len() > AVATAR_BYTES_MAX
            || profile.extra.len() > EXTRA_BYTES_MAX
        {
            return Err(refuse(
                Code::TooLarge,
                "`name` has more than 256 bytes, `avatar` more than 1 KiB, or `extra` more than 4 KiB",
            ));
        }
        let (user, _) = asked.origin;
        let profile = encode(&im::Profile { user: asked.uid().to_owned(), ..profile });
        self.charge(asked, &[(Quota::Bytes, profile.len() as u64)])?;
        Ok(Step::Write(Write::SetProfile { user, profile }, Then::Answer(Bytes::new())))
    }

    pub(super) fn settings(&self, asked: &Asked) -> Step {
        let (user, _) = asked.origin;
        let settings = im::UserSettings { who_may_add: self.facts.who_may_add(user).into() };
        let invitations = self.facts.invitations(user).into_iter().map(|group| self.facts.id(group));
        let (settings, invitations) = (Some(settings), invitations.collect());
        Step::Answer(encode(&im::SettingsGetResponse { settings, invitations }))
    }
}

pub(super) fn set_settings(asked: &Asked, request: im::SettingsSetRequest) -> Result<Step, Refused> {
    let who_may_add = request.settings.unwrap_or_default().who_may_add;
    let who_may_add = im::WhoMayAdd::try_from(who_may_add)
        .map_err(|_| refuse(Code::Invalid, "`who_may_add` is not a known rule"))?;
    let write = Write::SetSettings { user: asked.origin.0, who_may_add };
    Ok(Step::Write(write, Then::Answer(Bytes::new())))
}

pub(super) fn profiles(request: im::ProfileGetRequest) -> Result<Step, Refused> {
    if request.users.len() > PROFILES_MAX {
        return Err(refuse(Code::TooLarge, "`users` names more than 100 users"));
    }
    Ok(Step::Read(Read::Profiles { uids: request.users }, AfterRead::Profiles))
}

fn relation_message(user: String, relation: Relation) -> im::Relation {
    im::Relation { user, friendship: relation.friendship.into(), is_blocked: relation.is_blocked }
}
