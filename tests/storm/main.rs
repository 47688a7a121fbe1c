//! Storms of 10^8 clients, and regions that are lost, in simulated time.
//!
//! The rules are the shipped ones: the SDK's backoff and its position in the list of gateways, the gateway's door and breaker,
//! dispatch's choice. Queues, processors and networks are simulated; `docs/regions.md` lists what is assumed, and the results.
//!
//! ```text
//! cargo test --test storm                                                     # scaled down: seconds
//! MOORLINE_STORM_SCALE=1 cargo test --release --test storm -- everybody --nocapture   # each client of 10^8
//! ```

#![allow(clippy::cast_precision_loss)] // counts of clients are below 2^52

mod failover;
mod plan;
mod servers;
mod world;

use moorline_proto::time::Duration;
use plan::{Disaster, Plan};
use world::{Outcome, World};

fn run(plan: &Plan) -> Outcome {
    World::new(plan, 1).run()
}

fn print(name: &str, plan: &Plan, outcome: &Outcome) {
    let Outcome { lost, back: [half, most, nearly, all], peak_logins, attempts, refused, timed_out, .. } =
        outcome;
    let share = |count: &usize| 100.0 * *count as f64 / *attempts as f64;
    println!(
        "{name}: {lost} clients; back after {half:.0} s (50%), {most:.0} s (90%), {nearly:.0} s (99%), {all:.0} s (all); \
         logins of a gateway at most {peak_logins:.0}/s of {:.0}; attempts {:.2} each, {:.1}% refused, {:.1}% timed out; \
         questions {:.2} each, at most {}/s, {:.1}% failed; breakers opened {} times",
        plan.login_rate(),
        *attempts as f64 / *lost as f64,
        share(refused),
        share(timed_out),
        outcome.questions as f64 / *lost as f64,
        outcome.peak_questions,
        100.0 * outcome.questions_failed as f64 / outcome.questions.max(1) as f64,
        outcome.trips,
    );
}

/// The storms of `docs/regions.md`, by name.
fn storms(base: impl Fn(Disaster) -> Plan) -> Vec<(&'static str, Plan)> {
    let every = || base(Disaster::EveryConnection);
    let region = || base(Disaster::Region);
    let slowly = Duration::from_secs(250);
    vec![
        ("all break at once", every()),
        ("all break, accept_rate 3,000", Plan { accept_rate: 3_000, ..every() }),
        (
            "all break, a node is silent from 10 to 17 s",
            Plan { silent_node: Some((Duration::from_secs(10), Duration::from_secs(17))), ..every() },
        ),
        ("a region is lost, noticed within 1 s", region()),
        ("a region is lost, noticed by heartbeats within 250 s", Plan { noticed_within: slowly, ..region() }),
        ("a region is lost, the others are nearly full", Plan { connections_max: 700_000, ..region() }),
    ]
}

/// Scale of the whole world by the variable; `None`: the small world.
fn world_scale() -> Option<usize> {
    std::env::var("MOORLINE_STORM_SCALE").ok().and_then(|text| text.parse().ok())
}

#[test]
fn everybody_is_back_and_no_gateway_does_more_than_it_can() {
    let plan_of =
        |disaster| world_scale().map_or_else(|| Plan::small(disaster), |scale| Plan::world(disaster, scale));
    for (name, plan) in storms(plan_of) {
        let outcome = run(&plan);
        print(name, &plan, &outcome);
        let [.., nearly, all] = outcome.back;
        // One simulated client more or less in a second is as many real ones as it stands for.
        let most = if plan.accept_rate > 0 { f64::from(plan.accept_rate) * 1.1 } else { plan.login_rate() };
        let gap = (2 * plan.scale) as f64;
        assert!(outcome.peak_logins <= most + gap, "{name}: {outcome:?}");
        // The least time that any policy could take: the gateways that live work without a pause.
        let alive = match plan.disaster {
            Disaster::EveryConnection => plan.regions * plan.gateways,
            Disaster::Region => (plan.regions - 1) * plan.gateways,
        };
        let least = outcome.lost as f64 / (alive as f64 * most);
        let noticed = plan.noticed_within.as_secs_f64();
        assert!(all > 0.0 && nearly < 1.5 * least + noticed + 30.0, "{name}: {outcome:?}");
        assert_eq!(outcome.trips > 0, plan.silent_node.is_some(), "{name}: {outcome:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_storm() {
    let plan = Plan::small(Disaster::Region);
    assert_eq!(run(&plan), run(&plan));
}
