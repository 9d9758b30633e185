//! The words in which an attempt reports its result.

use std::time::Duration;

/// The result of one attempt. The table in [`engine`](crate::engine) has the effect of each.
///
/// | finding of the job | outcome |
/// |---|---|
/// | it wrote, and the write succeeded | `Written` |
/// | the value was right already, and nothing shows who made it so | `Unchanged` |
/// | the value was right already, and a competitor made it so | `WrittenByOther` |
/// | the compare-and-write was refused | `Conflict` |
/// | the store did not answer, or not in time | `Failed` |
/// | the store denies the write: rights may be granted later | `Denied` |
/// | the store will never accept the write: give up this key alone | `Unchanged`, after reporting the error |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub enum Outcome {
    /// Our write succeeded: it renews our lease.
    Written,
    /// The job found that another replica is the writer: the lease is theirs.
    WrittenByOther,
    /// The write was refused because the object had changed, whoever changed it. This says nothing
    /// about the lease. The key is tried again after a short backoff of its own.
    Conflict,
    /// There was nothing to write.
    Unchanged,
    /// The store denied the request: an answer, and no failure of the store. It says nothing about
    /// the lease. The key stays pending and is tried again after a minute, because rights are granted
    /// without an event.
    Denied,
    /// The attempt learnt nothing: the store was unreachable, or the answer was lost. The key is
    /// tried again after a backoff that grows up to the retry interval. If different keys fail and
    /// none is answered in between, all attempts pause.
    Failed,
}

/// The future of a job after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Next {
    /// The job is finished and leaves the queue.
    Done,
    /// The job is tried again: after a refusal or a failure when its backoff ends, after a denial in a
    /// minute, otherwise after the retry interval.
    Retry,
    /// The job is tried again after this time.
    RetryAfter(Duration),
}

/// The answer of an attempt: its [`Outcome`], and what to do [`Next`].
///
/// An outcome alone is a verdict, too. A refusal, a failure or a denial is then tried again; any other
/// outcome finishes the job.
///
/// ```
/// use std::time::Duration;
/// use writerlease::{Next, Outcome, Verdict};
///
/// assert_eq!(Verdict::from(Outcome::Written).next, Next::Done);
/// assert_eq!(Verdict::from(Outcome::Conflict).next, Next::Retry);
///
/// // The write succeeded, and the object must be checked again in a second.
/// let verdict = Outcome::Written.retry_after(Duration::from_secs(1));
/// assert_eq!(verdict.next, Next::RetryAfter(Duration::from_secs(1)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub struct Verdict {
    /// The result of the attempt.
    pub outcome: Outcome,
    /// The future of the job.
    pub next: Next,
    /// For [`Outcome::Written`] on a store that orders its writes: the position of the write in
    /// that order. Evidence from before the write that made us leader is ignored.
    pub revision: Option<u64>,
}

impl Outcome {
    /// Returns a verdict that finishes the job, whatever the outcome.
    pub fn done(self) -> Verdict {
        Verdict { outcome: self, next: Next::Done, revision: None }
    }

    /// Returns a verdict that tries the job again, with the delay of [`Next::Retry`].
    pub fn retry(self) -> Verdict {
        Verdict { outcome: self, next: Next::Retry, revision: None }
    }

    /// Returns a verdict that tries the job again after `delay`. After [`Outcome::Failed`] it waits
    /// at least as long as with [`Next::Retry`].
    pub fn retry_after(self, delay: Duration) -> Verdict {
        Verdict { outcome: self, next: Next::RetryAfter(delay), revision: None }
    }
}

impl Verdict {
    /// Returns the verdict with the position of the write in the store's order of writes.
    pub fn at_revision(self, revision: Option<u64>) -> Self {
        Self { revision, ..self }
    }
}

impl From<Outcome> for Verdict {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Conflict | Outcome::Failed | Outcome::Denied => outcome.retry(),
            Outcome::Written | Outcome::WrittenByOther | Outcome::Unchanged => outcome.done(),
        }
    }
}
