//! The new process's side.

use super::super::adopt::{Inherited, Warm};
use super::super::assembly::{Gateway, Prepared};
use super::super::{Config, GatewayError};
use super::{COMMIT, TOUCHED, VARIABLE, restart_of, tell_main_pid, tell_ready};
use crate::admin::{Restart, Step};
use crate::config::EMBEDDED_ADVICE;
use crate::failpoint;
use crate::snapshot::{AddressRecord, GatewayHead, Item, SectionKind, Snapshot, SocketRef};
use crate::sys::{clock, memory, sockets};
use bytes::Bytes;
use moorline_proto::time::Instant;
use nix::unistd::{Pid, getppid};
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Descriptors with which the old process has this one take over.
pub(in crate::gateway) struct Invitation {
    talk: UnixStream,
    word: OwnedFd,
    snapshot: File,
    sockets: File,
    inherited: HashSet<RawFd>,
    /// The old process.
    parent: Pid,
}

impl Invitation {
    /// Reads the environment; `None`: this process begins with nothing.
    pub(in crate::gateway) fn read() -> Result<Option<Self>, GatewayError> {
        let Ok(value) = std::env::var(VARIABLE) else { return Ok(None) };
        let broken = || GatewayError::Takeover(format!("{VARIABLE} is {value:?} and names no descriptors"));
        let fds: Vec<RawFd> = value.split(',').filter_map(|fd| fd.parse().ok()).collect();
        let [talk, word, snapshot, list] = fds[..] else { return Err(broken()) };
        let take = |fd| sockets::take(fd).map_err(GatewayError::system("take an inherited descriptor"));
        let (talk, word, snapshot, list) = (take(talk)?, take(word)?, take(snapshot)?, take(list)?);
        let open = sockets::open_fds().map_err(GatewayError::system("list the inherited descriptors"))?;
        let inherited = open.into_iter().filter(|fd| !fds.contains(fd)).collect();
        let (talk, snapshot, sockets) = (talk.into(), snapshot.into(), list.into());
        failpoint::reach("new.started");
        Ok(Some(Self { talk, word, snapshot, sockets, inherited, parent: getppid() }))
    }
}

/// Takes over, and serves: the old process may leave.
pub(in crate::gateway) fn take_over(
    invitation: Invitation,
    config: &Config,
) -> Result<Gateway, GatewayError> {
    let Invitation { talk, word, snapshot, sockets: list, mut inherited, parent } = invitation;
    let word = memory::Word::map(&word).map_err(GatewayError::system("share memory with the old process"))?;
    let lines = BufReader::new(talk.try_clone().map_err(GatewayError::system("share a socket"))?);
    let mut talk = Talk { talk, lines };
    let warm =
        warm_up(&list, &mut inherited).inspect_err(|error| _ = talk.say(&format!("failed: {error}")))?;
    failpoint::reach("new.warm");
    talk.say("warm")?;
    let (length, frozen_nanos) = hear_snapshot(&mut talk)?;
    let mut times = Times { frozen: frozen_nanos, given: clock::machine_nanos(), ..Times::default() };
    failpoint::reach("new.told");
    let bytes = read(&snapshot, Some(length)).map_err(GatewayError::system("read the snapshot"))?;
    let mut source = InheritedSockets { talk: &mut talk, inherited, others: 0 };
    let prepared = prepare(bytes, warm, config, &mut source);
    let Ready { prepared, generation, frozen_at, mut history, numbers } = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            talk.say(&format!("failed: {error}")).ok();
            return Err(error);
        }
    };
    let InheritedSockets { inherited, others, .. } = source;
    let taken = prepared.connections_taken + others;
    // Connections that ended meanwhile, and what the old process inherited from whoever started it.
    inherited.into_iter().for_each(sockets::close_unowned);
    failpoint::reach("new.adopted");
    times.ready = clock::machine_nanos();
    talk.say(&format!("ready {taken}")).ok(); // who does not listen does not say commit either
    failpoint::reach("new.ready");
    let is_orphan = wait_for_commit(&mut talk, &word, parent)?;
    failpoint::reach("new.touched");
    clock::go_on_from(frozen_at);
    times.touched = clock::machine_nanos();
    if let Some(last) = history.last_mut() {
        (last.verdict, last.generation, last.sockets) = ("committed".into(), generation, taken);
        times.tell(last, length);
    }
    prepared.restarts().resume(generation, &numbers, history);
    let gateway = prepared.launch(|| {
        if is_orphan {
            tell_main_pid(config, std::process::id());
        }
        tell_ready(config);
    })?;
    talk.say("running").ok(); // it may be gone: then this process serves all the more
    tracing::info!(generation, sockets = taken, pause_seconds = times.pause(), "took over");
    Ok(gateway)
}

