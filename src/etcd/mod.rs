//! A store and electors in etcd.

mod campaign;
pub(crate) mod candidate;
pub(crate) mod client;
mod compat;
mod elector;
mod session;
mod store;
mod voters;
mod watch;

pub use self::{
    candidate::LeaderInfo,
    compat::{LeaderNotice, UnlimitedBackoff},
    elector::{EtcdElector, EtcdElectorBuilder},
    store::EtcdStore,
    voters::{EtcdVoter, EtcdVoters, EtcdVotersBuilder},
};
