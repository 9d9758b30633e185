//! What a work is and what its attempts teach.

use std::time::Duration;

/// What one attempt taught us. The words are those of the lease: see the table in [`engine`](crate::engine).
///
/// | what a work found | outcome |
/// |---|---|
/// | it wrote, and the store took it | `Written` |
/// | it was as wanted already, and nothing tells who made it so | `Unchanged` |
/// | it was as wanted already, and a competitor made it so | `WrittenByOther` |
/// | the compare-and-write was refused | `Conflict` |
/// | the store did not answer, or not in time | `Failed` |
/// | the store will never take it: give up this key alone | `Unchanged`, and tell somebody |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub enum Outcome {
    /// Our write landed: it renews our lease.
    Written,
    /// The work found that somebody else is the writer: their lease.
    WrittenByOther,
    /// The write was refused because the object had changed, whoever changed it. Says nothing about the lease; the key is
    /// tried again after a short backoff of its own.
    Conflict,
    /// There was nothing to write.
    Unchanged,
    /// Nothing was learnt: the store was unreachable, it denied the request, or the answer was lost. All attempts pause
    /// for a moment that grows up to the retry interval.
    Failed,
}

/// What becomes of the work after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Next {
    /// It is finished and leaves the queue.
    Done,
    /// It is tried again: after a refusal or a failure as soon as the backoff allows, otherwise after the retry interval.
    Retry,
    /// It is tried again after this time.
    RetryAfter(Duration),
}

/// An [`Outcome`] and what to do [`Next`]; what an attempt returns.
///
/// An outcome alone is a verdict, too: a refusal or a failure is tried again, everything else is done.
///
/// ```
/// use std::time::Duration;
/// use writerlease::{Next, Outcome, Verdict};
///
/// assert_eq!(Verdict::from(Outcome::Written).next, Next::Done);
/// assert_eq!(Verdict::from(Outcome::Conflict).next, Next::Retry);
///
/// // The write landed, and the object must be looked at again in a second.
/// let verdict = Outcome::Written.retry_after(Duration::from_secs(1));
/// assert_eq!(verdict.next, Next::RetryAfter(Duration::from_secs(1)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub struct Verdict {
    /// What the attempt taught us.
    pub outcome: Outcome,
    /// What becomes of the work.
    pub next: Next,
    /// For [`Outcome::Written`] on a store that orders its writes: the position of the write in that order. Evidence that
    /// is older than the write that made us leader is none.
    pub revision: Option<u64>,
}

impl Outcome {
    /// The work is finished, whatever the outcome.
    pub fn done(self) -> Verdict {
        Verdict { outcome: self, next: Next::Done, revision: None }
    }

    /// The work is to be tried again.
    pub fn retry(self) -> Verdict {
        Verdict { outcome: self, next: Next::Retry, revision: None }
    }

    /// The work is to be tried again after `delay`.
    pub fn retry_after(self, delay: Duration) -> Verdict {
        Verdict { outcome: self, next: Next::RetryAfter(delay), revision: None }
    }
}

impl Verdict {
    /// Adds the position of the write in the store's order of writes.
    pub fn at_revision(self, revision: Option<u64>) -> Self {
        Self { revision, ..self }
    }
}

impl From<Outcome> for Verdict {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Conflict | Outcome::Failed => outcome.retry(),
            Outcome::Written | Outcome::WrittenByOther | Outcome::Unchanged => outcome.done(),
        }
    }
}
