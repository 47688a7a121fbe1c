//! The executor of the child's table: performs its actions, and feeds it their results and the parent's messages.

use super::super::adopt::{Inherited, Warm};
use super::super::assembly::{Gateway, Prepared};
use super::super::launch::{End, Parked};
use super::super::{Config, GatewayError, places};
use super::bodies::Taken;
use super::channel::{ControlChannel, Message, Received};
use super::child::{Action, Input, State, Transition};
use super::commit_word::{CLAIM, CommitWord, TAKE};
use super::history::{restart_of, seconds};
use super::{OLD, VARIABLE, previous};
use crate::admin::{Restart, Step};
use crate::config::EMBEDDED_ADVICE;
use crate::failpoint;
use crate::reactor::Holder;
use crate::snapshot::{AddressRecord, GatewayHead, Item, SectionKind, Snapshot, SocketRef};
use crate::sys::executable::Executable;
use crate::sys::volunteer::Volunteer;
use crate::sys::{clock, memory, sockets};
use bytes::Bytes;
use moorline_net::thread;
use moorline_net::tls::warm_up;
use moorline_proto::time::Instant;
use nix::unistd::{Pid, getppid};
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Time in which a killed parent ends: its descriptors close before its process is gone.
const DYING_MAX: Duration = Duration::from_secs(2);
/// Interval at which the end of the parent is looked for.
const DYING_LOOK: Duration = Duration::from_millis(1);

/// Descriptors with which the parent starts this process.
pub(in crate::gateway) struct HandoverFds {
    /// End of the control channel.
    channel: UnixStream,
    /// File of the commit word.
    word: OwnedFd,
    /// File of the snapshot, which the parent seals when it has written it.
    snapshot: File,
    /// Sealed list of the sockets that were open when this process started.
    sockets: File,
    /// All other inherited descriptors.
    inherited: HashSet<RawFd>,
    parent: Parent,
    /// `None`: the system does not let this process volunteer.
    volunteer: Option<Volunteer>,
    /// Files of bodies that wait for clients.
    bodies: Taken,
    /// The last program of this series that was another one.
    pub(in crate::gateway) previous: Option<Executable>,
}

impl HandoverFds {
    /// Reads the environment; `None`: this process was not started by a hot restart.
    pub(in crate::gateway) fn read() -> Result<Option<Self>, GatewayError> {
        let Ok(value) = std::env::var(VARIABLE) else { return Ok(None) };
        let fds: Vec<RawFd> = value.split(',').filter_map(|fd| fd.parse().ok()).collect();
        let [channel, word, snapshot, list] = fds[..] else {
            let problem =
                format!("the environment variable {VARIABLE} = {value:?} does not name four descriptors");
            return Err(GatewayError::Takeover(problem));
        };
        let take = |fd| sockets::take(fd).map_err(GatewayError::system("take an inherited descriptor"));
        let (channel, word, snapshot, list) = (take(channel)?, take(word)?, take(snapshot)?, take(list)?);
        let open = sockets::open_fds().map_err(GatewayError::system("list the inherited descriptors"))?;
        let mut inherited = open.into_iter().filter(|fd| !fds.contains(fd)).collect();
        let parent = Parent::find(&mut inherited);
        let previous = previous::take(&mut inherited, parent.pid.as_raw());
        let bodies = Taken::take(&mut inherited, parent.pid.as_raw());
        let (channel, snapshot, sockets) = (channel.into(), snapshot.into(), list.into());
        let volunteer = Volunteer::step_forward();
        let volunteer = volunteer
            .inspect_err(|error| tracing::warn!(%error, "cannot be the first to end when memory is short"))
            .ok();
        failpoint::reach("new.started");
        Ok(Some(Self { channel, word, snapshot, sockets, inherited, parent, volunteer, bodies, previous }))
    }

    /// Tells the parent why this process does not take over.
    pub(in crate::gateway) fn refuse(self, error: &GatewayError) {
        if let Ok(mut channel) = ControlChannel::new(self.channel) {
            channel.send(&Message::Failed(error.to_string())).ok();
        }
    }
}

/// Takes over from the parent, and serves: the parent may leave.
pub(in crate::gateway) fn take_over(fds: HandoverFds, config: &Config) -> Result<Gateway, GatewayError> {
    let HandoverFds { channel, word, snapshot, sockets, inherited, parent, volunteer, bodies, previous: _ } =
        fds;
    let word = CommitWord::map(&word).map_err(GatewayError::system("share memory with the old process"))?;
    let channel = ControlChannel::new(channel).map_err(GatewayError::system("share a socket"))?;
    let takeover = Takeover {
        config,
        channel,
        word,
        snapshot,
        sockets,
        inherited,
        parent,
        volunteer,
        bodies,
        stored: Vec::new(),
        snapshot_bytes: 0,
        times: Times::default(),
        warm: None,
        adopted: None,
        sockets_taken: 0,
        outcome: Err(GatewayError::Takeover("the handover has not ended".into())),
    };
    takeover.run()
}

