//! A run in which the leader dies, and its measurements.

use std::{
    fmt,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
    time::Duration,
};

use writerlease::lab::simulation::{FaultKind, Plan, PlannedFault, RoundStats, Violation};

/// A steady plan, and the round at the start of which the leader dies.
pub struct Course {
    plan: Plan,
    dies: usize,
}

/// The measurements of one run.
#[derive(Clone, Copy)]
pub struct Outcome {
    /// Refused writes until the first complete round, and the time until its first successful
    /// write, in echoes.
    startup_refused: f64,
    startup_echoes: f64,
    /// Seconds from the leader's death until the next write and until all keys were up to date, and
    /// the refused writes until then.
    takeover: f64,
    failover: f64,
    failover_refused: f64,
}

#[derive(Clone, Copy)]
pub struct Spread {
    pub median: f64,
    /// The 99th percentile, by nearest rank.
    pub worst: f64,
}

pub struct Startup {
    pub refused: Spread,
    pub echoes: Spread,
}

pub struct Failover {
    pub takeover: Spread,
    pub right: Spread,
    pub refused: Spread,
}

/// The figures of many runs.
pub struct Figures {
    pub startup: Startup,
    pub failover: Failover,
}

impl Course {
    pub fn new(mut plan: Plan, dies: usize) -> Self {
        // Rounds start at multiples of the cadence. No replica has received this round's requests
        // yet.
        let at = plan.cadence * dies as u32 + plan.latency / 4;
        plan.faults.push(PlannedFault::new(FaultKind::CrashLeader, at, Duration::MAX));
        Self { plan, dies }
    }

    fn run(&self) -> Result<Outcome, Violation> {
        let (_, rounds) = self.plan.rounds()?;
        let echo = 2.0 * self.plan.latency.as_secs_f64();
        let wrote = |rounds: &[RoundStats]| {
            let began = rounds[0].began;
            rounds
                .iter()
                .find_map(|round| round.first_write.map(|first| (round.began + first - began).as_secs_f64()))
        };
        let until_right = |rounds: &[RoundStats]| {
            let last = rounds.iter().position(|round| round.right.is_some()).unwrap_or(rounds.len() - 1);
            let right =
                rounds[last].right.map(|right| (rounds[last].began + right - rounds[0].began).as_secs_f64());
            let refused = rounds[..=last].iter().map(|round| round.refused).sum::<u64>() as f64;
            (right.unwrap_or(f64::INFINITY), refused)
        };
        let (before, after) = rounds.split_at(self.dies - 1);
        let (failover, failover_refused) = until_right(after);
        Ok(Outcome {
            startup_refused: until_right(before).1,
            startup_echoes: wrote(before).map_or(f64::INFINITY, |first| first / echo),
            takeover: wrote(after).unwrap_or(f64::INFINITY),
            failover,
            failover_refused,
        })
    }
}

/// Runs all courses on all cores.
pub fn measure(courses: impl Iterator<Item = Course>) -> Result<Vec<Outcome>, Violation> {
    let (courses, next): (Vec<_>, _) = (courses.collect(), AtomicUsize::new(0));
    let run = || {
        let mut outcomes = Vec::new();
        while let Some(course) = courses.get(next.fetch_add(1, Relaxed)) {
            outcomes.push(course.run()?);
        }
        Ok(outcomes)
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let all: Result<Vec<Vec<Outcome>>, Violation> = thread::scope(|scope| {
        let runs: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        runs.into_iter().map(|run| run.join().expect("a run does not panic")).collect()
    });
    all.map(|all| all.concat())
}

impl Figures {
    pub const HEAD: &str = "| | replicas | start-up: refused, median (p99) | first write, echoes | leader dies: \
                            s until next write | until up to date | refused |\n|---|---|---|---|---|---|---|";

    pub fn of(outcomes: &[Outcome]) -> Self {
        let spread = |of: fn(&Outcome) -> f64| {
            let mut all: Vec<f64> = outcomes.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            Spread { median: all[all.len() / 2], worst: all[(all.len() * 99).div_ceil(100) - 1] }
        };
        Self {
            startup: Startup {
                refused: spread(|outcome| outcome.startup_refused),
                echoes: spread(|outcome| outcome.startup_echoes),
            },
            failover: Failover {
                takeover: spread(|outcome| outcome.takeover),
                right: spread(|outcome| outcome.failover),
                refused: spread(|outcome| outcome.failover_refused),
            },
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { startup, failover } = self;
        write!(
            f,
            "{} | {:.1} | {:.1} | {:.1} | {}",
            startup.refused, startup.echoes, failover.takeover, failover.right, failover.refused
        )
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(0);
        write!(f, "{:.digits$} ({:.digits$})", self.median, self.worst)
    }
}

/// Counts the suspicions of a live leader and the takeovers from it, in a thousand rounds per run.
pub fn false_takeovers(replicas: usize, latency: u64, tail: u32, runs: u64) -> Result<String, Violation> {
    let (mut rounds, mut suspicions, mut takeovers) = (0, 0, 0);
    for seed in 0..runs {
        let plan = |rounds| {
            let mut plan = Plan::steady(seed, replicas, 20, rounds);
            plan.latency = Duration::from_millis(latency);
            plan.tail = tail;
            // Late messages occur only in the plan's storm, so the whole run is one.
            plan.storm = std::mem::take(&mut plan.calm);
            plan
        };
        // Subtracts the start-up, which is measured elsewhere.
        let ((all, _), (start, _)) = (plan(1000).rounds()?, plan(10).rounds()?);
        rounds += all.rounds - start.rounds;
        suspicions += all.suspicions - start.suspicions;
        takeovers += all.won - start.won;
    }
    let share = 100.0 * (suspicions + takeovers) as f64 / rounds as f64;
    Ok(format!("{suspicions} suspicions, {takeovers} takeovers in {rounds} rounds: {share:.3} %"))
}
