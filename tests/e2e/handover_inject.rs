//! Hot restart whose system calls fail or are slow behind the point of no return: the system itself refuses, by `strace`.
//!
//! Nobody lists the calls: the first restart of the test writes down which calls the new process, the old one and its guard
//! make from the moment at which the sockets are the new process's own until everybody is served again. From this record
//! come the faults: each call, in each kind of thread, meets each of its errors, and a delay. A call that a later version
//! makes there is met without another line here.
//!
//! Clients of all kinds of listeners stay connected through all of it, hear each other, and newcomers are let in. An ordinary
//! run takes a sample; `MOORLINE_SOAK_SEED` chooses another one, and `MOORLINE_SOAK_SECONDS=1000` or more takes all of
//! them, or as many as the time allows. `MOORLINE_FAULT="new/notify write"` repeats the faults whose names contain that.

use crate::process::{TempFile, is_alive, parent};
use crate::raw::Client;
use crate::series::end;
use crate::tls::{KINDS, World, chat};
use crate::tracer::{Tracer, calls, is_there, met, threads};
use crate::{soak, until};
use moorline::sys::clock;
use moorline_proto::message::client::Code;
use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::os::unix::net::UnixDatagram;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// Time of the faults of an ordinary run.
const SAMPLE_SECONDS: u64 = 15;
/// Faults of an ordinary run at most, beside the first ones.
const SAMPLE: usize = 8;
/// Delay of a call: longer than any wait of the restart for one step, by the old process or the new one.
const DELAY: &str = "delay_enter=2500000";
/// Time for which a delay is looked at.
const DELAY_TIME: Duration = Duration::from_secs(3);

/// Threads that serve clients: a call that fails for ever there, as a wait for events does, is the service itself. There, the
/// first call of each thread meets the fault.
const SERVING: [&str; 3] = ["reactor", "worker", "handshake"];
/// Calls by which a process gets memory and threads, refused all together, and those that are refused alone: hardly one of
/// them is in a record, since everything is there before the commit.
const MEMORY: [&str; 5] =
    ["mmap,mremap,brk,mprotect,madvise,clone,clone3", "mmap", "brk", "mprotect", "clone,clone3"];

/// A call, and what happens to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Fault {
    /// `new`, `old` or `guard`.
    process: &'static str,
    /// Kind of the threads; empty: all of the process.
    thread: String,
    call: String,
    effect: String,
}

impl Display for Fault {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let Self { process, thread, call, effect } = self;
        write!(out, "{process}/{thread} {call}: {effect}")
    }
}

