//! Tokens for a gateway that checks them: HS256, made from the same key file.

use crate::clock;
use crate::exit::Failure;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac as _};
use serde::Serialize;
use sha2::Sha256;
use std::path::Path;

/// A token is good for this long, in seconds: longer than any run's ramp.
const VALID_SECONDS: u64 = 24 * 3_600;

/// First part of every token: the algorithm.
const HEADER: &str = r#"{"typ":"JWT","alg":"HS256"}"#;

/// Makes one token per client.
#[derive(Debug)]
pub struct TokenMint {
    /// HMAC that has taken the secret and no message yet.
    mac: Hmac<Sha256>,
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
        let secret = STANDARD.decode(encoded.trim_ascii());
        let secret =
            secret.map_err(|_| Failure::Usage(format!("{}: no base64 after base64:", path.display())))?;
        Ok(Self::new(&secret, audience))
    }

    /// From the secret itself.
    pub fn new(secret: &[u8], audience: Option<String>) -> Self {
        Self { mac: Hmac::new_from_slice(secret).expect("HMAC takes keys of any length"), audience }
    }

    /// The token of one user.
    pub fn token(&self, uid: &str) -> String {
        let now = clock::unix_seconds();
        let claims = Claims { sub: uid, exp: now + VALID_SECONDS, iat: now, aud: self.audience.as_deref() };
        let claims = serde_json::to_vec(&claims).expect("plain data");
        signed(&self.mac, HEADER.as_bytes(), &claims)
    }
}

/// Returns the compact form (RFC 7515, 7.1).
fn signed(mac: &Hmac<Sha256>, header: &[u8], claims: &[u8]) -> String {
    let mut token = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = mac.clone().chain_update(&token).finalize().into_bytes();
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    token
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7515, A.1.
    #[test]
    fn the_example_of_the_specification_is_signed_as_there() {
        let key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
        let mint = TokenMint::new(&URL_SAFE_NO_PAD.decode(key).unwrap(), None);
        let header = b"{\"typ\":\"JWT\",\r\n \"alg\":\"HS256\"}";
        let claims = b"{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}";
        let expected = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.\
            eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.\
            dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        assert_eq!(signed(&mint.mac, header, claims), expected);
    }

    #[test]
    fn a_token_names_the_user_and_depends_on_the_secret() {
        let token = TokenMint::new(b"a secret of a decent length", Some("im".into())).token("load-7");
        let parts: Vec<_> = token.split('.').collect();
        let json = |part: &str| -> serde_json::Value {
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
        };
        let claims = json(parts[1]);
        assert_eq!((json(parts[0])["alg"].as_str(), parts.len()), (Some("HS256"), 3));
        assert_eq!((claims["sub"].as_str(), claims["aud"].as_str()), (Some("load-7"), Some("im")));
        assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), VALID_SECONDS);
        let other = TokenMint::new(b"another secret", None);
        let claims = URL_SAFE_NO_PAD.decode(parts[1]).unwrap();
        assert_ne!(signed(&other.mac, HEADER.as_bytes(), &claims), token);
    }
}
