//! The control channel between the parent and the child: lines of text both ways, sockets to the child.
//!
//! ```text
//!  child: warm
//!  parent: bodies 1073152              child: warm      (any number of times, to a child whose check said `later=1`)
//!  parent: snapshot 724907 8123456789
//!  child: want 31                      parent: one byte with the socket (SCM_RIGHTS)
//!  child: ready 8002
//!  parent: commit
//!  child: running
//! ```
//!
//! Builds of different versions speak to each other, so the lines never change.

use crate::sys::sockets;
use std::fmt;
use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Bytes of a line; the longest are causes of failures.
const LINE_BYTES_MAX: usize = 64 << 10;

/// A line of the channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// From the child: all listed sockets are watched.
    Warm,
    /// From the child: send the socket with this descriptor of the parent.
    Want(RawFd),
    /// From the child: every connection is adopted; the number of sockets.
    Ready(u64),
    /// From the child: the threads run.
    Running,
    /// From the child: the cause of its end.
    Failed(String),
    /// From the parent: read the file of later bodies up to this length, and say `warm` again.
    Bodies(u64),
    /// From the parent: the snapshot is written.
    Snapshot {
        /// Length in bytes.
        length: u64,
        /// Time of the pause by `CLOCK_MONOTONIC`, in nanoseconds.
        paused_nanos: u64,
    },
    /// From the parent: the commit word offers the sockets.
    Commit,
    /// Any other line.
    Other(String),
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Warm => f.write_str("warm"),
            Self::Want(fd) => write!(f, "want {fd}"),
            Self::Ready(sockets) => write!(f, "ready {sockets}"),
            Self::Running => f.write_str("running"),
            Self::Failed(cause) => write!(f, "failed: {cause}"),
            Self::Bodies(length) => write!(f, "bodies {length}"),
            Self::Snapshot { length, paused_nanos } => write!(f, "snapshot {length} {paused_nanos}"),
            Self::Commit => f.write_str("commit"),
            Self::Other(line) => f.write_str(line),
        }
    }
}

impl Message {
    /// Reads a line without its end. Words after the known ones are ignored.
    fn parse(line: &str) -> Self {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let mut numbers = rest.split_whitespace();
        let mut number = || numbers.next()?.parse::<u64>().ok();
        let known = match word {
            "warm" => Some(Self::Warm),
            "want" => number().and_then(|fd| RawFd::try_from(fd).ok()).map(Self::Want),
            "ready" => number().map(Self::Ready),
            "running" => Some(Self::Running),
            "failed:" => Some(Self::Failed(rest.to_owned())),
            "bodies" => number().map(Self::Bodies),
            "snapshot" => {
                number().zip(number()).map(|(length, paused_nanos)| Self::Snapshot { length, paused_nanos })
            }
            "commit" => Some(Self::Commit),
            _ => None,
        };
        known.unwrap_or_else(|| Self::Other(line.to_owned()))
    }
}

/// Result of one wait for a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A whole line came.
    Message(Message),
    /// The other process closed its end.
    Closed,
    /// The time is over.
    Nothing,
}

/// End of the channel in one process.
pub(super) struct ControlChannel {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    /// Beginning of a line whose end has not come; at most [`LINE_BYTES_MAX`].
    partial: Vec<u8>,
}

