//! Who is there: asked for, or watched.
//!
//! A change is told [`DEBOUNCE`] after it began, if it is still one: whoever only changes the network was never away.

use super::request::Answer;
use super::store::{Store, UserId};
use super::tasks::{Asked, Task};
use super::{Im, delivery::EVENT};
use crate::server::{Now, PushSpec, SessionId};
use moorline_proto::message::client::{Code, Push};
use moorline_proto::message::encode;
use moorline_proto::message::im::{Happened, Presence, PresenceRequest, PresenceResponse, happened};
use moorline_proto::time::{Duration, Instant};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// How long a change must last.
const DEBOUNCE: Duration = Duration::from_secs(5);
/// Users of one question, and watched by one session.
pub(super) const USERS_MAX: usize = 100;
/// Sessions that watch one user.
const WATCHERS_MAX: usize = 1000;
/// News that could not be sent for so long is not true any more, in milliseconds.
const NEWS_TTL_MS: u32 = 5_000;

/// Who watches whom, and what is not told yet.
#[derive(Debug, Default)]
pub(super) struct Presences {
    watchers: HashMap<UserId, Watched>,
    watching: HashMap<SessionId, Vec<UserId>>,
    /// When to look.
    due: BTreeMap<Instant, BTreeSet<UserId>>,
}

#[derive(Debug, Default)]
struct Watched {
    by: BTreeSet<SessionId>,
    /// Name of the user.
    uid: String,
    /// As the watchers know it.
    told: Vec<u32>,
    is_due: bool,
}

impl<S: Store> Im<S> {
    pub(super) fn presence(&mut self, asked: &Asked, request: &PresenceRequest) -> Answer {
        let (user, _) = asked.origin;
        let known: Vec<_> = request.users.iter().filter_map(|uid| self.store.find_user(uid)).collect();
        if request.watch {
            let session = asked.session.ok_or((Code::Denied, "only a login can watch"))?;
            self.watch(session, &known)?;
        }
        let presences = known.iter().map(|other| self.presence_of(*other, user)).collect();
        Ok(encode(&PresenceResponse { presences }))
    }

    /// As `asker` may see it.
    fn presence_of(&self, user: UserId, asker: UserId) -> Presence {
        let uid = self.store.uid(user).to_owned();
        if self.store.relation(user, asker).is_blocked {
            return Presence { user: uid, ..Presence::default() };
        }
        let seen_ms = self.store.devices(user).iter().map(|device| device.seen_ms).max().unwrap_or(0);
        Presence { user: uid, platforms: self.platforms(user), seen_ms }
    }

    fn platforms(&self, user: UserId) -> Vec<u32> {
        let mut platforms: Vec<_> = self.sessions.of(user).map(|session| session.platform).collect();
        platforms.sort_unstable();
        platforms.dedup();
        platforms
    }

    fn watch(&mut self, session: SessionId, users: &[UserId]) -> Result<(), (Code, &'static str)> {
        let is_crowded = |user: &UserId| {
            let watched = self.presences.watchers.get(user);
            watched.is_some_and(|it| it.by.len() >= WATCHERS_MAX && !it.by.contains(&session))
        };
        if users.iter().any(is_crowded) {
            return Err((Code::Denied, "one of the users is watched by too many already: ask now and then"));
        }
        self.unwatch(session);
        for user in users {
            let platforms = self.platforms(*user);
            let watched = self.presences.watchers.entry(*user).or_default();
            if watched.by.is_empty() {
                watched.told = platforms;
                self.store.uid(*user).clone_into(&mut watched.uid);
            }
            watched.by.insert(session);
        }
        self.presences.watching.insert(session, users.to_vec());
        Ok(())
    }

    pub(super) fn unwatch(&mut self, session: SessionId) {
        for user in self.presences.watching.remove(&session).into_iter().flatten() {
            if let Some(watched) = self.presences.watchers.get_mut(&user) {
                watched.by.remove(&session);
                if watched.by.is_empty() {
                    self.presences.watchers.remove(&user);
                }
            }
        }
    }

    /// A session came or goes.
    pub(super) fn on_presence(&mut self, now: Now, session: SessionId) {
        let Some((user, _)) = self.sessions.get(session).and_then(|session| session.owner) else { return };
        if let Some(watched) = self.presences.watchers.get_mut(&user)
            && !watched.is_due
        {
            watched.is_due = true;
            self.presences.due.entry(now.instant + DEBOUNCE).or_default().insert(user);
        }
    }

    /// Tells watchers of changes that have lasted long enough.
    pub(super) fn tell_presence(&mut self, now: Now) {
        while let Some(first) = self.presences.due.first_entry()
            && *first.key() <= now.instant
        {
            for user in first.remove() {
                let platforms = self.platforms(user);
                let Some(watched) = self.presences.watchers.get_mut(&user) else { continue };
                watched.is_due = false;
                if watched.told == platforms {
                    continue;
                }
                watched.told = platforms;
                let owner = |id: &SessionId| self.sessions.get(*id).and_then(|session| session.owner);
                let watchers = watched.by.iter().filter_map(owner).map(|(watcher, _)| watcher).collect();
                self.run(None, Task::Presence(now, user, watchers));
            }
        }
    }

    /// Tells those of these watchers who are not blocked whether a user is online.
    pub(super) fn tell_presence_of(&mut self, now: Now, user: UserId, watchers: &[UserId]) {
        let Some(watched) = self.presences.watchers.get(&user) else { return };
        let may_know = |id: &SessionId| {
            let watcher =
                self.sessions.get(*id).and_then(|session| session.owner).map(|(watcher, _)| watcher);
            watcher.is_some_and(|watcher| {
                watchers.contains(&watcher) && !self.store.relation(user, watcher).is_blocked
            })
        };
        let sessions: Vec<_> = watched.by.iter().copied().filter(may_know).collect();
        if sessions.is_empty() {
            return;
        }
        let (uid, platforms) = (watched.uid.clone(), watched.told.clone());
        let what = Some(happened::What::Presence(Presence { user: uid, platforms, seen_ms: now.unix_ms }));
        let push = Push {
            message_id: self.ids.next(now.unix_ms),
            time_ms: now.unix_ms,
            happened: encode(&Happened { what }),
            ..Push::default()
        };
        let spec = PushSpec { want_ack: false, ttl_ms: NEWS_TTL_MS, ..EVENT };
        self.out.push(&sessions, spec, &encode(&push));
    }
}
