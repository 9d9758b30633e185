//! Leaders that end in every possible way: no two lead at the same time by their own clocks, and no
//! write of a former leader succeeds after one of its successor.
//!
//! Each test makes a few takeovers; the environment variable `TAKEOVERS=200` requests that number.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::{task::JoinHandle, time::sleep};
use writerlease::{
    election::{Elector, Leadership},
    store::{Expected, Store, StoreError},
};

use crate::engines::{Engine, Etcd, Redis, Voter, Zookeeper};
use crate::states::LONG;
use writerlease_test_support::proxy::Proxy;

static EXAMPLE: LazyLock<PathBuf> = LazyLock::new(|| writerlease_test_support::build::example("elected"));

fn takeovers(unless_set: usize) -> usize {
    let set = std::env::var("TAKEOVERS").ok();
    set.map_or(unless_set, |takeovers| takeovers.parse().expect("TAKEOVERS is a number"))
}

/// Candidates in processes of their own: they resign, are killed, and are stopped until another
/// leads.
mod processes {
    use super::*;

    fn take_over(backend: String, ttl: Duration) {
        let takeovers = takeovers(9);
        let mut command = Command::new(&*EXAMPLE);
        command.args(["--json", "--backend", &backend, "--takeovers", &takeovers.to_string()]);
        command.args(["--ttl", &format!("{}ms", ttl.as_millis())]);
        let output = command.stdin(Stdio::null()).output().expect("the example runs");
        let figures: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        println!("{backend}: {figures}");
        assert_eq!((&figures["overlaps"], &figures["stale_writes"]), (&0.into(), &0.into()), "{figures}");
        assert!(figures["writes"].as_u64() > Some(takeovers as u64), "{figures}");
        for end in ["resigns", "killed", "paused"] {
            let end = &figures["takeovers"][end];
            assert!(end["count"].as_u64() >= Some(takeovers as u64 / 3), "{figures}");
        }
        assert!(output.status.success());
    }

    #[tokio::test]
    async fn etcd() {
        let engine = Etcd::start().await;
        take_over(format!("etcd://{}", engine.address()), Etcd::TTL);
    }

    #[tokio::test]
    async fn etcd_voter() {
        let engine = Voter::start().await;
        take_over(format!("etcd+key://{}", engine.address()), Voter::TTL);
    }

    #[tokio::test]
    async fn zookeeper() {
        let engine = Zookeeper::start().await;
        take_over(format!("zookeeper://{}", engine.address()), Zookeeper::TTL);
    }

    #[tokio::test]
    async fn redis() {
        let engine = Redis::start().await;
        take_over(format!("redis://{}", engine.address()), Redis::TTL);
    }
}

/// Candidates whose networks fail: all traffic stalls, connections are cut and refused, or open ones
/// go silent; and candidates whose key another program writes over.
mod networks {
    use super::*;

    /// For each token, the first and the last time at which its leader believed that it led.
    type Acts = Arc<Mutex<BTreeMap<u64, (Instant, Instant)>>>;
    /// The successful writes: their places in the store's order, and their tokens.
    type Landed = Arc<Mutex<Vec<(u64, u64)>>>;

    struct Candidate<E: Elector> {
        proxy: Proxy,
        elector: Arc<E>,
        actor: JoinHandle<()>,
    }

    #[derive(Clone, Copy)]
    enum Fault {
        Stall,
        Cut,
        HalfOpen,
        /// Another program writes over the leader's key, where the server has one.
        Overwritten,
    }

