//! The promised figures of the lease, measured with the real engine, guard and lease over the
//! in-memory store, under paused time. To print them, run
//! `cargo test --release --test paused -- scenarios:: --nocapture`.

mod many_keys;
mod shards;

use std::time::Duration;

use writerlease::{
    lab::{Network, Pace, Report, Scenario, Strategy},
    store::MemoryStore,
};

const SEEDS: u64 = 20;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A network with requests of 2 ms and events of 4 ms.
fn near() -> Network {
    Network { read: ms(2), write: ms(2), watch: ms(4), ..Network::default() }
}

/// The same network with 1 % of the events half a second late and out of order.
fn near_with_late_events() -> Network {
    Network { late: 0.01, late_by: ms(500), ..near() }
}

/// A scenario whose leader is killed in the tenth of twelve rounds.
fn failover(replicas: usize) -> Scenario {
    Scenario {
        replicas,
        rounds: 12,
        gap: ms(500),
        kill_leader_at: Some(10),
        network: near_with_late_events(),
        ..Scenario::default()
    }
}

/// Runs the scenario in a new runtime, so that no task of an earlier run remains.
fn run(scenario: Scenario) -> Report {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().expect("a runtime");
    let report = runtime.block_on(scenario.run(MemoryStore::new()));
    let report = report.unwrap_or_else(|error| panic!("seed {}: {error}", scenario.seed));
    assert_eq!(report.updates_lost, 0, "{scenario:?}");
    report
}

fn with_seeds(scenario: &Scenario) -> Vec<Report> {
    (1..=SEEDS).map(|seed| run(Scenario { seed, ..scenario.clone() })).collect()
}

/// Returns a figure of all runs, sorted.
fn sorted<T: Ord>(reports: &[Report], figure: impl Fn(&Report) -> T) -> Vec<T> {
    let mut figures: Vec<T> = reports.iter().map(figure).collect();
    figures.sort_unstable();
    figures
}

/// Returns the upper median.
fn median<T: Copy>(sorted: &[T]) -> T {
    sorted[sorted.len() / 2]
}

fn worst<T: Copy>(sorted: &[T]) -> T {
    sorted[sorted.len() - 1]
}

#[test]
fn equal_seeds_give_equal_reports() {
    let strategies = [Strategy::Lease, Strategy::Retry];
    for strategy in strategies {
        let scenario =
            Scenario { strategy, rounds: 4, edits: 1.0, kill_leader_at: Some(3), seed: 7, ..failover(5) };
        let first = run(scenario.clone());
        for _ in 0..3 {
            assert_eq!(run(scenario.clone()), first, "{strategy}");
        }
        assert_ne!(run(Scenario { seed: 8, ..scenario }).rounds, first.rounds, "{strategy}");
    }
}

#[test]
fn round_takes_a_few_round_trips() {
    let report = run(Scenario {
        rounds: 20,
        skew: Duration::ZERO,
        concurrency: 32,
        network: Network { read: Duration::ZERO, ..near() },
        seed: 1,
        ..Scenario::default()
    });
    println!(
        "100 keys, 3 replicas, 2 ms per write: median round {:?}, slowest {:?}",
        report.round_p50(),
        report.slowest_round()
    );
    assert!(report.round_p50() <= ms(20), "{report}");
}

#[test]
fn slow_store_or_long_queue_deposes_no_leader() {
    for (write, keys) in [(ms(20), 200), (ms(50), 200), (ms(100), 200), (ms(10), 2000)] {
        let network = Network { read: write / 2, write, watch: write / 2, ..Network::default() };
        let scenario = Scenario { keys, network, ..Scenario::default() };
        for seed in 1..=3 {
            let alone = run(Scenario { replicas: 1, seed, ..scenario.clone() });
            let report = run(Scenario { seed, ..scenario.clone() });
            println!(
                "{keys} keys, {write:?} per write: round of one replica {:?}, of three {:?}; refused {}, leader changes {}",
                alone.round_p50(),
                report.round_p50(),
                report.writes_refused,
                report.leader_changes
            );
            assert!(report.round_p50() <= alone.round_p50().mul_f64(1.1), "{report}");
            // At the start two replicas can lead until they see each other's writes. Of a queue that is
            // longer than patience, followers take over a part.
            assert!(report.leader_changes <= 6, "{report}");
            assert!(report.writes_refused * 50 <= report.writes_needed, "{report}");
        }
    }
}

#[test]
fn fifty_replicas_start_with_few_refusals() {
    let reports = with_seeds(&Scenario { replicas: 50, rounds: 1, network: near(), ..Scenario::default() });
    let refused = sorted(&reports, |report| report.writes_refused);
    let times = sorted(&reports, |report| report.slowest_round());
    println!(
        "start-up of 50 replicas: refused {refused:?}; up to date after {:?}, worst {:?}",
        median(&times),
        worst(&times)
    );
    assert!(median(&refused) <= 2, "{refused:?}");
}

#[test]
fn fifty_replicas_end_up_with_one_leader() {
    let reports = with_seeds(&Scenario {
        replicas: 50,
        rounds: 5,
        gap: ms(500),
        network: near(),
        ..Scenario::default()
    });
    let leaders = sorted(&reports, |report| report.leaders_at_end);
    let refused = sorted(&reports, |report| report.writes_refused);
    println!("50 replicas after 5 rounds: leaders {leaders:?}, refused {refused:?}");
    assert!(leaders.iter().all(|leaders| *leaders == 1), "{leaders:?}");
}

#[test]
fn dead_leader_is_replaced_within_seconds() {
    for replicas in [3, 50] {
        let reports = with_seeds(&failover(replicas));
        let refused = sorted(&reports, |report| report.refused_after_kill);
        let times = sorted(&reports, |report| report.failover.expect("the leader was killed"));
        println!(
            "leader of {replicas} dies: up to date after {:?}, worst {:?}; refused {refused:?}",
            median(&times),
            worst(&times)
        );
        assert!(median(&times) <= ms(3000), "{times:?}");
        assert!(worst(&times) <= ms(6000), "{times:?}");
        assert!(median(&refused) <= 1, "{refused:?}");
    }
}

#[test]
fn edits_by_others_delay_no_write() {
    for seed in [1, 2] {
        let report = run(Scenario {
            keys: 200,
            rounds: 200,
            keys_per_round: Some(1),
            pace: Pace::Steady,
            gap: ms(500),
            edits: 1.0,
            network: near(),
            seed,
            ..Scenario::default()
        });
        println!(
            "200 objects edited once a second: {} of 200 writes happened, the slowest after {:?}",
            report.rounds.len(),
            report.slowest_round()
        );
        assert_eq!(report.rounds.len(), 200);
        assert!(report.slowest_round() < ms(1000), "{report}");
    }
}

#[test]
fn overlapping_keys_starve_no_replica() {
    for gap in [ms(400), ms(3000)] {
        for seed in [1, 2, 3] {
            let report = run(Scenario {
                replicas: 2,
                rounds: (Duration::from_secs(100).as_millis() / gap.as_millis()) as usize,
                wants: vec![0..50, 40..100],
                pace: Pace::Steady,
                gap,
                network: near(),
                seed,
                ..Scenario::default()
            });
            println!(
                "overlapping keys, rounds every {gap:?}: oldest pending key {:?}, refused {}",
                report.slowest_round(),
                report.writes_refused
            );
            assert!(report.slowest_round() < ms(4000), "{report}");
        }
    }
}
