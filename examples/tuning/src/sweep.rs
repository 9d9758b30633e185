//! A sweep that changes one parameter of the rules at a time, over groups and distances of all
//! sizes.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use writerlease::lab::simulation::{Plan, RunStats, Tuning, Violation};

use crate::course::{Course, Figures, measure};

type Change = (&'static str, &'static [u32], fn(&mut Tuning, u32));

/// The parameters and their values, which include the default.
const CHANGES: [Change; 9] = [
    ("election delay, echoes", &[2, 4, 8, 16, 32, 64], |tuning, to| tuning.election_echoes = to),
    ("head start, echoes", &[0, 2, 4, 8, 16], |tuning, to| tuning.head_start_echoes = to),
    ("minimum backoff, echoes", &[0, 1, 2, 4, 8], |tuning, to| tuning.backoff_echoes = to),
    ("rival delay, echoes", &[0, 4, 16, 64], |tuning, to| tuning.rival_echoes = to),
    ("window growth", &[0, 1, 2, 16], |tuning, to| tuning.window_growth = to),
    ("initial patience, ms", &[250, 500, 1000, 2000, 4000], |tuning, to| tuning.initial_patience = ms(to)),
    ("patience spread, ms", &[0, 500, 1000, 2000, 4000], |tuning, to| tuning.patience_spread = ms(to)),
    ("takeover by a busy replica, patiences", &[1, 2, 4, 8], |tuning, to| tuning.busy_patiences = to),
    ("memory of incumbents, terms", &[1, 2, 4], |tuning, to| tuning.memory_terms = to),
];

/// The limit of replicas times keys, which bounds the time of a run.
const MOST_PAIRS: usize = 20_000;

/// Prints the effect of each change in runs whose only fault is the leader's death.
pub fn calm(runs: u64) -> Result<(), Violation> {
    println!(
        "2 to 1000 replicas, 1 to 10,000 keys (at most {MOST_PAIRS} pairs of a replica and a key), latencies of 1 to \
         200 ms, terms of 5 to 60 s, log-uniformly distributed; {runs} runs each.\n"
    );
    println!("{}", Figures::HEAD.replacen("| | replicas |", "| parameter | value |", 1));
    for (row, tuning) in changes() {
        let figures = Figures::of(&measure((0..runs).map(|seed| course(seed, tuning)))?);
        println!("{row} {figures} |");
    }
    Ok(())
}

/// Prints the effect of each change under the faults that the seeds draw.
pub fn faults(runs: u64) {
    println!(
        "Broken promises, refused writes, leaderships won and suspicions in {runs} drawn plans; the age of the oldest pending \
              key and the longest time without a leader, both after the end of all faults.\n"
    );
    println!(
        "| parameter | value | broken | refused | won | suspicions | oldest, s |\n|---|---|---|---|---|---|---|"
    );
    for (row, tuning) in changes() {
        let mut broken = 0;
        let mut total = RunStats::default();
        for seed in 0..runs {
            let mut plan = Plan::drawn(seed);
            plan.tuning = tuning;
            match plan.run() {
                Ok(stats) => total = total + stats,
                Err(_) => broken += 1,
            }
        }
        let RunStats { refused, won, suspicions, oldest, .. } = total;
        let oldest = oldest.as_secs();
        println!("{row} {broken} | {refused} | {won} | {suspicions} | {oldest} |");
    }
}

/// Returns the beginning of each row and its parameters.
fn changes() -> impl Iterator<Item = (String, Tuning)> {
    CHANGES.into_iter().flat_map(|(name, values, change)| {
        values.iter().map(move |&to| {
            let mut tuning = Tuning::default();
            change(&mut tuning, to);
            let to = if tuning == Tuning::default() { format!("**{to}**") } else { to.to_string() };
            (format!("| {name} | {to} |"), tuning)
        })
    })
}

/// Draws a run. Runs of equal seeds differ only in the tuning.
fn course(seed: u64, tuning: Tuning) -> Course {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut between = |least: f64, most: f64| (rng.random_range(least.ln()..most.ln())).exp();
    let replicas = between(2.0, 1000.0) as usize;
    let keys = (between(1.0, 10_000.0) as usize).min(MOST_PAIRS / replicas).max(1);
    let latency = Duration::from_secs_f64(between(0.001, 0.2));
    let term = Duration::from_secs_f64(between(5.0, 60.0));
    let mut plan = Plan::steady(seed, replicas, keys, 0);
    (plan.latency, plan.term, plan.tuning) = (latency, term, tuning);
    // Long enough for a leader with a full window to complete a round twice.
    let round = latency * (8 + keys / 4) as u32;
    plan.cadence = plan.cadence.max(round);
    plan.calm += plan.cadence * (12 + 20);
    Course::new(plan, 12)
}

fn ms(ms: u32) -> Duration {
    Duration::from_millis(ms.into())
}
