//! Requests of clients: they make and change groups, read, delete and list. One of each device is under way at a time; one without
//! an answer is asked again, as the client library does.

use crate::cells::ConversationTable;
use crate::gateway::{Gateway, ToNode};
use crate::world::{CHAOS_MS, GROUP, PRIVATE, World};
use bytes::Bytes;
use moorline_backend::im::store::{ConversationId, UserId};
use moorline_proto::message::client::{Code, Push, Req, Resp};
use moorline_proto::message::{decode, encode, im};
use moorline_proto::random::Random;
use prost::Message;
use std::collections::{BTreeSet, VecDeque};

/// A group that clients make, and make again when it has ended.
pub(crate) const MADE: &str = "group:made";
/// Requests of each device.
const REQUESTS: u64 = 14;
/// Time after which a request without an answer is asked again, in milliseconds.
const ANSWER_MS: u64 = 2500;

/// Requests of a device.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// Time in milliseconds, method, payload.
    waiting: VecDeque<(u64, &'static str, Bytes)>,
    flight: Option<Flight>,
    /// Events that were pushed, by message id, once each.
    pub(crate) events: BTreeSet<u64>,
    /// Messages that may be taken back: conversation, seq, id.
    pub(crate) messages: Vec<(String, u64, u64)>,
    /// Name of the last profile that was set. `None`: none was.
    profile: Option<String>,
    /// Rule that was set last. `None`: none was.
    pub(crate) who_may_add: Option<i32>,
}

#[derive(Debug)]
struct Flight {
    method: &'static str,
    payload: Bytes,
    correlation: u64,
    /// Time at which it is sent again.
    again_ms: u64,
    tries: u32,
}

impl Requests {
    pub(crate) fn new(random: &mut Random, user: usize, device: usize) -> Self {
        let mut waiting = Vec::new();
        for _ in 0..REQUESTS {
            let at = 500 + random.below(CHAOS_MS - 1000);
            let (method, payload) = request(random, user, device);
            waiting.push((at, method, payload));
        }
        if device == 0 {
            // Two and two, so that somebody may write where only friends do.
            let (method, payload) = relate(format!("user{}", user ^ 1), im::RelationChange::Befriend);
            waiting.push((510, method, payload));
        }
        if device == 0 && user < 2 {
            let members = (0..3).map(|user| format!("user{user}")).collect();
            let create = im::GroupCreateRequest { group: "made".into(), members };
            waiting.push((600, "im.group.create", encode(&create)));
        }
        let (method, payload) = watch();
        let during_faults = 1000 + CHAOS_MS / 12 * (2 * user + device) as u64 / 2;
        waiting.extend([CHAOS_MS + 2500, during_faults].map(|at| (at, method, payload.clone())));
        waiting.sort_by_key(|(at, ..)| *at);
        Self { waiting: waiting.into(), ..Self::default() }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.flight.is_none()
    }

    /// Sends the request under way again at once.
    pub(crate) fn repeat(&mut self, now_ms: u64) {
        if let Some(flight) = &mut self.flight {
            flight.again_ms = now_ms;
        }
    }
}

fn watch() -> (&'static str, Bytes) {
    ("im.presence", encode(&im::PresenceRequest { users: Gateway::uids(), watch: true }))
}

fn relate(user: String, change: im::RelationChange) -> (&'static str, Bytes) {
    let (change, text) = (change.into(), String::new());
    ("im.relation", encode(&im::RelationRequest { user, change, text }))
}

