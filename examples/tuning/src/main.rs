//! The figures and plots of `docs/tuning.md`.
//!
//! They compare the lease with openshift/router's and with retry-on-conflict, all three in
//! `lab::simulation` on virtual time, and show how each parameter of the rules affects the lease.
//!
//! ```sh
//! cargo run --release -p writerlease-tuning -- --out docs/tuning
//! ```
//!
//! It takes about a quarter of an hour on two cores. `--runs` sets the number of runs per point.
//!
//! `--crowd` simulates ten thousand replicas with a thousand keys. Most of its time is spent
//! waiting for memory, which large pages shorten:
//!
//! ```sh
//! GLIBC_TUNABLES=glibc.malloc.hugetlb=1 cargo run --profile long -p writerlease-tuning -- --crowd
//! ```

#![allow(clippy::disallowed_methods, reason = "the crowd is timed in real time")]

mod course;
mod plot;
mod sweep;

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use writerlease::lab::simulation::{Algorithm, Plan};

use course::{Course, Figures, measure};
use plot::{Line, Plot};

#[derive(Parser)]
struct Options {
    /// Directory of the plots.
    #[arg(long, default_value = "docs/tuning")]
    out: PathBuf,
    /// Number of runs per point of a plot; a row of the sweep has ten times as many.
    #[arg(long, default_value_t = 20)]
    runs: u64,
    /// Only simulate ten thousand replicas with a thousand keys for three rounds and print the time
    /// that takes. Needs 2 GB of memory.
    #[arg(long)]
    crowd: bool,
}

const NAMES: [(Algorithm, &str); 3] = [
    (Algorithm::Lease, "lease"),
    (Algorithm::Go, "Go's writerlease"),
    (Algorithm::Retry, "retry on conflict"),
];

const REPLICAS: [usize; 9] = [2, 3, 5, 10, 20, 50, 100, 200, 500];

fn main() -> ExitCode {
    let options = Options::parse();
    let done = if options.crowd { crowd() } else { run(&options) };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    std::fs::create_dir_all(&options.out)?;
    let plot = |name: &str, plot: Plot| plot.draw(&options.out.join(name));

    println!("## Start-up and failover of the lease, by replicas and latency\n");
    println!("20 keys, a round per second, a term of 60 s; {} runs each.\n", options.runs);
    println!("{}", Figures::HEAD);
    for latency in [2, 10, 50, 100] {
        for replicas in REPLICAS {
            let plans = plans(Algorithm::Lease, replicas, latency, options.runs);
            println!("| {latency} ms | {replicas} | {} |", Figures::of(&measure(plans)?));
        }
    }

    println!("\n## Comparison at 10 ms\n\n{}", Figures::HEAD);
    let mut figures = Vec::new();
    for (algorithm, name) in NAMES {
        for replicas in REPLICAS {
            let plans = plans(algorithm, replicas, 10, options.runs);
            let of = Figures::of(&measure(plans)?);
            println!("| {name} | {replicas} | {of} |");
            figures.push((algorithm, replicas, of));
        }
    }
    let line = |which: fn(&Figures) -> f64| {
        let of = |algorithm| figures.iter().filter(move |figure| figure.0 == algorithm);
        NAMES.map(|(algorithm, name)| Line {
            name,
            points: of(algorithm).map(|(_, replicas, figures)| (*replicas as f64, which(figures))).collect(),
        })
    };
    plot(
        "start-up.svg",
        Plot::new("Start-up: refused writes, median", line(|figures| figures.startup.refused.median)),
    )?;
    plot(
        "failover.svg",
        Plot::new(
            "The leader dies: seconds until all keys are up to date, median",
            line(|f| f.failover.right.median),
        ),
    )?;
    plot(
        "refused.svg",
        Plot::new("The leader dies: refused writes, median", line(|f| f.failover.refused.median)),
    )?;

    println!("\n## False takeovers\n");
    println!("One message in N takes 10 to 100 times as long; 1000 rounds per run.\n");
    println!("| latency | replicas | N | suspicions, takeovers, share of rounds |\n|---|---|---|---|");
    for (latency, replicas, tail) in
        [(10, 3, 100), (10, 10, 100), (10, 50, 100), (100, 10, 0), (100, 10, 100)]
    {
        let falses = course::false_takeovers(replicas, latency, tail, options.runs.div_ceil(2))?;
        println!("| {latency} ms | {replicas} | {tail} | {falses} |");
    }

    println!("\n## Parameters\n");
    sweep::calm(options.runs * 10)?;
    println!("\n## Parameters, under faults\n");
    sweep::faults(options.runs * 50);
    Ok(())
}

fn crowd() -> Result<(), Box<dyn std::error::Error>> {
    let began = Instant::now();
    let (stats, rounds) = Plan::steady(1, 10_000, 1000, 3).rounds()?;
    for round in rounds {
        println!(
            "up to date after {:?}, {} writes succeeded, {} refused",
            round.right, round.written, round.refused
        );
    }
    println!("{:?} simulated in {:?}", stats.time, began.elapsed());
    Ok(())
}

/// Returns plans in which the leader dies after twelve rounds. Go's algorithm waits for the term to
/// end, so its plans continue for 70 rounds instead of 20.
fn plans(algorithm: Algorithm, replicas: usize, latency: u64, runs: u64) -> impl Iterator<Item = Course> {
    (0..runs).map(move |seed| {
        let after = if algorithm == Algorithm::Go { 70 } else { 20 };
        let mut plan = Plan::steady(seed, replicas, 20, 12 + after);
        plan.algorithm = algorithm;
        plan.latency = Duration::from_millis(latency);
        Course::new(plan, 12)
    })
}
