//! Performs a run from its job to its report: monitor, processes, restarter, folder.

use super::arguments::{CarryArgs, FleetArgs, OutputArgs};
use super::size::Size;
use crate::carrier::{Carrier, CarryRule, TlsRule, Trust};
use crate::crowd;
use crate::doctor;
use crate::exit::{Exit, Failure};
use crate::expect::Expectation;
use crate::fleet::{BeatsFrom, Plan, RampRule, Stop};
use crate::job::{Job, Login, Part, Wire, Work};
use crate::monitor::{self, Live, Monitor};
use crate::phase::Timeline;
use crate::preflight::{self, PHASE_SECONDS_MAX, Reach};
use crate::process::{self, Watch, Watched};
use crate::record::Metric;
use crate::report::{Drops, Folder, Report};
use crate::restarter::{RestartRule, Restarter};
use crate::socket::Sources;
use crate::terminal;
use crate::units;
use std::net::SocketAddr;
use std::time::Duration;

/// First word of the marker of a storm.
const STORM: &str = "storm";
/// Said before a run with `--insecure`, and in its report.
const INSECURE: &str = "--insecure: any certificate is accepted, also one of somebody between the clients and the gateway; \
                        never use real tokens with it";
/// Extra time of a ramp beyond its own rate, and per client on a slow machine.
const RAMP_GRACE: Duration = Duration::from_secs(30);
const RAMP_GRACE_EACH: Duration = Duration::from_millis(2);

/// All that a run needs.
#[derive(Clone, Debug)]
pub(super) struct Launch {
    pub(super) job: Job,
    pub(super) processes: u32,
    pub(super) main: Metric,
    pub(super) drops: Drops,
    pub(super) restart: Option<RestartRule>,
    pub(super) expect: Vec<Expectation>,
    abort: Vec<Expectation>,
    pub(super) output: OutputArgs,
    note: Option<String>,
}

/// Results of a run.
pub(super) struct Landed {
    pub(super) report: Report,
    part: Part,
    monitor: Monitor,
}

impl Launch {
    pub(super) fn new(args: &FleetArgs, size: Size, work: Work, main: Metric) -> Result<Self, Failure> {
        if let Some(unknown) = args.abort.iter().find(|it| !monitor::can_abort_on(it.name(), main)) {
            return Err(Failure::Usage(format!(
                "--abort {unknown}: while this runs there are {}.p99 and its like, rate, held, dropped, rss",
                main.name()
            )));
        }
        let login = Login {
            uid_prefix: args.uid_prefix.clone(),
            key_file: args.key_file.clone(),
            token_file: args.token_file.clone(),
            audience: args.audience.clone(),
        };
        let plan = plan(args, size.clients)?;
        // A file that cannot be used is told before anything starts.
        login.tokens(size.clients)?;
        Carrier::new(&plan.carry)?;
        if args.carry.insecure {
            terminal::note(format!("warning: {INSECURE}"));
        }
        let wire = if args.carry.bare { Wire::Bare } else { Wire::Moorline };
        Ok(Self {
            job: Job { plan, wire, login, work },
            processes: size.processes,
            main,
            drops: Drops::Fail,
            restart: None,
            expect: args.expect.clone(),
            abort: args.abort.clone(),
            output: args.output.clone(),
            note: size.note,
        })
    }

    /// Runs it; nothing is written or printed yet.
    pub(super) fn fly(&self, stop: &Stop) -> Result<Landed, Failure> {
        let Plan { timeline, watched, clients, ramp, .. } = &self.job.plan;
        let ramp_length = ramp.rate.map_or(0.0, |rate| f64::from(*clients) / rate);
        let length = timeline.warmup + timeline.measure + Duration::from_secs_f64(ramp_length);
        let wrong = wrong_process(watched, self.job.plan.target).filter(|_| self.restart.is_none());
        if let Some(wrong) = &wrong {
            terminal::note(format!("warning: {wrong}"));
        }
        let live = Live::new(self.output.quiet, *clients, length);
        let mut monitor = Monitor::new(live, Watch::new(watched), self.main, self.abort.clone());
        if let Work::Storm { rule, .. } = &self.job.work {
            let broken = clients.saturating_sub(rule.stay);
            monitor.plan_marker(
                rule.calm,
                format!("{STORM}: {} connections are broken", units::count(broken.into())),
            );
        }
        let restarter = match &self.restart {
            None => None,
            Some(rule) => {
                let measure = monitor.tell_measure();
                let markers = monitor.markers.clone();
                Some(Restarter::start(rule.clone(), self.job.plan.target, measure, markers)?)
            }
        };
        let part = match self.processes {
            1 => self.job.run(&mut monitor, stop),
            many => crowd::run(&self.job, many, &mut monitor, stop),
        };
        // Also after a failure: a server that this program started ends with the run.
        monitor.forget_measure();
        let restarted = restarter.map_or(Ok(()), Restarter::finish);
        let part = part?;
        monitor.finish(&part.rest);
        let mut report = Report::new(&self.job, self.processes, &part, self.drops);
        report.notes.extend(wrong);
        report.markers = monitor.markers.list();
        report.mark_return(STORM);
        report.blame(monitor.machine());
        report.notes.extend(self.note.clone());
        let tls = self.job.plan.carry.tls.as_ref();
        report.notes.extend(tls.filter(|tls| tls.trust == Trust::Anybody).map(|_| INSECURE.to_owned()));
        report.expect(&self.expect, monitor.aborted.as_deref());
        if let Err(why) = restarted {
            report.fail_restart(why);
        }
        Ok(Landed { report, part, monitor })
    }

