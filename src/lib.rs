#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod config;
pub mod engine;
mod error;
#[cfg(feature = "tokio")]
mod reconnect;
#[cfg(feature = "tokio")]
pub mod store;
mod work;

#[cfg(feature = "lab")]
pub mod lab;

pub use config::{Builder, Config};
pub use error::ConfigError;
#[cfg(feature = "tokio")]
pub use error::{Ended, SpawnError};
pub use work::{Next, Outcome, Verdict};
