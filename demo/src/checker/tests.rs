//! The judge must see each kind of fault, and no fault in an honest network.

use super::*;

const SEED: u64 = 5;
const PAIR: usize = 0;
const GROUP: usize = 1;

/// Twelve connections, with an honest network between them unless a test lies.
struct Scene {
    checker: Checker,
    roster: Arc<Roster>,
    /// Last place of each conversation.
    places: Vec<u64>,
}

/// A message on its way.
#[derive(Clone)]
struct Flying {
    device: u32,
    receivers: Vec<u32>,
    message: Push,
    receipt: Receipt,
}

impl Scene {
    fn new() -> Self {
        let roster = Arc::new(Roster::new(12, SEED));
        let places = vec![0; roster.conversations.len()];
        Self { checker: Checker::new(Arc::clone(&roster), SEED), roster, places }
    }

    fn send(&mut self, device: u32, seat: usize) -> Flying {
        let (key, payload) = self.checker.begin(device, seat, Instant::from_nanos(77));
        let number = self.roster.device(device).seats[seat].conversation as usize;
        let conversation = &self.roster.conversations[number];
        self.places[number] += 1;
        let seq = self.places[number];
        let message = Push {
            message_id: 1,
            conversation: conversation.id.to_string(),
            seq,
            sender: self.roster.uid_of(device).to_string(),
            sender_device: self.roster.device(device).name.to_owned(),
            r#type: 1,
            payload,
            ..Push::default()
        };
        let receipt = Receipt { key, is_repeat: false, conversation: conversation.id.to_string(), seq };
        let receivers = conversation.devices.iter().copied().filter(|other| *other != device).collect();
        Flying { device, receivers, message, receipt }
    }

    fn store(&mut self, flying: &Flying) {
        assert_eq!(self.checker.on_stored(flying.device, &flying.receipt), Some(Instant::from_nanos(77)));
    }

    fn deliver(&mut self, flying: &Flying) {
        for &receiver in &flying.receivers {
            self.checker.on_message(receiver, &flying.message);
        }
    }

    fn verdict(self) -> Verdict {
        self.checker.verdict()
    }
}

/// Numbers of a verdict: lost, duplicated, reordered, corrupted.
fn faults(verdict: &Verdict) -> [u64; 4] {
    [verdict.lost, verdict.tally.duplicated, verdict.tally.reordered, verdict.tally.corrupted]
}

#[test]
fn an_honest_network_has_no_faults() {
    let mut scene = Scene::new();
    let mut deliveries = 0;
    for round in 0..50 {
        for device in 0..12 {
            let seat = scene.roster.device(device).seats.len() - 1;
            let flying = scene.send(device, if round % 3 == 0 { seat } else { PAIR });
            deliveries += flying.receivers.len() as u64;
            if device % 2 == 0 {
                scene.store(&flying);
                scene.deliver(&flying);
            } else {
                scene.deliver(&flying);
                scene.store(&flying);
            }
        }
    }
    assert_eq!((scene.checker.owed(), scene.checker.unanswered()), (0, 0));
    let verdict = scene.verdict();
    assert_eq!(faults(&verdict), [0; 4], "{:?}", verdict.faults);
    assert_eq!((verdict.tally.stored, verdict.tally.delivered), (600, deliveries));
    assert!(verdict.faults.is_empty());
}

#[test]
fn both_devices_of_a_user_count() {
    let mut scene = Scene::new();
    let two = scene.roster.users.iter().find(|user| user.devices.len() == 2).expect("one in twelve");
    let (one, other) = (two.devices[0], two.devices[1]);
    let flying = scene.send(one, PAIR);
    assert!(flying.receivers.contains(&other), "the sender's other device is told too");
    scene.store(&flying);
    for receiver in flying.receivers.iter().filter(|receiver| **receiver != other) {
        scene.checker.on_message(*receiver, &flying.message);
    }
    assert_eq!((scene.checker.owed(), scene.checker.lacking()), (1, vec![other]));
    let verdict = scene.verdict();
    assert_eq!((faults(&verdict), verdict.undelivered), ([0; 4], 1));
}

#[test]
fn a_message_is_lost_when_a_later_one_came() {
    let mut scene = Scene::new();
    for number in 0..5 {
        let flying = scene.send(0, GROUP);
        scene.store(&flying);
        // The third message reaches nobody, and the last one only its first receiver.
        match number {
            2 => {}
            4 => _ = scene.checker.on_message(flying.receivers[0], &flying.message),
            _ => scene.deliver(&flying),
        }
    }
    let others = scene.roster.devices.len() as u64 - 1;
    assert_eq!(scene.checker.owed(), others + others - 1);
    let verdict = scene.verdict();
    assert_eq!((faults(&verdict), verdict.undelivered), ([others, 0, 0, 0], others - 1));
    assert!(verdict.faults[0].contains("later ones did"), "{:?}", verdict.faults);
    assert!(verdict.doubts[0].contains("nothing after them"), "{:?}", verdict.doubts);
    assert_eq!(verdict.faults.len(), FAULTS_TOLD, "the rest is only counted");
}

