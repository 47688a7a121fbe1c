//! The executor of the parent's table: performs its actions, and feeds it their results and the child's messages.

use super::super::assembly::{Gateway, RETIRED_END_MAX};
use super::super::freezing::NotFrozen;
use super::super::signals::Signals;
use super::bodies::{self, Given};
use super::channel::{ControlChannel, Message, Received};
use super::check::{self, Checked, Knows, ReadsBodies};
use super::commit_word::{COMMIT, CommitWord, RECLAIM};
use super::history::{record_of, seconds};
use super::new_process::{NewProcess, Start};
use super::parent::{Action, Input, State, Transition, Verdict};
use super::run_settings::{RunSettings, named};
use crate::admin::{Restart, RestartOrder, Step, Target};
use crate::failpoint;
use crate::metrics::names;
use crate::reactor::Holder;
use crate::snapshot::{GatewayHead, Header, SectionKind, StoredBodies, Writer};
use crate::sys::executable::Executable;
use crate::sys::{clock, memory};
use moorline_proto::time::Instant;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// Time for which all threads run again before the pause is tried once more.
const AGAIN_AFTER: Duration = Duration::from_millis(250);
/// Time from the commit until the child has taken the sockets.
const TOUCHED_MAX: Duration = Duration::from_secs(2);
/// Time in which a child that took the sockets is expected to say that it runs. Later it is left alone without a word.
const RUNNING_MAX: Duration = Duration::from_secs(10);
/// Looks for the exit status of a child that has closed the control channel.
const EXIT_LOOKS: usize = 200;
/// Interval of those looks; all threads may be paused meanwhile.
const EXIT_LOOK: Duration = Duration::from_millis(1);
/// Interval at which the child's process is looked for while a message is awaited.
const LOOK: Duration = Duration::from_millis(20);

/// Cause of a rollback.
pub(in crate::gateway) const ENDING: &str = "a signal came before the commit";

/// Outcome of a restart.
pub(in crate::gateway) enum Outcome {
    /// The child with this process id serves; this process must leave without touching a socket.
    Committed(u32),
    /// The gateway continues to serve in this process.
    Serving,
    /// The child took the sockets and failed, for this cause: no process serves, and this one must end.
    Torn(String),
}

/// Steps of an upgrade, with their times, as they happen.
struct StepLog {
    restart: Restart,
    /// Begin of the step that runs.
    began: Instant,
}

impl StepLog {
    /// Notes the end of a step.
    fn step(&mut self, name: &str, detail: impl Into<String>) {
        let seconds = clock::machine_now().saturating_since(self.began).as_secs_f64();
        let detail = detail.into();
        tracing::info!(step = name, seconds, detail, "hot restart");
        self.restart.steps.push(Step { name: name.into(), seconds, detail });
        self.began = clock::machine_now();
    }
}

/// Hands everything over to a new process, or continues to serve as if nothing had happened. `number`: of the restart.
pub(in crate::gateway) fn restart(
    gateway: &Gateway,
    settings: &RunSettings,
    order: &RestartOrder,
    number: u64,
    signals: &Signals,
) -> Outcome {
    let restarts = &gateway.status.restarts;
    let shown = restarts.show();
    let binary = settings.path_of(&order.target);
    let restart = Restart {
        number,
        unix_ms: clock::unix_nanos() / 1_000_000,
        generation: shown.generation,
        pid: std::process::id(),
        from: settings.own.as_ref().map_or_else(String::new, |own| named(env!("CARGO_PKG_VERSION"), own)),
        to: binary.display().to_string(),
        previous_binary: settings.path.display().to_string(),
        ..Restart::default()
    };
    let deadline = clock::machine_now() + order.timeout.unwrap_or(settings.times.timeout);
    let mut upgrade = Upgrade {
        gateway,
        settings,
        target: &order.target,
        signals,
        executable: None,
        knows: Knows::default(),
        stored: Arc::default(),
        given: None,
        deadline,
        is_dry_run: order.is_dry_run,
        history: shown.restarts,
        generation: shown.generation + 1,
        log: StepLog { restart, began: clock::machine_now() },
        child: None,
        wait_until: deadline,
        paused_at: None,
        snapshot_bytes: 0,
        wanted: None,
        adopted_sockets: 0,
        problem: String::new(),
    };
    let verdict = upgrade.run();
    let Upgrade { mut log, child, paused_at, problem, .. } = upgrade;
    match (verdict, child) {
        (Verdict::Committed, Some(child)) => return Outcome::Committed(child.process.id()),
        (Verdict::Torn, _) => {
            return Outcome::Torn(format!("the new process took over and failed: {problem}"));
        }
        (Verdict::DryRun, _) => log.restart.verdict = "dry_run".into(),
        (Verdict::Committed | Verdict::RolledBack, _) => {
            if let Some(Pause { machine_nanos, .. }) = paused_at {
                log.restart.pause_seconds = seconds(clock::machine_nanos() - machine_nanos);
            }
            log.restart.is_ending = signals.is_ending();
            let next = if log.restart.is_ending {
                "this process ends, as a signal told it"
            } else {
                "this process serves on"
            };
            tracing::error!(problem, next, "hot restart rolled back");
            log.step("roll back", next);
            (log.restart.verdict, log.restart.problem) = ("rolled_back".into(), problem);
        }
    }
    restarts.end(log.restart);
    Outcome::Serving
}