fn request(random: &mut Random, user: usize, device: usize) -> (&'static str, Bytes) {
    let conversation = if random.one_in(2) { GROUP } else { MADE }.to_owned();
    let other = || format!("user{}", random.below(6));
    let mut random_user = other;
    let (first, second) = (random_user(), random_user());
    let change = im::GroupChangeRequest { conversation: conversation.clone(), ..Default::default() };
    match random.below(28) {
        0 | 1 => ("im.group.join", encode(&im::GroupRequest { conversation, after: String::new() })),
        2 => ("im.group.leave", encode(&im::GroupRequest { conversation, after: String::new() })),
        3 => {
            let change = im::GroupChangeRequest { add: vec![first], remove: vec![second], ..change };
            ("im.group.change", encode(&change))
        }
        4 => ("im.group.change", encode(&im::GroupChangeRequest { add: vec![first, second], ..change })),
        5 => ("im.group.change", encode(&im::GroupChangeRequest { remove: vec![first], ..change })),
        6 => {
            let (title, is_silent) = (format!("title {}", random.below(99)), random.one_in(8));
            let by_invitation = random.one_in(2);
            let settings = Some(im::GroupSettings { title, is_silent, by_invitation, ..Default::default() });
            ("im.group.change", encode(&im::GroupChangeRequest { settings, ..change }))
        }
        7 => {
            let role = if random.one_in(2) { im::Role::Admin } else { im::Role::Owner };
            let change = im::GroupChangeRequest { user: first, role: role.into(), ..change };
            ("im.group.change", encode(&change))
        }
        8 | 26 | 27 => {
            let mut pair = [format!("user{user}"), first];
            pair.sort();
            let conversation =
                if random.one_in(3) { conversation } else { format!("c2c:{}:{}", pair[0], pair[1]) };
            ("im.read", encode(&im::ReadRequest { conversation, seq: 1 + random.below(9) }))
        }
        9 => ("im.conversation.delete", encode(&im::ConversationDeleteRequest { conversation, to: 0 })),
        10 if random.one_in(3) => {
            let dissolve = im::GroupRequest { conversation: MADE.into(), after: String::new() };
            ("im.group.dissolve", encode(&dissolve))
        }
        10 => {
            let create = im::GroupCreateRequest { group: "made".into(), members: vec![first, second] };
            ("im.group.create", encode(&create))
        }
        // One device alone: of two at the same time either may be the last.
        13 if device == 0 => {
            let profile = im::Profile { name: format!("name {}", random.below(1000)), ..Default::default() };
            ("im.profile.set", encode(&im::ProfileSetRequest { profile: Some(profile) }))
        }
        13 | 14 => ("im.profile.get", encode(&im::ProfileGetRequest { users: vec![first, second] })),
        16..=20 => {
            let change = match random.below(8) {
                0..=4 => im::RelationChange::Befriend,
                5 => im::RelationChange::Unfriend,
                6 => im::RelationChange::Block,
                _ => im::RelationChange::Unblock,
            };
            relate(first, change)
        }
        // One device alone, as of profiles.
        22 if device == 0 && format!("user{user}") != PRIVATE => {
            let who_may_add = i32::try_from(random.below(3)).expect("small");
            let settings = Some(im::UserSettings { who_may_add });
            ("im.settings.set", encode(&im::SettingsSetRequest { settings }))
        }
        22 | 23 => ("im.settings.get", Bytes::new()),
        24 if random.one_in(2) => {
            let remove = im::DeviceRemoveRequest { device: format!("device{}", 1 - device) };
            ("im.device.remove", encode(&remove))
        }
        24 | 25 => ("im.devices", Bytes::new()),
        21 => ("im.relations", encode(&im::RelationsRequest::default())),
        // Which message is chosen when it is sent.
        11 | 12 => ("im.recall", Bytes::new()),
        _ => ("im.conversations", encode(&im::ConversationsRequest::default())),
    }
}

impl World {
    /// Asks what is due.
    pub(crate) fn request_due(&mut self, device: usize) {
        let now_ms = self.now_ms;
        let it = &mut self.gateway.devices[device];
        let Some((node, session)) = it.session() else { return };
        let requests = &mut it.requests;
        if requests.flight.is_none()
            && requests.waiting.front().is_some_and(|(at, ..)| *at <= now_ms)
            && let Some((_, method, mut payload)) = requests.waiting.pop_front()
        {
            if method == "im.recall" {
                let count = requests.messages.len() as u64;
                if count == 0 {
                    return;
                }
                let at = usize::try_from(self.random.below(count)).expect("few");
                let (conversation, seq, message_id) = requests.messages[at].clone();
                payload = encode(&im::RecallRequest { conversation, seq, message_id });
            }
            requests.flight = Some(Flight { method, payload, correlation: 0, again_ms: now_ms, tries: 0 });
        }
        if requests.flight.as_ref().is_none_or(|flight| flight.again_ms > now_ms) {
            return;
        }
        let correlation = self.gateway.next_correlation(device);
        let it = &mut self.gateway.devices[device];
        let Some(flight) = it.requests.flight.as_mut() else { return };
        if flight.method == "im.relation" {
            let request: im::RelationRequest = decode(&flight.payload).expect("a request");
            if request.change() == im::RelationChange::Block {
                self.gateway.blocked.insert(BTreeSet::from([it.uid.clone(), request.user]));
            }
        }
        (flight.correlation, flight.again_ms) = (correlation, now_ms + ANSWER_MS);
        flight.tries += 1;
        let is_dup = flight.tries > 1;
        let req = Req { id: 1, method: flight.method.into(), payload: flight.payload.clone() };
        self.coverage.requests += u64::from(!is_dup);
        self.tell_node(node, ToNode::Req(device, session, correlation, is_dup, req));
    }

