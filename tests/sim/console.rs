//! A second gateway of few words, without a pipe: its only client is the system, which speaks to the group.
//!
//! It sends more UPs than its credit allows, dies and comes back with a newer epoch while its old link is open, and
//! forgets that its client is in a room, which its next digests make good.

use crate::backend::GROUP;
use crate::scene::Scene;
use crate::witness::SYSTEM;
use bytes::{Bytes, BytesMut};
use moorline_backend::server::LinkId;
use moorline_proto::frame::Command;
use moorline_proto::link::{Kind, LinkDecoder, LinkFrame, encode};
use moorline_proto::message;
use moorline_proto::message::backend::{
    Bind, ConnUp, Digest, LinkHello, Outcome, Push, PushOutcome, PushResult, RoomDigest, Unbind, Up, UpResult,
};
use moorline_proto::message::client::{self, Code, Req, Sub, send};
use moorline_proto::message::im::GroupCreateRequest;
use moorline_proto::random::{Random, mix};
use moorline_proto::time::Duration;
use prost::Message;
use std::collections::BTreeSet;

/// Correlation of the request that makes the group.
const CREATE: u64 = 1;

#[allow(clippy::struct_excessive_bools)] // facts of a scripted gateway
#[derive(Default)]
pub(crate) struct Console {
    link: Option<LinkId>,
    decoder: LinkDecoder,
    /// Frames to come once the link is open.
    unsent: BytesMut,
    /// The backend's HELLO came.
    is_open: bool,
    pub(crate) is_paused: bool,
    has_group: bool,
    /// Rises with each death; the client's handle and the version of its login, too.
    life: u64,
    correlation: u64,
    news: u64,
    /// Membership of the client's only room, as this gateway believes.
    is_in_room: bool,
    /// Rooms that the backend has put the client into by itself.
    filled: BTreeSet<String>,
    users: Vec<String>,
}

impl Console {
    /// Time between two digests.
    pub(crate) const PAUSE: Duration = Duration::from_secs(2);

    /// Has the group made once the backend is there.
    pub(crate) fn create_group(&mut self, users: &[&str]) {
        self.users = users.iter().map(|uid| (*uid).to_owned()).collect();
        self.life = 1;
        self.correlation = CREATE;
    }

    pub(crate) const fn has_group(&self) -> bool {
        self.has_group
    }

    pub(crate) const fn needs_link(&self) -> bool {
        self.link.is_none()
    }

    pub(crate) fn is_on(&self, link: LinkId) -> bool {
        self.link == Some(link)
    }

    pub(crate) fn has_bytes(&self) -> bool {
        self.needs_link() || !(self.is_paused || self.unsent.is_empty())
    }

    pub(crate) fn take_bytes(&mut self) -> Option<(LinkId, Bytes)> {
        let link = self.link.filter(|_| self.has_bytes())?;
        Some((link, self.unsent.split().freeze()))
    }

    /// A connection was made.
    pub(crate) fn connect(&mut self, link: LinkId) {
        self.link = Some(link);
        self.decoder = LinkDecoder::new();
        self.unsent.clear();
        (self.is_open, self.is_paused) = (false, false);
        let hello = LinkHello {
            version_min: 1,
            version_max: 1,
            node: "console".into(),
            epoch: self.life,
            ..LinkHello::default()
        };
        self.say(Kind::Hello, 0, &hello);
    }

    fn say(&mut self, kind: Kind, correlation: u64, body: &impl Message) {
        encode(&mut self.unsent, kind, correlation, 0, body);
    }

    fn ask(&mut self, correlation: u64, command: Command, body: Bytes) {
        let up = Up { handle: self.life, command: command.byte().into(), body, ..Up::default() };
        self.say(Kind::Up, correlation, &up);
    }

    fn on_hello(&mut self) {
        self.is_open = true;
        let login = ConnUp {
            handle: self.life,
            uid: SYSTEM.into(),
            device: "desk".into(),
            login_version: self.life,
            ..ConnUp::default()
        };
        self.say(Kind::ConnUp, 0, &login);
        if !self.has_group {
            let members = self.users.clone();
            let payload = message::encode(&GroupCreateRequest { group: "g".into(), members });
            let create = Req { id: 1, method: "im.group.create".into(), payload };
            return self.ask(CREATE, Command::Req, message::encode(&create));
        }
        self.enter_room();
    }

