//! Frames of clients cut anywhere, bad frames of each kind, and writes that a socket takes in parts.

use super::*;
use crate::error::CloseReason;
use crate::time::{Duration, Instant};
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;
use std::string::String;

const LIMIT: u32 = 100_000;
const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

/// A client's frame as it is on the wire.
fn frame(first: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut wire = vec![first];
    match payload.len() {
        short @ ..=125 => wire.push(MASKED | u8::try_from(short).expect("7 bits")),
        middle @ ..=0xFFFF => {
            wire.push(MASKED | LENGTH_16);
            wire.extend(u16::try_from(middle).expect("16 bits").to_be_bytes());
        }
        long => {
            wire.push(MASKED | LENGTH_64);
            wire.extend((long as u64).to_be_bytes());
        }
    }
    wire.extend(mask);
    wire.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    wire
}

fn binary(payload: &[u8]) -> Vec<u8> {
    frame(FIN | BINARY, MASK, payload)
}

/// A close frame with a code and a text.
fn closing(code: u16, text: &[u8]) -> Vec<u8> {
    frame(FIN | CLOSE, MASK, &[&code.to_be_bytes(), text].concat())
}

/// Everything that a reader makes of chunks.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    plain: Vec<u8>,
    last_pong: Option<Pong>,
    end: Option<End>,
}

/// Reads chunks, each behind what the last one left; the reader moves to another process before each.
fn read<'a>(chunks: impl Iterator<Item = &'a [u8]>, limit: u32) -> (Seen, Reader) {
    let (mut seen, mut reader, mut tail) = (Seen::default(), Reader::default(), Vec::new());
    for chunk in chunks {
        reader = Reader::from_bytes(&reader.to_bytes()).expect("a state that was");
        tail.extend_from_slice(chunk);
        let opened = reader.open(&mut tail, Instant::ZERO, limit);
        seen.plain.extend_from_slice(&tail[opened.plain.clone()]);
        assert!(opened.plain.end <= opened.consumed && opened.consumed <= tail.len());
        tail.drain(..opened.consumed);
        assert!(tail.len() <= TAIL_BYTES_MAX, "{} bytes are left", tail.len());
        seen.last_pong = opened.pong.or(seen.last_pong);
        seen.end = seen.end.or(opened.end);
        assert_eq!(reader.has_ended(), seen.end.is_some());
    }
    (seen, reader)
}

fn read_whole(wire: &[u8]) -> Seen {
    read(core::iter::once(wire), LIMIT).0
}

/// Reads whole, then byte by byte: the same must come out.
fn read_both(wire: &[u8]) -> Seen {
    let whole = read_whole(wire);
    assert_eq!(read(wire.chunks(1), LIMIT).0, whole, "byte by byte");
    whole
}

fn fault_of(wire: &[u8]) -> Option<Fault> {
    match read_both(wire).end {
        Some(End::Fault(fault)) => Some(fault),
        _ => None,
    }
}

/// Messages in fragments, with pings between them: the wire, the payload, the last ping.
fn any_traffic() -> impl Strategy<Value = (Vec<u8>, Vec<u8>, Option<Vec<u8>>)> {
    let payload = prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..300),
        1 => (65_530usize..65_545).prop_map(|length| vec![7; length]),
    ];
    let fragment = (payload, any::<[u8; 4]>(), any::<bool>());
    let ping = proptest::option::weighted(0.2, proptest::collection::vec(any::<u8>(), 0..=125));
    proptest::collection::vec((fragment, ping), 0..12).prop_map(|items| {
        let (mut wire, mut plain, mut last, mut pings, mut begun) = (Vec::new(), Vec::new(), None, 0, false);
        let mut message = 0;
        for ((payload, mask, is_last), ping) in items {
            // A message that would pass the limit ends with this fragment.
            message += payload.len();
            let is_last = is_last || message > 30_000;
            let opcode = if begun { CONTINUATION } else { BINARY };
            wire.extend(frame(if is_last { FIN } else { 0 } | opcode, mask, &payload));
            plain.extend(payload);
            begun = !is_last;
            message = if begun { message } else { 0 };
            if let Some(ping) = ping.filter(|_| pings < CONTROLS_PER_SECOND_MAX) {
                wire.extend(frame(FIN | PING, mask, &ping));
                last = Some(ping);
                pings += 1;
            }
        }
        (wire, plain, last)
    })
}

