//! The contract between the guard and a store, and the store in memory.
//!
//! # The contract
//!
//! A store maps keys (non-empty text) to values (bytes, possibly zero of them) and gives every
//! write a [`Version`]. An implementation of [`Store`] keeps seven promises:
//!
//! 1. **Compare-and-write is atomic.** `put` and `delete` take effect if and only if the key is in
//!    the expected state at the moment of the write. Otherwise they return
//!    [`StoreError::Conflict`] and change nothing.
//! 2. **A version is never used twice,** even if the key is deleted and created again: a writer
//!    that read the key before the deletion must lose. Versions are compared for equality.
//! 3. **Versions claim only an order that exists.** [`Version::revision`] is `Some` only if the
//!    numbers grow with every write to the store, across *all* keys, as etcd's revision and
//!    ZooKeeper's zxid do; versions of different keys can then be compared.
//!    [`Version::key_revision`] is `Some` if the numbers grow at least with every write of the same
//!    key.
//! 4. **A watch reports the changes, in order.**
//!    - It starts with a listing: [`Event::Init`], one [`Event::InitEntry`] per existing key,
//!      [`Event::InitDone`].
//!    - It continues with every write and every deletion of a key under the prefix. The event of a
//!      write carries the version that the writer received.
//!    - Events of one key come in the order of its writes.
//!    - A store that cannot continue without a gap starts again with [`Event::Init`].
//!    - Between two listings each change is reported exactly once. One exception is allowed, and
//!      only if the versions have a key revision: the store may omit a write or a deletion that a
//!      newer write of the same key has already replaced.
//! 5. **A fence is checked together with the write.** A `put` or `delete` that carries a [`Fence`]
//!    takes effect only if the fence holds at the moment of the write. Otherwise it returns
//!    [`StoreError::Fenced`], in whatever state the key is. A store that cannot check the fence
//!    returns [`StoreError::Invalid`]; it never ignores a fence.
//! 6. **An error says whether the write happened.** [`StoreError::Unavailable`] from `put` or
//!    `delete` means that the write may or may not have succeeded. Every other error means that the
//!    write changed nothing.
//! 7. **Every call ends.** A store gives up on a server that does not answer and returns
//!    [`StoreError::Unavailable`] after a time that its documentation states. It leaves the retry
//!    of a write to the caller, because only the caller knows whether to read first.
//!
//! Dropping the future of a `put` or `delete` leaves the outcome of the write unknown. Dropping a
//! watch ends it.
//!
//! # Your own store
//!
//! `lab::conformance` (feature `lab`) tests a store against every promise. An implementation needs
//! the crates `bytes` and `futures-util` (or `futures-core`), for [`Bytes`] and [`Stream`].

#[cfg(any(feature = "etcd", feature = "kube", feature = "lab", feature = "redis", feature = "zookeeper"))]
pub(crate) mod causes;
mod fence;
mod memory;
#[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
pub(crate) mod reconnect;
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

