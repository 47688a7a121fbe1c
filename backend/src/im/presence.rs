//! Presence: which users are online, on request or by watching.
//!
//! bob watches alice, and her phone changes its network: the session ends and another one begins. Watchers are told
//! [`DEBOUNCE`] after a change if it still stands, so bob is told nothing.

use super::receipts::Receipts;
use super::refusal::{Refused, refuse};
use super::request::{Answer, Requests};
use super::sessions::Sessions;
use super::store::rules::{Rules, Wish};
use super::store::{DeviceNumber, Facts, Origin, Store, UserId};
use super::tasks::{Asked, Task};
use super::{Im, MessageIds, delivery::EVENT, output::Outputs};
use crate::server::{Now, PushSpec, SessionId};
use moorline_proto::message::client::{Code, Push};
use moorline_proto::message::encode;
use moorline_proto::message::im::{Happened, Presence, PresenceRequest, PresenceResponse, happened};
use moorline_proto::time::{Duration, Instant};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Time that a change must last before watchers are told.
const DEBOUNCE: Duration = Duration::from_secs(5);
/// Users of one request, and users that one session watches.
pub(super) const USERS_MAX: usize = 100;
/// Sessions that watch one user.
const WATCHERS_MAX: usize = 1000;
/// A watcher's device does not matter; it is not the operator's server.
const NO_DEVICE: DeviceNumber = DeviceNumber(0);
/// Time after which unsent news is dropped, in milliseconds.
const NEWS_TTL_MS: u32 = 5_000;

/// Watchers by user, and the changes that they have not been told.
#[derive(Debug, Default)]
pub(super) struct Presences {
    watchers: HashMap<UserId, Watched>,
    watching: HashMap<SessionId, Vec<UserId>>,
    /// Users whose change is to be told, by the time for it.
    due: BTreeMap<Instant, BTreeSet<UserId>>,
}

#[derive(Debug, Default)]
struct Watched {
    by: BTreeSet<SessionId>,
    /// Name of the user.
    uid: String,
    /// Platforms of the user that the watchers were told.
    told: Vec<u32>,
    /// The user is in [`Presences::due`].
    is_due: bool,
}

impl Presences {
    /// Watches `users`, instead of the users that the session watched before.
    ///
    /// # Errors
    /// A user has too many watchers.
    pub(super) fn watch(
        &mut self,
        facts: &impl Facts,
        sessions: &Sessions,
        session: SessionId,
        users: &[UserId],
    ) -> Result<(), Refused> {
        let is_crowded = |user: &UserId| {
            let watched = self.watchers.get(user);
            watched.is_some_and(|it| it.by.len() >= WATCHERS_MAX && !it.by.contains(&session))
        };
        if users.iter().any(is_crowded) {
            return Err(refuse(Code::Denied, "a user has 1000 watchers already; ask again without `watch`"));
        }
        self.unwatch(session);
        for user in users {
            let watched = self.watchers.entry(*user).or_default();
            if watched.by.is_empty() {
                watched.told = sessions.platforms(*user);
                facts.uid(*user).clone_into(&mut watched.uid);
            }
            watched.by.insert(session);
        }
        self.watching.insert(session, users.to_vec());
        Ok(())
    }

    /// Removes everything that a session watches.
    pub(super) fn unwatch(&mut self, session: SessionId) {
        for user in self.watching.remove(&session).into_iter().flatten() {
            if let Some(watched) = self.watchers.get_mut(&user) {
                watched.by.remove(&session);
                if watched.by.is_empty() {
                    self.watchers.remove(&user);
                }
            }
        }
    }

    /// Notes that a session of `user` came or goes.
    pub(super) fn on_change(&mut self, now: Now, user: UserId) {
        if let Some(watched) = self.watchers.get_mut(&user)
            && !watched.is_due
        {
            watched.is_due = true;
            self.due.entry(now.instant + DEBOUNCE).or_default().insert(user);
        }
    }

    /// Takes the changes that have lasted for [`DEBOUNCE`]: users, each with its watchers.
    fn take_changes(&mut self, now: Now, sessions: &Sessions) -> Vec<(UserId, Vec<UserId>)> {
        let mut changes = Vec::new();
        while let Some(first) = self.due.first_entry()
            && *first.key() <= now.instant
        {
            for user in first.remove() {
                let Some(watched) = self.watchers.get_mut(&user) else { continue };
                watched.is_due = false;
                let platforms = sessions.platforms(user);
                if watched.told != platforms {
                    watched.told = platforms;
                    let owners = watched.by.iter().filter_map(|id| sessions.owner(*id));
                    changes.push((user, owners.map(|(watcher, _)| watcher).collect()));
                }
            }
        }
        changes
    }

