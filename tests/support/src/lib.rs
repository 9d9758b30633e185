//! Real servers, a proxy that breaks connections to them, and what else the tests share.
#![allow(clippy::disallowed_methods, reason = "real servers answer in real time")]

pub mod build;
pub mod proxy;
pub mod server;
pub mod watch;
