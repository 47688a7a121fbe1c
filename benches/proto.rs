//! Nanoseconds per operation of the protocol's hot paths.
//!
//! Each line is the median of [`SAMPLES`] timed loops over the same fixed work, with the fastest and
//! the slowest; on a shared machine the fastest is the one to compare.
#![allow(clippy::disallowed_methods)] // a bench times by the clock

use bytes::{Bytes, BytesMut};
use moorline_proto::dedupe::Dedupe;
use moorline_proto::frame::{BODY_BYTES_MAX, Batch, Command, Decoder, Frame, encode_batch};
use moorline_proto::link::{self, Kind, LinkDecoder};
use moorline_proto::message::backend::{Up, UpResult};
use moorline_proto::message::client::{Code, SendAck};
use moorline_proto::message::{encode, send_ack_body};
use moorline_proto::random::Random;
use moorline_proto::time::{Duration, Instant};
use moorline_proto::wheel::Wheel;
use moorline_proto::window::{Window, WindowLimits};
use std::hint::black_box;
use std::time::Instant as Clock;

/// Timed loops per line.
const SAMPLES: usize = 15;
/// Bytes of a message's body.
const BODY_BYTES: usize = 160;

/// Times `work`, which does `operations` operations per call, and prints a line.
fn bench(name: &str, operations: u32, mut work: impl FnMut()) {
    work(); // warm
    let mut nanos: Vec<f64> = (0..SAMPLES)
        .map(|_| {
            let begun = Clock::now();
            work();
            begun.elapsed().as_secs_f64() * 1e9 / f64::from(operations)
        })
        .collect();
    nanos.sort_by(f64::total_cmp);
    let (median, fastest, slowest) = (nanos[SAMPLES / 2], nanos[0], nanos[SAMPLES - 1]);
    println!("{name:<38} {median:>8.1} ns   ({fastest:.1}-{slowest:.1})");
}

fn main() {
    println!("{:<38} {:>11}   range", "operation", "median");
    frames();
    links();
    answers();
    wheel();
    windows();
}

fn frame() -> Frame {
    Frame::new(Command::Send, Bytes::from(vec![7; BODY_BYTES])).with_seq(1)
}

fn frames() {
    const COUNT: u32 = 10_000;
    let frame = frame();
    let mut out = BytesMut::with_capacity(COUNT as usize * frame.wire_len());
    bench("frame encode, 160 B", COUNT, || {
        out.clear();
        (0..COUNT).for_each(|_| black_box(&frame).encode(&mut out));
    });
    let wire = out.freeze();
    bench("frame decode, many in one read", COUNT, || {
        let (mut decoder, mut input) = (Decoder::new(), wire.clone());
        while let Some(frame) = decoder.decode(&mut input, BODY_BYTES_MAX).expect("valid") {
            black_box(frame);
        }
    });
    bench("frame decode, each split over two reads", COUNT, || {
        let mut decoder = Decoder::new();
        for whole in wire.chunks(frame.wire_len()) {
            for piece in [&whole[..100], &whole[100..]] {
                let mut input = Bytes::copy_from_slice(piece);
                if let Some(frame) = decoder.decode(&mut input, BODY_BYTES_MAX).expect("valid") {
                    black_box(frame);
                }
            }
        }
    });
    let batch = encode_batch(&vec![frame; 100]);
    bench("batch walk, per frame", 100 * 100, || {
        for _ in 0..100 {
            for inner in Batch::new(batch.body.clone()) {
                black_box(inner.expect("valid"));
            }
        }
    });
}