proptest! {
    #[test]
    fn any_cut_gives_the_same_payload((wire, plain, ping) in any_traffic(), cuts in proptest::collection::vec(1usize..9_000, 1..20)) {
        let (mut rest, mut chunks, mut cuts) = (&wire[..], Vec::new(), cuts.iter().cycle());
        while !rest.is_empty() {
            let (chunk, behind) = rest.split_at((*cuts.next().expect("cycle")).min(rest.len()));
            chunks.push(chunk);
            rest = behind;
        }
        let (seen, reader) = read(chunks.into_iter(), LIMIT);
        prop_assert!(seen.plain == plain, "{} bytes of {}", seen.plain.len(), plain.len());
        prop_assert_eq!(seen.last_pong.map(|pong| pong.payload().to_vec()), ping);
        prop_assert_eq!((seen.end, reader.has_ended()), (None, false));
        let whole = read_whole(&wire);
        prop_assert!(whole.plain == plain && whole.end.is_none());
    }

    #[test]
    fn garbage_reads_the_same_byte_by_byte(wire in proptest::collection::vec(any::<u8>(), 0..300)) {
        read_both(&wire);
    }

    #[test]
    fn a_state_is_a_readers_or_is_refused(bytes in any::<[u8; 12]>()) {
        if let Some(reader) = Reader::from_bytes(&bytes) {
            prop_assert_eq!(reader.to_bytes(), bytes);
        }
    }

    #[test]
    fn however_little_a_socket_takes_the_client_reads_the_queue(queue in proptest::collection::vec(any::<u8>(), 0..2_000), steps in proptest::collection::vec((1usize..400, 0usize..60), 1..40)) {
        let (mut writer, mut wire, mut sent) = (Writer::default(), Vec::new(), 0);
        for (gathered, room) in steps.iter().cycle().take(500) {
            writer = Writer::from_bytes(&writer.to_bytes()).expect("a state that was");
            let available = (*gathered).max(writer.owed()).min(queue.len() - sent);
            let next = writer.next(available);
            let bytes = [&next.header, &queue[sent..sent + next.payload]].concat();
            let taken = bytes.len().min(*room);
            wire.extend_from_slice(&bytes[..taken]);
            sent += writer.took(taken);
        }
        let (messages, rest) = messages_of(&wire);
        prop_assert_eq!(messages.concat(), &queue[..sent - rest]);
        prop_assert!(writer.is_between() || writer.owed() > 0);
    }
}

/// Returns what a client reads: payloads of whole messages, and bytes of an unfinished payload.
fn messages_of(mut wire: &[u8]) -> (Vec<Vec<u8>>, usize) {
    let mut messages = Vec::new();
    loop {
        let (length, head) = match *wire {
            [first, short @ 0..=125, ..] if first == FIN | BINARY => (usize::from(short), 2),
            [first, LENGTH_16, a, b, ..] if first == FIN | BINARY => (u16::from_be_bytes([a, b]).into(), 4),
            [_, LENGTH_16, ..] | [] | [_] => return (messages, 0),
            _ => panic!("not the header of a binary message: {:?}", &wire[..2]),
        };
        if wire.len() < head + length {
            return (messages, wire.len() - head);
        }
        messages.push(wire[head..head + length].to_vec());
        wire = &wire[head + length..];
    }
}

#[test]
fn one_message_stays_where_it_is_and_later_ones_move_behind_it() {
    let mut wire =
        [binary(b"hello"), binary(b""), frame(FIN | PING, MASK, b"?"), binary(b", world")].concat();
    let opened = Reader::default().open(&mut wire, Instant::ZERO, LIMIT);
    assert_eq!((&wire[opened.plain.clone()], opened.plain.start), (&b"hello, world"[..], 6));
    assert_eq!(opened.consumed, wire.len());
    assert_eq!(opened.pong.expect("a ping came").payload(), b"?");
}

#[test]
fn a_part_of_a_header_waits_and_a_part_of_a_payload_does_not() {
    let mut reader = Reader::default();
    let wire = binary(b"hello");
    let mut head = wire[..5].to_vec();
    assert_eq!(reader.open(&mut head, Instant::ZERO, LIMIT), Opened::default());
    let mut most = wire[..8].to_vec();
    let opened = reader.open(&mut most, Instant::ZERO, LIMIT);
    assert_eq!((&most[opened.plain], opened.consumed), (&b"he"[..], 8));
    let mut rest = wire[8..].to_vec();
    let opened = reader.open(&mut rest, Instant::ZERO, LIMIT);
    assert_eq!((&rest[opened.plain], opened.consumed), (&b"llo"[..], 3));
    assert_eq!(reader, Reader::default());
}

#[test]
fn a_control_frame_waits_for_its_last_byte() {
    let ping = frame(FIN | PING, MASK, &[9; CONTROL_BYTES_MAX]);
    let mut reader = Reader::default();
    let mut most = ping[..TAIL_BYTES_MAX].to_vec();
    assert_eq!(reader.open(&mut most, Instant::ZERO, LIMIT), Opened::default());
    assert_eq!(most, ping[..TAIL_BYTES_MAX], "nothing of it was unmasked");
    assert_eq!(read_both(&ping).last_pong.expect("an answer").payload(), &[9; CONTROL_BYTES_MAX]);
}

