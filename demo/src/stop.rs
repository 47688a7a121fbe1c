//! The signals that end the demo.

use crate::DemoError;
use moorline_usage::signals::without_meaning;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set when a signal asked the demo to end.
#[derive(Clone, Debug)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Set by INT, TERM, QUIT and HUP from now on. Others, which would end the process, do nothing.
    pub(crate) fn on_signals() -> io::Result<Self> {
        let stop = Self::never();
        for signal in [SIGINT, SIGTERM, SIGQUIT, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&stop.0))?;
        }
        for signal in without_meaning().chain([SIGUSR1, SIGUSR2]) {
            signal_hook::flag::register(signal, Arc::default())?;
        }
        Ok(stop)
    }

    /// Never set.
    pub(crate) fn never() -> Self {
        Self(Arc::default())
    }

    /// Fails once it is set.
    pub(crate) fn check(&self) -> Result<(), DemoError> {
        if self.0.load(Ordering::Relaxed) { Err(DemoError::Interrupted) } else { Ok(()) }
    }
}