/// State of a takeover.
struct Takeover<'a> {
    config: &'a Config,
    channel: ControlChannel,
    word: CommitWord,
    snapshot: File,
    sockets: File,
    /// Inherited descriptors without an owner.
    inherited: HashSet<RawFd>,
    parent: Parent,
    /// `None`: it has not volunteered, or serves.
    volunteer: Option<Volunteer>,
    /// Files of bodies.
    bodies: Taken,
    /// The bodies that are read.
    stored: Vec<Bytes>,
    /// Length of the snapshot by the parent's message.
    snapshot_bytes: u64,
    times: Times,
    /// Watched sockets; `None`: not watched yet, or already adopted.
    warm: Option<Warm>,
    /// The gateway that stands still; `None`: not adopted yet, or already serving.
    adopted: Option<Adopted>,
    /// Sockets of connections, links and listeners.
    sockets_taken: u64,
    /// The serving gateway, or the cause of the last input that can end the takeover.
    outcome: Result<Gateway, GatewayError>,
}

impl Takeover<'_> {
    /// Drives the table to its end.
    fn run(mut self) -> Result<Gateway, GatewayError> {
        let (mut state, mut action) = State::FIRST;
        loop {
            let input = self.perform(action);
            if let State::Ended(_) = state {
                return self.outcome;
            }
            let input = input.unwrap_or_else(|| self.wait());
            (state, action) = match state.on(input) {
                Transition::To(next, action) => (next, action),
                Transition::Ignore => (state, Action::Nothing),
            };
        }
    }

    /// Performs an action; `None`: the next input comes from the parent.
    fn perform(&mut self, action: Action) -> Option<Input> {
        match action {
            Action::Nothing => None,
            Action::Watch => Some(match self.watch() {
                Ok(()) => {
                    failpoint::reach("new.warm");
                    Input::Watched
                }
                Err(error) => self.fail(Input::Failed, error),
            }),
            Action::SayWarm => self.send(&Message::Warm),
            Action::Adopt => Some(match self.adopt() {
                Ok(()) => Input::Adopted,
                Err(error) => self.fail(Input::Failed, error),
            }),
            Action::SayReady => {
                thread::reserve(); // the threads have theirs
                self.times.ready = clock::machine_nanos();
                let input = self.send(&Message::Ready(self.sockets_taken));
                failpoint::reach("new.ready");
                input
            }
            Action::LookForParent => {
                Some(if self.parent.is_dead() { Input::ParentEnded } else { Input::ParentLives })
            }
            Action::Take => Some(self.swap(TAKE)),
            Action::Claim => {
                tracing::warn!("the old process has ended; this one continues from its snapshot");
                Some(self.swap(CLAIM))
            }
            Action::Serve => {
                self.serve(false);
                None
            }
            Action::ServeOrphaned => {
                self.serve(true);
                None
            }
            Action::SayFailed => {
                if let Err(error) = &self.outcome {
                    let message = Message::Failed(error.to_string());
                    self.channel.send(&message).ok();
                }
                None
            }
        }
    }

    /// Waits for the next message. The parent sets the deadlines, and kills this process after them.
    fn wait(&mut self) -> Input {
        loop {
            match self.channel.receive(None) {
                Ok(Received::Nothing) => {}
                Ok(Received::Message(Message::Snapshot { length, paused_nanos })) => {
                    self.snapshot_bytes = length;
                    self.times =
                        Times { paused: paused_nanos, given: clock::machine_nanos(), ..Times::default() };
                    return Input::Snapshot;
                }
                Ok(Received::Message(Message::Commit)) => return Input::Commit,
                Ok(Received::Message(Message::Bodies(length))) if self.adopted.is_none() => {
                    if let Some(input) = self.read_later(length) {
                        return input;
                    }
                }
                Ok(Received::Message(message)) => {
                    let problem = format!("the old process sent an unexpected line: {message}");
                    return self.fail(Input::Unexpected, GatewayError::Takeover(problem));
                }
                Ok(Received::Closed) => {
                    let problem = "the old process closed the control channel".into();
                    return self.fail(Input::SocketClosed, GatewayError::Takeover(problem));
                }
                Err(error) => {
                    let error = GatewayError::system("read from the old process")(error);
                    return self.fail(Input::SocketClosed, error);
                }
            }
        }
    }

    /// Reads the bodies that came while this process read the first ones, and says `warm` again; `None`: that went well.
    fn read_later(&mut self, length: u64) -> Option<Input> {
        match self.bodies.read_later(length) {
            Ok(bodies) => {
                self.stored.extend(bodies);
                self.send(&Message::Warm)
            }
            Err(error) => {
                let error = GatewayError::system("read the queued bodies that came later")(error);
                self.channel.send(&Message::Failed(error.to_string())).ok();
                Some(self.fail(Input::Unexpected, error))
            }
        }
    }

    /// Keeps the cause of an input that ends the takeover, or may end it.
    fn fail(&mut self, input: Input, error: GatewayError) -> Input {
        self.outcome = Err(error);
        input
    }

    /// Sends a line; a channel that takes none is closed.
    fn send(&mut self, message: &Message) -> Option<Input> {
        let sent = self.channel.send(message).map_err(GatewayError::system("write to the old process"));
        sent.err().map(|error| self.fail(Input::SocketClosed, error))
    }

    /// Watches the listed sockets, and reads the bodies that wait. What the settings name is tried here, while the old process
    /// serves: behind the pause it would cost each client the pause.
    fn watch(&mut self) -> Result<(), GatewayError> {
        places::check(self.config)?;
        self.warm = Some(watch(&self.sockets, &mut self.inherited)?);
        self.stored = self.bodies.read_first().map_err(GatewayError::system("read the queued bodies"))?;
        let has_tls = self.config.listeners.iter().any(|listener| listener.kind.has_tls());
        if has_tls || self.config.backend.tls.files.set().is_some() {
            warm_up(); // not in the pause
        }
        Ok(())
    }

    /// Reads the snapshot, and gives every connection its socket.
    fn adopt(&mut self) -> Result<(), GatewayError> {
        failpoint::reach("new.told");
        let bytes = read(&self.snapshot, Some(self.snapshot_bytes))
            .map_err(GatewayError::system("read the snapshot"))?;
        let warm = self.warm.take().expect("the table adopts only after the sockets are watched");
        let mut source = InheritedSockets { channel: &mut self.channel, inherited: &mut self.inherited };
        let snapshot = Snapshot::open(bytes)?.with_stored(std::mem::take(&mut self.stored).into());
        let adopted = prepare(snapshot, warm, self.config, &mut source)?;
        self.sockets_taken = adopted.parked.connections_taken + adopted.listeners;
        self.adopted = Some(adopted);
        // Connections that ended meanwhile, and descriptors that the parent itself inherited. A lock among them, as of
        // `flock FILE moorline run`, is held for whoever serves.
        let is_lock = |fd: &RawFd| sockets::cookie_of(*fd).is_none() && sockets::holds_lock(*fd);
        self.inherited.drain().filter(|fd| !is_lock(fd)).for_each(sockets::close_unowned);
        failpoint::reach("new.adopted");
        Ok(())
    }

    fn swap(&mut self, swap: super::commit_word::Swap) -> Input {
        if self.word.swap(swap) {
            return Input::WordWon;
        }
        let problem = "the old process has taken the sockets back".into();
        self.fail(Input::WordLost, GatewayError::Takeover(problem))
    }

    /// Has all threads run, which read the sockets. Nothing here fails, and what can block is told by threads that serve
    /// nobody. `is_orphan`: the parent has ended.
    fn serve(&mut self, is_orphan: bool) {
        failpoint::reach("new.touched");
        let adopted = self.adopted.take().expect("the table serves only what was adopted");
        let Adopted { parked, generation, frozen_at, mut history, numbers, .. } = adopted;
        parked.gateway.clock.go_on_from(frozen_at);
        // The old process has the sockets until it has left.
        parked.gateway.door.set_shared(Holder::Old, self.parent.life.is_some());
        let changed = parked.admit_waiting();
        parked.resume();
        self.times.touched = clock::machine_nanos();
        // A parent that has ended does not hear it, and this process serves all the same.
        self.channel.send(&Message::Running).ok();
        if let Some(last) = history.last_mut() {
            (last.verdict, last.generation, last.sockets) =
                ("committed".into(), generation, self.sockets_taken);
            last.pid = std::process::id();
            self.times.tell(last, self.snapshot_bytes);
            if parked.left.handshakes > 0 {
                let detail = format!(
                    "{} connections in the middle of a TLS handshake are closed",
                    parked.left.handshakes
                );
                last.steps.push(Step { name: "handshakes".into(), seconds: 0.0, detail });
            }
            for detail in changed {
                tracing::warn!(detail, "the kind of a listener has changed");
                last.steps.push(Step { name: "kind".into(), seconds: 0.0, detail });
            }
            if let Some(detail) = parked.moved_socket() {
                tracing::info!(detail, "the admin socket has moved");
                last.steps.push(Step { name: "socket".into(), seconds: 0.0, detail });
            }
            for detail in parked.left.kept.iter().cloned() {
                tracing::warn!(detail, "a setting does not count until a full restart");
                last.steps.push(Step { name: "kept".into(), seconds: 0.0, detail });
            }
        }
        parked.gateway.status.restarts.resume(generation, &numbers, history);
        let (sockets, pause_seconds) = (self.sockets_taken, self.times.pause());
        tracing::info!(generation, sockets, pause_seconds, "took over");
        let end = End { volunteer: self.volunteer.take(), life: self.parent.life.take() };
        self.outcome = Ok(parked.tell(is_orphan, end));
    }
}

