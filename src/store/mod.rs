//! What the guard asks of a store, and the stores that answer.
//!
//! # The contract
//!
//! A store maps keys (text, not empty) to values (bytes, maybe none) and gives every write a [`Version`]. Whoever
//! implements [`Store`] promises:
//!
//! 1. **Compare-and-write is atomic.** `put` and `delete` take effect if and only if the key is in the expected state at
//!    the moment of the write; otherwise they return [`StoreError::Conflict`] and change nothing.
//! 2. **A version is never used twice,** not even after the key was deleted and created again: a writer that read the
//!    key before the delete must lose. Versions are compared for equality.
//! 3. **An order only where there is one.** [`Version::revision`] is `Some` only if the numbers grow over *all* writes to
//!    the store (etcd's revision, a zxid), so that versions of different keys can be compared. [`Version::key_revision`] is
//!    `Some` if they grow at least over the writes of one key.
//! 4. **A watch tells what happened, in order.** It starts with a listing ([`Event::Init`], the entries,
//!    [`Event::InitDone`]) and goes on with every write and delete of a key under the prefix, each write with the version
//!    that the writer got. Events of one key come in the order of its writes. Where the store cannot go on without a gap it
//!    says so by starting again with [`Event::Init`]. Between two listings nothing comes twice, and nothing is left out;
//!    only a store whose versions have a sequence may leave out a write or delete that a newer write of the same key has
//!    already replaced.
//! 5. **A fence is checked with the write.** A `put` or `delete` that carries a [`Fence`] takes effect only if the fence
//!    holds at the moment of the write; otherwise it is [`StoreError::Fenced`], whatever state the key is in. A store that
//!    cannot check a fence returns [`StoreError::Invalid`]; it never leaves one out.
//! 6. **Errors tell what is known.** [`StoreError::Unavailable`] from a `put` or `delete` means that the write may or may
//!    not have landed. Every other error means that it did not.
//! 7. **Calls end.** A store gives up on a server that does not answer and returns [`StoreError::Unavailable`] after a
//!    time that it documents. It does not retry a write by itself: only the caller knows whether to read first.
//!
//! Dropping the future of a `put` or `delete` leaves it unknown whether the write happened; dropping a watch ends it.
//! `lab::conformance` (feature `lab`) holds a store against all of this. A store of your own needs the crates `bytes` and
//! `futures-util` (or `futures-core`), for [`Bytes`] and [`Stream`].

mod fence;
mod memory;
#[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
pub(crate) mod resume;

use std::{
    fmt,
    future::Future,
    hash::{Hash, Hasher},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::Stream;

pub use self::{fence::Fence, memory::MemoryStore};

/// A versioned key-value store with compare-and-write and a watch. The [module](self) states its contract.
pub trait Store: Send + Sync + 'static {
    /// Reads a key; `None` if it does not exist. The answer is never older than the last write that was acknowledged
    /// before the call, whoever made it.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Entry>, StoreError>> + Send;

    /// Writes `value` if the key is in the `expected` state and the `fence` holds, if there is one, and returns the version
    /// of the write.
    fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
        fence: Option<&Fence>,
    ) -> impl Future<Output = Result<Version, StoreError>> + Send;

    /// Deletes the key if it still has the `expected` version and the `fence` holds, if there is one.
    ///
    /// There is no version to return: neither ZooKeeper nor Kubernetes tells one of a deletion.
    fn delete(
        &self,
        key: &str,
        expected: &Version,
        fence: Option<&Fence>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Watches all keys that start with `prefix` (the empty one: all keys).
    ///
    /// The stream reconnects by itself for as long as that can help, with a growing, jittered pause in between. An `Err`
    /// item reports that the watch was interrupted, once per interruption; the next `Ok` item says that it goes on, with a
    /// fresh listing or, without a gap, with [`Event::Resumed`]. The stream ends only after an error that no reconnecting
    /// can mend, such as [`StoreError::Denied`].
    fn watch(&self, prefix: &str) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static;

    /// Whether a write that somebody else made is that of a competitor, who does the same work as we: only then it is
    /// evidence that they are alive. `before` is the last value that we saw, `after` and `version` are those of the write.
    ///
    /// All are, unless the store can tell, by the write's [writer](Version::writer) or by what it changed.
    fn competes(&self, before: Option<&[u8]>, after: &[u8], version: &Version) -> bool {
        let _ = (before, after, version);
        true
    }
}

impl<S: Store> Store for Arc<S> {
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Entry>, StoreError>> + Send {
        (**self).get(key)
    }

    fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
        fence: Option<&Fence>,
    ) -> impl Future<Output = Result<Version, StoreError>> + Send {
        (**self).put(key, value, expected, fence)
    }

    fn delete(
        &self,
        key: &str,
        expected: &Version,
        fence: Option<&Fence>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        (**self).delete(key, expected, fence)
    }

    fn watch(&self, prefix: &str) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
        (**self).watch(prefix)
    }

    fn competes(&self, before: Option<&[u8]>, after: &[u8], version: &Version) -> bool {
        (**self).competes(before, after, version)
    }
}

/// The version of one write: compared for equality, never used twice.
///
/// Some stores also order all their writes; their versions carry an [`order`](Version::revision).
#[derive(Clone)]
pub struct Version {
    token: Bytes,
    revision: Option<u64>,
    key_revision: Option<u64>,
    writer: Option<Arc<str>>,
}

impl Version {
    /// A version of a store that orders all its writes: `order` is the identity and the position in one.
    pub fn ordered(revision: u64) -> Self {
        Self { token: Bytes::new(), revision: Some(revision), key_revision: Some(revision), writer: None }
    }

