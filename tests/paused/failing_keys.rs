//! Keys that always fail hold up no other key, under paused time.
#![allow(clippy::disallowed_methods, reason = "tests look at the clock that they pause")]

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use writerlease::{Outcome, WriterLease};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// How long a write takes that succeeds.
const WRITE: Duration = Duration::from_millis(10);
/// How many keys can be written.
const GOOD: u32 = 200;
/// The first key that always fails.
const FIRST_BAD: u32 = 1_000;

type Lease = WriterLease<u32>;

/// The keys that always fail.
#[derive(Clone, Copy, Debug)]
struct Bad {
    count: u32,
    /// How long an attempt of theirs takes until it fails.
    takes: Duration,
}

impl Bad {
    const NONE: Self = Self { count: 0, takes: Duration::ZERO };

    /// Requests each of them on each replica.
    fn are_wanted(self, replicas: &[Lease]) {
        for replica in replicas {
            for key in FIRST_BAD..FIRST_BAD + self.count {
                let job = move |_| async move {
                    sleep(self.takes).await;
                    Outcome::Failed
                };
                replica.try_work(key, job).unwrap();
            }
        }
    }
}

/// Replicas that share one store.
fn replicas(count: u64, seed: u64) -> Vec<Lease> {
    let spawn = |i| WriterLease::builder("test").seed(100 * seed + i).spawn().unwrap();
    (0..count).map(spawn).collect()
}

/// Requests all good keys on all replicas. Returns how long it took until the last one was written.
async fn all_good_are_written(replicas: &[Lease]) -> Duration {
    let began = Instant::now();
    let store = Arc::new(Mutex::new(HashSet::new()));
    let group: Arc<[Lease]> = replicas.into();
    for key in 0..GOOD {
        for (writer, replica) in replicas.iter().enumerate() {
            let (store, group) = (store.clone(), group.clone());
            let job = move |_| {
                let (store, group) = (store.clone(), group.clone());
                async move {
                    sleep(WRITE).await;
                    if !store.lock().unwrap().insert(key) {
                        return Outcome::Unchanged;
                    }
                    // The others see the write.
                    for (reader, other) in group.iter().enumerate() {
                        if reader != writer {
                            other.extend(&key);
                        }
                    }
                    Outcome::Written
                }
            };
            replica.try_work(key, job).unwrap();
        }
    }
    let all = async {
        while store.lock().unwrap().len() < GOOD as usize {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(HOUR, all).await.expect("all good keys are written within the hour");
    began.elapsed()
}

/// Returns how long the good keys take, as the mean over seeds, if the bad ones are wanted `before`
/// them.
async fn mean_time(bad: Bad, count: u64, before: Duration) -> Duration {
    const SEEDS: u64 = 5;
    let mut total = Duration::ZERO;
    for seed in 0..SEEDS {
        let replicas = replicas(count, seed);
        bad.are_wanted(&replicas);
        sleep(before).await;
        total += all_good_are_written(&replicas).await;
    }
    total / SEEDS as u32
}

/// Prints and checks how much longer the good keys take beside the bad ones.
async fn check(takes: Duration, before: Duration, most: impl Fn(Bad, Duration) -> Duration) {
    let mut slow = Vec::new();
    for replicas in [1, 3] {
        let alone = mean_time(Bad::NONE, replicas, before).await;
        for count in [2, 10, 50] {
            let bad = Bad { count, takes };
            let time = mean_time(bad, replicas, before).await;
            let ratio = time.as_secs_f64() / alone.as_secs_f64();
            println!("{replicas} replicas, {bad:?}, {before:?} before: {time:?} / {alone:?} = {ratio:.2}");
            if time > most(bad, alone) {
                slow.push((replicas, bad, ratio));
            }
        }
    }
    assert!(slow.is_empty(), "{slow:?}");
}

#[tokio::test(start_paused = true)]
async fn new_keys_that_fail_hold_up_no_other() {
    check(Duration::ZERO, Duration::ZERO, |_, alone| alone * 2).await;
}

#[tokio::test(start_paused = true)]
async fn keys_that_keep_failing_hold_up_no_other() {
    check(Duration::ZERO, 1000 * SECOND, |_, alone| alone * 2).await;
}

#[tokio::test(start_paused = true)]
async fn keys_that_keep_timing_out_hold_up_no_other() {
    check(5 * SECOND, 1000 * SECOND, |_, alone| alone * 4).await;
}

#[tokio::test(start_paused = true)]
async fn new_keys_that_time_out_hold_up_others_briefly() {
    check(5 * SECOND, Duration::ZERO, |bad, alone| alone * 4 + bad.takes * 2).await;
}

#[tokio::test(start_paused = true)]
async fn keys_that_keep_failing_delay_no_leader() {
    for count in [2, 3] {
        let replicas = replicas(1, 7);
        all_good_are_written(&replicas).await;
        assert!(replicas[0].is_leader());
        Bad { count, takes: Duration::ZERO }.are_wanted(&replicas);
        for _ in 0..20 {
            sleep(10 * SECOND).await;
            let time = all_good_are_written(&replicas).await;
            assert!(time < SECOND, "beside {count}: {time:?}");
            assert!(replicas[0].is_leader());
        }
    }
}
