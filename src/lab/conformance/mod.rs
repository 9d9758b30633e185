//! Holds a store against the [contract](crate::store) of [`Store`].
//!
//! Every store of this crate passes it. To hold your own against it, describe it in a [`Harness`]:
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
//!     // More events than it keeps for a slow reader.
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

/// A store that is held against the contract, and what it declares of itself.
///
/// Nothing is skipped in silence: what a store cannot do it declares here, and the [`Report`] says so.
pub trait Harness: Sync {
    /// The type of the store.
    type Store: Store;

    /// A handle to the store, always to the same one; with a connection of its own where the store has connections.
    fn store(&self) -> impl Future<Output = Self::Store> + Send;

    /// Makes it impossible for the watches that exist to go on without a gap, and returns when the store is at work
    /// again. The suite does not read from its watches meanwhile.
    ///
    /// Kill the server and compact its history, for example, or write more than it keeps for a slow reader.
    fn gap(&self) -> impl Future<Output = ()> + Send;

    /// What the keys of the suite start with; `conformance/` unless overridden.
    fn key_prefix(&self) -> &str {
        "conformance/"
    }

    /// Whether the store takes such a key; a key it doesn't must be refused as [`StoreError::Invalid`]. Unless
    /// overridden it takes all keys but the empty one, which no store takes.
    fn takes_key(&self, _key: &str) -> bool {
        true
    }

    /// The size in bytes of a value that the store takes for sure; 1 MiB unless overridden.
    fn largest_value(&self) -> usize {
        1 << 20
    }

    /// The sizes in bytes of values that the store refuses as [`StoreError::TooLarge`]; none, for a store without a limit,
    /// unless overridden.
    fn too_large_values(&self) -> Vec<usize> {
        Vec::new()
    }

    /// Whether a watch may leave out a write that a newer one of the same key has replaced; no, unless overridden.
    fn coalesces(&self) -> bool {
        false
    }

    /// How long one case may take until it counts as hanging; two minutes unless overridden.
    fn time_limit(&self) -> Duration {
        Duration::from_secs(120)
    }
}

/// Runs every case, one after the other, each under keys of its own. Does not clean up after itself.
///
/// Needs a tokio runtime with time enabled. A case that panics or hangs is reported as failed, and the next one runs.
pub async fn run<H: Harness>(harness: &H) -> Report {
    let run = RandomState::new().hash_one("run");
    let mut suite = Suite { harness, run, results: Vec::new() };
    reads::run(&mut suite).await;
    writes::run(&mut suite).await;
    versions::run(&mut suite).await;
    watches::run(&mut suite).await;
    Report { results: suite.results }
}

/// How the cases ended. [`Display`](fmt::Display) shows them all, one per line.
#[derive(Clone, Debug)]
#[must_use]
pub struct Report {
    /// In the order in which they ran.
    pub results: Vec<CaseResult>,
}

impl Report {
    /// Whether no case failed.
    pub fn passed(&self) -> bool {
        self.failures().next().is_none()
    }

    /// The cases that failed.
    pub fn failures(&self) -> impl Iterator<Item = &CaseResult> {
        self.results.iter().filter(|result| matches!(result.outcome, CaseOutcome::Failed(_)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.results.iter().try_for_each(|result| writeln!(f, "{result}"))
    }
}

/// How one case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseResult {
    /// What was to be shown, as a sentence.
    pub name: &'static str,
    /// Whether it was.
    pub outcome: CaseOutcome,
}

impl fmt::Display for CaseResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            CaseOutcome::Passed => write!(f, "passed: {}", self.name),
            CaseOutcome::Failed(why) => write!(f, "FAILED: {}: {why}", self.name),
            CaseOutcome::NotApplicable(why) => write!(f, "not applicable: {}: {why}", self.name),
        }
    }
}

/// Whether the store behaves as the name of the case says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CaseOutcome {
    /// It does.
    Passed,
    /// It doesn't; this is what happened instead.
    Failed(String),
    /// The [`Harness`] declared that it cannot be shown on this store.
    NotApplicable(&'static str),
}

struct Suite<'a, H> {
    harness: &'a H,
    /// Tells the keys of this run from those of an earlier one against the same server.
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
            Err(_) => CaseOutcome::Failed(format!("not done after {limit:?}")),
        };
        self.results.push(CaseResult { name, outcome });
    }

    fn not_applicable(&mut self, name: &'static str, why: &'static str) {
        self.results.push(CaseResult { name, outcome: CaseOutcome::NotApplicable(why) });
    }
}

/// What a panic had to say.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message").to_owned()
}