fn links() {
    const COUNT: u32 = 10_000;
    let body = Bytes::from(vec![7; BODY_BYTES]);
    let up = |n: u32| Up { handle: u64::from(n), command: 0x10, seq: n, dup: false, body: body.clone() };
    let mut out = BytesMut::with_capacity(COUNT as usize * 256);
    bench("link encode UP, 160 B", COUNT, || {
        out.clear();
        for n in 0..COUNT {
            link::encode(&mut out, Kind::Up, u64::from(n), 0, &black_box(up(n)));
        }
    });
    let wire = out.freeze();
    bench("link decode UP", COUNT, || {
        let (mut decoder, mut input) = (LinkDecoder::new(), wire.clone());
        while let Some(frame) = decoder.decode(&mut input).expect("valid") {
            black_box(frame.message::<Up>().expect("an UP"));
        }
    });
    let mut out = BytesMut::with_capacity(COUNT as usize * 64);
    for n in 0..COUNT {
        let result =
            UpResult { code: Code::Ok.into(), answer: Bytes::from_static(&[9; 24]), ..Default::default() };
        link::encode(&mut out, Kind::UpResult, u64::from(n), 0, &result);
    }
    let wire = out.freeze();
    bench("link decode UP_RESULT", COUNT, || {
        let (mut decoder, mut input) = (LinkDecoder::new(), wire.clone());
        while let Some(frame) = decoder.decode(&mut input).expect("valid") {
            black_box(frame.message::<UpResult>().expect("an UP_RESULT"));
        }
    });
}

fn answers() {
    const COUNT: u32 = 10_000;
    let answer =
        encode(&SendAck { message_id: 9, seq: 4, conversation: "c2c:a:b".into(), ..SendAck::default() });
    bench("SENDACK body around an opaque answer", COUNT, || {
        for cid in 0..COUNT {
            black_box(send_ack_body(cid, Code::Ok, black_box(&answer)));
        }
    });
}

fn wheel() {
    const ENTRIES: u32 = 100_000;
    let start = Instant::from_nanos(1_000_000_000);
    let mut random = Random::new(7);
    let delays: Vec<Duration> =
        (0..ENTRIES).map(|_| Duration::from_millis(1_000 + random.below(300_000))).collect();
    bench("wheel insert, up to 5 min", ENTRIES, || {
        let mut wheel = Wheel::new(start);
        for (n, delay) in (0_u32..).zip(&delays) {
            wheel.insert(start + *delay, n);
        }
        black_box(wheel.len());
    });
    bench("wheel insert and cancel", ENTRIES, || {
        let mut wheel = Wheel::new(start);
        for (n, delay) in (0_u32..).zip(&delays) {
            let key = wheel.insert(start + *delay, n);
            black_box(wheel.cancel(key));
        }
    });
    let mut fired = Vec::with_capacity(ENTRIES as usize);
    bench("wheel insert, advance, fire, per entry", ENTRIES, || {
        let mut wheel = Wheel::new(start);
        for (n, delay) in (0_u32..).zip(&delays) {
            wheel.insert(start + *delay, n);
        }
        for second in 1..=302 {
            wheel.advance(start + Duration::from_secs(second), &mut fired);
            fired.clear();
        }
        assert!(wheel.is_empty(), "all fired");
    });
    let mut idle = Wheel::new(start);
    for (n, delay) in (0_u32..).zip(&delays) {
        idle.insert(start + Duration::from_secs(3_600) + *delay, n);
    }
    let mut now = start;
    bench("wheel advance by 1 ms, nothing due", 10_000, || {
        for _ in 0..10_000 {
            now += Duration::from_millis(1);
            idle.advance(now, &mut fired);
        }
    });
    assert!(fired.is_empty(), "nothing was due");
}

fn windows() {
    const COUNT: u32 = 10_000;
    bench("dedupe check, take, answer in order", COUNT, || {
        let mut dedupe = Dedupe::new();
        for cid in 1..=COUNT {
            black_box(dedupe.check(cid));
            dedupe.take(cid);
            black_box(dedupe.answer(cid));
        }
    });
    let now = Instant::from_nanos(1);
    let limits = WindowLimits { frames_max: 32, bytes_max: 64 << 10 };
    bench("window push and ack, 8 at a time", COUNT, || {
        let mut window = Window::new(limits, 1);
        for _ in 0..COUNT / 8 {
            let mut last = 0;
            for _ in 0..8 {
                last = window.push(black_box(last), 160, now);
            }
            window
                .ack(last, now, |frame| {
                    black_box(frame);
                })
                .expect("it was sent");
        }
    });
}
