//! The bare protocol: `[body length u32][kind u8][body]`, little-endian, both directions and links.

/// Bytes before a body.
pub(super) const HEADER_BYTES: usize = 5;
/// Over it a stream is closed, in bytes.
pub(super) const BODY_BYTES_MAX: usize = 64 << 10;

/// Kind and body of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Client: uid.
    Login = 1,
    /// Server: empty.
    In = 2,
    /// Client: empty.
    Beat = 3,
    /// Server: empty.
    BeatBack = 4,
    /// Client: cid, payload. Answered by the server.
    Echo = 5,
    /// Server: cid. On a link: uid, cid.
    Answer = 6,
    /// Client: cid, payload. On a link: uid, cid, payload. Answered by the backend.
    Forward = 7,
    /// Client: uid of the receiver, payload.
    To = 8,
    /// Server: uid of the sender, payload.
    Deliver = 9,
    /// Client: payload for everyone else.
    All = 10,
}

/// The bytes are not a valid frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl Kind {
    const fn from_byte(byte: u8) -> Result<Self, Malformed> {
        Ok(match byte {
            1 => Self::Login,
            2 => Self::In,
            3 => Self::Beat,
            4 => Self::BeatBack,
            5 => Self::Echo,
            6 => Self::Answer,
            7 => Self::Forward,
            8 => Self::To,
            9 => Self::Deliver,
            10 => Self::All,
            _ => return Err(Malformed),
        })
    }
}

/// Takes the frame at the head of `input` if it is whole.
#[inline]
pub(super) fn next<'a>(input: &mut &'a [u8]) -> Result<Option<(Kind, &'a [u8])>, Malformed> {
    let Some((head, rest)) = input.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let kind = Kind::from_byte(head[4])?;
    if len > BODY_BYTES_MAX {
        return Err(Malformed);
    }
    let Some((body, rest)) = rest.split_at_checked(len) else { return Ok(None) };
    *input = rest;
    Ok(Some((kind, body)))
}

/// Appends a frame whose body is all of `parts`.
#[inline]
pub(super) fn put(out: &mut Vec<u8>, kind: Kind, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let len = u32::try_from(len).expect("bodies are far below 4 GiB");
    out.extend_from_slice(&len.to_le_bytes());
    out.push(kind as u8);
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// Splits a number off the front of a body.
#[inline]
pub(super) fn number(body: &[u8]) -> Result<(u32, &[u8]), Malformed> {
    let (number, rest) = body.split_first_chunk().ok_or(Malformed)?;
    Ok((u32::from_le_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_and_a_cut_one_waits() {
        let mut wire = Vec::new();
        put(&mut wire, Kind::Forward, &[&7_u32.to_le_bytes(), b"payload"]);
        put(&mut wire, Kind::Beat, &[]);
        for cut in 0..wire.len() {
            let mut input = &wire[..cut];
            let whole = std::iter::from_fn(|| next(&mut input).unwrap()).count();
            assert_eq!(whole, usize::from(cut >= 16), "cut at {cut}");
        }
        let mut input = wire.as_slice();
        let (kind, body) = next(&mut input).unwrap().unwrap();
        assert_eq!((kind, number(body)), (Kind::Forward, Ok((7, b"payload".as_slice()))));
        assert_eq!(next(&mut input), Ok(Some((Kind::Beat, [].as_slice()))));
        assert!(input.is_empty());
    }

    #[test]
    fn other_bytes_are_refused() {
        assert_eq!(next(&mut b"GET / HTTP".as_slice()), Err(Malformed));
        assert_eq!(next(&mut [0, 0, 1, 1, 3].as_slice()), Err(Malformed), "too long");
    }
}
