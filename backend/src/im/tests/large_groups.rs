//! Groups whose messages are in no inbox [P-11.14].

use super::social::create;
use super::*;
use crate::config::QuotaConfig;
use crate::config::WebhookConfig;
use crate::im::WebhookResult;
use moorline_proto::message::client::Notify;
use moorline_proto::message::im::{GroupCreateRequest, GroupCreateResponse, GroupRequest, GroupResponse};
use std::collections::BTreeSet;

#[test]
fn a_large_group_is_pushed_in_slices_and_pulled_by_who_was_away() {
    if !IS_PROMPT {
        return; // about what one turn does
    }
    let quota = QuotaConfig { members: 0, ..ImConfig::default().quota };
    let config = ImConfig {
        work_share: 100,
        fanout_members_max: 10,
        group_members_max: 50_000,
        quota,
        ..ImConfig::default()
    };
    let mut bench = Bench::new(config);
    let alice = bench.login(0, "alice", "d", 1);
    let members: Vec<String> = (0..40_000).map(|number| format!("u{number}")).collect();
    let away = bench.login(45_000, "u0", "d", 1);
    bench.logout(away);
    create(&mut bench, alice, &members.iter().map(String::as_str).collect::<Vec<_>>());
    for number in 1..40_000 {
        bench.login(number, &format!("u{number}"), "d", 1);
    }
    assert_eq!(bench.happened(), [], "nobody is told of a large group");
    let (code, ack) = bench.send(alice, conversation("group:g"), &key(1), b"hi");
    assert_eq!((code, ack.seq), (Code::Ok, 1));
    let first = bench.pushes().len();
    assert!(
        (1..=32_768).contains(&first) && std::mem::take(&mut bench.out.comes_back),
        "{first} in one turn"
    );
    bench.event(Event::Tick);
    assert_eq!(first + bench.pushes().len(), 39_999, "everybody who is online, and not the sender");
    bench.is_held = true;
    for number in 2..=20 {
        let send = Send {
            key: Bytes::copy_from_slice(&key(number)),
            target: Some(conversation("group:g")),
            ..Default::default()
        };
        bench.up(alice, Command::Send, encode(&send));
    }
    bench.is_held = false;
    for _ in 0..40 {
        bench.event(Event::Tick);
    }
    let pushes = bench.pushes();
    let of = |session: SessionId| pushes.iter().filter(move |it| it.session == session);
    let one = pushes[0].session;
    assert!(of(one).filter(|it| it.command == Command::Push).count() >= 5);
    let last = of(one).last().expect("some");
    assert_eq!(last.command, Command::Notify, "more than five at once come to one NOTIFY");
    assert_eq!(decode::<Notify>(&last.body).expect("a NOTIFY").latest, 20);
    let back = bench.login(45_000, "u0", "d", 2);
    let notifies = bench.pushes();
    let [told] = &notifies[..] else { panic!("one NOTIFY: {}", notifies.len()) };
    let notify: Notify = decode(&told.body).expect("a NOTIFY");
    assert_eq!((told.session, notify.first, notify.latest), (back, 1, 20));
    bench.outcome(told, Outcome::Acked);
    bench.logout(back);
    bench.login(45_000, "u0", "d", 3);
    assert_eq!(bench.pushes(), [], "it has everything");
}

#[test]
fn who_is_in_very_many_large_groups_is_told_of_them_bit_by_bit() {
    let mut bench = Bench::new(ImConfig { fanout_members_max: 1, ..ImConfig::default() });
    let alice = bench.login(0, "alice", "d", 1);
    let bob = bench.login(1, "bob", "d", 1);
    bench.logout(bob);
    for number in 0..100u8 {
        let (group, members) = (format!("g{number}"), vec!["bob".to_owned()]);
        let request = GroupCreateRequest { group, members };
        bench.req::<GroupCreateResponse>(alice, "im.group.create", &request).expect("created");
        bench.send(alice, conversation(&format!("group:g{number}")), &key(number), b"hi");
    }
    let bob = bench.login(1, "bob", "d", 2);
    let (mut told, mut waiting) = (BTreeSet::new(), bench.pushes());
    assert_eq!(waiting.len(), 64);
    while let Some(pushed) = waiting.pop() {
        let notify: Notify = decode(&pushed.body).expect("a NOTIFY");
        assert!(pushed.session == bob && told.insert(notify.conversation), "once each");
        bench.outcome(&pushed, Outcome::Acked);
        waiting.extend(bench.pushes());
    }
    assert_eq!(told.len(), 100);
}

