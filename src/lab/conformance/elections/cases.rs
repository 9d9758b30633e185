//! The cases.

use futures_util::StreamExt;
use tokio::time::{sleep, timeout};

use super::{
    Contact, Harness, Suite,
    states::{LONG, at_best, ensure, leads, reaches, the_leader, two},
};
use crate::{
    clock,
    election::{ElectionError, Elector, Event, Events, Leadership},
    store::{Expected, Store, StoreError},
};

pub(super) async fn run<H, S, O>(suite: &mut Suite<S, O>)
where
    H: Harness,
    S: AsyncFn() -> H,
    O: Fn(&str) -> bool,
{
    suite.case("one is elected and all know it", one_is_elected).await;
    suite.case("another takes over after resign", takeover_after_resign).await;
    suite.case("another takes over after close", takeover_after_close).await;
    suite.case("another takes over after the last handle", takeover_after_drop).await;
    suite.case("leaders cut off stop before a takeover", cut_off).await;
    suite.case("leaders survive short interruptions", short_interruptions).await;
    suite.case("deposed leaders notice and compete again", deposed).await;
    suite.case("one that does not lead may resign", follower_resigns).await;
    suite.case("tokens grow and slow readers miss nothing", tokens_grow).await;
    suite.case("late readers get the current state first", late_readers).await;
    suite.case("readers of the state may ask the elector", readers_ask).await;
    suite.case("nothing is left behind after close", nothing_left).await;
    suite.case("close is idempotent and prompt", close_twice).await;
    suite.case("close is prompt without a server", close_without_server).await;
    suite.case("after close nothing more happens", after_close).await;
    suite.case("the last event says that it has ended", last_event).await;
    suite.case("fences admit the leader and no former one", fences).await;
    suite.case("stale fences are refused in every key state", stale_fences).await;
}

async fn one_is_elected<H: Harness>(harness: &H) {
    let mut candidates = Vec::new();
    for index in 0..5 {
        candidates.push(harness.candidate(&format!("candidate-{index}")).await);
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
        sleep(2 * harness.ttl()).await;
        assert!(candidates.iter().filter(|candidate| candidate.is_leader()).count() <= 1);
        ensure(candidates[leader].is_leader(), || format!("{:?}", candidates[leader].state()))
    })
    .await;
}

async fn takeover_after_resign<H: Harness>(harness: &H) {
    let (first, second) = two(harness).await;
    let before = token(&first);
    first.resign().await.expect("it serves");
    assert!(!first.is_leader());
    leads(&second).await;
    assert!(token(&second) > before);
    // The first one still competes.
    second.close().await;
    leads(&first).await;
    first.close().await;
    hands_over(harness, async |first: H::Elector| first.resign().await.expect("it serves")).await;
}

async fn takeover_after_close<H: Harness>(harness: &H) {
    let (first, second) = two(harness).await;
    first.close().await;
    assert!(!first.is_leader());
    leads(&second).await;
    second.close().await;
    hands_over(harness, async |first: H::Elector| first.close().await).await;
}

async fn takeover_after_drop<H: Harness>(harness: &H) {
    hands_over(harness, async |first: H::Elector| drop(first)).await;
}

/// Checks that a leader that ends like this is replaced well before its time is up.
async fn hands_over<H: Harness>(harness: &H, end: impl AsyncFn(H::Elector)) {
    at_best("another takes over promptly", async || {
        let (first, second) = two(harness).await;
        let ended = clock::now();
        end(first).await;
        leads(&second).await;
        let took = clock::now() - ended;
        second.close().await;
        ensure(took < harness.ttl() / 2, || format!("after {took:?}"))
    })
    .await;
}

async fn cut_off<H: Harness>(harness: &H) {
    let (first, second) = two(harness).await;
    harness.contact("first", Contact::Lost);
    let cut_off = first.fence().map_or(0, |fence| fence.token());
    leads(&second).await;
    // Asked after the election, the first must have known before it.
    assert!(!first.is_leader(), "{:?}", first.state());
    reaches(&first, "its time is up", |state| !matches!(state, Leadership::Leader { .. })).await;
    // When it is back it sees that another leads, and does not lead beside it.
    harness.contact("first", Contact::Good);
    sleep(harness.ttl()).await;
    assert!(!(first.is_leader() && second.is_leader()));
    assert!(first.fence().is_none_or(|fence| fence.token() > cut_off), "it leads by its old token");
}

