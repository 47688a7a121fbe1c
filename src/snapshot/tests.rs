//! The container: what is refused, and that no bytes make it panic.

use super::*;
use proptest::prelude::*;

fn written() -> Vec<u8> {
    let mut shard = Section::default();
    let shared = Bytes::from(vec![1; 200]);
    for number in 0..3 {
        let (pin, body) = (number, shard.body(&shared));
        assert_eq!(body, 1, "one body, however often it is named");
        shard.put(Item::UserSpent(UserSpentRecord {
            who: pin,
            spent: body,
            since: 3,
            was_told: true,
            number: None,
        }));
    }
    let mut worker = Section::default();
    worker.put(Item::Query(QueryRecord { ticket: None, left: 9 }));
    let mut writer = Writer::default();
    writer.add(SectionKind::Shard, 0, shard);
    writer.add(SectionKind::Worker, 0, worker);
    writer
        .finish(Header { writer: "test".into(), generation: 7, frozen_at: 99, ..Header::default() })
        .concat()
}

fn read(bytes: Vec<u8>) -> Result<Vec<Item>, SnapshotError> {
    let snapshot = Snapshot::open(bytes.into())?;
    let mut items = Vec::new();
    for kind in [SectionKind::Shard, SectionKind::Worker] {
        for (_, mut records) in snapshot.sections(kind)? {
            while let Some(item) = records.next()? {
                if let Item::UserSpent(spent) = &item {
                    assert_eq!(records.body(spent.spent).map(|body| body.len()), Ok(200));
                }
                items.push(item);
            }
        }
    }
    Ok(items)
}

#[test]
fn what_was_written_is_read() {
    let items = read(written()).expect("whole");
    assert_eq!(items.len(), 4);
    assert_eq!(items[3], Item::Query(QueryRecord { ticket: None, left: 9 }));
    let header = Snapshot::open(written().into()).expect("whole").header;
    assert_eq!((header.generation, header.frozen_at, header.major), (7, 99, VERSION.0));
}

#[test]
fn no_cut_and_no_flipped_bit_goes_unnoticed() {
    let bytes = written();
    for length in 0..bytes.len() {
        assert!(read(bytes[..length].to_vec()).is_err(), "cut to {length}");
    }
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            assert!(read(damaged).is_err(), "byte {at}, bit {bit}");
        }
    }
}

/// Writes the sections of [`written`] with another header.
fn with_header(change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let snapshot = Snapshot::open(written().into()).expect("whole");
    let mut header = snapshot.header.clone();
    change(&mut header);
    let encoded = header.encode_to_vec();
    let mut bytes = MAGIC.to_vec();
    bytes.put_u32(u32::try_from(encoded.len()).expect("small"));
    bytes.put_u32(crc32c::crc32c(&encoded));
    bytes.extend_from_slice(&encoded);
    bytes.extend_from_slice(&snapshot.bytes[snapshot.begin..]);
    bytes
}

#[test]
fn what_is_too_new_or_needs_what_is_not_there_is_refused() {
    assert_eq!(
        read(with_header(|header| header.minor = 999)).map(|items| items.len()),
        Ok(4),
        "may be skipped"
    );
    assert_eq!(read(with_header(|header| header.major = 2)), Err(SnapshotError::Version(2, VERSION.1)));
    assert_eq!(read(with_header(|header| header.major = 0)), Err(SnapshotError::Version(0, VERSION.1)));
    assert_eq!(read(with_header(|header| header.critical = 1 << 40)), Err(SnapshotError::Critical(1 << 40)));
    let said = SnapshotError::Version(2, 0).to_string();
    assert_eq!(said, "the snapshot has version 2.0, and versions 1 to 1 are read here");
    assert!(matches!(
        read(with_header(|header| header.sections[0].offset = 1 << 60)),
        Err(SnapshotError::CutOff { .. })
    ));
}

/// A record of a later version.
#[derive(Clone, PartialEq, prost::Message)]
struct Later {
    #[prost(bool, tag = "1")]
    is_optional: bool,
    #[prost(string, tag = "1000")]
    news: String,
}

#[test]
fn an_unknown_record_is_skipped_only_if_it_says_so() {
    for is_optional in [true, false] {
        let mut section = Section::default();
        let later = Later { is_optional, news: "of a later version".into() };
        later.encode_length_delimited(&mut section.bytes).expect("a Vec grows");
        section.put(Item::Query(QueryRecord { ticket: None, left: 1 }));
        let mut writer = Writer::default();
        writer.add(SectionKind::Worker, 0, section);
        let read = read(writer.finish(Header::default()).concat());
        if is_optional {
            assert_eq!(read.map(|items| items.len()), Ok(1));
        } else {
            assert!(matches!(read, Err(SnapshotError::Unknown { .. })), "{read:?}");
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut section = Section { bytes: bytes.clone(), ..Section::default() };
        section.put(Item::Query(QueryRecord::default()));
        let mut writer = Writer::default();
        writer.add(SectionKind::Shard, 0, section);
        let _ = read(writer.finish(Header::default()).concat());
        let _ = Snapshot::open(bytes.into());
    }
}
