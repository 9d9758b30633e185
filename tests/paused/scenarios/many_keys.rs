//! Many keys, slow stores and late news: how long a round takes before anything happens, at worst
//! afterwards, and in the end. A round that is slow for good is a group that collapsed.
//!
//! `cargo test --release --test paused -- scenarios::many_keys --nocapture` prints the figures.
//! `SCENARIO_SEEDS=20` in the environment takes more seeds than the default.

use std::{fmt::Display, ops::Range, time::Duration};

use writerlease::lab::{Network, ReplicaFault, ReplicaFaultKind, Report, Scenario};

use super::{median, ms, run, worst};

/// A miss fails the test.
const GATED: bool = true;

/// Returns 3 seeds, or one without optimization, unless the environment sets `SCENARIO_SEEDS`.
pub(super) fn seeds() -> Range<u64> {
    let unless_set = if cfg!(debug_assertions) { 1 } else { 3 };
    let set = std::env::var("SCENARIO_SEEDS").ok();
    1..1 + set.map_or(unless_set, |seeds| seeds.parse().expect("SCENARIO_SEEDS is a number"))
}

/// Returns the number of keys; a thousand take too long without optimization.
fn many() -> usize {
    if cfg!(debug_assertions) { 100 } else { 1000 }
}

/// One in a hundred events is late by half a second on average.
fn late(network: Network) -> Network {
    Network { late: 0.01, late_by: ms(500), ..network }
}

fn in_order(network: Network) -> Network {
    Network { in_order: true, ..network }
}

/// Ten replicas and 40 rounds, one each second.
fn crowd(keys: usize, network: Network) -> Scenario {
    Scenario { replicas: 10, keys, rounds: 40, gap: ms(1000), network, ..Scenario::default() }
}

/// Requests of 2 and 10 ms, and news within 3.
fn usual() -> Network {
    Network { read: ms(2), write: ms(10), watch: ms(3), ..Network::default() }
}

/// The figures of some runs, sorted by size.
struct Figures {
    name: String,
    /// The median round before `mark`, the first two aside.
    before: Vec<Duration>,
    worst: Vec<Duration>,
    /// The median of the last eight rounds.
    last: Vec<Duration>,
    failover: Vec<Duration>,
    refused: Vec<u64>,
    refused_after_kill: Vec<u64>,
    needed: u64,
    misses: Vec<String>,
}

pub(super) fn median_of(rounds: &[Duration]) -> Duration {
    let mut sorted = rounds.to_vec();
    sorted.sort_unstable();
    median(&sorted)
}

/// Runs a scenario with some seeds. Something happens in the round with the number `mark`.
fn measure(name: impl Display, scenario: &Scenario, mark: usize) -> Figures {
    let reports: Vec<Report> = seeds().map(|seed| run(Scenario { seed, ..scenario.clone() })).collect();
    let times = |figure: &dyn Fn(&Report) -> Duration| super::sorted(&reports, figure);
    let figures = Figures {
        name: name.to_string(),
        before: times(&|report| median_of(&report.rounds[2..mark - 1])),
        worst: times(&|report| report.rounds[mark - 1..].iter().copied().max().expect("rounds")),
        last: times(&|report| median_of(&report.rounds[report.rounds.len() - 8..])),
        failover: times(&|report| report.failover.unwrap_or_default()),
        refused: super::sorted(&reports, |report| report.writes_refused),
        refused_after_kill: super::sorted(&reports, |report| report.refused_after_kill),
        needed: reports[0].writes_needed,
        misses: Vec::new(),
    };
    println!(
        "{}: round {:.3?}, worst after {:.2?} (most {:.2?}), last eight {:.3?} (most {:.3?}); refused {} (most {}) of {}{}",
        figures.name,
        median(&figures.before),
        median(&figures.worst),
        worst(&figures.worst),
        median(&figures.last),
        worst(&figures.last),
        median(&figures.refused),
        worst(&figures.refused),
        figures.needed,
        match scenario.kill_leader_at {
            Some(_) => format!(
                "; failover {:.2?} (most {:.2?}), refused after it {} (most {})",
                median(&figures.failover),
                worst(&figures.failover),
                median(&figures.refused_after_kill),
                worst(&figures.refused_after_kill)
            ),
            None => String::new(),
        }
    );
    figures
}

impl Figures {
    fn at_most<T: PartialOrd + std::fmt::Debug>(mut self, what: &str, is: T, most: T) -> Self {
        if is > most {
            self.misses.push(format!("{what} is {is:.3?}, at most {most:.3?} is promised"));
        }
        self
    }

    /// The last eight rounds take no longer than those before anything happened.
    fn recovers(self) -> Self {
        let (last, before) = (median(&self.last), median(&self.before));
        self.at_most("the median of the last eight rounds", last, before.mul_f64(1.2))
    }

    fn few_are_refused(self) -> Self {
        let (refused, most) = (worst(&self.refused), self.needed / 50);
        self.at_most("the number of refused writes", refused, most)
    }

    fn judge(self) {
        for miss in &self.misses {
            println!("    missed: {miss}");
        }
        assert!(!GATED || self.misses.is_empty(), "{}: {:?}", self.name, self.misses);
    }
}