    /// Returns the news of a user, and the sessions that get it: sessions of those `watchers` that may see the user.
    /// `None`: nobody gets it.
    fn news(
        &self,
        now: Now,
        rules: Rules,
        (user, watchers): (UserId, &[UserId]),
        facts: &impl Facts,
        sessions: &Sessions,
    ) -> Option<(Presence, Vec<SessionId>)> {
        let watched = self.watchers.get(&user)?;
        let may_know = |id: &SessionId| {
            sessions.owner(*id).is_some_and(|(watcher, _)| {
                let contact = || facts.contact((watcher, NO_DEVICE), user);
                watchers.contains(&watcher) && rules.judge(Wish::See, contact()).is_ok()
            })
        };
        let sessions: Vec<_> = watched.by.iter().copied().filter(may_know).collect();
        let (user, platforms) = (watched.uid.clone(), watched.told.clone());
        (!sessions.is_empty()).then_some((Presence { user, platforms, seen_ms: now.unix_ms }, sessions))
    }
}

impl<F: Facts> Requests<'_, F> {
    pub(super) fn presence(&mut self, asked: &Asked, request: &PresenceRequest) -> Answer {
        if request.users.len() > USERS_MAX {
            return Err(refuse(Code::TooLarge, "`users` names more than 100 users"));
        }
        let known: Vec<_> = request.users.iter().filter_map(|uid| self.facts.find_user(uid)).collect();
        if request.watch {
            let session = asked
                .session
                .ok_or_else(|| refuse(Code::Denied, "only a client can watch, not the server API"))?;
            self.presences.watch(self.facts, self.sessions, session, &known)?;
        }
        let presences = known.iter().map(|other| self.presence_of(*other, asked.origin)).collect();
        Ok(encode(&PresenceResponse { presences }))
    }

    /// Returns the presence of `user` as `asker` may see it.
    fn presence_of(&self, user: UserId, asker: Origin) -> Presence {
        let uid = self.facts.uid(user).to_owned();
        if Rules::new(self.config).judge(Wish::See, self.facts.contact(asker, user)).is_err() {
            return Presence { user: uid, ..Presence::default() };
        }
        let seen_ms = self.facts.devices(user).iter().map(|device| device.seen_ms).max().unwrap_or(0);
        Presence { user: uid, platforms: self.sessions.platforms(user), seen_ms }
    }
}

impl<S: Store> Im<S> {
    /// Tells watchers of changes that have lasted long enough.
    pub(super) fn tell_presence(&mut self, now: Now) {
        for (user, watchers) in self.presences.take_changes(now, &self.sessions) {
            self.run(None, Task::Presence(now, user, watchers));
        }
    }
}

/// Parts of the backend that hints need: pushes without an ack, which are dropped when they are late.
pub(super) struct Hints<'a, F> {
    pub(super) facts: &'a F,
    pub(super) rules: Rules,
    pub(super) ids: &'a mut MessageIds,
    pub(super) sessions: &'a Sessions,
    pub(super) receipts: &'a Receipts,
    pub(super) presences: &'a Presences,
    pub(super) out: &'a mut Outputs,
}

