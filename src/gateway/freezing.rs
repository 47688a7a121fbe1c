//! Pauses the running gateway, writes its state into a snapshot, and resumes it after a rollback.

use super::adopt;
use super::assembly::{Gateway, unix_base};
use super::handover::ENDING;
use super::listening::ListeningSocket;
use super::signals::Signals;
use super::threads::Thread;
use super::tls::Identity;
use crate::failpoint;
use crate::metrics::Counted;
use crate::pause::{Order, Question};
use crate::reactor::ReactorMail;
use crate::shard_map::Pins;
use crate::snapshot::{
    CountedRecord, FileRecord, GROWN, GatewayHead, Item, KEYED, LAYERED, ListenerRecord, RetiredRecord,
    SEALED_LINKS, Section, SectionKind, SocketsRecord, StoredBodies, Writer,
};
use crate::sys::{clock, sockets};
use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use moorline_net::unix_socket::FileId;
use moorline_proto::ids::ConnKey;
use moorline_proto::time::Instant;
use std::collections::HashSet;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Limit of descriptors in one record.
const SOCKETS_PER_RECORD: usize = 4096;
/// Interval at which a list of sockets is waited for.
const LISTED_LOOK: Duration = Duration::from_millis(20);
/// Interval at which the pause of a thread is looked for.
const LOOK: Duration = Duration::from_micros(50);

/// Reason, for people, why the threads are not frozen.
#[derive(Debug)]
pub(super) enum NotFrozen {
    /// They did not come to rest in time: they may do so a moment later.
    Late(String),
    /// Their state cannot be written.
    Failed(String),
}

/// A socket in the list of a reactor: its connection, number and cookie.
type Listed = (ConnKey, RawFd, u64);

/// Removes a socket from every list but the last one that has it.
fn keep_last(lists: &mut [Vec<Listed>]) {
    let mut seen = HashSet::new();
    for list in lists.iter_mut().rev() {
        list.retain(|(_, _, cookie)| !seen.contains(cookie));
        seen.extend(list.iter().map(|(_, _, cookie)| *cookie));
    }
}

impl Gateway {
    /// Pauses every thread by `deadline`, with no message under way, and collects the snapshot by `written`. `stored`: the
    /// new process has these bodies already.
    ///
    /// # Errors
    /// [`NotFrozen`]; the caller calls [`Self::resume_after_rollback`].
    pub(super) fn freeze(
        &self,
        deadline: Instant,
        written: Instant,
        stored: &Arc<StoredBodies>,
    ) -> Result<(Instant, Writer), NotFrozen> {
        if let Some(admin) = &self.admin {
            admin.set_paused(true);
        }
        self.retired_sockets.set_paused(true);
        self.threads().for_each(|thread| thread.pause.request());
        self.wake_threads();
        for Thread { name, pause, .. } in self.threads() {
            while !pause.is_paused() {
                if clock::machine_now() >= deadline {
                    return Err(NotFrozen::Late(format!("{name} did not pause in time")));
                }
                std::thread::park_timeout(LOOK);
            }
        }
        let frozen_at = self.clock.now();
        loop {
            let mut is_busy = false;
            for Thread { name, pause, .. } in self.threads() {
                let (reply, replied) = bounded(1);
                pause.order(Order::Step(reply));
                is_busy |= replied
                    .recv_timeout(clock::until(deadline))
                    .map_err(|_| NotFrozen::Late(format!("{name} did not hand over its messages in time")))?;
            }
            if !is_busy {
                break;
            }
            if clock::machine_now() >= deadline {
                return Err(NotFrozen::Late("messages between threads were not all handled in time".into()));
            }
        }
        let mut replies = Vec::new();
        for thread in self.threads() {
            let (reply, replied) = bounded(1);
            thread.pause.order(Order::Freeze(reply, Arc::clone(stored)));
            replies.push((thread, replied));
        }
        let mut sections = Vec::new();
        for (Thread { name, kind, .. }, replied) in replies {
            let frozen = replied
                .recv_timeout(clock::until(written))
                .map_err(|_| NotFrozen::Failed(format!("{name} did not write its state in time")))?;
            let frozen = frozen
                .map_err(|error| NotFrozen::Failed(format!("{name} cannot write its state: {error}")))?;
            sections.extend(frozen.into_iter().map(|(number, section)| (*kind, number, section)));
        }
        sections.sort_by_key(|(kind, number, _)| (*kind as u32, *number));
        let mut writer = Writer::default();
        for (kind, number, section) in sections {
            writer.add(kind, number, section);
        }
        Ok((frozen_at, writer))
    }

