//! Random calls from eight tasks on three leases over one store, for `SOAK` seconds, while jobs
//! succeed, are refused, fail, hang and panic, and roles change: nothing leaks, and in the end
//! every job is done.
//!
//! `SOAK=600 cargo test --release -p writerlease-server-tests soak:: -- --nocapture`. `SEED`
//! repeats the calls of an earlier run.
#![allow(clippy::disallowed_methods, reason = "the soak lasts for a real time and draws its seed")]

use std::{
    collections::{BTreeMap, HashSet},
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::{
    runtime::{Handle, Runtime},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use writerlease::{
    Attempt, EnsureOutcome, Guard, Outcome, Verdict, WriterLease,
    store::{Expected, MemoryStore, Store, StoreError},
};

const TASKS: u64 = 8;
const REPLICAS: usize = 3;
const KEYS: usize = 12;
/// The least number of calls of a storm.
const CALLS: usize = 2000;
const MS: Duration = Duration::from_millis(1);
/// The longest wait for the end of all jobs once there are no more faults, only against hanging.
const REST: Duration = Duration::from_secs(30);

type Key = Arc<str>;

struct World {
    store: MemoryStore,
    guards: Vec<Guard<MemoryStore>>,
    /// The keys of jobs that are handed to the leases directly, and of those that go through
    /// guards.
    plain: Vec<Key>,
    guarded: Vec<Key>,
    /// The attempts in flight.
    out: Mutex<HashSet<(usize, Key)>>,
    twice: AtomicUsize,
    /// Set when there are to be no more faults.
    calm: AtomicBool,
    attempts: AtomicU64,
    calls: Mutex<BTreeMap<&'static str, u64>>,
}

/// An attempt in flight, until this is dropped, also by a panic.
struct Out(Arc<World>, (usize, Key));

impl Drop for Out {
    fn drop(&mut self) {
        self.0.out.lock().remove(&self.1);
    }
}

impl World {
    /// Creates the world; needs a runtime.
    fn new(seed: u64) -> Arc<Self> {
        let store = MemoryStore::new();
        let guard = |replica| {
            let lease = WriterLease::builder(format!("replica {replica}"))
                .seed(seed.wrapping_add(replica))
                .term(300 * MS)
                .retry_interval(20 * MS)
                .attempt_timeout(40 * MS)
                .min_patience(20 * MS)
                .backoff_base(2 * MS)
                .echo_hint(MS)
                .concurrency(4);
            Guard::new(store.clone(), lease.spawn().unwrap(), "guarded/").unwrap()
        };
        let keys = |kind| (0..KEYS).map(|key| format!("{kind}{key}").into()).collect();
        Arc::new(Self {
            guards: (0..REPLICAS as u64).map(guard).collect(),
            store,
            plain: keys("plain/"),
            guarded: keys(""),
            out: Mutex::default(),
            twice: AtomicUsize::default(),
            calm: AtomicBool::new(false),
            attempts: AtomicU64::default(),
            calls: Mutex::default(),
        })
    }

    fn leases(&self) -> impl Iterator<Item = &WriterLease<Key>> {
        self.guards.iter().map(Guard::lease)
    }

    /// Makes random calls from eight tasks for this time, and for longer until the tasks have made
    /// [`CALLS`] calls: on a busy machine the time alone may end before anything happens.
    async fn storm(self: &Arc<Self>, seed: u64, time: Duration) {
        let ends = Instant::now() + time;
        let calls = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for task in 0..TASKS {
            let (world, mut dice) = (self.clone(), SmallRng::seed_from_u64(seed ^ (task << 32)));
            let calls = calls.clone();
            tasks.spawn(async move {
                while Instant::now() < ends || calls.load(Relaxed) < CALLS {
                    let verb = world.call(&mut dice).await;
                    calls.fetch_add(1, Relaxed);
                    *world.calls.lock().entry(verb).or_default() += 1;
                    if dice.random_bool(0.5) {
                        sleep(MS.mul_f64(dice.random_range(0.0..4.0))).await;
                    }
                }
            });
        }
        tasks.join_all().await;
    }

    async fn call(self: &Arc<Self>, dice: &mut SmallRng) -> &'static str {
        let replica = dice.random_range(0..REPLICAS);
        let (guard, key) = (&self.guards[replica], dice.random_range(0..KEYS));
        let (lease, plain, guarded) = (guard.lease(), &self.plain[key], &self.guarded[key]);
        match dice.random_range(0..100) {
            0..40 => {
                self.try_plain(replica, plain.clone(), dice.random());
                "try_work"
            }
            40..60 => {
                let ensured = self.ensure(replica, guarded, dice.random_range(0..10));
                if dice.random_bool(0.3) {
                    let _ = timeout(10 * MS, ensured).await;
                }
                "ensure"
            }
            60..63 => {
                guard.remove(guarded);
                "guard.remove"
            }
            63..70 => {
                lease.extend(plain);
                "extend"
            }
            70..73 => {
                lease.observe(plain);
                "observe"
            }
            73..78 => {
                lease.remove(plain);
                "remove"
            }
            78..80 => {
                lease.expire();
                "expire"
            }
            80..84 => {
                let _ = lease.wait_timeout(MS).await;
                "wait_timeout"
            }
            84..88 => {
                let _ = timeout(5 * MS, lease.subscribe().changed()).await;
                "subscribe"
            }
            88..91 => {
                let status = lease.status();
                assert_eq!(status.closed, None);
                "status"
            }
            91..94 => {
                let _ = lease.is_leader();
                "is_leader"
            }
            94..97 => {
                assert!(lease.len() <= 2 * KEYS);
                "len"
            }
            _ => {
                assert!(lease.snapshot().in_flight <= 2 * KEYS);
                "snapshot"
            }
        }
    }

    fn ensure(&self, replica: usize, key: &str, want: u32) -> writerlease::Ensure {
        let want = want.to_string();
        self.guards[replica]
            .ensure(key, move |current| (current != Some(want.as_bytes())).then(|| want.clone()))
    }

    fn try_plain(self: &Arc<Self>, replica: usize, key: Key, seed: u64) {
        let world = self.clone();
        let mut dice = SmallRng::seed_from_u64(seed);
        let work = move |attempt: Attempt<Key>| {
            let world = world.clone();
            let fault = if world.calm.load(SeqCst) { 100 } else { dice.random_range(0..100) };
            if fault < 3 {
                panic(); // before the attempt's future exists
            }
            async move { world.attempt(replica, attempt, fault).await }
        };
        self.guards[replica].lease().try_work(key, work).unwrap();
    }

    async fn attempt(self: Arc<Self>, replica: usize, attempt: Attempt<Key>, fault: u32) -> Verdict {
        self.attempts.fetch_add(1, Relaxed);
        let name = (replica, attempt.key().clone());
        if !self.out.lock().insert(name.clone()) {
            self.twice.fetch_add(1, SeqCst);
        }
        let _out = Out(self.clone(), name);
        match fault {
            ..10 => tokio::task::yield_now().await,
            10..15 => sleep(MS * (fault - 9)).await,
            15..17 => {
                attempt.cancelled().await;
                sleep(10 * MS).await; // ignores the cancellation
                return Outcome::Failed.into();
            }
            17..20 => {
                tokio::task::yield_now().await;
                panic();
            }
            20..24 => return Outcome::Failed.into(),
            24..28 => return Outcome::Conflict.into(),
            28..30 => return Outcome::WrittenByOther.retry(),
            30..33 => return Outcome::Unchanged.retry_after(MS * (fault - 29)),
            33..36 => return Outcome::Unchanged.into(),
            _ => {}
        }
        let entry = self.store.get(attempt.key()).await.unwrap();
        let expected = entry.map_or(Expected::Absent, |entry| Expected::Version(entry.version));
        match self.store.put(attempt.key(), "written".into(), expected, None).await {
            Ok(version) => Outcome::Written.done().at_revision(version.revision()),
            Err(StoreError::Conflict { .. }) => Outcome::Conflict.into(),
            Err(error) => panic!("{error}"),
        }
    }

    /// Waits, without faults, until every job is done and every lease is idle.
    async fn settle(self: &Arc<Self>) {
        self.calm.store(true, SeqCst);
        let is_idle = |lease: &WriterLease<Key>| lease.is_empty() && lease.snapshot().in_flight == 0;
        let rest = async {
            for key in &self.guarded {
                for replica in 0..REPLICAS {
                    let ending = self.ensure(replica, key, 42).await;
                    assert!(
                        matches!(
                            ending,
                            EnsureOutcome::Written(_) | EnsureOutcome::Satisfied | EnsureOutcome::ByOther
                        ),
                        "{ending:?}"
                    );
                }
                let entry = self.store.get(&format!("guarded/{key}")).await.unwrap();
                assert_eq!(entry.unwrap().value, "42");
            }
            while !self.leases().all(is_idle) {
                sleep(MS).await;
            }
        };
        let rested = timeout(REST, rest).await;
        let snapshots = || self.leases().map(WriterLease::snapshot).collect::<Vec<_>>();
        rested.unwrap_or_else(|_| panic!("some jobs are left over: {:#?}", snapshots()));
        assert_eq!(self.twice.load(SeqCst), 0, "two attempts of one key at the same time");
        assert_eq!(*self.out.lock(), HashSet::new());
    }

    /// Shuts everything down, and checks that neither a job nor a task is left over.
    async fn end(self: Arc<Self>) {
        let count = |of: fn(&WriterLease<Key>) -> u64| self.leases().map(of).sum::<u64>();
        let won = count(|lease| lease.snapshot().counters.won);
        let lost = count(|lease| lease.snapshot().counters.lost);
        let panics = count(|lease| lease.snapshot().counters.panics);
        println!("calls: {:?}", self.calls.lock());
        println!(
            "attempts of plain jobs: {}; panics: {panics}; leaderships won {won} times, lost {lost} times",
            self.attempts.load(Relaxed)
        );
        assert!(won > REPLICAS as u64 && lost > REPLICAS as u64, "roles do not change");
        for lease in self.leases() {
            assert_eq!(lease.shutdown(REST).await, Vec::<Key>::new());
        }
        assert_eq!(Arc::strong_count(&self), 1, "jobs are left over");
        drop(self);
        let tasks = || Handle::current().metrics().num_alive_tasks();
        let gone = timeout(REST, async {
            while tasks() > 0 {
                sleep(MS).await;
            }
        });
        assert!(gone.await.is_ok(), "{} tasks are left over", tasks());
        println!("tasks left over: {}", tasks());
    }
}

/// Panics without a message, of which there would be thousands.
fn panic() -> ! {
    std::panic::resume_unwind(Box::new("drawn"))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect(name))
}

