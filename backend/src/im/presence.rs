//! Presence: which users are online, on request or by watching.
//!
//! bob watches alice, and her phone changes its network: the session ends and another one begins. Watchers are told
//! [`DEBOUNCE`] after a change if it still stands, so bob is told nothing.

use super::receipts::Receipts;
use super::refusal::{Refused, refuse};
use super::request::{Answer, Requests};
use super::sessions::Sessions;
use super::store::{Facts, Store, UserId};
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

    /// Returns the news of a user, and the sessions that get it: sessions of `watchers` that the user has not blocked.
    /// `None`: nobody gets it.
    fn news(
        &self,
        now: Now,
        (user, watchers): (UserId, &[UserId]),
        facts: &impl Facts,
        sessions: &Sessions,
    ) -> Option<(Presence, Vec<SessionId>)> {
        let watched = self.watchers.get(&user)?;
        let may_know = |id: &SessionId| {
            sessions.owner(*id).is_some_and(|(watcher, _)| {
                watchers.contains(&watcher) && !facts.relation(user, watcher).is_blocked
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
        let (user, _) = asked.origin;
        let known: Vec<_> = request.users.iter().filter_map(|uid| self.facts.find_user(uid)).collect();
        if request.watch {
            let session = asked
                .session
                .ok_or_else(|| refuse(Code::Denied, "only a client can watch, not the server API"))?;
            self.presences.watch(self.facts, self.sessions, session, &known)?;
        }
        let presences = known.iter().map(|other| self.presence_of(*other, user)).collect();
        Ok(encode(&PresenceResponse { presences }))
    }

    /// Returns the presence of `user` as `asker` may see it.
    fn presence_of(&self, user: UserId, asker: UserId) -> Presence {
        let uid = self.facts.uid(user).to_owned();
        if self.facts.relation(user, asker).is_blocked {
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
    pub(super) ids: &'a mut MessageIds,
    pub(super) sessions: &'a Sessions,
    pub(super) receipts: &'a Receipts,
    pub(super) presences: &'a Presences,
    pub(super) out: &'a mut Outputs,
}

impl<F: Facts> Hints<'_, F> {
    /// Tells those of `watchers` that the user has not blocked whether the user is online.
    pub(super) fn tell_presence_of(&mut self, now: Now, user: UserId, watchers: &[UserId]) {
        let news = self.presences.news(now, (user, watchers), self.facts, self.sessions);
        let Some((presence, sessions)) = news else { return };
        let push = Push {
            message_id: self.ids.next(now.unix_ms),
            time_ms: now.unix_ms,
            happened: encode(&Happened { what: Some(happened::What::Presence(presence)) }),
            ..Push::default()
        };
        let spec = PushSpec { want_ack: false, ttl_ms: NEWS_TTL_MS, ..EVENT };
        self.out.push(&sessions, spec, &encode(&push));
    }
}