/// The old process.
struct Parent {
    pid: Pid,
    /// Pipe of which only the old process has the other end; `None`: an old process that starts this one without a guard.
    life: Option<OwnedFd>,
}

impl Parent {
    /// Finds the old process: by the guard's word, or as the parent of this process.
    fn find(inherited: &mut HashSet<RawFd>) -> Self {
        let word = std::env::var(OLD).unwrap_or_default();
        let numbers: Vec<i32> = word.split(' ').map_while(|number| number.parse().ok()).collect();
        let parent = getppid();
        match numbers[..] {
            // A version that does not know the variable passes it on to its own children.
            [guard, old, life] if guard == parent.as_raw() && inherited.remove(&life) => {
                Self { pid: Pid::from_raw(old), life: sockets::take(life).ok() }
            }
            _ => Self { pid: parent, life: None },
        }
    }

    /// Returns true if the old process has ended.
    fn is_dead(&self) -> bool {
        if let Some(life) = &self.life {
            // Nothing is ever written.
            return sockets::is_readable(life, DYING_MAX).unwrap_or(true);
        }
        let until = clock::machine_now() + DYING_MAX;
        while getppid() == self.pid {
            if clock::machine_now() >= until {
                return false;
            }
            std::thread::park_timeout(DYING_LOOK);
        }
        true
    }
}

