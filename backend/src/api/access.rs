//! Callers of the server API: the token of each, what it may do and how often.
//!
//! Example: the file of `api.access_file` gives the token `shop` the scope `messages` and 50 requests per second. A
//! request of it to `/v1/kick` is answered 403, its 101st message of one second 429.

use super::problem::Problem;
use crate::config::ApiConfig;
use crate::error::BackendError;
use moorline_net::clock::Clock;
use moorline_net::http::{StatusCode, header::HeaderMap};
use moorline_net::secret_file;
use moorline_proto::time::{Duration, Instant};
use serde::Deserialize;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use subtle::ConstantTimeEq as _;

/// Bytes of the shortest token.
const TOKEN_BYTES_MIN: usize = 16;
/// Tokens of one file.
const TOKENS_MAX: usize = 256;
/// Bytes of a token's name.
const NAME_BYTES_MAX: usize = 64;
/// Limit of the file, in bytes.
const FILE_BYTES_MAX: u64 = 256 << 10;
/// Highest rate, in requests per second.
const RATE_MAX: u32 = 1_000_000;
/// Time whose requests may come at once after a calm.
const BURST: Duration = Duration::from_secs(2);
/// Name of the token of `api.token_file`.
const ONLY: &str = "default";

/// One thing that a token may be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Scope {
    /// Every path.
    All,
    /// `/v1/status`
    Status,
    /// `/v1/messages`
    Messages,
    /// `/v1/push`
    Push,
    /// `/v1/requests`
    Requests,
    /// `/v1/kick`
    Kick,
    /// `/v1/revoke`, `/v1/ban`, `/v1/unban`
    Revoke,
    /// `/v1/limit`
    Limit,
    /// `/v1/users/delete`, `/v1/groups/dissolve`, `/v1/retention`
    Delete,
}

impl Scope {
    /// The scope that a path needs; `None`: the path needs no token.
    pub(super) fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/v1/status" => Self::Status,
            "/v1/messages" => Self::Messages,
            "/v1/push" => Self::Push,
            "/v1/requests" => Self::Requests,
            "/v1/kick" => Self::Kick,
            "/v1/revoke" | "/v1/ban" | "/v1/unban" => Self::Revoke,
            "/v1/limit" => Self::Limit,
            "/v1/users/delete" | "/v1/groups/dissolve" | "/v1/retention" => Self::Delete,
            _ => return None,
        })
    }
}

/// Callers that the API knows.
#[derive(Debug)]
pub(crate) struct Access(Vec<Token>);

#[derive(Debug)]
struct Token {
    name: Arc<str>,
    secret: Vec<u8>,
    scopes: Vec<Scope>,
    /// Requests per second; 0: no limit.
    rate: u32,
    /// Time up to which the rate is used.
    used: Mutex<Instant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AccessFile {
    #[serde(default)]
    token: Vec<TokenEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenEntry {
    name: String,
    token: String,
    scopes: Vec<Scope>,
    #[serde(default)]
    rate: u32,
}

impl Access {
    /// Reads the files that the settings name.
    ///
    /// # Errors
    /// [`BackendError::InvalidConfig`], without a token in it.
    pub(crate) fn read(config: &ApiConfig) -> Result<Self, BackendError> {
        let mut tokens = Vec::new();
        if !config.token_file.as_os_str().is_empty() {
            let token = read_file("api.token_file", &config.token_file)?.trim().as_bytes().to_vec();
            tokens.push(Token::new(ONLY, token, vec![Scope::All], 0));
        }
        if !config.access_file.as_os_str().is_empty() {
            let text = read_file("api.access_file", &config.access_file)?;
            // The parser's own error shows the line, and with it the token.
            let AccessFile { token: entries } = toml::from_str(&text).map_err(|error| {
                let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
                let reason = format!("{}:{line}: {}", config.access_file.display(), error.message());
                BackendError::InvalidConfig { key: "api.access_file", reason }
            })?;
            for TokenEntry { name, token, scopes, rate } in entries {
                tokens.push(Token::new(&name, token.into_bytes(), scopes, rate));
            }
        }
        let access = Self(tokens);
        access.check().map_err(|reason| BackendError::InvalidConfig { key: "api.access_file", reason })?;
        Ok(access)
    }

    fn check(&self) -> Result<(), String> {
        let Self(tokens) = self;
        if !(1..=TOKENS_MAX).contains(&tokens.len()) {
            return Err(format!("{} tokens, expected 1 to {TOKENS_MAX}", tokens.len()));
        }
        for (at, Token { name, secret, scopes, rate, .. }) in tokens.iter().enumerate() {
            let is_name = (1..=NAME_BYTES_MAX).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"');
            if !is_name {
                let expected = "expected 1 to 64 visible ASCII characters without a quotation mark";
                return Err(format!("name {name:?}: {expected}"));
            }
            if secret.len() < TOKEN_BYTES_MIN || !secret.iter().all(u8::is_ascii_graphic) && &**name != ONLY {
                return Err(format!(
                    "the token `{name}` is too short or has other than visible ASCII characters: at least {TOKEN_BYTES_MIN} bytes"
                ));
            }
            if scopes.is_empty() || *rate > RATE_MAX {
                return Err(format!(
                    "the token `{name}`: at least one scope, and a rate of at most {RATE_MAX}"
                ));
            }
            if tokens[..at].iter().any(|other| other.name == *name || other.secret == *secret) {
                return Err(format!("the token `{name}`: another one has its name or its text"));
            }
        }
        Ok(())
    }

    /// Judges a request that needs `scope`. Returns the name of its token.
    ///
    /// # Errors
    /// 401: no such token; 403: not for this; 429: too often.
    pub(super) fn judge(
        &self,
        headers: &HeaderMap,
        scope: Scope,
        clock: &Clock,
    ) -> Result<Arc<str>, Problem> {
        let given = moorline_net::http::bearer(headers).unwrap_or_default();
        // All are compared, so that the time does not tell which one it is.
        let is_it = |token: &&Token| bool::from(token.secret.ct_eq(given));
        let Some(token) = self.0.iter().filter(is_it).fold(None, |found, token| found.or(Some(token))) else {
            let reason = "needs `Authorization: Bearer` and a token of `api.token_file` or `api.access_file`";
            return Err(Problem::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", reason));
        };
        if !token.scopes.iter().any(|own| *own == scope || *own == Scope::All) {
            let reason = format!("the token `{}` does not have the scope that this path needs", token.name);
            return Err(Problem::new(StatusCode::FORBIDDEN, "DENIED", reason));
        }
        if !token.try_use(clock.now()) {
            let reason =
                format!("the token `{}` makes more than {} requests a second", token.name, token.rate);
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "RETRY", reason));
        }
        Ok(Arc::clone(&token.name))
    }
}

impl Token {
    fn new(name: &str, secret: Vec<u8>, scopes: Vec<Scope>, rate: u32) -> Self {
        Self { name: name.into(), secret, scopes, rate, used: Mutex::new(Instant::ZERO) }
    }

