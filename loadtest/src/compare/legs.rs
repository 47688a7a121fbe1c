//! The legs of a round: a load on one side, and the figures it gives.

use super::sides::{Behind, Counted, Servers};
use super::table::Row;
use super::{Options, Side};
use crate::bare::{BareClient, Uplink};
use crate::carrier::{CarryRule, TlsRule, Trust};
use crate::dialect::token::Tokens;
use crate::dialect::{Dialect, Moorline, MoorlineOptions};
use crate::exit::Failure;
use crate::fleet::{Alone, BeatsFrom, Plan, RampRule, Stop};
use crate::integrity::Tally;
use crate::job::{self, Part, Work};
use crate::phase::{Phase, Timeline};
use crate::record::Metric;
use crate::report::{self, ServerFigures};
use crate::scenario::{Load, Patience};
use crate::socket::Sources;
use std::time::Duration;

/// Logins under way at once.
const LOGINS_AT_ONCE: u32 = 64;
/// Interval of one heartbeat per client and second among idle clients.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// Interval where heartbeats are not measured: rare.
const BEAT_RARELY: Duration = Duration::from_secs(20);
/// Unanswered messages per client in the open loop.
const OPEN_WINDOW: u32 = 16;

/// Messages under way in the busy fan-out.
const FANOUT_UNDER_WAY: u32 = 4;

/// A load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leg {
    /// Logins 64 at once, then heartbeats once a second.
    Idle,
    /// Closed loop through front and backend.
    Forward,
    /// Acked forwarding at half the ceiling, open loop.
    ForwardOpen,
    /// Closed loop, answered by the front server itself.
    Echo,
    /// Chat of pairs.
    Chat,
    /// A writer to all clients, one message at a time.
    FanOut,
    /// Fan-out with several messages under way.
    FanOutBusy,
}

/// Result of a leg.
#[derive(Debug, Default)]
pub(super) struct Measured {
    pub(super) figures: Vec<(Row, f64)>,
    pub(super) tally: Tally,
    pub(super) done_per_s: f64,
    /// The generator itself was late: its latencies are not the server's.
    pub(super) is_late: bool,
    pub(super) is_interrupted: bool,
}

impl Leg {
    pub(super) const ALL: [Self; 7] = [
        Self::Idle,
        Self::Forward,
        Self::ForwardOpen,
        Self::Echo,
        Self::Chat,
        Self::FanOut,
        Self::FanOutBusy,
    ];

    pub(super) const fn rows(self) -> &'static [Row] {
        match self {
            Self::Idle => &[Row::Idle, Row::Login, Row::Heartbeat],
            Self::Forward => &[Row::Forward, Row::ForwardCeiling],
            Self::ForwardOpen => &[Row::ForwardOpen, Row::ForwardOpenP99],
            Self::Echo => &[Row::Echo],
            Self::Chat => &[Row::Chat],
            Self::FanOut => &[Row::FanOut],
            Self::FanOutBusy => &[Row::FanOutBusy],
        }
    }

    /// A gateway answers nothing by itself.
    pub(super) const fn is_ours_too(self) -> bool {
        !matches!(self, Self::Echo)
    }

    const fn behind(self) -> Behind {
        match self {
            Self::Chat | Self::FanOut | Self::FanOutBusy => Behind::Im,
            _ => Behind::Acker,
        }
    }

    const fn counted(self) -> Counted {
        match self {
            Self::Chat => Counted::All,
            _ => Counted::Front,
        }
    }

    const fn clients(self, options: &Options) -> u32 {
        match self {
            Self::Idle => options.idle_clients,
            Self::FanOut | Self::FanOutBusy => options.members,
            Self::Forward | Self::ForwardOpen | Self::Echo | Self::Chat => options.busy_clients,
        }
    }
}

/// Starts a side, runs a leg on it, ends it.
pub(super) fn measure(
    leg: Leg,
    side: Side,
    options: &Options,
    open_rate: f64,
    stop: &Stop,
) -> Result<Measured, Failure> {
    let servers = Servers::start(side, leg.behind(), &options.programs)?;
    let plan = plan(leg, side, options, &servers);
    let drive = Drive { leg, options, open_rate, plan: &plan, stop };
    match side {
        Side::Ours => drive.run(Moorline::new(MoorlineOptions {
            uid_prefix: "load".into(),
            first: 0,
            tokens: servers.key.as_ref().map_or(Tokens::None, |key| Tokens::Mint(key.mint())),
            heartbeat: BEAT_RARELY,
        })),
        Side::Bare => {
            drive.run(BareClient::new(if leg == Leg::Echo { Uplink::Echo } else { Uplink::Forward }))
        }
    }
}