#[test]
fn thousand_keys_outlive_their_leader() {
    let scenario = Scenario { kill_leader_at: Some(10), ..crowd(many(), late(usual())) };
    measure(format!("10 x {}, leader killed, news overtake", many()), &scenario, 10).recovers().judge();
}

#[test]
fn late_news_that_hold_up_others_cause_no_collapse() {
    for keys in [300, many()] {
        let steady = crowd(keys, in_order(late(usual())));
        measure(format!("10 x {keys}, news in order"), &steady, 10).recovers().few_are_refused().judge();
        let killed = Scenario { kill_leader_at: Some(10), ..steady };
        measure(format!("10 x {keys}, news in order, leader killed"), &killed, 10).recovers().judge();
    }
}

#[test]
fn replicas_that_want_parts_wait_for_nobody() {
    for network in [usual(), in_order(late(usual()))] {
        let scenario =
            Scenario { replicas: 3, wants: vec![0..200, 100..300, 0..50], ..crowd(300, network.clone()) };
        let figures =
            measure(format!("0-199, 100-299, 0-49, late {}", network.late), &scenario, 10).few_are_refused();
        let (last, most) = (median(&figures.last), median(&figures.worst));
        let figures = figures.at_most("a round", last, ms(300));
        match network.late > 0.0 {
            true => figures.judge(),
            false => figures.at_most("the slowest round", most, ms(500)).judge(),
        }
    }
}

#[test]
fn slow_store_splits_thousand_keys_once() {
    let network = Network { read: ms(25), write: ms(50), watch: ms(25), ..Network::default() };
    let scenario = Scenario { rounds: 20, gap: ms(2000), ..crowd(many(), network) };
    let figures = measure(format!("10 x {}, 50 ms a write", many()), &scenario, 10).few_are_refused();
    let last = median(&figures.last);
    figures.at_most("a round", last, ms(2000)).judge();
}

#[test]
fn slow_leader_is_not_deposed() {
    let slow = Network { read: ms(50), write: ms(100), watch: ms(50), ..Network::default() };
    for keys in [200, many()] {
        let scenario =
            Scenario { replicas: 3, rounds: 20, network: slow.clone(), ..crowd(keys, slow.clone()) };
        let figures = measure(format!("3 x {keys}, 100 ms a write"), &scenario, 10);
        let alone = median(&measure("    one alone", &Scenario { replicas: 1, ..scenario }, 10).before);
        let last = median(&figures.last);
        figures.recovers().few_are_refused().at_most("a round", last, alone.mul_f64(1.1)).judge();
    }
}

#[test]
fn far_replica_slows_nobody_down() {
    // The one that is far away may lead first.
    let far = Network { read: ms(100), write: ms(200), watch: ms(2000), ..Network::default() };
    let scenario = Scenario { replicas: 3, networks: vec![far], ..crowd(300, usual()) };
    measure("3 x 300, the first 200 ms and its watch 2 s away", &scenario, 10)
        .recovers()
        .few_are_refused()
        .judge();
}

#[test]
fn failover_takes_a_patience_with_many_keys() {
    for &replicas in if cfg!(debug_assertions) { &[3, 10][..] } else { &[3, 10, 50] } {
        let network = Network { read: ms(2), write: ms(2), watch: ms(4), ..Network::default() };
        let scenario = Scenario {
            replicas,
            rounds: 22,
            kill_leader_at: Some(10),
            ..crowd(300, in_order(Network { late: 0.001, late_by: ms(500), ..network }))
        };
        let figures = measure(format!("{replicas} x 300, leader killed"), &scenario, 10).recovers();
        let (failover, longest) = (median(&figures.failover), worst(&figures.failover));
        let (refused, most) = (median(&figures.refused_after_kill), worst(&figures.refused_after_kill));
        figures
            .at_most("the failover", failover, ms(2500))
            .at_most("the longest failover", longest, ms(5000))
            .at_most("the median of refused writes", refused, 2)
            .at_most("the most of refused writes", most, 20)
            .judge();
    }
}

#[test]
fn faults_of_single_replicas_pass() {
    let fault = |kind, replica, at: u64, lasts: u64| ReplicaFault {
        kind,
        replica,
        at: ms(1000 * at),
        lasts: ms(1000 * lasts),
    };
    let restarts =
        (0..3).map(|replica| fault(ReplicaFaultKind::Restart, replica, 10 + 8 * replica as u64, 3));
    let kills = (0..3).map(|replica| fault(ReplicaFaultKind::Kill, replica, 10 + 8 * replica as u64, 3));
    let worlds = [
        ("rolling restart", restarts.collect()),
        ("one after the other killed", kills.collect()),
        ("one stopped for 10 s", vec![fault(ReplicaFaultKind::Pause, 0, 10, 10)]),
    ];
    for (name, faults) in worlds {
        let scenario = Scenario { replicas: 3, rounds: 50, faults, ..crowd(300, in_order(late(usual()))) };
        measure(format!("3 x 300, {name}"), &scenario, 10).recovers().few_are_refused().judge();
    }
}
