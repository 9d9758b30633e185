//! One attempt of a key: read, ask, write if that changes something.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    EnsureOutcome, Inner, Notice,
    book::{Page, Part, Wants},
};
use crate::{
    clock::{self, Moment},
    engine::outcome::{Outcome, Verdict},
    store::{Entry, Expected, Fence, Store, StoreError, Version},
};

impl<S: Store> Inner<S> {
    /// Queues a part's work.
    pub(super) fn want(self: &Arc<Self>, key: &Arc<str>, part: Part) {
        let name = part.name.clone();
        // Declared before the lock is taken, so that users' closures are dropped after it is released.
        let (_replaced, _settled);
        {
            // One lock over book and lease: a change must not clear what is only in one of them.
            let mut book = self.book.lock();
            let page = book.page(key);
            if page.wrong && page.earlier.is_none() && !page.parts.is_empty() {
                page.earlier = Some(page.wants());
            }
            _replaced = match page.parts.iter().position(|old| old.name == name) {
                Some(old) => {
                    Some(std::mem::replace(&mut page.parts[old], part).end(EnsureOutcome::Superseded))
                }
                None => {
                    page.parts.push(part);
                    None
                }
            };
            _settled = self
                .queue(key)
                .map_err(|ended| book.settle(key, |_| true, |_| EnsureOutcome::LeaseClosed(ended)));
        }
        self.assess(key);
    }

    pub(super) fn queue(self: &Arc<Self>, key: &Arc<str>) -> Result<(), crate::LeaseClosed> {
        // Pending work must not keep the guard alive, nor with it the lease that it is pending in.
        let (inner, name) = (Arc::downgrade(self), key.clone());
        self.lease.try_work(key.clone(), move |attempt| {
            let (inner, key) = (inner.upgrade(), name.clone());
            async move {
                match inner {
                    Some(inner) => inner.attempt(key, attempt.fence()).await,
                    None => Outcome::Unchanged.done(),
                }
            }
        })
    }

    /// Notes whether the last state that we saw of a key is as its parts want it: evidence is a change from wrong to right.
    fn assess(&self, key: &Arc<str>) {
        // Users' closures are dropped after the lock is released.
        let _settled;
        loop {
            let (wants, known) = {
                let mut book = self.book.lock();
                let Some(page) = book.existing(key) else { return };
                let Some(known) = page.known.clone() else {
                    page.wrong = false;
                    return;
                };
                (page.wants(), known)
            };
            let verdict = wants.judge(known.value.as_ref());
            let mut book = self.book.lock();
            let Some(page) = book.existing(key) else { return };
            let same = page.known.as_ref().is_some_and(|now| now.version == known.version);
            if wants.are_those_of(page) && same {
                page.wrong = verdict.as_ref().is_some_and(|asked| !asked.is_satisfied());
                if let Some(wanted) = verdict.and_then(|asked| asked.write)
                    && let Some(until) = self.contended_until(key, page, &wanted)
                {
                    self.lease.remove(key);
                    _settled = book.settle(key, |_| true, |_| EnsureOutcome::Contended { until });
                }
                return;
            }
        }
    }

    async fn attempt(self: Arc<Self>, key: Arc<str>, fence: Option<&Fence>) -> Verdict {
        // The copies also see to it that users' closures are dropped when no lock is held, at the end of the attempt.
        let (wants, _earlier) = {
            let mut book = self.book.lock();
            let page = book.page(&key);
            page.flying = true;
            (page.wants(), page.earlier.clone())
        };
        // However the attempt ends, also by a panic of a closure, the changes that waited for it are looked at.
        let _landing = Landing { inner: &self, key: &key };
        match self.store.get(&key).await {
            Err(error) => self.refused(&key, &wants, error),
            Ok(entry) => self.write(&key, &wants, entry, fence).await,
        }
    }

    async fn write(
        self: &Arc<Self>,
        key: &Arc<str>,
        wants: &Wants,
        entry: Option<Entry>,
        fence: Option<&Fence>,
    ) -> Verdict {
        let current = entry.as_ref().map(|entry| &entry.value);
        let asked = wants.ask(current);
        if !asked.gone.is_empty() {
            self.book.lock().settle(key, |part| asked.gone.contains(&part.serial), |_| EnsureOutcome::Gone);
        }
        let Some(value) = asked.write else {
            return self.nothing_to_write(key, wants, entry, asked.is_satisfied());
        };
        {
            let mut book = self.book.lock();
            let page = book.page(key);
            page.learn(entry.as_ref());
            page.wrong = true;
            if let Some(until) = self.contended_until(key, page, &value) {
                book.settle(key, |part| wants.includes(part.serial), |_| EnsureOutcome::Contended { until });
                return Outcome::Unchanged.done();
            }
        }
        let expected = entry.map_or(Expected::Absent, |entry| Expected::Version(entry.version));
        let started = clock::now();
        match self.store.put(key, value.clone(), expected, fence).await {
            Ok(version) => {
                let mut book = self.book.lock();
                let page = book.page(key);
                page.wrote(value, version.clone(), started);
                let written = |part: &Part| match asked.changed.contains(&part.serial) {
                    true => EnsureOutcome::Written(version.clone()),
                    false => EnsureOutcome::Satisfied,
                };
                book.settle(key, |part| wants.includes(part.serial), written);
                Outcome::Written.done().at_revision(version.revision())
            }
            Err(StoreError::Conflict { .. }) => {
                tracing::debug!(%key, "refused as stale; reading again");
                Outcome::Conflict.retry()
            }
            Err(error) => {
                if matches!(error, StoreError::Unavailable { .. }) {
                    self.book.lock().page(key).lost = Some(value);
                }
                self.refused(key, wants, error)
            }
        }
    }

