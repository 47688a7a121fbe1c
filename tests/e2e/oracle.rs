//! People with several devices talk, take back, read, join and leave, in conversations of every kind, while applications
//! end, the backend and the gateway are killed: in the end every device shows what the oracle says, and everything that
//! was acknowledged is there.
//!
//! The groups move between inboxes and being read by cursor: one by the number of its members, one by that of its messages.

use crate::gateway::{Backend, Gateway};
use crate::process::{StoreFolder, TempFile};
use crate::{PATIENCE, soak, until};
use moorline::sys::clock;
use moorline_proto::ids::MessageKey;
use moorline_proto::message::client::{Code, Push};
use moorline_proto::message::decode;
use moorline_proto::message::im::Happened;
use moorline_proto::random::Random;
use moorline_sdk::Platform;
use moorline_sdk::client::{CallError, Client, Notice, Pending};
use moorline_sdk::core::{
    Backoff, ConversationEvent, Message, Receipt, RequestError, SendFailure, Target, Tuning,
};
use moorline_sdk::im::Conversation;
use moorline_sdk::store::FileStore;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

const USERS: usize = 5;
/// Number of devices of each user.
const DEVICES: usize = 2;
/// Three members, who talk too much for inboxes.
const BUSY: &str = "group:busy";
/// Everybody, too many for inboxes; people join and leave.
const OPEN: &str = "group:open";
/// Members of a group that goes through inboxes, and entries it may make there in an hour.
const LIMITS: [&str; 2] = ["im.fanout_members_max=3", "im.fanout_entries_per_hour=12"];

/// A conversation, and a seq there.
type Place = (String, u64);

/// A conversation as its user is told, and the seqs that hold a message for this user.
type Listed = (Conversation, BTreeSet<u64>);

/// State that an application shows and keeps over its own restarts.
#[derive(Default)]
struct View {
    /// In the order in which they came.
    messages: BTreeMap<String, Vec<(u64, String)>>,
    recalled: BTreeSet<Place>,
    /// Read marks of users.
    reads: BTreeMap<(String, String), u64>,
    /// True after a Resync: the application must ask for the state.
    has_to_ask: bool,
    /// Groups of whose changes it was told: they were small then.
    told: BTreeSet<String>,
    /// All that came, for whoever looks into a failure.
    heard: Vec<String>,
}

impl View {
    fn on_read(&mut self, conversation: &str, uid: &str, seq: u64) {
        let known = self.reads.entry((conversation.to_owned(), uid.to_owned())).or_default();
        *known = seq.max(*known);
    }

    fn take(&mut self, message: &Message) {
        let conversation = &*message.conversation;
        self.heard.push(format!(
            "{} {} {:?} {} {:?}",
            message.conversation, message.seq, message.sender_device, message.time_ms, message.happened
        ));
        if message.seq > 0 {
            let text = String::from_utf8(message.payload.to_vec()).expect("text");
            self.messages.entry(conversation.to_owned()).or_default().push((message.seq, text));
            // Who takes something back has read nothing for that.
            let recalled = match message.happened.as_deref() {
                Some(ConversationEvent::Recalled(it)) => it.seq,
                _ => message.seq,
            };
            if recalled == message.seq {
                self.on_read(conversation, &message.sender, message.seq);
            }
        }
        match message.happened.as_deref() {
            Some(ConversationEvent::Recalled(it)) => {
                _ = self.recalled.insert((conversation.to_owned(), it.seq));
            }
            Some(ConversationEvent::Read(it)) => self.on_read(conversation, &it.user, it.seq),
            Some(ConversationEvent::Resync(_)) => self.has_to_ask = true,
            Some(ConversationEvent::Group(_)) => _ = self.told.insert(conversation.to_owned()),
            _ => {}
        }
    }
}

struct Device {
    uid: String,
    name: String,
    file: PathBuf,
    client: Option<Client>,
    view: Arc<Mutex<View>>,
}

impl Device {
    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().expect("nobody panics with it")
    }
}

/// Something a device has sent.
struct Sent {
    device: usize,
    text: String,
    pending: Pending,
}

impl Sent {
    fn receipt(&self) -> Option<Receipt> {
        self.pending.result()?.ok()
    }
}

