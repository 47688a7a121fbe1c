//! Records: what opens, what does not, and what goes to another process.

use super::pair::*;
use crate::tls::secret::Secret;
use crate::tls::{Alert, End, Fault, RECORD_BYTES_MAX, Records, Suite, ThawError};
use moorline_proto::time::Instant;
use rustls::crypto::cipher::{AeadKey, Iv, OutboundOpaqueMessage, OutboundPlainMessage};
use rustls::{ContentType, ProtocolVersion};

const NOW: Instant = Instant::from_nanos(5_000_000_000);

fn fault_of(records: &mut Records, bytes: &[u8]) -> Fault {
    match records.open(&mut bytes.to_vec(), NOW).end {
        Some(End::Fault(fault)) => fault,
        other => panic!("no fault: {other:?}"),
    }
}

fn sealed(records: &mut Records, text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    records.seal(&[text], &mut out).expect("sealed");
    out
}

#[test]
fn pieces_become_one_record_where_they_fit() {
    for suite in Suite::ALL {
        let (mut server, mut client) = ends(suite);
        let mut out = Vec::new();
        server.seal(&[b"one", b"", b" record"], &mut out).expect("sealed");
        assert_eq!(out.len(), 10 + 22);
        let long = vec![3; 40_000];
        server.seal(&[&long[..7], &long[7..]], &mut out).expect("sealed");
        server.seal(&[], &mut out).expect("nothing to seal");
        server.seal(&[b"", b""], &mut out).expect("nothing to seal");
        assert_eq!(out.len(), 10 + 22 + 40_000 + 3 * 22);
        out.extend_from_slice(&[23, 3, 3, 0]);
        let opened = client.open(&mut out, NOW);
        assert_eq!((opened.consumed, opened.end), (out.len() - 4, None));
        assert_eq!(out[opened.plain.clone()][..10], *b"one record");
        assert_eq!(out[opened.plain][10..], long);
    }
}

/// The own key and the library's seal the same bytes, also where the library never seals: in the middle of a connection.
#[test]
fn records_are_those_of_the_library() {
    for suite in Suite::ALL {
        for seq in [0, 1, 2, 255, 256, 1 << 16, (1 << 23) - 4] {
            let (mut server, _) = ends(suite);
            server.pretend_sealed(seq);
            let (key, iv) = Secret::new(suite, &vec![2; suite.secret_bytes()]).expect("length").keys(suite);
            let mut library = suite.tls13().aead_alg.encrypter(AeadKey::from(*key), Iv::from(iv));
            for length in [1, 128, 1 << 14] {
                let text = vec![7; length];
                let message = OutboundPlainMessage {
                    typ: ContentType::ApplicationData,
                    version: ProtocolVersion::TLSv1_3,
                    payload: text.as_slice().into(),
                };
                let (_, number) = server.next_nonce();
                let expected = library.encrypt(message, number.into());
                match expected.map(OutboundOpaqueMessage::encode) {
                    Ok(expected) => {
                        assert_eq!(sealed(&mut server, &text), expected, "{suite:?} {seq} {length}");
                    }
                    // Its AES-GCM takes the first number that it sees for 0, and refuses those that follow.
                    Err(_) => assert!(suite == Suite::Aes256 && seq > 0),
                }
            }
        }
    }
}

#[test]
fn bytes_that_drip_give_the_same_text() {
    for suite in Suite::ALL {
        let (mut server, mut client) = ends(suite);
        let mut wire = Vec::new();
        for number in 0..20u8 {
            client.seal(&[&vec![number; 30 * usize::from(number) + 1]], &mut wire).expect("sealed");
            if number % 5 == 4 {
                client.request_update(&mut wire).expect("sealed");
            }
        }
        let (mut tail, mut text) = (Vec::new(), Vec::new());
        for byte in wire {
            tail.push(byte);
            let opened = server.open(&mut tail, NOW);
            assert_eq!(opened.end, None);
            text.extend_from_slice(&tail[opened.plain]);
            tail.drain(..opened.consumed);
            assert!(tail.len() < RECORD_BYTES_MAX);
        }
        let expected: Vec<_> =
            (0..20u8).flat_map(|number| vec![number; 30 * usize::from(number) + 1]).collect();
        assert!(tail.is_empty() && text == expected);
    }
}