    pub(crate) fn on_request_answer(&mut self, device: usize, correlation: u64, code: Code, resp: &Resp) {
        let (now_ms, wait_ms) = (self.now_ms, 50 + self.random.below(200));
        let flight = &mut self.gateway.devices[device].requests.flight;
        let Some(current) = flight.as_mut().filter(|flight| flight.correlation == correlation) else {
            return;
        };
        match code {
            Code::Ok => {
                let (method, payload) = (current.method, current.payload.clone());
                let is_empty = resp.payload.is_empty();
                *flight = None;
                match method {
                    "im.group.create" => self.coverage.created += 1,
                    "im.group.join" => self.coverage.joined += 1,
                    "im.group.leave" => self.coverage.left += 1,
                    "im.group.change" => self.coverage.changed += 1,
                    "im.group.dissolve" => self.coverage.dissolved += 1,
                    "im.read" => self.coverage.read += 1,
                    "im.conversation.delete" => self.coverage.cleared += 1,
                    "im.recall" => self.coverage.recalled += 1,
                    "im.profile.set" => {
                        self.coverage.profiles += 1;
                        let set: im::ProfileSetRequest = decode(&payload).expect("a request");
                        let name = set.profile.map(|profile| profile.name);
                        self.gateway.devices[device].requests.profile = name;
                    }
                    "im.relation" => self.coverage.related += 1,
                    "im.relations" => self.coverage.relations_listed += u64::from(!is_empty),
                    "im.settings.set" => {
                        self.coverage.settings += 1;
                        let set: im::SettingsSetRequest = decode(&payload).expect("a request");
                        let rule = set.settings.map(|settings| settings.who_may_add);
                        self.gateway.devices[device].requests.who_may_add = rule;
                    }
                    "im.device.remove" => self.coverage.devices_removed += 1,
                    "im.devices" => {
                        let got: im::DevicesResponse = decode(&resp.payload).expect("devices");
                        // The device itself may have been removed in between.
                        assert!(got.devices.iter().all(|it| it.seen_ms > 0), "{got:?}");
                        self.coverage.devices_listed += got.devices.len() as u64;
                    }
                    "im.settings.get" => {
                        let got: im::SettingsGetResponse = decode(&resp.payload).expect("settings");
                        self.coverage.invitations_listed += u64::from(!got.invitations.is_empty());
                        let known = [GROUP, MADE];
                        assert!(got.invitations.iter().all(|id| known.contains(&&**id)), "{got:?}");
                    }
                    "im.presence" => {
                        let got = decode(&resp.payload).expect("presences");
                        self.on_presences(device, got);
                    }
                    "im.profile.get" => self.coverage.profiles_read += u64::from(!is_empty),
                    _ => self.coverage.lists += u64::from(!is_empty),
                }
            }
            Code::Retry => {
                self.coverage.requests_put_off += 1;
                current.again_ms = now_ms + wait_ms;
            }
            Code::NotFound | Code::NotMember | Code::Denied | Code::Conflict => {
                self.coverage.requests_refused += 1;
                let method = current.method;
                *flight = None;
                // Who is barred may have had it done by an earlier try.
                let requests = &mut self.gateway.devices[device].requests;
                match method {
                    "im.profile.set" => requests.profile = None,
                    "im.settings.set" => requests.who_may_add = None,
                    _ => {}
                }
            }
            code => panic!("{}: {code:?} {}", current.method, resp.reason),
        }
    }

    /// Takes an event that was pushed. False: the push is a message.
    pub(crate) fn on_event(&mut self, device: usize, push: &Push) -> bool {
        if push.happened.is_empty() || push.seq > 0 {
            return false;
        }
        let happened: im::Happened = decode(&push.happened).expect("an event");
        if matches!(happened.what, Some(im::happened::What::ReadCounts(_))) {
            return true; // nobody keeps it
        }
        if let Some(im::happened::What::Presence(presence)) = happened.what {
            self.on_presence(device, presence);
            return true;
        }
        self.coverage.event_pushes += 1;
        let is_new = self.gateway.devices[device].requests.events.insert(push.message_id);
        self.coverage.repeated_event_pushes += u64::from(!is_new);
        if is_new && matches!(happened.what, Some(im::happened::What::Invited(_))) {
            let join = im::GroupRequest { conversation: push.conversation.clone(), after: String::new() };
            let waiting = &mut self.gateway.devices[device].requests.waiting;
            waiting.push_front((self.now_ms, "im.group.join", encode(&join)));
            waiting.push_front((self.now_ms, "im.settings.get", Bytes::new()));
        }
        true
    }

