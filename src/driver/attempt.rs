//! One run of a job, as the job sees it.

use std::{fmt, sync::Arc};

use tokio_util::sync::CancellationToken;

use crate::{
    clock::Moment,
    engine::outcome::{Next, Verdict},
    store::Fence,
};

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
    pub(crate) fn new(
        key: K,
        number: u32,
        epoch: u64,
        deadline: Moment,
        role_token: Arc<CancellationToken>,
        fence: Option<Arc<Fence>>,
    ) -> Self {
        Self { key, number, epoch, deadline, role_token, fence }
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
        self.role_token.is_cancelled() || self.deadline.has_passed()
    }

    /// Waits until the role in which the attempt started is lost, the deadline passes, or the lease is shut down and
    /// its grace is over. Cancel safe.
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

/// Wraps a work so that it is given up after `retries` retries: `retries + 1` attempts in all.
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