#[test]
fn keys_change_both_ways_and_an_answer_is_given_once() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        for round in 0..5 {
            pair.echo(b"before");
            pair.client.refresh_traffic_keys().expect("established");
            pair.client.refresh_traffic_keys().expect("established");
            pair.client_sends(b"after");
            let opened = pair.records.open(&mut pair.inbound, pair.now);
            assert!(opened.is_answer_due && pair.inbound[opened.plain] == *b"after", "round {round}");
            pair.inbound.clear();
            let mut out = Vec::new();
            pair.records.answer(&mut out).expect("sealed");
            assert_eq!(out.len(), 5 + 22, "one answer for both");
            pair.records.answer(&mut out).expect("nothing");
            assert_eq!(out.len(), 5 + 22);
            give(&mut pair.client, &out).expect("valid");
            pair.echo(b"with new keys");
            // The server asks, and rustls answers before its next record.
            out.clear();
            pair.records.request_update(&mut out).expect("sealed");
            give(&mut pair.client, &out).expect("valid");
            pair.echo(b"with newer keys");
            pair.now = Instant::from_nanos(pair.now.as_nanos() + 1_000_000_000);
        }
    }
}

#[test]
fn the_own_key_changes_after_2_to_the_23_records() {
    for suite in Suite::ALL {
        let (mut server, mut client) = ends(suite);
        server.pretend_sealed((1 << 23) - 1);
        client.pretend_opened((1 << 23) - 1);
        let mut wire = sealed(&mut server, b"the last");
        wire.extend(sealed(&mut server, b"the first"));
        assert_eq!(wire.len(), 8 + 22 + 5 + 22 + 9 + 22);
        let opened = client.open(&mut wire, NOW);
        assert_eq!(&wire[opened.plain], b"the lastthe first");
        assert!(!opened.is_answer_due);
        assert_eq!(server.next_nonce().1, 1);
    }
}

#[test]
fn a_number_that_is_used_up_is_not_used_again() {
    let (mut server, mut client) = ends(Suite::ChaCha20);
    server.pretend_opened(u32::MAX);
    let wire = sealed(&mut client, b"x");
    assert_eq!(fault_of(&mut server, &wire), Fault::Exhausted);
    client.pretend_sealed((1 << 24) - 1);
    let mut out = Vec::new();
    assert_eq!(client.close_notify(&mut out), Err(Fault::Exhausted));
    assert!(out.is_empty());
}

#[test]
fn changed_cut_repeated_and_moved_records_do_not_open() {
    for suite in Suite::ALL {
        let (mut fresh, mut client) = ends(suite);
        let first = sealed(&mut client, b"first");
        let second = sealed(&mut client, b"second");
        let state = fresh.freeze().expect("owner");
        let again = || {
            let mut records = Records::thaw(state.as_ref()).expect("valid");
            records.resume().expect("owner");
            records
        };
        for at in 0..first.len() * 8 {
            let mut changed = first.clone();
            changed[at / 8] ^= 1 << (at % 8);
            changed.extend_from_slice(&second);
            let opened = again().open(&mut changed.clone(), NOW);
            assert_eq!(opened.plain, 0..0, "bit {at}");
            match opened.end {
                Some(End::Fault(Fault::Unexpected)) => assert!(at < 8, "bit {at}"),
                Some(End::Fault(Fault::Oversized)) => assert!((24..32).contains(&at), "bit {at}"),
                Some(End::Fault(Fault::Undecryptable)) => {}
                // A length with which the record is not whole.
                None => assert!((24..40).contains(&at), "bit {at}"),
                other => panic!("bit {at}: {other:?}"),
            }
        }
        for length in 0..first.len() {
            let mut cut = first[..length].to_vec();
            let opened = again().open(&mut cut, NOW);
            assert_eq!((opened.consumed, opened.end), (0, None));
        }
        assert_eq!(fault_of(&mut again(), &second), Fault::Undecryptable, "out of order");
        assert_eq!(fault_of(&mut again(), &[first.clone(), first.clone()].concat()), Fault::Undecryptable);
        let opened = again().open(&mut [first, second].concat(), NOW);
        assert_eq!((opened.plain.len(), opened.end), (11, None));
    }
}