#[test]
fn a_message_may_be_cut_into_fragments_with_pings_between_them() {
    let wire = [
        frame(BINARY, MASK, b"one "),
        frame(FIN | PING, MASK, b"a"),
        frame(CONTINUATION, MASK, b""),
        frame(FIN | PING, [9; 4], b"b"),
        frame(FIN | CONTINUATION, [0; 4], b"message"),
        frame(FIN | PONG, MASK, b"nobody asked"),
        binary(b"!"),
    ];
    let seen = read_both(&wire.concat());
    assert_eq!((&seen.plain[..], seen.end), (&b"one message!"[..], None));
    assert_eq!(seen.last_pong.expect("two pings").payload(), b"b", "the last one is answered");
}

#[test]
fn each_fault_has_its_name_and_its_code() {
    let control = |first: u8, length: usize| frame(first, MASK, &vec![0; length]);
    let rows: &[(Vec<u8>, Fault, u16)] = &[
        (vec![FIN | 0x40 | BINARY], Fault::ReservedBits, 1_002),
        (vec![FIN | 0x10 | PING], Fault::ReservedBits, 1_002),
        (vec![FIN | 3], Fault::BadOpcode, 1_002),
        (vec![FIN | 0xF], Fault::BadOpcode, 1_002),
        (vec![FIN | TEXT], Fault::Text, 1_003),
        (vec![TEXT], Fault::Text, 1_003),
        (vec![FIN | BINARY, 5], Fault::Unmasked, 1_002),
        (vec![FIN | PING, 0], Fault::Unmasked, 1_002),
        (vec![PING], Fault::BadControl, 1_002),
        (control(FIN | CLOSE, 126), Fault::BadControl, 1_002),
        (vec![FIN | CONTINUATION], Fault::BadFragment, 1_002),
        ([frame(BINARY, MASK, b"x"), binary(b"y")].concat(), Fault::BadFragment, 1_002),
        ([frame(BINARY, MASK, b"x"), vec![FIN | TEXT]].concat(), Fault::BadFragment, 1_002),
        (vec![FIN | BINARY, MASKED | LENGTH_16, 0, 125], Fault::BadLength, 1_002),
        (vec![FIN | BINARY, MASKED | LENGTH_64, 0, 0, 0, 0, 0, 0, 255, 255], Fault::BadLength, 1_002),
        (vec![FIN | BINARY, MASKED | LENGTH_64, 128, 0, 0, 0, 0, 0, 0, 0], Fault::BadLength, 1_002),
        (vec![FIN | BINARY, MASKED | LENGTH_64, 0, 0, 0, 1, 0, 0, 0, 0], Fault::TooLong, 1_009),
        (frame(FIN | CLOSE, MASK, &[3]), Fault::BadClose, 1_002),
        (closing(999, b""), Fault::BadClose, 1_002),
        (closing(1_004, b""), Fault::BadClose, 1_002),
        (closing(1_005, b""), Fault::BadClose, 1_002),
        (closing(1_006, b""), Fault::BadClose, 1_002),
        (closing(1_015, b""), Fault::BadClose, 1_002),
        (closing(2_999, b""), Fault::BadClose, 1_002),
        (closing(5_000, b""), Fault::BadClose, 1_002),
        (closing(1_000, &[0xC3]), Fault::BadText, 1_007),
    ];
    for (wire, fault, code) in rows {
        assert_eq!(fault_of(wire), Some(*fault), "{wire:02x?}");
        assert_eq!(fault.close_code(), *code);
        let before = [binary(b"kept"), wire.clone()].concat();
        let seen = read_both(&before);
        assert!(seen.plain.starts_with(b"kept"), "payload before a fault is passed on");
        assert_eq!(seen.end, Some(End::Fault(*fault)));
    }
    for fault in Fault::ALL {
        let is_told = fault == Fault::Flood || rows.iter().any(|(_, told, _)| *told == fault);
        assert!(is_told && fault.text().len() <= CONTROL_BYTES_MAX - 2, "{fault}");
        assert_ne!(fault.reason(), CloseReason::Internal);
    }
}

#[test]
fn a_message_in_fragments_keeps_to_the_limit_as_a_whole() {
    let fragments = |last: usize| {
        let pieces =
            [frame(BINARY, MASK, &[1; 60]), frame(0, MASK, &[2; 30]), frame(FIN, MASK, &vec![3; last])];
        pieces.concat()
    };
    let verdict = |wire: &[u8]| read(core::iter::once(wire), 100).0;
    let twice = [fragments(10), fragments(10)].concat();
    assert_eq!((verdict(&twice).end, verdict(&twice).plain.len()), (None, 200), "each message by itself");
    let seen = verdict(&fragments(11));
    assert_eq!((seen.end, seen.plain.len()), (Some(End::Fault(Fault::TooLong)), 90));
    let long = frame(FIN | BINARY, MASK, &vec![0; MESSAGE_BYTES_MAX as usize]);
    assert_eq!(read(long.chunks(70_000), u32::MAX).0.end, None);
    let longer = frame(FIN | BINARY, MASK, &vec![0; MESSAGE_BYTES_MAX as usize + 1]);
    assert_eq!(read(longer.chunks(70_000), u32::MAX).0.end, Some(End::Fault(Fault::TooLong)));
}

