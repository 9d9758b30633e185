//! A test suite for the [contract](crate::store) of [`Store`], and [one](elections) for electors.
//!
//! Every store of this crate passes it. To test your own store, describe it in a [`Harness`]:
//!
//! ```
//! use writerlease::{
//!     lab::conformance::{self, Harness},
//!     store::{Expected, MemoryStore, Store},
//! };
//!
//! struct Memory(MemoryStore);
//!
//! impl Harness for Memory {
//!     type Store = MemoryStore;
//!
//!     async fn store(&self) -> MemoryStore {
//!         self.0.clone()
//!     }
//!
//!     // Writes more events than the store keeps for a slow reader.
//!     async fn gap(&self) {
//!         for i in 0..1025 {
//!             self.0.put(&format!("gap/{i}"), "".into(), Expected::Absent, None).await.expect("the key is new");
//!         }
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let report = conformance::run(&Memory(MemoryStore::new())).await;
//! println!("{report}");
//! assert!(report.passed());
//! # }
//! ```

pub mod elections;
mod reads;
mod versions;
mod watches;
mod writes;

use std::{
    any::Any,
    collections::HashMap,
    fmt,
    future::Future,
    hash::{BuildHasher, RandomState},
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt};

use crate::store::{Entry, Event, Expected, Store, StoreError, Version};

/// A store under test, and a declaration of its limits.
///
/// A limit that the harness declares excludes the cases that it makes impossible; the [`Report`]
/// lists them as not applicable.
pub trait Harness: Sync {
    /// The type of the store.
    type Store: Store;

    /// Returns a handle to the store, always the same store. If the store uses connections, each
    /// handle must have its own.
    fn store(&self) -> impl Future<Output = Self::Store> + Send;

    /// Makes it impossible for existing watches to continue without a gap. Returns when the store
    /// serves requests again. The suite does not read from its watches in the meantime.
    ///
    /// For example, restart the server and compact its history, or write more events than the store
    /// keeps for a slow reader.
    fn gap(&self) -> impl Future<Output = ()> + Send;

    /// The prefix of all keys that the suite writes. Default: `conformance/`.
    fn key_prefix(&self) -> &str {
        "conformance/"
    }

    /// Returns whether the store accepts `key`. The suite expects [`StoreError::Invalid`] for any
    /// other key. Default: `true`. Every store rejects the empty key, for which this is not called.
    fn takes_key(&self, _key: &str) -> bool {
        true
    }

    /// The size in bytes of a large value that the store accepts. Default: 1 MiB.
    fn largest_value(&self) -> usize {
        1 << 20
    }

    /// The sizes in bytes of values that the store rejects as [`StoreError::TooLarge`]. Default:
    /// none, for a store without a limit.
    fn too_large_values(&self) -> Vec<usize> {
        Vec::new()
    }

    /// Returns whether a watch may omit a write that a newer one of the same key has already
    /// replaced. Default: `false`.
    fn coalesces(&self) -> bool {
        false
    }

    /// Returns whether the store knows permissions, so that [`deny`](Self::deny) works. Default:
    /// `false`.
    fn denies(&self) -> bool {
        false
    }

    /// Takes away the permission to read all keys and interrupts the watches, or gives it back.
    /// Returns when the store serves requests again. Default: nothing.
    fn deny(&self, _denied: bool) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// The time limit of one case; a case that exceeds it counts as failed. Default: 2 minutes.
    fn time_limit(&self) -> Duration {
        Duration::from_secs(120)
    }
}

/// Runs all cases, one after the other, each with its own keys. Leaves its keys in the store.
///
/// Needs a tokio runtime with time enabled. A case that panics or exceeds the time limit counts as
/// failed, and the next case runs.
pub async fn run<H: Harness>(harness: &H) -> Report {
    let run = RandomState::new().hash_one("run");
    let mut suite = Suite { harness, run, results: Vec::new() };
    reads::run(&mut suite).await;
    writes::run(&mut suite).await;
    versions::run(&mut suite).await;
    watches::run(&mut suite).await;
    Report { results: suite.results }
}

/// The results of all cases. [`Display`](fmt::Display) prints one per line.
#[derive(Clone, Debug)]
#[must_use]
pub struct Report {
    /// The results, in the order in which the cases ran.
    pub results: Vec<CaseResult>,
}

impl Report {
    /// Returns whether all applicable cases passed.
    pub fn passed(&self) -> bool {
        self.failures().next().is_none()
    }

