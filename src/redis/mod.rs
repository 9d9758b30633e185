//! A store and an elector in Redis or Valkey.

mod access;
pub(crate) mod campaign;
pub(crate) mod cluster;
pub(crate) mod codec;
mod compat;
mod credentials;
mod elector;
mod node;
mod servers;
mod store;
pub(crate) mod watch;

pub use self::{
    credentials::Credentials,
    elector::{RedisElector, RedisElectorBuilder},
    store::RedisStore,
};
