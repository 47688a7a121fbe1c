//! Sources of a worker's poll, to and from mio's token: the only place that knows the numbers.

use crate::router::LinkIndex;
use mio::Token;

/// Source of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A shard woke this worker.
    Mailbox,
    /// A link.
    Link(LinkIndex),
}

impl From<Source> for Token {
    fn from(source: Source) -> Self {
        match source {
            Source::Mailbox => Self(0),
            Source::Link(link) => Self(link.index() + 1),
        }
    }
}

impl From<Token> for Source {
    fn from(token: Token) -> Self {
        match token.0.checked_sub(1) {
            None => Self::Mailbox,
            Some(link) => Self::Link(LinkIndex(u16::try_from(link).expect("made from a link's index"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_come_back() {
        for source in [Source::Mailbox, Source::Link(LinkIndex(0)), Source::Link(LinkIndex(u16::MAX))] {
            assert_eq!(Source::from(Token::from(source)), source);
        }
    }
}
