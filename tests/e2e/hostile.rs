//! Everything a gateway dreads, all at once and for a while, beside two people who must not notice.
//!
//! One thread per kind of enemy, each with a generator of its own; ordinary settings but for small limits, so
//! that they are hit. Afterwards the figures say which were hit, and nothing of the enemies is left.
//!
//! The enemies share the machine with the gateway, as they never do elsewhere, so their threads have the lowest priority: the
//! chat shall feel the work that they make for the gateway, not the one that they have themselves.

use crate::beside::{CHAT_HOPS, Chat};
use crate::flood::stream;
use crate::gateway::{Backend, Gateway};
use crate::lateness::Lateness;
use crate::raw::{Acks, Client, bytes_of, hello, message, send_frame};
use crate::soak;
use bytes::Bytes;
use moorline::sys::clock;
use moorline_proto::frame::compress::try_compress;
use moorline_proto::frame::{Command, Flags, Frame, Lane, encode_batch};
use moorline_proto::message::client::{Code, Ping, Req, Sub};
use moorline_proto::message::frame_of;
use moorline_proto::random::Random;
use moorline_proto::time::Instant;
use socket2::SockRef;
use std::io::Write as _;
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

const SETTINGS: &[&str] = &[
    "limits.frame_rate=200",
    "limits.user_rate=50",
    "limits.handshake_timeout=1s",
    "limits.frame_timeout=1s",
    "limits.downlink_bytes=16KiB",
    "limits.queue_bytes=64KiB",
    "session.keep=2s",
    "log.level=info",
];
/// A message of the chat beside takes less, 99 times of 100.
const CHAT_WITHIN: Duration = Duration::from_millis(500);
/// Memory that may stay in use after the first, short soak.
const GROWTH_KIB: u64 = 6 << 10;

/// A kind of attacker: attacks once, for a bounded time, and returns the number of connections it used.
type Attack = fn(SocketAddr, &mut Random) -> u64;

const ENEMIES: &[(&str, Attack)] = &[
    ("slow reader", read_slowly),
    ("heartbeat flood", flood_with_pings),
    ("bomb", bomb),
    ("unfinished", leave_unfinished),
    ("message flood", flood_with_messages),
    ("SUB flood", flood_with_rooms),
    ("garbage", talk_rubbish),
    ("half open", say_half),
    ("huge lengths", announce_too_much),
    ("churn", come_and_go),
];

fn number_below(random: &mut Random, bound: u64) -> usize {
    usize::try_from(random.below(bound)).expect("small")
}

/// A name that only this attack has.
fn name(role: &str, random: &mut Random) -> String {
    format!("{role}-{:016x}", random.next_u64())
}

/// Is sent more than the gateway keeps for it, and acknowledges nothing.
fn read_slowly(gateway: SocketAddr, random: &mut Random) -> u64 {
    let (slow, loud) = (name("slow", random), name("loud", random));
    let mut reader = Client::login(gateway, &slow, "d");
    reader.acks = Acks::Withheld;
    let mut speaker = Client::login(gateway, &loud, "d");
    for number in 0..8u8 {
        let answer = speaker.tell(number.into(), &slow, &vec![number; 30_000]);
        assert!(matches!(answer.code(), Code::Ok | Code::Retry), "{answer:?}");
    }
    reader.end();
    2
}

/// More frames than `limits.frame_rate` and its burst: what was read is answered, and then nothing is read
/// until the rate is kept.
fn flood_with_pings(gateway: SocketAddr, random: &mut Random) -> u64 {
    let started = clock::now();
    let mut client = Client::login(gateway, &name("pinger", random), "d");
    let flood = bytes_of(&frame_of(Command::Ping, &Ping { next_s: 30 })).repeat(500);
    client.write(&flood);
    client.until("every PONG", |heard| heard.pongs == 500);
    client.beat(30);
    // 501 frames, of which 400 are free and the others take 5 ms each.
    let took = clock::now().saturating_since(started);
    assert!(took > Duration::from_millis(450), "not held: {took:?}");
    1
}