    /// It is right; or, if the work is not `done`, the object is not there that was to be right.
    fn nothing_to_write(
        self: &Arc<Self>,
        key: &Arc<str>,
        wants: &Wants,
        entry: Option<Entry>,
        done: bool,
    ) -> Verdict {
        let mut book = self.book.lock();
        let page = book.page(key);
        let known = page.known.as_ref().and_then(|known| known.version.clone());
        let version = entry.as_ref().map(|entry| entry.version.clone());
        let ours =
            page.lost.take().is_some_and(|lost| entry.as_ref().is_some_and(|entry| entry.value == lost));
        let after = entry.as_ref().map(|entry| (&entry.value, &entry.version));
        // Somebody made it right since we last saw it wrong. A first look says nothing, and whoever deletes an object does
        // not do our work.
        let by_other = done && page.wrong && !ours && known != version && self.competes(page, after);
        page.learn(entry.as_ref());
        page.right = entry.map(|entry| entry.value).filter(|_| done);
        page.earlier = None;
        let ending = match &version {
            Some(version) if ours => EnsureOutcome::Written(version.clone()),
            _ if by_other => EnsureOutcome::ByOther,
            _ => EnsureOutcome::Satisfied,
        };
        book.settle(key, |part| wants.includes(part.serial), |_| ending.clone());
        if by_other {
            self.lease.extend_at(key, version.as_ref().and_then(Version::revision));
            if book.is_pending(key) {
                // That cleared what came in meanwhile, too. The lease may have ended; then the feed tells those who wait.
                let _ = self.queue(key);
            }
        }
        Outcome::Unchanged.done()
    }

    /// Whether somebody who does the same work made a key what it is now.
    pub(super) fn competes(&self, page: &Page, after: Option<(&Bytes, &Version)>) -> bool {
        let before = page.known.as_ref().and_then(|known| known.value.as_deref());
        after.is_none_or(|(after, version)| self.store.competes(before, after, version))
    }

    /// Until when a key is left alone although `wanted` is to be written, because somebody else writes something else again
    /// and again.
    fn contended_until(&self, key: &Arc<str>, page: &mut Page, wanted: &Bytes) -> Option<Moment> {
        // It is wanted again, so somebody changed it; unless something else is wanted now, which the tracker sees next.
        if let Some(right) = page.right.take() {
            self.contention.lost(key.clone(), right);
        }
        let until = self.contention.contended_until(key, wanted)?;
        // Nobody has to listen.
        let _ = self.notices.send(Notice::Contended { key: key.clone(), until });
        Some(until)
    }

    /// The store did not do it.
    fn refused(&self, key: &Arc<str>, wants: &Wants, error: StoreError) -> Verdict {
        let error = Arc::new(error);
        let (ending, verdict) = match *error {
            StoreError::Conflict { .. } | StoreError::Unavailable { .. } => {
                tracing::debug!(%key, %error, "nothing was learnt; trying again");
                return Outcome::Failed.retry();
            }
            StoreError::Fenced { .. } => {
                tracing::warn!(%key, %error, "a write came too late; another leads");
                return Outcome::WrittenByOther.retry();
            }
            StoreError::Denied { .. } => (EnsureOutcome::Denied(error.clone()), Outcome::Failed.done()),
            StoreError::TooLarge { .. } => {
                (EnsureOutcome::TooLarge(error.clone()), Outcome::Unchanged.done())
            }
            StoreError::Invalid { .. } => (EnsureOutcome::Invalid(error.clone()), Outcome::Unchanged.done()),
        };
        tracing::warn!(%key, %error, "the store refuses for good; the key's work is given up");
        {
            let mut book = self.book.lock();
            #[cfg(feature = "kube")]
            {
                let page = book.page(key);
                let version = page.known.as_ref().and_then(|known| known.version.clone());
                page.refusal = Some((version, error.clone()));
            }
            book.settle(key, |part| wants.includes(part.serial), |_| ending.clone());
        }
        // Nobody has to listen.
        let _ = self.notices.send(Notice::Refused { key: key.clone(), error });
        verdict
    }
}

struct Landing<'a, S: Store> {
    inner: &'a Arc<Inner<S>>,
    key: &'a Arc<str>,
}

impl<S: Store> Drop for Landing<'_, S> {
    fn drop(&mut self) {
        self.inner.land(self.key);
    }
}
