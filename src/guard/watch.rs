//! The task that takes in the changes of the watch.

use std::{
    pin::pin,
    sync::{Arc, Weak},
};

use futures_util::{Stream, StreamExt};
use tokio::time::Instant;

use super::{Inner, Notice};
use crate::{
    clock,
    object::Change,
    status::{LeaseClosed, WatchState},
    store::{Event, Store, StoreError},
};

/// Takes changes in until the guard, the watch or the lease is gone.
pub(super) async fn run<S: Store>(
    guard: Weak<Inner<S>>,
    changes: impl Stream<Item = Result<Event, StoreError>>,
) {
    let mut changes = pin!(changes);
    let Some(mut lease) = guard.upgrade().map(|inner| inner.lease.subscribe()) else { return };
    let started = clock::now();
    loop {
        let change = tokio::select! {
            change = changes.next() => change,
            closed = lease.wait_for(|status| status.closed.is_some()) => {
                let closed = closed.ok().and_then(|status| status.closed).unwrap_or(LeaseClosed::DriverDied);
                if let Some(inner) = guard.upgrade() {
                    inner.close(closed);
                }
                return;
            }
        };
        let Some(inner) = guard.upgrade() else { return };
        let now = clock::now();
        match change {
            Some(Ok(event)) => {
                let state = *inner.watch_state.lock();
                if matches!(state, WatchState::Resuming { .. }) {
                    inner.set_watch_state(WatchState::Live);
                    let _ = inner.notices.send(Notice::WatchRestored);
                }
                if event == Event::Init && state == WatchState::Starting {
                    // The first answer of the store shows how far away it is.
                    inner.lease.echo_hint(now - started);
                }
                inner.event(event, now);
            }
            Some(Err(error)) => {
                tracing::warn!(prefix = %inner.prefix, %error, "the watch was interrupted: blind until it is back");
                if !matches!(*inner.watch_state.lock(), WatchState::Resuming { .. }) {
                    inner.set_watch_state(WatchState::Resuming { since: now });
                }
                let _ = inner.notices.send(Notice::WatchInterrupted { error: Arc::new(error) });
            }
            None => {
                tracing::error!(prefix = %inner.prefix, "the watch ended: blind from now on");
                inner.set_watch_state(WatchState::Ended { since: now });
                let _ = inner.notices.send(Notice::WatchEnded);
                return;
            }
        }
    }
}

impl<S: Store> Inner<S> {
    fn event(self: &Arc<Self>, event: Event, arrived: Instant) {
        let arrived = self.timestamp(arrived);
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
                self.set_watch_state(WatchState::Live);
            }
            Event::Resumed => {}
            Event::Put(entry) => {
                self.take_in(&entry.key, Change::new(Some(entry.value), entry.version, arrived));
            }
            Event::Delete { key, version } => self.take_in(&key, Change::new(None, version, arrived)),
        }
    }

    fn set_watch_state(&self, state: WatchState) {
        *self.watch_state.lock() = state;
        self.reporter.set(state);
    }
}
