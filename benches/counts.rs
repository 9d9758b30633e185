//! The instructions of the hot path, beside those of its floor, 1000 times each.
//!
//! `cargo bench -p writerlease-benches --features counts --bench counts` runs each function once
//! under Valgrind's callgrind and prints the difference to the run before. A busy machine changes
//! the counts by a few in a thousand, so that a regression shows where criterion sees only noise.
//! An instruction is no measure of time: a reading of the clock costs as much as a hundred others.
//!
//! The bench needs Valgrind (Debian's package `valgrind`) and `gungraun-runner` in the version of
//! `gungraun` in Cargo.lock: `cargo install gungraun-runner --locked --version 0.20.0`. It says which
//! is missing.

#![expect(missing_docs, reason = "the macros of gungraun make public modules")]

mod fixture;

use std::{hint::black_box, time::Duration};

use gungraun::{
    Callgrind, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main,
};
use tokio::runtime::Runtime;
use writerlease::{Outcome, WriterLease};

use self::fixture::{Bare, Countdown, Key, current_thread, done, follower, hand_in, keys, leader};

/// How often each function repeats what it measures.
const TIMES: usize = 1000;

struct Running {
    runtime: Runtime,
    lease: WriterLease<Key>,
    keys: Vec<Key>,
}

/// Returns a leader that has run once what is measured, so that all memory is there.
fn warm_leader() -> Running {
    let runtime = current_thread();
    let lease = runtime.block_on(leader());
    let running = Running { runtime, lease, keys: keys(TIMES) };
    complete(&running);
    running
}

/// Returns a follower with a pending job for each key.
fn warm_follower() -> Running {
    let runtime = current_thread();
    let lease = runtime.block_on(follower());
    let keys = keys(TIMES);
    for key in &keys {
        lease.try_work(key.clone(), |_| async { Outcome::Written }).unwrap();
    }
    Running { runtime, lease, keys }
}

fn complete(Running { runtime, lease, keys }: &Running) {
    runtime.block_on(async {
        let countdown = Countdown::from(keys.len());
        hand_in(lease, keys, &countdown);
        countdown.done.notified().await;
    });
}

fn warm_floor() -> (Bare, Vec<Key>) {
    let floor = (Bare::default(), keys(TIMES));
    complete_bare(&floor);
    floor
}

fn complete_bare((bare, keys): &(Bare, Vec<Key>)) {
    let countdown = Countdown::from(keys.len());
    for key in keys {
        let countdown = countdown.clone();
        bare.push(
            key.clone(),
            Box::new(move || {
                countdown.tick();
                Outcome::Written
            }),
        );
    }
    bare.run_all();
}

// `try` of distinct keys until their jobs are done.
#[library_benchmark]
#[bench::of_1000(warm_leader())]
fn distinct_keys(leader: Running) -> Running {
    complete(&leader);
    leader
}

#[library_benchmark]
#[bench::of_1000(warm_floor())]
fn floor_of_distinct_keys(floor: (Bare, Vec<Key>)) -> (Bare, Vec<Key>) {
    complete_bare(&floor);
    floor
}

// `try`, run, notify the caller.
#[library_benchmark]
#[bench::of_1000(warm_leader())]
fn round_trip(leader: Running) -> Running {
    leader.runtime.block_on(async {
        for key in &leader.keys {
            done(&leader.lease, key.clone()).await;
        }
    });
    leader
}

// The common case of a follower: `try`, and another replica writes.
#[library_benchmark]
#[bench::of_1000(warm_follower())]
fn try_and_evidence(follower: Running) -> Running {
    for key in &follower.keys {
        follower.lease.try_work(key.clone(), |_| async { Outcome::Written }).unwrap();
        follower.lease.extend(key);
    }
    follower
}

#[library_benchmark]
#[bench::of_1000(warm_floor())]
fn floor_of_try_and_evidence(floor: (Bare, Vec<Key>)) -> (Bare, Vec<Key>) {
    let (bare, keys) = &floor;
    for key in keys {
        bare.insert(key.clone(), Box::new(|| Outcome::Written));
        black_box(bare.remove(key));
    }
    floor
}

// Evidence of keys that nobody here wants.
#[library_benchmark]
#[bench::of_1000(warm_follower())]
fn evidence(follower: Running) -> Running {
    let elsewhere = Key::from("elsewhere");
    for _ in 0..TIMES {
        follower.lease.extend(black_box(&elsewhere));
    }
    follower
}

// The news of our own write.
#[library_benchmark]
#[bench::of_1000(warm_leader())]
fn echo(leader: Running) -> Running {
    for _ in 0..TIMES {
        leader.lease.echo(black_box(Duration::from_millis(2)));
    }
    leader
}

library_benchmark_group!(
    name = hot_path;
    benchmarks =
        distinct_keys, floor_of_distinct_keys, round_trip, try_and_evidence, floor_of_try_and_evidence, evidence, echo
);

main!(
    config = LibraryBenchmarkConfig::default().tool(
        Callgrind::with_args(["--cache-sim=no"]).format([EventKind::Ir])
    );
    library_benchmark_groups = hot_path
);
