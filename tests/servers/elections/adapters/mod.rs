//! The calls of each elector beside the common promises: those of the package that it replaces.

mod etcd;
mod etcd_access;
mod etcd_clusters;
mod etcd_evict;
mod etcd_overwritten;
mod etcd_voter;
mod redis;
mod redis_servers;
mod zookeeper;
mod zookeeper_access;
mod zookeeper_sessions;
