//! The promises of the engine, in plans drawn from seeds.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use writerlease::lab::simulation::{FaultKind, Plan, PlannedFault, PlannedRoster, RoundStats, RunStats};

/// Returns 2000 seeds, or 50 without optimization. The environment variables `SEEDS` and `FIRST`
/// set their number and the first one. With `COUNT`, all seeds run, and the broken promises are
/// counted before the test fails.
fn seeds() -> Range<u64> {
    let number = |name, unless_set: u64| {
        let set = std::env::var(name).ok();
        set.map_or(unless_set, |number| number.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
    };
    let first = number("FIRST", 0);
    first..first + number("SEEDS", if cfg!(debug_assertions) { 50 } else { 2000 })
}

#[test]
fn all_promises_hold_for_drawn_plans() {
    let (seeds, next) = (seeds(), AtomicU64::new(0));
    let count = std::env::var_os("COUNT").is_some();
    let broken = Mutex::new(BTreeMap::<_, Vec<_>>::new());
    let run = || {
        let mut total = RunStats::default();
        loop {
            let seed = seeds.start + next.fetch_add(1, Relaxed);
            if !seeds.contains(&seed) {
                return total;
            }
            let plan = Plan::drawn(seed);
            match plan.run() {
                Ok(stats) => total = total + stats,
                Err(violation) if count => {
                    let mut broken = broken.lock().expect("no other thread panicked");
                    broken.entry(violation.promise).or_default().push((seed, violation));
                }
                Err(violation) => {
                    // Printed before the shrinking, which can take long.
                    println!("seed {seed}: {violation}");
                    panic!("seed {seed}: {violation}\nshrunk: {:#?}", plan.shrink())
                }
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let total = thread::scope(|scope| {
        let runs: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        let totals = runs.into_iter().map(|run| run.join().expect("all promises hold"));
        totals.fold(RunStats::default(), |sum, stats| sum + stats)
    });
    println!(
        "{} seeds, {:.0} simulated hours: {total:?}",
        seeds.end - seeds.start,
        total.time.as_secs_f64() / 3600.0
    );
    let broken = broken.into_inner().expect("no thread panicked");
    for (promise, violations) in &broken {
        let seeds: Vec<_> = violations.iter().map(|(seed, _)| seed).take(20).collect();
        println!("{} seeds break: {promise}: {seeds:?}; {}", violations.len(), violations[0].1);
    }
    assert!(broken.is_empty(), "all promises hold");
    assert!(total.written > total.rounds, "something was written");
}

#[test]
fn equal_seeds_give_equal_runs() {
    for seed in 0..if cfg!(debug_assertions) { 10 } else { 50 } {
        let plan = Plan::drawn(seed);
        assert_eq!(plan, Plan::drawn(seed));
        assert_eq!(plan.run(), plan.run());
    }
}

#[test]
fn plan_without_violation_is_not_shrunk() {
    let plan = Plan::drawn(1);
    assert_eq!(plan.shrink(), plan);
}

/// Returns group sizes; large groups take too long without optimization.
fn sizes() -> &'static [usize] {
    if cfg!(debug_assertions) { &[2, 10, 50] } else { &[1, 2, 3, 10, 50, 200, 500] }
}

fn median<T: Ord + Copy>(mut all: Vec<T>) -> T {
    all.sort_unstable();
    all[all.len() / 2]
}

/// Returns the time until the first successful write of these rounds.
fn first_write(laps: &[RoundStats]) -> Duration {
    let first = laps.iter().find_map(|lap| Some(lap.began + lap.first_write?));
    first.expect("a replica writes") - laps[0].began
}

fn refused_until_right(laps: &[RoundStats]) -> u64 {
    let right = laps.iter().position(|lap| lap.right.is_some()).expect("a round completes");
    laps[..=right].iter().map(|lap| lap.refused).sum()
}

#[test]
fn start_takes_32_echoes_and_one_refused_write() {
    for latency in [2, 10, 50, 100].map(Duration::from_millis) {
        for &replicas in sizes() {
            let refused = (0..11).map(|seed| {
                let mut plan = Plan::steady(seed, replicas, 20, 8);
                plan.latency = latency;
                let (_, rounds) = plan.rounds().unwrap();
                assert!(first_write(&rounds) <= latency * 2 * 32, "seed {seed}: {rounds:?}");
                refused_until_right(&rounds)
            });
            assert!(median(refused.collect()) <= 1, "{replicas} replicas, {latency:?}");
        }
    }
}

#[test]
fn dead_leader_is_replaced_in_three_seconds() {
    for latency in [2, 10, 50, 100].map(Duration::from_millis) {
        for &replicas in sizes().iter().filter(|replicas| **replicas > 1) {
            let runs = (0..11).map(|seed| {
                let mut plan = Plan::steady(seed, replicas, 20, 25);
                plan.latency = latency;
                // At the start of the twelfth round, before any replica receives its requests.
                let dies = plan.cadence * 12 + latency / 4;
                plan.faults.push(PlannedFault::new(FaultKind::CrashLeader, dies, Duration::MAX));
                let (_, rounds) = plan.rounds().unwrap();
                assert!(first_write(&rounds[11..]) < Duration::from_secs(10), "seed {seed}: {rounds:?}");
                (first_write(&rounds[11..]), refused_until_right(&rounds[11..]))
            });
            let (times, refused): (Vec<_>, Vec<_>) = runs.unzip();
            assert!(median(times) < Duration::from_secs(3), "{replicas} replicas, {latency:?}");
            assert!(median(refused) <= 2, "{replicas} replicas, {latency:?}");
        }
    }
}

/// Returns a plan of replicas that share 20 shards each by a roster.
fn shared_out(seed: u64, replicas: usize, ghosts: usize) -> Plan {
    let mut plan = Plan::steady(seed, replicas, 200, 40);
    plan.shards = 20 * replicas as u16;
    let mut roster = PlannedRoster::default();
    roster.ghosts = ghosts;
    plan.roster = Some(roster);
    plan
}

#[test]
fn roster_full_of_the_dead_settles_on_the_living() {
    for ghosts in [1, 5] {
        let runs = (0..11).map(|seed| shared_out(seed, 3, ghosts).run().unwrap());
        let (balanced, writes): (Vec<_>, Vec<_>) =
            runs.map(|stats| (stats.balanced, stats.roster_writes)).unzip();
        println!("{ghosts} dead: settled after {balanced:?}");
        assert!(median(balanced) < Duration::from_secs(10), "{ghosts} dead");
        // A question and a deletion for each of the dead.
        assert!(median(writes) <= 3 + 2 * ghosts as u64, "{ghosts} dead");
    }
}

#[test]
fn peaceful_departure_costs_no_round() {
    let runs = (0..11).map(|seed| {
        let mut plan = shared_out(seed, 3, 0);
        let leaves = plan.cadence * 12 + plan.latency / 4;
        plan.faults.push(PlannedFault::new(FaultKind::Leave(0), leaves, leaves + Duration::from_secs(5)));
        let (stats, rounds) = plan.rounds().unwrap();
        assert!(rounds[11..].iter().all(|round| round.right.is_some()), "seed {seed}: {rounds:?}");
        assert_eq!(stats.roster_writes, 5, "three joined, one left and joined again");
        (rounds[11..].iter().filter_map(|round| round.right).max().unwrap_or_default(), stats.refused)
    });
    let (worst, refused): (Vec<_>, Vec<_>) = runs.unzip();
    println!("worst round {worst:?}, {refused:?} refused");
    assert!(median(worst) < Duration::from_millis(500) && median(refused) < 5);
}
