//! Pause of a hot restart beside bytes on their way to a backend: frames that no backend takes, and frames of which only a part
//! has come. The long form (`MOORLINE_SOAK_SECONDS=1000`, with `--release`) prints the figures of `docs/handover.md`.

use crate::gateway::Backend;
use crate::process::Stopped;
use crate::raw::{Client, bytes_of, message, send_frame};
use crate::series::Series;
use crate::{UP_TIMEOUT_MAX, is_too_slow, soak, until};
use moorline::admin::Restart;
use moorline::sys::clock;
use moorline_proto::message::client::{Code, Push, SendAck};

/// SENDs of one client under way.
const WINDOW: usize = 32;
/// Bytes of a snapshot that carries no body: less than 1 MiB, whatever waits.
const BARE_MAX: u64 = 1 << 20;

/// Settings of a gateway in which everything may wait.
const PATIENT: [&str; 8] = [
    "backend.up_timeout=60s",
    "backend.parked_bytes=1GiB",
    "backend.pending_bytes=1GiB",
    "overload.queue_frames=1048576",
    "limits.user_rate=0",
    "limits.frame_rate=0",
    "limits.memory_watermark=2GiB",
    "log.level=info",
];

/// Reason why the backend takes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Gone,
    Mute,
}

/// Payload of a message: no two are equal.
fn payload(from: usize, number: usize, size: usize) -> Vec<u8> {
    let mut payload = vec![7; size.max(16)];
    payload[..8].copy_from_slice(&from.to_be_bytes());
    payload[8..16].copy_from_slice(&number.to_be_bytes());
    payload
}

fn name(number: usize) -> String {
    format!("waiting-{number}")
}

fn snapshot_bytes(restart: &Restart) -> u64 {
    let step = restart.steps.iter().find(|step| step.name == "snapshot").expect("a step");
    step.detail.split(' ').next().and_then(|bytes| bytes.parse().ok()).expect("a number")
}

/// Restarts the gateway, and prints the pauses.
fn restart(name: &str, series: &Series) -> Vec<Restart> {
    let restarts: Vec<_> = (0..if soak::is_long() { 9 } else { 2 }).map(|_| series.restart()).collect();
    let mut pauses: Vec<f64> = restarts.iter().map(|restart| restart.pause_seconds * 1e3).collect();
    pauses.sort_by(f64::total_cmp);
    let (median, largest) = (pauses[pauses.len() / 2], pauses[pauses.len() - 1]);
    println!("{name}: stood still: median {median:.1} ms, largest {largest:.1} ms");
    for restart in &restarts {
        let steps = restart.steps.iter().map(|step| format!("{} {:.1}", step.name, step.seconds * 1e3));
        println!("  {} bytes, {}", snapshot_bytes(restart), steps.collect::<Vec<_>>().join(", "));
    }
    restarts
}

