//! Signals, and the orderly end.

use super::GatewayError;
use super::assembly::Gateway;
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::time::Duration;

/// How often a drain looks whether everybody has left.
const LOOK: Duration = Duration::from_millis(50);
/// Signals that may wait; more of them would say nothing new.
const SIGNALS_MAX: usize = 16;

/// The signals of this process, as a channel.
pub(super) struct Signals(Receiver<i32>);

impl Signals {
    pub(super) fn listen() -> Result<Self, GatewayError> {
        let failed = || GatewayError::system("listen for signals");
        let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(failed())?;
        let (sender, receiver) = bounded(SIGNALS_MAX);
        let forward = move || signals.forever().for_each(|signal| _ = sender.try_send(signal));
        std::thread::Builder::new().name("signals".into()).spawn(forward).map_err(failed())?;
        Ok(Self(receiver))
    }
}

/// Serves until a signal or the end of a thread, then stops, however it ended: whoever waits for the
/// threads waits for all of them.
pub(super) fn serve(gateway: &Gateway, signals: &Signals, grace: Duration) -> Result<(), GatewayError> {
    let outcome = wait(gateway, signals, grace);
    tracing::info!("stopping");
    gateway.stop();
    outcome
}

/// Waits for a reason to stop; TERM drains first.
fn wait(gateway: &Gateway, signals: &Signals, grace: Duration) -> Result<(), GatewayError> {
    loop {
        match signals.0.recv_timeout(LOOK) {
            Ok(SIGTERM) => {
                drain(gateway, signals, grace);
                return Ok(());
            }
            Ok(SIGINT) => return Ok(()),
            Ok(_) => tracing::warn!("SIGHUP: settings are read at start only; nothing was reloaded"),
            Err(_) => {
                if let Some(thread) = gateway.ended_thread() {
                    return Err(GatewayError::Thread(thread));
                }
            }
        }
    }
}

/// Asks everybody to leave; waits until they have, the grace is over, or a second signal comes.
fn drain(gateway: &Gateway, signals: &Signals, grace: Duration) {
    tracing::info!(?grace, connections = gateway.connections(), "draining");
    gateway.drain(grace);
    let looks = grace.as_millis() / LOOK.as_millis();
    for _ in 0..looks {
        match signals.0.recv_timeout(LOOK) {
            Ok(SIGTERM | SIGINT) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
        }
        if gateway.connections() == 0 {
            return;
        }
    }
}