/// Moment of the pause.
#[derive(Clone, Copy)]
struct Pause {
    /// The gateway's own time.
    at: Instant,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    machine_nanos: u64,
}

/// The child, and what this process shares with it.
struct ChildHandle {
    process: NewProcess,
    channel: ControlChannel,
    word: CommitWord,
    /// Sealed file of the snapshot; empty until the pause.
    snapshot: File,
}

/// State of an upgrade.
struct Upgrade<'a> {
    gateway: &'a Gateway,
    settings: &'a RunSettings,
    target: &'a Target,
    /// One that ends this process ends the upgrade before the commit.
    signals: &'a Signals,
    /// The file that was judged, checked and is run; `None`: not opened yet.
    executable: Option<Executable>,
    /// Parts of the handover that its process knows.
    knows: Knows,
    /// Bodies that the new process has read.
    stored: Arc<StoredBodies>,
    /// Their files; `None`: the new process reads none, or is not started yet.
    given: Option<Given>,
    /// End of the time for everything before the commit.
    deadline: Instant,
    is_dry_run: bool,
    history: Vec<Restart>,
    /// Generation of the child.
    generation: u64,
    log: StepLog,
    /// `None`: not started yet, or ended and reaped.
    child: Option<ChildHandle>,
    /// Deadline of the state.
    wait_until: Instant,
    /// `None`: the threads are not, or not all, paused.
    paused_at: Option<Pause>,
    /// Length of the snapshot.
    snapshot_bytes: u64,
    /// Descriptor that the child asked for; `None`: none is asked for.
    wanted: Option<RawFd>,
    /// Sockets that the child has adopted, by its own count.
    adopted_sockets: u64,
    /// Text of the last input that can be a problem; the cause of a rollback, if it led to one.
    problem: String,
}

