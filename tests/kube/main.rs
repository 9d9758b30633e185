//! Tests of the Kubernetes store, the status guard and their example against a real API server.
#![allow(clippy::disallowed_methods, reason = "real servers answer in real time")]

mod kube_status;
mod replicas;
mod roster;
mod server;
mod store;
