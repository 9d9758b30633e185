//! The baseline for the lease: every replica writes and retries on conflict.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rand::{RngExt, rngs::Xoshiro256PlusPlus};
use tokio::{sync::Semaphore, time::sleep};

use super::{value::Value, write_log};
use crate::store::{Expected, Store, StoreError};

/// A writer that behaves like a Kubernetes controller.
///
/// It uses client-go's `RetryOnConflict` with `DefaultRetry`, the work queue's backoff for a key
/// whose retries are exhausted, and at most one worker per key.
pub(super) struct Retrier<S> {
    pub store: S,
    pub prefix: Arc<str>,
    pub replica: usize,
    pub workers: Semaphore,
    pub rng: Mutex<Xoshiro256PlusPlus>,
    /// The requested round of each key that has a worker.
    pub wanted: Mutex<BTreeMap<usize, u64>>,
}

/// The parameters of `retry.DefaultRetry`: 5 steps, 10 ms, factor 1, jitter 0.1.
pub(super) const STEPS: u32 = 5;
pub(super) const PAUSE: Duration = Duration::from_millis(10);
pub(super) const JITTER: f64 = 0.1;
/// The parameters of `workqueue.DefaultTypedControllerRateLimiter`: 5 ms, doubled with each
/// failure, at most 1000 s.
pub(super) const REQUEUE: Duration = Duration::from_millis(5);
const LONGEST_REQUEUE: Duration = Duration::from_secs(1000);

impl<S: Store> Retrier<S> {
    pub fn want(self: &Arc<Self>, key: usize, round: u64) {
        match self.wanted.lock().entry(key) {
            Entry::Occupied(mut wanted) => *wanted.get_mut() = round,
            Entry::Vacant(wanted) => {
                wanted.insert(round);
                tokio::spawn(self.clone().work(key));
            }
        }
    }

    /// Runs until the key is up to date.
    async fn work(self: Arc<Self>, key: usize) {
        let mut failures = 0;
        loop {
            let round = {
                // It cannot fail: the semaphore is never closed.
                let _worker = self.workers.acquire().await;
                let round = self.wanted.lock()[&key];
                self.update(key, round).await.then_some(round)
            };
            match round {
                Some(done) => {
                    let mut wanted = self.wanted.lock();
                    if wanted[&key] == done {
                        wanted.remove(&key);
                        return;
                    }
                    failures = 0;
                }
                None => {
                    sleep(REQUEUE.saturating_mul(1 << failures.min(20)).min(LONGEST_REQUEUE)).await;
                    failures += 1;
                }
            }
        }
    }

    /// Reads and writes the key, again after each conflict. Returns whether the key is at `round`.
    async fn update(&self, key: usize, round: u64) -> bool {
        for step in 1..=STEPS {
            match self.write(key, round).await {
                Ok(()) => return true,
                Err(StoreError::Conflict { .. }) if step < STEPS => {
                    let jitter: f64 = self.rng.lock().random();
                    sleep(PAUSE.mul_f64(1.0 + JITTER * jitter)).await;
                }
                Err(_) => return false,
            }
        }
        false
    }

    async fn write(&self, key: usize, round: u64) -> Result<(), StoreError> {
        let name = write_log::name(&self.prefix, key);
        let entry = self.store.get(&name).await?;
        let value = entry.as_ref().map(|entry| Value::read(&entry.value)).unwrap_or_default();
        if let Some(value) = value.wanted(round, self.replica) {
            let expected = entry.map_or(Expected::Absent, |entry| Expected::Version(entry.version));
            self.store.put(&name, value, expected, None).await?;
        }
        Ok(())
    }
}
