//! Tokens for a gateway that checks them: signed by HS256 or Ed25519, or read from a file.
//!
//! Example: `--key-file ed25519.pem` signs a token for each client with the private key whose public half the gateway has.
//! `--token-file tokens` takes the token of client 7 from line 8.

use crate::clock;
use crate::exit::Failure;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer as _, SigningKey};
use hmac::{Hmac, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::fmt;
use std::path::Path;

/// A token is good for this long, in seconds: longer than any run's ramp.
const VALID_SECONDS: u64 = 24 * 3_600;
/// Longest key file, in bytes.
const KEY_BYTES_MAX: u64 = 64 << 10;
/// Longest token file, in bytes: a million tokens of 500 bytes.
const TOKENS_BYTES_MAX: u64 = 512 << 20;

/// DER of the PKCS #8 form of every Ed25519 private key, up to the key itself (RFC 8410, 7).
const ED25519_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// Bytes of an Ed25519 private key.
const ED25519_BYTES: usize = 32;
const PEM_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const PEM_END: &str = "-----END PRIVATE KEY-----";

/// Key that signs.
enum Key {
    /// HMAC that has taken the secret and no message yet.
    Hs256(Box<Hmac<Sha256>>),
    /// Private key of Ed25519.
    EdDsa(Box<SigningKey>),
}

/// Signs one token per client.
#[derive(Debug)]
pub struct TokenMint {
    key: Key,
    audience: Option<String>,
}

/// Tokens of a file, one a line, by number of the client.
#[derive(Debug, Default)]
pub struct TokenList(Vec<Listed>);

/// A line of a token file.
#[derive(Debug)]
struct Listed {
    uid: String,
    token: String,
}

/// Source of the clients' tokens.
#[derive(Debug)]
pub enum Tokens {
    /// HELLO carries none, which a gateway in dev mode accepts.
    None,
    /// Signed for each client.
    Mint(TokenMint),
    /// From a file.
    List(TokenList),
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    exp: u64,
    iat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
}

/// The part of a token's claims that names the user.
#[derive(Deserialize)]
struct Subject {
    sub: String,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.algorithm())
    }
}

impl Key {
    const fn algorithm(&self) -> &'static str {
        match self {
            Self::Hs256(_) => "HS256",
            Self::EdDsa(_) => "EdDSA",
        }
    }

    fn sign(&self, text: &str) -> Vec<u8> {
        match self {
            Self::Hs256(mac) => mac.as_ref().clone().chain_update(text).finalize().into_bytes().to_vec(),
            Self::EdDsa(key) => key.sign(text.as_bytes()).to_vec(),
        }
    }
}

impl TokenMint {
    /// Reads the key: an Ed25519 private key in PEM, or the shared secret as the gateway reads it, where a text loses the line
    /// ends after it and `base64:` leads an encoded one.
    pub fn from_file(path: &Path, audience: Option<String>) -> Result<Self, Failure> {
        let secret = read(path, KEY_BYTES_MAX, "key")?;
        let refused = |problem: &str| Failure::Usage(format!("key file {}: {problem}", path.display()));
        let is_text = secret.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
        if secret.trim_ascii_start().starts_with(b"-----") {
            let key = ed25519_key(&secret).ok_or_else(|| {
                refused(
                    "no Ed25519 private key; expected -----BEGIN PRIVATE KEY-----, as `openssl genpkey -algorithm \
                     ed25519` writes it",
                )
            })?;
            return Ok(Self { key: Key::EdDsa(Box::new(key)), audience });
        }
        let secret = if is_text { secret.trim_ascii_end() } else { &secret };
        let Some(encoded) = secret.strip_prefix(b"base64:") else { return Ok(Self::new(secret, audience)) };
        let secret = STANDARD.decode(encoded.trim_ascii()).map_err(|_| refused("no base64 after base64:"))?;
        Ok(Self::new(&secret, audience))
    }

    /// From the HS256 secret itself.
    pub fn new(secret: &[u8], audience: Option<String>) -> Self {
        let mac = Hmac::new_from_slice(secret).expect("HMAC takes keys of any length");
        Self { key: Key::Hs256(Box::new(mac)), audience }
    }

    /// The token of one user.
    pub fn token(&self, uid: &str) -> String {
        let now = clock::unix_seconds();
        let claims = Claims { sub: uid, exp: now + VALID_SECONDS, iat: now, aud: self.audience.as_deref() };
        let claims = serde_json::to_vec(&claims).expect("plain data");
        let header = format!(r#"{{"typ":"JWT","alg":"{}"}}"#, self.key.algorithm());
        signed(&self.key, header.as_bytes(), &claims)
    }
}

impl TokenList {
    /// Reads a file with a token a line for at least `clients` clients. A line may have the user's id and a space before the
    /// token; otherwise the token is a JWT, whose subject is the user.
    pub fn from_file(path: &Path, clients: u32) -> Result<Self, Failure> {
        let text = read(path, TOKENS_BYTES_MAX, "token")?;
        let refused = |problem: String| Failure::Usage(format!("token file {}: {problem}", path.display()));
        let text = str::from_utf8(&text).map_err(|_| refused("not text".into()))?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let listed = lines.take(clients as usize).map(|(number, line)| {
            listed(line).ok_or_else(|| {
                refused(format!(
                    "line {}: no JWT with a subject; expected one, or the user's id, a space and a token",
                    number + 1
                ))
            })
        });
        let listed = listed.collect::<Result<Vec<_>, _>>()?;
        if listed.len() < clients as usize {
            return Err(refused(format!(
                "{} tokens are fewer than {clients} clients: add lines, or lower -c",
                listed.len()
            )));
        }
        Ok(Self(listed))
    }

