//! A lease that is held by doing the work it protects.
//!
//! Several replicas want to write the same objects. A [`WriterLease`] lets one of them write and the others wait, without
//! a lock, a heartbeat or a renewal: a write that succeeds renews the lease of the process that made it, a write by
//! another process renews the lease of that process, and competitors back off exponentially. A key belongs to whoever
//! wrote it last, until another process has waited for it too long. The store's compare-and-write decides what is correct;
//! the lease decides who goes first. The README lists what is guaranteed and what is not.
//!
//! # Which type do I need?
//!
//! | I want to ... | use |
//! |---|---|
//! | keep the value of a key as it should be | [`Guard`], with a [`store`] |
//! | keep the status of Kubernetes objects as it should be | [`kube::StatusGuard`] |
//! | run jobs against a store that is none of these | [`WriterLease`], or a [`store::Store`] of my own under a [`Guard`] |
//! | run a job only where an election is won | [`WriterLease::follow`], with an [`election::Elector`] |
//! | let the replicas know of each other | [`Guard::join`], with a [`Roster`] |
//! | know why a key is not written | [`Guard::explain`], or [`WriterLease::explain`] |
//! | notice that two groups fight over a key | [`ContentionTracker`]; every [`Guard`] has one |
//! | drive the rules with a runtime of my own | [`engine::Engine`] |
//! | benchmark contention, test a store or a controller | [`lab`] |
//!
//! # Example
//!
//! ```
//! use writerlease::{EnsureOutcome, Guard, WriterLease, store::MemoryStore};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let lease = WriterLease::builder("route-status").spawn()?;
//! let guard = Guard::new(MemoryStore::new(), lease, "status/")?;
//!
//! let ensure = guard.ensure("default/my-route", |current| match current {
//!     Some(b"admitted") => None, // it is right already
//!     _ => Some("admitted"),     // write this, unless another replica does so first
//! });
//! assert!(matches!(ensure.await, EnsureOutcome::Written(_)));
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! | feature | adds |
//! |---|---|
//! | `tokio` (default) | the driver, [`WriterLease`], [`Guard`], [`store::MemoryStore`]; without it only [`engine`] is left |
//! | `etcd` | [`etcd`]: a store and electors; needs `protoc` to build |
//! | `redis` | [`redis`]: a store and an elector, for Redis and Valkey |
//! | `zookeeper` | [`zookeeper`]: a store and an elector |
//! | `kube` | [`kube`]: a store of Kubernetes objects and the guard of their status |
//! | `lab` | [`lab`]: scenarios, a simulator, and conformance suites |
//!
//! # Modules
//!
//! [`engine`] decides: a pure state machine with the table of the rules. A driver runs it under tokio behind
//! [`WriterLease`]. [`Guard`] brings a lease and a [`store`] together. [`store`] and [`election`] are contracts; [`etcd`],
//! [`redis`], [`zookeeper`] and [`kube`] fulfil them.
//!
// With some features off, links to their items lead nowhere; the build with all features checks every link.
#![cfg_attr(
    not(all(feature = "etcd", feature = "kube", feature = "lab", feature = "redis", feature = "zookeeper")),
    allow(rustdoc::broken_intra_doc_links)
)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

#[cfg(feature = "tokio")]
mod clock;
#[cfg(feature = "tokio")]
mod contention;
#[cfg(feature = "tokio")]
mod driver;
#[cfg(feature = "tokio")]
pub mod election;
pub mod engine;
#[cfg(feature = "etcd")]
pub mod etcd;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "tokio")]
mod guard;
#[cfg(feature = "kube")]
pub mod kube;
#[cfg(feature = "lab")]
pub mod lab;
#[cfg(feature = "tokio")]
mod lease;
#[doc(hidden)]
pub mod object;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "tokio")]
mod roster;
#[cfg(feature = "tokio")]
mod status;
#[cfg(feature = "tokio")]
pub mod store;
#[cfg(feature = "zookeeper")]
pub mod zookeeper;

#[cfg(feature = "tokio")]
pub use clock::Moment;
#[cfg(feature = "tokio")]
pub use contention::{ContentionCounters, ContentionTracker};
#[cfg(feature = "tokio")]
pub use driver::{Attempt, limit_retries};
pub use engine::{
    config::{ConfigError, LeaseBuilder, LeaseConfig},
    outcome::{Next, Outcome, Verdict},
};
#[cfg(feature = "tokio")]
pub use guard::{Ensure, EnsureOutcome, Guard, KeyExplanation, Notice};
#[cfg(feature = "tokio")]
pub use lease::{WatchReporter, WriterLease};
#[cfg(feature = "tokio")]
pub use roster::Roster;
#[cfg(feature = "tokio")]
pub use status::{LeaseClosed, MemberSnapshot, ShardSnapshot, Snapshot, SpawnError, Status, WatchState};

/// The Rust samples of README.md, compiled and run as tests.
#[cfg(all(doctest, feature = "tokio"))]
#[doc = include_str!("../README.md")]
struct ReadmeSamples;

/// The same for docs/shards.md.
#[cfg(all(doctest, feature = "tokio"))]
#[doc = include_str!("../docs/shards.md")]
struct ShardsSamples;