#[test]
fn a_long_record_is_refused_by_its_header() {
    let (mut server, _) = ends(Suite::Aes256);
    let state = server.freeze().expect("owner");
    for (header, expected) in [
        (&[23, 3, 3, 0x41, 0x01][..], Some(Fault::Oversized)),
        (&[23, 3, 3, 0xff, 0xff], Some(Fault::Oversized)),
        (&[23, 3, 3, 0x41, 0x00], None),
        (&[22], Some(Fault::Unexpected)),
        (&[20, 3, 3, 0, 1], Some(Fault::Unexpected)),
        (&[23, 3, 1, 0, 20], Some(Fault::Undecryptable)),
        (&[23, 3, 3, 0, 0], Some(Fault::Undecryptable)),
        (&[23, 3, 3, 0, 3, 1, 2, 3], Some(Fault::Undecryptable)),
    ] {
        let mut records = Records::thaw(state.as_ref()).expect("valid");
        records.resume().expect("owner");
        let opened = records.open(&mut header.to_vec(), NOW);
        assert_eq!(opened.end, expected.map(End::Fault), "{header:?}");
    }
}

#[test]
fn empty_records_are_accepted_eight_times_a_second() {
    let (mut server, mut client) = ends(Suite::ChaCha20);
    let empty = |client: &mut Records| client.seal_raw(23, b"");
    for second in 0..3 {
        let now = Instant::from_nanos(second * 1_000_000_000);
        for _ in 0..8 {
            let mut wire = empty(&mut client);
            let opened = server.open(&mut wire, now);
            assert_eq!((opened.plain, opened.consumed, opened.end), (0..0, 22, None));
            server.cool(); // a pause is no fresh start
        }
    }
    let mut wire = empty(&mut client);
    let opened = server.open(&mut wire, Instant::from_nanos(2_999_999_999));
    assert_eq!(opened.end, Some(End::Fault(Fault::Flood)));

    let (mut server, mut client) = ends(Suite::Aes256);
    let mut wire = Vec::new();
    (0..9).for_each(|_| client.request_update(&mut wire).expect("sealed"));
    assert_eq!(fault_of(&mut server, &wire), Fault::Flood);
}

#[test]
fn padding_is_taken_off_and_nothing_but_padding_is_refused() {
    let (mut server, mut client) = ends(Suite::Aes256);
    let mut wire = client.seal_raw_inner(b"text\x17\0\0\0\0\0\0\0");
    let opened = server.open(&mut wire, NOW);
    assert_eq!((&wire[opened.plain], opened.end), (&b"text"[..], None));
    let wire = client.seal_raw_inner(&[0; 40]);
    assert_eq!(fault_of(&mut server, &wire), Fault::Unexpected);
    let (mut server, mut client) = ends(Suite::Aes256);
    let wire = client.seal_raw_inner(&[vec![1; (1 << 14) + 1], vec![23]].concat());
    assert_eq!(fault_of(&mut server, &wire), Fault::Oversized);
}

