//! The threads of a gateway, and how loops are dealt to them.

use super::GatewayError;
use crate::failpoint;
use crate::pause::{self, PauseHandle};
use crate::snapshot::SectionKind;
use crate::thread_group::{EventLoop, ThreadGroup};
use mio::Poll;
use moorline_net::thread;
use std::io;
use std::thread::JoinHandle;

/// A running thread.
pub(super) struct Thread {
    /// Name for the system and the log.
    pub(super) name: String,
    /// Kind of its loops in a snapshot.
    pub(super) kind: SectionKind,
    /// Control of its pause.
    pub(super) pause: PauseHandle,
    pub(super) handle: JoinHandle<io::Result<()>>,
}

/// Starts `threads` threads, or as many as there are loops, and deals the loops to them in turn. The threads pause before
/// their first turn.
pub(super) fn start_paused<U: EventLoop>(
    loops: Vec<(Poll, U)>,
    threads: usize,
    kind: SectionKind,
) -> Result<Vec<Thread>, GatewayError> {
    let (name, place, operation) = match kind {
        SectionKind::Worker => ("worker", "old.worker", "start a worker"),
        _ => ("reactor", "old.reactor", "start a reactor"),
    };
    let threads = threads.clamp(1, loops.len().max(1));
    let mut dealt: Vec<Vec<(u32, Poll, U)>> = (0..threads).map(|_| Vec::new()).collect();
    for (number, (poll, event_loop)) in (0u32..).zip(loops) {
        dealt[number as usize % threads].push((number, poll, event_loop));
    }
    let start = |(number, loops): (usize, Vec<_>)| {
        let (pause, point) = pause::pause();
        pause.request();
        let group = ThreadGroup::new(loops, point, place);
        let name = format!("{name}-{number}");
        let handle = failpoint::try_reach("new.thread")
            .and_then(|()| thread::spawn(&name, move || group.run()))
            .map_err(GatewayError::system(operation))?;
        Ok(Thread { name, kind, pause, handle })
    };
    dealt.into_iter().enumerate().map(start).collect()
}