impl ControlChannel {
    /// Makes an end of the channel.
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        let reader = BufReader::new(stream.try_clone()?);
        Ok(Self { stream, reader, partial: Vec::new() })
    }

    /// Sends one line.
    pub(super) fn send(&mut self, message: &Message) -> io::Result<()> {
        self.stream.write_all(format!("{message}\n").as_bytes())
    }

    /// Waits for one line, at most for `timeout`; `None`: until the line or the end comes.
    pub(super) fn receive(&mut self, timeout: Option<Duration>) -> io::Result<Received> {
        self.stream.set_read_timeout(timeout)?;
        let room = LINE_BYTES_MAX.saturating_sub(self.partial.len()) as u64;
        match (&mut self.reader).take(room).read_until(b'\n', &mut self.partial) {
            Ok(_) if self.partial.ends_with(b"\n") => {
                let line = std::mem::take(&mut self.partial);
                let line = String::from_utf8_lossy(&line);
                Ok(Received::Message(Message::parse(line.trim_end())))
            }
            Ok(_) if self.partial.len() >= LINE_BYTES_MAX => {
                let problem = format!("a line is longer than {LINE_BYTES_MAX} bytes");
                Err(io::Error::new(ErrorKind::InvalidData, problem))
            }
            Ok(_) => Ok(Received::Closed),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Ok(Received::Nothing)
            }
            Err(error) => Err(error),
        }
    }

    /// Sends a socket of this process, as the answer to [`Message::Want`].
    pub(super) fn send_socket(&self, fd: RawFd) -> io::Result<()> {
        sockets::send_fds(&self.stream, &[fd])
    }

    /// Asks the parent for its socket `fd`, and waits for it.
    pub(super) fn request_socket(&mut self, fd: RawFd) -> io::Result<OwnedFd> {
        self.send(&Message::Want(fd))?;
        sockets::receive_fds(&self.stream, 1)?.pop().ok_or_else(|| ErrorKind::UnexpectedEof.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (ControlChannel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        (ControlChannel::new(ours).expect("a channel"), theirs)
    }

    /// Earlier and later builds read and write exactly these lines.
    #[test]
    fn the_lines_never_change() {
        for (line, message) in [
            ("warm", Message::Warm),
            ("want 31", Message::Want(31)),
            ("ready 8002", Message::Ready(8002)),
            ("running", Message::Running),
            ("bodies 1073152", Message::Bodies(1_073_152)),
            ("failed: no room", Message::Failed("no room".into())),
            (
                "snapshot 724907 8123456789",
                Message::Snapshot { length: 724_907, paused_nanos: 8_123_456_789 },
            ),
            ("commit", Message::Commit),
            ("want no number", Message::Other("want no number".into())),
            ("hello", Message::Other("hello".into())),
        ] {
            assert_eq!(message.to_string(), line);
            assert_eq!(Message::parse(line), message);
        }
    }

    #[test]
    fn a_line_that_comes_in_pieces_is_one_message() {
        let (mut channel, mut peer) = pair();
        peer.write_all(b"wa").expect("written");
        assert_eq!(channel.receive(Some(Duration::from_millis(1))).expect("open"), Received::Nothing);
        peer.write_all(b"rm\nready 5\nrun").expect("written");
        assert_eq!(channel.receive(None).expect("open"), Received::Message(Message::Warm));
        assert_eq!(channel.receive(None).expect("open"), Received::Message(Message::Ready(5)));
        drop(peer);
        assert_eq!(channel.receive(None).expect("closed"), Received::Closed, "half a line is no message");
    }

    #[test]
    fn a_line_without_an_end_is_refused() {
        let (mut channel, mut peer) = pair();
        let writer = std::thread::spawn(move || peer.write_all(&vec![b'x'; LINE_BYTES_MAX + 1]));
        let error = channel.receive(None).expect_err("too long");
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        drop(channel);
        _ = writer.join().expect("no panic");
    }

    #[test]
    fn a_requested_socket_arrives() {
        let (mut channel, peer) = pair();
        let mut peer = ControlChannel::new(peer).expect("a channel");
        let parent = std::thread::spawn(move || {
            let Received::Message(Message::Want(fd)) = peer.receive(None).expect("open") else {
                panic!("the channel asks for a socket");
            };
            peer.send_socket(fd).expect("sent");
        });
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let (fd, cookie) = sockets::name_of(&socket).expect("a socket");
        let received = channel.request_socket(fd).expect("received");
        assert_eq!(sockets::name_of(&received).expect("a socket").1, cookie);
        parent.join().expect("no panic");
    }
}