/// Errors that the system can give for a call. A call without a line here has those of the last one.
#[allow(clippy::match_same_arms)] // a table reads row by row
fn errors(call: &str) -> &'static [&'static str] {
    match call {
        "open" | "openat" => &["EMFILE", "ENFILE", "ENOMEM", "EIO", "EINTR", "ENOSPC"],
        "read" | "pread64" | "readv" => &["EIO", "EINTR", "EAGAIN"],
        "write" | "pwrite64" | "writev" => &["EIO", "ENOSPC", "EAGAIN", "EINTR", "EPIPE"],
        "rename" | "renameat" | "unlink" | "unlinkat" | "chmod" | "fchmod" | "ftruncate" => {
            &["EIO", "EROFS", "ENOSPC", "ENOMEM"]
        }
        "stat" | "lstat" | "fstat" | "statx" | "newfstatat" | "lseek" | "readlink" => &["EIO", "ENOMEM"],
        "fsync" | "fdatasync" => &["EIO", "ENOSPC", "EINTR"],
        "close" => &["EIO", "EINTR"],
        "socket" | "socketpair" | "pipe2" | "eventfd2" | "epoll_create1" | "memfd_create" | "dup" => {
            &["EMFILE", "ENFILE", "ENOMEM", "ENOBUFS"]
        }
        "accept" | "accept4" => &["EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "ECONNABORTED", "EINTR"],
        "connect" => &["ECONNREFUSED", "EAGAIN", "ENOBUFS", "EINTR"],
        "sendto" | "sendmsg" | "recvfrom" | "recvmsg" => &["EAGAIN", "ENOBUFS", "ENOMEM", "EINTR"],
        "setsockopt" | "getsockopt" | "listen" | "shutdown" => &["ENOMEM", "ENOBUFS"],
        "clone" | "clone3" | "fork" | "vfork" => &["EAGAIN", "ENOMEM"],
        "mmap" | "mremap" | "brk" | "mprotect" | "madvise" | "munmap" => &["ENOMEM"],
        "epoll_wait" | "epoll_pwait" => &["EINTR"],
        "poll" | "ppoll" => &["EINTR", "ENOMEM"],
        "epoll_ctl" => &["ENOMEM", "ENOSPC"],
        "nanosleep" | "clock_nanosleep" => &["EINTR"],
        "wait4" | "waitid" => &["EINTR", "ECHILD"],
        "kill" | "tgkill" | "pidfd_open" | "pidfd_send_signal" => &["EPERM", "EMFILE", "ENOMEM"],
        "prlimit64" | "fcntl" | "ioctl" => &["EPERM", "EINVAL"],
        "getrandom" => &["EINTR", "EAGAIN"],
        // A wait ends without a cause, or the value has changed.
        "futex" => &["EINTR", "EAGAIN"],
        // The system refuses none: a wake that is lost is a fault that no process can meet.
        "futex wake" | "write wake" => &[],
        _ => &["EIO", "ENOMEM", "EINTR", "EAGAIN"],
    }
}

/// True if a call cannot fail, and takes no time: it reads a number of the process, or ends a thread.
fn is_certain(call: &str) -> bool {
    call.starts_with("get") && call != "getrandom" && call != "getsockopt"
        || call.starts_with("rt_sig")
        || matches!(
            call,
            "exit"
                | "exit_group"
                | "restart_syscall"
                | "set_robust_list"
                | "rseq"
                | "sigaltstack"
                | "sched_yield"
                | "clock_gettime"
                | "prctl"
                | "umask"
        )
}

/// Effects that a call meets, one after the other.
fn effects(thread: &str, call: &str) -> Vec<String> {
    if is_certain(call) {
        return Vec::new();
    }
    let is_serving = SERVING.contains(&thread);
    let carries_bytes =
        matches!(call, "read" | "readv" | "recvfrom" | "recvmsg" | "write" | "writev" | "sendto" | "sendmsg");
    // A socket that cannot be read or written is the end of that connection, as EPIPE says, and of no other one. EAGAIN is
    // told by the system only when it is true: the next event follows.
    let errors: &[&str] = match call {
        _ if is_serving && carries_bytes => &["EINTR"],
        // A defect, of which the system tells at each call; here at the first one. The runtime of the admin servers takes
        // every error of this call but EINTR for a defect, and ends the process.
        "epoll_wait" if is_serving => &["EINTR", "EBADF"],
        _ => errors(call),
    };
    // One call of many: a wait for events, or for another thread, that fails at once for ever is a loop, which nobody means.
    let is_once = is_serving || call.contains("futex") || call.contains("poll");
    let when = if is_once { ":when=1" } else { "" };
    let error_of = |error: &&str| {
        let error = *error;
        // The system tells of an interruption once.
        let when = if error == "EINTR" { ":when=1" } else { when };
        format!("error={error}{when}")
    };
    let errors = errors.iter().map(error_of);
    errors.chain([format!("{DELAY}{when}")]).collect()
}

/// Faults of a record.
fn derive(process: &'static str, record: &BTreeSet<(String, String)>) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (thread, call) in record {
        // A thread of which some calls of this name wake others meets delays only: the name is what is injected.
        let wake = format!("{call} wake");
        let is_waking = record.contains(&(thread.clone(), wake.clone()));
        let effects = effects(thread, if is_waking { &wake } else { call });
        let call = call.split(' ').next().expect("a name");
        let fault = |effect| Fault { process, thread: thread.clone(), call: call.to_owned(), effect };
        faults.extend(effects.into_iter().map(fault));
    }
    faults.sort();
    faults.dedup();
    faults
}

/// Processes of a restart at the moment of the takeover.
#[derive(Clone, Copy)]
struct Processes {
    new: u32,
    old: u32,
    guard: u32,
}