    /// Returns an event that a device does not have.
    pub(crate) fn missing_event(&self) -> Option<String> {
        for device in &self.gateway.devices {
            let Some((user, number)) = self.cells.device(&device.uid, &device.name) else { continue };
            for table in self.cells.conversations.values() {
                // The newest settings say what those before said.
                let of = table.row.conversation;
                let told =
                    table.told.iter().filter(|(_, told)| told.users.contains(&user) && !told.is_settings);
                let owed =
                    told.filter(|(order, _)| self.cells.is_owed(&device.uid, &device.name, of, **order));
                for (_, told) in owed.filter(|(_, told)| told.origin != (user, number)) {
                    let Some(body) = &told.event else { continue };
                    let push = Push::decode(body.clone()).expect("a Push");
                    if !device.requests.events.contains(&push.message_id) {
                        let (uid, name, id) = (&device.uid, &device.name, &table.row.id);
                        return Some(format!("{uid}/{name} lacks an event of {id}: {push:?}"));
                    }
                }
            }
        }
        None
    }

    /// Plays all events of each group: that gives its members, and each message went to the members of then.
    pub(crate) fn check_groups(&self) {
        for table in self.cells.conversations.values().filter(|table| table.row.is_group) {
            let uid = |user: &UserId| self.cells.users[user].uid.to_string();
            let id = &table.row.id;
            let mut members = BTreeSet::new();
            if **id == *GROUP {
                members.extend(Gateway::uids().into_iter().take(Gateway::seeded()));
            }
            for (order, told) in &table.told {
                let users: BTreeSet<String> = told.users.iter().map(uid).collect();
                assert_eq!(users.len(), told.users.len(), "{id} {order} went twice to somebody");
                let mut receivers = members.clone();
                if let Some(event) = &told.event {
                    let push = Push::decode(event.clone()).expect("a Push");
                    let happened: im::Happened = decode(&push.happened).expect("an event");
                    match happened.what {
                        Some(im::happened::What::Group(changed)) => {
                            if members.is_empty() {
                                members.insert(changed.by);
                            }
                            members.extend(changed.added);
                            receivers.extend(members.iter().cloned());
                            changed.removed.iter().for_each(|uid| _ = members.remove(uid));
                        }
                        Some(im::happened::What::Dissolved(_)) => members.clear(),
                        _ => {}
                    }
                }
                if told.is_for_all {
                    assert_eq!(users, receivers, "receivers of {order} in {id}");
                }
            }
            let stored: BTreeSet<_> = table.row.members.iter().map(|it| it.uid.to_string()).collect();
            assert_eq!(stored, members, "members of {id}");
            assert_eq!(table.row.is_dissolved, members.is_empty() && !table.told.is_empty(), "{id}");
            let owners = table.row.members.iter().filter(|it| it.member.role() == im::Role::Owner).count();
            assert_eq!(owners, usize::from(!members.is_empty()), "{id} has one owner");
        }
    }

    /// The last profile that was set is stored.
    pub(crate) fn check_profiles(&self) {
        for device in &self.gateway.devices {
            if let Some(name) = &device.requests.profile {
                let stored = self.cells.profile(&device.uid).expect("a profile");
                let stored: im::Profile = decode(&stored).expect("a profile");
                assert_eq!((&stored.user, &stored.name), (&device.uid, name));
            }
        }
    }

    /// The list of each user names the conversations whose member the user is.
    pub(crate) fn check_lists(&self) {
        for (user, account) in &self.cells.users {
            let listed: BTreeSet<ConversationId> = account.listing.keys().copied().collect();
            let tables = self.cells.conversations.values();
            // Nobody was told yet of a group that was made by hand. Two users with a relation may have said nothing.
            let is_there =
                |it: &&ConversationTable| !it.messages.is_empty() || it.row.is_group && !it.told.is_empty();
            let own = tables.filter(|it| it.row.member(*user).is_some()).filter(is_there);
            let own: BTreeSet<_> = own.map(|table| table.row.conversation).collect();
            let seeded = self.cells.seeded();
            let without = |set: &BTreeSet<ConversationId>| -> BTreeSet<_> {
                set.iter().filter(|of| **of != seeded).copied().collect()
            };
            assert_eq!(without(&listed), without(&own), "the list of {}", account.uid);
        }
    }
}
