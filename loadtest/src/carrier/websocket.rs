//! Client's side of WebSocket (RFC 6455): one upgrade request, then binary messages with masks.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use sha1::{Digest as _, Sha1};

/// Longest answer to the upgrade request, in bytes.
const ANSWER_BYTES_MAX: usize = 4 << 10;
/// Subprotocol that Moorline's clients speak.
const PROTOCOL: &str = "moorline.v1";
const KEY_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
/// Lengths in a header's second byte that say: the length stands in the next 2, or 8, bytes.
const LENGTH_16: u8 = 126;
const LENGTH_64: u8 = 127;
const CONTINUATION: u8 = 0;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// One connection's state.
#[derive(Debug)]
pub(super) struct WebSocket {
    is_open: bool,
    /// Key of the upgrade request, in base64.
    key: String,
    /// Number from which the next mask is made.
    mask: u32,
    /// Bytes of an answer or of a header that has not come whole.
    partial: Vec<u8>,
    /// Bytes of the current payload that have not come.
    left: u64,
}

impl WebSocket {
    /// A connection before its request. `number` differs between connections.
    pub(super) fn new(number: u32) -> Self {
        let mut key = [0; 16];
        key[..4].copy_from_slice(&number.to_be_bytes());
        let mask = number | 1; // a generator of this kind must not begin with 0
        Self { is_open: false, key: BASE64.encode(key), mask, partial: Vec::new(), left: 0 }
    }

    /// Appends the upgrade request.
    pub(super) fn request(&self, host: &str, out: &mut Vec<u8>) {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {}\r\nSec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n",
            self.key
        );
        out.extend_from_slice(request.as_bytes());
    }

    /// Appends one binary message.
    pub(super) fn message(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        self.frame(BINARY, payload, out);
    }

    fn frame(&mut self, opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
        out.push(FIN | opcode);
        #[allow(clippy::cast_possible_truncation)] // each below its bound
        match payload.len() {
            short @ ..=125 => out.push(MASKED | short as u8),
            middle @ ..=0xFFFF => {
                out.push(MASKED | LENGTH_16);
                out.extend_from_slice(&(middle as u16).to_be_bytes());
            }
            long => {
                out.push(MASKED | LENGTH_64);
                out.extend_from_slice(&(long as u64).to_be_bytes());
            }
        }
        // Xorshift: masks need not be secret here, only different.
        self.mask ^= self.mask << 13;
        self.mask ^= self.mask >> 17;
        self.mask ^= self.mask << 5;
        let mask = self.mask.to_ne_bytes();
        out.extend_from_slice(&mask);
        out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    }

    /// Takes bytes of the server. Appends payload to `plain` and answers to `out`. True: the upgrade was accepted just now.
    pub(super) fn receive(
        &mut self,
        received: &[u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<bool, String> {
        let mut joined = std::mem::take(&mut self.partial);
        let mut input = received;
        if !joined.is_empty() {
            joined.extend_from_slice(received);
            input = &joined;
        }
        let mut has_opened = false;
        if !self.is_open {
            let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") else {
                if input.len() > ANSWER_BYTES_MAX {
                    return Err(format!("the answer to the upgrade has more than {ANSWER_BYTES_MAX} bytes"));
                }
                self.partial = input.to_vec();
                return Ok(false);
            };
            self.check_answer(&input[..end])?;
            (self.is_open, has_opened, input) = (true, true, &input[end + 4..]);
        }
        while !input.is_empty() {
            if self.left > 0 {
                let count = input.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                plain.extend_from_slice(&input[..count]);
                self.left -= count as u64;
                input = &input[count..];
            } else if let Some(rest) = self.frame_of_server(input, out)? {
                input = rest;
            } else {
                self.partial = input.to_vec();
                break;
            }
        }
        Ok(has_opened)
    }

    /// Reads a header, or a whole control frame. `None`: more bytes are needed.
    fn frame_of_server<'a>(
        &mut self,
        input: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<&'a [u8]>, String> {
        let [first, second, rest @ ..] = input else { return Ok(None) };
        if first & 0x70 != 0 || second & MASKED != 0 {
            return Err(format!("the server's WebSocket frame begins with {first:02x} {second:02x}"));
        }
        let (length, rest) = match second {
            &LENGTH_16 => match rest.split_first_chunk() {
                Some((length, rest)) => (u16::from_be_bytes(*length).into(), rest),
                None => return Ok(None),
            },
            &LENGTH_64 => match rest.split_first_chunk() {
                Some((length, rest)) => (u64::from_be_bytes(*length), rest),
                None => return Ok(None),
            },
            short => (u64::from(*short), rest),
        };
        match first & 0x0F {
            BINARY | CONTINUATION => {
                self.left = length;
                Ok(Some(rest))
            }
            CLOSE | PING | PONG if length <= 125 => {
                let Some((payload, rest)) = rest.split_at_checked(usize::from(*second)) else {
                    return Ok(None);
                };
                match (first & 0x0F, payload) {
                    (PING, _) => self.frame(PONG, payload, out),
                    (CLOSE, [high, low, ..]) => {
                        let code = u16::from_be_bytes([*high, *low]);
                        return Err(format!("the server closed the WebSocket with code {code}"));
                    }
                    (CLOSE, _) => return Err("the server closed the WebSocket without a code".into()),
                    _ => {}
                }
                Ok(Some(rest))
            }
            other => Err(format!("the server sent a WebSocket frame of opcode {other}")),
        }
    }

    fn check_answer(&self, head: &[u8]) -> Result<(), String> {
        let head = String::from_utf8_lossy(head);
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap_or_default();
        if !status.starts_with("HTTP/1.1 101 ") {
            return Err(format!("the upgrade was answered with {status:?}"));
        }
        let values: Vec<(&str, &str)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.trim(), value.trim()))
            .collect();
        let value =
            |name: &str| values.iter().find(|(it, _)| it.eq_ignore_ascii_case(name)).map(|(_, value)| *value);
        let hash = Sha1::new().chain_update(&self.key).chain_update(KEY_SUFFIX).finalize();
        if value("sec-websocket-accept") != Some(&BASE64.encode(hash)) {
            return Err("the answer to the upgrade has a wrong Sec-WebSocket-Accept".into());
        }
        match value("sec-websocket-protocol") {
            Some(PROTOCOL) => Ok(()),
            other => Err(format!("the answer to the upgrade chose the protocol {other:?}, not {PROTOCOL}")),
        }
    }
}
