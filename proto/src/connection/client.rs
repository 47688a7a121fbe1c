//! The client's side of one connection (`docs/protocol.md` section 3).
//!
//! ```text
//!          socket up        WELCOME            GOAWAY
//! Offline ──────────► Greeting ─────► Active ─────────► Leaving
//!    ▲                   │              │                  │
//!    └───── socket gone, CLOSE, KICK, timeout ─────────────┘
//! ```

use crate::frame::Command;

/// State of a connection, seen by the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// No socket, or one that is still connecting.
    Offline,
    /// HELLO is sent; only WELCOME and CLOSE are handled.
    Greeting,
    /// Logged in.
    Active,
    /// Logged in; the gateway asked to leave soon.
    Leaving,
}

/// Input of the client's state table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The socket is connected.
    Connected,
    /// A frame came.
    Received(Command),
    /// The socket is gone, or a deadline passed: as if closed for now [P-8.6].
    Lost,
}

/// Reaction to an [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transition {
    /// Handle the event and be in this state.
    To(State),
    /// Drop the event, stay.
    Ignore,
    /// The gateway broke the protocol: drop the socket.
    Broken,
}

impl State {
    /// All states.
    pub const ALL: [Self; 4] = [Self::Offline, Self::Greeting, Self::Active, Self::Leaving];

    /// The transition table [P-3.2].
    #[allow(clippy::match_same_arms)] // a table reads row by row
    pub const fn on(self, event: Event) -> Transition {
        use Transition::{Broken, Ignore, To};
        match (self, event) {
            (_, Event::Lost) => To(Self::Offline),
            (Self::Offline, Event::Connected) => To(Self::Greeting),
            (_, Event::Connected) => Ignore,
            (Self::Offline, Event::Received(_)) => Ignore,
            (_, Event::Received(Command::Close)) => To(Self::Offline),
            (Self::Greeting, Event::Received(Command::Welcome)) => To(Self::Active),
            (_, Event::Received(Command::Ignorable(_))) => Ignore,
            (Self::Greeting, Event::Received(_)) => Broken,
            (Self::Active | Self::Leaving, Event::Received(command)) => on_frame(self, command),
        }
    }

    /// True once the login is complete.
    pub const fn is_logged_in(self) -> bool {
        matches!(self, Self::Active | Self::Leaving)
    }
}

const fn on_frame(state: State, command: Command) -> Transition {
    match command {
        Command::Pong
        | Command::Ping
        | Command::SendAck
        | Command::Push
        | Command::Notify
        | Command::Resp
        | Command::Ack
        | Command::SubAck
        | Command::Throttle
        | Command::App(_) => Transition::To(state),
        Command::GoAway => Transition::To(State::Leaving),
        Command::Kick | Command::Close => Transition::To(State::Offline),
        Command::Ignorable(_) => Transition::Ignore,
        Command::Hello
        | Command::Welcome
        | Command::Send
        | Command::Req
        | Command::Sub
        | Command::Unsub
        | Command::Logout => Transition::Broken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(transition: Transition) -> char {
        match transition {
            Transition::To(State::Offline) => 'O',
            Transition::To(State::Greeting) => 'G',
            Transition::To(State::Active) => 'A',
            Transition::To(State::Leaving) => 'L',
            Transition::Ignore => '.',
            Transition::Broken => '!',
        }
    }

    #[test]
    fn the_whole_table() {
        let row =
            |event| State::ALL.map(|state| letter(state.on(event))).iter().collect::<std::string::String>();
        for command in Command::NAMED {
            let expected = match command {
                Command::Welcome => ".A!!",
                Command::Close => ".OOO",
                Command::Kick => ".!OO",
                Command::GoAway => ".!LL",
                Command::Hello
                | Command::Send
                | Command::Req
                | Command::Sub
                | Command::Unsub
                | Command::Logout => ".!!!",
                _ => ".!AL",
            };
            assert_eq!(row(Event::Received(*command)), expected, "{command:?}");
        }
        assert_eq!(row(Event::Received(Command::Ignorable(0xC0))), "....");
        assert_eq!(row(Event::Received(Command::App(0x41))), ".!AL");
        assert_eq!(row(Event::Connected), "G...");
        assert_eq!(row(Event::Lost), "OOOO");
    }
}
