//! What the tests share. Each of them is a crate of its own and uses another part of it.
#![allow(dead_code)]
#![allow(clippy::disallowed_methods, reason = "real servers answer in real time")]

pub mod example;
pub mod proxy;
pub mod server;
pub mod watch;
