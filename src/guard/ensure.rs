//! The end of a call of the guard, and the future that waits for it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::sync::oneshot;

use crate::{
    clock::Moment,
    status::LeaseClosed,
    store::{StoreError, Version},
};

/// The outcome of an [`ensure`](super::Guard::ensure).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum EnsureOutcome {
    /// We wrote the key; this is the version of our write.
    Written(Version),
    /// We deleted the key; see [`ensure_absent`](super::Guard::ensure_absent).
    Deleted,
    /// The key was right already, or became so without a competitor.
    Satisfied,
    /// A competitor's write made the key right.
    ByOther,
    /// A newer call for the same key and part replaced this one, or
    /// [`ensure_absent`](super::Guard::ensure_absent) was called for the key.
    Superseded,
    /// [`Guard::remove`](super::Guard::remove) was called.
    Removed,
    /// Two groups want different values of the key: the value was written, changed by somebody
    /// else, written again and changed again. The guard leaves the key alone for a while, because
    /// neither group would win. A caller that still wants the value then calls again.
    Contended {
        /// The time until which the guard does not write the value.
        until: Moment,
    },
    /// The closure is never content: it wants to change also what it wrote itself. It may write the
    /// time, a counter, or a set in random order. The guard wrote such a value less than the
    /// contention interval ago, and writes the next one after it at the earliest. A caller that
    /// still wants that calls again. Closures that are content with what they write are not
    /// concerned.
    NeverContent {
        /// The time until which the key rests.
        until: Moment,
    },
    /// The object does not exist, and [`ensure_existing`](super::Guard::ensure_existing) does not
    /// create it.
    Gone,
    /// The store denied the request. The call ends with that, but the request stays pending: rights
    /// are granted without an event, so the guard tries again each minute, until the value is right,
    /// a newer call replaces the request, or [`Guard::remove`](super::Guard::remove) withdraws it.
    /// The denial holds up no other key and extends no lease, so a replica with the right to write
    /// takes over.
    Denied(Arc<StoreError>),
    /// The value is larger than the store takes.
    TooLarge(Arc<StoreError>),
    /// The store can never take this key or value.
    Invalid(Arc<StoreError>),
    /// The lease takes no more jobs.
    LeaseClosed(LeaseClosed),
    /// The last handle of the guard was dropped.
    Dropped,
}

/// A future of the [`EnsureOutcome`] of a call. Dropping it changes nothing: the request stays
/// pending.
#[derive(Debug)]
pub struct Ensure {
    pub(super) ending: oneshot::Receiver<EnsureOutcome>,
}

impl EnsureOutcome {
    /// Returns the store's error if it denied the request or refused it for good.
    pub(super) fn refusal(&self) -> Option<&Arc<StoreError>> {
        match self {
            Self::Denied(error) | Self::TooLarge(error) | Self::Invalid(error) => Some(error),
            _ => None,
        }
    }
}

impl Future for Ensure {
    type Output = EnsureOutcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<EnsureOutcome> {
        // A guard that is gone completes nothing.
        Pin::new(&mut self.ending).poll(cx).map(|ending| ending.unwrap_or(EnsureOutcome::Dropped))
    }
}
