//! The guard's calls of the store: one attempt of a key reads it, evaluates the wishes, and writes
//! if they want that.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    EnsureOutcome, Inner, Notice,
    keys::{Guarded, Object, never_content},
};
use crate::{
    clock,
    driver::panic_message,
    engine::outcome::{Outcome, Verdict},
    object::{Answer, Evaluation, Step, Wishes},
    status::LeaseClosed,
    store::{Entry, Expected, Fence, Store, StoreError, Version},
};

impl<S: Store> Inner<S> {
    /// Hands the key's job to the lease.
    pub(super) fn queue(self: &Arc<Self>, key: &Arc<str>) -> Result<(), LeaseClosed> {
        // A pending job must not keep the guard alive, nor with it the lease that it is pending in.
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

    async fn attempt(self: Arc<Self>, key: Arc<str>, fence: Option<&Fence>) -> Verdict {
        // These copies are dropped at the end of the attempt, when no lock is held.
        let mut wishes = self.update_object(&key, |object| (object.handle_attempt(), Vec::new()));
        // The changes that wait for the attempt are taken in however it ends, also by a panic of a
        // closure.
        let _guard = AttemptGuard { inner: &self, key: &key };
        let read = match self.read(&key).await {
            Ok(read) => read,
            Err(error) => return self.refuse(&key, error),
        };
        let mut evaluation = self.evaluate(&key, &wishes, read.as_ref().map(|(value, _)| value));
        if let Some((resting, outcome)) = self.resting(&key, &wishes, &evaluation) {
            self.update_object(&key, |object| ((), object.handle_contention(&resting, Some(outcome))));
            wishes = wishes.without(&resting);
            if wishes.is_empty() {
                return Outcome::Unchanged.done();
            }
            evaluation = self.evaluate(&key, &wishes, read.as_ref().map(|(value, _)| value));
        }
        // Asked before the write, so that a slow closure does not come between it and its answer.
        let is_content = never_content(&wishes, &evaluation).is_empty();
        let before =
            self.keys.lock().get(&key).and_then(|object| object.before_read(read.as_ref(), &evaluation));
        let by_rival = before
            .zip(read.as_ref())
            .is_some_and(|(before, (value, version))| self.is_rival(&before, value, version));
        let started = self.timestamp(clock::now());
        let step = self.update(&key, |keys| {
            let (step, effects) = keys.object(&key).handle_read(started, read, evaluation, by_rival);
            if matches!(step, Step::Finish(_)) {
                keys.end_trouble(&key);
            }
            (step, effects)
        });
        let (value, expected) = match step {
            Step::Write { value, expected } => (value, expected),
            Step::Delete { expected } => {
                let deleted = self.store.delete(&key, &expected, fence).await;
                return match deleted {
                    Ok(()) => self.answer(&key, Answer::Deleted),
                    Err(error) => self.refuse(&key, error),
                };
            }
            Step::Finish(verdict) => return verdict,
        };
        if let Some(contended) = self.contended(&key, &value) {
            return self.answer(&key, Answer::Withheld(contended));
        }
        let expected = expected.map_or(Expected::Absent, Expected::Version);
        match self.store.put(&key, value, expected, fence).await {
            Ok(version) => {
                if !is_content {
                    self.rest(&key);
                }
                self.answer(&key, Answer::Written(version))
            }
            Err(error) => self.refuse(&key, error),
        }
    }

    /// Evaluates the wishes of an attempt, and reports a panic of a closure, which ends the attempt.
    fn evaluate(&self, key: &Arc<str>, wishes: &Wishes<Guarded>, read: Option<&Bytes>) -> Evaluation<Bytes> {
        catch_unwind(AssertUnwindSafe(|| wishes.evaluate(read))).unwrap_or_else(|panic| {
            self.panicked(key, panic_message(&*panic));
            resume_unwind(panic)
        })
    }

    /// Reads a key, and past the store's cache if that is behind the watch.
    async fn read(&self, key: &str) -> Result<Option<(Bytes, Version)>, StoreError> {
        let pair = |entry: Entry| (entry.value, entry.version);
        let read = self.store.get(key).await?.map(pair);
        let is_stale = |object: &Object| object.is_stale_read(read.as_ref());
        if !self.keys.lock().get(key).is_some_and(is_stale) {
            return Ok(read);
        }
        tracing::debug!(%key, "the store's cache is behind the watch; reading past it");
        Ok(self.store.get_uncached(key).await?.map(pair))
    }

    /// Takes in that the store did not do what an attempt asked for.
    fn refuse(self: &Arc<Self>, key: &Arc<str>, error: StoreError) -> Verdict {
        let answer = match error {
            StoreError::Conflict { .. } => {
                tracing::debug!(%key, "refused as stale; reading again");
                Answer::Conflict
            }
            StoreError::Unavailable { .. } => {
                tracing::debug!(%key, %error, "no answer; trying again");
                self.failed(key, error);
                return self.update_object(key, |object| object.handle_answer(Answer::Unanswered));
            }
            StoreError::Fenced { .. } => {
                tracing::warn!(%key, %error, "a write came too late; another replica leads");
                Answer::Fenced
            }
            // It is reported once, with the callers that are told of it.
            StoreError::Denied { .. } => {
                let error = Arc::new(error);
                self.denied(key, &error);
                let denied = Answer::Denied(EnsureOutcome::Denied(error));
                return self.update_object(key, |object| object.handle_answer(denied));
            }
            StoreError::TooLarge { .. } => Answer::Impossible(EnsureOutcome::TooLarge(Arc::new(error))),
            StoreError::Invalid { .. } => Answer::Impossible(EnsureOutcome::Invalid(Arc::new(error))),
        };
        self.answer(key, answer)
    }

    /// Takes in the store's answer to an attempt, or that it was not asked.
    fn answer(self: &Arc<Self>, key: &Arc<str>, answer: Answer<Guarded>) -> Verdict {
        if let Answer::Impossible(outcome) = &answer {
            self.report_refusal(key, outcome);
        }
        self.update(key, |keys| {
            keys.end_trouble(key);
            keys.object(key).handle_answer(answer)
        })
    }

    /// Reports that the store denied or refused requests.
    pub(super) fn report_refusal(&self, key: &Arc<str>, outcome: &EnsureOutcome) {
        if let Some(error) = outcome.refusal() {
            tracing::warn!(%key, %error, "the store refuses; a denied request is tried again each minute");
            // Nobody has to listen.
            let _ = self.notices.send(Notice::Refused { key: key.clone(), error: error.clone() });
        }
    }
}

/// Takes in the changes that waited for an attempt, once it is over.
struct AttemptGuard<'a, S: Store> {
    inner: &'a Arc<Inner<S>>,
    key: &'a Arc<str>,
}

impl<S: Store> Drop for AttemptGuard<'_, S> {
    fn drop(&mut self) {
        let next = || self.inner.update_object(self.key, |object| (object.poll_deferred(), Vec::new()));
        while let Some(change) = next() {
            self.inner.take_in(self.key, change);
        }
    }
}