struct World {
    random: Random,
    folder: StoreFolder,
    sets: Vec<String>,
    /// `None` only while another takes its place.
    backend: Option<Backend>,
    gateway: Option<Gateway>,
    devices: Vec<Device>,
    sent: Vec<Sent>,
    recalls: BTreeSet<Place>,
    /// Read mark that a device was told for a user.
    reads: BTreeMap<(String, String), u64>,
    has_left: BTreeSet<String>,
    /// Conversations that some device was told to pull.
    notified: BTreeSet<String>,
}

fn uid(user: usize) -> String {
    format!("u{user}")
}

/// The seq that a message takes back.
fn recalled(push: &Push) -> Option<u64> {
    let happened: Happened = decode(&push.happened).expect("a ConversationEvent");
    match happened.what? {
        ConversationEvent::Recalled(it) => Some(it.seq),
        _ => None,
    }
}

/// True if the backend refused.
fn is_refused(result: Result<(), CallError>, allowed: &[Code]) -> bool {
    match result {
        Ok(()) => false,
        Err(CallError::Failed(RequestError::Refused { code, .. })) if allowed.contains(&code) => true,
        Err(error) => panic!("{error}"),
    }
}

impl World {
    fn new(seed: u64, inbox: &str) -> Self {
        let folder = StoreFolder::new();
        let mut sets: Vec<String> = LIMITS.map(str::to_owned).to_vec();
        sets.extend([inbox.to_owned(), folder.set(), "listen=127.0.0.1:0".to_owned()]);
        let mut world = Self {
            random: Random::new(seed),
            folder,
            sets,
            backend: None,
            gateway: None,
            devices: Vec::new(),
            sent: Vec::new(),
            recalls: BTreeSet::new(),
            reads: BTreeMap::new(),
            has_left: BTreeSet::new(),
            notified: BTreeSet::new(),
        };
        world.start_backend();
        world.start_gateway("127.0.0.1:0");
        for index in 0..USERS * DEVICES {
            let file = TempFile::new("").path().with_extension("device");
            let (uid, name) = (uid(index / DEVICES), format!("d{}", index % DEVICES));
            world.devices.push(Device { uid, name, file, client: None, view: Arc::default() });
            // Every device is known from the start: what it misses is owed to it.
            world.open(index);
        }
        let first = world.devices[0].client.as_ref().expect("open");
        let all: Vec<String> = (0..USERS).map(uid).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        assert_eq!(first.create_group("busy", &all[..3], PATIENCE).expect("made"), BUSY);
        assert_eq!(first.create_group("open", &all, PATIENCE).expect("made"), OPEN);
        world
    }

    fn start_backend(&mut self) {
        let sets: Vec<&str> = self.sets.iter().map(String::as_str).collect();
        let backend = Backend::start_with(&sets);
        *self.sets.last_mut().expect("where it listens") = format!("listen={}", backend.address);
        self.backend = Some(backend);
    }

    fn start_gateway(&mut self, address: &str) {
        let address = format!("listener.address={address}");
        let sets = [&address, "limits.user_rate=0", "backend.up_timeout=2s"];
        self.gateway = Some(Gateway::start(self.backend.as_ref().expect("one runs"), &sets));
    }

    fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.random.below(count as u64)).expect("small")
    }

    /// An application starts, with what an earlier life of it has left.
    fn open(&mut self, index: usize) {
        let device = &mut self.devices[index];
        if device.client.is_some() {
            return;
        }
        device.view().heard.push("open".into());
        let endpoint = format!("tcp://{}", self.gateway.as_ref().expect("one runs").listener);
        let backoff = Backoff { base: Duration::from_millis(20), cap: Duration::from_millis(200) };
        let view = Arc::clone(&device.view);
        // A process that another test is starting has a copy of every file, and its lock, for a moment.
        let store = until("nobody else has it", || FileStore::open(&device.file).ok());
        let client = Client::builder(&endpoint)
            .user(&device.uid)
            .device(&device.name, Platform::Linux)
            .tuning(Tuning { backoff, send_timeout: Duration::from_secs(3), ..Tuning::default() })
            .store(store)
            .on_message(move |message| view.lock().expect("nobody panics with it").take(message))
            .build()
            .expect("starts");
        until("the login", || client.is_logged_in().then_some(()));
        for pending in client.restored() {
            let sent = self.sent.iter_mut().find(|sent| sent.pending.key() == pending.key());
            sent.expect("only what was sent is sent").pending = pending.clone();
        }
        device.client = Some(client);
        let is_closed =
            |sent: &Sent| sent.device == index && sent.pending.result() == Some(Err(SendFailure::Closed));
        assert!(!self.sent.iter().any(is_closed), "what has no result is sent by the next life");
    }

    /// A device that runs.
    fn running(&mut self) -> Option<usize> {
        let index = self.below(self.devices.len());
        self.devices[index].client.is_some().then_some(index)
    }

    fn send(&mut self) {
        let Some(device) = self.running() else { return };
        let target = match self.below(10) {
            0..3 => Target::group("busy"),
            3..6 => Target::group("open"),
            _ => Target::user(&uid(self.below(USERS))),
        };
        let number = self.sent.len();
        let (text, key) = (format!("text {number}"), MessageKey((number as u128).to_be_bytes()));
        let client = self.devices[device].client.as_ref().expect("it runs");
        let pending = client.send_with_key(key, target, 1, text.clone()).expect("taken");
        self.sent.push(Sent { device, text, pending });
    }

    /// Chooses one of the user's newest stored messages; few, so that devices choose the same one.
    fn stored(&mut self, of: Option<&str>) -> Option<Receipt> {
        let devices = &self.devices;
        let is_theirs = |sent: &&Sent| of.is_none_or(|uid| devices[sent.device].uid == uid);
        let newest = self.sent.iter().rev().filter(is_theirs).filter_map(Sent::receipt).take(3);
        let newest: Vec<Receipt> = newest.collect();
        let at = self.below(newest.len().max(1));
        newest.into_iter().nth(at)
    }

    fn recall(&mut self) {
        let Some(device) = self.running() else { return };
        let own = self.devices[device].uid.clone();
        let Some(it) = self.stored(Some(&own)) else { return };
        let client = self.devices[device].client.as_ref().expect("it runs");
        let result = client.recall(&it.conversation, it.seq, it.message_id, PATIENCE);
        if !is_refused(result, &[Code::NotMember, Code::NotFound]) {
            let place = (it.conversation.to_string(), it.seq);
            self.devices[device].view().recalled.insert(place.clone());
            self.recalls.insert(place);
        }
    }

    fn read(&mut self) {
        let (Some(device), Some(it)) = (self.running(), self.stored(None)) else { return };
        let own = self.devices[device].uid.clone();
        let client = self.devices[device].client.as_ref().expect("it runs");
        let result = client.read(&it.conversation, it.seq, PATIENCE);
        if !is_refused(result, &[Code::NotMember, Code::NotFound]) {
            self.devices[device].view().on_read(&it.conversation, &own, it.seq);
            let known = self.reads.entry((it.conversation.to_string(), own)).or_default();
            *known = it.seq.max(*known);
        }
    }

    fn join_or_leave(&mut self) {
        let Some(device) = self.running() else { return };
        let own = self.devices[device].uid.clone();
        let client = self.devices[device].client.as_ref().expect("it runs");
        let is_member = client.conversations(PATIENCE).expect("listed").iter().any(|it| it.id == OPEN);
        if is_member {
            client.leave(OPEN, PATIENCE).expect("a member");
            self.has_left.insert(own);
        } else {
            client.join(OPEN, PATIENCE).expect("anybody may");
        }
    }

    fn note_notices(&mut self, device: usize) {
        let client = self.devices[device].client.as_ref().expect("it runs");
        for notice in client.notices().try_iter() {
            if let Notice::New { conversation, .. } = notice {
                self.notified.insert(conversation.to_string());
            }
        }
    }

    fn step(&mut self) {
        match self.below(100) {
            0..54 => self.send(),
            54..68 => self.recall(),
            68..78 => self.read(),
            78..83 => self.join_or_leave(),
            83..87 => {
                if let Some(device) = self.running() {
                    self.note_notices(device);
                    self.devices[device].client = None;
                }
            }
            87..94 => {
                let device = self.below(self.devices.len());
                self.open(device);
            }
            94..97 => {
                let waiting = self.sent.iter().find(|sent| sent.pending.result().is_none());
                waiting.map(|sent| sent.pending.wait_durable(PATIENCE).ok());
            }
            97..99 => {
                self.backend.take().expect("one runs").kill();
                self.start_backend();
            }
            _ => {
                let mut gateway = self.gateway.take().expect("one runs");
                gateway.process.kill();
                self.start_gateway(&gateway.listener.to_string());
            }
        }
    }

    /// Everybody comes online, and every send has its result: then every device shows what it should.
    fn settle(&mut self, seed: u64) {
        (0..self.devices.len()).for_each(|index| self.open(index));
        let mut acknowledged: BTreeMap<Place, (String, u64)> = BTreeMap::new();
        for sent in &self.sent {
            let result = until("every send has its result", || sent.pending.result());
            match result {
                Ok(receipt) => {
                    let place = (receipt.conversation.to_string(), receipt.seq);
                    let before = acknowledged.insert(place, (sent.text.clone(), receipt.message_id));
                    assert_eq!(before, None, "no seq is given twice: {receipt:?}");
                }
                Err(SendFailure::Refused { code: Code::NotMember, .. }) => {}
                Err(failure) => panic!("{:?}: {failure}", sent.text),
            }
        }
        let mut truth = BTreeMap::new();
        let listed: Vec<Vec<Listed>> = (0..USERS).map(|user| self.look(user, &mut truth)).collect();
        self.judge_truth(&truth, &acknowledged);
        for index in 0..self.devices.len() {
            let listed = &listed[index / DEVICES];
            self.note_own(index, &truth);
            let deadline = clock::now() + PATIENCE;
            while let Some(complaint) = self.complaint(index, listed, &truth, &acknowledged) {
                assert!(clock::now() < deadline, "{}/{}: {complaint}", index / DEVICES, index % DEVICES);
                std::thread::park_timeout(crate::LOOK);
            }
        }
        println!(
            "seed {seed}: {} sent, {} acknowledged, {} taken back, in {} conversations",
            self.sent.len(),
            acknowledged.len(),
            self.recalls.len(),
            truth.keys().map(|(conversation, _)| conversation).collect::<BTreeSet<_>>().len()
        );
    }

    /// The conversations of a user, and all that is to be read there.
    fn look(&self, user: usize, truth: &mut BTreeMap<Place, Push>) -> Vec<Listed> {
        let client = self.devices[user * DEVICES].client.as_ref().expect("open");
        let listed = client.conversations(PATIENCE).expect("listed");
        let look = |it: Conversation| {
            let (mut from, mut unread, mut seqs) = (1, 0, BTreeSet::new());
            while from <= it.latest {
                let page = client.pull(&it.id, from, it.latest, 0, PATIENCE).expect("a page");
                let last = page.messages.last().map_or(0, |push| push.seq);
                let voids = page.voids.iter().map(|range| range.to).max().unwrap_or(0);
                from = last.max(voids) + 1;
                for push in page.messages {
                    seqs.insert(push.seq);
                    unread += u32::from(push.seq > it.read && push.happened.is_empty());
                    let known = truth.entry((it.id.clone(), push.seq)).or_insert_with(|| push.clone());
                    assert_eq!(*known, push, "one message for all who see it");
                }
            }
            assert_eq!(it.unread, unread, "of {} for {}", it.id, uid(user));
            (it, seqs)
        };
        listed.into_iter().map(look).collect()
    }

    /// Nothing is missing, nothing is there that nobody said, nothing twice.
    fn judge_truth(&self, truth: &BTreeMap<Place, Push>, acknowledged: &BTreeMap<Place, (String, u64)>) {
        for (place, (text, id)) in acknowledged {
            let Some(push) = truth.get(place) else {
                assert_eq!(place.0, OPEN, "{place:?} was acknowledged and is not there");
                continue; // from before anybody who is in it now
            };
            assert_eq!(push.message_id, *id, "{place:?}");
            let is_recalled = self.recalls.contains(place);
            assert_eq!(push.payload, if is_recalled { "" } else { text }, "{place:?}");
        }
        for (place, push) in truth {
            let is_said = acknowledged.contains_key(place);
            assert!(is_said || recalled(push).is_some(), "{push:?} was refused, or said twice");
        }
        let mut last: Option<&Place> = None;
        for place in truth.keys().filter(|place| place.0 != OPEN) {
            let next = last.filter(|last| last.0 == place.0).map_or(1, |last| last.1 + 1);
            assert_eq!(place.1, next, "dense from 1: {place:?}");
            last = Some(place);
        }
    }

    /// A device is not notified of its own requests.
    fn note_own(&self, index: usize, truth: &BTreeMap<Place, Push>) {
        let device = &self.devices[index];
        for (place, push) in truth {
            let is_said = recalled(push).is_none_or(|seq| seq == place.1);
            if is_said && push.sender == device.uid && push.sender_device == device.name {
                device.view().on_read(&place.0, &device.uid, place.1);
            }
        }
    }

    /// Differences between a device's view and the oracle's.
    fn complaint(
        &self,
        index: usize,
        listed: &[Listed],
        truth: &BTreeMap<Place, Push>,
        acknowledged: &BTreeMap<Place, (String, u64)>,
    ) -> Option<String> {
        let device = &self.devices[index];
        let view = device.view();
        for (conversation, messages) in &view.messages {
            assert!(
                messages.is_sorted_by(|a, b| a.0 < b.0),
                "{conversation}: once, in order: {messages:?} {:#?}",
                view.heard
            );
            for (seq, text) in messages.iter().filter(|(_, text)| !text.is_empty()) {
                let said = acknowledged.get(&(conversation.clone(), *seq)).map(|(text, _)| text);
                assert_eq!(said, Some(text), "{conversation} {seq}");
            }
        }
        for (it, seqs) in listed {
            let shown: BTreeSet<u64> =
                view.messages.get(&it.id).into_iter().flatten().map(|(seq, _)| *seq).collect();
            for seq in seqs {
                let place = (it.id.clone(), *seq);
                let push = &truth[&place];
                let is_own = push.sender == device.uid && push.sender_device == device.name;
                if !is_own && !shown.contains(seq) {
                    return Some(format!(
                        "does not show {} {seq} of {}: {shown:?} {push:?} {:#?}",
                        it.id, it.latest, view.heard
                    ));
                }
                if self.recalls.contains(&place) && !view.recalled.contains(&place) {
                    return Some(format!("shows {place:?}, which was taken back"));
                }
            }
            if it.id == OPEN && self.has_left.contains(&device.uid) {
                continue; // a new membership begins with nothing read
            }
            let said = truth.iter().filter(|(place, push)| {
                let is_said = recalled(push).is_none_or(|seq| seq == place.1);
                is_said && place.0 == it.id && push.sender == device.uid
            });
            let said = said.map(|(place, _)| place.1).max().unwrap_or(0);
            let asked = self.reads.get(&(it.id.clone(), device.uid.clone())).copied().unwrap_or(0);
            assert_eq!(it.read, said.max(asked), "what {} has read of {}", device.uid, it.id);
            let of = |uid: &str| view.reads.get(&(it.id.clone(), uid.to_owned())).copied().unwrap_or(0);
            let (a, b) = it.id.strip_prefix("c2c:").and_then(|it| it.split_once(':')).unwrap_or_default();
            let peer = if a == device.uid { b } else { a };
            let has_peer_read = it.peer_read == 0 || of(peer) == it.peer_read;
            if !view.has_to_ask && (of(&device.uid) != it.read || !has_peer_read) {
                let known = (of(&device.uid), of(peer));
                return Some(format!(
                    "knows {} to be read up to {known:?}, not {it:?}: {:#?}",
                    it.id, view.heard
                ));
            }
        }
        None
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for device in &mut self.devices {
            device.client = None;
            std::fs::remove_file(&device.file).ok();
        }
    }
}

