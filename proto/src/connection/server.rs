//! The gateway's side of one connection (`docs/protocol.md` section 3).
//!
//! ```text
//!  accept        HELLO             verdict ok
//! ────────► AwaitHello ──► Authenticating ──────► Active ──► Leaving ──► Closing
//!               │                │ verdict no       │ LOGOUT, KICK,  GOAWAY  ▲
//!               └────────────────┴──────────────────┴ error, timeout ───────┘
//!
//!  socket gone or silent: Active, Leaving ──► Detached ──► Active (resumed), or gone when its time is up
//! ```

use crate::error::CloseReason;
use crate::frame::Command;

/// State of a connection, seen by the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Accepted; only HELLO is handled.
    AwaitHello,
    /// HELLO is being verified; the client must wait [P-3.3]. The login may be refused [P-3.8].
    Authenticating,
    /// Logged in.
    Active,
    /// Logged in, and asked by GOAWAY to leave: everything still works.
    Leaving,
    /// Logged in without a socket: the session waits for its client to come back [P-3.10].
    Detached,
    /// A CLOSE is on its way out; nothing more is read.
    Closing,
}

/// Input of the gateway's state table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A frame came.
    Received(Command),
    /// The login was admitted.
    Admitted,
    /// The gateway drains.
    Draining,
    /// The socket is gone and the session stays.
    Detaching,
    /// Another socket takes the session over.
    Resumed,
    /// The gateway ends the connection, for a reason of its own.
    Ending,
}

/// Reaction to an [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transition {
    /// Handle the event and be in this state.
    To(State),
    /// Drop the event, stay.
    Ignore,
    /// End with this reason.
    Close(CloseReason),
}

impl State {
    /// All states.
    pub const ALL: [Self; 6] =
        [Self::AwaitHello, Self::Authenticating, Self::Active, Self::Leaving, Self::Detached, Self::Closing];

    /// The transition table [P-3.1].
    #[allow(clippy::match_same_arms)] // a table reads row by row
    pub const fn on(self, event: Event) -> Transition {
        use CloseReason::Unexpected;
        use Transition::{Close, Ignore, To};
        match (self, event) {
            (Self::Closing, _) => Ignore,
            (_, Event::Ending) => To(Self::Closing),

            (Self::AwaitHello, Event::Received(Command::Hello)) => To(Self::Authenticating),
            (Self::AwaitHello, Event::Received(_)) => Close(Unexpected),
            (Self::AwaitHello | Self::Authenticating, Event::Draining) => Close(CloseReason::GoingAway),

            (Self::Authenticating, Event::Admitted) => To(Self::Active),
            (Self::Authenticating, Event::Received(_)) => Close(Unexpected),

            (Self::Active | Self::Leaving, Event::Received(command)) => on_frame(self, command),
            (Self::Active, Event::Draining) => To(Self::Leaving),
            (Self::Leaving, Event::Draining) => Ignore,
            (Self::AwaitHello | Self::Active | Self::Leaving, Event::Admitted) => Ignore,
            (Self::Active | Self::Leaving, Event::Detaching) => To(Self::Detached),
            (Self::Active | Self::Leaving | Self::Detached, Event::Resumed) => To(Self::Active),
            (Self::AwaitHello | Self::Authenticating, Event::Detaching | Event::Resumed) => Ignore,
            (Self::Detached, Event::Draining) => Close(CloseReason::GoingAway),
            (Self::Detached, Event::Received(_) | Event::Admitted | Event::Detaching) => Ignore,
        }
    }

    /// True while a session and a socket are attached.
    pub const fn is_logged_in(self) -> bool {
        matches!(self, Self::Active | Self::Leaving)
    }

    /// True while a session is attached, with or without a socket.
    pub const fn has_session(self) -> bool {
        matches!(self, Self::Active | Self::Leaving | Self::Detached)
    }
}

const fn on_frame(state: State, command: Command) -> Transition {
    match command {
        Command::Ping
        | Command::Send
        | Command::Ack
        | Command::Req
        | Command::Sub
        | Command::Unsub
        | Command::App(_) => Transition::To(state),
        Command::Logout | Command::Close => Transition::To(State::Closing),
        Command::Ignorable(_) => Transition::Ignore,
        // HELLO comes once; the rest travels the other way [P-2.4].
        Command::Hello
        | Command::Welcome
        | Command::Pong
        | Command::SendAck
        | Command::Push
        | Command::Notify
        | Command::Resp
        | Command::SubAck
        | Command::Kick
        | Command::GoAway
        | Command::Throttle => Transition::Close(CloseReason::Unexpected),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(transition: Transition) -> char {
        match transition {
            Transition::To(State::AwaitHello) => 'w',
            Transition::To(State::Authenticating) => 'u',
            Transition::To(State::Active) => 'A',
            Transition::To(State::Leaving) => 'L',
            Transition::To(State::Detached) => 'd',
            Transition::To(State::Closing) => 'C',
            Transition::Ignore => '.',
            Transition::Close(CloseReason::Unexpected) => '!',
            Transition::Close(CloseReason::GoingAway) => 'g',
            Transition::Close(other) => panic!("{other} is not in the table"),
        }
    }

    /// Every state by every event, as docs/protocol.md prints it.
    #[test]
    fn the_whole_table() {
        let row =
            |event| State::ALL.map(|state| letter(state.on(event))).iter().collect::<std::string::String>();
        for (command, expected) in [
            (Command::Hello, "u!!!.."),
            (Command::Ping, "!!AL.."),
            (Command::Send, "!!AL.."),
            (Command::Ack, "!!AL.."),
            (Command::Req, "!!AL.."),
            (Command::Sub, "!!AL.."),
            (Command::Unsub, "!!AL.."),
            (Command::App(0x40), "!!AL.."),
            (Command::Logout, "!!CC.."),
            (Command::Close, "!!CC.."),
            (Command::Ignorable(0xC0), "!!...."),
            (Command::Welcome, "!!!!.."),
            (Command::Pong, "!!!!.."),
            (Command::SendAck, "!!!!.."),
            (Command::Push, "!!!!.."),
            (Command::Notify, "!!!!.."),
            (Command::Resp, "!!!!.."),
            (Command::SubAck, "!!!!.."),
            (Command::Kick, "!!!!.."),
            (Command::GoAway, "!!!!.."),
            (Command::Throttle, "!!!!.."),
        ] {
            assert_eq!(row(Event::Received(command)), expected, "{command:?}");
        }
        assert_eq!(row(Event::Admitted), ".A....");
        assert_eq!(row(Event::Draining), "ggL.g.");
        assert_eq!(row(Event::Detaching), "..dd..");
        assert_eq!(row(Event::Resumed), "..AAA.");
        assert_eq!(row(Event::Ending), "CCCCC.");
    }
}
