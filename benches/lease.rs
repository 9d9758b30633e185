//! The lease beside its floor: the bare map, queue and channel that every keyed work queue needs.
//!
//! `cargo bench -p writerlease-benches --bench lease`. Compare within one run: absolute figures
//! drift from machine to machine and hour to hour.

mod fixture;

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokio::{
    runtime::Runtime,
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use writerlease::{
    Outcome, WriterLease,
    lab::{Network, Scenario, Strategy},
    store::MemoryStore,
};

use self::fixture::{Bare, Countdown, Key, current_thread, done, follower, hand_in, keys, leader};

const KEYS: usize = 10_000;

fn multi_thread() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// `try` of distinct keys until their jobs are done, one producer.
fn distinct_keys(c: &mut Criterion) {
    let mut group = c.benchmark_group("distinct keys to completion");
    group.throughput(Throughput::Elements(KEYS as u64));
    let keys = keys(KEYS);
    group.bench_function("floor", |b| {
        let bare = Bare::default();
        b.iter(|| {
            let countdown = Countdown::from(KEYS);
            for key in &keys {
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
        });
    });
    for (name, runtime) in [("current-thread", current_thread()), ("multi-thread", multi_thread())] {
        let lease = runtime.block_on(leader());
        group.bench_function(BenchmarkId::new("lease", name), |b| {
            b.to_async(&runtime).iter(async || {
                let countdown = Countdown::from(KEYS);
                hand_in(&lease, &keys, &countdown);
                countdown.done.notified().await;
            });
        });
    }
    group.finish();
}

/// `try` again on one key that is pending.
fn coalescing(c: &mut Criterion) {
    let mut group = c.benchmark_group("coalescing on one key");
    let key = Key::from("default/route");
    group.bench_function("floor", |b| {
        let bare = Bare::default();
        b.iter(|| bare.push(key.clone(), Box::new(|| Outcome::Written)));
    });
    group.bench_function("lease", |b| {
        let runtime = current_thread();
        let lease = runtime.block_on(follower());
        b.iter(|| lease.try_work(key.clone(), |_| async { Outcome::Written }).unwrap());
    });
    group.finish();
}

/// `try` of pending keys in shards, most of which are led by others.
fn shards(c: &mut Criterion) {
    let mut group = c.benchmark_group("try, by shards");
    let runtime = current_thread();
    let keys = keys(KEYS);
    group.throughput(Throughput::Elements(KEYS as u64));
    for shards in [1, 64, 1024] {
        let lease = runtime.block_on(async { WriterLease::builder("bench").shards(shards).spawn().unwrap() });
        keys.iter().for_each(|key| lease.extend(key));
        group.bench_function(BenchmarkId::from_parameter(shards), |b| {
            b.iter(|| {
                for key in &keys {
                    lease.try_work(key.clone(), |_| async { Outcome::Written }).unwrap();
                }
            });
        });
    }
    group.finish();
}

/// Distinct keys to completion, from two producers at the same time.
fn two_producers(c: &mut Criterion) {
    let mut group = c.benchmark_group("two producers");
    group.throughput(Throughput::Elements(2 * KEYS as u64));
    let halves = [keys(2 * KEYS)[..KEYS].to_vec(), keys(2 * KEYS)[KEYS..].to_vec()];
    group.bench_function("floor", |b| {
        let bare = Bare::default();
        b.iter(|| {
            let countdown = Countdown::from(2 * KEYS);
            std::thread::scope(|scope| {
                for half in &halves {
                    let (bare, countdown) = (&bare, &countdown);
                    scope.spawn(move || {
                        for key in half {
                            let countdown = countdown.clone();
                            let work = Box::new(move || {
                                countdown.tick();
                                Outcome::Written
                            });
                            bare.push(key.clone(), work);
                        }
                    });
                }
            });
            bare.run_all();
        });
    });
    group.bench_function("lease", |b| {
        let runtime = multi_thread();
        let lease = runtime.block_on(leader());
        b.to_async(&runtime).iter(async || {
            let countdown = Countdown::from(2 * KEYS);
            let mut producers = JoinSet::new();
            for half in halves.clone() {
                let (lease, countdown) = (lease.clone(), countdown.clone());
                producers.spawn(async move { hand_in(&lease, &half, &countdown) });
            }
            producers.join_all().await;
            countdown.done.notified().await;
        });
    });
    group.finish();
}

/// `try`, run, notify the caller. The floor: a task that receives requests from a channel and
/// answers each by a oneshot.
fn round_trip(c: &mut Criterion) {
    let mut group = c.benchmark_group("round trip");
    for (name, runtime) in [("current-thread", current_thread()), ("multi-thread", multi_thread())] {
        group.bench_function(BenchmarkId::new("floor", name), |b| {
            let (requests, mut incoming) = mpsc::unbounded_channel::<(Key, oneshot::Sender<()>)>();
            runtime.spawn(async move {
                while let Some((key, answer)) = incoming.recv().await {
                    black_box(key);
                    let _ = answer.send(());
                }
            });
            let key = Key::from("default/route");
            b.to_async(&runtime).iter(async || {
                let (answer, answered) = oneshot::channel();
                requests.send((key.clone(), answer)).unwrap();
                answered.await.unwrap();
            });
        });
        group.bench_function(BenchmarkId::new("lease", name), |b| {
            let lease = runtime.block_on(leader());
            let key = Key::from("default/route");
            b.to_async(&runtime).iter(async || done(&lease, key.clone()).await);
        });
    }
    group.finish();
}

/// The common case of a follower: `try`, and another replica writes.
fn follower_try_extend(c: &mut Criterion) {
    let mut group = c.benchmark_group("follower try + extend");
    // A few keys in turn, so that the place of one key in the map does not decide.
    let turn = keys(64);
    group.bench_function("floor", |b| {
        let bare = Bare::default();
        let mut turn = turn.iter().cycle();
        b.iter(|| {
            let key = turn.next().unwrap();
            bare.insert(key.clone(), Box::new(|| Outcome::Written));
            bare.remove(key)
        });
    });
    for pending in [10, 1_000_000] {
        let runtime = current_thread();
        let lease = runtime.block_on(follower());
        for i in 0..pending {
            lease.try_work(format!("pending/{i}").into(), |_| async { Outcome::Written }).unwrap();
        }
        let mut turn = turn.iter().cycle();
        group.bench_function(BenchmarkId::new("lease", pending), |b| {
            b.iter(|| {
                let key = turn.next().unwrap();
                lease.try_work(key.clone(), |_| async { Outcome::Written }).unwrap();
                lease.extend(key);
            });
        });
    }
    group.finish();
}

/// Ten rounds of 100 keys that three replicas request, with 2 ms for a write and none for a read,
/// in real time, including start-up. A store of your own can be benchmarked like this.
fn scenario_rounds(c: &mut Criterion) {
    let mut group = c.benchmark_group("scenario rounds");
    group.sample_size(10);
    for strategy in [Strategy::Lease, Strategy::Retry] {
        let network = Network { write: Duration::from_millis(2), ..Network::default() };
        let scenario = Scenario { strategy, network, concurrency: 32, ..Scenario::default() };
        group.bench_function(format!("{strategy:?}"), |b| {
            b.to_async(multi_thread()).iter(async || {
                let report = scenario.run(MemoryStore::new()).await.unwrap();
                assert_eq!(report.updates_lost, 0);
            });
        });
    }
    group.finish();
}

fn quick() -> Criterion {
    Criterion::default().measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_secs(1))
}

criterion_group! {
    name = benches;
    config = quick();
    targets = distinct_keys, coalescing, shards, two_producers, round_trip, follower_try_extend, scenario_rounds
}
criterion_main!(benches);
