//! The task that takes in the changes of the watch.

use std::{
    future,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::{FutureExt, Stream, StreamExt};
use tokio::{sync::watch, time::Instant};

use super::{Inner, Notice, WatchTask};
use crate::{
    clock,
    object::Change,
    status::{LeaseClosed, Status, WatchState},
    store::{Event, Store, StoreError},
};

/// The first listing of a watch, as far as it shows how far away the store is.
#[derive(Default)]
struct FirstListing {
    /// When the first answer came.
    answered: Option<Duration>,
    entries: u32,
}

impl FirstListing {
    /// How many entries take about as long as any other request.
    const SHORT: u32 = 64;

    /// Takes an event in that came after `time`. At the end of the listing, returns about how long a
    /// round trip takes: a long listing takes many times that.
    fn note(&mut self, event: &Event, time: Duration) -> Option<Duration> {
        match event {
            Event::Init => self.answered = Some(time),
            Event::InitEntry(_) => self.entries = self.entries.saturating_add(1),
            Event::InitDone => return self.answered.map(|time| time / (1 + self.entries / Self::SHORT)),
            _ => {}
        }
        None
    }
}

/// Takes changes in until the watch ends, then waits for the end of the lease. Ends early with the
/// guard or the lease.
pub(super) async fn run<S: Store>(
    guard: Weak<Inner<S>>,
    task: Weak<WatchTask>,
    changes: impl Stream<Item = Result<Event, StoreError>>,
) {
    let Some(mut status) = guard.upgrade().map(|inner| inner.lease.subscribe()) else { return };
    let _guard = EndGuard { guard: guard.clone(), task };
    let watch = async {
        // A panic of a user's stream, `competes` or destructor ends the watch only.
        let watch = AssertUnwindSafe(take_in_all(&guard, changes)).catch_unwind();
        if watch.await.is_err() {
            tracing::error!("the watch panicked");
        }
        if let Some(inner) = guard.upgrade() {
            inner.end_watch();
        }
        // Callers still wait for requests, which only the end of the lease may end.
        future::pending::<()>().await;
    };
    tokio::select! {
        () = watch => {}
        closed = follow(&guard, &mut status) => {
            if let Some(inner) = guard.upgrade() {
                inner.close(closed);
            }
        }
    }
}

/// Reports that the lease is stuck, each time, until it is closed. Returns why it is.
async fn follow<S: Store>(guard: &Weak<Inner<S>>, status: &mut watch::Receiver<Status>) -> LeaseClosed {
    let mut was_stuck = false;
    loop {
        let changed = |status: &Status| status.closed.is_some() || status.is_stuck != was_stuck;
        let Ok(Status { is_stuck, closed, .. }) = status.wait_for(changed).await.map(|status| *status) else {
            return LeaseClosed::DriverDied;
        };
        if let Some(closed) = closed {
            return closed;
        }
        was_stuck = is_stuck;
        if is_stuck && let Some(inner) = guard.upgrade() {
            inner.report_stuck();
        }
    }
}

async fn take_in_all<S: Store>(
    guard: &Weak<Inner<S>>,
    changes: impl Stream<Item = Result<Event, StoreError>>,
) {
    let mut changes = pin!(changes);
    let started = clock::now();
    let mut live_since = started;
    let mut first_listing = Some(FirstListing::default());
    while let Some(change) = changes.next().await {
        let Some(inner) = guard.upgrade() else { return };
        let now = clock::now();
        match change {
            Ok(event) => {
                let state = *inner.watch_state.lock();
                if matches!(state, WatchState::Resuming { .. }) {
                    // A listing sets this itself, together with its beginning.
                    inner.keys.lock().watches |= event != Event::Init;
                    inner.set_watch_state(WatchState::Live);
                    let _ = inner.notices.send(Notice::WatchRestored);
                }
                if event == Event::Init && state != WatchState::Starting {
                    inner.lease.relisted();
                }
                let round_trip = match &mut first_listing {
                    Some(listing) => listing.note(&event, now - started),
                    None => None,
                };
                if state != WatchState::Live || event == Event::InitDone {
                    live_since = now;
                }
                if let Some(round_trip) = round_trip {
                    first_listing = None;
                    inner.lease.echo_hint(round_trip);
                }
                inner.event(event, now, live_since);
            }
            Err(error) => {
                inner.keys.lock().watches = false;
                tracing::warn!(prefix = %inner.prefix, %error, "the watch was interrupted: blind until it is back");
                if !matches!(*inner.watch_state.lock(), WatchState::Resuming { .. }) {
                    inner.set_watch_state(WatchState::Resuming { since: now });
                }
                let _ = inner.notices.send(Notice::WatchInterrupted { error: Arc::new(error) });
            }
        }
    }
}

/// Reports the end of the watch and of the lease when the guard's task ends, however it ends. The
/// death of its runtime drops it.
struct EndGuard<S: Store> {
    guard: Weak<Inner<S>>,
    task: Weak<WatchTask>,
}

impl<S: Store> Drop for EndGuard<S> {
    fn drop(&mut self) {
        // Without handles, nobody asks for the state of the watch.
        let Some((inner, _task)) = self.guard.upgrade().zip(self.task.upgrade()) else { return };
        inner.end_watch();
        // A runtime that dies drops its tasks in any order: the driver may still be there.
        let guard = self.guard.clone();
        inner.lease.when_closed(move |closed| {
            if let Some(inner) = guard.upgrade() {
                inner.close(closed);
            }
        });
    }
}

impl<S: Store> Inner<S> {
    fn event(self: &Arc<Self>, event: Event, arrived: Instant, live_since: Instant) {
        let (arrived, live_since) = (self.timestamp(arrived), self.timestamp(live_since));
        match event {
            Event::Init => self.keys.lock().begin_listing(),
            Event::InitEntry(entry) => {
                let change = Change::listed(Some((entry.value, entry.version)), arrived);
                self.take_in(&entry.key, change);
            }
            Event::InitDone => {
                let absent = self.keys.lock().end_listing();
                for key in absent {
                    self.take_in(&key, Change::listed(None, arrived));
                }
                let pending = self.keys.lock().finish_listing();
                pending.iter().for_each(|key| self.assess(key));
                self.set_watch_state(WatchState::Live);
            }
            Event::Resumed => {}
            Event::Put(entry) => {
                let change = Change::new(Some(entry.value), entry.version, arrived);
                self.take_in(&entry.key, change.live_since(live_since));
            }
            Event::Delete { key, version } => {
                self.take_in(&key, Change::new(None, version, arrived).live_since(live_since));
            }
        }
    }

    /// Reports that the watch ended for good, once.
    fn end_watch(&self) {
        if matches!(*self.watch_state.lock(), WatchState::Ended { .. }) {
            return;
        }
        self.keys.lock().watches = false;
        tracing::error!(prefix = %self.prefix, "the watch ended: blind from now on");
        self.set_watch_state(WatchState::Ended { since: clock::now() });
        let _ = self.notices.send(Notice::WatchEnded);
    }

    fn set_watch_state(&self, state: WatchState) {
        *self.watch_state.lock() = state;
        self.reporter.set(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Entry, Version};

    #[test]
    fn long_listing_is_many_round_trips() {
        let entry = || {
            Event::InitEntry(Entry { key: "key".into(), value: "value".into(), version: Version::ordered(1) })
        };
        for (entries, round_trips) in [(0, 1), (63, 1), (64, 2), (6_400, 101)] {
            let (mut listing, second) = (FirstListing::default(), Duration::from_secs(1));
            assert_eq!(listing.note(&Event::Init, second), None);
            for _ in 0..entries {
                assert_eq!(listing.note(&entry(), 2 * second), None);
            }
            assert_eq!(listing.note(&Event::InitDone, 3 * second), Some(second / round_trips));
        }
    }
}
