//! Header, decoder and encoder: limits, chunking, round trips.

use super::*;
use alloc::vec::Vec;
use bytes::BytesMut;
use proptest::prelude::*;

fn any_frame() -> impl Strategy<Value = Frame> {
    let command = any::<u8>().prop_filter_map("refused commands", Command::from_byte);
    let body = proptest::collection::vec(any::<u8>(), 0..300);
    (command, 0u32..4, any::<u32>(), any::<u32>(), body, 0u8..4).prop_map(
        |(command, lane, seq, ack, mut body, flags): (Command, _, _, _, Vec<u8>, _)| {
            body.truncate(command.body_max(u32::MAX) as usize);
            Frame::new(command, body.into())
                .with_lane(Lane::from_number(lane))
                .with_seq(seq)
                .with_ack(ack)
                .with_flags(Flags(flags))
        },
    )
}

proptest! {
    #[test]
    fn any_chunking_gives_the_same_frames(frames in proptest::collection::vec(any_frame(), 0..8), cuts in proptest::collection::vec(1usize..200, 1..50)) {
        let mut wire = BytesMut::new();
        for frame in &frames {
            frame.encode(&mut wire);
        }
        let (mut wire, mut decoder, mut got) = (wire.freeze(), Decoder::new(), Vec::new());
        let mut cuts = cuts.iter().cycle();
        while !wire.is_empty() {
            let mut chunk = wire.split_to((*cuts.next().expect("cycle")).min(wire.len()));
            while let Some(frame) = decoder.decode(&mut chunk, BODY_BYTES_MAX).expect("valid") {
                got.push(frame);
            }
            prop_assert!(chunk.is_empty());
        }
        prop_assert_eq!(decoder.partial_len(), 0);
        prop_assert_eq!(got, frames);
    }

    #[test]
    fn input_that_was_given_back_comes_again_in_its_order(frames in proptest::collection::vec(any_frame(), 1..8), cuts in proptest::collection::vec(1usize..400, 1..50), holds in proptest::collection::vec(any::<bool>(), 1..20)) {
        let mut wire = BytesMut::new();
        for frame in &frames {
            frame.encode(&mut wire);
        }
        let (mut wire, mut decoder, mut got) = (wire.freeze(), Decoder::new(), Vec::new());
        let (mut cuts, mut holds) = (cuts.iter().cycle(), holds.iter().cycle());
        while got.len() < frames.len() {
            let mut chunk = wire.split_to((*cuts.next().expect("cycle")).min(wire.len()));
            while let Some(frame) = decoder.decode(&mut chunk, BODY_BYTES_MAX).expect("valid") {
                got.push(frame);
                if *holds.next().expect("cycle") {
                    decoder.hold(&mut chunk);
                    prop_assert!(decoder.held_bytes() >= decoder.partial_len() && chunk.is_empty());
                    break;
                }
            }
        }
        prop_assert_eq!((decoder.partial_len(), decoder.held_bytes()), (0, 0));
        prop_assert_eq!(got, frames);
    }

    #[test]
    fn a_copy_of_what_has_come_and_the_rest_are_all_of_it(frames in proptest::collection::vec(any_frame(), 1..8), cuts in proptest::collection::vec(1usize..400, 1..50), copies in proptest::collection::vec(any::<bool>(), 1..20)) {
        let mut wire = BytesMut::new();
        for frame in &frames {
            frame.encode(&mut wire);
        }
        let (mut wire, mut decoder, mut got) = (wire.freeze(), Decoder::new(), Vec::new());
        let (mut cuts, mut copies) = (cuts.iter().cycle(), copies.iter().cycle());
        while got.len() < frames.len() {
            let mut chunk = wire.split_to((*cuts.next().expect("cycle")).min(wire.len()));
            while let Some(frame) = decoder.decode(&mut chunk, BODY_BYTES_MAX).expect("valid") {
                got.push(frame);
                if !*copies.next().expect("cycle") {
                    decoder.hold(&mut chunk);
                    break;
                }
            }
            if *copies.next().expect("cycle") {
                let copy = decoder.copy_partial(4);
                prop_assert_eq!(copy.is_some(), decoder.partial_len() >= 4);
                prop_assert!(copy.is_none_or(|copy| decoder.partial().starts_with(&copy)));
            }
            if let Some((copy, rest)) = decoder.copied_partial() {
                prop_assert_eq!([copy, rest].concat(), decoder.partial());
                prop_assert!(decoder.held_bytes() >= copy.len() + decoder.partial_len());
            }
        }
        prop_assert_eq!((decoder.held_bytes(), decoder.copied_partial()), (0, None));
        prop_assert_eq!(got, frames);
    }

    #[test]
    fn garbage_never_panics_and_holds_no_more_than_it_got(bytes in proptest::collection::vec(any::<u8>(), 0..600), cut in 1usize..64) {
        let (mut decoder, mut fed) = (Decoder::new(), 0);
        for chunk in bytes.chunks(cut) {
            fed += chunk.len();
            let mut chunk = Bytes::copy_from_slice(chunk);
            loop {
                match decoder.decode(&mut chunk, BODY_BYTES_MAX) {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => return Ok(()),
                }
            }
            prop_assert!(decoder.partial_len() <= fed);
        }
    }

    #[test]
    fn a_batch_gives_back_its_frames(frames in proptest::collection::vec(any_frame(), 1..BATCH_FRAMES_MAX)) {
        let batch = encode_batch(&frames);
        let got: Result<Vec<_>, _> = Batch::new(batch.body).collect();
        prop_assert_eq!(got.expect("valid"), frames);
    }
}

