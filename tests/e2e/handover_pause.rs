//! Pause of a hot restart beside clients that do not read. The long form (`MOORLINE_SOAK_SECONDS=1000`, with `--release`)
//! takes the counts of `docs/handover.md` and prints the figures.

use crate::beside::{Chat, Silent};
use crate::gateway::Backend;
use crate::raw::{Client, message};
use crate::series::Series;
use crate::{soak, until};
use moorline_proto::message::client::Code;
use std::fmt::Write as _;
use std::net::SocketAddr;

/// SENDs of one client under way.
const WINDOW: usize = 32;
/// Threads that send.
const SENDERS: usize = 4;

/// Bytes that wait for clients while the gateway is restarted.
struct Stage {
    name: &'static str,
    /// Clients that are logged in and hear nothing.
    idle: usize,
    /// Clients that acknowledge nothing.
    silent: usize,
    /// Messages for each of them.
    messages: usize,
    /// Bytes of each message.
    size: usize,
    restarts: usize,
}

/// The payload of a message: no two are equal.
fn payload(to: usize, number: usize, size: usize) -> Vec<u8> {
    let mut payload = vec![7; size.max(16)];
    payload[..8].copy_from_slice(&to.to_be_bytes());
    payload[8..16].copy_from_slice(&number.to_be_bytes());
    payload
}

/// Sends everything to the silent clients whose number this sender has.
fn send_all(address: SocketAddr, sender: usize, stage: &Stage) {
    let mut client = Client::login(address, &format!("sender-{sender}"), "d");
    let mut under_way = 0;
    for number in 0..stage.messages {
        for to in (sender..stage.silent).step_by(SENDERS) {
            let key = (number * stage.silent + to) as u128 + 1;
            client.send(&message(key, &format!("silent-{to}"), &payload(to, number, stage.size)));
            under_way += 1;
            if under_way == WINDOW {
                take(&mut client, std::mem::take(&mut under_way));
            }
        }
    }
    take(&mut client, under_way);
}

/// Reads what waits for the silent clients: in order, once, unaltered.
fn read_all(silent: &mut [Client], stage: &Stage) {
    for (to, client) in silent.iter_mut().enumerate() {
        client.until("all of it", |heard| heard.pushes.len() == stage.messages);
        let whole = (0..)
            .zip(&client.heard.pushes)
            .all(|(number, push)| push.payload == payload(to, number, stage.size));
        assert!(whole && client.heard.repeats == 0, "in order, once, unaltered");
    }
}

/// Waits for this many answers.
fn take(client: &mut Client, count: usize) {
    client.until("the answers", |heard| heard.send_acks.len() >= count);
    for answer in client.heard.send_acks.drain(..) {
        assert_eq!(answer.code(), Code::Ok, "{answer:?}");
    }
}

