//! Redis and Valkey: a store and an elector.

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
