//! One run of a job, as the job sees it.

use std::{fmt, sync::Arc};

use tokio_util::sync::CancellationToken;

use crate::{
    clock::Moment,
    engine::outcome::{Next, Verdict},
    store::Fence,
};

/// One run of a job: its key, its number and its time.
///
/// A job whose preparation takes long should watch [`cancelled`](Attempt::cancelled) and stop
/// before its result is stale. Once it has sent a write, it should await the answer: a write that
/// is dropped may still succeed, and then nobody knows.
///
/// ```
/// use writerlease::{Attempt, Outcome};
/// # async fn prepare() -> Vec<u8> { Vec::new() }
/// # async fn write(_: &str, _: Vec<u8>) {}
///
/// async fn job(attempt: Attempt<String>) -> Outcome {
///     let value = tokio::select! {
///         value = prepare() => value,
///         () = attempt.cancelled() => return Outcome::Conflict, // too late: prepare again, from the start
///     };
///     write(attempt.key(), value).await;
///     Outcome::Written
/// }
/// ```
#[derive(Clone)]
pub struct Attempt<K> {
    key: K,
    number: u32,
    epoch: u64,
    deadline: Moment,
    role_token: Arc<CancellationToken>,
    fence: Option<Arc<Fence>>,
}

impl<K> Attempt<K> {
    pub(super) fn new(
        key: K,
        number: u32,
        epoch: u64,
        deadline: Moment,
        role_token: Arc<CancellationToken>,
        fence: Option<Arc<Fence>>,
    ) -> Self {
        Self { key, number, epoch, deadline, role_token, fence }
    }

    /// Returns the key that the job is for.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// Returns the number of this attempt of the job, from 1.
    ///
    /// ```
    /// use writerlease::{Attempt, Outcome, Verdict};
    ///
    /// /// Gives up after the third attempt, as `limit_retries(2, ..)` does.
    /// fn verdict(attempt: &Attempt<String>, outcome: Outcome) -> Verdict {
    ///     if attempt.number() < 3 { outcome.into() } else { outcome.done() }
    /// }
    /// ```
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Returns how many times this process had become leader when the attempt started. An epoch
    /// names one leadership of this process; it says nothing about other processes.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns when the attempt stops holding its slot: its start plus the
    /// [`attempt_timeout`](crate::LeaseBuilder::attempt_timeout). The key stays blocked until the
    /// attempt returns.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use writerlease::{Attempt, Outcome};
    /// # async fn request(_timeout: Duration) -> Outcome { Outcome::Written }
    /// async fn job(attempt: Attempt<String>) -> Outcome {
    ///     request(attempt.deadline().remaining()).await
    /// }
    /// ```
    pub fn deadline(&self) -> Moment {
        self.deadline
    }

    /// Returns the fence that the attempt's writes should carry, if the lease
    /// [follows](crate::WriterLease::follow) an election.
    pub fn fence(&self) -> Option<&Fence> {
        self.fence.as_deref()
    }

    /// Returns whether the attempt should stop: the role in which it started was lost, its deadline
    /// has passed, or the lease was shut down and its grace is over.
    pub fn is_cancelled(&self) -> bool {
        self.role_token.is_cancelled() || self.deadline.has_passed()
    }

    /// Waits until the attempt should stop, as in [`is_cancelled`](Self::is_cancelled). Cancel
    /// safe.
    pub async fn cancelled(&self) {
        tokio::select! {
            () = self.role_token.cancelled() => {}
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

/// Wraps a job so that it is given up after `retries` retries: `retries + 1` attempts in all.
///
/// A panic returns no verdict that could be limited: it is retried whatever the limit.
///
/// ```
/// use writerlease::{Outcome, limit_retries};
/// # async fn f(lease: writerlease::WriterLease<String>) -> Result<(), writerlease::LeaseClosed> {
/// lease.try_work("key".into(), limit_retries(3, |_| async { Outcome::Failed }))?;
/// # Ok(())
/// # }
/// ```
pub fn limit_retries<K, F, T, V>(
    retries: u32,
    mut job: F,
) -> impl FnMut(Attempt<K>) -> std::pin::Pin<Box<dyn Future<Output = Verdict> + Send>> + Send
where
    F: FnMut(Attempt<K>) -> T + Send,
    T: Future<Output = V> + Send + 'static,
    V: Into<Verdict>,
{
    move |attempt| {
        let last = attempt.number() > retries;
        let run = job(attempt);
        Box::pin(async move {
            let verdict = run.await.into();
            if last { Verdict { next: Next::Done, ..verdict } } else { verdict }
        })
    }
}
