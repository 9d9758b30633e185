//! The promises of all electors, on each engine.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::time::{sleep, timeout};
use writerlease::{
    election::{ElectionError, Elector, Event, Leadership},
    store::{Expected, Fence, Store, StoreError},
};

use crate::engines::{Engine, Etcd, Redis, Voter, Zookeeper};
use crate::states::{LONG, at_best, ensure, leads, reaches};
use writerlease_test_support::proxy::Proxy;

/// Runs each case on each engine, on a server of its own.
macro_rules! conformance {
    ($($case:ident),* $(,)?) => {
        mod etcd { $(#[tokio::test] async fn $case() { super::$case::<super::Etcd>().await; })* }
        mod etcd_voter { $(#[tokio::test] async fn $case() { super::$case::<super::Voter>().await; })* }
        mod zookeeper { $(#[tokio::test] async fn $case() { super::$case::<super::Zookeeper>().await; })* }
        mod redis { $(#[tokio::test] async fn $case() { super::$case::<super::Redis>().await; })* }
    };
}

conformance! {
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
    nothing_is_left_behind_after_close,
    close_is_idempotent_and_prompt,
    close_is_prompt_without_a_server,
    after_close_nothing_more_happens,
    the_last_event_says_that_it_has_ended,
    one_leads_again_after_a_server_restart,
    a_half_open_connection_is_noticed_in_time,
    fences_admit_the_leader_and_no_former_one,
    stale_fences_are_refused_in_every_key_state,
    a_fence_of_another_engine_is_invalid,
    idle_leaders_renew_every_third_of_the_ttl,
}

async fn one_is_elected_and_all_know_it<E: Engine>() {
    let engine = E::start().await;
    let mut candidates = Vec::new();
    for index in 0..5 {
        candidates.push(engine.candidate(&format!("candidate-{index}")).await);
    }
    let leader = the_leader(&candidates).await;
    let name = candidates[leader].identity();
    for (index, candidate) in candidates.iter().enumerate() {
        assert_eq!(candidate.identity(), format!("candidate-{index}"));
        let follows = |state: &Leadership| matches!(state, Leadership::Follower { leader: Some(leader) } if **leader == *name);
        if index != leader {
            reaches(candidate, "it knows who leads", follows).await;
            assert!(candidate.fence().is_none());
        }
    }
    at_best("a leader that lives goes on", async || {
        let leader = the_leader(&candidates).await;
        sleep(2 * E::TTL).await;
        assert!(candidates.iter().filter(|candidate| candidate.is_leader()).count() <= 1);
        ensure(candidates[leader].is_leader(), || format!("{:?}", *candidates[leader].leadership().borrow()))
    })
    .await;
}

async fn another_takes_over_after_resign<E: Engine>() {
    let engine = E::start().await;
    let (first, second) = two(&engine).await;
    let token = first.fence().expect("it leads").token();
    first.resign().await.expect("it serves");
    assert!(!first.is_leader());
    leads(&second).await;
    assert!(second.fence().expect("it leads").token() > token);
    // The first one still competes.
    second.close().await;
    leads(&first).await;
    first.close().await;
    hands_over(&engine, async |first: E::Elector| first.resign().await.expect("it serves")).await;
}

async fn another_takes_over_after_close<E: Engine>() {
    let engine = E::start().await;
    let (first, second) = two(&engine).await;
    first.close().await;
    assert!(!first.is_leader());
    leads(&second).await;
    second.close().await;
    hands_over(&engine, async |first: E::Elector| first.close().await).await;
}

async fn another_takes_over_after_the_last_handle<E: Engine>() {
    let engine = E::start().await;
    hands_over(&engine, async |first: E::Elector| drop(first)).await;
}

/// Checks that a leader that ends like this is replaced well before its time is up.
async fn hands_over<E: Engine>(engine: &E, end: impl AsyncFn(E::Elector)) {
    at_best("another takes over promptly", async || {
        let (first, second) = two(engine).await;
        let ended = Instant::now();
        end(first).await;
        leads(&second).await;
        let took = ended.elapsed();
        second.close().await;
        println!("handed over after {took:?}; TTL {:?}", E::TTL);
        ensure(took < E::TTL / 2, || format!("after {took:?}"))
    })
    .await;
}

async fn leaders_cut_off_stop_before_a_takeover<E: Engine>() {
    let engine = E::start().await;
    let proxy = Proxy::start(engine.address()).await;
    let first = engine.candidate_at(proxy.address(), "first").await;
    leads(&first).await;
    let second = engine.candidate("second").await;
    follows(&second).await;
    proxy.stall();
    let cut_off = first.fence().map_or(0, |fence| fence.token());
    leads(&second).await;
    // Asked after the election, the first must have known before it.
    assert!(!first.is_leader(), "{:?}", first.leadership().borrow());
    reaches(&first, "its time is up", |state| !matches!(state, Leadership::Leader { .. })).await;
    // When it is back it sees that another leads, and does not lead beside it.
    proxy.heal();
    sleep(E::TTL).await;
    assert!(!(first.is_leader() && second.is_leader()));
    assert!(first.fence().is_none_or(|fence| fence.token() > cut_off), "it leads by its old token");
}

async fn leaders_survive_short_interruptions<E: Engine>() {
    let engine = E::start().await;
    at_best("the leader goes on by the same token", async || {
        let proxy = Proxy::start(engine.address()).await;
        let first = engine.candidate_at(proxy.address(), "first").await;
        leads(&first).await;
        let token = first.fence().map(|fence| fence.token());
        let second = engine.candidate("second").await;
        for _ in 0..3 {
            proxy.cut();
            sleep(E::TTL / 4).await;
        }
        sleep(2 * E::TTL).await;
        let now = first.fence().map(|fence| fence.token());
        let state = format!("{token:?}, then {:?}", *first.leadership().borrow());
        tokio::join!(first.close(), second.close());
        ensure(now.is_some() && now == token, || state)
    })
    .await;
}

async fn deposed_leaders_notice_and_compete_again<E: Engine>() {
    let engine = E::start().await;
    let first = engine.candidate("first").await;
    leads(&first).await;
    let token = first.fence().expect("it leads").token();
    engine.depose().await;
    let is_new = |state: &Leadership| state.fence().is_some_and(|fence| fence.token() > token);
    reaches(&first, "it is elected anew", is_new).await;
}

async fn one_that_does_not_lead_may_resign<E: Engine>() {
    let engine = E::start().await;
    at_best("the resignation of a follower changes nothing", async || {
        let (first, second) = two(&engine).await;
        second.resign().await.expect("it serves");
        sleep(E::TTL).await;
        let unchanged = first.is_leader() && !second.is_leader();
        first.close().await;
        leads(&second).await;
        second.close().await;
        ensure(unchanged, || "the leader changed".into())
    })
    .await;
}

async fn tokens_grow_and_slow_readers_miss_nothing<E: Engine>() {
    let engine = E::start().await;
    let (first, second) = two(&engine).await;
    let (of_first, of_second) = (first.events(), second.events());
    let mut tokens = vec![first.fence().expect("it leads").token()];
    for _ in 0..4 {
        first.resign().await.expect("it serves");
        leads(&second).await;
        tokens.push(second.fence().expect("it leads").token());
        // On some servers a candidate that resigned keeps out for a while.
        let mut leadership = first.leadership();
        loop {
            second.resign().await.expect("it serves");
            let back =
                leadership.wait_for(|state| state.is_leader() || matches!(state, Leadership::Failed(_)));
            if timeout(E::TTL / 2, back).await.is_ok() {
                break;
            }
        }
        tokens.push(first.fence().expect("it leads").token());
    }
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
    for (elector, events) in [(first, of_first), (second, of_second)] {
        elector.close().await;
        let events: Vec<_> = timeout(LONG, events.collect()).await.expect("they end");
        let mut leading = None;
        let mut elected = Vec::new();
        for event in events {
            match event {
                Event::Elected { token } => {
                    assert_eq!(leading.replace(token), None, "elected twice");
                    elected.push(token);
                }
                Event::Retired { token } => {
                    assert_eq!(leading.take(), Some(token), "retired from what it had")
                }
                Event::NewLeader { .. } => assert_eq!(leading, None, "another leads beside us"),
                // On a busy machine a request may time out.
                Event::Interrupted(error) => println!("interrupted: {error}"),
                Event::Failed(error) => assert!(error.is_cancelled(), "{error}"),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(leading, None, "it retired at the end");
        // Every term of leadership that the test saw was reported, and none twice.
        assert!(elected.is_sorted_by(|a, b| a < b), "{elected:?}");
        assert!(elected.len() >= 4, "{elected:?} of {tokens:?}");
    }
}

async fn late_readers_get_the_current_state_first<E: Engine>() {
    let engine = E::start().await;
    let (first, second) = two(&engine).await;
    let token = first.fence().expect("it leads").token();
    let event = timeout(LONG, first.events().next()).await.expect("it is reported in time");
    assert!(matches!(event, Some(Event::Elected { token: told }) if told == token), "{event:?}");
    let event = timeout(LONG, second.events().next()).await.expect("it is reported in time");
    assert!(matches!(&event, Some(Event::NewLeader { leader }) if &**leader == "first"), "{event:?}");
}

async fn nothing_is_left_behind_after_close<E: Engine>() {
    let engine = E::start().await;
    assert_eq!(engine.traces().await, [""; 0]);
    let (first, second) = two(&engine).await;
    assert_ne!(engine.traces().await, [""; 0]);
    first.resign().await.expect("it serves");
    leads(&second).await;
    tokio::join!(first.close(), second.close());
    assert_eq!(engine.traces().await, [""; 0]);
}

async fn close_is_idempotent_and_prompt<E: Engine>() {
    let engine = E::start().await;
    at_best("a follower closes promptly", async || {
        let (first, second) = two(&engine).await;
        let started = Instant::now();
        second.close().await;
        second.close().await;
        let (took, unchanged) = (started.elapsed(), first.is_leader());
        tokio::join!(first.close(), first.close());
        ensure(unchanged && took < E::TTL / 2, || format!("after {took:?}; still leads: {unchanged}"))
    })
    .await;
}

async fn close_is_prompt_without_a_server<E: Engine>() {
    let engine = E::start().await;
    let proxy = Proxy::start(engine.address()).await;
    let first = engine.candidate_at(proxy.address(), "first").await;
    leads(&first).await;
    proxy.stall();
    let started = Instant::now();
    first.close().await;
    // One request timeout, a second, is promised; the limit is generous, because a busy machine
    // adds to it.
    assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
    assert!(!first.is_leader());
    // The next candidate waits for the TTL and no longer.
    let second = engine.candidate("second").await;
    leads(&second).await;
}

async fn after_close_nothing_more_happens<E: Engine>() {
    let engine = E::start().await;
    let only = engine.candidate("only").await;
    leads(&only).await;
    only.close().await;
    assert!(matches!(only.resign().await, Err(ElectionError::Closed)));
    sleep(E::TTL).await;
    assert!(matches!(&*only.leadership().borrow(), Leadership::Failed(error) if error.is_cancelled()));
}

async fn the_last_event_says_that_it_has_ended<E: Engine>() {
    let engine = E::start().await;
    let only = engine.candidate("only").await;
    leads(&only).await;
    let events = only.events();
    drop(only);
    let events: Vec<_> = timeout(LONG, events.collect()).await.expect("they end");
    let [Event::Elected { token }, Event::Retired { token: last }, Event::Failed(error)] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(token, last);
    assert!(error.is_cancelled());
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

async fn fences_admit_the_leader_and_no_former_one<E: Engine>() {
    let engine = E::start().await;
    let store = engine.store().await;
    let (first, second) = two(&engine).await;
    let old = first.fence().expect("it leads");
    let written = store.put("key", "first".into(), Expected::Absent, Some(&old)).await.expect("it leads");
    first.resign().await.expect("it serves");
    leads(&second).await;
    // Both before the first write of the successor and after it.
    let refused = store.put("key", "late".into(), Expected::Version(written.clone()), Some(&old)).await;
    assert!(matches!(refused, Err(StoreError::Fenced { token }) if token == old.token()), "{refused:?}");
    let new = second.fence().expect("it leads");
    let next = store.put("key", "second".into(), Expected::Version(written), Some(&new)).await;
    let next = next.expect("it leads");
    let refused = store.put("key", "late".into(), Expected::Version(next.clone()), Some(&old)).await;
    assert!(matches!(refused, Err(StoreError::Fenced { .. })), "{refused:?}");
    let refused = store.delete("key", &next, Some(&old)).await;
    assert!(matches!(refused, Err(StoreError::Fenced { .. })), "{refused:?}");
    let entry = store.get("key").await.expect("it serves").expect("it is there");
    assert_eq!((&entry.value[..], &entry.version), (&b"second"[..], &next));
    store.delete("key", &next, Some(&new)).await.expect("it leads");
    second.close().await;
    let refused = store.put("key", "late".into(), Expected::Absent, Some(&new)).await;
    assert!(matches!(refused, Err(StoreError::Fenced { .. })), "{refused:?}");
}

async fn stale_fences_are_refused_in_every_key_state<E: Engine>() {
    let engine = E::start().await;
    let store = engine.store().await;
    let (first, _second) = two(&engine).await;
    let fence = first.fence().expect("it leads");
    let old = store.put("key", "1".into(), Expected::Absent, Some(&fence)).await.expect("it leads");
    let new =
        store.put("key", "2".into(), Expected::Version(old.clone()), Some(&fence)).await.expect("it leads");
    // A conflict of a leader stays a conflict.
    for expected in [Expected::Absent, Expected::Version(old.clone())] {
        let refused = store.put("key", "3".into(), expected, Some(&fence)).await;
        assert!(matches!(refused, Err(StoreError::Conflict { .. })), "{refused:?}");
    }
    first.close().await;
    for expected in [Expected::Absent, Expected::Version(old.clone()), Expected::Version(new.clone())] {
        let refused = store.put("key", "3".into(), expected, Some(&fence)).await;
        assert!(matches!(refused, Err(StoreError::Fenced { .. })), "{refused:?}");
    }
    for expected in [&old, &new] {
        let refused = store.delete("key", expected, Some(&fence)).await;
        // Some stores detect an old version before they send a request.
        assert!(
            matches!(refused, Err(StoreError::Fenced { .. } | StoreError::Conflict { .. })),
            "{refused:?}"
        );
    }
    let refused = store.put("other", "1".into(), Expected::Absent, Some(&fence)).await;
    assert!(matches!(refused, Err(StoreError::Fenced { .. })), "{refused:?}");
    assert_eq!(store.get("key").await.expect("it serves").expect("it is there").version, new);
    assert_eq!(store.get("other").await.expect("it serves"), None);
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

async fn the_leader(candidates: &[impl Elector]) -> usize {
    let started = Instant::now();
    loop {
        if let Some(leader) = candidates.iter().position(Elector::is_leader) {
            return leader;
        }
        assert!(started.elapsed() < LONG, "no candidate leads");
        sleep(Duration::from_millis(5)).await;
    }
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