fn seed() -> u64 {
    let seed = number("SEED").unwrap_or_else(|| RandomState::new().hash_one(()));
    println!("SEED={seed}");
    seed
}

/// Returns the resident memory of the process, in KiB.
#[cfg(target_os = "linux")]
fn resident() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Runs on several threads, in real time.
#[cfg(target_os = "linux")]
#[test]
fn soak_on_several_threads_leaves_nothing_behind() {
    let (seed, seconds) = (seed(), number("SOAK").unwrap_or(3));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build().unwrap();
    let time = Duration::from_secs(seconds);
    runtime.block_on(async {
        let world = World::new(seed);
        world.storm(seed, time / 5).await;
        let early = resident();
        for part in 1..=4 {
            world.storm(seed.wrapping_add(part), time / 5).await;
            println!("resident after {}/5: {} KiB; after 1/5: {early} KiB", part + 1, resident());
        }
        world.settle().await;
        assert!(resident() - early <= 4096, "memory grows: {early} KiB after a fifth, {} KiB", resident());
        world.end().await;
    });
}

/// Runs on one thread, in virtual time, where each byte can be counted.
#[test]
fn soak_in_virtual_time_keeps_no_allocation() {
    let (seed, seconds) = (seed(), number("SOAK").unwrap_or(3));
    let runtime: Runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let time = Duration::from_secs(20 * seconds);
    let world = runtime.block_on(async {
        let world = World::new(seed);
        world.storm(seed, time / 5).await;
        world.settle().await;
        world
    });
    let counted = allocation_counter::measure(|| {
        runtime.block_on(async {
            world.calm.store(false, SeqCst);
            world.storm(seed.wrapping_add(1), time * 4 / 5).await;
            world.settle().await;
        });
    });
    println!("allocated: {} B in all, {} B of it for good", counted.bytes_total, counted.bytes_current);
    assert!(counted.bytes_current <= 16 * 1024, "memory grows");
    runtime.block_on(world.end());
}
