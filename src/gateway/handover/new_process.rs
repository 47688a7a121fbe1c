//! The new process as the old one sees it: through its guard, and through a descriptor of the process.
//!
//! The old process is not its parent, so it cannot wait for it: the guard tells the exit status, and the descriptor (`pidfd`)
//! tells the end even if the guard was killed. A signal by the descriptor never meets another process.

use super::bodies::{BODIES, Given};
use super::guard::{GUARD, Orders};
use super::previous::{self, PREVIOUS};
use super::{OLD, VARIABLE};
use crate::sys::child::{self, Inherited};
use crate::sys::executable::Executable;
use crate::sys::process::ProcessFd;
use crate::sys::{clock, sockets};
use moorline_proto::time::{Duration, Instant};
use std::ffi::OsString;
use std::io::{self, ErrorKind, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::process::Child;

/// Longest line of the guard, in bytes.
const LINE_BYTES_MAX: usize = 4096;
/// Longest wait until a killed process, or the guard, is gone.
const GONE_MAX: Duration = Duration::from_secs(5);
/// Interval at which an end is looked for; all threads may be paused meanwhile.
const LOOK: Duration = Duration::from_millis(1);

/// Parts of a new process's start.
pub(super) struct Start<'a> {
    /// The program of this process, which is the guard's.
    pub(super) own: &'a Executable,
    /// The program of the new process.
    pub(super) program: &'a Executable,
    pub(super) arguments: &'a [OsString],
    /// Descriptors of the channel, the word, the snapshot and the list of sockets, which the new process takes by number.
    pub(super) named: [RawFd; 4],
    /// Descriptor that the new process does not get: this process's end of the channel.
    pub(super) hidden: RawFd,
    /// The program to which the new process can go back.
    pub(super) previous: Option<&'a Executable>,
    /// Bodies that wait for clients; `None`: the program does not read them.
    pub(super) bodies: Option<&'a Given>,
    /// True if the program reads [`OLD`].
    pub(super) knows_guard: bool,
    /// Time until which it must have started.
    pub(super) deadline: Instant,
}

/// A new process, and its guard.
#[derive(Debug)]
pub(super) struct NewProcess {
    pid: u32,
    process: ProcessFd,
    guard: Child,
    talk: UnixStream,
    /// Bytes from the guard that are not a whole line yet.
    heard: Vec<u8>,
    /// Closes when this process dies; the new one has the other end.
    _life: PipeWriter,
}

impl NewProcess {
    /// Starts the guard, which starts the new process.
    ///
    /// # Errors
    /// The cause, for people.
    pub(super) fn start(start: &Start<'_>) -> Result<Self, String> {
        let failed = |what: &'static str| move |error: io::Error| format!("spawn: cannot {what}: {error}");
        let (talk, theirs) = UnixStream::pair().map_err(failed("make a socket pair"))?;
        let (life, own_life) = io::pipe().map_err(failed("make a pipe"))?;
        let [_, word, ..] = start.named;
        let orders = Orders {
            talk: theirs.as_raw_fd(),
            word,
            program: start.program.fd(),
            life: life.as_raw_fd(),
            old: nix::unistd::getpid().as_raw(),
            knows_guard: start.knows_guard.into(),
        };
        let kept = |fd| Inherited { fd, cookie: None };
        let mut inherited: Vec<Inherited> = start.named.map(kept).into();
        inherited.extend([orders.talk, orders.program, orders.life].map(kept));
        let value = start.named.map(|fd| fd.to_string()).join(",");
        let mut command = start.own.command().map_err(failed("read the own program"))?;
        command.arg(start.program.path()).args(start.arguments);
        command.env(GUARD, orders.to_string()).env(VARIABLE, value).env_remove(OLD).env_remove(PREVIOUS);
        command.env_remove(BODIES);
        if let Some(bodies) = start.bodies {
            inherited.extend(bodies.fds().map(kept));
            command.env(BODIES, bodies.name());
        }
        if let Some(program) = start.previous {
            inherited.push(kept(program.fd()));
            command.env(PREVIOUS, previous::name(program));
        }
        let known = sockets::open_fds().map_err(failed("list the open descriptors"))?;
        let hidden = [start.hidden, talk.as_raw_fd(), start.named[0], orders.talk];
        let others = known.into_iter().filter(|fd| !hidden.contains(fd));
        inherited
            .extend(others.filter_map(|fd| Some(Inherited { fd, cookie: Some(sockets::cookie_of(fd)?) })));
        child::inherit(&mut command, inherited);
        child::ignore_signals(&mut command);
        let guard = command.spawn().map_err(failed("run the guard"))?;
        drop(theirs);
        Self::greet(guard, talk, own_life, start.deadline)
    }

