//! Bytes from clients that cost more than they weigh: they are paid for before the work is done, and what waits is
//! counted.

use super::limits::{ping, world};
use super::*;
use moorline_proto::frame::compress::try_compress;
use moorline_proto::frame::encode_batch;

const KIB: usize = 1 << 10;

fn packed(frame: &Frame) -> Frame {
    let body = try_compress(&frame.body).expect("it packs well");
    Frame::new(frame.header.command, body).with_flags(frame.header.flags.with(Flags::COMPRESSED))
}

fn bytes_of(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame.encode(&mut bytes));
    bytes
}

fn req(payload: usize) -> Frame {
    let req = Req { id: 1, method: "m".into(), payload: vec![0; payload].into() };
    frame_of(Command::Req, &req)
}

impl World {
    fn count(&mut self, count: Count) -> u64 {
        self.shard.counters()[count]
    }
}

#[test]
fn decompressing_is_paid_for_before_it_is_done() {
    const RATE: u32 = 200;
    let mut world = world(|settings| (settings.frame_rate, settings.user_rate) = (RATE, 0));
    let key = world.login("mallory", "d");
    world.uplinks();
    let bomb = packed(&req(63 * KIB));
    let read = bytes_of(&vec![bomb.clone(); 64 * KIB / bomb.wire_len()]);
    let began = world.now;
    world.bytes(key, &read);
    // The burst, and at most one frame more; the others wait as they came.
    let burst = u64::from(2 * RATE + 64) * 1_024;
    let unpacked = world.count(Count::UnpackedBytes);
    assert!((1..=burst).contains(&unpacked), "{unpacked} bytes of plain text for one read");
    assert!(world.count(Count::InputBytes) > 50_000, "what waits is counted");
    let mut seen = unpacked;
    while world.now < began + Duration::from_secs(10) {
        world.pass(Duration::from_millis(20));
        let unpacked = world.count(Count::UnpackedBytes);
        assert!(unpacked - seen <= 64 * 1_024, "one at a time");
        seen = unpacked;
    }
    let earned = u64::from(RATE) * 10 * 1_024;
    assert!(seen <= burst + earned && seen > earned, "{seen} bytes in ten seconds");
    world.shard.handle_peer_closed(world.now, key, &mut world.outputs);
    assert_eq!(world.count(Count::InputBytes), 0);
}

#[test]
fn a_batch_stops_at_the_first_frame_that_is_held() {
    let mut world = world(|settings| settings.frame_rate = 10);
    let key = world.login("alice", "d");
    // Compressed or not, 100 frames in one batch and one behind it; the burst is 20.
    let batch = encode_batch(&vec![ping(); 100]);
    for (batch, first) in [(batch.clone(), 21), (packed(&batch), 21 - 2)] {
        world.pass(Duration::from_secs(3));
        world.bytes(key, &bytes_of(&[batch, frame_of(Command::Ping, &Ping { next_s: 31 })]));
        let mut pongs = world.written(key).len();
        assert_eq!(pongs, first);
        assert!(world.count(Count::InputBytes) >= 79 * 18);
        while pongs < 101 {
            world.pass(Duration::from_millis(100));
            let more = world.written(key).len();
            assert!(more <= 2, "{more} frames in a tenth of a second");
            pongs += more;
        }
        assert_eq!((pongs, world.count(Count::InputBytes)), (101, 0), "none is lost, and nothing stays");
        assert_eq!(world.shard.clients.connection(key).expect("open").heartbeat_s, 31, "in order");
    }
}

#[test]
fn nothing_is_compressed_twice_and_small_commands_are_small() {
    let ack = |length: usize| Frame::new(Command::Ack, vec![0x78; length].into());
    let bomb = packed(&req(60 * KIB));
    let cases = [
        (packed(&encode_batch(&vec![bomb.clone(); 50])), CloseReason::BadBatch),
        (packed(&encode_batch(&[ping(), bomb])), CloseReason::BadBatch),
        (packed(&ack(64 * KIB)), CloseReason::TooLarge),
        (ack(257), CloseReason::TooLarge),
        (encode_batch(&[ack(257)]), CloseReason::TooLarge),
        (Frame::new(Command::Req, [0x78, 1].repeat(1_000).into()), CloseReason::BadMessage),
    ];
    for (frame, reason) in cases {
        let mut world = world(|_| ());
        let key = world.login("mallory", "d");
        world.frame(key, &frame);
        assert_eq!(world.close_code(key), Some(reason.code()), "{:?}", frame.header);
        assert!(world.count(Count::UnpackedBytes) <= 64 * 1_024);
    }
    let mut world = world(|_| ());
    let key = world.login("alice", "d");
    world.frame(key, &packed(&Frame::new(Command::Ignorable(0xC0), vec![0; 64 * KIB].into())));
    assert_eq!(world.count(Count::UnpackedBytes), 0, "a frame that is dropped is not decompressed");
    world.frame(key, &packed(&req(60 * KIB)));
    assert_eq!(world.shard.sessions(), 1);
}

