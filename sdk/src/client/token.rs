//! Sources of readiness events: the only place that knows mio's tokens.

use mio::Token;

const WAKER: usize = 0;
const ALARM: usize = usize::MAX;

/// The source of a readiness event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Waker,
    /// The timer of the next deadline.
    Alarm,
    /// The socket of the n-th attempt, from 1; events of older ones are stale.
    Socket(usize),
}

impl From<Source> for Token {
    fn from(source: Source) -> Self {
        match source {
            Source::Waker => Self(WAKER),
            Source::Alarm => Self(ALARM),
            Source::Socket(attempt) => Self(attempt),
        }
    }
}

impl From<Token> for Source {
    fn from(token: Token) -> Self {
        match token.0 {
            WAKER => Self::Waker,
            ALARM => Self::Alarm,
            attempt => Self::Socket(attempt),
        }
    }
}
