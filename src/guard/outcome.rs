//! The outcomes of calls, and the notices of problems.

use std::sync::Arc;

use super::KeyExplanation;
use crate::{
    clock::Moment,
    status::LeaseClosed,
    store::{StoreError, Version},
};

/// The outcome of an [`ensure`](crate::Guard::ensure).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum EnsureOutcome {
    /// We wrote the key; this is the version of our write.
    Written(Version),
    /// We deleted the key; see [`ensure_absent`](crate::Guard::ensure_absent).
    Deleted,
    /// The key was right already, or became so without a competitor.
    Satisfied,
    /// A competitor's write made the key right.
    ByOther,
    /// A newer call for the same key and part replaced this one, or
    /// [`ensure_absent`](crate::Guard::ensure_absent) was called for the key.
    Superseded,
    /// [`Guard::remove`](crate::Guard::remove) was called.
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
    /// The object does not exist, and [`ensure_existing`](crate::Guard::ensure_existing) does not
    /// create it.
    Gone,
    /// The store denied the request. The call ends with that, but the request stays pending: rights
    /// are granted without an event, so the guard tries again each minute, until the value is right,
    /// a newer call replaces the request, or [`Guard::remove`](crate::Guard::remove) withdraws it.
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

/// A problem that the guard publishes to all listeners, because nobody may be waiting for the
/// [`Ensure`](crate::Ensure).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Notice {
    /// The store denied a request, or refused a write for good as too large or invalid. Published
    /// once for each request, although a denied one is tried again.
    Refused {
        /// The key, prefix included.
        key: Arc<str>,
        /// The store's error.
        error: Arc<StoreError>,
    },
    /// The requests for a key were given up, because somebody else keeps changing it; see
    /// [`EnsureOutcome::Contended`].
    Contended {
        /// The key, prefix included.
        key: Arc<str>,
        /// The time until which the guard does not write the value.
        until: Moment,
    },
    /// The guard wrote a key, and the closure wants to change what it wrote itself. The key rests;
    /// see [`EnsureOutcome::NeverContent`]. Published once per rest.
    NeverContent {
        /// The key, prefix included.
        key: Arc<str>,
        /// The time until which the key rests.
        until: Moment,
    },
    /// The store did not answer three attempts of a key in a row. The key is tried again, however
    /// often it fails. Published once, until the store answers an attempt of the key.
    Failing {
        /// The key, prefix included.
        key: Arc<str>,
        /// The store's last error.
        error: Arc<StoreError>,
    },
    /// A closure panicked. Its key is tried again at the retry interval. Published once, until an
    /// attempt of the key ends without a panic.
    Panicked {
        /// The key, prefix included.
        key: Arc<str>,
        /// The message of the panic.
        message: Arc<str>,
    },
    /// No job of the lease was done for 10 s, by any replica, although a key was pending all that
    /// time; see [`Status::is_stuck`](crate::Status::is_stuck). Published once, until one is done.
    Stuck {
        /// The key that has been pending for longest, prefix included. If several guards share the
        /// lease, it may be another one's.
        key: Arc<str>,
        /// The reason for which that key is not written.
        explanation: KeyExplanation,
    },
    /// The watch was interrupted, or is denied: until it is back the guard goes on without seeing the
    /// writes of others. Published again when an error of another kind takes the place of the first.
    WatchInterrupted {
        /// The store's error.
        error: Arc<StoreError>,
    },
    /// The watch is back.
    WatchRestored,
    /// The watch ended for good: the request for it is invalid, or the store's stream ended.
    WatchEnded,
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