/// A read full of compressed frames, each of which announces 63 KiB: they are paid for one by one, so most wait.
fn bomb(gateway: SocketAddr, random: &mut Random) -> u64 {
    let mut client = Client::login(gateway, &name("bomber", random), "d");
    let req = Req { id: 1, method: "no.such".into(), payload: vec![0; 63 << 10].into() };
    let body = try_compress(&frame_of(Command::Req, &req).body).expect("zeros");
    let packed = Frame::new(Command::Req, body).with_flags(Flags::COMPRESSED);
    if random.one_in(2) {
        client.write(&bytes_of(&packed).repeat(200));
        client.until("an answer to the first", |heard| !heard.responses.is_empty());
        return 1;
    }
    let body = try_compress(&encode_batch(&vec![packed; 100]).body).expect("alike");
    let twice = Frame::new(Command::Req, body).with_flags(Flags::BATCH.with(Flags::COMPRESSED));
    client.put(&twice);
    assert_eq!(client.end().code(), moorline_proto::error::CloseReason::BadBatch.code());
    1
}

/// Most of a large frame, or SENDs behind a missing one, and no more until it is closed.
fn leave_unfinished(gateway: SocketAddr, random: &mut Random) -> u64 {
    const AT_ONCE: u64 = 10;
    let me = name("idler", random);
    let mut clients: Vec<_> =
        (0..AT_ONCE).map(|device| Client::login(gateway, &me, &device.to_string())).collect();
    for client in &mut clients {
        let body = message(1, &me, &vec![1; 60_000]);
        if random.one_in(2) {
            client.write(&bytes_of(&send_frame(1, &body))[..50_000]);
        } else {
            client.put(&send_frame(2, &message(2, &me, &vec![1; 4_000])));
        }
    }
    for client in &mut clients {
        assert_eq!(client.end().code(), moorline_proto::error::CloseReason::Incomplete.code());
    }
    AT_ONCE
}

/// A window full of SENDs, again and again: over `limits.user_rate` they are answered RETRY, each one.
fn flood_with_messages(gateway: SocketAddr, random: &mut Random) -> u64 {
    const AT_ONCE: usize = 60;
    const WINDOWS: usize = 4;
    let me = name("talker", random);
    let mut client = Client::login(gateway, &me, "d");
    for window in 1..=WINDOWS {
        for key in 0..AT_ONCE {
            client.send(&message((window * AT_ONCE + key) as u128, &me, b"buy"));
        }
        client.until("an answer to each", |heard| heard.send_acks.len() == window * AT_ONCE);
    }
    let codes = client.heard.send_acks.iter().map(moorline_proto::message::client::SendAck::code);
    assert!(codes.clone().all(|code| matches!(code, Code::Ok | Code::Retry)), "nothing else");
    assert!(codes.clone().any(|code| code == Code::Ok) && codes.clone().any(|code| code == Code::Retry));
    1
}

/// Rooms that there are not, as fast as they can be asked for.
fn flood_with_rooms(gateway: SocketAddr, random: &mut Random) -> u64 {
    let mut client = Client::login(gateway, &name("subscriber", random), "d");
    let mut flood = Vec::new();
    for id in 1..=400 {
        let room = format!("group:{}", random.below(50));
        flood.extend(bytes_of(&frame_of(Command::Sub, &Sub { id, room })));
    }
    client.write(&flood);
    client.until("an answer to each", |heard| heard.sub_acks.len() == 400);
    assert!(client.heard.sub_acks.iter().all(|ack| ack.code() != Code::Ok), "it is a member of nothing");
    1
}

fn talk_rubbish(gateway: SocketAddr, random: &mut Random) -> u64 {
    let bytes = stream(random);
    let mut client = Client::connect(gateway);
    // The gateway may have closed before the last byte.
    client.stream.write_all(&bytes).ok();
    client.stream.shutdown(Shutdown::Write).ok();
    client.end();
    1
}

/// Part of a HELLO, or nothing; some then hold on until they are closed, some leave one half open.
fn say_half(gateway: SocketAddr, random: &mut Random) -> u64 {
    const AT_ONCE: u64 = 20;
    let greeting = bytes_of(&frame_of(Command::Hello, &hello(&name("mute", random), "d")));
    let mut clients: Vec<_> = (0..AT_ONCE).map(|_| Client::connect(gateway)).collect();
    for client in &mut clients {
        let cut = number_below(random, greeting.len() as u64);
        client.write(&greeting[..cut]);
        if random.one_in(4) {
            client.stream.shutdown(Shutdown::Write).expect("it is open");
        }
    }
    for client in &mut clients {
        client.end();
    }
    AT_ONCE
}