#[test]
fn pings_beyond_the_limit_of_one_second_end_the_connection() {
    let mut reader = Reader::default();
    let mut ping = |at: Duration| {
        let mut wire = frame(FIN | PING, MASK, b"");
        reader.open(&mut wire, Instant::ZERO + at, LIMIT).end
    };
    for second in 0..20 {
        for number in 0..u64::from(CONTROLS_PER_SECOND_MAX) {
            assert_eq!(ping(Duration::from_millis(1_000 * second + number)), None);
        }
    }
    // As many pings as there are seconds in the state's 13 bits do not meet in one of them.
    for at in (1..100).map(|round| Duration::from_secs(20 + round * 10_000)) {
        assert_eq!(ping(at), None);
    }
    let last = Duration::from_secs(2_000_000);
    assert!((0..CONTROLS_PER_SECOND_MAX).all(|_| ping(last).is_none()));
    assert_eq!(ping(last), Some(End::Fault(Fault::Flood)));
    assert_eq!(ping(last + Duration::from_secs(9)), None, "an end is told once");
    assert!(reader.has_ended());
}

#[test]
fn nothing_is_read_behind_a_close() {
    for (wire, code) in [(closing(4_500, b"bye"), Some(4_500)), (frame(FIN | CLOSE, MASK, b""), None)] {
        let seen = read_both(&[binary(b"last words"), wire, binary(b"more"), vec![0xFF; 20]].concat());
        assert_eq!((&seen.plain[..], seen.end), (&b"last words"[..], Some(End::Closed(code))));
    }
}

#[test]
fn headers_of_the_server_have_their_shortest_form() {
    let header = |length: usize| Writer::default().next(length).header.to_vec();
    assert_eq!(header(0), []);
    assert_eq!(header(1), [0x82, 1]);
    assert_eq!(header(125), [0x82, 125]);
    assert_eq!(header(126), [0x82, 126, 0, 126]);
    assert_eq!(header(65_535), [0x82, 126, 255, 255]);
    assert_eq!(header(65_536), [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    assert_eq!(Writer::default().next(usize::MAX).payload, 1 << 30, "the rest is another message");
}

#[test]
fn a_message_that_the_socket_did_not_begin_to_take_may_become_a_longer_one() {
    let mut writer = Writer::default();
    assert_eq!(writer.next(10).payload, 10);
    assert_eq!((writer.took(0), writer.is_between()), (0, true));
    let next = writer.next(200);
    assert_eq!((&next.header[..], next.payload), (&[0x82, 126, 0, 200][..], 200));
    assert_eq!((writer.took(3), writer.is_between(), writer.owed()), (0, false, 200));
    let next = writer.next(300);
    assert_eq!((&next.header[..], next.payload), (&[200][..], 200), "the promise stands");
    assert_eq!(writer.took(150), 149);
    assert_eq!(writer.next(300), Next { header: writer.next(0).header, payload: 51 });
    assert_eq!((writer.next(51).header.len(), writer.took(51), writer.is_between()), (0, 51, true));
    for bytes in [[0, 0, 0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 3, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0], [255; 8]] {
        assert_eq!(Writer::from_bytes(&bytes), None, "{bytes:?}");
    }
}

#[test]
fn control_frames_of_the_server() {
    let mut out = Vec::new();
    put_pong(b"abc", &mut out);
    put_close(Some(close_code(3_503)), "too_large", &mut out);
    put_close(None, "ignored", &mut out);
    assert_eq!(out, [&[0x8A, 3][..], b"abc", &[0x88, 11, 0x11, 0x97], b"too_large", &[0x88, 0]].concat());
    out.clear();
    put_close(Some(1_000), &"é".repeat(100), &mut out);
    assert_eq!((out.len(), out[1]), (2 + 124, 124), "cut between two letters");
    assert!(String::from_utf8(out[4..].to_vec()).is_ok());
}

#[test]
fn close_codes_of_moorline_stay_apart_from_those_of_websocket() {
    for reason in CloseReason::ALL {
        assert_eq!(u32::from(close_code(reason.code())), reason.code() + 1_000);
    }
    assert_eq!([2_999, 4_000, 4_999, 0, u32::MAX].map(close_code), [1_000; 5]);
}