fn plan(leg: Leg, side: Side, options: &Options, servers: &Servers) -> Plan {
    let clients = leg.clients(options);
    let target = servers.front.address();
    // The bare server has no backend of its own in one-to-one: its acker only waits.
    let counted = if side == Side::Bare { Counted::Front } else { leg.counted() };
    Plan {
        target,
        carry: carry(options),
        clients,
        first: 0,
        returns: None,
        ramp: RampRule { rate: None, at_once: LOGINS_AT_ONCE },
        sources: Sources::for_target(target, clients),
        beats: (if leg == Leg::Idle { BEAT_EVERY } else { BEAT_RARELY }, BeatsFrom::Warmup),
        timeline: Timeline {
            ramp_max: Duration::from_secs(60),
            warmup: Duration::from_secs(1),
            measure: options.measure,
            drain_max: Duration::from_secs(5),
        },
        watched: servers.watched(counted),
    }
}

/// TLS if both sides speak it. Whom the clients trust does not matter: both servers are children of this program.
fn carry(options: &Options) -> CarryRule {
    let rule = TlsRule { name: "localhost".into(), trust: Trust::Anybody, resumes: false };
    CarryRule { tls: options.programs.tls.is_some().then_some(rule), websocket: None }
}

/// Runs a leg over any wire.
struct Drive<'a> {
    leg: Leg,
    options: &'a Options,
    open_rate: f64,
    plan: &'a Plan,
    stop: &'a Stop,
}

impl Drive<'_> {
    fn work(&self) -> Work {
        let payload = self.options.payload_bytes;
        match self.leg {
            Leg::Idle => Work::Hold,
            Leg::Forward | Leg::Echo => Work::Ping { load: Load::Closed { window: 1 }, payload },
            Leg::ForwardOpen => {
                Work::Ping { load: Load::Open { rate: self.open_rate, window: OPEN_WINDOW }, payload }
            }
            Leg::Chat => Work::Chat { load: Load::Closed { window: 1 }, payload, patience: Patience::None },
            Leg::FanOut => self.fan_out(1),
            Leg::FanOutBusy => self.fan_out(FANOUT_UNDER_WAY),
        }
    }

    const fn fan_out(&self, window: u32) -> Work {
        let payload = self.options.payload_bytes;
        Work::Group { load: Load::Closed { window }, payload, groups: 1, members: self.plan.clients }
    }

    fn run<D: Dialect>(&self, dialect: D) -> Result<Measured, Failure> {
        let part = job::run(self.plan, self.work(), dialect, &mut Alone, self.stop)?;
        let row = *self.leg.rows().iter().find(|row| row.is_cpu()).expect("each leg has a cost");
        let mut measured = measured(&part, row);
        match self.leg {
            Leg::Idle => {
                if let Some(server) = ServerFigures::of(&part.ran) {
                    measured.figures.push((Row::Idle, server.bytes_per_connection));
                    measured.figures.push((Row::Login, server.login_cpu_s_per_million));
                }
            }
            Leg::Forward => measured.figures.push((Row::ForwardCeiling, measured.done_per_s / 1e3)),
            Leg::ForwardOpen => {
                let p99 = part.findings.latencies.get(Metric::Answer).map_or(0, |it| it.summary().p99);
                measured.figures.push((Row::ForwardOpenP99, p99 as f64 / 1e6));
                measured.is_late = report::is_saturated(&part.findings.lag);
            }
            _ => {}
        }
        Ok(measured)
    }
}

/// Figures of every leg: CPU seconds per million operations, and faults.
fn measured(part: &Part, row: Row) -> Measured {
    let Part { ran, findings, .. } = part;
    let mut tally = findings.tally;
    tally.dropped += u64::from(ran.counts.dropped);
    tally.not_in += u64::from(ran.counts.not_in);
    let figures = ServerFigures::of(ran).map(|server| (row, server.cpu_s_per_million)).into_iter().collect();
    let done_per_s = ran.ends(Phase::Measure).map_or(0.0, |(began, ended)| {
        let seconds = ended.at.saturating_since(began.at).as_secs_f64().max(1e-9);
        (ended.done - began.done) as f64 / seconds
    });
    Measured { figures, tally, done_per_s, is_late: false, is_interrupted: ran.is_interrupted }
}