    async fn take_over<E: Engine>() {
        let engine = E::start().await;
        let (acts, landed, fenced) = (Acts::default(), Landed::default(), Arc::<Mutex<u64>>::default());
        let ends = Arc::<AtomicBool>::default();
        let start = async |number: usize| {
            let proxy = Proxy::start(engine.address()).await;
            let elector =
                Arc::new(engine.candidate_at(proxy.address(), &format!("candidate-{number}")).await);
            let store = engine.store().await;
            let (acts, landed, fenced) = (acts.clone(), landed.clone(), fenced.clone());
            let actor = tokio::spawn(act(number, elector.clone(), store, ends.clone(), acts, landed, fenced));
            Candidate { proxy, elector, actor }
        };
        let mut candidates = Vec::new();
        for number in 0..3 {
            candidates.push(start(number).await);
        }
        let mut started = candidates.len();
        another_acts(&acts, 0).await;
        let faults = [Fault::Stall, Fault::Cut, Fault::HalfOpen, Fault::Overwritten].into_iter().cycle();
        let mut gaps = Vec::new();
        for (number, fault) in faults.take(takeovers(8)).enumerate() {
            // At various moments between two renewals.
            sleep(E::TTL.mul_f64((number * 7 % 10) as f64 / 10.0)).await;
            // Only now: on a busy machine another may lead than before.
            let leader = the_leader(&candidates).await;
            let token = candidates[leader].elector.fence().map_or(0, |fence| fence.token());
            let token = acts.lock().keys().next_back().copied().unwrap_or_default().max(token);
            let (proxy, began) = (&candidates[leader].proxy, Instant::now());
            match fault {
                Fault::Stall => proxy.stall(),
                Fault::Cut => {
                    proxy.refuse(true);
                    proxy.cut();
                }
                Fault::HalfOpen => proxy.half_open(),
                Fault::Overwritten => {
                    if !engine.overwrite().await {
                        proxy.stall();
                    }
                }
            }
            // A leader that reconnects in time leads on.
            if let Fault::HalfOpen = fault {
                sleep(2 * E::TTL).await;
                candidates[leader].elector.resign().await.ok();
            }
            another_acts(&acts, token).await;
            gaps.push(began.elapsed());
            proxy.heal();
            for candidate in &mut candidates {
                if matches!(*candidate.elector.leadership().borrow(), Leadership::Failed(_)) {
                    let failed = std::mem::replace(candidate, start(started).await);
                    failed.actor.abort();
                    started += 1;
                }
            }
        }
        ends.store(true, SeqCst);
        for candidate in candidates {
            candidate.actor.await.expect("it acts to the end");
            candidate.elector.close().await;
        }
        let acts = acts.lock().clone();
        for ((earlier, (_, last)), (later, (first, _))) in acts.iter().zip(acts.iter().skip(1)) {
            assert!(last < first, "{earlier} led for {:?} beside {later}", last.duration_since(*first));
        }
        let mut landed = landed.lock().clone();
        landed.sort_unstable();
        assert!(landed.is_sorted_by_key(|(_, token)| *token), "a stale write landed: {landed:?}");
        gaps.sort_unstable();
        println!(
            "{} terms of leadership, {} writes succeeded, {} were fenced, median takeover {:?}",
            acts.len(),
            landed.len(),
            fenced.lock(),
            gaps[gaps.len() / 2]
        );
        assert!(acts.len() > takeovers(8));
    }

    /// A candidate that notes when it leads, and writes then. Its store has a connection without faults, so
    /// that only the fence can stop its writes.
    async fn act(
        number: usize,
        elector: Arc<impl Elector>,
        store: impl Store,
        ends: Arc<AtomicBool>,
        acts: Acts,
        landed: Landed,
        fenced: Arc<Mutex<u64>>,
    ) {
        let key = format!("writes/{number}");
        let mut written = None;
        while !ends.load(SeqCst) {
            // Take the time first: it must not be later than the moment of leadership.
            let now = Instant::now();
            if let Some(fence) = elector.fence() {
                let token = fence.token();
                acts.lock().entry(token).or_insert((now, now)).1 = now;
                let expected = written.clone().map_or(Expected::Absent, Expected::Version);
                // The leadership may end between the decision and the write.
                sleep(Duration::from_millis(3)).await;
                match store.put(&key, token.to_string().into(), expected, Some(&fence)).await {
                    Ok(version) => {
                        landed.lock().push((version.key_revision().expect("these stores have them"), token));
                        written = Some(version);
                    }
                    Err(StoreError::Fenced { .. }) => *fenced.lock() += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    async fn the_leader(candidates: &[Candidate<impl Elector>]) -> usize {
        let started = Instant::now();
        loop {
            if let Some(leader) = candidates.iter().position(|candidate| candidate.elector.is_leader()) {
                return leader;
            }
            assert!(started.elapsed() < LONG, "no candidate leads");
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits for a leader with a token greater than `than`.
    async fn another_acts(acts: &Acts, than: u64) {
        let started = Instant::now();
        while acts.lock().keys().next_back() <= Some(&than) {
            assert!(started.elapsed() < LONG, "no candidate leads by more than {than}");
            sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn etcd() {
        take_over::<Etcd>().await;
    }

    #[tokio::test]
    async fn etcd_voter() {
        take_over::<Voter>().await;
    }

    #[tokio::test]
    async fn zookeeper() {
        take_over::<Zookeeper>().await;
    }

    #[tokio::test]
    async fn redis() {
        take_over::<Redis>().await;
    }
}
