//! Reports of made-up runs.

use super::*;
use crate::carrier::CarryRule;
use crate::fleet::{BeatsFrom, Counts, Plan, RampRule};
use crate::job::{Login, Wire, Work};
use crate::phase::Timeline;
use crate::process::{Usage, Watched};
use crate::record::{Latencies, Metric};
use crate::scenario::Load;
use crate::socket::Sources;
use moorline_proto::time::Instant;

fn job() -> Job {
    let second = Duration::from_secs(1);
    let plan = Plan {
        target: "127.0.0.1:7000".parse().unwrap(),
        carry: CarryRule::default(),
        clients: 1_000,
        first: 0,
        ramp: RampRule { rate: None, at_once: 1 },
        sources: Sources::default(),
        returns: None,
        beats: (second, BeatsFrom::Ramp),
        timeline: Timeline { ramp_max: second, warmup: second, measure: second, drain_max: second },
        watched: Watched::default(),
    };
    let work = Work::Ping { load: Load::Closed { window: 1 }, payload: 1 };
    Job { plan, wire: Wire::Moorline, login: Login::default(), work }
}

/// A run whose server used 10 ms more of CPU and 100 KiB more of memory in each phase.
fn part() -> Part {
    let phases = [Phase::Ramp, Phase::Warmup, Phase::Measure, Phase::Drain, Phase::Over];
    let mark = |(at, phase): (u64, Phase)| Mark {
        phase,
        at: Instant::ZERO + Duration::from_secs(at * 10),
        usage: Some(Usage { cpu: Duration::from_millis(at * 10), rss_bytes: (1_000 + at * 100) << 10 }),
        own_cpu: Duration::from_secs(at),
        done: at * 5_000,
        beats_back: 0,
        active: 1_000,
        handshakes: 0,
    };
    let ran = Ran {
        marks: (0..).zip(phases).map(mark).collect(),
        counts: Counts { active: 1_000, ..Counts::default() },
        ..Ran::default()
    };
    Part { ran, ..Part::default() }
}

fn report(part: &Part) -> Report {
    Report::new(&job(), 1, part, Drops::Fail)
}

fn late() -> Latencies {
    let mut late = Latencies::default();
    late.record(LAG_P99_MAX * 2);
    late
}

#[test]
fn figures_are_differences_between_marks() {
    let report = report(&part());
    assert!((report.done_per_s - 500.0).abs() < 1e-9 && report.exit == 0);
    let server = report.server.unwrap();
    assert!((server.bytes_per_connection - 307.2).abs() < 1e-9, "300 KiB over 1,000: {server:?}");
    assert!((server.cpu_s_per_million - 2.0).abs() < 1e-9, "10 ms for 5,000: {server:?}");
    assert!((server.login_cpu_s_per_million - 10.0).abs() < 1e-9, "10 ms for 1,000: {server:?}");
    assert!((report.generator.busy.unwrap() - 0.1).abs() < 1e-9, "1 s in 10 s");
    assert!(report.text().starts_with("ping 10.0s   conns 1,000/1,000   done 500/s   PASS\n"));
}

#[test]
fn what_is_wrong_decides_the_exit() {
    let mut part = part();
    part.findings.lag = late();
    assert_eq!(report(&part).exit(), Exit::Saturated, "a late generator invalidates the run");
    part.findings.tally.lost = 1;
    assert_eq!(report(&part).exit(), Exit::Integrity, "but what was lost was lost");
    part.ran.is_interrupted = true;
    assert_eq!(report(&part).exit(), Exit::Interrupted);
}

#[test]
fn a_dropped_connection_fails_a_run_unless_the_server_goes_away_on_purpose() {
    let mut part = part();
    part.ran.counts.dropped = 3;
    assert_eq!(report(&part).exit(), Exit::Integrity);
    let counted = Report::new(&job(), 1, &part, Drops::Count);
    assert_eq!((counted.exit(), counted.connections.dropped), (Exit::Pass, 3));
    assert_eq!(counted.figure("dropped"), Some(3.0), "and is a figure all the same");
}

