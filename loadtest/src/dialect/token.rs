//! Tokens for a gateway that checks them: HS256, made from the same key file.

use crate::clock;
use crate::exit::Failure;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde::Serialize;
use std::path::Path;

/// A token is good for this long, in seconds: longer than any run's ramp.
const VALID_SECONDS: u64 = 24 * 3_600;

/// Makes one token per client.
#[derive(Debug)]
pub struct TokenMint {
    key: EncodingKey,
    audience: Option<String>,
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    exp: u64,
    iat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
}

impl TokenMint {
    /// From the shared secret in a file, as the gateway reads it: a text loses the line ends after it,
    /// `base64:` leads an encoded one.
    pub fn from_file(path: &Path, audience: Option<String>) -> Result<Self, Failure> {
        let secret = std::fs::read(path)
            .map_err(|error| Failure::Usage(format!("cannot read key file {}: {error}", path.display())))?;
        let is_text = secret.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
        let secret = if is_text { secret.trim_ascii_end() } else { &secret };
        let Some(encoded) = secret.strip_prefix(b"base64:") else { return Ok(Self::new(secret, audience)) };
        let key = EncodingKey::from_base64_secret(str::from_utf8(encoded).unwrap_or("").trim());
        let key = key.map_err(|_| Failure::Usage(format!("{}: no base64 after base64:", path.display())))?;
        Ok(Self { key, audience })
    }

    /// From the secret itself.
    pub fn new(secret: &[u8], audience: Option<String>) -> Self {
        Self { key: EncodingKey::from_secret(secret), audience }
    }

    /// The token of one user.
    pub fn token(&self, uid: &str) -> String {
        let now = clock::unix_seconds();
        let claims = Claims { sub: uid, exp: now + VALID_SECONDS, iat: now, aud: self.audience.as_deref() };
        encode(&Header::default(), &claims, &self.key).expect("an HMAC key signs any claims")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};

    #[test]
    fn tokens_pass_a_check_with_the_same_secret_and_no_other() {
        let token = TokenMint::new(b"a secret of a decent length", Some("im".into())).token("load-7");
        let mut rules = Validation::new(Algorithm::HS256);
        rules.set_audience(&["im"]);
        let with =
            |secret: &[u8]| decode::<serde_json::Value>(&token, &DecodingKey::from_secret(secret), &rules);
        let claims = with(b"a secret of a decent length").unwrap().claims;
        assert_eq!(claims["sub"], "load-7");
        assert!(with(b"another secret").is_err());
    }
}