#[test]
fn only_key_updates_and_alerts_have_a_place_beside_text() {
    for (kind, content, expected) in [
        (22, &[24, 0, 0, 1, 2][..], Fault::IllegalUpdate),
        (22, &[24, 0, 0, 1, 0, 0], Fault::Unexpected),
        (22, &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0], Fault::Unexpected),
        (22, &[24, 0, 0, 1], Fault::Unexpected),
        (22, &[24, 0, 0, 2, 0, 0], Fault::Malformed),
        (22, &[24], Fault::Malformed),
        (22, &[], Fault::Unexpected),
        // NewSessionTicket, CertificateRequest, ClientHello, Finished.
        (22, &[4, 0, 0, 0], Fault::Unexpected),
        (22, &[13, 0, 0, 0], Fault::Unexpected),
        (22, &[1, 0, 0, 0], Fault::Unexpected),
        (22, &[20, 0, 0, 0], Fault::Unexpected),
        (20, &[1], Fault::Unexpected),
        (24, &[1], Fault::Unexpected),
        (21, &[], Fault::Unexpected),
        (21, &[1], Fault::Malformed),
        (21, &[1, 0, 0], Fault::Malformed),
        (21, &[1, 80], Fault::Alert(Alert(80))),
        (21, &[2, 20], Fault::Alert(Alert(20))),
    ] {
        let (mut server, mut client) = ends(Suite::ChaCha20);
        let mut wire = sealed(&mut client, b"before");
        wire.extend(client.seal_raw(kind, content));
        let opened = server.open(&mut wire, NOW);
        assert_eq!(opened.end, Some(End::Fault(expected)), "{kind} {content:?}");
        assert_eq!(&wire[opened.plain], b"before", "what came before it is text");
        assert_eq!(server.seal(&[b"x"], &mut Vec::new()), Err(Fault::Closed));
        let mut out = Vec::new();
        server.alert(expected, &mut out).expect("sealed");
        server.alert(expected, &mut out).expect("told once");
        let Some(alert) = expected.alert() else {
            assert!(out.is_empty());
            continue;
        };
        assert_eq!(client.open(&mut out, NOW).end, Some(End::Fault(Fault::Alert(alert))));
        assert_eq!(fault_of(&mut server, b""), Fault::Closed);
    }
    let (mut server, mut client) = ends(Suite::ChaCha20);
    let mut wire = client.seal_raw(21, &[1, 90]);
    wire.extend(sealed(&mut client, b"not yet"));
    let opened = server.open(&mut wire, NOW);
    assert_eq!((opened.end, &wire[opened.plain]), (None, &b"not yet"[..]));
}

#[test]
fn both_ends_close_and_what_follows_is_ignored() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.client_sends(b"bye");
        pair.client.send_close_notify();
        pair.inbound.extend(sent_by(&mut pair.client));
        pair.inbound.extend_from_slice(b"anything");
        let opened = pair.records.open(&mut pair.inbound, pair.now);
        assert_eq!((opened.consumed, opened.end), (pair.inbound.len(), Some(End::Closed)));
        assert_eq!(&pair.inbound[opened.plain], b"bye");
        let opened = pair.records.open(&mut [1, 2, 3], pair.now);
        assert_eq!((opened.consumed, opened.end), (3, Some(End::Closed)));

        assert_eq!(pair.server_sends(&[b"bye, too"]), b"bye, too");
        let mut out = Vec::new();
        pair.records.close_notify(&mut out).expect("sealed");
        pair.records.close_notify(&mut out).expect("said once");
        assert_eq!(out.len(), 2 + 22);
        assert_eq!(pair.records.seal(&[b"x"], &mut out), Err(Fault::Closed));
        give(&mut pair.client, &out).expect("valid");
        assert!(pair.client.process_new_packets().expect("valid").peer_has_closed());
    }
}

#[test]
fn a_state_goes_to_another_process_between_any_two_records() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        for round in 0..200u32 {
            if round % 50 == 49 {
                pair.client.refresh_traffic_keys().expect("established");
            }
            let text = round.to_be_bytes().repeat(1 + round as usize % 40);
            pair.client_sends(&text);
            if round % 3 == 0 {
                // A part of the record goes to the next process as it came.
                let behind = pair.inbound.split_off(pair.inbound.len() / 2);
                let opened = pair.records.open(&mut pair.inbound, pair.now);
                assert_eq!((opened.plain, opened.end), (0..0, None));
                pair.inbound.drain(..opened.consumed);
                pair.inbound.extend(behind);
            }
            take_over(&mut pair.records);
            assert_eq!(pair.server_reads(), text);
            take_over(&mut pair.records);
            assert_eq!(pair.server_sends(&[&text]), text);
            if round % 7 == 0 {
                for keep in [Records::keep, Records::keep_bytes, Records::keep] {
                    keep(&mut pair.records);
                    pair.echo(b"kept");
                    pair.echo(b"and used again");
                    assert!(pair.records.is_warm());
                }
                pair.records.cool();
                pair.echo(b"while cool");
            }
        }
    }
}

