//! State of one client.

use super::acks::Debt;
use crate::carrier::Wrap;
use mio::net::TcpStream;
use moorline_proto::time::Instant;

/// State of a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not started yet.
    Absent,
    /// The connect is under way.
    Connecting,
    /// The login is sent.
    Greeting,
    /// Logged in.
    Active,
    /// Lost its connection, or could not connect, and will try again.
    Away,
    /// Was never admitted, or was dropped, and stays out.
    Gone,
}

/// Input of a client's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// The connect began.
    Started,
    /// The socket is connected.
    Connected,
    /// The server let it in.
    Welcomed,
    /// The socket is gone, the server said goodbye, or time is up: for good.
    Lost,
    /// The connection ended, and the client tries again.
    Interrupted,
}

impl Stage {
    /// The transition table; `None`: the server broke the protocol.
    pub(super) const fn on(self, input: Input) -> Option<Self> {
        match (self, input) {
            (_, Input::Lost) => Some(Self::Gone),
            (_, Input::Interrupted) => Some(Self::Away),
            (Self::Absent | Self::Away, Input::Started) => Some(Self::Connecting),
            (Self::Connecting, Input::Connected) => Some(Self::Greeting),
            (Self::Greeting, Input::Welcomed) => Some(Self::Active),
            _ => None,
        }
    }

    /// Between the connect and the end of the login.
    pub(super) const fn is_under_way(self) -> bool {
        matches!(self, Self::Connecting | Self::Greeting)
    }
}

/// A client: its socket, the incomplete parts of its byte streams, and the scenario's state (`X`).
#[derive(Debug)]
pub struct Client<P, X> {
    pub(super) stream: Option<TcpStream>,
    pub(super) stage: Stage,
    pub(super) debt: Debt,
    /// Tries in vain since it was last logged in.
    pub(super) tries: u8,
    /// The highest delivery handled.
    pub(super) heard: u32,
    /// Time of the connect.
    pub(super) since: Instant,
    pub(super) decoder: P,
    /// Parts that a client has only now and then, or never: 8 bytes in every one of a million clients.
    aside: Option<Box<Aside>>,
    /// The scenario's part.
    pub extra: X,
}

/// Parts of a client that stand aside.
#[derive(Debug, Default)]
struct Aside {
    /// TLS and WebSocket; `None`: bytes travel as they are.
    wrap: Option<Wrap>,
    /// Bytes that the socket did not take; `None` while the server reads.
    unsent: Option<Vec<u8>>,
}

impl<P, X> Client<P, X> {
    /// A new connection's TLS and WebSocket.
    pub(super) fn set_wrap(&mut self, wrap: Option<Wrap>) {
        self.aside = wrap.map(|wrap| Box::new(Aside { wrap: Some(wrap), unsent: None }));
    }

    pub(super) fn wrap(&mut self) -> Option<&mut Wrap> {
        self.aside.as_mut()?.wrap.as_mut()
    }

    /// Bytes that the socket did not take.
    pub(super) fn unsent(&mut self) -> Option<&mut Vec<u8>> {
        self.aside.as_mut()?.unsent.as_mut()
    }

    pub(super) fn keep_unsent(&mut self, bytes: &[u8]) {
        self.aside.get_or_insert_default().unsent = Some(bytes.to_vec());
    }

    pub(super) fn take_unsent(&mut self) -> Option<Vec<u8>> {
        let unsent = self.aside.as_mut()?.unsent.take();
        self.aside.take_if(|aside| aside.wrap.is_none());
        unsent
    }
}

impl<P: Default, X: Default> Default for Client<P, X> {
    fn default() -> Self {
        Self {
            stream: None,
            stage: Stage::Absent,
            debt: Debt::default(),
            tries: 0,
            heard: 0,
            since: Instant::ZERO,
            decoder: P::default(),
            aside: None,
            extra: X::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::frame::Decoder;

    #[test]
    fn an_idle_client_is_small() {
        assert!(size_of::<Client<Decoder, ()>>() <= 48, "{}", size_of::<Client<Decoder, ()>>());
    }

    #[test]
    fn the_whole_table() {
        let stages =
            [Stage::Absent, Stage::Connecting, Stage::Greeting, Stage::Active, Stage::Away, Stage::Gone];
        let row = |input| stages.map(|stage| stage.on(input));
        assert_eq!(
            row(Input::Started),
            [Some(Stage::Connecting), None, None, None, Some(Stage::Connecting), None]
        );
        assert_eq!(row(Input::Connected), [None, Some(Stage::Greeting), None, None, None, None]);
        assert_eq!(row(Input::Welcomed), [None, None, Some(Stage::Active), None, None, None]);
        assert_eq!(row(Input::Lost), [Some(Stage::Gone); 6]);
        assert_eq!(row(Input::Interrupted), [Some(Stage::Away); 6]);
    }
}