/// A header that announces up to 4 GiB, before or after the login.
fn announce_too_much(gateway: SocketAddr, random: &mut Random) -> u64 {
    let is_stranger = random.one_in(2);
    let mut client = if is_stranger {
        Client::connect(gateway)
    } else {
        Client::login(gateway, &name("glutton", random), "d")
    };
    let command = if is_stranger { Command::Hello } else { Command::Ping };
    let mut frame = Frame::new(command, Bytes::new()).with_lane(Lane::Control);
    frame.header.body_len = u32::MAX - u32::try_from(random.below(1 << 31)).expect("31 bits");
    client.write(&frame.header.to_bytes());
    let end = client.end();
    assert_eq!(end.code(), moorline_proto::error::CloseReason::TooLarge.code(), "{end:?}");
    1
}

/// Connects and is gone: at once, after half a login, logged in, in the middle of a message; with FIN or RST.
fn come_and_go(gateway: SocketAddr, random: &mut Random) -> u64 {
    let me = name("guest", random);
    let greeting = bytes_of(&frame_of(Command::Hello, &hello(&me, "d")));
    let mut client = match random.below(4) {
        0 => Client::connect(gateway),
        1 => Client::greet(gateway, &hello(&me, "d")),
        _ => Client::login(gateway, &me, "d"),
    };
    if client.heard.welcome.is_some() {
        let send = bytes_of(&send_frame(1, &message(1, &me, &[7; 500])));
        client.write(&send[..number_below(random, send.len() as u64)]);
    } else {
        client.stream.write_all(&greeting[..number_below(random, greeting.len() as u64)]).ok();
    }
    if random.one_in(2) {
        SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).expect("a socket");
    }
    1
}

/// Deeds of one enemy.
#[derive(Debug)]
struct Fought {
    name: &'static str,
    attacks: u64,
    connections: u64,
    /// Processor time of its thread.
    cpu: Duration,
}

/// Lowest priority of a thread.
const NICENESS: i32 = 19;

