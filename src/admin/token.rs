//! The one place of the responder that knows mio's numbers.

use mio::Token;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A visitor waits to be accepted.
    Listener,
    /// The thread is to end.
    Bell,
    /// The connection in this slot.
    Connection(usize),
}

const RESERVED: usize = 2;

impl Source {
    pub(super) const fn from_token(token: Token) -> Self {
        match token.0 {
            0 => Self::Listener,
            1 => Self::Bell,
            number => Self::Connection(number - RESERVED),
        }
    }

    pub(super) const fn token(self) -> Token {
        Token(match self {
            Self::Listener => 0,
            Self::Bell => 1,
            Self::Connection(slot) => slot + RESERVED,
        })
    }
}