/// Times of the steps by `CLOCK_MONOTONIC`, in nanoseconds.
#[derive(Default)]
struct Times {
    /// The parent began to pause its threads.
    paused: u64,
    /// The snapshot was announced.
    given: u64,
    /// Every connection was adopted.
    ready: u64,
    /// The sockets were taken.
    touched: u64,
}

impl Times {
    /// Returns the time during which nothing was read or written, in seconds.
    fn pause(&self) -> f64 {
        seconds(self.touched.saturating_sub(self.paused))
    }

    /// Adds the steps that the parent could not write into its snapshot any more.
    fn tell(&self, restart: &mut Restart, length: u64) {
        restart.pause_seconds = self.pause();
        let freeze = restart.steps.last().map_or(0.0, |step| step.seconds);
        let between = |from: u64, to: u64| seconds(to.saturating_sub(from));
        let steps = [
            ("snapshot", (between(self.paused, self.given) - freeze).max(0.0), format!("{length} bytes")),
            ("adopt", between(self.given, self.ready), format!("{} sockets", restart.sockets)),
            ("commit", between(self.ready, self.touched), format!("generation {}", restart.generation)),
        ];
        let steps = steps.map(|(name, seconds, detail)| Step { name: name.into(), seconds, detail });
        restart.steps.extend(steps);
    }
}

/// A gateway that only has to resume: everything is read and started, and every socket is watched.
struct Adopted {
    parked: Parked,
    generation: u64,
    /// The gateway's own time at the pause.
    frozen_at: Instant,
    history: Vec<Restart>,
    /// Counters of the restarts before this one.
    numbers: Vec<u64>,
    /// Sockets of listeners.
    listeners: u64,
}

fn prepare(
    snapshot: Snapshot,
    warm: Warm,
    config: &Config,
    source: &mut InheritedSockets<'_>,
) -> Result<Adopted, GatewayError> {
    let (generation, frozen_at) =
        (snapshot.header.generation, Instant::from_nanos(snapshot.header.frozen_at));
    let (head, addresses) = head_of(&snapshot)?;
    let history = head.history.iter().map(restart_of).collect();
    refuse_embedded(&head)?;
    let inherited = Inherited { snapshot, head, addresses };
    let prepared = Prepared::adopted(config, warm, &inherited, &mut |socket| source.take(socket))?;
    let parked = prepared.park(config)?;
    let head = inherited.head;
    let listeners = head.listeners.len().max(1) as u64
        + u64::from(head.admin.is_some())
        + u64::from(head.admin_socket.is_some())
        + head.retired_sockets.len() as u64;
    Ok(Adopted { parked, generation, frozen_at, history, numbers: head.restart_numbers, listeners })
}

