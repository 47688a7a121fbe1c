//! Vectors of client frames: every command, every refusal of the decoder, batches and cut-off input.

use crate::{Vector, reflect};
use bytes::{Bytes, BytesMut};
use moorline_proto::error::CloseReason;
use moorline_proto::frame::{
    BATCH_FRAMES_MAX, BODY_BYTES_MAX, Batch, Command, Decoder, Flags, Frame, HEADER_BYTES, Lane, encode_batch,
};
use moorline_proto::message::client::{
    Ack, Close, Code, GoAway, Hello, Kick, Notify, Ping, Platform, Push, Req, Resp, Send, SendAck, Sub,
    SubAck, Throttle, Unsub, Welcome, send::Target,
};
use moorline_proto::message::im::{Happened, Read, happened};
use moorline_proto::message::{decode, encode, frame_of};
use prost::Message;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Debug;

const KEY: &[u8; 16] = b"0123456789abcdef";
const PUSH_ID: u64 = 0x0102_0304_0506_0708;

pub(crate) fn all() -> Vec<Vector> {
    let mut vectors = login();
    vectors.extend(messages());
    vectors.extend(requests());
    vectors.extend(leaving());
    vectors.extend(headers());
    vectors.extend(batches());
    vectors.extend(refused_headers());
    vectors.extend(refused_bodies());
    vectors.extend(cut_off());
    vectors
}

/// Every command and every close code that a decoder gives must appear.
pub(crate) fn check_coverage(vectors: &[Vector]) {
    use CloseReason::{BadBatch, BadHeader, BadMagic, BadMessage, BadVersion, TooLarge, Unsupported};
    let commands: BTreeSet<u64> =
        vectors.iter().filter_map(|vector| vector.meaning["frame"]["command"].as_u64()).collect();
    for command in
        Command::NAMED.iter().chain(&[Command::App(0x40), Command::App(0xBF), Command::Ignorable(0xFF)])
    {
        assert!(commands.contains(&command.byte().into()), "no vector of {command:?}");
    }
    let codes: BTreeSet<u64> =
        vectors.iter().filter_map(|vector| vector.meaning["close_code"].as_u64()).collect();
    for reason in [BadMagic, BadVersion, BadHeader, TooLarge, Unsupported, BadMessage, BadBatch] {
        assert!(codes.contains(&reason.code().into()), "no vector of {reason}");
    }
}

fn bytes_of(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

fn decode_one(bytes: &[u8]) -> Result<Option<Frame>, CloseReason> {
    let mut input = Bytes::copy_from_slice(bytes);
    let frame = Decoder::new().decode(&mut input, BODY_BYTES_MAX)?;
    assert!(input.is_empty(), "one frame per vector");
    Ok(frame)
}

fn header_json(frame: &Frame) -> Value {
    let header = &frame.header;
    json!({
        "command": header.command.byte(),
        "flags": header.flags.0,
        "lane": header.lane as u8,
        "reliable": header.reliable,
        "body_len": header.body_len,
        "seq": header.seq,
        "ack": header.ack,
    })
}

/// A frame whose body is `message`, which the generated code and the schema must both read back.
fn typed<M>(
    name: &'static str,
    schema: &str,
    message: &M,
    frame: impl FnOnce(Frame) -> Frame,
    command: Command,
) -> Vector
where
    M: Message + Default + PartialEq + Debug,
{
    let frame = frame(frame_of(command, message));
    let bytes = bytes_of(&frame);
    let got = decode_one(&bytes).expect("valid").expect("whole");
    assert_eq!(got, frame, "{name}");
    assert_eq!(decode::<M>(&got.body).as_ref(), Ok(message), "{name}");
    let schema = format!("moorline.v1.{schema}");
    let body = reflect::body(&schema, &got.body);
    Vector { name, bytes, meaning: json!({ "frame": header_json(&got), "message": schema, "body": body }) }
}

/// A frame whose body is empty or opaque.
fn raw(name: &'static str, frame: &Frame) -> Vector {
    let bytes = bytes_of(frame);
    let got = decode_one(&bytes).expect("valid").expect("whole");
    assert_eq!(&got, frame, "{name}");
    Vector {
        name,
        bytes,
        meaning: json!({ "frame": header_json(&got), "body_hex": reflect::hex(&got.body) }),
    }
}

/// Bytes that end the connection.
fn refused(name: &'static str, bytes: Vec<u8>, expected: CloseReason) -> Vector {
    assert_eq!(decode_one(&bytes), Err(expected), "{name}");
    Vector { name, bytes, meaning: json!({ "close_code": expected.code() }) }
}

fn as_is(frame: Frame) -> Frame {
    frame
}

fn login() -> Vec<Vector> {
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        token: "header.payload.signature".into(),
        uid: "alice".into(),
        device: "phone".into(),
        platform: Platform::Ios.into(),
        resume: None,
        agent: "example/1.0".into(),
        accept: 1,
    };
    let welcome = Welcome {
        version: 1,
        session: Bytes::from_static(KEY),
        epoch: 1_700_000_000_000_000_000,
        heartbeat_min_s: 30,
        heartbeat_max_s: 300,
        uplink_window: 64,
        downlink_window: 32,
        body_max: 65_536,
        server_time_ms: 1_700_000_000_123,
        ..Default::default()
    };
    let bare =
        Hello { version_min: 1, version_max: 3, uid: "b".into(), device: "d".into(), ..Default::default() };
    vec![
        typed("hello", "Hello", &hello, as_is, Command::Hello),
        typed("hello, fewest fields, later versions offered", "Hello", &bare, as_is, Command::Hello),
        typed("welcome", "Welcome", &welcome, as_is, Command::Welcome),
        typed("ping", "Ping", &Ping { next_s: 30 }, |frame| frame.with_ack(7), Command::Ping),
        raw(
            "ping of a gateway that asks for an ack",
            &Frame::new(Command::Ping, Bytes::new()).with_flags(Flags::ACK_REQ),
        ),
        raw("pong", &Frame::new(Command::Pong, Bytes::new()).with_ack(7)),
    ]
}

