//! The promises of all electors, on each engine: the suite of the crate, and what only tests of real
//! servers can show.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::time::sleep;
use writerlease::{
    election::{ElectionError, Elector, Leadership},
    lab::{
        MemoryElection, MemoryElector,
        conformance::elections::{self, Contact, Harness},
    },
    store::{Expected, Fence, MemoryStore, Store, StoreError},
};

use crate::engines::{Engine, Etcd, Redis, Voter, Zookeeper};
use crate::states::{LONG, at_best, ensure, interrupted, leads, reaches};
use writerlease_test_support::proxy::Proxy;

/// Runs each case on each engine, on a server of its own.
macro_rules! conformance {
    (suite: $($case:ident),* ; servers: $($server_case:ident),* $(,)?) => {
        const CASES: &[&str] = &[$(stringify!($case)),*];
        mod memory { $(#[tokio::test(flavor = "multi_thread")] async fn $case() { super::conforms(super::Memory::start, stringify!($case)).await; })* }
        conformance!(engine etcd, Etcd, [$($case),*], [$($server_case),*]);
        conformance!(engine etcd_voter, Voter, [$($case),*], [$($server_case),*]);
        conformance!(engine zookeeper, Zookeeper, [$($case),*], [$($server_case),*]);
        conformance!(engine redis, Redis, [$($case),*], [$($server_case),*]);
    };
    (engine $name:ident, $engine:ident, [$($case:ident),*], [$($server_case:ident),*]) => {
        mod $name {
            use super::{Behind, $engine, conforms};

            $(#[tokio::test(flavor = "multi_thread")] async fn $case() { conforms(Behind::<$engine>::start, stringify!($case)).await; })*
            $(#[tokio::test] async fn $server_case() { super::$server_case::<$engine>().await; })*
        }
    };
}

conformance! {
    suite:
    one_is_elected_and_all_know_it,
    another_takes_over_after_resign,
    another_takes_over_after_close,
    another_takes_over_after_the_last_handle,
    leaders_cut_off_stop_before_a_takeover,
    leaders_survive_short_interruptions,
    deposed_leaders_notice_and_compete_again,
    one_that_does_not_lead_may_resign,
    tokens_grow_and_slow_readers_miss_nothing,
    late_readers_get_the_current_state_first,
    readers_of_the_state_may_ask_the_elector,
    nothing_is_left_behind_after_close,
    close_is_idempotent_and_prompt,
    close_is_prompt_without_a_server,
    after_close_nothing_more_happens,
    the_last_event_says_that_it_has_ended,
    fences_admit_the_leader_and_no_former_one,
    stale_fences_are_refused_in_every_key_state;
    servers:
    one_leads_again_after_a_server_restart,
    a_half_open_connection_is_noticed_in_time,
    a_fence_of_another_engine_is_invalid,
    idle_leaders_renew_every_third_of_the_ttl,
    the_second_cause_of_an_interruption_is_told,
}

async fn conforms<H: Harness>(start: impl AsyncFn() -> H, case: &str) {
    let case = case.replace('_', " ");
    let report = elections::run_only(start, |name| name == case).await;
    assert!(report.results.len() == 1 && report.passed(), "{case}:\n{report}");
}

/// An engine whose candidates each have a proxy of their own.
struct Behind<E> {
    engine: E,
    proxies: Mutex<Vec<(String, Proxy)>>,
}

impl<E: Engine> Behind<E> {
    async fn start() -> Self {
        Self { engine: E::start().await, proxies: Mutex::default() }
    }
}

impl<E: Engine> Harness for Behind<E> {
    type Elector = E::Elector;
    type Store = E::Store;

    fn ttl(&self) -> Duration {
        E::TTL
    }

    async fn candidate(&self, identity: &str) -> E::Elector {
        let proxy = Proxy::start(self.engine.address()).await;
        let candidate = self.engine.candidate_at(proxy.address(), identity).await;
        self.proxies.lock().push((identity.to_owned(), proxy));
        candidate
    }

    async fn store(&self) -> E::Store {
        self.engine.store().await
    }

    async fn traces(&self) -> Vec<String> {
        self.engine.traces().await
    }

    async fn depose(&self) {
        self.engine.depose().await;
    }

    fn contact(&self, identity: &str, contact: Contact) {
        for (_, proxy) in self.proxies.lock().iter().filter(|(of, _)| of == identity) {
            match contact {
                Contact::Good => proxy.heal(),
                Contact::Broken => proxy.cut(),
                Contact::Lost => proxy.stall(),
            }
        }
    }
}

struct Memory(MemoryElection);

impl Memory {
    async fn start() -> Self {
        let election = MemoryElection::new(MemoryStore::new(), "test", Duration::from_secs(1));
        Self(election.expect("valid settings"))
    }
}

impl Harness for Memory {
    type Elector = MemoryElector;
    type Store = MemoryStore;

    fn ttl(&self) -> Duration {
        Duration::from_secs(1)
    }

    async fn candidate(&self, identity: &str) -> MemoryElector {
        self.0.candidate(identity)
    }

    async fn store(&self) -> MemoryStore {
        self.0.store().clone()
    }

    async fn traces(&self) -> Vec<String> {
        self.0.candidates().iter().map(|identity| identity.to_string()).collect()
    }

    async fn depose(&self) {
        self.0.depose();
    }

    fn contact(&self, identity: &str, contact: Contact) {
        self.0.cut_off(identity, contact == Contact::Lost);
    }
}

#[tokio::test(start_paused = true)]
async fn suite_has_a_test_for_each_case() {
    let report = elections::run(Memory::start).await;
    assert!(report.passed(), "\n{report}");
    let names: Vec<_> = report.results.iter().map(|result| result.name.replace(' ', "_")).collect();
    assert_eq!(names, CASES);
}

async fn one_leads_again_after_a_server_restart<E: Engine>() {
    let mut engine = E::start().await;
    let (first, second) = two(&engine).await;
    let third = engine.candidate("third").await;
    follows(&third).await;
    let tasks = [first, second, third];
    for pause in [Duration::ZERO, 2 * E::TTL] {
        engine.kill();
        sleep(pause).await;
        if !pause.is_zero() {
            assert!(tasks.iter().all(|candidate| !candidate.is_leader()), "no leader can renew");
        }
        engine.restart().await;
        let leader = the_leader_of_those_that_live(&engine, &tasks).await;
        println!("after {pause:?}: {leader:?}");
    }
}

async fn a_half_open_connection_is_noticed_in_time<E: Engine>() {
    let engine = E::start().await;
    let proxy = Proxy::start(engine.address()).await;
    let first = engine.candidate("first").await;
    leads(&first).await;
    let second = engine.candidate_at(proxy.address(), "second").await;
    follows(&second).await;
    proxy.half_open();
    first.close().await;
    // Nothing reaches the server on a silent connection, and no call waits for ever.
    leads_or_fails(&second).await;
}

async fn a_fence_of_another_engine_is_invalid<E: Engine>() {
    let engine = E::start().await;
    let store = engine.store().await;
    let foreign = Fence::new("elsewhere", "election", 1);
    let refused = store.put("key", "1".into(), Expected::Absent, Some(&foreign)).await;
    let Err(StoreError::Invalid { reason, .. }) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("elsewhere"), "{reason}");
    // A fence of its own that no leader has is refused.
    let only = engine.candidate("only").await;
    leads(&only).await;
    let real = only.fence().expect("it leads");
    let forged = Fence::new(real.engine(), real.election(), u64::MAX).with_proof("forged");
    let refused = store.put("key", "1".into(), Expected::Absent, Some(&forged)).await;
    assert!(matches!(refused, Err(StoreError::Fenced { .. } | StoreError::Invalid { .. })), "{refused:?}");
    assert_eq!(store.get("key").await.expect("it serves"), None);
}

/// The server is away; when it is back it denies what was allowed before.
async fn the_second_cause_of_an_interruption_is_told<E: Engine>() {
    let engine = E::start().await;
    let proxy = Proxy::start(engine.address()).await;
    let first = engine.candidate("first").await;
    leads(&first).await;
    let second = engine.candidate_at(proxy.address(), "second").await;
    follows(&second).await;
    let mut events = second.events();
    proxy.refuse(true);
    proxy.cut();
    let store_error = |error: &ElectionError, denied: bool| match error {
        ElectionError::Store(error) => matches!(error, StoreError::Denied { .. }) == denied,
        _ => false,
    };
    interrupted(&mut events, |error| store_error(error, false)).await;
    engine.deny().await;
    proxy.heal();
    let told = interrupted(&mut events, |error| store_error(error, true)).await;
    println!("{told}");
}

async fn idle_leaders_renew_every_third_of_the_ttl<E: Engine>() {
    let engine = E::start().await;
    let (first, _second) = two(&engine).await;
    // A leader that a busy machine kept from renewing in time is elected anew, which takes more
    // writes.
    at_best("an idle leader writes seldom", async || {
        leads(&first).await;
        sleep(E::TTL).await;
        let token = first.fence().map(|fence| fence.token());
        let (started, before) = (Instant::now(), engine.writes().await);
        sleep(4 * E::TTL).await;
        let (after, took) = (engine.writes().await, started.elapsed());
        let now = first.fence().map(|fence| fence.token());
        let allowed = took.as_secs_f64() / (E::TTL / 3).as_secs_f64() + 1.0;
        println!("{} writes in {took:?}, {allowed:.1} allowed", after - before);
        ensure(now.is_some() && now == token && (after - before) as f64 <= allowed, || {
            format!("{} writes in {took:?}; led by {token:?}, then by {now:?}", after - before)
        })
    })
    .await;
}

/// Two candidates: the first leads, and the second knows it.
async fn two<E: Engine>(engine: &E) -> (E::Elector, E::Elector) {
    loop {
        let first = engine.candidate("first").await;
        leads(&first).await;
        let second = engine.candidate("second").await;
        let knows = |state: &Leadership| {
            matches!(state, Leadership::Leader { .. } | Leadership::Follower { leader: Some(_) })
        };
        reaches(&second, "it knows who leads", knows).await;
        if first.is_leader() {
            return (first, second);
        }
        // A busy machine kept the first from renewing in time.
        tokio::join!(first.close(), second.close());
    }
}

async fn follows(elector: &impl Elector) {
    let follows = |state: &Leadership| matches!(state, Leadership::Follower { leader: Some(_) });
    reaches(elector, "it knows who leads", follows).await;
}

async fn leads_or_fails(elector: &impl Elector) {
    let ended = |state: &Leadership| state.is_leader() || matches!(state, Leadership::Failed(_));
    reaches(elector, "it leads or has failed", ended).await;
}

/// Replaces failed candidates: sessions may have expired while the server was down.
async fn the_leader_of_those_that_live<E: Engine>(engine: &E, candidates: &[E::Elector]) -> Option<usize> {
    let failed = |candidate: &E::Elector| matches!(*candidate.leadership().borrow(), Leadership::Failed(_));
    let started = Instant::now();
    while started.elapsed() < LONG {
        if let Some(leader) = candidates.iter().position(Elector::is_leader) {
            assert_eq!(candidates.iter().filter(|candidate| candidate.is_leader()).count(), 1);
            return Some(leader);
        }
        if candidates.iter().all(failed) {
            leads(&engine.candidate("new").await).await;
            return None;
        }
        sleep(Duration::from_millis(5)).await;
    }
    panic!(
        "no candidate leads: {:?}",
        candidates.iter().map(|c| format!("{:?}", c.leadership().borrow())).collect::<Vec<_>>()
    )
}
