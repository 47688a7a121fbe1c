//! The names of event sources in the fleet's poll.

use mio::Token;

/// The timer.
pub(super) const ALARM: Token = Token(usize::MAX);

/// A client's socket.
pub(super) const fn of_client(number: u32) -> Token {
    Token(number as usize)
}

/// The client whose socket it is.
pub(super) fn client(token: Token) -> u32 {
    u32::try_from(token.0).expect("made by of_client")
}