/// The message that it stood for is in no inbox, and the ack of a later message would confirm it.
#[test]
fn a_notify_that_the_gateway_did_not_take_is_sent_again() {
    let mut bench = Bench::new(ImConfig { fanout_members_max: 1, ..ImConfig::default() });
    let [alice, bob] = [(0, "alice"), (1, "bob")].map(|(slot, uid)| bench.login(slot, uid, "d", 1));
    create(&mut bench, alice, &["bob"]);
    bench.logout(bob);
    bench.send(alice, conversation("group:g"), &key(1), b"one");
    bench.login(1, "bob", "d", 2);
    let notify = bench.pushes().pop().expect("a NOTIFY");
    bench.outcome(&notify, Outcome::Full);
    bench.send(alice, conversation("group:g"), &key(2), b"two");
    bench.fan_out();
    assert_eq!(told(&mut bench), [""; 0], "not before the first message");
    bench.pass(Duration::from_secs(2));
    assert_eq!(told(&mut bench), ["1 to 2"]);
}

/// Messages of each device that logs in: the seqs of PUSHes, and what NOTIFYs stand for.
fn told(bench: &mut Bench) -> Vec<String> {
    let of = |pushed: Pushed| {
        if pushed.command == Command::Notify {
            let Notify { first, latest, .. } = decode(&pushed.body).expect("a NOTIFY");
            return Some(format!("{first} to {latest}"));
        }
        Some(pushed.push().seq).filter(|seq| *seq > 0).map(|seq| seq.to_string())
    };
    bench.pushes().into_iter().filter_map(of).collect()
}

/// A group that goes through inboxes, then is read by cursor, then goes through inboxes again.
#[test]
fn what_was_put_into_no_inbox_is_told_in_its_order() {
    for (inbox_entries_max, expected) in
        [(100, &["1", "2", "3 to 6", "5", "6"][..]), (2, &["1 to 6", "3 to 6", "5", "6"])]
    {
        let config = ImConfig { fanout_members_max: 2, inbox_entries_max, ..ImConfig::default() };
        let mut bench = Bench::new(config);
        let [alice, bob, carol] =
            [(0, "alice"), (1, "bob"), (2, "carol")].map(|(slot, uid)| bench.login(slot, uid, "d", 1));
        bench.logout(bob);
        create(&mut bench, alice, &["bob"]);
        let group = GroupRequest { conversation: "group:g".into(), ..Default::default() };
        for number in 1..=6 {
            match number {
                3 => _ = bench.req::<GroupResponse>(carol, "im.group.join", &group).expect("joins"),
                5 => _ = bench.req::<GroupResponse>(carol, "im.group.leave", &group).expect("leaves"),
                _ => {}
            }
            bench.send(alice, conversation("group:g"), &key(number), b"");
        }
        bench.fan_out();
        bench.pushes();
        bench.login(1, "bob", "d", 2);
        assert_eq!(told(&mut bench), expected, "{inbox_entries_max}");
    }
}

/// A device that is behind in its inbox hears of what is in none only after it.
#[test]
fn what_is_in_no_inbox_overtakes_nothing() {
    let config = ImConfig { fanout_members_max: 2, outstanding: 2, ..ImConfig::default() };
    let mut bench = Bench::new(config);
    let [alice, bob, carol] =
        [(0, "alice"), (1, "bob"), (2, "carol")].map(|(slot, uid)| bench.login(slot, uid, "d", 1));
    create(&mut bench, alice, &["bob"]);
    let group = GroupRequest { conversation: "group:g".into(), ..Default::default() };
    for pushed in bench.pushes() {
        bench.outcome(&pushed, Outcome::Acked);
    }
    let mut heard = Vec::new();
    for number in 1..=5 {
        if number == 4 {
            bench.req::<GroupResponse>(carol, "im.group.join", &group).expect("joins");
        }
        bench.send(alice, conversation("group:g"), &key(number), b"");
        bench.fan_out();
    }
    // Each push is acknowledged when it has come.
    loop {
        let pushes = bench.pushes();
        if pushes.is_empty() {
            break;
        }
        for pushed in pushes.iter().filter(|pushed| pushed.session == bob) {
            match pushed.command {
                Command::Notify => {
                    let notify: Notify = decode(&pushed.body).expect("a NOTIFY");
                    heard.push(format!("from {}", notify.first));
                }
                _ if pushed.push().seq > 0 => heard.push(pushed.push().seq.to_string()),
                _ => {}
            }
        }
        for pushed in &pushes {
            bench.outcome(pushed, Outcome::Acked);
        }
        bench.fan_out();
    }
    assert_eq!(heard, ["1", "2", "3", "from 4"]);
}

