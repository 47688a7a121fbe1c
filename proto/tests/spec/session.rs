//! The session of section 12 [P-12.1], byte by byte.

use crate::document::{path, text};
use bytes::Bytes;
use moorline_proto::connection::{client, server};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{BODY_BYTES_MAX, Command, Frame, HEADER_BYTES, Lane};
use moorline_proto::keepalive::Bounds;
use moorline_proto::message::client::{
    Ack, Close, Code, Hello, Ping, Platform, Push, Send, SendAck, Welcome, send,
};
use moorline_proto::message::{encode, frame_of, send_ack_body};
use moorline_proto::time::Duration;
use moorline_proto::{PROTOCOL_VERSION, dedupe};
use std::fmt::Write;
use std::{env, fs};

const CONVERSATION: &str = "c2c:alice:bob";
const NOW_MS: u64 = 1_700_000_000_000;

/// The frames in order, each under the name of its dump.
fn session() -> [(&'static str, Frame); 10] {
    let close = Close {
        code: CloseReason::LoggedOut.code(),
        reason: CloseReason::LoggedOut.text().trim().to_owned(),
        retry_after_ms: 0,
    };
    [
        ("hello", hello()),
        ("welcome", welcome()),
        ("send", send_hi()),
        ("sendack", stored()),
        ("push", answer()),
        ("ack", frame_of(Command::Ack, &Ack { sack: 0 }).with_ack(1)),
        ("ping", frame_of(Command::Ping, &Ping { next_s: 30 }).with_ack(1)),
        ("pong", Frame::new(Command::Pong, Bytes::new()).with_ack(1)),
        ("logout", Frame::new(Command::Logout, Bytes::new()).with_ack(1)),
        ("close", frame_of(Command::Close, &close)),
    ]
}

fn hello() -> Frame {
    let version = u32::from(PROTOCOL_VERSION);
    let hello = Hello {
        version_min: version,
        version_max: version,
        uid: "alice".into(),
        device: "phone".into(),
        platform: Platform::Ios.into(),
        agent: "example/1.0".into(),
        ..Default::default()
    };
    frame_of(Command::Hello, &hello)
}

fn welcome() -> Frame {
    let bounds = Bounds { min: Duration::from_secs(30), max: Duration::from_secs(300) };
    let seconds = |interval: Duration| u32::try_from(interval.as_secs()).expect("minutes");
    let welcome = Welcome {
        version: u32::from(PROTOCOL_VERSION),
        session: (0..16).map(|i| i * 0x11).collect::<Vec<u8>>().into(),
        epoch: NOW_MS * 1_000_000,
        heartbeat_min_s: seconds(bounds.min),
        heartbeat_max_s: seconds(bounds.max),
        uplink_window: dedupe::WINDOW_FRAMES,
        downlink_window: 32,
        body_max: BODY_BYTES_MAX,
        server_time_ms: NOW_MS + 1,
        ..Default::default()
    };
    frame_of(Command::Welcome, &welcome)
}

fn send_hi() -> Frame {
    let send = Send {
        key: Bytes::from_static(b"0123456789abcdef"),
        target: Some(send::Target::User("bob".into())),
        r#type: 1,
        payload: "hi".into(),
    };
    frame_of(Command::Send, &send).with_seq(1).with_lane(Lane::Chat)
}

fn stored() -> Frame {
    let answer = SendAck {
        message_id: 0x0100_0000_0000_0007,
        conversation: CONVERSATION.into(),
        seq: 1,
        time_ms: NOW_MS + 2,
        ..Default::default()
    };
    Frame::new(Command::SendAck, send_ack_body(1, Code::Ok, &encode(&answer))).with_ack(1)
}

fn answer() -> Frame {
    let push = Push {
        message_id: 0x0100_0000_0000_0008,
        conversation: CONVERSATION.into(),
        seq: 2,
        sender: "bob".into(),
        sender_device: "laptop".into(),
        r#type: 1,
        payload: "hello, alice".into(),
        time_ms: NOW_MS + 5000,
        ..Push::default()
    };
    frame_of(Command::Push, &push).with_seq(1).with_ack(1).with_lane(Lane::Chat)
}

fn dump(frame: &Frame) -> String {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    let (header, body) = bytes.split_at(HEADER_BYTES);
    let mut text = String::from("      ");
    for word in header.chunks(4) {
        text += " ";
        for byte in word {
            write!(text, " {byte:02x}").expect("strings grow");
        }
    }
    text += "\n";
    for (line, chunk) in body.chunks(16).enumerate() {
        let hex: Vec<String> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
        let letters: String = chunk
            .iter()
            .map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' })
            .collect();
        let line = format!("{:06x}  {:<47}  {letters}", line * 16, hex.join(" "));
        writeln!(text, "{}", line.trim_end()).expect("strings grow");
    }
    text
}

#[test]
fn dumps_are_what_the_code_writes() {
    let mut document = text();
    for (name, frame) in session() {
        let open = format!("```hexdump {name}\n");
        let from = document.find(&open).unwrap_or_else(|| panic!("no dump of {name}")) + open.len();
        let to = from + document[from..].find("```").expect("the block ends");
        let expected = dump(&frame);
        if env::var_os("MOORLINE_REGENERATE").is_some() {
            document.replace_range(from..to, &expected);
        } else {
            assert_eq!(document[from..to], expected, "the dump of {name}");
        }
    }
    assert_eq!(document.matches("```hexdump").count(), session().len(), "every dump is made here");
    if env::var_os("MOORLINE_REGENERATE").is_some() {
        fs::write(path(), document).expect("writable");
    }
}

/// Both ends' state machines agree that the example is lawful.
#[test]
fn the_session_is_lawful() {
    let mut gateway = server::State::AwaitHello;
    let client::Transition::To(mut client) = client::State::Offline.on(client::Event::Connected) else {
        panic!("a connected client greets");
    };
    for (name, frame) in session() {
        let command = frame.header.command;
        let is_up = matches!(name, "hello" | "send" | "ack" | "ping" | "logout");
        if is_up {
            let server::Transition::To(next) = gateway.on(server::Event::Received(command)) else {
                panic!("the gateway refuses {name}");
            };
            gateway = next;
        } else {
            let client::Transition::To(next) = client.on(client::Event::Received(command)) else {
                panic!("the client refuses {name}");
            };
            client = next;
        }
        if name == "hello" {
            let server::Transition::To(next) = gateway.on(server::Event::Admitted) else {
                panic!("admitted")
            };
            gateway = next;
        }
    }
    assert_eq!((gateway, client), (server::State::Closing, client::State::Offline));
}