/// A versioned key-value store with compare-and-write and a watch.
///
/// The [module](self) states the contract that an implementation keeps.
pub trait Store: Send + Sync + 'static {
    /// Reads a key; returns `None` if it does not exist.
    ///
    /// The answer reflects every write that was acknowledged before the call, by any writer. A store
    /// that reads from a cache may return an older state if it overrides
    /// [`get_uncached`](Self::get_uncached) and its versions have a
    /// [key revision](Version::key_revision), by which a guard notices that a read is older than its
    /// watch. Without key revisions nothing shows that, so the promise has no exception.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Entry>, StoreError>> + Send;

    /// Like [`get`](Self::get), and never from a cache. A guard calls it if `get` returned a state
    /// that is older than what the watch has reported. The default is `get`.
    fn get_uncached(&self, key: &str) -> impl Future<Output = Result<Option<Entry>, StoreError>> + Send {
        self.get(key)
    }

    /// Writes `value` if the key is in the `expected` state and the `fence`, if given, holds.
    ///
    /// Returns the version of the write.
    fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
        fence: Option<&Fence>,
    ) -> impl Future<Output = Result<Version, StoreError>> + Send;

    /// Deletes the key if it still has the `expected` version and the `fence`, if given, holds.
    ///
    /// Returns no version, because ZooKeeper and Kubernetes report none for a deletion.
    fn delete(
        &self,
        key: &str,
        expected: &Version,
        fence: Option<&Fence>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Watches all keys that start with `prefix`; the empty prefix matches all keys.
    ///
    /// The stream reconnects by itself, with a growing, jittered pause before each try. It reports
    /// each interruption as an `Err` item: once, and again when an error of another kind takes the
    /// place of the first; kinds that take turns are not reported each time. The next `Ok` item says
    /// that the watch continues: with a fresh listing or, without a gap, with [`Event::Resumed`].
    ///
    /// [`StoreError::Denied`] is an interruption, too, because permissions are given back and
    /// passwords corrected. The pauses are then longer: about 5 s at first, a minute at most. The
    /// stream ends only after [`StoreError::Invalid`], which no new connection repairs.
    fn watch(&self, prefix: &str) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static;

    /// Returns whether another process's write comes from a competitor, a process that does the
    /// same work as this one. Only a competitor's write is evidence that a competitor is alive.
    ///
    /// `before` is the last value that this process saw; `after` and `version` are those of the
    /// write. A guard holds no lock during the call. The default is `true` for every write. A store
    /// overrides it if it can recognize other writers, by the write's [writer](Version::writer) or by
    /// the fields that the write changed.
    fn competes(&self, before: Option<&[u8]>, after: &[u8], version: &Version) -> bool {
        let _ = (before, after, version);
        true
    }
}

impl<S: Store> Store for Arc<S> {
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Entry>, StoreError>> + Send {
        (**self).get(key)
    }

    fn get_uncached(&self, key: &str) -> impl Future<Output = Result<Option<Entry>, StoreError>> + Send {
        (**self).get_uncached(key)
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

/// The identity of one write: compared for equality, never used twice.
///
/// A version of a store that orders all its writes also has a [`revision`](Version::revision). A
/// version of a store that orders at least the writes of each key has a
/// [`key_revision`](Version::key_revision).
#[derive(Clone)]
pub struct Version {
    token: Bytes,
    revision: Option<u64>,
    key_revision: Option<u64>,
    writer: Option<Arc<str>>,
}

impl Version {
    /// Creates a version of a store that orders all its writes. `revision` identifies the write and
    /// is its position, both in the store and among the writes of its key.
    pub fn ordered(revision: u64) -> Self {
        Self { token: Bytes::new(), revision: Some(revision), key_revision: Some(revision), writer: None }
    }

    /// Creates a version that can only be compared for equality.
    pub fn opaque(token: impl Into<Bytes>) -> Self {
        Self { token: token.into(), revision: None, key_revision: None, writer: None }
    }

    /// Adds bytes that the store itself compares, beside the revision.
    #[must_use]
    pub fn with_token(self, token: impl Into<Bytes>) -> Self {
        Self { token: token.into(), ..self }
    }

    /// Adds the position among the writes of the same key, for a store without an order over all
    /// keys.
    #[must_use]
    pub fn with_key_revision(self, key_revision: u64) -> Self {
        Self { key_revision: Some(key_revision), ..self }
    }

    /// Adds the name of the writer, for a store that knows it. A comparison of versions ignores it.
    #[must_use]
    pub fn with_writer(self, writer: impl Into<Arc<str>>) -> Self {
        Self { writer: Some(writer.into()), ..self }
    }

    /// The writer, by the store's name for it; `None` if the store does not report one.
    pub fn writer(&self) -> Option<&str> {
        self.writer.as_deref()
    }

    /// The bytes that the store compares; their meaning is the store's own.
    pub fn token(&self) -> &[u8] {
        &self.token
    }

    /// The position of the write among all writes of the store, if the store orders them all.
    pub fn revision(&self) -> Option<u64> {
        self.revision
    }

    /// The position of the write among the writes of its key, if the store orders those. A later
    /// write of the key has a greater number, by any amount.
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

/// The state that a key must be in for a write to take effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The key does not exist.
    Absent,
    /// The key exists and its last write has this version.
    Version(Version),
}

/// A key with its value at one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key, prefix included.
    pub key: Arc<str>,
    /// The value.
    pub value: Bytes,
    /// The version of the write that set the value.
    pub version: Version,
}

/// One item of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A fresh listing begins. Earlier knowledge may be out of date without an event.
    Init,
    /// An entry of the listing.
    InitEntry(Entry),
    /// The listing is complete. A key under the prefix that the listing lacks did not exist.
    InitDone,
    /// The watch continues after an interruption, without a gap.
    Resumed,
    /// A key was written.
    Put(Entry),
    /// A key was deleted.
    Delete {
        /// The key, prefix included.
        key: Arc<str>,
        /// The deletion's place among the writes: its own version where the store has one,
        /// otherwise a version newer than the deleted one and older than the next write.
        version: Version,
    },
}