    /// Lists the sockets of all connections, each once, for a new process that watches them before the pause.
    ///
    /// The reactors answer one after the other. A login that moves to the shard of its user in between is in two answers,
    /// and the later one is right: a connection moves once.
    ///
    /// # Errors
    /// A reactor did not answer.
    pub(super) fn list_sockets(&self, deadline: Instant, signals: &Signals) -> Result<Writer, String> {
        let mut lists = Vec::new();
        let name = |(key, fd): (ConnKey, RawFd)| Some((key, fd, sockets::cookie_of(fd)?));
        self.ask_reactors(deadline, signals, ReactorMail::List, |all| {
            // A socket that was closed meanwhile has no cookie, or the number is another socket's: the new process
            // compares.
            lists.push(all.into_iter().filter_map(name).collect());
            failpoint::reach("old.listed");
        })?;
        keep_last(&mut lists);
        let mut writer = Writer::default();
        for (number, list) in (0u32..).zip(lists) {
            let mut section = Section::default();
            for chunk in list.chunks(SOCKETS_PER_RECORD) {
                let mut record = SocketsRecord::default();
                for (key, fd, cookie) in chunk {
                    record.keys.push(key.as_u64());
                    record.fds.push(*fd);
                    record.cookies.push(*cookie);
                }
                section.put(Item::Sockets(record));
            }
            writer.add(SectionKind::Sockets, number, section);
        }
        Ok(writer)
    }

    /// Adds the bodies that wait anywhere, for a new process that reads them before the pause. `with_partials`: also those of
    /// frames that are not whole yet.
    ///
    /// # Errors
    /// A thread did not answer.
    pub(super) fn store_bodies(
        &self,
        stored: &mut StoredBodies,
        with_partials: bool,
        deadline: Instant,
        signals: &Signals,
    ) -> Result<(), String> {
        let late = |name: &str| format!("{name} did not list its queued bodies in time");
        let mut asked = Vec::new();
        for Thread { name, pause, .. } in self.threads() {
            let (reply, replied) = bounded(1);
            if !pause.ask(Question { with_partials, reply }) {
                return Err(late(name));
            }
            asked.push((name, replied));
        }
        self.wake_threads();
        for (name, replied) in asked {
            let bodies: Vec<Bytes> = await_reply(&replied, deadline, signals, || late(name))?;
            bodies.into_iter().for_each(|body| stored.add(body));
        }
        Ok(())
    }

    fn wake_threads(&self) {
        self.worker_mail.iter().for_each(|sender| _ = sender.wake());
        self.reactor_mail.iter().for_each(|sender| _ = sender.wake());
    }

    /// Asks the reactors one after the other.
    fn ask_reactors<T>(
        &self,
        deadline: Instant,
        signals: &Signals,
        question: impl Fn(Sender<T>) -> ReactorMail,
        mut take: impl FnMut(T),
    ) -> Result<(), String> {
        for (number, sender) in self.reactor_mail.iter().enumerate() {
            let (reply, replied) = bounded(1);
            let late = || format!("reactor {number} did not list its sockets in time");
            sender.try_send(question(reply)).map_err(|_| late())?;
            take(await_reply(&replied, deadline, signals, late)?);
        }
        Ok(())
    }