    pub(super) fn folder(&self, scenario: &str) -> Result<Option<Folder>, Failure> {
        if self.output.no_out {
            return Ok(None);
        }
        Folder::make(self.output.out.as_deref(), scenario).map(Some)
    }
}

impl Landed {
    pub(super) fn write(&self, folder: Option<&Folder>) -> Result<(), Failure> {
        folder.map_or(Ok(()), |folder| folder.write(&self.report, &self.part, &self.monitor))
    }
}

/// Runs, writes, prints.
pub(super) fn run(launch: &Launch, stop: &Stop) -> Result<Exit, Failure> {
    let folder = launch.folder(launch.job.work.name())?;
    let landed = launch.fly(stop)?;
    landed.write(folder.as_ref())?;
    if launch.output.json {
        terminal::print(serde_json::to_string_pretty(&landed.report).expect("a report is plain data"));
    } else {
        terminal::print(landed.report.text().trim_end());
    }
    if let Some(folder) = folder.filter(|_| !launch.output.json) {
        terminal::print(format!("folder     {}", folder.path().display()));
    }
    Ok(landed.report.exit())
}

fn plan(args: &FleetArgs, clients: u32) -> Result<Plan, Failure> {
    for length in [args.duration, args.warmup, args.drain] {
        if length.as_secs() > PHASE_SECONDS_MAX {
            return Err(Failure::Usage(format!("{length:?} is longer than a day")));
        }
    }
    let reach = if args.allow_remote { Reach::Anywhere } else { Reach::Loopback };
    let target = preflight::resolve(&args.target, reach)?;
    let ramp_length = args.ramp.map_or(0.0, |rate| f64::from(clients) / rate);
    if ramp_length > PHASE_SECONDS_MAX as f64 {
        return Err(Failure::Usage("this ramp takes longer than a day: raise -R or lower -c".into()));
    }
    let sources = Sources::chosen(args.src.as_ref(), args.ports, target, clients);
    if let Some(most) = sources.capacity().filter(|most| *most < clients.into()) {
        return Err(Failure::Preflight(format!(
            "{most} source ports on {} addresses are fewer than {clients} connections: widen --ports or --src",
            sources.len().max(1)
        )));
    }
    let plan = Plan {
        target,
        carry: carry(&args.carry, &args.target)?,
        clients,
        first: 0,
        ramp: RampRule { rate: args.ramp, at_once: args.at_once },
        sources,
        returns: None,
        beats: (args.heartbeat, BeatsFrom::Ramp),
        timeline: Timeline {
            ramp_max: Duration::from_secs_f64(ramp_length) + RAMP_GRACE + RAMP_GRACE_EACH * clients,
            warmup: args.warmup,
            measure: args.duration,
            drain_max: args.drain,
        },
        watched: watched(args)?,
    };
    if !plan.watched.is_empty() && Watch::new(&plan.watched).usage().is_none() {
        return Err(Failure::Usage("--pid or --pid-file names no process that may be read".into()));
    }
    fit_memory(target, clients, args.carry.tls)?;
    Ok(plan)
}

/// Reads how the bytes travel.
fn carry(args: &CarryArgs, target: &str) -> Result<CarryRule, Failure> {
    let host_port = target.strip_prefix("tcp://").unwrap_or(target);
    let host = host_port.rsplit_once(':').map_or(host_port, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let trust = match (&args.ca, args.insecure) {
        (Some(path), _) => Some(Trust::File(path.clone())),
        (None, true) => Some(Trust::Anybody),
        (None, false) => None,
    };
    let name = args.tls_name.clone().unwrap_or_else(|| host.to_owned());
    let tls = match (args.tls, trust) {
        (false, _) => None,
        (true, Some(trust)) => Some(TlsRule { name, trust, resumes: !args.no_resumption }),
        (true, None) => {
            let text = "--tls needs --ca FILE with the authority of the gateway's certificate, or --insecure";
            return Err(Failure::Usage(text.into()));
        }
    };
    Ok(CarryRule { tls, websocket: args.ws.then(|| host_port.to_owned()) })
}

/// The process whose memory and CPU time are measured.
fn watched(args: &FleetArgs) -> Result<Watched, Failure> {
    let Some(path) = &args.pid_file else { return Ok(Watched::new(args.pid)) };
    Watched::of_file(path).map_err(|why| Failure::Usage(format!("--pid-file {}: {why}", path.display())))
}

/// Sentence about a watched process that is not the target's; `None`: it is, or nobody can tell.
fn wrong_process(watched: &Watched, target: SocketAddr) -> Option<String> {
    let pid = watched.first().filter(|_| target.ip().is_loopback())?;
    if process::listens(pid, target)? {
        return None;
    }
    let right =
        process::listener_at(target).map_or_else(String::new, |right| format!("; process {right} does"));
    Some(format!(
        "process {pid} does not listen at {target}{right}: its memory and CPU are not the gateway's"
    ))
}

/// Refuses a run for which the memory of this machine or of this control group does not suffice.
fn fit_memory(target: SocketAddr, connections: u32, has_tls: bool) -> Result<(), Failure> {
    let size = doctor::Size { connections, is_local: target.ip().is_loopback(), has_tls };
    match doctor::memory(size) {
        Some(need) if need.state == doctor::State::Missing => Err(Failure::Preflight(format!(
            "{} of memory are needed, and {} can be had: {}",
            need.needed, need.found, need.fix
        ))),
        _ => Ok(()),
    }
}