    /// Returns the failed cases.
    pub fn failures(&self) -> impl Iterator<Item = &CaseResult> {
        self.results.iter().filter(|result| matches!(result.outcome, CaseOutcome::Failed(_)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.results.iter().try_for_each(|result| writeln!(f, "{result}"))
    }
}

/// The result of one case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseResult {
    /// The statement that the case checks, as a sentence.
    pub name: &'static str,
    /// The outcome of the check.
    pub outcome: CaseOutcome,
}

impl fmt::Display for CaseResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            CaseOutcome::Passed => write!(f, "passed: {}", self.name),
            CaseOutcome::Failed(reason) => write!(f, "FAILED: {}: {reason}", self.name),
            CaseOutcome::NotApplicable(reason) => {
                write!(f, "not applicable: {}: {reason}", self.name)
            }
        }
    }
}

/// The outcome of one case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CaseOutcome {
    /// The store or elector behaves as the name of the case says.
    Passed,
    /// It behaves differently, as described here.
    Failed(String),
    /// The [`Harness`] declares a limit that excludes the case; this is the reason.
    NotApplicable(&'static str),
}

struct Suite<'a, H> {
    harness: &'a H,
    /// A random part of all keys, which separates this run from earlier runs against the same
    /// server.
    run: u64,
    results: Vec<CaseResult>,
}

impl<H: Harness> Suite<'_, H> {
    async fn case(&mut self, name: &'static str, case: impl AsyncFnOnce(&Bench<'_, H>)) {
        let limit = self.harness.time_limit();
        let prefix = format!("{}{:x}-{}/", self.harness.key_prefix(), self.run, self.results.len());
        let work = async {
            let (store, other) = (self.harness.store().await, self.harness.store().await);
            case(&Bench { harness: self.harness, store: Arc::new(store), other: Arc::new(other), prefix })
                .await;
        };
        let outcome = match tokio::time::timeout(limit, AssertUnwindSafe(work).catch_unwind()).await {
            Ok(Ok(())) => CaseOutcome::Passed,
            Ok(Err(panic)) => CaseOutcome::Failed(message(&*panic)),
            Err(_) => CaseOutcome::Failed(format!("unfinished after {limit:?}")),
        };
        self.results.push(CaseResult { name, outcome });
    }

    fn not_applicable(&mut self, name: &'static str, reason: &'static str) {
        self.results.push(CaseResult { name, outcome: CaseOutcome::NotApplicable(reason) });
    }
}

/// Returns the message of a panic.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message").to_owned()
}

/// The equipment of one case: two handles to the store, and a key prefix of its own.
struct Bench<'a, H: Harness> {
    harness: &'a H,
    store: Arc<H::Store>,
    other: Arc<H::Store>,
    prefix: String,
}

impl<H: Harness> Bench<'_, H> {
    fn key(&self, name: impl fmt::Display) -> String {
        format!("{}{name}", self.prefix)
    }

    async fn create(&self, key: &str, value: impl Into<Bytes>) -> Write {
        put(&*self.store, key, value, Expected::Absent).await
    }

    async fn update(&self, last: &Write, value: impl Into<Bytes>) -> Write {
        put(&*self.store, &last.key, value, Expected::Version(last.version.clone())).await
    }

    async fn delete(&self, last: &Write) -> Write {
        self.store.delete(&last.key, &last.version, None).await.expect("a delete of the current version");
        Write { value: None, ..last.clone() }
    }

    /// Reads a key through the second handle; the case writes through the first.
    async fn read(&self, key: &str) -> Option<Entry> {
        self.other.get(key).await.expect("a read")
    }

    async fn assert_current(&self, last: &Write) {
        assert_eq!(self.read(&last.key).await.map(Write::from), Some(last.clone()), "the current entry");
    }

    async fn assert_absent(&self, key: &str) {
        assert_eq!(self.read(key).await, None, "the current entry");
    }

    fn watch(&self) -> Watched {
        Watched::new(&*self.other, &self.prefix)
    }
}

async fn put(store: &impl Store, key: &str, value: impl Into<Bytes>, expected: Expected) -> Write {
    let value = value.into();
    let version = store.put(key, value.clone(), expected, None).await.expect("a put in the expected state");
    Write { key: key.into(), value: Some(value), version }
}

/// A write that was acknowledged, or that a watch reported.
#[derive(Clone)]
struct Write {
    key: Arc<str>,
    /// `None` for a deletion.
    value: Option<Bytes>,
    /// The version of the write. For a deletion by the case it is the deleted version; for a
    /// deletion from a watch it is the version in the event.
    version: Version,
}

/// `delete` returns no version, so all deletions of a key are equal.
impl PartialEq for Write {
    fn eq(&self, other: &Self) -> bool {
        let same = self.key == other.key && self.value == other.value;
        same && (self.value.is_none() || self.version == other.version)
    }
}

