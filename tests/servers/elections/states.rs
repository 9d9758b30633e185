//! The states that tests wait for, and time limits. Each test uses another part of this.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use tokio::time::{sleep, timeout};
use writerlease::{
    ConfigError,
    election::{ElectionError, Elector, Event, Events, Leadership},
};

/// The longest wait, only against hanging. It is much shorter than the minute that others wait for
/// a silent leader in tests that say so: a wait that ends there did not end because that minute was
/// over.
pub const LONG: Duration = Duration::from_secs(20);

/// Runs a case until it holds, at most eight times; `Err` says why it did not hold.
///
/// It is for claims that a busy machine can spoil but not fake: a leader renews in time, a
/// successor is elected before a timeout. One run that holds proves such a claim. A defect makes
/// each run fail.
pub async fn at_best(what: &str, mut case: impl AsyncFnMut() -> Result<(), String>) {
    let mut failures = Vec::new();
    while failures.len() < 8 {
        match case().await {
            Ok(()) => return,
            Err(failure) => {
                println!("{what}: {failure}");
                failures.push(failure);
            }
        }
    }
    panic!("{what}: {failures:#?}");
}

/// `Err` with the reason, unless the condition holds.
pub fn ensure(condition: bool, reason: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(reason()) }
}

pub async fn leads(elector: &impl Elector) {
    reaches(elector, "it leads", Leadership::is_leader).await;
}

pub async fn follows(elector: &impl Elector, leader: &str) {
    let follows = |state: &Leadership| matches!(state, Leadership::Follower { leader: Some(known) } if **known == *leader);
    reaches(elector, &format!("it follows {leader}"), follows).await;
}

pub async fn reaches(elector: &impl Elector, what: &str, state: impl FnMut(&Leadership) -> bool) {
    let mut leadership = elector.leadership();
    let reached = timeout(LONG, leadership.wait_for(state)).await.map(|reached| reached.map(drop));
    let now = leadership.borrow();
    assert!(matches!(reached, Ok(Ok(()))), "waited until {what}: {} is {now:?}", elector.identity());
}

pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < LONG, "waited until {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Waits for a result that does not take long.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(LONG, future).await.expect("in time")
}

/// Waits for the next event for which `wanted` returns a result.
pub async fn event<T>(events: &mut Events, mut wanted: impl FnMut(&Event) -> Option<T>) -> T {
    loop {
        let event = soon(events.next()).await.expect("there are more events");
        if let Some(found) = wanted(&event) {
            return found;
        }
    }
}

/// Waits for the next interruption of the wanted kind.
pub async fn interrupted(events: &mut Events, wanted: impl Fn(&ElectionError) -> bool) -> Arc<ElectionError> {
    let cause = |event: &Event| match event {
        Event::Interrupted(error) if wanted(error) => Some(error.clone()),
        _ => None,
    };
    event(events, cause).await
}

#[track_caller]
pub fn assert_config<T>(result: Result<T, ElectionError>, field: &str, value: &str, rule: &str) {
    let Err(ElectionError::Config(error)) = result else { panic!("{field}: {:?}", result.err()) };
    assert_eq!((error.field(), error.value()), (field, value));
    assert!(ConfigError::rule(&error).contains(rule), "{error}");
}

pub fn token(elector: &impl Elector) -> u64 {
    elector.fence().expect("it leads").token()
}

/// An address without a listener.
pub fn nowhere() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 1).into()
}
