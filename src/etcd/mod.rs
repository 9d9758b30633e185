//! etcd: a store and electors.

mod campaign;
pub(crate) mod candidate;
pub(crate) mod client;
mod elector;
mod notices;
mod session;
mod store;
mod voters;

pub use self::{
    candidate::LeaderInfo,
    elector::{EtcdElector, EtcdElectorBuilder},
    notices::LeaderNotice,
    store::EtcdStore,
    voters::{EtcdVoter, EtcdVoters, UnlimitedBackoff},
};