    fn enter_room(&mut self) {
        self.correlation += 1;
        let sub = message::encode(&Sub { id: 1, room: GROUP.into() });
        self.ask(self.correlation, Command::Sub, sub);
    }

    /// The backend writes.
    pub(crate) fn hear(&mut self, bytes: &[u8]) {
        let mut input = Bytes::copy_from_slice(bytes);
        while let Some(frame) = self.decoder.decode(&mut input).expect("valid frames") {
            self.on_frame(&frame);
        }
    }

    fn on_frame(&mut self, frame: &LinkFrame) {
        match frame.kind {
            Kind::Hello => self.on_hello(),
            Kind::Ping => self.say(Kind::Pong, frame.correlation, &()),
            Kind::UpResult if frame.correlation == CREATE && !self.has_group => {
                let result: UpResult = frame.message().expect("an UpResult");
                assert_eq!(result.code(), Code::Ok, "the group is made");
                self.has_group = true;
                self.enter_room();
            }
            Kind::Push => {
                let push: Push = frame.message().expect("a Push");
                let outcome = Outcome::Acked.into();
                let outcomes = push.handles.iter().map(|handle| PushOutcome {
                    correlation: frame.correlation,
                    handle: *handle,
                    outcome,
                });
                let outcomes: Vec<_> = outcomes.collect();
                if push.want_ack && !outcomes.is_empty() {
                    self.say(Kind::PushResult, 0, &PushResult { outcomes });
                }
            }
            Kind::Bind => {
                let bind: Bind = frame.message().expect("a Bind");
                if bind.room != GROUP {
                    // The one that the backend fills by itself.
                    if bind.handles.contains(&self.life) {
                        self.filled.insert(bind.room);
                    } else if bind.reset {
                        self.filled.remove(&bind.room);
                    }
                    return;
                }
                if bind.reset || bind.handles.contains(&self.life) {
                    self.is_in_room = bind.handles.contains(&self.life);
                }
            }
            Kind::Unbind => {
                let unbind: Unbind = frame.message().expect("an Unbind");
                if unbind.room != GROUP {
                    if unbind.handles.contains(&self.life) {
                        self.filled.remove(&unbind.room);
                    }
                    return;
                }
                self.is_in_room &= !unbind.handles.contains(&self.life);
            }
            _ => {}
        }
    }

    /// The backend closed a connection: this one's, or one of an earlier life.
    pub(crate) fn on_closed(&mut self, link: LinkId) {
        if self.is_on(link) {
            self.link = None;
        }
    }

    pub(crate) fn on_backend_death(&mut self) {
        self.link = None;
        self.is_in_room = false;
        self.filled.clear();
    }

    /// The system speaks to the group.
    pub(crate) fn announce(&mut self, random: &mut Random) {
        if !self.is_open {
            return;
        }
        self.correlation += 1;
        self.news += 1;
        let key = [random.next_u64(), random.next_u64()].map(u64::to_be_bytes).concat();
        let send = client::Send {
            payload: Bytes::from(format!("news {}", self.news)),
            key: key.into(),
            target: Some(send::Target::Conversation(GROUP.into())),
            ..client::Send::default()
        };
        self.ask(self.correlation, Command::Send, message::encode(&send));
    }

    /// Time for a digest, a lapse of memory, or a death.
    pub(crate) fn on_pause_over(&mut self, scene: &mut Scene) {
        if !self.is_open {
            return;
        }
        if scene.fault(3) {
            self.life += 1;
            (self.link, self.is_open, self.is_in_room) = (None, false, false);
            self.filled.clear();
            return;
        }
        if scene.fault(3) {
            self.is_in_room = false;
            self.filled.clear();
        }
        let (members, hash, version) = (1, mix(self.life), 0);
        let room = RoomDigest { room: GROUP.into(), members, hash, version };
        let mut rooms = if self.is_in_room { vec![room] } else { Vec::new() };
        rooms.extend(self.filled.iter().map(|room| RoomDigest {
            room: room.clone(),
            members,
            hash,
            version,
        }));
        self.say(Kind::Digest, 0, &Digest { rooms, ..Digest::default() });
    }

    /// True if its client is in the room, as it asked to be.
    pub(crate) const fn is_idle(&self) -> bool {
        self.is_in_room
    }
}