#[test]
fn a_failed_restart_outranks_a_late_generator_and_nothing_else() {
    let mut part = part();
    part.findings.lag = late();
    part.findings.latencies.record(Metric::Answer, Duration::from_millis(7));
    let failed = |part: &Part| {
        let mut report = report(part);
        report.fail_restart("the command failed".into());
        report
    };
    let report = failed(&part);
    assert_eq!(report.exit(), Exit::Unexpected);
    let text = report.text();
    assert!(text.contains("note       the command failed") && text.contains("SATURATED"), "{text}");
    assert!(text.contains("not shown: the generator was slow"), "{text}");
    part.findings.tally.lost = 1;
    assert_eq!(failed(&part).exit(), Exit::Integrity);
    part.ran.is_interrupted = true;
    assert_eq!(failed(&part).exit(), Exit::Interrupted);
}

#[test]
fn an_expectation_that_fails_is_the_exit_of_a_run_that_is_right_otherwise() {
    let mut part = part();
    part.findings.latencies.record(Metric::Answer, Duration::from_millis(7));
    let expectations = ["answer.p99<5ms".parse().unwrap(), "rate>100/s".parse().unwrap()];
    let mut judged = report(&part);
    judged.expect(&expectations, None);
    assert_eq!(judged.exit(), Exit::Unexpected);
    assert!(
        judged.text().contains("answer.p99<5ms: it is 7.0") && judged.text().contains("rate>100/s   met")
    );
    part.findings.tally.lost = 1;
    let mut judged = report(&part);
    judged.expect(&expectations, None);
    assert_eq!(judged.exit(), Exit::Integrity);
    part.findings.tally.lost = 0;
    part.ran.is_interrupted = true;
    let mut judged = report(&part);
    judged.expect(&[], Some("answer.p99>1s"));
    assert_eq!(judged.exit(), Exit::Unexpected, "an end that was asked for is no interruption");
}

#[test]
fn a_generator_that_waited_for_a_core_is_told_from_one_that_used_its_own() {
    let mut part = part();
    part.findings.lag = late();
    part.findings.latencies.record(Metric::Answer, Duration::from_millis(7));
    let machine = |busy, steal| Some(Machine { busy, others: busy / 2.0, steal });
    let blamed = |part: &Part, machine| {
        let mut report = report(part);
        report.blame(machine);
        (report.verdict.clone(), report.exit(), report.text())
    };
    for full in [machine(0.9, 0.0), machine(0.3, 0.1)] {
        let (verdict, exit, text) = blamed(&part, full);
        assert_eq!((verdict.as_str(), exit), ("INVALID machine busy", Exit::Saturated));
        assert!(
            text.contains("not shown: the machine was busy") && text.contains("machine    cores"),
            "{text}"
        );
    }
    for idle in [machine(0.5, 0.0), None] {
        assert_eq!(blamed(&part, idle).0, "INVALID generator saturated");
    }
    // It used its core: nobody else is to blame.
    part.ran.marks.iter_mut().for_each(|mark| mark.own_cpu *= 9);
    assert_eq!(blamed(&part, machine(1.0, 0.0)).0, "INVALID generator saturated");
    part.findings.lag = Latencies::default();
    assert_eq!(blamed(&part, machine(1.0, 0.2)).0, "PASS", "it was in time all the same");
}

#[test]
fn latencies_of_a_late_generator_are_nobodys() {
    let mut part = part();
    part.findings.lag = late();
    part.findings.latencies.record(Metric::Answer, Duration::from_millis(7));
    let mut late = report(&part);
    assert!(late.latencies.is_empty() && late.invalid_latencies["answer"].count == 1);
    assert_eq!(late.figure("answer.p99"), None);
    late.expect(&["answer.p99<5ms".parse().unwrap(), "lost<1".parse().unwrap()], None);
    let failed: Vec<bool> = late.expectations.iter().map(|judged| judged.failed.is_some()).collect();
    assert_eq!((failed, late.exit()), (vec![true, false], Exit::Saturated));
    assert!(late.expectations[0].failed.as_ref().unwrap().ends_with("not judged, the generator was late"));
}

#[test]
fn dropped_has_one_meaning_in_each_report() {
    let mut part = part();
    part.ran.counts.dropped = 3;
    let word = |report: &Report| report.text().matches("dropped 3").count();
    let failed = report(&part);
    assert!(word(&failed) == 1 && failed.text().contains("refused 0   dropped 3"), "{}", failed.text());
    let counted = Report::new(&job(), 1, &part, Drops::Count);
    assert!(word(&counted) == 1 && counted.text().contains("restart    dropped 3"), "{}", counted.text());
}
