//! Signals, orders, and the graceful shutdown.

use super::GatewayError;
use super::assembly::Gateway;
use super::handover::{self, Outcome, RunSettings, notify_main_pid};
use super::reload::Reloading;
use crate::admin::{ClientsOrder, RestartOrder};
use crate::metrics::CounterSet;
use crate::sys::clock;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use moorline_net::audit::{AuditLog, Entry};
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
    pub(super) reloading: Reloading,
    pub(super) settings: RunSettings,
    pub(super) log: LogWriter,
    pub(super) audit: Audit,
}

/// The audit log and its metric.
#[derive(Debug)]
pub(super) struct Audit {
    pub(super) log: AuditLog,
    pub(super) lines: Arc<CounterSet>,
}

impl Audit {
    /// Notes an order and its result.
    fn note(&self, actor: &str, action: &str, target: &str, outcome: &str) {
        self.log.note(&Entry { actor, peer: "", action, target, outcome });
    }
}

impl Supervisor {
    /// Serves until a signal, an order or the end of a thread, then stops and joins all threads. After a hot restart
    /// the process ends here.
    pub(super) fn serve(self, signals: &Signals) -> Result<(), GatewayError> {
        let outcome = self.wait(signals);
        self.audit.log.flush();
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
        let reloads = self.gateway.status.reloads.orders();
        loop {
            crossbeam_channel::select! {
                recv(signals.0) -> signal => match signal {
                    Ok(SIGTERM) => {
                        self.audit.note("signal TERM", "drain and stop", "", "taken");
                        drain(&self.gateway, signals, self.grace());
                        return Ok(());
                    }
                    Ok(SIGUSR2) => {
                        let order = RestartOrder { binary: None, timeout: None, is_dry_run: false };
                        // Signals that already wait are the same request. A later one, even during the rollback of
                        // this restart, is a new request.
                        while is_next_restart(signals) {}
                        self.restart("signal USR2", &order, signals)?;
                    }
                    Ok(SIGHUP) => self.reload("signal HUP"),
                    Ok(_) | Err(_) => return Ok(()),
                },
                recv(orders) -> order => if let Ok(order) = order {
                    self.restart("order", &order, signals)?;
                },
                recv(reloads) -> order => if order.is_ok() {
                    self.reload("order");
                },
                recv(clients_orders) -> order => if let Ok(order) = order {
                    self.tend_clients(&order);
                },
                default(LOOK) => {
                    self.audit.lines.set(0, self.audit.log.dropped());
                    if let Some(thread) = self.gateway.ended_thread() {
                        return Err(GatewayError::Thread(thread));
                    }
                }
            }
        }
    }

    fn tend_clients(&self, order: &ClientsOrder) {
        let Self { gateway, reloading, .. } = self;
        let config = reloading.config.borrow();
        let outcome = match order {
            ClientsOrder::Drain(wish) => {
                let grace = wish.grace.unwrap_or(config.drain.grace);
                let alternates: Arc<[String]> = wish.redirect.iter().cloned().collect();
                tracing::info!(?grace, rate = wish.rate, redirect = wish.redirect, "draining");
                gateway.drain(grace, wish.rate, &alternates);
                Ok(true)
            }
            ClientsOrder::Undrain => {
                let outcome = gateway.undrain(&config);
                match &outcome {
                    Ok(()) => tracing::info!("admitting clients again"),
                    Err(problem) => tracing::error!(problem, "still draining"),
                }
                outcome.map(|()| false)
            }
        };
        let (action, target) = match order {
            ClientsOrder::Drain(wish) => ("drain", wish.redirect.as_deref().unwrap_or_default()),
            ClientsOrder::Undrain => ("undrain", ""),
        };
        self.audit.note(
            "order",
            action,
            target,
            outcome.as_ref().map_or_else(|problem| &**problem, |_| "done"),
        );
        gateway.status.drains.note(outcome, clock::unix_nanos() / 1_000_000);
    }

    /// Reads settings and keys again.
    fn reload(&self, actor: &str) {
        let outcome = self.reloading.reload(&self.gateway);
        match &outcome {
            Ok((taken, kept)) => {
                tracing::info!(taken = taken.join(", "), "settings and keys were read again");
                if !kept.is_empty() {
                    let kept = kept.join(", ");
                    tracing::warn!(
                        kept,
                        "these settings need `moorline upgrade` or a restart; the old values stay in force"
                    );
                }
            }
            Err(problem) => tracing::error!(problem, "cannot reload the settings; nothing has changed"),
        }
        self.audit.note(actor, "reload", "", outcome.as_ref().map_or_else(|problem| &**problem, |_| "done"));
        self.gateway.status.reloads.note(outcome, clock::unix_nanos() / 1_000_000);
    }

    /// Time that clients have to leave.
    fn grace(&self) -> Duration {
        self.reloading.config.borrow().drain.grace
    }

    fn restart(&self, actor: &str, order: &RestartOrder, signals: &Signals) -> Result<(), GatewayError> {
        let Self { gateway, settings, .. } = self;
        let binary = order.binary.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
        let outcome = handover::restart(gateway, settings, order);
        let told = match &outcome {
            Outcome::Serving => "not done",
            Outcome::Torn(_) => "torn",
            Outcome::Committed(_) => "done",
        };
        self.audit.note(actor, "upgrade", &binary, told);
        match outcome {
            Outcome::Serving => Ok(()),
            Outcome::Torn(problem) => Err(GatewayError::Torn(problem)),
            Outcome::Committed(pid) => {
                notify_main_pid(pid);
                signals.pass_on(pid);
                tracing::info!(pid, "the new process serves; this one leaves");
                self.audit.log.flush();
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
