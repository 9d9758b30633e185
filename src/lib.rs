//! [`engine`]: crate::engine
#![cfg_attr(feature = "tokio", doc = "[`WriterLease`]: crate::WriterLease")]
#![cfg_attr(feature = "tokio", doc = "[`Guard`]: crate::Guard")]
#![cfg_attr(feature = "tokio", doc = "[`Moment`]: crate::Moment")]
#![cfg_attr(feature = "tokio", doc = "[`ContentionTracker`]: crate::ContentionTracker")]
#![cfg_attr(feature = "kube", doc = "[`writerlease::kube`]: crate::kube")]
#![cfg_attr(feature = "tokio", doc = "[`store`]: crate::store")]
#![cfg_attr(feature = "tokio", doc = "[`election`]: crate::election")]
#![cfg_attr(feature = "lab", doc = "[`lab::simulation`]: crate::lab::simulation")]
//!
#![doc = include_str!("../README.md")]
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
#[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
mod reconnect;
#[cfg(feature = "redis")]
pub mod redis;
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
pub use guard::{Ensure, EnsureOutcome, Guard, Notice};
#[cfg(feature = "tokio")]
pub use lease::{WatchReporter, WriterLease};
#[cfg(feature = "tokio")]
pub use status::{LeaseClosed, Snapshot, SpawnError, Status, WatchState};
