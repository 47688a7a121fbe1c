//! Presence: which users are online, on request or by watching.
//!
//! bob watches alice, and her phone changes its network: the session ends and another one begins. Watchers are told
//! [`DEBOUNCE`] after a change if it still stands, so bob is told nothing.
//!
//! carol's sessions are known to another node: this one asks it when bob asks, and, while bob watches her, again and again
//! ([`super::onlookers`] has the other end). While nobody can tell, watchers are told nothing, and who asks is told to try again.

use super::onlookers::Onlookers;
use super::receipts::Receipts;
use super::refusal::{Refused, refuse};
use super::request::{AfterRead, Answer, Requests, Step};
use super::sessions::Sessions;
use super::store::rules::{Rules, Wish};
use super::store::{DeviceNumber, Facts, Online, Origin, Read, Refusal, Store, UserId, Whereabouts};
use super::tasks::{Asked, Task};
use super::{Im, MessageIds, delivery::EVENT, output::Outputs};
use crate::server::{Now, PushSpec, SessionId};
use moorline_proto::message::client::{Code, Push};
use moorline_proto::message::encode;
use moorline_proto::message::im::{Happened, Presence, PresenceRequest, PresenceResponse, happened};
use moorline_proto::time::{Duration, Instant};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Time that a change must last before watchers are told.
pub(super) const DEBOUNCE: Duration = Duration::from_secs(5);
/// Time between two looks at a watched user.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// Time after which a look is repeated that has told nothing.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Looks between two ticks.
const LOOKS_MAX: usize = 4096;
/// Users of one request, and users that one session watches.
pub(super) const USERS_MAX: usize = 100;
/// Sessions that watch one user.
const WATCHERS_MAX: usize = 1000;
/// A watcher's device does not matter; it is not the operator's server.
const NO_DEVICE: DeviceNumber = DeviceNumber(0);
/// Reason of an answer that no node can give now.
const MOVING: &str = "the slot of a user moves to another node of the backend, or its node does not answer";
/// Time after which unsent news is dropped, in milliseconds.
const NEWS_TTL_MS: u32 = 5_000;

/// Watchers by user, and the changes that they have not been told.
#[derive(Debug, Default)]
pub(super) struct Presences {
    watchers: HashMap<UserId, Watched>,
    watching: HashMap<SessionId, Vec<UserId>>,
    /// Users whose change is to be told, by the time for it.
    due: BTreeMap<Instant, BTreeSet<UserId>>,
    /// Users who are to be looked at, by the time for it.
    looks: BTreeSet<(Instant, UserId)>,
    /// Presence that other nodes have told since the last tick.
    heard: Vec<Online>,
    /// Version of whereabouts at the last look at all users.
    version: u64,
    /// Other nodes that watch users whose sessions are here.
    pub(super) onlookers: Onlookers,
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
    /// Place of the sessions at the last look.
    at: Option<Whereabouts>,
    /// Time of the next look.
    look_at: Instant,
}

impl Presences {
    /// Watches `users`, each with the platforms of now, instead of the users that the session watched before.
    ///
    /// # Errors
    /// A user has too many watchers.
    pub(super) fn watch(
        &mut self,
        now: Now,
        facts: &impl Facts,
        session: SessionId,
        users: &[(UserId, Vec<u32>)],
    ) -> Result<(), Refused> {
        let is_crowded = |(user, _): &(UserId, Vec<u32>)| {
            let watched = self.watchers.get(user);
            watched.is_some_and(|it| it.by.len() >= WATCHERS_MAX && !it.by.contains(&session))
        };
        if users.iter().any(is_crowded) {
            return Err(refuse(Code::Denied, "a user has 1000 watchers already; ask again without `watch`"));
        }
        self.unwatch(session);
        for (user, platforms) in users {
            let watched = self.watchers.entry(*user).or_default();
            if watched.by.is_empty() {
                watched.told.clone_from(platforms);
                facts.uid(*user).clone_into(&mut watched.uid);
                watched.look_at = now.instant;
                self.looks.insert((now.instant, *user));
            }
            watched.by.insert(session);
        }
        self.watching.insert(session, users.iter().map(|(user, _)| *user).collect());
        Ok(())
    }

