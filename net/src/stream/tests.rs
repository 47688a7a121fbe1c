//! The edge-trigger contract, row by row.

use super::*;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream as StdStream};

fn pair() -> (Stream, StdStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let peer = StdStream::connect(listener.local_addr().expect("bound")).expect("connects");
    let (socket, _) = listener.accept().expect("a newcomer");
    socket.set_nonblocking(true).expect("nonblocking");
    (Stream::tcp(TcpStream::from_std(socket)), peer)
}

/// Reads until the socket has received what the peer has sent: loopback may take a moment.
fn read_soon(stream: &mut Stream, block: &mut ReadBlock) -> io::Result<Reading> {
    loop {
        stream.handle_edge(true, false, false);
        match stream.read(block) {
            Ok(Reading::Blocked) => std::thread::yield_now(),
            outcome => return outcome,
        }
    }
}

#[test]
fn a_short_read_ends_readability_until_the_next_edge() {
    let (mut stream, mut peer) = pair();
    let mut block = ReadBlock::default();
    assert_eq!(stream.read(&mut block).expect("sound"), Reading::Blocked, "no edge came");
    peer.write_all(b"hi").expect("sent");
    assert_eq!(read_soon(&mut stream, &mut block).expect("sound"), Reading::Bytes("hi".into()));
    assert!(!stream.is_readable());
    peer.write_all(b"ho").expect("sent");
    assert_eq!(stream.read(&mut block).expect("sound"), Reading::Blocked, "no edge came");
    assert_eq!(read_soon(&mut stream, &mut block).expect("sound"), Reading::Bytes("ho".into()));
}

#[test]
fn behind_a_short_read_the_end_is_found_once_it_was_announced() {
    let (mut stream, mut peer) = pair();
    let mut block = ReadBlock::default();
    peer.write_all(b"bye").expect("sent");
    peer.shutdown(Shutdown::Write).expect("half closed");
    stream.handle_edge(true, false, true);
    let bytes = loop {
        match stream.read(&mut block).expect("sound") {
            Reading::Blocked => {
                stream.handle_edge(true, false, false);
            }
            reading => break reading,
        }
    };
    assert_eq!(bytes, Reading::Bytes("bye".into()));
    assert!(stream.is_readable(), "the end is still to come");
    assert_eq!(read_soon(&mut stream, &mut block).expect("sound"), Reading::End);
}

#[test]
fn a_short_write_ends_writability_and_counts_what_the_stream_took() {
    let (mut stream, mut peer) = pair();
    let chunk = vec![7; 1 << 20];
    let mut taken = 0;
    while stream.is_writable() {
        taken += stream.write(&chunk).expect("sound");
    }
    assert_eq!(stream.write(&chunk).expect("sound"), 0, "it takes none for now");
    let edge = stream.handle_edge(false, true, false);
    assert!(edge.became_writable && stream.is_writable());
    assert!(!stream.handle_edge(false, true, false).became_writable, "it was already");
    drop(stream);
    let mut received = Vec::new();
    peer.read_to_end(&mut received).expect("all of it");
    assert_eq!(received.len(), taken);
}

#[test]
fn an_output_buffer_keeps_what_the_stream_did_not_take() {
    let (mut stream, _peer) = pair();
    let mut output = BytesMut::zeroed(64 << 20);
    let count = stream.write_output(&mut output, 1 << 10).expect("sound");
    assert_eq!((output.len(), stream.is_writable()), ((64 << 20) - count, false));
    assert_eq!(stream.write_output(&mut output, 1 << 10).expect("sound"), 0, "no edge came");
    let (mut stream, _peer) = pair();
    let mut output = BytesMut::zeroed(2 << 10);
    assert_eq!(stream.write_output(&mut output, 1 << 10).expect("sound"), 2 << 10);
    assert_eq!(output.capacity(), 0, "a large empty buffer is given back");
}

#[test]
fn a_placed_stream_begins_without_marks_and_permissions_to_read() {
    let (mut stream, _peer) = pair();
    stream.handle_edge(true, false, true);
    *stream.marks() = Marks { is_listed: true, is_held: true };
    stream.place(7);
    assert_eq!((stream.tag(), *stream.marks()), (7, Marks::default()));
    assert!(stream.is_writable() && !stream.is_readable());
}

#[test]
fn a_socket_that_connected_to_itself_is_not_a_peer() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).expect("a free port");
    let own = socket.local_addr().expect("bound");
    socket.connect(&own).expect("TCP allows it");
    socket.set_nonblocking(true).expect("nonblocking");
    let mut stream = Stream::tcp(TcpStream::from_std(socket.into()));
    let error = stream.try_finish_connect().expect_err("it met itself");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_refused_connect_is_an_error_and_a_taken_one_stands() {
    let mut poll = mio::Poll::new().expect("a poll");
    let mut events = mio::Events::with_capacity(4);
    let mut attempt = |address| {
        let mut stream = Stream::connect(address)?;
        assert!(!stream.try_finish_connect()?, "no edge came");
        stream.register(poll.registry(), Token(0))?;
        loop {
            poll.poll(&mut events, None)?;
            for event in &events {
                stream.handle_event(event);
            }
            if stream.try_finish_connect()? {
                return Ok::<_, io::Error>(stream);
            }
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("bound");
    attempt(address).expect("it listens").finish(b"owed", std::time::Duration::from_secs(5));
    let mut received = String::new();
    listener.accept().expect("one").0.read_to_string(&mut received).expect("text");
    assert_eq!(received, "owed");
    drop(listener);
    assert!(attempt(address).is_err(), "nobody listens");
}

#[cfg(unix)]
#[test]
fn a_unix_stream_comes_back_from_its_descriptor() {
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    ours.set_nonblocking(true).expect("nonblocking");
    let mut stream = Stream::thaw(StreamKind::Unix, ours.into());
    assert_eq!((stream.freeze(), stream.peer_addr().is_err()), (StreamKind::Unix, true));
    assert_eq!(stream.write(b"hi").expect("sound"), 2);
    let mut two = [0; 2];
    theirs.read_exact(&mut two).expect("both");
    theirs.write_all(b"ho").expect("sent");
    assert_eq!(
        (&two, read_soon(&mut stream, &mut ReadBlock::default()).expect("sound")),
        (b"hi", Reading::Bytes("ho".into()))
    );
}
