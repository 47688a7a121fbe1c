//! Listens in between the link host and `Im`: what is asked, answered, pushed and acknowledged, for the ledger.

use crate::backend::Device;
use crate::ledger::Ledger;
use crate::scene::Scene;
use moorline_backend::im::Output;
use moorline_backend::server::{Event, LinkId, PushId, ReplyTo, RoomNumber, SessionId, Up};
use moorline_proto::frame::Command;
use moorline_proto::message::backend::Outcome;
use moorline_proto::message::client::{self, Code, Req};
use moorline_proto::message::decode;
use std::collections::{BTreeMap, BTreeSet};

/// The user that speaks for the system, by a gateway of its own.
pub(crate) const SYSTEM: &str = "system";

/// One login as the backend knows it.
#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) device: Device,
    pub(crate) version: u64,
    pub(crate) handle: u64,
}

/// Waiting requests.
struct Asker {
    device: Device,
    send: Option<client::Send>,
}

pub(crate) struct Witness {
    pub(crate) ledger: Ledger,
    logins: BTreeMap<SessionId, Login>,
    askers: BTreeMap<(LinkId, u64), Asker>,
    /// Pushes without an outcome.
    outstanding: BTreeSet<(PushId, SessionId)>,
    pushed: BTreeSet<(Device, String, u64)>,
    /// Members of the rooms of groups.
    rooms: BTreeMap<RoomNumber, BTreeSet<SessionId>>,
}

impl Witness {
    pub(crate) fn new(users: &[&str]) -> Self {
        Self {
            ledger: Ledger::new(users),
            logins: BTreeMap::new(),
            askers: BTreeMap::new(),
            outstanding: BTreeSet::new(),
            pushed: BTreeSet::new(),
            rooms: BTreeMap::new(),
        }
    }

    /// Another backend takes the place of this one.
    pub(crate) fn on_death(&mut self) {
        self.logins.clear();
        self.askers.clear();
        self.outstanding.clear();
        self.rooms.clear();
    }

    /// Hears an event on its way to `Im`. `is_overdue`: time brought it, no frame did.
    pub(crate) fn on_event(&mut self, scene: &mut Scene, event: &Event, is_overdue: bool) {
        match event {
            Event::ConnUp { session, login, is_new, .. } => {
                let device = (login.uid.clone(), login.device.clone());
                if login.uid != SYSTEM {
                    self.ledger.on_device(&device);
                }
                let (version, handle) = (login.login_version, login.handle);
                let known = self.logins.insert(*session, Login { device, version, handle });
                assert_eq!(known.is_none(), *is_new, "{session:?} is new once");
                self.outstanding.retain(|(_, of)| of != session);
            }
            Event::ConnDown { session, .. } => {
                assert!(self.logins.remove(session).is_some(), "{session:?} ends once");
                scene.coverage.expired_sessions += u64::from(is_overdue);
                self.outstanding.retain(|(_, of)| of != session);
            }
            Event::GatewayDown { .. } => scene.coverage.expired_gateways += u64::from(is_overdue),
            Event::Pushed { session, push, outcome } => {
                assert!(self.logins.contains_key(session) || is_overdue, "{session:?} has ended");
                if *outcome == Outcome::Queued {
                    scene.coverage.queued_pushes += 1;
                } else {
                    self.outstanding.remove(&(*push, *session));
                }
                scene.coverage.full_pushes += u64::from(is_overdue && *outcome == Outcome::Full);
            }
            Event::RoomLost { room } => {
                scene.coverage.group_rooms_lost += 1;
                self.rooms.remove(room);
            }
            Event::Up(up) => self.on_up(scene, up),
            _ => {}
        }
    }

    fn on_up(&mut self, scene: &mut Scene, up: &Up) {
        let device = self.logins[&up.session].device.clone();
        let Some(reply) = &up.reply else { return };
        if up.command == Command::Req {
            let req = decode::<Req>(&up.body).ok();
            scene.coverage.pulls += u64::from(req.is_some_and(|req| req.method == "im.pull"));
        }
        let send = (up.command == Command::Send).then(|| decode(&up.body).ok()).flatten();
        let older = self.askers.insert((reply.link(), reply.correlation()), Asker { device, send });
        assert!(older.is_none(), "a question is asked once");
    }

    /// The dice answer RETRY in the place of `Im`.
    pub(crate) fn on_put_off(&mut self, reply: &ReplyTo) {
        self.answered(reply);
    }

    fn answered(&mut self, reply: &ReplyTo) -> Asker {
        let asker = self.askers.remove(&(reply.link(), reply.correlation()));
        asker.expect("each question has one answer")
    }

