//! Signals, orders, and the graceful shutdown.

use super::GatewayError;
use super::assembly::{Gateway, RETIRED_END_MAX};
use super::handover::{self, Outcome, RunSettings, notify_main_pid};
use super::reload::Reloading;
use super::signals::{End, Signals};
use crate::admin::{ClientsOrder, Gate, RestartOrder, Target};
use crate::metrics::CounterSet;
use crate::sys::{clock, notify};
use moorline_net::audit::{AuditLog, Entry};
use moorline_net::log::{self, LogWriter};
use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::time::Duration;

/// Interval at which a drain counts the connections that are left.
const LOOK: Duration = Duration::from_millis(50);
/// Time for which the old process of a hot restart stays and passes signals on: whoever had read its process id before the
/// new one was told has sent them by then.
const LINGER: Duration = Duration::from_millis(100);
/// Interval at which it looks for them.
const LINGER_LOOK: Duration = Duration::from_millis(5);

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
            if let Some(end) = signals.end() {
                self.close_orders();
                if end == End::Drain {
                    self.audit.note("signal TERM", "drain and stop", "", "taken");
                    handover::notify_stopping();
                    drain(&self.gateway, signals, self.grace());
                }
                return Ok(());
            }
            if signals.take_reload() {
                self.reload("signal HUP", signals);
            }
            if signals.take_reopen() {
                self.audit.log.reopen();
            }
            if signals.take_restart() {
                // An order that waits is the same request. A later signal, even during the rollback of this restart, is
                // a new one.
                let ordered = orders.try_recv().ok();
                let again = RestartOrder { target: Target::Again, timeout: None, is_dry_run: false };
                self.restart("signal USR2", &ordered.unwrap_or(again), signals)?;
            }
            crossbeam_channel::select! {
                recv(signals.wake()) -> _ => {}
                recv(orders) -> order => if let Ok(order) = order {
                    self.restart("order", &order, signals)?;
                },
                recv(reloads) -> order => if order.is_ok() {
                    self.reload("order", signals);
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

    /// Takes no more orders: this process ends.
    fn close_orders(&self) {
        let status = &self.gateway.status;
        status.restarts.close();
        status.drains.set_gate(Gate::Ending);
        status.reloads.set_gate(Gate::Ending);
    }

    /// Takes no orders during a hot restart, and carries out those that were taken: they would be lost with this process.
    fn finish_orders(&self, signals: &Signals) {
        let status = &self.gateway.status;
        status.drains.set_gate(Gate::Restarting);
        status.reloads.set_gate(Gate::Restarting);
        status.drains.orders().try_iter().for_each(|order| self.tend_clients(&order));
        status.reloads.orders().try_iter().for_each(|()| self.reload("order", signals));
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
    fn reload(&self, actor: &str, signals: &Signals) {
        handover::notify_reloading();
        let outcome = self.reloading.reload(&self.gateway, signals);
        handover::notify_ready(false);
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
        let status = &gateway.status;
        let number = status.restarts.begin();
        // The new process takes them over, or binds the path of one that ends now.
        gateway.retired_sockets.hold(RETIRED_END_MAX);
        self.finish_orders(signals);
        let binary = match &order.target {
            Target::Again => String::new(),
            Target::File(path) => path.display().to_string(),
            Target::Previous => "the previous program".to_owned(),
        };
        let outcome = handover::restart(gateway, settings, order, number, signals);
        let told = match &outcome {
            Outcome::Serving => "not done",
            Outcome::Torn(_) => "torn",
            Outcome::Committed(_) => "done",
        };
        self.audit.note(actor, "upgrade", &binary, told);
        match outcome {
            Outcome::Serving => {
                gateway.retired_sockets.release();
                status.drains.set_gate(Gate::Open);
                status.reloads.set_gate(Gate::Open);
                Ok(())
            }
            Outcome::Torn(problem) => Err(GatewayError::Torn(problem)),
            Outcome::Committed(pid) => self.leave(pid, signals),
        }
    }

    /// Ends this process: another one serves. Signals that still come here are that one's.
    fn leave(&self, pid: u32, signals: &Signals) -> ! {
        signals.pass_on(pid);
        notify_main_pid(pid);
        tracing::info!(pid, "the new process serves; this one leaves");
        self.audit.log.flush();
        say_who_serves(pid);
        let until = clock::machine_now() + LINGER;
        while clock::machine_now() < until {
            signals.pass_on(pid);
            signals.wake().recv_timeout(LINGER_LOOK).ok();
        }
        self.log.flush();
        signals.pass_on(pid);
        // Without destructors, which would close sockets of the new process.
        std::process::exit(0);
    }
}

/// Tells the person at the terminal, whose shell goes on now: its Ctrl-C does not reach the gateway any more.
fn say_who_serves(pid: u32) {
    if std::env::var_os(notify::VARIABLE).is_some() || !io::stderr().is_terminal() {
        return;
    }
    let line = format!("moorline: pid {pid} serves on; `moorline stop` or `kill -TERM {pid}` ends it\n");
    log::write_within_deadline(io::stderr(), line).ok();
}

/// Asks all clients to leave; waits until they have left, the grace has passed, or a second signal comes.
fn drain(gateway: &Gateway, signals: &Signals, grace: Duration) {
    tracing::info!(?grace, connections = gateway.connections(), "draining");
    let nowhere: Arc<[String]> = Arc::new([]);
    gateway.drain(grace, None, &nowhere);
    let looks = grace.as_millis() / LOOK.as_millis();
    for _ in 0..looks {
        signals.wake().recv_timeout(LOOK).ok();
        if signals.end().is_some() || gateway.connections() == 0 {
            return;
        }
    }
}
