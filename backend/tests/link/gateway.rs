//! A gateway of few words: one blocking link.

use crate::PATIENCE;
use bytes::{Bytes, BytesMut};
use moorline_proto::frame::Command;
use moorline_proto::link::{Kind, LinkDecoder, LinkFrame, encode};
use moorline_proto::message::backend::{ConnUp, LinkHello, Push, PushOutcome, PushResult, Up, UpResult};
use moorline_proto::message::client::{Code, Req, Resp, Send, SendAck, send};
use moorline_proto::message::{self, decode};
use prost::Message;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

pub(crate) struct Gateway {
    stream: TcpStream,
    decoder: LinkDecoder,
    input: Bytes,
    correlation: u64,
    /// Credit of the backend's HELLO.
    pub(crate) credit: u32,
}

impl Gateway {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("no delay");
        Self { stream, decoder: LinkDecoder::new(), input: Bytes::new(), correlation: 0, credit: 0 }
    }

    pub(crate) fn greeted(address: SocketAddr, node: &str, epoch: u64) -> Self {
        let mut gateway = Self::connect(address);
        gateway.hello(node, epoch);
        let hello = gateway.expect(Kind::Hello);
        gateway.credit = hello.credit;
        gateway
    }

    pub(crate) fn hello(&mut self, node: &str, epoch: u64) {
        let node = node.to_owned();
        let hello = LinkHello { version_min: 1, version_max: 1, node, epoch, ..Default::default() };
        self.say(Kind::Hello, 0, &hello);
    }

    pub(crate) fn say(&mut self, kind: Kind, correlation: u64, body: &impl Message) {
        let mut wire = BytesMut::new();
        encode(&mut wire, kind, correlation, 0, body);
        self.say_raw(&wire);
    }

    pub(crate) fn say_raw(&mut self, wire: &[u8]) {
        self.stream.write_all(wire).expect("the backend reads");
    }

    /// The next frame but PINGs; `None` when the backend has closed.
    pub(crate) fn next(&mut self) -> Option<LinkFrame> {
        loop {
            match self.decoder.decode(&mut self.input).expect("the backend's frames are valid") {
                Some(frame) if frame.kind == Kind::Ping => {}
                Some(frame) => return Some(frame),
                None => {
                    let mut block = vec![0; 1 << 16];
                    let read = match self.stream.read(&mut block) {
                        Ok(0) => return None,
                        Ok(read) => read,
                        Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                        Err(error) => panic!("the backend said nothing: {error}"),
                    };
                    block.truncate(read);
                    self.input = block.into();
                }
            }
        }
    }

    pub(crate) fn expect(&mut self, kind: Kind) -> LinkFrame {
        let frame = self.next().expect("the link is open");
        assert_eq!(frame.kind, kind, "{frame:?}");
        frame
    }

    /// True if the backend has ended the link, once everything it had said is read.
    pub(crate) fn is_closed(&mut self) -> bool {
        while self.next().is_some() {}
        true
    }

    pub(crate) fn conn_up(&mut self, handle: u64, uid: &str, device: &str, login_version: u64) {
        self.say(Kind::ConnUp, 0, &login(handle, uid, device, login_version));
    }

    /// Forwards a client's frame; the number to find its answer by.
    pub(crate) fn up(&mut self, handle: u64, command: Command, body: Bytes) -> u64 {
        self.correlation += 1;
        let command = command.byte().into();
        self.say(Kind::Up, self.correlation, &Up { handle, command, body, ..Default::default() });
        self.correlation
    }

    pub(crate) fn answer(&mut self, correlation: u64) -> UpResult {
        let frame = self.expect(Kind::UpResult);
        assert_eq!(frame.correlation, correlation);
        frame.message().expect("an UpResult")
    }

    pub(crate) fn send(&mut self, handle: u64, user: &str, key: u8, payload: &[u8]) -> (Code, SendAck) {
        let question = self.up(handle, Command::Send, send_body(user, key, payload));
        let result = self.answer(question);
        (result.code(), decode(&result.answer).expect("a SendAck"))
    }

    pub(crate) fn req(&mut self, handle: u64, method: &str, payload: Bytes) -> (Code, Bytes) {
        let req = Req { id: 1, method: method.into(), payload };
        let question = self.up(handle, Command::Req, message::encode(&req));
        let result = self.answer(question);
        (result.code(), decode::<Resp>(&result.answer).expect("a Resp").payload)
    }

    /// The next frame, which is a push, with its number.
    pub(crate) fn push(&mut self) -> (u64, Push) {
        let frame = self.expect(Kind::Push);
        (frame.correlation, frame.message().expect("a Push"))
    }

    pub(crate) fn outcome(&mut self, correlation: u64, handle: u64, outcome: i32) {
        let outcomes = vec![PushOutcome { correlation, handle, outcome }];
        self.say(Kind::PushResult, 0, &PushResult { outcomes });
    }
}

pub(crate) fn login(handle: u64, uid: &str, device: &str, login_version: u64) -> ConnUp {
    ConnUp { handle, uid: uid.into(), device: device.into(), login_version, ..Default::default() }
}

pub(crate) fn send_body(user: &str, key: u8, payload: &[u8]) -> Bytes {
    message::encode(&Send {
        key: Bytes::copy_from_slice(&[key; 16]),
        target: Some(send::Target::User(user.into())),
        r#type: 1,
        payload: Bytes::copy_from_slice(payload),
    })
}
