//! The signals of the gateway's process, as state: a signal that waits is remembered, however many others come.
//!
//! For example, twenty HUPs and a TERM arrive while a hot restart is checked: one reload and one end wait. The restart looks
//! for the end, and gives up; the main thread then drains.

use super::GatewayError;
use crate::sys::signals;
use crossbeam_channel::{Receiver, bounded};
use moorline_net::thread;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::low_level::emulate_default_handler;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Way in which a signal ends the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// TERM or QUIT: ask the clients to leave first.
    Drain,
    /// INT: at once.
    Stop,
}

/// Ends this process as TERM does, also during a hot restart.
///
/// # Errors
/// The cause, for people.
pub(super) fn end_this_process() -> Result<(), String> {
    kill(Pid::this(), Signal::SIGTERM).map_err(|error| format!("cannot send TERM to this process: {error}"))
}

/// Signals that wait, each at most once.
#[derive(Debug, Default)]
struct Waiting {
    /// Somebody looks for them. Before, those that end the process do so at once.
    is_heard: AtomicBool,
    term: AtomicBool,
    int: AtomicBool,
    hup: AtomicBool,
    usr1: AtomicBool,
    usr2: AtomicBool,
}

impl Waiting {
    fn of(&self, signal: i32) -> Option<&AtomicBool> {
        match signal {
            SIGTERM | SIGQUIT => Some(&self.term),
            SIGINT => Some(&self.int),
            SIGHUP => Some(&self.hup),
            SIGUSR1 => Some(&self.usr1),
            SIGUSR2 => Some(&self.usr2),
            _ => None,
        }
    }

    fn take(&self, signal: i32) -> bool {
        self.of(signal).is_some_and(|waits| waits.swap(false, Ordering::SeqCst))
    }
}

/// The signals of this process.
#[derive(Debug)]
pub(super) struct Signals {
    waiting: Arc<Waiting>,
    wake: Receiver<()>,
}

impl Signals {
    /// Listens from now on, in a thread.
    pub(super) fn listen() -> Result<Self, GatewayError> {
        let failed = || GatewayError::system("listen for signals");
        let mut heard = signal_hook::iterator::Signals::new(signals::listened()).map_err(failed())?;
        let (sender, wake) = bounded(1);
        let waiting = Arc::new(Waiting::default());
        let theirs = Arc::clone(&waiting);
        let note = move || {
            for signal in heard.forever() {
                let ends = matches!(signal, SIGTERM | SIGQUIT | SIGINT);
                if ends && !theirs.is_heard.load(Ordering::SeqCst) {
                    // As the system does for a process that does not listen. A file that is read now may not answer.
                    emulate_default_handler(signal).ok();
                }
                match theirs.of(signal) {
                    Some(waits) => waits.store(true, Ordering::SeqCst),
                    None => signals::pass_over(signal),
                }
                sender.try_send(()).ok(); // a wake that waits is as good
            }
        };
        thread::spawn("signals", note).map_err(failed())?;
        Ok(Self { waiting, wake })
    }

    /// Keeps the signals that end the process for [`Self::end`] from now on. Until then they end it at once: it has no
    /// clients yet.
    pub(super) fn hear(&self) {
        self.waiting.is_heard.store(true, Ordering::SeqCst);
    }

    /// Receives something after a signal came.
    pub(super) const fn wake(&self) -> &Receiver<()> {
        &self.wake
    }

    /// Takes the signal that ends this process.
    pub(super) fn end(&self) -> Option<End> {
        if self.waiting.take(SIGINT) {
            return Some(End::Stop);
        }
        self.waiting.take(SIGTERM).then_some(End::Drain)
    }

    /// Returns whether a signal that ends this process waits; it stays.
    pub(super) fn is_ending(&self) -> bool {
        let Waiting { term, int, .. } = &*self.waiting;
        term.load(Ordering::SeqCst) || int.load(Ordering::SeqCst)
    }

    /// Takes the signal to read the settings again.
    pub(super) fn take_reload(&self) -> bool {
        self.waiting.take(SIGHUP)
    }

    /// Takes the signal to open log files again.
    pub(super) fn take_reopen(&self) -> bool {
        self.waiting.take(SIGUSR1)
    }

    /// Takes the signal for a hot restart.
    pub(super) fn take_restart(&self) -> bool {
        self.waiting.take(SIGUSR2)
    }

    /// Passes the signals that wait on to the process that serves now, except for the one that asked for it.
    pub(super) fn pass_on(&self, pid: u32) {
        let Ok(pid) = i32::try_from(pid) else { return };
        for signal in [SIGHUP, SIGUSR1, SIGTERM, SIGINT] {
            if self.waiting.take(signal) {
                tracing::info!(signal, "passed on a signal that came during the restart to the new process");
                kill(Pid::from_raw(pid), Signal::try_from(signal).ok()).ok();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_of_signals_hides_another_one() {
        let (sender, wake) = bounded(1);
        let signals = Signals { waiting: Arc::default(), wake };
        let note = |signal| {
            signals.waiting.of(signal).expect("known").store(true, Ordering::SeqCst);
            sender.try_send(()).ok();
        };
        (0..100).for_each(|_| note(SIGHUP));
        note(SIGTERM);
        assert!(signals.is_ending() && signals.is_ending(), "to look at it takes nothing");
        assert!(signals.wake().try_recv().is_ok());
        assert_eq!((signals.end(), signals.end()), (Some(End::Drain), None));
        assert_eq!((signals.take_reload(), signals.take_reload()), (true, false));
        note(SIGTERM);
        note(SIGINT);
        assert_eq!((signals.end(), signals.end()), (Some(End::Stop), Some(End::Drain)));
        assert!(!signals.take_restart() && !signals.is_ending());
    }
}
