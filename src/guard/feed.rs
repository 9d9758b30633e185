//! The watch's side of the guard: what a change of a key means for the work that is pending on it.

use std::{
    pin::pin,
    sync::{Arc, Weak},
};

use futures_util::{Stream, StreamExt};
use tokio::time::Instant;

use super::{
    EnsureOutcome, Inner, Notice,
    book::{Age, Change},
};
use crate::{
    clock,
    status::{LeaseClosed, WatchState},
    store::{Event, Store, StoreError},
};

/// WatchStates changes to the guard until the guard, the watch or the lease is gone.
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
            ended = lease.wait_for(|status| status.closed.is_some()) => {
                let ended = ended.ok().and_then(|status| status.closed).unwrap_or(LeaseClosed::DriverDied);
                if let Some(inner) = guard.upgrade() {
                    inner.end(ended);
                }
                return;
            }
        };
        let Some(inner) = guard.upgrade() else { return };
        let now = clock::now();
        match change {
            Some(Ok(event)) => {
                let feed = *inner.watch_state.lock();
                if matches!(feed, WatchState::Resuming { .. }) {
                    inner.set_watch_state(WatchState::Live);
                    let _ = inner.notices.send(Notice::WatchRestored);
                }
                if event == Event::Init && feed == WatchState::Starting {
                    // The first answer of the store tells how far away it is.
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
        match event {
            Event::Init => self.book.lock().begin_listing(),
            Event::InitEntry(entry) => {
                self.book.lock().seen_in_listing(&entry.key);
                let (value, version) = (Some(entry.value), Some(entry.version));
                self.apply(&entry.key, Change { arrived, value, version, listing: true }, false);
            }
            Event::InitDone => {
                let absent = self.book.lock().end_listing();
                for key in absent {
                    self.apply(&key, Change { arrived, value: None, version: None, listing: true }, false);
                }
                self.set_watch_state(WatchState::Live);
            }
            Event::Resumed => {}
            Event::Put(entry) => {
                let (value, version) = (Some(entry.value), Some(entry.version));
                self.apply(&entry.key, Change { arrived, value, version, listing: false }, false);
            }
            Event::Delete { key, version } => {
                let version = Some(version);
                self.apply(&key, Change { arrived, value: None, version, listing: false }, false);
            }
        }
    }

    /// The attempt of a key is over: its changes are looked at now, in order.
    pub(super) fn land(self: &Arc<Self>, key: &Arc<str>) {
        loop {
            let held = {
                let mut book = self.book.lock();
                let Some(page) = book.existing(key) else { return };
                if page.held.is_empty() {
                    page.flying = false;
                    book.tidy(key);
                    return;
                }
                std::mem::take(&mut page.held)
            };
            for change in held {
                self.apply(key, change, true);
            }
        }
    }

    /// Takes in a change. While an attempt of the key is out it waits, unless that is `landing`: it may be the attempt's own
    /// write, overtaking the answer.
    fn apply(self: &Arc<Self>, key: &Arc<str>, change: Change, landing: bool) {
        loop {
            // The closures are the user's: they are asked outside of the lock, and again if the question changed meanwhile.
            let (wants, earlier) = {
                let mut book = self.book.lock();
                let page = book.page(key);
                (page.wants(), page.earlier.clone())
            };
            let right = wants.satisfied_by(change.value.as_ref());
            let was_wanted = earlier.as_ref().and_then(|earlier| earlier.satisfied_by(change.value.as_ref()));
            let mut book = self.book.lock();
            let page = book.page(key);
            if page.flying && !landing {
                page.held.push(change);
                return;
            }
            if !wants.are_those_of(page) {
                continue;
            }
            if let Some((version, started)) = &page.echo
                && change.version.as_ref() == Some(version)
            {
                self.lease.echo(change.arrived - *started);
                page.echo = None;
            }
            match page.age(&change) {
                Age::Older | Age::Unclear => {}
                Age::Known => page.caught_up(),
                Age::Newer => {
                    page.moves_on();
                    let ours = page.lost.take().is_some_and(|lost| change.value.as_ref() == Some(&lost));
                    let was_wrong = page.wrong;
                    let after = change.value.as_ref().zip(change.version.as_ref());
                    // The store is asked last, and not at all where nobody wants to know.
                    let is_rivals =
                        !ours && !change.listing && !page.parts.is_empty() && self.competes(page, after);
                    page.record(&change);
                    match right {
                        Some(true) if !page.parts.is_empty() => page.right = change.value.clone(),
                        // Another object of the same name is none that somebody changed.
                        _ if change.value.is_none() => page.right = None,
                        _ => {}
                    }
                    match right {
                        _ if page.parts.is_empty() => {}
                        // As we want it, but did anybody else make it so, just now?
                        Some(true) if was_wrong && is_rivals => {
                            self.lease.extend_at(key, change.revision());
                            book.settle(key, |_| true, |_| EnsureOutcome::ByOther);
                        }
                        Some(true) => {
                            self.lease.remove(key);
                            let ending = match change.version.clone() {
                                Some(version) if ours => EnsureOutcome::Written(version),
                                _ => EnsureOutcome::Satisfied,
                            };
                            book.settle(key, |_| true, |_| ending.clone());
                        }
                        // Not what we want by now, but what we wanted first: they work, and our want is a new one.
                        Some(false) if was_wanted == Some(true) && is_rivals => {
                            page.wrong = true;
                            page.earlier = None;
                            self.lease.extend_at(key, change.revision());
                            // If the lease has ended, those who wait will be told.
                            let _ = self.queue(key);
                        }
                        Some(false) => page.wrong = true,
                        None => {}
                    }
                }
            }
            book.tidy(key);
            return;
        }
    }

    fn set_watch_state(&self, feed: WatchState) {
        *self.watch_state.lock() = feed;
        self.reporter.set(feed);
    }

    /// The lease takes no more work.
    fn end(&self, ended: LeaseClosed) {
        // Users' closures, dropped when the lock is released.
        let settled = self.book.lock().settle_all(|| EnsureOutcome::LeaseClosed(ended));
        drop(settled);
    }
}
