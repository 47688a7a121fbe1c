//! Actions of applications: send, ask, restart, log in a second time.

use crate::backend::Device;
use crate::scene::What;
use crate::world::World;
use bytes::Bytes;
use moorline_proto::ids::MessageKey;
use moorline_proto::time::Duration;
use moorline_sdk::core::{Event, Notice, Repeat, SendRefused, Target};

/// The users, each with a device or two.
pub(crate) const DEVICES: [(&str, &str); 4] =
    [("alice", "phone"), ("alice", "desk"), ("bob", "phone"), ("carol", "phone")];
/// Those who are members of conversations.
pub(crate) const USERS: [&str; 3] = ["alice", "bob", "carol"];

impl World {
    /// An application says a few things, then pauses.
    pub(crate) fn talk(&mut self, at: usize) {
        if self.scene.faults.is_calm || self.clients[at].is_over {
            return;
        }
        for _ in 0..=self.scene.random.below(3) {
            self.talks += 1;
            let text = Bytes::from(format!("{at} says {:>w$}", self.talks, w = 1 + self.scene.index(200)));
            let me = self.clients[at].device.0.clone();
            let others: Vec<&str> = USERS.into_iter().filter(|uid| *uid != me).collect();
            let target = match self.scene.index(others.len() + 1) {
                at if at < others.len() => Target::user(others[at]),
                _ => Target::group("g"),
            };
            self.send(at, None, target, text);
        }
        let now = self.scene.now;
        if self.scene.random.one_in(6) {
            let timeout = Duration::from_secs(5);
            let repeat = [Repeat::Once, Repeat::UntilAnswered][self.scene.index(2)];
            let asked = self.clients[at].core.request(now, "im.conversations", Bytes::new(), repeat, timeout);
            if let Ok(id) = asked {
                self.oracle.on_request(at, id);
            }
        }
        if self.scene.random.one_in(10) {
            self.clients[at].core.try_app(now, 0x77, Bytes::from_static(b"app"));
        }
        match self.scene.index(12) {
            0..3 => _ = self.clients[at].core.enter_room(now, "group:g"),
            3 => self.clients[at].core.leave_room(now, "group:g"),
            4..8 => {
                self.talks += 1;
                let payload = Bytes::from(self.talks.to_string());
                self.oracle.on_signal_sent(at, self.talks);
                self.clients[at].core.try_signal(now, "group:g", payload);
            }
            _ => {}
        }
        self.drain(at);
        let pause = self.scene.faults.talk_ms;
        self.scene.within(2 * pause, What::Talk(at));
    }

    fn send(&mut self, at: usize, key: Option<MessageKey>, target: Target, payload: Bytes) {
        let (now, core) = (self.scene.now, &mut self.clients[at].core);
        let conversation = target.conversation(&core.config().uid).to_string();
        let taken = match key {
            None => core.send(now, target, 1, payload.clone()),
            Some(key) => core.send_with_key(now, key, target, 1, payload.clone()).map(|id| (id, key)),
        };
        let (id, key) = match taken {
            Ok(taken) => taken,
            Err(SendRefused::Closed) => return, // it is logging out
            Err(refused) => panic!("{refused}"),
        };
        self.scene.coverage.sends += 1;
        self.oracle.on_send(at, id, key, conversation, payload);
    }

    /// Reaction of the application to an event.
    pub(crate) fn hear(&mut self, at: usize, event: &Event) {
        match event {
            Event::Message(message) => {
                self.scene.coverage.messages += 1;
                let rate = self.scene.faults.slow_application;
                let busy = if self.scene.fault(rate) { 14_000 } else { 20 };
                self.scene.within(busy, What::Handled(at, message.token));
            }
            Event::Notice(Notice::Signal { .. }) => self.scene.coverage.signals += 1,
            Event::Notice(Notice::RoomEntered { .. }) => self.scene.coverage.rooms_entered += 1,
            Event::Response { result, .. } => self.scene.coverage.responses += u64::from(result.is_ok()),
            Event::Notice(Notice::Closed(_)) => {
                // The device comes back, unless another life of it is there.
                let pause = [500, 8_000][self.scene.index(2)];
                self.scene.within(pause, What::Login(at));
            }
            _ => {}
        }
    }

    /// A new life of a device, which sends again what its last one could not be sure of.
    pub(crate) fn login_again(&mut self, last: usize) {
        let device = self.clients[last].device.clone();
        let is_there = self.clients.iter().any(|client| client.device == device && !client.is_over);
        if is_there || self.is_stopping {
            return;
        }
        let at = self.add_client(device);
        for (key, conversation, payload) in self.oracle.uncertain(last, &self.backend.witness.ledger) {
            let target = Target::Conversation(conversation.into());
            self.send(at, Some(key), target, payload);
        }
        self.drain(at);
    }

    /// One device logs in a second time.
    pub(crate) fn rival(&mut self) {
        if !self.scene.faults.is_calm {
            let (uid, device) = DEVICES[self.scene.index(DEVICES.len())];
            self.add_client((uid.into(), device.into()));
            self.scene.within(15_000, What::Rival);
        }
    }

    /// An application ends and comes back.
    pub(crate) fn restart(&mut self) {
        if self.scene.faults.is_calm {
            return;
        }
        let at = self.scene.index(self.clients.len());
        if !self.clients[at].is_over {
            let now = self.scene.now;
            match (self.scene.index(3), self.clients[at].pipe) {
                (0, Some(pipe)) => {
                    self.scene.coverage.deaths += 1;
                    self.cut_silently(pipe);
                    self.clients[at].core.close(now);
                }
                (1, _) => {
                    self.scene.coverage.app_restarts += 1;
                    self.clients[at].core.close(now);
                }
                _ => {
                    self.scene.coverage.app_restarts += 1;
                    self.clients[at].core.logout(now);
                }
            }
            self.drain(at);
        }
        self.scene.within(15_000, What::Restart);
    }

    pub(crate) fn add_client(&mut self, device: Device) -> usize {
        let at = self.clients.len();
        let client = crate::client::Client::new(at, device.clone(), &mut self.scene);
        self.oracle.on_life(device);
        self.clients.push(client);
        self.scene.within(50, What::ClientTimer(at));
        self.scene.within(500, What::Talk(at));
        at
    }
}
