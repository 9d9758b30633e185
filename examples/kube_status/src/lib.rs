//! The controller of the example `kube_status`: its custom resource and its replicas. The tests of
//! the Kubernetes store use it, too.
#![allow(clippy::disallowed_methods, reason = "a cluster answers in real time")]

pub mod replica;
pub mod widget;