impl Processes {
    fn get(self, name: &str) -> u32 {
        match name {
            "new" => self.new,
            "old" => self.old,
            _ => self.guard,
        }
    }
}

/// A gateway, and clients of each kind.
struct Stage {
    world: World,
    clients: Vec<(String, Client)>,
    key: u128,
    rounds: u64,
    /// The process that serves.
    pid: u32,
    /// Line of the log at its takeover.
    touched: String,
    notify: TempFile,
    _audit: TempFile,
}

impl Stage {
    fn start() -> Self {
        let (notify, audit) = (TempFile::new(""), TempFile::new(""));
        let path = notify.path().with_extension("notify");
        let supervisor = UnixDatagram::bind(&path).expect("a socket");
        std::thread::spawn(move || while supervisor.recv(&mut [0; 4096]).is_ok() {});
        let world =
            World::start_as(&format!("[audit]\nfile = \"{}\"\n", audit.path().display()), |command| {
                command.env("NOTIFY_SOCKET", path).arg("--set=log.level=info");
            });
        let kinds = ["tcp", "tls", "tls", "ws", "wss"];
        let clients = kinds.iter().zip(0..).map(|(kind, number)| {
            let uid = format!("{kind}-{number}");
            (uid.clone(), world.login(kind, &uid))
        });
        let (clients, pid) = (clients.collect(), world.series.pid());
        let mut stage =
            Self { world, clients, key: 0, rounds: 0, pid, touched: String::new(), notify, _audit: audit };
        stage.serve();
        stage
    }

    /// Everybody hears everybody, and a newcomer is let in.
    fn serve(&mut self) {
        chat(&mut self.clients, &mut self.key);
        self.key += 1;
        let kind = KINDS[usize::try_from(self.key).expect("small") % KINDS.len()];
        let mut newcomer = self.newcomer(kind);
        let (name, hearing) = &mut self.clients[0];
        let before = hearing.heard.pushes.len();
        let ack = newcomer.tell(self.key, name, b"hello");
        assert_eq!(ack.code(), Code::Ok, "{ack:?}");
        hearing.until("the newcomer's message", |heard| heard.pushes.len() > before);
    }

    /// A client that comes again if its connection is not taken: a call that fails for a newcomer's socket, such as `epoll_ctl`,
    /// ends that connection, once in each reactor.
    fn newcomer(&self, kind: &str) -> Client {
        let login = || self.world.login(kind, &format!("newcomer-{}", self.key));
        let tries = (0..3).find_map(|_| catch_unwind(AssertUnwindSafe(login)).ok());
        tries.unwrap_or_else(login)
    }

    /// A restart whose processes something is attached to from the takeover on. `done` lets them go.
    fn restart<T, R>(
        &mut self,
        attach: impl FnOnce(Processes) -> T,
        time: Duration,
        done: impl FnOnce(T) -> R,
    ) -> R {
        self.world.series.set_faults("new.touched wait\n");
        let (old, admin) = (self.pid, self.world.series.gateway.admin.to_string());
        let result = std::thread::scope(|scope| {
            let order = scope.spawn(move || crate::process::run(&["upgrade", "--admin", &admin, "--json"]));
            // Both processes write into one log, and neither waits for the other.
            let last = |word: &str| {
                let log = self.world.series.gateway.process.log();
                log.lines().rfind(|line| line.contains(word)).map(str::to_owned)
            };
            let new = until("it has the sockets", || {
                assert!(!order.is_finished(), "the restart has ended");
                let touched = last("new.touched").filter(|line| *line != self.touched)?;
                let pid = last("detail=\"pid ")?.rsplit_once("pid ")?.1.trim_end_matches('"').parse().ok();
                pid.filter(|pid| *pid != old).inspect(|_| self.touched = touched)
            });
            self.pid = new;
            let guard = parent(new).expect("it runs");
            let attached = attach(Processes { new, old, guard });
            self.world.series.set_faults("");
            let since = clock::now();
            loop {
                self.serve();
                if clock::now().saturating_since(since) >= time {
                    break;
                }
            }
            let result = done(attached);
            let (code, said, error) = order.join().expect("no panic");
            assert!(code == Some(0) && said.contains("\"committed\""), "{code:?} {said} {error}");
            result
        });
        self.serve();
        self.rounds += 1;
        until("the old process leaves", || (!is_alive(old)).then_some(()));
        assert_eq!(self.world.series.restarts().generation, self.rounds);
        for (name, client) in &self.clients {
            assert_eq!((client.heard.repeats, &client.heard.end), (0, &None), "{name}");
        }
        result
    }