    /// Counts a request against the rate. False: the rate is used up.
    fn try_use(&self, now: Instant) -> bool {
        if self.rate == 0 {
            return true;
        }
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let next = (*used).max(now) + Duration::from_secs(1) / self.rate;
        let fits = next.saturating_since(now) <= BURST;
        if fits {
            *used = next;
        }
        fits
    }
}

fn read_file(key: &'static str, path: &Path) -> Result<String, BackendError> {
    let wrong = |reason: String| BackendError::InvalidConfig { key, reason };
    let file = secret_file::read(path, FILE_BYTES_MAX).map_err(|error| wrong(error.to_string()))?;
    if let Some(warning) = file.warning {
        tracing::warn!(key, "{warning}");
    }
    String::from_utf8(file.bytes).map_err(|_| wrong(format!("{} is not UTF-8", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_net::http::header;

    fn access(text: &str) -> Result<Access, String> {
        let path =
            std::env::temp_dir().join(format!("moorline-access-{}-{}", std::process::id(), text.len()));
        std::fs::write(&path, text).expect("written");
        // Under umask 002 its group could write it.
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("ours");
        let config = ApiConfig { access_file: path.clone(), ..ApiConfig::default() };
        let access = Access::read(&config).map_err(|error| error.to_string());
        std::fs::remove_file(path).expect("there");
        access
    }

    fn judge(access: &Access, token: &str, path: &str) -> Result<String, u16> {
        static CLOCK: std::sync::LazyLock<Clock> = std::sync::LazyLock::new(Clock::default);
        let value = format!("Bearer {token}").parse().expect("a value");
        let headers = std::iter::once((header::AUTHORIZATION, value)).collect();
        let scope = Scope::of(path).expect("a path with a token");
        let judged = access.judge(&headers, scope, &CLOCK);
        judged.map(|name| name.to_string()).map_err(|problem| problem.into_response().status().as_u16())
    }

    const TWO: &str = "[[token]]\nname = 'shop'\ntoken = 'shop-0123456789abcdef'\nscopes = ['messages']\nrate = 5\n\
                       [[token]]\nname = 'ops'\ntoken = 'ops-0123456789abcdef'\nscopes = ['all']\n";

    #[test]
    fn each_token_has_its_own_scopes_and_rate() {
        let access = access(TWO).expect("valid");
        assert_eq!(judge(&access, "ops-0123456789abcdef", "/v1/ban"), Ok("ops".into()));
        assert_eq!(judge(&access, "shop-0123456789abcdef", "/v1/ban"), Err(403));
        assert_eq!(judge(&access, "shop-0123456789abcdeF", "/v1/messages"), Err(401));
        assert_eq!(judge(&access, "", "/v1/messages"), Err(401));
        // A burst of two seconds.
        for _ in 0..10 {
            assert_eq!(judge(&access, "shop-0123456789abcdef", "/v1/messages"), Ok("shop".into()));
        }
        let refused = (0..1000).any(|_| judge(&access, "shop-0123456789abcdef", "/v1/messages") == Err(429));
        assert!(refused, "five a second are not a thousand at once");
        assert_eq!(judge(&access, "ops-0123456789abcdef", "/v1/messages"), Ok("ops".into()), "its own rate");
    }

    #[test]
    fn a_faulty_file_is_told_without_its_tokens() {
        let entry = |rest: &str| format!("[[token]]\nname = 'a'\ntoken = 'secret-0123456789'\n{rest}\n");
        for (text, expected) in [
            (String::new(), "0 tokens, expected 1 to 256"),
            (entry("scopes = ['everything']"), ":4: unknown variant"),
            (entry("scopes = []"), "at least one scope"),
            (entry("scopes = ['all']\nrte = 1"), ":5: unknown field"),
            (entry("scopes = ['all']").repeat(2), "another one has its name or its text"),
            ("[[token]]\nname = 'b'\ntoken = 'short'\nscopes = ['all']".into(), "too short"),
            ("[[token]]\nname = ''\ntoken = 'secret-0123456789'\nscopes = ['all']".into(), "name \"\""),
            ("secret-0123456789".into(), ":1: "),
        ] {
            let said = access(&text).expect_err(&text);
            assert!(said.contains(expected) && !said.contains("secret-"), "{text}: {said}");
        }
    }
}