    fn of(&self, number: u32) -> Option<&Listed> {
        self.0.get(number as usize)
    }
}

impl Tokens {
    /// User and token of a client, by its number in the run. `uid`: the name that it has unless a file names it.
    pub fn login(&self, number: u32, uid: &str) -> (String, String) {
        match self {
            Self::None => (uid.to_owned(), String::new()),
            Self::Mint(mint) => (uid.to_owned(), mint.token(uid)),
            Self::List(list) => list
                .of(number)
                .map_or_else(Default::default, |Listed { uid, token }| (uid.clone(), token.clone())),
        }
    }

    /// Name of a client, if a file gives it.
    pub fn uid(&self, number: u32) -> Option<&str> {
        match self {
            Self::List(list) => list.of(number).map(|listed| &*listed.uid),
            Self::None | Self::Mint(_) => None,
        }
    }
}

fn read(path: &Path, bytes_max: u64, kind: &str) -> Result<Vec<u8>, Failure> {
    let cannot =
        |problem: String| Failure::Usage(format!("cannot read {kind} file {}: {problem}", path.display()));
    let found = std::fs::metadata(path).map_err(|error| cannot(error.to_string()))?;
    if found.len() > bytes_max {
        return Err(cannot(format!("it has {} bytes, expected at most {bytes_max}", found.len())));
    }
    std::fs::read(path).map_err(|error| cannot(error.to_string()))
}

/// Reads an Ed25519 private key in PEM.
fn ed25519_key(pem: &[u8]) -> Option<SigningKey> {
    let text = str::from_utf8(pem).ok()?.trim();
    let body = text.strip_prefix(PEM_BEGIN)?.split(PEM_END).next()?;
    let body: String = body.split_ascii_whitespace().collect();
    let der = STANDARD.decode(body).ok()?;
    let key = der.strip_prefix(&ED25519_PREFIX)?;
    let key: [u8; ED25519_BYTES] = key.get(..ED25519_BYTES)?.try_into().ok()?;
    Some(SigningKey::from_bytes(&key))
}

fn listed(line: &str) -> Option<Listed> {
    let mut words = line.split_ascii_whitespace();
    let (first, second) = (words.next()?, words.next());
    if words.next().is_some() {
        return None;
    }
    if let Some(token) = second {
        return Some(Listed { uid: first.to_owned(), token: token.to_owned() });
    }
    let claims = URL_SAFE_NO_PAD.decode(first.split('.').nth(1)?).ok()?;
    let Subject { sub } = serde_json::from_slice(&claims).ok()?;
    Some(Listed { uid: sub, token: first.to_owned() })
}

/// Returns the compact form (RFC 7515, 7.1).
fn signed(key: &Key, header: &[u8], claims: &[u8]) -> String {
    let mut token = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = key.sign(&token);
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
        assert_eq!(signed(&mint.key, header, claims), expected);
    }

    /// RFC 8037, A.4.
    #[test]
    fn the_example_of_ed25519_is_signed_as_in_the_specification() {
        let seed = URL_SAFE_NO_PAD.decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A").unwrap();
        let pem = format!(
            "{PEM_BEGIN}\n{}\n{PEM_END}\n",
            STANDARD.encode([&ED25519_PREFIX[..], &seed[..]].concat())
        );
        let key = Key::EdDsa(Box::new(ed25519_key(pem.as_bytes()).expect("a key")));
        let expected = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.\
            hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
        let signed = signed(&key, br#"{"alg":"EdDSA"}"#, b"Example of Ed25519 signing");
        assert_eq!(signed, expected);
        let public = pem.replace("PRIVATE", "PUBLIC");
        for wrong in [public.as_str(), PEM_BEGIN, "-----BEGIN PRIVATE KEY-----AAAA-----END PRIVATE KEY-----"]
        {
            assert!(ed25519_key(wrong.as_bytes()).is_none(), "{wrong}");
        }
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
        assert_ne!(signed(&other.key, br#"{"typ":"JWT","alg":"HS256"}"#, &claims), token);
    }

    #[test]
    fn a_file_has_a_token_for_each_client_and_names_its_user() {
        let path = std::env::temp_dir().join(format!("moorload-tokens-{}", std::process::id()));
        let jwt = TokenMint::new(b"a secret of a decent length", None).token("alice");
        let read = |text: &str, clients| {
            std::fs::write(&path, text).unwrap();
            TokenList::from_file(&path, clients).map_err(|failure| failure.to_string())
        };
        let tokens = Tokens::List(read(&format!("{jwt}\n\nbob s3cret\r\n"), 2).unwrap());
        assert_eq!(tokens.login(0, "load-0"), ("alice".into(), jwt.clone()));
        assert_eq!(tokens.login(1, "load-1"), ("bob".into(), "s3cret".into()));
        assert_eq!(tokens.uid(1), Some("bob"));
        let said = read(&jwt, 2).unwrap_err();
        assert!(said.contains("1 tokens are fewer than 2 clients"), "{said}");
        for wrong in ["s3cret", "a b c", "a.b.c"] {
            let said = read(wrong, 1).unwrap_err();
            assert!(said.contains("line 1: no JWT"), "{said}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(read("", 1).is_err());
        std::fs::remove_file(&path).unwrap();
        assert!(TokenList::from_file(&path, 1).unwrap_err().to_string().contains("cannot read token file"));
    }
}
