//! The troubles of pending keys, and the reasons for which they are not written.

use std::{fmt, sync::Arc};

use super::{Guard, Inner, Notice, keys::KeyTable, trouble::Trouble};
use crate::{
    clock::Moment,
    engine::Explanation,
    store::{Store, StoreError},
};

/// The reason for which a key is not written: the state of its job in the lease, and what the guard
/// knows of it.
///
/// [`Guard::explain`] returns it, and [`Notice::Stuck`] carries it. Its text is one line for people.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct KeyExplanation {
    /// The state of its job in the lease; `None` if it has none there.
    pub job: Option<Explanation>,
    /// The number of attempts in a row that the store did not answer.
    pub failures: u32,
    /// The store's last error, until it answers an attempt without one.
    pub error: Option<Arc<StoreError>>,
    /// The message of the panic of a closure, if the last attempt ended so.
    pub panic: Option<Arc<str>>,
    /// Until when the key is left alone, because another group wants another value; see
    /// [`EnsureOutcome::Contended`](crate::EnsureOutcome::Contended).
    pub contended_until: Option<Moment>,
    /// Until when the key rests, because its closure wants to change what it wrote itself; see
    /// [`EnsureOutcome::NeverContent`](crate::EnsureOutcome::NeverContent).
    pub rests_until: Option<Moment>,
}

/// How many attempts in a row the store must leave unanswered before that is worth a notice: one
/// may be an accident, and two the end of an outage.
const FAILURES: u32 = 3;

impl<S: Store> Guard<S> {
    /// Returns the reason for which a key is not written, `None` if it neither is pending nor is
    /// left alone for a while. The key is relative to the prefix.
    ///
    /// ```
    /// use writerlease::{Guard, store::Store};
    ///
    /// fn log(guard: &Guard<impl Store>, key: &str) {
    ///     match guard.explain(key) {
    ///         // such as "pending for 75.0s; attempted 2 times, and the store denied it; waits for its own next
    ///         // try, for 45.0s at most; the last error: denied: no rights"
    ///         Some(explanation) => println!("{key}: {explanation}"),
    ///         None => println!("{key}: nothing to do"),
    ///     }
    /// }
    /// ```
    pub fn explain(&self, key: &str) -> Option<KeyExplanation> {
        self.inner.explain(&self.inner.full(key))
    }
}

impl<S: Store> Inner<S> {
    fn explain(&self, key: &Arc<str>) -> Option<KeyExplanation> {
        let Trouble { failures, error, panic } =
            self.keys.lock().troubles.get(key).cloned().unwrap_or_default();
        let explanation = KeyExplanation {
            job: self.lease.explain(key),
            failures,
            error,
            panic,
            contended_until: self.contention.contended_now(key),
            rests_until: self.contention.rests_until(key),
        };
        let KeyExplanation { job, contended_until, rests_until, .. } = &explanation;
        (job.is_some() || contended_until.is_some() || rests_until.is_some()).then_some(explanation)
    }

    /// The lease is stuck: publishes why.
    pub(super) fn report_stuck(&self) {
        // If nothing is pending any more, the lease is not stuck either.
        let Some(key) = self.lease.oldest_pending() else { return };
        let Some(explanation) = self.explain(&key) else { return };
        tracing::debug!(%key, %explanation, "nothing succeeds although something is wanted");
        // Nobody has to listen.
        let _ = self.notices.send(Notice::Stuck { key, explanation });
    }

    /// The store denied an attempt of a key.
    pub(super) fn denied(&self, key: &Arc<str>, error: &Arc<StoreError>) {
        *self.keys.lock().trouble_mut(key) = Trouble { error: Some(error.clone()), ..Trouble::default() };
    }

    /// The store did not answer an attempt of a key.
    pub(super) fn failed(&self, key: &Arc<str>, error: StoreError) {
        let error = Arc::new(error);
        let mut keys = self.keys.lock();
        let trouble = keys.trouble_mut(key);
        trouble.failures = trouble.failures.saturating_add(1);
        (trouble.error, trouble.panic) = (Some(error.clone()), None);
        let failures = trouble.failures;
        drop(keys);
        if failures == FAILURES {
            tracing::warn!(%key, %error, failures, "the key keeps failing; it is tried again");
            // Nobody has to listen.
            let _ = self.notices.send(Notice::Failing { key: key.clone(), error });
        }
    }

    /// A closure panicked in an attempt of a key. The lease logs it.
    pub(super) fn panicked(&self, key: &Arc<str>, message: &str) {
        let message: Arc<str> = message.into();
        let before = self.keys.lock().trouble_mut(key).panic.replace(message.clone());
        if before.is_none() {
            // Nobody has to listen.
            let _ = self.notices.send(Notice::Panicked { key: key.clone(), message });
        }
    }
}

impl KeyTable {
    fn trouble_mut(&mut self, key: &Arc<str>) -> &mut Trouble {
        self.troubles.entry(key.clone()).or_default()
    }

    /// The store answered an attempt of a key.
    pub(super) fn end_trouble(&mut self, key: &str) {
        // Most attempts are answered, and meet an empty table.
        if !self.troubles.is_empty() {
            self.troubles.remove(key);
        }
    }

    /// Forgets the trouble of a key that nobody wants any more.
    pub(super) fn forget_trouble(&mut self, key: &str) {
        if !self.troubles.is_empty() && self.get(key).is_none_or(|object| object.requests().is_empty()) {
            self.troubles.remove(key);
        }
    }
}

impl fmt::Display for KeyExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.job {
            Some(job) => job.fmt(f)?,
            None => f.write_str("not pending")?,
        }
        if let Some(error) = &self.error {
            write!(f, "; the last error: {error}")?;
        }
        if let Some(panic) = &self.panic {
            write!(f, "; the closure panicked: {panic}")?;
        }
        if let Some(until) = self.contended_until {
            write!(f, "; contended for {:.1?} more", until.remaining())?;
        }
        if let Some(until) = self.rests_until {
            write!(f, "; rests for {:.1?} more, because its closure is never content", until.remaining())?;
        }
        Ok(())
    }
}
