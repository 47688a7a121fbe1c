//! Resumption tokens: a client presents one to resume its session [P-3.10]. The wire calls it `ticket`.
//!
//! A token is valid for one session, until the next WELCOME of that session, and not after it expired. Only
//! the process that made it can check it: the key is random and lives as long as the sessions do.

use super::Settings;
use bytes::Bytes;
use hmac::{Hmac, Mac};
use moorline_proto::ids::{ConnKey, SessionId};
use sha2::Sha256;

/// Version of a token's text.
const FORM: u8 = 1;
/// Bytes of a token's text: form, connection key, login version, serial, expiry.
const TEXT_BYTES: usize = 1 + 8 + 8 + 2 + 8;
/// Bytes of the code behind the text: HMAC-SHA256 (RFC 2104), cut to 128 bits.
const CODE_BYTES: usize = 16;

/// Content of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ResumeToken {
    /// Key of the session's connection.
    pub(super) key: ConnKey,
    /// Version of the login: tells apart the sessions that ever had this key.
    pub(super) login_version: u64,
    /// Number of times that the session was resumed before.
    pub(super) serial: u16,
    /// Expiry in Unix seconds.
    pub(super) expires_s: u64,
}

impl ResumeToken {
    /// Name of the session that the token belongs to.
    pub(super) fn session(&self) -> SessionId {
        session_id(self.key, self.login_version)
    }

    fn text(&self) -> [u8; TEXT_BYTES] {
        let mut text = [FORM; TEXT_BYTES];
        text[1..9].copy_from_slice(&self.key.as_u64().to_be_bytes());
        text[9..17].copy_from_slice(&self.login_version.to_be_bytes());
        text[17..19].copy_from_slice(&self.serial.to_be_bytes());
        text[19..].copy_from_slice(&self.expires_s.to_be_bytes());
        text
    }
}

/// Name of a session: the key of its connection and the version of its login.
pub(super) fn session_id(key: ConnKey, login_version: u64) -> SessionId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&key.as_u64().to_be_bytes());
    id[8..].copy_from_slice(&login_version.to_be_bytes());
    SessionId(id)
}

/// Makes and checks tokens.
#[derive(Debug)]
pub(super) struct ResumeTokens {
    /// The keyed code; copying it is cheaper than keying a new one.
    code: Hmac<Sha256>,
}

impl ResumeTokens {
    pub(super) fn new(settings: &Settings) -> Self {
        Self { code: Hmac::new_from_slice(&settings.ticket_key).expect("HMAC takes a key of any length") }
    }

    /// Bytes of a token.
    pub(super) fn seal(&self, token: &ResumeToken) -> Bytes {
        let text = token.text();
        let code = self.code.clone().chain_update(text).finalize().into_bytes();
        let mut bytes = Vec::with_capacity(TEXT_BYTES + CODE_BYTES);
        bytes.extend_from_slice(&text);
        bytes.extend_from_slice(&code[..CODE_BYTES]);
        bytes.into()
    }

    /// Content of a token; `None`: it was not made here, or has expired.
    pub(super) fn open(&self, bytes: &[u8], unix_now_s: u64) -> Option<ResumeToken> {
        let (text, code) = bytes.split_first_chunk::<TEXT_BYTES>()?;
        if code.len() != CODE_BYTES || text[0] != FORM {
            return None;
        }
        self.code.clone().chain_update(text).verify_truncated_left(code).ok()?;
        let word = |at: usize| text[at..].first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let token = ResumeToken {
            key: ConnKey::from_u64(word(1)),
            login_version: word(9),
            serial: u16::from_be_bytes([text[17], text[18]]),
            expires_s: word(19),
        };
        (unix_now_s < token.expires_s).then_some(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::ids::ShardId;

    const TOKEN: ResumeToken = ResumeToken {
        key: ConnKey::new(ShardId(3), 77, 5),
        login_version: 1_700_000_000_000_000_001,
        serial: 2,
        expires_s: 1_000,
    };

    #[test]
    fn a_token_comes_back_until_it_expires() {
        let tokens = ResumeTokens::new(&Settings::default());
        let bytes = tokens.seal(&TOKEN);
        assert_eq!(bytes.len(), TEXT_BYTES + CODE_BYTES);
        assert_eq!(tokens.open(&bytes, 999), Some(TOKEN));
        assert_eq!(tokens.open(&bytes, 1_000), None);
        assert_eq!(TOKEN.session().0[..8], TOKEN.key.as_u64().to_be_bytes());
    }

    #[test]
    fn no_byte_can_be_changed_cut_or_added() {
        let tokens = ResumeTokens::new(&Settings::default());
        let bytes = tokens.seal(&TOKEN);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut forged = bytes.to_vec();
                forged[at] ^= 1 << bit;
                assert_eq!(tokens.open(&forged, 0), None, "byte {at}, bit {bit}");
            }
            assert_eq!(tokens.open(&bytes[..at], 0), None);
        }
        assert_eq!(tokens.open(&[&bytes[..], &[0]].concat(), 0), None);
        let other = ResumeTokens::new(&Settings { ticket_key: [2; 32], ..Settings::default() });
        assert_eq!(other.open(&bytes, 0), None, "another process has another key");
    }
}