/// What a case works with: two handles to one store, and a part of it for itself.
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

    /// What is there, read through the handle that didn't write it.
    async fn read(&self, key: &str) -> Option<Entry> {
        self.other.get(key).await.expect("a read")
    }

    async fn assert_current(&self, last: &Write) {
        assert_eq!(self.read(&last.key).await.map(Write::from), Some(last.clone()), "what is there now");
    }

    async fn assert_absent(&self, key: &str) {
        assert_eq!(self.read(key).await, None, "what is there now");
    }

    fn watch(&self) -> Watched {
        Watched::new(&*self.other, &self.prefix)
    }
}

async fn put(store: &impl Store, key: &str, value: impl Into<Bytes>, expected: Expected) -> Write {
    let value = value.into();
    let version = store.put(key, value.clone(), expected, None).await.expect("a put as expected");
    Write { key: key.into(), value: Some(value), version }
}

/// A write that was acknowledged, or that a watch told.
#[derive(Clone)]
struct Write {
    key: Arc<str>,
    /// `None` for a deletion.
    value: Option<Bytes>,
    /// Of a deletion: from its writer the version that was deleted, from a watch what the watch says.
    version: Version,
}

/// Whoever deletes is told no version, so one deletion of a key is like another.
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
            // A failure with a megabyte in it helps nobody.
            Some(value) if value.len() > 100 => {
                write!(f, "put {key:?} ({} bytes) at {version:?}", value.len())
            }
            Some(value) => write!(f, "put {key:?} = {value:?} at {version:?}"),
        }
    }
}

/// A watch that is expected to work.
struct Watched {
    events: Pin<Box<dyn Stream<Item = Result<Event, StoreError>> + Send>>,
}

impl Watched {
    fn new(store: &impl Store, prefix: &str) -> Self {
        Self { events: Box::pin(store.watch(prefix)) }
    }

    async fn item(&mut self) -> Result<Event, StoreError> {
        self.events.next().await.expect("the watch goes on")
    }

    async fn event(&mut self) -> Event {
        self.item().await.expect("the watch is not interrupted")
    }

    /// The listing that begins with the next event.
    async fn listing(&mut self) -> Vec<Write> {
        assert_eq!(self.event().await, Event::Init);
        self.entries().await
    }

    /// The rest of a listing that has begun.
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

    async fn change(&mut self) -> Write {
        match self.event().await {
            Event::Put(entry) => entry.into(),
            Event::Delete { key, version } => Write { key, value: None, version },
            event => panic!("{event:?} outside of a listing"),
        }
    }

    /// Reads until the last of these writes was told of every key, and holds what was told against them. Where the
    /// listing may have come after writes of a key, the last of them must not be a deletion, of which it tells nothing.
    async fn follow(&mut self, listed: &[Write], written: &[Write], coalesces: bool) -> Vec<Write> {
        let mut last: HashMap<&str, &Write> = written.iter().map(|write| (&*write.key, write)).collect();
        last.retain(|_, last| !listed.contains(last));
        let mut seen: Vec<Write> = Vec::new();
        while last.values().any(|last| !seen.contains(last)) {
            seen.push(self.change().await);
        }
        assert_told(listed, written, &seen, coalesces);
        seen
    }
}

/// What a watch told is what was written after the listing: in order for each key, once, nothing else, and nothing left
/// out but, where that is allowed, a write that was replaced.
fn assert_told(listed: &[Write], written: &[Write], seen: &[Write], coalesces: bool) {
    let of = |writes: &[Write], key: &str| -> Vec<Write> {
        writes.iter().filter(|write| &*write.key == key).cloned().collect()
    };
    for write in listed.iter().chain(seen) {
        assert!(written.contains(write), "{write:?} was told but not written");
    }
    for last in written {
        let (listed, written, seen) = (of(listed, &last.key), of(written, &last.key), of(seen, &last.key));
        assert!(listed.len() <= 1, "{listed:?} listed twice");
        let place = |listed| written.iter().position(|other| other == listed).expect("it was written");
        // What the listing already held.
        let rest = match listed.first() {
            Some(listed) => place(listed) + 1,
            None if coalesces => 0,
            // The key did not exist when it was not listed.
            None => {
                let rest = written.len().saturating_sub(seen.len());
                assert!(
                    rest == 0 || written[rest - 1].value.is_none(),
                    "{written:?} began with {:?} but nothing was listed",
                    seen.first()
                );
                rest
            }
        };
        let mut left = written[rest..].iter();
        if coalesces {
            let told = seen.iter().all(|seen| left.any(|written| written == seen));
            assert!(told && left.len() == 0, "told was {seen:?} after {listed:?}, written was {written:?}");
        } else {
            assert!(left.eq(&seen), "told was {seen:?} after {listed:?}, written was {written:?}");
        }
    }
}