impl<F: Facts> Hints<'_, F> {
    /// Tells those of `watchers` that may see the user whether the user is online.
    pub(super) fn tell_presence_of(&mut self, now: Now, user: UserId, watchers: &[UserId]) {
        let news = self.presences.news(now, self.rules, (user, watchers), self.facts, self.sessions);
        let Some((presence, sessions)) = news else { return };
        let push = Push {
            message_id: self.ids.next_now(now),
            time_ms: now.unix_ms,
            happened: encode(&Happened { what: Some(happened::What::Presence(presence)) }),
            ..Push::default()
        };
        let spec = PushSpec { want_ack: false, ttl_ms: NEWS_TTL_MS, ..EVENT };
        self.out.push(&sessions, spec, &encode(&push));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ImConfig;
    use crate::im::names::Names;
    use crate::im::sessions::Session;
    use crate::im::store::Memory;
    use moorline_proto::message::backend::ConnUp;

    const ANN: UserId = UserId::of(0);
    const BEN: UserId = UserId::of(1);

    fn at(secs: u64) -> Now {
        Now { instant: Instant::ZERO + Duration::from_secs(secs), unix_ms: secs * 1_000 }
    }

    /// Two users, of whom ben is online with one session.
    fn world() -> (Memory, Sessions, SessionId) {
        let mut facts = Memory::new(&ImConfig::default());
        assert_eq!((facts.try_user("ann"), facts.try_user("ben")), (Some(ANN), Some(BEN)));
        let mut sessions = Sessions::default();
        let watcher = SessionId::new(0, 0);
        come(&mut sessions, watcher, BEN, 1);
        (facts, sessions, watcher)
    }

    fn come(sessions: &mut Sessions, id: SessionId, user: UserId, platform: i32) {
        let mut session = Session::new(id, &ConnUp { platform, ..ConnUp::default() });
        session.set_owner((user, DeviceNumber(0)), Names::default());
        sessions.insert(session);
        sessions.list(id);
    }

    #[test]
    fn a_change_is_told_once_it_has_lasted_and_one_that_was_undone_is_not() {
        let (facts, mut sessions, watcher) = world();
        let mut presences = Presences::default();
        assert!(presences.watch(&facts, &sessions, watcher, &[ANN]).is_ok());
        let phone = SessionId::new(1, 0);
        come(&mut sessions, phone, ANN, 2);
        presences.on_change(at(10), ANN);
        assert!(presences.take_changes(at(14), &sessions).is_empty(), "not for 5 s yet");
        assert_eq!(presences.take_changes(at(15), &sessions), [(ANN, vec![BEN])]);
        // Her phone changes its network.
        sessions.unlist(phone);
        presences.on_change(at(20), ANN);
        sessions.list(phone);
        presences.on_change(at(21), ANN);
        assert!(presences.take_changes(at(99), &sessions).is_empty());
        assert!(presences.due.is_empty(), "nothing is due any more");
    }

    #[test]
    fn nothing_is_kept_of_users_that_nobody_watches() {
        let (facts, sessions, watcher) = world();
        let mut presences = Presences::default();
        presences.on_change(at(0), ANN);
        assert!(presences.due.is_empty(), "nobody watches");
        assert!(presences.watch(&facts, &sessions, watcher, &[ANN, BEN]).is_ok());
        assert!(presences.watch(&facts, &sessions, watcher, &[BEN]).is_ok(), "instead of those before");
        assert_eq!((presences.watchers.len(), presences.watching.len()), (1, 1));
        presences.unwatch(watcher);
        assert!(presences.watchers.is_empty() && presences.watching.is_empty());
    }

    #[test]
    fn a_user_has_a_bounded_number_of_watchers_and_one_of_them_may_ask_again() {
        let (facts, sessions, _) = world();
        let mut presences = Presences::default();
        for number in (0..).take(WATCHERS_MAX) {
            assert!(presences.watch(&facts, &sessions, SessionId::new(number, 0), &[ANN]).is_ok());
        }
        let late = SessionId::new(u32::MAX, 0);
        assert!(presences.watch(&facts, &sessions, late, &[ANN]).is_err());
        assert!(presences.watch(&facts, &sessions, SessionId::new(0, 0), &[ANN]).is_ok());
        presences.unwatch(SessionId::new(3, 0));
        assert!(presences.watch(&facts, &sessions, late, &[ANN]).is_ok());
    }

    #[test]
    fn news_go_to_watchers_that_are_there_and_not_blocked() {
        let (facts, sessions, watcher) = world();
        let mut presences = Presences::default();
        assert!(presences.watch(&facts, &sessions, watcher, &[ANN]).is_ok());
        let rules = Rules::new(&ImConfig::default());
        let news = presences.news(at(7), rules, (ANN, &[BEN]), &facts, &sessions).expect("ben is told");
        assert_eq!((news.0.user.as_str(), news.0.seen_ms, news.1), ("ann", 7_000, vec![watcher]));
        assert!(
            presences.news(at(7), rules, (ANN, &[ANN]), &facts, &sessions).is_none(),
            "nobody else watches"
        );
        assert!(
            presences.news(at(7), rules, (BEN, &[BEN]), &facts, &sessions).is_none(),
            "ben is not watched"
        );
    }
}
