//! The controller of the example `kube_status`: its kind, and a replica of it. The tests run it, too.
#![allow(clippy::disallowed_methods, reason = "a cluster answers in real time")]

pub mod replica;
pub mod widget;
