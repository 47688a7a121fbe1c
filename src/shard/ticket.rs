//! Tickets: what a client shows to go on with its session [P-3.10].
//!
//! A ticket is good for one session, until the next WELCOME of that session, and not after it expired.
//! Only the process that made it can judge it: the key is random and lives as long as the sessions do.

use super::Settings;
use bytes::Bytes;
use hmac::{Hmac, Mac};
use moorline_proto::ids::{ConnKey, SessionId};
use sha2::Sha256;

/// The form of a ticket's text.
const FORM: u8 = 1;
/// Form, seat, login version, serial, expiry.
const TEXT_BYTES: usize = 1 + 8 + 8 + 2 + 8;
/// Bytes of the code behind it: HMAC-SHA256 (RFC 2104), cut to 128 bits.
const CODE_BYTES: usize = 16;

/// What a ticket says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    /// Where the session is.
    pub(super) seat: ConnKey,
    /// Which of the logins that were ever there.
    pub(super) login_version: u64,
    /// How often that session was resumed before.
    pub(super) serial: u16,
    /// Unix seconds.
    pub(super) expires_s: u64,
}

impl Ticket {
    /// The name of the session that it belongs to.
    pub(super) fn session(&self) -> SessionId {
        session_id(self.seat, self.login_version)
    }

    fn text(&self) -> [u8; TEXT_BYTES] {
        let mut text = [FORM; TEXT_BYTES];
        text[1..9].copy_from_slice(&self.seat.as_u64().to_be_bytes());
        text[9..17].copy_from_slice(&self.login_version.to_be_bytes());
        text[17..19].copy_from_slice(&self.serial.to_be_bytes());
        text[19..].copy_from_slice(&self.expires_s.to_be_bytes());
        text
    }
}

/// A session's name: where it is, and which of the logins that were ever there.
pub(super) fn session_id(seat: ConnKey, login_version: u64) -> SessionId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&seat.as_u64().to_be_bytes());
    id[8..].copy_from_slice(&login_version.to_be_bytes());
    SessionId(id)
}

/// Makes and judges tickets.
#[derive(Debug)]
pub(super) struct Tickets {
    /// Keyed; a copy of it costs nothing beside keying it anew.
    code: Hmac<Sha256>,
}

impl Tickets {
    pub(super) fn new(settings: &Settings) -> Self {
        Self { code: Hmac::new_from_slice(&settings.ticket_key).expect("HMAC takes a key of any length") }
    }

    /// The bytes of a ticket.
    pub(super) fn seal(&self, ticket: &Ticket) -> Bytes {
        let text = ticket.text();
        let code = self.code.clone().chain_update(text).finalize().into_bytes();
        let mut bytes = Vec::with_capacity(TEXT_BYTES + CODE_BYTES);
        bytes.extend_from_slice(&text);
        bytes.extend_from_slice(&code[..CODE_BYTES]);
        bytes.into()
    }

    /// What a ticket says; `None` if it was not made here, or has expired.
    pub(super) fn open(&self, bytes: &[u8], unix_now_s: u64) -> Option<Ticket> {
        let (text, code) = bytes.split_first_chunk::<TEXT_BYTES>()?;
        if code.len() != CODE_BYTES || text[0] != FORM {
            return None;
        }
        self.code.clone().chain_update(text).verify_truncated_left(code).ok()?;
        let word = |at: usize| text[at..].first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let ticket = Ticket {
            seat: ConnKey::from_u64(word(1)),
            login_version: word(9),
            serial: u16::from_be_bytes([text[17], text[18]]),
            expires_s: word(19),
        };
        (unix_now_s < ticket.expires_s).then_some(ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::ids::ShardId;

    const TICKET: Ticket = Ticket {
        seat: ConnKey::new(ShardId(3), 77, 5),
        login_version: 1_700_000_000_000_000_001,
        serial: 2,
        expires_s: 1_000,
    };

    #[test]
    fn a_ticket_comes_back_until_it_expires() {
        let tickets = Tickets::new(&Settings::default());
        let bytes = tickets.seal(&TICKET);
        assert_eq!(bytes.len(), TEXT_BYTES + CODE_BYTES);
        assert_eq!(tickets.open(&bytes, 999), Some(TICKET));
        assert_eq!(tickets.open(&bytes, 1_000), None);
        assert_eq!(TICKET.session().0[..8], TICKET.seat.as_u64().to_be_bytes());
    }

    #[test]
    fn no_byte_can_be_changed_cut_or_added() {
        let tickets = Tickets::new(&Settings::default());
        let bytes = tickets.seal(&TICKET);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut forged = bytes.to_vec();
                forged[at] ^= 1 << bit;
                assert_eq!(tickets.open(&forged, 0), None, "byte {at}, bit {bit}");
            }
            assert_eq!(tickets.open(&bytes[..at], 0), None);
        }
        assert_eq!(tickets.open(&[&bytes[..], &[0]].concat(), 0), None);
        let other = Tickets::new(&Settings { ticket_key: [2; 32], ..Settings::default() });
        assert_eq!(other.open(&bytes, 0), None, "another process has another key");
    }
}