impl Event {
    /// Returns the key that the event concerns; `None` for an event of the watch itself.
    pub fn key(&self) -> Option<&Arc<str>> {
        match self {
            Self::Init | Self::InitDone | Self::Resumed => None,
            Self::InitEntry(entry) | Self::Put(entry) => Some(&entry.key),
            Self::Delete { key, .. } => Some(key),
        }
    }
}

/// The state of a key that a store reports when it refuses a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Current {
    /// The refusal did not include the state.
    Unknown,
    /// The key does not exist.
    Absent,
    /// The key's last write has this version.
    Version(Version),
}

/// The reason why a store failed to serve a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The key was not in the expected state. The write changed nothing.
    #[error("the key changed since it was read (now: {current:?})")]
    Conflict {
        /// The current state of the key, if the store reports it. With the version in it a caller
        /// can write again without another read.
        current: Current,
    },
    /// The writer's leadership has ended, or the store's servers do not know it. The write changed
    /// nothing.
    #[error("the fence with token {token} does not hold: the writer no longer leads")]
    Fenced {
        /// The token of the fence.
        token: u64,
    },
    /// No usable answer came: the server is unreachable, overloaded, or too slow. A write may have
    /// succeeded.
    #[error("the store is unavailable: {reason}")]
    Unavailable {
        /// A description of the failure.
        reason: String,
        /// The client library's error.
        #[source]
        source: Option<BoxError>,
    },
    /// The store rejected the credentials, or the user lacks permission.
    #[error("the store denied the request: {reason}")]
    Denied {
        /// A description of the denied request.
        reason: String,
        /// The client library's error.
        #[source]
        source: Option<BoxError>,
    },
    /// The value or the request exceeds the store's limit.
    #[error("too large for the store: {reason}")]
    TooLarge {
        /// The part that is too large, and the limit where it is known.
        reason: String,
        /// The client library's error.
        #[source]
        source: Option<BoxError>,
    },
    /// The request can never succeed in this form.
    #[error("invalid request: {reason}")]
    Invalid {
        /// A description of the mistake.
        reason: String,
        /// The client library's error.
        #[source]
        source: Option<BoxError>,
    },
}

/// Rejects the empty key: etcd, ZooKeeper and Kubernetes lack one, so every store refuses it.
pub(crate) fn non_empty(key: &str) -> Result<&str, StoreError> {
    if key.is_empty() {
        return Err(StoreError::Invalid { reason: "the key is empty".into(), source: None });
    }
    Ok(key)
}

#[cfg(any(feature = "etcd", feature = "kube", feature = "lab", feature = "redis", feature = "zookeeper"))]
pub(crate) fn unavailable(reason: impl Into<String>) -> StoreError {
    StoreError::Unavailable { reason: reason.into(), source: None }
}

/// A client library's error, kept as the source of a [`StoreError`].
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
