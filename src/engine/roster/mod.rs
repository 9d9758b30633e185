//! The roster: the names of the replicas that are about, and whose turn each shard is.

mod assignment;
mod hash;

use std::sync::Arc;

pub(super) use self::{assignment::assign, hash::shard_of};

/// A replica on the roster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Member {
    pub(crate) name: Arc<str>,
    /// Its share of the shards, against the other weights: from 1 to 100.
    pub(crate) weight: u16,
}