/// Length of the snapshot, and the machine's time when the old process began to stand still.
fn hear_snapshot(talk: &mut Talk) -> Result<(u64, u64), GatewayError> {
    let said = talk.hear("snapshot")?;
    let numbers = said.split_once(' ').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    numbers.ok_or_else(|| GatewayError::Takeover(format!("a snapshot of length and time {said:?}")))
}

/// Takes the sockets, if the old process gives them or cannot hold them any more. True: it is dead.
fn wait_for_commit(talk: &mut Talk, word: &memory::Word, parent: Pid) -> Result<bool, GatewayError> {
    let heard = talk.hear("commit");
    let is_dead = heard.is_err() && is_dead(parent);
    let is_taken = match heard {
        Ok(_) => word.swap(COMMIT, TOUCHED),
        // It stood still, and all that it was is here.
        Err(_) if is_dead => {
            tracing::warn!("the old process is dead; this one goes on where it stood");
            word.swap(0, TOUCHED) || word.swap(COMMIT, TOUCHED)
        }
        Err(error) => return Err(error),
    };
    if is_taken {
        return Ok(is_dead);
    }
    Err(GatewayError::Takeover("the old process has taken everything back".into()))
}

/// Returns true if the old process has ended: this process has another parent then.
fn is_dead(parent: Pid) -> bool {
    let until = clock::machine_now() + DYING_MAX;
    while getppid() == parent {
        if clock::machine_now() >= until {
            return false;
        }
        std::thread::park_timeout(DYING_LOOK);
    }
    true
}

/// Patience with the end of a process that was killed: its descriptors close before it is gone.
const DYING_MAX: Duration = Duration::from_secs(2);
const DYING_LOOK: Duration = Duration::from_millis(1);

/// Times of the steps, in nanoseconds of the machine's clock.
#[derive(Default)]
struct Times {
    frozen: u64,
    given: u64,
    ready: u64,
    touched: u64,
}

impl Times {
    /// For how long nothing was read or written, in seconds.
    fn pause(&self) -> f64 {
        super::seconds(self.touched.saturating_sub(self.frozen))
    }

    /// The steps that the old process could not write down any more.
    fn tell(&self, restart: &mut Restart, length: u64) {
        restart.pause_seconds = self.pause();
        let freeze = restart.steps.last().map_or(0.0, |step| step.seconds);
        let between = |from: u64, to: u64| super::seconds(to.saturating_sub(from));
        let steps = [
            ("snapshot", (between(self.frozen, self.given) - freeze).max(0.0), format!("{length} bytes")),
            ("adopt", between(self.given, self.ready), format!("{} sockets", restart.sockets)),
            ("commit", between(self.ready, self.touched), format!("generation {}", restart.generation)),
        ];
        let steps = steps.map(|(name, seconds, detail)| Step { name: name.into(), seconds, detail });
        restart.steps.extend(steps);
    }
}

/// Everything was read and is watched.
struct Ready {
    prepared: Prepared,
    generation: u64,
    frozen_at: Instant,
    history: Vec<Restart>,
    /// Numbers of the restarts before this one.
    numbers: Vec<u64>,
}

