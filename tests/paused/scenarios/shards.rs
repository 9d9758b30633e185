//! Shards and a roster: how throughput grows with the replicas, and what deaths, departures and
//! newcomers cost.
//!
//! `cargo test --release --test paused -- scenarios::shards --nocapture` prints the figures.
//! `SCENARIO_SEEDS=20` in the environment takes more seeds than the default.

use std::time::Duration;

use writerlease::lab::{Network, ReplicaFault, ReplicaFaultKind, Report, Scenario};

use super::{
    many_keys::{median_of, seeds},
    median, ms, run, sorted, worst,
};

const SHARDS: u16 = 64;

/// Requests of 2 and 20 ms, and news within 5, of which one in a thousand is late and holds up those
/// that follow.
fn usual() -> Network {
    let (read, write, watch) = (ms(2), ms(20), ms(5));
    Network { read, write, watch, late: 0.001, late_by: ms(500), in_order: true }
}

/// A round each second, with 64 shards and a roster.
fn crowd(replicas: usize, keys: usize, rounds: usize) -> Scenario {
    let (shards, gap, network) = (SHARDS, ms(1000), usual());
    Scenario { replicas, keys, rounds, shards, roster: true, gap, network, ..Scenario::default() }
}

fn reports(scenario: &Scenario) -> Vec<Report> {
    seeds().map(|seed| run(Scenario { seed, ..scenario.clone() })).collect()
}

/// The figures of some runs in which something happens in the round with the number `mark`.
struct Figures {
    before: Duration,
    worst: Duration,
    last: Duration,
    failover: Duration,
    refused: u64,
    most_refused: u64,
    moved_after_kill: f64,
    roster_writes: u64,
    busiest: f64,
}

/// Returns what the busiest replica wrote in a round, over the mean of those that wrote.
fn busiest(written: &[u64]) -> f64 {
    let (sum, most) = (written.iter().sum::<u64>(), written.iter().max().copied().unwrap_or(0));
    most as f64 * written.iter().filter(|keys| **keys > 0).count() as f64 / sum.max(1) as f64
}

fn measure(name: &str, scenario: &Scenario, mark: usize) -> Figures {
    let reports = reports(scenario);
    let times = |figure: &dyn Fn(&Report) -> Duration| sorted(&reports, figure);
    let mut busy: Vec<f64> =
        reports.iter().map(|report| report.written.last().map_or(0.0, |round| busiest(round))).collect();
    busy.sort_by(f64::total_cmp);
    let refused = sorted(&reports, |report| report.writes_refused);
    let figures = Figures {
        before: median(&times(&|report| median_of(&report.rounds[mark.min(4) - 2..mark - 1]))),
        worst: worst(&times(&|report| report.rounds[mark - 1..].iter().copied().max().expect("rounds"))),
        last: median(&times(&|report| median_of(&report.rounds[report.rounds.len() - 8..]))),
        failover: worst(&times(&|report| report.failover.unwrap_or_default())),
        refused: median(&refused),
        most_refused: worst(&refused),
        moved_after_kill: median(&sorted(&reports, |report| report.moved_after_kill)) as f64
            / scenario.keys as f64,
        roster_writes: worst(&sorted(&reports, |report| report.roster_writes)),
        busiest: busy[busy.len() / 2],
    };
    println!(
        "{name}: round {:.3?}, worst after {:.2?}, last eight {:.3?}; failover {:.2?}; refused {} (most {}) of {}; \
         moved beside {:.1} %; roster writes {}; busiest / mean {:.2}",
        figures.before,
        figures.worst,
        figures.last,
        figures.failover,
        figures.refused,
        figures.most_refused,
        reports[0].writes_needed,
        100.0 * figures.moved_after_kill,
        figures.roster_writes,
        figures.busiest,
    );
    figures
}

#[test]
fn throughput_grows_with_the_replicas() {
    let alone = measure("1 x 2000", &Scenario { shards: 1, roster: false, ..crowd(1, 2000, 12) }, 11);
    for (replicas, most) in [(2, 0.55), (4, 0.29), (8, 0.16), (16, 0.10)] {
        let figures = measure(&format!("{replicas} x 2000"), &crowd(replicas, 2000, 12), 11);
        let share = figures.before.as_secs_f64() / alone.before.as_secs_f64();
        println!("    {share:.3} of the round of one, at most {most} is promised");
        assert!(share <= most, "{replicas}: {share}");
    }
}

#[test]
fn start_of_fifty_refuses_few_writes() {
    for write in [20, 100] {
        let network = Network { write: ms(write), ..usual() };
        let scenario = Scenario { network, ..crowd(50, 100, 12) };
        let figures = measure(&format!("start of 50, {write} ms a write"), &scenario, 11);
        // At 100 ms, some replicas see their turn before they see the whole group.
        let (median, most) = if write == 20 { (0, 5) } else { (2, 60) };
        assert!(figures.refused <= median && figures.most_refused <= most, "{write} ms");
    }
}

#[test]
fn death_moves_few_keys_beside_those_of_the_dead() {
    for replicas in [3, 10, 50] {
        let scenario = Scenario { kill_leader_at: Some(10), ..crowd(replicas, 300, 30) };
        let figures = measure(&format!("{replicas} x 300, one killed"), &scenario, 10);
        assert!(figures.failover <= ms(2500) && figures.moved_after_kill <= 0.05, "{replicas}");
    }
}

#[test]
fn rolling_restart_costs_no_round() {
    // A roster serves a single shard as well: the next leader is known.
    for (replicas, shards) in [(3, SHARDS), (10, SHARDS), (3, 1)] {
        let steady = Scenario { shards, ..crowd(replicas, 300, 20) };
        let restart = Scenario { rolling_restart: true, rounds: 20 + 3 * replicas, ..steady.clone() };
        let name = format!("{replicas} x 300, {shards} shards");
        let figures = measure(&format!("{name}, rolling restart"), &restart, 3);
        let usual = measure(&format!("{name}, steady"), &steady, 10).before;
        assert!(figures.worst <= ms(500).max(2 * usual) && figures.most_refused <= 5, "{name}");
    }
}

#[test]
fn replica_that_stands_still_costs_a_patience() {
    for replicas in [3, 10] {
        let pause =
            ReplicaFault { kind: ReplicaFaultKind::Pause, replica: 0, at: ms(9_800), lasts: ms(10_000) };
        let scenario = Scenario { faults: vec![pause], ..crowd(replicas, 300, 40) };
        let figures = measure(&format!("{replicas} x 300, one stopped for 10 s"), &scenario, 9);
        assert!(figures.worst <= ms(2500) && figures.refused <= 10, "{replicas}");
        assert!(figures.roster_writes <= replicas as u64 + 4, "{replicas}");
    }
}

#[test]
fn newcomer_gets_its_share_in_seconds() {
    let kill =
        |replica| ReplicaFault { kind: ReplicaFaultKind::Restart, replica, at: ms(0), lasts: ms(10_000) };
    let scenario = Scenario { faults: vec![kill(0)], ..crowd(3, 1200, 14) };
    let figures = measure("3 x 1200, one joins 3 s before the last round", &scenario, 11);
    assert!(figures.busiest <= 1.3);
}

#[test]
fn equal_seeds_give_equal_reports() {
    let scenario = Scenario { kill_leader_at: Some(6), seed: 7, ..crowd(10, 200, 12) };
    let first = run(scenario.clone());
    for _ in 0..5 {
        assert_eq!(run(scenario.clone()), first);
    }
}
