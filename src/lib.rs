#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

#[cfg(feature = "tokio")]
#[cfg_attr(not(feature = "etcd"), allow(dead_code, reason = "only the backends have something to reconnect"))]
mod reconnect;
#[cfg(feature = "tokio")]
pub mod store;

#[cfg(feature = "lab")]
pub mod lab;
