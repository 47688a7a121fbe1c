//! The legs of a round: a load on one side, and the figures it gives.

use super::sides::{Behind, Counted, Servers};
use super::table::Row;
use super::{Ceilings, Options, Side};
use crate::bare::{BareClient, Uplink};
use crate::carrier::{CarryRule, TlsRule, Trust};
use crate::dialect::token::Tokens;
use crate::dialect::{Dialect, Moorline, MoorlineOptions};
use crate::exit::Failure;
use crate::fleet::{Alone, BeatsFrom, Plan, RampRule, Stop};
use crate::integrity::Tally;
use crate::job::{self, Part, Work};
use crate::phase::{Phase, Timeline};
use crate::record::{Latencies, Metric};
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
/// Longest time before a measurement, which is never longer than the measurement itself.
const WARMUP_MAX: Duration = Duration::from_secs(1);
/// Unanswered messages per client in the open loop.
const OPEN_WINDOW: u32 = 16;
/// Unanswered messages per client at the bare server, which answers no message to another client: more than a leg sends.
const BARE_WINDOW: u32 = 1 << 20;
/// Messages a second where a messenger spends its life: answered by the backend, and between two people.
const FORWARD_LOW: f64 = 10_000.0;
const CHAT_LOW: f64 = 5_000.0;
/// Deliveries a second to the members of one group, whatever its size.
const GROUP_DELIVERIES: f64 = 10_000.0;

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
    /// Acked forwarding at a low rate, open loop.
    ForwardLow,
    /// Chat of pairs at a low rate, open loop.
    ChatLow,
    /// Chat of pairs at half the ceiling, open loop.
    ChatOpen,
    /// One group of 100, open loop.
    Group100,
    /// One group of 1,000, open loop.
    Group1k,
    /// One group of all members, open loop.
    GroupAll,
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
    pub(super) const ALL: [Self; 13] = [
        Self::Idle,
        Self::Forward,
        Self::ForwardOpen,
        Self::Echo,
        Self::Chat,
        Self::FanOut,
        Self::FanOutBusy,
        Self::ForwardLow,
        Self::ChatLow,
        Self::ChatOpen,
        Self::Group100,
        Self::Group1k,
        Self::GroupAll,
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
            Self::ForwardLow => &[Row::ForwardLow, Row::ForwardLowP50],
            Self::ChatLow => &[Row::ChatLow, Row::ChatLowP50],
            Self::ChatOpen => &[Row::ChatOpen, Row::ChatOpenP99],
            Self::Group100 => &[Row::Group100, Row::Group100P99],
            Self::Group1k => &[Row::Group1k, Row::Group1kP99],
            Self::GroupAll => &[Row::GroupAll, Row::GroupAllP99],
        }
    }

    /// A gateway answers nothing by itself.
    pub(super) const fn is_ours_too(self) -> bool {
        !matches!(self, Self::Echo)
    }

    const fn behind(self) -> Behind {
        match self {
            Self::Idle | Self::Forward | Self::ForwardOpen | Self::ForwardLow | Self::Echo => Behind::Acker,
            _ => Behind::Im,
        }
    }

    /// The latency of an open loop, from the intended time; true: its p99, else the median.
    const fn latency(self) -> Option<(Row, Metric, bool)> {
        match self {
            Self::ForwardOpen => Some((Row::ForwardOpenP99, Metric::Answer, true)),
            Self::ForwardLow => Some((Row::ForwardLowP50, Metric::Answer, false)),
            Self::ChatLow => Some((Row::ChatLowP50, Metric::Deliver, false)),
            Self::ChatOpen => Some((Row::ChatOpenP99, Metric::Deliver, true)),
            Self::Group100 => Some((Row::Group100P99, Metric::Deliver, true)),
            Self::Group1k => Some((Row::Group1kP99, Metric::Deliver, true)),
            Self::GroupAll => Some((Row::GroupAllP99, Metric::Deliver, true)),
            _ => None,
        }
    }

    const fn counted(self) -> Counted {
        match self {
            Self::Chat | Self::ChatLow | Self::ChatOpen => Counted::All,
            _ => Counted::Front,
        }
    }

    fn clients(self, options: &Options) -> u32 {
        match self {
            Self::Idle => options.idle_clients,
            Self::FanOut | Self::FanOutBusy | Self::GroupAll => options.members,
            Self::Group100 => options.members.min(100),
            Self::Group1k => options.members.min(1_000),
            _ => options.busy_clients,
        }
    }
}

/// Starts a side, runs a leg on it, ends it.
pub(super) fn measure(
    leg: Leg,
    side: Side,
    options: &Options,
    ceilings: Ceilings,
    stop: &Stop,
) -> Result<Measured, Failure> {
    let servers = Servers::start(side, leg.behind(), &options.programs)?;
    let plan = plan(leg, side, options, &servers);
    let drive = Drive { leg, side, options, ceilings, plan: &plan, stop };
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
            warmup: options.measure.min(WARMUP_MAX),
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
    side: Side,
    options: &'a Options,
    ceilings: Ceilings,
    plan: &'a Plan,
    stop: &'a Stop,
}

impl Drive<'_> {
    fn work(&self) -> Work {
        let payload = self.options.payload_bytes;
        match self.leg {
            Leg::Idle => Work::Hold,
            Leg::Forward | Leg::Echo => Work::Ping { load: Load::Closed { window: 1 }, payload },
            Leg::ForwardOpen => Work::Ping { load: self.open(self.ceilings.forward / 2.0), payload },
            Leg::ForwardLow => Work::Ping { load: self.open(FORWARD_LOW), payload },
            Leg::ChatLow => Work::Chat { load: self.open(CHAT_LOW), payload, patience: Patience::None },
            Leg::ChatOpen => {
                Work::Chat { load: self.open(self.ceilings.chat / 2.0), payload, patience: Patience::None }
            }
            Leg::Chat => Work::Chat { load: Load::Closed { window: 1 }, payload, patience: Patience::None },
            Leg::FanOut => self.fan_out(Load::Closed { window: 1 }),
            Leg::FanOutBusy => self.fan_out(Load::Closed { window: FANOUT_UNDER_WAY }),
            Leg::Group100 | Leg::Group1k | Leg::GroupAll => {
                self.fan_out(self.open(GROUP_DELIVERIES / f64::from(self.plan.clients)))
            }
        }
    }

    const fn open(&self, rate: f64) -> Load {
        let is_answered =
            matches!(self.leg, Leg::ForwardOpen | Leg::ForwardLow) || matches!(self.side, Side::Ours);
        Load::Open { rate, window: if is_answered { OPEN_WINDOW } else { BARE_WINDOW } }
    }

    const fn fan_out(&self, load: Load) -> Work {
        let payload = self.options.payload_bytes;
        Work::Group { load, payload, groups: 1, members: self.plan.clients }
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
            _ => {}
        }
        if let Some((row, metric, is_p99)) = self.leg.latency() {
            let summary = part.findings.latencies.get(metric).map(Latencies::summary).unwrap_or_default();
            let nanos = if is_p99 { summary.p99 } else { summary.p50 };
            measured.figures.push((row, nanos as f64 / 1e6));
            measured.is_late = report::is_saturated(&part.findings.lag);
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
