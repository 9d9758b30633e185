//! Events that come in with data of their own, and effects that go out.

use std::time::Duration;

use super::{
    opaque::{Types, Version},
    wish::{Request, Wishes},
};
use crate::engine::{
    Timestamp,
    outcome::{Outcome, Verdict},
};

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion<N, R> {
    /// Our write of this version fulfilled it.
    Written(N),
    /// Our deletion fulfilled it.
    Deleted,
    /// The value was satisfactory already, or became so without a rival.
    Satisfied,
    /// A rival's write fulfilled it.
    ByOther,
    /// A newer request for the same part replaced it.
    Superseded,
    /// The caller withdrew it.
    Removed,
    /// The object does not exist, and the request does not create it.
    Gone,
    /// The shell gave it up.
    GivenUp(R),
}

/// An instruction to the shell. Effects are carried out in order, under the lock that protects the
/// object, except for those that call or drop what belongs to a user.
#[derive(Debug, PartialEq)]
pub enum Effect<T: Types> {
    /// Queue the object's job in the lease. If the lease is closed, call
    /// [`handle_closure`](super::Object::handle_closure).
    Queue,
    /// Clear the object's job in the lease, because nobody wants it any more.
    Clear,
    /// Clear the object's job in the lease, because the object is as requested. This says nothing
    /// about rivals.
    Satisfied,
    /// Extend a rival's lease, which also clears the object's job.
    Evidence {
        /// The position of the rival's write in the store's order of writes.
        revision: Option<u64>,
    },
    /// Another process deleted the object: its last writer has no more claim to it than others.
    Deleted,
    /// The request ended. Its wish belongs to a user: drop it after the lock is released.
    Complete(Request<T::Version, T::Wish, T::Waiter>, Completion<T::Version, T::Reason>),
    /// The store denied these callers' requests, which stay pending. Tell them.
    Deny(Vec<T::Waiter>, T::Reason),
    /// Our own write came back through the watch after this time.
    Echo(Duration),
    /// Somebody changed this value, which had satisfied all requests. The tracker's comparison
    /// belongs to a user: call the tracker after the lock is released, and before an assessment.
    Lost(T::Value),
    /// Once the lock is released, evaluate the [`assessment`](super::Object::assessment) and bring
    /// it back.
    Assess,
    /// Drop these after the lock is released.
    Discard(Wishes<T>),
}

/// Effects in the order in which a shell carries them out.
pub type Effects<T> = Vec<Effect<T>>;

pub(super) type Completions<T> = Completion<<T as Types>::Version, <T as Types>::Reason>;

/// The next step of an attempt.
#[derive(Debug, PartialEq)]
pub enum Step<T: Types> {
    /// Write the value if the object still has the expected version, then call
    /// [`handle_answer`](super::Object::handle_answer).
    Write {
        /// The value.
        value: T::Value,
        /// The version that was read, `None` if the object did not exist.
        expected: Option<T::Version>,
    },
    /// Delete the object if it still has this version, then call
    /// [`handle_answer`](super::Object::handle_answer).
    Delete {
        /// The version that was read.
        expected: T::Version,
    },
    /// The attempt has nothing to write.
    Finish(Verdict),
}

/// The answer to a read that failed, or to a write or deletion.
#[derive(Debug, PartialEq)]
pub enum Answer<T: Types> {
    /// The write succeeded with this version.
    Written(T::Version),
    /// The deletion succeeded.
    Deleted,
    /// The write was refused as stale.
    Conflict,
    /// The write was refused because another replica is elected.
    Fenced,
    /// The store gave no answer: a write may have succeeded.
    Unanswered,
    /// The store denied the request.
    Denied(T::Reason),
    /// The store can never take the value.
    Impossible(T::Reason),
    /// The shell did not send the write.
    Withheld(T::Reason),
}

/// A change of the object, as the watch reports it.
#[derive(Clone, Debug, PartialEq)]
pub struct Change<T: Types> {
    /// The value, `None` if the object does not exist any more.
    pub value: Option<T::Value>,
    /// The version, `None` if a listing did not contain the object.
    pub version: Option<T::Version>,
    /// The change is an entry of a listing, or a listing without the object.
    pub listing: bool,
    /// When the change arrived.
    pub arrived: Timestamp,
    /// Since when the watch has reported changes without an interruption.
    pub live_since: Timestamp,
    /// The number of the listing during which an attempt in flight deferred the change.
    pub(super) deferred: Option<u64>,
}

impl<T: Types> Answer<T> {
    /// Returns the verdict of an attempt that got this answer to a write that `was_sent`, or to its
    /// read.
    pub(super) fn verdict(&self, was_sent: bool) -> Verdict {
        match self {
            // A read has no such answer.
            Self::Written(_) | Self::Deleted | Self::Conflict if !was_sent => Outcome::Failed.retry(),
            Self::Written(version) => Outcome::Written.done().at_revision(version.revision()),
            Self::Deleted => Outcome::Written.done(),
            Self::Conflict => Outcome::Conflict.retry(),
            Self::Fenced => Outcome::WrittenByOther.retry(),
            Self::Unanswered => Outcome::Failed.retry(),
            // The store answers, and other keys may be allowed. So this is no failure of the store.
            Self::Denied(_) => Outcome::Denied.retry(),
            Self::Impossible(_) | Self::Withheld(_) => Outcome::Unchanged.done(),
        }
    }
}

impl<T: Types> Change<T> {
    /// Returns a change that the watch reported as it happened.
    pub fn new(value: Option<T::Value>, version: T::Version, arrived: Timestamp) -> Self {
        let live_since = Timestamp::ZERO;
        Self { value, version: Some(version), listing: false, arrived, live_since, deferred: None }
    }

    /// Sets since when the watch has reported changes without an interruption. Without this, it
    /// always has.
    #[must_use]
    pub fn live_since(self, live_since: Timestamp) -> Self {
        Self { live_since, ..self }
    }

    /// Returns an entry of a listing, or with `None` that a listing did not contain the object.
    pub fn listed(entry: Option<(T::Value, T::Version)>, arrived: Timestamp) -> Self {
        let (value, version) = entry.unzip();
        Self { value, version, listing: true, arrived, live_since: arrived, deferred: None }
    }
}