impl From<Entry> for Write {
    fn from(entry: Entry) -> Self {
        Self { key: entry.key, value: Some(entry.value), version: entry.version }
    }
}

impl fmt::Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, version } = self;
        match value {
            None => write!(f, "delete {key:?} at {version:?}"),
            // A megabyte of text would hide the failure.
            Some(value) if value.len() > 100 => {
                write!(f, "put {key:?} ({} bytes) at {version:?}", value.len())
            }
            Some(value) => write!(f, "put {key:?} = {value:?} at {version:?}"),
        }
    }
}

/// A watch whose methods panic if it is interrupted or ends.
struct Watched {
    events: Pin<Box<dyn Stream<Item = Result<Event, StoreError>> + Send>>,
}

impl Watched {
    fn new(store: &impl Store, prefix: &str) -> Self {
        Self { events: Box::pin(store.watch(prefix)) }
    }

    async fn item(&mut self) -> Result<Event, StoreError> {
        self.events.next().await.expect("the watch continues")
    }

    async fn event(&mut self) -> Event {
        self.item().await.expect("the watch is uninterrupted")
    }

    /// Reads the listing that begins with the next event.
    async fn listing(&mut self) -> Vec<Write> {
        assert_eq!(self.event().await, Event::Init);
        self.entries().await
    }

    /// Reads the rest of a listing after its [`Event::Init`].
    async fn entries(&mut self) -> Vec<Write> {
        let mut entries = Vec::new();
        loop {
            match self.event().await {
                Event::InitEntry(entry) => entries.push(entry.into()),
                Event::InitDone => return entries,
                event => panic!("{event:?} within a listing"),
            }
        }
    }

    /// Reads the next write or deletion.
    async fn change(&mut self) -> Write {
        match self.event().await {
            Event::Put(entry) => entry.into(),
            Event::Delete { key, version } => Write { key, value: None, version },
            event => panic!("{event:?} outside a listing"),
        }
    }

    /// Reads until the watch has reported the last write of every key, and checks the reports with
    /// [`assert_reported`].
    ///
    /// If the listing may be later than some writes of a key, the last write of the key must not be
    /// a deletion: the listing may already reflect it, and then no event follows.
    async fn follow(&mut self, listed: &[Write], written: &[Write], coalesces: bool) -> Vec<Write> {
        let mut last: HashMap<&str, &Write> = written.iter().map(|write| (&*write.key, write)).collect();
        last.retain(|_, last| !listed.contains(last));
        let mut seen: Vec<Write> = Vec::new();
        while last.values().any(|last| !seen.contains(last)) {
            seen.push(self.change().await);
        }
        assert_reported(listed, written, &seen, coalesces);
        seen
    }
}

/// Asserts that a watch reported exactly the writes after its listing, each once and in the order
/// of its key. With `coalesces` the watch may omit a write that a newer one replaced.
fn assert_reported(listed: &[Write], written: &[Write], seen: &[Write], coalesces: bool) {
    let of = |writes: &[Write], key: &str| -> Vec<Write> {
        writes.iter().filter(|write| &*write.key == key).cloned().collect()
    };
    for write in listed.iter().chain(seen) {
        assert!(written.contains(write), "{write:?} was reported but not written");
    }
    for last in written {
        let (listed, written, seen) = (of(listed, &last.key), of(written, &last.key), of(seen, &last.key));
        assert!(listed.len() <= 1, "{listed:?} listed twice");
        let place = |listed| written.iter().position(|other| other == listed).expect("it was written");
        // The writes up to the listed one are part of the listing.
        let rest = match listed.first() {
            Some(listed) => place(listed) + 1,
            None if coalesces => 0,
            // The listing lacks the key, so the key was absent then: not yet written, or just
            // deleted.
            None => {
                let rest = written.len().saturating_sub(seen.len());
                assert!(
                    rest == 0 || written[rest - 1].value.is_none(),
                    "the listing lacks the key, but {:?} is the first report of {written:?}",
                    seen.first(),
                );
                rest
            }
        };
        let mut left = written[rest..].iter();
        if coalesces {
            // The last write of a key has no successor that could replace it, so none may be left.
            let in_order = seen.iter().all(|seen| left.any(|written| written == seen));
            assert!(in_order && left.len() == 0, "reported: {seen:?} after {listed:?}; written: {written:?}");
        } else {
            assert!(left.eq(&seen), "reported: {seen:?} after {listed:?}; written: {written:?}");
        }
    }
}
