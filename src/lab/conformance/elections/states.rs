//! The states that cases wait for, and time limits.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::Harness;
use crate::{
    clock,
    election::{Elector, Leadership},
};

/// The longest wait, only against hanging.
pub(super) const LONG: Duration = Duration::from_secs(20);

/// Runs a case until it holds, at most eight times; `Err` says why it did not hold.
///
/// It is for claims that a busy machine can spoil but not fake: a leader renews in time, a
/// successor is elected before a timeout. One run that holds proves such a claim. A defect makes
/// each run fail.
pub(super) async fn at_best(what: &str, mut case: impl AsyncFnMut() -> Result<(), String>) {
    let mut failures = Vec::new();
    while failures.len() < 8 {
        match case().await {
            Ok(()) => return,
            Err(failure) => failures.push(failure),
        }
    }
    panic!("{what}: {failures:#?}");
}

/// `Err` with the reason, unless the condition holds.
pub(super) fn ensure(condition: bool, reason: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(reason()) }
}

pub(super) async fn leads(elector: &impl Elector) {
    reaches(elector, "it leads", Leadership::is_leader).await;
}

pub(super) async fn reaches(elector: &impl Elector, what: &str, state: impl FnMut(&Leadership) -> bool) {
    let mut leadership = elector.leadership();
    let reached = timeout(LONG, leadership.wait_for(state)).await.is_ok_and(|reached| reached.is_ok());
    assert!(reached, "waited until {what}: {} is {:?}", elector.identity(), elector.state());
}

pub(super) async fn the_leader(candidates: &[impl Elector]) -> usize {
    let started = clock::now();
    loop {
        if let Some(leader) = candidates.iter().position(Elector::is_leader) {
            return leader;
        }
        assert!(clock::now() - started < LONG, "no candidate leads");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Two candidates: the first leads, and the second knows it.
pub(super) async fn two<H: Harness>(harness: &H) -> (H::Elector, H::Elector) {
    loop {
        let first = harness.candidate("first").await;
        leads(&first).await;
        let second = harness.candidate("second").await;
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
