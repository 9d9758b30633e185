//! The promises of the engine, under whatever a seed draws.

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
};

use writerlease::lab::simulation::{Plan, Tally};

/// 2000 seeds, or without optimization a tenth of that; in the environment `SEEDS` says how many, and `FIRST` from which on.
fn seeds() -> Range<u64> {
    let number = |name, unless_set: u64| {
        let set = std::env::var(name).ok();
        set.map_or(unless_set, |number| number.parse().unwrap_or_else(|_| panic!("{name} is no number")))
    };
    let first = number("FIRST", 0);
    first..first + number("SEEDS", if cfg!(debug_assertions) { 200 } else { 2000 })
}

#[test]
fn all_promises_hold_whatever_a_seed_draws() {
    let (seeds, next) = (seeds(), AtomicU64::new(0));
    let run = || {
        let mut total = Tally::default();
        loop {
            let seed = seeds.start + next.fetch_add(1, Relaxed);
            if !seeds.contains(&seed) {
                return total;
            }
            let plan = Plan::drawn(seed);
            match plan.run() {
                Ok(tally) => total = total + tally,
                Err(violation) => {
                    // At once, because to shrink it may take long.
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
        totals.fold(Tally::default(), |sum, tally| sum + tally)
    });
    println!(
        "{} seeds, {:.0} simulated hours: {total:?}",
        seeds.end - seeds.start,
        total.time.as_secs_f64() / 3600.0
    );
    assert!(total.landed > total.rounds, "something was written");
}

#[test]
fn one_seed_is_one_run() {
    for seed in 0..50 {
        let plan = Plan::drawn(seed);
        assert_eq!(plan, Plan::drawn(seed));
        assert_eq!(plan.run(), plan.run());
    }
}

#[test]
fn a_plan_that_breaks_no_promise_is_not_shrunk() {
    let plan = Plan::drawn(1);
    assert_eq!(plan.shrink(), plan);
}