async fn short_interruptions<H: Harness>(harness: &H) {
    at_best("the leader goes on by the same token", async || {
        let first = harness.candidate("first").await;
        leads(&first).await;
        let before = first.fence().map(|fence| fence.token());
        let second = harness.candidate("second").await;
        for _ in 0..3 {
            harness.contact("first", Contact::Broken);
            sleep(harness.ttl() / 4).await;
        }
        sleep(2 * harness.ttl()).await;
        let now = first.fence().map(|fence| fence.token());
        let state = format!("{before:?}, then {:?}", first.state());
        tokio::join!(first.close(), second.close());
        ensure(now.is_some() && now == before, || state)
    })
    .await;
}

async fn deposed<H: Harness>(harness: &H) {
    let first = harness.candidate("first").await;
    leads(&first).await;
    let before = token(&first);
    harness.depose().await;
    let is_new = |state: &Leadership| state.fence().is_some_and(|fence| fence.token() > before);
    reaches(&first, "it is elected anew", is_new).await;
}

async fn follower_resigns<H: Harness>(harness: &H) {
    at_best("the resignation of a follower changes nothing", async || {
        let (first, second) = two(harness).await;
        second.resign().await.expect("it serves");
        sleep(harness.ttl()).await;
        let unchanged = first.is_leader() && !second.is_leader();
        first.close().await;
        leads(&second).await;
        second.close().await;
        ensure(unchanged, || "the leader changed".into())
    })
    .await;
}

async fn tokens_grow<H: Harness>(harness: &H) {
    let (first, second) = two(harness).await;
    let (of_first, of_second) = (first.events(), second.events());
    let mut tokens = vec![token(&first)];
    for _ in 0..4 {
        // A candidate that resigned competes anew a moment later.
        let follows = |state: &Leadership| matches!(state, Leadership::Follower { leader: Some(_) });
        reaches(&second, "it knows who leads", follows).await;
        first.resign().await.expect("it serves");
        leads(&second).await;
        tokens.push(token(&second));
        // On some servers a candidate that resigned keeps out for a while.
        let mut leadership = first.leadership();
        loop {
            second.resign().await.expect("it serves");
            let ended = |state: &Leadership| state.is_leader() || matches!(state, Leadership::Failed(_));
            if timeout(harness.ttl() / 2, leadership.wait_for(ended)).await.is_ok() {
                break;
            }
        }
        tokens.push(token(&first));
    }
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
    for (elector, events) in [(first, of_first), (second, of_second)] {
        elector.close().await;
        let mut leading = None;
        let mut elected = Vec::new();
        for event in to_the_end(events).await {
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
                Event::Interrupted(_) => {}
                Event::Failed(error) => assert!(error.is_cancelled(), "{error}"),
            }
        }
        assert_eq!(leading, None, "it retired at the end");
        // Every term of leadership that the case saw was reported, and none twice.
        assert!(elected.is_sorted_by(|a, b| a < b), "{elected:?}");
        assert!(elected.len() >= 4, "{elected:?} of {tokens:?}");
    }
}

async fn late_readers<H: Harness>(harness: &H) {
    let (first, second) = two(harness).await;
    let led = token(&first);
    let event = timeout(LONG, first.events().next()).await.expect("it is reported in time");
    assert!(matches!(event, Some(Event::Elected { token }) if token == led), "{event:?}");
    let event = timeout(LONG, second.events().next()).await.expect("it is reported in time");
    assert!(matches!(&event, Some(Event::NewLeader { leader }) if &**leader == "first"), "{event:?}");
}

/// Looks at the channel for some renewals, and asks meanwhile.
async fn readers_ask<H: Harness>(harness: &H) {
    let only = harness.candidate("only").await;
    leads(&only).await;
    let leadership = only.leadership();
    let started = clock::now();
    while clock::now() - started < harness.ttl() {
        {
            let state = leadership.borrow();
            // The elector may want to publish a renewal right now.
            std::thread::yield_now();
            drop((only.events(), only.leadership(), only.is_leader(), only.fence(), only.state()));
            drop(state);
        }
        sleep(harness.ttl() / 1000).await;
    }
    leads(&only).await;
}

