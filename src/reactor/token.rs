//! The source of an epoll event: the one place that packs a source into mio's `Token`.

use mio::Token;
use moorline_proto::ids::ConnKey;

/// A source of events in a reactor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The mailbox's waker.
    Waker,
    /// A listening socket, by number.
    Listener(u8),
    /// A client's socket.
    Connection(ConnKey),
}

/// Keys carry a generation of at least 1 in their low half, so values with a low half of 0 are free.
const WAKER: usize = 0;
/// Token of the first listener, and the distance to the next.
const LISTENER: usize = 1 << 32;

impl From<Source> for Token {
    fn from(source: Source) -> Self {
        Self(match source {
            Source::Waker => WAKER,
            Source::Listener(number) => LISTENER * (usize::from(number) + 1),
            Source::Connection(key) => usize::try_from(key.as_u64()).expect("64-bit platforms only"),
        })
    }
}

impl From<Token> for Source {
    fn from(token: Token) -> Self {
        match token.0 {
            WAKER => Self::Waker,
            raw if raw % LISTENER == 0 => {
                Self::Listener(u8::try_from(raw / LISTENER - 1).expect("only listeners have these tokens"))
            }
            raw => Self::Connection(ConnKey::from_u64(raw as u64)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::ids::ShardId;

    #[test]
    fn sources_come_back_from_their_tokens() {
        let keys = [(0, 0, 1), (0, 1, 1), (255, ConnKey::SLOTS_MAX - 1, u32::MAX)];
        let keys = keys.map(|(shard, slot, generation)| {
            Source::Connection(ConnKey::new(ShardId(shard), slot, generation))
        });
        for source in keys.into_iter().chain([Source::Waker, Source::Listener(0), Source::Listener(u8::MAX)])
        {
            assert_eq!(Source::from(Token::from(source)), source);
        }
    }
}
