//! Logins that an operator's own service judges, over HTTP (`docs/server-api.md`, "Single sign-on").
//!
//! Example: a gateway with `auth.mode = "backend"` asks about alice's token. The hook finds no answer in its cache and
//! gives the question to a thread, which posts it to `login_hook.url`. The service answers `{"admit": true}`; the
//! gateway admits alice, and the same token is admitted without a question for `login_hook.cache_time`.
//!
//! The backend's loop never waits: it looks into the cache and the breaker, and everything else happens in threads.

use crate::clock::Clock;
use crate::config::{BackendConfig, LoginHookConfig};
use crate::error::BackendError;
use crate::im::{BackendMessage, Judgement, names};
use crate::server::{JudgeTo, Now, Remote, RemoteError};
use crate::webhook::{agent, read_secret, signature};
use crossbeam_channel::{Receiver, Sender, bounded};
use moorline_net::log_rate::LogRate;
use moorline_proto::message::backend::Auth;
use moorline_proto::time::Instant;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Bytes of an answer.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// Time that a judgement waits for room in the mailbox before it is given in again.
const MAILBOX_PAUSE: Duration = Duration::from_millis(5);
const BUSY: Judgement = Judgement::Unavailable("too many logins wait for login_hook.url");
const OPEN: Judgement =
    Judgement::Unavailable("login_hook.url has failed too often; it is left alone for a while");
const FAILED: Judgement = Judgement::Unavailable("login_hook.url gave no judgement");

/// Figures of the hook, for the metrics page.
#[derive(Debug, Default)]
pub(crate) struct HookFigures {
    pub(crate) asked: AtomicU64,
    pub(crate) cached: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) turned_away: AtomicU64,
}

/// The hook, as the backend's loop asks it. Dropping it ends its threads.
#[derive(Debug)]
pub(crate) struct LoginHook {
    questions: Sender<Question>,
    shared: Arc<Shared>,
}

/// A login to judge.
#[derive(Debug)]
struct Question {
    auth: Auth,
    judge: JudgeTo,
    key: [u8; 32],
    asked_at: Instant,
}

#[derive(Debug)]
struct Shared {
    config: LoginHookConfig,
    /// `None`: questions are not signed.
    secret: Option<Vec<u8>>,
    cache: Mutex<Cache>,
    breaker: Mutex<Breaker>,
    figures: Arc<HookFigures>,
    failures: LogRate,
    clock: Clock,
}

impl LoginHook {
    /// Starts the threads; `None`: the settings name no address.
    pub(crate) fn start(
        config: &BackendConfig,
        remote: &Remote<BackendMessage>,
        figures: &Arc<HookFigures>,
    ) -> Result<Option<Self>, BackendError> {
        let config = &config.login_hook;
        if config.url.is_empty() {
            return Ok(None);
        }
        let secret = read_secret("login_hook", &config.secret_file)
            .map_err(|reason| BackendError::InvalidConfig { key: "login_hook.secret_file", reason })?;
        if secret.is_none() {
            tracing::warn!(
                "no login_hook.secret_file: questions are not signed, and anybody can make them up"
            );
        }
        let shared = Arc::new(Shared {
            secret,
            cache: Mutex::new(Cache::new(config.cache_max)),
            breaker: Mutex::new(Breaker::new(config.failures_max, config.pause)),
            figures: Arc::clone(figures),
            failures: LogRate::default(),
            clock: Clock::new(),
            config: config.clone(),
        });
        let (questions, taken) = bounded(config.queue_max);
        for number in 0..config.threads {
            let (shared, taken, remote) = (Arc::clone(&shared), taken.clone(), remote.clone());
            let named = thread::Builder::new().name(format!("login-hook-{number}"));
            named
                .spawn(move || shared.run(&taken, &remote))
                .map_err(|cause| BackendError::Poll { operation: "start a thread for login_hook", cause })?;
        }
        Ok(Some(Self { questions, shared }))
    }

    /// Judges a login at once, or has a thread ask: then a message brings the judgement.
    pub(crate) fn ask(&self, now: Now, auth: Auth, judge: JudgeTo) -> Option<(JudgeTo, Judgement)> {
        let figures = &self.shared.figures;
        let key = key_of(&auth);
        let asked_at = self.shared.clock.read().instant;
        if let Some(judgement) = self.shared.cache().get(&key, asked_at, now.unix_ms / 1000) {
            figures.cached.fetch_add(1, Ordering::Relaxed);
            return Some((judge, judgement));
        }
        if !self.shared.breaker().may_ask(asked_at) {
            figures.turned_away.fetch_add(1, Ordering::Relaxed);
            return Some((judge, OPEN));
        }
        let refused = self.questions.try_send(Question { auth, judge, key, asked_at }).err()?;
        figures.turned_away.fetch_add(1, Ordering::Relaxed);
        Some((refused.into_inner().judge, BUSY))
    }
}