#[test]
fn bad_headers_are_refused_with_their_reason() {
    let good = Frame::new(Command::Ping, Bytes::new()).header.to_bytes();
    let with = |at: usize, byte: u8| {
        let mut bytes = good;
        bytes[at] = byte;
        Header::parse(&bytes)
    };
    assert!(Header::parse(&good).is_ok());
    assert_eq!(with(0, b'G'), Err(CloseReason::BadMagic));
    assert_eq!(with(0, 0xA2), Err(CloseReason::BadVersion));
    assert_eq!(with(1, 0x3E), Err(CloseReason::Unsupported));
    assert_eq!(with(2, 0x20), Err(CloseReason::Unsupported));
    assert_eq!(with(3, 0x08), Err(CloseReason::BadHeader));
    assert_eq!(with(3, 0x04), Err(CloseReason::BadHeader), "reliable without seq");
    assert_eq!(with(11, 1), Err(CloseReason::BadHeader), "seq without reliable");
}

#[test]
fn the_first_byte_and_the_claimed_length_are_judged_early() {
    let mut decoder = Decoder::new();
    assert_eq!(decoder.decode(&mut Bytes::from_static(b"G"), 10), Err(CloseReason::BadMagic));
    let mut header = Frame::new(Command::Send, Bytes::new()).header;
    header.body_len = 11;
    let mut bytes = Bytes::copy_from_slice(&header.to_bytes());
    assert_eq!(Decoder::new().decode(&mut bytes, 10), Err(CloseReason::TooLarge));
}

#[test]
fn broken_batches_are_refused() {
    let ping = Frame::new(Command::Ping, Bytes::new());
    let verdict = |body: Bytes| Batch::new(body).collect::<Result<Vec<_>, _>>().map(|frames| frames.len());
    assert_eq!(verdict(Bytes::new()), Err(CloseReason::BadBatch));
    let nested = encode_batch(&[encode_batch(core::slice::from_ref(&ping))]);
    assert_eq!(verdict(nested.body), Err(CloseReason::BadBatch));
    let whole = encode_batch(&[ping.clone(), ping.clone()]).body;
    assert_eq!(verdict(whole.slice(..whole.len() - 1)), Err(CloseReason::BadBatch));
    let mut long = BytesMut::new();
    (0..=BATCH_FRAMES_MAX).for_each(|_| ping.encode(&mut long));
    assert_eq!(verdict(long.freeze()), Err(CloseReason::BadBatch));
}

#[test]
fn a_compressed_batch_holds_no_compressed_frame() {
    let frame = Frame::new(Command::Send, Bytes::from_static(&[0; 8])).with_flags(Flags::COMPRESSED);
    let body = encode_batch(&[Frame::new(Command::Ping, Bytes::new()), frame]).body;
    assert_eq!(Batch::new(body.clone()).filter_map(Result::ok).count(), 2);
    let last = Batch::of_packed(body).last();
    assert_eq!(last, Some(Err(CloseReason::BadBatch)));
}

#[test]
fn a_small_command_has_a_small_body() {
    for command in
        [Command::Ping, Command::Ack, Command::Sub, Command::Unsub, Command::Logout, Command::Close]
    {
        let verdict = |length, flags| {
            let header = Header { body_len: length, flags, ..Frame::new(command, Bytes::new()).header };
            Decoder::new().decode(&mut Bytes::copy_from_slice(&header.to_bytes()), BODY_BYTES_MAX)
        };
        assert_eq!(verdict(SMALL_BODY_BYTES_MAX, Flags::default()), Ok(None), "{command:?}");
        assert_eq!(verdict(SMALL_BODY_BYTES_MAX + 1, Flags::default()), Err(CloseReason::TooLarge));
        assert_eq!(verdict(SMALL_BODY_BYTES_MAX + 1, Flags::COMPRESSED), Err(CloseReason::TooLarge));
        assert_eq!(
            verdict(BODY_BYTES_MAX, Flags::BATCH),
            Ok(None),
            "a batch is not the command that it begins with"
        );
    }
    for reason in CloseReason::ALL {
        assert!(reason.text().len() + 32 < SMALL_BODY_BYTES_MAX as usize, "{reason} fits into CLOSE");
    }
}

#[test]
fn an_unfinished_frame_keeps_nothing_of_the_frames_before_it() {
    let (mut wire, mut decoder) = (BytesMut::new(), Decoder::new());
    (0..2_000).for_each(|_| Frame::new(Command::Ping, Bytes::new()).encode(&mut wire));
    wire.truncate(wire.len() - 1);
    decoder.hold(&mut wire.freeze());
    assert!(decoder.held_bytes() >= 31_999);
    let mut none = Bytes::new();
    while decoder.decode(&mut none, BODY_BYTES_MAX).expect("valid").is_some() {
        assert!(decoder.held_bytes() >= 31_999, "the memory stays as long as a part of it is used");
    }
    assert!(decoder.partial_len() == 15 && decoder.held_bytes() < 100, "{}", decoder.held_bytes());
}

#[test]
fn every_byte_is_one_command_or_refused() {
    for byte in 0..=255 {
        if let Some(command) = Command::from_byte(byte) {
            assert_eq!(command.byte(), byte);
        }
    }
    assert_eq!(Command::from_byte(0), None);
}
