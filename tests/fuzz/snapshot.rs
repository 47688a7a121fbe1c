//! Snapshots: any bytes as a file, and any records behind valid checksums.
//!
//! The first byte of an input chooses: 0, the rest is a file; odd, the rest is the records of a shard; even, those of a worker.
//! Each record stands behind its length in two bytes, little-endian, so that a changed record leaves the next ones where they
//! are. A snapshot is refused, or read; what was read can be written, and read again.

use crate::{router, shard};
use bytes::Bytes;
use moorline::auth::Judge;
use moorline::router::{LinkIndex, Router};
use moorline::shard::{Outputs, Shard};
use moorline::snapshot::{
    ConnectionRecord, Header, Item, Records, Section, SectionKind, ShardHead, Snapshot, SnapshotError,
    SocketRef, StateRecord, Writer,
};
use moorline_proto::ids::{ConnKey, ShardId};
use moorline_proto::time::Instant;
use std::path::Path;

/// Time at which the snapshots of this body were written.
const FROZEN_AT: Instant = Instant::from_nanos(5_000_000_000);

fn read_all(file: Bytes) {
    let Ok(snapshot) = Snapshot::open(file) else { return };
    for kind in [SectionKind::Gateway, SectionKind::Shard, SectionKind::Worker] {
        let Ok(sections) = snapshot.sections(kind) else { continue };
        for (_, mut records) in sections {
            while let Ok(Some(_)) = records.next() {}
        }
    }
}

/// The records of a section in a valid snapshot.
fn records_of(kind: SectionKind, section: Section) -> Records {
    let mut writer = Writer::default();
    writer.add(kind, 0, section);
    let header = Header { frozen_at: FROZEN_AT.as_nanos(), ..Header::default() };
    let snapshot = Snapshot::open(writer.finish(header).concat().into()).expect("a valid container");
    snapshot.sections(kind).expect("just written").remove(0).1
}

fn thaw_shard(section: Section) -> Result<Shard, SnapshotError> {
    let mut records = records_of(SectionKind::Shard, section);
    let mut outputs = Outputs::new(1);
    let thawed = Shard::thaw(shard::settings(), FROZEN_AT, &mut records, &mut outputs, |_| Ok(()));
    while outputs.poll_output().is_some() {}
    thawed
}

fn thaw_router(section: Section) -> Result<Router, SnapshotError> {
    let mut records = records_of(SectionKind::Worker, section);
    let mut thawed = Router::new(router::settings(), Judge::Backend, FROZEN_AT);
    thawed.thaw(FROZEN_AT, &mut records)?;
    Ok(thawed)
}

fn of_shard(section: Section) {
    let Ok(thawed) = thaw_shard(section) else { return };
    let mut again = Section::default();
    thawed.freeze(&mut again);
    thaw_shard(again).expect("what was read and written is read");
}

fn of_router(section: Section) {
    let Ok(mut thawed) = thaw_router(section) else { return };
    let mut again = Section::default();
    let mut name = |link: LinkIndex| Ok((SocketRef { fd: i32::from(link.0), cookie: 1 }, None));
    thawed.freeze(&mut again, &mut name).expect("every socket has a name");
    thaw_router(again).expect("what was read and written is read");
}

/// A section of the records of an input.
fn section_of(mut input: &[u8]) -> Section {
    let mut bytes = Vec::new();
    while let Some((length, rest)) = input.split_first_chunk() {
        let (record, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*length).into()));
        prost::encode_length_delimiter(record.len(), &mut bytes).expect("a Vec grows");
        bytes.extend_from_slice(record);
        input = rest;
    }
    Section::from_bytes(bytes)
}

pub(crate) fn body(input: &[u8]) {
    match input.split_first() {
        None => {}
        Some((0, file)) => read_all(Bytes::copy_from_slice(file)),
        Some((kind, records)) if kind % 2 == 1 => of_shard(section_of(records)),
        Some((_, records)) => of_router(section_of(records)),
    }
}

/// An input of the records of a section.
fn input_of(kind: u8, mut section: &[u8]) -> Vec<u8> {
    let mut input = vec![kind];
    while !section.is_empty() {
        let length = prost::decode_length_delimiter(&mut section).expect("a record");
        input.extend(u16::try_from(length).expect("a short record").to_le_bytes());
        input.extend_from_slice(&section[..length]);
        section = &section[length..];
    }
    input
}

/// A shard with one connection, in the highest slot that a key can name.
fn with_a_far_slot() -> Section {
    let mut section = Section::default();
    section.put(Item::Shard(Box::new(ShardHead { connections: 1, ..ShardHead::default() })));
    let key = ConnKey::new(ShardId(0), ConnKey::SLOTS_MAX - 1, 1).as_u64();
    let state = StateRecord::AwaitHello.into();
    section.put(Item::Connection(Box::new(ConnectionRecord { key, state, ..ConnectionRecord::default() })));
    section
}

/// The golden snapshots as files and as records, and the records of routers that have run scripts.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for name in ["1.0.snapshot", "1.1.snapshot"] {
        let file = crate::golden::file(&Path::new("tests/snapshots").join(name));
        seeds.push([&[0], &file[..]].concat());
        let header_bytes = u32::from_be_bytes([file[8], file[9], file[10], file[11]]) as usize;
        let snapshot = Snapshot::open(file.clone().into()).expect("a golden snapshot");
        for entry in &snapshot.header.sections {
            let number = |number: u64| usize::try_from(number).expect("a small file");
            let begin = 16 + header_bytes + number(entry.offset);
            seeds.push(input_of(1, &file[begin..begin + number(entry.length)]));
        }
    }
    let sections = router::scripts().into_iter().map(|script| router::frozen(&script).into_bytes());
    seeds.extend(sections.take(8).map(|section| input_of(2, &section)));
    seeds.push(input_of(1, &with_a_far_slot().into_bytes()));
    seeds
}