fn messages() -> Vec<Vector> {
    let send =
        |target| Send { key: Bytes::from_static(KEY), target: Some(target), r#type: 1, payload: "hi".into() };
    let to_user = send(Target::User("bob".into()));
    let to_group = send(Target::Conversation("group:tea".into()));
    let stored = SendAck {
        cid: 1,
        code: Code::Ok.into(),
        message_id: PUSH_ID,
        conversation: "c2c:alice:bob".into(),
        seq: 1,
        time_ms: 1_700_000_000_456,
        ..Default::default()
    };
    let retry = SendAck {
        cid: 2,
        code: Code::Retry.into(),
        retry_after_ms: 500,
        reason: "busy".into(),
        ..Default::default()
    };
    let push = Push {
        message_id: PUSH_ID,
        conversation: "c2c:alice:bob".into(),
        seq: 1,
        sender: "alice".into(),
        sender_device: "phone".into(),
        r#type: 1,
        payload: "hi".into(),
        time_ms: 1_700_000_000_456,
        ..Push::default()
    };
    let read = Happened { what: Some(happened::What::Read(Read { user: "bob".into(), seq: 7 })) };
    let happening = Push {
        message_id: PUSH_ID,
        conversation: "c2c:alice:bob".into(),
        sender: "bob".into(),
        sender_device: "phone".into(),
        time_ms: 1_700_000_000_456,
        happened: encode(&read),
        ..Push::default()
    };
    let notify = Notify { conversation: "group:tea".into(), latest: 1 << 40, first: 0 };
    let again = |frame: Frame| frame.with_seq(2).with_lane(Lane::Group).with_flags(Flags::DUP);
    vec![
        typed(
            "send to a user",
            "Send",
            &to_user,
            |frame| frame.with_seq(1).with_lane(Lane::Chat),
            Command::Send,
        ),
        typed("send to a group, again", "Send", &to_group, again, Command::Send),
        typed("sendack, stored", "SendAck", &stored, |frame| frame.with_ack(1), Command::SendAck),
        typed("sendack, try again", "SendAck", &retry, |frame| frame.with_ack(2), Command::SendAck),
        typed("push", "Push", &push, |frame| frame.with_seq(1).with_lane(Lane::Chat), Command::Push),
        typed(
            "push, bob has read",
            "Push",
            &happening,
            |frame| frame.with_seq(2).with_lane(Lane::Chat),
            Command::Push,
        ),
        typed("ack without a hole", "Ack", &Ack { sack: 0 }, |frame| frame.with_ack(9), Command::Ack),
        typed("ack of 5, 7 and 10", "Ack", &Ack { sack: 0b1001 }, |frame| frame.with_ack(5), Command::Ack),
        typed("notify", "Notify", &notify, |frame| frame.with_seq(3).with_lane(Lane::Bulk), Command::Notify),
    ]
}

fn requests() -> Vec<Vector> {
    let request = Req { id: 1, method: "im.conversations".into(), payload: Bytes::new() };
    let answer = Resp { id: 1, payload: Bytes::from_static(&[0x0A, 0]), ..Default::default() };
    let refusal =
        Resp { id: 2, code: Code::Unsupported.into(), reason: "no such method".into(), ..Default::default() };
    let room = "stadium".to_owned();
    let unsupported = SubAck { id: 4, code: Code::Unsupported.into(), reason: String::new() };
    vec![
        typed("req", "Req", &request, as_is, Command::Req),
        typed("resp", "Resp", &answer, as_is, Command::Resp),
        typed("resp, refused", "Resp", &refusal, as_is, Command::Resp),
        typed("sub", "Sub", &Sub { id: 4, room: room.clone() }, as_is, Command::Sub),
        typed("unsub", "Unsub", &Unsub { id: 5, room }, as_is, Command::Unsub),
        typed("suback", "SubAck", &unsupported, as_is, Command::SubAck),
        raw(
            "application command, opaque",
            &Frame::new(Command::App(0x40), Bytes::from_static(&[0xFF, 0, 1])),
        ),
        raw("last application command", &Frame::new(Command::App(0xBF), Bytes::new()).with_seq(8)),
        raw("unknown but ignorable", &Frame::new(Command::Ignorable(0xFF), Bytes::from_static(b"?"))),
    ]
}

fn leaving() -> Vec<Vector> {
    let kick =
        Kick { code: CloseReason::Replaced.code(), may_reconnect: false, reason: "newer login".into() };
    let goaway = GoAway { window_ms: 10_000, alternates: vec!["gw2.example:7000".into()] };
    let throttle = Throttle { retry_after_ms: 250, reason: "slow down".into() };
    let close = Close { code: CloseReason::Busy.code(), reason: "full".into(), retry_after_ms: 1500 };
    vec![
        typed("kick", "Kick", &kick, as_is, Command::Kick),
        raw("logout", &Frame::new(Command::Logout, Bytes::new()).with_ack(3)),
        typed("goaway", "GoAway", &goaway, as_is, Command::GoAway),
        typed("throttle", "Throttle", &throttle, as_is, Command::Throttle),
        typed("close", "Close", &close, as_is, Command::Close),
    ]
}

fn headers() -> Vec<Vector> {
    let push = |seq| Frame::new(Command::Push, Bytes::new()).with_seq(seq);
    let all_flags = Frame::new(Command::Send, Bytes::new()).with_seq(1).with_flags(Flags(0x03));
    vec![
        raw("lane 0, reliable", &push(1)),
        raw(
            "lane 3, reliable, highest seq and ack",
            &push(u32::MAX).with_ack(u32::MAX).with_lane(Lane::Bulk),
        ),
        raw("ack-req and dup", &all_flags),
    ]
}

fn batch(name: &'static str, frames: &[Frame]) -> Vector {
    let frame = encode_batch(frames);
    let bytes = bytes_of(&frame);
    let got = decode_one(&bytes).expect("valid").expect("whole");
    let inside: Result<Vec<Frame>, _> = Batch::new(got.body.clone()).collect();
    assert_eq!(inside.as_deref(), Ok(frames), "{name}");
    let inside: Vec<Value> = frames.iter().map(|frame| json!(reflect::hex(&bytes_of(frame)))).collect();
    Vector { name, bytes, meaning: json!({ "frame": header_json(&got), "batch": inside }) }
}

fn bad_batch(name: &'static str, body: Bytes) -> Vector {
    let bytes = bytes_of(&Frame::new(Command::Ping, body).with_flags(Flags::BATCH));
    let got = decode_one(&bytes).expect("valid").expect("whole");
    let verdict: Result<Vec<Frame>, _> = Batch::new(got.body.clone()).collect();
    let reason = verdict.expect_err(name);
    Vector { name, bytes, meaning: json!({ "frame": header_json(&got), "close_code": reason.code() }) }
}

fn batches() -> Vec<Vector> {
    let ping = frame_of(Command::Ping, &Ping { next_s: 30 });
    let ack = Frame::new(Command::Ack, Bytes::new()).with_ack(4);
    let pair = encode_batch(&[ping.clone(), ack.clone()]);
    let cut = pair.body.slice(..pair.body.len() - 1);
    let mut long = BytesMut::new();
    (0..=BATCH_FRAMES_MAX).for_each(|_| ack.encode(&mut long));
    let mut foreign = BytesMut::new();
    ack.encode(&mut foreign);
    foreign.extend_from_slice(b"GET / HTTP/1.1\r\n");
    vec![
        batch("batch of one", std::slice::from_ref(&ping)),
        batch("batch of two", &[ping, ack.clone()]),
        batch("batch of the most frames", &vec![ack; BATCH_FRAMES_MAX]),
        bad_batch("batch, empty", Bytes::new()),
        bad_batch("batch in a batch", encode_batch(&[pair]).body),
        bad_batch("batch whose last frame is cut off", cut),
        bad_batch("batch of one frame too many", long.freeze()),
        bad_batch("batch with foreign bytes after a frame", foreign.freeze()),
    ]
}

/// A valid header of a PING without body, with one byte changed.
fn patched(at: usize, byte: u8) -> Vec<u8> {
    let mut bytes = bytes_of(&Frame::new(Command::Ping, Bytes::new()));
    bytes[at] = byte;
    bytes
}

fn refused_headers() -> Vec<Vector> {
    use CloseReason::{BadHeader, BadMagic, BadVersion, TooLarge, Unsupported};
    let mut huge = patched(4, 0xFF);
    huge.truncate(HEADER_BYTES);
    vec![
        refused("http, after one byte", b"G".to_vec(), BadMagic),
        refused("tls, after one byte", vec![0x16], BadMagic),
        refused("zeroes", vec![0; HEADER_BYTES], BadMagic),
        refused("version 0", patched(0, 0xA0), BadVersion),
        refused("version 2, after one byte", vec![0xA2], BadVersion),
        refused("command 00", patched(1, 0x00), Unsupported),
        refused("command 03", patched(1, 0x03), Unsupported),
        refused("command 3e", patched(1, 0x3E), Unsupported),
        refused("flag more", patched(2, 0x10), Unsupported),
        refused("flag sealed", patched(2, 0x20), Unsupported),
        refused("flag trace", patched(2, 0x40), Unsupported),
        refused("flag ext", patched(2, 0x80), Unsupported),
        refused("class bit 3", patched(3, 0x08), BadHeader),
        refused("class bit 7", patched(3, 0x80), BadHeader),
        refused("reliable without seq", patched(3, 0x04), BadHeader),
        refused("seq without reliable", patched(11, 0x01), BadHeader),
        refused("body one byte over 64 KiB, judged by the header", patched_len(BODY_BYTES_MAX + 1), TooLarge),
        refused("body of 4 GiB, judged by the header", huge, TooLarge),
    ]
}

fn patched_len(len: u32) -> Vec<u8> {
    let mut bytes = patched(0, 0xA1);
    bytes[4..8].copy_from_slice(&len.to_be_bytes());
    bytes
}

/// The frame is fine, its body is not what its command says.
fn bad_message<M>(name: &'static str, command: Command, body: &'static [u8]) -> Vector
where
    M: Message + Default + PartialEq + Debug,
{
    let bytes = bytes_of(&Frame::new(command, Bytes::from_static(body)));
    let got = decode_one(&bytes).expect("valid").expect("whole");
    let reason = decode::<M>(&got.body).expect_err(name);
    Vector { name, bytes, meaning: json!({ "frame": header_json(&got), "close_code": reason.code() }) }
}

fn refused_bodies() -> Vec<Vector> {
    vec![
        bad_message::<Hello>("hello, field longer than the body", Command::Hello, &[0x22, 5, b'a']),
        bad_message::<Hello>("hello, uid is not utf-8", Command::Hello, &[0x22, 1, 0xFF]),
        bad_message::<Ping>("ping, number without end", Command::Ping, &[0x08, 0x80]),
        bad_message::<Ping>("ping, field of another type", Command::Ping, &[0x0A, 0]),
        bad_message::<Ping>("ping, field number 0", Command::Ping, &[0x00, 0]),
    ]
}

fn cut_off() -> Vec<Vector> {
    let whole = bytes_of(&frame_of(Command::Ping, &Ping { next_s: 30 }));
    let cut = |name, len: usize| {
        assert_eq!(decode_one(&whole[..len]), Ok(None), "{name}");
        Vector { name, bytes: whole[..len].to_vec(), meaning: json!({ "incomplete": true }) }
    };
    vec![
        cut("cut off after one byte", 1),
        cut("cut off before the end of the header", HEADER_BYTES - 1),
        cut("cut off after the header", HEADER_BYTES),
        cut("cut off before the last byte", whole.len() - 1),
    ]
}