/// Enemies until the time is up.
fn attack(enemies: &[(&'static str, Attack)], gateway: SocketAddr, seed: u64, until: Instant) -> Vec<Fought> {
    let crews: Vec<_> = (0..)
        .zip(enemies)
        .map(|(number, &(name, attack))| {
            let mut random = Random::new(seed * 100 + number);
            std::thread::spawn(move || {
                rustix::process::setpriority_process(None, NICENESS).expect("less is always allowed");
                let mut fought = Fought { name, attacks: 0, connections: 0, cpu: Duration::ZERO };
                while clock::now() < until {
                    fought.connections += attack(gateway, &mut random);
                    fought.attacks += 1;
                }
                Fought { cpu: moorline_usage::thread_cpu_time(), ..fought }
            })
        })
        .collect();
    crews.into_iter().map(|crew| crew.join().expect("an enemy saw what it should")).collect()
}

/// Only the two of the chat are left.
fn until_alone(gateway: &Gateway) {
    for (gauge, value) in
        [("connections", 2), ("sessions", 2), ("users", 2), ("detached", 0), ("read_paused", 0)]
    {
        gateway.until_metric(gauge, value);
    }
    // What the chat says right now may wait for a moment.
    crate::until("nothing waits for anybody", || (gateway.metric("queued_bytes") == 0).then_some(()));
}

/// The chat alone and beside enemies, in turns, so that what else the machine does is the same for both.
struct Rounds {
    alone: Vec<Duration>,
    beside: Vec<Duration>,
}

impl Rounds {
    fn median(times: &[Duration]) -> Duration {
        let mut times = times.to_vec();
        times.sort_unstable();
        times[times.len() / 2]
    }

    /// Fights `count` rounds, each of this time alone and as long beside.
    fn fight(
        (gateway, chat): (&Gateway, &Chat),
        enemies: &[(&'static str, Attack)],
        seed: u64,
        (count, time): (u64, Duration),
    ) -> Self {
        let mut rounds = Self { alone: Vec::new(), beside: Vec::new() };
        for round in 0..count {
            until_alone(gateway);
            chat.lap();
            let started = clock::now();
            while clock::now() < started + time {
                chat.go_on(1);
            }
            let alone = chat.lap();
            let cpu = gateway.process.cpu();
            let fought = attack(enemies, gateway.listener, seed + round, clock::now() + time);
            let (cpu, beside) = (gateway.process.cpu().saturating_sub(cpu), chat.lap());
            let of_enemies: Duration = fought.iter().map(|one| one.cpu).sum();
            println!("round {round}: alone {alone:?}, beside {beside:?}");
            println!("    CPU: enemies {of_enemies:?}, gateway {cpu:?}, chat {:?}", beside.cpu);
            for Fought { name, attacks, connections, cpu } in &fought {
                println!("    {name}: {attacks} attacks, {connections} connections, {cpu:?}");
            }
            assert!(alone.count > 0 && beside.count > 0, "the chat goes on");
            rounds.alone.push(alone.p99);
            rounds.beside.push(beside.p99);
        }
        let (alone, beside) = (Self::median(&rounds.alone), Self::median(&rounds.beside));
        let ratio = beside.as_secs_f64() / alone.as_secs_f64();
        println!(
            "p99 of the chat, medians of {count} rounds: alone {alone:?}, beside {beside:?}, {ratio:.2} x"
        );
        rounds
    }
}

#[test]
fn enemies_of_every_kind_do_not_disturb_a_chat_and_leave_nothing() {
    const ROUNDS: u64 = 3;
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, SETTINGS);
    let chat = Chat::start_unhurried(gateway.listener, Duration::from_millis(25));
    let seed = soak::seed();
    // Everything has been used once.
    attack(ENEMIES, gateway.listener, seed, clock::now() + Duration::from_secs(2));
    until_alone(&gateway);
    let before = (gateway.process.resident_kib(), gateway.process.descriptors().len());
    chat.go_on(5);

    let lateness = Lateness::start();
    let time = soak::time(6) / u32::try_from(ROUNDS).expect("few");
    let rounds = Rounds::fight((&gateway, &chat), ENEMIES, seed + 1, (ROUNDS, time));
    let beside = Rounds::median(&rounds.beside);
    let chat_within = CHAT_WITHIN + CHAT_HOPS * lateness.finish();
    until_alone(&gateway);
    let after = (gateway.process.resident_kib(), gateway.process.descriptors().len());
    chat.go_on(5);
    let report = chat.finish();
    println!("(KiB, descriptors) before {before:?}, after {after:?}; {report:?}");
    assert!(beside <= chat_within, "the chat: {beside:?}, {chat_within:?} allowed");
    assert!(after.0 <= before.0 + GROWTH_KIB, "memory: before {before:?}, after {after:?}");
    assert!(after.1 <= before.1 + 1, "descriptors: before {before:?}, after {after:?}");
    let closed = ["slow", "handshake_timeout", "incomplete", "too_large", "bad_batch", "bad_magic"];
    let closed = closed.map(|reason| format!("closed_total{{reason=\"{reason}\"}}"));
    let limits = ["frame_rate_exceeded_total", "user_rate_exceeded_total", "throttles_total"];
    for name in limits.iter().copied().chain(closed.iter().map(String::as_str)) {
        gateway.until_at_least(name, 1);
        println!("{name} {}", gateway.metric(name));
    }
}

/// Each kind of enemy by itself, for [`soak::time`] altogether: the figures say which one a chat feels most.
#[test]
fn each_kind_of_enemy_alone_does_not_disturb_a_chat() {
    let backend = Backend::start();
    let gateway = Gateway::start(&backend, SETTINGS);
    let chat = Chat::start_unhurried(gateway.listener, Duration::from_millis(25));
    let lateness = Lateness::start();
    let time = soak::time(5) / u32::try_from(2 * ENEMIES.len()).expect("ten");
    let beside: Vec<_> = ENEMIES
        .iter()
        .map(|enemy| {
            println!("--- {}", enemy.0);
            Rounds::fight((&gateway, &chat), &[*enemy], soak::seed(), (1, time)).beside[0]
        })
        .collect();
    let chat_within = CHAT_WITHIN + CHAT_HOPS * lateness.finish();
    chat.finish();
    assert!(
        beside.iter().all(|beside| *beside <= chat_within),
        "the chat: {beside:?}, {chat_within:?} allowed"
    );
}
