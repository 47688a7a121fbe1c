//! Signals, orders, and the graceful shutdown.

use super::GatewayError;
use super::assembly::Gateway;
use super::handover::{self, Outcome, RunSettings, tell_main_pid};
use crate::admin::{ClientsOrder, RestartOrder};
use crate::config::Config;
use crate::sys::clock;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use moorline_net::log::LogWriter;
use nix::sys::signal::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};
use std::sync::Arc;
use std::time::Duration;

/// Interval at which a drain counts the connections that are left.
const LOOK: Duration = Duration::from_millis(50);
/// Limit of waiting signals; further ones are dropped.
const SIGNALS_MAX: usize = 16;

/// The signals of this process, as a channel.
pub(super) struct Signals(Receiver<i32>, Sender<i32>);

impl Signals {
    pub(super) fn listen() -> Result<Self, GatewayError> {
        let failed = || GatewayError::system("listen for signals");
        let mut signals =
            signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR2]).map_err(failed())?;
        let (sender, receiver) = bounded(SIGNALS_MAX);
        let again = sender.clone();
        let forward = move || signals.forever().for_each(|signal| _ = sender.try_send(signal));
        std::thread::Builder::new().name("signals".into()).spawn(forward).map_err(failed())?;
        Ok(Self(receiver, again))
    }
}

impl Signals {
    /// Passes the signals that came during the handover on to the process that serves now.
    fn pass_on(&self, pid: u32) {
        let Ok(pid) = i32::try_from(pid) else { return };
        for signal in self.0.try_iter().filter(|signal| *signal != SIGUSR2) {
            tracing::info!(signal, "passed on a signal that came during the restart to the new process");
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::try_from(signal).ok()).ok();
        }
    }
}

/// Owner of everything that runs: handles signals and orders until the end.
pub(super) struct Supervisor {
    pub(super) gateway: Gateway,
    pub(super) config: Config,
    pub(super) settings: RunSettings,
    pub(super) log: LogWriter,
}

impl Supervisor {
    /// Serves until a signal, an order or the end of a thread, then stops and joins all threads. After a hot restart
    /// the process ends here.
    pub(super) fn serve(self, signals: &Signals) -> Result<(), GatewayError> {
        let outcome = self.wait(signals);
        let Self { gateway, .. } = self;
        if let Err(GatewayError::Torn(_)) = outcome {
            std::mem::forget(gateway); // without a destructor: the sockets were given away
            return outcome;
        }
        tracing::info!("stopping");
        gateway.stop();
        gateway.join();
        outcome
    }

    /// Waits for a reason to stop; TERM drains first.
    fn wait(&self, signals: &Signals) -> Result<(), GatewayError> {
        let orders = self.gateway.status.restarts.orders();
        let clients_orders = self.gateway.status.drains.orders();
        loop {
            crossbeam_channel::select! {
                recv(signals.0) -> signal => match signal {
                    Ok(SIGTERM) => {
                        drain(&self.gateway, signals, self.config.drain.grace);
                        return Ok(());
                    }
                    Ok(SIGUSR2) => {
                        let order = RestartOrder { binary: None, timeout: None, is_dry_run: false };
                        // Signals that already wait are the same request. A later one, even during the rollback of
                        // this restart, is a new request.
                        while is_next_restart(signals) {}
                        self.restart(&order, signals)?;
                    }
                    Ok(SIGHUP) => tracing::warn!("SIGHUP: settings are read at start only; USR2 reads them anew"),
                    Ok(_) | Err(_) => return Ok(()),
                },
                recv(orders) -> order => if let Ok(order) = order {
                    self.restart(&order, signals)?;
                },
                recv(clients_orders) -> order => if let Ok(order) = order {
                    self.tend_clients(&order);
                },
                default(LOOK) => {
                    if let Some(thread) = self.gateway.ended_thread() {
                        return Err(GatewayError::Thread(thread));
                    }
                }
            }
        }
    }

    fn tend_clients(&self, order: &ClientsOrder) {
        let Self { gateway, config, .. } = self;
        let outcome = match order {
            ClientsOrder::Drain(wish) => {
                let grace = wish.grace.unwrap_or(config.drain.grace);
                let alternates: Arc<[String]> = wish.redirect.iter().cloned().collect();
                tracing::info!(?grace, rate = wish.rate, redirect = wish.redirect, "draining");
                gateway.drain(grace, wish.rate, &alternates);
                Ok(true)
            }
            ClientsOrder::Undrain => {
                let outcome = gateway.undrain(config);
                match &outcome {
                    Ok(()) => tracing::info!("admitting clients again"),
                    Err(problem) => tracing::error!(problem, "still draining"),
                }
                outcome.map(|()| false)
            }
        };
        gateway.status.drains.note(outcome, clock::unix_nanos() / 1_000_000);
    }

    fn restart(&self, order: &RestartOrder, signals: &Signals) -> Result<(), GatewayError> {
        let Self { gateway, settings, config, .. } = self;
        match handover::restart(gateway, settings, order) {
            Outcome::Serving => Ok(()),
            Outcome::Torn(problem) => Err(GatewayError::Torn(problem)),
            Outcome::Committed(pid) => {
                tell_main_pid(config, pid);
                signals.pass_on(pid);
                tracing::info!(pid, "the new process serves; this one leaves");
                self.log.flush();
                // Without destructors, which would close sockets of the new process.
                std::process::exit(0);
            }
        }
    }
}

/// Takes the next signal if it requests a restart; any other signal stays in the channel.
fn is_next_restart(signals: &Signals) -> bool {
    let Ok(signal) = signals.0.try_recv() else { return false };
    if signal != SIGUSR2 {
        signals.1.try_send(signal).ok(); // received again later
    }
    signal == SIGUSR2
}

/// Asks all clients to leave; waits until they have left, the grace has passed, or a second signal comes.
fn drain(gateway: &Gateway, signals: &Signals, grace: Duration) {
    tracing::info!(?grace, connections = gateway.connections(), "draining");
    let nowhere: Arc<[String]> = Arc::new([]);
    gateway.drain(grace, None, &nowhere);
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