impl World {
    /// The store agrees with itself while the backend has it open.
    fn verify(&self) {
        let (code, out, said) = crate::process::run(&["backend", "verify", "--set", &self.folder.set()]);
        assert!(code == Some(0) && out.contains("problems 0"), "{out}{said}");
    }
}

fn run(inbox: &str) {
    let (first, time) = (soak::seed(), soak::time(0));
    let (mut notified, mut told) = (BTreeSet::new(), BTreeSet::new());
    for seed in first..first + 3 {
        let (begun, mut steps) = (clock::now(), 0);
        let mut world = World::new(seed, inbox);
        while steps < 400 || clock::now().saturating_since(begun) < time {
            world.step();
            steps += 1;
        }
        world.settle(seed);
        world.verify();
        (0..world.devices.len()).for_each(|device| world.note_notices(device));
        notified.append(&mut world.notified);
        world.devices.iter().for_each(|device| told.append(&mut device.view().told));
    }
    assert!(notified.contains(BUSY) && notified.contains(OPEN), "both were read by cursor: {notified:?}");
    assert!(told.contains(BUSY) && told.contains(OPEN), "and both went through inboxes: {told:?}");
}

#[test]
fn every_device_shows_what_the_oracle_says() {
    run("im.inbox_entries_max=10000");
}

#[test]
fn so_do_devices_whose_inbox_overflows() {
    run("im.inbox_entries_max=20");
}