    /// Waits until the guard has started the new process.
    fn greet(
        mut guard: Child,
        talk: UnixStream,
        life: PipeWriter,
        deadline: Instant,
    ) -> Result<Self, String> {
        let mut heard = Vec::new();
        let begun = talk.set_nonblocking(true).map_err(|error| error.to_string()).and_then(|()| {
            loop {
                match next_line(&talk, &mut heard) {
                    Ok(Some(line)) => break started(&line, &talk),
                    Ok(None) if clock::machine_now() < deadline => std::thread::park_timeout(LOOK),
                    Ok(None) => break Err("the guard did not start it in time".to_owned()),
                    Err(error) => break Err(format!("the guard ended ({error})")),
                }
            }
        });
        match begun {
            Ok((pid, process)) => Ok(Self { pid, process, guard, talk, heard, _life: life }),
            Err(problem) => {
                guard.kill().ok();
                guard.wait().ok();
                Err(format!("spawn: {problem}"))
            }
        }
    }

    /// Process id.
    pub(super) const fn id(&self) -> u32 {
        self.pid
    }

    /// Returns the problem of a process that has ended; `None`: it lives.
    pub(super) fn end(&mut self) -> Option<String> {
        // Before its words are read: it tells the exit status and ends then. But it may have been killed.
        let is_unguarded = !matches!(self.guard.try_wait(), Ok(None));
        if let Ok(Some(line)) = next_line(&self.talk, &mut self.heard) {
            let status = line.strip_prefix("ended ").unwrap_or(&line);
            return Some(format!("the new process ended with {status}"));
        }
        (is_unguarded && self.process.has_ended()).then(|| "the new process ended".to_owned())
    }

    /// Kills the process, and waits until it is gone.
    pub(super) fn kill(mut self) {
        self.process.kill().ok();
        let until = clock::machine_now() + GONE_MAX;
        while !self.process.has_ended() && clock::machine_now() < until {
            std::thread::park_timeout(LOOK);
        }
        if !self.process.has_ended() {
            tracing::error!(pid = self.pid, "the new process was killed and is still there");
        }
        self.end_guard();
    }

    /// Has the guard leave: the new process is the supervisor's child when this returns.
    pub(super) fn release(&mut self) {
        (&self.talk).write_all(b"l").ok(); // a guard that has ended is gone anyway
        self.end_guard();
    }

    fn end_guard(&mut self) {
        let until = clock::machine_now() + GONE_MAX;
        while let Ok(None) = self.guard.try_wait() {
            if clock::machine_now() >= until {
                self.guard.kill().ok();
                self.guard.wait().ok();
                return;
            }
            std::thread::park_timeout(LOOK);
        }
    }
}

/// Opens the process of the guard's first line, and tells the guard that it may wait for it.
fn started(line: &str, mut talk: &UnixStream) -> Result<(u32, ProcessFd), String> {
    let pid = line.strip_prefix("started ").and_then(|pid| pid.parse().ok());
    let Some(pid) = pid else { return Err(line.strip_prefix("failed ").unwrap_or(line).to_owned()) };
    // The guard is its parent and has not waited for it: the number is its own.
    let opened = ProcessFd::open(pid).and_then(|process| talk.write_all(b"o").map(|()| process));
    let process = opened.map_err(|error| format!("cannot open the new process: {error}"))?;
    Ok((pid, process))
}

/// Takes the next line of the guard; `None`: it has not come yet.
fn next_line(mut talk: &UnixStream, heard: &mut Vec<u8>) -> io::Result<Option<String>> {
    loop {
        if let Some(end) = heard.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = heard.drain(..=end).collect();
            return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
        }
        let mut chunk = [0; 256];
        match talk.read(&mut chunk) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) if heard.len() + count <= LINE_BYTES_MAX => heard.extend_from_slice(&chunk[..count]),
            Ok(_) => return Err(ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