#[test]
fn a_delivery_to_an_endpoint_is_an_output_behind_the_answer_to_its_message() {
    let webhooks = [("bot".to_owned(), WebhookConfig::default())].into_iter().collect();
    let mut bench = Bench::new(ImConfig { webhooks, ..ImConfig::default() });
    let alice = bench.login(0, "alice", "d", 1);
    let (mut outputs, now) = (Vec::new(), bench.now);
    let (key, payload) = (Bytes::copy_from_slice(&key(1)), Bytes::from_static(b"hi"));
    let body = encode(&Send { key, target: Some(user("bot")), r#type: 1, payload });
    let reply = Some(ReplyTo { link: LinkId { slot: 0, generation: 0 }, correlation: 1 });
    let up = Up { session: alice, command: Command::Send, seq: 0, dup: false, body, reply };
    bench.im().handle(now, Event::Up(up));
    while outputs.len() < 2 {
        bench.im().handle_turn_end(now);
        outputs.extend(std::iter::from_fn(|| bench.im().poll_output()));
    }
    let [Output::AnswerSend { code: Code::Ok, .. }, Output::CallWebhook(call)] = &outputs[..] else {
        panic!("{outputs:?}");
    };
    let push: Push = decode(&call.messages[0]).expect("a Push");
    assert_eq!((call.webhook, &push.payload[..]), (0, &b"hi"[..]));
}

/// Messages that a full inbox dropped, and those in no inbox, come from the history: everything, once, in the order of each
/// conversation; what fails comes again.
#[test]
fn services_get_what_is_in_no_inbox() {
    let service = WebhookConfig { batch_max: 2, ..WebhookConfig::default() };
    let webhooks = [("bot".to_owned(), service)].into_iter().collect();
    let config = ImConfig { fanout_members_max: 2, inbox_entries_max: 3, webhooks, ..ImConfig::default() };
    let mut bench = Bench::new(config);
    let alice = bench.login(0, "alice", "d", 1);
    let mut heard: Vec<(String, u64)> = Vec::new();
    let mut fails = true;
    let mut deliver = |bench: &mut Bench| {
        loop {
            let now = bench.now;
            let Some(call) = bench.poll_webhook() else { return };
            assert!(call.messages.len() <= 2);
            if std::mem::take(&mut fails) {
                bench.im().handle_webhook(now, call.webhook, WebhookResult::Failed);
                bench.pass(Duration::from_secs(2));
                continue;
            }
            let pushes = call.messages.iter().map(|body| decode::<Push>(body).expect("a Push"));
            heard.extend(pushes.filter(|push| push.seq > 0).map(|push| (push.conversation, push.seq)));
            bench.im().handle_webhook(now, call.webhook, WebhookResult::Delivered);
            bench.end_turn();
        }
    };
    for number in 1..=5 {
        bench.send(alice, user("bot"), &key(number), b"");
    }
    create(&mut bench, alice, &["bot", "carol"]);
    for number in 11..=15 {
        bench.send(alice, conversation("group:g"), &key(number), b"");
    }
    deliver(&mut bench);
    // Small enough for inboxes, then not again.
    let group = |bench: &mut Bench, method: &str, session| {
        let request = GroupRequest { conversation: "group:g".into(), ..Default::default() };
        bench.req::<GroupResponse>(session, method, &request).expect("done");
    };
    let carol = bench.login(2, "carol", "d", 1);
    for (number, method) in [(21, "im.group.leave"), (22, "im.group.join"), (23, "im.group.leave")] {
        group(&mut bench, method, carol);
        bench.send(alice, conversation("group:g"), &key(number), b"");
        bench.send(alice, conversation("group:g"), &key(number + 10), b"");
    }
    deliver(&mut bench);
    let of = |id: &str| -> Vec<u64> {
        heard.iter().filter(|(conversation, _)| conversation == id).map(|(_, seq)| *seq).collect()
    };
    assert_eq!(of("c2c:alice:bot"), [1, 2, 3, 4, 5]);
    assert_eq!(of("group:g"), (1..=11).collect::<Vec<_>>());
}

/// An inbox that drops more before what it dropped first was delivered.
#[test]
fn services_get_what_is_dropped_again() {
    let service = WebhookConfig { batch_max: 1, ..WebhookConfig::default() };
    let webhooks = [("bot".to_owned(), service)].into_iter().collect();
    let config = ImConfig { inbox_entries_max: 3, webhooks, ..ImConfig::default() };
    let mut bench = Bench::new(config);
    let (alice, carol) = (bench.login(0, "alice", "d", 1), bench.login(1, "carol", "d", 1));
    let mut heard = BTreeSet::new();
    let mut deliver = |bench: &mut Bench, count: usize, result: WebhookResult| {
        for _ in 0..count {
            let now = bench.now;
            let Some(call) = bench.poll_webhook() else { break };
            let pushes = call.messages.iter().map(|body| decode::<Push>(body).expect("a Push"));
            if result == WebhookResult::Delivered {
                heard.extend(pushes.map(|push| (push.conversation, push.seq)));
            }
            bench.im().handle_webhook(now, call.webhook, result);
            bench.end_turn();
            bench.pass(Duration::from_secs(2));
        }
        heard.len()
    };
    let mut number = 0;
    let mut say = |bench: &mut Bench, who, count| {
        for _ in 0..count {
            number += 1;
            bench.send(who, user("bot"), &key(number), b"");
        }
    };
    say(&mut bench, alice, 1);
    say(&mut bench, carol, 3);
    assert_eq!(deliver(&mut bench, 1, WebhookResult::Delivered), 1);
    deliver(&mut bench, 1, WebhookResult::Failed);
    say(&mut bench, alice, 5);
    assert_eq!(deliver(&mut bench, 100, WebhookResult::Delivered), 9, "6 of alice's, 3 of carol's");
}