#[test]
fn the_last_message_is_lost_only_when_the_backend_says_that_its_place_is_vacant() {
    let mut scene = Scene::new();
    let first = scene.send(0, PAIR);
    scene.store(&first);
    scene.deliver(&first);
    let last = scene.send(0, PAIR);
    scene.store(&last);
    assert_eq!(scene.checker.lacking(), last.receivers);
    let to = scene.roster.seat_in(last.receivers[0], 0).expect("a pair").0;
    scene.checker.on_vacant(last.receivers[0], to, last.message.seq - 1);
    let proof = |scene: &mut Scene, receiver| scene.checker.on_vacant(receiver, to, last.message.seq);
    for receiver in last.receivers.clone() {
        proof(&mut scene, receiver);
    }
    let verdict = scene.verdict();
    assert_eq!((verdict.lost, verdict.undelivered), (last.receivers.len() as u64, 0), "{verdict:?}");
}

#[test]
fn a_message_without_answer_is_never_lost() {
    let mut scene = Scene::new();
    let (open, later) = (scene.send(0, PAIR), scene.send(0, PAIR));
    scene.store(&later);
    scene.deliver(&later);
    assert_eq!(open.receivers, later.receivers);
    let verdict = scene.verdict();
    assert_eq!((faults(&verdict), verdict.undelivered, verdict.unanswered), ([0; 4], 0, 1));
}

#[test]
fn a_second_arrival_is_a_duplicate_even_much_later() {
    let mut scene = Scene::new();
    let first = scene.send(0, PAIR);
    scene.store(&first);
    scene.deliver(&first);
    for _ in 0..3 {
        let flying = scene.send(0, PAIR);
        scene.store(&flying);
        scene.deliver(&flying);
    }
    assert_eq!(scene.checker.on_message(first.receivers[0], &first.message), None);
    assert_eq!(faults(&scene.verdict()), [0, 1, 0, 0]);
}

#[test]
fn late_ones_of_a_sender_are_reordered_not_lost() {
    let mut scene = Scene::new();
    let (first, second, third) = (scene.send(0, PAIR), scene.send(0, PAIR), scene.send(0, PAIR));
    for flying in [&second, &third, &first] {
        scene.store(flying);
        scene.deliver(flying);
    }
    let verdict = scene.verdict();
    assert_eq!(faults(&verdict), [0, 0, first.receivers.len() as u64, 0], "{:?}", verdict.faults);
}

#[test]
fn two_senders_must_keep_the_order_of_places() {
    let mut scene = Scene::new();
    let (one, other) = (scene.send(0, GROUP), scene.send(1, GROUP));
    scene.store(&one);
    scene.store(&other);
    let witness = 5;
    scene.checker.on_message(witness, &other.message);
    scene.checker.on_message(witness, &one.message);
    assert_eq!(scene.checker.tally().reordered, 1, "place 1 came after place 2");
}

#[test]
fn whatever_differs_is_corrupted() {
    let lies: [fn(&mut Push); 8] = [
        |message| {
            let mut bytes = message.payload.to_vec();
            *bytes.last_mut().expect("filler") ^= 1;
            message.payload = bytes.into();
        },
        |message| message.payload.truncate(message.payload.len() - 1),
        |message| message.payload.truncate(7),
        |message| {
            let mut bytes = message.payload.to_vec();
            bytes[19] ^= 1; // the intended time
            message.payload = bytes.into();
        },
        |message| message.conversation = "group:other".to_owned(),
        |message| message.sender = "u000099".to_owned(),
        |message| message.sender_device = "tablet".to_owned(),
        |message| message.seq += 1,
    ];
    for (number, lie) in lies.into_iter().enumerate() {
        let mut scene = Scene::new();
        let mut flying = scene.send(0, PAIR);
        scene.store(&flying);
        lie(&mut flying.message);
        scene.checker.on_message(flying.receivers[0], &flying.message);
        let verdict = scene.verdict();
        assert_eq!(verdict.tally.corrupted, 1, "lie {number}: {:?}", verdict.faults);
    }
}

#[test]
fn a_message_at_the_wrong_device_is_corrupted() {
    let mut scene = Scene::new();
    let flying = scene.send(0, PAIR);
    let stranger = 7;
    assert!(!flying.receivers.contains(&stranger));
    assert_eq!(scene.checker.on_message(stranger, &flying.message), None);
    assert_eq!(scene.checker.on_message(flying.device, &flying.message), None, "nor its own");
    assert_eq!(scene.checker.tally().corrupted, 2);
}

#[test]
fn every_send_has_one_answer() {
    let mut scene = Scene::new();
    let (stored, open, failed) = (scene.send(0, PAIR), scene.send(1, PAIR), scene.send(2, PAIR));
    scene.store(&stored);
    assert_eq!(scene.checker.on_stored(stored.device, &stored.receipt), None);
    assert_eq!(scene.checker.on_stored(9, &stored.receipt), None, "another device's");
    scene.checker.on_failed(failed.device, failed.receipt.key, "never answered");
    scene.deliver(&stored);
    scene.deliver(&open);
    let verdict = scene.verdict();
    assert_eq!((verdict.tally.answered_again, verdict.unanswered, verdict.tally.failed), (1, 1, 1));
    assert_eq!(faults(&verdict), [0, 0, 0, 1], "what is not durable is not lost: {:?}", verdict.faults);
}
