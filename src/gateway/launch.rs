//! The begin of service. Everything is made and started first, and stands still; then it only resumes.
//!
//! For example, the new process of a hot restart starts its threads, its admin servers and its notifiers while the old
//! process holds the sockets. A thread that the system refuses undoes the restart. After the new process has taken the
//! sockets, nothing is made any more that service needs, and nothing that can block is done by a thread that serves.

use super::GatewayError;
use super::assembly::{Gateway, Leftovers, Prepared, unix_base};
use super::handover::{PidFile, notify_ready};
use super::listening::{self, ChangedListener, ListeningSocket};
use super::notifier::Notifier;
use super::retired_sockets::RETIRED_TIME;
use super::threads::{self, Thread};
use crate::admin::{self, Admin};
use crate::config::Config;
use crate::failpoint;
use crate::reactor::{Holder, ReactorMail};
use crate::snapshot::SectionKind;
use crate::sys::volunteer::Volunteer;
use crate::sys::{clock, sockets};
use crossbeam_channel::bounded;
use moorline_net::layer::OpeningKind;
use moorline_net::log;
use moorline_net::mailbox::Sender;
use moorline_net::stream::Stream;
use socket2::SockRef;
use std::io;
use std::net::{Shutdown, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// Time in which all threads must have come to their first pause.
const PARKED_MAX: Duration = Duration::from_secs(5);
/// Interval at which that pause is looked for.
const LOOK: Duration = Duration::from_micros(50);
/// Interval at which the notifier wakes while it waits for the end of the old process.
const LIFE_LOOK: Duration = Duration::from_secs(10);
/// Time in which clients that have begun a connection to a listener that is given up can finish that. Clients that begin one
/// meanwhile are not answered; their systems try again a second later, and are refused.
const CLOSING_TIME: Duration = Duration::from_secs(1);
/// Interval at which such connections are accepted.
const CLOSING_LOOK: Duration = Duration::from_millis(20);
/// Connections at one listener of another kind that are served as before, at most; the others meet the new kind.
const WAITING_MAX: usize = 4096;
/// Longest wait for the supervisor and the pid file before the admin servers answer.
const TOLD_MAX: Duration = Duration::from_millis(500);

/// A gateway that is complete and stands still: it has read and written nothing.
pub(super) struct Parked {
    pub(super) gateway: Gateway,
    /// Number of connections that were adopted with their socket.
    pub(super) connections_taken: u64,
    pub(super) left: Leftovers,
    pid_file: PidFile,
    notifiers: Notifiers,
}

/// Things of a new process that end when it serves.
#[derive(Default)]
pub(super) struct End {
    /// Mark of the process that ends first when memory is short; `None`: it carries none.
    pub(super) volunteer: Option<Volunteer>,
    /// Pipe that closes with the old process, which has the sockets, too, until then.
    pub(super) life: Option<OwnedFd>,
}

/// Threads that tell others about this process. Each waits for another party, so that none holds up another.
struct Notifiers {
    supervisor: Notifier,
    files: Notifier,
    ready_line: Notifier,
    /// Closes the listeners that the settings do not name any more; `None`: there are none.
    closing: Option<Notifier>,
    /// Ends the admin sockets that the settings do not name any more; `None`: there are none.
    retiring: Option<Notifier>,
}

impl Notifiers {
    fn start(left: &Leftovers, is_retiring: bool) -> io::Result<Self> {
        let is_closing = !left.retired.is_empty();
        Ok(Self {
            supervisor: Notifier::start("notify")?,
            files: Notifier::start("pid-file")?,
            ready_line: Notifier::start("ready-line")?,
            closing: is_closing.then(|| Notifier::start("closing")).transpose()?,
            retiring: is_retiring.then(|| Notifier::start("retiring")).transpose()?,
        })
    }
}

impl Prepared {
    /// Starts all threads, which pause before their first turn, and the admin servers, which accept nobody yet.
    ///
    /// # Errors
    /// The system refuses a thread or a descriptor.
    pub(super) fn park(mut self, config: &Config) -> Result<Parked, GatewayError> {
        self.status.restarts.introduce(self.birth.epoch, config.handover.timeout);
        let (reactors, workers) = self.threads;
        let worker_threads = threads::start_paused(self.workers, workers, SectionKind::Worker)?;
        let reactor_threads = threads::start_paused(self.reactors, reactors, SectionKind::Shard)?;
        let shared = self.admin_sockets.share().map_err(GatewayError::system("share the admin sockets"))?;
        let spawn = |shared| admin::spawn(shared, &self.status, &self.metrics);
        let admin = shared.map(spawn).transpose().map_err(GatewayError::system("start the admin threads"))?;
        let retired = self.admin_sockets.retire(&self.status, &self.metrics);
        let retired =
            retired.map_err(GatewayError::system("start the threads of the admin sockets of before"))?;
        let notifiers = Notifiers::start(&self.left, !retired.is_empty())
            .map_err(GatewayError::system("start a thread for notifications"))?;
        let gateway = Gateway {
            listeners: self.listeners,
            admin_sockets: self.admin_sockets,
            admin,
            retired_sockets: Arc::new(retired),
            status: self.status,
            metrics: self.metrics,
            door: self.door,
            clock: self.clock,
            birth: self.birth,
            judge: self.judge,
            identity: self.identity,
            credentials: self.credentials,
            node: self.node,
            shard_map: self.shard_map,
            has_grown: self.has_grown,
            has_layers: self.has_layers,
            cap: self.cap,
            reactor_mail: self.reactor_mail,
            worker_mail: self.worker_mail,
            reactor_threads,
            worker_threads,
            workers_stop: self.workers_stop,
        };
        gateway.await_first_pause()?;
        Ok(Parked {
            gateway,
            connections_taken: self.connections_taken,
            left: self.left,
            pid_file: PidFile::of(config),
            notifiers,
        })
    }
}

impl Parked {
    /// Accepts the connections that wait at listeners of another kind now: their clients speak the kind of before. Those that
    /// come later meet the new kind. Call it before [`Self::resume`]. Returns what happened, for people.
    pub(super) fn admit_waiting(&self) -> Vec<String> {
        let reactors = &self.gateway.reactor_mail;
        let admit = |changed: &ChangedListener| {
            let ChangedListener { index, name, socket, before, is_served } = changed;
            let (mut served, mut closed) = (0, 0);
            let waiting = std::iter::from_fn(|| socket.accept().ok()).take(WAITING_MAX);
            for (number, (client, _)) in waiting.enumerate() {
                client.set_nonblocking(true).ok();
                let stream = Stream::tcp(mio::net::TcpStream::from_std(client));
                let reactor = &reactors[number % reactors.len()];
                let newcomer = ReactorMail::Newcomer(stream, *before, *index);
                let is_admitted = *is_served && reactor.try_send(newcomer).is_ok();
                *(if is_admitted { &mut served } else { &mut closed }) += 1;
            }
            format!(
                "listener {name} has another kind: {served} connections that waited there are served as before, \
                 {closed} are closed"
            )
        };
        self.left.changed.iter().map(admit).collect()
    }

    /// Says where the admin socket is now, for people; `None`: where it was.
    pub(super) fn moved_socket(&self) -> Option<String> {
        let before = self.gateway.retired_sockets.newest()?;
        let still = format!("{} answers for {} s more", before.display(), RETIRED_TIME.as_secs());
        Some(match self.gateway.admin.as_ref().and_then(Admin::socket) {
            Some(now) => format!("the admin socket is {now} now; {still}"),
            None => format!("the settings have no admin socket any more; {still}"),
        })
    }

    /// Has all threads run. Nothing here fails or blocks.
    pub(super) fn resume(&self) {
        let unix_base_nanos = unix_base(&self.gateway.clock);
        self.gateway.threads().for_each(|thread| thread.pause.resume(unix_base_nanos));
    }

    /// Tells everybody that this process serves, and has the admin servers answer. Does not wait longer than half a
    /// second for a supervisor or a file system. `is_main`: the supervisor does not know yet that this process is its
    /// main one, and nobody else tells it. `end`: of the time before.
    pub(super) fn tell(self, is_main: bool, end: End) -> Gateway {
        let Self { mut gateway, left, pid_file, notifiers, .. } = self;
        let Notifiers { supervisor, files, ready_line, closing, retiring } = notifiers;
        // Closed when both parties have been told.
        let (telling, told) = bounded::<()>(0);
        let (notifying, door) = (telling.clone(), Arc::clone(&gateway.door));
        if let (Some(closing), Some(reactor)) = (closing, gateway.reactor_mail.first().cloned()) {
            closing.tell(move || close(&left.retired, &reactor));
        }
        supervisor.tell(move || {
            if let Some(Err(error)) = end.volunteer.map(Volunteer::step_back) {
                tracing::warn!(%error, "cannot lower oom_score_adj: the kernel ends this process first");
            }
            failpoint::reach("new.notify");
            notify_ready(is_main);
            drop(notifying);
            // Nothing is ever written: the pipe closes with the old process.
            if let Some(life) = end.life {
                while !sockets::is_readable(&life, LIFE_LOOK).unwrap_or(true) {}
                door.set_shared(Holder::Old, false);
            }
        });
        gateway.admin_sockets.own();
        if let Some(retiring) = retiring {
            let retired = Arc::clone(&gateway.retired_sockets);
            retiring.tell(move || retired.end_in_time());
        }
        files.tell(move || {
            failpoint::reach("new.pid_file");
            pid_file.write(std::process::id());
            drop(telling);
        });
        told.recv_timeout(TOLD_MAX).ok();
        if let Some(admin) = &gateway.admin {
            admin.set_paused(false);
        }
        gateway.retired_sockets.open();
        tracing::info!(
            listener = listening::addresses(&gateway.listeners),
            reactors = gateway.reactor_threads.len(),
            workers = gateway.worker_threads.len(),
            connections_max = gateway.cap,
            "serving"
        );
        // A drain has closed the sockets, and only its end opens them.
        if !gateway.status.is_draining() {
            gateway.listeners.iter().for_each(ListeningSocket::set_backlog);
        }
        let line = gateway.ready_line();
        ready_line.tell(move || {
            let written =
                failpoint::try_reach("new.line").and_then(|()| log::write_here(io::stdout(), &line));
            if let Err(error) = written {
                tracing::warn!(%error, "cannot write the ready line to standard output");
            }
        });
        gateway
    }
}

impl Gateway {
    /// Waits until every thread stands still before its first turn.
    fn await_first_pause(&self) -> Result<(), GatewayError> {
        let until = clock::machine_now() + PARKED_MAX;
        for Thread { name, pause, .. } in self.threads() {
            while !pause.is_paused() {
                if clock::machine_now() >= until {
                    return Err(GatewayError::Thread(name.clone()));
                }
                std::thread::park_timeout(LOOK);
            }
        }
        Ok(())
    }

    /// Returns the ready line, for people, scripts and tests.
    fn ready_line(&self) -> String {
        let off = || "off".to_owned();
        let admin = self.admin.as_ref().map_or_else(off, |admin| admin.address().to_string());
        let socket = self.admin.as_ref().and_then(Admin::socket).map_or_else(off, ToString::to_string);
        let shown = self.status.restarts.show();
        let generation = shown.generation;
        let last = shown.restarts.last().filter(|_| generation > 0);
        let moved = last.map_or_else(String::new, |last| {
            format!(" sockets={} pause_ms={:.1}", last.sockets, last.pause_seconds * 1e3)
        });
        format!(
            "moorline ready listener={} admin={admin} socket={socket} pid={} generation={generation}{moved}\n",
            listening::addresses(&self.listeners),
            std::process::id()
        )
    }
}

/// Lets in the clients that wait at addresses that are given up, and gives the addresses up: the process before has the
/// sockets, too, and would keep them open until it has left. No client that was answered is reset: first nobody begins a
/// connection there, and a second later nobody is left who had begun one.
fn close(retired: &[(TcpListener, OpeningKind)], reactor: &Sender<ReactorMail>) {
    for (socket, _) in retired {
        if let Err(error) = sockets::drop_newcomers(socket) {
            tracing::warn!(%error, "clients that come to a closed listener now may be reset");
        }
    }
    let until = clock::machine_now() + CLOSING_TIME;
    let mut rejected = 0;
    loop {
        let is_over = clock::machine_now() >= until;
        let waiting = retired.iter().flat_map(|(listener, kind)| {
            std::iter::from_fn(|| listener.accept().ok()).map(|(socket, _)| (socket, *kind))
        });
        for (socket, kind) in waiting {
            socket.set_nonblocking(true).ok();
            SockRef::from(&socket).detach_filter().ok(); // an inherited one of no use
            let stream = Stream::tcp(mio::net::TcpStream::from_std(socket));
            let newcomer = ReactorMail::Newcomer(stream, kind, 0); // by the limits of the first listener
            rejected += u64::from(reactor.try_send(newcomer).is_err());
        }
        if is_over {
            break;
        }
        std::thread::park_timeout(CLOSING_LOOK);
    }
    retired.iter().for_each(|(listener, _)| _ = SockRef::from(listener).shutdown(Shutdown::Both));
    if rejected > 0 {
        tracing::warn!(
            rejected,
            "rejected connections that waited at a closed listener: the reactor's mailbox is full"
        );
    }
}
