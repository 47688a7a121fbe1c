//! Keys from files. A secret is never logged, printed or put into an error.

use super::AuthError;
use crate::config::Algorithm;
use jsonwebtoken::DecodingKey;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// Limit of a key file, in bytes.
const KEY_FILE_BYTES_MAX: u64 = 16 << 10;
/// Shortest HS256 secret, in bytes: the size of the hash (RFC 7518, 3.2).
const SECRET_BYTES_MIN: usize = 32;

/// The key that verifies tokens of `algorithm`.
pub(super) fn verifying(algorithm: Algorithm, path: &Path) -> Result<DecodingKey, AuthError> {
    match algorithm {
        Algorithm::HS256 => secret(path).map(|secret| DecodingKey::from_secret(&secret)),
        Algorithm::EdDSA => {
            let pem = read(path)?;
            DecodingKey::from_ed_pem(&pem).map_err(|_| {
                refused(
                    path,
                    "no Ed25519 public key in PEM; expected -----BEGIN PUBLIC KEY----- of an Ed25519 key",
                )
            })
        }
    }
}

/// An HS256 secret: raw, or base64 behind `base64:`. A text loses the line ends after it, other bytes
/// are taken as they are.
pub(super) fn secret(path: &Path) -> Result<Vec<u8>, AuthError> {
    let mut bytes = read(path)?;
    if bytes.starts_with(b"-----BEGIN") {
        return Err(refused(path, "this is PEM, which HS256 does not use; set auth.algorithm = \"EdDSA\""));
    }
    if bytes.iter().all(|byte| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\r' | b'\n')) {
        bytes.truncate(bytes.trim_ascii_end().len());
    }
    if let Some(encoded) = bytes.strip_prefix(b"base64:") {
        let text = str::from_utf8(encoded).unwrap_or("").trim();
        let key = DecodingKey::from_base64_secret(text)
            .map_err(|_| refused(path, "what follows base64: is not standard base64"))?;
        bytes = key.try_get_as_bytes().map(<[u8]>::to_vec).unwrap_or_default();
    }
    if bytes.len() < SECRET_BYTES_MIN {
        return Err(refused(
            path,
            "an HS256 secret has at least 32 bytes; make one with: head -c 32 /dev/urandom > hs256.key",
        ));
    }
    Ok(bytes)
}

fn read(path: &Path) -> Result<Vec<u8>, AuthError> {
    let failed = |source| AuthError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(KEY_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > KEY_FILE_BYTES_MAX {
        return Err(refused(path, "it is over 16 KiB, no key is"));
    }
    Ok(bytes)
}

fn refused(path: &Path, problem: &'static str) -> AuthError {
    AuthError::Key { path: path.to_owned(), problem }
}
