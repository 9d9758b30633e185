//! Support for tests: real servers, a proxy that breaks connections to them, and a reader of
//! watches.
#![allow(clippy::disallowed_methods, reason = "real servers answer in real time")]

pub mod build;
pub mod proxy;
pub mod server;
pub mod watch;
