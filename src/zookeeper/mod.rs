//! A store and an elector in ZooKeeper.

mod access;
mod breaks;
mod campaign;
pub(crate) mod candidates;
mod codec;
mod deletions;
mod elector;
pub(crate) mod name;
mod session;
mod store;
mod watch;

pub use self::{
    access::ZookeeperAccess,
    elector::{ZookeeperElector, ZookeeperElectorBuilder},
    store::ZookeeperStore,
};
