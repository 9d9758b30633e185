//! One candidate, which acts and writes while it leads.
//!
//! It reports on stdout, immediately and in a line each, with the time of a clock that all
//! processes share: "joined", "elected TOKEN TIME", "acts TOKEN TIME", "wrote TOKEN", "fenced
//! TOKEN", "failed REASON". It resigns at a line "resign" on stdin and exits when stdin closes.

use std::{io::Write, sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::{
    io::{AsyncBufReadExt, BufReader, stdin},
    sync::Mutex,
    time::{interval, sleep},
};
use writerlease::{
    Attempt, Guard, Outcome, WriterLease,
    election::{Elector, Event, Leadership},
    store::{Expected, Store, StoreError, Version},
};

use crate::{leaderships, options::Options};

pub async fn run<E: Elector, S: Store + Clone>(options: &Options, elector: E, store: S) {
    let lease = WriterLease::builder(&options.name).spawn().expect("valid settings");
    lease.follow(&elector).expect("a runtime");
    let guard = Guard::new(store.clone(), lease.clone(), options.prefix.clone()).expect("a runtime");
    let written = Arc::<Mutex<Option<Version>>>::default();
    let key: Arc<str> = format!("{}writes/{}", options.prefix, options.name).into();
    let mut events = elector.events();
    let mut lines = BufReader::new(stdin()).lines();
    let mut ticks = interval(TICK);
    let mut joined = elector.leadership();
    let joined = joined.wait_for(|state| !matches!(state, Leadership::Unknown)).await.map(drop);
    joined.expect("the elector exists");
    say("joined".into());
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Event::Elected { token }) => {
                    say(format!("elected {token} {}", leaderships::clock()));
                    // Publishes the leader's name. The guard retries by itself, so the result is
                    // dropped.
                    let name = options.name.clone();
                    drop(guard.ensure("leader", move |current| (current != Some(name.as_bytes())).then(|| name.clone())));
                }
                Some(Event::Failed(error)) => {
                    say(format!("failed {error}"));
                    // A return would make tokio wait for the next line on stdin.
                    std::process::exit(1);
                }
                _ => {}
            },
            line = lines.next_line() => match line {
                Ok(Some(_)) => drop(elector.resign().await),
                _ => break,
            },
            _ = ticks.tick() => {
                // The clock comes before the query, so that the reported time is never too late.
                let now = leaderships::clock();
                if let Some(fence) = elector.fence() {
                    say(format!("acts {} {now}", fence.token()));
                }
                if lease.is_empty() && lease.snapshot().in_flight == 0 {
                    let (store, written) = (store.clone(), written.clone());
                    let work = move |attempt| write(store.clone(), written.clone(), attempt);
                    lease.try_work(key.clone(), work).expect("the lease accepts jobs");
                }
            }
        }
    }
    elector.close().await;
}

/// Writes the token to a key of this candidate alone, so that only the fence can refuse a stale
/// write.
async fn write<S: Store>(
    store: S,
    written: Arc<Mutex<Option<Version>>>,
    attempt: Attempt<Arc<str>>,
) -> Outcome {
    let Some(fence) = attempt.fence() else { return Outcome::Failed };
    let mut written = written.lock().await;
    // Widens the window in which a pause makes the write stale.
    sleep(THINKING).await;
    let (token, expected) = (fence.token(), written.clone().map_or(Expected::Absent, Expected::Version));
    match store.put(attempt.key(), token.to_string().into(), expected, Some(fence)).await {
        Ok(version) => {
            say(format!("wrote {token}"));
            *written = Some(version);
            Outcome::Written
        }
        Err(StoreError::Fenced { .. }) => {
            say(format!("fenced {token}"));
            Outcome::Unchanged
        }
        Err(_) => {
            // The write may have succeeded, so the current version is unknown.
            if let Ok(entry) = store.get(attempt.key()).await {
                *written = entry.map(|entry| entry.version);
            }
            Outcome::Failed
        }
    }
}

/// Prints one line immediately. Exits if the parent has closed the pipe.
fn say(line: String) {
    if std::io::stdout().lock().write_all(format!("{line}\n").as_bytes()).is_err() {
        std::process::exit(1);
    }
}

/// The interval at which a leader acts.
const TICK: Duration = Duration::from_millis(5);
/// The time between the decision to write and the write.
const THINKING: Duration = Duration::from_millis(3);
