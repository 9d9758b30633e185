//! Tests of the stores, and of the guard on them, against real servers.
#![allow(clippy::disallowed_methods, reason = "real servers answer in real time")]

mod conformance;
mod etcd;
mod example;
mod fault_tools;
mod faults;
mod hostile;
mod redis;
mod redis_access;
mod redis_cluster;
mod redis_failover;
mod roster;
mod soak;
mod zookeeper;
mod zookeeper_history;
