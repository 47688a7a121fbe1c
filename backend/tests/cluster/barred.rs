//! A session that stays at a node while its slot is elsewhere for a moment, where its user is banned.

use crate::cells::Cells;
use moorline_backend::cluster::cell::Life;
use moorline_backend::cluster::store::{ClusterStore, Layout, Output};
use moorline_backend::config::ImConfig;
use moorline_backend::im::store::LoginRule;
use moorline_backend::im::{Im, Output as ImOutput};
use moorline_backend::server::{Event, GatewayId, Now, SessionId};
use moorline_proto::message::backend::ConnUp;
use moorline_proto::slots::{NodeId, Slot};
use moorline_proto::time::{Duration, Instant};

const UNIX_MS: u64 = 1_800_000_000_000;

struct OneNode {
    im: Im<ClusterStore>,
    cells: Cells,
    now_ms: u64,
}

impl OneNode {
    fn now(&self) -> Now {
        let instant = Instant::ZERO + Duration::from_millis(self.now_ms);
        Now { instant, unix_ms: UNIX_MS + self.now_ms }
    }

    /// Lets time pass, and answers each request at once. Returns the sessions that are kicked, with the codes.
    fn pass(&mut self, ms: u64) -> Vec<(SessionId, u32)> {
        let mut kicks = Vec::new();
        for _ in 0..ms {
            self.now_ms += 1;
            let now = self.now();
            self.im.store_mut().handle_time(now.instant);
            while let Some(output) = self.im.store_mut().poll_output() {
                let Output::Cell(_, request, body) = output else { panic!("there is no other node") };
                let reply = self.cells.perform(self.now_ms, |_| true, &body);
                self.im.store_mut().handle_cell(request, Ok(reply));
            }
            self.im.handle_committed();
            self.im.handle_turn_end(now);
            while let Some(output) = self.im.poll_output() {
                if let ImOutput::Kick { session, kick } = output {
                    kicks.push((session, kick.code));
                }
            }
        }
        kicks
    }
}

#[test]
fn who_was_banned_while_the_slot_was_elsewhere_leaves_when_it_comes_back() {
    let (me, other) = (NodeId(1), NodeId(2));
    let life = Life { node: me, number: 1, address: "a".into(), is_stopping: false };
    let store = ClusterStore::new(life, Layout { cells: 1 }, 0);
    let im = Im::new(ImConfig::default(), 1, store);
    let mut node = OneNode { im, cells: Cells::default(), now_ms: 0 };
    node.pass(3000);
    let slot = Slot::of("bob");
    assert!(node.im.store().owns(slot), "it is the only node");
    let session = SessionId::new(0, 1);
    let login = ConnUp { uid: "bob".into(), device: "phone".into(), ..ConnUp::default() };
    let event = Event::ConnUp { session, gateway: GatewayId::new(0), login, is_new: true };
    let now = node.now();
    node.im.handle(now, event);
    assert_eq!(node.pass(100), [], "he is there");
    for (until_s, kicks) in [(UNIX_MS / 1000, vec![]), (u64::MAX, vec![(session, 3531)])] {
        node.cells.steal(slot, other);
        let bob = node.cells.users.values_mut().find(|user| *user.uid == *"bob").expect("stored");
        bob.rule = LoginRule { banned_until_s: until_s, ..LoginRule::default() };
        node.cells.steal(slot, me);
        assert_eq!(node.pass(5000), kicks, "banned until {until_s}");
        assert!(node.im.store().owns(slot), "it is back");
    }
}