    /// Looks at users whose time has come, and at all who have moved: those whose sessions are here may have changed unseen.
    /// Returns the users to ask others for.
    fn look(&mut self, now: Now, store: &impl Store, sessions: &Sessions) -> Vec<UserId> {
        let version = store.whereabouts_version();
        if std::mem::replace(&mut self.version, version) != version {
            let moved =
                self.watchers.iter_mut().filter(|(user, it)| it.at != Some(store.whereabouts(**user)));
            for (user, it) in moved {
                self.looks.remove(&(it.look_at, *user));
                it.look_at = now.instant;
                self.looks.insert((now.instant, *user));
            }
        }
        let (mut asked, mut changed) = (Vec::new(), Vec::new());
        for _ in 0..LOOKS_MAX {
            let Some((_, user)) = self.looks.first().copied().filter(|(at, _)| *at <= now.instant) else {
                break;
            };
            self.looks.pop_first();
            let Some(watched) = self.watchers.get_mut(&user) else { continue };
            let at = store.whereabouts(user);
            let is_new = watched.at.replace(at) != Some(at);
            match at {
                Whereabouts::Here if watched.told != sessions.platforms(user) => changed.push(user),
                Whereabouts::Elsewhere => asked.push(user),
                Whereabouts::Here | Whereabouts::Unknown => {}
            }
            // The first question may have got lost.
            let is_soon = at == Whereabouts::Unknown || at == Whereabouts::Elsewhere && is_new;
            watched.look_at = now.instant + if is_soon { LOOK_AGAIN } else { LOOK_EVERY };
            self.looks.insert((watched.look_at, user));
        }
        changed.into_iter().for_each(|user| self.on_change(now, user));
        asked
    }

    /// Takes what other nodes say of users, to be told with the next tick.
    pub(super) fn hear(&mut self, online: Vec<Online>) {
        self.heard.extend(online);
    }

    /// Removes everything that a session watches.
    pub(super) fn unwatch(&mut self, session: SessionId) {
        for user in self.watching.remove(&session).into_iter().flatten() {
            if let Some(watched) = self.watchers.get_mut(&user) {
                watched.by.remove(&session);
                if watched.by.is_empty() {
                    self.looks.remove(&(watched.look_at, user));
                    self.watchers.remove(&user);
                }
            }
        }
    }

    /// Notes that a session of `user` came or goes.
    pub(super) fn on_change(&mut self, now: Now, user: UserId) {
        self.onlookers.on_change(now, user);
        if let Some(watched) = self.watchers.get_mut(&user)
            && !watched.is_due
        {
            watched.is_due = true;
            self.due.entry(now.instant + DEBOUNCE).or_default().insert(user);
        }
    }

