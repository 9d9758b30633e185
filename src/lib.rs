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

mod config;
#[cfg(feature = "tokio")]
mod contention;
#[cfg(feature = "tokio")]
mod driver;
#[cfg(feature = "tokio")]
pub mod election;
pub mod engine;
mod error;
#[cfg(feature = "tokio")]
mod feed;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "tokio")]
mod guard;
#[cfg(feature = "kube")]
pub mod kube;
#[cfg(feature = "tokio")]
mod lease;
#[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
mod reconnect;
#[cfg(feature = "tokio")]
pub mod store;
mod work;

#[cfg(feature = "lab")]
pub mod lab;

pub use config::{Builder, Config};
#[cfg(feature = "tokio")]
pub use contention::{ContentionCounters, ContentionTracker};
#[cfg(feature = "tokio")]
pub use driver::Moment;
pub use error::ConfigError;
#[cfg(feature = "tokio")]
pub use error::{Ended, SpawnError};
#[cfg(feature = "tokio")]
pub use feed::{Feed, FeedReporter};
#[cfg(feature = "tokio")]
pub use guard::{Ending, Ensured, Guard, Notice};
#[cfg(feature = "tokio")]
pub use lease::{Snapshot, Status, WriterLease};
#[cfg(feature = "tokio")]
pub use work::{Attempt, limit_retries};
pub use work::{Next, Outcome, Verdict};
