#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

#[cfg(feature = "tokio")]
mod reconnect;
#[cfg(feature = "tokio")]
pub mod store;

#[cfg(feature = "lab")]
pub mod lab;