    /// A version that can only be compared for equality.
    pub fn opaque(token: impl Into<Bytes>) -> Self {
        Self { token: token.into(), revision: None, key_revision: None, writer: None }
    }

    /// Adds what the store itself needs to compare, beside the order.
    #[must_use]
    pub fn with_token(self, token: impl Into<Bytes>) -> Self {
        Self { token: token.into(), ..self }
    }

    /// Adds the position among the writes of the same key, where there is no order over all keys.
    #[must_use]
    pub fn with_key_revision(self, key_revision: u64) -> Self {
        Self { key_revision: Some(key_revision), ..self }
    }

    /// Adds who made the write, where the store knows that. It makes no difference when versions are compared.
    #[must_use]
    pub fn with_writer(self, writer: impl Into<Arc<str>>) -> Self {
        Self { writer: Some(writer.into()), ..self }
    }

    /// Who made the write, by the name that the store has for them; none, if it doesn't tell.
    pub fn writer(&self) -> Option<&str> {
        self.writer.as_deref()
    }

    /// What the store put in: its own business.
    pub fn token(&self) -> &[u8] {
        &self.token
    }

    /// The position of the write among all writes of the store, if the store has such an order.
    pub fn revision(&self) -> Option<u64> {
        self.revision
    }

    /// The position of the write among those of its key, if the store knows it: a later write has a greater one, and
    /// nothing is said of how much greater.
    pub fn key_revision(&self) -> Option<u64> {
        self.key_revision
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        (&self.token, self.revision, self.key_revision) == (&other.token, other.revision, other.key_revision)
    }
}

impl Eq for Version {}

impl Hash for Version {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.token, self.revision, self.key_revision).hash(state);
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision {
            Some(revision) if self.token.is_empty() => write!(f, "Version({revision})"),
            Some(revision) => write!(f, "Version({revision}, {:?})", self.token),
            None => write!(f, "Version({:?})", self.token),
        }
    }
}

/// The state in which a key must be for a write to take effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The key does not exist.
    Absent,
    /// The key exists and its last write has this version.
    Version(Version),
}

/// A key with its value, as it was at one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key, prefix included.
    pub key: Arc<str>,
    /// The value.
    pub value: Bytes,
    /// The version of the write that made it so.
    pub version: Version,
}

/// What a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A fresh listing begins: what was known before may have changed without an event.
    Init,
    /// An entry of the listing.
    InitEntry(Entry),
    /// The listing is complete: a key under the prefix that was not in it did not exist.
    InitDone,
    /// The watch goes on after an interruption, and nothing was missed.
    Resumed,
    /// A key was written.
    Put(Entry),
    /// A key was deleted.
    Delete {
        /// The key, prefix included.
        key: Arc<str>,
        /// What orders the deletion among the writes: a version of its own where the store has one, otherwise one that is
        /// newer than what was deleted and older than what is written next.
        version: Version,
    },
}

impl Event {
    /// The key that the event is about, if it is about one.
    pub fn key(&self) -> Option<&Arc<str>> {
        match self {
            Self::Init | Self::InitDone | Self::Resumed => None,
            Self::InitEntry(entry) | Self::Put(entry) => Some(&entry.key),
            Self::Delete { key, .. } => Some(key),
        }
    }
}

/// What a store says of a key when it refuses a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Current {
    /// The refusal did not tell.
    Unknown,
    /// The key does not exist.
    Absent,
    /// The key's last write has this version.
    Version(Version),
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The key was not in the expected state; nothing was changed.
    #[error("the key changed since it was read (now: {current:?})")]
    Conflict {
        /// What the store knows of the current version.
        current: Current,
    },
    /// The writer's leadership is over, or was never seen by this store's engine; nothing was changed.
    #[error("the fence with token {token} does not hold: whoever wrote this leads no more")]
    Fenced {
        /// The token of the fence.
        token: u64,
    },
    /// No answer: the server cannot be reached, is overloaded, or took too long. A write may have landed.
    #[error("the store is unavailable: {reason}")]
    Unavailable {
        /// What failed, in words.
        reason: String,
        /// The client's own error.
        #[source]
        source: Option<BoxError>,
    },
    /// The store knows us and says no.
    #[error("the store denied the request: {reason}")]
    Denied {
        /// What was denied, in words.
        reason: String,
        /// The client's own error.
        #[source]
        source: Option<BoxError>,
    },
    /// The value or the request is larger than the store takes.
    #[error("too large for the store: {reason}")]
    TooLarge {
        /// What is too large, and the limit where it is known.
        reason: String,
        /// The client's own error.
        #[source]
        source: Option<BoxError>,
    },
    /// The request can never succeed as it is.
    #[error("invalid request: {reason}")]
    Invalid {
        /// What is wrong with it.
        reason: String,
        /// The client's own error.
        #[source]
        source: Option<BoxError>,
    },
}

/// No backend has an empty key, so no store takes one.
pub(crate) fn non_empty(key: &str) -> Result<&str, StoreError> {
    if key.is_empty() {
        return Err(StoreError::Invalid { reason: "the key is empty".into(), source: None });
    }
    Ok(key)
}

#[cfg(any(feature = "etcd", feature = "kube", feature = "redis", feature = "zookeeper"))]
pub(crate) fn unavailable(reason: impl Into<String>) -> StoreError {
    StoreError::Unavailable { reason: reason.into(), source: None }
}

/// A client's error, kept as the source of a [`StoreError`].
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
