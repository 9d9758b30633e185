//! What a work is and what its attempts teach.

use std::time::Duration;

/// What one attempt taught us. The words are those of the lease: see the table in [`engine`](crate::engine).
///
/// | what a work found | outcome |
/// |---|---|
/// | it wrote, and the store took it | `Extend` |
/// | it was as wanted already, and nothing tells who made it so | `Unchanged` |
/// | it was as wanted already, and a competitor made it so | `Release` |
/// | the compare-and-write was refused | `Conflict` |
/// | the store did not answer, or not in time | `Failed` |
/// | the store will never take it: give up this key alone | `Unchanged`, and tell somebody |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub enum Outcome {
    /// Our write landed: it renews our lease.
    Extend,
    /// The work found that somebody else is the writer: their lease.
    Release,
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
/// assert_eq!(Verdict::from(Outcome::Extend).next, Next::Done);
/// assert_eq!(Verdict::from(Outcome::Conflict).next, Next::Retry);
///
/// // The write landed, and the object must be looked at again in a second.
/// let verdict = Outcome::Extend.retry_after(Duration::from_secs(1));
/// assert_eq!(verdict.next, Next::RetryAfter(Duration::from_secs(1)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub struct Verdict {
    /// What the attempt taught us.
    pub outcome: Outcome,
    /// What becomes of the work.
    pub next: Next,
    /// For [`Outcome::Extend`] on a store that orders its writes: the position of the write in that order. Evidence that
    /// is older than the write that made us leader is none.
    pub order: Option<u64>,
}

impl Outcome {
    /// The work is finished, whatever the outcome.
    pub fn done(self) -> Verdict {
        Verdict { outcome: self, next: Next::Done, order: None }
    }

    /// The work is to be tried again.
    pub fn retry(self) -> Verdict {
        Verdict { outcome: self, next: Next::Retry, order: None }
    }

    /// The work is to be tried again after `delay`.
    pub fn retry_after(self, delay: Duration) -> Verdict {
        Verdict { outcome: self, next: Next::RetryAfter(delay), order: None }
    }
}

impl Verdict {
    /// Adds the position of the write in the store's order of writes.
    pub fn at_order(self, order: Option<u64>) -> Self {
        Self { order, ..self }
    }
}

impl From<Outcome> for Verdict {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Conflict | Outcome::Failed => outcome.retry(),
            Outcome::Extend | Outcome::Release | Outcome::Unchanged => outcome.done(),
        }
    }
}

#[cfg(feature = "tokio")]
pub use attempt::{Attempt, limit_retries};

#[cfg(feature = "tokio")]
mod attempt {
    use std::{fmt, sync::Arc};

    use tokio_util::sync::CancellationToken;

    use super::{Next, Verdict};
    use crate::{driver::Moment, store::Fence};

    /// One run of a work: what it may want to know about itself.
    ///
    /// Long preparation should watch [`cancelled`](Attempt::cancelled) and stop before it is stale. A write that was sent
    /// is better awaited to its end: to drop it only makes it unknown whether it landed.
    ///
    /// ```
    /// use writerlease::{Attempt, Outcome};
    /// # async fn prepare() -> Vec<u8> { Vec::new() }
    /// # async fn write(_: &str, _: Vec<u8>) {}
    ///
    /// async fn work(attempt: Attempt<String>) -> Outcome {
    ///     let value = tokio::select! {
    ///         value = prepare() => value,
    ///         () = attempt.cancelled() => return Outcome::Conflict, // too late: prepare again, from the start
    ///     };
    ///     write(attempt.key(), value).await;
    ///     Outcome::Extend
    /// }
    /// ```
    #[derive(Clone)]
    pub struct Attempt<K> {
        key: K,
        number: u32,
        epoch: u64,
        deadline: Moment,
        reign: Arc<CancellationToken>,
        fence: Option<Arc<Fence>>,
    }

    impl<K> Attempt<K> {
        pub(crate) fn new(
            key: K,
            number: u32,
            epoch: u64,
            deadline: Moment,
            reign: Arc<CancellationToken>,
            fence: Option<Arc<Fence>>,
        ) -> Self {
            Self { key, number, epoch, deadline, reign, fence }
        }

        /// The key whose work this is.
        pub fn key(&self) -> &K {
            &self.key
        }

        /// Counts the attempts of this work, from 1.
        pub fn number(&self) -> u32 {
            self.number
        }

        /// How many times this process had become leader when the attempt started.
        pub fn epoch(&self) -> u64 {
            self.epoch
        }

        /// When the attempt stops holding its slot.
        pub fn deadline(&self) -> Moment {
            self.deadline
        }

        /// What its writes should carry, if the lease [follows](crate::WriterLease::follow) an election.
        pub fn fence(&self) -> Option<&Fence> {
            self.fence.as_deref()
        }

        /// Whether the role in which the attempt started was lost, or the deadline has passed.
        pub fn is_cancelled(&self) -> bool {
            self.reign.is_cancelled() || self.deadline.has_passed()
        }

        /// Waits until the role in which the attempt started is lost, the deadline passes, or the lease is shut down and
        /// its grace is over. Cancel safe.
        pub async fn cancelled(&self) {
            tokio::select! {
                () = self.reign.cancelled() => {}
                () = self.deadline.passed() => {}
            }
        }
    }

    impl<K: fmt::Debug> fmt::Debug for Attempt<K> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Attempt")
                .field("key", &self.key)
                .field("number", &self.number)
                .field("epoch", &self.epoch)
                .field("deadline", &self.deadline)
                .finish_non_exhaustive()
        }
    }

    /// Wraps a work so that it is given up after `retries` retries: `retries + 1` attempts in all.
    ///
    /// ```
    /// use writerlease::{Outcome, limit_retries};
    /// # async fn f(lease: writerlease::WriterLease<String>) -> Result<(), writerlease::Ended> {
    /// lease.try_work("key".into(), limit_retries(3, |_| async { Outcome::Failed }))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn limit_retries<K, F, T, V>(
        retries: u32,
        mut work: F,
    ) -> impl FnMut(Attempt<K>) -> std::pin::Pin<Box<dyn Future<Output = Verdict> + Send>> + Send
    where
        F: FnMut(Attempt<K>) -> T + Send,
        T: Future<Output = V> + Send + 'static,
        V: Into<Verdict>,
    {
        move |attempt| {
            let last = attempt.number() > retries;
            let run = work(attempt);
            Box::pin(async move {
                let verdict = run.await.into();
                if last { Verdict { next: Next::Done, ..verdict } } else { verdict }
            })
        }
    }
}