fn prepare(
    bytes: Bytes,
    warm: Warm,
    config: &Config,
    source: &mut InheritedSockets<'_>,
) -> Result<Ready, GatewayError> {
    let snapshot = Snapshot::open(bytes)?;
    let (generation, frozen_at) =
        (snapshot.header.generation, Instant::from_nanos(snapshot.header.frozen_at));
    let (head, addresses) = head_of(&snapshot)?;
    let history = head.history.iter().map(restart_of).collect();
    refuse_embedded(&head)?;
    let inherited = Inherited { snapshot, head, addresses };
    let prepared = Prepared::adopted(config, warm, &inherited, &mut |socket| source.take(socket))?;
    let head = &inherited.head;
    source.others = head.listeners.len().max(1) as u64 + u64::from(head.admin.is_some());
    let numbers = inherited.head.restart_numbers;
    Ok(Ready { prepared, generation, frozen_at, history, numbers })
}

/// A backend that the old gateway started ends with that gateway: only a new start can move away from it.
fn refuse_embedded(head: &GatewayHead) -> Result<(), GatewayError> {
    let Some(record) = &head.embedded else { return Ok(()) };
    Err(GatewayError::Takeover(format!(
        "the old gateway has an embedded backend (pid {}, {}), which would end with it; {EMBEDDED_ADVICE}",
        record.pid, record.address
    )))
}

fn head_of(snapshot: &Snapshot) -> Result<(GatewayHead, Vec<AddressRecord>), GatewayError> {
    let missing = || GatewayError::Takeover("the snapshot says nothing of the process".into());
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
    Ok((head, addresses))
}

/// Watches the sockets that were there when this process was started, as long as they are still the same.
fn warm_up(list: &File, inherited: &mut HashSet<RawFd>) -> Result<Warm, GatewayError> {
    let bytes = read(list, None).map_err(GatewayError::system("read the list of sockets"))?;
    let mut lists = Vec::new();
    for (_, mut records) in Snapshot::open(bytes)?.sections(SectionKind::Sockets)? {
        let mut list = Vec::new();
        while let Some(item) = records.next()? {
            match item {
                Item::Sockets(record) => list.push(record),
                _ => return Err(records.contradiction("something else than sockets").into()),
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

/// Reads the bytes that the old process wrote. `length`: the promised number of bytes; `None`: any.
fn read(file: &File, length: Option<u64>) -> io::Result<Bytes> {
    let bytes = Bytes::from_owner(memory::map_sealed(file)?);
    match length {
        Some(length) if length != bytes.len() as u64 => {
            Err(io::Error::other("it has another length than was said"))
        }
        _ => Ok(bytes),
    }
}

/// Gives sockets by the names that the snapshot has for them.
struct InheritedSockets<'a> {
    talk: &'a mut Talk,
    inherited: HashSet<RawFd>,
    /// Sockets of listeners and links.
    others: u64,
}

impl InheritedSockets<'_> {
    fn take(&mut self, socket: &SocketRef) -> io::Result<OwnedFd> {
        if self.inherited.contains(&socket.fd) && sockets::cookie_of(socket.fd) == Some(socket.cookie) {
            self.inherited.remove(&socket.fd);
            return sockets::take(socket.fd);
        }
        // It is newer than this process.
        writeln!(self.talk.talk, "want {}", socket.fd)?;
        let fd = sockets::receive_fds(&self.talk.talk, 1)?.pop().ok_or(io::ErrorKind::UnexpectedEof)?;
        let (_, cookie) = sockets::name_of(&fd)?;
        if cookie == socket.cookie {
            return Ok(fd);
        }
        Err(io::Error::other(format!("descriptor {} is another socket than the snapshot says", socket.fd)))
    }
}

struct Talk {
    talk: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Talk {
    fn say(&mut self, line: &str) -> Result<(), GatewayError> {
        writeln!(self.talk, "{line}").map_err(GatewayError::system("speak with the old process"))
    }

    /// Waits for a line that begins with `word`. The old process has the patience, and ends this one.
    fn hear(&mut self, word: &str) -> Result<String, GatewayError> {
        let mut line = String::new();
        self.lines.read_line(&mut line).map_err(GatewayError::system("listen to the old process"))?;
        let said = line.trim_end();
        let rest = said.strip_prefix(word).map(|rest| rest.trim().to_owned());
        rest.ok_or_else(|| GatewayError::Takeover(format!("the old process says {said:?} instead of {word}")))
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
