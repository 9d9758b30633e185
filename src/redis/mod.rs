//! A store and an elector in Redis or Valkey.

pub(crate) mod campaign;
pub(crate) mod codec;
mod compat;
pub(crate) mod connection;
mod elector;
mod store;
pub(crate) mod watch;

pub use self::{
    elector::{RedisElector, RedisElectorBuilder},
    store::RedisStore,
};
