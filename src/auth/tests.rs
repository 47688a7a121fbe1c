//! Tokens that must be let in, and those that must not.

use super::*;
use crate::config::{Algorithm, Config};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer as _, SigningKey};
use hmac::{Hmac, Mac as _};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const NOW: u64 = 1_800_000_000;
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
// Made for these tests, used nowhere else.
const ED_PRIVATE: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIBh9n993+wN3QxS5wBto7eG7dUi4NVk/LGIFno67vsqV
-----END PRIVATE KEY-----
";
/// Bytes of a PKCS #8 Ed25519 private key before the seed.
const PKCS8_PREFIX: usize = 16;
const ED_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEANed7n4oIYA4FfPCMitiltBCgJlsmceja+PVoDpW4ERA=
-----END PUBLIC KEY-----
";

struct KeyFile(PathBuf);

impl KeyFile {
    fn new(content: impl AsRef<[u8]>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("moorline-key-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, content).expect("temp file");
        // Under umask 002 its group could write it.
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("ours");
        Self(path)
    }
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

fn config(algorithm: Algorithm, key_file: &Path) -> AuthConfig {
    AuthConfig { algorithm, key_file: key_file.to_owned(), ..Config::default().auth }
}

fn verifier(config: &AuthConfig) -> Result<Arc<dyn Verify>, AuthError> {
    match super::judge(config)? {
        Judge::Here(verifier) => Ok(verifier),
        Judge::Backend => panic!("not asked for"),
    }
}

fn build(algorithm: Algorithm, content: impl AsRef<[u8]>) -> Result<Arc<dyn Verify>, AuthError> {
    let file = KeyFile::new(content);
    verifier(&config(algorithm, &file.0))
}

fn refused(result: Result<Arc<dyn Verify>, AuthError>) -> String {
    result.map(|_| ()).expect_err("must be refused").to_string()
}

fn hello(uid: &str, device: &str, token: &str) -> Hello {
    Hello { uid: uid.into(), device: device.into(), token: token.into(), ..Hello::default() }
}

/// A token in compact form, put together without the library that verifies it.
fn token(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let message = format!("{}.{}", part(header.to_string().as_bytes()), part(claims.to_string().as_bytes()));
    let signature = part(&sign(message.as_bytes()));
    format!("{message}.{signature}")
}

fn hs256_with(secret: &[u8], header: &Value, claims: &Value) -> String {
    let mac = Hmac::<sha2::Sha256>::new_from_slice(secret).expect("a key");
    token(header, claims, |message| mac.chain_update(message).finalize().into_bytes().to_vec())
}

fn hs256(claims: &Value) -> String {
    hs256_with(SECRET, &json!({"typ": "JWT", "alg": "HS256"}), claims)
}

fn hs512(claims: &Value) -> String {
    let mac = Hmac::<sha2::Sha512>::new_from_slice(SECRET).expect("a key");
    let sign = |message: &[u8]| mac.chain_update(message).finalize().into_bytes().to_vec();
    token(&json!({"typ": "JWT", "alg": "HS512"}), claims, sign)
}

fn edwards(claims: &Value) -> String {
    edwards_with(&json!({"typ": "JWT", "alg": "EdDSA"}), claims)
}

fn edwards_with(header: &Value, claims: &Value) -> String {
    let body = ED_PRIVATE.lines().nth(1).expect("base64");
    let der = base64::engine::general_purpose::STANDARD.decode(body).expect("base64");
    let key = SigningKey::from_bytes(der[PKCS8_PREFIX..].try_into().expect("a seed"));
    token(header, claims, |message| key.sign(message).to_vec())
}

fn judge(claims: &Value) -> Result<Admission, CloseReason> {
    let verifier = build(Algorithm::HS256, SECRET).expect("key");
    verifier.verify(&hello("alice", "phone", &hs256(claims)), NOW)
}

#[test]
fn a_good_token_admits_the_user_on_the_device() {
    let admission = judge(&json!({"sub": "alice", "exp": NOW + 60})).expect("admitted");
    assert_eq!(
        admission,
        Admission {
            uid: "alice".into(),
            device: "phone".into(),
            expires_s: NOW + 60,
            ..Admission::default()
        }
    );
    let bound = json!({"sub": "alice", "exp": NOW + 60, "did": "phone", "nbf": NOW, "aud": "any", "x": 1});
    assert!(judge(&bound).is_ok());
    assert!(judge(&json!({"sub": "alice", "exp": 1_800_000_000.5})).is_ok());
}

#[test]
fn time_has_its_leeway_and_its_own_reason() {
    assert!(judge(&json!({"sub": "alice", "exp": NOW - 29})).is_ok());
    assert_eq!(judge(&json!({"sub": "alice", "exp": NOW - 30})), Err(CloseReason::TokenExpired));
    assert_eq!(judge(&json!({"sub": "alice", "exp": 0})), Err(CloseReason::TokenExpired));
    assert!(judge(&json!({"sub": "alice", "exp": NOW + 60, "nbf": NOW + 30})).is_ok());
    assert_eq!(
        judge(&json!({"sub": "alice", "exp": NOW + 60, "nbf": NOW + 31})),
        Err(CloseReason::AuthFailed)
    );
}

#[test]
fn claims_that_do_not_fit_the_hello_are_refused() {
    for claims in [
        json!({"sub": "bob", "exp": NOW + 60}),
        json!({"sub": "alice", "exp": NOW + 60, "did": "laptop"}),
        json!({"exp": NOW + 60}),
        json!({"sub": "alice"}),
        json!({"sub": "alice", "exp": "tomorrow"}),
        json!({"sub": 7, "exp": NOW + 60}),
        json!({"sub": "bob", "exp": 0}),
    ] {
        assert_eq!(judge(&claims), Err(CloseReason::AuthFailed), "{claims}");
    }
}

#[test]
fn an_audience_is_required_once_configured() {
    let file = KeyFile::new(SECRET);
    let config = AuthConfig { audience: "im".into(), ..config(Algorithm::HS256, &file.0) };
    let verifier = verifier(&config).expect("key");
    let judge = |aud: Value| {
        let mut claims = json!({"sub": "alice", "exp": NOW + 60});
        if !aud.is_null() {
            claims["aud"] = aud;
        }
        verifier.verify(&hello("alice", "phone", &hs256(&claims)), NOW).is_ok()
    };
    assert!(judge(json!("im")) && judge(json!(["other", "im"])));
    assert!(!judge(json!("other")) && !judge(json!([])) && !judge(Value::Null));
}

#[test]
fn a_wrong_key_and_a_changed_token_are_refused() {
    let verifier = build(Algorithm::HS256, b"another secret of thirty-two bytes").expect("key");
    let good = hs256(&json!({"sub": "alice", "exp": NOW + 60}));
    assert_eq!(verifier.verify(&hello("alice", "phone", &good), NOW), Err(CloseReason::AuthFailed));
    let verifier = build(Algorithm::HS256, SECRET).expect("key");
    assert!(verifier.verify(&hello("alice", "phone", &good), NOW).is_ok());
    let (signed, signature) = good.rsplit_once('.').expect("three parts");
    let other = hs256(&json!({"sub": "alice", "exp": NOW + 61}));
    let spliced = format!("{}.{signature}", other.rsplit_once('.').expect("three parts").0);
    for bad in [
        spliced.as_str(),
        signed,
        &format!("{signed}."),
        &format!("{good}A"),
        &format!(" {good}"),
        "",
        "..",
        "a.b.c",
    ] {
        assert_eq!(
            verifier.verify(&hello("alice", "phone", bad), NOW),
            Err(CloseReason::AuthFailed),
            "{bad}"
        );
    }
}

#[test]
fn a_token_cannot_choose_its_algorithm() {
    let claims = json!({"sub": "alice", "exp": NOW + 60});
    let ed = edwards(&claims);
    let hs512 = hs512(&claims);
    let header = json!({"typ": "JWT", "alg": "HS256"});
    let hs_with_public_key = hs256_with(ED_PUBLIC.as_bytes(), &header, &claims);
    // {"typ":"JWT","alg":"none"} and the claims of `ed`.
    let payload = ed.split('.').nth(1).expect("claims");
    let none = format!("eyJ0eXAiOiJKV1QiLCJhbGciOiJub25lIn0.{payload}.");

    let hmac = build(Algorithm::HS256, SECRET).expect("key");
    let edwards = build(Algorithm::EdDSA, ED_PUBLIC).expect("key");
    let around = format!("a key of ours\n{}\n\n", ED_PUBLIC.replace('\n', "\r\n"));
    assert!(build(Algorithm::EdDSA, around).is_ok(), "text around the key is ignored");
    assert!(edwards.verify(&hello("alice", "phone", &ed), NOW).is_ok());
    for (verifier, token) in [
        (&hmac, &ed),
        (&hmac, &hs512),
        (&hmac, &none),
        (&edwards, &hs256(&claims)),
        (&edwards, &hs_with_public_key),
        (&edwards, &none),
    ] {
        assert_eq!(
            verifier.verify(&hello("alice", "phone", token), NOW),
            Err(CloseReason::AuthFailed),
            "{token}"
        );
    }
}

#[test]
fn critical_extensions_are_refused() {
    let header = json!({"alg": "HS256", "crit": ["b64"]});
    let token = hs256_with(SECRET, &header, &json!({"sub": "alice", "exp": NOW + 60}));
    let verifier = build(Algorithm::HS256, SECRET).expect("key");
    assert_eq!(verifier.verify(&hello("alice", "phone", &token), NOW), Err(CloseReason::AuthFailed));
}

#[test]
fn a_huge_token_is_refused_unread() {
    let token = hs256(&json!({"sub": "alice", "exp": NOW + 60, "pad": "x".repeat(70_000)}));
    let verifier = build(Algorithm::HS256, SECRET).expect("key");
    assert_eq!(verifier.verify(&hello("alice", "phone", &token), NOW), Err(CloseReason::AuthFailed));
}

#[test]
fn names_have_rules_in_both_modes() {
    let dev = verifier(&AuthConfig { mode: AuthMode::Dev, ..Config::default().auth }).expect("no key needed");
    let jwt = build(Algorithm::HS256, SECRET).expect("key");
    let long = "x".repeat(65);
    for name in ["", "a:b", "a\nb", "a\u{7f}", &long] {
        let token = hs256(&json!({"sub": name, "exp": NOW + 60}));
        for verifier in [&dev, &jwt] {
            assert_eq!(
                verifier.verify(&hello(name, "d", &token), NOW),
                Err(CloseReason::AuthFailed),
                "{name:?}"
            );
            assert_eq!(
                verifier.verify(&hello("u", name, &token), NOW),
                Err(CloseReason::AuthFailed),
                "{name:?}"
            );
        }
    }
    let admission = dev.verify(&hello("Zoë", &"x".repeat(64), "no token"), NOW).expect("well-formed");
    assert_eq!(admission.uid, "Zoë");
}

#[test]
fn key_files_are_read_raw_or_as_base64_and_checked() {
    let claims = json!({"sub": "alice", "exp": NOW + 60});
    let admits =
        |verifier: &Arc<dyn Verify>| verifier.verify(&hello("alice", "p", &hs256(&claims)), NOW).is_ok();
    assert!(admits(&build(Algorithm::HS256, [SECRET, b"\n"].concat()).expect("text with its line end")));
    let encoded = "base64:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n";
    assert!(admits(&build(Algorithm::HS256, encoded).expect("base64")));
    assert!(build(Algorithm::HS256, [7; 31].iter().chain(b"\n").copied().collect::<Vec<u8>>()).is_ok());
    for (algorithm, content, expected) in [
        (Algorithm::HS256, "short", "at least 32 bytes"),
        (Algorithm::HS256, "", "at least 32 bytes"),
        (Algorithm::HS256, "base64:!!", "not standard base64"),
        (Algorithm::HS256, ED_PUBLIC, "this is PEM"),
        (Algorithm::EdDSA, ED_PRIVATE, "no Ed25519 public key"),
        (Algorithm::EdDSA, "0123456789abcdef0123456789abcdef", "no Ed25519 public key"),
        (Algorithm::EdDSA, &ED_PUBLIC.replace("MCow", "MCov"), "no Ed25519 public key"),
        (Algorithm::EdDSA, &ED_PUBLIC.replace("4ERA=", "4E=="), "no Ed25519 public key"),
    ] {
        let said = refused(build(algorithm, content));
        assert!(said.contains(expected) && !said.contains("MC4C"), "{said}");
    }
    assert!(refused(build(Algorithm::HS256, vec![b'x'; 300_000])).contains("more than 262144 bytes"));
    let missing = refused(verifier(&config(Algorithm::HS256, Path::new("/nonexistent/key"))));
    assert!(missing.starts_with("cannot read auth.key_file /nonexistent/key: "), "{missing}");
}

#[test]
fn signed_tokens_verify() {
    let file = KeyFile::new(SECRET);
    let verifier = verifier(&config(Algorithm::HS256, &file.0)).expect("key");
    let grant = Grant {
        uid: "alice".into(),
        device: Some("phone".into()),
        audience: None,
        kid: None,
        ttl: Duration::from_secs(60),
    };
    let token = sign(&file.0, &grant, NOW).expect("signs");
    assert!(verifier.verify(&hello("alice", "phone", &token), NOW).is_ok());
    assert_eq!(verifier.verify(&hello("alice", "laptop", &token), NOW), Err(CloseReason::AuthFailed));
    assert_eq!(verifier.verify(&hello("alice", "phone", &token), NOW + 90), Err(CloseReason::TokenExpired));
    let said = sign(&file.0, &Grant { uid: "a:b".into(), ..grant }, NOW).expect_err("no such id").to_string();
    assert_eq!(said, "uid \"a:b\": contains ':'");
}

fn grant(kid: Option<&str>) -> Grant {
    let kid = kid.map(str::to_owned);
    Grant { uid: "alice".into(), device: None, audience: None, kid, ttl: Duration::from_secs(60) }
}

#[test]
fn a_token_is_signed_with_the_algorithm_of_the_key_file_and_names_its_key() {
    let set = build(Algorithm::HS256, key_set()).expect("a set");
    let one = build(Algorithm::EdDSA, ED_PUBLIC).expect("a key");
    // As `openssl pkey -text` writes it.
    let with_text = format!("ED25519 Private-Key:\npriv:\n{ED_PRIVATE}pub:\n");
    for (content, kid, others) in [
        (ED_PRIVATE, "june", ["may", "rsa"]),
        (&with_text, "june", ["may", "rsa"]),
        ("secret", "may", ["june", "enc"]),
    ] {
        let file = KeyFile::new(if content == "secret" { SECRET } else { content.as_bytes() });
        let admits = |by: &Arc<dyn Verify>, kid: Option<&str>| {
            by.verify(&hello("alice", "p", &sign(&file.0, &grant(kid), NOW).expect("signs")), NOW).is_ok()
        };
        assert!(admits(&set, Some(kid)) && !admits(&set, None), "{content}");
        assert!(!others.iter().any(|other| admits(&set, Some(other))), "{content}");
        assert_eq!((admits(&one, None), admits(&one, Some("any"))), (kid == "june", kid == "june"));
    }
}

#[test]
fn a_file_that_cannot_sign_is_named_with_cause_and_fix() {
    let rsa = ED_PRIVATE.replace("MC4C", "MC4D");
    for (content, expected) in [
        ("short", "an HS256 secret has at least 32 bytes; make one with"),
        (ED_PUBLIC, "this is a public key, which verifies tokens; give the private key"),
        (
            &key_set(),
            "this is a key set (JWKS), which verifies tokens; give the secret or the private key alone",
        ),
        (&ED_PRIVATE.replace("PRIVATE", "ENCRYPTED PRIVATE"), "encrypted; decrypt it with: openssl pkey"),
        (
            &ED_PRIVATE.replace("PRIVATE", "OPENSSH PRIVATE"),
            "no Ed25519 private key in PEM (PKCS #8); make one",
        ),
        (&ED_PRIVATE.replace("END", "AND"), "no Ed25519 private key"),
        (&rsa, "no Ed25519 private key"),
        ("-----BEGIN PRIVATE KEY-----!!-----END PRIVATE KEY-----", "no Ed25519 private key"),
    ] {
        let file = KeyFile::new(content);
        let said = sign(&file.0, &grant(None), NOW).expect_err(content).to_string();
        let begins = said.starts_with(&format!("cannot sign with --key-file {}: ", file.0.display()));
        assert!(begins && said.contains(expected) && !said.contains("MC4"), "{said}");
    }
    let missing = sign(Path::new("/nonexistent/key"), &grant(None), NOW).expect_err("no file").to_string();
    assert!(missing.starts_with("cannot sign with --key-file /nonexistent/key: No such file"), "{missing}");
    let file = KeyFile::new(SECRET);
    for kid in ["a\nb", &"k".repeat(257)] {
        let said = sign(&file.0, &grant(Some(kid)), NOW).expect_err("no name").to_string();
        assert!(said.starts_with("kid ") && said.contains("at most 256 bytes"), "{said}");
    }
}

/// A set with an HS256 key `may`, an EdDSA key `june`, and keys for other purposes.
fn key_set() -> String {
    let der = base64::engine::general_purpose::STANDARD.decode(ED_PUBLIC.lines().nth(1).expect("base64"));
    let x = URL_SAFE_NO_PAD.encode(&der.expect("base64")[12..]);
    json!({ "keys": [
        { "kty": "oct", "kid": "may", "alg": "HS256", "k": URL_SAFE_NO_PAD.encode(SECRET) },
        { "kty": "OKP", "kid": "june", "crv": "Ed25519", "x": x, "use": "sig" },
        { "kty": "RSA", "kid": "rsa", "n": "AQAB", "e": "AQAB" },
        { "kty": "oct", "kid": "enc", "use": "enc", "k": "AQAB" },
    ] })
    .to_string()
}

fn with_kid(algorithm: &str, kid: Option<&str>, claims: &Value) -> String {
    let mut header = json!({ "typ": "JWT", "alg": algorithm });
    if let Some(kid) = kid {
        header["kid"] = kid.into();
    }
    if algorithm == "HS256" { hs256_with(SECRET, &header, claims) } else { edwards_with(&header, claims) }
}

#[test]
fn a_token_is_verified_with_the_key_that_it_names_and_its_algorithm() {
    let verifier = build(Algorithm::HS256, key_set()).expect("a set");
    let claims = json!({ "sub": "alice", "exp": NOW + 60 });
    let admits = |token: &str| verifier.verify(&hello("alice", "p", token), NOW).is_ok();
    assert!(admits(&with_kid("HS256", Some("may"), &claims)));
    assert!(admits(&with_kid("EdDSA", Some("june"), &claims)));
    for (algorithm, kid) in [
        ("HS256", None),
        ("HS256", Some("june")),
        ("HS256", Some("april")),
        ("HS256", Some("enc")),
        ("EdDSA", Some("may")),
        ("EdDSA", None),
    ] {
        assert!(!admits(&with_kid(algorithm, kid, &claims)), "{algorithm} {kid:?}");
    }
    // The public key of `june` as an HMAC secret.
    let public = URL_SAFE_NO_PAD.decode(
        serde_json::from_str::<Value>(&key_set()).expect("JSON")["keys"][1]["x"].as_str().expect("text"),
    );
    let forged = hs256_with(&public.expect("base64url"), &json!({ "alg": "HS256", "kid": "june" }), &claims);
    assert!(!admits(&forged));
    // A token without a name has the key without a name; one key verifies tokens of any name.
    let secret = URL_SAFE_NO_PAD.encode(SECRET);
    let unnamed = json!({ "keys": [{ "kty": "oct", "k": secret }, { "kty": "oct", "kid": "b", "k": URL_SAFE_NO_PAD.encode([9; 32]) }] });
    let verifier = build(Algorithm::HS256, unnamed.to_string()).expect("a set");
    assert!(verifier.verify(&hello("alice", "p", &hs256(&claims)), NOW).is_ok());
    let named = with_kid("HS256", Some("x"), &claims);
    assert!(verifier.verify(&hello("alice", "p", &named), NOW).is_err());
    let one = build(Algorithm::HS256, SECRET).expect("a key");
    assert!(one.verify(&hello("alice", "p", &named), NOW).is_ok(), "as it always was");
}

#[test]
fn faulty_key_sets_are_told_without_their_secrets() {
    let long = URL_SAFE_NO_PAD.encode(SECRET);
    let key = |kid: &str| json!({ "kty": "oct", "kid": kid, "k": long });
    for (content, expected) in [
        ("{".to_owned(), "not a key set (JWKS) at line 1 column 1"),
        (format!("{{\"keys\": \"{long}\"}}"), "not a key set (JWKS) at line 1"),
        (json!({ "keys": [] }).to_string(), "no key of the set is for HS256"),
        (json!({ "keys": [{ "kty": "RSA" }] }).to_string(), "no key of the set is for HS256"),
        (json!({ "keys": [key("a"), key("a")] }).to_string(), "two keys have the name a"),
        (
            json!({ "keys": [{ "kty": "oct", "kid": "a", "k": "AQAB" }] }).to_string(),
            "key 1 (a): an HS256 secret",
        ),
        (
            json!({ "keys": [{ "kty": "oct", "kid": "a", "k": "?" }] }).to_string(),
            "key 1 (a): k is not base64url",
        ),
        (
            json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "x": "AQAB" }] }).to_string(),
            "key 1 (without kid): x is not an Ed25519 public key",
        ),
        (json!({ "keys": vec![key("a"); 65] }).to_string(), "65 keys, expected at most 64"),
    ] {
        let said = refused(build(Algorithm::HS256, &content));
        assert!(said.contains(expected) && !said.contains(&long), "{content}: {said}");
    }
}

