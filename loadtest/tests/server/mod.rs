//! A small gateway for tests: real frames over real sockets, and faults on demand.
//!
//! One thread accepts, one thread serves each connection; all end with the connection, the accepting
//! one with the test process.

use bytes::Bytes;
use moorline_proto::frame::{BODY_BYTES_MAX, Command, Decoder, Frame};
use moorline_proto::message::client::{Close, Code, Hello, SendAck, Welcome};
use moorline_proto::message::{decode, encode, frame_of};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// What it does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// Every n-th SEND has no answer.
    Lose(u32),
    /// Every n-th SEND is answered twice.
    Duplicate(u32),
    /// Every n-th answer comes after the next one.
    Reorder(u32),
    /// Every n-th SEND is answered RETRY.
    Refuse(u32),
    /// The connection ends at the n-th SEND.
    Drop(u32),
    /// Nobody gets in.
    NoLogin,
    /// The n-th SEND of a connection and all after it wait this many milliseconds, once.
    Stall(u32, u64),
    /// Heartbeats are not echoed.
    NoPong,
}

/// Serves until the process ends; where.
pub(crate) fn start(fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream, fault));
        }
    });
    address
}

fn serve(mut stream: TcpStream, fault: Fault) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let (mut decoder, mut buffer) = (Decoder::new(), vec![0; 4 << 10]);
    let mut held = None;
    loop {
        let len = stream.read(&mut buffer).ok().filter(|len| *len > 0)?;
        let (mut input, mut out) = (Bytes::copy_from_slice(&buffer[..len]), Vec::new());
        while let Some(frame) = decoder.decode(&mut input, BODY_BYTES_MAX).ok()? {
            answer(&frame, fault, &mut held, &mut out)?;
        }
        stream.write_all(&out).ok()?;
    }
}

/// `None`: end the connection.
fn answer(frame: &Frame, fault: Fault, held: &mut Option<Frame>, out: &mut Vec<u8>) -> Option<()> {
    match frame.header.command {
        Command::Hello if fault == Fault::NoLogin => {
            frame_of(Command::Close, &Close { code: 3520, ..Close::default() }).encode(out);
        }
        Command::Hello => {
            decode::<Hello>(&frame.body).ok()?;
            let welcome = Welcome { version: 1, heartbeat_min_s: 1, uplink_window: 64, ..Welcome::default() };
            frame_of(Command::Welcome, &welcome).encode(out);
        }
        Command::Ping if fault == Fault::NoPong => {}
        Command::Ping => Frame::new(Command::Pong, Bytes::new()).encode(out),
        Command::Send => answer_send(frame.header.seq, fault, held, out)?,
        _ => {}
    }
    Some(())
}

#[allow(clippy::disallowed_methods)] // it plays a server that is slow
fn answer_send(cid: u32, fault: Fault, held: &mut Option<Frame>, out: &mut Vec<u8>) -> Option<()> {
    let hits = |n: u32| cid.is_multiple_of(n);
    let code = if matches!(fault, Fault::Refuse(n) if hits(n)) { Code::Retry } else { Code::Ok };
    let ack = SendAck { cid, code: code.into(), ..SendAck::default() };
    let ack = Frame::new(Command::SendAck, encode(&ack));
    match fault {
        Fault::Drop(n) if hits(n) => return None,
        Fault::Lose(n) if hits(n) => return Some(()),
        Fault::Reorder(n) if hits(n) => {
            *held = Some(ack);
            return Some(());
        }
        Fault::Stall(n, millis) if cid == n => std::thread::sleep(Duration::from_millis(millis)),
        Fault::Duplicate(n) if hits(n) => ack.encode(out),
        _ => {}
    }
    ack.encode(out);
    if let Some(late) = held.take() {
        late.encode(out);
    }
    Some(())
}