/// Has another process go on, and checks that the old one cannot.
fn take_over(records: &mut Records) {
    let frozen = records.freeze().expect("owner");
    assert_eq!(frozen.as_ref().len(), if records.suite() == Suite::Aes256 { 116 } else { 84 });
    let mut next = Records::thaw(frozen.as_ref()).expect("valid");
    for process in [&mut *records, &mut next] {
        let mut out = Vec::new();
        assert_eq!(process.seal(&[b"x"], &mut out), Err(Fault::NotOwner));
        assert_eq!(process.close_notify(&mut out), Err(Fault::NotOwner));
        assert_eq!(process.alert(Fault::Flood, &mut out), Err(Fault::NotOwner));
        assert_eq!(process.request_update(&mut out), Err(Fault::NotOwner));
        assert!(out.is_empty() && !process.is_warm());
        assert_eq!(process.open(&mut [], NOW).end, Some(End::Fault(Fault::NotOwner)));
    }
    next.resume().expect("valid");
    records.retire();
    assert_eq!(records.resume(), Err(Fault::NotOwner));
    assert_eq!(records.freeze().err(), Some(Fault::NotOwner));
    assert_eq!(records.seal(&[b"x"], &mut Vec::new()), Err(Fault::NotOwner));
    *records = next;
}

#[test]
fn a_handover_that_is_taken_back_leaves_the_state_as_it_was() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        for _ in 0..20 {
            let frozen = pair.records.freeze().expect("owner");
            let mut next = Records::thaw(frozen.as_ref()).expect("valid");
            next.retire();
            pair.records.resume().expect("owner");
            pair.echo(b"still here");
        }
    }
}

#[test]
fn what_a_frozen_state_says_stays_said() {
    let (mut server, mut client) = ends(Suite::Aes256);
    let mut wire = Vec::new();
    client.request_update(&mut wire).expect("sealed");
    let _ = server.open(&mut wire, NOW);
    take_over(&mut server);
    let mut wire = sealed(&mut server, b"answer first");
    assert_eq!(wire.len(), 5 + 22 + 12 + 22);
    let opened = client.open(&mut wire, NOW);
    assert_eq!(&wire[opened.plain], b"answer first");
    client.close_notify(&mut wire).expect("sealed");
    let behind = wire.len() - 24;
    assert_eq!(server.open(&mut wire[behind..], NOW).end, Some(End::Closed));
    take_over(&mut server);
    assert_eq!(server.open(&mut [], NOW).end, Some(End::Closed));
    server.close_notify(&mut Vec::new()).expect("sealed");
    take_over(&mut server);
    assert_eq!(server.seal(&[b"x"], &mut Vec::new()), Err(Fault::Closed));
}

#[test]
fn bytes_that_are_not_a_frozen_state_are_refused() {
    let (mut server, _) = ends(Suite::ChaCha20);
    let frozen = server.freeze().expect("owner");
    let valid = frozen.as_ref();
    let changed = |at: usize, value: u8| {
        let mut bytes = valid.to_vec();
        bytes[at] = value;
        Records::thaw(&bytes).expect_err("not valid")
    };
    assert_eq!(changed(0, 2), ThawError::Version(2));
    assert_eq!(changed(1, 83), ThawError::Length(84));
    assert_eq!(changed(2, 0), ThawError::Value("the suite"));
    assert_eq!(changed(2, 1), ThawError::Length(84));
    assert_eq!(changed(3, 32), ThawError::Value("a flag"));
    assert_eq!(changed(15, 1), ThawError::Value("the number of the next record"));
    let equal = [&valid[..52], &valid[20..52]].concat();
    assert!(matches!(Records::thaw(&equal), Err(ThawError::Value(_))));
    for length in 0..84 {
        assert!(Records::thaw(&valid[..length]).is_err());
    }
    assert_eq!(Records::thaw(&[valid, &[0]].concat()).err(), Some(ThawError::Length(85)));
    assert_eq!(format!("{frozen:?}"), "Frozen(84 bytes)");
    assert!(!format!("{server:?}").contains("01, 01"), "{server:?}");
}
