//! The calls of each elector beside the common promises: those of the package that it replaces.
#![allow(clippy::disallowed_methods, reason = "real servers answer in real time")]

mod common;
#[path = "elections/engines.rs"]
mod engines;
#[path = "elections/states.rs"]
mod states;

#[path = "elections/etcd.rs"]
mod etcd;
#[path = "elections/etcd_evict.rs"]
mod etcd_evict;
#[path = "elections/etcd_voter.rs"]
mod etcd_voter;
#[path = "elections/redis.rs"]
mod redis;
#[path = "elections/zookeeper.rs"]
mod zookeeper;