impl Upgrade<'_> {
    /// Drives the table to its end.
    fn run(&mut self) -> Verdict {
        let (mut state, mut action) = State::FIRST;
        loop {
            let input = self.perform(action);
            if let State::Ended(verdict) = state {
                return verdict;
            }
            let input = input.unwrap_or_else(|| self.wait(state));
            (state, action) = match state.on(input) {
                Transition::To(next, action) => (next, action),
                Transition::Ignore => (state, Action::Nothing),
            };
        }
    }

    /// Performs an action; `None`: the next input comes from the child.
    fn perform(&mut self, action: Action) -> Option<Input> {
        match action {
            Action::Nothing => None,
            Action::Check => Some(self.check()),
            Action::Spawn => self.spawn().err().map(|problem| self.fail(Input::Failed, problem)),
            Action::Pause => {
                self.note_warm();
                Some(self.pause())
            }
            Action::PauseAgain => Some(self.pause_again()),
            Action::Announce => {
                let (length, paused_nanos) = (self.snapshot_bytes, self.paused_at?.machine_nanos);
                let input = self.send(&Message::Snapshot { length, paused_nanos });
                failpoint::reach("old.told");
                input
            }
            Action::SendSocket => {
                let fd = self.wanted.take()?;
                let sent =
                    self.child().channel.send_socket(fd).map_err(cannot("send a socket to the new process"));
                sent.err().map(|problem| self.fail(Input::Failed, problem))
            }
            Action::Commit => self.commit(),
            Action::AwaitRunning => {
                self.wait_until = clock::machine_now() + RUNNING_MAX;
                None
            }
            Action::Reclaim => Some(self.reclaim()),
            Action::EndDryRun => {
                self.note_warm();
                self.end_child();
                None
            }
            Action::EndChild => {
                self.end_child();
                None
            }
            Action::Resume => {
                self.end_child();
                self.gateway.resume_after_rollback(self.paused_at.map(|pause| pause.at));
                None
            }
            Action::Leave => {
                self.child().process.release();
                failpoint::reach("old.running");
                None
            }
        }
    }

    /// Waits for the next message, the end of the child, or the deadline.
    fn wait(&mut self, state: State) -> Input {
        loop {
            let received = self.child().channel.receive(Some(LOOK));
            match received {
                Ok(Received::Message(Message::Warm)) if state == State::Warming => {
                    if let Some(input) = self.take_warm() {
                        return input;
                    }
                }
                Ok(Received::Message(message)) => return self.input_of(&message),
                Ok(Received::Nothing) => {}
                Ok(Received::Closed) | Err(_) if state == State::Touched => std::thread::park_timeout(LOOK),
                Ok(Received::Closed) => return self.end_of_channel(state, "closed its socket"),
                Err(error) => return self.end_of_channel(state, &format!("cannot be read from ({error})")),
            }
            if let Some(problem) = self.child().process.end() {
                return self.fail(Input::ChildEnded, problem);
            }
            if self.is_late() {
                return self.fail(Input::DeadlinePassed, late(state));
            }
            if self.signals.is_ending() && !matches!(state, State::Committed | State::Touched) {
                return self.fail(Input::Failed, ENDING.into());
            }
        }
    }

    fn input_of(&mut self, message: &Message) -> Input {
        let input = match message {
            Message::Warm => Input::Warm,
            // Without this look a child that asks without end would be served without end.
            Message::Want(_) if self.is_late() => {
                return self.fail(Input::DeadlinePassed, late(State::Moving));
            }
            Message::Want(fd) => {
                self.wanted = Some(*fd);
                Input::Want
            }
            Message::Ready(sockets) => {
                self.adopted_sockets = *sockets;
                Input::Ready
            }
            Message::Running => Input::Running,
            Message::Failed(cause) => {
                return self.fail(Input::Unexpected, format!("the new process failed: {cause}"));
            }
            Message::Snapshot { .. } | Message::Bodies(_) | Message::Commit | Message::Other(_) => {
                Input::Unexpected
            }
        };
        // Also a known message is a problem, in a state that does not expect it.
        self.problem = format!("the new process sent an unexpected line: {message}");
        input
    }

    /// Waits a moment for the exit status of a child that closed the channel: it says more than the closed channel.
    fn end_of_channel(&mut self, state: State, how: &str) -> Input {
        for _ in 0..EXIT_LOOKS {
            if let Some(problem) = self.child().process.end() {
                return self.fail(Input::ChildEnded, problem);
            }
            std::thread::park_timeout(EXIT_LOOK);
        }
        self.fail(Input::SocketClosed, format!("the new process {how} before it was {}", awaited(state)))
    }

    fn is_late(&self) -> bool {
        clock::machine_now() >= self.wait_until
    }

    /// Keeps the cause of an input that ends the upgrade, or may end it.
    fn fail(&mut self, input: Input, problem: String) -> Input {
        self.problem = problem;
        input
    }

    fn child(&mut self) -> &mut ChildHandle {
        self.child.as_mut().expect("the table waits for a child only after it was started")
    }

    /// Sends a line; a channel that takes none is closed.
    fn send(&mut self, message: &Message) -> Option<Input> {
        let sent = self.child().channel.send(message).map_err(cannot("send to the new process"));
        sent.err().map(|problem| self.fail(Input::SocketClosed, problem))
    }

    fn check(&mut self) -> Input {
        if self.gateway.status.is_draining() {
            let problem =
                "check: cannot restart while the clients are asked to leave; run `moorline undrain` first";
            return self.fail(Input::Failed, problem.into());
        }
        failpoint::reach("old.check");
        let checked = self.settings.open(self.target).and_then(|executable| {
            let executable = self.executable.insert(executable);
            let queued = [names::QUEUED_BYTES, names::INPUT_BYTES].map(|name| self.gateway.metrics.sum(name));
            let queued = queued.iter().sum();
            check::check(executable, &self.settings.arguments, self.deadline, queued, self.signals)
        });
        match checked {
            Ok(Checked { version, knows }) => {
                self.knows = knows;
                let executable = self.executable.as_mut().expect("it was just checked");
                self.settings.own.iter().for_each(|own| executable.share_digest(own));
                self.log.restart.to = named(&version, executable);
                self.log.step("check", format!("{version}, settings valid"));
                if self.is_dry_run { Input::DryRunChecked } else { Input::Checked }
            }
            Err(problem) => self.fail(Input::Failed, problem),
        }
    }

    /// Starts the child, which watches all sockets while this process serves.
    fn spawn(&mut self) -> Result<(), String> {
        failpoint::try_reach("old.memory").map_err(cannot("make a file in memory"))?;
        let (word, word_file) = CommitWord::create().map_err(cannot("share memory with a child"))?;
        let snapshot = memory::file("moorline-snapshot").map_err(cannot("make a file in memory"))?;
        let sockets = memory::file("moorline-sockets").map_err(cannot("make a file in memory"))?;
        // From now on closing a socket here may not end its connection.
        self.gateway.door.set_shared(Holder::New, true);
        let list = self.gateway.list_sockets(self.deadline, self.signals)?.finish(Header::default());
        memory::write_sealed(&sockets, &list).map_err(cannot("write into memory"))?;
        self.given = self.store_bodies()?;
        if !self.knows.retired && !self.is_dry_run {
            // It would not take them over, and cannot bind a path where somebody listens.
            self.gateway.retired_sockets.end_within(RETIRED_END_MAX);
        }
        let (ours, theirs) = UnixStream::pair().map_err(cannot("make a socket pair"))?;
        let files = [&word_file.as_fd(), &snapshot.as_fd(), &sockets.as_fd()];
        failpoint::reach("old.spawn");
        let executable = self.executable.as_ref().expect("the table starts only what was checked");
        let own = self.settings.own.as_ref().ok_or("spawn: the file of this program cannot be opened")?;
        let [word_fd, snapshot_fd, sockets_fd] = files.map(AsRawFd::as_raw_fd);
        let process = NewProcess::start(&Start {
            own,
            program: executable,
            arguments: &self.settings.arguments,
            named: [theirs.as_raw_fd(), word_fd, snapshot_fd, sockets_fd],
            hidden: ours.as_raw_fd(),
            previous: self.settings.previous_of(executable),
            knows_guard: self.knows.guard,
            bodies: self.given.as_ref(),
            deadline: self.deadline,
        })?;
        drop(theirs);
        failpoint::reach("old.spawned");
        // Only now: the child would inherit the copy that the channel makes of `ours`.
        match ControlChannel::new(ours) {
            Ok(channel) => self.child = Some(ChildHandle { process, channel, word, snapshot }),
            Err(error) => {
                process.kill();
                return Err(cannot("share a socket")(error));
            }
        }
        Ok(())
    }

    /// Writes the bodies that wait for clients into memory, for the new process to read before the pause.
    fn store_bodies(&mut self) -> Result<Option<Given>, String> {
        if self.knows.bodies == ReadsBodies::Never {
            return Ok(None);
        }
        let mut stored = StoredBodies::default();
        self.gateway.store_bodies(
            &mut stored,
            self.knows.bodies == ReadsBodies::Partials,
            self.deadline,
            self.signals,
        )?;
        check::check_memory(2 * stored.bytes(), stored.bytes())?;
        let given = Given::write(&stored, self.knows.bodies >= ReadsBodies::Later)
            .map_err(cannot("write queued bodies into memory"))?;
        self.stored = Arc::new(stored);
        Ok(Some(given))
    }

    /// Gives a new process that is warm the bodies that came meanwhile; `None`: there were many, and it says so again.
    fn take_warm(&mut self) -> Option<Input> {
        match self.later_bodies() {
            Ok(None) => Some(self.input_of(&Message::Warm)),
            Ok(Some(length)) => self.send(&Message::Bodies(length)),
            Err(problem) => Some(self.fail(Input::Failed, problem)),
        }
    }

    /// Writes the bodies that came since the last time, and returns the length of their file; `None`: there are few, or
    /// the new process takes no more.
    fn later_bodies(&mut self) -> Result<Option<u64>, String> {
        let Some(given) = self.given.as_mut().filter(|given| given.takes_more()) else { return Ok(None) };
        let stored = Arc::get_mut(&mut self.stored).expect("the threads read it in the pause only");
        let known = stored.bodies().len();
        self.gateway.store_bodies(
            stored,
            self.knows.bodies == ReadsBodies::Partials,
            self.deadline,
            self.signals,
        )?;
        let later = &stored.bodies()[known..];
        let bytes = bodies::bytes_of(later);
        check::check_memory(2 * bytes, bytes)?;
        let length = given.append(later).map_err(cannot("write queued bodies into memory"))?;
        match length {
            Some(_) => tracing::debug!(bytes, "hot restart: gave the bodies that came meanwhile"),
            None => stored.truncate(known),
        }
        Ok(length)
    }

    fn note_warm(&mut self) {
        let pid = self.child().process.id();
        self.log.step("warm", format!("pid {pid}"));
        failpoint::reach("old.warm");
    }

    /// Pauses all threads, and writes the snapshot.
    fn pause(&mut self) -> Input {
        let (now, times) = (clock::machine_now(), &self.settings.times);
        let quiet_until = self.deadline.min(now + times.quiesce_timeout);
        // Nobody stands still for longer, whatever the new process does.
        self.wait_until = self.deadline.min(now + times.pause_max);
        let machine_nanos = clock::machine_nanos();
        let frozen = match self.gateway.freeze(quiet_until, self.wait_until, &self.stored) {
            Ok(frozen) => frozen,
            Err(NotFrozen::Late(problem)) => return self.fail(Input::NotQuiet, problem),
            Err(NotFrozen::Failed(problem)) => return self.fail(Input::Failed, problem),
        };
        match self.write(frozen, machine_nanos) {
            Ok(()) => Input::Written,
            Err(problem) => self.fail(Input::Failed, problem),
        }
    }

    /// Lets all threads run for a moment, and pauses them again.
    fn pause_again(&mut self) -> Input {
        self.gateway.resume_after_rollback(None);
        let problem = self.problem.clone();
        tracing::warn!(problem, "hot restart: the threads did not come to rest; they are paused once more");
        let until = clock::machine_now() + AGAIN_AFTER;
        while clock::machine_now() < until && !self.signals.is_ending() {
            std::thread::park_timeout(LOOK);
        }
        self.log.step("quiesce", format!("not in time: {problem}"));
        if self.signals.is_ending() { self.fail(Input::Failed, ENDING.into()) } else { self.pause() }
    }

    /// Writes the snapshot of the paused threads.
    fn write(&mut self, frozen: (Instant, Writer), machine_nanos: u64) -> Result<(), String> {
        let (at, mut writer) = frozen;
        self.paused_at = Some(Pause { at, machine_nanos });
        self.log.step("freeze", "all threads are paused");
        failpoint::reach("old.frozen");

        let mut head = GatewayHead {
            history: self.history.iter().map(record_of).collect(),
            restart_numbers: self.gateway.status.restarts.numbers(),
            ..GatewayHead::default()
        };
        head.history.push(record_of(&self.log.restart));
        let head = self.gateway.freeze_head(head).map_err(cannot("name the listening sockets"))?;
        writer.add(SectionKind::Gateway, 0, head);
        let header = Header {
            writer: env!("CARGO_PKG_VERSION").into(),
            generation: self.generation,
            frozen_at: at.as_nanos(),
            critical: self.gateway.critical(),
            ..Header::default()
        };
        let mut parts = writer.finish(header);
        failpoint::damage("old.damage", &mut parts);
        let length = parts.iter().map(|part| part.len() as u64).sum();
        check::check_memory(2 * length, length)?;
        self.snapshot_bytes = failpoint::try_reach("old.snapshot")
            .and_then(|()| memory::write_sealed(&self.child().snapshot, &parts))
            .map_err(cannot("write the snapshot into memory"))?;
        self.log.step("snapshot", format!("{} bytes", self.snapshot_bytes));
        Ok(())
    }

    /// Offers the sockets to the child.
    fn commit(&mut self) -> Option<Input> {
        self.log.step("adopt", format!("{} sockets", self.adopted_sockets));
        failpoint::reach("old.ready");
        assert!(self.child().word.swap(COMMIT), "the child swaps first only when this process is dead");
        failpoint::reach("old.committed");
        self.wait_until = clock::machine_now() + TOUCHED_MAX;
        self.send(&Message::Commit)
    }

    /// Takes the sockets back if the child has not taken them.
    fn reclaim(&mut self) -> Input {
        let Self { child, problem, .. } = self;
        let child = child.as_mut().expect("it was started before the commit");
        if child.word.swap(RECLAIM) {
            *problem = format!("after the commit: {problem}");
            Input::WordWon
        } else {
            *problem = format!("the new process took over and failed: {problem}");
            Input::WordLost
        }
    }

    fn end_child(&mut self) {
        if let Some(ChildHandle { process, .. }) = self.child.take() {
            process.kill();
        }
        self.gateway.door.set_shared(Holder::New, false);
    }
}

/// Returns the word for the child's progress that a state waits for.
fn awaited(state: State) -> &'static str {
    match state {
        State::Checking | State::DryRun | State::Warming => "warm",
        State::Freezing | State::FreezingAgain | State::Moving => "ready",
        _ => "running",
    }
}

fn late(state: State) -> String {
    format!("the new process was not {} in time", awaited(state))
}

fn cannot(operation: &'static str) -> impl FnOnce(io::Error) -> String {
    move |error| format!("cannot {operation}: {error}")
}