    /// A restart under a fault. Returns the number of calls that met it.
    fn inject(&mut self, fault: &Fault) -> usize {
        let time = if fault.effect.starts_with("delay") { DELAY_TIME } else { Duration::ZERO };
        let attach = |processes: Processes| {
            let pid = processes.get(fault.process);
            let named = threads(pid).into_iter().filter(|(_, name)| *name == fault.thread);
            let ids: Vec<u32> = named.map(|(id, _)| id).collect();
            // A thread that is not there yet may be started.
            let (ids, follows) = if ids.is_empty() { (vec![pid], true) } else { (ids, false) };
            Tracer::inject(&ids, follows, &fault.call, &fault.effect)
        };
        self.restart(attach, time, |tracer| tracer.map_or(0, |tracer| met(&tracer.detach())))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // The pid file may not name it.
        end(self.pid);
        std::fs::remove_file(self.notify.path().with_extension("notify")).ok();
    }
}

/// Calls of all three processes behind the commit, as faults.
fn record(stage: &mut Stage) -> Vec<Fault> {
    let own = stage.world.series.faults().display().to_string();
    let attach = |processes: Processes| {
        ["new", "old", "guard"].map(|name| (name, Tracer::record(processes.get(name))))
    };
    let records = stage.restart(attach, Duration::from_millis(500), |tracers| {
        tracers.map(|(name, tracer)| (name, tracer.map(Tracer::detach).unwrap_or_default()))
    });
    let mut faults = Vec::new();
    for (name, record) in records {
        let calls = calls(&record, &own);
        println!("{name}: {calls:?}");
        let drawn = ("reactor".to_owned(), "getrandom".to_owned());
        assert!(!calls.contains(&drawn), "the keys of hash tables are drawn before the commit");
        faults.extend(derive(name, &calls));
    }
    faults
}

#[test]
fn a_system_call_that_fails_or_waits_behind_the_commit_ends_no_service() {
    if !is_there() {
        return;
    }
    let mut stage = Stage::start();
    let derived = record(&mut stage);
    assert!(derived.len() > 100, "a restart makes calls: {derived:?}");
    let memory = MEMORY.map(|calls| Fault {
        process: "new",
        thread: String::new(),
        call: calls.into(),
        effect: "error=ENOMEM".into(),
    });
    let seed = usize::try_from(soak::seed()).expect("small");
    let chosen = std::env::var("MOORLINE_FAULT");
    let faults: Vec<Fault> = if let Ok(chosen) = chosen {
        let all = memory.into_iter().chain(derived).filter(|fault| fault.to_string().contains(&chosen));
        all.collect::<Vec<_>>().into_iter().cycle().take(1000).collect()
    } else if soak::is_long() {
        memory.into_iter().chain(derived).collect()
    } else {
        let step = derived.len() / SAMPLE;
        let sample = derived.into_iter().skip(seed * 7 % step).step_by(step).take(SAMPLE);
        memory.into_iter().take(1).chain(sample).collect()
    };
    let until = clock::now() + soak::time(SAMPLE_SECONDS);
    let (mut staged, mut failed) = (0, Vec::new());
    let count = faults.len();
    for fault in faults {
        if clock::now() >= until {
            break;
        }
        staged += 1;
        match catch_unwind(AssertUnwindSafe(|| stage.inject(&fault))) {
            Ok(met) => println!("{fault}: {met} calls met it"),
            Err(panic) => {
                let problem = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                println!("{fault}: FAILED: {problem}\n{}", stage.world.series.gateway.process.log());
                failed.push(fault.to_string());
                stage = Stage::start();
            }
        }
    }
    println!("{staged} of {count} faults were staged");
    assert!(failed.is_empty(), "service ended or stalled: {failed:#?}");
}
