//! Snapshots that earlier builds wrote are read for ever.
//!
//! `tests/snapshots/` has one of each version that was released or had users. A new one is written with
//! `GOLDEN=write cargo test --lib golden`, and none is ever changed.

use super::*;
use crate::snapshot::{Header, Item, Section, SectionKind, Snapshot, SnapshotError, Writer};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots");
/// The newest one.
const NEWEST: &str = "1.2.snapshot";

/// One of everything that a shard can have on its way.
fn full_of_everything() -> World {
    let mut world = World::new();
    world.shard = Shard::new(Settings { session_keep: Duration::from_secs(60), ..settings() }, world.now);
    let alice = world.login("alice", "phone");
    let bob = world.login("bob", "phone");
    world.login("bob", "desk");
    let half = world.accept();
    world.bytes(half, &[0xA1, 1, 0]);
    world.accept();
    world.frame(alice, &send(1));
    world.frame(alice, &send(3));
    world.downlink(Downlink::Answer {
        key: alice,
        command: Command::SendAck,
        cid: 1,
        is_final: true,
        rank: Rank::First,
        body: Bytes::from_static(b"an answer"),
    });
    for number in 0..8 {
        world.push_on(Lane::Group, bob, number, b"to bob");
    }
    let mut written = Vec::new();
    world.shard.gather(bob, &mut written, 10);
    world.shard.handle_sent(bob, 7, &mut world.outputs);
    world.downlink(Downlink::Bind { room: "a room".into(), version: 5, keys: vec![alice, bob], reset: None });
    let carol = world.login("carol", "phone");
    world.shard.handle_peer_closed(world.now, carol, &mut world.outputs);
    world.push(carol, 99, b"for later");
    world.shard.check();
    world
}

fn frozen(shard: &Shard) -> Vec<u8> {
    let mut section = Section::default();
    shard.freeze(&mut section);
    let mut writer = Writer::default();
    writer.add(SectionKind::Shard, 0, section);
    writer.finish(Header { writer: "golden".into(), frozen_at: 1_000_000_000, ..Header::default() }).concat()
}

fn thawed(bytes: Vec<u8>) -> Result<(Shard, Outputs), SnapshotError> {
    let snapshot = Snapshot::open(bytes.into())?;
    let (_, mut records) = snapshot.sections(SectionKind::Shard)?.remove(0);
    let mut outputs = Outputs::new(1);
    let settings = Settings { session_keep: Duration::from_secs(60), ..settings() };
    let now = Instant::from_nanos(snapshot.header.frozen_at);
    let nothing_else = |item: Item| panic!("{item:?} is no shard's");
    Ok((Shard::thaw(settings, now, &mut records, &mut outputs, nothing_else)?, outputs))
}

#[test]
fn every_golden_snapshot_is_read() {
    let newest = std::path::Path::new(FOLDER).join(NEWEST);
    if std::env::var("GOLDEN").is_ok_and(|value| value == "write") {
        std::fs::create_dir_all(FOLDER).expect("the folder");
        std::fs::write(&newest, frozen(&full_of_everything().shard)).expect("the newest one");
    }
    let mut read = 0;
    for entry in std::fs::read_dir(FOLDER).expect("the folder is committed") {
        let path = entry.expect("an entry").path();
        let (mut shard, outputs) = thawed(std::fs::read(&path).expect("a file")).expect("it is read");
        shard.check();
        let name = path.display();
        assert_eq!((shard.clients(), shard.sessions(), shard.handshakes()), (6, 4, 2), "{name}");
        let counters = shard.counters();
        assert_eq!(
            (counters[Count::Rooms], counters[Count::Detached], counters[Count::Users]),
            (1, 1, 3),
            "{name}"
        );
        let has_write = outputs.iter().any(|output| matches!(output, Output::Write(_)));
        assert!(has_write, "{name}: frames are on their way");
        read += 1;
    }
    assert!(read >= 1);
}