async fn nothing_left<H: Harness>(harness: &H) {
    assert_eq!(harness.traces().await, [""; 0]);
    let (first, second) = two(harness).await;
    assert_ne!(harness.traces().await, [""; 0]);
    first.resign().await.expect("it serves");
    leads(&second).await;
    tokio::join!(first.close(), second.close());
    assert_eq!(harness.traces().await, [""; 0]);
}

async fn close_twice<H: Harness>(harness: &H) {
    at_best("a follower closes promptly", async || {
        let (first, second) = two(harness).await;
        let started = clock::now();
        second.close().await;
        second.close().await;
        let (took, unchanged) = (clock::now() - started, first.is_leader());
        tokio::join!(first.close(), first.close());
        ensure(unchanged && took < harness.ttl() / 2, || format!("after {took:?}; still leads: {unchanged}"))
    })
    .await;
}

async fn close_without_server<H: Harness>(harness: &H) {
    let first = harness.candidate("first").await;
    leads(&first).await;
    harness.contact("first", Contact::Lost);
    let started = clock::now();
    first.close().await;
    // One request timeout is promised; the limit is generous, because a busy machine adds to it.
    let took = clock::now() - started;
    assert!(took < LONG / 2, "{took:?}");
    assert!(!first.is_leader());
    // The next candidate waits for the TTL and no longer.
    let second = harness.candidate("second").await;
    leads(&second).await;
}

async fn after_close<H: Harness>(harness: &H) {
    let only = harness.candidate("only").await;
    leads(&only).await;
    only.close().await;
    assert!(matches!(only.resign().await, Err(ElectionError::Closed)));
    sleep(harness.ttl()).await;
    let state = only.state();
    assert!(matches!(&state, Leadership::Failed(error) if error.is_cancelled()), "{state:?}");
}

async fn last_event<H: Harness>(harness: &H) {
    at_best("it leads until it is dropped", async || {
        let only = harness.candidate("only").await;
        leads(&only).await;
        let events = only.events();
        drop(only);
        let events = to_the_end(events).await;
        let Some(Event::Failed(error)) = events.last() else { panic!("{events:?}") };
        assert!(error.is_cancelled());
        match &events[..] {
            [Event::Elected { token }, Event::Retired { token: last }, _] if token == last => Ok(()),
            _ => Err(format!("{events:?}")),
        }
    })
    .await;
}

async fn fences<H: Harness>(harness: &H) {
    let store = harness.store().await;
    let (first, second) = two(harness).await;
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

async fn stale_fences<H: Harness>(harness: &H) {
    let store = harness.store().await;
    let (first, _second) = two(harness).await;
    let fence = first.fence().expect("it leads");
    let put = async |key: &str, value: &'static str, expected: Expected| {
        store.put(key, value.into(), expected, Some(&fence)).await
    };
    let old = put("key", "1", Expected::Absent).await.expect("it leads");
    let new = put("key", "2", Expected::Version(old.clone())).await.expect("it leads");
    // A conflict of a leader stays a conflict.
    for expected in [Expected::Absent, Expected::Version(old.clone())] {
        let refused = put("key", "3", expected).await;
        assert!(matches!(refused, Err(StoreError::Conflict { .. })), "{refused:?}");
    }
    first.close().await;
    for expected in [Expected::Absent, Expected::Version(old.clone()), Expected::Version(new.clone())] {
        let refused = put("key", "3", expected).await;
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
    let refused = put("other", "1", Expected::Absent).await;
    assert!(matches!(refused, Err(StoreError::Fenced { .. })), "{refused:?}");
    assert_eq!(store.get("key").await.expect("it serves").expect("it is there").version, new);
    assert_eq!(store.get("other").await.expect("it serves"), None);
}

fn token(elector: &impl Elector) -> u64 {
    elector.fence().expect("it leads").token()
}

/// Reads events until they end.
async fn to_the_end(events: Events) -> Vec<Event> {
    timeout(LONG, events.collect()).await.expect("they end")
}