#[test]
fn a_frame_that_stays_unfinished_is_counted_and_ends_the_connection() {
    let mut world = world(|settings| settings.frame_timeout = Duration::from_secs(30));
    let key = world.login("mallory", "d");
    let frame = bytes_of(&[req(60 * KIB)]);
    let mut sent = 0;
    for second in 0..29 {
        world.bytes(key, &frame[sent..sent + 1_000]);
        sent += 1_000;
        world.pass(Duration::from_secs(1));
        assert!(world.count(Count::InputBytes) >= sent as u64, "second {second}");
    }
    world.bytes(key, &frame[sent..]);
    assert_eq!((world.count(Count::InputBytes), world.shard.sessions()), (0, 1), "complete in time");
    world.bytes(key, &frame[..17]);
    for _ in 0..29 {
        world.pass(Duration::from_secs(1));
    }
    world.bytes(key, &frame[17..100]);
    assert_eq!(world.shard.sessions(), 1);
    world.pass(Duration::from_millis(1_050));
    assert_eq!(world.close_code(key), Some(CloseReason::Incomplete.code()));
    assert_eq!(world.count(Count::InputBytes), 0);
}

#[test]
fn a_hole_before_sends_ends_the_connection_unless_the_client_is_not_read() {
    let mut world = world(|settings| settings.frame_rate = 10);
    let (alice, bob) = (world.login("alice", "d"), world.login("bob", "d"));
    for cid in [1, 3, 4] {
        world.frame(alice, &send(cid));
    }
    assert!(world.count(Count::InputBytes) > 2 * 64);
    world.pass(Duration::from_secs(4));
    world.frame(alice, &send(2));
    assert_eq!(world.count(Count::InputBytes), 0, "the hole is filled");
    world.frame(alice, &send(6));
    world.pass(Duration::from_millis(4_900));
    assert_eq!(world.shard.sessions(), 2);
    world.pass(Duration::from_millis(200));
    assert_eq!(world.close_code(alice), Some(CloseReason::Incomplete.code()));
    assert_eq!(world.count(Count::InputBytes), 0);
    // Bob is not read for ten seconds, so he cannot fill the hole.
    world.frame(bob, &send(2));
    (0..120).for_each(|_| world.frame(bob, &ping()));
    for _ in 0..90 {
        world.pass(Duration::from_millis(100));
        world.written(bob);
    }
    assert_eq!((world.shard.sessions(), world.count(Count::Paused)), (1, 1));
    while world.count(Count::Paused) > 0 {
        world.pass(Duration::from_millis(100));
    }
    world.pass(Duration::from_millis(5_100));
    assert_eq!(world.shard.sessions(), 0);
}

#[test]
fn input_that_waits_is_refused_while_memory_is_short() {
    let mut world = world(|settings| settings.memory_bytes_max = 100_000);
    let keys = ["a", "b", "c"].map(|uid| world.login(uid, "d"));
    let frame = bytes_of(&[req(60 * KIB)]);
    world.bytes(keys[0], &frame[..40_000]);
    world.bytes(keys[1], &frame[..40_000]);
    assert_eq!(world.shard.sessions(), 3);
    world.bytes(keys[2], &frame[..40_000]);
    assert_eq!(world.close_code(keys[2]), Some(CloseReason::Busy.code()), "it would be above the watermark");
    assert_eq!((world.shard.sessions(), world.count(Count::InputShed)), (2, 1), "others go on");
    world.shard.clients.ledger.settings.memory_bytes_max = 50_000;
    let newcomer = world.login("d", "d");
    world.bytes(newcomer, &frame[..1_000]);
    assert_eq!(world.shard.sessions(), 3, "a little may always wait");
    world.frame(newcomer, &ping());
}
