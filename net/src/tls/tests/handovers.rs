//! A nonce oracle: whoever seals what, over handovers that succeed, fail and are taken back, no key and number is used twice.

use super::pair::*;
use crate::tls::records::forge;
use crate::tls::{End, Fault, Records, Suite};
use moorline_proto::time::Instant;
use proptest::prelude::*;
use std::collections::HashSet;

#[derive(Clone, Copy, Debug)]
enum Step {
    Seal(usize),
    /// The peer changes its key, and wants the server to.
    PeerUpdates(bool),
    Answer,
    Request,
    /// Keys are kept from here on, or their bytes.
    Keep,
    KeepBytes,
    Cool,
    /// The server is close to its own KeyUpdate.
    Jump(u32),
    Handover(Outcome),
    Close,
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// The new process goes on.
    Done,
    /// The new process ended before it went on, and the old one goes on.
    TakenBack,
    /// A second attempt after a failed one.
    SecondTime,
    /// Through two processes at once: the first new one hands over before it goes on.
    Through,
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        3 => Just(Outcome::Done),
        3 => Just(Outcome::TakenBack),
        1 => Just(Outcome::SecondTime),
        1 => Just(Outcome::Through),
    ];
    prop_oneof![
        8 => prop_oneof![1..200_usize, Just(0), 16_000..40_000_usize].prop_map(Step::Seal),
        2 => any::<bool>().prop_map(Step::PeerUpdates),
        1 => Just(Step::Answer),
        1 => Just(Step::Request),
        2 => Just(Step::Keep),
        2 => Just(Step::KeepBytes),
        2 => Just(Step::Cool),
        1 => (0..4_u32).prop_map(|before| Step::Jump((1 << 23) - before)),
        6 => outcome.prop_map(Step::Handover),
    ]
}

struct World {
    owner: Records,
    /// States that lost, of processes that try to go on.
    losers: Vec<Records>,
    client: Records,
    wire: Vec<u8>,
    sent: Vec<u8>,
    second: u64,
}

impl World {
    fn perform(&mut self, step: Step) {
        match step {
            Step::Seal(length) => {
                let text = vec![u8::try_from(length % 251).expect("below 251"); length];
                self.owner.seal(&[&text[..length / 2], &text[length / 2..]], &mut self.wire).expect("owner");
                self.sent.extend_from_slice(&text);
            }
            Step::PeerUpdates(is_requested) => {
                let mut bytes = self.client.seal_raw_update(is_requested);
                self.second += 1;
                let opened = self.owner.open(&mut bytes, Instant::from_nanos(self.second * 1_000_000_000));
                assert_eq!((opened.consumed, opened.end), (bytes.len(), None));
            }
            Step::Answer => self.owner.answer(&mut self.wire).expect("owner"),
            Step::Request => self.owner.request_update(&mut self.wire).expect("owner"),
            Step::Keep => self.owner.keep(),
            Step::KeepBytes => self.owner.keep_bytes(),
            Step::Cool => self.owner.cool(),
            Step::Jump(to) => {
                self.client_reads();
                if self.owner.next_nonce().1 < to {
                    self.owner.pretend_sealed(to);
                    self.client.pretend_opened(to);
                }
            }
            Step::Close => self.owner.close_notify(&mut self.wire).expect("owner"),
            Step::Handover(outcome) => self.hand_over(outcome),
        }
        self.losers.iter_mut().for_each(cannot_seal);
    }

    fn hand_over(&mut self, outcome: Outcome) {
        let frozen = self.owner.freeze().expect("owner");
        let mut next = Records::thaw(frozen.as_ref()).expect("valid");
        cannot_seal(&mut self.owner);
        cannot_seal(&mut next);
        match outcome {
            Outcome::Done => {
                self.owner.retire();
                next.resume().expect("thawed");
                self.losers.push(std::mem::replace(&mut self.owner, next));
            }
            Outcome::TakenBack => {
                next.retire();
                self.losers.push(next);
                self.owner.resume().expect("frozen");
            }
            Outcome::SecondTime => {
                // The first child ended without a word.
                drop(next);
                self.hand_over(Outcome::Done);
            }
            Outcome::Through => {
                let frozen = next.freeze().expect("frozen already");
                let mut third = Records::thaw(frozen.as_ref()).expect("valid");
                cannot_seal(&mut third);
                next.retire();
                self.owner.retire();
                third.resume().expect("thawed");
                self.losers.push(next);
                self.losers.push(std::mem::replace(&mut self.owner, third));
            }
        }
    }

    /// Opens what the server has sealed, and compares it with the text.
    fn client_reads(&mut self) {
        self.second += 1;
        let opened = self.client.open(&mut self.wire, Instant::from_nanos(self.second * 1_000_000_000));
        assert!(matches!(opened.end, None | Some(End::Closed)), "{:?}", opened.end);
        assert_eq!(self.wire[opened.plain], self.sent);
        self.wire.clear();
        self.sent.clear();
    }
}

/// Has a process try everything that seals.
fn cannot_seal(records: &mut Records) {
    let mut out = Vec::new();
    assert_eq!(records.seal(&[b"x"], &mut out), Err(Fault::NotOwner));
    assert_eq!(records.request_update(&mut out), Err(Fault::NotOwner));
    assert_eq!(records.close_notify(&mut out), Err(Fault::NotOwner));
    assert_eq!(records.alert(Fault::Flood, &mut out), Err(Fault::NotOwner));
    records.answer(&mut out).ok();
    assert!(out.is_empty() && !records.is_warm());
}

proptest! {
    #[test]
    fn no_process_uses_a_key_and_a_number_twice(
        is_aes in any::<bool>(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let (server, client) = ends(if is_aes { Suite::Aes256 } else { Suite::ChaCha20 });
        let mut world =
            World { owner: server, losers: Vec::new(), client, wire: Vec::new(), sent: Vec::new(), second: 0 };
        forge::take_sealed();
        for step in steps.into_iter().chain([Step::Handover(Outcome::Done), Step::Close]) {
            world.perform(step);
            world.client_reads();
        }
        let sealed = forge::take_sealed();
        let distinct: HashSet<_> = sealed.iter().collect();
        prop_assert_eq!(distinct.len(), sealed.len());
        prop_assert!(!sealed.is_empty());
    }
}

#[test]
fn the_oracle_sees_a_process_that_goes_on_though_it_lost() {
    let (mut old, _) = ends(Suite::Aes256);
    forge::take_sealed();
    let frozen = old.freeze().expect("owner");
    let mut new = Records::thaw(frozen.as_ref()).expect("valid");
    for process in [&mut old, &mut new] {
        process.resume().expect("both, which the contract forbids");
        process.seal(&[b"x"], &mut Vec::new()).expect("sealed");
    }
    let sealed = forge::take_sealed();
    assert_eq!(sealed.len(), 2);
    assert_eq!(sealed[0], sealed[1]);
}
