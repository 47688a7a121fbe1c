//! The one rule of who may say something to whom.
//!
//! SEND, signals, rooms, read marks, receipts, presence and groups all ask [`Rules::judge`]; whoever writes into a group asks
//! [`judge_speaker`] too. bob has blocked eve: her SEND, her signal, her SUB of their room, her read mark, her look at his
//! presence and her group with him in it are all refused by the same line.

pub mod groups;
pub mod limits;
pub mod recalls;
pub mod relations;

use super::{
    API_DEVICE, DeviceNumber, Facts, Friendship, Member, Origin, Refusal, Relation, Role, UserId, WhoMayAdd,
};
use crate::config::{ImConfig, WhoMayWrite};

/// Wish of one user for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// To say or tell something, one to one: messages, signals, rooms, read marks and receipts.
    Say,
    /// To make the other user a member of a group.
    Add,
    /// To see whether the other user is online.
    See,
}

/// Two users, as the one who wants something stands to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contact {
    /// Both are the same user.
    pub is_self: bool,
    /// Relation of the asking user to the other.
    pub own: Relation,
    /// Relation of the other user to the asking one.
    pub theirs: Relation,
    /// Setting of the other user.
    pub who_may_add: WhoMayAdd,
    /// The operator's server asks for the user.
    pub is_operator: bool,
}

/// The operator's part of the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    write: WhoMayWrite,
    add: WhoMayWrite,
    see: WhoMayWrite,
}

impl Rules {
    /// The rules of `config`.
    pub const fn new(config: &ImConfig) -> Self {
        Self { write: config.who_may_write, add: config.who_may_add, see: config.who_may_see }
    }

    /// Judges what a user wants of another one; see [`Self::judge`].
    ///
    /// # Errors
    /// The refusal of [`Self::judge`].
    pub fn judge_users(
        &self,
        facts: &impl Facts,
        by: Origin,
        other: UserId,
        wish: Wish,
    ) -> Result<(), Refusal> {
        self.judge(wish, facts.contact(by, other))
    }

    /// Judges a wish.
    ///
    /// # Errors
    /// [`Refusal::Blocked`]: one of the two has blocked the other. [`Refusal::NotFriends`]: the wish needs a friend. The
    /// operator's server needs no friendship, and no permission at all to compose a group.
    pub fn judge(&self, wish: Wish, contact: Contact) -> Result<(), Refusal> {
        let Contact { is_self, own, theirs, who_may_add, is_operator } = contact;
        if is_self || is_operator && wish == Wish::Add {
            return Ok(());
        }
        if own.is_blocked || theirs.is_blocked {
            return Err(Refusal::Blocked);
        }
        let is_for_friends = self.write == WhoMayWrite::Friends
            || match wish {
                Wish::Say => false,
                Wish::See => self.see == WhoMayWrite::Friends,
                Wish::Add => match who_may_add {
                    WhoMayAdd::AddDefault | WhoMayAdd::AddAnyone => self.add == WhoMayWrite::Friends,
                    WhoMayAdd::AddFriends => true,
                },
            };
        if is_for_friends && !is_operator && own.friendship != Friendship::Friends {
            return Err(Refusal::NotFriends);
        }
        Ok(())
    }
}

/// True if the operator's server, or an import, acts as this device.
pub fn is_operator(device: DeviceNumber) -> bool {
    device == API_DEVICE
}

/// Judges whether a member may speak in a group now; `is_silent`: only the owner and administrators speak there.
///
/// # Errors
/// [`Refusal::Silent`].
pub fn judge_speaker(member: &Member, is_silent: bool, now_ms: u64) -> Result<(), Refusal> {
    if member.silent_until_ms > now_ms || is_silent && member.role() == Role::Member {
        return Err(Refusal::Silent);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WISHES: [Wish; 3] = [Wish::Say, Wish::Add, Wish::See];

    fn judged(config: &ImConfig, contact: Contact) -> [Result<(), Refusal>; 3] {
        WISHES.map(|wish| Rules::new(config).judge(wish, contact))
    }

    #[test]
    fn a_block_in_either_direction_forbids_everything() {
        let config = ImConfig::default();
        let blocked = Relation { is_blocked: true, friendship: Friendship::Friends };
        for contact in [
            Contact { own: blocked, ..Contact::default() },
            Contact { theirs: blocked, ..Contact::default() },
        ] {
            assert_eq!(judged(&config, contact), [Err(Refusal::Blocked); 3]);
            let by_operator = judged(&config, Contact { is_operator: true, ..contact });
            assert_eq!(by_operator, [Err(Refusal::Blocked), Ok(()), Err(Refusal::Blocked)]);
            assert_eq!(judged(&config, Contact { is_self: true, ..contact }), [Ok(()); 3]);
        }
        assert_eq!(judged(&config, Contact::default()), [Ok(()); 3]);
    }

    #[test]
    fn what_is_for_friends_is_the_stricter_of_the_operator_and_the_user() {
        let no = Err(Refusal::NotFriends);
        let friends = |write, add, see| {
            let choose = |is| if is { WhoMayWrite::Friends } else { WhoMayWrite::Anyone };
            ImConfig {
                who_may_write: choose(write),
                who_may_add: choose(add),
                who_may_see: choose(see),
                ..ImConfig::default()
            }
        };
        let stranger = Contact::default();
        assert_eq!(judged(&friends(true, false, false), stranger), [no; 3]);
        assert_eq!(judged(&friends(false, true, false), stranger), [Ok(()), no, Ok(())]);
        assert_eq!(judged(&friends(false, false, true), stranger), [Ok(()), Ok(()), no]);
        let asks = Contact { who_may_add: WhoMayAdd::AddFriends, ..stranger };
        assert_eq!(judged(&friends(false, false, false), asks), [Ok(()), no, Ok(())]);
        let lenient = Contact { who_may_add: WhoMayAdd::AddAnyone, ..stranger };
        assert_eq!(judged(&friends(false, true, false), lenient)[1], no, "the operator's word stands");
        let own = Relation { friendship: Friendship::Friends, is_blocked: false };
        assert_eq!(judged(&friends(true, true, true), Contact { own, ..asks }), [Ok(()); 3]);
        let is_operator = true;
        assert_eq!(judged(&friends(true, true, true), Contact { is_operator, ..asks }), [Ok(()); 3]);
    }
}