    /// Takes the changes that have lasted for [`DEBOUNCE`], and those that others have told: users, each with its watchers.
    fn take_changes(
        &mut self,
        now: Now,
        facts: &impl Facts,
        sessions: &Sessions,
    ) -> Vec<(UserId, Vec<UserId>)> {
        let mut changes = Vec::new();
        for Online { user, platforms, .. } in std::mem::take(&mut self.heard) {
            let watched = self.watchers.get_mut(&user);
            let watched = watched.filter(|_| facts.whereabouts(user) == Whereabouts::Elsewhere);
            if let Some(watched) = watched.filter(|watched| watched.told != platforms) {
                watched.told = platforms;
                changes.push((user, watched.owners(sessions)));
            }
        }
        while let Some(first) = self.due.first_entry()
            && *first.key() <= now.instant
        {
            for user in first.remove() {
                let Some(watched) = self.watchers.get_mut(&user) else { continue };
                watched.is_due = false;
                let platforms = sessions.platforms(user);
                // Sessions that have moved with their user's slot did not end.
                if watched.told != platforms && facts.whereabouts(user) == Whereabouts::Here {
                    watched.told = platforms;
                    changes.push((user, watched.owners(sessions)));
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

impl Watched {
    /// Users who watch.
    fn owners(&self, sessions: &Sessions) -> Vec<UserId> {
        self.by.iter().filter_map(|id| sessions.owner(*id)).map(|(watcher, _)| watcher).collect()
    }
}

/// An answer to which other nodes have to contribute.
#[derive(Debug)]
pub(super) struct Pending {
    users: Vec<UserId>,
    /// Presence of each user as far as this node knows it, and whether the asker may see the user.
    presences: Vec<(Presence, bool)>,
    is_watched: bool,
}

impl<F: Facts> Requests<'_, F> {
    pub(super) fn presence(&mut self, asked: &Asked, request: &PresenceRequest) -> Result<Step, Refused> {
        if request.users.len() > USERS_MAX {
            return Err(refuse(Code::TooLarge, "`users` names more than 100 users"));
        }
        if request.watch && asked.session.is_none() {
            return Err(refuse(Code::Denied, "only a client can watch, not the server API"));
        }
        let users: Vec<_> = request.users.iter().filter_map(|uid| self.facts.find_user(uid)).collect();
        let presences = users.iter().map(|other| self.presence_of(*other, asked.origin)).collect();
        let pending = Pending { users, presences, is_watched: request.watch };
        let whereabouts: Vec<_> = pending.users.iter().map(|user| self.facts.whereabouts(*user)).collect();
        if whereabouts.contains(&Whereabouts::Unknown) {
            return Err(refuse(Code::Retry, MOVING));
        }
        let elsewhere = pending.users.iter().zip(&whereabouts);
        let elsewhere = elsewhere.filter(|(_, at)| **at == Whereabouts::Elsewhere).map(|(user, _)| *user);
        let users: BTreeSet<_> = elsewhere.collect();
        if users.is_empty() {
            return self.presence_answer(asked, pending, Ok(Vec::new())).map(Step::Answer);
        }
        let read = Read::Presences { users: users.into_iter().collect() };
        Ok(Step::Read(read, AfterRead::Presences(Box::new(pending))))
    }

    /// Completes an answer with what other nodes say, and begins to watch.
    pub(super) fn presence_answer(
        &mut self,
        asked: &Asked,
        pending: Pending,
        others: Result<Vec<Online>, Refusal>,
    ) -> Answer {
        let others = others.map_err(|_| refuse(Code::Retry, MOVING))?;
        let Pending { users, mut presences, is_watched } = pending;
        let mut watched = Vec::with_capacity(users.len());
        for (user, (presence, may_see)) in users.into_iter().zip(&mut presences) {
            let other = others.iter().find(|online| online.user == user);
            let platforms = other.map_or_else(|| self.sessions.platforms(user), |it| it.platforms.clone());
            if let Some(other) = other.filter(|_| *may_see) {
                presence.seen_ms = presence.seen_ms.max(other.seen_ms);
                presence.platforms.clone_from(&platforms);
            }
            watched.push((user, platforms));
        }
        // A session that has ended meanwhile watches nobody.
        let session = asked.session.filter(|session| is_watched && self.sessions.get(*session).is_some());
        if let Some(session) = session {
            self.presences.watch(asked.now, self.facts, session, &watched)?;
            // News follows what watchers were told: a change that has not lasted yet is told later, or not at all.
            for ((user, _), (presence, may_see)) in watched.iter().zip(&mut presences) {
                if let Some(watched) = self.presences.watchers.get(user).filter(|_| *may_see) {
                    presence.platforms.clone_from(&watched.told);
                }
            }
        }
        let presences = presences.into_iter().map(|(presence, _)| presence).collect();
        Ok(encode(&PresenceResponse { presences }))
    }

    /// Returns the presence of `user` as `asker` may see it. False: not at all.
    fn presence_of(&self, user: UserId, asker: Origin) -> (Presence, bool) {
        let uid = self.facts.uid(user).to_owned();
        if Rules::new(self.config).judge(Wish::See, self.facts.contact(asker, user)).is_err() {
            return (Presence { user: uid, ..Presence::default() }, false);
        }
        let seen_ms = self.facts.devices(user).iter().map(|device| device.seen_ms).max().unwrap_or(0);
        (Presence { user: uid, platforms: self.sessions.platforms(user), seen_ms }, true)
    }
}

impl<S: Store> Im<S> {
    /// Tells watchers of changes that have lasted long enough.
    pub(super) fn tell_presence(&mut self, now: Now) {
        let asked = self.presences.look(now, &self.storage.store, &self.sessions);
        if !asked.is_empty() {
            self.storage.store.watch_presences(&asked);
        }
        for (user, watchers) in self.presences.take_changes(now, &self.storage.store, &self.sessions) {
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

    fn watch(
        presences: &mut Presences,
        facts: &Memory,
        sessions: &Sessions,
        session: SessionId,
        users: &[UserId],
    ) -> Result<(), Refused> {
        let users: Vec<_> = users.iter().map(|user| (*user, sessions.platforms(*user))).collect();
        presences.watch(at(0), facts, session, &users)
    }

    #[test]
    fn a_change_is_told_once_it_has_lasted_and_one_that_was_undone_is_not() {
        let (facts, mut sessions, watcher) = world();
        let mut presences = Presences::default();
        assert!(watch(&mut presences, &facts, &sessions, watcher, &[ANN]).is_ok());
        let phone = SessionId::new(1, 0);
        come(&mut sessions, phone, ANN, 2);
        presences.on_change(at(10), ANN);
        assert!(presences.take_changes(at(14), &facts, &sessions).is_empty(), "not for 5 s yet");
        assert_eq!(presences.take_changes(at(15), &facts, &sessions), [(ANN, vec![BEN])]);
        // Her phone changes its network.
        sessions.unlist(phone);
        presences.on_change(at(20), ANN);
        sessions.list(phone);
        presences.on_change(at(21), ANN);
        assert!(presences.take_changes(at(99), &facts, &sessions).is_empty());
        assert!(presences.due.is_empty(), "nothing is due any more");
    }

    #[test]
    fn nothing_is_kept_of_users_that_nobody_watches() {
        let (facts, sessions, watcher) = world();
        let mut presences = Presences::default();
        presences.on_change(at(0), ANN);
        assert!(presences.due.is_empty(), "nobody watches");
        assert!(watch(&mut presences, &facts, &sessions, watcher, &[ANN, BEN]).is_ok());
        assert!(watch(&mut presences, &facts, &sessions, watcher, &[BEN]).is_ok(), "instead of those before");
        assert_eq!((presences.watchers.len(), presences.watching.len()), (1, 1));
        presences.unwatch(watcher);
        assert!(presences.watchers.is_empty() && presences.watching.is_empty());
    }

    #[test]
    fn a_user_has_a_bounded_number_of_watchers_and_one_of_them_may_ask_again() {
        let (facts, sessions, _) = world();
        let mut presences = Presences::default();
        for number in (0..).take(WATCHERS_MAX) {
            assert!(watch(&mut presences, &facts, &sessions, SessionId::new(number, 0), &[ANN]).is_ok());
        }
        let late = SessionId::new(u32::MAX, 0);
        assert!(watch(&mut presences, &facts, &sessions, late, &[ANN]).is_err());
        assert!(watch(&mut presences, &facts, &sessions, SessionId::new(0, 0), &[ANN]).is_ok());
        presences.unwatch(SessionId::new(3, 0));
        assert!(watch(&mut presences, &facts, &sessions, late, &[ANN]).is_ok());
    }

    #[test]
    fn news_go_to_watchers_that_are_there_and_not_blocked() {
        let (facts, sessions, watcher) = world();
        let mut presences = Presences::default();
        assert!(watch(&mut presences, &facts, &sessions, watcher, &[ANN]).is_ok());
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