/// Restarts a gateway in which this waits; a line for each restart.
fn measure(stage: &Stage) -> String {
    let each = stage.messages * (stage.size + 256);
    let backend = Backend::start_with(&[
        "listen=127.0.0.1:0",
        &format!("im.outstanding={}", stage.messages.max(64)),
        &format!("im.outstanding_bytes={}KiB", (each >> 10).max(128)),
        "im.work_share=100",
    ]);
    let series = Series::start(
        &backend,
        &[
            &format!("limits.queue_bytes={}KiB", (each >> 9).max(512)),
            "limits.user_rate=0",
            "limits.frame_rate=0",
            "limits.memory_watermark=2GiB",
            "log.level=info",
        ],
    );
    let address = series.gateway.listener;
    let login = |name: &str, count: usize| -> Vec<Client> {
        (0..count).map(|number| Client::login(address, &format!("{name}-{number}"), "d")).collect()
    };
    let mut idle = login("idle", stage.idle);
    let silent = Silent::start(login("silent", stage.silent));
    std::thread::scope(|scope| {
        (0..SENDERS).for_each(|sender| _ = scope.spawn(move || send_all(address, sender, stage)));
    });
    let chat = Chat::start(address);
    // One window is under way to each client.
    let wanted = (stage.silent * (stage.messages * stage.size).saturating_sub(80 << 10)) as u64;
    let queued = until("it is queued", || {
        let queued = series.gateway.metric("queued_bytes");
        (queued >= wanted).then_some(queued)
    });
    let mut figures = format!("{}: {queued} bytes queued\n", stage.name);
    let mut pauses = Vec::new();
    for _ in 0..stage.restarts {
        let restart = series.restart();
        let steps: Vec<String> = restart
            .steps
            .iter()
            .map(|step| format!("{} {:.1} ({})", step.name, step.seconds * 1e3, step.detail))
            .collect();
        pauses.push(restart.pause_seconds * 1e3);
        writeln!(figures, "  {:.1} ms: {}", restart.pause_seconds * 1e3, steps.join(", ")).expect("memory");
        chat.go_on(20);
    }
    pauses.sort_by(f64::total_cmp);
    writeln!(
        figures,
        "  stood still: median {:.1} ms, largest {:.1} ms; the latest message of a chat beside: {:?}",
        pauses[pauses.len() / 2],
        pauses[pauses.len() - 1],
        chat.finish().slowest
    )
    .expect("memory");
    read_all(&mut silent.finish(), stage);
    idle.iter_mut().step_by(100).for_each(|client| client.beat(30));
    figures
}

#[test]
fn the_pause_does_not_grow_with_what_is_queued() {
    let is_long = soak::is_long();
    let (_many, idle) = crate::descriptors::many(if is_long { 8_000 } else { 200 });
    let restarts = if is_long { 9 } else { 2 };
    let stages = [
        Stage { name: "empty queues", idle, silent: 0, messages: 0, size: 0, restarts },
        Stage { name: "25 MB queued", idle, silent: 200, messages: 64, size: 2048, restarts },
        Stage { name: "250 MB queued", idle, silent: 400, messages: 150, size: 4096, restarts },
    ];
    for stage in &stages[..if is_long { 3 } else { 2 }] {
        let stage = if is_long { stage } else { &Stage { silent: stage.silent / 10, ..*stage } };
        print!("{}", measure(stage));
    }
}

/// The new process reads the bodies of before; those that come meanwhile are given to it before the pause, too.
#[cfg(any(feature = "failpoints", debug_assertions))]
#[test]
fn bytes_that_are_queued_while_the_new_process_starts_are_not_carried_in_the_pause() {
    let backend = Backend::start();
    let series = Series::start(&backend, &["limits.user_rate=0", "limits.frame_rate=0", "log.level=info"]);
    let address = series.gateway.listener;
    let mut silent: Vec<Client> =
        (0..40).map(|number| Client::login(address, &format!("silent-{number}"), "d")).collect();
    let stage = Stage { name: "", idle: 0, silent: silent.len(), messages: 24, size: 4096, restarts: 1 };
    let queued = || series.gateway.metric("queued_bytes");
    series.set_faults("new.warm wait\n");
    let restart = std::thread::scope(|scope| {
        let restart = scope.spawn(|| series.upgrade(&[]));
        until("the new process is warm", || series.gateway.process.log().contains("new.warm").then_some(()));
        (0..SENDERS).for_each(|sender| send_all(address, sender, &stage));
        until("it is queued", || (queued() > 3 << 20).then_some(()));
        series.set_faults("");
        restart.join().expect("no panic").1
    });
    assert_eq!(restart.verdict, "committed", "{restart:?}");
    let step = restart.steps.iter().find(|step| step.name == "snapshot").expect("a step");
    let bytes = step.detail.split(' ').next().and_then(|bytes| bytes.parse::<u64>().ok());
    assert!(bytes.expect("a number") < 1 << 20, "{step:?}");
    read_all(&mut silent, &stage);
}
