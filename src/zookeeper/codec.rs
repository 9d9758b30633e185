//! Translation between ZooKeeper and a store: nodes as entries, zxids as versions.

use std::sync::Arc;

use zookeeper_client::Stat;

use crate::store::{Current, Entry, StoreError, Version};

/// Returns the version of a node: the zxid of its last write, and its data version as the token.
pub(super) fn version(stat: &Stat) -> Version {
    Version::ordered(stat.mzxid.unsigned_abs()).with_token(stat.version.to_be_bytes().to_vec())
}

/// Splits a version into zxid and data version. A version of another store matches no key, so it is
/// a conflict.
pub(super) fn parts(version: &Version) -> Result<(i64, i32), StoreError> {
    let zxid = version.revision().and_then(|revision| i64::try_from(revision).ok());
    let data_version = version.token().try_into().ok().map(i32::from_be_bytes);
    zxid.zip(data_version).ok_or(StoreError::Conflict { current: Current::Unknown })
}

pub(super) fn entry(key: Arc<str>, value: Vec<u8>, stat: &Stat) -> Entry {
    Entry { key, value: value.into(), version: version(stat) }
}
