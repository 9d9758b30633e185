//! A store and an elector in Redis or Valkey.

pub(crate) mod codec;
pub(crate) mod connection;
pub(crate) mod elector;
mod store;
pub(crate) mod watch;

pub use self::{
    elector::{RedisElector, RedisElectorBuilder},
    store::RedisStore,
};