    /// Hears what `Im` says. True: an answer that may come late.
    pub(crate) fn on_output(&mut self, scene: &mut Scene, output: &Output) -> bool {
        let asker = match output {
            Output::AnswerSend { reply, code, answer, .. } => {
                let mut asker = self.answered(reply);
                if let Some(send) = asker.send.take() {
                    scene.coverage.duplicate_uplinks += u64::from(*code == Code::Dup);
                    self.ledger.on_answer(&asker.device, send, *code, answer);
                }
                asker
            }
            Output::AnswerReq { reply, .. }
            | Output::AnswerSub { reply, .. }
            | Output::Refuse { reply, .. } => self.answered(reply),
            // Who enters before the answer must not enter after he left.
            Output::EnterRoom { reply, .. } => {
                self.answered(reply);
                return false;
            }
            Output::FillRoom { room, sessions } => {
                scene.note(|| format!("  fill {room:?} {sessions:?}"));
                self.rooms.insert(*room, sessions.iter().copied().collect());
                return false;
            }
            Output::ChangeRoom { room, enter, leave } => {
                scene.note(|| format!("  change {room:?} {enter:?} {leave:?}"));
                if let Some(members) = self.rooms.get_mut(room) {
                    leave.iter().for_each(|session| _ = members.remove(session));
                    members.extend(enter);
                }
                return false;
            }
            Output::CloseRoom { room } => {
                scene.note(|| format!("  close {room:?}"));
                self.rooms.remove(room);
                return false;
            }
            Output::PushToRoom { room, except, spec, body, .. } => {
                scene.coverage.group_room_pushes += 1;
                let members = self.rooms.get(room).into_iter().flatten();
                let members: Vec<_> = members.filter(|it| Some(**it) != *except).copied().collect();
                scene.note(|| format!("  to room {room:?} except {except:?} {:?}", spec.command));
                if spec.command == Command::Push {
                    self.on_push(scene, &members, body);
                }
                return false;
            }
            Output::Push { push, sessions, room, spec, body } => {
                if spec.command == Command::Push {
                    self.on_push(scene, sessions, body);
                } else {
                    scene.note(|| format!("  notify {push:?} {body:?} to {sessions:?}"));
                }
                // A NOTIFY in the place of a message has an outcome too.
                // Those that follow a room are lost with its link.
                if spec.want_ack && room.is_none() {
                    let known = sessions.iter().filter(|session| self.logins.contains_key(*session));
                    self.outstanding.extend(known.map(|session| (*push, *session)));
                }
                return false;
            }
            _ => return false,
        };
        asker.device.0 != SYSTEM
    }

    fn on_push(&mut self, scene: &mut Scene, sessions: &[SessionId], body: &bytes::Bytes) {
        let message: client::Push = decode(body).expect("a PUSH");
        scene.note(|| format!("  push {} {} to {sessions:?}", message.conversation, message.seq));
        let stored = self.ledger.stored(&message.conversation, message.seq).map(|stored| &stored.push);
        // That the group was made is stored too, but is not a message.
        let is_said = message.happened.is_empty();
        assert!(!is_said || stored == Some(&message), "what is pushed is what was stored");
        scene.coverage.shared_pushes += u64::from(sessions.len() > 1);
        for session in sessions {
            let Some(login) = self.logins.get(session) else { continue };
            let name = (login.device.clone(), message.conversation.clone(), message.seq);
            scene.coverage.repeated_pushes += u64::from(!self.pushed.insert(name));
        }
    }

    /// True if a session is one of an application.
    pub(crate) fn is_honest(&self, session: SessionId) -> bool {
        self.logins.get(&session).is_some_and(|login| login.device.0 != SYSTEM)
    }

    /// Some login of an application.
    pub(crate) fn somebody(&self, scene: &mut Scene) -> Option<(SessionId, Login)> {
        let is_honest = |login: &Login| self.ledger.devices().any(|device| *device == login.device);
        let logins: Vec<_> = self.logins.iter().filter(|(_, login)| is_honest(login)).collect();
        let (session, login) = logins.get(scene.index(logins.len().max(1)))?;
        Some((**session, (*login).clone()))
    }

    /// Sessions of applications.
    pub(crate) fn sessions(&self) -> usize {
        self.logins.values().filter(|login| login.device.0 != SYSTEM).count()
    }

    /// True if every push has its outcome.
    pub(crate) fn is_idle(&self) -> bool {
        self.outstanding.is_empty()
    }
}