#[test]
fn keys_are_replaced_at_once_or_not_at_all() {
    let file = KeyFile::new(SECRET);
    let config = config(Algorithm::HS256, &file.0);
    let verifier = verifier(&config).expect("key");
    let (old, new) = (SECRET, &[7; 32][..]);
    let admits = |secret: &[u8]| {
        let token =
            hs256_with(secret, &json!({ "alg": "HS256" }), &json!({ "sub": "alice", "exp": NOW + 60 }));
        verifier.verify(&hello("alice", "p", &token), NOW).is_ok()
    };
    std::fs::write(&file.0, "short").expect("written");
    verifier.prepare(&config).expect_err("not a key");
    assert!(admits(old), "nothing has changed");
    std::fs::write(&file.0, new).expect("written");
    let prepared = verifier.prepare(&config).expect("a key");
    assert!(admits(old) && !admits(new), "not in force yet");
    prepared.apply();
    assert!(!admits(old) && admits(new));
}

#[test]
fn a_token_has_a_longest_lifetime_and_was_not_issued_in_the_future() {
    let file = KeyFile::new(SECRET);
    let config = AuthConfig { ttl_max: Duration::from_secs(100), ..config(Algorithm::HS256, &file.0) };
    let verifier = verifier(&config).expect("key");
    let judge = |claims: Value| verifier.verify(&hello("alice", "p", &hs256(&claims)), NOW);
    let times = |claims: Value| judge(claims).map(|it| (it.issued_s, it.expires_s));
    assert_eq!(times(json!({ "sub": "alice", "exp": NOW + 100 })), Ok((0, NOW + 100)));
    assert_eq!(times(json!({ "sub": "alice", "iat": NOW - 50, "exp": NOW + 50 })), Ok((NOW - 50, NOW + 50)));
    for claims in [
        json!({ "sub": "alice", "exp": NOW + 101 }),
        json!({ "sub": "alice", "iat": NOW - 51, "exp": NOW + 50 }),
        json!({ "sub": "alice", "iat": NOW + 31, "exp": NOW + 60 }),
        json!({ "sub": "alice", "iat": NOW + 20, "exp": NOW + 101 }),
        json!({ "sub": "alice", "iat": "now", "exp": NOW + 50 }),
    ] {
        assert_eq!(judge(claims.clone()), Err(CloseReason::AuthFailed), "{claims}");
    }
}

#[test]
fn a_key_file_that_others_may_write_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let file = KeyFile::new(SECRET);
    for mode in [0o666, 0o620, 0o602] {
        std::fs::set_permissions(&file.0, std::fs::Permissions::from_mode(mode)).expect("set");
        let said = refused(verifier(&config(Algorithm::HS256, &file.0)));
        assert!(said.contains("can write it"), "{said}");
    }
    std::fs::set_permissions(&file.0, std::fs::Permissions::from_mode(0o600)).expect("set");
    verifier(&config(Algorithm::HS256, &file.0)).expect("its owner's alone");
}