    /// Writes the section of the process.
    pub(super) fn freeze_head(&self, mut head: GatewayHead) -> io::Result<Section> {
        let mut section = Section::default();
        let mut addresses = Section::default();
        let accepted = self.door.freeze(&mut addresses);
        head.accepted_until = accepted.first().copied().unwrap_or_default();
        head.epoch = self.birth.epoch;
        head.ticket_key = Bytes::copy_from_slice(&self.birth.ticket_key);
        head.shards = u32::try_from(self.reactor_mail.len()).expect("at most 256");
        head.workers = u32::try_from(self.worker_mail.len()).expect("at most 256");
        let (user_key, pins) = adopt::record_of(self.shard_map.key());
        head.user_key = user_key;
        head.set_pins(pins);
        head.shard_map = self.shard_map.counts().iter().map(|count| u32::from(*count)).collect();
        for (ListeningSocket { name, socket, kind, .. }, accepted_until) in
            self.listeners.iter().zip(accepted)
        {
            let socket = Some(sockets::name_of(socket)?.into());
            head.listener = head.listener.or(socket);
            let kind = kind.number();
            head.listeners.push(ListenerRecord { socket, name: name.clone(), accepted_until, kind });
        }
        if let [ListenerRecord { kind: 0, .. }] = head.listeners[..] {
            head.listeners.clear(); // the form that every version reads
        }
        let admin = &self.admin_sockets;
        head.admin = admin.address.as_ref().map(sockets::name_of).transpose()?.map(Into::into);
        let socket = admin.socket.as_ref().map(|socket| sockets::name_of(&socket.listener));
        head.admin_socket = socket.transpose()?.map(Into::into);
        head.admin_socket_file = admin.socket.as_ref().map(|socket| file_record(socket.file()));
        let retired = self.retired_sockets.list(|place| {
            let until_nanos = place.until.map_or(0, Instant::as_nanos);
            let socket = Some(sockets::name_of(&place.listener)?.into());
            Ok(RetiredRecord { socket, until_nanos, file: place.file.map(file_record) })
        });
        head.retired_sockets = retired.into_iter().collect::<io::Result<_>>()?;
        head.tls_ticket_keys = self.identity.as_ref().map(Identity::ticket_keys).unwrap_or_default().into();
        head.is_draining = self.status.is_draining();
        let record = |Counted { name, label, value }| CountedRecord { name, label, value };
        head.counted = self.metrics.counted().into_iter().map(record).collect();
        head.gateway_id.clone_from(&self.node);
        section.put(Item::Gateway(Box::new(head)));
        section.append(&addresses);
        Ok(section)
    }

    /// Facts that a process must know to go on from the snapshot, as bits of its header.
    pub(super) fn critical(&self) -> u64 {
        let grown = if self.has_grown { GROWN } else { 0 };
        let keyed = if self.shard_map.key().pins() == Pins::Plain { 0 } else { KEYED };
        let has_layers = self.has_layers || self.listeners.iter().any(|listener| !listener.kind.is_plain());
        let layered = if has_layers { LAYERED } else { 0 };
        let had_tls = self.credentials.read().unwrap_or_else(PoisonError::into_inner).had_tls;
        let sealed = if had_tls { SEALED_LINKS } else { 0 };
        grown | keyed | layered | sealed
    }

    /// Resumes all threads at `frozen_at`, as if there had been no pause.
    pub(super) fn resume_after_rollback(&self, frozen_at: Option<Instant>) {
        if let Some(frozen_at) = frozen_at {
            self.clock.go_on_from(frozen_at);
        }
        let unix_base_nanos = unix_base(&self.clock);
        self.threads().for_each(|thread| thread.pause.resume(unix_base_nanos));
        if let Some(admin) = &self.admin {
            admin.set_paused(false);
        }
        self.retired_sockets.set_paused(false);
    }

    pub(super) fn threads(&self) -> impl Iterator<Item = &Thread> {
        self.reactor_threads.iter().chain(&self.worker_threads)
    }
}

const fn file_record(FileId { device, number }: FileId) -> FileRecord {
    FileRecord { device, number }
}

/// Waits for the answer of a thread that serves.
fn await_reply<T>(
    replied: &Receiver<T>,
    deadline: Instant,
    signals: &Signals,
    late: impl Fn() -> String,
) -> Result<T, String> {
    loop {
        match replied.recv_timeout(LISTED_LOOK) {
            Ok(answer) => return Ok(answer),
            Err(_) if signals.is_ending() => return Err(ENDING.into()),
            Err(RecvTimeoutError::Timeout) if clock::machine_now() < deadline => {}
            Err(_) => return Err(late()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::ids::ShardId;

    #[test]
    fn a_login_that_moved_while_the_sockets_were_listed_is_in_the_later_list_only() {
        let key = |shard, slot| ConnKey::new(ShardId(shard), slot, 1);
        let mut lists = [
            vec![(key(0, 1), 10, 100), (key(0, 2), 11, 101)],
            vec![(key(1, 1), 12, 102)],
            vec![(key(2, 7), 11, 101), (key(2, 8), 13, 103)],
        ];
        keep_last(&mut lists);
        let cookies = lists.map(|list| list.into_iter().map(|(_, _, cookie)| cookie).collect::<Vec<_>>());
        assert_eq!(cookies, [vec![100], vec![102], vec![101, 103]]);
    }
}