impl Shared {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, questions: &Receiver<Question>, remote: &Remote<BackendMessage>) {
        let agent = agent(self.config.timeout);
        for Question { auth, judge, key, asked_at } in questions {
            let judgement = self.judge(&agent, &auth, key, asked_at);
            let mut message = BackendMessage::Judged(judge, judgement);
            loop {
                match remote.try_send(message) {
                    Ok(()) => break,
                    Err(RemoteError::Full(unsent)) => {
                        message = unsent;
                        thread::park_timeout(MAILBOX_PAUSE);
                    }
                    Err(RemoteError::Gone(_)) => return,
                }
            }
        }
    }

    fn judge(&self, agent: &ureq::Agent, auth: &Auth, key: [u8; 32], asked_at: Instant) -> Judgement {
        let now = self.clock.read();
        // Its gateway has given up, or will before there is an answer.
        if now.instant.saturating_since(asked_at) >= self.config.timeout {
            self.figures.turned_away.fetch_add(1, Ordering::Relaxed);
            return BUSY;
        }
        self.figures.asked.fetch_add(1, Ordering::Relaxed);
        let answer = self.post(agent, auth, now);
        let now = self.clock.read();
        match answer {
            Ok(judgement) => {
                self.breaker().on_answer();
                if !self.config.cache_time.is_zero() {
                    let until = now.instant + self.config.cache_time;
                    self.cache().put(key, judgement.clone(), now.instant, until);
                }
                judgement
            }
            Err(problem) => {
                self.figures.failed.fetch_add(1, Ordering::Relaxed);
                self.breaker().on_failure(now.instant);
                if let Some(left_out) = self.failures.try_pass() {
                    tracing::warn!(problem, left_out, "login_hook.url gave no judgement");
                }
                FAILED
            }
        }
    }

    fn post(&self, agent: &ureq::Agent, auth: &Auth, now: Now) -> Result<Judgement, String> {
        let Auth { token, uid, device, platform } = auth;
        let body = json!({ "uid": uid, "device": device, "platform": platform, "token": token }).to_string();
        let timestamp = (now.unix_ms / 1000).to_string();
        let request = agent
            .post(&self.config.url)
            .header("content-type", "application/json")
            .header("moorline-timestamp", &timestamp);
        let request = match &self.secret {
            Some(secret) => request.header("moorline-signature", signature(secret, &timestamp, &body)),
            None => request,
        };
        let mut answer = request.send(body).map_err(|error| error.to_string())?;
        let status = answer.status().as_u16();
        if matches!(status, 401 | 403) {
            return Ok(Judgement::Refused(format!("login_hook.url answered {status}")));
        }
        if status != 200 {
            return Err(format!("it answered {status}"));
        }
        let text = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
        judgement_of(&text.map_err(|error| error.to_string())?, uid)
    }
}

#[derive(Deserialize)]
struct Answer {
    admit: bool,
    uid: Option<String>,
    #[serde(default)]
    issued_at: u64,
    #[serde(default)]
    expires_at: u64,
    #[serde(default)]
    reason: String,
}

/// Reads an answer about the user whom the client named.
fn judgement_of(text: &str, asked: &str) -> Result<Judgement, String> {
    let answer: Answer =
        serde_json::from_str(text).map_err(|error| format!("its answer is wrong: {error}"))?;
    if !answer.admit {
        return Ok(Judgement::Refused(answer.reason));
    }
    let uid = answer.uid.unwrap_or_else(|| asked.to_owned());
    if !names::is_valid(&uid) {
        return Err("its answer is wrong: `uid` is not a valid user id".to_owned());
    }
    Ok(Judgement::Admitted { uid, issued_s: answer.issued_at, expires_s: answer.expires_at })
}

/// Name of a question in the cache. No token is kept.
fn key_of(auth: &Auth) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [&auth.uid, &auth.device, &auth.token] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.update(auth.platform.to_be_bytes());
    hash.finalize().into()
}

/// Judgements that hold for a while.
#[derive(Debug)]
struct Cache {
    known: HashMap<[u8; 32], (Judgement, Instant)>,
    /// In the order of their ends.
    order: VecDeque<([u8; 32], Instant)>,
    max: usize,
}

impl Cache {
    fn new(max: usize) -> Self {
        Self { known: HashMap::new(), order: VecDeque::new(), max }
    }

    fn get(&self, key: &[u8; 32], now: Instant, unix_s: u64) -> Option<Judgement> {
        let (judgement, until) = self.known.get(key)?;
        let has_expired =
            matches!(judgement, Judgement::Admitted { expires_s, .. } if (1..=unix_s).contains(expires_s));
        (now < *until && !has_expired).then(|| judgement.clone())
    }