/// Refuses a parent with an embedded backend, which ends with the parent: only a new start can move away from it.
fn refuse_embedded(head: &GatewayHead) -> Result<(), GatewayError> {
    let Some(record) = &head.embedded else { return Ok(()) };
    Err(GatewayError::Takeover(format!(
        "the old gateway has an embedded backend (pid {}, {}), which would end with it; {EMBEDDED_ADVICE}",
        record.pid, record.address
    )))
}

/// Reads the records of the process.
fn head_of(snapshot: &Snapshot) -> Result<(GatewayHead, Vec<AddressRecord>), GatewayError> {
    let missing = || GatewayError::Takeover("the snapshot has no record of the process".into());
    let mut sections = snapshot.sections(SectionKind::Gateway)?;
    let (_, records) = sections.first_mut().ok_or_else(missing)?;
    let Some(Item::Gateway(head)) = records.next()? else { return Err(missing()) };
    let mut addresses = Vec::new();
    while let Some(item) = records.next()? {
        match item {
            Item::Address(address) => addresses.push(address),
            _ => return Err(missing()),
        }
    }
    Ok((*head, addresses))
}

/// Watches the listed sockets that were inherited and are still the same.
fn watch(list: &File, inherited: &mut HashSet<RawFd>) -> Result<Warm, GatewayError> {
    let bytes = read(list, None).map_err(GatewayError::system("read the list of sockets"))?;
    let mut lists = Vec::new();
    for (_, mut records) in Snapshot::open(bytes)?.sections(SectionKind::Sockets)? {
        let mut list = Vec::new();
        while let Some(item) = records.next()? {
            match item {
                Item::Sockets(record) => list.push(record),
                _ => return Err(records.contradiction("a record that is not a list of sockets").into()),
            }
        }
        lists.push(list);
    }
    Warm::up(lists, &mut |socket| {
        let is_same = inherited.contains(&socket.fd) && sockets::cookie_of(socket.fd) == Some(socket.cookie);
        if !is_same {
            return None;
        }
        inherited.remove(&socket.fd);
        sockets::take(socket.fd).ok()
    })
}

/// Maps a sealed file of the parent. `length`: the announced number of bytes; `None`: any.
fn read(file: &File, length: Option<u64>) -> io::Result<Bytes> {
    let bytes = Bytes::from_owner(memory::map_sealed(file)?);
    match length {
        Some(length) if length != bytes.len() as u64 => {
            let problem = format!("the file has {} bytes, {length} were announced", bytes.len());
            Err(io::Error::other(problem))
        }
        _ => Ok(bytes),
    }
}

/// Source of the sockets that the snapshot names.
struct InheritedSockets<'a> {
    channel: &'a mut ControlChannel,
    inherited: &'a mut HashSet<RawFd>,
}

impl InheritedSockets<'_> {
    fn take(&mut self, socket: &SocketRef) -> io::Result<OwnedFd> {
        if self.inherited.contains(&socket.fd) && sockets::cookie_of(socket.fd) == Some(socket.cookie) {
            self.inherited.remove(&socket.fd);
            return sockets::take(socket.fd);
        }
        // The socket is newer than this process.
        let fd = self.channel.request_socket(socket.fd)?;
        let (_, cookie) = sockets::name_of(&fd)?;
        // A cookie of 0: the old process stands still, and its number is right by itself.
        if cookie == socket.cookie || socket.cookie == 0 {
            return Ok(fd);
        }
        Err(io::Error::other(format!("descriptor {} is not the socket that the snapshot names", socket.fd)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::EmbeddedRecord;

    #[test]
    fn an_embedded_backend_is_refused_with_advice() {
        assert!(refuse_embedded(&GatewayHead::default()).is_ok());
        let record = EmbeddedRecord { pid: 7, address: "127.0.0.1:4".into(), ..EmbeddedRecord::default() };
        let head = GatewayHead { embedded: Some(record), ..GatewayHead::default() };
        let said = refuse_embedded(&head).expect_err("refused").to_string();
        assert!(said.contains("pid 7") && said.contains("moorline dev"), "{said}");
    }
}