#[test]
fn written_read_and_written_again_is_the_same() {
    let world = full_of_everything();
    let first = frozen(&world.shard);
    let (shard, _) = thawed(first.clone()).expect("just written");
    assert_eq!(frozen(&shard), first);
}

/// Whatever is damaged behind a good checksum is refused or read, but never a panic.
#[test]
fn no_damaged_record_makes_it_panic() {
    let mut section = Section::default();
    full_of_everything().shard.freeze(&mut section);
    let bytes = section.into_bytes();
    let mut refused = 0;
    for at in 0..bytes.len() {
        for flip in [0x01, 0xFF] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            let mut writer = Writer::default();
            writer.add(SectionKind::Shard, 0, Section::from_bytes(damaged));
            let outcome =
                std::panic::catch_unwind(|| thawed(writer.finish(Header::default()).concat()).is_err());
            refused +=
                usize::from(outcome.unwrap_or_else(|_| panic!("byte {at} flipped by {flip:#x} panics")));
        }
    }
    assert!(refused > bytes.len() / 2, "{refused} of {} were refused", 2 * bytes.len());
}

/// A snapshot with one connection, in this slot.
fn with_one_in(slot: u32) -> Vec<u8> {
    let mut world = World::new();
    world.accept();
    let mut section = Section::default();
    world.shard.freeze(&mut section);
    let mut writer = Writer::default();
    writer.add(SectionKind::Shard, 0, section);
    let snapshot = Snapshot::open(writer.finish(Header::default()).concat().into()).expect("just written");
    let (_, mut records) = snapshot.sections(SectionKind::Shard).expect("one").remove(0);
    let mut moved = Section::default();
    while let Some(mut item) = records.next().expect("just written") {
        if let Item::Connection(record) = &mut item {
            record.key = ConnKey::new(ShardId(0), slot, 1).as_u64();
        }
        moved.put(item);
    }
    let mut writer = Writer::default();
    writer.add(SectionKind::Shard, 0, moved);
    writer.finish(Header::default()).concat()
}

#[test]
fn a_slot_that_no_limit_allows_is_refused_before_the_table_grows_to_it() {
    let slots_max = u32::try_from(settings().thaw_slots_max).expect("a number of slots");
    let (shard, _) = thawed(with_one_in(slots_max - 1)).expect("as a gateway may have it");
    shard.check();
    for slot in [slots_max, ConnKey::SLOTS_MAX - 1] {
        let error = thawed(with_one_in(slot)).expect_err("refused").to_string();
        assert!(
            error.contains(&format!("slot {slot}")) && error.contains("limits.connections_max"),
            "{error}"
        );
    }
}

/// Bytes of a client that is not read for a while are judged by whoever reads them: the new process.
#[test]
fn garbage_of_a_client_over_its_rate_is_taken_over_and_ends_that_client_alone() {
    let mut world = super::limits::world(|settings| settings.frame_rate = 10);
    let (hostile, other) = (world.login("eve", "phone"), world.login("alice", "phone"));
    (0..21).for_each(|_| world.frame(hostile, &super::limits::ping()));
    assert_eq!(world.pauses(), [(hostile, true)]);
    let garbage = [0xFF; 16];
    assert!(moorline_proto::frame::check_first_byte(garbage[0]).is_err());
    world.bytes(hostile, &garbage);
    assert!(world.closes().is_empty(), "nobody has judged them");

    let (shard, outputs) = thawed(frozen(&world.shard)).expect("a client cannot have an upgrade undone");
    let mut world = World { shard, now: Instant::from_nanos(1_000_000_000), outputs };
    world.shard.check();
    assert_eq!((world.shard.sessions(), world.pauses()), (2, vec![(hostile, true)]));
    (0..20).for_each(|_| world.pass(Duration::from_millis(50)));
    assert_eq!(world.close_code(hostile), Some(CloseReason::BadMagic.code()));
    world.frame(other, &super::limits::ping());
    assert_eq!(world.written(other).len(), 1, "the other one is served");
}