    fn put(&mut self, key: [u8; 32], judgement: Judgement, now: Instant, until: Instant) {
        while let Some((oldest, end)) = self.order.front()
            && (*end <= now || self.order.len() >= self.max)
        {
            if self.known.get(oldest).is_some_and(|(_, known)| known == end) {
                self.known.remove(oldest);
            }
            self.order.pop_front();
        }
        self.known.insert(key, (judgement, until));
        self.order.push_back((key, until));
    }
}

/// Leaves a service alone that fails.
#[derive(Debug)]
struct Breaker {
    failures_max: usize,
    pause: Duration,
    /// Failures since the last answer.
    failures: usize,
    /// End of the pause; `None`: the service is asked.
    open_until: Option<Instant>,
}

impl Breaker {
    const fn new(failures_max: usize, pause: Duration) -> Self {
        Self { failures_max, pause, failures: 0, open_until: None }
    }

    /// True if the service may be asked. After a pause, one question tries it while the next pause has begun.
    fn may_ask(&mut self, now: Instant) -> bool {
        let Some(until) = self.open_until else { return true };
        let is_trial = now >= until;
        if is_trial {
            self.open_until = Some(now + self.pause);
        }
        is_trial
    }

    const fn on_answer(&mut self) {
        (self.failures, self.open_until) = (0, None);
    }

    fn on_failure(&mut self, now: Instant) {
        self.failures += 1;
        if self.failures >= self.failures_max {
            self.open_until = Some(now + self.pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    fn admitted(expires_s: u64) -> Judgement {
        Judgement::Admitted { uid: "alice".into(), issued_s: 0, expires_s }
    }

    #[test]
    fn a_judgement_is_kept_for_a_while_and_no_longer_than_its_token() {
        let mut cache = Cache::new(3);
        cache.put([1; 32], admitted(0), at(0), at(10));
        cache.put([2; 32], admitted(5), at(0), at(10));
        cache.put([3; 32], Judgement::Refused("no".into()), at(0), at(10));
        assert_eq!(cache.get(&[1; 32], at(9), 9), Some(admitted(0)));
        assert_eq!((cache.get(&[1; 32], at(10), 10), cache.get(&[9; 32], at(0), 0)), (None, None));
        assert_eq!((cache.get(&[2; 32], at(4), 4), cache.get(&[2; 32], at(5), 5)), (Some(admitted(5)), None));
        cache.put([4; 32], admitted(0), at(1), at(11));
        assert_eq!((cache.get(&[1; 32], at(2), 2), cache.known.len()), (None, 3), "the oldest makes room");
        cache.put([4; 32], admitted(9), at(10), at(20));
        assert_eq!((cache.known.len(), cache.order.len()), (1, 2));
        cache.put([5; 32], admitted(0), at(11), at(21));
        assert_eq!(cache.get(&[4; 32], at(11), 0), Some(admitted(9)), "put again, it lasts from then on");
    }

    #[test]
    fn a_service_that_fails_is_left_alone_and_tried_by_one_question() {
        let mut breaker = Breaker::new(2, Duration::from_secs(5));
        breaker.on_failure(at(0));
        assert!(breaker.may_ask(at(0)));
        breaker.on_failure(at(1));
        assert!(!breaker.may_ask(at(1)) && !breaker.may_ask(at(5)));
        assert!(breaker.may_ask(at(6)) && !breaker.may_ask(at(6)), "one trial");
        breaker.on_failure(at(7));
        assert!(!breaker.may_ask(at(11)) && breaker.may_ask(at(12)));
        breaker.on_answer();
        assert!(breaker.may_ask(at(12)) && breaker.may_ask(at(12)));
    }

    #[test]
    fn answers_are_read_strictly_and_names_are_checked() {
        let judged = |text| judgement_of(text, "alice");
        assert_eq!(judged("{\"admit\": true}"), Ok(admitted(0)));
        let all = "{\"admit\": true, \"uid\": \"a.smith\", \"issued_at\": 5, \"expires_at\": 9, \"more\": 1}";
        let smith = Judgement::Admitted { uid: "a.smith".into(), issued_s: 5, expires_s: 9 };
        assert_eq!(judged(all), Ok(smith));
        assert_eq!(judged("{\"admit\": false, \"reason\": \"left\"}"), Ok(Judgement::Refused("left".into())));
        for wrong in [
            "",
            "true",
            "{}",
            "{\"admit\": 1}",
            "{\"admit\": true, \"uid\": \"a:b\"}",
            "{\"admit\": true, \"uid\": \"\"}",
        ] {
            assert!(judged(wrong).is_err(), "{wrong}");
        }
        let auth =
            |uid: &str, device: &str| Auth { uid: uid.into(), device: device.into(), ..Auth::default() };
        assert_ne!(key_of(&auth("ab", "c")), key_of(&auth("a", "bc")));
    }
}