/// Frames of 8 KiB wait for a backend; clients that hear nothing are beside.
fn measure_parked(fault: Fault) {
    let is_long = soak::is_long();
    let (_many, idle) = crate::descriptors::many(if is_long { 8_000 } else { 200 });
    let (senders, size) = (if is_long { 100 } else { 20 }, 8 << 10);
    let backend = Backend::start();
    let series = Series::start(&backend, &PATIENT);
    let address = series.gateway.listener;
    let _idle: Vec<_> =
        (0..idle).map(|number| Client::login(address, &format!("idle-{number}"), "d")).collect();
    let mut clients: Vec<_> = (0..senders).map(|number| Client::login(address, &name(number), "d")).collect();
    let mut stopped = None;
    let mut backend = Some(backend);
    let place = match fault {
        Fault::Gone => backend.take().map(Backend::kill),
        Fault::Mute => {
            stopped = backend.as_ref().map(|backend| Stopped::stop(backend.process.pid()));
            None
        }
    };
    let asked = clock::now();
    for (from, client) in clients.iter_mut().enumerate() {
        for number in 0..WINDOW {
            let key = (from * WINDOW + number) as u128 + 1;
            client.send(&message(key, &name((from + 1) % senders), &payload(from, number, size)));
        }
    }
    let waiting = || ["ups_parked_bytes", "ups_pending_bytes"].map(|name| series.gateway.metric(name));
    let wanted = (senders * WINDOW * size) as u64;
    let is_slow = until("all of it waits", || {
        let is_slow = clock::now().saturating_since(asked) > UP_TIMEOUT_MAX;
        (is_slow || waiting().iter().sum::<u64>() >= wanted).then_some(is_slow)
    });
    if is_slow && is_too_slow(asked) {
        return;
    }
    let [parked, pending] = waiting();
    let stage = format!("{fault:?}, {parked} bytes parked, {pending} bytes without an answer");
    for restart in restart(&stage, &series) {
        // What a link that is not read has in its output goes along: up to 4 MiB for each of at most two links.
        let output = if is_long { 8 << 20 } else { 1 << 20 };
        assert!(snapshot_bytes(&restart) < BARE_MAX + output, "{restart:?}");
    }
    if let Some(stopped) = stopped {
        stopped.go_on();
    }
    let _backend = place.as_ref().map(Backend::start_at).or(backend);
    for (from, client) in clients.iter_mut().enumerate() {
        client.until("every answer", |heard| heard.send_acks.len() == WINDOW);
        let codes: Vec<_> = client.heard.send_acks.iter().map(SendAck::code).collect();
        if codes.contains(&Code::Retry) && is_too_slow(asked) {
            return;
        }
        assert!(codes.iter().all(|code| *code == Code::Ok), "{from}: {codes:?}");
        client.until("every message", |heard| heard.pushes.len() == WINDOW);
        let before = (from + senders - 1) % senders;
        let is_whole = |(number, push): (usize, &Push)| push.payload == payload(before, number, size);
        let whole = (0..).zip(&client.heard.pushes).all(is_whole);
        assert!(whole, "{from}: in order and unaltered");
    }
}

#[test]
fn the_pause_does_not_carry_frames_that_wait_for_a_backend_which_is_gone() {
    measure_parked(Fault::Gone);
}

#[test]
fn the_pause_does_not_carry_frames_that_wait_for_a_backend_which_is_mute() {
    measure_parked(Fault::Mute);
}

#[test]
fn the_pause_does_not_carry_what_has_come_of_frames_that_are_not_whole() {
    let is_long = soak::is_long();
    let count = if is_long { 420 } else { 40 };
    let backend = Backend::start();
    let series = Series::start(&backend, &PATIENT);
    let size = 58 << 10;
    let mut clients: Vec<_> = (0..count)
        .map(|number| {
            let mut client = Client::login(series.gateway.listener, &name(number), "d");
            let to = name((number + 1) % count);
            let send = message(number as u128 + 1, &to, &payload(number, 1, size));
            let mut begin = bytes_of(&send_frame(1, &send));
            let rest = begin.split_off(begin.len() - 500 - number);
            client.write(&begin);
            (client, rest)
        })
        .collect();
    let wanted = (count * (size - 1000)) as u64;
    let come = until("it has come", || {
        let come = series.gateway.metric("input_bytes");
        (come >= wanted).then_some(come)
    });
    // More of the same frames comes between the restarts.
    for round in 0..2 {
        for restart in restart(&format!("{come} bytes of unfinished frames, round {round}"), &series) {
            assert!(snapshot_bytes(&restart) < BARE_MAX, "{restart:?}");
        }
        for (client, rest) in &mut clients {
            let later = rest.split_off(100);
            client.write(rest);
            *rest = later;
        }
    }
    for (number, (client, rest)) in clients.iter_mut().enumerate() {
        client.write(rest);
        assert_eq!(client.answer(1).code(), Code::Ok, "{number}");
    }
    for (number, (client, _)) in clients.iter_mut().enumerate() {
        client.until("the message", |heard| heard.pushes.len() == 1);
        let before = (number + count - 1) % count;
        assert!(client.heard.pushes[0].payload == payload(before, 1, size), "{number}: unaltered");
    }
}
