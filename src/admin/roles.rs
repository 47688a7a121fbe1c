//! Rights of visitors: by the credentials of the process that connected, not by its being able to connect.

use moorline_net::http::Peer;
use nix::unistd::{Gid, Uid, User, geteuid, getgrouplist};
use std::ffi::CString;

/// Rights of a visitor. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// Health and metrics.
    Anybody,
    /// Reads everything, drains and undrains (`admin.group`).
    Group,
    /// Gives every order: root, and the gateway's own user.
    Operator,
}

/// Judges visitors of the Unix socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Roles {
    own: Uid,
    /// `admin.group`; `None`: no group.
    group: Option<Gid>,
}

impl Roles {
    pub(super) fn new(group: Option<Gid>) -> Self {
        Self { own: geteuid(), group }
    }

    pub(super) fn of(&self, peer: Peer) -> Role {
        let Peer::User { uid, gid, .. } = peer else { return Role::Anybody };
        let uid = Uid::from_raw(uid);
        if uid.is_root() || uid == self.own {
            Role::Operator
        } else if self.group.is_some_and(|group| group == Gid::from_raw(gid) || is_member(uid, group)) {
            Role::Group
        } else {
            Role::Anybody
        }
    }
}

/// Returns true if the system's list of groups has this user in this group.
fn is_member(uid: Uid, group: Gid) -> bool {
    let Ok(Some(user)) = User::from_uid(uid) else { return false };
    let Ok(name) = CString::new(user.name) else { return false };
    getgrouplist(&name, user.gid).is_ok_and(|groups| groups.contains(&group))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, gid: u32) -> Peer {
        Peer::User { uid, gid, pid: Some(1) }
    }

    #[test]
    fn only_root_and_the_own_user_give_orders() {
        let roles = Roles { own: Uid::from_raw(1234), group: None };
        assert_eq!(roles.of(peer(0, 0)), Role::Operator);
        assert_eq!(roles.of(peer(1234, 9)), Role::Operator);
        for other in
            [peer(65534, 0), peer(1235, 1234), Peer::Unknown, Peer::Address(([127, 0, 0, 1], 1).into())]
        {
            assert_eq!(roles.of(other), Role::Anybody, "{other}");
        }
    }

    #[test]
    fn the_group_reads_and_drains() {
        let roles = Roles { own: Uid::from_raw(1234), group: Some(Gid::from_raw(77)) };
        assert_eq!(roles.of(peer(65534, 77)), Role::Group);
        assert_eq!(roles.of(peer(65534, 78)), Role::Anybody);
        assert_eq!(roles.of(peer(0, 77)), Role::Operator);
    }
}
